use std::time::Duration;

use signet_identity::{Class, VerifyError, verify_tls_chain};

use super::slots::{Phase, What};
use super::*;
use crate::rotation;

const NOW: u64 = 1_795_419_480;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

/// An authority whose slots change as the rotations of a test say.
struct Stage {
    directory: tempfile::TempDir,
    authority: Authority,
    revision: u64,
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let domain = TrustDomain::parse("mesh.example").unwrap();
        let authority = Authority::create(directory.path(), &domain, now()).unwrap();
        Self { directory, authority, revision: 0 }
    }

    fn put(&mut self, slots: Slots) {
        self.revision += 1;
        self.authority.adopt(Revision(self.revision), slots).unwrap();
        if let Some(tidy) = tidied(&self.authority.keyring(), &self.authority.slots()) {
            self.authority.keep(tidy).unwrap();
        }
    }

    fn begin(&mut self) {
        let next = rotation::driver::next_pair(&self.authority, What::Root, true, now()).unwrap();
        let slots = rotation::begin(&self.authority.slots(), What::Root, next, 1, NOW).unwrap();
        self.put(slots);
    }

    fn advance(&mut self) {
        let slots = rotation::advance(&self.authority.slots(), NOW).unwrap();
        self.put(slots);
    }

    fn rotate(&mut self) {
        self.begin();
        self.advance();
        self.advance();
    }

    fn leaf(&self) -> TlsSvid {
        let request = KeyRequest::new_tls().unwrap();
        let id = SpiffeId::workload(self.authority.trust_domain(), Class::App, "d1", "api").unwrap();
        let issuing = self.authority.issuing().unwrap();
        let chain = issuing.tls(&request.csr, &id, now(), now() + Duration::from_secs(3600), None).unwrap();
        TlsSvid::new(chain, request.key).unwrap()
    }

    /// Whether one who believes these roots knows the control plane by what it shows.
    fn is_known_to(&self, bundle: &TrustBundle) -> bool {
        let Server { svid, shown, .. } = self.authority.server(now(), now()).unwrap();
        let all: Vec<_> = svid.chain.iter().chain(&shown).cloned().collect();
        verify_tls_chain(bundle, &all[..all.len().min(signet_identity::MAX_CHAIN)], now()).is_ok()
    }

    fn reloaded(&self) -> Result<Authority, AuthorityError> {
        let domain = self.authority.trust_domain();
        let keyring = Keyring::load(self.directory.path(), domain)?.unwrap();
        Authority::new(
            self.directory.path(),
            signet_identity::Keys::Memory,
            keyring,
            (Revision(1), Slots::clone(&self.authority.slots())),
        )
    }
}

#[test]
fn a_root_is_rotated_through_its_phases_and_each_side_believes_the_other_throughout() {
    let mut stage = Stage::new();
    let (old_bundle, old_leaf) = (stage.authority.bundle().unwrap(), stage.leaf());
    stage.begin();
    let both = stage.authority.bundle().unwrap();
    assert_eq!(both.roots().len(), 2);
    assert!(stage.is_known_to(&old_bundle) && stage.is_known_to(&both));
    assert!(verify_tls_chain(&old_bundle, &stage.leaf().chain, now()).is_ok(), "the old issuer certifies");
    stage.advance();
    let new_leaf = stage.leaf();
    assert_ne!(new_leaf.chain[1], old_leaf.chain[1]);
    // Even who has not heard of the next root believes its leaves.
    for bundle in [&old_bundle, &both] {
        assert!(verify_tls_chain(bundle, &new_leaf.chain, now()).is_ok());
        assert!(stage.is_known_to(bundle));
    }
    assert!(verify_tls_chain(&both, &old_leaf.chain, now()).is_ok());
    stage.advance();
    let new_bundle = stage.authority.bundle().unwrap();
    assert_eq!(new_bundle.roots().len(), 1);
    assert_eq!(verify_tls_chain(&new_bundle, &old_leaf.chain, now()), Err(VerifyError::UnknownIssuer));
    assert!(verify_tls_chain(&new_bundle, &new_leaf.chain, now()).is_ok());
    let open = stage.authority.open_bundle().unwrap();
    assert!(verify_tls_chain(&open, &old_leaf.chain, now()).is_ok(), "what is open goes on");
    for bundle in [&old_bundle, &both, &new_bundle] {
        assert!(stage.is_known_to(bundle));
    }
}

#[test]
fn who_slept_through_two_rotations_is_known_and_knows_who_slept_through_three_is_not() {
    let mut stage = Stage::new();
    let mut asleep = vec![(stage.authority.bundle().unwrap(), stage.leaf())];
    for _ in 0..3 {
        stage.rotate();
        let known = stage.authority.server(now(), now()).unwrap().bundle;
        let late = asleep.len().saturating_sub(VOUCHERS_MAX);
        for (bundle, leaf) in &asleep[late..] {
            assert!(stage.is_known_to(bundle));
            assert!(verify_tls_chain(&known, &leaf.chain, now()).is_ok());
        }
        assert!(asleep[..late].iter().all(|(bundle, _)| !stage.is_known_to(bundle)));
        asleep.push((stage.authority.bundle().unwrap(), stage.leaf()));
    }
}

