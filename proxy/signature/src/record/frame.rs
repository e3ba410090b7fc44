//! Record headers and the bounds of each type, and a reader for the fields of a payload.

use std::fmt;

use super::{
    ALERT_MAX, CHAIN_MAX, MAX_UNSIGNED, RecordError, TRAILERS_MAX, hello, transcript::SignatureRecord,
};

/// Bytes of a record header: type and length.
pub const HEADER_LEN: usize = 4;

/// Payload bytes of one DATA record: all that one signature may cover. BLAKE3 is fast over long pieces only.
pub const DATA_MAX: usize = MAX_UNSIGNED;

/// The record types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordType {
    /// Why the sender gave up.
    Alert,
    /// The sender's signing chain.
    Chain,
    /// Application bytes.
    Data,
    /// The end of the half-stream.
    Fin,
    /// What the stream is bound to.
    Hello,
    /// The end of the records of a half that is not signed: what follows is application bytes as they are.
    Raw,
    /// The end of an `auto` half-stream that turned out to be HTTP.
    Release,
    /// The signature over everything before it.
    Signature,
    /// The trailer fields of an HTTP body.
    Trailers,
}

impl RecordType {
    /// What kind of record `wire` begins with, if that much is there; the record itself is judged when it is read.
    pub fn of_first(wire: &[u8]) -> Option<Self> {
        wire.first().and_then(|byte| Self::from_byte(*byte))
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x00 => Self::Hello,
            0x01 => Self::Data,
            0x02 => Self::Signature,
            0x03 => Self::Fin,
            0x04 => Self::Alert,
            0x05 => Self::Chain,
            0x06 => Self::Release,
            0x07 => Self::Trailers,
            0x08 => Self::Raw,
            _ => return None,
        })
    }

    const fn byte(self) -> u8 {
        match self {
            Self::Hello => 0x00,
            Self::Data => 0x01,
            Self::Signature => 0x02,
            Self::Fin => 0x03,
            Self::Alert => 0x04,
            Self::Chain => 0x05,
            Self::Release => 0x06,
            Self::Trailers => 0x07,
            Self::Raw => 0x08,
        }
    }

    const fn payload_max(self) -> usize {
        match self {
            Self::Alert => ALERT_MAX,
            Self::Chain => CHAIN_MAX,
            Self::Data => DATA_MAX,
            Self::Fin | Self::Raw | Self::Release => 0,
            Self::Hello => hello::PAYLOAD_MAX,
            Self::Signature => SignatureRecord::LEN,
            Self::Trailers => TRAILERS_MAX,
        }
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alert => "alert",
            Self::Chain => "chain",
            Self::Data => "data",
            Self::Fin => "fin",
            Self::Hello => "hello",
            Self::Raw => "raw",
            Self::Release => "release",
            Self::Signature => "signature",
            Self::Trailers => "trailers",
        })
    }
}

/// Type and length of a record; the length is within the type's maximum.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub(super) record: RecordType,
    pub(super) length: usize,
}

impl Header {
    pub(super) fn parse(bytes: [u8; HEADER_LEN]) -> Result<Self, RecordError> {
        let [kind, high, middle, low] = bytes;
        let record = RecordType::from_byte(kind).ok_or(RecordError::UnknownType)?;
        let length = u24([high, middle, low]);
        if length > record.payload_max() {
            return Err(RecordError::Oversize(record));
        }
        Ok(Self { record, length })
    }

    /// The header of a payload whose length the caller has bounded by the type's maximum.
    pub(super) fn of(record: RecordType, length: usize) -> [u8; HEADER_LEN] {
        debug_assert!(length <= record.payload_max());
        let [high, middle, low] = to_u24(length);
        [record.byte(), high, middle, low]
    }
}

pub(super) fn u24([high, middle, low]: [u8; 3]) -> usize {
    usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)
}

/// The low 24 bits; every length written here is bounded far below.
pub(super) fn to_u24(length: usize) -> [u8; 3] {
    [(length >> 16) as u8, (length >> 8) as u8, length as u8]
}

/// The fields of a payload, taken from the front; `None` is a payload that is too short.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    pub(super) fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(field)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Some only if nothing is left: a payload has no room for what this version does not read.
    pub(super) fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}
