//! The trust domain's keys, and what is made of them: certificates, anchors, the control plane's own end of TLS.
//!
//! The keys are in a file ([`Keyring`]), the parts they play in the store ([`Slots`]). [`Authority`] holds both as they were
//! last read; whoever reads newer slots hands them over with [`Authority::adopt`].

mod keyring;
pub(crate) mod slots;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use signet_identity::{
    BundleError, IssueError, JwtError, JwtKey, KeyRequest, Keys, RequestError, SpiffeId, SvidError, TlsError,
    TlsSvid, TrustBundle, TrustDomain, bundle_document,
};
use signet_sync::{KeyError, MAX_JWT_KEYS, SectionKey};
use thiserror::Error;
use tokio::sync::watch;

use self::keyring::pem;
pub(crate) use self::keyring::{FILE, Keyring, Pair, constrained, name, new_issuer, new_root};
use self::slots::{FORMER_JWT_KEYS_MAX, FormerJwtKey, Slots, Why};
use crate::area::{AreaStartError, Delegated};
use crate::areas::Areas;
use crate::rotation::VOUCHERS_MAX;
use crate::store::Revision;

/// How long the control plane's own certificate lives; it is made anew at half of that.
const SERVER_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Certificates start this much earlier than now, for peers whose clock is behind.
pub(crate) const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// The device name in the control plane's own SPIFFE ID.
pub(crate) const DEVICE: &str = "control-plane";

/// The keys of a trust domain and the parts they play. `Debug` shows none of them.
pub(crate) struct Authority {
    directory: PathBuf,
    /// Where new keys are made.
    keys: Keys,
    trust_domain: TrustDomain,
    id: SpiffeId,
    keyring: RwLock<Arc<Keyring>>,
    /// With the commit that wrote them; 0 before the first.
    slots: watch::Sender<(Revision, Arc<Slots>)>,
    /// Held from the making of keys to the commit of the slots that name them: two at a time would take each other's keys for
    /// left over.
    turn: tokio::sync::Mutex<()>,
    /// Whether issuers that are made are name-constrained.
    constrains: bool,
    /// Where this is an area: what it has from its parent.
    area: Option<Arc<Delegated>>,
    /// The areas under this control plane, as of the last look at the store.
    areas: RwLock<Arc<Areas>>,
}

impl Authority {
    /// The keys as loaded from `directory` with `keys`, in the parts that the store says.
    pub(crate) fn new(
        directory: &Path,
        keys: Keys,
        keyring: Keyring,
        slots: (Revision, Slots),
    ) -> Result<Self, AuthorityError> {
        let trust_domain = keyring.first()?.trust_domain().clone();
        let id = SpiffeId::control_plane(&trust_domain, DEVICE).map_err(|_| AuthorityError::Corrupted)?;
        check(&keyring, &slots.1)?;
        Ok(Self {
            directory: directory.to_owned(),
            keys,
            trust_domain,
            id,
            keyring: RwLock::new(Arc::new(keyring)),
            slots: watch::Sender::new((slots.0, Arc::new(slots.1))),
            turn: tokio::sync::Mutex::new(()),
            constrains: false,
            area: None,
            areas: RwLock::default(),
        })
    }

    /// An area's: it certifies by what its parent's root certified, and signs directories by its own key.
    pub(crate) fn delegated(directory: &Path, area: Arc<Delegated>) -> Result<Self, AreaStartError> {
        let keyring = Keyring {
            pairs: vec![Arc::new(area.held().pair()?)],
            retired: BTreeMap::new(),
            vouchers: BTreeMap::new(),
            // Nobody believes this one: an area signs nothing but directories.
            policy_key: Arc::new(SectionKey::generate()?),
            directory_key: area.section_key(),
        };
        let slots = Slots::first(&keyring)?;
        let id = area.id().clone();
        let authority = Self::new(directory, Keys::Memory, keyring, (Revision(0), slots))?;
        Ok(Self { id, area: Some(area), ..authority })
    }

    /// Where this is an area: what it has from its parent.
    pub(crate) fn area(&self) -> Option<&Arc<Delegated>> {
        self.area.as_ref()
    }

