//! The private key of a channel's certificate: in memory, or held by a module that signs with it and never gives it out, such
//! as a TPM.

use std::fmt;
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, PublicKeyData, SignatureAlgorithm as RequestAlgorithm};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};

use crate::issue::{HeldKey, KeyModule, KeyModuleError, Keys, REFERENCE_BYTES_MAX};
use crate::key::{KeyKind, p256_spki};
use crate::pem;
use crate::request::{KeyRequest, RequestError};
use crate::secret::PrivateKey;

/// Signed to see whether a key is there. No handshake begins with it (RFC 8446 section 4.4.3: 64 spaces).
const PROBE: &[u8] = b"signet channel key";

/// Who signs handshakes.
#[derive(Clone)]
pub enum ChannelKey {
    /// This process, with the key in its memory.
    Memory(PrivateKey),
    /// A module, by the key's name.
    Held(HeldKey, Arc<dyn KeyModule>),
}

impl ChannelKey {
    /// From the key, or its name, in PEM; `spki` is the public half as the certificate has it.
    pub(crate) fn read(pem: &[u8], spki: &[u8], keys: &Keys) -> Option<Self> {
        match keys {
            Keys::Memory => PrivateKey::from_pem(pem).map(Self::Memory),
            Keys::Module(module) => {
                let text = std::str::from_utf8(pem).ok()?;
                let reference = pem::sections(text).find_map(|section| pem::read(section, pem::HELD_KEY))?;
                let reference = String::from_utf8(reference).ok()?;
                let point = KeyKind::P256.public_key(spki)?.to_vec();
                let is_named = (1..=REFERENCE_BYTES_MAX).contains(&reference.len());
                is_named.then(|| Self::Held(HeldKey { reference, point }, Arc::clone(module)))
            }
        }
    }

    /// The key, if this process has it.
    pub fn in_memory(&self) -> Option<&PrivateKey> {
        match self {
            Self::Memory(key) => Some(key),
            Self::Held(..) => None,
        }
    }

    /// Whether it is the private half of this key and can be used.
    ///
    /// # Errors
    /// The module cannot be asked.
    pub(crate) fn is_of(&self, spki: &[u8]) -> Result<bool, KeyModuleError> {
        match self {
            Self::Memory(key) => Ok(any_supported_type(key)
                .is_ok_and(|key| key.public_key().is_some_and(|public| public.as_ref() == spki))),
            // Its own word for it is not enough: another module makes another key of the same name.
            Self::Held(key, module) => {
                let signature = module.sign(&key.reference, PROBE)?;
                Ok(KeyKind::P256.signed(spki, PROBE, &signature))
            }
        }
    }

    /// What stands for it in PEM.
    pub(crate) fn section(&self) -> (&'static str, &[u8]) {
        match self {
            Self::Memory(key) => (pem::PRIVATE_KEY, key.secret_der()),
            Self::Held(key, _) => (pem::HELD_KEY, key.reference.as_bytes()),
        }
    }

    /// What `rustls` shows and signs with.
    ///
    /// # Errors
    /// A key that cannot be used, or that is not the leaf's.
    pub(crate) fn certified(
        &self,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<Arc<SingleCertAndKey>, rustls::Error> {
        let key: Arc<dyn SigningKey> = match self {
            Self::Memory(key) => any_supported_type(key)?,
            Self::Held(key, module) => Arc::new(Held { key: key.clone(), module: Arc::clone(module) }),
        };
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(error) => return Err(error),
        }
        Ok(Arc::new(SingleCertAndKey::from(certified)))
    }
}

/// A key for a channel and the request for its certificate.
#[non_exhaustive]
pub struct ChannelKeyRequest {
    /// Who signs.
    pub key: ChannelKey,
    /// DER.
    pub csr: Vec<u8>,
}

impl ChannelKeyRequest {
    /// Over a new key.
    ///
    /// # Errors
    /// The library or the module cannot make one.
    pub fn new(keys: &Keys) -> Result<Self, RequestError> {
        match keys {
            Keys::Memory => {
                let KeyRequest { key, csr } = KeyRequest::new_tls()?;
                Ok(Self { key: ChannelKey::Memory(key), csr })
            }
            Keys::Module(module) => Self::over(&module.generate()?, module),
        }
    }

    /// For the certificate that follows: over a new key, or over the same where a module holds it, which no copy of this
    /// process's memory gives away.
    ///
    /// # Errors
    /// As for [`ChannelKeyRequest::new`].
    pub fn after(key: &ChannelKey) -> Result<Self, RequestError> {
        match key {
            ChannelKey::Memory(_) => Self::new(&Keys::Memory),
            ChannelKey::Held(key, module) => Self::over(key, module),
        }
    }

    fn over(key: &HeldKey, module: &Arc<dyn KeyModule>) -> Result<Self, RequestError> {
        let held = Held { key: key.clone(), module: Arc::clone(module) };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&held).map_err(RequestError::Generate)?.der().to_vec();
        Ok(Self { key: ChannelKey::Held(held.key, held.module), csr })
    }
}

#[derive(Clone, Debug)]
struct Held {
    key: HeldKey,
    module: Arc<dyn KeyModule>,
}

impl PublicKeyData for Held {
    fn der_bytes(&self) -> &[u8] {
        &self.key.point
    }

    fn algorithm(&self) -> &'static RequestAlgorithm {
        KeyKind::P256.issuing_algorithm()
    }
}

impl rcgen::SigningKey for Held {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        // The module says why by itself; this library's error has no room for it.
        self.module.sign(&self.key.reference, message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

impl SigningKey for Held {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let fits = offered.contains(&SignatureScheme::ECDSA_NISTP256_SHA256);
        fits.then(|| -> Box<dyn Signer> { Box::new(self.clone()) })
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(p256_spki(&self.key.point).into())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for Held {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.module.sign(&self.key.reference, message).map_err(|error| {
            rustls::Error::General(format!("the key of the certificate is not to be had: {error}"))
        })
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

impl PartialEq for ChannelKey {
    fn eq(&self, other: &Self) -> bool {
        self.section() == other.section()
    }
}

impl fmt::Debug for ChannelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory(_) => "Memory(redacted)",
            Self::Held(..) => "Held(redacted)",
        })
    }
}

impl fmt::Debug for ChannelKeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelKeyRequest").finish_non_exhaustive()
    }
}

impl From<PrivateKey> for ChannelKey {
    fn from(key: PrivateKey) -> Self {
        Self::Memory(key)
    }
}