#[test]
fn keys_of_a_retired_root_are_destroyed_and_the_rest_is_the_same_after_a_restart() {
    let mut stage = Stage::new();
    let old = stage.authority.keyring().first().unwrap().to_pem();
    let old_key =
        old.split("-----BEGIN PRIVATE KEY-----\n").nth(1).unwrap().lines().next().unwrap().to_owned();
    let file = stage.directory.path().join("authority.pem");
    let has_old_key = || std::fs::read_to_string(&file).unwrap().contains(&old_key);
    stage.begin();
    assert!(has_old_key());
    stage.advance();
    assert!(has_old_key());
    stage.advance();
    assert!(!has_old_key());
    let again = stage.reloaded().unwrap();
    assert_eq!(again.bundle().unwrap(), stage.authority.bundle().unwrap());
    assert_eq!(again.open_bundle().unwrap(), stage.authority.open_bundle().unwrap());
    assert_eq!(
        again.server(now(), now()).unwrap().shown,
        stage.authority.server(now(), now()).unwrap().shown
    );
}

#[test]
fn keys_made_for_a_rotation_that_never_began_are_dropped() {
    let stage = Stage::new();
    rotation::driver::next_pair(&stage.authority, What::Root, true, now()).unwrap();
    // The process died here. The store says nothing of the new root.
    let again = stage.reloaded().unwrap();
    assert_eq!(again.keyring().pairs.len(), 2);
    let tidy = tidied(&again.keyring(), &again.slots()).unwrap();
    assert_eq!((tidy.pairs.len(), tidy.vouchers.len()), (1, 0));
    assert_eq!(again.bundle().unwrap(), stage.authority.bundle().unwrap());
}

#[test]
fn slots_that_name_a_key_that_is_not_there_are_refused_and_change_nothing() {
    let stage = Stage::new();
    let mut other = Slots::clone(&stage.authority.slots());
    other.root = "A".repeat(43);
    let refused = stage.authority.adopt(Revision(9), other).unwrap_err();
    assert!(matches!(refused, AuthorityError::OtherStore), "{refused}");
    assert!(stage.authority.issuing().is_ok());
}

#[test]
fn slots_never_go_back_to_an_older_commit() {
    let mut stage = Stage::new();
    let before = Slots::clone(&stage.authority.slots());
    stage.begin();
    stage.authority.adopt(Revision(stage.revision), before).unwrap();
    assert_eq!(stage.authority.slots().rotation.as_ref().unwrap().phase, Phase::Distributing);
}

#[test]
fn after_an_emergency_the_old_root_vouches_for_nothing_and_nothing_under_it_goes_on() {
    let mut stage = Stage::new();
    let (old_bundle, old_leaf) = (stage.authority.bundle().unwrap(), stage.leaf());
    stage.begin();
    let next = stage.authority.slots().rotation.clone().unwrap();
    stage.put(rotation::emergency(&stage.authority.slots(), What::Root, (next.root, next.issuer), NOW));
    assert!(!stage.is_known_to(&old_bundle));
    for bundle in [stage.authority.bundle().unwrap(), stage.authority.open_bundle().unwrap()] {
        assert!(verify_tls_chain(&bundle, &old_leaf.chain, now()).is_err());
    }
    let shown = stage.authority.server(now(), now()).unwrap().shown;
    assert_eq!(shown, stage.authority.bundle().unwrap().roots(), "only the root in force");
    // Whoever holds a certificate that was really issued may still renew it.
    let known = stage.authority.server(now(), now()).unwrap().bundle;
    assert!(verify_tls_chain(&known, &old_leaf.chain, now()).is_ok());
}

#[test]
fn a_key_of_tokens_is_told_of_before_it_signs_and_after_until_the_last_token_ends() {
    let mut stage = Stage::new();
    let keys = |stage: &Stage| stage.authority.jwt_keys().unwrap().to_vec();
    let first = keys(&stage);
    stage.begin();
    // The old one signs, and stands first; the next one is told of.
    let [signs, next] = keys(&stage)[..] else { panic!("{:?}", keys(&stage)) };
    assert_eq!(vec![signs], first);
    stage.advance();
    assert_eq!(keys(&stage), [next, signs]);
    let over = rotation::advance(&stage.authority.slots(), NOW).unwrap();
    let over = stage.authority.with_former_jwt_keys(over, NOW + 600);
    stage.put(over);
    assert_eq!(keys(&stage), [next, signs]);
    assert_eq!(stage.reloaded().unwrap().jwt_keys().unwrap().to_vec(), [next, signs]);
    assert!(rotation::forget(&stage.authority.slots(), NOW + 599).is_none());
    let forgetful = rotation::forget(&stage.authority.slots(), NOW + 600).unwrap();
    stage.put(forgetful);
    assert_eq!(keys(&stage), [next]);
    // Given up in an emergency it is gone at once.
    let pair = rotation::driver::next_pair(&stage.authority, What::Issuer, false, now()).unwrap();
    let slots = rotation::emergency(&stage.authority.slots(), What::Issuer, pair, NOW);
    stage.put(slots);
    assert!(!keys(&stage).contains(&next) && keys(&stage).len() == 1);
}
