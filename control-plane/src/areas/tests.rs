use signet_identity::{KeyRequest, TrustDomain, verify_tls_chain};
use signet_policy::{compile, parse_manifests};
use signet_sync::Entry;

use super::*;
use crate::revocation::revoke;
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

/// What the area certifies with.
fn pair(keys: &Keys, delegation: &wire::Delegation) -> signet_identity::Authority {
    signet_identity::Authority::delegated(
        delegation.root.clone().into(),
        delegation.issuer.clone().into(),
        &keys.issuer.key,
    )
    .unwrap()
}

/// Both certificates of a holder, by whom, until when.
fn leaf_until(by: &signet_identity::Authority, id: &str, end: u64) -> wire::AreaLeaf {
    let (tls, signing) = (KeyRequest::new_tls().unwrap(), KeyRequest::new_signing().unwrap());
    let id = SpiffeId::parse(&format!("spiffe://mesh.example/{id}")).unwrap();
    let bytes = |chain: Vec<CertificateDer<'static>>| chain.iter().map(|der| der.to_vec()).collect();
    wire::AreaLeaf {
        tls_chain: bytes(by.issue_tls(&tls.csr, &id, at(NOW - 60), at(end)).unwrap()),
        signing_chain: bytes(by.issue_signing(&signing.csr, &id, at(NOW - 60), at(end)).unwrap()),
    }
}

fn leaf(by: &signet_identity::Authority, id: &str) -> wire::AreaLeaf {
    leaf_until(by, id, NOW + 600)
}

fn of(leaf: &wire::AreaLeaf) -> [Fingerprint; 2] {
    [&leaf.tls_chain, &leaf.signing_chain].map(|chain| Fingerprint::of(&chain[0]))
}

fn instance(id: &str, network: &str, leaves: &[&wire::AreaLeaf]) -> wire::AreaInstance {
    wire::AreaInstance {
        spiffe_id: format!("spiffe://mesh.example/{id}"),
        first: of(leaves[0])[0].to_string(),
        network: network.to_owned(),
        leaves: leaves.iter().map(|&leaf| leaf.clone()).collect(),
    }
}

const API: &str = "app/plant/api";

#[tokio::test]
async fn names_and_networks_of_areas_are_theirs_alone() {
    let parent = Parent::new();
    parent.add("plant", "plant").await.unwrap();
    assert_eq!(code(parent.add("plant", "yard").await), "area-exists");
    assert_eq!(code(parent.add("other", "plant").await), "area-network");
    assert_eq!(code(parent.add("other", "nowhere").await), "area-network");
    assert_eq!(code(parent.add("other", "edge").await), "area-network", "it has no cidrs");
    for taken in ["main", "control-plane"] {
        assert_eq!(code(parent.add(taken, "yard").await), "area-exists");
    }
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

impl Parent {
    async fn take(&self, area: &Area, said: wire::AreaInstance) -> Result<(), &'static str> {
        let bundle = self.authority.bundle().unwrap();
        take_instance(&self.store, area, said, (&self.model, &bundle), at(NOW)).await.unwrap()
    }

    async fn is_revoked(&self, fingerprint: Fingerprint) -> bool {
        self.store.read(&Subject::Certificate(fingerprint).key()).await.unwrap().is_some()
    }

    async fn revoke(&self, fingerprint: Fingerprint) {
        revoke(&self.store, &Subject::Certificate(fingerprint), "stolen", at(NOW)).await.unwrap();
    }

    async fn registered(&self) -> Vec<Instance> {
        let id = SpiffeId::parse(&format!("spiffe://mesh.example/{API}")).unwrap();
        let found: Option<Found<Registration>> =
            records::read(&self.store, &registration_key(&id)).await.unwrap();
        found.map(|found| found.record.instances).unwrap_or_default()
    }
}

