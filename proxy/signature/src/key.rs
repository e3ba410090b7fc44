//! Keys and the algorithms they belong to.
//!
//! A key is bound to one algorithm when it is loaded; a message can only agree with it. So a public
//! key can never be used as an HMAC secret, nor one curve with the signature of another.

mod der;
mod pem;

use std::fmt;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    self as sig, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, ParsedPublicKey, RsaKeyPair,
};
use thiserror::Error;

/// Shortest HMAC secret that is accepted, in bytes: 128 bits, the strength of everything else here.
pub const MIN_HMAC_SECRET: usize = 16;

/// A signature algorithm of RFC 9421 section 3.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256, as `r || s`.
    EcdsaP256Sha256,
    /// ECDSA on P-384 with SHA-384, as `r || s`.
    EcdsaP384Sha384,
    /// Ed25519.
    Ed25519,
    /// HMAC with SHA-256.
    HmacSha256,
    /// RSASSA-PSS with SHA-512 and a salt of 64 bytes.
    RsaPssSha512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RsaV15Sha256,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 6] = [
        Self::EcdsaP256Sha256,
        Self::EcdsaP384Sha384,
        Self::Ed25519,
        Self::HmacSha256,
        Self::RsaPssSha512,
        Self::RsaV15Sha256,
    ];

    /// The registered name, as in the `alg` parameter.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EcdsaP256Sha256 => "ecdsa-p256-sha256",
            Self::EcdsaP384Sha384 => "ecdsa-p384-sha384",
            Self::Ed25519 => "ed25519",
            Self::HmacSha256 => "hmac-sha256",
            Self::RsaPssSha512 => "rsa-pss-sha512",
            Self::RsaV15Sha256 => "rsa-v1_5-sha256",
        }
    }

    /// The algorithm with a registered name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// Why a key cannot be used.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum KeyError {
    /// The key is of another type than the algorithm asked for.
    #[error("key does not belong to the algorithm")]
    Algorithm,
    /// The identifier of a mesh key is not `<spiffe id>#<fingerprint>`.
    #[error("key identifier is malformed")]
    KeyId,
    /// The PEM text holds no key of the kind needed.
    #[error("pem text holds no such key")]
    Missing,
    /// The PEM text is malformed.
    #[error("pem text is malformed")]
    Pem,
    /// The HMAC secret is shorter than [`MIN_HMAC_SECRET`].
    #[error("secret is too short")]
    SecretTooShort,
    /// The cryptographic library failed to sign.
    #[error("signing failed")]
    Signing,
    /// The key is malformed, too weak, or of a type that is not supported.
    #[error("key is malformed, too weak or of an unsupported type")]
    Unsupported,
}

/// The signature does not verify. There is no further detail: it would only help a forger.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("signature does not verify")]
pub struct BadSignature;

/// A private key or shared secret, bound to one algorithm.
pub struct SigningKey(Private);

enum Private {
    Ecdsa(EcdsaKeyPair, Algorithm),
    Ed25519(Ed25519KeyPair),
    Hmac(Box<hmac::Key>),
    Rsa { key: RsaKeyPair, algorithm: Algorithm, pss_only: bool },
}

