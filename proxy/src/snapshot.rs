//! What the control thread knows and the workers act on: replaced as a whole, never changed in place.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};
use signet_identity::{
    ALPN_H1, ALPN_H2, ALPN_RECORDS, Fingerprint, JwtKey, SigningSvid, SpiffeId, TlsError, TlsSvid,
    TrustBundle, client_config, server_config,
};
use signet_policy::{OfflineBound, PolicyIndex, PolicyModel, Staleness};
use signet_signature::MeshSigner;
use signet_signature::seal::SealingKey;
use signet_sync::{Directory, Entry, Revocations, SectionName, Subscriber};
use thiserror::Error;

use crate::clock;
use crate::control::Contact;
use crate::tls::Alpn;

/// Policy, directory and trust at one moment. Loaded once per request.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Grows with every change, of the credentials and of what policy says at this time too; what was judged under an
    /// older one is judged again.
    pub generation: u64,
    /// The generation in which anything below last changed.
    pub edition: u64,
    /// The policy as it was pushed; none before the first.
    pub policy: Option<Arc<PolicyModel>>,
    /// The same, made for decisions; denies everything before the first policy.
    pub index: Arc<PolicyIndex>,
    /// Name of the policy section's version, for records and `explain`.
    pub policy_version: Arc<str>,
    /// Directories of the networks this proxy is attached to, its own first.
    pub directories: Vec<Arc<Directory>>,
    /// The roots of the own trust domain, and beside them those of domains that it is federated with.
    pub bundle: Arc<TrustBundle>,
    /// The same and what was retired in good order: what was opened before goes on.
    pub open_bundle: Arc<TrustBundle>,
    /// Under which JWT-SVIDs of the own trust domain verify.
    pub jwt_keys: Arc<[JwtKey]>,
    /// Who is no longer trusted although the certificate has not ended.
    pub revocations: Arc<Revocations>,
    /// Allowed difference of clocks, in seconds.
    pub clock_skew_s: u64,
    /// Who this proxy is for; none before it is told.
    pub own: Option<SpiffeId>,
    /// When the control plane last said that nothing here is out of date. Changes within a snapshot: an age grows by itself.
    pub contact: Arc<Contact>,
    /// Whether anchors, a policy and the directory of the own network are in force: without the last, every
    /// destination would look unmeshed.
    pub ready: bool,
}

impl Snapshot {
    /// The state before the first policy: everything is refused.
    pub fn deny_all(bundle: Arc<TrustBundle>) -> Self {
        Self {
            generation: 0,
            edition: 0,
            policy: None,
            index: Arc::new(PolicyIndex::deny_all()),
            policy_version: Arc::default(),
            directories: Vec::new(),
            open_bundle: Arc::clone(&bundle),
            bundle,
            jwt_keys: Arc::default(),
            revocations: Arc::default(),
            clock_skew_s: 30,
            own: None,
            contact: Arc::default(),
            ready: false,
        }
    }

    /// What a subscriber holds, as seen from a workload of `network`.
    pub(crate) fn of(
        generation: u64,
        network: &str,
        bundle: &Arc<TrustBundle>,
        subscriber: &Subscriber,
    ) -> Self {
        let mut directories: Vec<_> = subscriber.directories().cloned().collect();
        // Stable: the others stay in the order of their names.
        directories.sort_by_key(|directory| directory.network() != network);
        let has_own = directories.first().is_some_and(|directory| directory.network() == network);
        let anchors = subscriber.anchors().filter(|anchors| anchors.bundle == *bundle);
        let has_revocations = subscriber.versions().any(|(name, _)| *name == SectionName::Revocations);
        let unready = Self {
            generation,
            edition: generation,
            directories,
            revocations: Arc::clone(subscriber.revocations()),
            open_bundle: Arc::clone(anchors.map_or(bundle, |anchors| &anchors.open)),
            jwt_keys: anchors.map(|anchors| Arc::clone(&anchors.jwt_keys)).unwrap_or_default(),
            ..Self::deny_all(Arc::clone(bundle))
        };
        let Some(policy) = subscriber.policy() else { return unready };
        let version = subscriber.versions().find(|(name, _)| **name == SectionName::Policy);
        Self {
            policy: Some(Arc::clone(&policy.model)),
            index: Arc::clone(&policy.index),
            policy_version: version.map(|(_, version)| version.to_string().into()).unwrap_or_default(),
            clock_skew_s: policy.model.clock_skew_s,
            // Without the list of those who are no longer trusted, nobody is.
            ready: has_own && subscriber.bundle().is_some() && has_revocations,
            ..unready
        }
    }

