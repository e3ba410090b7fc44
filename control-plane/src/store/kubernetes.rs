//! The store on the API server of Kubernetes: for several control planes in a cluster, without an etcd of one's own.
//!
//! Kubernetes changes one object at a time, and takes objects of a megabyte. So a commit is written into objects of its own
//! first, and comes into force when the head names it, which is changed under the condition that it is as it was seen. Commits
//! name the one before, so that the history is a chain, whatever else was written for the same place. Each control plane
//! keeps the whole in memory, and asks for the head before it answers: reads are linearizable.
//!
//! Every [`SNAPSHOT_EVERY`] commits everything is written once as a whole, and the commits before are removed.

mod layout;
mod objects;
mod state;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use signet_identity::backoff;
use tokio::sync::{Mutex, watch};
use tokio_util::task::AbortOnDropHandle;

use self::layout::{Commit, Head, Kind, Names, Pointer, Snapshot};
use self::objects::{Everything, Moved, Objects, Seen};
use self::state::State;
use super::mark::Mark;
use super::{Changes, Entry, Listing, Revision, Store, StoreError, Write, check_bounds};
use crate::kubernetes::client::Client;
use crate::kubernetes::follow::{Event, follow};
use crate::kubernetes::jitter;

/// Commits between two snapshots: so many small objects are read by whoever starts.
const SNAPSHOT_EVERY: u64 = 256;

/// How often a commit starts again because somebody else was faster, or because the server did not say how it ended.
const ATTEMPTS_MAX: u32 = 32;

/// How often it is asked again after no answer: some ten seconds, then whoever waits is told.
const UNANSWERED_MAX: u32 = 5;

/// How often everything is read anew because it changed while it was read in pages.
const READS_MAX: usize = 8;

/// How often the head is read although the watch is silent.
const LOOK: Duration = Duration::from_secs(5);

/// The file of the newest revision that this control plane knows of.
const MARK_FILE: &str = "kubernetes-revision";

/// The longest name of a store: a label holds 63 characters.
const NAME_MAX: usize = 40;

/// Where the API server is, and which of its objects are the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KubernetesAddress {
    /// Name or address of the API server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Directory with `token` and `ca.crt`, as Kubernetes mounts it into pods.
    pub credentials: PathBuf,
    /// Where the Secrets are.
    pub namespace: String,
    /// What they are called.
    pub name: String,
}

impl KubernetesAddress {
    /// Whether a store can be called so: at most 40 of `a` to `z`, digits, `-` and `.`, the first and last neither `-` nor `.`.
    pub fn is_name(name: &str) -> bool {
        let inner =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        let at_the_ends =
            !name.starts_with(['-', '.']) && !name.ends_with(['-', '.']) && !name.contains("..");
        !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(inner) && at_the_ends
    }
}

/// The store in Secrets of a namespace. See the module page.
#[derive(Clone)]
pub struct KubernetesStore {
    inner: Arc<Inner>,
    /// The task that follows the head; it ends with the last handle but its own, which has none.
    _following: Option<Arc<AbortOnDropHandle<()>>>,
}

struct Inner {
    objects: Objects,
    mark: Mark,
    state: StdMutex<State>,
    /// The newest revision known, for watchers.
    newest: watch::Sender<u64>,
    /// One at a time reads what is new, or writes.
    turn: Mutex<()>,
}