impl SigningKey {
    /// Reads the first private key of a PEM text: PKCS#8, PKCS#1 (RSA) or SEC1 (EC). An RSA key signs
    /// with [`Algorithm::RsaPssSha512`] unless [`with_algorithm`](Self::with_algorithm) says otherwise.
    ///
    /// # Errors
    /// When there is no such key, or it is malformed, too weak or of another type.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        pem::private_key(pem)
    }

    /// An HMAC key from a shared secret.
    ///
    /// # Errors
    /// When the secret is shorter than [`MIN_HMAC_SECRET`].
    pub fn from_hmac_secret(secret: &[u8]) -> Result<Self, KeyError> {
        Ok(Self(Private::Hmac(hmac_key(secret)?)))
    }

    /// Chooses the algorithm, which matters only for RSA keys.
    ///
    /// # Errors
    /// When the key is of another type.
    pub fn with_algorithm(mut self, wanted: Algorithm) -> Result<Self, KeyError> {
        if let Private::Rsa { algorithm, pss_only, .. } = &mut self.0 {
            *algorithm = rsa_algorithm(wanted, *pss_only)?;
        }
        if self.algorithm() == wanted { Ok(self) } else { Err(KeyError::Algorithm) }
    }

    /// The algorithm this key signs with.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match &self.0 {
            Private::Ecdsa(_, algorithm) | Private::Rsa { algorithm, .. } => *algorithm,
            Private::Ed25519(_) => Algorithm::Ed25519,
            Private::Hmac(_) => Algorithm::HmacSha256,
        }
    }

    /// Signs a message.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.0 {
            Private::Ecdsa(key, _) => {
                let signature = key.sign(&SystemRandom::new(), message).map_err(|_| KeyError::Signing)?;
                Ok(signature.as_ref().to_vec())
            }
            Private::Ed25519(key) => {
                let signature = key.try_sign(message).map_err(|_| KeyError::Signing)?;
                Ok(signature.as_ref().to_vec())
            }
            Private::Hmac(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            Private::Rsa { key, algorithm, .. } => {
                let encoding: &'static dyn sig::RsaEncoding = match algorithm {
                    Algorithm::RsaV15Sha256 => &sig::RSA_PKCS1_SHA256,
                    _ => &sig::RSA_PSS_SHA512,
                };
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(encoding, &SystemRandom::new(), message, &mut signature)
                    .map_err(|_| KeyError::Signing)?;
                Ok(signature)
            }
        }
    }

    /// The key that verifies what this one signs.
    ///
    /// # Errors
    /// When the public key cannot be derived.
    pub fn verifying_key(&self) -> Result<VerifyingKey, KeyError> {
        match &self.0 {
            Private::Ecdsa(key, algorithm) => {
                VerifyingKey::from_public(*algorithm, key.public_key().as_ref(), false)
            }
            Private::Ed25519(key) => {
                VerifyingKey::from_public(Algorithm::Ed25519, key.public_key().as_ref(), false)
            }
            Private::Hmac(key) => Ok(VerifyingKey(Public::Hmac(key.clone()))),
            Private::Rsa { key, algorithm, pss_only } => {
                VerifyingKey::from_public(*algorithm, key.public_key().as_ref(), *pss_only)
            }
        }
    }
}

/// A public key or shared secret, bound to one algorithm.
pub struct VerifyingKey(Public);

enum Public {
    Asymmetric { key: ParsedPublicKey, der: Vec<u8>, algorithm: Algorithm, pss_only: bool },
    Hmac(Box<hmac::Key>),
}

impl VerifyingKey {
    /// Reads the first public key of a PEM text: SPKI or PKCS#1 (RSA). An RSA key verifies
    /// [`Algorithm::RsaPssSha512`] unless [`with_algorithm`](Self::with_algorithm) says otherwise.
    ///
    /// # Errors
    /// When there is no such key, or it is malformed, too weak or of another type.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        pem::public_key(pem)
    }

    /// An Ed25519 key from its 32 bytes.
    ///
    /// # Errors
    /// When the key is of small order or no point of the curve.
    pub fn from_ed25519(public_key: &[u8; 32]) -> Result<Self, KeyError> {
        Self::from_public(Algorithm::Ed25519, public_key, false)
    }

    /// An HMAC key from a shared secret.
    ///
    /// # Errors
    /// When the secret is shorter than [`MIN_HMAC_SECRET`].
    pub fn from_hmac_secret(secret: &[u8]) -> Result<Self, KeyError> {
        Ok(Self(Public::Hmac(hmac_key(secret)?)))
    }

    /// Chooses the algorithm, which matters only for RSA keys.
    ///
    /// # Errors
    /// When the key is of another type.
    pub fn with_algorithm(self, wanted: Algorithm) -> Result<Self, KeyError> {
        if self.algorithm() == wanted {
            return Ok(self);
        }
        match self.0 {
            Public::Asymmetric {
                der,
                algorithm: Algorithm::RsaPssSha512 | Algorithm::RsaV15Sha256,
                pss_only,
                ..
            } => Self::from_public(rsa_algorithm(wanted, pss_only)?, &der, pss_only),
            _ => Err(KeyError::Algorithm),
        }
    }

    /// The algorithm this key verifies.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match &self.0 {
            Public::Asymmetric { algorithm, .. } => *algorithm,
            Public::Hmac(_) => Algorithm::HmacSha256,
        }
    }

    /// Verifies a signature over a message.
    ///
    /// # Errors
    /// When it does not verify, for whatever reason.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        match &self.0 {
            Public::Asymmetric { key, .. } => key.verify_sig(message, signature).map_err(|_| BadSignature),
            Public::Hmac(key) => hmac::verify(key, message, signature).map_err(|_| BadSignature),
        }
    }

    /// `bytes` is SPKI, or the bare key: a curve point, 32 bytes, or PKCS#1.
    fn from_public(algorithm: Algorithm, bytes: &[u8], pss_only: bool) -> Result<Self, KeyError> {
        let parameters: &'static dyn sig::VerificationAlgorithm = match algorithm {
            Algorithm::EcdsaP256Sha256 => &sig::ECDSA_P256_SHA256_FIXED,
            Algorithm::EcdsaP384Sha384 => &sig::ECDSA_P384_SHA384_FIXED,
            Algorithm::Ed25519 => &sig::ED25519,
            Algorithm::HmacSha256 => return Err(KeyError::Algorithm),
            Algorithm::RsaPssSha512 => &sig::RSA_PSS_2048_8192_SHA512,
            Algorithm::RsaV15Sha256 => &sig::RSA_PKCS1_2048_8192_SHA256,
        };
        let key = ParsedPublicKey::new(parameters, bytes).map_err(|_| KeyError::Unsupported)?;
        // The key is the end of both encodings of an Ed25519 key.
        if algorithm == Algorithm::Ed25519 && bytes.last_chunk::<32>().is_none_or(is_small_order) {
            return Err(KeyError::Unsupported);
        }
        Ok(Self(Public::Asymmetric { key, der: bytes.to_vec(), algorithm, pss_only }))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("algorithm", &self.algorithm()).finish_non_exhaustive()
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyingKey").field("algorithm", &self.algorithm()).finish_non_exhaustive()
    }
}

