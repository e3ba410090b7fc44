//! The control plane's machine is opened.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use signet_sync::proto::sync as wire;
use tonic::Code;

use crate::harness::{PATIENCE, Server, command, mesh, run_to_end};

/// What `/ready` answers.
fn ready(health: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&health, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn keys(state: &Path) -> bool {
    ["authority.pem", "authority.new"].iter().any(|file| state.join(file).exists())
}

#[tokio::test]
async fn a_tampered_control_plane_cuts_everybody_destroys_its_keys_and_does_not_come_back() {
    let state = tempfile::tempdir().unwrap();
    let sensor = state.path().join("sensor");
    let with_sensor = || {
        let mut command = command(state.path());
        command.arg("--tamper-file").arg(&sensor);
        command
    };
    let server = Server::spawn(with_sensor());
    server.apply(&format!("{}---\n{}", crate::harness::MESH, crate::harness::workload("api"))).await;
    let proxy = server.proxy("api").await;
    let mut stream = proxy.connect(server.control, "127.0.0.5").await;
    stream.until(|subscriber| subscriber.policy().is_some()).await;

    std::fs::write(&sensor, "lid").unwrap();
    while let Ok(Some(_)) = stream.next().await {}
    let said = tokio::task::spawn_blocking({
        let health = server.health;
        move || {
            let began = std::time::Instant::now();
            loop {
                match ready(health) {
                    Some(answer) if answer.ends_with("tampered\n") => return answer,
                    _ if began.elapsed() > PATIENCE => panic!("it does not say so"),
                    _ => std::thread::sleep(std::time::Duration::from_millis(10)),
                }
            }
        }
    });
    assert!(said.await.unwrap().starts_with("HTTP/1.1 503 "));
    assert!(!keys(state.path()));
    assert!(TcpStream::connect(server.control).is_err(), "it still takes connections");
    assert_eq!(server.terminate().code(), Some(1));

    std::fs::remove_file(&sensor).unwrap();
    let (status, said) = run_to_end(with_sensor());
    assert_eq!(status.code(), Some(64), "{said}");
    assert!(said.contains("this machine was tampered with (the tamper file says"), "{said}");
    assert!(!keys(state.path()), "no new authority takes its place");
}

#[tokio::test]
async fn a_machine_that_was_opened_while_it_was_off_starts_nothing() {
    let state = tempfile::tempdir().unwrap();
    Server::start(state.path()).terminate();
    assert!(keys(state.path()));
    let sensor = state.path().join("sensor");
    std::fs::write(&sensor, "1").unwrap();
    let mut command = command(state.path());
    command.arg("--tamper-file").arg(&sensor);
    let (status, said) = run_to_end(command);
    assert_eq!(status.code(), Some(64), "{said}");
    assert!(!keys(state.path()));
}

/// Whoever holds the key of an instance may give it up, and it is believed once.
#[tokio::test]
async fn a_report_of_tampering_revokes_the_instance_that_makes_it_and_no_other() {
    let (_state, server) = mesh().await;
    let (one, other) = (server.proxy("api").await, server.proxy("api").await);
    let report = || wire::ReportTamperingRequest {
        code: "file-says".to_owned(),
        detail: "the lid\u{1b}[2J".to_owned(),
    };
    let mut client = one.identity(server.control).await;
    client.report_tampering(report()).await.unwrap();
    let refused = client.report_tampering(report()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let request = signet_sync::proto::admin::ListRevocationsRequest {};
    let listed = server.operator().await.list_revocations(request).await.unwrap().into_inner().revocations;
    assert!(!listed.is_empty());
    for entry in &listed {
        assert_eq!(entry.reason, "tampered: the lid[2J (file-says)");
        assert!(entry.tampered.ends_with("/api"), "{entry:?}");
    }
    let mut client = other.identity(server.control).await;
    client.report_tampering(report()).await.expect("the other instance is not revoked");
}
