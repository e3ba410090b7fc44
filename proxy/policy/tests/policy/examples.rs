//! The example manifests compile and mean what their comments say.

use signet_policy::{Manifest, PolicyIndex, PolicyModel, compile, parse_cases, parse_manifests};

use crate::{ask, listed};

const EXAMPLES: [(&str, &str); 8] = [
    ("mesh.yaml", include_str!("../../../../manifests/examples/mesh.yaml")),
    ("agent-leader.yaml", include_str!("../../../../manifests/examples/agent-leader.yaml")),
    ("agent-access.yaml", include_str!("../../../../manifests/examples/agent-access.yaml")),
    ("callers.yaml", include_str!("../../../../manifests/examples/callers.yaml")),
    ("edge-microagent.yaml", include_str!("../../../../manifests/examples/edge-microagent.yaml")),
    ("levels.yaml", include_str!("../../../../manifests/examples/levels.yaml")),
    ("migration.yaml", include_str!("../../../../manifests/examples/migration.yaml")),
    ("traffic.yaml", include_str!("../../../../manifests/examples/traffic.yaml")),
];

fn manifests_of(names: &[&str]) -> Vec<Manifest> {
    EXAMPLES
        .iter()
        .filter(|(name, _)| names.contains(name))
        .flat_map(|(name, text)| {
            parse_manifests(name, text).unwrap_or_else(|faults| panic!("{}", listed(&faults)))
        })
        .collect()
}

fn model_of(names: &[&str]) -> PolicyModel {
    compile(&manifests_of(names)).unwrap_or_else(|faults| panic!("{}", listed(&faults)))
}

#[test]
fn every_example_compiles_with_the_mesh_and_the_agent_it_is_for() {
    for (name, _) in EXAMPLES {
        model_of(&["mesh.yaml", "agent-leader.yaml", name]);
    }
    assert_eq!(model_of(&EXAMPLES.map(|(name, _)| name)).workloads.len(), 13);
}

#[test]
fn the_example_cases_come_out_as_expected() {
    let text = include_str!("../../../../manifests/examples/cases/access.yaml");
    let cases = parse_cases("access.yaml", text).unwrap();
    let named: Vec<&str> = cases.policies().iter().map(|path| path.trim_start_matches("../")).collect();
    let results = cases.run(&model_of(&named)).unwrap();
    let failed: Vec<_> = results.iter().filter_map(|result| result.failure.as_ref()).collect();
    assert!(results.len() >= 8 && failed.is_empty(), "{failed:#?}");
}

#[test]
fn the_examples_allow_what_mf2c_does_and_little_else() {
    let index = PolicyIndex::new(&model_of(&EXAMPLES.map(|(name, _)| name)));
    let agent = |name: &str| format!("spiffe://mf2c.example/agent/leader/{name}");
    let table = [
        ("lm-um", "cimi", 8201, "POST /api/service-instance", "cimi-access/own-components"),
        ("lm-um", "cimi", 8201, "GET /", "access-denied"),
        ("lm-um", "cimi", 8201, "", "opaque-to-l7-port"),
        ("cimi", "dcproxy", 6472, "GET /get", "storage-access/cimi-through-the-proxy"),
        (
            "dcproxy",
            "logicmodule1",
            1034,
            "POST /dataclay.LogicModule/ping",
            "storage-access/cimi-through-the-proxy",
        ),
        ("cimi", "aclib", 46080, "", "line-protocols/own-components"),
        ("aclib", "cau-client", 46065, "", "line-protocols/own-components"),
        ("service-manager", "event-manager", 8000, "GET /events/service", "events/subscribe"),
        ("aclib", "event-manager", 8000, "GET /events/service", "access-denied"),
        (
            "service-manager",
            "lm-um",
            46000,
            "POST /api/v2/lm/service",
            "lifecycle-access/services-are-started-by",
        ),
        ("service-manager", "lm-um", 46300, "POST /api/v2/lm/service", "access-denied"),
    ];
    for (source, destination, port, request, expected) in table {
        assert_eq!(
            ask(&index, &agent(source), &agent(destination), port, request),
            expected,
            "{source} {request}"
        );
    }
    let backup = "spiffe://mf2c.example/agent/backup/policies";
    let keepalive = "POST /api/v2/resource-management/policies/keepalive";
    assert_eq!(ask(&index, backup, &agent("policies"), 46050, keepalive), "area-resilience/keepalive");
    assert_eq!(ask(&index, backup, &agent("cimi"), 8201, "GET /api/device/1"), "access-denied");
    assert_eq!(ask(&index, "", &agent("analytics-engine"), 46020, "GET /x"), "analytics-for-now/everybody");
    let app = "spiffe://mf2c.example/app/edge-7/sensor-manager";
    assert_eq!(
        ask(&index, app, "spiffe://mf2c.example/app/edge-7/sensor-store", 3306, ""),
        "sensor-store-access/sensor-manager"
    );
    assert_eq!(ask(&index, app, &agent("cimi"), 8201, "GET /api/user"), "access-denied");
}
