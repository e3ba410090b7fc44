//! Small conversions every payload shares; each names the field it failed on.

use std::net::IpAddr;

use prost::encoding::{DecodeContext, decode_key, skip_field};
use signet_identity::SpiffeId;

use crate::{DecodeError, MAX_ENTRIES, MAX_NAME_BYTES};

/// An address as 4 or 16 bytes. A v4-mapped IPv6 address is refused: one address, one spelling.
pub(crate) fn address(field: &'static str, bytes: &[u8]) -> Result<IpAddr, DecodeError> {
    let address = if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        IpAddr::from(v4)
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        IpAddr::from(v6)
    } else {
        return Err(DecodeError::Address { field });
    };
    if address != address.to_canonical() {
        return Err(DecodeError::Address { field });
    }
    Ok(address)
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A TCP or UDP port, never 0.
pub(crate) fn port(field: &'static str, port: u32) -> Result<u16, DecodeError> {
    match u16::try_from(port) {
        Ok(0) | Err(_) => Err(DecodeError::Port { field }),
        Ok(port) => Ok(port),
    }
}

/// A port, or 0 where there is none.
pub(crate) fn port_or_none(field: &'static str, port: u32) -> Result<u16, DecodeError> {
    u16::try_from(port).map_err(|_| DecodeError::Port { field })
}

pub(crate) fn key(field: &'static str, bytes: &[u8]) -> Result<[u8; 32], DecodeError> {
    bytes.try_into().map_err(|_| DecodeError::Length { field, expected: 32 })
}

pub(crate) fn spiffe_id(field: &'static str, text: &str) -> Result<SpiffeId, DecodeError> {
    SpiffeId::parse(text).map_err(|source| DecodeError::Id { field, source })
}

/// A name shown to people and compared in full: not empty, bounded, no control characters.
pub(crate) fn name(field: &'static str, text: String) -> Result<String, DecodeError> {
    if text.is_empty() || text.len() > MAX_NAME_BYTES || text.chars().any(char::is_control) {
        return Err(DecodeError::Name { field });
    }
    Ok(text)
}

pub(crate) fn at_most(field: &'static str, count: usize, max: usize) -> Result<(), DecodeError> {
    if count > max {
        return Err(DecodeError::TooMany { field, max });
    }
    Ok(())
}

/// Refuses a payload with more top-level fields than any payload has entries, before it is decoded: an empty entry is
/// two bytes on the wire and a hundred times that in memory.
pub(crate) fn fields_at_most(field: &'static str, payload: &[u8]) -> Result<(), DecodeError> {
    // Room for the few fields beside the one long list.
    const MAX_FIELDS: usize = MAX_ENTRIES + 64;
    let mut rest = payload;
    let mut count = 0;
    while !rest.is_empty() {
        count += 1;
        at_most(field, count, MAX_FIELDS)?;
        let (tag, wire_type) = decode_key(&mut rest)?;
        skip_field(wire_type, tag, &mut rest, DecodeContext::default())?;
    }
    Ok(())
}
