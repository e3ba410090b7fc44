use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType,
};

use super::*;
use crate::TlsSvid;
use crate::grant::AreaGrant;
use crate::id::{Class, IdError, TrustDomain};
use crate::issue::{Authority, IssueError, signing_purpose};
use crate::key::KeyKind;
use crate::request::KeyRequest;
use crate::testing::{HOUR, MINUTE, Mesh, now};

fn uri(uri: &str) -> SanType {
    SanType::URI(Ia5String::try_from(uri).unwrap())
}

/// A leaf as the authority would make it, for the tests to spoil.
fn tls_params(names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (now() - MINUTE).into();
    params.not_after = (now() + HOUR).into();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn good_name() -> Vec<SanType> {
    vec![uri("spiffe://edge.example/app/d1/gw")]
}

fn signing_params() -> CertificateParams {
    let mut params = tls_params(good_name());
    params.key_usages.push(KeyUsagePurpose::ContentCommitment);
    params.extended_key_usages.clear();
    params.custom_extensions = vec![signing_purpose()];
    params
}

fn verify_forged(params: &CertificateParams) -> Result<Peer, VerifyError> {
    let mesh = Mesh::new();
    verify_tls_chain(&mesh.authority.bundle(), &mesh.forge(KeyKind::P256, params).chain, now())
}

fn refusal_of_name(name: &str) -> CertificateError {
    match verify_forged(&tls_params(vec![uri(name)])) {
        Err(VerifyError::Leaf(error)) => error,
        other => panic!("{name:?}: {other:?}"),
    }
}

#[test]
fn tls_svid_is_accepted_and_says_who_it_is() {
    let mesh = Mesh::new();
    let svid = mesh.tls_svid("gw");
    let peer = verify_tls_chain(&mesh.authority.bundle(), &svid.chain, now()).unwrap();
    assert_eq!(peer.id().as_str(), "spiffe://edge.example/app/d1/gw");
    assert_eq!(peer.fingerprint(), Fingerprint::of(&svid.chain[0]));
    assert_eq!((peer.not_before(), peer.not_after()), (now() - MINUTE, now() + HOUR));
}

#[test]
fn signing_svid_is_accepted_with_its_key() {
    let mesh = Mesh::new();
    let svid = mesh.signing_svid("gw");
    let signer = verify_signing_chain(&mesh.authority.bundle(), &svid.chain, now()).unwrap();
    let pair = aws_lc_rs::signature::Ed25519KeyPair::from_pkcs8(svid.key.secret_der()).unwrap();
    let public = aws_lc_rs::signature::KeyPair::public_key(&pair);
    assert_eq!(signer.public_key(), public.as_ref());
    assert_eq!(signer.keyid(), svid.keyid());
    assert_eq!((signer.id(), signer.fingerprint()), (&svid.id, svid.fingerprint));
    assert_eq!((signer.not_before(), signer.not_after()), (svid.not_before, svid.not_after));
}

#[test]
fn signing_svid_is_refused_for_tls() {
    let mesh = Mesh::new();
    let refused = verify_tls_chain(&mesh.authority.bundle(), &mesh.signing_svid("gw").chain, now());
    assert_eq!(refused, Err(CertificateError::Purpose.into()));
}

#[test]
fn tls_svid_is_refused_for_signing() {
    let mesh = Mesh::new();
    let refused = verify_signing_chain(&mesh.authority.bundle(), &mesh.tls_svid("gw").chain, now());
    assert_eq!(refused, Err(CertificateError::Purpose.into()));
}

#[test]
fn app_svid_is_good_for_others_and_makes_nobody_a_peer_or_a_signer() {
    let mesh = Mesh::new();
    let (bundle, id) = (mesh.authority.bundle(), mesh.id("gw"));
    let request = crate::KeyRequest::new_tls().unwrap();
    let chain = mesh.authority.issue_app(&request.csr, &id, now() - MINUTE, now() + HOUR).unwrap();
    assert_eq!(verify_app_chain(&bundle, &chain, now()), Ok(id));
    assert_eq!(verify_tls_chain(&bundle, &chain, now()), Err(CertificateError::Purpose.into()));
    assert_eq!(verify_signing_chain(&bundle, &chain, now()), Err(CertificateError::Purpose.into()));
    assert!(crate::AppSvid::new(chain.clone(), request.key.clone()).is_ok());
    assert!(TlsSvid::new(chain, request.key).is_err());
    // And what the mesh believes is not handed to an application by mistake.
    for (chain, key) in [
        (mesh.tls_svid("gw").chain, mesh.tls_svid("gw").key),
        (mesh.signing_svid("gw").chain, mesh.signing_svid("gw").key.into()),
    ] {
        assert_eq!(verify_app_chain(&bundle, &chain, now()), Err(CertificateError::Purpose.into()));
        assert!(crate::AppSvid::new(chain, key.in_memory().unwrap().clone()).is_err());
    }
}

#[test]
fn two_uri_names_are_refused() {
    let names = vec![uri("spiffe://edge.example/app/d1/gw"), uri("spiffe://edge.example/app/d1/store")];
    assert_eq!(verify_forged(&tls_params(names)), Err(CertificateError::Names.into()));
}

#[test]
fn dns_name_beside_the_uri_is_refused() {
    let mut names = good_name();
    names.push(SanType::DnsName(Ia5String::try_from("gw.example").unwrap()));
    assert_eq!(verify_forged(&tls_params(names)), Err(CertificateError::Names.into()));
}

#[test]
fn dns_name_alone_is_refused() {
    let names = vec![SanType::DnsName(Ia5String::try_from("gw.example").unwrap())];
    assert_eq!(verify_forged(&tls_params(names)), Err(CertificateError::Names.into()));
}

#[test]
fn spiffe_id_as_dns_or_mail_name_is_refused() {
    let name = Ia5String::try_from("spiffe://edge.example/app/d1/gw").unwrap();
    for names in [vec![SanType::DnsName(name.clone())], vec![SanType::Rfc822Name(name)]] {
        assert_eq!(verify_forged(&tls_params(names)), Err(CertificateError::Names.into()));
    }
}

#[test]
fn common_name_alone_is_refused() {
    let mut params = tls_params(Vec::new());
    params.distinguished_name.push(DnType::CommonName, "spiffe://edge.example/app/d1/gw");
    assert_eq!(verify_forged(&params), Err(CertificateError::Names.into()));
}

#[test]
fn upper_case_scheme_is_refused() {
    assert_eq!(refusal_of_name("SPIFFE://edge.example/app/d1/gw"), IdError::Scheme.into());
}

#[test]
fn percent_encoded_dot_is_refused() {
    assert_eq!(refusal_of_name("spiffe://edge.example/app/%2e%2e/gw"), IdError::Segment.into());
}

#[test]
fn empty_segment_is_refused() {
    assert_eq!(refusal_of_name("spiffe://edge.example/app//gw"), IdError::Segment.into());
}

#[test]
fn trailing_slash_is_refused() {
    assert_eq!(refusal_of_name("spiffe://edge.example/app/d1/gw/"), IdError::Segment.into());
}

#[test]
fn port_is_refused() {
    assert_eq!(refusal_of_name("spiffe://edge.example:443/app/d1/gw"), IdError::TrustDomain.into());
}

#[test]
fn user_is_refused() {
    assert_eq!(refusal_of_name("spiffe://user@edge.example/app/d1/gw"), IdError::TrustDomain.into());
}

#[test]
fn query_and_fragment_are_refused() {
    assert_eq!(refusal_of_name("spiffe://edge.example/app/d1/gw?a=b"), IdError::Segment.into());
    assert_eq!(refusal_of_name("spiffe://edge.example/app/d1/gw#a"), IdError::Segment.into());
}

#[test]
fn nul_is_refused() {
    assert_eq!(refusal_of_name("spiffe://edge.example/app/d1/gw\0"), IdError::Segment.into());
    assert_eq!(refusal_of_name("spiffe://edge.example\0.evil/app/d1/gw"), IdError::TrustDomain.into());
}

#[test]
fn line_break_in_the_name_is_refused() {
    assert_eq!(refusal_of_name("spiffe://edge.example/gw\r\nX-Admin: 1"), IdError::Segment.into());
}

#[test]
fn trust_domain_without_a_path_is_refused() {
    assert_eq!(refusal_of_name("spiffe://edge.example"), IdError::NoPath.into());
}

#[test]
fn id_of_3000_bytes_is_refused() {
    let long = format!("spiffe://edge.example/{}", "a".repeat(3000));
    assert_eq!(refusal_of_name(&long), IdError::TooLong.into());
}

#[test]
fn authority_as_leaf_is_refused() {
    let mut params = tls_params(good_name());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert_eq!(verify_forged(&params), Err(CertificateError::Authority.into()));
}

#[test]
fn root_or_issuer_as_leaf_is_refused() {
    let mesh = Mesh::new();
    let issuer = mesh.tls_svid("gw").chain.remove(1);
    for authority in [issuer, mesh.authority.root_der().clone()] {
        let refused = verify_tls_chain(&mesh.authority.bundle(), &[authority], now());
        assert_eq!(refused, Err(CertificateError::Authority.into()));
    }
}

#[test]
fn leaf_that_may_certify_is_refused() {
    let mut params = tls_params(good_name());
    params.key_usages.push(KeyUsagePurpose::KeyCertSign);
    assert_eq!(verify_forged(&params), Err(CertificateError::KeyUsage.into()));
}

#[test]
fn leaf_without_key_usage_is_refused() {
    let mut params = tls_params(good_name());
    params.key_usages.clear();
    assert_eq!(verify_forged(&params), Err(CertificateError::KeyUsage.into()));
}

#[test]
fn every_other_set_of_tls_purposes_is_refused() {
    use ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, ServerAuth};
    for purposes in [vec![], vec![ServerAuth], vec![ClientAuth], vec![CodeSigning], vec![Any]] {
        let mut params = tls_params(good_name());
        params.extended_key_usages = purposes.clone();
        assert_eq!(verify_forged(&params), Err(CertificateError::Purpose.into()), "{purposes:?}");
    }
}

