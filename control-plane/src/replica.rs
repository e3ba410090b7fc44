//! Several control planes on one store: who else serves.
//!
//! Each says every few seconds that it is there. The claims of one that stopped saying so get leases like those of one that
//! was restarted. Nothing else is divided between them: whatever else they know is in the store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::records::{self, REPLICAS, Replica, unix_seconds};
use crate::store::{Expect, Store, StoreError, Write};

/// How often it says so.
pub(crate) const BEAT: Duration = Duration::from_secs(10);

/// How long that holds: longer than an election of etcd and clocks that are some seconds apart.
const LIFE: Duration = Duration::from_secs(60);

/// Random bytes of an id.
const ID_BYTES: usize = 9;

/// This control plane among those of its store.
pub(crate) struct Replicas {
    store: Arc<dyn Store>,
    /// Empty where there are no others by design.
    id: String,
}

impl Replicas {
    /// The only one that can have the store.
    pub(crate) fn alone(store: Arc<dyn Store>) -> Self {
        Self { store, id: String::new() }
    }

    /// One of several. Each start is another one.
    pub(crate) fn one_of_several(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let mut bytes = [0; ID_BYTES];
        aws_lc_rs::rand::fill(&mut bytes)
            .map_err(|_| StoreError::Io(std::io::Error::other("no randomness")))?;
        Ok(Self { store, id: URL_SAFE_NO_PAD.encode(bytes) })
    }

    /// Its name in claims.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Says that it serves; whether others had to think that it does not.
    pub(crate) async fn beat(&self, now: SystemTime) -> Result<bool, StoreError> {
        if self.id.is_empty() {
            return Ok(false);
        }
        let key = format!("{REPLICAS}{}", self.id);
        let found = records::read::<Replica>(&*self.store, &key).await?;
        let lapsed = found.is_none_or(|found| found.record.expires <= unix_seconds(now));
        let record = Replica { expires: unix_seconds(now + LIFE) };
        self.store.commit(vec![records::put(key, Expect::Any, &record)?]).await?;
        Ok(lapsed)
    }

    /// Those that serve now, this one among them if it said so. Those that are gone are forgotten.
    pub(crate) async fn serving(&self, now: SystemTime) -> Result<BTreeSet<String>, StoreError> {
        let mut serving = BTreeSet::new();
        let mut gone = Vec::new();
        for entry in self.store.list(REPLICAS).await?.entries {
            let found = records::decode::<Replica>(&entry)?;
            if found.record.expires > unix_seconds(now) {
                serving.extend(entry.key.strip_prefix(REPLICAS).map(str::to_owned));
            } else {
                gone.push(Write::delete(entry.key, Expect::At(found.revision)));
            }
        }
        if !gone.is_empty() {
            match self.store.commit(gone).await {
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(serving)
    }

    /// Leaves in good order.
    pub(crate) async fn leave(&self) -> Result<(), StoreError> {
        if self.id.is_empty() {
            return Ok(());
        }
        self.store.commit(vec![Write::delete(format!("{REPLICAS}{}", self.id), Expect::Any)]).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[tokio::test]
    async fn one_that_stopped_saying_so_is_gone_and_one_that_was_away_learns_of_it() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let (a, b) = (Replicas::one_of_several(store.clone()), Replicas::one_of_several(store));
        let (a, b) = (a.unwrap(), b.unwrap());
        let start = SystemTime::now();
        assert!(a.beat(start).await.unwrap() && b.beat(start).await.unwrap());
        let late = start + LIFE - BEAT;
        assert!(!a.beat(late).await.unwrap());
        assert_eq!(a.serving(late).await.unwrap(), [a.id().to_owned(), b.id().to_owned()].into());
        let later = late + BEAT;
        assert_eq!(a.serving(later).await.unwrap(), [a.id().to_owned()].into());
        assert!(b.beat(later).await.unwrap(), "b is not told that it was gone");
        a.leave().await.unwrap();
        assert_eq!(b.serving(later).await.unwrap(), [b.id().to_owned()].into());
    }

    #[tokio::test]
    async fn the_only_one_writes_nothing() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let alone = Replicas::alone(store.clone());
        assert!(!alone.beat(SystemTime::now()).await.unwrap());
        alone.leave().await.unwrap();
        assert!(store.list("").await.unwrap().entries.is_empty());
    }
}
