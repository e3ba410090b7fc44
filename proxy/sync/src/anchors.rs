//! Payload of section `anchors`: whom a proxy believes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use rustls_pki_types::CertificateDer;
use signet_identity::{JwtKey, MAX_FEDERATED, MAX_REFUSED_ISSUERS, TrustBundle, TrustDomain};

use crate::bytes::{at_most, fields_at_most, key, name};
use crate::proto::sync as wire;
use crate::{DecodeError, MAX_DIRECTORY_KEYS, MAX_JWT_KEYS, MAX_PER_ENTRY, MAX_ROOTS};

/// The roots of a trust domain and the keys that may sign its sections.
#[derive(Debug, Clone)]
pub struct Anchors {
    /// Roots in force, current and next; and those of federated trust domains.
    pub bundle: Arc<TrustBundle>,
    /// The same and what was retired in good order: what open connections are judged by.
    pub open: Arc<TrustBundle>,
    /// SHA-256 of the SubjectPublicKeyInfo of the issuer that certifies now; none when it does not matter.
    pub issuer: Option<[u8; 32]>,
    /// Within which time who holds certificates of another issuer renews them.
    pub renew_within: Duration,
    /// Ed25519 key that signs policy, anchors, revocations and epoch changes.
    pub policy_key: [u8; 32],
    /// Key of each area that may sign directories, by area name.
    pub directory_keys: BTreeMap<String, DirectoryKey>,
    /// Under which JWT-SVIDs of the trust domain verify; the first one signs.
    pub jwt_keys: Arc<[JwtKey]>,
}

/// The key of an area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryKey {
    /// Ed25519 public key.
    pub key: [u8; 32],
    /// Networks the area may write, and nobody else; empty means every network that no area is named for.
    pub networks: Vec<String>,
}

impl DirectoryKey {
    /// Whether the network is this area's own.
    pub fn owns(&self, network: &str) -> bool {
        self.networks.iter().any(|own| own == network)
    }
}

/// The longest time that renewals of one rotation are spread over: a proxy that waited longer would only be late.
const RENEW_WITHIN_MAX_S: u32 = 3_600;

impl Anchors {
    /// What is in force in a trust domain that never rotated anything.
    pub fn new(
        bundle: Arc<TrustBundle>,
        policy_key: [u8; 32],
        directory_keys: BTreeMap<String, DirectoryKey>,
    ) -> Self {
        let open = Arc::clone(&bundle);
        Self {
            bundle,
            open,
            issuer: None,
            renew_within: Duration::ZERO,
            policy_key,
            directory_keys,
            jwt_keys: Arc::default(),
        }
    }

    /// The key that signs the directory of `network`, if the area of this name may: one that the network is named for, or, for a
    /// network that none is named for, one without names.
    pub fn directory_signer(&self, area: &str, network: &str) -> Option<&[u8; 32]> {
        let key = self.directory_keys.get(area)?;
        let is_owned = || self.directory_keys.values().any(|key| key.owns(network));
        (key.owns(network) || (key.networks.is_empty() && !is_owned())).then_some(&key.key)
    }

    /// The lowest protocol number whose readers pass nothing of this over that must not be.
    pub fn minimum_reader(&self) -> u32 {
        if self.bundle.refused_issuers().is_empty() { 1 } else { 4 }
    }

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
        at_most("anchors.federated", anchors.federated.len(), MAX_FEDERATED)?;
        at_most("anchors.directory_keys", anchors.directory_keys.len(), MAX_DIRECTORY_KEYS)?;
        at_most("anchors.jwt_keys", anchors.jwt_keys.len(), MAX_JWT_KEYS)?;
        let own = wire::FederatedAnchors {
            trust_domain: anchors.trust_domain,
            roots: anchors.roots,
            former_roots: anchors.former_roots,
            refused_issuers: anchors.refused_issuers,
            former_issuers: anchors.former_issuers,
        };
        let (bundle, open) = bundles(own)?;
        let federated: Vec<_> = anchors.federated.into_iter().map(bundles).collect::<Result<_, _>>()?;
        let (in_force, believed): (Vec<_>, Vec<_>) = federated.into_iter().unzip();
        let unfit = |error: signet_identity::BundleError| DecodeError::Bundle(error.to_string());
        let bundle = bundle.with_federated(in_force).map_err(unfit)?;
        let open = open.with_federated(believed).map_err(unfit)?;
        let issuer = match &*anchors.issuer {
            [] => None,
            hash => Some(key("anchors.issuer", hash)?),
        };
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
            open: Arc::new(open),
            issuer,
            renew_within: Duration::from_secs(anchors.renew_within_s.min(RENEW_WITHIN_MAX_S).into()),
            policy_key: key("anchors.policy_key", &anchors.policy_key)?,
            directory_keys,
            jwt_keys: anchors.jwt_keys.iter().map(|point| jwt_key(point)).collect::<Result<_, _>>()?,
        })
    }
}

