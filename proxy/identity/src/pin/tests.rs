use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, SanType};

use super::*;
use crate::id::{Class, SpiffeId};
use crate::testing::{HOUR, MINUTE, Mesh, handshake, now};
use crate::tls::{ALPN_CONTROL, client_config, enrolment_server_config, server_config};
use crate::verify::peer;

const ALPN: &[&[u8]] = &[ALPN_CONTROL];

fn pinned(mesh: &Mesh) -> ClientConfig {
    pinned_client_config(mesh.authority.root_spki_sha256(), None, ALPN).unwrap()
}

fn refusal(error: &rustls::Error) -> Option<&VerifyError> {
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => other.0.downcast_ref(),
        _ => None,
    }
}

#[test]
fn pinned_client_learns_the_root_and_the_control_plane() {
    let mesh = Mesh::new();
    let svid = mesh.control_plane_svid();
    let server =
        enrolment_server_config(&svid, &mesh.authority.bundle(), mesh.authority.bundle().roots(), ALPN)
            .unwrap();
    let (client, server) = handshake(pinned(&mesh), server, now()).unwrap();
    assert_eq!(peer(&client).unwrap().id(), &svid.id);
    assert_eq!(peer(&server), Err(VerifyError::NoCertificate));
    let shown = client.peer_certificates().unwrap();
    let root = root_by_pin(shown, mesh.authority.root_spki_sha256()).unwrap();
    assert_eq!(&root, mesh.authority.root_der());
}

#[test]
fn right_root_is_found_among_several() {
    let (old, new) = (Mesh::new(), Mesh::new());
    let roots = vec![old.authority.root_der().clone(), new.authority.root_der().clone()];
    let bundle = TrustBundle::new(new.authority.trust_domain().clone(), roots).unwrap();
    let server =
        || enrolment_server_config(&new.control_plane_svid(), &bundle, bundle.roots(), ALPN).unwrap();
    assert!(handshake(pinned(&new), server(), now()).is_ok());
    // A token of the old root is good for the old root's issuer only.
    let error = handshake(pinned(&old), server(), now()).unwrap_err();
    assert_eq!(error, VerifyError::UnknownIssuer.into());
}

#[test]
fn server_under_another_root_is_refused() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let server = enrolment_server_config(
        &other.control_plane_svid(),
        &other.authority.bundle(),
        other.authority.bundle().roots(),
        ALPN,
    )
    .unwrap();
    let error = handshake(pinned(&mesh), server, now()).unwrap_err();
    assert_eq!(refusal(&error), Some(&VerifyError::Pin));
}

#[test]
fn server_that_shows_no_root_is_refused() {
    let mesh = Mesh::new();
    let server = server_config(&mesh.control_plane_svid(), &mesh.authority.bundle(), ALPN).unwrap();
    let error = handshake(pinned(&mesh), server, now()).unwrap_err();
    assert_eq!(refusal(&error), Some(&VerifyError::Pin));
}

#[test]
fn workload_cannot_pose_as_the_control_plane() {
    let mesh = Mesh::new();
    let app = SpiffeId::workload(mesh.authority.trust_domain(), Class::App, "d1", "control-plane").unwrap();
    for svid in [mesh.tls_svid("gw"), mesh.tls_svid_of(&app, now() - MINUTE, now() + HOUR)] {
        let server =
            enrolment_server_config(&svid, &mesh.authority.bundle(), mesh.authority.bundle().roots(), ALPN)
                .unwrap();
        let error = handshake(pinned(&mesh), server, now()).unwrap_err();
        assert_eq!(refusal(&error), Some(&VerifyError::Identity { found: svid.id.clone() }));
    }
}

