//! `kill -9` at any moment: nothing acknowledged is lost, nothing ever goes back.

use std::collections::BTreeSet;
use std::path::Path;

use crate::harness::{MESH, Server, assert_nothing_went_back, enrol, workload};

const KILLS: usize = 24;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_repeated_kills_and_versions_never_go_back() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(state.path());
    server.apply(MESH).await;
    let mut acknowledged = BTreeSet::new();
    let mut before = server.info().await;
    let mut running = Some(server);
    for kill in 0..KILLS {
        let server = running.take().unwrap();
        let names: Vec<String> = (0..4).map(|number| format!("w{kill}-{number}")).collect();
        acknowledged.extend(apply_until_killed(server, names, kill % 4).await);
        let server = Server::start(state.path());
        let stored = server.workloads().await;
        let lost: Vec<_> = acknowledged.difference(&stored).collect();
        assert!(lost.is_empty(), "lost after kill {kill}: {lost:?}");
        let after = server.info().await;
        assert_nothing_went_back(&before, &after);
        before = after;
        running = Some(server);
    }
    assert!(acknowledged.len() >= KILLS);
}

/// Applies one workload after the other and kills the server right after the acknowledgement numbered `last`, while
/// the next is on its way. Returns what was acknowledged.
async fn apply_until_killed(server: Server, names: Vec<String>, last: usize) -> Vec<String> {
    let mut operator = server.operator().await;
    let (acknowledgements, mut seen) = tokio::sync::mpsc::channel(names.len());
    let applying = tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        for name in names {
            let file = signet_sync::proto::admin::ManifestFile { name: name.clone(), text: workload(&name) };
            let request = signet_sync::proto::admin::ApplyRequest { files: vec![file], dry_run: false };
            let Ok(response) = operator.apply(request).await else { break };
            assert!(response.into_inner().diagnostics.is_empty());
            acknowledged.push(name);
            let _ = acknowledgements.send(()).await;
        }
        acknowledged
    });
    for _ in 0..=last {
        seen.recv().await.unwrap();
    }
    tokio::task::spawn_blocking(|| server.kill()).await.unwrap();
    applying.await.unwrap()
}

#[tokio::test]
async fn a_used_token_stays_used_and_an_enrolled_proxy_stays_enrolled_after_a_kill() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(state.path());
    server.apply(MESH).await;
    server.apply(&workload("api")).await;
    let token = server.token("api", 1).await;
    let mut proxy = enrol(server.control, &token).await.unwrap();
    server.kill();
    let server = Server::start(state.path());
    assert!(enrol(server.control, &token).await.is_err());
    proxy.renew(server.control).await.unwrap();
}

#[tokio::test]
async fn an_unchanged_state_keeps_its_versions_and_bytes_over_a_restart() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(state.path());
    server.apply(MESH).await;
    let proxy = server.proxy("api").await;
    let mut stream = proxy.connect_with(server.control, "127.0.0.5", &[]).await;
    stream.until(|subscriber| subscriber.directories().count() == 1).await;
    server.kill();
    let server = Server::start(state.path());
    let mut again = proxy.connect_with(server.control, "127.0.0.5", &[]).await;
    again.until(|subscriber| subscriber.directories().count() == 1).await;
    let sections = |stream: &crate::harness::Stream| -> Vec<_> {
        stream.subscriber.sections().map(|(name, section)| (name.clone(), section.clone())).collect()
    };
    assert_eq!(sections(&stream), sections(&again));
}

#[tokio::test]
async fn secrets_are_not_in_the_store_or_readable_by_others() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(state.path());
    server.apply(MESH).await;
    server.apply(&workload("api")).await;
    let token = server.token("api", 1).await;
    server.kill();
    let text = token.reveal();
    let secret = text.split('.').nth(1).unwrap().as_bytes();
    for entry in std::fs::read_dir(state.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            assert_private(&path);
            let bytes = std::fs::read(&path).unwrap();
            assert!(!contains(&bytes, secret) && !contains(&bytes, token.secret()), "{}", path.display());
        }
    }
}

fn assert_private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
