//! Backup and restore: proxies that saw more than the backup take the restored state, and nothing that was before it.

use std::path::Path;
use std::process::{Command, ExitStatus};

use signet_sync::proto::admin::{RevokeRequest, revoke_request};
use signet_sync::proto::sync as wire;
use signet_sync::{SectionError, SectionName, Version};
use tempfile::TempDir;

use crate::harness::{Proxy, Server, Stream, TRUST_DOMAIN, code, enrol, hello, mesh, run_to_end, workload};

fn tool(word: &str, state: &Path, arguments: &[&str], file: &Path) -> (ExitStatus, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_signet-control-plane"));
    command.args([word, "--trust-domain", TRUST_DOMAIN, "--state-dir"]).arg(state).args(arguments).arg(file);
    run_to_end(command)
}

fn backup(state: &Path, file: &Path) {
    let (status, error) = tool("backup", state, &["--output"], file);
    assert!(status.success(), "{error}");
}

fn restore(state: &Path, file: &Path, arguments: &[&str]) -> (ExitStatus, String) {
    tool("restore", state, &[arguments, &["--from"]].concat(), file)
}

fn version(stream: &Stream, name: &SectionName) -> Version {
    stream.subscriber.versions().find(|(found, _)| *found == name).unwrap().1
}

fn section(stream: &Stream, name: &SectionName) -> wire::Section {
    let (_, section) = stream.subscriber.sections().find(|(found, _)| *found == name).unwrap();
    (**section).clone()
}

/// Comes back with everything it holds.
async fn again(proxy: &Proxy, server: &Server, last: Stream) -> Stream {
    let hello = wire::Hello { have: last.subscriber.have(), ..hello() };
    let mut stream = proxy.hello(server.control, "127.0.0.5", hello).await.unwrap();
    stream.subscriber = last.subscriber;
    stream
}

async fn connected(proxy: &Proxy, server: &Server) -> Stream {
    let mut stream = proxy.try_connect(server.control).await.unwrap();
    stream.until(|subscriber| subscriber.directories().count() == 1).await;
    stream
}

async fn knows(stream: &mut Stream, workload: &str, wanted: bool) {
    let has = |subscriber: &signet_sync::Subscriber| {
        let policy = subscriber.policy().unwrap();
        policy.model.workloads.iter().any(|found| found.name == workload)
    };
    stream.until(|subscriber| has(subscriber) == wanted).await;
}

/// A mesh in which a proxy saw more than is in the backup.
struct Story {
    state: TempDir,
    file: std::path::PathBuf,
    server: Server,
    proxy: Proxy,
    stream: Stream,
}