#[test]
fn svid_is_shown_when_there_is_one_and_a_bad_one_is_refused() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let pin = mesh.authority.root_spki_sha256();
    let server = || {
        enrolment_server_config(
            &mesh.control_plane_svid(),
            &mesh.authority.bundle(),
            mesh.authority.bundle().roots(),
            ALPN,
        )
        .unwrap()
    };
    let known = pinned_client_config(pin, Some(&mesh.tls_svid("gw")), ALPN).unwrap();
    let (_, connection) = handshake(known, server(), now()).unwrap();
    assert_eq!(peer(&connection).unwrap().id(), &mesh.id("gw"));
    let foreign = pinned_client_config(pin, Some(&other.tls_svid("gw")), ALPN).unwrap();
    assert_eq!(handshake(foreign, server(), now()).unwrap_err(), VerifyError::UnknownIssuer.into());
}

#[test]
fn enrolled_proxy_uses_the_same_listener_with_its_svid() {
    let mesh = Mesh::new();
    let server = enrolment_server_config(
        &mesh.control_plane_svid(),
        &mesh.authority.bundle(),
        mesh.authority.bundle().roots(),
        ALPN,
    )
    .unwrap();
    let client = client_config(&mesh.tls_svid("gw"), &mesh.authority.bundle(), ALPN).unwrap();
    let (client, server) = handshake(client, server, now()).unwrap();
    assert!(peer(&client).unwrap().id().is_control_plane());
    assert_eq!(peer(&server).unwrap().id(), &mesh.id("gw"));
}

/// Anyone can put the root's public key into a certificate of their own; only the root can sign it by itself.
#[test]
fn foreign_certificate_around_the_pinned_key_is_not_the_root() {
    let mesh = Mesh::new();
    let pin = mesh.authority.root_spki_sha256();
    let root_key = KeyPair::from_pem(
        &mesh.authority.to_pem()[mesh.authority.to_pem().find("-----BEGIN PRIVATE").unwrap()..],
    );
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Signet root");
    params.subject_alt_names = vec![SanType::URI("spiffe://evil.example".try_into().unwrap())];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let rogue_key = KeyPair::generate().unwrap();
    let rogue = rcgen::Issuer::new(params.clone(), rogue_key);
    let forged: CertificateDer<'static> = params.signed_by(&root_key.unwrap(), &rogue).unwrap().into();
    assert_eq!(crate::certificate::spki_sha256(&forged), Ok(pin));
    let leaf = mesh.tls_svid("gw").chain.remove(0);
    assert_eq!(root_by_pin(&[leaf.clone(), forged], pin), Err(VerifyError::Pin));
    assert!(root_by_pin(&[leaf, mesh.authority.root_der().clone()], pin).is_ok());
}

#[test]
fn pinned_leaf_is_not_a_root() {
    let leaf = Mesh::new().control_plane_svid().chain.remove(0);
    let pin = crate::certificate::spki_sha256(&leaf).unwrap();
    assert_eq!(root_by_pin(&[leaf], pin), Err(VerifyError::Pin));
}

#[test]
fn overlong_enrolment_chain_is_refused_unread() {
    let mesh = Mesh::new();
    let chain = vec![mesh.authority.root_der().clone(); MAX_CONTROL_CHAIN + 1];
    let refused = root_by_pin(&chain, mesh.authority.root_spki_sha256());
    assert_eq!(refused, Err(VerifyError::ChainLength));
}

#[test]
fn root_out_of_its_time_is_refused() {
    let mesh = Mesh::new();
    let root = mesh.authority.root_der();
    let at = |now| trust_domain_of_valid_root(root, now);
    assert_eq!(at(now()).as_ref(), Ok(mesh.authority.trust_domain()));
    assert_eq!(at(now() + 101 * HOUR), Err(VerifyError::Expired));
    assert_eq!(at(now() - 25 * HOUR), Err(VerifyError::NotYetValid));
    let server = enrolment_server_config(
        &mesh.control_plane_svid(),
        &mesh.authority.bundle(),
        mesh.authority.bundle().roots(),
        ALPN,
    )
    .unwrap();
    let error = handshake(pinned(&mesh), server, now() + 101 * HOUR).unwrap_err();
    assert_eq!(error, VerifyError::Expired.into());
}

