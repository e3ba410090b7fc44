//! From what is desired to what is pushed: compile, build, number, sign.
//!
//! One task watches the store. Whatever changed while it worked is taken up in its next round, so a burst of changes
//! costs a few rounds and everybody ends on the last state. A section gets a new version only when its content changed,
//! and the version is durable before anybody sees the section: versions never go back, whenever the process dies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message as _;
use signet_identity::BundleError;
use signet_policy::PolicyModel;
use signet_sync::proto::sync as wire;
use signet_sync::{
    Anchors, DecodeError, Directory, DirectoryKey, Entry, KeyError, MAX_SECTION_BYTES, POLICY_KEY_ID,
    Revocation, Revocations, SectionName, Subject, Version, area_key_id, minimum_reader,
};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, Interval};

use crate::appointments;
use crate::area::Delegated;
use crate::areas::{self, Areas};
use crate::authority::{Authority, AuthorityError};
use crate::clock::Clock;
use crate::directory::{self, Habits};
use crate::manifests::Manifests;
use crate::metrics::Metrics;
use crate::neighbours::{self, Joined, Neighbours, Offer};
use crate::records::{
    self, Appointment, Claim, Found, RESTORED, Restored, SealingKey, SectionVersion, VERSIONS, unix_seconds,
};
use crate::store::{Changes, Listing, Revision, Store, StoreError};

/// The name of the one area this control plane writes directories for.
pub(crate) const AREA: &str = "main";

/// Readers of protocol 1 understand everything but what a policy, or anchors after a rotation, may say.
const MINIMUM_READER: u32 = 1;

/// How long to wait after a failed round: the store may be out of space.
const RETRY: Duration = Duration::from_secs(1);

/// How long to wait when another control plane published first: what it saw is here in a moment.
const OVERTAKEN: Duration = Duration::from_millis(20);

/// How often the first round is made again for that reason.
const FIRST_ROUNDS_MAX: usize = 64;

/// What is in force, as of one round.
#[derive(Debug)]
pub(crate) struct Published {
    /// When the round began: whatever was in the store then is in it.
    at: Instant,
    /// The store's revision the round was made from.
    pub(crate) revision: Revision,
    /// What the manifests say.
    pub(crate) model: Arc<PolicyModel>,
    /// The same with the roles that workloads gave each other, and with what passes between trust domains: what is
    /// published.
    pub(crate) effective: Arc<PolicyModel>,
    /// Every section in its newest version.
    pub(crate) sections: BTreeMap<SectionName, Arc<wire::Section>>,
    /// The keys of all claims there are.
    claimed: BTreeSet<String>,
    /// Networks in which the operator advertises addresses: everybody may call those.
    advertised: BTreeSet<String>,
    pub(crate) manifests: Arc<Manifests>,
    /// Certificates and identities that are no longer believed.
    pub(crate) revocations: Arc<Revocations>,
    /// What the trust domains served beside this one showed.
    pub(crate) offers: Vec<Arc<Offer>>,
}

impl Published {
    /// Whether this is the newest there is, as far as anybody can know: a control plane that cannot read its store must not
    /// say that nothing has changed.
    pub(crate) fn is_current(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) <= CURRENT
    }

    /// Whether a place is claimed by somebody, as of the round.
    pub(crate) fn is_claimed(&self, network: &str, address: IpAddr, port: u16) -> bool {
        self.claimed.contains(&Claim::key(network, address, port))
    }

    /// The sections that a proxy of `network` gets: everything common, the directory of its own network, and those of
    /// networks with advertised addresses. They are looked up, not sifted: there is one directory for each network, and
    /// everybody asks in each round.
    pub(crate) fn concerning<'a>(&'a self, network: &'a str) -> impl Iterator<Item = SectionName> + 'a {
        let common = [SectionName::Anchors, SectionName::Policy, SectionName::Revocations];
        let others = self.advertised.iter().map(String::as_str).filter(move |of| *of != network);
        let directories = std::iter::once(network).chain(others);
        common.into_iter().chain(directories.map(|of| SectionName::Directory(of.to_owned())))
    }
}

