//! The running hash of a half-stream and the signature over it.

use bytes::{BufMut, BytesMut};

use super::{
    HEADER_LEN, RecordError, RecordHash, RecordType,
    frame::{Fields, Header},
    hash::sha256,
};

/// The way a half-stream goes. It is part of the hash and of each signature, so that nothing can be reflected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the dialling side: a stream's `c2s`, a body's `req`.
    ClientToServer,
    /// From the accepting side: a stream's `s2c`, a body's `rsp`.
    ServerToClient,
}

impl Direction {
    /// The other direction.
    #[must_use]
    pub const fn reverse(self) -> Self {
        match self {
            Self::ClientToServer => Self::ServerToClient,
            Self::ServerToClient => Self::ClientToServer,
        }
    }
}

/// Where a half-stream stands: what the next SIG covers.
#[derive(Clone)]
pub(super) struct Transcript {
    domain: Domain,
    algorithm: RecordHash,
    /// Number of the last record.
    seq: u64,
    /// DATA payload bytes so far.
    bytes: u64,
    hash: [u8; 32],
}

impl Transcript {
    /// Of one half of an opaque stream, from the hash and the payloads of both HELLO records.
    pub(super) fn stream(
        direction: Direction,
        algorithm: RecordHash,
        hello_c2s: &[u8],
        hello_s2c: &[u8],
    ) -> Self {
        let domain = Domain::stream(direction);
        let hash = algorithm.of(&[b"mesh-opq-v1\0", domain.direction, hello_c2s, hello_s2c]);
        Self { domain, algorithm, seq: 0, bytes: 0, hash }
    }

    /// Of the body that belongs to the head with this signature base.
    pub(super) fn body(direction: Direction, head_base: &[u8]) -> Self {
        let hash = sha256(&[b"mesh-rec-v1\0", &sha256(&[head_base])]);
        Self { domain: Domain::body(direction), algorithm: RecordHash::Sha256, seq: 0, bytes: 0, hash }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    /// Counts a record and moves the hash on; returns the header that stands before the payload. Neither counter
    /// can overflow: each record and each byte was carried over a network.
    ///
    /// The payload is hashed in one piece: BLAKE3 is fast only over many of its chunks at once.
    pub(super) fn append(&mut self, record: RecordType, payload: &[u8]) -> [u8; HEADER_LEN] {
        let header = Header::of(record, payload.len());
        self.seq += 1;
        if record == RecordType::Data {
            self.bytes += payload.len() as u64;
        }
        self.hash = self.algorithm.of(&[&self.hash, &self.seq.to_be_bytes(), &header, payload]);
        header
    }

    /// The SIG record for everything so far, made by `sign`.
    pub(super) fn signature(&self, unix_ms: u64, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> SignatureRecord {
        let mut record = SignatureRecord {
            seq: self.seq,
            bytes: self.bytes,
            unix_ms,
            hash: self.hash,
            signature: [0; 64],
        };
        record.signature = sign(&self.domain.message(&record));
        record
    }

    /// The bytes the signature in `record` must be over, if `record` speaks of this very place.
    pub(super) fn signed_message(&self, record: &SignatureRecord) -> Result<[u8; MESSAGE_LEN], RecordError> {
        if record.seq != self.seq {
            return Err(RecordError::SequenceMismatch);
        }
        if record.bytes != self.bytes {
            return Err(RecordError::ByteCountMismatch);
        }
        if record.hash != self.hash {
            return Err(RecordError::HashMismatch);
        }
        Ok(self.domain.message(record))
    }
}

/// The payload of a SIG record. With the HELLO records, or the head, and the signer's chain it is evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureRecord {
    /// Number of the last record it covers.
    pub seq: u64,
    /// DATA payload bytes it covers, from the start.
    pub bytes: u64,
    /// The signer's clock, Unix milliseconds; a claim, not checked.
    pub unix_ms: u64,
    /// The running hash after record `seq`.
    pub hash: [u8; 32],
    /// The Ed25519 signature.
    pub signature: [u8; 64],
}

impl SignatureRecord {
    pub(super) const LEN: usize = 3 * 8 + 32 + 64;

    pub(super) fn parse(payload: &[u8]) -> Result<Self, RecordError> {
        Self::parse_fields(Fields(payload)).ok_or(RecordError::Malformed(RecordType::Signature))
    }

    fn parse_fields(mut fields: Fields<'_>) -> Option<Self> {
        let record = Self {
            seq: fields.u64()?,
            bytes: fields.u64()?,
            unix_ms: fields.u64()?,
            hash: fields.array()?,
            signature: fields.array()?,
        };
        fields.end().map(|()| record)
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_slice(&Header::of(RecordType::Signature, Self::LEN));
        out.put_u64(self.seq);
        out.put_u64(self.bytes);
        out.put_u64(self.unix_ms);
        out.put_slice(&self.hash);
        out.put_slice(&self.signature);
    }
}

/// Bytes under a signature: prefix, direction, three counters, hash.
const MESSAGE_LEN: usize = 16 + 3 + 3 * 8 + 32;

/// What separates the signatures of one use and direction from all others.
#[derive(Clone, Copy)]
struct Domain {
    prefix: &'static [u8; 16],
    direction: &'static [u8; 3],
}

impl Domain {
    const fn stream(direction: Direction) -> Self {
        let direction = match direction {
            Direction::ClientToServer => b"c2s",
            Direction::ServerToClient => b"s2c",
        };
        Self { prefix: b"mesh-opq-sig-v1\0", direction }
    }

    const fn body(direction: Direction) -> Self {
        let direction = match direction {
            Direction::ClientToServer => b"req",
            Direction::ServerToClient => b"rsp",
        };
        Self { prefix: b"mesh-rec-sig-v1\0", direction }
    }

    fn message(&self, record: &SignatureRecord) -> [u8; MESSAGE_LEN] {
        let mut message = [0; MESSAGE_LEN];
        let mut rest = &mut message[..];
        rest.put_slice(self.prefix);
        rest.put_slice(self.direction);
        rest.put_u64(record.seq);
        rest.put_u64(record.bytes);
        rest.put_u64(record.unix_ms);
        rest.put_slice(&record.hash);
        message
    }
}
