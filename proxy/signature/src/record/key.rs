//! Signing and verifying keys: Ed25519 only.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, ParsedPublicKey};

use super::{RecordError, WriteError};

/// Makes Ed25519 signatures. Any suitable closure is one, so that this layer depends on nobody's key type.
pub trait RecordSigner: Send + Sync {
    /// The Ed25519 signature of `message` (RFC 8032).
    fn sign(&self, message: &[u8]) -> [u8; 64];
}

impl<F: Fn(&[u8]) -> [u8; 64] + Send + Sync> RecordSigner for F {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self(message)
    }
}

/// A [`RecordSigner`] that holds its key.
pub struct Ed25519Signer(Ed25519KeyPair);

impl Ed25519Signer {
    /// From a PKCS#8 key, version 1 or 2, in DER.
    ///
    /// # Errors
    /// [`WriteError::KeyInvalid`] if `der` is anything else.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, WriteError> {
        Ed25519KeyPair::from_pkcs8(der).map(Self).map_err(|_| WriteError::KeyInvalid)
    }

    /// The public key that verifies what this signs.
    pub fn public_key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        // Cannot panic: an Ed25519 public key has 32 bytes.
        key.copy_from_slice(self.0.public_key().as_ref());
        key
    }
}

impl RecordSigner for Ed25519Signer {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        // Cannot panic: an Ed25519 signature has 64 bytes.
        signature.copy_from_slice(self.0.sign(message).as_ref());
        signature
    }
}

impl fmt::Debug for Ed25519Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ed25519Signer")
    }
}

/// The key a half-stream is verified with.
pub(super) struct RecordVerifier(ParsedPublicKey);

impl RecordVerifier {
    pub(super) fn new(public_key: &[u8; 32]) -> Result<Self, RecordError> {
        if crate::key::is_small_order(public_key) {
            return Err(RecordError::KeyInvalid);
        }
        ParsedPublicKey::new(&ED25519, public_key).map(Self).map_err(|_| RecordError::KeyInvalid)
    }

    pub(super) fn verify(&self, message: &[u8], signature: &[u8; 64]) -> Result<(), RecordError> {
        self.0.verify_sig(message, signature).map_err(|_| RecordError::BadSignature)
    }
}
