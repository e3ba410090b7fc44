//! The embedded store: one `redb` file, checksummed and crash-safe, plus a high-water mark beside it.
//!
//! `redb` alone may recover to the state *before* the newest commit when the newest one is damaged. The mark file
//! holds the newest acknowledged revision, so a store that is older than what was promised is refused, not served.
//!
//! After an I/O error (a full disk) `redb` refuses further work on an open file; the next operation opens it anew, so
//! the control plane recovers by itself when there is space again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use tokio::sync::{oneshot, watch};

use self::writer::{Waiting, Writer};
use super::mark::Mark;
use super::{CHANGES_MAX, Changes, Entry, Listing, Revision, Store, StoreError, Write, check_bounds};
use crate::files;

mod writer;

const ENTRIES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("entries");
const CHANGES: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("changes");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const REVISION: &str = "revision";
const COMPACTED: &str = "compacted";

/// Memory for cached pages: the whole of a usual store, small enough for a single-board computer.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

const STORE_FILE: &str = "store.redb";
const MARK_FILE: &str = "revision";

/// The store in a directory of its own user. See the module page.
#[derive(Clone)]
pub struct RedbStore {
    inner: Arc<Inner>,
}

struct Inner {
    directory: PathBuf,
    /// `None` after an I/O error, until the next operation opens the file again.
    database: Mutex<Option<Arc<Database>>>,
    mark: Mark,
    /// The newest revision, for watchers.
    newest: watch::Sender<u64>,
    writer: Writer,
}

impl RedbStore {
    /// Opens the store in `directory`, verifying every checksum; creates it when nothing was ever acknowledged there.
    ///
    /// # Errors
    /// [`StoreError::Corrupted`], [`StoreError::LostWrites`], [`StoreError::AlreadyOpen`] or [`StoreError::Io`].
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let mark = Mark::open(&directory.join(MARK_FILE))?;
        let acknowledged = mark.read()?;
        if acknowledged == 0 && !directory.join(STORE_FILE).exists() {
            create(directory)?;
        }
        let (database, found) = open(directory, acknowledged)?;
        let inner = Inner {
            directory: directory.to_owned(),
            database: Mutex::new(Some(Arc::new(database))),
            mark,
            newest: watch::Sender::new(found),
            writer: Writer::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    async fn run<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Inner, &Database) -> Result<T, redb::Error> + Send + 'static,
    {
        self.run_checked(move |inner, database| Ok(work(inner, database)?)).await
    }

    async fn run_checked<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Inner, &Database) -> Result<T, Failure> + Send + 'static,
    {
        let inner = self.inner.clone();
        let outcome = tokio::task::spawn_blocking(move || inner.with_database(work)).await;
        // A panic inside the database is how a page that lies about itself can show.
        outcome.unwrap_or_else(|panic| Err(StoreError::Corrupted(panic.to_string())))
    }
}

