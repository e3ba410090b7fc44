//! Who may call what on the control port.

use std::time::SystemTime;

use signet_identity::{ALPN_CONTROL, Authority, KeyRequest, SpiffeId, TlsSvid, TrustDomain, client_config};
use signet_sync::proto::sync::control_client::ControlClient;
use signet_sync::proto::sync::identity_client::IdentityClient;
use signet_sync::proto::sync::{Hello, ProxyMessage, RenewRequest, SignJwtRequest, proxy_message};
use tokio::net::TcpStream;
use tonic::Code;

use crate::harness::{code, dial, enrol, mesh, pinned, try_dial, workload};

#[tokio::test]
async fn callers_without_a_certificate_can_only_enrol() {
    let (_state, server) = mesh().await;
    server.apply(&workload("api")).await;
    let token = server.token("api", 1).await;
    let channel = dial(server.control, pinned(&token), None).await;
    let refusal = IdentityClient::new(channel.clone()).renew(RenewRequest::default()).await.unwrap_err();
    assert_eq!(code(&refusal), (Code::Unauthenticated, "certificate-required"));
    let refusal = IdentityClient::new(channel.clone()).sign_jwt(SignJwtRequest::default()).await.unwrap_err();
    assert_eq!(code(&refusal), (Code::Unauthenticated, "certificate-required"));
    let hello = ProxyMessage { message: Some(proxy_message::Message::Hello(Hello::default())) };
    let refusal = ControlClient::new(channel).connect(tokio_stream::iter([hello])).await.unwrap_err();
    assert_eq!(code(&refusal), (Code::Unauthenticated, "certificate-required"));
}

#[tokio::test]
async fn a_certificate_of_another_authority_for_the_same_name_is_refused() {
    let (_state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    let now = SystemTime::now();
    let hour = std::time::Duration::from_secs(3600);
    let domain = TrustDomain::parse(crate::harness::TRUST_DOMAIN).unwrap();
    let impostor = Authority::create(domain, now - hour, hour * 10).unwrap();
    let request = KeyRequest::new_tls().unwrap();
    let id = SpiffeId::parse(proxy.id().as_str()).unwrap();
    let chain = impostor.issue_tls(&request.csr, &id, now - hour, now + hour).unwrap();
    let svid = TlsSvid::new(chain, request.key).unwrap();
    let config = client_config(&svid, &proxy.bundle, &[ALPN_CONTROL]).unwrap();
    // With TLS 1.3 the client may learn of the refusal only with its first call.
    if let Ok(channel) = try_dial(server.control, config, None).await {
        assert!(IdentityClient::new(channel).renew(RenewRequest::default()).await.is_err());
    }
}

#[tokio::test]
async fn a_stream_that_does_not_begin_with_hello_is_refused() {
    let (_state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    let channel = dial(server.control, proxy.tls_config(), None).await;
    let claims = ProxyMessage { message: Some(proxy_message::Message::Claims(Default::default())) };
    let mut stream =
        ControlClient::new(channel).connect(tokio_stream::iter([claims])).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn connections_that_never_finish_their_handshake_keep_nobody_out() {
    let (_state, server) = mesh().await;
    server.apply(&workload("api")).await;
    let token = server.token("api", 1).await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.66:0".parse().unwrap()).unwrap();
        let stream: TcpStream = socket.connect(server.control).await.unwrap();
        silent.push(stream);
    }
    enrol(server.control, &token).await.unwrap();
}

#[tokio::test]
async fn one_source_cannot_take_all_places_for_enrolling() {
    let (_state, server) = mesh().await;
    server.apply(&workload("api")).await;
    let token = server.token("api", 1).await;
    let source = "127.0.0.66".parse().unwrap();
    let mut silent = Vec::new();
    let refused = loop {
        // With TLS 1.3 the client may learn of the refusal only with its first call.
        let Ok(channel) = try_dial(server.control, pinned(&token), Some(source)).await else { break true };
        let answer = IdentityClient::new(channel.clone()).renew(RenewRequest::default()).await;
        if answer.unwrap_err().code() != Code::Unauthenticated {
            break true;
        }
        silent.push(channel);
        if silent.len() > 16 {
            break false;
        }
    };
    assert!(refused && silent.len() == 16, "{} were let in", silent.len());
    enrol(server.control, &token).await.unwrap();
}
