//! This control plane as an area under a parent: what it may do, what it passes on, and the stream to its parent.
//!
//! ```text
//!  parent ══ sections, word on what is newest ══► uplink ──► Relay ──► publish ──► own proxies
//!         ◄═ own directories, whom it certified ═            (as signed)   + directories of its own networks
//! ```
//!
//! - An area certifies by an issuer that the root certified over its grant; its control plane's end is certified by the root.
//! - It passes sections on as they were signed: it has no key that anybody believes for anything but its networks' directories.
//! - Cut off, it goes on from what it holds, over restarts, until its issuer ends.

pub(crate) mod chains;
mod uplink;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use signet_identity::{
    AreaGrant, BundleError, IssueError, KeyRequest, PrivateKey, RequestError, SpiffeId, SvidError, TlsSvid,
    TrustBundle, TrustDomain, spki_sha256,
};
use signet_policy::PolicyModel;
use signet_sync::proto::sync as wire;
use signet_sync::{Anchors, KeyError, Revocations, SAID_NOW_MS, SectionKey, SectionName, Subscriber};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use zeroize::{Zeroize, Zeroizing};

pub(crate) use self::uplink::follow;
use crate::authority::AuthorityError;
use crate::files;
use crate::records::unix_seconds;
use crate::store::StoreError;

/// The area's keys and certificates.
pub(crate) const FILE: &str = "area.json";

/// Three keys, three certificates, some networks.
const FILE_MAX: u64 = 256 * 1024;

/// The sections that are passed on, as they were signed, one after the other.
const SECTIONS: &str = "relayed";

/// As many as a proxy follows, of the largest size.
const SECTIONS_BYTES_MAX: u64 = (signet_sync::MAX_SECTIONS * signet_sync::MAX_MESSAGE_BYTES) as u64;

/// The origin's last word, as it was signed: who enrols while the area is cut off is told what is the newest it knows of.
const HEARD: &str = "heard";

/// Six numbers and a signature.
const HEARD_BYTES_MAX: u64 = 1024;

const VERSION: u32 = 1;

/// Where the parent is and what this area is called there.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The area's name.
    pub name: String,
    /// HOST:PORT of the parent's control port.
    pub parent: String,
    /// The file with the token that it joins with, needed until it has.
    pub token_file: Option<PathBuf>,
}

/// What the area has: replaced as a whole with each delegation.
pub(crate) struct Held {
    issuer_key: PrivateKey,
    /// The request over it, which stays the same as the key does.
    issuer_csr: Vec<u8>,
    end: TlsSvid,
    issuer: CertificateDer<'static>,
    root: CertificateDer<'static>,
    /// By name: the epoch its directory is in, and the proof.
    networks: BTreeMap<String, (u64, Vec<u8>)>,
    /// Unix seconds: when the delegation was given.
    obtained: u64,
    /// Seconds.
    budget_s: u64,
}

/// What is passed on.
pub(crate) struct Relay {
    pub(crate) sections: BTreeMap<SectionName, Arc<wire::Section>>,
    pub(crate) model: Arc<PolicyModel>,
    pub(crate) anchors: Arc<Anchors>,
    pub(crate) revocations: Arc<Revocations>,
}

/// The origin's last word on what is the newest.
#[derive(Clone)]
pub(crate) struct Heard {
    said: wire::Freshness,
    /// When it came, or when this process read it.
    at: Instant,
    /// How old it was then, in milliseconds.
    before_ms: u64,
}

/// None before the first.
pub(crate) type Word = Option<Heard>;

impl Heard {
    fn now(said: wire::Freshness) -> Self {
        Self { said, at: Instant::now(), before_ms: 0 }
    }

    /// As it is passed on, with how long it was kept.
    pub(crate) fn passed_on(&self) -> wire::Freshness {
        let since = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        wire::Freshness { kept_ms: self.before_ms.saturating_add(since), ..self.said.clone() }
    }
}

