use std::time::Duration;

use rustls::{HandshakeKind, NamedGroup, ProtocolVersion};

use super::*;
use crate::certificate::CertificateError;
use crate::id::TrustDomain;
use crate::testing::{FixedClock, HOUR, MINUTE, Mesh, at, handshake, handshake_again, now};
use crate::verify::{VerifyError, expect, peer, verify_signing_chain};

const ALPN: &[&[u8]] = &[ALPN_H2, ALPN_H1];

fn client(mesh: &Mesh) -> ClientConfig {
    client_config(&mesh.tls_svid("gw"), &mesh.authority.bundle(), ALPN).unwrap()
}

fn server(mesh: &Mesh) -> ServerConfig {
    server_config(&mesh.tls_svid("store"), &mesh.authority.bundle(), ALPN).unwrap()
}

/// The reason inside a handshake's error.
fn reason(error: &rustls::Error) -> Option<&VerifyError> {
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => other.0.downcast_ref(),
        _ => None,
    }
}

#[test]
fn both_ends_learn_who_the_other_is_and_share_a_channel_id() {
    let mesh = Mesh::new();
    let (client, server) = handshake(client(&mesh), server(&mesh), now()).unwrap();
    assert_eq!(peer(&client).unwrap().id(), &mesh.id("store"));
    assert_eq!(peer(&server).unwrap().id(), &mesh.id("gw"));
    assert_eq!(expect(&peer(&client).unwrap(), &[mesh.id("store")]), Ok(()));
    assert_eq!(channel_id(&client).unwrap(), channel_id(&server).unwrap());
    assert_eq!(client.alpn_protocol(), Some(ALPN_H2));
    assert_eq!(server.server_name(), None);
}

#[test]
fn channel_ids_of_two_connections_differ() {
    let mesh = Mesh::new();
    let (client, server) = at(client(&mesh), server(&mesh), now());
    let (one, _) = handshake_again(&client, &server).unwrap();
    let (two, _) = handshake_again(&client, &server).unwrap();
    assert_ne!(channel_id(&one).unwrap(), channel_id(&two).unwrap());
}

#[test]
fn keys_for_messages_are_shared_by_both_ends_and_differ_by_direction_and_connection() {
    let mesh = Mesh::new();
    let (client, server) = at(client(&mesh), server(&mesh), now());
    let (here, there) = handshake_again(&client, &server).unwrap();
    let (other, _) = handshake_again(&client, &server).unwrap();
    let (keys, others) = (mac_keys(&here).unwrap(), mac_keys(&other).unwrap());
    assert_eq!(keys, mac_keys(&there).unwrap());
    assert_ne!(keys[0], keys[1]);
    assert!(!others.contains(&keys[0]) && !others.contains(&keys[1]));
    assert_ne!(keys[0][..16], channel_id(&here).unwrap());
}

#[test]
fn channel_is_tls_13_with_the_post_quantum_group() {
    let mesh = Mesh::new();
    let (client, _) = handshake(client(&mesh), server(&mesh), now()).unwrap();
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let group = client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    let offered: Vec<_> = crypto_provider().kx_groups.iter().map(|group| group.name()).collect();
    assert_eq!(offered, [NamedGroup::X25519MLKEM768, NamedGroup::X25519, NamedGroup::secp256r1]);
}

#[test]
fn second_connection_is_never_resumed() {
    let mesh = Mesh::new();
    let (client, server) = at(client(&mesh), server(&mesh), now());
    for _ in 0..3 {
        let (client, server) = handshake_again(&client, &server).unwrap();
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(client.tls13_tickets_received(), 0);
        assert!(!client.is_early_data_accepted());
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn client_without_a_certificate_is_refused() {
    let mesh = Mesh::new();
    let anonymous = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PeerVerifier::new(Arc::new(mesh.authority.bundle()))))
        .with_no_client_auth();
    let anonymous = finish_client(anonymous, ALPN).unwrap();
    let error = handshake(anonymous, server(&mesh), now()).unwrap_err();
    assert_eq!(error, rustls::Error::NoCertificatesPresented);
}

