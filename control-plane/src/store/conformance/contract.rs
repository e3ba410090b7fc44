//! The contract of [`Store`] as tests: one function, run on every implementation.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::join_all;

use super::{Expect, Revision, Store, StoreError, VALUE_MAX, WRITES_MAX, Write};

pub(crate) async fn conforms(store: Arc<dyn Store>) {
    a_commit_is_read_back(&*store).await;
    a_broken_expectation_writes_nothing(&*store).await;
    a_listing_is_bounded_by_its_prefix(&*store).await;
    a_watch_reports_the_present_value_of_each_changed_key(&*store).await;
    a_watch_waits_for_the_next_change(&store).await;
    one_of_many_racing_writers_wins(&store).await;
    a_large_commit_is_one_commit(&*store).await;
    a_restored_state_goes_on_behind_the_revision_it_is_told(&*store).await;
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

/// Above what etcd takes in one transaction, in number of writes and in bytes.
async fn a_large_commit_is_one_commit(store: &dyn Store) {
    let before = store.list("").await.unwrap().revision;
    let put = |key: usize, value: Vec<u8>| Write::put(format!("many/{key:04}"), Expect::Absent, value);
    let mut writes: Vec<Write> = (0..300).map(|key| put(key, vec![7; 100])).collect();
    writes.extend((300..303).map(|key| put(key, vec![8; VALUE_MAX - 100])));
    let revision = store.commit(writes.clone()).await.unwrap();
    assert_eq!(revision, Revision(before.0 + 1));
    let listing = store.list("many/").await.unwrap();
    assert_eq!((listing.revision, listing.entries.len()), (revision, 303));
    assert!(listing.entries.iter().all(|entry| entry.revision == revision));
    assert_eq!(store.watch("many/", before).await.unwrap().written, listing.entries);
    // One broken expectation among many, and nothing is written.
    let broken: Vec<Write> =
        (0..302).map(|key| Write::delete(format!("many/{key:04}"), Expect::At(revision))).collect();
    let broken = [broken, vec![Write::put("many/0302", Expect::Absent, Vec::new())]].concat();
    assert!(matches!(store.commit(broken).await, Err(StoreError::Conflict { .. })));
    assert_eq!(store.list("many/").await.unwrap(), listing);
    let all = listing.entries.iter().map(|entry| Write::delete(&entry.key, Expect::At(revision)));
    store.commit(all.collect()).await.unwrap();
    assert!(store.list("many/").await.unwrap().entries.is_empty());
}

async fn a_restored_state_goes_on_behind_the_revision_it_is_told(store: &dyn Store) {
    let before = store.list("").await.unwrap().revision;
    let put = || vec![Write::put("restored", Expect::Any, Vec::new())];
    let far = Revision(before.0 + 1_000);
    assert_eq!(store.commit_from(put(), far).await.unwrap(), far);
    // A lower one than the next changes nothing.
    assert_eq!(store.commit_from(put(), before).await.unwrap(), Revision(far.0 + 1));
    match store.watch("restored", before).await {
        Ok(changes) => assert_eq!(changes.revision, Revision(far.0 + 1)),
        Err(error) => assert!(matches!(error, StoreError::Compacted), "{error}"),
    }
}

async fn what_is_too_large_is_refused(store: &dyn Store) {
    let large = vec![Write::put("large", Expect::Any, vec![0; VALUE_MAX + 1])];
    assert!(matches!(store.commit(large).await, Err(StoreError::TooLarge { .. })));
    let many = (0..=WRITES_MAX).map(|number| Write::put(number.to_string(), Expect::Any, Vec::new()));
    assert!(matches!(store.commit(many.collect()).await, Err(StoreError::TooLarge { .. })));
}
