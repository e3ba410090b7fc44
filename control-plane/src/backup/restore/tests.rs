use signet_identity::{Fingerprint, SpiffeId, TrustDomain};

use super::*;
use crate::records::{Instance, Leaf, Revocation, Subject, registration_key};
use crate::revocation::revoke;
use crate::store::{MemoryStore, StoreError};

fn authority(directory: &Path) -> Keyring {
    Keyring::create(directory, &TrustDomain::parse("mesh.example").unwrap(), SystemTime::now()).unwrap()
}

fn id() -> SpiffeId {
    SpiffeId::parse("spiffe://mesh.example/app/edge/api").unwrap()
}

/// A store with an authority, a version of a section and a token; and a backup of it.
async fn mesh(directory: &Path) -> (MemoryStore, Backup) {
    let (store, authority) = (MemoryStore::new(), authority(directory));
    let version = SectionVersion { epoch: 1, counter: 3, payload_sha256: "x".into(), made_from: 1 };
    let token = Token {
        secret_sha256: String::new(),
        id: id(),
        network: "edge".into(),
        uses: 5,
        instances: 5,
        expires: u64::MAX,
        withdrawn: false,
    };
    let writes = vec![
        Write::put(AUTHORITY, Expect::Any, crate::authority::name(authority.pin().unwrap()).into_bytes()),
        records::put(format!("{VERSIONS}policy"), Expect::Any, &version).unwrap(),
        records::put(format!("{TOKENS}t"), Expect::Any, &token).unwrap(),
        records::put(format!("{REPLICAS}r"), Expect::Any, &records::Replica { expires: u64::MAX }).unwrap(),
    ];
    store.commit(writes).await.unwrap();
    let listing = store.list("").await.unwrap();
    let text = authority.text().unwrap();
    (store, Backup::new("mesh.example".into(), 7, listing.revision, text.to_string(), listing.entries))
}

fn restoring(backup: &Backup) -> Restoring<'_> {
    Restoring { backup, replace: false, epoch: None, keep_tokens: false }
}

async fn get<T: serde::de::DeserializeOwned>(store: &MemoryStore, key: &str) -> T {
    records::read::<T>(store, key).await.unwrap().unwrap().record
}

#[tokio::test]
async fn a_restored_state_has_the_next_epoch_and_later_revisions_and_no_usable_tokens() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, backup) = mesh(old.path()).await;
    let store = MemoryStore::new();
    let restored = restore(&restoring(&backup), &store, new.path(), SystemTime::now()).await.unwrap();
    assert_eq!((restored.epoch, restored.backup_at), (2, 7));
    let version: SectionVersion = get(&store, "version/policy").await;
    assert_eq!((version.epoch, version.counter), (2, 0));
    assert_eq!(get::<Token>(&store, "token/t").await.uses, 0);
    assert!(store.read("replica/r").await.unwrap().is_none());
    assert!(store.list("").await.unwrap().revision.0 > backup.revision + REVISION_GAP - 1);
    let trust_domain = TrustDomain::parse("mesh.example").unwrap();
    assert!(Keyring::load(new.path(), &trust_domain).unwrap().is_some());
}

#[tokio::test]
async fn a_mesh_that_is_there_is_replaced_on_request_only_and_what_it_revoked_stays_revoked() {
    let directory = tempfile::tempdir().unwrap();
    let (store, backup) = mesh(directory.path()).await;
    let revocation = Revocation {
        subject: Subject::Identity(id()),
        reason: "stolen".into(),
        revoked_at: 1,
        expires: None,
        tampered: None,
        told_by: None,
    };
    let later = SectionVersion { epoch: 6, counter: 1, payload_sha256: String::new(), made_from: 2 };
    let writes = vec![
        records::put(revocation.subject.key(), Expect::Any, &revocation).unwrap(),
        records::put(format!("{VERSIONS}directory/new"), Expect::Any, &later).unwrap(),
        Write::put("desired/later", Expect::Any, Vec::new()),
    ];
    store.commit(writes).await.unwrap();
    let before = store.list("").await.unwrap();
    let now = SystemTime::now();
    let refused = restore(&restoring(&backup), &store, directory.path(), now).await.unwrap_err();
    assert!(matches!(refused, BackupError::NotEmpty(2)), "{refused}");
    assert_eq!(store.list("").await.unwrap(), before);
    let replacing = Restoring { replace: true, keep_tokens: true, ..restoring(&backup) };
    let restored = restore(&replacing, &store, directory.path(), now).await.unwrap();
    assert_eq!(restored.epoch, 7);
    assert_eq!(get::<Revocation>(&store, &revocation.subject.key()).await, revocation);
    assert_eq!(get::<SectionVersion>(&store, "version/directory/new").await.epoch, 7);
    assert_eq!(get::<Token>(&store, "token/t").await.uses, 5);
    assert!(store.read("desired/later").await.unwrap().is_none());
}