#[test]
fn signing_leaf_over_a_p256_key_is_refused() {
    let mesh = Mesh::new();
    let forged = mesh.forge(KeyKind::P256, &signing_params());
    let refused = verify_signing_chain(&mesh.authority.bundle(), &forged.chain, now());
    assert_eq!(refused, Err(CertificateError::Key.into()));
}

#[test]
fn signing_leaf_without_non_repudiation_is_refused() {
    let mesh = Mesh::new();
    let mut params = signing_params();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let forged = mesh.forge(KeyKind::Ed25519, &params);
    let refused = verify_signing_chain(&mesh.authority.bundle(), &forged.chain, now());
    assert_eq!(refused, Err(CertificateError::KeyUsage.into()));
}

#[test]
fn authority_may_limit_purposes_and_the_limit_holds() {
    let mesh = Mesh::new();
    let root_params = {
        let mut params = tls_params(vec![uri("spiffe://edge.example")]);
        params.distinguished_name.push(DnType::CommonName, "limited");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    };
    // An issuer for TLS only, under the mesh's root: its TLS leaves are good, its signing leaves are not.
    let root_key = rcgen::KeyPair::generate().unwrap();
    let root = {
        let mut params = root_params.clone();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "root");
        params
    };
    let root_der: CertificateDer<'static> = root.self_signed(&root_key).unwrap().into();
    let issuer_key = rcgen::KeyPair::generate().unwrap();
    let issuer_der: CertificateDer<'static> =
        root_params.signed_by(&issuer_key, &rcgen::Issuer::from_params(&root, &root_key)).unwrap().into();
    let issuer = rcgen::Issuer::from_params(&root_params, &issuer_key);
    let bundle = TrustBundle::new(mesh.authority.trust_domain().clone(), vec![root_der]).unwrap();

    let tls_key = rcgen::KeyPair::generate().unwrap();
    let tls = tls_params(good_name()).signed_by(&tls_key, &issuer).unwrap();
    assert!(verify_tls_chain(&bundle, &[tls.into(), issuer_der.clone()], now()).is_ok());
    let signing_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let signing = signing_params().signed_by(&signing_key, &issuer).unwrap();
    let refused = verify_signing_chain(&bundle, &[signing.into(), issuer_der], now());
    assert_eq!(refused, Err(CertificateError::Purpose.into()));
}

