//! The hashes a stream's transcript may be made with.

use aws_lc_rs::digest::{Context, SHA256};

/// What moves a transcript on. Bodies use SHA-256; a stream uses what its two HELLOs agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordHash {
    /// BLAKE3, unkeyed, 32 bytes: the faster one wherever there are vector instructions.
    Blake3,
    /// SHA-256 (FIPS 180-4): what every side has.
    Sha256,
}

impl RecordHash {
    /// The hash of `parts` as if they were joined.
    pub(super) fn of(self, parts: &[&[u8]]) -> [u8; 32] {
        match self {
            Self::Blake3 => blake3(parts),
            Self::Sha256 => sha256(parts),
        }
    }
}

fn blake3(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

pub(super) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    // Cannot panic: a SHA-256 digest has 32 bytes.
    hash.copy_from_slice(context.finish().as_ref());
    hash
}
