//! What is known of the time, as it is kept for the next process.

use aws_lc_rs::digest::{SHA256, digest};
use prost::Message;

/// A saved clock. Nothing in it is signed: whoever can write it can also read the keys beside it. What is signed, the last
/// word of the control plane and the beginnings of certificates, bounds how far back it can be set.
#[derive(Clone, Eq, PartialEq, Message)]
pub(crate) struct Saved {
    /// Milliseconds since 1970 that had certainly passed.
    #[prost(uint64, tag = "1")]
    pub(crate) floor_ms: u64,
    /// What the time was, when there was a better word for it than the wall clock's; 0 without.
    #[prost(uint64, tag = "2")]
    pub(crate) anchored_ms: u64,
    /// The clock that counts from the machine's start, at that moment.
    #[prost(uint64, tag = "3")]
    pub(crate) boot_ms: u64,
    /// Which start of the machine.
    #[prost(string, tag = "4")]
    pub(crate) boot_id: String,
}

/// Bytes of the digest before a saved clock: a flipped bit must not become a year.
const CHECK_BYTES: usize = 8;

impl Saved {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let body = self.encode_to_vec();
        let check = digest(&SHA256, &body);
        [check.as_ref().get(..CHECK_BYTES).unwrap_or_default(), &body].concat()
    }

    /// `None` when these are not the bytes that were written.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (check, body) = bytes.split_at_checked(CHECK_BYTES)?;
        let is_whole = digest(&SHA256, body).as_ref().get(..CHECK_BYTES) == Some(check);
        is_whole.then(|| Self::decode(body).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_or_a_cut_end_is_no_time() {
        let saved =
            Saved { floor_ms: 1_700_000_000_000, anchored_ms: 1, boot_ms: 2, boot_id: "b".to_owned() };
        let bytes = saved.to_bytes();
        assert_eq!(Saved::from_bytes(&bytes), Some(saved));
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            assert_eq!(Saved::from_bytes(&flipped), None, "byte {at}");
            assert_eq!(Saved::from_bytes(&bytes[..at]), None, "cut at {at}");
        }
    }
}