/// Makes rounds. See the module page.
pub(crate) struct Compiler {
    store: Arc<dyn Store>,
    authority: Arc<Authority>,
    clock: Arc<Clock>,
    metrics: Arc<Metrics>,
    habits: Arc<ObservedHabits>,
    neighbours: Neighbours,
    published: watch::Sender<Arc<Published>>,
}

impl Compiler {
    /// Makes the first round; nothing is served before it.
    pub(crate) async fn start(
        store: Arc<dyn Store>,
        authority: Arc<Authority>,
        clock: Arc<Clock>,
        metrics: Arc<Metrics>,
        habits: Arc<ObservedHabits>,
        neighbours: Neighbours,
    ) -> Result<Self, PublishError> {
        let mut rounds = 0;
        let first = loop {
            match round(&*store, &authority, &habits.snapshot(), &neighbours, None, clock.best()).await {
                Ok(first) => break Arc::new(first),
                Err(PublishError::Overtaken) if rounds < FIRST_ROUNDS_MAX => rounds += 1,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(OVERTAKEN).await;
        };
        metrics.published(&first);
        let published = watch::Sender::new(first);
        Ok(Self { store, authority, clock, metrics, habits, neighbours, published })
    }

    /// What is in force, and how to learn of changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Published>> {
        self.published.subscribe()
    }

    /// Makes a round whenever something changed; never returns.
    pub(crate) async fn run(self) {
        let mut tick = tokio::time::interval(TICK);
        let mut pace = Pace::from(Instant::now(), 0, Duration::ZERO);
        loop {
            let last = self.published.borrow().clone();
            self.change(&last, &mut tick, &pace).await;
            let begun = Instant::now();
            let habits = self.habits.snapshot();
            let (store, now) = (&*self.store, self.clock.best());
            match round(store, &self.authority, &habits, &self.neighbours, Some(&last), now).await {
                Ok(published) => {
                    self.metrics.published(&published);
                    self.published.send_replace(Arc::new(published));
                }
                Err(PublishError::Overtaken) => tokio::time::sleep(OVERTAKEN).await,
                Err(error) => {
                    self.metrics.rounds_failed.inc();
                    tracing::error!(%error, "the last good state stays in force");
                    tokio::time::sleep(RETRY).await;
                }
            }
            let streams = usize::try_from(self.metrics.streams.get()).unwrap_or_default();
            pace = Pace::from(begun, streams, begun.elapsed());
        }
    }

    /// Waits until a round is due: at once when the operator changed something, not before `pace` says when only proxies or
    /// other trust domains did.
    async fn change(&self, last: &Published, tick: &mut Interval, pace: &Pace) {
        let mut seen = last.revision;
        let mut due: Option<Instant> = None;
        loop {
            let at = due.unwrap_or(pace.any);
            tokio::select! {
                changed = self.store.watch(records::DESIRED, seen) => match changed {
                    Ok(changes) if is_of_proxies(&changes) => {
                        seen = changes.revision;
                        due = Some(at.min(if has_keys(&changes) { pace.keys } else { pace.any }));
                    }
                    Ok(_) | Err(StoreError::Compacted) => return,
                    Err(error) => {
                        tracing::error!(%error, "the store cannot be watched");
                        return tokio::time::sleep(RETRY).await;
                    }
                },
                () = self.habits.changed.notified() => due = Some(at),
                () = changed(&self.authority) => return,
                () = self.neighbours.differ_from(&last.offers), if due.is_none() => due = Some(at),
                _ = tick.tick() => {
                    self.habits.forget_expired(self.clock.best());
                    due = Some(at);
                }
                () = tokio::time::sleep_until(at), if due.is_some() => return,
            }
        }
    }
}

/// Waits until what an area passes on has changed.
async fn changed(authority: &Authority) {
    match authority.area() {
        Some(area) => area.changed.notified().await,
        None => std::future::pending().await,
    }
}

/// Whether only claims, keys to what is sealed, appointments and directories of areas changed: the rest is the operator's.
fn is_of_proxies(changes: &Changes) -> bool {
    let written = changes.written.iter().map(|entry| &entry.key);
    let of_proxies =
        [records::APPOINTMENTS, records::AREA_DIRECTORIES, records::CLAIMS, records::SEALING_KEYS];
    written.chain(&changes.deleted).all(|key| of_proxies.iter().any(|prefix| key.starts_with(prefix)))
}

