//! The store on etcd, version 3: for control planes of which one machine is not enough.
//!
//! The contract counts one revision per commit of this store; etcd counts every write of every user. So the store keeps a
//! count of its own in one key, the head, see `layout`; commits demand it unchanged, see `commit`. What changed is
//! recorded beside it, so that neither etcd's compaction nor other users of the cluster matter to watchers.
//!
//! Reads are linearizable: a member that lost the others answers nothing.

mod address;
mod client;
mod commit;
mod layout;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use rustls::ClientConfig;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

pub use self::address::{AddressError, EtcdAddress};
use self::client::Client;
use self::commit::OPERATIONS_MAX;
use self::layout::{Change, Head, Layout, end_of};
use super::mark::Mark;
use super::{Changes, Entry, Listing, Revision, Store, StoreError, Write, check_bounds};

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::or_fun_call,
    clippy::use_self,
    clippy::unwrap_used,
    reason = "generated code; the schema is in proto/etcd.proto"
)]
mod wire {
    tonic::include_proto!("etcdserverpb");
}

/// Entries of one answer when a prefix is listed: of the largest values that is 256 MiB.
const PAGE: i64 = 256;

/// How often a reading starts again because somebody wrote meanwhile.
const READS_MAX: usize = 64;

/// How often the head is read although the watch is silent: a watch may be, when something between drops packets.
const LOOK: Duration = Duration::from_secs(5);

/// Pause after a watch failed.
const WATCH_PAUSE: Duration = Duration::from_millis(250);

/// The file of the newest revision that this control plane knows of.
const MARK_FILE: &str = "etcd-revision";

/// The store in an etcd cluster. See the module page.
#[derive(Clone)]
pub struct EtcdStore {
    inner: Arc<Inner>,
    /// The task that follows the head; it ends with the last handle but its own, which has none.
    _following: Option<Arc<Following>>,
}