    /// Takes up a new delegation, over the same key.
    pub(crate) fn redelegated(&self, pair: signet_identity::Authority) {
        let keyring = Keyring { pairs: vec![Arc::new(pair)], ..(*self.keyring()).clone() };
        self.replace(keyring);
        self.refreshed();
    }

    /// Has the control plane's end set up anew: what it shows or believes has changed.
    pub(crate) fn refreshed(&self) {
        self.slots.send_modify(|_| {});
    }

    /// The areas under this control plane.
    pub(crate) fn areas(&self) -> Arc<Areas> {
        self.areas.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn adopt_areas(&self, areas: Arc<Areas>) {
        *self.areas.write().unwrap_or_else(PoisonError::into_inner) = areas;
    }

    /// Under which everything but directories verifies.
    pub(crate) fn origins_key(&self) -> [u8; 32] {
        self.area.as_ref().map_or_else(|| self.policy_key().public_key(), |area| area.policy_key())
    }

    /// Whether this control plane writes the directory of a network.
    pub(crate) fn writes(&self, network: &str) -> bool {
        match &self.area {
            Some(area) => area.owns(network),
            None => !self.areas().owns(network),
        }
    }

    /// The same, with every issuer that it makes from now on name-constrained.
    pub(crate) fn constraining(self, constrains: bool) -> Self {
        Self { constrains, ..self }
    }

    /// Whether the next issuer is name-constrained: it was asked for, or the present one is.
    pub(crate) fn constrains(&self) -> Result<bool, AuthorityError> {
        Ok(self.constrains || self.current()?.is_constrained())
    }

    /// Makes new keys and stores them in `directory`.
    #[cfg(test)]
    pub(crate) fn create(
        directory: &Path,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let keyring = Keyring::create(directory, trust_domain, now)?;
        let slots = Slots::first(&keyring)?;
        Self::new(directory, Keys::Memory, keyring, (Revision(0), slots))
    }

    /// The parts that the keys play.
    pub(crate) fn slots(&self) -> Arc<Slots> {
        self.slots.borrow().1.clone()
    }

    /// Tells of every change of them.
    pub(crate) fn changes(&self) -> watch::Receiver<(Revision, Arc<Slots>)> {
        self.slots.subscribe()
    }

    /// Takes over newer slots, as the store has them.
    ///
    /// # Errors
    /// [`AuthorityError::OtherStore`] when a key that they name is not here; everything stays as it was.
    pub(crate) fn adopt(&self, revision: Revision, slots: Slots) -> Result<(), AuthorityError> {
        if revision <= self.slots.borrow().0 {
            return Ok(());
        }
        if check(&self.keyring(), &slots).is_err() {
            // Another control plane that shares the file may have made keys.
            let keyring = Keyring::load_in(&self.directory, &self.trust_domain, &self.keys)?
                .ok_or(AuthorityError::Missing)?;
            check(&keyring, &slots)?;
            self.replace(keyring);
        }
        let slots = Arc::new(slots);
        self.slots.send_if_modified(|current| {
            let is_newer = revision > current.0;
            if is_newer {
                *current = (revision, slots);
            }
            is_newer
        });
        Ok(())
    }

    /// Waits until nobody else changes keys and slots; nobody else does while it is held.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// All keys.
    pub(crate) fn keyring(&self) -> Arc<Keyring> {
        self.keyring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where new keys are made.
    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Stores other keys, and holds them from now on. Those of a module that are no longer among them are destroyed there.
    pub(crate) fn keep(&self, keyring: Keyring) -> Result<(), AuthorityError> {
        keyring.store(&self.directory)?;
        let former = self.keyring();
        if let Keys::Module(module) = &self.keys {
            let kept: Vec<&str> = keyring.held().collect();
            for gone in former.held().filter(|held| !kept.contains(held)) {
                match module.destroy(gone) {
                    Ok(()) => tracing::info!(key = gone, "a retired key is destroyed in its module"),
                    Err(error) => tracing::error!(key = gone, %error, "a retired key is still in its module"),
                }
            }
        }
        self.replace(keyring);
        Ok(())
    }

    /// Destroys all keys that a module holds, and says of how many it could not. Those in memory are not touched.
    pub(crate) fn destroy_held(&self) -> (usize, usize) {
        let Keys::Module(module) = &self.keys else { return (0, 0) };
        let keyring = self.keyring();
        let outcomes: Vec<bool> = keyring
            .held()
            .map(|held| {
                let outcome = module.destroy(held);
                outcome
                    .inspect_err(|error| tracing::error!(key = held, %error, "a key is still in its module"))
                    .is_ok()
            })
            .collect();
        let destroyed = outcomes.iter().filter(|done| **done).count();
        (destroyed, outcomes.len() - destroyed)
    }

    fn replace(&self, keyring: Keyring) {
        *self.keyring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keyring);
    }

    /// The pair in force.
    pub(crate) fn current(&self) -> Result<Pair, AuthorityError> {
        let slots = self.slots();
        self.keyring().pair(&slots.root, &slots.issuer).cloned().ok_or(AuthorityError::OtherStore)
    }

    /// What certifies workloads now.
    pub(crate) fn issuing(&self) -> Result<Issuing, AuthorityError> {
        let (slots, keyring) = (self.slots(), self.keyring());
        let (root, issuer) = slots.certifying();
        let pair = keyring.pair(root, issuer).cloned().ok_or(AuthorityError::OtherStore)?;
        // Who has not heard of the next root yet finds a path from the old one.
        let word = if root == slots.root { None } else { keyring.vouchers.get(root).cloned() };
        Ok(Issuing { pair, words: word.into_iter().collect() })
    }

    /// The same for who holds a certificate of this issuer: where its root was retired, the words that lead from there come
    /// with the new one. Its holder may know no other root, and must be able to verify what it is given.
    pub(crate) fn issuing_for(&self, issuer: Option<&str>) -> Result<Issuing, AuthorityError> {
        let issuing = self.issuing()?;
        if self.slots().is_of_root_in_force(issuer) {
            return Ok(issuing);
        }
        Ok(Issuing { words: self.vouchers(), ..issuing })
    }

    /// The trust domain.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Signs policy, anchors and revocations.
    pub(crate) fn policy_key(&self) -> Arc<SectionKey> {
        self.keyring().policy_key.clone()
    }

    /// Signs this area's directories.
    pub(crate) fn directory_key(&self) -> Arc<SectionKey> {
        self.keyring().directory_key.clone()
    }

    /// The control plane's own identity.
    pub(crate) fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// What workloads believe: the roots in force, current and next, without the issuers that were retired.
    pub(crate) fn bundle(&self) -> Result<TrustBundle, AuthorityError> {
        if let Some(area) = &self.area {
            return Ok(area.relay().anchors.bundle.alone());
        }
        let slots = self.slots();
        self.of(&slots, slots.roots(), |_| true)
    }

    /// What open connections are judged by: the same and what was retired in good order.
    pub(crate) fn open_bundle(&self) -> Result<TrustBundle, AuthorityError> {
        if let Some(area) = &self.area {
            return Ok(area.relay().anchors.open.alone());
        }
        let slots = self.slots();
        let former = slots.retired.iter().filter(|retired| retired.why != Why::Emergency);
        let roots = slots.roots().chain(former.map(|retired| &*retired.root));
        self.of(&slots, roots, |why| why == Why::Emergency)
    }

    /// Whose certificates the control plane itself knows: those of retired roots and issuers, too, for who missed a rotation
    /// comes back with them. Nobody gets by such a certificate what it was not issued by us for: callers are looked up by it.
    fn known_bundle(&self) -> Result<TrustBundle, AuthorityError> {
        if self.area.is_some() {
            return self.open_bundle();
        }
        let slots = self.slots();
        let roots = slots.roots().chain(slots.retired.iter().map(|retired| &*retired.root));
        self.of(&slots, roots, |_| false)
    }

    fn of<'a>(
        &self,
        slots: &Slots,
        roots: impl Iterator<Item = &'a str>,
        is_refused: impl Fn(Why) -> bool,
    ) -> Result<TrustBundle, AuthorityError> {
        let keyring = self.keyring();
        let roots = roots.map(|root| keyring.root(root).cloned().ok_or(AuthorityError::OtherStore));
        let roots = roots.collect::<Result<_, _>>()?;
        let refused = slots.issuers.iter().filter(|issuer| is_refused(issuer.why));
        let areas = self.areas();
        let refused = refused.map(|issuer| &*issuer.issuer).chain(areas.refused());
        let refused = refused.map(hash).collect::<Result<_, _>>()?;
        Ok(TrustBundle::new(self.trust_domain.clone(), roots)?.without_issuers(refused)?)
    }

