//! SPIFFE's Workload API as the application beside a sidecar finds it.

use std::sync::Arc;
use std::time::SystemTime;

use signet_cli::lab::mesh::intruder::inside;
use signet_cli::lab::runner::{Test, TestResult};
use signet_identity::{
    ALPN_CONTROL, ALPN_H1, TrustBundle, TrustDomain, client_config, crypto_provider, verify_app_chain,
};
use signet_sync::proto::admin::RotationTarget;
use signet_tests::manifest::{TRUST_DOMAIN, mesh, workload};
use signet_tests::workload_api::{Application, WorkloadSocket, X509, certificates, code, key_ids};
use signet_tests::{Failure, Recorder, Site, id, place, wait_for};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Code;

pub(crate) const TESTS: &[Test] = &[
    (
        "application_gets_svids_of_its_own_where_policy_offers_them_and_nowhere_else",
        application_gets_svids_of_its_own_where_policy_offers_them_and_nowhere_else,
    ),
    (
        "certificate_of_an_application_opens_neither_the_mesh_nor_the_control_plane",
        certificate_of_an_application_opens_neither_the_mesh_nor_the_control_plane,
    ),
    (
        "application_is_told_of_each_rotation_and_its_tokens_outlive_it",
        application_is_told_of_each_rotation_and_its_tokens_outlive_it,
    ),
    (
        "application_of_another_user_or_of_a_revoked_workload_gets_nothing",
        application_of_another_user_or_of_a_revoked_workload_gets_nothing,
    ),
];

const OFFERED: &str = "workloadApi: {x509: true, jwt: {audiences: [vault, db]}}";

fn site() -> Result<Site, Failure> {
    Site::new(&[
        mesh(&[]),
        workload("alice", &[OFFERED]),
        workload("bob", &[]),
        workload("carol", &["workloadApi: {jwt: {}}"]),
    ])
}

fn application(site: &Site, name: &str) -> Result<(Application, signet_cli::lab::mesh::Sidecar), Failure> {
    let (socket, setup) = WorkloadSocket::of(&site.mesh, name, "0");
    let sidecar = site.mesh.sidecar(&site.container(name)?, name, setup)?;
    Ok((socket.application()?, sidecar))
}

fn believed(x509: &X509) -> Result<(), Failure> {
    let bundle = TrustBundle::new(TrustDomain::parse(TRUST_DOMAIN)?, x509.roots.clone())?;
    let found = verify_app_chain(&bundle, &x509.svid.chain, SystemTime::now())?;
    if found == x509.svid.id { Ok(()) } else { Err(format!("it is {found}").into()) }
}

