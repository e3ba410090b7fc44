//! Claims on directory places: accepted, held while the claimant's stream is open, kept for a lease after it ended.
//!
//! A live claim needs no writes: its record carries no expiry. When the stream ends the record gets one, and when the
//! control plane itself restarts all of them do, so that a proxy that comes back in time keeps its place.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use signet_policy::PolicyModel;
use tokio::sync::Mutex;

use crate::directory::{self, ClaimRefusal, Claimant};
use crate::records::{self, Claim, Found, unix_seconds};
use crate::store::{Expect, Store, StoreError, Write};

/// How long a place stays taken after its holder's stream ended: a restart, a partition, an upgrade.
pub(crate) const LEASE: Duration = Duration::from_secs(10 * 60);

/// How often a write is tried again when another control plane writes the same place.
const ATTEMPTS_MAX: usize = 16;

/// Names one control stream.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
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
    /// Which stream holds which claim (by store key). The lock is held over the commit: the end of an old stream
    /// must not start a lease that a new one just ended.
    holders: Mutex<HashMap<String, StreamId>>,
}

impl Claims {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, holders: Mutex::default() }
    }

    /// Gives every claim that was live when the control plane stopped a lease.
    pub(crate) async fn adopt(&self, now: SystemTime) -> Result<(), StoreError> {
        let holders = self.holders.lock().await;
        let mut writes = Vec::new();
        for found in records::list::<Claim>(&*self.store, records::CLAIMS).await? {
            if found.record.expires.is_none() {
                writes.push(lease(&found, now)?);
            }
        }
        self.commit_all(writes).await?;
        drop(holders);
        Ok(())
    }

    /// Claims `places` for a stream, and gives up whatever else it held.
    pub(crate) async fn claim(
        &self,
        stream: StreamId,
        claimant: Claimant<'_>,
        places: &BTreeSet<(IpAddr, u16)>,
        model: &PolicyModel,
        now: SystemTime,
    ) -> Result<Vec<Verdict>, StoreError> {
        let mut holders = self.holders.lock().await;
        for _ in 0..ATTEMPTS_MAX {
            let (verdicts, mut writes) = self.decide(claimant, places, model, now).await?;
            let held: BTreeSet<String> = verdicts
                .iter()
                .filter(|verdict| verdict.outcome.is_ok())
                .map(|verdict| Claim::key(claimant.network, verdict.address, verdict.port))
                .collect();
            let given_up: Vec<String> = holders
                .iter()
                .filter(|(key, holder)| **holder == stream && !held.contains(*key))
                .map(|(key, _)| key.clone())
                .collect();
            writes.extend(given_up.iter().map(|key| Write::delete(key, Expect::Any)));
            match self.commit_all(writes).await {
                Ok(()) => {}
                Err(StoreError::Conflict { .. }) => continue,
                Err(error) => return Err(error),
            }
            for key in given_up {
                holders.remove(&key);
            }
            holders.extend(held.into_iter().map(|key| (key, stream)));
            return Ok(verdicts);
        }
        Err(StoreError::Conflict { key: records::CLAIMS.to_owned() })
    }

    /// The stream ended: what it still holds is kept for a lease.
    pub(crate) async fn release(&self, stream: StreamId, now: SystemTime) -> Result<(), StoreError> {
        let mut holders = self.holders.lock().await;
        let keys: Vec<String> =
            holders.iter().filter(|(_, holder)| **holder == stream).map(|(key, _)| key.clone()).collect();
        holders.retain(|_, holder| *holder != stream);
        let mut writes = Vec::new();
        for key in keys {
            if let Some(found) = records::read::<Claim>(&*self.store, &key).await? {
                writes.push(lease(&found, now)?);
            }
        }
        self.commit_all(writes).await
    }

    /// Removes claims whose lease is over.
    pub(crate) async fn sweep(&self, now: SystemTime) -> Result<(), StoreError> {
        let _holders = self.holders.lock().await;
        let mut writes = Vec::new();
        for entry in self.store.list(records::CLAIMS).await?.entries {
            let found: Found<Claim> = records::decode(&entry)?;
            if found.record.expires.is_some_and(|expires| expires <= unix_seconds(now)) {
                writes.push(Write::delete(entry.key, Expect::At(found.revision)));
            }
        }
        self.commit_all(writes).await
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
        for &(address, port) in places {
            let mut outcome = directory::judge(model, claimant, address, port);
            if outcome.is_ok() {
                outcome = self.take(claimant, address, port, model, now, &mut writes).await?;
            }
            verdicts.push(Verdict { address, port, outcome });
        }
        Ok((verdicts, writes))
    }

    /// Adds the write that takes a place, unless it is already held or held by another.
    async fn take(
        &self,
        claimant: Claimant<'_>,
        address: IpAddr,
        port: u16,
        model: &PolicyModel,
        now: SystemTime,
        writes: &mut Vec<Write>,
    ) -> Result<Result<(), ClaimRefusal>, StoreError> {
        let key = Claim::key(claimant.network, address, port);
        let found = records::read::<Claim>(&*self.store, &key).await?;
        if let Some(Found { record, .. }) = &found {
            let live = record.expires.is_none_or(|expires| expires > unix_seconds(now));
            if record.id != *claimant.id && live && directory::stands(model, record) {
                return Ok(Err(ClaimRefusal::AddressTaken));
            }
            if record.id == *claimant.id && record.expires.is_none() {
                return Ok(Ok(()));
            }
        }
        let claim = Claim {
            id: claimant.id.clone(),
            network: claimant.network.to_owned(),
            address,
            port,
            expires: None,
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

fn lease(found: &Found<Claim>, now: SystemTime) -> Result<Write, StoreError> {
    let claim = Claim { expires: Some(unix_seconds(now + LEASE)), ..found.record.clone() };
    let key = Claim::key(&claim.network, claim.address, claim.port);
    records::put(key, Expect::At(found.revision), &claim)
}

#[cfg(test)]
mod tests;
