use rcgen::{BasicConstraints, KeyPair};

use super::*;
use crate::certificate::spki_sha256;
use crate::id::Class;
use crate::request::KeyRequest;
use crate::testing::{HOUR, MINUTE, Mesh, now};
use crate::verify::{verify_signing_chain, verify_tls_chain};

#[test]
fn authority_survives_storage_and_issues_under_the_same_root() {
    let mesh = Mesh::new();
    let again = Authority::from_pem(&mesh.authority.to_pem()).unwrap();
    assert_eq!(again.to_pem(), mesh.authority.to_pem());
    assert_eq!(again.root_spki_sha256(), spki_sha256(mesh.authority.root_der()).unwrap());
    assert_eq!(
        (again.trust_domain(), again.not_after()),
        (mesh.authority.trust_domain(), now() + 100 * HOUR)
    );
    let again = Mesh { authority: again };
    assert!(verify_tls_chain(&mesh.authority.bundle(), &again.tls_svid("gw").chain, now()).is_ok());
    assert!(verify_signing_chain(&mesh.authority.bundle(), &again.signing_svid("gw").chain, now()).is_ok());
}

#[test]
fn stored_parts_of_two_authorities_are_refused() {
    let (one, two) = (Mesh::new().authority.to_pem(), Mesh::new().authority.to_pem());
    let section =
        |text: &str, at: usize| text.split_inclusive("-----\n").skip(2 * at).take(2).collect::<String>();
    let mix = |parts: [(&str, usize); 4]| parts.map(|(text, at)| section(text, at)).concat();
    assert!(Authority::from_pem(&mix([(&one, 0), (&one, 1), (&one, 2), (&one, 3)])).is_ok());
    for parts in [
        [(&**one, 0), (&**one, 1), (&**two, 2), (&**two, 3)],
        [(&**one, 0), (&**two, 1), (&**one, 2), (&**one, 3)],
        [(&**one, 0), (&**one, 1), (&**one, 2), (&**two, 3)],
        [(&**one, 2), (&**one, 3), (&**one, 0), (&**one, 1)],
    ] {
        assert_eq!(Authority::from_pem(&mix(parts)).err(), Some(IssueError::Mismatch));
    }
    assert_eq!(Authority::from_pem(&section(&one, 0)).err(), Some(IssueError::Pem));
    assert_eq!(Authority::from_pem("").err(), Some(IssueError::Pem));
}

/// Whatever a request asks for besides its key is not read: other names, an authority's rights, other uses.
#[test]
fn request_decides_nothing_but_the_key() {
    let mesh = Mesh::new();
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::default();
    greedy.distinguished_name.push(DnType::CommonName, "admin");
    greedy.subject_alt_names = (0..20)
        .map(|n| SanType::URI(format!("spiffe://edge.example/platform/d1/admin{n}").try_into().unwrap()))
        .collect();
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    greedy.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
    let csr = greedy.serialize_request(&key).unwrap();
    let chain = mesh.authority.issue_tls(csr.der(), &mesh.id("gw"), now(), now() + HOUR).unwrap();
    let peer = verify_tls_chain(&mesh.authority.bundle(), &chain, now()).unwrap();
    assert_eq!(peer.id(), &mesh.id("gw"));
    assert_eq!(Certificate::parse(&chain[0]).unwrap().spki, key.subject_public_key_info());
}

#[test]
fn identity_of_another_trust_domain_is_not_issued() {
    let mesh = Mesh::new();
    let request = KeyRequest::new_tls().unwrap();
    for domain in ["other.example", "edge.example.evil", "edge"] {
        let domain = TrustDomain::parse(domain).unwrap();
        let id = SpiffeId::workload(&domain, Class::App, "d1", "gw").unwrap();
        let refused = mesh.authority.issue_tls(&request.csr, &id, now(), now() + HOUR);
        assert_eq!(refused.err(), Some(IssueError::TrustDomain));
    }
}

#[test]
fn key_of_the_wrong_kind_is_not_certified() {
    let mesh = Mesh::new();
    let (tls, signing) = (KeyRequest::new_tls().unwrap(), KeyRequest::new_signing().unwrap());
    let wrong = Some(IssueError::Request(RequestError::Key));
    let id = mesh.id("gw");
    assert_eq!(mesh.authority.issue_tls(&signing.csr, &id, now(), now() + HOUR).err(), wrong);
    assert_eq!(mesh.authority.issue_signing(&tls.csr, &id, now(), now() + HOUR).err(), wrong);
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let csr = CertificateParams::default().serialize_request(&p384).unwrap();
    assert_eq!(mesh.authority.issue_tls(csr.der(), &id, now(), now() + HOUR).err(), wrong);
}

