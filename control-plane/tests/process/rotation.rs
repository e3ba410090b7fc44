//! Issuers and roots are replaced while proxies follow, sleep, refuse, and the process is killed.

use rustls_pki_types::CertificateDer;
use signet_identity::{Fingerprint, verify_signing_chain, verify_tls_chain};
use signet_sync::proto::admin::{
    AbortRotationRequest, RotateRequest, RotationOutcome, RotationPhase, RotationRequest, RotationState,
    RotationTarget,
};
use signet_sync::proto::sync::proxy_message::Message as Up;
use signet_sync::proto::sync::{self as wire};
use std::time::SystemTime;
use tonic::{Code, Status};

use crate::harness::{MESH, Proxy, Server, Stream, code, enrol, hello, mesh};

impl Server {
    async fn rotate(&self, target: RotationTarget, emergency: bool) -> Result<RotationState, Status> {
        let request = RotateRequest { target: target.into(), emergency, ..Default::default() };
        Ok(self.operator().await.rotate(request).await?.into_inner())
    }

    async fn rotation(&self) -> RotationState {
        self.operator().await.rotation(RotationRequest::default()).await.unwrap().into_inner()
    }

    async fn abort(&self) -> Result<RotationState, Status> {
        Ok(self.operator().await.abort_rotation(AbortRotationRequest::default()).await?.into_inner())
    }

    /// Until the rotation is in this phase; [`RotationPhase::Unspecified`] is its end.
    async fn until(&self, phase: RotationPhase) -> RotationState {
        loop {
            let state = self.rotation().await;
            if state.phase() == phase {
                return state;
            }
        }
    }
}

/// A proxy that is connected and follows the sections.
struct Follower {
    proxy: Proxy,
    stream: Stream,
}

impl Follower {
    async fn connect(server: &Server, proxy: Proxy) -> Self {
        let stream = proxy.try_connect(server.control).await.unwrap();
        let mut follower = Self { proxy, stream };
        follower.follow(|_| true).await;
        follower
    }

    /// Takes sections until the anchors are as wanted, and believes them.
    async fn follow(&mut self, wanted: impl Fn(&signet_sync::Anchors) -> bool) {
        self.stream.until(|subscriber| subscriber.anchors().is_some_and(|anchors| wanted(anchors))).await;
        self.proxy.bundle = (**self.stream.subscriber.bundle().unwrap()).clone();
    }

    fn issuer(&self) -> Option<[u8; 32]> {
        self.stream.subscriber.anchors().unwrap().issuer
    }

    /// Renews, and says so.
    async fn renew(&mut self, server: &Server) {
        self.proxy.renew(server.control).await.unwrap();
        let tls_leaf = self.proxy.tls.fingerprint.0.to_vec();
        self.stream.send(Up::Status(wire::Status { tls_leaf, ..Default::default() })).await;
    }
}

fn root_of(proxy: &Proxy) -> String {
    let [root] = proxy.bundle.roots() else { panic!("{} roots", proxy.bundle.roots().len()) };
    Fingerprint::of(root).to_string()
}

