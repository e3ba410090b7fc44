//! Payload of section `anchors`: whom a proxy believes.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;
use rustls_pki_types::CertificateDer;
use signet_identity::{TrustBundle, TrustDomain};

use crate::bytes::{at_most, fields_at_most, key, name};
use crate::proto::sync as wire;
use crate::{DecodeError, MAX_DIRECTORY_KEYS, MAX_PER_ENTRY, MAX_ROOTS};

/// The roots of a trust domain and the keys that may sign its sections.
#[derive(Debug, Clone)]
pub struct Anchors {
    /// Roots in force, current and next.
    pub bundle: Arc<TrustBundle>,
    /// Ed25519 key that signs policy, anchors, revocations and epoch changes.
    pub policy_key: [u8; 32],
    /// Key of each area that may sign directories, by area name.
    pub directory_keys: BTreeMap<String, DirectoryKey>,
}

/// The key of an area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryKey {
    /// Ed25519 public key.
    pub key: [u8; 32],
    /// Networks the area may write; empty means every network of the trust domain.
    pub networks: Vec<String>,
}

impl DirectoryKey {
    /// Whether the area may write the directory of `network`.
    pub fn may_write(&self, network: &str) -> bool {
        self.networks.is_empty() || self.networks.iter().any(|n| n == network)
    }
}

impl Anchors {
    /// From a section's payload.
    ///
    /// # Errors
    /// [`DecodeError`] names the field.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        fields_at_most("anchors", payload)?;
        Self::try_from(wire::Anchors::decode(payload)?)
    }
}

impl TryFrom<wire::Anchors> for Anchors {
    type Error = DecodeError;

    fn try_from(anchors: wire::Anchors) -> Result<Self, DecodeError> {
        at_most("anchors.roots", anchors.roots.len(), MAX_ROOTS)?;
        at_most("anchors.directory_keys", anchors.directory_keys.len(), MAX_DIRECTORY_KEYS)?;
        let trust_domain = TrustDomain::parse(&anchors.trust_domain)
            .map_err(|source| DecodeError::Id { field: "anchors.trust_domain", source })?;
        let roots = anchors.roots.into_iter().map(CertificateDer::from).collect();
        let bundle = TrustBundle::new(trust_domain, roots).map_err(|e| DecodeError::Bundle(e.to_string()))?;
        let mut directory_keys = BTreeMap::new();
        for entry in anchors.directory_keys {
            at_most("anchors.directory_keys.networks", entry.networks.len(), MAX_PER_ENTRY)?;
            let area = name("anchors.directory_keys.area", entry.area)?;
            let directory_key = DirectoryKey {
                key: key("anchors.directory_keys.key", &entry.key)?,
                networks: entry.networks,
            };
            directory_keys.insert(area, directory_key);
        }
        Ok(Self {
            bundle: Arc::new(bundle),
            policy_key: key("anchors.policy_key", &anchors.policy_key)?,
            directory_keys,
        })
    }
}

impl From<&Anchors> for wire::Anchors {
    fn from(anchors: &Anchors) -> Self {
        Self {
            trust_domain: anchors.bundle.trust_domain().to_string(),
            roots: anchors.bundle.roots().iter().map(|root| root.to_vec()).collect(),
            policy_key: anchors.policy_key.to_vec(),
            directory_keys: anchors
                .directory_keys
                .iter()
                .map(|(area, k)| wire::DirectoryKey {
                    area: area.clone(),
                    key: k.key.to_vec(),
                    networks: k.networks.clone(),
                })
                .collect(),
        }
    }
}
