use signet_identity::{KeyRequest, TrustDomain, verify_tls_chain};
use signet_policy::{compile, parse_manifests};
use signet_sync::Entry;

use super::*;
use crate::store::MemoryStore;

const NOW: u64 = 1_795_419_480;

const MESH: &str = "apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec:
  trustDomain: mesh.example
  networks: [{ name: edge }, { name: plant, cidrs: [10.7.0.0/16] }, { name: yard, cidrs: [10.8.0.0/16] }]
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: api }
spec: { class: app, device: plant, network: plant }
";

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A parent with nothing under it.
struct Parent {
    _directory: tempfile::TempDir,
    store: MemoryStore,
    authority: Authority,
    model: PolicyModel,
}

/// The keys of an area to be.
struct Keys {
    issuer: KeyRequest,
    end: KeyRequest,
}

impl Keys {
    fn new() -> Self {
        Self { issuer: KeyRequest::new_tls().unwrap(), end: KeyRequest::new_tls().unwrap() }
    }

    fn requests(&self) -> Requests<'_> {
        Requests { issuer: &self.issuer.csr, end: &self.end.csr }
    }
}

impl Parent {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let domain = TrustDomain::parse("mesh.example").unwrap();
        let authority = Authority::create(directory.path(), &domain, at(NOW)).unwrap();
        let model = compile(&parse_manifests("test", MESH).unwrap()).unwrap();
        Self { _directory: directory, store: MemoryStore::new(), authority, model }
    }

    async fn add(&self, name: &str, network: &str) -> Result<signet_sync::Token, AreaError> {
        let wanted = Wanted {
            name: name.to_owned(),
            networks: vec![network.to_owned()],
            identities: vec!["app/plant/*".to_owned()],
            budget: Duration::from_secs(3600),
        };
        Ok(add(&self.store, &self.authority, wanted, &self.model, at(NOW)).await?.0)
    }

    async fn join(
        &self,
        token: &signet_sync::Token,
        keys: &Keys,
        now: u64,
    ) -> Result<wire::Delegation, AreaError> {
        let token: (&str, &[u8]) = (token.id(), token.secret());
        Ok(join(&self.store, &self.authority, token, [7; 32], keys.requests(), at(now)).await?.0)
    }

    async fn plant(&self) -> (Keys, wire::Delegation) {
        let token = self.add("plant", "plant").await.unwrap();
        let keys = Keys::new();
        let delegation = self.join(&token, &keys, NOW).await.unwrap();
        (keys, delegation)
    }

    async fn found(&self, name: &str) -> Found<Area> {
        records::read::<Area>(&self.store, &key(name)).await.unwrap().unwrap()
    }
}

fn code<T>(outcome: Result<T, AreaError>) -> &'static str {
    outcome.err().map_or("ok", |error| error.code())
}

fn leaf(number: u8) -> String {
    Fingerprint([number; 32]).to_string()
}

fn instance(id: &str, network: &str, leaves: &[u8]) -> wire::AreaInstance {
    let leaf_of = |number: &u8| wire::AreaLeaf {
        fingerprint: leaf(*number),
        signing: leaf(100 + *number),
        not_after: NOW + 600,
    };
    wire::AreaInstance {
        spiffe_id: format!("spiffe://mesh.example/{id}"),
        first: leaf(leaves[0]),
        network: network.to_owned(),
        leaves: leaves.iter().map(leaf_of).collect(),
    }
}

#[tokio::test]
async fn names_and_networks_of_areas_are_theirs_alone() {
    let parent = Parent::new();
    parent.add("plant", "plant").await.unwrap();
    assert_eq!(code(parent.add("plant", "yard").await), "area-exists");
    assert_eq!(code(parent.add("other", "plant").await), "area-network");
    assert_eq!(code(parent.add("other", "nowhere").await), "area-network");
    assert_eq!(code(parent.add("main", "yard").await), "area-exists");
    assert_eq!(code(parent.add("Other", "yard").await), "area-grant");
    parent.add("other", "yard").await.unwrap();
}

#[tokio::test]
async fn a_token_lets_one_area_in_once_and_in_time() {
    let parent = Parent::new();
    let token = parent.add("plant", "plant").await.unwrap();
    let forged = signet_sync::Token::new(token.id().to_owned(), [0; 32], token.pin()).unwrap();
    assert_eq!(code(parent.join(&forged, &Keys::new(), NOW).await), "token-refused");
    assert_eq!(code(parent.join(&token, &Keys::new(), NOW + 25 * 3600).await), "token-refused");
    let keys = Keys::new();
    let delegation = parent.join(&token, &keys, NOW).await.unwrap();
    assert_eq!((&*delegation.area, delegation.networks.len(), delegation.budget_s), ("plant", 1, 3600));
    assert_eq!(code(parent.join(&token, &Keys::new(), NOW).await), "token-refused");
    let bundle = parent.authority.bundle().unwrap();
    let peer = verify_tls_chain(&bundle, &[delegation.end.into()], at(NOW)).unwrap();
    assert!(peer.id().is_control_plane() && peer.id().parts().unwrap().device == "plant");
}

