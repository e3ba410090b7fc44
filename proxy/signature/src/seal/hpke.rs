//! Hybrid public key encryption (RFC 9180), base mode, the one suite that sealing uses:
//! DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM. The names are those of the RFC.

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hmac;

use super::aead::{self, Cipher};

/// Bytes of an X25519 public key, and of an encapsulated key (RFC 9180 section 7.1).
pub(super) const KEY_LEN: usize = 32;

const KEM_ID: [u8; 2] = [0x00, 0x20];
const KDF_ID: [u8; 2] = [0x00, 0x01];
const AEAD_ID: [u8; 2] = [0x00, 0x01];
const BASE_MODE: u8 = 0;

/// An encryption context: the key and first nonce of its messages (section 5.1).
pub(super) struct Context {
    cipher: Cipher,
}

impl Context {
    /// Encrypts the first message of this context.
    pub(super) fn seal(&self, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(plaintext.len() + aead::TAG_LEN);
        self.cipher.seal(0, aad, plaintext, &mut out);
        out
    }

    /// Decrypts the first message of this context.
    pub(super) fn open(&self, aad: &[u8], ciphertext: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = ciphertext.to_vec();
        let length = self.cipher.open(0, aad, &mut bytes)?.len();
        bytes.truncate(length);
        Some(bytes)
    }
}

/// `SetupBaseS`: a context for the holder of `recipient`, and the encapsulated key to send along.
pub(super) fn setup_sender(recipient: &[u8; KEY_LEN], info: &[u8]) -> Option<([u8; KEY_LEN], Context)> {
    setup_sender_with(&PrivateKey::generate(&X25519).ok()?, recipient, info)
}

fn setup_sender_with(
    ephemeral: &PrivateKey,
    recipient: &[u8; KEY_LEN],
    info: &[u8],
) -> Option<([u8; KEY_LEN], Context)> {
    let enc: [u8; KEY_LEN] = ephemeral.compute_public_key().ok()?.as_ref().try_into().ok()?;
    let shared = shared_secret(ephemeral, recipient, &enc, recipient)?;
    Some((enc, schedule(&shared, info)))
}

/// `SetupBaseR`: the context that the sender of `enc` made for us.
pub(super) fn setup_receiver(
    enc: &[u8; KEY_LEN],
    own: &PrivateKey,
    own_public: &[u8; KEY_LEN],
    info: &[u8],
) -> Option<Context> {
    let shared = shared_secret(own, enc, enc, own_public)?;
    Some(schedule(&shared, info))
}

/// `ExtractAndExpand` over the Diffie-Hellman result (section 4.1). The library refuses peer keys of small order,
/// whose result would be all zero.
fn shared_secret(
    own: &PrivateKey,
    peer: &[u8; KEY_LEN],
    enc: &[u8; KEY_LEN],
    recipient: &[u8; KEY_LEN],
) -> Option<[u8; 32]> {
    let suite = [b"KEM", &KEM_ID[..]].concat();
    agree(own, UnparsedPublicKey::new(&X25519, peer), Unspecified, |dh| {
        let prk = labeled_extract(&suite, &[], b"eae_prk", dh);
        let mut shared = [0; 32];
        labeled_expand(&suite, &prk, b"shared_secret", &[&enc[..], recipient].concat(), &mut shared);
        Ok(shared)
    })
    .ok()
}

/// `KeySchedule` of base mode (section 5.1): no pre-shared key.
fn schedule(shared: &[u8; 32], info: &[u8]) -> Context {
    let suite = [b"HPKE", &KEM_ID[..], &KDF_ID, &AEAD_ID].concat();
    let psk_id_hash = labeled_extract(&suite, &[], b"psk_id_hash", &[]);
    let info_hash = labeled_extract(&suite, &[], b"info_hash", info);
    let context = [&[BASE_MODE][..], &psk_id_hash, &info_hash].concat();
    let secret = labeled_extract(&suite, shared, b"secret", &[]);
    let mut key = [0; aead::KEY_LEN];
    let mut nonce = [0; aead::NONCE_LEN];
    labeled_expand(&suite, &secret, b"key", &context, &mut key);
    labeled_expand(&suite, &secret, b"base_nonce", &context, &mut nonce);
    Context { cipher: Cipher::new(&key, nonce) }
}