/// Whether a key to what is sealed is among them.
fn has_keys(changes: &Changes) -> bool {
    changes.written.iter().any(|entry| entry.key.starts_with(records::SEALING_KEYS))
}

/// The least time from one round to the next that proxies cause: whatever they do, everybody gets at most two directories
/// and two policies a second.
const PACE: Duration = Duration::from_millis(500);

/// The same for keys to what is sealed: until its new key is told, nothing private can be said to an instance that has
/// started. A proxy has one for each of its certificates.
const KEY_PACE: Duration = Duration::from_millis(20);

/// What is added to it for each open stream: a round may send something down all of them. So proxies cause at most 4,000 of these
/// a second, about a third of a processor's time, however many join at once.
const PACE_PER_STREAM: Duration = Duration::from_micros(250);

/// Nor is a round begun before so many times what the last one took: when all proxies come back at once they need the processor
/// more than rounds do.
const PACE_PER_ROUND: u32 = 5;

/// The longest of these times: as fast as ten thousand proxies hear of each other.
const PACE_MAX: Duration = Duration::from_secs(3);

/// Before which moments there is no round that only proxies cause.
#[derive(Debug, PartialEq)]
struct Pace {
    any: Instant,
    keys: Instant,
}

impl Pace {
    /// After a round that began then, took `last`, and was for so many streams.
    fn from(begun: Instant, streams: usize, last: Duration) -> Self {
        let streams = PACE_PER_STREAM.saturating_mul(u32::try_from(streams).unwrap_or(u32::MAX));
        let rest = streams.max(last.saturating_mul(PACE_PER_ROUND));
        Self { any: begun + rest.clamp(PACE, PACE_MAX), keys: begun + rest.clamp(KEY_PACE, PACE_MAX) }
    }
}

/// How often habits are looked at without any change: their time runs out by itself.
const TICK: Duration = Duration::from_secs(30);

/// How long a round stays the newest: there is one each [`TICK`], and one may fail or be slow.
const CURRENT: Duration = Duration::from_secs(2 * TICK.as_secs());

/// What is desired, as of one look at the store.
struct Desired {
    listing: Listing,
    manifests: Arc<Manifests>,
    model: Arc<PolicyModel>,
    effective: Arc<PolicyModel>,
    /// Appointments that are over.
    dead: Vec<Found<Appointment>>,
    revocations: Arc<Revocations>,
    directories: BTreeMap<String, Vec<Entry>>,
}

impl Desired {
    async fn read(
        store: &dyn Store,
        authority: &Authority,
        habits: &Habits,
        last: Option<&Published>,
        now: SystemTime,
    ) -> Result<Self, PublishError> {
        let listing = store.list(records::DESIRED).await?;
        if let Some(entry) = listing.entries.iter().find(|entry| entry.key == records::SLOTS) {
            let found = records::decode(entry)?;
            authority.adopt(found.revision, found.record)?;
        }
        authority.adopt_areas(Arc::new(Areas::of(&listing)?));
        let (manifests, model) = match last {
            Some(last) if last.manifests.revision() == Manifests::revision_in(&listing) => {
                (last.manifests.clone(), last.model.clone())
            }
            _ => {
                let none = Manifests::default();
                let known = last.map_or(&none, |last| &*last.manifests);
                let manifests = Manifests::from_listing(&listing, known)?;
                let model = compile(&manifests, authority)?;
                (Arc::new(manifests), model)
            }
        };
        let made = listing.entries.iter().filter(|entry| entry.key.starts_with(records::APPOINTMENTS));
        let made = made.map(records::decode).collect::<Result<_, _>>()?;
        let (effective, dead) = appointments::effective(&model, made, unix_seconds(now));
        let revocations = Arc::new(revocations(&listing)?);
        let directories = directories(&listing, &effective, habits, &revocations, now)?;
        Ok(Self { listing, manifests, model, effective, dead, revocations, directories })
    }

    /// What other trust domains may see of it.
    fn offer(&self, authority: &Authority) -> Result<Offer, AuthorityError> {
        Ok(Offer {
            model: self.model.clone(),
            bundle: authority.bundle()?,
            open: authority.open_bundle()?,
            directories: self.directories.clone(),
            revocations: self.revocations.clone(),
        })
    }
}

