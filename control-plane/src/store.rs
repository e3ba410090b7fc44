//! The store: what the control plane must not forget.
//!
//! [`Store`] is a small ordered key-value contract that an embedded database, etcd or the Kubernetes API can all
//! keep: one revision counter for the whole store, all-or-nothing commits with a compare-and-swap per key, list, and
//! watch from a revision. `store/conformance.rs` is its specification in tests; every implementation runs it.
//!
//! Invariants every implementation keeps:
//! - a commit that returned `Ok` survives `kill -9` and power loss;
//! - revisions only grow, by one per commit (by more where a backup is restored), and never repeat, also across restarts;
//! - a reader sees all writes of a commit or none.

use std::collections::HashMap;

use futures_util::future::BoxFuture;
use thiserror::Error;

#[cfg(test)]
mod conformance;
mod etcd;
mod kubernetes;
mod mark;
#[cfg(test)]
mod memory;
mod redb;

pub use self::etcd::{AddressError, EtcdAddress, EtcdStore};
pub use self::kubernetes::{KubernetesAddress, KubernetesStore};
#[cfg(test)]
pub(crate) use self::memory::MemoryStore;
pub use self::redb::RedbStore;

/// The largest value of one key, in bytes: a manifest document is the largest thing kept, and one of this size
/// is already far beyond what a person writes.
pub const VALUE_MAX: usize = 1024 * 1024;

/// The most writes of one commit: above what the largest change of manifests takes (see `CHANGED_MAX` in
/// `manifests.rs`), so that it is one commit however much it changes.
pub const WRITES_MAX: usize = 262_144;

/// The most changes kept for watchers; one that is further behind lists again, as all do after a commit of more.
pub const CHANGES_MAX: u64 = 16_384;

/// The store's clock: how many commits it has seen.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Revision(pub u64);

/// One key with its value and the commit that last wrote it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The key, such as `manifest/Workload/lifecycle`.
    pub key: String,
    /// The value, opaque to the store.
    pub value: Vec<u8>,
    /// The commit that wrote this value.
    pub revision: Revision,
}

/// All entries under a prefix, at one revision of the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listing {
    /// The revision at which the entries were read together.
    pub revision: Revision,
    /// The entries in key order.
    pub entries: Vec<Entry>,
}

/// What a write demands of the key before it happens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expect {
    /// The key must not exist.
    Absent,
    /// Nothing is demanded.
    Any,
    /// The key must still be as this commit left it.
    At(Revision),
}

/// One write of a commit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Write {
    /// The key to write.
    pub key: String,
    /// What the key must be like before.
    pub expect: Expect,
    /// The new value; `None` deletes the key.
    pub value: Option<Vec<u8>>,
}

impl Write {
    /// Sets `key` to `value` if `expect` holds.
    pub fn put(key: impl Into<String>, expect: Expect, value: Vec<u8>) -> Self {
        Self { key: key.into(), expect, value: Some(value) }
    }

    /// Deletes `key` if `expect` holds.
    pub fn delete(key: impl Into<String>, expect: Expect) -> Self {
        Self { key: key.into(), expect, value: None }
    }
}

/// What happened under a prefix since a revision. Several changes of one key appear as one, with what it is now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Changes {
    /// Where to watch from next.
    pub revision: Revision,
    /// Keys that exist now.
    pub written: Vec<Entry>,
    /// Keys that are gone now.
    pub deleted: Vec<String>,
}

/// The contract; see the module page.
pub trait Store: Send + Sync + 'static {
    /// The value of one key.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read.
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>>;

    /// All keys that start with `prefix`.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>>;

    /// Performs all writes, or none and says why. Returns after the commit is durable.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when an expectation does not hold; nothing was written then.
    fn commit(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.commit_from(writes, Revision(0))
    }

    /// The same, under the revision `least` or a later one: what is restored from a backup goes on behind all that was
    /// counted before. Watchers that were not as far list again.
    ///
    /// # Errors
    /// As of [`Store::commit`].
    fn commit_from(&self, writes: Vec<Write>, least: Revision)
    -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// Waits until something under `prefix` changed after `after`, and returns it. May be dropped at any time.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when the changes since `after` are no longer kept: list again and go on from there.
    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> BoxFuture<'a, Result<Changes, StoreError>>;
}

/// Why the store said no.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Another process has the file open.
    #[error("the store is in use by another process")]
    AlreadyOpen,
    /// The changes asked for are no longer kept.
    #[error("the changes since that revision are no longer kept")]
    Compacted,
    /// An expectation of a commit did not hold.
    #[error("{key} was changed by somebody else")]
    Conflict {
        /// The key that is not as expected.
        key: String,
    },
    /// The file's contents fail their checksums.
    #[error("the store is corrupted: {0}")]
    Corrupted(String),
    /// The operating system refused a read or a write.
    #[error("the store cannot be read or written")]
    Io(#[source] std::io::Error),
    /// The file is older than writes that were acknowledged.
    #[error(
        "the store is at revision {found} but revision {acknowledged} was acknowledged: \
         it was replaced by an older copy or damaged"
    )]
    LostWrites {
        /// The newest acknowledged revision.
        acknowledged: u64,
        /// The revision of the file that was found.
        found: u64,
    },
    /// Whoever keeps it does not do what it was asked for.
    #[error("the store is refused: {0}")]
    Refused(String),
    /// Whoever keeps it does not answer.
    #[error("the store cannot be reached ({member}): {reason}")]
    Unreachable {
        /// Who was asked last.
        member: String,
        /// What was heard of them.
        reason: String,
    },
    /// A value of more bytes, or a commit of more writes than the bounds.
    #[error("{what} is larger than the store takes ({limit}): nothing was written")]
    TooLarge {
        /// What is too large.
        what: String,
        /// The bound.
        limit: usize,
    },
}

/// Checks the bounds every implementation has in common.
fn check_bounds(writes: &[Write]) -> Result<(), StoreError> {
    if writes.len() > WRITES_MAX {
        return Err(StoreError::TooLarge {
            what: format!("a change of {} keys", writes.len()),
            limit: WRITES_MAX,
        });
    }
    for write in writes {
        if write.value.as_ref().is_some_and(|value| value.len() > VALUE_MAX) {
            return Err(StoreError::TooLarge { what: write.key.clone(), limit: VALUE_MAX });
        }
    }
    Ok(())
}

/// The first key of a commit whose expectation does not hold, one write after the other. `found` tells the revision of a key.
fn broken<E>(
    writes: &[Write],
    mut found: impl FnMut(&str) -> Result<Option<Revision>, E>,
) -> Result<Option<&str>, E> {
    // What the commit itself wrote before has no revision yet that anybody could expect.
    let mut own: HashMap<&str, bool> = HashMap::new();
    for write in writes {
        let held = match own.insert(&write.key, write.value.is_some()) {
            Some(exists) => match write.expect {
                Expect::Absent => !exists,
                Expect::Any => true,
                Expect::At(_) => false,
            },
            None if write.expect == Expect::Any => true,
            None => holds(write.expect, found(&write.key)?),
        };
        if !held {
            return Ok(Some(&write.key));
        }
    }
    Ok(None)
}

/// Whether a key as found satisfies an expectation.
fn holds(expect: Expect, found: Option<Revision>) -> bool {
    match expect {
        Expect::Absent => found.is_none(),
        Expect::Any => true,
        Expect::At(revision) => found == Some(revision),
    }
}
