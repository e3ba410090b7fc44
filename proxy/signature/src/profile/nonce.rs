//! The place on a channel that a signature is made for.

use std::fmt::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::error::SignatureError;

/// Identifies one direction-less channel: 16 bytes exported from its TLS connection, so that a
/// signature made for it is worthless on any other.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChannelId(pub [u8; 16]);

impl ChannelId {
    /// The nonce of the message with sequence number `seq`: `<base64url>.<hex>`.
    #[must_use]
    pub fn nonce(&self, seq: u64) -> String {
        let mut nonce = String::with_capacity(40);
        URL_SAFE_NO_PAD.encode_string(self.0, &mut nonce);
        // Writing to a String cannot fail.
        let _ = write!(nonce, ".{seq:x}");
        nonce
    }

    /// The channel and the sequence number of a nonce, in the one spelling that a nonce has.
    #[must_use]
    pub fn of(nonce: &str) -> Option<(Self, u64)> {
        let (channel, _) = nonce.split_once('.')?;
        let bytes = URL_SAFE_NO_PAD.decode(channel).ok()?;
        let channel = Self(bytes.try_into().ok()?);
        Some((channel, channel.sequence(nonce).ok()?))
    }

    /// Whether a nonce was made for this channel, in the one spelling that a nonce has.
    #[must_use]
    pub fn made(&self, nonce: &str) -> bool {
        self.sequence(nonce).is_ok()
    }

    /// The sequence number of a nonce that was made for this channel.
    ///
    /// # Errors
    /// [`SignatureError::OtherChannel`], and [`SignatureError::Malformed`] for another spelling.
    pub fn sequence(&self, nonce: &str) -> Result<u64, SignatureError> {
        let (channel, seq) = nonce.split_once('.').ok_or(SignatureError::Malformed)?;
        let mut encoded = [0; 22];
        // 16 bytes are always 22 characters, so the buffer fits.
        let length = URL_SAFE_NO_PAD.encode_slice(self.0, &mut encoded).unwrap_or(0);
        let (encoded, rest) = encoded.split_at(length);
        if !rest.is_empty() || encoded != channel.as_bytes() {
            return Err(SignatureError::OtherChannel);
        }
        parse_sequence(seq).ok_or(SignatureError::Malformed)
    }
}

impl fmt::Debug for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChannelId({self})")
    }
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// The sequence number at the end of any nonce of the profile.
pub(crate) fn sequence_of(nonce: &str) -> Option<u64> {
    nonce.split_once('.').and_then(|(_, seq)| parse_sequence(seq))
}

/// Lower-case hexadecimal without padding: one number has one spelling.
fn parse_sequence(text: &str) -> Option<u64> {
    let canonical = (1..=16).contains(&text.len())
        && !text.starts_with('0')
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if canonical { u64::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_read_back_on_its_channel_only() {
        let channel = ChannelId([7; 16]);
        assert_eq!(channel.nonce(0x1a7), "BwcHBwcHBwcHBwcHBwcHBw.1a7");
        for seq in [1, 0x1a7, u64::MAX] {
            assert_eq!(channel.sequence(&channel.nonce(seq)), Ok(seq));
        }
        let other = ChannelId([8; 16]).nonce(1);
        assert_eq!(channel.sequence(&other), Err(SignatureError::OtherChannel));
    }

    #[test]
    fn a_nonce_tells_its_channel_in_one_spelling() {
        let channel = ChannelId([7; 16]);
        assert_eq!(ChannelId::of(&channel.nonce(9)), Some((channel, 9)));
        // The last character of 22 has four bits that mean nothing.
        for nonce in [
            "",
            ".1",
            "BwcHBwcHBwcHBwcHBwcHBx.1",
            "BwcHBwcHBwcHBwcHBwcHBw==.1",
            "BwcH.1",
            "BwcHBwcHBwcHBwcHBwcHBw.01",
        ] {
            assert_eq!(ChannelId::of(nonce), None, "{nonce}");
        }
    }

    #[test]
    fn other_spellings_of_a_number_are_refused() {
        let channel = ChannelId([7; 16]);
        for seq in ["", "0", "01", "A", "1 ", "+1", "-1", "0x1", "1.1", "1_", "10000000000000000"] {
            let nonce = format!("{channel}.{seq}");
            assert_eq!(channel.sequence(&nonce), Err(SignatureError::Malformed), "{seq:?}");
        }
        assert_eq!(channel.sequence("BwcHBwcHBwcHBwcHBwcHBw"), Err(SignatureError::Malformed));
    }
}
