//! SVIDs: a workload's certificate chains with their private keys.

use std::fmt;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::certificate::{Certificate, CertificateError, Leaf};
use crate::channel_key::ChannelKey;
use crate::fingerprint::Fingerprint;
use crate::id::SpiffeId;
use crate::issue::Keys;
use crate::pem;
use crate::secret::PrivateKey;
use crate::verify::MAX_CHAIN;

/// The SVID of channels: what a workload shows in TLS. Checked when made: the leaf is a TLS SVID's and the key
/// is its key. Whether anyone trusts it, and whether it is still valid, is not its own affair.
#[non_exhaustive]
pub struct TlsSvid {
    /// The workload.
    pub id: SpiffeId,
    /// Leaf first, then its issuers, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key, or who holds it.
    pub key: ChannelKey,
    /// When the leaf begins to be valid; set back by the issuer for the sake of slow clocks.
    pub not_before: SystemTime,
    /// When the leaf ends.
    pub not_after: SystemTime,
    /// Of the leaf.
    pub fingerprint: Fingerprint,
}

/// The SVID of messages: what a workload signs with. Checked when made, like [`TlsSvid`].
#[non_exhaustive]
pub struct SigningSvid {
    /// The workload.
    pub id: SpiffeId,
    /// Leaf first, then its issuers, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key: Ed25519, PKCS#8 version 1 or 2.
    pub key: PrivateKey,
    /// When the leaf begins to be valid; set back by the issuer for the sake of slow clocks.
    pub not_before: SystemTime,
    /// When the leaf ends.
    pub not_after: SystemTime,
    /// Of the leaf.
    pub fingerprint: Fingerprint,
}

/// The X.509-SVID of the application beside a sidecar, for TLS of its own with whoever is not in the mesh. Checked when
/// made, like [`TlsSvid`]: its leaf states no purpose, so that a verifier of SPIFFE takes it for all of them, and one of the
/// mesh, which demands that its own purposes are stated, for none.
#[non_exhaustive]
pub struct AppSvid {
    /// The workload.
    pub id: SpiffeId,
    /// Leaf first, then its issuers, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key, PKCS#8: made for the application, and handed to it.
    pub key: PrivateKey,
    /// When the leaf begins to be valid; set back by the issuer for the sake of slow clocks.
    pub not_before: SystemTime,
    /// When the leaf ends.
    pub not_after: SystemTime,
    /// Of the leaf.
    pub fingerprint: Fingerprint,
}

impl AppSvid {
    /// Puts a chain and its key together.
    ///
    /// # Errors
    /// The leaf is not an application's, the key is not the leaf's, or the chain is empty or too long.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Result<Self, SvidError> {
        let Leaf { id, fingerprint, not_before, not_after } = Leaf::app(leaf_of(&chain)?)?;
        let key = matching_key(&chain, key)?;
        Ok(Self { id, chain, key, not_before, not_after, fingerprint })
    }
}

impl TlsSvid {
    /// Puts a chain and its key together.
    ///
    /// # Errors
    /// The leaf is not a TLS SVID's, the key is not the leaf's, or the chain is empty or too long.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: impl Into<ChannelKey>) -> Result<Self, SvidError> {
        let der = leaf_of(&chain)?;
        let Leaf { id, fingerprint, not_before, not_after } = Leaf::tls(der)?;
        let key = key.into();
        if !key.is_of(Certificate::parse(der)?.spki).map_err(|_| SvidError::KeyUnavailable)? {
            return Err(SvidError::Key);
        }
        Ok(Self { id, chain, key, not_before, not_after, fingerprint })
    }

    /// Reads what [`TlsSvid::to_pem`] wrote: certificates, leaf first, and one private key.
    ///
    /// # Errors
    /// The text holds no such sections, or as for [`TlsSvid::new`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, SvidError> {
        Self::from_pem_in(pem, &Keys::Memory)
    }

    /// The same, where the key may be held by a module: then the text has its name, and the module is asked for a signature.
    ///
    /// # Errors
    /// As for [`TlsSvid::from_pem`].
    pub fn from_pem_in(pem: &[u8], keys: &Keys) -> Result<Self, SvidError> {
        let chain = read_chain(pem)?;
        let spki = Certificate::parse(chain.first().ok_or(SvidError::Pem)?)?.spki;
        let key = ChannelKey::read(pem, spki, keys).ok_or(SvidError::Pem)?;
        Self::new(chain, key)
    }

    /// Chain and key as one text, so that one rename replaces both. It holds the private key: keep it 0600.
    pub fn to_pem(&self) -> Zeroizing<String> {
        write_pem(&self.chain, self.key.section())
    }
}

