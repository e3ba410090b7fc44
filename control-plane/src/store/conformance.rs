//! Every implementation of [`Store`] keeps the contract, and its own promises beside it. etcd: `tests/etcd`.

use std::sync::Arc;

use futures_util::FutureExt;

use super::memory::MemoryStore;
use super::{CHANGES_MAX, Expect, RedbStore, Revision, Store, StoreError, VALUE_MAX, WRITES_MAX, Write};

mod contract;

use contract::conforms;

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
