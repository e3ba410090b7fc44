//! Tokens in, certificates out, and nothing else out.

use futures_util::future::join_all;
use signet_identity::{KeyRequest, verify_signing_chain, verify_tls_chain};
use signet_sync::Token;
use signet_sync::proto::admin::RevokeRequest;
use signet_sync::proto::admin::revoke_request::Subject;
use std::time::{Duration, SystemTime};
use tonic::Code;

use crate::harness::{code, enrol, enrol_request, mesh, pinned, try_dial, try_enrol, workload};

#[tokio::test]
async fn a_token_gives_certificates_for_its_identity_and_no_other() {
    let (_state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    let expected = "spiffe://mesh.example/app/edge/api";
    assert_eq!(proxy.id().as_str(), expected);
    assert_eq!(proxy.response.spiffe_id, expected);
    assert_eq!(proxy.response.network, "edge");
    let now = SystemTime::now();
    let peer = verify_tls_chain(&proxy.bundle, &proxy.tls.chain, now).unwrap();
    assert_eq!(peer.id().as_str(), expected);
    let signer = verify_signing_chain(&proxy.bundle, &proxy.signing.chain, now).unwrap();
    assert_eq!(signer.id().as_str(), expected);
    let lifetime = proxy.tls.not_after.duration_since(now).unwrap();
    assert!(lifetime <= Duration::from_secs(3600) && lifetime > Duration::from_secs(3500), "{lifetime:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_ten_parallel_enrolments_with_one_token_exactly_one_succeeds() {
    let (_state, server) = mesh().await;
    server.apply(&workload("api")).await;
    let token = server.token("api", 1).await;
    let enrolments = (0..10).map(|_| {
        let (control, token) = (server.control, token.clone());
        tokio::spawn(async move { enrol(control, &token).await })
    });
    let mut succeeded = 0;
    for outcome in join_all(enrolments).await {
        match outcome.unwrap() {
            Ok(_) => succeeded += 1,
            Err(refusal) => assert_eq!(code(&refusal), (Code::PermissionDenied, "token-refused")),
        }
    }
    assert_eq!(succeeded, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_with_several_uses_gives_exactly_as_many_instances() {
    let (_state, server) = mesh().await;
    server.apply(&workload("api")).await;
    let token = server.token("api", 3).await;
    let enrolments = (0..8).map(|_| {
        let (control, token) = (server.control, token.clone());
        tokio::spawn(async move { enrol(control, &token).await.is_ok() })
    });
    let succeeded =
        join_all(enrolments).await.into_iter().filter(|outcome| *outcome.as_ref().unwrap()).count();
    assert_eq!(succeeded, 3);
    assert_eq!(server.proxies().await.len(), 3);
}

#[tokio::test]
async fn a_token_allows_no_more_live_instances_than_it_says() {
    let (_state, server) = mesh().await;
    server.apply(&workload("api")).await;
    let request = signet_sync::proto::admin::CreateTokenRequest {
        workload: "api".to_owned(),
        uses: 5,
        instances: 1,
        ..Default::default()
    };
    let created = server.operator().await.create_token(request).await.unwrap().into_inner();
    let token = Token::parse(&created.token).unwrap();
    enrol(server.control, &token).await.unwrap();
    let refusal = enrol(server.control, &token).await.err().unwrap();
    assert_eq!(code(&refusal), (Code::ResourceExhausted, "instances-exhausted"));
}

#[tokio::test]
async fn a_wrong_secret_is_refused_and_costs_the_token_nothing() {
    let (_state, server) = mesh().await;
    server.apply(&workload("api")).await;
    let token = server.token("api", 1).await;
    let guessed = Token::new(token.id().to_owned(), [7; 32], token.pin()).unwrap();
    let unknown = Token::new("unknown".to_owned(), *token.secret(), token.pin()).unwrap();
    for wrong in [guessed, unknown] {
        let refusal = enrol(server.control, &wrong).await.err().unwrap();
        assert_eq!(code(&refusal), (Code::PermissionDenied, "token-refused"));
        assert_eq!(refusal.message(), "token-refused: the token is unknown");
    }
    enrol(server.control, &token).await.unwrap();
}

#[tokio::test]
async fn a_token_dies_with_its_workload() {
    let (_state, server) = mesh().await;
    server.apply(&workload("api")).await;
    let token = server.token("api", 1).await;
    let request = signet_sync::proto::admin::DeleteRequest {
        kind: "Workload".to_owned(),
        name: "api".to_owned(),
        dry_run: false,
    };
    server.operator().await.delete(request).await.unwrap();
    let refusal = enrol(server.control, &token).await.err().unwrap();
    assert_eq!(code(&refusal), (Code::PermissionDenied, "workload-undeclared"));
}

#[tokio::test]
async fn an_unusable_request_is_refused_and_costs_the_token_nothing() {
    let (_state, server) = mesh().await;
    server.apply(&workload("api")).await;
    let token = server.token("api", 1).await;
    let (tls, signing) = (KeyRequest::new_tls().unwrap(), KeyRequest::new_signing().unwrap());
    let good = enrol_request(&token, &tls, &signing);
    let mut swapped = good.clone();
    std::mem::swap(&mut swapped.tls_csr, &mut swapped.signing_csr);
    let mut broken = good.clone();
    broken.tls_csr[40] ^= 1;
    let mut empty = good.clone();
    empty.signing_csr.clear();
    let mut large = good.clone();
    large.tls_csr = vec![0x30; 60_000];
    for request in [swapped, broken, empty, large] {
        let refusal = try_enrol(server.control, &token, request).await.unwrap_err();
        assert_eq!(code(&refusal), (Code::InvalidArgument, "bad-request"));
    }
    let mut flood = good.clone();
    flood.version = "x".repeat(1024 * 1024);
    assert_eq!(try_enrol(server.control, &token, flood).await.unwrap_err().code(), Code::OutOfRange);
    let mut future = good.clone();
    (future.min_protocol, future.protocol) = (1_000, 1_000);
    let refusal = try_enrol(server.control, &token, future).await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    try_enrol(server.control, &token, good).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_under_the_pin_never_sees_the_secret() {
    let (_state, server) = mesh().await;
    server.apply(&workload("api")).await;
    let token = server.token("api", 1).await;
    let elsewhere = Token::new(token.id().to_owned(), *token.secret(), [9; 32]).unwrap();
    assert!(try_dial(server.control, pinned(&elsewhere), None).await.is_err());
}

#[tokio::test]
async fn a_certificate_renews_into_the_same_identity_over_and_over() {
    let (_state, server) = mesh().await;
    let mut proxy = server.proxy("api").await;
    let first = proxy.tls.clone();
    for _ in 0..5 {
        let before = proxy.tls.fingerprint;
        proxy.renew(server.control).await.unwrap();
        assert_ne!(proxy.tls.fingerprint, before);
        assert_eq!(proxy.id(), &first.id);
        assert_eq!(proxy.signing.id, first.id);
    }
    // The answer to a renewal may be lost: the certificate before it still renews.
    proxy.tls = first;
    proxy.renew(server.control).await.unwrap();
    assert_eq!(server.proxies().await.len(), 1);
}

#[tokio::test]
async fn a_revoked_identity_neither_renews_nor_enrols_nor_stays_connected() {
    let (_state, server) = mesh().await;
    let mut proxy = server.proxy("api").await;
    let token = server.token("api", 1).await;
    let mut stream = proxy.connect(server.control, "127.0.0.5").await;
    stream.until(|subscriber| subscriber.policy().is_some()).await;
    let request = RevokeRequest {
        subject: Some(Subject::SpiffeId(proxy.id().to_string())),
        reason: "stolen".to_owned(),
    };
    server.operator().await.revoke(request).await.unwrap();
    let refusal = stream.end().await.unwrap_err();
    assert_eq!(code(&refusal), (Code::PermissionDenied, "revoked"));
    let refusal = proxy.renew(server.control).await.unwrap_err();
    assert_eq!(code(&refusal), (Code::PermissionDenied, "revoked"));
    let refusal = enrol(server.control, &token).await.err().unwrap();
    assert_eq!(code(&refusal), (Code::PermissionDenied, "revoked"));
}

#[tokio::test]
async fn a_revoked_certificate_is_told_to_everybody_and_others_go_on() {
    let (_state, server) = mesh().await;
    let mut stolen = server.proxy("api").await;
    let other = server.proxy("web").await;
    let mut stream = other.connect(server.control, "127.0.0.6").await;
    let request = RevokeRequest {
        subject: Some(Subject::Fingerprint(stolen.tls.fingerprint.to_string())),
        reason: String::new(),
    };
    server.operator().await.revoke(request).await.unwrap();
    let (id, fingerprint) = (stolen.id().clone(), stolen.tls.fingerprint);
    stream.until(|subscriber| subscriber.revocations().of(&id, fingerprint).is_some()).await;
    let refusal = stolen.renew(server.control).await.unwrap_err();
    assert_eq!(code(&refusal), (Code::PermissionDenied, "revoked"));
}

#[tokio::test]
async fn a_thief_that_renewed_is_revoked_by_any_certificate_of_its_instance() {
    let (_state, server) = mesh().await;
    let stolen = server.proxy("api").await;
    let mut thief = server.another(&stolen);
    thief.renew(server.control).await.unwrap();
    let other = server.proxy("web").await;
    let mut stream = other.connect(server.control, "127.0.0.6").await;
    let mut thiefs = thief.connect(server.control, "127.0.0.5").await;
    thiefs.until(|subscriber| subscriber.policy().is_some()).await;
    let request = RevokeRequest {
        subject: Some(Subject::Fingerprint(stolen.tls.fingerprint.to_string())),
        reason: "stolen".to_owned(),
    };
    server.operator().await.revoke(request).await.unwrap();
    let id = stolen.id().clone();
    for leaf in [&stolen.tls.chain, &stolen.signing.chain, &thief.tls.chain, &thief.signing.chain] {
        let fingerprint = signet_identity::Fingerprint::of(&leaf[0]);
        stream.until(|subscriber| subscriber.revocations().of(&id, fingerprint).is_some()).await;
    }
    assert_eq!(code(&thiefs.end().await.unwrap_err()), (Code::PermissionDenied, "revoked"));
    let refusal = thief.renew(server.control).await.unwrap_err();
    assert_eq!(code(&refusal), (Code::PermissionDenied, "revoked"));
    // Only that instance: the identity may still enrol.
    let token = server.token("api", 1).await;
    enrol(server.control, &token).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_renewal_that_runs_beside_a_revocation_escapes_it() {
    let (_state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    let renewals = (0..12).map(|_| {
        let (control, mut proxy) = (server.control, server.another(&proxy));
        tokio::spawn(async move { proxy.renew(control).await.is_ok().then_some(proxy) })
    });
    let renewals: Vec<_> = renewals.collect();
    let request = RevokeRequest {
        subject: Some(Subject::Fingerprint(proxy.tls.fingerprint.to_string())),
        reason: "stolen".to_owned(),
    };
    server.operator().await.revoke(request).await.unwrap();
    for renewed in join_all(renewals).await {
        if let Some(mut escaped) = renewed.unwrap() {
            assert!(escaped.renew(server.control).await.is_err());
        }
    }
    assert!(server.proxies().await.is_empty());
}

#[tokio::test]
async fn an_instance_cannot_hold_more_certificates_than_can_be_revoked() {
    let (_state, server) = mesh().await;
    let mut proxy = server.proxy("api").await;
    for _ in 1..64 {
        proxy.renew(server.control).await.unwrap();
    }
    let refusal = proxy.renew(server.control).await.unwrap_err();
    assert_eq!(code(&refusal), (Code::ResourceExhausted, "renewals-exhausted"));
}

#[tokio::test]
async fn a_workload_that_left_the_mesh_neither_renews_nor_stays_nor_comes_back() {
    let (_state, server) = mesh().await;
    let mut proxy = server.proxy("api").await;
    let mut stream = proxy.connect(server.control, "127.0.0.5").await;
    assert!(stream.verdict().await.accepted);
    let request = signet_sync::proto::admin::DeleteRequest {
        kind: "Workload".to_owned(),
        name: "api".to_owned(),
        dry_run: false,
    };
    server.operator().await.delete(request).await.unwrap();
    let undeclared = (Code::PermissionDenied, "workload-undeclared");
    assert_eq!(code(&stream.end().await.unwrap_err()), undeclared);
    assert_eq!(code(&proxy.renew(server.control).await.unwrap_err()), undeclared);
    assert_eq!(code(&proxy.try_connect(server.control).await.err().unwrap()), undeclared);
    server.apply(&workload("api")).await;
    proxy.renew(server.control).await.unwrap();
}