    /// The hash of the issuer that certifies now; none while none was ever replaced.
    pub(crate) fn certifying(&self) -> Result<Option<[u8; 32]>, AuthorityError> {
        let slots = self.slots();
        if slots.number == 0 { Ok(None) } else { hash(slots.certifying().1).map(Some) }
    }

    /// Under which JWT-SVIDs verify: the key that signs, the one of the other pair, and those whose tokens have not ended.
    pub(crate) fn jwt_keys(&self) -> Result<Arc<[JwtKey]>, AuthorityError> {
        if let Some(area) = &self.area {
            return Ok(area.relay().anchors.jwt_keys.clone());
        }
        let (slots, keyring) = (self.slots(), self.keyring());
        let certifying = slots.certifying();
        let others = slots.pairs().filter(|pair| *pair != certifying);
        let mut keys = Vec::new();
        for (root, issuer) in std::iter::once(certifying).chain(others) {
            let pair = keyring.pair(root, issuer).ok_or(AuthorityError::OtherStore)?;
            keys.extend(pair.jwt().map(|jwt| jwt.key()));
        }
        keys.extend(slots.former_jwt_keys.iter().filter_map(FormerJwtKey::key));
        keys.truncate(MAX_JWT_KEYS);
        Ok(keys.into())
    }

