//! The contract of [`Store`] as tests: one function, run on every implementation.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::join_all;

use super::memory::MemoryStore;
use super::{CHANGES_MAX, Expect, RedbStore, Revision, Store, StoreError, VALUE_MAX, WRITES_MAX, Write};

async fn conforms(store: Arc<dyn Store>) {
    a_commit_is_read_back(&*store).await;
    a_broken_expectation_writes_nothing(&*store).await;
    a_listing_is_bounded_by_its_prefix(&*store).await;
    a_watch_reports_the_present_value_of_each_changed_key(&*store).await;
    a_watch_waits_for_the_next_change(&store).await;
    one_of_many_racing_writers_wins(&store).await;
    what_is_too_large_is_refused(&*store).await;
}

async fn a_commit_is_read_back(store: &dyn Store) {
    let first = store.commit(vec![Write::put("a/1", Expect::Absent, b"one".to_vec())]).await.unwrap();
    let second = store
        .commit(vec![
            Write::put("a/1", Expect::At(first), b"uno".to_vec()),
            Write::put("a/2", Expect::Any, b"two".to_vec()),
        ])
        .await
        .unwrap();
    assert_eq!(second, Revision(first.0 + 1));
    let entry = store.read("a/1").await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.revision), (&b"uno"[..], second));
    assert_eq!(store.read("a/3").await.unwrap(), None);
}

async fn a_broken_expectation_writes_nothing(store: &dyn Store) {
    let before = store.list("").await.unwrap();
    for broken in [
        Write::put("a/1", Expect::Absent, Vec::new()),
        Write::put("a/1", Expect::At(Revision(1)), Vec::new()),
        Write::delete("a/9", Expect::At(before.revision)),
    ] {
        let writes = vec![Write::put("a/2", Expect::Any, b"lost".to_vec()), broken];
        assert!(matches!(store.commit(writes).await, Err(StoreError::Conflict { .. })));
    }
    assert_eq!(store.list("").await.unwrap(), before);
}

async fn a_listing_is_bounded_by_its_prefix(store: &dyn Store) {
    let writes = ["b", "b/1", "b/2", "b0"].map(|key| Write::put(key, Expect::Any, Vec::new()));
    store.commit(writes.to_vec()).await.unwrap();
    let keys: Vec<String> =
        store.list("b/").await.unwrap().entries.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, ["b/1", "b/2"]);
}

async fn a_watch_reports_the_present_value_of_each_changed_key(store: &dyn Store) {
    let start = store.list("").await.unwrap().revision;
    store.commit(vec![Write::put("c/1", Expect::Any, b"old".to_vec())]).await.unwrap();
    store.commit(vec![Write::put("c/2", Expect::Any, b"gone".to_vec())]).await.unwrap();
    store.commit(vec![Write::put("c/1", Expect::Any, b"new".to_vec())]).await.unwrap();
    let end = store.commit(vec![Write::delete("c/2", Expect::Any)]).await.unwrap();
    let changes = store.watch("c/", start).await.unwrap();
    assert_eq!(changes.revision, end);
    assert_eq!(changes.written.len(), 1);
    assert_eq!((changes.written[0].key.as_str(), changes.written[0].value.as_slice()), ("c/1", &b"new"[..]));
    assert_eq!(changes.deleted, ["c/2"]);
    assert!(store.watch("c/", changes.revision).now_or_never().is_none());
}

async fn a_watch_waits_for_the_next_change(store: &Arc<dyn Store>) {
    let start = store.list("").await.unwrap().revision;
    let watching = tokio::spawn({
        let store = store.clone();
        async move { store.watch("d/", start).await.unwrap() }
    });
    store.commit(vec![Write::put("elsewhere", Expect::Any, Vec::new())]).await.unwrap();
    store.commit(vec![Write::put("d/1", Expect::Any, Vec::new())]).await.unwrap();
    assert_eq!(watching.await.unwrap().written[0].key, "d/1");
}

async fn one_of_many_racing_writers_wins(store: &Arc<dyn Store>) {
    let start = store.commit(vec![Write::put("race", Expect::Any, Vec::new())]).await.unwrap();
    let races = (0..10_u8).map(|racer| {
        let store = store.clone();
        tokio::spawn(async move {
            store.commit(vec![Write::put("race", Expect::At(start), vec![racer])]).await.is_ok()
        })
    });
    let won = join_all(races).await.into_iter().filter(|outcome| *outcome.as_ref().unwrap()).count();
    assert_eq!(won, 1);
}