#[test]
fn workload_cannot_issue() {
    let mesh = Mesh::new();
    let outer = mesh.tls_svid("gw");
    let key = rcgen::KeyPair::try_from(&**outer.key.in_memory().unwrap()).unwrap();
    // The workload's leaf has no subject; neither has the issuer field of what it forges.
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let rogue = rcgen::Issuer::new(params, key);
    let leaf_key = rcgen::KeyPair::generate().unwrap();
    let leaf = tls_params(good_name()).signed_by(&leaf_key, &rogue).unwrap();
    let chain = [leaf.into(), outer.chain[0].clone(), outer.chain[1].clone()];
    let refused = verify_tls_chain(&mesh.authority.bundle(), &chain, now());
    assert_eq!(refused, Err(VerifyError::Path(webpki::Error::EndEntityUsedAsCa)));
}

#[test]
fn expired_and_future_svids_are_refused_to_the_second() {
    let mesh = Mesh::new();
    let svid = mesh.tls_svid("gw");
    let at = |now| verify_tls_chain(&mesh.authority.bundle(), &svid.chain, now).err();
    let second = Duration::from_secs(1);
    assert_eq!(at(svid.not_before), None);
    assert_eq!(at(svid.not_after), None);
    assert_eq!(at(svid.not_before - second), Some(VerifyError::NotYetValid));
    assert_eq!(at(svid.not_after + second), Some(VerifyError::Expired));
    assert_eq!(at(SystemTime::UNIX_EPOCH - second), Some(VerifyError::NotYetValid));
}

