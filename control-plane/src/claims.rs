//! Claims on directory places: accepted, held while a stream of the claimant's is open, kept after it ended.
//!
//! A live claim needs no writes: its record carries no expiry. When the last stream that holds it ends the record gets
//! one, and when the control plane itself restarts all of them do, so that a proxy that comes back in time keeps its
//! place.
//!
//! A lease that ended frees the place for another claimant, but does not empty it: a destination that was meshed never
//! looks unmeshed because its proxy is away, or callers could be made to fall back to plaintext by cutting it off. A place
//! leaves the directory when its holder gives it up, or when its workload leaves the mesh.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use signet_identity::SpiffeId;
use signet_policy::PolicyModel;
use thiserror::Error;
use tokio::sync::{Mutex, MutexGuard};

use crate::directory::{self, ClaimRefusal, Claimant};
use crate::records::{self, Claim, Found, Registration, SealingKey, Subject, unix_seconds};
use crate::store::{Expect, Store, StoreError, Write};
use crate::vouched;

/// How long nobody else can take a place after the last stream that held it ended: a restart, a partition, an upgrade.
pub(crate) const LEASE: Duration = Duration::from_secs(10 * 60);

/// Places of one identity whose lease ended and that are still told as meshed: years of restarts on new addresses. Of
/// more the oldest go, and of them first those claimed through a gateway: somebody who holds the identity's key can make
/// up any number of these.
const STALE_MAX: usize = 1_024;

/// How often a write is tried again when others write the same records: all instances of a service that enrol at once write
/// one registration, and every try that fails means that one of theirs succeeded.
const ATTEMPTS_MAX: usize = 256;

/// Identities whose claims are written at a time; those that share a turn wait for each other.
const TURNS: usize = 256;

/// Names one control stream.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct StreamId(pub(crate) u64);

/// What became of one claim.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) outcome: Result<(), ClaimRefusal>,
}

/// All claims of the mesh.
pub(crate) struct Claims {
    store: Arc<dyn Store>,
    /// Id of this control plane among those of the store; empty where it is the only one.
    replica: String,
    /// One of these is held over the commit of an identity's claims: the end of an old stream must not start a lease that a
    /// new one just ended. Claims of others are written meanwhile, and so together.
    turns: Vec<Mutex<()>>,
    held: std::sync::Mutex<Held>,
}

/// Which streams hold which claims, by their store keys; the two always say the same.
#[derive(Default)]
struct Held {
    by_key: HashMap<String, Holders>,
    by_stream: HashMap<StreamId, BTreeSet<String>>,
}

/// The streams of one identity that hold a place; never empty.
struct Holders {
    id: SpiffeId,
    streams: BTreeSet<StreamId>,
}

/// What became of a stream's claims.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    pub(crate) verdicts: Vec<Verdict>,
    /// Streams that lost a place by it and do not know yet.
    pub(crate) displaced: BTreeSet<StreamId>,
}

impl Claims {
    pub(crate) fn new(store: Arc<dyn Store>, replica: String) -> Self {
        let turns = std::iter::repeat_with(Mutex::default).take(TURNS).collect();
        Self { store, replica, turns, held: std::sync::Mutex::default() }
    }