#[tokio::test]
async fn an_area_tells_of_its_own_instances_alone_and_they_are_revoked_here() {
    let parent = Parent::new();
    let (keys, delegation) = parent.plant().await;
    let pair = pair(&keys, &delegation);
    let area = parent.found("plant").await.record;
    let first = leaf(&pair, API);
    assert!(
        parent.take(&area, instance("app/other/api", "plant", &[&first])).await.is_err(),
        "not of its grant"
    );
    assert!(
        parent.take(&area, instance("app/plant/other", "plant", &[&first])).await.is_err(),
        "no workload"
    );
    assert!(parent.take(&area, instance(API, "yard", &[&first])).await.is_err(), "not in its network");
    parent.take(&area, instance(API, "plant", &[&first])).await.unwrap();

    let [tls, signing] = of(&first);
    parent.revoke(tls).await;
    assert!(parent.is_revoked(tls).await && parent.is_revoked(signing).await);
    // Renewed there before that was heard.
    let second = leaf(&pair, API);
    parent.take(&area, instance(API, "plant", &[&first, &second])).await.unwrap();
    let [tls, signing] = of(&second);
    assert!(parent.is_revoked(tls).await && parent.is_revoked(signing).await);
}

#[tokio::test]
async fn of_certificates_an_area_is_believed_what_they_say_themselves() {
    let parent = Parent::new();
    let (keys, delegation) = parent.plant().await;
    let pair = pair(&keys, &delegation);
    let origin = parent.authority.current().unwrap();
    let area = parent.found("plant").await.record;
    let stolen = leaf(&pair, API);
    parent.take(&area, instance(API, "plant", &[&stolen])).await.unwrap();
    parent.revoke(of(&stolen)[0]).await;

    // Somebody else's certificate beside one that is revoked would be revoked with it.
    let victim = leaf(&origin, "app/bank/vault");
    let foreign = instance(API, "plant", &[&stolen, &victim]);
    assert!(parent.take(&area, foreign).await.unwrap_err().contains("another identity"));
    let mixed = wire::AreaLeaf { signing_chain: victim.signing_chain.clone(), ..leaf(&pair, API) };
    assert!(parent.take(&area, instance(API, "plant", &[&stolen, &mixed])).await.is_err());
    // Of an issuer that nobody believes, or altered: nothing is known of it.
    let elsewhere = Parent::new();
    let unknown = leaf(&elsewhere.authority.current().unwrap(), API);
    let mut altered = leaf(&pair, API);
    *altered.tls_chain[0].last_mut().unwrap() ^= 1;
    for nothing in [&unknown, &altered] {
        parent.take(&area, instance(API, "plant", &[nothing])).await.unwrap();
    }
    for bad in [
        wire::AreaLeaf::default(),
        wire::AreaLeaf { tls_chain: stolen.tls_chain[..1].to_vec(), ..stolen.clone() },
        wire::AreaLeaf { signing_chain: stolen.signing_chain[..1].to_vec(), ..stolen.clone() },
    ] {
        let said = wire::AreaInstance { leaves: vec![bad], ..instance(API, "plant", &[&stolen]) };
        assert!(parent.take(&area, said).await.is_err());
    }
    assert!(parent.registered().await.is_empty());
    assert!(!parent.is_revoked(of(&victim)[0]).await && !parent.is_revoked(of(&victim)[1]).await);
}

#[tokio::test]
async fn what_is_known_of_an_instance_otherwise_is_not_an_areas_to_change() {
    let parent = Parent::new();
    let (keys, delegation) = parent.plant().await;
    let pair = pair(&keys, &delegation);
    let origin = parent.authority.current().unwrap();
    let area = parent.found("plant").await.record;
    // It enrolled at the origin, moved, and was renewed there.
    let (enrolled, renewed) = (leaf(&origin, API), leaf(&pair, API));
    let id = SpiffeId::parse(&format!("spiffe://mesh.example/{API}")).unwrap();
    let known = Instance {
        first: of(&enrolled)[0].to_string(),
        token: "token".to_owned(),
        network: "edge".to_owned(),
        leaves: vec![Leaf {
            fingerprint: of(&enrolled)[0].to_string(),
            signing: Some(of(&enrolled)[1].to_string()),
            issuer: None,
            not_after: NOW + 600,
        }],
        area: None,
        came: Vec::new(),
    };
    let registration = Registration { id: id.clone(), instances: vec![known.clone()] };
    let write = records::put(registration_key(&id), Expect::Any, &registration).unwrap();
    parent.store.commit(vec![write]).await.unwrap();
    let many: Vec<wire::AreaLeaf> = (1..LEAVES_MAX).map(|_| leaf(&pair, API)).collect();
    let all: Vec<&wire::AreaLeaf> = std::iter::once(&enrolled).chain(&many).collect();
    parent.take(&area, instance(API, "plant", &all)).await.unwrap();
    parent.take(&area, instance(API, "plant", &[&enrolled, &renewed])).await.unwrap();
    let registered = parent.registered().await;
    assert_eq!(registered[0], known);
    assert!(registered.len() == 2 && registered[1].leaves.len() == LEAVES_MAX);
    assert!(
        registered[1].leaves.iter().any(|leaf| leaf.fingerprint == known.first),
        "the area's own go first"
    );
    // Both are its holder's.
    parent.revoke(of(&enrolled)[0]).await;
    assert!(parent.is_revoked(of(&enrolled)[1]).await && parent.is_revoked(of(&renewed)[1]).await);
    assert!(parent.registered().await.is_empty());
}