#[tokio::test]
async fn a_delegation_is_renewed_over_its_own_key_for_as_long_again_as_it_was_good_for() {
    let parent = Parent::new();
    let (keys, delegation) = parent.plant().await;
    let ended = at(NOW + 3600);
    let renew_at = async |now: u64, requests: Requests<'_>| {
        let found = parent.found("plant").await;
        renew(&parent.store, &parent.authority, found, ended, requests, at(now)).await
    };
    assert_eq!(code(renew_at(NOW + 1800, Keys::new().requests()).await), "area-key");
    assert_eq!(code(renew_at(NOW + 7199, keys.requests()).await), "ok");
    assert_eq!(code(renew_at(NOW + 7200, keys.requests()).await), "area-ended");
    // The old end is remembered, an unknown one is not.
    let id = SpiffeId::control_plane(parent.authority.trust_domain(), "plant").unwrap();
    let shown = Fingerprint::of(&delegation.end);
    assert_eq!(code(caller(&parent.store, &id, shown).await), "ok");
    assert_eq!(code(caller(&parent.store, &id, Fingerprint([1; 32])).await), "area-unknown");
}

#[tokio::test]
async fn an_area_tells_of_its_own_instances_alone_and_they_are_revoked_here() {
    let parent = Parent::new();
    parent.plant().await;
    let area = parent.found("plant").await.record;
    let take = async |said| take_instance(&parent.store, &area, said, &parent.model, at(NOW)).await.unwrap();
    assert!(take(instance("app/other/api", "plant", &[1])).await.is_err(), "not of its grant");
    assert!(take(instance("app/plant/other", "plant", &[1])).await.is_err(), "no workload");
    assert!(take(instance("app/plant/api", "yard", &[1])).await.is_err(), "not in its network");
    take(instance("app/plant/api", "plant", &[1])).await.unwrap();

    let revoked = async |number: u8| {
        let key = Subject::Certificate(Fingerprint([number; 32])).key();
        parent.store.read(&key).await.unwrap().is_some()
    };
    revoke(&parent.store, &Subject::Certificate(Fingerprint([1; 32])), "stolen", at(NOW)).await.unwrap();
    assert!(revoked(1).await && revoked(101).await);
    // Renewed there before that was heard.
    take(instance("app/plant/api", "plant", &[1, 2])).await.unwrap();
    assert!(revoked(2).await && revoked(102).await);
}

#[tokio::test]
async fn a_revoked_area_loses_issuer_networks_and_instances() {
    let parent = Parent::new();
    let (keys, delegation) = parent.plant().await;
    let area = parent.found("plant").await.record;
    take_instance(&parent.store, &area, instance("app/plant/api", "plant", &[1]), &parent.model, at(NOW))
        .await
        .unwrap()
        .unwrap();
    revoke_area(&parent.store, "plant", at(NOW)).await.unwrap();
    let listing = parent.store.list(records::DESIRED).await.unwrap();
    let areas = Areas::of(&listing).unwrap();
    assert!(!areas.owns("plant") && areas.directory_keys().next().is_none());
    let issuer = name(spki_sha256(&delegation.issuer).unwrap());
    assert_eq!(areas.refused().collect::<Vec<_>>(), [&issuer]);
    parent.authority.adopt_areas(std::sync::Arc::new(areas));
    let pair = signet_identity::Authority::delegated(
        delegation.root.into(),
        delegation.issuer.clone().into(),
        &keys.issuer.key,
    )
    .unwrap();
    let request = KeyRequest::new_tls().unwrap();
    let id = SpiffeId::parse("spiffe://mesh.example/app/plant/api").unwrap();
    let chain = pair.issue_tls(&request.csr, &id, at(NOW - 60), at(NOW + 60)).unwrap();
    assert!(verify_tls_chain(&parent.authority.bundle().unwrap(), &chain, at(NOW)).is_err());
    let registration: Registration =
        records::read(&parent.store, &registration_key(&id)).await.unwrap().unwrap().record;
    assert!(registration.instances.is_empty());
    let shown = Fingerprint::of(&delegation.end);
    let end = SpiffeId::control_plane(parent.authority.trust_domain(), "plant").unwrap();
    assert_eq!(code(caller(&parent.store, &end, shown).await), "area-revoked");
    assert_eq!(code(revoke_area(&parent.store, "plant", at(NOW)).await), "area-revoked");
    // The network is free, the name is not before its certificates have ended and nobody remembers them.
    assert_eq!(code(parent.add("plant", "plant").await), "area-exists");
    parent.add("plant-2", "plant").await.unwrap();
    sweep(&parent.store, at(NOW + 3600) + KEPT_AFTER).await.unwrap();
    assert_eq!(list(&parent.store).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_directory_says_who_of_the_grant_is_where_in_the_network() {
    let parent = Parent::new();
    parent.plant().await;
    let area = parent.found("plant").await.record;
    let entry = |address: &str, id: &str, names: &[&str]| Entry {
        address: address.parse().unwrap(),
        port: 80,
        target_port: 80,
        identities: vec![SpiffeId::parse(&format!("spiffe://mesh.example/{id}")).unwrap()],
        workload: "api".to_owned(),
        names: names.iter().map(|&name| name.to_owned()).collect(),
        protocol: signet_policy::Protocol::Auto,
        speaks_first: None,
        habit_expires: None,
        sealing_keys: Vec::new(),
    };
    let refused = |entry| {
        let directory = Directory::new("plant".to_owned(), vec![entry]).unwrap();
        why_not(&area, &directory, &parent.model).unwrap()
    };
    assert_eq!(refused(entry("10.7.0.1", "app/plant/api", &[])), None);
    assert!(refused(entry("10.8.0.1", "app/plant/api", &[])).is_some_and(|why| why.contains("address")));
    assert!(refused(entry("10.7.0.1", "app/other/api", &[])).is_some_and(|why| why.contains("grant")));
    assert!(refused(entry("10.7.0.1", "app/plant/api", &["bank"])).is_some_and(|why| why.contains("names")));
}