    /// Waits until no other claims of this identity are being written.
    async fn turn(&self, id: &SpiffeId) -> Option<MutexGuard<'_, ()>> {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % TURNS as u64).unwrap_or_default();
        match self.turns.get(at) {
            Some(turn) => Some(turn.lock().await),
            None => None,
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives every claim that was live when a control plane stopped a lease: all but those of the ones that still serve.
    pub(crate) async fn adopt(&self, serving: &BTreeSet<String>, now: SystemTime) -> Result<(), StoreError> {
        for _ in 0..ATTEMPTS_MAX {
            let mut writes = Vec::new();
            for found in records::list::<Claim>(&*self.store, records::CLAIMS).await? {
                if found.record.expires.is_none() && !serving.contains(&found.record.replica) {
                    writes.push(lease(&found, now)?);
                }
            }
            match self.commit_all(writes).await {
                // Another control plane does the same, or its proxies come back.
                Err(StoreError::Conflict { .. }) => {}
                adopted => return adopted,
            }
        }
        Err(StoreError::Conflict { key: records::CLAIMS.to_owned() })
    }

    /// Claims `places` for a stream, and gives up whatever else it held.
    pub(crate) async fn claim(
        &self,
        stream: StreamId,
        claimant: Claimant<'_>,
        places: &BTreeSet<(IpAddr, u16)>,
        model: &PolicyModel,
        now: SystemTime,
    ) -> Result<Judgement, StoreError> {
        let _turn = self.turn(claimant.id).await;
        for _ in 0..ATTEMPTS_MAX {
            let (verdicts, mut writes) = self.decide(claimant, places, model, now).await?;
            let held: BTreeSet<String> = verdicts
                .iter()
                .filter(|verdict| verdict.outcome.is_ok())
                .map(|verdict| Claim::key(claimant.network, verdict.address, verdict.port))
                .collect();
            let given_up: Vec<(String, bool)> = {
                let holders = self.held();
                let given_up = holders.of(stream).filter(|key| !held.contains(*key));
                given_up.map(|key| (key.clone(), holders.is_alone(key))).collect()
            };
            for (key, is_alone) in &given_up {
                // What another stream of the identity holds too stays its own, here or at another control plane.
                if *is_alone && let Some(found) = self.own(key, claimant.id).await? {
                    writes.push(Write::delete(key, Expect::At(found.revision)));
                }
            }
            match self.commit_all(writes).await {
                Ok(()) => {}
                Err(StoreError::Conflict { .. }) => continue,
                Err(error) => return Err(error),
            }
            let mut holders = self.held();
            for (key, _) in &given_up {
                holders.leave(key, stream);
            }
            let displaced = holders.hold(held, claimant.id, stream);
            return Ok(Judgement { verdicts, displaced });
        }
        Err(StoreError::Conflict { key: records::CLAIMS.to_owned() })
    }

    /// Publishes an instance's key to what is sealed for it, in the place of its former one. A certificate comes with
    /// one key, so that keys change no faster than certificates are issued, and a newer certificate's key is never
    /// replaced by that of an older one.
    ///
    /// The instance's registration is written with the key, as it is: a revocation that comes in between finds the key
    /// and takes it away, or is found here.
    pub(crate) async fn announce(&self, instance: &str, key: &SealingKey) -> Result<(), AnnounceError> {
        if !is_usable(&key.key) {
            return Err(AnnounceError::Unusable);
        }
        let place = SealingKey::key(&key.id, instance);
        let registered = records::registration_key(&key.id);
        for _ in 0..ATTEMPTS_MAX {
            let registration = records::read::<Registration>(&*self.store, &registered).await?;
            let found = records::read::<SealingKey>(&*self.store, &place).await?;
            let identity = Subject::Identity(key.id.clone()).key();
            if self.store.read(&identity).await?.is_some() {
                return Err(AnnounceError::Gone);
            }
            let Some(registration) = registration else { return Err(AnnounceError::Gone) };
            let age = |leaf: &str| age(&registration.record, instance, leaf);
            let Some(own_age) = age(&key.leaf) else { return Err(AnnounceError::Gone) };
            if let Some(Found { record, .. }) = &found {
                if record.leaf == key.leaf {
                    return if record == key { Ok(()) } else { Err(AnnounceError::Another) };
                }
                if age(&record.leaf).is_some_and(|age| age > own_age) {
                    return Err(AnnounceError::Older);
                }
            }
            let writes = vec![
                records::put(place.clone(), records::unchanged(found.as_ref()), key)?,
                records::put(registered.clone(), Expect::At(registration.revision), &registration.record)?,
            ];
            match self.store.commit(writes).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Conflict { key: place }.into())
    }

    /// The stream ended: what it alone still holds is kept for a lease.
    pub(crate) async fn release(&self, stream: StreamId, now: SystemTime) -> Result<(), StoreError> {
        let Some(id) = self.held().identity_of(stream) else { return Ok(()) };
        let _turn = self.turn(&id).await;
        let keys: Vec<String> = {
            let mut holders = self.held();
            let keys: Vec<String> = holders.of(stream).cloned().collect();
            keys.into_iter().filter(|key| holders.leave(key, stream)).collect()
        };
        for _ in 0..ATTEMPTS_MAX {
            let mut writes = Vec::new();
            for key in &keys {
                if let Some(found) = self.own(key, &id).await? {
                    writes.push(lease(&found, now)?);
                }
            }
            match self.commit_all(writes).await {
                // Another identity, or another control plane, took a place meanwhile: that one is not ours to give.
                Err(StoreError::Conflict { .. }) => {}
                released => return released,
            }
        }
        Err(StoreError::Conflict { key: records::CLAIMS.to_owned() })
    }

    /// A claim, if this control plane has it for that identity.
    async fn own(&self, key: &str, id: &SpiffeId) -> Result<Option<Found<Claim>>, StoreError> {
        let found = records::read::<Claim>(&*self.store, key).await?;
        Ok(found.filter(|found| found.record.replica == self.replica && found.record.id == *id))
    }

    /// Removes the claims of workloads that left the mesh, and those that are too many.
    pub(crate) async fn sweep(&self, model: &PolicyModel, now: SystemTime) -> Result<(), StoreError> {
        let declared: BTreeSet<&SpiffeId> = model.workloads.iter().map(|workload| &workload.id).collect();
        let mut writes = vouched::removals(&*self.store, model).await?;
        let mut stale: BTreeMap<SpiffeId, Vec<(bool, u64, Write)>> = BTreeMap::new();
        for entry in self.store.list(records::CLAIMS).await?.entries {
            let Found { record, revision } = records::decode::<Claim>(&entry)?;
            // A live one is released by the end of its stream.
            let Some(expires) = record.expires else { continue };
            let removal = Write::delete(entry.key, Expect::At(revision));
            if !declared.contains(&record.id) {
                writes.push(removal);
            } else if expires <= unix_seconds(now) {
                stale.entry(record.id).or_default().push((!record.by_gateway, expires, removal));
            }
        }
        for entry in self.store.list(records::SEALING_KEYS).await?.entries {
            let Found { record, revision } = records::decode::<SealingKey>(&entry)?;
            if record.expires <= unix_seconds(now) || !declared.contains(&record.id) {
                writes.push(Write::delete(entry.key, Expect::At(revision)));
            }
        }
        for (id, mut places) in stale {
            let surplus = places.len().saturating_sub(STALE_MAX);
            if surplus > 0 {
                tracing::warn!(%id, surplus, "too many places of a workload are not claimed any more; the oldest go");
                places.sort_by_key(|(direct, expires, _)| (*direct, *expires));
                writes.extend(places.into_iter().take(surplus).map(|(_, _, removal)| removal));
            }
        }
        match self.commit_all(writes).await {
            // Somebody came back just now; the rest goes the next time.
            Err(StoreError::Conflict { .. }) => Ok(()),
            swept => swept,
        }
    }

    async fn decide(
        &self,
        claimant: Claimant<'_>,
        places: &BTreeSet<(IpAddr, u16)>,
        model: &PolicyModel,
        now: SystemTime,
    ) -> Result<(Vec<Verdict>, Vec<Write>), StoreError> {
        let mut verdicts = Vec::new();
        let mut writes = Vec::new();
        // Places are sorted by address: each is looked up once.
        let mut attested: Option<(IpAddr, Option<SpiffeId>)> = None;
        for &(address, port) in places {
            let owner = match &attested {
                Some((known, owner)) if *known == address => owner.clone(),
                _ => vouched::owner(&*self.store, claimant.network, address).await?,
            };
            let mut outcome = directory::judge(model, claimant, owner.as_ref(), address, port);
            if outcome.is_ok() {
                let vouched = owner.is_some();
                outcome = self.take(claimant, vouched, (address, port), model, now, &mut writes).await?;
            }
            attested = Some((address, owner));
            verdicts.push(Verdict { address, port, outcome });
        }
        Ok((verdicts, writes))
    }

    /// Adds the write that takes a place, unless it is already held or held by another. One that an attestor vouches for
    /// is taken from whoever had the address before.
    async fn take(
        &self,
        claimant: Claimant<'_>,
        vouched: bool,
        (address, port): (IpAddr, u16),
        model: &PolicyModel,
        now: SystemTime,
        writes: &mut Vec<Write>,
    ) -> Result<Result<(), ClaimRefusal>, StoreError> {
        let key = Claim::key(claimant.network, address, port);
        let found = records::read::<Claim>(&*self.store, &key).await?;
        let mut by_gateway = !vouched && directory::is_by_gateway(model, claimant, address);
        if let Some(Found { record, .. }) = &found {
            let live = record.expires.is_none_or(|expires| expires > unix_seconds(now));
            if record.id != *claimant.id {
                let free = vouched || !directory::stands(model, record) || yields(record, live, by_gateway);
                if !free {
                    return Ok(Err(ClaimRefusal::AddressTaken));
                }
            } else {
                by_gateway &= record.by_gateway || !live;
                let is_here = record.replica == self.replica;
                if record.expires.is_none() && record.by_gateway == by_gateway && is_here {
                    return Ok(Ok(()));
                }
            }
        }
        let claim = Claim {
            id: claimant.id.clone(),
            network: claimant.network.to_owned(),
            address,
            port,
            expires: None,
            by_gateway,
            replica: self.replica.clone(),
        };
        writes.push(records::put(key, records::unchanged(found.as_ref()), &claim)?);
        Ok(Ok(()))
    }

    async fn commit_all(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        for part in writes.chunks(crate::store::WRITES_MAX) {
            self.store.commit(part.to_vec()).await?;
        }
        Ok(())
    }
}

/// Why a key to what is sealed is not published.
#[derive(Debug, Error)]
pub(crate) enum AnnounceError {
    #[error("this certificate came with another key; renew to change it")]
    Another,
    #[error("the instance is not enrolled any more, or was revoked")]
    Gone,
    #[error("a newer certificate of the instance has announced its key; renew to announce another")]
    Older,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no X25519 key that anything can be sealed for")]
    Unusable,
}

/// Whether anything can be sealed for a key: one of small order makes a secret that everybody knows, which the library
/// refuses (RFC 7748 section 6.1).
fn is_usable(key: &[u8; 32]) -> bool {
    let Ok(trial) = PrivateKey::generate(&X25519) else { return false };
    agreement::agree(&trial, UnparsedPublicKey::new(&X25519, key), (), |_| Ok(())).is_ok()
}

/// How old a certificate of an instance is among those it holds: a higher number was issued later.
fn age(registration: &Registration, instance: &str, leaf: &str) -> Option<usize> {
    let instance = registration.instances.iter().find(|candidate| candidate.first == instance)?;
    instance.leaves.iter().position(|held| held.fingerprint == leaf)
}

/// Whether a place goes to another claimant. One that is seen at the address itself displaces one that only a gateway
/// vouches for; otherwise the older claim wins while it lives. What was claimed at the address is never lost to a claim
/// through a gateway: whoever keeps its holder away for a lease would get its callers.
fn yields(record: &Claim, live: bool, by_gateway: bool) -> bool {
    if record.by_gateway { !live || !by_gateway } else { !live && !by_gateway }
}

impl Held {
    /// Whose stream it is, if it holds anything.
    fn identity_of(&self, stream: StreamId) -> Option<SpiffeId> {
        let key = self.by_stream.get(&stream)?.first()?;
        Some(self.by_key.get(key)?.id.clone())
    }

