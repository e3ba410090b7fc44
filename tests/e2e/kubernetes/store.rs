//! The control plane's state in Secrets, over an API server that enforces the access that is installed for it.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test, also in its helpers")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use signet_cli::lab::mesh::{Mesh, program};
use signet_cli::lab::runner::TestResult;
use signet_cli::lab::{Host, HostPlan, Lab};
use signet_control_plane::store::{
    Expect, KubernetesAddress, KubernetesStore, Revision, Store, StoreError, VALUE_MAX, WRITES_MAX, Write,
};
use signet_tests::Failure;
use signet_tests::kubernetes::{ApiServer, Cluster, Endpoint, Rules};
use signet_tests::manifest::{TRUST_DOMAIN, mesh, workload};

use super::stage::{SYSTEM, installed};
use contract::conforms;

#[path = "../../../control-plane/src/store/conformance/contract.rs"]
mod contract;

/// Commits of each of two control planes: together more than two snapshots.
const COMMITS: u64 = 300;

struct Place {
    api: Option<ApiServer>,
    endpoint: Endpoint,
    cluster: Cluster,
    folder: tempfile::TempDir,
    credentials: PathBuf,
    host: Host,
    _lab: Lab,
}

impl Place {
    fn new() -> Result<Self, Failure> {
        let lab = Lab::new()?;
        let host = lab.host("host", HostPlan::numbered(1))?;
        let cluster = Cluster::new();
        let role = installed("store.yaml")?.into_iter().find(|object| object["kind"] == "Role");
        cluster.grant(Rules::of(&role.ok_or("no Role")?));
        let endpoint = Endpoint::new(host.ipv4())?;
        let api = ApiServer::start(host.namespace(), &endpoint, &cluster)?;
        let folder = tempfile::tempdir()?;
        let credentials = endpoint.credentials(folder.path(), SYSTEM)?;
        Ok(Self { api: Some(api), endpoint, cluster, folder, credentials, host, _lab: lab })
    }

    fn address(&self) -> KubernetesAddress {
        KubernetesAddress {
            host: self.endpoint.address.ip().to_string(),
            port: self.endpoint.address.port(),
            credentials: self.credentials.clone(),
            namespace: SYSTEM.to_owned(),
            name: "test".to_owned(),
        }
    }

    /// A state directory.
    fn directory(&self, name: &str) -> Result<PathBuf, Failure> {
        let directory = self.folder.path().join(name);
        std::fs::create_dir_all(&directory)?;
        Ok(directory)
    }