async fn story() -> Story {
    let (state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    let mut stream = connected(&proxy, &server).await;
    server.apply(&workload("before")).await;
    knows(&mut stream, "before", true).await;
    let file = state.path().join("mesh.backup");
    // While it serves: what it holds open is asked for.
    backup(state.path(), &file);
    for name in ["after-1", "after-2", "after-3"] {
        server.apply(&workload(name)).await;
        knows(&mut stream, name, true).await;
    }
    Story { state, file, server, proxy, stream }
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_that_saw_later_versions_take_a_restored_state_and_no_replay_of_what_was_before_it() {
    let Story { state, file, server, proxy, stream } = story().await;
    let late = server.token("after-1", 2).await;
    let mut newcomer = enrol(server.control, &late).await.unwrap();
    let before = section(&stream, &SectionName::Policy);
    assert_eq!(before.epoch, 1);
    server.kill();
    let (status, error) = restore(state.path(), &file, &["--replace"]);
    assert!(status.success(), "{error}");
    let server = Server::start(state.path());
    let mut stream = again(&proxy, &server, stream).await;
    knows(&mut stream, "after-1", false).await;
    knows(&mut stream, "before", true).await;
    stream.until(|subscriber| subscriber.versions().all(|(_, version)| version.epoch == 2)).await;
    assert_eq!(version(&stream, &SectionName::Policy), Version { epoch: 2, counter: 1 });
    // Whoever kept what was signed before the restore cannot bring it back, however high its counter was.
    let refused = stream.subscriber.apply(before.clone()).unwrap_err();
    assert!(matches!(refused, SectionError::Rollback { .. }), "{refused}");
    // Nor by writing the new epoch on it.
    let forged = wire::Section { epoch: 2, counter: 99, ..before };
    assert!(matches!(stream.subscriber.apply(forged), Err(SectionError::BadSignature)));
    assert!(server.info().await.sections.iter().all(|section| section.epoch == 2));
    // It goes on from there.
    server.apply(&workload("after-1")).await;
    knows(&mut stream, "after-1", true).await;
    assert_eq!(version(&stream, &SectionName::Policy), Version { epoch: 2, counter: 2 });
    // Who was enrolled after the backup has certificates that hold, and goes on with them; the token counts as used.
    drop(newcomer.try_connect(server.control).await.unwrap());
    newcomer.renew(server.control).await.unwrap();
    assert_eq!(code(&enrol(server.control, &late).await.err().unwrap()).1, "token-refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_restored_on_an_empty_machine_with_the_same_authority_and_its_tokens_are_used_up() {
    let (state, server) = mesh().await;
    server.apply(&workload("other")).await;
    let token = server.token("other", 1).await;
    server.terminate();
    let file = state.path().join("mesh.backup");
    // While nothing serves: the store is opened.
    backup(state.path(), &file);
    let machine = tempfile::tempdir().unwrap();
    let (status, error) = restore(machine.path(), &file, &[]);
    assert!(status.success(), "{error}");
    let server = Server::start(machine.path());
    assert_eq!(code(&enrol(server.control, &token).await.err().unwrap()).1, "token-refused");
    let new = server.token("other", 1).await;
    assert_eq!(new.pin(), token.pin());
    let other = enrol(server.control, &new).await.unwrap();
    let stream = connected(&other, &server).await;
    assert_eq!(version(&stream, &SectionName::Anchors).epoch, 2);
    // Restored once more, it is an epoch further.
    server.kill();
    let (status, _) = restore(machine.path(), &file, &[]);
    assert_eq!(status.code(), Some(70), "a mesh was replaced unasked");
    let (status, error) = restore(machine.path(), &file, &["--replace"]);
    assert!(status.success(), "{error}");
    let server = Server::start(machine.path());
    assert!(server.info().await.sections.iter().all(|section| section.epoch == 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_revoked_after_the_backup_stays_revoked_when_the_store_is_replaced() {
    let Story { state, file, server, proxy, stream } = story().await;
    let subject = revoke_request::Subject::SpiffeId(proxy.id().to_string());
    let request = RevokeRequest { reason: "stolen".to_owned(), subject: Some(subject) };
    server.operator().await.revoke(request).await.unwrap();
    drop(stream);
    server.kill();
    let (status, error) = restore(state.path(), &file, &["--replace"]);
    assert!(status.success(), "{error}");
    let server = Server::start(state.path());
    let refused = proxy.try_connect(server.control).await.err().unwrap();
    assert_eq!(code(&refused).1, "revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_restored_under_a_control_plane_that_serves_or_from_a_damaged_file() {
    let Story { state, file, server, .. } = story().await;
    let before = server.info().await;
    let (status, error) = restore(state.path(), &file, &["--replace"]);
    assert_eq!(status.code(), Some(70));
    assert!(error.contains("stop it first"), "{error}");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    server.terminate();
    let (status, error) = restore(state.path(), &file, &["--replace"]);
    assert_eq!(status.code(), Some(70));
    assert!(error.contains("digest"), "{error}");
    let server = Server::start(state.path());
    let after = server.info().await;
    assert!(after.sections.iter().all(|section| section.epoch == 1));
    assert!(after.revision >= before.revision);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_for_its_owner_alone_and_holds_no_token() {
    use std::os::unix::fs::PermissionsExt;
    let (state, server) = mesh().await;
    server.apply(&workload("api")).await;
    let token = server.token("api", 1).await;
    let file = state.path().join("mesh.backup");
    backup(state.path(), &file);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains(token.reveal().split('.').nth(1).unwrap()));
}
