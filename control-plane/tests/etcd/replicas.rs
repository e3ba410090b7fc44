//! Several control planes on one etcd: one mesh to everybody.

use std::path::Path;
use std::process::Command;

use signet_sync::SectionName;
use signet_sync::proto::admin::{RevokeRequest, revoke_request};
use signet_sync::proto::sync as wire;
use tempfile::TempDir;

use crate::cluster::{Cluster, PATIENCE};
use crate::harness::{
    MESH, Server, TRUST_DOMAIN, code, command, counter, enrol, hello, mesh, run_to_end, workload,
};

/// Enrolments tried at two control planes at once.
const RACES: usize = 8;

struct Replicas {
    cluster: Cluster,
    states: Vec<TempDir>,
    servers: Vec<Option<Server>>,
}

impl Replicas {
    /// As many control planes as asked for, with the first one's keys.
    async fn start(count: usize) -> Self {
        let cluster = Cluster::start(1);
        // Until etcd answers.
        drop(cluster.open(tempfile::tempdir().unwrap().path()).await);
        let mut replicas = Self { cluster, states: Vec::new(), servers: Vec::new() };
        for number in 0..count {
            let state = tempfile::tempdir().unwrap();
            if let Some(first) = replicas.states.first() {
                std::fs::copy(first.path().join("authority.pem"), state.path().join("authority.pem"))
                    .unwrap();
            }
            let server = replicas.spawn(state.path());
            replicas.states.push(state);
            replicas.servers.push(Some(server));
            if number == 0 {
                replicas.server(0).apply(MESH).await;
            }
        }
        replicas
    }

    fn spawn(&self, state: &Path) -> Server {
        let mut command = command(state);
        command.arg("--store").arg(self.cluster.address().to_string());
        Server::spawn(command)
    }

    fn server(&self, number: usize) -> &Server {
        self.servers[number].as_ref().unwrap()
    }

    fn kill(&mut self, number: usize) {
        self.servers[number].take().unwrap().kill();
    }
}

