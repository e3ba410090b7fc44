//! Header fields as they are sealed: `u16 len | name | u16 len | value`, one after the other.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::SealError;

/// Most bytes of all fields of one message: as much as a head may hold.
pub const MAX_BYTES: usize = 64 * 1024;

/// Most fields.
const MAX_FIELDS: usize = 128;

pub(super) fn write(fields: &HeaderMap) -> Result<Vec<u8>, SealError> {
    let mut out = Vec::new();
    for (name, value) in fields {
        for part in [name.as_str().as_bytes(), value.as_bytes()] {
            let length = u16::try_from(part.len()).map_err(|_| SealError::TooLarge)?;
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(part);
        }
    }
    if out.len() > MAX_BYTES || fields.len() > MAX_FIELDS { Err(SealError::TooLarge) } else { Ok(out) }
}

pub(super) fn parse(mut bytes: &[u8]) -> Result<HeaderMap, SealError> {
    if bytes.len() > MAX_BYTES {
        return Err(SealError::Malformed);
    }
    let mut fields = HeaderMap::new();
    while !bytes.is_empty() {
        let name = HeaderName::from_bytes(take(&mut bytes)?).map_err(|_| SealError::Malformed)?;
        let value = HeaderValue::from_bytes(take(&mut bytes)?).map_err(|_| SealError::Malformed)?;
        if fields.len() == MAX_FIELDS {
            return Err(SealError::Malformed);
        }
        fields.append(name, value);
    }
    Ok(fields)
}

fn take<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], SealError> {
    let (length, rest) = bytes.split_first_chunk::<2>().ok_or(SealError::Malformed)?;
    let (part, rest) =
        rest.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or(SealError::Malformed)?;
    *bytes = rest;
    Ok(part)
}