#[test]
fn validity_is_cut_to_the_issuers_and_never_empty() {
    let mesh = Mesh::new();
    let svid = mesh.tls_svid_of(&mesh.id("gw"), now() - 1000 * HOUR, now() + 1000 * HOUR);
    assert_eq!((svid.not_before, svid.not_after), (now() - 24 * HOUR, now() + 100 * HOUR));
    let request = KeyRequest::new_tls().unwrap();
    let issue = |from, until| mesh.authority.issue_tls(&request.csr, &mesh.id("gw"), from, until).err();
    assert_eq!(issue(now(), now()), Some(IssueError::Validity));
    assert_eq!(issue(now() + MINUTE, now()), Some(IssueError::Validity));
    assert_eq!(issue(now() + 100 * HOUR, now() + 200 * HOUR), Some(IssueError::Validity));
}

#[test]
fn impossible_lifetimes_are_refused_without_a_panic() {
    let create = |now, lifetime| Authority::create(TrustDomain::parse("a").unwrap(), now, lifetime).err();
    assert_eq!(create(now(), Duration::ZERO), Some(IssueError::Validity));
    assert_eq!(create(now(), Duration::MAX), Some(IssueError::Validity));
    assert_eq!(create(now(), LAST_SECOND), Some(IssueError::Validity));
    assert_eq!(create(SystemTime::UNIX_EPOCH + MINUTE, HOUR), Some(IssueError::Validity));
    assert_eq!(create(SystemTime::UNIX_EPOCH + 25 * HOUR, HOUR), None);
}

#[test]
fn serial_numbers_do_not_repeat() {
    let serials: std::collections::BTreeSet<_> =
        (0..100).map(|_| random_serial().unwrap().to_bytes()).collect();
    assert_eq!(serials.len(), 100);
    assert!(serials.iter().all(|serial| serial.len() == 16));
}

#[test]
fn debug_shows_no_key() {
    let shown = format!("{:?}", Mesh::new().authority);
    assert_eq!(shown, "Authority { trust_domain: edge.example, .. }");
}

#[test]
fn a_new_issuer_stands_under_the_same_root_and_survives_storage() {
    let mesh = Mesh::new();
    let next = Mesh { authority: mesh.authority.with_new_issuer(now(), 50 * HOUR).unwrap() };
    assert_eq!(next.authority.root_der(), mesh.authority.root_der());
    assert_ne!(next.authority.issuer_spki_sha256(), mesh.authority.issuer_spki_sha256());
    assert_eq!(next.authority.not_after(), now() + 50 * HOUR);
    let again = Mesh { authority: Authority::from_pem(&next.authority.to_pem()).unwrap() };
    for mesh in [&next, &again] {
        assert!(verify_tls_chain(&mesh.authority.bundle(), &mesh.tls_svid("gw").chain, now()).is_ok());
    }
    // No issuer outlives its root, and a root that has ended makes none.
    let long = mesh.authority.with_new_issuer(now(), 1_000 * HOUR).unwrap();
    assert_eq!(long.not_after(), now() + 100 * HOUR);
    assert_eq!(mesh.authority.with_new_issuer(now() + 101 * HOUR, HOUR).err(), Some(IssueError::Validity));
}

#[test]
fn certificates_of_a_refused_issuer_prove_nothing_though_the_root_vouches_for_it() {
    let mesh = Mesh::new();
    let next = Mesh { authority: mesh.authority.with_new_issuer(now(), 50 * HOUR).unwrap() };
    let refused = vec![mesh.authority.issuer_spki_sha256()];
    let bundle = mesh.authority.bundle().without_issuers(refused).unwrap();
    let error = verify_tls_chain(&bundle, &mesh.tls_svid("gw").chain, now()).unwrap_err();
    assert_eq!(error, crate::verify::VerifyError::UnknownIssuer);
    assert!(verify_signing_chain(&bundle, &mesh.signing_svid("gw").chain, now()).is_err());
    assert!(verify_tls_chain(&bundle, &next.tls_svid("gw").chain, now()).is_ok());
    assert!(verify_signing_chain(&bundle, &next.signing_svid("gw").chain, now()).is_ok());
    // Another certificate beside it opens no way around.
    let mut chain = mesh.tls_svid("gw").chain;
    chain.push(next.authority.issuer_der().clone());
    assert!(verify_tls_chain(&bundle, &chain, now()).is_err());
}