async fn what_is_too_large_is_refused(store: &dyn Store) {
    let large = vec![Write::put("large", Expect::Any, vec![0; VALUE_MAX + 1])];
    assert!(matches!(store.commit(large).await, Err(StoreError::TooLarge { .. })));
    let many = (0..=WRITES_MAX).map(|number| Write::put(number.to_string(), Expect::Any, Vec::new()));
    assert!(matches!(store.commit(many.collect()).await, Err(StoreError::TooLarge { .. })));
}

#[tokio::test]
async fn the_memory_store_conforms() {
    conforms(Arc::new(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_redb_store_conforms() {
    let directory = tempfile::tempdir().unwrap();
    conforms(Arc::new(RedbStore::open(directory.path()).unwrap())).await;
}

#[tokio::test]
async fn the_redb_store_keeps_everything_over_a_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(directory.path()).unwrap();
    assert!(matches!(RedbStore::open(directory.path()), Err(StoreError::AlreadyOpen)));
    store.commit(vec![Write::put("kept", Expect::Any, b"1".to_vec())]).await.unwrap();
    let before = store.list("").await.unwrap();
    drop(store);
    let store = RedbStore::open(directory.path()).unwrap();
    assert_eq!(store.list("").await.unwrap(), before);
    let next = store.commit(vec![Write::put("kept", Expect::Any, b"2".to_vec())]).await.unwrap();
    assert_eq!(next, Revision(before.revision.0 + 1));
}

#[tokio::test]
async fn a_watcher_that_fell_behind_is_told_to_list_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(directory.path()).unwrap();
    // A little at a time, and in one commit that is more than is kept.
    for writes in [CHANGES_MAX / 2 + 1, CHANGES_MAX / 2 + 1, CHANGES_MAX + 1] {
        let before = store.list("key/").await.unwrap().revision;
        let put = (0..writes).map(|key| Write::put(format!("key/{key}"), Expect::Any, Vec::new()));
        store.commit(put.collect()).await.unwrap();
        let behind = if writes > CHANGES_MAX { before } else { Revision(0) };
        let is_behind = matches!(store.watch("key/", behind).await, Err(StoreError::Compacted));
        assert_eq!(is_behind, before != Revision(0), "after {before:?}");
        let listing = store.list("key/").await.unwrap();
        assert_eq!(listing.entries.len() as u64, writes);
        assert!(store.watch("key/", listing.revision).now_or_never().is_none());
    }
}

#[tokio::test]
async fn a_store_older_than_what_was_acknowledged_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(directory.path()).unwrap();
    store.commit(vec![Write::put("kept", Expect::Any, b"1".to_vec())]).await.unwrap();
    let older = tempfile::tempdir().unwrap();
    let file = directory.path().join("store.redb");
    drop(store);
    std::fs::copy(&file, older.path().join("copy")).unwrap();
    let store = RedbStore::open(directory.path()).unwrap();
    store.commit(vec![Write::put("kept", Expect::Any, b"2".to_vec())]).await.unwrap();
    drop(store);
    std::fs::copy(older.path().join("copy"), &file).unwrap();
    let refused = RedbStore::open(directory.path()).err().unwrap();
    assert!(matches!(refused, StoreError::LostWrites { acknowledged: 2, found: 1 }), "{refused}");
    std::fs::remove_file(&file).unwrap();
    let refused = RedbStore::open(directory.path()).err().unwrap();
    assert!(matches!(refused, StoreError::LostWrites { acknowledged: 2, found: 0 }), "{refused}");
}

#[tokio::test]
async fn a_damaged_store_is_refused_or_unchanged_but_never_altered() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(directory.path()).unwrap();
    for number in 0..40_u8 {
        let key = format!("key/{number}");
        store.commit(vec![Write::put(key, Expect::Any, vec![number; 300])]).await.unwrap();
    }
    let truth = store.list("").await.unwrap();
    drop(store);
    let file = directory.path().join("store.redb");
    let intact = std::fs::read(&file).unwrap();
    let mut refused = 0;
    for damage in 0..48 {
        let mut bytes = intact.clone();
        let at = bytes.len() / 48 * damage;
        match damage % 3 {
            0 => bytes[at] ^= 0x10,
            1 => bytes[at..(at + 4096).min(intact.len())].fill(0),
            _ => bytes.truncate(at),
        }
        std::fs::write(&file, &bytes).unwrap();
        match RedbStore::open(directory.path()) {
            Err(_) => refused += 1,
            Ok(store) => assert_eq!(store.list("").await.unwrap(), truth),
        }
    }
    assert!(refused >= 16, "only {refused} of 48 damaged files were refused");
}