fn application_gets_svids_of_its_own_where_policy_offers_them_and_nowhere_else() -> TestResult {
    let site = site()?;
    let (alice, sidecar) = application(&site, "alice")?;
    let (bob, _of_bob) = application(&site, "bob")?;
    let (carol, _of_carol) = application(&site, "carol")?;

    assert_eq!(code(&alice.unmeant()), Code::InvalidArgument);
    let mut svids = alice.x509_svids()?;
    let x509 = X509::read(alice.next(&mut svids)?.ok_or("no answer")?)?;
    assert_eq!(x509.svid.id, id("alice"));
    believed(&x509)?;
    // Not the workload's own key, which is in the sidecar's state and leaves it nowhere.
    let own = std::fs::read(sidecar.folder().join("state/tls.pem"))?;
    let own = signet_identity::TlsSvid::from_pem(&own)?;
    assert_ne!(own.key.in_memory().map(|key| key.secret_der()), Some(x509.svid.key.secret_der()));
    let mut bundles = alice.x509_bundles()?;
    let bundle = alice.next(&mut bundles)?.ok_or("no answer")?.bundles;
    assert_eq!(certificates(&bundle[&format!("spiffe://{TRUST_DOMAIN}")])?, x509.roots);

    let token = alice.token(&["vault", "db"], "")?;
    assert_eq!(alice.token(&["db", "vault"], id("alice").as_str())?, token, "it is kept");
    for (audience, subject) in
        [(&["other"][..], ""), (&["vault", "other"], ""), (&["vault"], id("bob").as_str())]
    {
        assert_eq!(code(&alice.token(audience, subject)), Code::PermissionDenied, "{audience:?}");
    }
    assert_eq!(code(&alice.token(&[], "")), Code::InvalidArgument);

    // Carol verifies tokens and gets none; Bob is offered nothing.
    let valid = carol.validate("vault", &token)?;
    assert_eq!(valid.spiffe_id, id("alice").as_str());
    assert!(valid.claims.is_some_and(|claims| claims.fields.contains_key("exp")));
    assert_eq!(code(&carol.validate("other", &token)), Code::InvalidArgument);
    assert_eq!(code(&carol.validate("vault", &token[..token.len() - 4])), Code::InvalidArgument);
    assert_eq!(code(&carol.token(&["vault"], "")), Code::PermissionDenied);
    assert_eq!(code(&carol.x509_svids()), Code::PermissionDenied);
    for refused in [
        code(&bob.x509_svids()),
        code(&bob.x509_bundles()),
        code(&bob.jwt_bundles()),
        code(&bob.token(&["vault"], "")),
        code(&bob.validate("vault", &token)),
    ] {
        assert_eq!(refused, Code::PermissionDenied);
    }

    // What policy takes back ends, and what it gives is there.
    site.mesh.apply("site.yaml", &[workload("alice", &[]), workload("bob", &[OFFERED])].concat())?;
    let ended = loop {
        match alice.next(&mut svids) {
            Ok(Some(_)) => {}
            ended => break ended.map(drop),
        }
    };
    assert_eq!(code(&ended), Code::PermissionDenied);
    let mut svids = wait_for("what Bob is offered", || bob.x509_svids().ok())?;
    believed(&X509::read(bob.next(&mut svids)?.ok_or("no answer")?)?)
}

fn certificate_of_an_application_opens_neither_the_mesh_nor_the_control_plane() -> TestResult {
    let open = "ports: [{port: 8201, protocol: http}]";
    let site = Site::new(&[mesh(&[]), workload("alice", &[OFFERED]), workload("server", &[open])])?;
    let (alice, _sidecar) = application(&site, "alice")?;
    let (server, stranger) = (site.container("server")?, site.container("stranger")?);
    let app = Recorder::http(&server, 8201)?;
    let [sidecar] = site.sidecars([(&server, "server")])?;
    let mut svids = alice.x509_svids()?;
    let x509 = X509::read(alice.next(&mut svids)?.ok_or("no answer")?)?;
    // The workload's own identity shows that it is the certificate, and nothing else, that is refused.
    let own = site.intruder(&stranger, "alice")?;
    let as_app = |alpn: &[u8]| -> Result<rustls::ClientConfig, Failure> {
        let key = crypto_provider().key_provider.load_private_key(x509.svid.key.clone_key())?;
        let certified = rustls::sign::CertifiedKey::new(x509.svid.chain.clone(), key);
        let mut config = client_config(&own.tls, &own.bundle, &[alpn])?;
        config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
        Ok(config)
    };
    for (address, alpn) in [(place(&server, 8201), ALPN_H1), (site.mesh.address(), ALPN_CONTROL)] {
        let config = as_app(alpn)?;
        let answer = inside(stranger.namespace(), move || async move { Ok(attempt(config, address).await) })?;
        assert!(answer.is_empty(), "{address}: {}", String::from_utf8_lossy(&answer));
        let config = client_config(&own.tls, &own.bundle, &[alpn])?;
        let answer = inside(stranger.namespace(), move || async move { Ok(attempt(config, address).await) })?;
        assert!(!answer.is_empty(), "{address}: the workload itself is not answered");
    }
    assert!(sidecar.metrics()?.refusals("peer-unverified") >= 1);
    assert!(app.connections().is_empty(), "the app has seen {:?}", app.requests());
    Ok(())
}

