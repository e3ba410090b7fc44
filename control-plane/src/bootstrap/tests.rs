use std::time::Duration;

use super::*;
use crate::authority::slots::Slots;
use crate::store::MemoryStore;
use crate::store::Revision;

const MESH: &str = "
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: {name: box}
spec: {trustDomain: box.example, networks: [{name: box}]}
";

struct Fixture {
    prepared: tempfile::TempDir,
    state: tempfile::TempDir,
    store: MemoryStore,
    now: SystemTime,
}

fn fixture() -> Fixture {
    Fixture {
        prepared: tempfile::tempdir().unwrap(),
        state: tempfile::tempdir().unwrap(),
        store: MemoryStore::new(),
        now: SystemTime::now(),
    }
}

fn domain() -> TrustDomain {
    TrustDomain::parse("box.example").unwrap()
}

fn wanted(workload: &str) -> Wanted {
    Wanted {
        id: SpiffeId::parse(&format!("spiffe://box.example/app/box/{workload}")).unwrap(),
        network: "box".to_owned(),
        uses: 2,
        instances: 1,
        ttl: Duration::from_secs(60),
    }
}

impl Fixture {
    fn prepare(&self, workloads: &[&str]) -> Vec<signet_sync::Token> {
        let wanted: Vec<Wanted> = workloads.iter().map(|workload| wanted(workload)).collect();
        let texts = prepare(self.prepared.path(), &domain(), &wanted, self.now).unwrap();
        texts.iter().map(|text| signet_sync::Token::parse(text).unwrap()).collect()
    }

    fn authority(&self) -> Authority {
        let keyring = adopt_authority(self.prepared.path(), self.state.path(), &domain()).unwrap().unwrap();
        let slots = Slots::first(&keyring).unwrap();
        Authority::new(self.state.path(), signet_identity::Keys::Memory, keyring, (Revision(0), slots))
            .unwrap()
    }

    async fn adopt(&self, authority: &Authority, now: SystemTime) -> Result<(), BootstrapError> {
        adopt(self.prepared.path(), &self.store, authority, now).await
    }
}

#[tokio::test]
async fn a_prepared_token_is_good_at_the_control_plane_that_adopts_it_and_pins_its_authority() {
    let mesh = fixture();
    let token = mesh.prepare(&["api"]).remove(0);
    let authority = mesh.authority();
    mesh.adopt(&authority, mesh.now).await.unwrap();
    assert_eq!(token.pin(), authority.pin().unwrap());
    let found = token::find(&mesh.store, token.id(), token.secret()).await.unwrap().unwrap();
    assert_eq!((found.record.uses, found.record.network.as_str()), (2, "box"));
    let kept = Keyring::load(mesh.state.path(), &domain()).unwrap().unwrap();
    assert_eq!(kept.pin().unwrap(), authority.pin().unwrap());
}

#[tokio::test]
async fn the_directory_holds_no_token() {
    let mesh = fixture();
    let token = mesh.prepare(&["api"]).remove(0);
    let secret = token.reveal();
    let secret = secret.split('.').nth(1).unwrap();
    for entry in std::fs::read_dir(mesh.prepared.path()).unwrap() {
        assert!(!std::fs::read_to_string(entry.unwrap().path()).unwrap().contains(secret));
    }
}

