use super::*;
use crate::records::{Revocation, Subject, Token, unix_seconds};
use crate::store::MemoryStore;

const DAY: u64 = 24 * 3600;

/// What is left of a token and a revocation that are over in a day, after sweeps while the clock stands so many seconds ahead.
async fn left_after(ahead: u64) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let drill = folder.path().join("drill");
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let clock =
        Clock::open(store.clone(), Arc::new(Streams::new()), Some(drill.clone()), false).await.unwrap();
    let id = signet_identity::SpiffeId::parse("spiffe://mesh.example/app/edge/api").unwrap();
    let expires = unix_seconds(clock.believed().unwrap()) + DAY;
    let token = Token {
        secret_sha256: String::new(),
        id,
        network: "edge".into(),
        uses: 1,
        instances: 1,
        expires,
        withdrawn: false,
    };
    let subject = Subject::Certificate(signet_identity::Fingerprint([7; 32]));
    let revocation = Revocation {
        subject,
        reason: "stolen".into(),
        revoked_at: expires - DAY,
        expires: Some(expires),
        tampered: None,
        told_by: None,
    };
    let writes = vec![
        records::put(records::token_key("t"), Expect::Absent, &token).unwrap(),
        records::put(revocation.subject.key(), Expect::Absent, &revocation).unwrap(),
    ];
    store.commit(writes).await.unwrap();
    let claims = Claims::new(store.clone(), String::new());
    std::fs::write(&drill, ahead.to_string()).unwrap();
    clock.read_drill();
    sweep_once(&*store, &clock, &claims, &model()).await;
    let entries = store.list("").await.unwrap().entries;
    entries.iter().filter(|entry| entry.key.starts_with("token/") || entry.key.contains("revo")).count()
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_removes_neither_revocations_nor_tokens() {
    assert_eq!(left_after(0).await, 2);
    assert_eq!(left_after(100 * DAY).await, 2);
}

#[tokio::test]
async fn what_is_over_by_a_clock_that_is_believed_is_removed() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let clock = Clock::open(store.clone(), Arc::new(Streams::new()), None, false).await.unwrap();
    let revocation = Revocation {
        subject: Subject::Certificate(signet_identity::Fingerprint([7; 32])),
        reason: "stolen".into(),
        revoked_at: 1,
        expires: Some(2),
        tampered: None,
        told_by: None,
    };
    let write = records::put(revocation.subject.key(), Expect::Absent, &revocation).unwrap();
    store.commit(vec![write]).await.unwrap();
    let claims = Claims::new(store.clone(), String::new());
    sweep_once(&*store, &clock, &claims, &model()).await;
    assert!(store.read(&revocation.subject.key()).await.unwrap().is_none());
}

fn model() -> PolicyModel {
    PolicyModel::empty(signet_identity::TrustDomain::parse("mesh.example").unwrap())
}