/// An area's standing.
pub(crate) struct Delegated {
    name: String,
    directory: PathBuf,
    parent: String,
    trust_domain: TrustDomain,
    id: SpiffeId,
    policy_key: [u8; 32],
    section_key: Arc<SectionKey>,
    held: RwLock<Arc<Held>>,
    relay: RwLock<Arc<Relay>>,
    /// Notified when what is passed on has changed.
    pub(crate) changed: Notify,
    words: watch::Sender<Word>,
}

/// Why there is no area.
#[derive(Debug, Error)]
pub enum AreaStartError {
    /// The authority cannot be set up.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The parent's root is none.
    #[error("the parent's root does not make a trust bundle")]
    Bundle(#[from] BundleError),
    /// What is stored is not what was written.
    #[error("{} is damaged; make the area anew with a new token", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// What the parent gave does not hold.
    #[error("what the parent gave cannot be used: {0}")]
    Delegation(&'static str),
    /// The issuer does not belong to the key.
    #[error("the area's issuer is unusable")]
    Issue(#[from] IssueError),
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// No key can be made.
    #[error("no key can be made")]
    Key(#[from] RequestError),
    /// The state directory is another area's, or of another trust domain.
    #[error("the state directory is area {stored}'s, not {configured}'s")]
    OtherArea {
        /// Area and trust domain of what is stored.
        stored: String,
        /// And of the configuration.
        configured: String,
    },
    /// A section key cannot be used.
    #[error("the area's section key is unusable")]
    SectionKey(#[from] KeyError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificate of the end is unusable.
    #[error("the certificate of the area's end is unusable")]
    Svid(#[from] SvidError),
    /// There is nothing to join with.
    #[error(
        "an area that has not joined yet needs a token: --token-file, from signet area add at its parent"
    )]
    Token,
    /// The parent could not be asked.
    #[error("the parent at {parent} cannot be asked: {why}")]
    Parent {
        /// Where.
        parent: String,
        /// Why.
        why: String,
    },
}

/// As it is written.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    area: String,
    trust_domain: String,
    issuer_key: String,
    section_key: String,
    end_key: String,
    issuer_csr: String,
    issuer: String,
    end: String,
    root: String,
    policy_key: String,
    networks: Vec<SavedNetwork>,
    obtained: u64,
    budget_s: u64,
}

impl Drop for Saved {
    fn drop(&mut self) {
        for key in [&mut self.issuer_key, &mut self.section_key, &mut self.end_key] {
            key.zeroize();
        }
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SavedNetwork {
    name: String,
    epoch: u64,
    proof: String,
}

impl Held {
    /// Takes up an answer of the parent, if it is about the keys that were asked for.
    fn of(
        said: wire::Delegation,
        (issuer_key, issuer_csr): (PrivateKey, Vec<u8>),
        end_key: PrivateKey,
        now: SystemTime,
    ) -> Result<Self, AreaStartError> {
        let networks =
            said.networks.into_iter().map(|network| (network.name, (network.epoch, network.epoch_proof)));
        let held = Self {
            issuer_key,
            issuer_csr,
            end: TlsSvid::new(vec![said.end.into()], end_key)?,
            issuer: said.issuer.into(),
            root: said.root.into(),
            networks: networks.collect(),
            obtained: unix_seconds(now),
            budget_s: said.budget_s,
        };
        if held.networks.is_empty() {
            return Err(AreaStartError::Delegation("it names no network"));
        }
        held.pair().map(|_| held)
    }

    /// The issuer with its key.
    pub(crate) fn pair(&self) -> Result<signet_identity::Authority, AreaStartError> {
        Ok(signet_identity::Authority::delegated(self.root.clone(), self.issuer.clone(), &self.issuer_key)?)
    }

    /// The certificate of this control plane's end, with its key.
    pub(crate) fn end(&self) -> &TlsSvid {
        &self.end
    }

    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }
}

impl Delegated {
    /// What is kept in the state directory, or what a new token gives.
    pub(crate) async fn open(
        directory: &Path,
        settings: &Settings,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<(Arc<Self>, Subscriber), AreaStartError> {
        let path = directory.join(FILE);
        let (held, section_key, policy_key) = match files::read(&path, FILE_MAX) {
            Ok(text) => load(&Zeroizing::new(text), &path, settings, trust_domain)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let joined = uplink::join(settings, now).await?;
                save(&path, settings, trust_domain, &joined.0, &joined.1, joined.2)?;
                joined
            }
            Err(error) => return Err(AreaStartError::Io { path, error }),
        };
        let mut subscriber = Subscriber::new(trust_domain.clone(), policy_key);
        for section in read_sections(directory)? {
            if let Err(error) = subscriber.apply(section) {
                tracing::warn!(code = error.code(), %error, "a saved section was refused");
            }
        }
        if relay(&subscriber).is_none() {
            uplink::fetch(settings, trust_domain, &held, &mut subscriber).await?;
            write_sections(directory, &subscriber)?;
        }
        let relay = relay(&subscriber).ok_or(AreaStartError::Delegation("no policy came with it"))?;
        let id = SpiffeId::control_plane(trust_domain, &settings.name)
            .map_err(|_| AreaStartError::Delegation("the area's name is malformed"))?;
        let delegated = Self {
            name: settings.name.clone(),
            directory: directory.to_owned(),
            parent: settings.parent.clone(),
            trust_domain: trust_domain.clone(),
            id,
            policy_key,
            section_key: Arc::new(section_key),
            held: RwLock::new(Arc::new(held)),
            relay: RwLock::new(Arc::new(relay)),
            changed: Notify::new(),
            words: watch::Sender::new(read_heard(directory, &subscriber, now)),
        };
        Ok((Arc::new(delegated), subscriber))
    }

    /// The area's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The identity of its control plane.
    pub(crate) fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The origin's key, which signs all but directories.
    pub(crate) fn policy_key(&self) -> [u8; 32] {
        self.policy_key
    }

    /// The area's own key, which signs its directories.
    pub(crate) fn section_key(&self) -> Arc<SectionKey> {
        self.section_key.clone()
    }

    pub(crate) fn held(&self) -> Arc<Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is passed on now.
    pub(crate) fn relay(&self) -> Arc<Relay> {
        self.relay.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The origin's words, as they come.
    pub(crate) fn words(&self) -> watch::Receiver<Word> {
        self.words.subscribe()
    }

    /// What time the origin said it was when it last spoke; 0 for never.
    pub(crate) fn heard_ms(&self) -> u64 {
        self.words.borrow().as_ref().map_or(0, |heard| heard.said.unix_ms)
    }

    /// Whether the area writes the directory of this network.
    pub(crate) fn owns(&self, network: &str) -> bool {
        self.held().networks.contains_key(network)
    }

    /// Its networks.
    pub(crate) fn networks(&self) -> BTreeSet<String> {
        self.held().networks.keys().cloned().collect()
    }

    /// The epoch that a network's directory is in, and the proof of it.
    pub(crate) fn epoch(&self, network: &str) -> (u64, Vec<u8>) {
        self.held().networks.get(network).cloned().unwrap_or((1, Vec::new()))
    }

    /// What the area may certify.
    pub(crate) fn grant(&self) -> Option<AreaGrant> {
        self.held().pair().ok()?.grant().cloned()
    }

    /// Where it is, for people.
    pub(crate) fn parent(&self) -> &str {
        &self.parent
    }

    /// Whether half of the delegation's time is over.
    fn is_due(&self, now: SystemTime) -> bool {
        let held = self.held();
        unix_seconds(now) >= held.obtained.saturating_add(held.budget_s / 2)
    }

    fn pass_on(&self, relay: Relay) {
        *self.relay.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(relay);
        self.changed.notify_one();
    }

    fn take(&self, held: Held) -> Result<(), AreaStartError> {
        let settings = Settings { name: self.name.clone(), parent: self.parent.clone(), token_file: None };
        let path = self.directory.join(FILE);
        save(&path, &settings, &self.trust_domain, &held, &self.section_key, self.policy_key)?;
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(held);
        self.changed.notify_one();
        Ok(())
    }
}

impl std::fmt::Debug for Delegated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delegated").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a subscriber holds, once it has all that a proxy needs.
fn relay(subscriber: &Subscriber) -> Option<Relay> {
    subscriber.versions().find(|(name, _)| **name == SectionName::Revocations)?;
    Some(Relay {
        sections: subscriber.sections().map(|(name, section)| (name.clone(), Arc::clone(section))).collect(),
        model: Arc::clone(&subscriber.policy()?.model),
        anchors: Arc::clone(subscriber.anchors()?),
        revocations: Arc::clone(subscriber.revocations()),
    })
}

/// Keys for an area to be: those of the issuer, with the request over it, and of the sections.
fn new_keys() -> Result<(KeyRequest, SectionKey), AreaStartError> {
    Ok((KeyRequest::new_tls()?, SectionKey::generate()?))
}

fn save(
    path: &Path,
    settings: &Settings,
    trust_domain: &TrustDomain,
    held: &Held,
    section_key: &SectionKey,
    policy_key: [u8; 32],
) -> Result<(), AreaStartError> {
    // `Saved` overwrites them when it is dropped.
    let secret = |bytes: &[u8]| STANDARD.encode(bytes);
    let end =
        held.end.chain.first().ok_or(AreaStartError::Delegation("there is no certificate of its end"))?;
    let end_key =
        held.end.key.in_memory().ok_or(AreaStartError::Delegation("the key of its end is not here"))?;
    let saved = Saved {
        version: VERSION,
        area: settings.name.clone(),
        trust_domain: trust_domain.to_string(),
        issuer_key: secret(held.issuer_key.secret_der()),
        section_key: secret(&section_key.to_pkcs8()?),
        end_key: secret(end_key.secret_der()),
        issuer_csr: STANDARD.encode(&held.issuer_csr),
        issuer: STANDARD.encode(&held.issuer),
        end: STANDARD.encode(end),
        root: STANDARD.encode(&held.root),
        policy_key: STANDARD.encode(policy_key),
        networks: held
            .networks
            .iter()
            .map(|(name, (epoch, proof))| SavedNetwork {
                name: name.clone(),
                epoch: *epoch,
                proof: STANDARD.encode(proof),
            })
            .collect(),
        obtained: held.obtained,
        budget_s: held.budget_s,
    };
    let text = serde_json::to_vec(&saved).map(Zeroizing::new).map_err(io::Error::other);
    text.and_then(|text| files::replace(path, &text))
        .map_err(|error| AreaStartError::Io { path: path.to_owned(), error })
}

fn load(
    text: &str,
    path: &Path,
    settings: &Settings,
    trust_domain: &TrustDomain,
) -> Result<(Held, SectionKey, [u8; 32]), AreaStartError> {
    let damaged = || AreaStartError::Damaged { path: path.to_owned() };
    let saved: Saved = serde_json::from_str(text).map_err(|_| damaged())?;
    if saved.version != VERSION {
        return Err(damaged());
    }
    let (stored, configured) =
        ([&saved.area, &saved.trust_domain], [&settings.name, &trust_domain.to_string()]);
    if stored != configured {
        let shown = |[area, domain]: [&String; 2]| format!("{area} of {domain}");
        return Err(AreaStartError::OtherArea { stored: shown(stored), configured: shown(configured) });
    }
    let bytes = |text: &str| STANDARD.decode(text).map_err(|_| damaged());
    let key = |text: &str| Ok::<_, AreaStartError>(PrivateKey::from(PrivatePkcs8KeyDer::from(bytes(text)?)));
    let networks = saved.networks.iter().map(|network| {
        Ok::<_, AreaStartError>((network.name.clone(), (network.epoch, bytes(&network.proof)?)))
    });
    let held = Held {
        issuer_key: key(&saved.issuer_key)?,
        issuer_csr: bytes(&saved.issuer_csr)?,
        end: TlsSvid::new(vec![bytes(&saved.end)?.into()], key(&saved.end_key)?)?,
        issuer: bytes(&saved.issuer)?.into(),
        root: bytes(&saved.root)?.into(),
        networks: networks.collect::<Result<_, _>>()?,
        obtained: saved.obtained,
        budget_s: saved.budget_s,
    };
    held.pair()?;
    let section_key = SectionKey::from_pkcs8(&Zeroizing::new(bytes(&saved.section_key)?))?;
    let policy_key = bytes(&saved.policy_key)?.try_into().map_err(|_| damaged())?;
    Ok((held, section_key, policy_key))
}

fn read_sections(directory: &Path) -> Result<Vec<wire::Section>, AreaStartError> {
    let path = directory.join(SECTIONS);
    let failed = |error| AreaStartError::Io { path: path.clone(), error };
    let bytes = match std::fs::metadata(&path) {
        Ok(found) if found.len() > SECTIONS_BYTES_MAX => return Err(AreaStartError::Damaged { path }),
        Ok(_) => std::fs::read(&path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let (mut rest, mut sections) = (&*bytes, Vec::new());
    // What cannot be read is asked for again: each is signed, so nothing else is taken for one.
    while !rest.is_empty()
        && sections.len() < signet_sync::MAX_SECTIONS
        && let Ok(section) = wire::Section::decode_length_delimited(&mut rest)
    {
        sections.push(section);
    }
    Ok(sections)
}

/// What was heard before this process started. It is verified like what comes from the parent, and counts as kept.
fn read_heard(directory: &Path, subscriber: &Subscriber, now: SystemTime) -> Word {
    let path = directory.join(HEARD);
    if std::fs::metadata(&path).ok()?.len() > HEARD_BYTES_MAX {
        return None;
    }
    let said = wire::Freshness::decode(&*std::fs::read(&path).ok()?).ok()?;
    subscriber.is_newest(&said).ok()?;
    let age_ms = crate::areas::unix_ms(now).saturating_sub(said.unix_ms);
    Some(Heard { said, at: Instant::now(), before_ms: age_ms.max(SAID_NOW_MS + 1) })
}

fn write_heard(directory: &Path, heard: &Heard) -> Result<(), AreaStartError> {
    let path = directory.join(HEARD);
    files::replace(&path, &heard.said.encode_to_vec()).map_err(|error| AreaStartError::Io { path, error })
}

fn write_sections(directory: &Path, subscriber: &Subscriber) -> Result<(), AreaStartError> {
    let path = directory.join(SECTIONS);
    let sections = subscriber.sections().map(|(_, section)| section.encode_length_delimited_to_vec());
    let bytes: Vec<u8> = sections.flatten().collect();
    files::replace(&path, &bytes).map_err(|error| AreaStartError::Io { path, error })
}

/// The bundle that the parent is judged by.
fn parents(
    trust_domain: &TrustDomain,
    held: &Held,
    anchors: Option<&Arc<Anchors>>,
) -> Result<TrustBundle, BundleError> {
    match anchors {
        Some(anchors) => Ok(anchors.open.alone()),
        None => TrustBundle::new(trust_domain.clone(), vec![held.root.clone()]),
    }
}

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// What the parent's root must be, for its answer to be believed.
fn is_pinned(said: &wire::Delegation, pin: [u8; 32]) -> bool {
    spki_sha256(&said.root) == Ok(pin)
}
