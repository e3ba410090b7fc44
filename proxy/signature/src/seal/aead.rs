//! AES-128-GCM with a nonce that counts.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

pub(super) const KEY_LEN: usize = 16;
pub(super) const NONCE_LEN: usize = 12;
pub(super) const TAG_LEN: usize = 16;

/// A key, and the nonce that is combined with each number (RFC 9180 section 5.2).
pub(super) struct Cipher {
    key: LessSafeKey,
    base_nonce: [u8; NONCE_LEN],
}

impl Cipher {
    pub(super) fn new(key: &[u8; KEY_LEN], base_nonce: [u8; NONCE_LEN]) -> Self {
        // The library refuses keys of another length only.
        let key = UnboundKey::new(&AES_128_GCM, key).expect("16 bytes are an AES-128 key");
        Self { key: LessSafeKey::new(key), base_nonce }
    }

    /// Appends the ciphertext and tag of `plaintext` under the nonce of `number`, which is used once.
    pub(super) fn seal(&self, number: u64, aad: &[u8], plaintext: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(plaintext);
        let (_, sealed) = out.split_at_mut(start);
        // The library refuses messages above 64 GiB only; a chunk has 16 KiB.
        let tag = self
            .key
            .seal_in_place_separate_tag(self.nonce(number), Aad::from(aad), sealed)
            .expect("a chunk is shorter than the bound of the cipher");
        out.extend_from_slice(tag.as_ref());
    }

    /// The plaintext, in place.
    pub(super) fn open<'a>(&self, number: u64, aad: &[u8], sealed: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.key.open_in_place(self.nonce(number), Aad::from(aad), sealed).ok()
    }

    fn nonce(&self, number: u64) -> Nonce {
        let mut nonce = self.base_nonce;
        for (byte, count) in nonce.iter_mut().rev().zip(number.to_le_bytes()) {
            *byte ^= count;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}
