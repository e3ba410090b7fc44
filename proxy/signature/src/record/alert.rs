//! ALERT: the unsigned notice that the sender gave up, and why.

use bytes::{BufMut, Bytes, BytesMut};

use super::{HEADER_LEN, RecordType, WriteError, frame::Header};

/// Bytes of an alert code: every code in the product is far shorter.
pub const ALERT_MAX: usize = 64;

/// Why the peer gave up: 1 to 64 lower-case letters, digits and hyphens, so that it may be logged as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlertCode(String);

impl AlertCode {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let legal = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if bytes.is_empty() || bytes.len() > ALERT_MAX || !bytes.iter().all(legal) {
            return None;
        }
        str::from_utf8(bytes).ok().map(|code| Self(code.to_owned()))
    }

    /// The code.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An ALERT record on its own, for when there is no writer yet: the peer's HELLO was refused.
///
/// # Errors
/// [`WriteError::AlertInvalid`] if `code` is not 1 to 64 lower-case letters, digits and hyphens.
pub fn alert_record(code: &str) -> Result<Bytes, WriteError> {
    let code = AlertCode::parse(code.as_bytes()).ok_or(WriteError::AlertInvalid)?;
    let mut out = BytesMut::with_capacity(HEADER_LEN + code.0.len());
    out.put_slice(&Header::of(RecordType::Alert, code.0.len()));
    out.put_slice(code.0.as_bytes());
    Ok(out.freeze())
}