#[test]
fn svid_of_another_root_is_refused() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let refused = verify_tls_chain(&mesh.authority.bundle(), &other.tls_svid("gw").chain, now());
    assert_eq!(refused, Err(VerifyError::UnknownIssuer));
    let refused = verify_signing_chain(&mesh.authority.bundle(), &other.signing_svid("gw").chain, now());
    assert_eq!(refused, Err(VerifyError::UnknownIssuer));
}

#[test]
fn identity_of_another_trust_domain_under_our_root_is_refused() {
    let refused = verify_forged(&tls_params(vec![uri("spiffe://other.example/app/d1/gw")]));
    assert_eq!(refused, Err(VerifyError::TrustDomain { found: "other.example".into() }));
    let refused = verify_forged(&tls_params(vec![uri("spiffe://edge.example.evil/app/d1/gw")]));
    assert_eq!(refused, Err(VerifyError::TrustDomain { found: "edge.example.evil".into() }));
}

#[test]
fn each_root_of_a_rotation_vouches_and_a_removed_one_does_not() {
    let (old, new) = (Mesh::new(), Mesh::new());
    let domain = TrustDomain::parse("edge.example").unwrap();
    let roots = |meshes: &[&Mesh]| {
        let roots = meshes.iter().map(|mesh| mesh.authority.root_der().clone()).collect();
        TrustBundle::new(domain.clone(), roots).unwrap()
    };
    let (both, only_new) = (roots(&[&old, &new]), roots(&[&new]));
    for mesh in [&old, &new] {
        assert!(verify_tls_chain(&both, &mesh.tls_svid("gw").chain, now()).is_ok());
        assert!(verify_signing_chain(&both, &mesh.signing_svid("gw").chain, now()).is_ok());
    }
    let refused = verify_tls_chain(&only_new, &old.tls_svid("gw").chain, now());
    assert_eq!(refused, Err(VerifyError::UnknownIssuer));
}

