//! The store on real etcd: one member, and three of which some are killed under load.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test, also in its helpers")]
#![allow(clippy::disallowed_methods, reason = "tests go by the machine's clock")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signet_control_plane::store::{
    EtcdStore, Expect, Revision, Store, StoreError, VALUE_MAX, WRITES_MAX, Write,
};
use tokio::sync::watch;

use crate::cluster::{Cluster, PATIENCE};
use crate::contract::conforms;

mod cluster;
#[path = "../../src/store/conformance/contract.rs"]
mod contract;
mod encrypted;
#[allow(dead_code, reason = "not all of it is needed here")]
#[path = "../process/harness.rs"]
mod harness;
mod replicas;

#[tokio::test(flavor = "multi_thread")]
async fn real_etcd_conforms_and_keeps_everything_over_a_restart_of_both() {
    let mut cluster = Cluster::start(1);
    let directory = tempfile::tempdir().unwrap();
    let store = cluster.open(directory.path()).await;
    conforms(Arc::new(store.clone())).await;
    let before = store.list("").await.unwrap();
    drop(store);
    cluster.kill(0);
    cluster.start_again(0);
    let store = cluster.open(directory.path()).await;
    assert_eq!(store.list("").await.unwrap(), before);
    let next = store.commit(vec![Write::put("kept", Expect::Any, Vec::new())]).await.unwrap();
    assert_eq!(next, Revision(before.revision.0 + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn real_etcd_that_was_emptied_is_refused() {
    let mut cluster = Cluster::start(1);
    let directory = tempfile::tempdir().unwrap();
    let store = cluster.open(directory.path()).await;
    store.commit(vec![Write::put("kept", Expect::Any, Vec::new())]).await.unwrap();
    drop(store);
    // What a start finds is written down at the start.
    drop(cluster.open(directory.path()).await);
    cluster.kill(0);
    std::fs::remove_dir_all(cluster.folder.path().join("m0")).unwrap();
    cluster.start_again(0);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match EtcdStore::open(&cluster.address(), None, directory.path()).await {
            Err(StoreError::LostWrites { acknowledged: 1, found: 0 }) => return,
            Err(StoreError::Unreachable { .. }) if tokio::time::Instant::now() < deadline => {}
            other => panic!("{:?}", other.err()),
        }
    }
}

/// What one writer saw of its own counter: each value it was told is written.
async fn count_up(
    store: EtcdStore,
    key: String,
    stop: Arc<AtomicBool>,
    highest: watch::Sender<u64>,
) -> (u64, u64) {
    let (mut acknowledged, mut failed) = (0_u64, 0_u64);
    while !stop.load(Ordering::Relaxed) {
        let found = store.read(&key).await;
        let Ok(found) = found else {
            failed += 1;
            continue;
        };
        let value =
            found.as_ref().map_or(0, |entry| u64::from_be_bytes(entry.value.as_slice().try_into().unwrap()));
        assert!(value >= acknowledged, "{key}: {acknowledged} was acknowledged and {value} is there");
        let expect = found.map_or(Expect::Absent, |entry| Expect::At(entry.revision));
        // Beside its own counter it takes a number of which nobody else may get the same.
        let serial = store.read("serial").await.ok().flatten();
        let taken =
            serial.as_ref().map_or(0, |entry| u64::from_be_bytes(entry.value.as_slice().try_into().unwrap()));
        let serial_is = serial.map_or(Expect::Absent, |entry| Expect::At(entry.revision));
        let number = taken + 1;
        let writes = vec![
            Write::put(&key, expect, (value + 1).to_be_bytes().to_vec()),
            Write::put("serial", serial_is, number.to_be_bytes().to_vec()),
            Write::put(format!("taken/{number}"), Expect::Absent, key.clone().into_bytes()),
        ];
        match store.commit(writes).await {
            Ok(revision) => {
                acknowledged = value + 1;
                highest.send_modify(|highest| *highest = revision.0.max(*highest));
            }
            Err(StoreError::Conflict { .. }) => {}
            // It may have happened; what is read next tells.
            Err(_) => failed += 1,
        }
    }
    (acknowledged, failed)
}

#[tokio::test(flavor = "multi_thread")]
async fn real_etcd_of_three_members_loses_nothing_when_members_are_killed_under_load() {
    let mut cluster = Cluster::start(3);
    let directories: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut stores = Vec::new();
    for directory in &directories {
        stores.push(cluster.open(directory.path()).await);
    }
    conforms(Arc::new(stores[0].clone())).await;
    let (stop, highest) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(0));
    let writers: Vec<_> = (0..4)
        .map(|number| {
            let store = stores[number % 2].clone();
            tokio::spawn(count_up(store, format!("counter/{number}"), stop.clone(), highest.clone()))
        })
        .collect();
    for victim in [0, 1, 2] {
        let before = *highest.borrow();
        cluster.kill(victim);
        // The two that are left go on.
        progress(&highest, before + 20).await;
        cluster.start_again(victim);
        progress(&highest, before + 40).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut sums = (0, 0);
    for (number, writer) in writers.into_iter().enumerate() {
        let (acknowledged, failed) = writer.await.unwrap();
        let found = stores[1].read(&format!("counter/{number}")).await.unwrap().unwrap();
        assert!(u64::from_be_bytes(found.value.as_slice().try_into().unwrap()) >= acknowledged);
        sums = (sums.0 + acknowledged, sums.1 + failed);
    }
    // Every number was taken once: as many as the counters say in all, without a gap.
    let taken = stores[0].list("taken/").await.unwrap().entries;
    let serial = stores[0].read("serial").await.unwrap().unwrap();
    let serial = u64::from_be_bytes(serial.value.as_slice().try_into().unwrap());
    assert_eq!(taken.len() as u64, serial);
    let keys: BTreeSet<u64> =
        taken.iter().map(|entry| entry.key.trim_start_matches("taken/").parse().unwrap()).collect();
    assert_eq!(keys, (1..=serial).collect());
    let counted: u64 = stores[0]
        .list("counter/")
        .await
        .unwrap()
        .entries
        .iter()
        .map(|entry| u64::from_be_bytes(entry.value.as_slice().try_into().unwrap()))
        .sum();
    assert_eq!(counted, serial);
    println!("{} acknowledged, {} calls failed", sums.0, sums.1);
}

/// Waits until a revision was acknowledged.
async fn progress(highest: &watch::Sender<u64>, wanted: u64) {
    let mut seen = highest.subscribe();
    let reached = tokio::time::timeout(PATIENCE, seen.wait_for(|highest| *highest >= wanted)).await;
    reached.expect("nothing is written any more").unwrap();
}