#[test]
fn one_root_vouches_for_another_and_for_none_of_another_domain() {
    let (old, new) = (Mesh::new(), Mesh::new());
    let word = old.authority.vouch_for(&new.authority, now(), now() + HOUR).unwrap();
    let mut chain = new.tls_svid("gw").chain;
    assert!(verify_tls_chain(&old.authority.bundle(), &chain, now()).is_err());
    chain.push(word);
    assert!(verify_tls_chain(&old.authority.bundle(), &chain, now()).is_ok());
    assert!(verify_tls_chain(&new.authority.bundle(), &chain, now()).is_ok());
    assert!(verify_tls_chain(&Mesh::new().authority.bundle(), &chain, now()).is_err());
    let foreign = Mesh::named("other.example");
    let refused = old.authority.vouch_for(&foreign.authority, now(), now() + HOUR);
    assert_eq!(refused.err(), Some(IssueError::TrustDomain));
}

/// A module in memory: what it promises is that nobody gets a key.
#[derive(Debug, Default)]
struct Vault(std::sync::Mutex<std::collections::BTreeMap<String, KeyAndPoint>>);

type KeyAndPoint = (Vec<u8>, Vec<u8>);

impl KeyModule for Vault {
    fn generate(&self) -> Result<HeldKey, KeyModuleError> {
        let pair = KeyPair::generate().unwrap();
        let mut keys = self.0.lock().unwrap();
        let key = HeldKey { reference: keys.len().to_string(), point: pair.der_bytes().to_vec() };
        keys.insert(key.reference.clone(), (pair.serialize_der(), key.point.clone()));
        Ok(key)
    }

    fn sign(&self, reference: &str, message: &[u8]) -> Result<Vec<u8>, KeyModuleError> {
        let keys = self.0.lock().unwrap();
        let (key, _) = keys.get(reference).ok_or_else(|| KeyModuleError("no such key".into()))?;
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(&**key);
        Ok(rcgen::SigningKey::sign(&KeyPair::try_from(&key).unwrap(), message).unwrap())
    }

    fn destroy(&self, reference: &str) -> Result<(), KeyModuleError> {
        self.0.lock().unwrap().remove(reference);
        Ok(())
    }
}

#[test]
fn keys_in_a_module_certify_and_are_named_and_not_told() {
    let vault = std::sync::Arc::new(Vault::default());
    let keys = Keys::Module(vault.clone());
    let domain = TrustDomain::parse("edge.example").unwrap();
    let authority = Authority::create_in(&keys, domain, now(), 100 * HOUR).unwrap();
    assert_eq!(authority.held_keys().collect::<Vec<_>>(), ["0", "1"]);
    let text = authority.to_pem();
    assert!(!text.contains("PRIVATE KEY"), "{}", *text);
    let again = Authority::from_pem_in(&keys, &text).unwrap();
    assert_eq!((again.to_pem(), again.prove_keys()), (text.clone(), Ok(())));
    let again = Mesh { authority: again };
    assert!(verify_tls_chain(&authority.bundle(), &again.tls_svid("gw").chain, now()).is_ok());
    let next = Mesh { authority: again.authority.with_new_issuer_in(&keys, now(), 50 * HOUR).unwrap() };
    assert_eq!(next.authority.held_keys().collect::<Vec<_>>(), ["0", "2"]);
    assert!(verify_tls_chain(&authority.bundle(), &next.tls_svid("gw").chain, now()).is_ok());
    // Without the module it is the same text and can issue nothing.
    let named = Authority::from_pem(&text).unwrap();
    assert_eq!(named.to_pem(), text);
    let unusable = Err(IssueError::Encoding(rcgen::Error::RemoteKeyError));
    assert_eq!(named.prove_keys(), unusable);
    vault.destroy("1").unwrap();
    assert_eq!(again.authority.prove_keys(), unusable);
}