/// Shows the trust domains served beside this one what it lets them see, before anybody has published anything: else each
/// start would take from proxies what they had of each other, and give it back.
pub(crate) async fn show(
    store: &dyn Store,
    authority: &Authority,
    neighbours: &Neighbours,
    now: SystemTime,
) -> Result<(), PublishError> {
    let desired = Desired::read(store, authority, &Habits::new(), None, now).await?;
    neighbours.show(desired.offer(authority)?);
    Ok(())
}

async fn round(
    store: &dyn Store,
    authority: &Authority,
    habits: &Habits,
    neighbours: &Neighbours,
    last: Option<&Published>,
    now: SystemTime,
) -> Result<Published, PublishError> {
    let at = Instant::now();
    if let Some(area) = authority.area() {
        return areas_round(store, authority, area, habits, last, now, at).await;
    }
    let offers = neighbours.offers();
    let desired = Desired::read(store, authority, habits, last, now).await?;
    if !desired.model.federations.is_empty() || last.is_some_and(|last| !last.model.federations.is_empty()) {
        neighbours.show(desired.offer(authority)?);
    }
    let Desired { listing, manifests, model, mut effective, dead, revocations, mut directories } = desired;
    if last.is_none_or(|last| !Arc::ptr_eq(&last.model, &model)) {
        for absent in neighbours.absent(&model) {
            tracing::warn!(trust_domain = %absent, "a Federation names a trust domain that is not served here: nothing passes");
        }
    }
    appointments::bury(store, &dead).await?;
    let mut joined = Vec::new();
    if !model.federations.is_empty() && !offers.is_empty() {
        joined = neighbours::join(Arc::make_mut(&mut effective), &revocations, &offers);
        neighbours::add_places(&mut directories, &effective, &joined);
    }
    let areas = authority.areas();
    directories.retain(|network, _| !areas.owns(network));
    let anchors = anchors(authority, &joined)?;
    let believed = neighbours::revocations(&revocations, &joined);
    let payloads = payloads(&anchors, &effective, directories, &believed)?;
    let of = Round {
        made_from: listing.revision,
        readers: Readers { policy: minimum_reader(&effective), anchors: anchors.minimum_reader() },
        last,
        first: first(store).await?,
    };
    let mut sections = number_and_sign(store, authority, payloads, of).await?;
    for (name, section) in areas.directories(&listing)? {
        let known = last.and_then(|last| last.sections.get(&name)).filter(|known| ***known == section);
        sections.insert(name, known.cloned().unwrap_or_else(|| Arc::new(section)));
    }
    let advertised = model.workloads.iter().flat_map(|workload| &workload.advertise);
    let advertised = advertised.map(|place| place.network.clone());
    let advertised = advertised.chain(neighbours::advertised(&joined));
    let advertised = advertised.chain(areas.networks().cloned()).collect();
    let revision = listing.revision;
    let claimed = claimed(listing);
    Ok(Published {
        at,
        revision,
        model,
        effective,
        sections,
        claimed,
        advertised,
        manifests,
        revocations,
        offers,
    })
}

/// An area's round: its own directories, made by the policy that it passes on, and everything else as it was signed.
async fn areas_round(
    store: &dyn Store,
    authority: &Authority,
    area: &Delegated,
    habits: &Habits,
    last: Option<&Published>,
    now: SystemTime,
    at: Instant,
) -> Result<Published, PublishError> {
    let listing = store.list(records::DESIRED).await?;
    let relay = area.relay();
    let made = directories(&listing, &relay.model, habits, &relay.revocations, now)?;
    let mut payloads = BTreeMap::new();
    for (network, entries) in made.into_iter().filter(|(network, _)| area.owns(network)) {
        let directory = Directory::new(network.clone(), entries)?;
        payloads.insert(SectionName::Directory(network), wire::Directory::from(&directory).encode_to_vec());
    }
    let of = Round {
        made_from: listing.revision,
        readers: Readers { policy: MINIMUM_READER, anchors: MINIMUM_READER },
        last,
        // Above whatever the origin said of these networks, and what an area of this name said that lost its store.
        first: Version { epoch: 1, counter: areas::unix_ms(now) },
    };
    let own = number_and_sign(store, authority, payloads, of).await?;
    let mut sections = relay.sections.clone();
    sections.retain(|name, _| !matches!(name, SectionName::Directory(network) if area.owns(network)));
    sections.extend(own);
    let advertised = relay.model.workloads.iter().flat_map(|workload| &workload.advertise);
    let advertised = advertised.map(|place| place.network.clone());
    let of_areas = relay.anchors.directory_keys.values().flat_map(|key| key.networks.iter().cloned());
    Ok(Published {
        at,
        revision: listing.revision,
        model: relay.model.clone(),
        effective: relay.model.clone(),
        sections,
        claimed: claimed(listing),
        advertised: advertised.chain(of_areas).collect(),
        manifests: last.map_or_else(Arc::default, |last| last.manifests.clone()),
        revocations: relay.revocations.clone(),
        offers: Vec::new(),
    })
}

