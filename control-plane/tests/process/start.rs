//! Starting, refusing to start, stopping.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use crate::harness::{Server, command, mesh, run_to_end};

#[test]
fn bad_configuration_exits_64_and_names_the_setting() {
    let state = tempfile::tempdir().unwrap();
    for (argument, value, named) in [
        ("--listen", "nowhere", "--listen"),
        ("--trust-domain", "NOT A DOMAIN", "SIGNET_TRUST_DOMAIN"),
        ("--no-such-flag", "x", "--no-such-flag"),
        ("--log-format", "xml", "SIGNET_LOG_FORMAT"),
    ] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_signet-control-plane"));
        command.arg("--state-dir").arg(state.path()).args([argument, value]);
        if argument != "--trust-domain" {
            command.args(["--trust-domain", "mesh.example"]);
        }
        let (status, said) = run_to_end(command);
        assert_eq!(status.code(), Some(64), "{said}");
        assert!(said.contains(named), "{said}");
    }
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0);
}

#[test]
fn sigterm_drains_and_exits_0() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(state.path());
    let socket = server.socket.clone();
    assert_eq!(server.terminate().code(), Some(0));
    assert!(!socket.exists());
}

#[tokio::test]
async fn sigterm_tells_connected_proxies_to_come_back() {
    let (_state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    let mut stream = proxy.connect(server.control, "127.0.0.5").await;
    stream.until(|subscriber| subscriber.policy().is_some()).await;
    let stopped = tokio::task::spawn_blocking(|| server.terminate());
    loop {
        match stream.next().await.unwrap() {
            Some(signet_sync::proto::sync::control_message::Message::Goaway(goaway)) => {
                assert_eq!(goaway.reason, "draining");
                break;
            }
            Some(_) => {}
            None => panic!("the stream ended without a word"),
        }
    }
    drop(stream);
    assert_eq!(stopped.await.unwrap().code(), Some(0));
}

#[test]
fn a_second_process_on_the_same_state_is_refused() {
    let state = tempfile::tempdir().unwrap();
    let _server = Server::start(state.path());
    let (status, said) = run_to_end(command(state.path()));
    assert_eq!(status.code(), Some(70));
    assert!(said.contains("in use by another process"), "{said}");
}

#[test]
fn a_socket_left_behind_by_a_killed_process_is_replaced() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(state.path());
    let socket = server.socket.clone();
    server.kill();
    assert!(socket.exists());
    Server::start(state.path());
}

#[test]
fn a_state_directory_that_others_can_write_is_refused_with_the_command_that_mends_it() {
    use std::os::unix::fs::PermissionsExt;
    let state = tempfile::tempdir().unwrap();
    for mode in [0o770, 0o1777] {
        std::fs::set_permissions(state.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let (status, said) = run_to_end(command(state.path()));
        assert_eq!(status.code(), Some(64), "{said}");
        assert!(said.contains("fix: chmod 700"), "{said}");
    }
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0);
    std::fs::set_permissions(state.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    Server::start(state.path());
}

fn refused(state: &Path) -> String {
    let (status, said) = run_to_end(command(state));
    assert_eq!(status.code(), Some(70), "{said}");
    said
}

#[tokio::test]
async fn a_damaged_state_directory_is_refused_with_the_reason() {
    let (state, server) = mesh().await;
    server.kill();
    let path = |name: &str| state.path().join(name);
    let (authority, store) = (path("authority.pem"), path("store.redb"));
    let (good_authority, good_store) = (std::fs::read(&authority).unwrap(), std::fs::read(&store).unwrap());

    let mut flipped = good_authority.clone();
    flipped[good_authority.len() / 2] ^= 1;
    std::fs::write(&authority, &flipped).unwrap();
    assert!(refused(state.path()).contains("authority.pem is corrupted"));

    std::fs::remove_file(&authority).unwrap();
    assert!(refused(state.path()).contains("authority.pem is missing"));
    std::fs::write(&authority, &good_authority).unwrap();

    std::fs::write(&store, &good_store[..good_store.len() / 2]).unwrap();
    assert!(refused(state.path()).contains("store is corrupted"));

    std::fs::remove_file(&store).unwrap();
    assert!(refused(state.path()).contains("was acknowledged"));

    std::fs::write(&store, good_store).unwrap();
    Server::start(state.path());
}

#[test]
fn another_trust_domain_is_refused() {
    let state = tempfile::tempdir().unwrap();
    Server::start(state.path()).kill();
    let mut command = command(state.path());
    command.env_remove("SIGNET_TRUST_DOMAIN");
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let mut other = std::process::Command::new(env!("CARGO_BIN_EXE_signet-control-plane"));
    other.args(
        arguments.iter().map(|argument| {
            if argument == "mesh.example" { "other.example".into() } else { argument.clone() }
        }),
    );
    let (status, said) = run_to_end(other);
    assert_eq!(status.code(), Some(70));
    assert!(said.contains("mesh.example, not other.example"), "{said}");
}

#[test]
fn health_metrics_and_roots_are_served_and_nothing_else() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(state.path());
    assert!(get(server.health, "/live").starts_with("HTTP/1.1 200"));
    assert!(get(server.health, "/ready").starts_with("HTTP/1.1 200"));
    assert!(get(server.health, "/metrics").contains("signet_control_section_version{section=\"policy\"} 1"));
    let roots = get(server.health, "/roots.pem");
    assert!(roots.contains("BEGIN CERTIFICATE") && !roots.contains("PRIVATE"));
    let bundle = get(server.health, "/bundle.json");
    let (_, bundle) = bundle.split_once("\r\n\r\n").unwrap();
    let bundle: serde_json::Value = serde_json::from_str(bundle).unwrap();
    let uses: Vec<_> = bundle["keys"].as_array().unwrap().iter().map(|key| &key["use"]).collect();
    assert_eq!(uses, ["x509-svid", "jwt-svid"]);
    assert!(bundle["spiffe_sequence"].as_u64() > Some(1 << 32) && !bundle.to_string().contains("\"d\""));
    assert!(get(server.health, "/authority.pem").starts_with("HTTP/1.1 404"));
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}
