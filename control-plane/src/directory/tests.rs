use signet_policy::{compile, parse_manifests};

use super::*;

const MANIFESTS: &str = r#"
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec:
  trustDomain: mesh.example
  networks:
    - { name: edge, cidrs: [172.18.0.0/16, "fd00::/64"], gateways: [172.18.0.1] }
    - { name: lan, cidrs: [192.168.1.0/24] }
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: api }
spec:
  class: app
  device: edge
  network: edge
  names: [api.example]
  ports: [{ port: 8080, protocol: http }, { port: 9000 }]
  advertise: [{ network: lan, address: 192.168.1.10, port: 80, targetPort: 8080 }]
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: fixed }
spec:
  class: app
  device: edge
  network: edge
  addresses: [172.18.0.50, "fd00::50"]
  ports: [{ port: 8080 }]
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: lan-host }
spec:
  class: app
  device: edge
  network: lan
"#;

fn model() -> PolicyModel {
    compile(&parse_manifests("test", MANIFESTS).unwrap()).unwrap()
}

fn id(workload: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://mesh.example/app/edge/{workload}")).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn verdict(
    workload: &str,
    network: &str,
    source: &str,
    address: &str,
    port: u16,
) -> Result<(), ClaimRefusal> {
    let claimant = Claimant { id: &id(workload), network, source: ip(source) };
    judge(&model(), claimant, None, ip(address), port)
}

#[test]
fn an_address_is_believed_when_the_stream_comes_from_it_or_from_a_gateway() {
    assert_eq!(verdict("api", "edge", "172.18.0.5", "172.18.0.5", 8080), Ok(()));
    assert_eq!(verdict("api", "edge", "::ffff:172.18.0.5", "172.18.0.5", 8080), Ok(()));
    assert_eq!(verdict("api", "edge", "172.18.0.1", "172.18.0.5", 8080), Ok(()));
}

#[test]
fn an_address_the_claimant_was_not_seen_at_is_refused() {
    let refused = Err(ClaimRefusal::SourceMismatch);
    assert_eq!(verdict("api", "edge", "172.18.0.6", "172.18.0.5", 8080), refused);
    assert_eq!(verdict("api", "edge", "10.0.0.1", "172.18.0.5", 8080), refused);
}

#[test]
fn an_address_the_operator_listed_needs_no_sight_of_it_and_no_other_is_taken() {
    assert_eq!(verdict("fixed", "edge", "10.0.0.1", "fd00::50", 8080), Ok(()));
    let refused = Err(ClaimRefusal::AddressNotListed);
    assert_eq!(verdict("fixed", "edge", "172.18.0.51", "172.18.0.51", 8080), refused);
}

#[test]
fn a_gateways_own_address_is_nobodys() {
    let refused = Err(ClaimRefusal::GatewayAddress);
    for source in ["172.18.0.1", "172.18.0.5"] {
        assert_eq!(verdict("api", "edge", source, "172.18.0.1", 8080), refused);
    }
    // Nor does one stand that was accepted before the gateway was declared.
    assert!(!stands(&model(), &claim("api", "edge", "172.18.0.1", 8080)));
}

#[test]
fn an_address_outside_the_network_of_enrolment_is_refused() {
    let refused = Err(ClaimRefusal::AddressOutsideNetwork);
    assert_eq!(verdict("api", "edge", "10.0.0.1", "10.0.0.1", 8080), refused);
    assert_eq!(verdict("api", "lan", "172.18.0.5", "172.18.0.5", 8080), refused);
    let unknown = Err(ClaimRefusal::UnknownNetwork);
    assert_eq!(verdict("api", "gone", "172.18.0.5", "172.18.0.5", 8080), unknown);
}

#[test]
fn a_port_that_is_not_declared_is_refused_unless_none_is() {
    let refused = Err(ClaimRefusal::PortNotDeclared);
    assert_eq!(verdict("api", "edge", "172.18.0.5", "172.18.0.5", 22), refused);
    assert_eq!(verdict("lan-host", "lan", "192.168.1.20", "192.168.1.20", 22), Ok(()));
}

#[test]
fn a_place_advertised_for_another_workload_is_refused() {
    let refused = Err(ClaimRefusal::AdvertisedByAnother);
    assert_eq!(verdict("lan-host", "lan", "192.168.1.10", "192.168.1.10", 80), refused);
    assert_eq!(verdict("lan-host", "lan", "192.168.1.10", "192.168.1.10", 81), Ok(()));
}

