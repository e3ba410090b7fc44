//! Anchors in the middle of a rotation and after one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost::Message;
use signet_identity::{Authority, Fingerprint, SpiffeId, TrustBundle};
use signet_sync::proto::sync as wire;
use signet_sync::{Anchors, DecodeError, Revocation, Revocations, Subject};

use crate::mesh::trust_domain;

fn root() -> Authority {
    authority_of(trust_domain().as_str())
}

fn authority_of(domain: &str) -> Authority {
    Authority::create(
        domain.parse().unwrap(),
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        Duration::from_secs(3_600),
    )
    .unwrap()
}

fn anchors(current: &Authority, former: &Authority) -> Anchors {
    let bundle = |roots: &[&Authority], refused: Vec<[u8; 32]>| {
        let roots = roots.iter().map(|root| root.root_der().clone()).collect();
        Arc::new(TrustBundle::new(trust_domain(), roots).unwrap().without_issuers(refused).unwrap())
    };
    Anchors {
        open: bundle(&[current, former], vec![[1; 32]]),
        issuer: Some(current.issuer_spki_sha256()),
        renew_within: Duration::from_secs(7),
        jwt_keys: [current.jwt().unwrap().key(), former.jwt().unwrap().key()].into(),
        ..Anchors::new(bundle(&[current], vec![[1; 32], [2; 32]]), [9; 32], BTreeMap::new())
    }
}

#[test]
fn anchors_say_the_same_after_the_wire() {
    let (current, former) = (root(), root());
    let sent = anchors(&current, &former);
    let received = Anchors::decode(&wire::Anchors::from(&sent).encode_to_vec()).unwrap();
    assert_eq!((&received.bundle, &received.open), (&sent.bundle, &sent.open));
    assert_eq!((received.issuer, received.renew_within), (sent.issuer, sent.renew_within));
    assert_eq!(received.jwt_keys, sent.jwt_keys);
    // A reader that would pass the refused issuers over must not apply them.
    assert_eq!(
        (
            received.minimum_reader(),
            Anchors::new(Arc::clone(&sent.open), [9; 32], BTreeMap::new()).minimum_reader()
        ),
        (4, 4)
    );
    let plain = Arc::new(current.bundle());
    assert_eq!(Anchors::new(plain, [9; 32], BTreeMap::new()).minimum_reader(), 1);
}

#[test]
fn what_an_older_control_plane_sends_is_what_it_was() {
    let current = root();
    let sent = Anchors::new(Arc::new(current.bundle()), [9; 32], BTreeMap::new());
    let wire = wire::Anchors::from(&sent);
    assert!(wire.former_roots.is_empty() && wire.refused_issuers.is_empty() && wire.issuer.is_empty());
    let received = Anchors::try_from(wire).unwrap();
    assert_eq!((received.open, received.issuer), (received.bundle, None));
}

#[test]
fn hashes_of_another_length_and_lists_beyond_their_bound_are_refused() {
    let (current, former) = (root(), root());
    let good = wire::Anchors::from(&anchors(&current, &former));
    let refused = |change: &dyn Fn(&mut wire::Anchors)| {
        let mut bad = good.clone();
        change(&mut bad);
        Anchors::try_from(bad).is_err()
    };
    assert!(refused(&|bad| bad.issuer = vec![1; 31]));
    assert!(refused(&|bad| bad.refused_issuers[0].pop().map(drop).unwrap()));
    assert!(refused(&|bad| bad.former_issuers[0].push(0)));
    assert!(refused(&|bad| bad.refused_issuers = vec![vec![1; 32]; 65]));
    assert!(refused(&|bad| bad.former_issuers = vec![vec![1; 32]; 65]));
    // Both lists together are one bound.
    assert!(refused(&|bad| {
        bad.refused_issuers = vec![vec![1; 32]; 40];
        bad.former_issuers = vec![vec![2; 32]; 40];
    }));
    assert!(refused(&|bad| bad.former_roots = vec![current.root_der().to_vec(); 9]));
    assert!(refused(&|bad| bad.former_roots = vec![vec![0x30, 0]]));
    let long = wire::Anchors { renew_within_s: u32::MAX, ..good.clone() };
    assert_eq!(Anchors::try_from(long).unwrap().renew_within, Duration::from_secs(3_600));
    let error = Anchors::try_from(wire::Anchors { issuer: vec![1], ..good }).unwrap_err();
    assert!(!matches!(error, DecodeError::Missing { .. }), "{error}");
}

