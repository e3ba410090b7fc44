//! Versions of the manifests: what each change replaced, so that it can be undone.
//!
//! A version is a number, when it was made and what it changed (`history/<number>`), and beside it the text of every
//! manifest that it replaced (`replaced/<number>/<kind>/<name>`; empty for one that was not there before). To go back to
//! a version is to undo all later ones, which is a change with a version of its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use signet_policy::Kind;

use crate::manifests::Action;
use crate::records;
use crate::store::{Expect, Listing, Store, StoreError, Write};

/// Prefix of the versions.
const HISTORY: &str = "history/";

/// Prefix of the texts they replaced.
const REPLACED: &str = "replaced/";

/// Versions kept: a day of busy work on policies, at a few MiB each in the worst case.
pub(crate) const VERSIONS_MAX: usize = 50;

/// Changes named in a version's record; more are counted.
const NAMED_MAX: usize = 100;

/// The versions that are kept, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    versions: Vec<Version>,
}

/// One change of the manifests.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) number: u64,
    pub(crate) record: Record,
}

/// What is told of it later.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Record {
    /// Unix seconds.
    pub(crate) at: u64,
    /// The first of what it changed.
    pub(crate) changes: Vec<RecordedChange>,
    /// How much more.
    #[serde(default)]
    pub(crate) more: usize,
}

/// One manifest of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct RecordedChange {
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) action: Action,
}

impl History {
    /// Reads the versions; not what they replaced.
    pub(crate) async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let mut versions = Vec::new();
        for entry in store.list(HISTORY).await?.entries {
            let damaged = || StoreError::Corrupted(format!("{} is no version", entry.key));
            let number = entry.key.strip_prefix(HISTORY).and_then(|number| number.parse().ok());
            versions.push(Version {
                number: number.ok_or_else(damaged)?,
                record: records::decode::<Record>(&entry)?.record,
            });
        }
        Ok(Self { versions })
    }

    /// The newest version; 0 before the first.
    pub(crate) fn current(&self) -> u64 {
        self.versions.last().map_or(0, |version| version.number)
    }

    /// The oldest version that can be gone back to.
    pub(crate) fn oldest(&self) -> u64 {
        self.versions.first().map_or(0, |version| version.number - 1)
    }

    /// The versions, newest first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = &Version> {
        self.versions.iter().rev()
    }

    /// What has to be written with a change so that it can be undone: `replaced` holds the text before, of each manifest
    /// that changes.
    pub(crate) async fn record(
        &self,
        store: &dyn Store,
        at: u64,
        replaced: &[(Kind, &str, Action, Option<&str>)],
    ) -> Result<Vec<Write>, StoreError> {
        let number = self.current() + 1;
        let named = replaced.iter().take(NAMED_MAX).map(|(kind, name, action, _)| RecordedChange {
            kind: kind.to_string(),
            name: (*name).to_owned(),
            action: *action,
        });
        let changes: Vec<RecordedChange> = named.collect();
        let record = Record { at, more: replaced.len() - changes.len(), changes };
        let mut writes = vec![records::put(version_key(number), Expect::Absent, &record)?];
        for (kind, name, _, before) in replaced {
            let key = format!("{}{kind}/{name}", replaced_prefix(number));
            writes.push(Write::put(key, Expect::Any, before.unwrap_or_default().as_bytes().to_vec()));
        }
        let excess = (self.versions.len() + 1).saturating_sub(VERSIONS_MAX);
        for version in self.versions.iter().take(excess) {
            writes.push(Write::delete(version_key(version.number), Expect::Any));
            for entry in store.list(&replaced_prefix(version.number)).await?.entries {
                writes.push(Write::delete(entry.key, Expect::Any));
            }
        }
        Ok(writes)
    }

    /// What to make of each manifest to be back at `version`: its text, or none where there was no such manifest.
    pub(crate) async fn undo(
        &self,
        store: &dyn Store,
        version: u64,
    ) -> Result<BTreeMap<(Kind, String), Option<String>>, StoreError> {
        let mut wanted = BTreeMap::new();
        for later in self.versions.iter().filter(|later| later.number > version) {
            let prefix = replaced_prefix(later.number);
            for (place, text) in replaced(&prefix, &store.list(&prefix).await?)? {
                // The first change after the version replaced what was there at the version.
                wanted.entry(place).or_insert(text);
            }
        }
        Ok(wanted)
    }
}

type Replaced = ((Kind, String), Option<String>);

fn replaced(prefix: &str, listing: &Listing) -> Result<Vec<Replaced>, StoreError> {
    let read = |entry: &crate::store::Entry| {
        let (kind, name) = entry.key.strip_prefix(prefix)?.split_once('/')?;
        let text = String::from_utf8(entry.value.clone()).ok()?;
        Some(((kind.parse().ok()?, name.to_owned()), Some(text).filter(|text| !text.is_empty())))
    };
    let damaged = |key: &str| StoreError::Corrupted(format!("{key} is no manifest of a version"));
    listing.entries.iter().map(|entry| read(entry).ok_or_else(|| damaged(&entry.key))).collect()
}

/// Numbers of equal length, so that their order is that of the keys.
fn version_key(number: u64) -> String {
    format!("{HISTORY}{number:020}")
}

fn replaced_prefix(number: u64) -> String {
    format!("{REPLACED}{number:020}/")
}