impl KubernetesStore {
    /// Opens the store at `address`; `directory` is this control plane's own and remembers how far the store was.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`], [`StoreError::Refused`], [`StoreError::LostWrites`] or [`StoreError::Corrupted`].
    pub async fn open(address: &KubernetesAddress, directory: &Path) -> Result<Self, StoreError> {
        let client = Client::new(address.host.clone(), address.port, address.credentials.clone());
        let names = Names::new(format!("signet-store-{}", address.name));
        let mark = Mark::open(&directory.join(MARK_FILE))?;
        let acknowledged = mark.read()?;
        let inner = Inner {
            objects: Objects::new(client, &address.namespace, names),
            mark,
            state: StdMutex::default(),
            newest: watch::Sender::new(acknowledged),
            turn: Mutex::new(()),
        };
        let store = Self { inner: Arc::new(inner), _following: None };
        {
            let _turn = store.inner.turn.lock().await;
            let everything = store.load(acknowledged).await?;
            store.remove_leftovers(&everything).await?;
        }
        store.remember().await?;
        let following = AbortOnDropHandle::new(tokio::spawn(follow_head(store.clone())));
        Ok(Self { _following: Some(Arc::new(following)), ..store })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic is done with it half changed.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn objects(&self) -> &Objects {
        &self.inner.objects
    }

    /// Tells watchers how far the state is.
    fn tell(&self) {
        let revision = self.state().revision;
        self.inner.newest.send_if_modified(|newest| {
            let later = revision > *newest;
            *newest = revision.max(*newest);
            later
        });
    }

    /// Writes down how far the store is, for the next start.
    async fn remember(&self) -> Result<(), StoreError> {
        let store = self.clone();
        let writing = tokio::task::spawn_blocking(move || store.inner.mark.write(store.state().revision));
        writing.await.unwrap_or_else(|panic| Err(StoreError::Corrupted(panic.to_string())))
    }

    /// Reads everything anew, in a turn.
    async fn load(&self, acknowledged: u64) -> Result<Everything, StoreError> {
        for _ in 0..READS_MAX {
            let everything = self.objects().everything().await?;
            let found = everything.head.as_ref().map_or(0, |head| head.revision);
            if found < acknowledged {
                return Err(StoreError::LostWrites { acknowledged, found });
            }
            if let Some(state) = replayed(&everything, &self.objects().names)? {
                *self.state() = state;
                self.tell();
                return Ok(everything);
            }
        }
        Err(StoreError::Corrupted("some of its Secrets are gone".to_owned()))
    }

    async fn remove_leftovers(&self, everything: &Everything) -> Result<(), StoreError> {
        let names = &self.objects().names;
        let leftovers: Vec<String> = {
            let state = self.state();
            let snapshot = state.snapshot.iter().map(|at| (Kind::Snapshot, at));
            let commits = state.log.iter().map(|at| (Kind::Commit, at));
            let needed: BTreeSet<String> =
                snapshot.chain(commits).flat_map(|(kind, at)| names.parts(kind, at)).collect();
            let snapshot = state.snapshot.as_ref().map_or(0, |at| at.sequence);
            everything.leftovers(names, (state.sequence(), snapshot), &needed).collect()
        };
        self.objects().remove(leftovers).await
    }

    /// Takes in what others committed, in a turn; the head as it is.
    async fn catch_up(&self) -> Result<Option<Seen>, StoreError> {
        let seen = self.objects().head().await?;
        let (known, revision) = {
            let mut state = self.state();
            // Those since the snapshot before stay one round longer: one of them may be asked for, whether it is in force.
            let snapshot = state.snapshot.as_ref().map_or(0, |snapshot| snapshot.sequence);
            state.log.retain(|at| at.sequence > snapshot);
            (state.newest.clone(), state.revision)
        };
        let Some(head) = seen.as_ref().map(|seen| &seen.head) else {
            let lost = StoreError::LostWrites { acknowledged: revision, found: 0 };
            return if known.is_none() { Ok(None) } else { Err(lost) };
        };
        let from = known.as_ref().map_or(0, |known| known.sequence);
        if head.commit.sequence < from {
            return Err(StoreError::LostWrites { acknowledged: revision, found: head.revision });
        }
        if head.commit.sequence - from > SNAPSHOT_EVERY {
            self.load(revision).await?;
        } else if let Some(missed) = self.missed(&head.commit, from).await? {
            let is_continued = missed.last().is_none_or(|(commit, _)| {
                commit.previous.as_deref() == known.as_ref().map(|known| known.id.as_str())
            });
            if !is_continued || (missed.is_empty() && known.as_ref() != Some(&head.commit)) {
                return Err(StoreError::LostWrites { acknowledged: revision, found: head.revision });
            }
            let mut state = self.state();
            missed.into_iter().rev().for_each(|(commit, at)| state.apply(commit, at));
            state.snapshot.clone_from(&head.snapshot);
            drop(state);
            self.tell();
        } else {
            // A snapshot was made meanwhile, and what came before it was removed.
            self.load(revision).await?;
        }
        Ok(seen)
    }

    /// The commits after `from`, the newest first; none where one of them was removed.
    async fn missed(
        &self,
        newest: &Pointer,
        from: u64,
    ) -> Result<Option<Vec<(Commit, Pointer)>>, StoreError> {
        let mut missed = Vec::new();
        let mut next = Some(newest.clone());
        while let Some(at) = next.filter(|at| at.sequence > from) {
            let Some(commit) = self.objects().fetch::<Commit>(Kind::Commit, &at).await? else {
                return Ok(None);
            };
            next = before(&commit, &at);
            missed.push((commit, at));
        }
        Ok(Some(missed))
    }

    async fn commit_in_turn(&self, writes: &[Write], least: Revision) -> Result<Revision, StoreError> {
        let mut staged: Option<(Commit, Pointer)> = None;
        let mut unanswered = 0;
        for _ in 0..ATTEMPTS_MAX {
            let seen = match self.catch_up().await {
                Ok(seen) => seen,
                Err(error @ StoreError::Unreachable { .. })
                    if staged.is_some() && unanswered < UNANSWERED_MAX =>
                {
                    tracing::warn!(%error, "whether a commit is in force is asked again");
                    tokio::time::sleep(backoff(unanswered, jitter())).await;
                    unanswered += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Some((commit, at)) = &staged
                && self.state().log.contains(at)
            {
                // No answer came, and yet it was taken.
                return Ok(Revision(commit.revision));
            }
            let broken = self.state().broken(writes).map(str::to_owned);
            if let Some(key) = broken {
                self.withdraw(staged).await;
                return Err(StoreError::Conflict { key });
            }
            let (sequence, commit) = self.state().next(writes, least);
            let at = match staged.take() {
                // Nobody wrote meanwhile: the same once more.
                Some((before, at)) if at.sequence == sequence && before.previous == commit.previous => at,
                stale => {
                    self.withdraw(stale).await;
                    self.objects().stage(Kind::Commit, sequence, &commit).await?
                }
            };
            let head = Head::new(commit.revision, at.clone(), self.state().snapshot.clone());
            match self.objects().move_head(seen.as_ref(), &head).await {
                Ok(Moved::Done) => {
                    let revision = Revision(commit.revision);
                    self.state().apply(commit, at);
                    self.tell();
                    return Ok(revision);
                }
                Ok(Moved::Conflict) => staged = Some((commit, at)),
                Err(error @ StoreError::Unreachable { .. }) if unanswered < UNANSWERED_MAX => {
                    tracing::warn!(%error, "whether a commit is in force is asked again");
                    unanswered += 1;
                    staged = Some((commit, at));
                }
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Refused("others write without end".to_owned()))
    }

    /// Removes what was staged and will not come into force. What stays is removed at the next start.
    async fn withdraw(&self, staged: Option<(Commit, Pointer)>) {
        let Some((_, at)) = staged else { return };
        let names: Vec<String> = self.objects().names.parts(Kind::Commit, &at).collect();
        if let Err(error) = self.objects().remove(names).await {
            tracing::info!(%error, "parts of a commit that was withdrawn stay until the next start");
        }
    }

    /// Writes a snapshot when it is time, in a turn; what it replaces is removed.
    async fn snapshot_when_due(&self) -> Result<(), StoreError> {
        let due = {
            let state = self.state();
            let since = state.snapshot.as_ref().map_or(0, |snapshot| snapshot.sequence);
            if state.sequence() - since < SNAPSHOT_EVERY { None } else { state.snapshot() }
        };
        let Some((sequence, snapshot)) = due else { return Ok(()) };
        let at = self.objects().stage(Kind::Snapshot, sequence, &snapshot).await?;
        let names = self.objects().names.clone();
        let Some(seen) = self.catch_up().await? else { return Ok(()) };
        let head = Head::new(seen.head.revision, seen.head.commit.clone(), Some(at.clone()));
        if self.objects().move_head(Some(&seen), &head).await? == Moved::Conflict {
            // Somebody else wrote: that one, or the next commit here, makes another.
            return self.objects().remove(names.parts(Kind::Snapshot, &at)).await;
        }
        let old: Vec<String> = {
            let mut state = self.state();
            let replaced = state.snapshot.replace(at);
            let (gone, kept) =
                std::mem::take(&mut state.log).into_iter().partition(|at| at.sequence <= sequence);
            state.log = kept;
            let gone: Vec<Pointer> = gone;
            let snapshot = replaced.iter().flat_map(|at| names.parts(Kind::Snapshot, at));
            snapshot.chain(gone.iter().flat_map(|at| names.parts(Kind::Commit, at))).collect()
        };
        self.objects().remove(old).await
    }
}

/// The commit before one, as it names it.
fn before(commit: &Commit, at: &Pointer) -> Option<Pointer> {
    let id = commit.previous.clone()?;
    Some(Pointer { sequence: at.sequence.checked_sub(1)?, id, parts: commit.previous_parts })
}

/// The state that the head names; none where some of it is missing.
fn replayed(everything: &Everything, names: &Names) -> Result<Option<State>, StoreError> {
    let Some(head) = &everything.head else { return Ok(Some(State::default())) };
    let mut state = State::default();
    if let Some(at) = &head.snapshot {
        let Some(snapshot) = everything.fetch::<Snapshot>(names, Kind::Snapshot, at)? else {
            return Ok(None);
        };
        state = State::restored(snapshot, at.clone());
    }
    let mut commits = Vec::new();
    let mut next = Some(head.commit.clone());
    while let Some(at) = next.filter(|at| at.sequence > state.sequence()) {
        let Some(commit) = everything.fetch::<Commit>(names, Kind::Commit, &at)? else { return Ok(None) };
        next = before(&commit, &at);
        commits.push((commit, at));
    }
    let first = commits.last().and_then(|(commit, _)| commit.previous.as_deref());
    let is_chain = commits.is_empty() || first == state.newest.as_ref().map(|newest| newest.id.as_str());
    if !is_chain || (commits.is_empty() && state.newest.as_ref() != Some(&head.commit)) {
        return Err(StoreError::Corrupted("its commits do not follow each other".to_owned()));
    }
    commits.into_iter().rev().for_each(|(commit, at)| state.apply(commit, at));
    Ok(Some(state))
}

impl Store for KubernetesStore {
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move {
            let _turn = self.inner.turn.lock().await;
            self.catch_up().await?;
            Ok(self.state().entry(key))
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        Box::pin(async move {
            let _turn = self.inner.turn.lock().await;
            self.catch_up().await?;
            Ok(self.state().list(prefix))
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
            let revision = store.commit_in_turn(&writes, least).await?;
            if let Err(error) = store.snapshot_when_due().await {
                tracing::warn!(%error, "the store's history is not shortened; the next commit tries again");
            }
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
                let changes = self.state().changes_since(prefix, after).ok_or(StoreError::Compacted)?;
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

/// Takes in what others commit, for watchers, and writes down how far the store is.
async fn follow_head(store: KubernetesStore) {
    let (heard, mut hears) = watch::channel(());
    let (client, head) = (store.objects().client.clone(), store.objects().head_alone());
    let following = follow(&client, &head, |event| {
        if let Event::Replaced(_) | Event::Changed(_) = event {
            heard.send_replace(());
        }
    });
    let taking_in = async {
        loop {
            let _ = tokio::time::timeout(LOOK, hears.changed()).await;
            let caught_up = {
                let _turn = store.inner.turn.lock().await;
                store.catch_up().await
            };
            let remembered = match caught_up {
                Ok(_) => store.remember().await,
                Err(error) => Err(error),
            };
            if let Err(error) = remembered {
                tracing::warn!(%error, "the store cannot be followed; what is known stays");
            }
        }
    };
    tokio::select! {
        never = following => match never {},
        () = taking_in => {}
    }
}