fn labeled_extract(suite: &[u8], salt: &[u8], label: &[u8], ikm: &[u8]) -> [u8; 32] {
    extract(salt, &[b"HPKE-v1", suite, label, ikm])
}

/// At most 32 bytes, which is all that this suite asks for.
fn labeled_expand(suite: &[u8], prk: &[u8; 32], label: &[u8], info: &[u8], out: &mut [u8]) {
    let length = u16::try_from(out.len()).unwrap_or(u16::MAX).to_be_bytes();
    expand(prk, &[&length, b"HPKE-v1", suite, label, info], out);
}

/// HKDF-Extract (RFC 5869 section 2.2) over the concatenation of `ikm`.
pub(super) fn extract(salt: &[u8], ikm: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, salt));
    ikm.iter().for_each(|part| context.update(part));
    bytes_of(&context.sign())
}

/// HKDF-Expand (RFC 5869 section 2.3) to at most one block, 32 bytes.
pub(super) fn expand(prk: &[u8; 32], info: &[&[u8]], out: &mut [u8]) {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, prk));
    info.iter().for_each(|part| context.update(part));
    context.update(&[1]);
    let block = bytes_of(&context.sign());
    for (out, byte) in out.iter_mut().zip(block) {
        *out = byte;
    }
}

fn bytes_of(tag: &hmac::Tag) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (out, byte) in bytes.iter_mut().zip(tag.as_ref()) {
        *out = *byte;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    fn key(text: &str) -> [u8; 32] {
        hex(text).try_into().unwrap()
    }

    // RFC 9180 appendix A.1.1.
    const INFO: &str = "4f6465206f6e2061204772656369616e2055726e";
    const EPHEMERAL: &str = "52c4a758a802cd8b936eceea314432798d5baf2d7e9235dc084ab1b9cfa2f736";
    const RECIPIENT: &str = "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8";
    const RECIPIENT_PUBLIC: &str = "3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d";
    const ENC: &str = "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431";
    const PLAINTEXT: &str = "4265617574792069732074727574682c20747275746820626561757479";
    const CIPHERTEXT: &str =
        "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a";

    #[test]
    fn the_sender_reproduces_the_vector_of_the_rfc() {
        let ephemeral = PrivateKey::from_private_key(&X25519, &hex(EPHEMERAL)).unwrap();
        let (enc, context) = setup_sender_with(&ephemeral, &key(RECIPIENT_PUBLIC), &hex(INFO)).unwrap();
        assert_eq!(enc, key(ENC));
        assert_eq!(context.seal(b"Count-0", &hex(PLAINTEXT)), hex(CIPHERTEXT));
    }

    #[test]
    fn the_receiver_reproduces_the_vector_of_the_rfc_and_refuses_what_differs() {
        let own = PrivateKey::from_private_key(&X25519, &hex(RECIPIENT)).unwrap();
        let context = setup_receiver(&key(ENC), &own, &key(RECIPIENT_PUBLIC), &hex(INFO)).unwrap();
        assert_eq!(context.open(b"Count-0", &hex(CIPHERTEXT)), Some(hex(PLAINTEXT)));
        assert_eq!(context.open(b"Count-1", &hex(CIPHERTEXT)), None);
        let other = setup_receiver(&key(ENC), &own, &key(RECIPIENT_PUBLIC), b"other").unwrap();
        assert_eq!(other.open(b"Count-0", &hex(CIPHERTEXT)), None);
    }

    #[test]
    fn an_encapsulated_key_of_small_order_is_refused() {
        let own = PrivateKey::from_private_key(&X25519, &hex(RECIPIENT)).unwrap();
        for weak in [[0; 32], {
            let mut one = [0; 32];
            one[0] = 1;
            one
        }] {
            assert!(setup_receiver(&weak, &own, &key(RECIPIENT_PUBLIC), b"").is_none());
        }
    }
}