    /// Opens the store, beside the API server, and does something with it.
    fn with<R, F>(
        &self,
        directory: &Path,
        work: impl FnOnce(Result<KubernetesStore, StoreError>) -> F + Send + 'static,
    ) -> Result<JoinHandle<R>, Failure>
    where
        R: Send + 'static,
        F: Future<Output = R>,
    {
        let (address, directory) = (self.address(), directory.to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(self.host.namespace().thread("store", move || {
            runtime.block_on(async { work(KubernetesStore::open(&address, &directory).await).await })
        })?)
    }

    fn secrets(&self) -> usize {
        self.cluster.names("secrets", SYSTEM).len()
    }
}

fn done<R>(thread: JoinHandle<R>) -> Result<R, Failure> {
    thread.join().map_err(|_| "the thread with the store ended by a panic".into())
}

pub(super) fn store_in_secrets_keeps_the_contract_and_everything_over_a_reopening() -> TestResult {
    let place = Place::new()?;
    let directory = place.directory("one")?;
    let before = done(place.with(&directory, |store| async {
        let store = store.unwrap();
        conforms(Arc::new(store.clone())).await;
        store.list("").await.unwrap()
    })?)?;
    let (again, next) = done(place.with(&directory, |store| async {
        let store = store.unwrap();
        let again = store.list("").await.unwrap();
        (again, store.commit(vec![Write::put("kept", Expect::Any, Vec::new())]).await.unwrap())
    })?)?;
    assert_eq!(again, before);
    assert_eq!(next, Revision(before.revision.0 + 1));
    assert!(place.cluster.refused().is_empty(), "{:?}", place.cluster.refused());
    Ok(())
}

pub(super) fn store_in_secrets_that_are_gone_is_refused() -> TestResult {
    let place = Place::new()?;
    let directory = place.directory("one")?;
    for _ in 0..2 {
        // What a start finds is written down at the start.
        let written = place.with(&directory, |store| async {
            store.unwrap().commit(vec![Write::put("kept", Expect::Any, Vec::new())]).await.unwrap()
        })?;
        done(written)?;
    }
    place.cluster.remove("secrets", SYSTEM, "signet-store-test-head");
    let refused = done(place.with(&directory, |store| async { store.err() })?)?;
    assert!(matches!(refused, Some(StoreError::LostWrites { found: 0, .. })), "{refused:?}");
    // A part of the history that is missing is never an empty store.
    let other = Place::new()?;
    let fresh = other.directory("fresh")?;
    done(other.with(&fresh, |store| async {
        store.unwrap().commit(vec![Write::put("kept", Expect::Any, Vec::new())]).await.unwrap()
    })?)?;
    let part = other.cluster.names("secrets", SYSTEM).into_iter().find(|name| name.contains("-c-"));
    other.cluster.remove("secrets", SYSTEM, &part.ok_or("no commit")?);
    let refused = done(other.with(&other.directory("new")?, |store| async { store.err() })?)?;
    assert!(matches!(refused, Some(StoreError::Corrupted(_))), "{refused:?}");
    Ok(())
}

pub(super) fn two_control_planes_that_write_to_secrets_at_once_lose_nothing() -> TestResult {
    let place = Place::new()?;
    let directories = [place.directory("one")?, place.directory("two")?];
    // Whoever hears no answer has to find out whether the commit is in force.
    place.cluster.lose_answers(20);
    let mut threads = Vec::new();
    for directory in &directories {
        threads.push(place.with(directory, |store| async { count_up(&store.unwrap()).await })?);
    }
    let mut numbers = Vec::new();
    for thread in threads {
        numbers.extend(done(thread)?);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=2 * COMMITS).collect::<Vec<_>>(), "each number is taken once");
    assert_eq!(place.cluster.answers_to_lose(), 0);
    // What came before the newest snapshot is gone.
    let left = place.secrets();
    assert!(left <= 300, "{left} Secrets");
    let found = done(place.with(&place.directory("three")?, |store| async {
        let store = store.unwrap();
        (store.list("taken/").await.unwrap().entries.len(), store.read("counter").await.unwrap().unwrap())
    })?)?;
    assert_eq!(found.0 as u64, 2 * COMMITS);
    assert_eq!(found.1.value, (2 * COMMITS).to_be_bytes());
    let unused = place.cluster.rules().unused();
    assert!(unused.is_empty() && place.cluster.refused().is_empty(), "{unused:?}");
    Ok(())
}

/// The numbers that were taken from a counter that others count up too.
async fn count_up(store: &KubernetesStore) -> Vec<u64> {
    let mut taken = Vec::new();
    while (taken.len() as u64) < COMMITS {
        let found = store.read("counter").await.unwrap();
        let number =
            found.as_ref().map_or(0, |entry| u64::from_be_bytes(entry.value.as_slice().try_into().unwrap()))
                + 1;
        let expect = found.map_or(Expect::Absent, |entry| Expect::At(entry.revision));
        let writes = vec![
            Write::put("counter", expect, number.to_be_bytes().to_vec()),
            Write::put(format!("taken/{number}"), Expect::Absent, Vec::new()),
        ];
        match store.commit(writes).await {
            Ok(_) => taken.push(number),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    taken
}

pub(super) fn control_plane_with_its_state_in_secrets_survives_being_killed_and_the_api_server_being_away()
-> TestResult {
    let mut place = Place::new()?;
    let signet = program(&[])
        .env("SIGNET_STORE", "kubernetes/test")
        .env("SIGNET_KUBERNETES_API", place.endpoint.address.to_string())
        .env("SIGNET_KUBERNETES_CREDENTIALS", place.credentials.clone());
    let mut control = Mesh::start_program(signet, place.host.namespace(), place.host.ipv4(), TRUST_DOMAIN)?;
    control.apply("mesh.yaml", &mesh(&[]))?;
    place.api = None;
    let refused = control.apply("again.yaml", &workload("late", &[]));
    assert!(
        refused.as_ref().is_err_and(|error| error.to_string().contains("cannot be reached")),
        "{refused:?}"
    );
    place.api = Some(ApiServer::start(place.host.namespace(), &place.endpoint, &place.cluster)?);
    control.apply("again.yaml", &workload("late", &[]))?;
    control.kill_control_plane();
    control.start_control_plane()?;
    // Only what is there can be deleted.
    control.delete("Workload", "late")?;
    assert!(place.secrets() > 0 && place.cluster.refused().is_empty(), "{:?}", place.cluster.refused());
    Ok(())
}
