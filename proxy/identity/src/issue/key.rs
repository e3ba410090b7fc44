//! The private key of a root or an issuer: in memory, and overwritten when it is let go, or held by a module that signs with
//! it and never gives it out.

use std::fmt;
use std::sync::Arc;

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::PrivatePkcs8KeyDer;
use thiserror::Error;
use zeroize::Zeroize;

use super::IssueError;
use crate::key::KeyKind;
use crate::pem;
use crate::secret::PrivateKey;

/// The longest name that a module's key is kept by.
pub(crate) const REFERENCE_BYTES_MAX: usize = 256;

/// Holds keys that nobody is given, such as a hardware security module or a TPM. All of them are P-256.
pub trait KeyModule: fmt::Debug + Send + Sync {
    /// Makes a key that cannot be exported.
    ///
    /// # Errors
    /// When the module cannot.
    fn generate(&self) -> Result<HeldKey, KeyModuleError>;

    /// Signs with ECDSA and SHA-256; the signature is DER (RFC 3279 section 2.2.3).
    ///
    /// # Errors
    /// When the module cannot, or has no such key.
    fn sign(&self, reference: &str, message: &[u8]) -> Result<Vec<u8>, KeyModuleError>;

    /// Destroys a key; nothing for one that is gone.
    ///
    /// # Errors
    /// When the module cannot.
    fn destroy(&self, reference: &str) -> Result<(), KeyModuleError>;
}

/// A key as its module names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldKey {
    /// By which the module finds it again: printable ASCII, at most 256 bytes. Not the key, and of no use without the module.
    pub reference: String,
    /// The public key: an uncompressed point, 65 bytes.
    pub point: Vec<u8>,
}

/// Why a module did not do what it was asked for, in words without secrets.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct KeyModuleError(pub String);

/// Where new keys are made, and old ones found: an authority's, or those of channels.
#[derive(Clone, Debug, Default)]
pub enum Keys {
    /// In this process's memory.
    #[default]
    Memory,
    /// In a module.
    Module(Arc<dyn KeyModule>),
}

/// P-256.
pub(crate) enum AuthorityKey {
    /// With its PKCS#8 form.
    Memory(KeyPair),
    /// By its name. Without the module it can be named and not used: so a backup is read and written.
    Held(HeldKey, Option<Arc<dyn KeyModule>>),
}

impl AuthorityKey {
    pub(super) fn generate(keys: &Keys) -> Result<Self, IssueError> {
        match keys {
            Keys::Memory => Ok(Self::Memory(KeyPair::generate_for(KeyKind::P256.issuing_algorithm())?)),
            Keys::Module(module) => Ok(Self::Held(module.generate()?, Some(Arc::clone(module)))),
        }
    }

    /// From a section of PEM; `spki` is the public half as its certificate has it.
    pub(super) fn read(section: &str, spki: &[u8], keys: &Keys) -> Result<Self, IssueError> {
        if let Some(key) = PrivateKey::from_pem(section.as_bytes()) {
            return Self::from_pkcs8(key.secret_der());
        }
        let reference = pem::read(section, pem::HELD_KEY).ok_or(IssueError::Pem)?;
        let reference = String::from_utf8(reference).map_err(|_| IssueError::Pem)?;
        let is_plain = reference.bytes().all(|byte| byte.is_ascii_graphic());
        if reference.is_empty() || reference.len() > REFERENCE_BYTES_MAX || !is_plain {
            return Err(IssueError::Pem);
        }
        let point = KeyKind::P256.public_key(spki).ok_or(IssueError::Mismatch)?.to_vec();
        let module = match keys {
            Keys::Memory => None,
            Keys::Module(module) => Some(Arc::clone(module)),
        };
        Ok(Self::Held(HeldKey { reference, point }, module))
    }

    /// Another handle on the same key. The library has no clone of one; what it wrote it can read.
    pub(super) fn same(&self) -> Result<Self, IssueError> {
        match self {
            Self::Memory(pair) => Self::from_pkcs8(pair.serialized_der()),
            Self::Held(key, module) => Ok(Self::Held(key.clone(), module.clone())),
        }
    }

    /// What stands in its place in PEM: of a key in memory, the key.
    pub(super) fn section(&self) -> (&'static str, &[u8]) {
        match self {
            Self::Memory(pair) => (pem::PRIVATE_KEY, pair.serialized_der()),
            Self::Held(key, _) => (pem::HELD_KEY, key.reference.as_bytes()),
        }
    }

    /// PKCS#8, as secret as the key; none of one that a module holds.
    pub(super) fn in_memory(&self) -> Option<&[u8]> {
        match self {
            Self::Memory(pair) => Some(pair.serialized_der()),
            Self::Held(..) => None,
        }
    }

    /// The name that its module knows it by; none of one in memory.
    pub(super) fn held(&self) -> Option<&str> {
        match self {
            Self::Memory(_) => None,
            Self::Held(key, _) => Some(&key.reference),
        }
    }

    pub(super) fn from_pkcs8(der: &[u8]) -> Result<Self, IssueError> {
        Ok(Self::Memory(KeyPair::try_from(&PrivatePkcs8KeyDer::from(der))?))
    }
}

impl Drop for AuthorityKey {
    fn drop(&mut self) {
        if let Self::Memory(pair) = self {
            pair.zeroize();
        }
    }
}

impl PublicKeyData for AuthorityKey {
    fn der_bytes(&self) -> &[u8] {
        match self {
            Self::Memory(pair) => pair.der_bytes(),
            Self::Held(key, _) => &key.point,
        }
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        KeyKind::P256.issuing_algorithm()
    }
}

impl SigningKey for AuthorityKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match self {
            Self::Memory(pair) => pair.sign(message),
            // The module says why by itself; this library's error has no room for it.
            Self::Held(key, Some(module)) => {
                module.sign(&key.reference, message).map_err(|_| rcgen::Error::RemoteKeyError)
            }
            Self::Held(_, None) => Err(rcgen::Error::RemoteKeyError),
        }
    }
}