#[test]
fn an_identity_without_a_workload_claims_nothing() {
    let refused = Err(ClaimRefusal::UnknownWorkload);
    assert_eq!(verdict("stranger", "edge", "172.18.0.5", "172.18.0.5", 8080), refused);
}

fn claim(workload: &str, network: &str, address: &str, port: u16) -> Claim {
    let (id, network) = (id(workload), network.to_owned());
    Claim {
        id,
        network,
        address: ip(address),
        port,
        expires: None,
        by_gateway: false,
        replica: String::new(),
    }
}

#[test]
fn a_directory_holds_claims_and_advertised_places_with_names_from_the_manifests() {
    let claims = [claim("api", "edge", "172.18.0.5", 8080), claim("lan-host", "lan", "192.168.1.10", 80)];
    let networks = build(&model(), &claims, &[], &Habits::new(), 0);
    let [edge] = networks["edge"].as_slice() else { panic!("{networks:?}") };
    assert_eq!((edge.address, edge.port, edge.target_port), (ip("172.18.0.5"), 8080, 8080));
    assert_eq!(edge.names, ["api.example"]);
    // The advertised place wins over a claim that slipped in before it was advertised.
    let [lan] = networks["lan"].as_slice() else { panic!("{networks:?}") };
    assert_eq!((lan.port, lan.target_port, &lan.identities[..]), (80, 8080, &[id("api")][..]));
}

#[test]
fn a_claim_that_no_longer_stands_under_the_policy_is_left_out() {
    let claims = [
        claim("api", "edge", "172.18.0.5", 22),
        claim("fixed", "edge", "172.18.0.5", 8080),
        claim("stranger", "edge", "172.18.0.7", 8080),
        claim("api", "gone", "172.18.0.8", 8080),
    ];
    assert!(build(&model(), &claims, &[], &Habits::new(), 0)["edge"].is_empty());
}

#[test]
fn an_observed_habit_fills_in_what_the_operator_left_open_until_it_expires() {
    let observed =
        Habit { protocol: Some(Protocol::Opaque), speaks_first: Some(SpeaksFirst::Server), expires: 100 };
    let habits = Habits::from([((id("api"), 9000), observed), ((id("api"), 8080), observed)]);
    let claims = [claim("api", "edge", "172.18.0.5", 8080), claim("api", "edge", "172.18.0.5", 9000)];
    let entries = &build(&model(), &claims, &[], &habits, 50)["edge"];
    assert_eq!(entries[0].protocol, Protocol::Http);
    assert_eq!(entries[1].protocol, Protocol::Opaque);
    assert_eq!((entries[1].speaks_first, entries[1].habit_expires), (Some(SpeaksFirst::Server), Some(100)));
    let entries = &build(&model(), &claims, &[], &habits, 100)["edge"];
    assert_eq!(
        (entries[1].protocol, entries[1].speaks_first, entries[1].habit_expires),
        (Protocol::Auto, None, None)
    );
}

#[test]
fn every_place_of_a_workload_has_the_keys_of_its_instances_that_have_not_ended() {
    let key = |workload: &str, byte: u8, expires: u64| SealingKey {
        id: id(workload),
        key: [byte; 32],
        leaf: String::new(),
        expires,
    };
    let claims = [claim("api", "edge", "172.18.0.5", 8080)];
    let keys =
        [key("api", 1, 100), key("api", 2, 200), key("api", 3, 50), key("fixed", 4, 200), key("api", 2, 150)];
    let edge = build(&model(), &claims, &keys, &Habits::new(), 50).remove("edge").unwrap();
    let entry = edge.iter().find(|entry| entry.address == ip("172.18.0.5")).unwrap();
    assert_eq!(entry.sealing_keys, [[2; 32], [1; 32]]);

    let many: Vec<_> = (0..100).map(|byte| key("api", byte, 100 + u64::from(byte))).collect();
    let edge = build(&model(), &claims, &many, &Habits::new(), 50).remove("edge").unwrap();
    let entry = edge.iter().find(|entry| entry.workload == "api").unwrap();
    assert_eq!(entry.sealing_keys.len(), MAX_SEALING_KEYS);
    assert_eq!(entry.sealing_keys[0], [99; 32], "the newest are kept");
}