impl Store for RedbStore {
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        let key = key.to_owned();
        Box::pin(self.run(move |_, database| {
            let transaction = database.begin_read()?;
            let entries = transaction.open_table(ENTRIES)?;
            Ok(entries.get(key.as_str())?.map(|found| entry(&key, found.value())))
        }))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(self.run(move |_, database| {
            let transaction = database.begin_read()?;
            let revision = counter(&transaction.open_table(COUNTERS)?, REVISION)?;
            let table = transaction.open_table(ENTRIES)?;
            let mut entries = Vec::new();
            for row in table.range(prefix.as_str()..)? {
                let (key, value) = row?;
                if !key.value().starts_with(&prefix) {
                    break;
                }
                entries.push(entry(key.value(), value.value()));
            }
            Ok(Listing { revision: Revision(revision), entries })
        }))
    }

    fn commit_from(
        &self,
        writes: Vec<Write>,
        least: Revision,
    ) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move {
            check_bounds(&writes)?;
            let (done, outcome) = oneshot::channel();
            if self.inner.writer.wait(Waiting { writes, least, done }) {
                let inner = self.inner.clone();
                tokio::task::spawn_blocking(move || inner.write_all());
            }
            outcome.await.unwrap_or_else(|_| Err(StoreError::Corrupted("it cannot be written".to_owned())))
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> BoxFuture<'a, Result<Changes, StoreError>> {
        Box::pin(async move {
            let mut newest = self.inner.newest.subscribe();
            let mut after = after;
            loop {
                newest.borrow_and_update();
                let wanted = prefix.to_owned();
                let changes =
                    self.run_checked(move |_, database| changes_since(database, &wanted, after)).await?;
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

fn forget_old_changes(
    changes: &mut redb::Table<'_, (u64, &'static str), ()>,
    counters: &mut redb::Table<'_, &'static str, u64>,
) -> Result<(), redb::Error> {
    let mut compacted = None;
    while changes.len()? > CHANGES_MAX {
        let Some((key, ())) = changes.pop_first()?.map(|(key, _)| (key.value().0, ())) else { break };
        compacted = Some(key);
    }
    if let Some(revision) = compacted {
        counters.insert(COMPACTED, revision)?;
    }
    Ok(())
}

fn changes_since(database: &Database, prefix: &str, after: Revision) -> Result<Changes, Failure> {
    let transaction = database.begin_read().map_err(redb::Error::from)?;
    let counters = transaction.open_table(COUNTERS).map_err(redb::Error::from)?;
    if after.0 < counter(&counters, COMPACTED)? {
        return Err(Failure::Store(StoreError::Compacted));
    }
    let revision = Revision(counter(&counters, REVISION)?);
    let log = transaction.open_table(CHANGES).map_err(redb::Error::from)?;
    let mut keys = BTreeSet::new();
    for row in log.range((after.0 + 1, "")..).map_err(redb::Error::from)? {
        let (key, _) = row.map_err(redb::Error::from)?;
        let (_, key) = key.value();
        if key.starts_with(prefix) {
            keys.insert(key.to_owned());
        }
    }
    let entries = transaction.open_table(ENTRIES).map_err(redb::Error::from)?;
    let mut changes = Changes { revision, written: Vec::new(), deleted: Vec::new() };
    for key in keys {
        match entries.get(key.as_str()).map_err(redb::Error::from)? {
            Some(found) => changes.written.push(entry(&key, found.value())),
            None => changes.deleted.push(key),
        }
    }
    Ok(changes)
}

fn entry(key: &str, (revision, value): (u64, &[u8])) -> Entry {
    Entry { key: key.to_owned(), value: value.to_vec(), revision: Revision(revision) }
}

fn counter(counters: &impl ReadableTable<&'static str, u64>, name: &str) -> Result<u64, redb::Error> {
    Ok(counters.get(name)?.map_or(0, |value| value.value()))
}

impl Inner {
    fn with_database<T>(
        &self,
        work: impl FnOnce(&Self, &Database) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let database = self.database()?;
        let outcome = work(self, &database).map_err(StoreError::from);
        if matches!(outcome, Err(StoreError::Io(_))) {
            *self.database.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        outcome
    }

    fn database(&self) -> Result<Arc<Database>, StoreError> {
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = &*slot {
            return Ok(database.clone());
        }
        let (database, _) = open(&self.directory, self.mark.read()?)?;
        Ok(slot.insert(Arc::new(database)).clone())
    }
}

/// Creates the file under another name first, so that a crash never leaves half a store behind.
fn create(directory: &Path) -> Result<(), StoreError> {
    let unfinished = directory.join("store.redb.new");
    files::create(&unfinished).map_err(StoreError::Io)?;
    let database = builder().create(&unfinished).map_err(redb::Error::from)?;
    create_tables(&database)?;
    drop(database);
    std::fs::rename(&unfinished, directory.join(STORE_FILE)).map_err(StoreError::Io)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(StoreError::Io)
}

fn create_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(ENTRIES)?;
    transaction.open_table(CHANGES)?;
    transaction.open_table(COUNTERS)?;
    Ok(transaction.commit()?)
}

fn open(directory: &Path, acknowledged: u64) -> Result<(Database, u64), StoreError> {
    let path = directory.join(STORE_FILE);
    // A damaged file may also make the database panic; nothing of it outlives the closure.
    let opened = std::panic::catch_unwind(|| -> Result<(Database, u64), redb::Error> {
        let database = builder().open(&path)?;
        let found = counter(&database.begin_read()?.open_table(COUNTERS)?, REVISION)?;
        Ok((database, found))
    });
    let (database, found) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(redb::Error::Io(error))) if error.kind() == ErrorKind::NotFound => {
            return Err(StoreError::LostWrites { acknowledged, found: 0 });
        }
        // What `redb` calls an invalid file and a short read are damage, not a failing disk.
        Ok(Err(redb::Error::Io(error)))
            if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            return Err(StoreError::Corrupted(error.to_string()));
        }
        Ok(Err(error @ (redb::Error::TableDoesNotExist(_) | redb::Error::UpgradeRequired(_)))) => {
            return Err(StoreError::Corrupted(error.to_string()));
        }
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => return Err(StoreError::Corrupted("its pages contradict each other".to_owned())),
    };
    if found < acknowledged {
        return Err(StoreError::LostWrites { acknowledged, found });
    }
    Ok((database, found))
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

/// What an operation inside the database can end with.
enum Failure {
    Database(redb::Error),
    Store(StoreError),
}

impl From<redb::Error> for Failure {
    fn from(error: redb::Error) -> Self {
        Self::Database(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Database(error) => error.into(),
            Failure::Store(error) => error,
        }
    }
}

impl From<redb::Error> for StoreError {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::DatabaseAlreadyOpen => Self::AlreadyOpen,
            redb::Error::Io(error) => Self::Io(error),
            redb::Error::Corrupted(reason) => Self::Corrupted(reason),
            redb::Error::ValueTooLarge(limit) => Self::TooLarge { what: "a value".to_owned(), limit },
            // All that remains means: this handle is of no further use, open the file again.
            other => Self::Io(std::io::Error::other(other)),
        }
    }
}