#[tokio::test]
async fn a_root_is_replaced_when_every_proxy_knows_the_next_one_and_has_certificates_of_it() {
    let (_state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    let (old_root, sleeper) = (root_of(&proxy), server.another(&proxy));
    let mut api = Follower::connect(&server, proxy).await;
    let began = server.rotate(RotationTarget::Root, false).await.unwrap();
    assert_eq!((began.number, &began.root), (1, &old_root));

    // Nothing goes on without it, and the operator learns whom it waits for.
    let [waiting] = &*server.rotation().await.waiting else { panic!("{:?}", server.rotation().await) };
    assert_eq!(waiting.spiffe_id, api.proxy.id().to_string());
    assert!(waiting.why.contains("anchors"), "{}", waiting.why);
    let busy = server.rotate(RotationTarget::Issuer, false).await.unwrap_err();
    assert_eq!(busy.code(), Code::FailedPrecondition);

    api.follow(|anchors| anchors.bundle.roots().len() == 2).await;
    let reissuing = server.until(RotationPhase::Reissuing).await;
    let before = api.issuer();
    api.follow(|anchors| anchors.issuer != before).await;
    let [waiting] = &*server.rotation().await.waiting else { panic!("{:?}", server.rotation().await) };
    assert!(waiting.why.contains("certificate"), "{}", waiting.why);
    api.renew(&server).await;
    // Who has not heard of the next root believes its certificates by the word of the old one.
    assert!(verify_tls_chain(&sleeper.bundle, &api.proxy.tls.chain, SystemTime::now()).is_ok());

    api.follow(|anchors| anchors.bundle.roots().len() == 1).await;
    let done = server.until(RotationPhase::Unspecified).await;
    assert_eq!(done.last_outcome(), RotationOutcome::Completed);
    assert_eq!((&done.root, &root_of(&api.proxy)), (&reissuing.next_root, &reissuing.next_root));
    assert_ne!(done.root, old_root);
    // What was certified by the old root is worth nothing to others now.
    assert!(verify_tls_chain(&api.proxy.bundle, &sleeper.tls.chain, SystemTime::now()).is_err());
    let open = &api.stream.subscriber.anchors().unwrap().open;
    assert!(verify_tls_chain(open, &sleeper.tls.chain, SystemTime::now()).is_ok(), "what is open goes on");
    assert_eq!(server.info().await.root_fingerprints, [done.root]);
}

#[tokio::test]
async fn who_slept_through_two_rotations_comes_back_with_what_it_has() {
    let (_state, server) = mesh().await;
    let token = {
        server.proxy("api").await;
        server.token("api", 2).await
    };
    let mut sleeper = enrol(server.control, &token).await.unwrap();
    for target in [RotationTarget::Root, RotationTarget::Issuer, RotationTarget::Root] {
        server.rotate(target, false).await.unwrap();
        server.until(RotationPhase::Unspecified).await;
    }
    // It believes the first root alone, and holds a certificate of it. Before it hears of another one it must be able to
    // verify the certificates that it gets.
    sleeper.renew(server.control).await.unwrap();
    assert!(verify_tls_chain(&sleeper.bundle, &sleeper.tls.chain, SystemTime::now()).is_ok());
    assert!(verify_signing_chain(&sleeper.bundle, &sleeper.signing.chain, SystemTime::now()).is_ok());
    let mut back = Follower::connect(&server, sleeper).await;
    assert_eq!(back.proxy.bundle.roots().len(), 1);
    assert_eq!(root_of(&back.proxy), server.rotation().await.root);
    assert!(verify_tls_chain(&back.proxy.bundle, &back.proxy.tls.chain, SystemTime::now()).is_ok());
    back.renew(&server).await;
    assert_eq!(back.proxy.tls.chain.len(), 2, "who knows the root in force is not told of older ones");
    // So does the token that pins that root.
    let late = enrol(server.control, &token).await.unwrap();
    assert!(verify_tls_chain(&back.proxy.bundle, &late.tls.chain, SystemTime::now()).is_ok());
}

#[tokio::test]
async fn who_slept_until_its_certificate_had_ended_comes_back_under_the_next_root_for_as_long_as_policy_lets_it()
 {
    let (_state, server) = mesh().await;
    let lifetimes = "spec:\n  certificates: {app: {lifetime: 1s, rejoin: 1h}}";
    server.apply(&MESH.replacen("spec:", lifetimes, 1)).await;
    let mut sleeper = server.proxy("api").await;
    let end = sleeper.tls.not_after;
    server.rotate(RotationTarget::Root, false).await.unwrap();
    server.until(RotationPhase::Unspecified).await;
    while SystemTime::now() <= end {
        server.rotation().await;
    }
    sleeper.renew(server.control).await.unwrap();
    // It opens no stream with an ended certificate, so this must hold under the root that it knows.
    assert!(verify_tls_chain(&sleeper.bundle, &sleeper.tls.chain, SystemTime::now()).is_ok());
}

#[tokio::test]
async fn a_rotation_goes_on_wherever_the_process_was_killed() {
    let (state, mut server) = mesh().await;
    let proxy = server.proxy("api").await;
    let old_root = root_of(&proxy);
    let mut api = Follower::connect(&server, proxy).await;
    server.rotate(RotationTarget::Root, false).await.unwrap();
    let again = async |server: Server, proxy: Proxy| {
        server.kill();
        let server = Server::start(state.path());
        let follower = Follower::connect(&server, proxy).await;
        (server, follower)
    };
    (server, api) = again(server, api.proxy).await;
    assert_eq!(server.rotation().await.number, 1);
    api.follow(|anchors| anchors.bundle.roots().len() == 2).await;
    server.until(RotationPhase::Reissuing).await;
    (server, api) = again(server, api.proxy).await;
    assert_eq!(server.rotation().await.phase(), RotationPhase::Reissuing);
    api.renew(&server).await;
    (server, api) = again(server, api.proxy).await;
    api.follow(|anchors| anchors.bundle.roots().len() == 1).await;
    let done = server.until(RotationPhase::Unspecified).await;
    assert_eq!(done.last_outcome(), RotationOutcome::Completed);
    assert_ne!(done.root, old_root);
    (server, api) = again(server, api.proxy).await;
    assert_eq!((server.rotation().await.root, root_of(&api.proxy)), (done.root.clone(), done.root));
}

#[tokio::test]
async fn a_rotation_is_called_off_before_and_after_the_next_issuer_certified() {
    let (_state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    let old_root = root_of(&proxy);
    let mut api = Follower::connect(&server, proxy).await;
    server.rotate(RotationTarget::Root, false).await.unwrap();
    let back = server.abort().await.unwrap();
    assert_eq!((back.phase(), back.last_outcome()), (RotationPhase::Unspecified, RotationOutcome::Reversed));
    assert_eq!(server.abort().await.unwrap_err().code(), Code::FailedPrecondition);

    let began = server.rotate(RotationTarget::Root, false).await.unwrap();
    // The roots of the one that was called off come first.
    let is_next = |root: &CertificateDer<'_>| Fingerprint::of(root).to_string() == began.next_root;
    api.follow(|anchors| anchors.bundle.roots().iter().any(is_next)).await;
    server.until(RotationPhase::Reissuing).await;
    let old_issuer = api.issuer();
    api.follow(|anchors| anchors.issuer != old_issuer).await;
    // It has certificates of the next issuer, but has not said that it uses them. Neither step is made on that.
    api.proxy.renew(server.control).await.unwrap();
    assert_eq!(server.abort().await.unwrap().phase(), RotationPhase::Returning);
    api.follow(|anchors| anchors.issuer == old_issuer).await;
    let [waiting] = &*server.rotation().await.waiting else { panic!("{:?}", server.rotation().await) };
    assert!(waiting.why.contains("certificate"), "{}", waiting.why);
    api.renew(&server).await;
    api.follow(|anchors| anchors.bundle.roots().len() == 1).await;
    let back = server.until(RotationPhase::Unspecified).await;
    assert_eq!((&back.root, back.last_outcome()), (&old_root, RotationOutcome::Reversed));
    assert!(verify_tls_chain(&api.proxy.bundle, &api.proxy.tls.chain, SystemTime::now()).is_ok());
}

#[tokio::test]
async fn a_proxy_too_old_to_follow_holds_a_rotation_up_and_is_named() {
    let (_state, server) = mesh().await;
    let old = server.proxy("api").await;
    let hello = wire::Hello { protocol: 3, min_protocol: 1, ..hello() };
    let mut stream = old.hello(server.control, "127.0.0.1", hello).await.unwrap();
    server.rotate(RotationTarget::Issuer, false).await.unwrap();
    stream.until(|subscriber| subscriber.anchors().is_some()).await;
    let state = server.rotation().await;
    assert_eq!(state.phase(), RotationPhase::Distributing);
    assert!(state.waiting[0].why.contains("upgrade"), "{:?}", state.waiting);
}

#[tokio::test]
async fn an_emergency_voids_tokens_and_sleepers_and_lets_connected_proxies_renew() {
    let (_state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    let token = server.token("api", 2).await;
    let sleeper = enrol(server.control, &token).await.unwrap();
    let old_bundle = proxy.bundle.clone();
    let mut api = Follower::connect(&server, proxy).await;
    let done = server.rotate(RotationTarget::Root, true).await.unwrap();
    assert_eq!((done.phase(), done.last_outcome()), (RotationPhase::Unspecified, RotationOutcome::Emergency));
    api.follow(|anchors| Fingerprint::of(&anchors.bundle.roots()[0]).to_string() == done.root).await;
    let open = api.stream.subscriber.anchors().unwrap().open.clone();
    for bundle in [&api.proxy.bundle, &*open] {
        assert!(verify_tls_chain(bundle, &sleeper.tls.chain, SystemTime::now()).is_err());
    }
    api.renew(&server).await;
    assert!(verify_tls_chain(&api.proxy.bundle, &api.proxy.tls.chain, SystemTime::now()).is_ok());
    assert!(verify_tls_chain(&old_bundle, &api.proxy.tls.chain, SystemTime::now()).is_err());
    // The sleeper finds nobody whom it believes, and its token pins a root that vouches for nothing.
    let unknown = crate::harness::try_dial(server.control, sleeper.tls_config(), None).await;
    assert!(unknown.is_err());
    assert!(crate::harness::try_dial(server.control, crate::harness::pinned(&token), None).await.is_err());
    // Whoever got the secret of a token out of somebody under the old root has nothing by it either.
    let stolen =
        signet_sync::Token::new(token.id().to_owned(), *token.secret(), server.token("api", 1).await.pin())
            .unwrap();
    let refused = enrol(server.control, &stolen).await.err().unwrap();
    assert_eq!(code(&refused), (Code::PermissionDenied, "token-refused"));
}

#[tokio::test]
async fn a_retired_issuer_is_refused_though_its_root_is_in_force() {
    let (_state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    let old = server.another(&proxy);
    let mut api = Follower::connect(&server, proxy).await;
    server.rotate(RotationTarget::Issuer, true).await.unwrap();
    api.follow(|anchors| !anchors.bundle.refused_issuers().is_empty()).await;
    assert!(verify_tls_chain(&api.proxy.bundle, &old.tls.chain, SystemTime::now()).is_err());
    api.renew(&server).await;
    assert!(verify_tls_chain(&api.proxy.bundle, &api.proxy.tls.chain, SystemTime::now()).is_ok());
    assert_ne!(api.proxy.tls.chain[1], old.tls.chain[1]);
}

#[tokio::test]
async fn another_trust_domain_is_refused_by_name() {
    let (_state, server) = mesh().await;
    let request = RotateRequest {
        trust_domain: "other.example".to_owned(),
        target: RotationTarget::Root.into(),
        emergency: true,
    };
    let refused = server.operator().await.rotate(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("mesh.example"), "{}", refused.message());
    assert_eq!(server.rotation().await.number, 0);
}
