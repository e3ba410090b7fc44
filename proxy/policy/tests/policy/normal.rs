//! Exceptions for ambiguous requests, and who may give roles: what is refused, and what comes of what is not.

use signet_policy::{Facts, Layer, Origin, PolicyIndex, ReceivedTarget, Refusal, explain};

use crate::{MESH, faults_of, id, manifest, model_of};

const RULES: &str = "target: {workloads: [web]}\nports: [80]\nrules:\n\
    - {to: [{paths: [/legacy/**]}], path: [slashes, dot-segments]}\n\
    - {to: [{methods: [GET], paths: [/legacy/files/**]}], path: [escaped-slash], host: [case]}";

fn text(kind: &str, spec: &str) -> String {
    let ports = "ports: [{port: 80, protocol: http}, {port: 81, protocol: http}]";
    let workload = manifest("Workload", "web", &format!("class: app\ndevice: d\nnetwork: n1\n{ports}"));
    let access =
        "target: {workloads: [web]}\nrules: [{from: [{class: app}], to: [{paths: [/legacy/**, /other]}]}]";
    format!("{MESH}{workload}{}{}", manifest("AccessPolicy", "open", access), manifest(kind, "n", spec))
}

#[test]
fn forms_of_all_rules_that_match_are_on_at_their_ports() {
    let index = PolicyIndex::new(&model_of(&text("NormalizationPolicy", RULES)));
    let read = |method, port, target| {
        let received = ReceivedTarget { method, target, authority: None, hosts: &["Web"] };
        index
            .read_target(&id("spiffe://td/app/d/web"), port, &received)
            .map(|read| format!("{} {}", read.authority, read.path))
    };
    let ambiguous = Err(Refusal::AmbiguousTarget);
    assert_eq!(read("GET", 80, "/legacy//a?q=//"), Ok("Web /legacy/a".to_owned()));
    assert_eq!(read("GET", 80, "/legacy/x/..//files%2Fa"), Ok("web /legacy/files/a".to_owned()));
    assert_eq!(read("POST", 80, "/legacy/files%2Fa"), ambiguous);
    assert_eq!(read("GET", 80, "/legacy/a%2Fb"), ambiguous);
    assert_eq!(read("GET", 81, "/legacy//a"), ambiguous);
    assert_eq!(read("GET", 80, "/legacy/../other//"), ambiguous);
    assert_eq!(read("GET", 80, "/other//../legacy/a"), Ok("Web /legacy/a".to_owned()));
    assert_eq!(read("CONNECT", 80, "web:80"), Err(Refusal::ConnectRefused));
    assert_eq!(read("OPTIONS", 80, "*"), Ok("Web *".to_owned()));
}

#[test]
fn explain_says_as_what_a_path_is_taken() {
    let index = PolicyIndex::new(&model_of(&text("NormalizationPolicy", RULES)));
    let (source, destination) = (id("spiffe://td/app/d/x"), id("spiffe://td/app/d/web"));
    let explained = |path| {
        let layer = Layer::Http { method: "GET", path, authority: "web", headers: None };
        let facts = Facts {
            source: Some(&source),
            origin: Origin::LeftToDestination,
            destination: &destination,
            port: 80,
            layer,
            now: 0,
        };
        explain(&index, &facts).to_string()
    };
    let taken = explained("/legacy//a");
    assert!(taken.contains("allowed by open/") && taken.contains("is taken as /legacy/a"), "{taken}");
    assert!(explained("/other//").contains("ambiguous-target"));
}

#[test]
fn faulty_exceptions_and_appointers_are_refused() {
    let table = [
        ("NormalizationPolicy", "target: {workloads: [web]}\nrules: []", "without rules changes nothing"),
        (
            "NormalizationPolicy",
            "target: {workloads: [web]}\nrules: [{to: [{paths: [/]}]}]",
            "changes nothing",
        ),
        (
            "NormalizationPolicy",
            "target: {workloads: [web]}\nrules: [{to: [], path: [slashes]}]",
            "`to` is empty",
        ),
        (
            "NormalizationPolicy",
            "target: {workloads: [web]}\nrules: [{to: [{paths: [/]}], path: [slash]}]",
            "`slash` is no form of a request; fix: write `slashes`",
        ),
        (
            "NormalizationPolicy",
            "target: {workloads: [web]}\nrules: [{to: [{paths: [/]}], host: [case, case]}]",
            "`case` is listed twice",
        ),
        (
            "NormalizationPolicy",
            "target: {workloads: [web]}\nports: [82]\nrules: [{to: [{paths: [/]}], host: [case]}]",
            "no targeted workload has port 82",
        ),
        (
            "RoleAppointer",
            "role: r\nappointers: []\nappointees: [{class: app}]\nmaxLifetime: 1h",
            "`appointers` is empty",
        ),
        (
            "RoleAppointer",
            "role: r\nappointers: [{any: anyone}]\nappointees: [{class: app}]\nmaxLifetime: 1h",
            "who has no identity has no role",
        ),
        (
            "RoleAppointer",
            "role: r\nappointers: [{role: a}]\nappointees: [{class: app}]\nmaxLifetime: 1s",
            "out of range",
        ),
        (
            "RoleAppointer",
            "role: Upper\nappointers: [{role: a}]\nappointees: [{class: app}]\nmaxLifetime: 1h",
            "no name for a role",
        ),
    ];
    for (kind, spec, expected) in table {
        let faults = faults_of(&text(kind, spec));
        assert!(faults.len() == 1 && faults[0].contains(expected), "{spec}: {faults:#?}");
    }
}
