//! Keys in PEM texts.

use aws_lc_rs::signature::{self as sig, EcdsaKeyPair, Ed25519KeyPair, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};

use super::{Algorithm, KeyError, Private, SigningKey, VerifyingKey, der};

/// The first private key of `text`.
pub(super) fn private_key(text: &[u8]) -> Result<SigningKey, KeyError> {
    let private = match PrivateKeyDer::from_pem_slice(text).map_err(pem_error)? {
        PrivateKeyDer::Pkcs1(key) => rsa(RsaKeyPair::from_der(key.secret_pkcs1_der()).ok(), false),
        PrivateKeyDer::Pkcs8(key) => pkcs8(key.secret_pkcs8_der()),
        PrivateKeyDer::Sec1(key) => {
            ecdsa(|algorithm| EcdsaKeyPair::from_private_key_der(algorithm, key.secret_sec1_der()).ok())
        }
        _ => None,
    };
    private.map(SigningKey).ok_or(KeyError::Unsupported)
}

/// The first public key of `text`.
pub(super) fn public_key(text: &[u8]) -> Result<VerifyingKey, KeyError> {
    if let Some(pkcs1) = pkcs1_public_key(text)? {
        return VerifyingKey::from_public(Algorithm::RsaPssSha512, &pkcs1, false);
    }
    let spki = SubjectPublicKeyInfoDer::from_pem_slice(text).map_err(pem_error)?;
    if let Some(pkcs1) = der::pss_public_key(&spki) {
        return VerifyingKey::from_public(Algorithm::RsaPssSha512, pkcs1, true);
    }
    // Each parser accepts its own type of key only, so the key decides and the order does not matter.
    [Algorithm::Ed25519, Algorithm::EcdsaP256Sha256, Algorithm::EcdsaP384Sha384, Algorithm::RsaPssSha512]
        .into_iter()
        .find_map(|algorithm| VerifyingKey::from_public(algorithm, &spki, false).ok())
        .ok_or(KeyError::Unsupported)
}

fn pkcs8(key: &[u8]) -> Option<Private> {
    if let Some(pkcs1) = der::pss_private_key(key) {
        return rsa(RsaKeyPair::from_der(pkcs1).ok(), true);
    }
    Ed25519KeyPair::from_pkcs8(key)
        .map(Private::Ed25519)
        .ok()
        .or_else(|| ecdsa(|algorithm| EcdsaKeyPair::from_pkcs8(algorithm, key).ok()))
        .or_else(|| rsa(RsaKeyPair::from_pkcs8(key).ok(), false))
}

fn rsa(key: Option<RsaKeyPair>, pss_only: bool) -> Option<Private> {
    key.map(|key| Private::Rsa { key, algorithm: Algorithm::RsaPssSha512, pss_only })
}

fn ecdsa(load: impl Fn(&'static sig::EcdsaSigningAlgorithm) -> Option<EcdsaKeyPair>) -> Option<Private> {
    let p256 = load(&sig::ECDSA_P256_SHA256_FIXED_SIGNING);
    p256.map(|key| Private::Ecdsa(key, Algorithm::EcdsaP256Sha256)).or_else(|| {
        let p384 = load(&sig::ECDSA_P384_SHA384_FIXED_SIGNING);
        p384.map(|key| Private::Ecdsa(key, Algorithm::EcdsaP384Sha384))
    })
}

/// The DER of an `RSA PUBLIC KEY` section, a label that the PEM reader does not know.
fn pkcs1_public_key(text: &[u8]) -> Result<Option<Vec<u8>>, KeyError> {
    const BEGIN: &str = "-----BEGIN RSA PUBLIC KEY-----";
    const END: &str = "-----END RSA PUBLIC KEY-----";
    let Some((_, rest)) = std::str::from_utf8(text).ok().and_then(|text| text.split_once(BEGIN)) else {
        return Ok(None);
    };
    let (encoded, _) = rest.split_once(END).ok_or(KeyError::Pem)?;
    let encoded: String = encoded.split_ascii_whitespace().collect();
    STANDARD.decode(encoded).map(Some).map_err(|_| KeyError::Pem)
}

fn pem_error(error: rustls_pki_types::pem::Error) -> KeyError {
    match error {
        rustls_pki_types::pem::Error::NoItemsFound => KeyError::Missing,
        _ => KeyError::Pem,
    }
}