    /// What a stream holds.
    fn of(&self, stream: StreamId) -> impl Iterator<Item = &String> {
        self.by_stream.get(&stream).into_iter().flatten()
    }

    /// Whether a place has one holder.
    fn is_alone(&self, key: &str) -> bool {
        self.by_key.get(key).is_some_and(|holding| holding.streams.len() == 1)
    }

    /// Adds a stream to the holders of `keys`; returns the streams of others that held one of them.
    fn hold(&mut self, keys: BTreeSet<String>, id: &SpiffeId, stream: StreamId) -> BTreeSet<StreamId> {
        let mut displaced = BTreeSet::new();
        for key in keys {
            let fresh = || Holders { id: id.clone(), streams: BTreeSet::new() };
            let holding = self.by_key.entry(key.clone()).or_insert_with(fresh);
            if holding.id != *id {
                holding.id = id.clone();
                for other in std::mem::take(&mut holding.streams) {
                    forget(&mut self.by_stream, other, &key);
                    displaced.insert(other);
                }
            }
            holding.streams.insert(stream);
            self.by_stream.entry(stream).or_default().insert(key);
        }
        displaced
    }

    /// Takes a stream off the holders of a place; whether it was the last.
    fn leave(&mut self, key: &str, stream: StreamId) -> bool {
        forget(&mut self.by_stream, stream, key);
        let Some(holding) = self.by_key.get_mut(key) else { return false };
        holding.streams.remove(&stream);
        let last = holding.streams.is_empty();
        if last {
            self.by_key.remove(key);
        }
        last
    }
}

fn forget(by_stream: &mut HashMap<StreamId, BTreeSet<String>>, stream: StreamId, key: &str) {
    if let Some(keys) = by_stream.get_mut(&stream) {
        keys.remove(key);
        if keys.is_empty() {
            by_stream.remove(&stream);
        }
    }
}

fn lease(found: &Found<Claim>, now: SystemTime) -> Result<Write, StoreError> {
    let claim = Claim { expires: Some(unix_seconds(now + LEASE)), ..found.record.clone() };
    let key = Claim::key(&claim.network, claim.address, claim.port);
    records::put(key, Expect::At(found.revision), &claim)
}

#[cfg(test)]
mod tests;
