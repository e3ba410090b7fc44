use signet_identity::Authority;
use signet_policy::{compile, parse_manifests};
use signet_sync::{Revocation, Subject};

use super::*;

const PLATFORM: &str = "apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: { name: platform }
spec: { trustDomain: platform.example, networks: [{ name: lan, cidrs: [10.0.0.0/24], gateways: [10.0.0.1] }] }
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: cimi }
spec: { class: platform, device: d, network: lan, ports: [{ port: 80 }] }
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Federation
metadata: { name: shop }
spec:
  trustDomain: shop.example
  outbound: [{ workloads: [cimi], to: [{ identity: spiffe://shop.example/app/d/cart }] }]
";

const SHOP: &str = "apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: { name: shop }
spec: { trustDomain: shop.example, networks: [{ name: lan }, { name: other }] }
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: cart }
spec: { class: app, device: d, network: lan, names: [cimi], ports: [{ port: 80 }] }
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: secret }
spec: { class: app, device: d, network: lan, ports: [{ port: 80 }] }
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Federation
metadata: { name: platform }
spec:
  trustDomain: platform.example
  inbound: [{ from: [{ identity: 'spiffe://platform.example/**' }], workloads: [cart] }]
";

fn model(text: &str) -> PolicyModel {
    compile(&parse_manifests("test.yaml", text).unwrap()).unwrap()
}

fn entry(workload: &str, id: &str, address: &str) -> Entry {
    Entry {
        address: address.parse().unwrap(),
        port: 80,
        target_port: 80,
        identities: vec![id.parse().unwrap()],
        workload: workload.to_owned(),
        names: vec![workload.to_owned()],
        protocol: signet_policy::Protocol::Auto,
        speaks_first: None,
        habit_expires: None,
        sealing_keys: Vec::new(),
    }
}

fn offer(entries: Vec<Entry>) -> Offer {
    let now = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
    let hour = std::time::Duration::from_secs(3_600);
    let authority = Authority::create("shop.example".parse().unwrap(), now, hour).unwrap();
    Offer {
        model: Arc::new(model(SHOP)),
        bundle: authority.bundle(),
        open: authority.bundle(),
        directories: [("lan".to_owned(), entries.clone()), ("other".to_owned(), entries)].into(),
        revocations: Arc::default(),
    }
}

#[test]
fn only_who_may_be_called_is_told_and_never_in_place_of_an_own_entry() {
    let cart = |address| entry("cart", "spiffe://shop.example/app/d/cart", address);
    let theirs = vec![
        cart("10.0.0.5"),
        // An own entry's place, a gateway, and an address that is not of the network here.
        cart("10.0.0.7"),
        cart("10.0.0.1"),
        cart("10.9.9.9"),
        // What manifests here have another use for: a workload that has not claimed it yet, a virtual address, a host outside.
        cart("10.0.0.20"),
        cart("10.0.0.21"),
        cart("10.0.0.22"),
        entry("secret", "spiffe://shop.example/app/d/secret", "10.0.0.6"),
    ];
    let mut own = model(PLATFORM);
    let place = |address: &str| signet_policy::Advertised {
        network: "lan".to_owned(),
        address: address.parse().unwrap(),
        port: 80,
        target_port: 80,
    };
    own.workloads[0].addresses.push("10.0.0.20".parse().unwrap());
    own.workloads[0].virtual_addresses.push(place("10.0.0.21"));
    own.egress.push(signet_policy::EgressRule {
        cidr: "10.0.0.22/32".parse().unwrap(),
        ports: Vec::new(),
        protocol: signet_policy::Transport::Tcp,
        comment: None,
    });
    let joined = join(&mut own, &Revocations::default(), &[Arc::new(offer(theirs))]);
    assert_eq!(joined.len(), 1);
    let cimi = entry("cimi", "spiffe://platform.example/platform/d/cimi", "10.0.0.7");
    let mut directories: BTreeMap<_, _> = [("lan".to_owned(), vec![cimi.clone()])].into();
    add_places(&mut directories, &own, &joined);
    let expected = Entry { workload: "shop.example/cart".into(), names: Vec::new(), ..cart("10.0.0.5") };
    assert_eq!(directories, [("lan".to_owned(), vec![expected, cimi])].into());
}

#[test]
fn domain_that_revoked_more_than_can_be_taken_over_is_not_federated() {
    let mut many = Revocations::default();
    for number in 0..=REVOCATIONS_MAX {
        let id = format!("spiffe://shop.example/app/d/w{number}").parse().unwrap();
        many.insert(Subject::Identity(id), Revocation { reason: String::new(), revoked_at: 1 });
    }
    let mut own = model(PLATFORM);
    let before = own.clone();
    let offer = Offer { revocations: Arc::new(many), ..offer(Vec::new()) };
    assert!(join(&mut own, &Revocations::default(), &[Arc::new(offer)]).is_empty());
    assert_eq!(own, before);
}

#[tokio::test]
async fn offer_is_seen_by_others_until_the_last_federation_is_gone() {
    let domains = ["platform.example", "shop.example"].map(|name| name.parse().unwrap());
    let [platform, shop] = <[Neighbours; 2]>::try_from(Neighbours::of(&domains)).unwrap();
    shop.show(offer(Vec::new()));
    assert!(shop.offers().is_empty(), "nobody is its own neighbour");
    platform.differ_from(&[]).await;
    let seen = platform.offers();
    assert_eq!(seen.len(), 1);
    let alone =
        Offer { model: Arc::new(PolicyModel::empty("shop.example".parse().unwrap())), ..offer(Vec::new()) };
    shop.show(alone);
    platform.differ_from(&seen).await;
    assert!(platform.offers().is_empty());
    let named = model(SHOP);
    assert_eq!(platform.absent(&named).count(), 0, "both are served here");
}
