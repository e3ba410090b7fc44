//! How messages of single routes are protected.

use signet_policy::{Layer, PolicyIndex, Protection, ProtectionLevel, coverage, explain};

use crate::{MESH, Question, faults_of, id, manifest, model_of};

const WEB: &str = "spiffe://td/app/d/web";

/// A workload of level `protected` at two ports, and policies for it.
fn text(policies: &[(&str, &str)]) -> String {
    let ports = "ports: [{port: 80, protocol: http}, {port: 81}, {port: 82, protocol: opaque}]";
    let workload = manifest(
        "Workload",
        "web",
        &format!("class: app\ndevice: d\nnetwork: n1\n{ports}\nprotection: {{sealedHeaders: [cookie]}}"),
    );
    let policies: String =
        policies.iter().map(|(name, spec)| manifest("ProtectionPolicy", name, spec)).collect();
    format!("{MESH}{workload}{policies}")
}

fn index(policies: &[(&str, &str)]) -> PolicyIndex {
    PolicyIndex::new(&model_of(&text(policies)))
}

fn of(index: &PolicyIndex, port: u16, request: &str) -> Protection {
    index.protection(&id(WEB), port, request.split_once(' '))
}

fn level(index: &PolicyIndex, port: u16, request: &str) -> &'static str {
    match of(index, port, request).level {
        ProtectionLevel::Public => "public",
        ProtectionLevel::Protected => "protected",
        ProtectionLevel::Private => "private",
    }
}

#[test]
fn each_route_of_a_port_has_its_own_level() {
    let index = index(&[(
        "p",
        "target: {workloads: [web]}\nports: [80]\nrules:\n\
         - {to: [{methods: [GET], paths: [/health]}], level: public}\n\
         - {to: [{paths: [/session/**]}], level: private}",
    )]);
    for (port, request, expected) in [
        (80, "GET /health", "public"),
        (80, "POST /health", "protected"),
        (80, "GET /health/", "protected"),
        (80, "GET /HEALTH", "protected"),
        (80, "get /health", "protected"),
        (80, "GET /%68ealth", "protected"),
        (80, "GET /session", "private"),
        (80, "PUT /session/7", "private"),
        (80, "GET /SESSION/7", "private"),
        (80, "GET /s%65ssion/7", "private"),
        (80, "GET /s%2565ssion/7", "private"),
        (80, "GET /sessions", "protected"),
        (80, "OPTIONS *", "protected"),
        (80, "", "protected"),
        (81, "GET /session", "protected"),
    ] {
        assert_eq!(level(&index, port, request), expected, "{port} {request}");
    }
}

#[test]
fn within_a_policy_the_default_holds_where_no_rule_is_met_as_it_is_written() {
    let index = index(&[(
        "p",
        "target: {workloads: [web]}\nports: [80, 81]\ndefault: {level: private}\nrules:\n\
         - {to: [{paths: [/open/**]}], level: public}\n\
         - {to: [{paths: [/open/signed]}], level: protected}",
    )]);
    for (request, expected) in [
        ("GET /", "private"),
        ("", "private"),
        ("GET /open/x", "public"),
        ("GET /Open/x", "private"),
        ("GET /open/signed", "protected"),
        // Some server might read it as the route that is signed.
        ("GET /open/%73igned", "protected"),
    ] {
        assert_eq!(level(&index, 80, request), expected, "{request}");
    }
}

#[test]
fn of_two_policies_the_stricter_answer_counts_in_either_order() {
    let floor = ("floor", "target: {workloads: [\"*\"]}\ndefault: {level: protected, verify: gate}");
    let open = (
        "open",
        "target: {classes: [app]}\ndefault: {level: public}\nports: [80]\nrules:\n\
         - {to: [{paths: [/a]}], level: public, mode: hmac, verify: async, sealedHeaders: [x-a]}\n\
         - {to: [{paths: [/b]}], level: private, mode: ed25519}",
    );
    for policies in [[floor, open], [open, floor]] {
        let both = index(&policies);
        assert_eq!(level(&both, 80, "GET /a"), "protected");
        assert_eq!(level(&both, 80, "GET /b"), "private");
        assert_eq!(level(&both, 81, ""), "protected");
        assert_eq!(of(&both, 80, "GET /a").verify, signet_policy::Verification::Gate);
        assert_eq!(of(&both, 80, "GET /a").mode, signet_policy::SignatureMode::Ed25519Batch);
        assert_eq!(of(&both, 80, "GET /b").mode, signet_policy::SignatureMode::Ed25519);
        assert_eq!(both.sealed_headers(&id(WEB), 80, Some(("GET", "/a"))), ["cookie", "x-a"]);
    }
    let alone = index(&[open]);
    assert_eq!(level(&alone, 80, "GET /a"), "public");
    assert_eq!(of(&alone, 80, "GET /a").mode, signet_policy::SignatureMode::Hmac);
    assert_eq!(alone.sealed_headers(&id(WEB), 80, Some(("GET", "/a"))), ["x-a"]);
    assert_eq!(alone.sealed_headers(&id(WEB), 80, Some(("GET", "/b"))), ["cookie"]);
    assert_eq!(level(&alone, 80, ""), "public", "the default is for bytes too");
    assert_eq!(level(&alone, 81, ""), "protected", "another port");
}

