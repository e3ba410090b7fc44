//! A store without a disk: shows that the contract does not depend on `redb`, and keeps unit tests fast.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{Changes, Entry, Listing, Revision, Store, StoreError, Write, check_bounds, holds};

pub(crate) struct MemoryStore {
    state: Mutex<State>,
    newest: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    revision: u64,
    entries: BTreeMap<String, (u64, Vec<u8>)>,
    changes: BTreeMap<u64, BTreeSet<String>>,
}

impl MemoryStore {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), newest: watch::Sender::new(0) }
    }
}

impl Store for MemoryStore {
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move { Ok(self.state.lock().expect("not poisoned").entry(key)) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        Box::pin(async move {
            let state = self.state.lock().expect("not poisoned");
            let keys = state.entries.keys().filter(|key| key.starts_with(prefix));
            let entries = keys.filter_map(|key| state.entry(key)).collect();
            Ok(Listing { revision: Revision(state.revision), entries })
        })
    }

    fn commit_from(
        &self,
        writes: Vec<Write>,
        least: Revision,
    ) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move {
            check_bounds(&writes)?;
            let mut state = self.state.lock().expect("not poisoned");
            let revision = state.commit(&writes, least)?;
            self.newest.send_replace(revision);
            Ok(Revision(revision))
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> BoxFuture<'a, Result<Changes, StoreError>> {
        Box::pin(async move {
            let mut newest = self.newest.subscribe();
            loop {
                newest.borrow_and_update();
                let changes = self.state.lock().expect("not poisoned").changes_since(prefix, after);
                if !changes.written.is_empty() || !changes.deleted.is_empty() {
                    return Ok(changes);
                }
                let _ = newest.changed().await;
            }
        })
    }
}

impl State {
    fn entry(&self, key: &str) -> Option<Entry> {
        let (revision, value) = self.entries.get(key)?;
        Some(Entry { key: key.to_owned(), value: value.clone(), revision: Revision(*revision) })
    }

    fn commit(&mut self, writes: &[Write], least: Revision) -> Result<u64, StoreError> {
        let revision = (self.revision + 1).max(least.0);
        let mut entries = self.entries.clone();
        for write in writes {
            let found = entries.get(&write.key).map(|(revision, _)| Revision(*revision));
            if !holds(write.expect, found) {
                return Err(StoreError::Conflict { key: write.key.clone() });
            }
            match &write.value {
                Some(value) => drop(entries.insert(write.key.clone(), (revision, value.clone()))),
                None => drop(entries.remove(&write.key)),
            }
        }
        self.entries = entries;
        self.revision = revision;
        self.changes.insert(revision, writes.iter().map(|write| write.key.clone()).collect());
        Ok(revision)
    }

    fn changes_since(&self, prefix: &str, after: Revision) -> Changes {
        let keys: BTreeSet<&String> = self.changes.range(after.0 + 1..).flat_map(|(_, keys)| keys).collect();
        let mut changes =
            Changes { revision: Revision(self.revision), written: Vec::new(), deleted: Vec::new() };
        for key in keys.into_iter().filter(|key| key.starts_with(prefix)) {
            match self.entry(key) {
                Some(entry) => changes.written.push(entry),
                None => changes.deleted.push(key.clone()),
            }
        }
        changes
    }
}