#[test]
fn chain_without_issuer_empty_or_overlong_is_refused() {
    let mesh = Mesh::new();
    let bundle = mesh.authority.bundle();
    let chain = mesh.tls_svid("gw").chain;
    let verify = |chain: &[CertificateDer<'_>]| verify_tls_chain(&bundle, chain, now()).err();
    assert_eq!(verify(&chain[..1]), Some(VerifyError::UnknownIssuer));
    assert_eq!(verify(&[]), Some(VerifyError::ChainLength));
    let long: Vec<_> = chain.iter().cycle().take(MAX_CHAIN + 1).cloned().collect();
    assert_eq!(verify(&long), Some(VerifyError::ChainLength));
}

#[test]
fn tampered_leaf_is_refused_at_every_byte() {
    let mesh = Mesh::new();
    let bundle = mesh.authority.bundle();
    let chain = mesh.tls_svid("gw").chain;
    for at in 0..chain[0].len() {
        let mut der = chain[0].to_vec();
        der[at] ^= 0x01;
        let tampered = [CertificateDer::from(der), chain[1].clone()];
        assert!(verify_tls_chain(&bundle, &tampered, now()).is_err(), "byte {at}");
    }
}

#[test]
fn only_the_expected_identities_pass() {
    let mesh = Mesh::new();
    let peer = verify_tls_chain(&mesh.authority.bundle(), &mesh.tls_svid("gw").chain, now()).unwrap();
    assert_eq!(expect(&peer, &[mesh.id("store"), mesh.id("gw")]), Ok(()));
    let refused = Err(VerifyError::Identity { found: mesh.id("gw") });
    assert_eq!(expect(&peer, &[mesh.id("store")]), refused);
    assert_eq!(expect(&peer, &[]), refused);
}

#[test]
fn chain_is_judged_by_the_domain_that_its_leaf_names_and_by_no_other() {
    let (platform, shop) = (Mesh::named("platform.example"), Mesh::named("shop.example"));
    let own = platform.authority.bundle();
    let both = own.clone().with_federated(vec![shop.authority.bundle()]).unwrap();
    let tls = |bundle: &TrustBundle, chain: &[CertificateDer<'_>]| verify_tls_chain(bundle, chain, now());
    let (ours, theirs) = (platform.tls_svid("gw").chain, shop.tls_svid("gw").chain);
    assert_eq!(tls(&both, &ours).unwrap().id(), &platform.id("gw"));
    assert_eq!(tls(&both, &theirs).unwrap().id(), &shop.id("gw"));
    assert_eq!(tls(&own, &theirs), Err(VerifyError::UnknownIssuer));
    assert_eq!(tls(&both.alone(), &theirs), Err(VerifyError::UnknownIssuer));
    // Truly signed by one domain's issuer, and naming a workload of the other: neither root vouches for that.
    for (signer, named) in [(&shop, &platform), (&platform, &shop)] {
        let name = SanType::URI(Ia5String::try_from(named.id("gw").as_str()).unwrap());
        let forged = signer.forge(KeyKind::P256, &tls_params(vec![name]));
        assert_eq!(tls(&both, &forged.chain), Err(VerifyError::UnknownIssuer), "{}", named.id("gw"));
    }
    let signing = shop.signing_svid("gw").chain;
    assert_eq!(verify_signing_chain(&both, &signing, now()).unwrap().id(), &shop.id("gw"));
    assert_eq!(verify_signing_chain(&own, &signing, now()), Err(VerifyError::UnknownIssuer));
    // A federated domain's retired issuer is refused as its own proxies refuse it.
    let retired = shop.authority.bundle().without_issuers(vec![shop.authority.issuer_spki_sha256()]).unwrap();
    let both = own.with_federated(vec![retired]).unwrap();
    assert_eq!(tls(&both, &theirs), Err(VerifyError::UnknownIssuer));
}

/// The same root with an issuer that may vouch for its trust domain alone.
fn constrained(mesh: Mesh) -> Mesh {
    Mesh {
        authority: mesh.authority.with_constrained_issuer(&crate::Keys::Memory, now(), 100 * HOUR).unwrap(),
    }
}

#[test]
fn issuer_says_for_which_trust_domain_it_vouches_and_is_believed_for_that() {
    for name in ["edge.example", &"long-label.".repeat(12), &"a".repeat(255)] {
        let name = name.trim_end_matches('.');
        let mesh = constrained(Mesh::named(name));
        assert!(mesh.authority.is_constrained());
        let bundle = mesh.authority.bundle();
        let (tls, signing) = (mesh.tls_svid("gw"), mesh.signing_svid("gw"));
        assert_eq!(verify_tls_chain(&bundle, &tls.chain, now()).unwrap().id(), &mesh.id("gw"));
        assert_eq!(verify_signing_chain(&bundle, &signing.chain, now()).unwrap().id(), &mesh.id("gw"));
        assert!(mesh.authority.with_new_issuer(now(), HOUR).unwrap().is_constrained(), "and so is the next");
        let kept = crate::issue::Authority::from_pem(&mesh.authority.to_pem()).unwrap();
        assert!(kept.is_constrained());
    }
    assert!(!Mesh::new().authority.is_constrained());
}

#[test]
fn constrained_path_is_refused_for_all_that_any_path_is() {
    let mesh = constrained(Mesh::new());
    let (bundle, chain) = (mesh.authority.bundle(), mesh.tls_svid("gw").chain);
    let at = |bundle: &TrustBundle, chain: &[CertificateDer<'_>], now| {
        verify_tls_chain(bundle, chain, now).unwrap_err()
    };
    let year = 365 * 24 * HOUR;
    assert_eq!(at(&bundle, &chain, now() + year), VerifyError::Expired);
    assert_eq!(at(&bundle, &chain, now() - year), VerifyError::NotYetValid);
    assert_eq!(at(&Mesh::new().authority.bundle(), &chain, now()), VerifyError::UnknownIssuer, "a namesake");
    let retired = bundle.clone().without_issuers(vec![mesh.authority.issuer_spki_sha256()]).unwrap();
    assert_eq!(at(&retired, &chain, now()), VerifyError::UnknownIssuer);
    let other = constrained(Mesh::new());
    let swapped = [chain[0].clone(), other.tls_svid("gw").chain[1].clone()];
    assert_eq!(at(&other.authority.bundle(), &swapped, now()), VerifyError::UnknownIssuer, "another's leaf");
    for certificate in 0..chain.len() {
        for byte in 0..chain[certificate].len() {
            let mut tampered = chain.clone();
            let mut der = chain[certificate].to_vec();
            der[byte] ^= 0x01;
            tampered[certificate] = CertificateDer::from(der);
            assert!(
                verify_tls_chain(&bundle, &tampered, now()).is_err(),
                "certificate {certificate}, byte {byte}"
            );
        }
    }
    // A workload is no authority, whoever stands above.
    let params = tls_params(good_name());
    let key = rcgen::KeyPair::generate().unwrap();
    let workload = mesh.tls_svid("gw");
    let own = rcgen::KeyPair::try_from(&**workload.key.in_memory().unwrap()).unwrap();
    let issuing = rcgen::Issuer::from_ca_cert_der(&workload.chain[0], own).unwrap();
    let leaf = params.signed_by(&key, &issuing).unwrap();
    let longer = [CertificateDer::from(leaf), workload.chain[0].clone(), workload.chain[1].clone()];
    assert_eq!(at(&bundle, &longer, now()), CertificateError::Authority.into());
}

#[test]
fn next_root_is_believed_by_the_one_before_over_a_constrained_issuer_too() {
    let (old, new) = (Mesh::new(), constrained(Mesh::new()));
    let voucher = old.authority.vouch_for(&new.authority, now(), now() + HOUR).unwrap();
    let chain = [new.tls_svid("gw").chain, vec![voucher]].concat();
    assert!(verify_tls_chain(&old.authority.bundle(), &chain, now()).is_ok());
    assert!(verify_tls_chain(&new.authority.bundle(), &chain, now()).is_ok());
    assert_eq!(
        verify_tls_chain(&old.authority.bundle(), &chain[..2], now()),
        Err(VerifyError::UnknownIssuer)
    );
}

#[test]
fn issuer_vouches_for_nothing_that_it_is_not_constrained_to() {
    // Its trust domain's own root certifies it, with constraints to others.
    let mesh = Mesh::new();
    let chain = |constraints: Vec<u8>| {
        let authority = mesh.authority.with_constraints(now(), HOUR, constraints).unwrap();
        Mesh { authority }.tls_svid("gw").chain
    };
    let subtree = |tag: u8, name: &str| {
        let base = [&[tag, name.len() as u8], name.as_bytes()].concat();
        [&[0x30, base.len() as u8], &*base].concat()
    };
    let of = |kind: u8, subtrees: &[Vec<u8>]| {
        let all = subtrees.concat();
        let list = [&[kind, all.len() as u8], &*all].concat();
        [&[0x30, list.len() as u8], &*list].concat()
    };
    let verified =
        |constraints| verify_tls_chain(&mesh.authority.bundle(), &chain(constraints), now()).map(|_| ());
    for (host, expected) in [
        ("edge.example", Ok(())),
        (".example", Ok(())),
        ("other.example", Err(VerifyError::Constraints)),
        ("example", Err(VerifyError::Constraints)),
        (".edge.example", Err(VerifyError::Constraints)),
        ("dge.example", Err(VerifyError::Constraints)),
        ("", Err(VerifyError::Constraints)),
        (".", Err(VerifyError::Constraints)),
    ] {
        assert_eq!(verified(of(0xa0, &[subtree(0x86, host)])), expected, "{host}");
    }
    let both = of(0xa0, &[subtree(0x86, "other.example"), subtree(0x86, "edge.example")]);
    assert_eq!(verified(both), Ok(()));
    // What we would never write: excluded names, names of other kinds, nothing.
    for strange in [
        of(0xa1, &[subtree(0x86, "other.example")]),
        of(0xa0, &[subtree(0x82, "edge.example")]),
        vec![0x30, 0],
    ] {
        assert_eq!(verified(strange), Err(CertificateError::Malformed.into()));
    }
}

/// An area's authority under the mesh's root.
fn area(mesh: &Mesh, patterns: &[&str]) -> Mesh {
    let grant = AreaGrant::new("fog", patterns.iter().map(|&pattern| pattern.to_owned()).collect()).unwrap();
    let request = KeyRequest::new_tls().unwrap();
    let issuer = mesh.authority.delegate(&request.csr, &grant, now() - MINUTE, now() + 10 * HOUR).unwrap();
    let root = mesh.authority.root_der().clone();
    Mesh { authority: Authority::delegated(root, issuer, &request.key).unwrap() }
}

#[test]
fn an_area_certifies_what_it_was_granted_and_its_name_can_be_told() {
    let mesh = Mesh::new();
    let area = area(&mesh, &["app/d1/*"]);
    let bundle = mesh.authority.bundle();
    let chain = area.tls_svid("gw").chain;
    assert_eq!(verify_tls_chain(&bundle, &chain, now()).unwrap().id(), &mesh.id("gw"));
    assert!(verify_signing_chain(&bundle, &area.signing_svid("gw").chain, now()).is_ok());
    assert_eq!(area_of_chain(&chain).as_deref(), Some("fog"));
    assert_eq!(area_of_chain(&mesh.tls_svid("gw").chain), None);
}

#[test]
fn an_area_that_certifies_anything_else_is_refused_by_name() {
    let mesh = Mesh::new();
    let area = area(&mesh, &["app/d1/*", "platform/*/*"]);
    let bundle = mesh.authority.bundle();
    let domain = mesh.authority.trust_domain().clone();
    for id in [
        SpiffeId::workload(&domain, Class::App, "d2", "gw").unwrap(),
        SpiffeId::workload(&domain, Class::Agent, "d1", "gw").unwrap(),
        SpiffeId::control_plane(&domain, "d1").unwrap(),
        SpiffeId::parse("spiffe://edge.example/app/d1/gw/deeper").unwrap(),
    ] {
        let request = KeyRequest::new_tls().unwrap();
        let refused = area.authority.issue_tls(&request.csr, &id, now() - MINUTE, now() + HOUR);
        assert_eq!(refused.err(), Some(IssueError::Grant), "our own program does not even try");
        // A thief's does.
        let chain = area.forge(KeyKind::P256, &tls_params(vec![uri(id.as_str())])).chain;
        let refused = verify_tls_chain(&bundle, &chain, now()).err();
        assert_eq!(refused, Some(VerifyError::Grant { area: "fog".into(), found: id }));
    }
}

#[test]
fn an_areas_issuer_is_refused_like_any_other_and_ends_in_time() {
    let mesh = Mesh::new();
    let area = area(&mesh, &["app/*/*"]);
    let chain = area.tls_svid("gw").chain;
    let refused = vec![area.authority.issuer_spki_sha256()];
    let bundle = mesh.authority.bundle().without_issuers(refused).unwrap();
    assert_eq!(verify_tls_chain(&bundle, &chain, now()).err(), Some(VerifyError::UnknownIssuer));
    let later = now() + 11 * HOUR;
    assert_eq!(verify_tls_chain(&mesh.authority.bundle(), &chain, later).err(), Some(VerifyError::Expired));
    let other = Mesh::new().authority.bundle();
    assert_eq!(verify_tls_chain(&other, &chain, now()).err(), Some(VerifyError::UnknownIssuer));
}

#[test]
fn the_end_of_an_areas_control_plane_is_certified_by_the_root_alone() {
    let mesh = Mesh::new();
    let id = SpiffeId::control_plane(mesh.authority.trust_domain(), "fog").unwrap();
    let request = KeyRequest::new_tls().unwrap();
    let certify =
        |id: &SpiffeId| mesh.authority.certify_control_plane(&request.csr, id, now() - MINUTE, now() + HOUR);
    let chain = [certify(&id).unwrap()];
    let peer = verify_tls_chain(&mesh.authority.bundle(), &chain, now()).unwrap();
    assert_eq!(peer.id(), &id);
    assert_eq!(certify(&mesh.id("gw")).err(), Some(IssueError::TrustDomain));
}