#[tokio::test]
async fn whom_a_revoked_area_certified_ends_wherever_it_went() {
    let parent = Parent::new();
    let (keys, delegation) = parent.plant().await;
    let pair_of_plant = pair(&keys, &delegation);
    let token = parent.add("yard", "yard").await.unwrap();
    let keys_of_yard = Keys::new();
    let delegation_of_yard = parent.join(&token, &keys_of_yard, NOW).await.unwrap();
    let pair_of_yard = pair(&keys_of_yard, &delegation_of_yard);
    let yard = parent.found("yard").await.record;
    // Never told of by the plant.
    let (there, here) = (leaf_until(&pair_of_plant, API, NOW + 60), leaf(&pair_of_yard, API));
    parent.take(&yard, instance(API, "yard", &[&there, &here])).await.unwrap();
    // That it came from there is remembered when what it came with has ended.
    let later = leaf(&pair_of_yard, API);
    parent.take(&yard, instance(API, "yard", &[&here, &later])).await.unwrap();
    assert_eq!(parent.registered().await[0].came, ["plant"]);
    revoke_area(&parent.store, "plant", at(NOW)).await.unwrap();
    assert!(parent.registered().await.is_empty());
    for leaf in [&here, &later] {
        assert!(parent.is_revoked(of(leaf)[0]).await && parent.is_revoked(of(leaf)[1]).await);
    }
    // The end of its control plane is an identity too.
    assert!(parent.is_revoked(Fingerprint::of(&delegation.end)).await);
    assert!(!parent.is_revoked(Fingerprint::of(&delegation_of_yard.end)).await);
    // What comes to light after it is swept by asking again.
    parent.take(&yard, instance(API, "yard", &[&there, &leaf(&pair_of_yard, API)])).await.unwrap();
    assert_eq!(code(revoke_area(&parent.store, "plant", at(NOW)).await), "area-revoked");
    assert!(parent.registered().await.is_empty());
}

#[tokio::test]
async fn a_revoked_area_loses_issuer_networks_and_instances() {
    let parent = Parent::new();
    let (keys, delegation) = parent.plant().await;
    let area = parent.found("plant").await.record;
    let pair = pair(&keys, &delegation);
    parent.take(&area, instance(API, "plant", &[&leaf(&pair, API)])).await.unwrap();
    revoke_area(&parent.store, "plant", at(NOW)).await.unwrap();
    let listing = parent.store.list(records::DESIRED).await.unwrap();
    let areas = Areas::of(&listing).unwrap();
    assert!(!areas.owns("plant") && areas.directory_keys().next().is_none());
    let issuer = name(spki_sha256(&delegation.issuer).unwrap());
    assert_eq!(areas.refused().collect::<Vec<_>>(), [&issuer]);
    parent.authority.adopt_areas(std::sync::Arc::new(areas));
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
        sealing_keys: vec![[7; 32]],
    };
    let refused = |entry| {
        let directory = Directory::new("plant".to_owned(), vec![entry]).unwrap();
        why_not(&area, &directory, &parent.model).unwrap()
    };
    assert_eq!(refused(entry("10.7.0.1", "app/plant/api", &[])), None);
    assert!(refused(entry("10.8.0.1", "app/plant/api", &[])).is_some_and(|why| why.contains("address")));
    assert!(refused(entry("10.7.0.1", "app/other/api", &[])).is_some_and(|why| why.contains("grant")));
    assert!(refused(entry("10.7.0.1", "app/plant/api", &["bank"])).is_some_and(|why| why.contains("names")));
    // By that name senders would find a recipient.
    let bank = Entry { workload: "bank".to_owned(), ..entry("10.7.0.1", "app/plant/api", &[]) };
    assert!(refused(bank).is_some_and(|why| why.contains("workload")));
}
