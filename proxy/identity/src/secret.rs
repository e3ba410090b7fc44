//! Private keys as bytes: overwritten when they are let go.
//!
//! What the cryptographic library makes of them it overwrites itself. A key is moved and borrowed here, never copied into
//! something that is not overwritten.

use std::fmt;
use std::ops::Deref;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::KeyPair;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use crate::pem;

/// Bytes of the longest key that is read: ours take 138 at most.
const BYTES_MAX: usize = 1024;

/// A private key, PKCS#8, in DER.
pub struct PrivateKey(PrivateKeyDer<'static>);

impl PrivateKey {
    /// The first private key of a text in PEM form (RFC 7468); `None` without one, or for one that is no base64 or too long.
    pub fn from_pem(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (_, rest) = text.split_once(&format!("-----BEGIN {}-----", pem::PRIVATE_KEY))?;
        let (body, _) = rest.split_once("-----END ")?;
        let mut encoded = Zeroizing::new([0_u8; BYTES_MAX * 2]);
        let mut length = 0;
        for byte in body.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
            *encoded.get_mut(length)? = byte;
            length += 1;
        }
        let mut der = Zeroizing::new([0_u8; BYTES_MAX * 3 / 2]);
        let decoded = STANDARD.decode_slice(encoded.get(..length)?, &mut *der).ok()?;
        // Of the right size at once: a vector that grows leaves copies behind.
        Some(Self::from(PrivatePkcs8KeyDer::from(der.get(..decoded)?.to_vec())))
    }
}

impl Deref for PrivateKey {
    type Target = PrivateKeyDer<'static>;

    fn deref(&self) -> &PrivateKeyDer<'static> {
        &self.0
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Clone for PrivateKey {
    fn clone(&self) -> Self {
        Self(self.0.clone_key())
    }
}

impl PartialEq for PrivateKey {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

impl From<PrivatePkcs8KeyDer<'static>> for PrivateKey {
    fn from(key: PrivatePkcs8KeyDer<'static>) -> Self {
        Self(key.into())
    }
}

impl From<PrivateKeyDer<'static>> for PrivateKey {
    fn from(key: PrivateKeyDer<'static>) -> Self {
        Self(key)
    }
}

impl From<KeyPair> for PrivateKey {
    fn from(mut pair: KeyPair) -> Self {
        let key = PrivatePkcs8KeyDer::from(pair.serialized_der().to_vec());
        pair.zeroize();
        Self::from(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_from_its_text_and_nothing_else_is() {
        let key = PrivateKey::from(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap());
        let mut text = "before\n".to_owned();
        pem::push(&mut text, pem::CERTIFICATE, b"certificate");
        pem::push(&mut text, pem::PRIVATE_KEY, key.secret_der());
        assert_eq!(PrivateKey::from_pem(text.as_bytes()).unwrap(), key);
        for bad in
            ["", "-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----"]
        {
            assert_eq!(PrivateKey::from_pem(bad.as_bytes()), None, "{bad}");
        }
        let mut long = String::new();
        pem::push(&mut long, pem::PRIVATE_KEY, &[7; BYTES_MAX * 2]);
        assert_eq!(PrivateKey::from_pem(long.as_bytes()), None);
        assert!(!format!("{key:?}").contains('4'));
    }
}
