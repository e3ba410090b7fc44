//! Anchors in the middle of a rotation and after one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost::Message;
use signet_identity::{Authority, TrustBundle};
use signet_sync::proto::sync as wire;
use signet_sync::{Anchors, DecodeError};

use crate::mesh::trust_domain;

fn root() -> Authority {
    Authority::create(
        trust_domain(),
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
        jwt_keys: [current.jwt().key(), former.jwt().key()].into(),
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
