use std::collections::BTreeSet;

use std::time::Duration;

use super::*;
use crate::records::Leaf;
use crate::store::MemoryStore;

fn id() -> SpiffeId {
    SpiffeId::parse("spiffe://mesh.example/app/edge/api").unwrap()
}

fn leaf(number: u8, not_after: SystemTime) -> Leaf {
    let text = |kind: u8| Fingerprint([kind + number; 32]).to_string();
    Leaf { fingerprint: text(0), signing: Some(text(100)), issuer: None, not_after: unix_seconds(not_after) }
}

fn instance(leaves: Vec<Leaf>) -> Instance {
    Instance {
        first: leaves[0].fingerprint.clone(),
        token: "t".to_owned(),
        network: "edge".to_owned(),
        leaves,
        area: None,
        came: Vec::new(),
    }
}

/// A store with one identity of two instances: one with the leaves 1 (ended), 2 and 3, one with leaf 9.
async fn store(now: SystemTime) -> MemoryStore {
    let store = MemoryStore::new();
    let later = now + Duration::from_secs(60);
    let instances =
        vec![instance(vec![leaf(1, now), leaf(2, later), leaf(3, later)]), instance(vec![leaf(9, later)])];
    let registration = Registration { id: id(), instances };
    let write = records::put(registration_key(&id()), Expect::Absent, &registration).unwrap();
    store.commit(vec![write]).await.unwrap();
    store
}

async fn registration(store: &MemoryStore) -> Found<Registration> {
    records::read::<Registration>(store, &registration_key(&id())).await.unwrap().unwrap()
}

async fn revoked(store: &MemoryStore) -> BTreeSet<String> {
    store.list(REVOCATIONS).await.unwrap().entries.into_iter().map(|entry| entry.key).collect()
}

fn keys(certificates: &[u8]) -> BTreeSet<String> {
    certificates.iter().map(|byte| Subject::Certificate(Fingerprint([*byte; 32])).key()).collect()
}

#[tokio::test]
async fn a_certificate_takes_all_that_its_instance_holds_with_it() {
    let now = SystemTime::now();
    // By its TLS certificate, by its signing certificate, and by one that was renewed since.
    for (named, expected) in
        [(2, &[1, 2, 102, 3, 103][..]), (103, &[1, 2, 102, 3, 103]), (1, &[1, 2, 102, 3, 103])]
    {
        let store = store(now).await;
        let subject = Subject::Certificate(Fingerprint([named; 32]));
        revoke(&store, &subject, "stolen", now).await.unwrap();
        assert_eq!(revoked(&store).await, keys(expected), "{named}");
        let left = registration(&store).await.record.instances;
        assert_eq!(left.iter().map(|instance| &instance.leaves[..]).collect::<Vec<_>>().len(), 1);
        assert_eq!(left[0].first, leaf(9, now).fingerprint);
    }
}

#[tokio::test]
async fn a_certificate_nobody_holds_is_revoked_alone() {
    let now = SystemTime::now();
    let store = store(now).await;
    let before = registration(&store).await.revision;
    revoke(&store, &Subject::Certificate(Fingerprint([77; 32])), "", now).await.unwrap();
    assert_eq!(revoked(&store).await, keys(&[77]));
    assert_eq!(registration(&store).await.revision, before);
}

#[tokio::test]
async fn a_renewal_or_enrolment_under_way_fails_when_its_identity_is_revoked() {
    let now = SystemTime::now();
    let store = store(now).await;
    for subject in [Subject::Certificate(Fingerprint([9; 32])), Subject::Identity(id())] {
        // What a renewal does: read, look for revocations, and later write what it read.
        let read = registration(&store).await;
        revoke(&store, &subject, "stolen", now).await.unwrap();
        let write = records::put(registration_key(&id()), Expect::At(read.revision), &read.record).unwrap();
        assert!(matches!(store.commit(vec![write]).await, Err(StoreError::Conflict { .. })));
    }
    let stranger = SpiffeId::parse("spiffe://mesh.example/app/edge/web").unwrap();
    revoke(&store, &Subject::Identity(stranger.clone()), "never", now).await.unwrap();
    let first = Registration { id: stranger.clone(), instances: Vec::new() };
    let write = records::put(registration_key(&stranger), Expect::Absent, &first).unwrap();
    assert!(matches!(store.commit(vec![write]).await, Err(StoreError::Conflict { .. })));
}

