//! Certificate requests (PKCS#10, RFC 2986): made by a workload, read by an authority.
//!
//! A request carries one thing that counts, the public key, and proof that its sender holds the private half.
//! The name, extensions and attributes it may ask for are never read: what a certificate says is decided by
//! the authority's own records.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use thiserror::Error;

use crate::der::{self, Malformed, Reader};
use crate::issue::KeyModuleError;
use crate::key::KeyKind;
use crate::secret::PrivateKey;

/// The longest request an authority reads, in bytes; ours take about 300.
pub(crate) const MAX_REQUEST_BYTES: usize = 4096;

/// A fresh private key and the request for its certificate. A key is made for each renewal and leaves the
/// process only through the hands of its owner.
#[non_exhaustive]
pub struct KeyRequest {
    /// PKCS#8.
    pub key: PrivateKey,
    /// DER.
    pub csr: Vec<u8>,
}

impl KeyRequest {
    /// For a TLS SVID: P-256.
    ///
    /// # Errors
    /// The cryptographic library cannot make a key.
    pub fn new_tls() -> Result<Self, RequestError> {
        Self::generate(KeyKind::P256)
    }

    /// For a signing SVID: Ed25519.
    ///
    /// # Errors
    /// The cryptographic library cannot make a key.
    pub fn new_signing() -> Result<Self, RequestError> {
        Self::generate(KeyKind::Ed25519)
    }

    fn generate(kind: KeyKind) -> Result<Self, RequestError> {
        let key = KeyPair::generate_for(kind.issuing_algorithm()).map_err(RequestError::Generate)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key).map_err(RequestError::Generate)?.der().to_vec();
        Ok(Self { key: key.into(), csr })
    }
}

/// Why a request was not made, or not granted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// The cryptographic library cannot make a key.
    #[error("cannot make a key and a request for it: {0}")]
    Generate(#[source] rcgen::Error),
    /// The module that is to hold the key cannot make one.
    #[error("cannot make a key: {0}")]
    Module(#[from] KeyModuleError),
    /// The key is of the wrong kind for its purpose, or weak.
    #[error("the requested key is of the wrong kind, or weak")]
    Key,
    /// Not a PKCS#10 request.
    #[error("the certificate request is malformed")]
    Malformed,
    /// The sender does not hold the private half of the key.
    #[error("the certificate request is not signed by its own key")]
    Signature,
    /// Longer than any real request.
    #[error("the certificate request is longer than 4096 bytes")]
    TooLong,
}

/// The public key of a request, once its holder has proven to have the private half.
pub(crate) struct RequestedKey {
    kind: KeyKind,
    key: Vec<u8>,
}

impl RequestedKey {
    pub(crate) fn verify(csr: &[u8], kind: KeyKind) -> Result<Self, RequestError> {
        if csr.len() > MAX_REQUEST_BYTES {
            return Err(RequestError::TooLong);
        }
        let request = Request::read(csr).map_err(|Malformed| RequestError::Malformed)?;
        let key = kind.public_key(request.spki).ok_or(RequestError::Key)?;
        if !kind.verifies(request.spki, request.algorithm, request.info, request.signature) {
            return Err(RequestError::Signature);
        }
        Ok(Self { kind, key: key.to_vec() })
    }
}

/// The key that a request for a TLS SVID is for, an uncompressed point on P-256, once its holder has proven to have the private
/// half.
///
/// # Errors
/// [`RequestError`], as when it is to be certified.
pub fn requested_point(csr: &[u8]) -> Result<Vec<u8>, RequestError> {
    Ok(RequestedKey::verify(csr, KeyKind::P256)?.key)
}

impl rcgen::PublicKeyData for RequestedKey {
    fn der_bytes(&self) -> &[u8] {
        &self.key
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.kind.issuing_algorithm()
    }
}

struct Request<'a> {
    info: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
    spki: &'a [u8],
}

impl<'a> Request<'a> {
    /// `CertificationRequest ::= SEQUENCE { info, signatureAlgorithm, signature }`, where
    /// `info ::= SEQUENCE { version, subject, subjectPKInfo, [0] attributes }`.
    fn read(csr: &'a [u8]) -> Result<Self, Malformed> {
        let mut outer = Reader::open(csr, der::SEQUENCE)?;
        let info = outer.element(der::SEQUENCE)?;
        let algorithm = outer.value(der::SEQUENCE)?;
        let signature = outer.octets_of_bit_string()?;
        outer.finish()?;

        let mut fields = Reader::new(info.value);
        fields.value(der::INTEGER)?;
        fields.value(der::SEQUENCE)?;
        let spki = fields.element(der::SEQUENCE)?.raw;
        fields.value(der::context(0))?;
        fields.finish()?;
        Ok(Self { info: info.raw, algorithm, signature, spki })
    }
}

impl fmt::Debug for KeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRequest").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_of_the_other_kind_is_refused() {
        let (tls, signing) = (KeyRequest::new_tls().unwrap(), KeyRequest::new_signing().unwrap());
        let verify = |csr: &[u8], kind| RequestedKey::verify(csr, kind).err();
        assert_eq!(verify(&tls.csr, KeyKind::P256), None);
        assert_eq!(verify(&signing.csr, KeyKind::Ed25519), None);
        assert_eq!(verify(&tls.csr, KeyKind::Ed25519), Some(RequestError::Key));
        assert_eq!(verify(&signing.csr, KeyKind::P256), Some(RequestError::Key));
    }

    #[test]
    fn tampered_request_is_refused_at_every_byte() {
        for (csr, kind) in [
            (KeyRequest::new_tls().unwrap().csr, KeyKind::P256),
            (KeyRequest::new_signing().unwrap().csr, KeyKind::Ed25519),
        ] {
            for at in 0..csr.len() {
                let mut bad = csr.clone();
                bad[at] ^= 0x01;
                assert!(RequestedKey::verify(&bad, kind).is_err(), "byte {at}");
                assert!(RequestedKey::verify(&csr[..at], kind).is_err(), "prefix {at}");
            }
        }
    }

    #[test]
    fn request_with_anothers_key_is_refused() {
        let (one, two) = (KeyRequest::new_signing().unwrap().csr, KeyRequest::new_signing().unwrap().csr);
        // Both have the same layout; the last 64 bytes are the signature.
        let forged = [&one[..one.len() - 64], &two[two.len() - 64..]].concat();
        assert_eq!(RequestedKey::verify(&forged, KeyKind::Ed25519).err(), Some(RequestError::Signature));
    }

    #[test]
    fn overlong_request_is_refused_unread() {
        let long = vec![0x30; MAX_REQUEST_BYTES + 1];
        assert_eq!(RequestedKey::verify(&long, KeyKind::P256).err(), Some(RequestError::TooLong));
    }
}