/// The keys of all claims in a listing.
fn claimed(listing: Listing) -> BTreeSet<String> {
    let keys = listing.entries.into_iter().map(|entry| entry.key);
    keys.filter(|key| key.starts_with(records::CLAIMS)).collect()
}

/// The first version of a section that was never published.
async fn first(store: &dyn Store) -> Result<Version, StoreError> {
    let restored: Option<Found<Restored>> = records::read(store, RESTORED).await?;
    Ok(restored.map_or(Version::FIRST, |restored| Version { epoch: restored.record.epoch, counter: 1 }))
}

fn compile(manifests: &Manifests, authority: &Authority) -> Result<Arc<PolicyModel>, PublishError> {
    let model = manifests.model(authority.trust_domain()).map_err(|diagnostics| {
        PublishError::Manifests(diagnostics.first().map_or_else(String::new, ToString::to_string))
    })?;
    Ok(Arc::new(model))
}

fn payloads(
    anchors: &Anchors,
    model: &PolicyModel,
    directories: BTreeMap<String, Vec<Entry>>,
    revocations: &Revocations,
) -> Result<BTreeMap<SectionName, Vec<u8>>, PublishError> {
    let mut payloads = BTreeMap::from([
        (SectionName::Anchors, wire::Anchors::from(anchors).encode_to_vec()),
        (SectionName::Policy, wire::Policy::from(model).encode_to_vec()),
        (SectionName::Revocations, wire::Revocations::from(revocations).encode_to_vec()),
    ]);
    for (network, entries) in directories {
        let directory = Directory::new(network.clone(), entries)?;
        payloads.insert(SectionName::Directory(network), wire::Directory::from(&directory).encode_to_vec());
    }
    Ok(payloads)
}

fn directories(
    listing: &Listing,
    model: &PolicyModel,
    habits: &Habits,
    revocations: &Revocations,
    now: SystemTime,
) -> Result<BTreeMap<String, Vec<Entry>>, PublishError> {
    let claims = under::<Claim>(listing, records::CLAIMS)?;
    let mut keys = under::<SealingKey>(listing, records::SEALING_KEYS)?;
    // A revocation takes its keys away; what was left behind before it did is not published either.
    keys.retain(|key| key.leaf.parse().is_ok_and(|leaf| revocations.of(&key.id, leaf).is_none()));
    Ok(directory::build(model, &claims, &keys, habits, unix_seconds(now)))
}

fn anchors(authority: &Authority, joined: &[Joined]) -> Result<Anchors, PublishError> {
    let within = authority.slots().rotation.as_ref().map_or(0, |rotation| rotation.renew_within);
    let directory_key = DirectoryKey { key: authority.directory_key().public_key(), networks: Vec::new() };
    let (in_force, believed) = neighbours::bundles(joined);
    Ok(Anchors {
        open: Arc::new(authority.open_bundle()?.with_federated(believed)?),
        issuer: authority.certifying()?,
        jwt_keys: authority.jwt_keys()?,
        renew_within: Duration::from_secs(within.into()),
        ..Anchors::new(
            Arc::new(authority.bundle()?.with_federated(in_force)?),
            authority.policy_key().public_key(),
            authority.areas().directory_keys().chain([(AREA.to_owned(), directory_key)]).collect(),
        )
    })
}