/// Whether an Ed25519 public key has small order. Under such a key one signature is valid for many
/// messages, so it can prove nothing.
pub(crate) fn is_small_order(public_key: &[u8; 32]) -> bool {
    let mut y = *public_key;
    // The top bit is the sign of x; both points with the same y have the same order.
    y[31] &= 0x7f;
    SMALL_ORDER_Y.contains(&y)
}

/// The y coordinates of the points of order 1, 2, 4 and 8, little-endian, with the two that also have a
/// spelling above the field's prime.
const SMALL_ORDER_Y: [[u8; 32]; 7] = small_order_y();

const fn small_order_y() -> [[u8; 32]; 7] {
    const EIGHT: [u8; 32] = *b"\x26\xe8\x95\x8f\xc2\xb2\x27\xb0\x45\xc3\xf4\x89\xf2\xef\x98\xf0\
        \xd5\xdf\xac\x05\xd3\xc6\x33\x39\xb1\x38\x02\x88\x6d\x53\xfc\x05";
    const OTHER_EIGHT: [u8; 32] = *b"\xc7\x17\x6a\x70\x3d\x4d\xd8\x4f\xba\x3c\x0b\x76\x0d\x10\x67\x0f\
        \x2a\x20\x53\xfa\x2c\x39\xcc\xc6\x4e\xc7\xfd\x77\x92\xac\x03\x7a";
    let zero = [0; 32];
    let mut one = [0; 32];
    one[0] = 1;
    // The prime is 2^255 - 19, so it and its neighbours differ in their lowest byte only.
    let mut prime = [0xff; 32];
    prime[31] = 0x7f;
    prime[0] = 0xed;
    let mut minus_one = prime;
    minus_one[0] = 0xec;
    let mut prime_and_one = prime;
    prime_and_one[0] = 0xee;
    [zero, one, minus_one, prime, prime_and_one, EIGHT, OTHER_EIGHT]
}

fn hmac_key(secret: &[u8]) -> Result<Box<hmac::Key>, KeyError> {
    if secret.len() < MIN_HMAC_SECRET {
        return Err(KeyError::SecretTooShort);
    }
    Ok(Box::new(hmac::Key::new(hmac::HMAC_SHA256, secret)))
}

fn rsa_algorithm(wanted: Algorithm, pss_only: bool) -> Result<Algorithm, KeyError> {
    match wanted {
        Algorithm::RsaPssSha512 => Ok(wanted),
        Algorithm::RsaV15Sha256 if !pss_only => Ok(wanted),
        _ => Err(KeyError::Algorithm),
    }
}