    /// What is behind an address, and in which network; `None` means that it is not meshed.
    pub fn lookup(&self, address: SocketAddr) -> Option<(&Entry, &str)> {
        let find = |directory: &'_ Arc<Directory>| directory.lookup(address.ip(), address.port()).is_some();
        let directory = self.directories.iter().find(|directory| find(directory))?;
        Some((directory.lookup(address.ip(), address.port())?, directory.network()))
    }

    /// Whether a workload of the mesh has this address, at any port.
    pub fn is_meshed(&self, address: std::net::IpAddr) -> bool {
        self.directories.iter().any(|directory| directory.contains(address))
    }

    /// How long ago the control plane last said that nothing here is out of date, in seconds.
    pub(crate) fn policy_age_s(&self) -> Option<u64> {
        self.contact.age_s(clock::unix_ms())
    }

    /// How long policy lets this workload's class go on without hearing that, and what then.
    pub(crate) fn offline_bound(&self) -> Option<OfflineBound> {
        self.index.offline_bound(self.own.as_ref()?)
    }

    /// What policy says of going on with what is held, now.
    pub(crate) fn staleness(&self) -> Staleness {
        self.offline_bound().map_or(Staleness::Fresh, |bound| bound.staleness(self.policy_age_s()))
    }

    /// Whether an identity or one of its certificates was revoked.
    pub fn revoked(&self, id: &SpiffeId, certificate: &Fingerprint) -> bool {
        self.revocations.of(id, *certificate).is_some()
    }
}

/// Keys that open what is sealed: the present one, and those that senders may still have from the directory, or used
/// for a message that is on its way.
const SEALING_KEYS_MAX: usize = 4;

/// The proxy's identity at one moment, with everything that is built from it.
pub struct Credentials {
    /// Grows with every renewal.
    pub generation: u64,
    /// Certificate and key for TLS.
    pub tls: TlsSvid,
    /// Certificate and key for messages.
    pub signing: SigningSvid,
    /// Signs HTTP messages and records.
    pub signer: Arc<MeshSigner>,
    /// Open what is sealed for this workload: the key of these credentials, then those of former ones.
    sealing: Vec<Arc<SealingKey>>,
    server: Arc<ServerConfig>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    records: Arc<ClientConfig>,
}

/// Certificates from which no credentials can be built.
#[derive(Debug, Error)]
pub enum CredentialsError {
    /// The signing key cannot be used.
    #[error("signing key cannot be used")]
    SigningKey,
    /// The TLS certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Credentials {
    /// Builds everything from two SVIDs and the roots; what was sealed for the `former` credentials can still be opened.
    ///
    /// # Errors
    /// When one of the keys cannot be used.
    pub fn new(
        generation: u64,
        tls: TlsSvid,
        signing: SigningSvid,
        bundle: &TrustBundle,
        former: Option<&Self>,
    ) -> Result<Self, CredentialsError> {
        let key = signing.key.secret_der();
        let own = SealingKey::derive(key).map_err(|_| CredentialsError::SigningKey)?;
        let former = former.map(|former| &*former.sealing).unwrap_or_default();
        let sealing = former.iter().filter(|key| key.public() != own.public()).cloned().collect::<Vec<_>>();
        let sealing = std::iter::once(Arc::new(own)).chain(sealing).take(SEALING_KEYS_MAX);
        let dialling = |alpn: &[&[u8]]| -> Result<_, TlsError> {
            let mut config = client_config(&tls, bundle, alpn)?;
            config.time_provider = Arc::new(clock::Handshakes);
            Ok(Arc::new(config))
        };
        let mut server = server_config(&tls, bundle, &[ALPN_H2, ALPN_H1, ALPN_RECORDS])?;
        server.time_provider = Arc::new(clock::Handshakes);
        Ok(Self {
            generation,
            signer: Arc::new(
                MeshSigner::new(key, signing.keyid()).map_err(|_| CredentialsError::SigningKey)?,
            ),
            sealing: sealing.collect(),
            server: Arc::new(server),
            http1: dialling(&[ALPN_H1])?,
            http2: dialling(&[ALPN_H2])?,
            records: dialling(&[ALPN_RECORDS])?,
            tls,
            signing,
        })
    }

    /// The identity.
    pub fn id(&self) -> &SpiffeId {
        &self.tls.id
    }

    /// The keys that open what is sealed for this workload.
    pub(crate) fn sealing_keys(&self) -> Vec<&SealingKey> {
        self.sealing.iter().map(|key| &**key).collect()
    }

    pub(crate) fn server_config(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    pub(crate) fn client_config(&self, alpn: Alpn) -> &Arc<ClientConfig> {
        match alpn {
            Alpn::Http1 => &self.http1,
            Alpn::Http2 => &self.http2,
            Alpn::Records => &self.records,
        }
    }
}