fn revocations(listing: &Listing) -> Result<Revocations, StoreError> {
    let mut revocations = Revocations::default();
    for record in under::<records::Revocation>(listing, records::REVOCATIONS)? {
        let subject = match record.subject {
            records::Subject::Certificate(fingerprint) => Subject::Certificate(fingerprint),
            records::Subject::Identity(id) => Subject::Identity(id),
        };
        revocations.insert(subject, Revocation { reason: record.reason, revoked_at: record.revoked_at });
    }
    Ok(revocations)
}

fn under<T: serde::de::DeserializeOwned>(listing: &Listing, prefix: &str) -> Result<Vec<T>, StoreError> {
    listing
        .entries
        .iter()
        .filter(|entry| entry.key.starts_with(prefix))
        .map(|entry| Ok(records::decode::<T>(entry)?.record))
        .collect()
}

/// The protocol numbers that readers of these sections must speak.
struct Readers {
    anchors: u32,
    policy: u32,
}

/// What a round is made of besides its payloads.
struct Round<'a> {
    made_from: Revision,
    readers: Readers,
    last: Option<&'a Published>,
    /// Of what was never published.
    first: Version,
}

/// Gives each payload its version and signature. Where several control planes serve from one store, whoever records a version
/// first has it; all others either have the same payload or make their next round from what they have not seen yet. So a
/// version is one content, and content never goes back.
async fn number_and_sign(
    store: &dyn Store,
    authority: &Authority,
    mut payloads: BTreeMap<SectionName, Vec<u8>>,
    Round { made_from, readers, last, first }: Round<'_>,
) -> Result<BTreeMap<SectionName, Arc<wire::Section>>, PublishError> {
    let mut versions = BTreeMap::new();
    for entry in store.list(VERSIONS).await?.entries {
        let found: Found<SectionVersion> = records::decode(&entry)?;
        if let Some(name) = entry.key.strip_prefix(VERSIONS).and_then(SectionName::parse) {
            // A network that left the mesh: its directory is emptied, for it cannot be taken back.
            if let SectionName::Directory(network) = &name
                && authority.writes(network)
            {
                payloads.entry(name.clone()).or_insert_with(|| {
                    wire::Directory { network: network.clone(), entries: Vec::new() }.encode_to_vec()
                });
            }
            versions.insert(name, found);
        }
    }
    let mut writes = Vec::new();
    let mut sections = BTreeMap::new();
    for (name, payload) in payloads {
        let known = last.and_then(|last| last.sections.get(&name));
        if payload.len() > MAX_SECTION_BYTES {
            // One crowded network must hold up neither the policy nor the revocations of all.
            tracing::error!(section = %name, bytes = payload.len(), "too large to be sent; its last state stays");
            sections.extend(known.map(|section| (name, section.clone())));
            continue;
        }
        let found = versions.get(&name);
        let (epoch, proof) = epoch(authority, &name, first.epoch);
        let first = Version { epoch, ..first };
        let (version, changed) = next_version(found, &payload, first, made_from);
        if let Some(record) = changed {
            if found.is_some_and(|found| found.record.made_from > made_from.0) {
                return Err(PublishError::Overtaken);
            }
            writes.push(records::put(format!("{VERSIONS}{name}"), records::unchanged(found), &record)?);
        }
        let section = match known {
            Some(section) if Version::from(&**section) == version => section.clone(),
            _ => {
                let reader = match name {
                    SectionName::Anchors => readers.anchors,
                    SectionName::Policy => readers.policy,
                    _ => MINIMUM_READER,
                };
                Arc::new(sign(authority, &name, version, reader, payload, proof)?)
            }
        };
        sections.insert(name, section);
    }
    if !writes.is_empty() {
        match store.commit(writes).await {
            Err(StoreError::Conflict { .. }) => return Err(PublishError::Overtaken),
            committed => committed?,
        };
    }
    Ok(sections)
}