/// Waits until a control plane has seen what another one stored.
async fn caught_up(server: &Server, revision: u64) {
    let seeing = async { while server.info().await.revision < revision {} };
    tokio::time::timeout(PATIENCE, seeing).await.expect("it follows the store");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_replica_is_told_all_push_and_what_it_revokes_is_cut_off_everywhere() {
    let replicas = Replicas::start(2).await;
    let (one, two) = (replicas.server(0), replicas.server(1));
    let proxy = one.proxy("api").await;
    caught_up(two, one.info().await.revision).await;
    let mut stream = proxy.try_connect(two.control).await.unwrap();
    one.apply(&workload("later")).await;
    let has_later = |subscriber: &signet_sync::Subscriber| {
        subscriber
            .policy()
            .is_some_and(|policy| policy.model.workloads.iter().any(|found| found.name == "later"))
    };
    stream.until(has_later).await;
    let subject = revoke_request::Subject::SpiffeId(proxy.id().to_string());
    let request = RevokeRequest { reason: "stolen".to_owned(), subject: Some(subject) };
    one.operator().await.revoke(request).await.unwrap();
    assert_eq!(code(&stream.end().await.unwrap_err()).1, "revoked");
    // A version is one content: both say the same of every section, or one is still behind.
    let (of_one, of_two) = (one.info().await, two.info().await);
    let policy = &SectionName::Policy;
    assert_eq!(counter(&of_one, policy), counter(&of_two, policy));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_one_is_good_for_one_however_many_replicas_are_asked_at_once() {
    let replicas = Replicas::start(2).await;
    let (one, two) = (replicas.server(0), replicas.server(1));
    one.apply(&workload("api")).await;
    caught_up(two, one.info().await.revision).await;
    for race in 0..RACES {
        let token = one.token("api", 1).await;
        let outcomes = tokio::join!(enrol(one.control, &token), enrol(two.control, &token));
        let won = [&outcomes.0, &outcomes.1].into_iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(won, 1, "race {race}");
        let refused = outcomes.0.err().or_else(|| outcomes.1.err()).unwrap();
        assert_eq!(code(&refused).1, "token-refused");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_replicas_two_are_killed_and_proxies_go_on_at_the_third() {
    let mut replicas = Replicas::start(3).await;
    let mut proxy = replicas.server(0).proxy("api").await;
    let mut stream = proxy.connect(replicas.server(0).control, "127.0.0.5").await;
    assert!(stream.verdict().await.accepted);
    let id = proxy.id().clone();
    stream.until(|subscriber| crate::harness::Stream::lists(subscriber, "edge", "127.0.0.5", &id)).await;
    let held: Vec<_> = stream.subscriber.versions().map(|(name, version)| (name.clone(), version)).collect();
    let have = stream.subscriber.have();
    replicas.kill(0);
    replicas.kill(1);
    let third = replicas.server(2);
    // The place it held through another one is its own here.
    let claims = vec![crate::harness::claim("127.0.0.5")];
    let hello = wire::Hello { have, claims, ..hello() };
    let mut again = proxy.hello(third.control, "127.0.0.5", hello).await.unwrap();
    again.subscriber = stream.subscriber;
    assert!(again.verdict().await.accepted);
    third.apply(&workload("later")).await;
    again
        .until(|subscriber| {
            subscriber.policy().is_some_and(|policy| policy.model.workloads.iter().any(|w| w.name == "later"))
        })
        .await;
    for (name, version) in held {
        let now = again.subscriber.versions().find(|(found, _)| **found == name).unwrap().1;
        assert!(now >= version, "{name} went back from {version} to {now}");
    }
    proxy.renew(third.control).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_the_keys_or_with_others_does_not_start() {
    let replicas = Replicas::start(1).await;
    let empty = tempfile::tempdir().unwrap();
    let mut without = command(empty.path());
    without.arg("--store").arg(replicas.cluster.address().to_string());
    let (status, error) = run_to_end(without);
    assert_eq!(status.code(), Some(70));
    assert!(error.contains("authority.pem is missing"), "{error}");
    // Keys of another mesh.
    let other = tempfile::tempdir().unwrap();
    Server::start(other.path()).kill();
    let mut with_others = command(other.path());
    with_others.arg("--store").arg(replicas.cluster.address().to_string());
    let (status, error) = run_to_end(with_others);
    assert_eq!(status.code(), Some(70));
    assert!(error.contains("do not belong together"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_moves_to_etcd_by_a_backup_and_its_proxies_come_with_it() {
    let (state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    let mut stream = proxy.try_connect(server.control).await.unwrap();
    stream.until(|subscriber| subscriber.directories().count() == 1).await;
    let cluster = Cluster::start(1);
    drop(cluster.open(tempfile::tempdir().unwrap().path()).await);
    let (file, new) = (state.path().join("mesh.backup"), tempfile::tempdir().unwrap());
    let store = cluster.address().to_string();
    let tool = |word: &str, directory: &Path, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_signet-control-plane"));
        command
            .args([word, "--trust-domain", TRUST_DOMAIN, "--state-dir"])
            .arg(directory)
            .args(more)
            .arg(&file);
        let (status, error) = run_to_end(command);
        assert!(status.success(), "{error}");
    };
    tool("backup", state.path(), &["--output"]);
    server.kill();
    tool("restore", new.path(), &["--store", &store, "--from"]);
    let mut command = command(new.path());
    command.args(["--store", &store]);
    let server = Server::spawn(command);
    let hello = wire::Hello { have: stream.subscriber.have(), ..hello() };
    let mut again = proxy.hello(server.control, "127.0.0.1", hello).await.unwrap();
    again.subscriber = stream.subscriber;
    again.until(|subscriber| subscriber.versions().all(|(_, version)| version.epoch == 2)).await;
    // And from etcd into a file again, without a control plane.
    server.terminate();
    tool("backup", new.path(), &["--store", &store, "--output"]);
}