/// What comes back for a request, if anything: a refused certificate shows with the first read.
async fn attempt(config: rustls::ClientConfig, address: std::net::SocketAddr) -> Vec<u8> {
    let mut answer = Vec::new();
    let attempt = async {
        let tcp = TcpStream::connect(address).await?;
        let mut tls = TlsConnector::from(Arc::new(config)).connect(signet_identity::dial_name(), tcp).await?;
        tls.write_all(b"GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n").await?;
        // HTTP/2 begins with settings, HTTP/1.1 with a refusal: either is an answer.
        let mut some = [0; 64];
        let read = tls.read(&mut some).await?;
        answer.extend_from_slice(&some[..read]);
        Ok::<_, std::io::Error>(())
    };
    let _ = tokio::time::timeout(signet_tests::LIMIT, attempt).await;
    answer
}

fn application_is_told_of_each_rotation_and_its_tokens_outlive_it() -> TestResult {
    let site = site()?;
    let (alice, _sidecar) = application(&site, "alice")?;
    let mut svids = alice.x509_svids()?;
    let first = X509::read(alice.next(&mut svids)?.ok_or("no answer")?)?;
    let mut keys = alice.jwt_bundles()?;
    let named = alice.next(&mut keys)?.ok_or("no answer")?;
    assert_eq!(key_ids(&named.bundles, TRUST_DOMAIN)?.len(), 1);
    let token = alice.token(&["vault"], "")?;

    site.mesh.rotate(RotationTarget::Issuer, false)?;
    let second = alice.until(&mut svids, |answer| {
        X509::read(answer).ok().filter(|next| next.svid.chain[1] != first.svid.chain[1])
    })?;
    believed(&second)?;
    assert_eq!(second.roots, first.roots);
    assert_ne!(second.svid.key.secret_der(), first.svid.key.secret_der());
    wait_for("the end of the rotation", || {
        site.mesh.rotation().ok().filter(|rotation| rotation.phase == 0).map(drop)
    })?;
    // Both are told of, and a token of each verifies.
    let both = alice.until(&mut keys, |answer| {
        key_ids(&answer.bundles, TRUST_DOMAIN).ok().filter(|ids| ids.len() == 2)
    })?;
    assert_eq!(both.len(), 2);
    alice.validate("vault", &token)?;
    let newer = wait_for("a token by the new key", || {
        alice.token(&["db"], "").ok().filter(|newer| newer.split('.').next() != token.split('.').next())
    })?;
    alice.validate("db", &newer)?;

    site.mesh.rotate(RotationTarget::Root, false)?;
    let third = alice.until(&mut svids, |answer| {
        X509::read(answer).ok().filter(|next| next.roots.len() == 1 && next.roots != first.roots)
    })?;
    believed(&third)?;
    // An emergency takes the keys with it: what was signed by them is worth nothing at once.
    let token = alice.token(&["vault"], "")?;
    site.mesh.rotate(RotationTarget::Issuer, true)?;
    wait_for("the end of the token", || {
        (code(&alice.validate("vault", &token)) == Code::InvalidArgument).then_some(())
    })
}

fn application_of_another_user_or_of_a_revoked_workload_gets_nothing() -> TestResult {
    let site = site()?;
    // The application is to be user 4711; whoever connects here is user 0.
    let (socket, setup) = WorkloadSocket::of(&site.mesh, "bob", "4711");
    let bob = site.mesh.sidecar(&site.container("bob")?, "bob", setup)?;
    let refused = socket.application().and_then(|application| Ok(application.x509_svids()?));
    assert!(refused.is_err());
    assert!(bob.metrics()?.sum("signet_workload_api_requests_total", &["connect", "forbidden"]) >= 1.0);
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(socket.path())?);
    assert_eq!(mode & 0o777, 0o660);

    let (alice, _sidecar) = application(&site, "alice")?;
    alice.token(&["vault"], "")?;
    let proxies = site.mesh.proxies()?;
    let of_alice = proxies.iter().find(|proxy| proxy.spiffe_id == id("alice").as_str());
    site.mesh.revoke(of_alice.ok_or("no proxy of alice")?.instance.parse()?, "stolen")?;
    let refused = alice.token(&["db"], "");
    assert!(matches!(code(&refused), Code::PermissionDenied | Code::Unavailable), "{refused:?}");
    Ok(())
}