fn next_version(
    found: Option<&Found<SectionVersion>>,
    payload: &[u8],
    first: Version,
    made_from: Revision,
) -> (Version, Option<SectionVersion>) {
    let payload_sha256 = URL_SAFE_NO_PAD.encode(digest(&SHA256, payload));
    let version = match found {
        None => first,
        Some(found) => {
            let version = Version { epoch: found.record.epoch, counter: found.record.counter };
            if found.record.payload_sha256 == payload_sha256 {
                return (version, None);
            }
            version.next()
        }
    };
    let Version { epoch, counter } = version;
    let record = SectionVersion { epoch, counter, payload_sha256, made_from: made_from.0 };
    (version, Some(record))
}

/// The epoch to begin a section in; of an area's directory with the proof, which is the origin's.
fn epoch(authority: &Authority, name: &SectionName, own: u64) -> (u64, Option<Vec<u8>>) {
    match (authority.area(), name) {
        (Some(area), SectionName::Directory(network)) => {
            let (epoch, proof) = area.epoch(network);
            (epoch, Some(proof))
        }
        _ => (own, None),
    }
}

fn sign(
    authority: &Authority,
    name: &SectionName,
    version: Version,
    reader: u32,
    payload: Vec<u8>,
    proof: Option<Vec<u8>>,
) -> Result<wire::Section, KeyError> {
    let area = authority.area().map_or(AREA, |area| area.name());
    let (key, key_id) = match name {
        SectionName::Directory(_) => (authority.directory_key(), area_key_id(area)),
        _ => (authority.policy_key(), POLICY_KEY_ID.to_owned()),
    };
    let proof = match proof {
        Some(proof) => proof,
        None if version.epoch > 1 => authority.policy_key().prove_epoch(name, version.epoch)?,
        None => Vec::new(),
    };
    key.sign(&key_id, name, version, reader, payload, proof)
}

/// What proxies observed on their own ports. In memory only: it is learned anew in minutes.
#[derive(Default)]
pub(crate) struct ObservedHabits {
    habits: Mutex<Habits>,
    changed: Notify,
}

/// How long an observation is relied on.
const HABIT_TTL: Duration = Duration::from_secs(10 * 60);

/// Observations kept for the whole mesh; beyond it new ones are not taken, and a port is probed instead.
const HABITS_MAX: usize = 100_000;

impl ObservedHabits {
    /// Whether an observation changes what proxies are told. One that only repeats the last does when half of that one's
    /// time is over.
    pub(crate) fn is_news(
        &self,
        id: &signet_identity::SpiffeId,
        port: u16,
        habit: directory::Habit,
        now: SystemTime,
    ) -> bool {
        let habits = self.habits.lock().unwrap_or_else(PoisonError::into_inner);
        habits.get(&(id.clone(), port)).is_none_or(|known| {
            (known.protocol, known.speaks_first) != (habit.protocol, habit.speaks_first)
                || known.expires <= unix_seconds(now + HABIT_TTL / 2)
        })
    }

    /// Takes an observation.
    pub(crate) fn observe(
        &self,
        id: &signet_identity::SpiffeId,
        port: u16,
        habit: directory::Habit,
        now: SystemTime,
    ) {
        let fresh = directory::Habit { expires: unix_seconds(now + HABIT_TTL), ..habit };
        let mut habits = self.habits.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (id.clone(), port);
        if habits.len() < HABITS_MAX || habits.contains_key(&place) {
            habits.insert(place, fresh);
            self.changed.notify_one();
        }
    }

    fn snapshot(&self) -> Habits {
        self.habits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn forget_expired(&self, now: SystemTime) {
        let now = unix_seconds(now);
        self.habits.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, habit| habit.expires > now);
    }
}

/// Why a round failed. The last good state stays in force.
#[derive(Debug, Error)]
pub enum PublishError {
    /// The stored slots name keys that are not here.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The roots of federated trust domains do not stand beside each other.
    #[error("the roots of federated trust domains do not make a trust bundle: {0}")]
    Bundle(#[from] BundleError),
    /// The directory is not one a proxy would take.
    #[error("a directory cannot be built")]
    Directory(#[from] DecodeError),
    /// A section cannot be signed.
    #[error("a section cannot be signed")]
    Key(#[from] KeyError),
    /// Another control plane has published a later state.
    #[error("another control plane has published a later state")]
    Overtaken,
    /// Stored manifests do not compile; they were checked when they were stored.
    #[error("the stored manifests do not compile: {0}")]
    Manifests(String),
    /// The store cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests;