    /// The slots that come next, with the keys of those tokens that were signed by an issuer that goes in good order.
    pub(crate) fn with_former_jwt_keys(&self, mut next: Slots, until: u64) -> Slots {
        let (slots, keyring) = (self.slots(), self.keyring());
        let gone = slots.pairs().filter(|pair| !next.pairs().any(|stays| stays == *pair));
        let gone = gone.filter_map(|(root, issuer)| keyring.pair(root, issuer));
        let mut former: Vec<FormerJwtKey> =
            gone.filter_map(|pair| Some(FormerJwtKey::new(pair.jwt()?.key(), until))).collect();
        former.append(&mut next.former_jwt_keys);
        next.former_jwt_keys = former;
        next.former_jwt_keys.truncate(FORMER_JWT_KEYS_MAX);
        next
    }

    /// The bundle as others read it, SPIFFE's document. `sequence` grows with every change.
    pub(crate) fn bundle_document(&self, sequence: u64) -> Result<Vec<u8>, AuthorityError> {
        Ok(bundle_document(self.bundle()?.roots(), &self.jwt_keys()?, Some(sequence)))
    }

    /// What a token pins: the SHA-256 of the public key of the root in force.
    pub(crate) fn pin(&self) -> Result<[u8; 32], AuthorityError> {
        hash(&self.slots().root)
    }

    /// The roots that workloads believe, as PEM, for people and tools.
    pub(crate) fn roots_pem(&self) -> Result<String, AuthorityError> {
        Ok(self.bundle()?.roots().iter().map(|root| pem("CERTIFICATE", root)).collect())
    }