/// The roots of one trust domain that are in force, and the same with those that what is open goes on under.
fn bundles(anchors: wire::FederatedAnchors) -> Result<(TrustBundle, TrustBundle), DecodeError> {
    at_most("anchors.roots", anchors.roots.len(), MAX_ROOTS)?;
    at_most("anchors.former_roots", anchors.former_roots.len(), MAX_ROOTS)?;
    at_most("anchors.refused_issuers", anchors.refused_issuers.len(), MAX_REFUSED_ISSUERS)?;
    at_most("anchors.former_issuers", anchors.former_issuers.len(), MAX_REFUSED_ISSUERS)?;
    let trust_domain = TrustDomain::parse(&anchors.trust_domain)
        .map_err(|source| DecodeError::Id { field: "anchors.trust_domain", source })?;
    let refused = issuers("anchors.refused_issuers", &anchors.refused_issuers)?;
    let former = issuers("anchors.former_issuers", &anchors.former_issuers)?;
    let open = bundle(&trust_domain, [&*anchors.roots, &*anchors.former_roots].concat(), refused.clone())?;
    Ok((bundle(&trust_domain, anchors.roots, [refused, former].concat())?, open))
}

/// What of [`wire::Anchors`] is about one trust domain: its roots in force, and the same with those that what is open goes on
/// under.
fn wire_bundles(bundle: &TrustBundle, open: &TrustBundle) -> wire::FederatedAnchors {
    let former_roots = open.roots().iter().filter(|root| !bundle.roots().contains(root));
    let refused = open.refused_issuers();
    let former_issuers = bundle.refused_issuers().iter().filter(|issuer| !refused.contains(issuer));
    wire::FederatedAnchors {
        trust_domain: bundle.trust_domain().to_string(),
        roots: bundle.roots().iter().map(|root| root.to_vec()).collect(),
        former_roots: former_roots.map(|root| root.to_vec()).collect(),
        refused_issuers: refused.iter().map(|issuer| issuer.to_vec()).collect(),
        former_issuers: former_issuers.map(|issuer| issuer.to_vec()).collect(),
    }
}

fn jwt_key(point: &[u8]) -> Result<JwtKey, DecodeError> {
    JwtKey::from_point(point).ok_or(DecodeError::Length { field: "anchors.jwt_keys", expected: 65 })
}

fn issuers(field: &'static str, hashes: &[Vec<u8>]) -> Result<Vec<[u8; 32]>, DecodeError> {
    hashes.iter().map(|hash| key(field, hash)).collect()
}

fn bundle(
    trust_domain: &TrustDomain,
    roots: Vec<Vec<u8>>,
    refused: Vec<[u8; 32]>,
) -> Result<TrustBundle, DecodeError> {
    let roots = roots.into_iter().map(CertificateDer::from).collect();
    TrustBundle::new(trust_domain.clone(), roots)
        .and_then(|bundle| bundle.without_issuers(refused))
        .map_err(|error| DecodeError::Bundle(error.to_string()))
}

impl From<&Anchors> for wire::Anchors {
    fn from(anchors: &Anchors) -> Self {
        let (bundle, open) = (&anchors.bundle, &anchors.open);
        let own = wire_bundles(bundle, open);
        // Both hold the same domains, in the same order.
        let federated = bundle.federated().iter().zip(open.federated());
        Self {
            former_roots: own.former_roots,
            refused_issuers: own.refused_issuers,
            former_issuers: own.former_issuers,
            federated: federated.map(|(bundle, open)| wire_bundles(bundle, open)).collect(),
            issuer: anchors.issuer.map(|issuer| issuer.to_vec()).unwrap_or_default(),
            renew_within_s: u32::try_from(anchors.renew_within.as_secs()).unwrap_or(RENEW_WITHIN_MAX_S),
            trust_domain: own.trust_domain,
            roots: own.roots,
            policy_key: anchors.policy_key.to_vec(),
            jwt_keys: anchors.jwt_keys.iter().map(|key| key.point().to_vec()).collect(),
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
