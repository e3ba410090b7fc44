//! Commits that wait while another one is written are written together: one flush of the disk for all of them.
//!
//! Each keeps its own revision and its own expectations; one that fails leaves nothing and holds up nobody. So what many
//! proxies cause at once, as after a restart, takes as many flushes as the disk is slow, not as there are proxies.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use redb::{Database, ReadableTable};
use tokio::sync::oneshot;

use super::{CHANGES, COUNTERS, ENTRIES, Failure, Inner, REVISION, counter, forget_old_changes};
use crate::store::{Revision, StoreError, Write, broken};

/// Writes of one flush, unless a single commit has more: a few MiB, so that nobody waits long for others' bytes.
const WRITES_TOGETHER: usize = 4_096;

/// A commit and where its outcome goes.
pub(super) struct Waiting {
    pub(super) writes: Vec<Write>,
    pub(super) least: Revision,
    pub(super) done: oneshot::Sender<Result<Revision, StoreError>>,
}

/// Commits that wait. Each is somebody's who waits for it, so there are no more than callers.
#[derive(Default)]
pub(super) struct Writer {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    /// Somebody writes, and looks again before they stop.
    is_written: bool,
}

impl Writer {
    /// Adds a commit; whether the caller has to see to it that it is written.
    pub(super) fn wait(&self, waiting: Waiting) -> bool {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.waiting.push(waiting);
        !std::mem::replace(&mut queue.is_written, true)
    }

    /// The next ones, in their order; none when nobody waits any more.
    fn next(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.waiting.is_empty() {
            queue.is_written = false;
            return None;
        }
        let mut writes = 0;
        let fits = |waiting: &&Waiting| {
            writes += waiting.writes.len();
            writes <= WRITES_TOGETHER
        };
        let count = queue.waiting.iter().take_while(fits).count().max(1);
        Some(queue.waiting.drain(..count).collect())
    }
}

impl Inner {
    /// Writes until nobody waits. Blocks. Nothing holds the store any more when the last of them has their outcome: whoever
    /// drops it then may open it again.
    pub(super) fn write_all(self: Arc<Self>) {
        let mut next = self.writer.next();
        while let Some(together) = next {
            // A panic inside the database is how a page that lies about itself can show.
            let written = catch_unwind(AssertUnwindSafe(|| {
                self.with_database(|inner, database| commit(inner, database, &together))
            }));
            let outcomes = written
                .unwrap_or_else(|_| Err(StoreError::Corrupted("its pages contradict each other".to_owned())));
            next = self.writer.next();
            if next.is_none() {
                drop(self);
                return answer(together, outcomes);
            }
            answer(together, outcomes);
        }
    }
}

/// Tells each what came of it. Whoever asked may have gone; it is written all the same.
fn answer(together: Vec<Waiting>, outcomes: Result<Vec<Result<Revision, StoreError>>, StoreError>) {
    match outcomes {
        Ok(outcomes) => {
            for (waiting, outcome) in together.into_iter().zip(outcomes) {
                let _ = waiting.done.send(outcome);
            }
        }
        Err(error) => {
            let text = error.to_string();
            let mut first = Some(error);
            for waiting in together {
                let again = || StoreError::Io(std::io::Error::other(text.clone()));
                let _ = waiting.done.send(Err(first.take().unwrap_or_else(again)));
            }
        }
    }
}

/// All of them in one transaction. What came of each; an error is one of all.
fn commit(
    inner: &Inner,
    database: &Database,
    together: &[Waiting],
) -> Result<Vec<Result<Revision, StoreError>>, Failure> {
    let transaction = database.begin_write().map_err(redb::Error::from)?;
    let mut outcomes = Vec::with_capacity(together.len());
    let (before, revision) = {
        let mut counters = transaction.open_table(COUNTERS).map_err(redb::Error::from)?;
        let mut entries = transaction.open_table(ENTRIES).map_err(redb::Error::from)?;
        let mut changes = transaction.open_table(CHANGES).map_err(redb::Error::from)?;
        let before = counter(&counters, REVISION)?;
        let mut revision = before;
        for waiting in together {
            let found = |key: &str| -> Result<_, redb::Error> {
                Ok(entries.get(key)?.map(|found| Revision(found.value().0)))
            };
            if let Some(key) = broken(&waiting.writes, found)? {
                outcomes.push(Err(StoreError::Conflict { key: key.to_owned() }));
                continue;
            }
            revision = (revision + 1).max(waiting.least.0);
            for write in &waiting.writes {
                match &write.value {
                    Some(value) => entries.insert(write.key.as_str(), (revision, value.as_slice())).map(drop),
                    None => entries.remove(write.key.as_str()).map(drop),
                }
                .map_err(redb::Error::from)?;
                changes.insert((revision, write.key.as_str()), ()).map_err(redb::Error::from)?;
            }
            outcomes.push(Ok(Revision(revision)));
        }
        counters.insert(REVISION, revision).map_err(redb::Error::from)?;
        forget_old_changes(&mut changes, &mut counters)?;
        (before, revision)
    };
    if revision == before {
        transaction.abort().map_err(redb::Error::from)?;
        return Ok(outcomes);
    }
    transaction.commit().map_err(redb::Error::from)?;
    inner.mark.write(revision)?;
    inner.newest.send_if_modified(|newest| {
        let later = revision > *newest;
        *newest = revision.max(*newest);
        later
    });
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use super::super::RedbStore;
    use super::*;
    use crate::store::{Expect, Store};

    #[tokio::test]
    async fn commits_that_wait_are_written_together_and_one_that_fails_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = RedbStore::open(directory.path()).unwrap();
        let mut outcomes = Vec::new();
        // As when somebody writes already: none of them is written yet.
        for (key, expect) in
            [("a", Expect::Absent), ("b", Expect::Absent), ("a", Expect::Absent), ("a", Expect::Any)]
        {
            let (done, outcome) = oneshot::channel();
            let writes = vec![
                Write::put(key, expect, b"x".to_vec()),
                Write::put(format!("beside-{key}"), Expect::Any, vec![]),
            ];
            store.inner.writer.wait(Waiting { writes, least: Revision(0), done });
            outcomes.push(outcome);
        }
        let inner = store.inner.clone();
        tokio::task::spawn_blocking(move || inner.write_all()).await.unwrap();
        let mut revisions = Vec::new();
        for outcome in outcomes {
            revisions.push(outcome.await.unwrap().ok().map(|revision| revision.0));
        }
        assert_eq!(revisions, [Some(1), Some(2), None, Some(3)]);
        let found = store.read("beside-a").await.unwrap().unwrap();
        assert_eq!(found.revision, Revision(3));
        // The next one begins anew.
        let next = store.commit(vec![Write::put("c", Expect::Absent, vec![])]).await.unwrap();
        assert_eq!(next, Revision(4));
    }
}
