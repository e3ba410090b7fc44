//! A control plane whose clock is wrong, and certificates that have ended.

use std::path::Path;
use std::time::{Duration, SystemTime};

use tonic::Code;

use crate::harness::{MESH, PATIENCE, Proxy, Server, code, command, mesh, run_to_end};

/// A control plane whose clock a file moves.
fn start(state: &Path, drill: &Path) -> Server {
    let mut command = command(state);
    command.env("SIGNET_CLOCK_DRILL_FILE", drill);
    Server::spawn(command)
}

/// Tries until the answer has this code, or is a success for none.
async fn renew_until(proxy: &mut Proxy, server: &Server, wanted: Option<&str>) -> String {
    let began = tokio::time::Instant::now();
    loop {
        match (proxy.renew(server.control).await, wanted) {
            (Ok(()), None) => return String::new(),
            (Err(refusal), Some(wanted)) if code(&refusal) == (Code::Unavailable, wanted) => {
                return refusal.message().to_owned();
            }
            (outcome, _) => assert!(began.elapsed() < PATIENCE, "{outcome:?}, not {wanted:?}"),
        }
    }
}

#[tokio::test]
async fn a_clock_that_jumps_or_starts_behind_issues_nothing_until_it_is_right() {
    let (state, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let drill = folder.path().join("offset");
    let set = |seconds: i64| std::fs::write(&drill, seconds.to_string()).unwrap();
    let server = start(state.path(), &drill);
    server.apply(MESH).await;
    let mut proxy = server.proxy("api").await;
    set(86_400);
    let refused = renew_until(&mut proxy, &server, Some("clock-jumped")).await;
    assert!(refused.contains("has jumped 864") || refused.contains("has jumped 863"), "{refused}");
    set(0);
    renew_until(&mut proxy, &server, None).await;
    server.kill();

    set(-86_400);
    let server = start(state.path(), &drill);
    let refused = renew_until(&mut proxy, &server, Some("clock-behind")).await;
    assert!(refused.contains("s behind certificates that it has issued"), "{refused}");
    // Whoever has a certificate is served: the control plane shows one of the time that is certain.
    proxy.connect(server.control, "127.0.0.5").await;
    set(0);
    renew_until(&mut proxy, &server, None).await;
    server.kill();

    let fresh = tempfile::tempdir().unwrap();
    set(-50 * 365 * 86_400);
    let mut command = command(fresh.path());
    command.env("SIGNET_CLOCK_DRILL_FILE", &drill);
    let (status, said) = run_to_end(command);
    assert!(!status.success() && said.contains("stands before 2025"), "{status}: {said}");
}

/// A mesh whose certificates live a second, and a proxy whose have ended.
async fn ended(rejoin: &str) -> (tempfile::TempDir, Server, Proxy) {
    let (state, server) = mesh().await;
    let lifetimes = format!("spec:\n  certificates: {{app: {{lifetime: 1s, rejoin: {rejoin}}}}}");
    server.apply(&MESH.replacen("spec:", &lifetimes, 1)).await;
    let proxy = server.proxy("api").await;
    let end = proxy.tls.not_after;
    while SystemTime::now() <= end {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (state, server, proxy)
}

#[tokio::test]
async fn an_ended_certificate_gets_its_holder_a_new_one_and_opens_no_stream() {
    let (_state, server, mut proxy) = ended("1h").await;
    let refused = proxy.try_connect(server.control).await.err().unwrap();
    assert_eq!(code(&refused), (Code::Unauthenticated, "certificate-expired"));
    proxy.renew(server.control).await.unwrap();
    assert!(proxy.tls.not_after > SystemTime::now() - Duration::from_secs(1));
}

#[tokio::test]
async fn an_ended_certificate_is_worth_nothing_where_policy_says_so_or_after_a_revocation() {
    let (_state, server, mut proxy) = ended("0s").await;
    let refused = proxy.renew(server.control).await.unwrap_err();
    assert_eq!(code(&refused), (Code::Unauthenticated, "certificate-expired"));

    let (_state, server, mut proxy) = ended("1h").await;
    let subject = Some(signet_sync::proto::admin::revoke_request::Subject::Fingerprint(
        proxy.tls.fingerprint.to_string(),
    ));
    let request = signet_sync::proto::admin::RevokeRequest { subject, reason: "lost".to_owned() };
    server.operator().await.revoke(request).await.unwrap();
    let refused = proxy.renew(server.control).await.unwrap_err();
    assert_eq!(code(&refused).0, Code::PermissionDenied, "{refused}");
}

#[tokio::test]
async fn a_budget_that_certificates_may_not_last_for_is_noted() {
    let (_state, server) = mesh().await;
    let with = |certificates: &str| {
        let spec = format!("spec:\n  offline: {{app: {{budget: 72h}}}}\n  {certificates}");
        MESH.replacen("spec:", &spec, 1)
    };
    let [note] = server.apply(&with("")).await.notes.try_into().unwrap();
    assert!(note.message.contains("workloads of class app may be offline for 259200 s"), "{}", note.message);
    assert_eq!(note.fix, "give `certificates.app.lifetime` twice the budget");
    let long = with("certificates: {app: {lifetime: 6d}}");
    assert!(server.apply(&long).await.notes.is_empty());
}