    /// A fresh certificate for the control plane itself, over a fresh key, good at all times from `now` to `latest`; whom it
    /// believes, and what it shows beside.
    pub(crate) fn server(&self, now: SystemTime, latest: SystemTime) -> Result<Server, AuthorityError> {
        if let Some(area) = &self.area {
            let held = area.held();
            let shown = vec![held.root().clone()];
            return Ok(Server { svid: held.end().clone(), bundle: self.known_bundle()?, shown });
        }
        let request = KeyRequest::new_tls()?;
        let issuing = self.issuing()?;
        let not_after =
            (latest.max(now) + SERVER_LIFETIME).min(issuing.not_after().max(now + SERVER_LIFETIME));
        // The word of older roots stands in `shown`.
        let chain = issuing.pair.issue_tls(&request.csr, &self.id, now - BACKDATE, not_after)?;
        let svid = TlsSvid::new(chain, request.key)?;
        Ok(Server { svid, bundle: self.known_bundle()?, shown: self.shown()? })
    }

    /// What the control plane shows behind its own chain: the word of older roots, newest first, then the roots that tokens
    /// pin.
    fn shown(&self) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let (slots, keyring) = (self.slots(), self.keyring());
        let mut shown = self.vouchers();
        let planned = slots.retired.iter().filter(|retired| retired.why == Why::Planned);
        let pinned = slots.roots().chain(planned.map(|retired| &*retired.root).take(VOUCHERS_MAX));
        shown.extend(pinned.filter_map(|root| keyring.root(root)).cloned());
        Ok(shown)
    }

    /// The word of older roots for the one that certifies, newest first: as many as a chain has room for.
    fn vouchers(&self) -> Vec<CertificateDer<'static>> {
        let (slots, keyring) = (self.slots(), self.keyring());
        let (mut words, mut root) = (Vec::new(), slots.certifying().0);
        while words.len() < VOUCHERS_MAX
            && let (Some(by), Some(word)) = (slots.voucher_of(root), keyring.vouchers.get(root))
        {
            words.push(word.clone());
            root = by;
        }
        words
    }
}

/// The control plane's own end of TLS.
pub(crate) struct Server {
    pub(crate) svid: TlsSvid,
    pub(crate) bundle: TrustBundle,
    pub(crate) shown: Vec<CertificateDer<'static>>,
}

/// What certifies workloads.
pub(crate) struct Issuing {
    pair: Pair,
    /// The word of older roots that goes behind every chain, newest first.
    words: Vec<CertificateDer<'static>>,
}

impl Issuing {
    /// The issuer's name.
    pub(crate) fn issuer(&self) -> String {
        name(self.pair.issuer_spki_sha256())
    }

    /// A certificate for TLS, with the device that its key lies in: the chain, leaf first.
    pub(crate) fn tls(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        not_before: SystemTime,
        not_after: SystemTime,
        device: Option<&[u8; 32]>,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        Ok(self.with_words(self.pair.issue_tls_in(csr, id, not_before, not_after, device)?))
    }

    /// A certificate for messages: the chain, leaf first.
    pub(crate) fn signing(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        Ok(self.with_words(self.pair.issue_signing(csr, id, not_before, not_after)?))
    }

    /// A certificate for the application beside a sidecar: the chain, leaf first.
    pub(crate) fn app(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        Ok(self.with_words(self.pair.issue_app(csr, id, not_before, not_after)?))
    }

    /// A token for the application beside a sidecar.
    pub(crate) fn jwt(
        &self,
        id: &SpiffeId,
        audience: &[String],
        now: SystemTime,
        not_after: SystemTime,
    ) -> Result<String, JwtError> {
        self.pair.jwt().ok_or(JwtError::IssuerKey)?.sign(id, audience, now, not_after)
    }

    /// A certificate for a server outside the mesh, such as a webhook's: the chain, leaf first.
    pub(crate) fn dns(
        &self,
        csr: &[u8],
        name: &str,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        Ok(self.with_words(self.pair.issue_dns(csr, name, not_before, not_after)?))
    }

