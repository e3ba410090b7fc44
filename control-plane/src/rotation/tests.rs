use super::*;

const NOW: u64 = 1_795_419_480;

fn slots() -> Slots {
    Slots {
        root: "r0".to_owned(),
        issuer: "i0".to_owned(),
        rotation: None,
        retired: Vec::new(),
        issuers: Vec::new(),
        past: Vec::new(),
        distrusted: Vec::new(),
        number: 0,
        last: None,
        former_jwt_keys: Vec::new(),
    }
}

fn pair(root: &str, issuer: &str) -> (String, String) {
    (root.to_owned(), issuer.to_owned())
}

fn rotated(slots: &Slots, what: What, next: (&str, &str)) -> Slots {
    let mut slots = begin(slots, what, pair(next.0, next.1), 1, NOW).unwrap();
    while slots.rotation.is_some() {
        slots = advance(&slots, NOW).unwrap();
    }
    slots
}

fn outcome(slots: &Slots) -> (u64, Outcome) {
    let last = slots.last.as_ref().unwrap();
    (last.number, last.outcome)
}

#[test]
fn a_root_is_distributed_then_certifies_then_replaces_the_old_one() {
    let began = begin(&slots(), What::Root, pair("r1", "i1"), 1, NOW).unwrap();
    assert_eq!(began.roots().collect::<Vec<_>>(), ["r0", "r1"]);
    assert_eq!(began.certifying(), ("r0", "i0"));
    let reissuing = advance(&began, NOW).unwrap();
    assert_eq!(reissuing.roots().collect::<Vec<_>>(), ["r0", "r1"]);
    assert_eq!(reissuing.certifying(), ("r1", "i1"));
    let done = advance(&reissuing, NOW).unwrap();
    assert_eq!(done.roots().collect::<Vec<_>>(), ["r1"]);
    assert_eq!((done.certifying(), outcome(&done)), (("r1", "i1"), (1, Outcome::Completed)));
    let until = NOW + PARKED.as_secs();
    assert_eq!(done.retired, [RetiredRoot { root: "r0".to_owned(), until, why: Why::Planned }]);
    assert!(done.knows_root("r0") && done.knows_root("r1") && !done.knows_root("r2"));
    assert_eq!(advance(&done, NOW), None);
}

#[test]
fn an_issuer_is_replaced_under_its_root_and_refused_from_then_on() {
    let done = rotated(&slots(), What::Issuer, ("r0", "i1"));
    assert_eq!((&*done.root, &*done.issuer), ("r0", "i1"));
    assert!(done.retired.is_empty() && done.past.is_empty());
    let [refused] = &*done.issuers else { panic!("{:?}", done.issuers) };
    assert_eq!((&*refused.issuer, refused.why), ("i0", Why::Planned));
    // With its root goes what has to be remembered of it, as soon as nobody is known by that root any more.
    let rotated = rotated(&done, What::Root, ("r1", "i2"));
    assert_eq!(rotated.issuers.len(), 1);
    let forgotten = forget(&rotated, NOW + PARKED.as_secs()).unwrap();
    assert!(forgotten.issuers.is_empty() && forgotten.retired.is_empty());
    assert_eq!(forget(&forgotten, u64::MAX), None);
}

#[test]
fn only_one_rotation_is_under_way_at_a_time() {
    let began = begin(&slots(), What::Root, pair("r1", "i1"), 1, NOW).unwrap();
    for what in [What::Root, What::Issuer] {
        assert_eq!(begin(&began, what, pair("r2", "i2"), 1, NOW), Err(RotationError::UnderWay));
    }
    assert_eq!(abort(&slots(), NOW), Err(RotationError::None));
}

#[test]
fn before_anything_was_certified_a_rotation_called_off_leaves_nothing() {
    let began = begin(&slots(), What::Root, pair("r1", "i1"), 1, NOW).unwrap();
    let back = abort(&began, NOW).unwrap();
    assert_eq!((back.roots().collect::<Vec<_>>(), back.retired.len()), (vec!["r0"], 0));
    assert_eq!(outcome(&back), (1, Outcome::Reversed));
}

#[test]
fn afterwards_everybody_returns_and_the_next_root_is_retired() {
    let began = begin(&slots(), What::Root, pair("r1", "i1"), 1, NOW).unwrap();
    let returning = abort(&advance(&began, NOW).unwrap(), NOW).unwrap();
    // Those who hold certificates of the next root are still believed while they return.
    assert_eq!(returning.roots().collect::<Vec<_>>(), ["r0", "r1"]);
    assert_eq!(returning.certifying(), ("r0", "i0"));
    assert_eq!(abort(&returning, NOW), Err(RotationError::Returning));
    let back = advance(&returning, NOW).unwrap();
    assert_eq!((&*back.root, outcome(&back)), ("r0", (1, Outcome::Reversed)));
    let [retired] = &*back.retired else { panic!("{:?}", back.retired) };
    assert_eq!((&*retired.root, retired.why), ("r1", Why::Returned));
    // And the next rotation begins like any other.
    assert_eq!(rotated(&back, What::Root, ("r2", "i2")).root, "r2");
}

#[test]
fn an_emergency_takes_the_word_of_the_old_root_from_everything() {
    let once = rotated(&slots(), What::Root, ("r1", "i1"));
    let gone = emergency(&once, What::Root, pair("r2", "i2"), NOW);
    assert_eq!((&*gone.root, &*gone.issuer, outcome(&gone)), ("r2", "i2", (2, Outcome::Emergency)));
    assert!(gone.retired.iter().all(|retired| retired.why == Why::Emergency), "{:?}", gone.retired);
    assert_eq!(gone.distrusted, ["r1"]);
    let issuer = emergency(&once, What::Issuer, pair("r1", "i2"), NOW);
    assert_eq!((&*issuer.root, &*issuer.issuer, issuer.issuers[0].why), ("r1", "i2", Why::Emergency));
    // In the middle of a rotation it ends that one.
    let began = begin(&once, What::Root, pair("r2", "i2"), 1, NOW).unwrap();
    let gone = emergency(&began, What::Root, pair("r2", "i2"), NOW);
    assert_eq!((gone.rotation.is_none(), &*gone.root, outcome(&gone)), (true, "r2", (2, Outcome::Emergency)));
}

#[test]
fn what_is_remembered_of_many_rotations_is_bounded() {
    let mut many = slots();
    for number in 1..=200 {
        many = rotated(&many, What::Root, (&format!("r{number}"), &format!("i{number}")));
    }
    assert_eq!((many.retired.len(), many.past.len(), many.number), (RETIRED_MAX, PAST_MAX, 200));
    for number in 0..MAX_REFUSED_ISSUERS {
        many = rotated(&many, What::Issuer, ("r200", &format!("j{number}")));
    }
    let refused = begin(&many, What::Issuer, pair("r200", "k"), 1, NOW);
    assert_eq!(refused, Err(RotationError::Issuers));
    assert!(begin(&many, What::Root, pair("r201", "k"), 1, NOW).is_ok());
}

#[test]
fn renewals_of_a_large_mesh_are_spread_and_those_of_a_small_one_are_not() {
    let within = |instances| {
        let began = begin(&slots(), What::Root, pair("r1", "i1"), instances, NOW).unwrap();
        began.rotation.unwrap().renew_within
    };
    assert_eq!([within(0), within(200), within(10_000), within(usize::MAX)], [0, 0, 49, 600]);
}