struct Following(JoinHandle<()>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Inner {
    client: Client,
    layout: Layout,
    mark: Mark,
    /// The newest revision known, for watchers.
    newest: watch::Sender<u64>,
    /// One commit of this process at a time.
    turn: Mutex<()>,
}

/// The head as it was found.
pub(super) struct Seen {
    key: Vec<u8>,
    /// 0 when there is none yet.
    mod_revision: i64,
    head: Option<Head>,
}

impl Seen {
    fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    fn revision(&self) -> u64 {
        self.head.as_ref().map_or(0, |head| head.revision)
    }

    /// Demands that nothing was committed since.
    fn is_still(&self) -> wire::Compare {
        wire::Compare {
            result: wire::compare::Result::Equal.into(),
            target: wire::compare::Target::Mod.into(),
            key: self.key.clone(),
            target_union: Some(wire::compare::TargetUnion::ModRevision(self.mod_revision)),
        }
    }
}

impl EtcdStore {
    /// Opens the store at `address`; `directory` is this control plane's own and remembers how far the store was.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`], [`StoreError::Refused`], [`StoreError::LostWrites`] or [`StoreError::Corrupted`].
    pub async fn open(
        address: &EtcdAddress,
        tls: Option<Arc<ClientConfig>>,
        directory: &Path,
    ) -> Result<Self, StoreError> {
        let mark = Mark::open(&directory.join(MARK_FILE))?;
        let acknowledged = mark.read()?;
        let inner = Inner {
            client: Client::new(address, tls)?,
            layout: Layout::new(address.prefix.clone()),
            mark,
            newest: watch::Sender::new(acknowledged),
            turn: Mutex::new(()),
        };
        let store = Self { inner: Arc::new(inner), _following: None };
        let seen = store.settled().await?;
        store.remove_orphans().await?;
        store.know(seen.revision());
        store.remember().await?;
        let following = Following(tokio::spawn(follow(store.clone())));
        Ok(Self { _following: Some(Arc::new(following)), ..store })
    }

    fn client(&self) -> &Client {
        &self.inner.client
    }

    fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    /// Takes note of a revision, for watchers.
    fn know(&self, revision: u64) {
        self.inner.newest.send_if_modified(|newest| {
            let later = revision > *newest;
            *newest = revision.max(*newest);
            later
        });
    }

    /// Writes down how far the store is, for the next start.
    async fn remember(&self) -> Result<(), StoreError> {
        let inner = self.inner.clone();
        let writing = tokio::task::spawn_blocking(move || {
            let newest = *inner.newest.borrow();
            inner.mark.write(newest)
        });
        writing.await.unwrap_or_else(|panic| Err(StoreError::Corrupted(panic.to_string())))
    }

    /// The head as it is, whatever waits.
    async fn head(&self) -> Result<Seen, StoreError> {
        let key = self.layout().head();
        let known = *self.inner.newest.borrow();
        let found = self.client().range(wire::RangeRequest { key, ..Default::default() }).await?;
        self.seen(found.kvs.first(), known)
    }

    /// What was found; `acknowledged` was known before it was asked for, so it is there or it was lost.
    fn seen(&self, found: Option<&wire::KeyValue>, acknowledged: u64) -> Result<Seen, StoreError> {
        let head = found.map(|found| Head::decode(&found.value)).transpose()?;
        let seen = Seen {
            key: self.layout().head(),
            mod_revision: found.map_or(0, |found| found.mod_revision),
            head,
        };
        // The cluster was emptied, or restored from a snapshot: what was acknowledged is not there.
        if seen.revision() < acknowledged {
            return Err(StoreError::LostWrites { acknowledged, found: seen.revision() });
        }
        Ok(seen)
    }

    /// Some entries and the head beside which they were read, all at one moment.
    async fn consistent(&self, keys: &[String]) -> Result<(Seen, BTreeMap<String, Entry>), StoreError> {
        for _ in 0..READS_MAX {
            let mut entries = BTreeMap::new();
            let mut first: Option<Seen> = None;
            let mut chunks = keys.chunks(OPERATIONS_MAX);
            // The head is read in any case.
            let mut chunk = chunks.next().unwrap_or_default();
            let seen = loop {
                let ranges = chunk.iter().map(|key| (self.layout().entry(key), Vec::new(), 0));
                let (seen, found, _) = self.with_head(ranges).await?;
                for kv in found {
                    let entry = self.layout().decode_entry(&kv.key, &kv.value)?;
                    entries.insert(entry.key.clone(), entry);
                }
                let moved = first.as_ref().is_some_and(|first| first.mod_revision != seen.mod_revision);
                if moved || seen.head().is_some_and(|head| head.staged > 0) {
                    break None;
                }
                let first = first.get_or_insert(seen);
                chunk = match chunks.next() {
                    Some(chunk) => chunk,
                    None => break Some(Seen { head: first.head.clone(), key: first.key.clone(), ..*first }),
                };
            };
            if let Some(seen) = seen {
                return Ok((seen, entries));
            }
            self.settled().await?;
        }
        Err(StoreError::Refused("others write without end".to_owned()))
    }

    /// Reads ranges in the same moment as the head; also tells etcd's own revision of that moment.
    async fn with_head(
        &self,
        ranges: impl Iterator<Item = (Vec<u8>, Vec<u8>, i64)>,
    ) -> Result<(Seen, Vec<wire::KeyValue>, i64), StoreError> {
        let head = (self.layout().head(), Vec::new(), 0);
        let known = *self.inner.newest.borrow();
        let success = std::iter::once(head).chain(ranges).map(|(key, range_end, limit)| {
            let range = wire::RangeRequest { key, range_end, limit, ..Default::default() };
            wire::RequestOp { request: Some(wire::request_op::Request::RequestRange(range)) }
        });
        let request = wire::TxnRequest { compare: Vec::new(), success: success.collect() };
        let answer = self.client().txn(request).await?;
        let at = answer.header.map_or(0, |header| header.revision);
        let mut answers = answer.responses.into_iter().filter_map(|response| match response.response {
            Some(wire::response_op::Response::ResponseRange(range)) => Some(range.kvs),
            _ => None,
        });
        let head = answers.next().unwrap_or_default();
        Ok((self.seen(head.first(), known)?, answers.flatten().collect(), at))
    }

    async fn list_once(&self, prefix: &str) -> Result<Option<Listing>, StoreError> {
        let (start, end) = (self.layout().entry(prefix), end_of(&self.layout().entry(prefix)));
        let (seen, found, at) = self.with_head(std::iter::once((start, end.clone(), PAGE))).await?;
        if seen.head().is_some_and(|head| head.staged > 0) {
            return Ok(None);
        }
        let mut entries = Vec::new();
        let mut page = found;
        loop {
            for kv in &page {
                entries.push(self.layout().decode_entry(&kv.key, &kv.value)?);
            }
            let full = i64::try_from(page.len()).is_ok_and(|length| length >= PAGE);
            let Some(last) = page.last().filter(|_| full) else { break };
            let mut key = last.key.clone();
            key.push(0);
            let request = wire::RangeRequest {
                key,
                range_end: end.clone(),
                limit: PAGE,
                revision: at,
                keys_only: false,
            };
            page = match self.client().range(request).await {
                Ok(answer) => answer.kvs,
                // Compacted meanwhile: from the beginning.
                Err(StoreError::Refused(reason)) if reason.contains("compacted") => return Ok(None),
                Err(error) => return Err(error),
            };
        }
        Ok(Some(Listing { revision: Revision(seen.revision()), entries }))
    }

    /// The records of changes after a revision, up to another one.
    async fn changes(&self, after: u64, newest: u64) -> Result<Vec<(u64, Change)>, StoreError> {
        let (key, end) = (self.layout().change(after + 1), self.layout().change(newest + 1));
        let request = wire::RangeRequest { key, range_end: end, ..Default::default() };
        if after >= newest {
            return Ok(Vec::new());
        }
        let found = self.client().range(request).await?;
        let revision = |key: &[u8]| {
            let digits =
                key.rsplit(|byte| *byte == b'/').next().and_then(|digits| std::str::from_utf8(digits).ok());
            let revision = digits.and_then(|digits| digits.parse().ok());
            revision.ok_or_else(|| StoreError::Corrupted("a record of changes has no revision".to_owned()))
        };
        found.kvs.iter().map(|kv| Ok((revision(&kv.key)?, Change::decode(&kv.value)?))).collect()
    }

    async fn changes_since(&self, prefix: &str, after: Revision) -> Result<Changes, StoreError> {
        let seen = self.settled().await?;
        let newest = seen.revision();
        if after.0 >= newest {
            return Ok(Changes { revision: after, written: Vec::new(), deleted: Vec::new() });
        }
        let changes = self.changes(after.0, newest).await?;
        if changes.first().is_none_or(|(revision, _)| *revision != after.0 + 1) {
            return Err(StoreError::Compacted);
        }
        let mut keys = BTreeSet::new();
        for (_, change) in changes {
            let named = change.keys.ok_or(StoreError::Compacted)?;
            keys.extend(named.into_iter().filter(|key| key.starts_with(prefix)));
        }
        if keys.is_empty() {
            return Ok(Changes { revision: Revision(newest), written: Vec::new(), deleted: Vec::new() });
        }
        let keys: Vec<String> = keys.into_iter().collect();
        let (_, found) = self.consistent(&keys).await?;
        let deleted = keys.into_iter().filter(|key| !found.contains_key(key)).collect();
        // Values may be newer than `newest`: those changes are told again.
        Ok(Changes { revision: Revision(newest), written: found.into_values().collect(), deleted })
    }
}

impl Store for EtcdStore {
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move {
            let keys = [key.to_owned()];
            let (_, mut found) = self.consistent(&keys).await?;
            Ok(found.remove(key))
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        Box::pin(async move {
            for _ in 0..READS_MAX {
                if let Some(listing) = self.list_once(prefix).await? {
                    return Ok(listing);
                }
                self.settled().await?;
            }
            Err(StoreError::Refused("others write without end".to_owned()))
        })
    }

    fn commit_from(
        &self,
        writes: Vec<Write>,
        least: Revision,
    ) -> BoxFuture<'_, Result<Revision, StoreError>> {
        let store = self.clone();
        // A task of its own: a caller that goes away leaves nothing half done that could be done.
        let committing = tokio::spawn(async move {
            check_bounds(&writes)?;
            let _turn = store.inner.turn.lock().await;
            let revision = store.commit_in_turn(writes, least).await?;
            store.know(revision.0);
            Ok(revision)
        });
        Box::pin(async move {
            committing.await.unwrap_or_else(|panic| Err(StoreError::Corrupted(panic.to_string())))
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> BoxFuture<'a, Result<Changes, StoreError>> {
        Box::pin(async move {
            let mut newest = self.inner.newest.subscribe();
            let mut after = after;
            loop {
                newest.borrow_and_update();
                let changes = self.changes_since(prefix, after).await?;
                if !changes.written.is_empty() || !changes.deleted.is_empty() {
                    return Ok(changes);
                }
                after = changes.revision;
                // The sender lives in `self`, which this future borrows.
                let _ = newest.changed().await;
            }
        })
    }
}

/// Tells watchers of every new head, for as long as the store is open.
async fn follow(store: EtcdStore) {
    loop {
        if let Err(error) = follow_once(&store).await {
            tracing::warn!(%error, "the store is not followed; trying again");
            tokio::time::sleep(WATCH_PAUSE).await;
        }
    }
}

async fn follow_once(store: &EtcdStore) -> Result<(), StoreError> {
    let seen = store.head().await?;
    store.know(seen.revision());
    let mut watching = store.client().watch(seen.key.clone(), seen.mod_revision + 1).await?;
    let mut look = tokio::time::interval(LOOK);
    loop {
        let answer = tokio::select! {
            answer = watching.message() => answer,
            _ = look.tick() => {
                store.know(store.head().await?.revision());
                store.remember().await?;
                continue;
            }
        };
        let answer = match answer {
            Ok(Some(answer)) if !answer.canceled => answer,
            // The member went away or lost its leader; reading the head finds another one.
            Ok(_) | Err(_) => return Ok(()),
        };
        for kv in answer.events.into_iter().filter_map(|event| event.kv) {
            // A head that was deleted is found missing by whoever reads next.
            if !kv.value.is_empty() {
                store.know(Head::decode(&kv.value)?.revision);
            }
        }
    }
}

fn random_name() -> Result<String, StoreError> {
    let mut bytes = [0; 12];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| StoreError::Io(std::io::Error::other("no randomness")))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