    /// When the issuer ends; no certificate is issued beyond.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.pair.not_after()
    }

    fn with_words(&self, mut chain: Vec<CertificateDer<'static>>) -> Vec<CertificateDer<'static>> {
        chain.extend(self.words.iter().cloned());
        chain
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) fn root_pem(root: &[u8]) -> String {
    pem("CERTIFICATE", root)
}

/// Whether every key that the slots name is there.
fn check(keyring: &Keyring, slots: &Slots) -> Result<(), AuthorityError> {
    let pairs = slots.pairs().all(|(root, issuer)| keyring.pair(root, issuer).is_some());
    let retired = slots.retired.iter().all(|retired| keyring.root(&retired.root).is_some());
    if pairs && retired { Ok(()) } else { Err(AuthorityError::OtherStore) }
}

/// The hash that is a name.
fn hash(name: &str) -> Result<[u8; 32], AuthorityError> {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let bytes = URL_SAFE_NO_PAD.decode(name).map_err(|_| AuthorityError::OtherStore)?;
    bytes.try_into().map_err(|_| AuthorityError::OtherStore)
}

/// Takes keys and certificates that no slot names out of the file: keys of a rotation that never began, and keys whose part
/// is over.
pub(crate) fn tidied(keyring: &Keyring, slots: &Slots) -> Option<Keyring> {
    let mut tidy = keyring.clone();
    // Their certificates outlive the keys.
    for retired in &slots.retired {
        if let Some(root) = keyring.root(&retired.root) {
            tidy.retired.insert(retired.root.clone(), root.clone());
        }
    }
    tidy.retired.retain(|root, _| slots.retired.iter().any(|retired| retired.root == *root));
    tidy.pairs.retain(|pair| {
        let own = (name(pair.root_spki_sha256()), name(pair.issuer_spki_sha256()));
        slots.pairs().any(|(root, issuer)| (root, issuer) == (&*own.0, &*own.1))
    });
    let known: Vec<&str> = slots.roots().chain(slots.retired.iter().map(|retired| &*retired.root)).collect();
    tidy.vouchers.retain(|root, _| known.contains(&&**root) && slots.voucher_of(root).is_some());
    let same = tidy.pairs.len() == keyring.pairs.len()
        && tidy.retired.keys().eq(keyring.retired.keys())
        && tidy.vouchers.keys().eq(keyring.vouchers.keys());
    if same { None } else { Some(tidy) }
}

/// Why there is no authority to start with.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// The roots do not make a bundle.
    #[error("the authority's roots cannot stand together")]
    Bundle(#[from] BundleError),
    /// The clock was never set.
    #[error(
        "this machine's clock stands before 2025 and no authority can be made by it; set the clock and start again"
    )]
    ClockUnset,
    /// The file is not what was written.
    #[error("authority.pem is corrupted: its checksum does not match")]
    Corrupted,
    /// Keys are in a module, and none is given.
    #[error(
        "authority.pem names keys that a hardware module holds; say which by --authority-key, of a build that can load modules"
    )]
    HeldElsewhere,
    /// The operating system refused a read or a write.
    #[error("authority.pem cannot be read or written")]
    Io(#[source] std::io::Error),
    /// Keys or certificates could not be made or read.
    #[error("the authority's certificates are unusable")]
    Issue(#[from] IssueError),
    /// There is a store but no authority: making a new one would orphan every enrolled workload.
    #[error("authority.pem is missing although the store belongs to one; restore it from a backup")]
    Missing,
    /// The store was made with other keys.
    #[error("authority.pem and the store do not belong together; restore both from the same backup")]
    OtherStore,
    /// The directory belongs to another trust domain.
    #[error("the state directory belongs to trust domain {stored}, not {configured}")]
    OtherTrustDomain {
        /// The trust domain of the stored keys.
        stored: String,
        /// The trust domain of the configuration.
        configured: String,
    },
    /// There is no randomness for a key of our own.
    #[error("no key can be made")]
    Request(#[from] RequestError),
    /// A section key is unusable.
    #[error("a section key is unusable")]
    SectionKey(#[from] KeyError),
    /// The control plane's own certificate is unusable.
    #[error("the control plane's own certificate is unusable")]
    Svid(#[from] SvidError),
    /// TLS cannot be set up with it.
    #[error("TLS cannot be set up")]
    Tls(#[from] TlsError),
    /// A later version of this program wrote the file.
    #[error(
        "authority.pem is of version {0}, which only a later version of this program can read: upgrade it"
    )]
    Version(String),
}

#[cfg(test)]
mod tests;
