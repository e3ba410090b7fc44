//! CHAIN: the signing chain of a stream's sender.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    RecordError, RecordType, WriteError,
    frame::{Fields, to_u24, u24},
};

/// Certificates in a chain: leaf and issuer, with room for two more intermediates.
pub const CHAIN_CERTS_MAX: usize = 4;

/// Bytes of a whole CHAIN payload; a chain of four P-256 certificates has about 3 KiB.
pub const CHAIN_MAX: usize = 16 * 1024;

/// The payload of CHAIN, leaf first.
pub(super) fn encode(certificates: &[impl AsRef<[u8]>]) -> Result<BytesMut, WriteError> {
    let mut payload = BytesMut::new();
    payload.put_u8(certificates.len() as u8);
    for certificate in certificates.iter().map(AsRef::as_ref) {
        payload.put_slice(&to_u24(certificate.len()));
        payload.put_slice(certificate);
        if certificate.is_empty() || payload.len() > CHAIN_MAX {
            return Err(WriteError::ChainInvalid);
        }
    }
    if certificates.is_empty() || certificates.len() > CHAIN_CERTS_MAX {
        return Err(WriteError::ChainInvalid);
    }
    Ok(payload)
}

/// The certificates of a CHAIN payload; at least one.
pub(super) fn parse(payload: &Bytes) -> Result<Vec<Bytes>, RecordError> {
    parse_fields(payload).ok_or(RecordError::Malformed(RecordType::Chain))
}

fn parse_fields(payload: &Bytes) -> Option<Vec<Bytes>> {
    let mut fields = Fields(payload);
    let count = usize::from(fields.u8()?);
    if count == 0 || count > CHAIN_CERTS_MAX {
        return None;
    }
    let mut certificates = Vec::with_capacity(count);
    for _ in 0..count {
        let length = u24(fields.array()?);
        let certificate = fields.bytes(length).filter(|der| !der.is_empty())?;
        certificates.push(payload.slice_ref(certificate));
    }
    fields.end().map(|()| certificates)
}