#[test]
fn federated_domains_keep_their_roots_apart_over_the_wire() {
    let (own, shop) = (root(), authority_of("shop.example"));
    let federated =
        |bundle: TrustBundle, shop: TrustBundle| Arc::new(bundle.with_federated(vec![shop]).unwrap());
    let retired = shop.bundle().without_issuers(vec![[3; 32]]).unwrap();
    let plain = Anchors::new(Arc::new(own.bundle()), [9; 32], BTreeMap::new());
    let sent = Anchors {
        bundle: federated(own.bundle(), retired),
        open: federated(own.bundle(), shop.bundle()),
        ..plain.clone()
    };
    let bytes = wire::Anchors::from(&sent).encode_to_vec();
    let received = Anchors::decode(&bytes).unwrap();
    assert_eq!((&received.bundle, &received.open), (&sent.bundle, &sent.open));
    assert_eq!(received.minimum_reader(), 1, "an older reader believes nobody of there, which opens nothing");

    // What such a reader makes of it.
    let older = wire::Anchors { federated: Vec::new(), ..wire::Anchors::decode(&*bytes).unwrap() };
    assert_eq!(older, wire::Anchors::from(&plain));

    let same = |wire: &wire::Anchors| wire.federated[0].clone();
    let good = wire::Anchors::decode(&*bytes).unwrap();
    let twice = wire::Anchors { federated: vec![same(&good), same(&good)], ..good.clone() };
    let mut namesake = good.clone();
    namesake.federated[0].trust_domain = trust_domain().to_string();
    namesake.federated[0].roots = vec![own.root_der().to_vec()];
    for wrong in [twice, namesake] {
        assert!(matches!(Anchors::try_from(wrong), Err(DecodeError::Bundle(_))));
    }
}

#[test]
fn what_another_domain_revoked_counts_for_its_own_identities() {
    let id = |text: &str| SpiffeId::parse(text).unwrap();
    let (ours, theirs) = (id("spiffe://own.example/app/d/a"), id("spiffe://shop.example/app/d/a"));
    let revocation = || Revocation { reason: "stolen".to_owned(), revoked_at: 7 };
    let mut shop = Revocations::default();
    shop.insert(Subject::Certificate(Fingerprint([1; 32])), revocation());
    shop.insert(Subject::Identity(ours.clone()), revocation());
    shop.insert(Subject::Identity(theirs.clone()), revocation());
    let mut sent = Revocations::default();
    sent.insert(Subject::Certificate(Fingerprint([2; 32])), revocation());
    let named = |id: &SpiffeId| !id.as_str().ends_with("/unnamed");
    shop.insert(Subject::Identity(id("spiffe://shop.example/app/d/unnamed")), revocation());
    sent.federate("shop.example".parse().unwrap(), &shop, named);
    let received = Revocations::decode(&wire::Revocations::from(&sent).encode_to_vec()).unwrap();
    assert_eq!(received, sent);
    let is_revoked = |id: &SpiffeId, leaf: u8| received.of(id, Fingerprint([leaf; 32])).is_some();
    assert!(is_revoked(&theirs, 9), "by its own domain");
    assert!(
        !is_revoked(&id("spiffe://shop.example/app/d/unnamed"), 9),
        "who is not named here is not told of"
    );
    assert_eq!(received.of(&theirs, Fingerprint([9; 32])).unwrap().reason, "");
    assert!(!is_revoked(&ours, 1) && !is_revoked(&ours, 9), "nobody here, whatever it lists");
    assert!(
        is_revoked(&ours, 2) && is_revoked(&id("spiffe://shop.example/app/d/b"), 2),
        "by this one, anybody"
    );
    assert!(is_revoked(&id("spiffe://shop.example/app/d/b"), 1));
}