#[test]
fn bytes_that_are_not_http_are_no_way_round_a_route() {
    let index = index(&[(
        "p",
        "target: {workloads: [web]}\nports: [81]\nrules: [{to: [{paths: [/s]}], level: private}]",
    )]);
    assert!(index.is_l7(&id(WEB), 81));
    assert!(!index.is_l7(&id(WEB), 82));
}

#[test]
fn faulty_policies_are_refused_with_a_place_and_a_fix() {
    let table = [
        ("target: {workloads: [web]}", "without `default` and `rules` changes nothing"),
        ("target: {workloads: [web]}\ndefault: {}", "this changes nothing"),
        ("target: {workloads: [web]}\nports: [80]\nrules: []", "`rules` is empty"),
        ("target: {workloads: [web]}\nports: [80]\nrules: [{to: [], level: public}]", "`to` is empty"),
        ("target: {workloads: [web]}\nports: [80]\nrules: [{to: [{}], level: public}]", "is every request"),
        ("target: {workloads: [web]}\nports: [80]\nrules: [{to: [{paths: [/]}]}]", "this changes nothing"),
        (
            "target: {workloads: [web]}\nports: [80]\nrules: [{to: [{paths: [//]}], level: public}]",
            "no path pattern",
        ),
        (
            "target: {workloads: [web]}\nports: [80]\nrules: [{to: [{paths: [/]}], level: secret}]",
            "`secret` is no protection level",
        ),
        (
            "target: {workloads: [web]}\nports: [83]\ndefault: {level: public}",
            "no targeted workload has port 83",
        ),
        ("target: {workloads: [wep]}\ndefault: {level: public}", "fix: write `web`"),
        (
            "target: {workloads: [web]}\nrules: [{to: [{paths: [/]}], level: public}]",
            "port 82 of web does not speak plain HTTP",
        ),
        (
            "target: {workloads: [web]}\nports: [80]\nrules: [{to: [{paths: [/, /a]}], level: public}, {to: [{paths: [/a]}], level: private}]",
            "every method at /a stands in two rules",
        ),
        (
            "target: {workloads: [web]}\nports: [80]\nrules: [{name: a, to: [{paths: [/]}], level: public}, {name: a, to: [{paths: [/b]}], level: public}]",
            "rule `a` is there twice",
        ),
    ];
    for (spec, expected) in table {
        let faults = faults_of(&text(&[("p", spec)]));
        assert!(faults.len() == 1 && faults[0].contains(expected), "{spec}: {faults:#?}");
    }
    let rule = |number: usize| format!("{{to: [{{paths: [/{number}]}}], level: private}}");
    let many: Vec<String> = (0..600).map(rule).collect();
    let spec = format!("target: {{classes: [app]}}\nports: [80]\nrules: [{}]", many.join(", "));
    let faults = faults_of(&text(&[("p", &spec), ("q", &spec)]));
    assert!(faults.len() == 1 && faults[0].contains("more than 1000 rules together"), "{faults:#?}");
}

#[test]
fn explain_and_coverage_say_who_asks_for_what() {
    let text = text(&[
        ("floor", "target: {workloads: [web]}\nports: [80]\ndefault: {level: protected}"),
        (
            "p",
            "target: {workloads: [web]}\nports: [80]\nrules:\n\
             - {name: health, to: [{paths: [/health]}], level: public}\n\
             - {name: session, to: [{paths: [/session]}], level: private}",
        ),
    ]);
    let model = model_of(&text);
    let index = PolicyIndex::new(&model);
    let shown = |path| {
        let destination = id(WEB);
        let layer = Layer::Http { method: "GET", path, authority: "web", headers: None };
        let facts = signet_policy::Facts {
            source: None,
            origin: Question::default().origin,
            destination: &destination,
            port: 80,
            layer,
            now: 0,
        };
        explain(&index, &facts).to_string()
    };
    assert!(shown("/session").contains("protection: private, as floor/default, p/session say"));
    assert!(shown("/health").contains("protection: protected, as floor/default, p/health say"));
    let exposures = coverage(&model);
    let port = exposures.iter().find(|exposure| exposure.port == Some(80)).unwrap();
    let gaps: Vec<String> = port.gaps.iter().map(ToString::to_string).collect();
    assert!(gaps.contains(&"takes unsigned messages by p/health".to_owned()), "{gaps:?}");
}