#[tokio::test]
async fn an_epoch_that_is_known_and_an_authority_that_is_another_are_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, backup) = mesh(one.path()).await;
    let (other, _) = mesh(two.path()).await;
    let now = SystemTime::now();
    let known = Restoring { epoch: Some(1), ..restoring(&backup) };
    let empty = tempfile::tempdir().unwrap();
    let refused = restore(&known, &MemoryStore::new(), empty.path(), now).await;
    assert!(matches!(refused, Err(BackupError::Epoch(1))));
    let replacing = Restoring { replace: true, ..restoring(&backup) };
    let refused = restore(&replacing, &other, two.path(), now).await;
    assert!(matches!(refused, Err(BackupError::OtherAuthority)));
    // The same where only the keys are there.
    let refused = restore(&replacing, &MemoryStore::new(), two.path(), now).await;
    assert!(matches!(refused, Err(BackupError::OtherAuthority)));
    let ahead = Restoring { epoch: Some(9), ..restoring(&backup) };
    assert_eq!(restore(&ahead, &MemoryStore::new(), empty.path(), now).await.unwrap().epoch, 9);
}

#[tokio::test]
async fn what_cannot_be_read_restores_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (_, mut backup) = mesh(directory.path()).await;
    let damaged = Entry { key: "version/policy".into(), value: b"{".to_vec(), revision: Revision(1) };
    backup = Backup::new("mesh.example".into(), 7, Revision(1), backup.authority, vec![damaged]);
    let (store, empty) = (MemoryStore::new(), tempfile::tempdir().unwrap());
    let refused = restore(&restoring(&backup), &store, empty.path(), SystemTime::now()).await;
    assert!(matches!(refused, Err(BackupError::Store(StoreError::Corrupted(_)))));
    assert!(store.list("").await.unwrap().entries.is_empty());
    assert!(std::fs::read_dir(empty.path()).unwrap().next().is_none());
}

fn leaf(number: u8, not_after: u64) -> Leaf {
    let text = |number| Fingerprint([number; 32]).to_string();
    Leaf { fingerprint: text(number), signing: Some(text(100 + number)), issuer: None, not_after }
}

/// The instance that is named by certificate 1, with these it holds.
fn instance(leaves: Vec<Leaf>) -> Instance {
    let first = Fingerprint([1; 32]).to_string();
    Instance { first, token: "t".into(), network: "edge".into(), leaves, area: None, came: Vec::new() }
}

/// What is registered after a restore with `--replace` of a backup of an instance with certificate 1, which held 2 instead when
/// `subject` was revoked, and the state.
async fn registered_after(subject: Option<Subject>) -> (usize, MemoryStore) {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = mesh(directory.path()).await;
    let now = SystemTime::now();
    let registered = async |leaf: Leaf| {
        let registration = Registration { id: id(), instances: vec![instance(vec![leaf])] };
        let write = records::put(registration_key(&id()), Expect::Any, &registration).unwrap();
        store.commit(vec![write]).await.unwrap();
    };
    // It has ended, and gets its holder a new one.
    registered(leaf(1, unix_seconds(now) - 60)).await;
    let listing = store.list("").await.unwrap();
    let text = Keyring::load(directory.path(), &TrustDomain::parse("mesh.example").unwrap())
        .unwrap()
        .unwrap()
        .text();
    let backup =
        Backup::new("mesh.example".into(), 7, listing.revision, text.unwrap().to_string(), listing.entries);
    registered(leaf(2, unix_seconds(now) + 60)).await;
    if let Some(subject) = &subject {
        revoke(&store, subject, "stolen", now).await.unwrap();
    }
    let replacing = Restoring { replace: true, keep_tokens: true, ..restoring(&backup) };
    restore(&replacing, &store, directory.path(), now).await.unwrap();
    let registration: Registration = get(&store, &registration_key(&id())).await;
    (registration.instances.len(), store)
}

#[tokio::test]
async fn an_instance_that_was_revoked_since_the_backup_is_not_registered_again() {
    let (registered, store) = registered_after(None).await;
    assert_eq!((registered, get::<Token>(&store, "token/t").await.withdrawn), (1, false));
    let (registered, store) = registered_after(Some(Subject::Certificate(Fingerprint([2; 32])))).await;
    assert_eq!((registered, get::<Token>(&store, "token/t").await.withdrawn), (0, true));
}

#[tokio::test]
async fn what_an_identity_held_that_was_revoked_since_the_backup_stays_revoked_when_that_is_lifted() {
    let (registered, store) = registered_after(Some(Subject::Identity(id()))).await;
    assert_eq!(registered, 0);
    crate::revocation::lift(&store, &id(), SystemTime::now()).await.unwrap().unwrap();
    for number in [1, 2, 102] {
        let key = Subject::Certificate(Fingerprint([number; 32])).key();
        assert!(store.read(&key).await.unwrap().is_some(), "{number}");
    }
}