#[tokio::test]
async fn a_later_service_gets_its_token_and_earlier_ones_stay_good() {
    let mesh = fixture();
    let first = mesh.prepare(&["api"]).remove(0);
    let authority = mesh.authority();
    mesh.adopt(&authority, mesh.now).await.unwrap();
    let second = mesh.prepare(&["db"]).remove(0);
    mesh.adopt(&authority, mesh.now).await.unwrap();
    for token in [first, second] {
        assert!(token::find(&mesh.store, token.id(), token.secret()).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_token_that_was_used_does_not_come_back_with_a_restart() {
    let mesh = fixture();
    let token = mesh.prepare(&["api"]).remove(0);
    let authority = mesh.authority();
    mesh.adopt(&authority, mesh.now).await.unwrap();
    let key = token_key(token.id());
    let mut found = records::read::<Token>(&mesh.store, &key).await.unwrap().unwrap();
    found.record.uses = 0;
    let used = records::put(key.clone(), Expect::At(found.revision), &found.record).unwrap();
    mesh.store.commit(vec![used]).await.unwrap();
    mesh.adopt(&authority, mesh.now).await.unwrap();
    assert_eq!(records::read::<Token>(&mesh.store, &key).await.unwrap().unwrap().record.uses, 0);
    // Expired, it is swept from the store, and stays away all the same.
    let later = mesh.now + Duration::from_secs(61);
    token::sweep(&mesh.store, later).await.unwrap();
    mesh.adopt(&authority, later).await.unwrap();
    assert!(records::read::<Token>(&mesh.store, &key).await.unwrap().is_none());
}

#[tokio::test]
async fn a_token_that_was_withdrawn_does_not_come_back_with_a_restart() {
    let mesh = fixture();
    let token = mesh.prepare(&["api"]).remove(0);
    let authority = mesh.authority();
    mesh.adopt(&authority, mesh.now).await.unwrap();
    token::withdraw(&mesh.store, token.id(), mesh.now).await.unwrap().unwrap();
    mesh.adopt(&authority, mesh.now).await.unwrap();
    let found = token::find(&mesh.store, token.id(), token.secret()).await.unwrap().unwrap();
    assert_eq!(token::usable(&found.record, mesh.now), Err("the token was withdrawn"));
}

#[tokio::test]
async fn manifests_count_on_the_first_start_only() {
    let mesh = fixture();
    mesh.prepare(&[]);
    let path = mesh.prepared.path().join("mesh.yaml");
    std::fs::write(&path, MESH).unwrap();
    let authority = mesh.authority();
    mesh.adopt(&authority, mesh.now).await.unwrap();
    std::fs::write(&path, MESH.replace("name: box}]", "name: other}]")).unwrap();
    mesh.adopt(&authority, mesh.now).await.unwrap();
    let manifests = Manifests::load(&mesh.store, &Manifests::default()).await.unwrap();
    let yaml: Vec<&str> = manifests.items(None, None).map(|item| item.yaml).collect();
    assert!(yaml.len() == 1 && yaml[0].contains("[{name: box}]"), "{yaml:?}");
}

#[tokio::test]
async fn manifests_that_the_operator_deleted_do_not_come_back_with_a_restart() {
    let mesh = fixture();
    mesh.prepare(&[]);
    std::fs::write(mesh.prepared.path().join("mesh.yaml"), MESH).unwrap();
    let authority = mesh.authority();
    mesh.adopt(&authority, mesh.now).await.unwrap();
    let manifests = Manifests::load(&mesh.store, &Manifests::default()).await.unwrap();
    let deleted = manifests.delete(&mesh.store, &domain(), signet_policy::Kind::Mesh, "box", false).await;
    assert!(deleted.unwrap().unwrap().diagnostics.is_empty());
    mesh.adopt(&authority, mesh.now).await.unwrap();
    assert!(mesh.store.list(records::MANIFESTS).await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn refused_manifests_are_told_with_their_place_and_nothing_is_stored() {
    let mesh = fixture();
    mesh.prepare(&[]);
    std::fs::write(mesh.prepared.path().join("mesh.yaml"), MESH.replace("networks", "netwerks")).unwrap();
    let error = mesh.adopt(&mesh.authority(), mesh.now).await.unwrap_err().to_string();
    assert!(error.contains("mesh.yaml:5") && error.contains("netwerks"), "{error}");
    assert!(mesh.store.list(records::MANIFESTS).await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn a_directory_of_another_authority_is_refused_by_name() {
    let mesh = fixture();
    mesh.prepare(&["api"]);
    let elsewhere = fixture();
    elsewhere.prepare(&[]);
    let error = mesh.adopt(&elsewhere.authority(), mesh.now).await.unwrap_err();
    assert!(matches!(error, BootstrapError::OtherAuthority { .. }), "{error}");
    assert!(mesh.store.list(records::TOKENS).await.unwrap().entries.is_empty());
}

#[test]
fn a_file_of_tokens_that_is_not_ours_is_refused_and_left_alone() {
    for (text, word) in [
        ("{", "EOF"),
        (r#"{"version": 1, "tokens": {}, "more": 1}"#, "more"),
        (r#"{"version": 2, "tokens": {}}"#, "version 2"),
    ] {
        let mesh = fixture();
        let path = mesh.prepared.path().join(TOKENS);
        std::fs::write(&path, text).unwrap();
        let error = prepare(mesh.prepared.path(), &domain(), &[wanted("api")], mesh.now).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert!(!mesh.prepared.path().join("authority.pem").exists());
    }
}

#[test]
fn a_wish_out_of_bounds_makes_nothing() {
    let mesh = fixture();
    let wish = Wanted { uses: 0, ..wanted("api") };
    let refused = prepare(mesh.prepared.path(), &domain(), &[wish], mesh.now);
    assert!(matches!(refused, Err(BootstrapError::Wanted)));
    assert_eq!(std::fs::read_dir(mesh.prepared.path()).unwrap().count(), 0);
}
