//! Two control planes with the same keys: a state directory that was copied, or set back behind the program's back.

use std::fs;
use std::path::Path;

use signet_sync::proto::sync::Hello;
use signet_sync::proto::sync::control_message::Message as Down;
use signet_sync::{SectionName, Subscriber};
use tempfile::TempDir;

use crate::harness::{PATIENCE, Proxy, Server, command, counter, hello, mesh, workload};

/// The state as it is on the disk.
fn copy(state: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(state).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
        }
    }
    to
}

fn has(subscriber: &Subscriber, workload: &str) -> bool {
    subscriber.policy().is_some_and(|policy| policy.model.workload_named(workload).is_some())
}

/// A proxy that comes from elsewhere with what it holds.
async fn comes_to(server: &Server, proxy: &Proxy, holds: Subscriber) -> crate::harness::Stream {
    let held = Hello { have: holds.have(), ..hello() };
    let mut stream = proxy.hello(server.control, "127.0.0.1", held).await.unwrap();
    stream.subscriber = holds;
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_with_the_same_keys_a_proxy_believes_neither_over_what_it_verified() {
    let (state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    server.kill();
    let copied = copy(state.path());
    let original = Server::start(state.path());
    let log = copied.path().join("log");
    let mut start = command(copied.path());
    start.stderr(fs::File::create(&log).unwrap());
    let other = Server::spawn(start);

    // The same number for two policies.
    original.apply(&workload("web")).await;
    other.apply(&workload("db")).await;
    let number = |info| counter(&info, &SectionName::Policy);
    assert_eq!(number(original.info().await), number(other.info().await));

    let mut stream = proxy.try_connect(original.control).await.unwrap();
    stream.until(|subscriber| has(subscriber, "web")).await;
    let mut moved = comes_to(&other, &proxy, stream.subscriber).await;
    let refused = loop {
        let message = tokio::time::timeout(PATIENCE, moved.down.message()).await.unwrap().unwrap().unwrap();
        let Some(Down::Section(section)) = message.message else { continue };
        if section.name == SectionName::Policy.to_string() {
            let outcome = moved.subscriber.handle(section);
            moved.up.send(outcome.reply).await.unwrap();
            break outcome.refused.unwrap();
        }
    };
    assert_eq!(refused.code(), "conflict");
    assert!(has(&moved.subscriber, "web") && !has(&moved.subscriber, "db"));

    // One more of the original's: the copy has none that is newer, sends nothing older, and says what it sees.
    let holds = moved.subscriber;
    original.apply(&workload("cache")).await;
    let mut stream = comes_to(&original, &proxy, holds).await;
    stream.until(|subscriber| has(subscriber, "cache")).await;
    let mut moved = comes_to(&other, &proxy, stream.subscriber).await;
    let said = async {
        loop {
            let said = fs::read_to_string(&log).unwrap();
            if said.contains("foreign-version") {
                return said;
            }
            // Its messages go on: what it holds is newer than all of them.
            if let Some(Down::Section(section)) = moved.down.message().await.unwrap().unwrap().message {
                assert_ne!(section.name, SectionName::Policy.to_string());
            }
        }
    };
    let said = tokio::time::timeout(PATIENCE, said).await.unwrap();
    assert!(said.contains("another control plane runs with the same keys"), "{said}");
    assert!(has(&moved.subscriber, "web") && has(&moved.subscriber, "cache"));
}