impl SigningSvid {
    /// Puts a chain and its key together.
    ///
    /// # Errors
    /// The leaf is not a signing SVID's, the key is not the leaf's, or the chain is empty or too long.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Result<Self, SvidError> {
        let (Leaf { id, fingerprint, not_before, not_after }, _) = Leaf::signing(leaf_of(&chain)?)?;
        let key = matching_key(&chain, key)?;
        Ok(Self { id, chain, key, not_before, not_after, fingerprint })
    }

    /// Reads what [`SigningSvid::to_pem`] wrote: certificates, leaf first, and one private key.
    ///
    /// # Errors
    /// The text holds no such sections, or as for [`SigningSvid::new`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, SvidError> {
        Self::new(read_chain(pem)?, PrivateKey::from_pem(pem).ok_or(SvidError::Pem)?)
    }

    /// Chain and key as one text, so that one rename replaces both. It holds the private key: keep it 0600.
    pub fn to_pem(&self) -> Zeroizing<String> {
        write_pem(&self.chain, (pem::PRIVATE_KEY, self.key.secret_der()))
    }

    /// What message signatures name this key by: `<spiffe-id>#<fingerprint>`.
    pub fn keyid(&self) -> String {
        keyid(&self.id, self.fingerprint)
    }
}

/// Why a chain and a key are not an SVID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SvidError {
    /// No certificate, or more than [`MAX_CHAIN`].
    #[error("the chain is empty or too long")]
    ChainLength,
    /// The private key is unusable, or is not the leaf's.
    #[error("the private key is unusable or does not belong to the certificate")]
    Key,
    /// The module that holds the private key, which says why by itself, cannot be asked.
    #[error("the private key is in a module that cannot be used now")]
    KeyUnavailable,
    /// The first certificate is not what it must be.
    #[error("the leaf is not that of such an SVID: {0}")]
    Leaf(#[from] CertificateError),
    /// The text holds no certificate or private key in PEM.
    #[error(
        "the PEM holds no certificate chain with a private key of the kind in use, in the file or in a TPM"
    )]
    Pem,
}

pub(crate) fn keyid(id: &SpiffeId, fingerprint: Fingerprint) -> String {
    format!("{id}#{fingerprint}")
}

fn leaf_of<'a>(chain: &'a [CertificateDer<'static>]) -> Result<&'a CertificateDer<'static>, SvidError> {
    match chain {
        [leaf, ..] if chain.len() <= MAX_CHAIN => Ok(leaf),
        _ => Err(SvidError::ChainLength),
    }
}

fn matching_key(chain: &[CertificateDer<'static>], key: PrivateKey) -> Result<PrivateKey, SvidError> {
    let leaf = Certificate::parse(leaf_of(chain)?)?;
    let loaded = any_supported_type(&key).map_err(|_| SvidError::Key)?;
    match loaded.public_key() {
        Some(public) if public.as_ref() == leaf.spki => Ok(key),
        _ => Err(SvidError::Key),
    }
}

fn read_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, SvidError> {
    CertificateDer::pem_slice_iter(certificates(pem)).collect::<Result<_, _>>().map_err(|_| SvidError::Pem)
}

/// What stands before the private key: the reader of certificates would make copies of it.
fn certificates(pem: &[u8]) -> &[u8] {
    const KEY: &[u8] = b"-----BEGIN PRIVATE KEY-----";
    let key = pem.windows(KEY.len()).position(|window| window == KEY);
    pem.get(..key.unwrap_or(pem.len())).unwrap_or_default()
}

fn write_pem(chain: &[CertificateDer<'_>], key: (&'static str, &[u8])) -> Zeroizing<String> {
    let chain = chain.iter().map(|certificate| (pem::CERTIFICATE, &**certificate));
    pem::secret(&chain.chain([key]).collect::<Vec<_>>())
}

impl Clone for TlsSvid {
    fn clone(&self) -> Self {
        Self { id: self.id.clone(), chain: self.chain.clone(), key: self.key.clone(), ..*self }
    }
}

impl Clone for SigningSvid {
    fn clone(&self) -> Self {
        Self { id: self.id.clone(), chain: self.chain.clone(), key: self.key.clone(), ..*self }
    }
}

impl fmt::Debug for TlsSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        redacted("TlsSvid", &self.id, self.fingerprint, f)
    }
}