#[test]
fn ends_of_different_roots_refuse_each_other() {
    let (mesh, other) = (Mesh::new(), Mesh::named("other.example"));
    let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
    assert_eq!(handshake(client(&mesh), server(&other), now()).unwrap_err(), unknown);
    // The client trusts the server's root, the server does not trust the client's.
    let lenient = client_config(&other.tls_svid("gw"), &mesh.authority.bundle(), ALPN).unwrap();
    assert_eq!(handshake(lenient, server(&mesh), now()).unwrap_err(), unknown);
}

#[test]
fn expired_svid_is_refused_by_either_end() {
    let mesh = Mesh::new();
    let bundle = mesh.authority.bundle();
    let old = mesh.tls_svid_of(&mesh.id("gw"), now() - HOUR, now() - MINUTE);
    let expired = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
    let old_client = client_config(&old, &bundle, ALPN).unwrap();
    assert_eq!(handshake(old_client, server(&mesh), now()).unwrap_err(), expired);
    let old_server = server_config(&old, &bundle, ALPN).unwrap();
    assert_eq!(handshake(client(&mesh), old_server, now()).unwrap_err(), expired);
}

#[test]
fn certificate_with_two_names_is_refused_by_either_end() {
    let mesh = Mesh::new();
    let bundle = mesh.authority.bundle();
    let forged = || {
        let uri = |text: &str| rcgen::SanType::URI(text.try_into().unwrap());
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names =
            vec![uri("spiffe://edge.example/app/d1/gw"), uri("spiffe://edge.example/app/d1/store")];
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        mesh.forge(crate::key::KeyKind::P256, &params).into_tls_svid()
    };
    let names = VerifyError::Leaf(CertificateError::Names);
    let rogue_client = client_config(&forged(), &bundle, ALPN).unwrap();
    let error = handshake(rogue_client, server(&mesh), now()).unwrap_err();
    assert_eq!(reason(&error), Some(&names));
    let rogue_server = server_config(&forged(), &bundle, ALPN).unwrap();
    let error = handshake(client(&mesh), rogue_server, now()).unwrap_err();
    assert_eq!(reason(&error), Some(&names));
}

#[test]
fn signing_svid_is_refused_in_tls_by_either_end() {
    let mesh = Mesh::new();
    let bundle = mesh.authority.bundle();
    let signing = || {
        let svid = mesh.signing_svid("gw");
        crate::testing::Forged { chain: svid.chain, key: svid.key }.into_tls_svid()
    };
    let purpose = rustls::Error::InvalidCertificate(rustls::CertificateError::InvalidPurpose);
    let rogue_client = client_config(&signing(), &bundle, ALPN).unwrap();
    assert_eq!(handshake(rogue_client, server(&mesh), now()).unwrap_err(), purpose);
    let rogue_server = server_config(&signing(), &bundle, ALPN).unwrap();
    assert_eq!(handshake(client(&mesh), rogue_server, now()).unwrap_err(), purpose);
}

#[test]
fn app_svid_is_refused_in_mesh_tls_by_either_end() {
    let mesh = Mesh::new();
    let bundle = mesh.authority.bundle();
    let app = || {
        let request = crate::KeyRequest::new_tls().unwrap();
        let (from, until) = (now() - MINUTE, now() + HOUR);
        let chain = mesh.authority.issue_app(&request.csr, &mesh.id("gw"), from, until).unwrap();
        crate::testing::Forged { chain, key: request.key }.into_tls_svid()
    };
    let purpose = rustls::Error::InvalidCertificate(rustls::CertificateError::InvalidPurpose);
    let rogue_client = client_config(&app(), &bundle, ALPN).unwrap();
    assert_eq!(handshake(rogue_client, server(&mesh), now()).unwrap_err(), purpose);
    let rogue_server = server_config(&app(), &bundle, ALPN).unwrap();
    assert_eq!(handshake(client(&mesh), rogue_server, now()).unwrap_err(), purpose);
}

#[test]
fn stolen_chain_without_its_key_is_refused() {
    let mesh = Mesh::new();
    let (victim, thief) = (mesh.tls_svid("gw"), mesh.tls_svid("store"));
    let provider = crypto_provider();
    // Put together by hand, for `rustls` and `TlsSvid::new` would both refuse to.
    let key = provider.key_provider.load_private_key(thief.key.in_memory().unwrap().clone_key()).unwrap();
    let stolen = rustls::sign::SingleCertAndKey::from(rustls::sign::CertifiedKey::new(victim.chain, key));
    let mut rogue = client(&mesh);
    rogue.client_auth_cert_resolver = Arc::new(stolen);
    let error = handshake(rogue, server(&mesh), now()).unwrap_err();
    assert_eq!(error, rustls::Error::InvalidCertificate(rustls::CertificateError::BadSignature));
}