#[tokio::test]
async fn the_keys_of_other_instances_and_identities_stay_published() {
    let now = SystemTime::now();
    let longer = SpiffeId::parse("spiffe://mesh.example/app/edge/api/v2").unwrap();
    for (subject, expected) in
        [(Subject::Certificate(Fingerprint([2; 32])), &[7, 9][..]), (Subject::Identity(id()), &[7])]
    {
        let store = store(now).await;
        let announce = async |id: &SpiffeId, instance: u8| {
            let first = leaf(instance, now).fingerprint;
            let key = SealingKey { id: id.clone(), key: [instance; 32], leaf: first.clone(), expires: 100 };
            let write = records::put(SealingKey::key(id, &first), Expect::Absent, &key).unwrap();
            store.commit(vec![write]).await.unwrap();
        };
        announce(&id(), 1).await;
        announce(&id(), 9).await;
        announce(&longer, 7).await;
        revoke(&store, &subject, "stolen", now).await.unwrap();
        let left = records::list::<SealingKey>(&store, records::SEALING_KEYS).await.unwrap();
        let mut left: Vec<_> = left.iter().map(|found| found.record.key[0]).collect();
        left.sort_unstable();
        assert_eq!(left, expected);
    }
}

async fn with_token(store: &MemoryStore, name: &str, id: SpiffeId, now: SystemTime) {
    let token = Token {
        secret_sha256: String::new(),
        id,
        network: "edge".to_owned(),
        uses: 5,
        instances: 5,
        expires: unix_seconds(now) + 60,
        withdrawn: false,
    };
    store
        .commit(vec![records::put(records::token_key(name), Expect::Absent, &token).unwrap()])
        .await
        .unwrap();
}

async fn is_withdrawn(store: &MemoryStore, name: &str) -> bool {
    records::read::<Token>(store, &records::token_key(name)).await.unwrap().unwrap().record.withdrawn
}

#[tokio::test]
async fn what_could_enrol_again_is_withdrawn_and_other_tokens_are_not() {
    let now = SystemTime::now();
    let other = SpiffeId::parse("spiffe://mesh.example/app/edge/other").unwrap();
    for (subject, expected) in [
        // The instance with leaf 9 enrolled with token t, as the other one of that identity did.
        (Subject::Certificate(Fingerprint([9; 32])), [true, false, false]),
        (Subject::Identity(id()), [true, true, false]),
    ] {
        let store = store(now).await;
        for (name, id) in [("t", id()), ("u", id()), ("v", other.clone())] {
            with_token(&store, name, id, now).await;
        }
        revoke(&store, &subject, "stolen", now).await.unwrap();
        let withdrawn = [
            is_withdrawn(&store, "t").await,
            is_withdrawn(&store, "u").await,
            is_withdrawn(&store, "v").await,
        ];
        assert_eq!(withdrawn, expected, "{subject:?}");
    }
}

#[tokio::test]
async fn a_lifted_identity_may_enrol_again_and_what_it_held_stays_revoked() {
    let now = SystemTime::now();
    let store = store(now).await;
    with_token(&store, "t", id(), now).await;
    revoke(&store, &Subject::Identity(id()), "stolen", now).await.unwrap();
    assert!(lift(&store, &id(), now).await.unwrap().is_some());
    assert_eq!(revoked(&store).await, keys(&[1, 2, 102, 3, 103, 9, 109]));
    assert!(registration(&store).await.record.instances.is_empty());
    assert!(is_withdrawn(&store, "t").await);
    assert!(lift(&store, &id(), now).await.unwrap().is_none(), "it is not revoked any more");
}

#[tokio::test]
async fn an_entry_goes_when_nobody_could_believe_its_certificate_and_an_identitys_stays() {
    let now = SystemTime::now();
    let store = store(now).await;
    revoke(&store, &Subject::Certificate(Fingerprint([9; 32])), "stolen", now).await.unwrap();
    revoke(&store, &Subject::Certificate(Fingerprint([77; 32])), "never seen", now).await.unwrap();
    let other = SpiffeId::parse("spiffe://mesh.example/app/edge/other").unwrap();
    revoke(&store, &Subject::Identity(other.clone()), "stolen", now).await.unwrap();
    let end = now + Duration::from_secs(60) + KEPT_AFTER;
    sweep(&store, end - Duration::from_secs(1)).await.unwrap();
    assert_eq!(revoked(&store).await.len(), 4);
    sweep(&store, end).await.unwrap();
    let mut left = keys(&[77]);
    left.insert(Subject::Identity(other).key());
    assert_eq!(revoked(&store).await, left);
    sweep(&store, now + LONGEST_LIFE + KEPT_AFTER).await.unwrap();
    assert_eq!(revoked(&store).await.len(), 1);
}