impl fmt::Debug for SigningSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        redacted("SigningSvid", &self.id, self.fingerprint, f)
    }
}

impl fmt::Debug for AppSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        redacted("AppSvid", &self.id, self.fingerprint, f)
    }
}

fn redacted(name: &str, id: &SpiffeId, fingerprint: Fingerprint, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.debug_struct(name).field("id", id).field("fingerprint", &fingerprint).finish_non_exhaustive()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Mesh;

    #[test]
    fn svids_round_trip_through_pem() {
        let mesh = Mesh::new();
        let tls = mesh.tls_svid("gw");
        let again = TlsSvid::from_pem(tls.to_pem().as_bytes()).unwrap();
        assert_eq!((&again.id, &again.chain, &again.key), (&tls.id, &tls.chain, &tls.key));
        let signing = mesh.signing_svid("gw");
        let again = SigningSvid::from_pem(signing.to_pem().as_bytes()).unwrap();
        assert_eq!((again.keyid(), &again.key), (signing.keyid(), &signing.key));
        assert_eq!(signing.keyid(), format!("spiffe://edge.example/app/d1/gw#{}", signing.fingerprint));
    }

    #[test]
    fn key_of_another_leaf_is_refused() {
        let mesh = Mesh::new();
        let (one, two) = (mesh.tls_svid("gw"), mesh.tls_svid("gw"));
        assert_eq!(TlsSvid::new(one.chain, two.key).err(), Some(SvidError::Key));
        let (one, two) = (mesh.signing_svid("gw"), mesh.signing_svid("gw"));
        assert_eq!(SigningSvid::new(one.chain, two.key).err(), Some(SvidError::Key));
    }

    #[test]
    fn neither_svid_passes_for_the_other() {
        let mesh = Mesh::new();
        let (tls, signing) = (mesh.tls_svid("gw"), mesh.signing_svid("gw"));
        let purpose = Some(SvidError::Leaf(CertificateError::Purpose));
        assert_eq!(TlsSvid::new(signing.chain, signing.key).err(), purpose);
        assert_eq!(SigningSvid::new(tls.chain, tls.key.in_memory().unwrap().clone()).err(), purpose);
    }

    #[test]
    fn empty_and_overlong_chains_are_refused() {
        let svid = Mesh::new().tls_svid("gw");
        assert_eq!(TlsSvid::new(Vec::new(), svid.key.clone()).err(), Some(SvidError::ChainLength));
        let long = vec![svid.chain[0].clone(); MAX_CHAIN + 1];
        assert_eq!(TlsSvid::new(long, svid.key).err(), Some(SvidError::ChainLength));
    }

    #[test]
    fn debug_and_errors_show_no_key() {
        let svid = Mesh::new().signing_svid("gw");
        let shown = format!("{svid:?}");
        assert!(shown.contains("spiffe://edge.example/app/d1/gw") && !shown.contains("key"), "{shown}");
    }

    #[test]
    fn pem_without_key_or_chain_is_refused() {
        assert_eq!(TlsSvid::from_pem(b"").err(), Some(SvidError::Pem));
        let mut chain_only = String::new();
        pem::push(&mut chain_only, pem::CERTIFICATE, &Mesh::new().tls_svid("gw").chain[0]);
        assert_eq!(TlsSvid::from_pem(chain_only.as_bytes()).err(), Some(SvidError::Pem));
    }
}