#[test]
fn machine_without_a_clock_enrols_by_the_authoritys_word() {
    let mesh = Mesh::new();
    let server = || {
        enrolment_server_config(
            &mesh.control_plane_svid(),
            &mesh.authority.bundle(),
            mesh.authority.bundle().roots(),
            ALPN,
        )
        .unwrap()
    };
    let pin = mesh.authority.root_spki_sha256();
    let dated = |dating| dated_client_config(pin, None, ALPN, dating).unwrap();
    let in_1970 = SystemTime::UNIX_EPOCH + HOUR;
    assert!(handshake(dated(Dating::AuthoritysWord), server(), in_1970).is_ok());
    assert!(handshake(dated(Dating::OwnClock), server(), in_1970).is_err());
}

/// The control plane of a later root, as it shows itself: the word of each retired root for the one after it, then roots.
fn shown_after(roots: &[&Mesh]) -> rustls::ServerConfig {
    let last = roots.last().unwrap();
    let vouched = roots
        .windows(2)
        .rev()
        .map(|pair| pair[0].authority.vouch_for(&pair[1].authority, now(), now() + 50 * HOUR).unwrap());
    let mut shown: Vec<_> = vouched.collect();
    shown.extend(roots.iter().rev().map(|mesh| mesh.authority.root_der().clone()));
    enrolment_server_config(&last.control_plane_svid(), &last.authority.bundle(), &shown, ALPN).unwrap()
}

#[test]
fn a_token_of_a_retired_root_is_good_while_that_root_vouches_for_the_next_ones() {
    let roots = [Mesh::new(), Mesh::new(), Mesh::new()];
    for pinned_root in &roots {
        let server = shown_after(&[&roots[0], &roots[1], &roots[2]]);
        let (client, _) = handshake(pinned(pinned_root), server, now()).unwrap();
        assert!(peer(&client).unwrap().id().is_control_plane());
        let root = root_by_pin(client.peer_certificates().unwrap(), pinned_root.authority.root_spki_sha256());
        assert_eq!(&root.unwrap(), pinned_root.authority.root_der());
    }
    let late = handshake(pinned(&roots[0]), shown_after(&[&roots[0], &roots[1]]), now() + 51 * HOUR);
    assert!(late.is_err(), "the word of a retired root ends");
}

#[test]
fn who_slept_through_two_rotations_knows_the_control_plane_and_who_never_heard_of_its_root_does_not() {
    let roots = [Mesh::new(), Mesh::new(), Mesh::new()];
    let asleep = |mesh: &Mesh| {
        crate::tls::control_client_config(
            &mesh.tls_svid("gw"),
            &mesh.authority.bundle(),
            ALPN,
            Dating::OwnClock,
        )
        .unwrap()
    };
    // The server accepts its old certificate, too.
    let accepted: Vec<_> = roots.iter().map(|mesh| mesh.authority.root_der().clone()).collect();
    let accepted = TrustBundle::new(roots[0].authority.trust_domain().clone(), accepted).unwrap();
    let server = || {
        let chain = roots[2].control_plane_svid();
        let mut shown: Vec<_> = vec![
            roots[1].authority.vouch_for(&roots[2].authority, now(), now() + 50 * HOUR).unwrap(),
            roots[0].authority.vouch_for(&roots[1].authority, now(), now() + 50 * HOUR).unwrap(),
        ];
        shown.extend(accepted.roots().iter().cloned());
        enrolment_server_config(&chain, &accepted, &shown, ALPN).unwrap()
    };
    for mesh in &roots {
        assert!(handshake(asleep(mesh), server(), now()).is_ok());
    }
    let stranger = Mesh::new();
    assert!(handshake(asleep(&stranger), server(), now()).is_err());
    // Between workloads no more certificates than a chain has are looked at.
    let workload = client_config(&roots[2].tls_svid("gw"), &accepted, ALPN).unwrap();
    assert!(handshake(workload, server(), now()).is_err());
}
