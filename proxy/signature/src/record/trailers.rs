//! TRAILERS: the trailer fields of an HTTP body, which travel inside the signed records.

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{RecordError, RecordType, WriteError, frame::Fields};

/// Trailer fields of one message; the bound the proxy has on header fields.
pub const TRAILER_FIELDS_MAX: usize = 100;

/// Bytes of a whole TRAILERS payload: gRPC status details are commonly capped at 8 KiB.
pub const TRAILERS_MAX: usize = 16 * 1024;

/// The payload of TRAILERS; the values of one name keep their order.
pub(super) fn encode(trailers: &HeaderMap) -> Result<BytesMut, WriteError> {
    if trailers.len() > TRAILER_FIELDS_MAX {
        return Err(WriteError::TrailersTooLarge);
    }
    let mut payload = BytesMut::new();
    payload.put_u16(trailers.len() as u16);
    for (name, value) in trailers {
        for field in [name.as_str().as_bytes(), value.as_bytes()] {
            let length = u16::try_from(field.len()).map_err(|_| WriteError::TrailersTooLarge)?;
            payload.put_u16(length);
            payload.put_slice(field);
        }
        if payload.len() > TRAILERS_MAX {
            return Err(WriteError::TrailersTooLarge);
        }
    }
    Ok(payload)
}

/// The fields of a TRAILERS payload. Whether a field may stand in a trailer is the caller's decision.
pub(super) fn parse(payload: &[u8]) -> Result<HeaderMap, RecordError> {
    parse_fields(payload).ok_or(RecordError::Malformed(RecordType::Trailers))
}

fn parse_fields(payload: &[u8]) -> Option<HeaderMap> {
    let mut fields = Fields(payload);
    let count = usize::from(fields.u16()?);
    if count == 0 || count > TRAILER_FIELDS_MAX {
        return None;
    }
    let mut trailers = HeaderMap::with_capacity(count);
    for _ in 0..count {
        let length = fields.u16()?;
        let name = HeaderName::from_lowercase(fields.bytes(length.into())?).ok()?;
        let length = fields.u16()?;
        let value = HeaderValue::from_bytes(fields.bytes(length.into())?).ok()?;
        trailers.append(name, value);
    }
    fields.end().map(|()| trailers)
}
