//! What operators use beside the decision itself: tables of cases, and the schema for editors.

use std::path::Path;

use signet_policy::{coverage, json_schema, parse_cases};

use crate::{MESH, manifest, model_of};

fn model() -> signet_policy::PolicyModel {
    let workload = manifest("Workload", "web", "class: app\ndevice: d\nnetwork: n1\nports: [{port: 80}]");
    let open = "target: {workloads: [web]}\nrules:\n- {name: read, from: [{class: app}], to: [{methods: [GET], headers: [{name: x-tenant, exact: blue}]}]}\n- {name: also, from: [{class: app}], to: [{methods: [GET], paths: [/x]}]}";
    let shut = "target: {workloads: [web]}\naction: deny\nrules: [{name: bad, from: [{identity: spiffe://td/app/d/bad}], when: {sourceAddresses: [10.0.0.0/8]}}]";
    model_of(&format!(
        "{MESH}{workload}{}{}",
        manifest("AccessPolicy", "open", open),
        manifest("AccessPolicy", "shut", shut)
    ))
}

#[test]
fn cases_are_asked_and_told_apart() {
    let text = "\
policies: [a.yaml]
cases:
- {name: blue reads, from: spiffe://td/app/d/x, to: web, port: 80, method: GET, path: /, headers: {X-Tenant: blue}, expect: allow, rule: open/read}
- {name: either rule, from: spiffe://td/app/d/x, to: web, port: 80, method: GET, path: /x, headers: {x-tenant: [blue]}, expect: allow, rule: open/also}
- {name: red does not, from: spiffe://td/app/d/x, to: web, port: 80, method: GET, path: /, headers: {x-tenant: [blue, red]}, expect: access-denied}
- {name: nobody outside, to: web, port: 80, method: GET, path: /, expect: deny}
- {name: no bytes, from: web, to: web, port: 80, opaque: true, expect: opaque-to-l7-port}
- {name: bad one, from: spiffe://td/app/d/bad, to: web, port: 80, method: GET, path: /x, sourceAddress: 10.1.1.1, expect: deny-rule, rule: shut/bad}
- {name: wrong decision, from: spiffe://td/app/d/x, to: web, port: 80, method: POST, path: /x, expect: allow}
- {name: wrong rule, from: spiffe://td/app/d/x, to: web, port: 80, method: GET, path: /x, expect: allow, rule: open/read}
";
    let cases = parse_cases("cases.yaml", text).unwrap();
    assert_eq!(cases.policies(), ["a.yaml"]);
    let results = cases.run(&model()).unwrap();
    let failed: Vec<(&str, u32)> = results
        .iter()
        .filter(|result| result.failure.is_some())
        .map(|result| (result.name.as_str(), result.line))
        .collect();
    assert_eq!(failed, [("wrong decision", 9), ("wrong rule", 10)], "{results:#?}");
    assert!(
        results[6].failure.as_ref().unwrap().starts_with("expected allow, but it is refused access-denied")
    );
    assert!(
        results[7]
            .failure
            .as_ref()
            .unwrap()
            .starts_with("expected by open/read, but it is allowed by open/also")
    );
}

#[test]
fn cases_that_cannot_be_asked_say_where_and_why() {
    let case = |rest: &str| format!("cases:\n- {{name: c, port: 80, {rest}}}\n");
    let table = [
        (
            "to: web, method: GET, path: /, expect: alow",
            "cases.yaml:2:62: `alow` is no decision; fix: write `allow`",
        ),
        ("to: web, expect: allow", "cases.yaml:2:3: a request has a `method` and a `path`"),
        ("to: web, opaque: true, path: /, expect: allow", "cases.yaml:2:3: opaque bytes have no method"),
        (
            "to: wep, opaque: true, expect: allow",
            "cases.yaml:2:27: `wep` is neither a Workload nor a SPIFFE ID; fix: write `web`",
        ),
        ("to: web, opaque: true, at: noon, expect: allow", "not a moment such as"),
        ("to: web, opaque: true, expects: allow", "unknown field `expects`; fix: write `expect`"),
        ("to: web, opaque: true, port: 81, expect: allow", "`port` is given twice"),
        ("to: web, opaque: true", "the field `expect` is missing"),
    ];
    for (rest, expected) in table {
        let faults = parse_cases("cases.yaml", &case(rest))
            .map(|cases| cases.run(&model()).unwrap_err())
            .unwrap_or_else(|faults| faults);
        assert!(faults.len() == 1 && faults[0].to_string().contains(expected), "{rest}: {faults:?}");
    }
    assert!(parse_cases("cases.yaml", "cases: []").is_err());
    let timed = "target: {workloads: [web]}\nrules: [{from: [{class: app}], when: {time: [{days: [sun]}]}}]";
    let mut dependent = model();
    dependent.policies.extend(
        model_of(&format!(
            "{MESH}{}{}",
            manifest("Workload", "web", "class: app\ndevice: d\nnetwork: n1"),
            manifest("AccessPolicy", "p", timed)
        ))
        .policies,
    );
    let faults =
        parse_cases("cases.yaml", &case("to: web, opaque: true, expect: deny")).unwrap().run(&dependent);
    assert!(faults.unwrap_err()[0].message.contains("depends on the time"));
}

#[test]
fn values_are_checked_without_the_mesh_they_belong_to() {
    let check = |text: &str| -> Vec<String> {
        let manifests = signet_policy::parse_manifests("test.yaml", text).unwrap();
        signet_policy::check_values(&manifests).iter().map(ToString::to_string).collect()
    };
    let policy = |spec: &str| manifest("AccessPolicy", "p", spec);
    assert_eq!(
        check(&policy("target: {workloads: [unknown]}\nrules: [{from: [{any: authenticated}]}]")),
        [""; 0]
    );
    let faults = check(&format!(
        "{}{}{}",
        policy("target: {workloads: []}\nrules: [{from: [{any: anybody}]}]"),
        manifest("HeaderPolicy", "h", "target: {workloads: [x]}\npeerHeader: host"),
        manifest("RoleGrant", "g", "identity: x\nrole: r\nnotAfter: never"),
    ));
    let lines: Vec<&str> = faults.iter().map(|fault| fault.split(':').nth(1).unwrap()).collect();
    assert_eq!(lines, ["6", "7", "14", "20", "22"], "{faults:?}");
}

#[test]
fn coverage_names_what_is_not_protected_yet() {
    let workload = |name: &str, rest: &str| {
        manifest("Workload", name, &format!("class: app\ndevice: d\nnetwork: n1\n{rest}"))
    };
    let policies = [
        ("web-access", "target: {workloads: [web]}\nports: [80]\nrules: [{from: [{class: app}]}]"),
        (
            "web-watch",
            "target: {workloads: [web]}\nports: [81]\nmode: observe\nrules: [{from: [{class: app}]}]",
        ),
        (
            "web-shut",
            "target: {workloads: [web]}\nports: [82]\naction: deny\nrules: [{from: [{class: agent}]}]",
        ),
        ("old-access", "target: {workloads: [old]}\nrules: [{from: [{any: anyone}]}]"),
        ("nobody", "target: {workloads: [bare]}\nrules: []"),
    ];
    let text: String = [
        MESH.to_owned(),
        workload("web", "ports: [{port: 80}, {port: 81}, {port: 82}]"),
        workload("old", "mtls: {mode: permissive}\nprotection: {level: public}\nports: [{port: 80}]"),
        workload("bare", ""),
    ]
    .into_iter()
    .chain(policies.iter().map(|(name, spec)| manifest("AccessPolicy", name, spec)))
    .collect();
    let found: Vec<String> = coverage(&model_of(&text))
        .iter()
        .map(|exposure| {
            let gaps: Vec<String> = exposure.gaps.iter().map(ToString::to_string).collect();
            format!("{} {:?} {}", exposure.workload, exposure.port, gaps.join("; "))
        })
        .collect();
    assert_eq!(
        found,
        [
            "web Some(81) only observed by web-watch",
            "web Some(82) no enforced rule",
            "old Some(80) takes plaintext; takes unsigned messages",
            "bare None no enforced rule",
        ]
    );
}

/// `SIGNET_BLESS=1 cargo test -p signet-policy` writes it anew.
#[test]
fn the_schema_for_editors_is_the_one_that_is_checked_in() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/schema/signet.schema.json");
    let generated = serde_json::to_string_pretty(&json_schema()).unwrap() + "\n";
    if std::env::var_os("SIGNET_BLESS").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        generated,
        "signet policy schema > {}",
        path.display()
    );
}