#[test]
fn no_common_protocol_ends_the_handshake() {
    let mesh = Mesh::new();
    let svid = mesh.tls_svid("gw");
    let records = client_config(&svid, &mesh.authority.bundle(), &[ALPN_RECORDS]).unwrap();
    let error = handshake(records, server(&mesh), now()).unwrap_err();
    assert_eq!(error, rustls::Error::NoApplicationProtocol);
}

#[test]
fn peer_that_offers_no_protocol_is_no_peer() {
    let mesh = Mesh::new();
    let mut silent = client(&mesh);
    silent.alpn_protocols.clear();
    let (_, server) = handshake(silent, server(&mesh), now()).unwrap();
    assert_eq!(peer(&server), Err(VerifyError::Protocol));
}

#[test]
fn unfinished_handshake_has_no_peer_and_no_channel_id() {
    let mesh = Mesh::new();
    let connection = rustls::ClientConnection::new(Arc::new(client(&mesh)), dial_name()).unwrap();
    assert_eq!(peer(&connection), Err(VerifyError::Handshake));
    assert!(channel_id(&connection).is_err());
}

#[test]
fn configuration_without_a_protocol_is_refused() {
    let mesh = Mesh::new();
    let (svid, bundle) = (mesh.tls_svid("gw"), mesh.authority.bundle());
    assert_eq!(client_config(&svid, &bundle, &[]).err(), Some(TlsError::NoProtocol));
    assert_eq!(server_config(&svid, &bundle, &[]).err(), Some(TlsError::NoProtocol));
}

/// Thirty lives of one minute each, and two changes of root with an overlap: at no step does either end refuse.
#[test]
fn svids_and_roots_rotate_without_a_refused_handshake() {
    let generations = [Mesh::new(), Mesh::new(), Mesh::new()];
    let domain = TrustDomain::parse("edge.example").unwrap();
    let bundle_of = |meshes: &[Mesh]| {
        let roots = meshes.iter().map(|mesh| mesh.authority.root_der().clone()).collect();
        TrustBundle::new(domain.clone(), roots).unwrap()
    };
    let mut fingerprints = std::collections::BTreeSet::new();
    let mut server_svid = generations[0].tls_svid_of(&generations[0].id("store"), now(), now() + MINUTE);
    for step in 0..30_u32 {
        let now = now() + Duration::from_secs(30) * step;
        // Steps 5–9 and 15–19 trust two roots; the issuer changes in the middle of each.
        let (trusted, issuer) = match step {
            0..=4 => (0..=0, 0),
            5..=7 => (0..=1, 0),
            8..=9 => (0..=1, 1),
            10..=14 => (1..=1, 1),
            15..=17 => (1..=2, 1),
            18..=19 => (1..=2, 2),
            _ => (2..=2, 2),
        };
        let (bundle, mesh) = (bundle_of(&generations[trusted]), &generations[issuer]);
        let client_svid = mesh.tls_svid_of(&mesh.id("gw"), now, now + MINUTE);
        // The server renews every other step, at its half-life; in between it shows its older certificate.
        if step % 2 == 0 {
            server_svid = mesh.tls_svid_of(&mesh.id("store"), now, now + MINUTE);
        }
        let client = client_config(&client_svid, &bundle, ALPN).unwrap();
        let server = server_config(&server_svid, &bundle, ALPN).unwrap();
        let (client, server) = handshake(client, server, now).unwrap_or_else(|e| panic!("step {step}: {e}"));
        assert_eq!(peer(&client).unwrap().id(), &mesh.id("store"));
        assert_eq!(peer(&server).unwrap().fingerprint(), client_svid.fingerprint);
        fingerprints.insert(client_svid.fingerprint);

        let request = crate::request::KeyRequest::new_signing().unwrap();
        let chain = mesh.authority.issue_signing(&request.csr, &mesh.id("gw"), now, now + MINUTE).unwrap();
        assert!(verify_signing_chain(&bundle, &chain, now + Duration::from_secs(45)).is_ok());
    }
    assert_eq!(fingerprints.len(), 30);
}

