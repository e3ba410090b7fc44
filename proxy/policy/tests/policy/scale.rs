//! A thousand policies for a hundred services: compiled, indexed, and decided on correctly.

use signet_policy::{PolicyIndex, compile, parse_manifests};

use crate::{MESH, ask, manifest};

const SERVICES: usize = 100;
const POLICIES: usize = 1_000;

/// Policy `p` is for service `p % 100` and lets caller `p` do GET on `/p<p>/**` at port 80; each tenth is written with a
/// wildcard.
fn big_mesh() -> String {
    let mut text = MESH.to_owned();
    for service in 0..SERVICES {
        let spec = "class: app\ndevice: d\nnetwork: n1\nports: [{port: 80}, {port: 81}]";
        text += &manifest("Workload", &format!("s{service}"), spec);
    }
    for policy in 0..POLICIES {
        let device = if policy % 10 == 0 { "'*'" } else { "d" }.trim_matches('\'');
        let spec = format!(
            "target: {{workloads: [s{}]}}\nports: [80]\nrules:\n- from: [{{identity: 'spiffe://td/app/{device}/c{policy}'}}]\n  to: [{{methods: [GET], paths: [/p{policy}/**]}}]",
            policy % SERVICES
        );
        text += &manifest("AccessPolicy", &format!("p{policy}"), &spec);
    }
    text
}

#[test]
fn a_thousand_policies_for_a_hundred_services_decide_correctly() {
    let manifests = parse_manifests("big.yaml", &big_mesh()).unwrap();
    let model = compile(&manifests).unwrap();
    assert_eq!((model.workloads.len(), model.policies.len()), (SERVICES, POLICIES));
    let index = PolicyIndex::new(&model);
    for policy in 0..POLICIES {
        let caller = format!("spiffe://td/app/d/c{policy}");
        let own = format!("spiffe://td/app/d/s{}", policy % SERVICES);
        let other = format!("spiffe://td/app/d/s{}", (policy + 1) % SERVICES);
        let request = format!("GET /p{policy}/x");
        assert_eq!(ask(&index, &caller, &own, 80, &request), format!("p{policy}/rule-1"));
        assert_eq!(ask(&index, &caller, &own, 80, "GET /p/x"), "access-denied");
        assert_eq!(ask(&index, &caller, &own, 80, ""), "opaque-to-l7-port");
        assert_eq!(ask(&index, &caller, &own, 81, &request), "no-policy");
        assert_eq!(ask(&index, &caller, &other, 80, &request), "access-denied");
    }
}

#[test]
fn more_than_every_sidecar_could_hold_is_refused() {
    let mut text = MESH.to_owned();
    for service in 0..500 {
        text += &manifest(
            "Workload",
            &format!("s{service}"),
            "class: app\ndevice: d\nnetwork: n1\nports: [{port: 80}]",
        );
    }
    let rule = "- from: [{any: authenticated}]\n".repeat(1_000);
    for policy in 0..2 {
        let spec = format!("target: {{workloads: ['*']}}\nrules:\n{rule}");
        text += &manifest("AccessPolicy", &format!("p{policy}"), &spec);
    }
    let faults = crate::faults_of(&text);
    assert!(faults.len() == 1 && faults[0].contains("too many for a sidecar"), "{faults:?}");
}