#[test]
fn chacha20_comes_first_where_aes_is_slow_and_nothing_is_lost() {
    let default = || aws_lc_rs::default_provider().cipher_suites;
    assert_eq!(in_order(default(), true), default());
    let slow = in_order(default(), false);
    assert_eq!(slow[0].suite(), CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    assert_eq!(slow.len(), default().len());
    assert_eq!(slow[1].suite(), CipherSuite::TLS13_AES_256_GCM_SHA384);
}

#[test]
fn machine_without_a_clock_takes_the_control_planes_certificate_for_the_time_and_no_others() {
    let mesh = Mesh::new();
    let (svid, bundle) = (mesh.tls_svid("gw"), mesh.authority.bundle());
    let server = || server_config(&mesh.control_plane_svid(), &bundle, ALPN).unwrap();
    let dated = |dating| control_client_config(&svid, &bundle, ALPN, dating).unwrap();
    let in_1970 = |client: ClientConfig| {
        let mut server = server();
        server.time_provider = Arc::new(FixedClock(now()));
        let mut client = client;
        client.time_provider = Arc::new(FixedClock(std::time::SystemTime::UNIX_EPOCH + HOUR));
        handshake_again(&Arc::new(client), &Arc::new(server))
    };
    let (client, _) = in_1970(dated(Dating::AuthoritysWord)).unwrap();
    assert_eq!(peer(&client).unwrap().not_before(), now() - MINUTE);
    let refused = in_1970(dated(Dating::OwnClock)).unwrap_err();
    assert_eq!(refused, VerifyError::NotYetValid.into());
    // A certificate that has ended is no word about the time.
    let late = now() + 2 * HOUR;
    let refused = handshake(dated(Dating::AuthoritysWord), server(), late).unwrap_err();
    assert_eq!(refused, VerifyError::Expired.into());
    // Nor is one that no root vouches for.
    let other = Mesh::new();
    let mut forged = server_config(&other.control_plane_svid(), &bundle, ALPN).unwrap();
    forged.time_provider = Arc::new(FixedClock(now()));
    let mut client = dated(Dating::AuthoritysWord);
    client.time_provider = Arc::new(FixedClock(std::time::SystemTime::UNIX_EPOCH));
    let refused = handshake_again(&Arc::new(client), &Arc::new(forged)).unwrap_err();
    assert_eq!(refused, VerifyError::UnknownIssuer.into());
}

#[test]
fn ended_certificate_passes_the_control_planes_handshake_within_its_grace_only() {
    let mesh = Mesh::new();
    let bundle = mesh.authority.bundle();
    let server = |grace| {
        rejoin_server_config(&mesh.control_plane_svid(), &bundle, bundle.roots(), ALPN, grace).unwrap()
    };
    let id = mesh.id("gw");
    let ended = mesh.tls_svid_of(&id, now() - 3 * HOUR, now() - HOUR);
    let client = || client_config(&ended, &bundle, ALPN).unwrap();
    let (_, connection) = handshake(client(), server(2 * HOUR), now()).unwrap();
    assert_eq!(peer(&connection).unwrap().not_after(), now() - HOUR);
    for grace in [Duration::ZERO, HOUR - MINUTE] {
        assert_eq!(handshake(client(), server(grace), now()).unwrap_err(), VerifyError::Expired.into());
    }
    // It has to be good otherwise.
    let stranger = Mesh::new();
    let ended = stranger.tls_svid_of(&id, now() - 3 * HOUR, now() - HOUR);
    let client = client_config(&ended, &bundle, ALPN).unwrap();
    assert_eq!(handshake(client, server(2 * HOUR), now()).unwrap_err(), VerifyError::UnknownIssuer.into());
    let early = mesh.tls_svid_of(&id, now() + HOUR, now() + 2 * HOUR);
    let client = client_config(&early, &bundle, ALPN).unwrap();
    assert_eq!(handshake(client, server(2 * HOUR), now()).unwrap_err(), VerifyError::NotYetValid.into());
}
