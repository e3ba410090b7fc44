//! Deny rules, roles, header fields, addresses, times of the day; and header policies.

use signet_policy::{Fate, Origin, PolicyIndex, PolicyModel};

use crate::{MESH, NOW, Question, ask, faults_of, id, manifest, model_of};

const WEB: &str = "spiffe://td/app/d/web";
const FRIEND: &str = "spiffe://td/app/d/friend";
const OTHER: &str = "spiffe://td/app/d/other";
const HOUR: u64 = 3_600;

/// A workload `web` with ports 80 (unknown), 81 (HTTP) and 22 (opaque), and these policies.
fn text(policies: &[(&str, &str)]) -> String {
    let ports = "ports: [{port: 80}, {port: 81, protocol: http}, {port: 22, protocol: opaque}]";
    let workload = manifest("Workload", "web", &format!("class: app\ndevice: d\nnetwork: n1\n{ports}"));
    let policies = policies
        .iter()
        .map(|(name, spec)| manifest("AccessPolicy", name, &format!("target: {{workloads: [web]}}\n{spec}")));
    format!("{MESH}{workload}{}", policies.collect::<String>())
}

fn model(policies: &[(&str, &str)]) -> PolicyModel {
    model_of(&text(policies))
}

const ANYBODY: &str = "rules: [{from: [{any: authenticated}]}]";

#[test]
fn a_deny_wins_over_every_allow() {
    let deny = "action: deny\nrules: [{name: not-you, from: [{identity: spiffe://td/app/d/other}], to: [{ports: [81]}]}]";
    let index = PolicyIndex::new(&model(&[("open", ANYBODY), ("shut", deny)]));
    for (source, port, request, expected) in [
        (FRIEND, 81, "GET /", "open/rule-1"),
        (OTHER, 81, "GET /", "deny-rule"),
        (OTHER, 81, "", "opaque-to-l7-port"),
        (OTHER, 80, "GET /", "open/rule-1"),
        (OTHER, 80, "", "open/rule-1"),
        (OTHER, 22, "", "open/rule-1"),
    ] {
        assert_eq!(ask(&index, source, WEB, port, request), expected, "{source} {port} {request}");
    }
}

#[test]
fn a_deny_of_requests_opens_no_way_for_opaque_bytes() {
    let deny = "action: deny\nports: [80]\nrules: [{from: [{any: anyone}], to: [{methods: [DELETE]}]}]";
    let index = PolicyIndex::new(&model(&[("open", ANYBODY), ("read-only", deny)]));
    assert_eq!(ask(&index, FRIEND, WEB, 80, "GET /"), "open/rule-1");
    assert_eq!(ask(&index, FRIEND, WEB, 80, "DELETE /"), "deny-rule");
    assert_eq!(ask(&index, FRIEND, WEB, 80, "delete /"), "deny-rule", "in every letter case");
    assert_eq!(ask(&index, FRIEND, WEB, 80, ""), "opaque-to-l7-port", "the bytes could be a DELETE");
    assert_eq!(ask(&index, FRIEND, WEB, 22, ""), "open/rule-1");

    let observed = deny.replace("action: deny", "action: deny\nmode: observe");
    let index = PolicyIndex::new(&model(&[("open", ANYBODY), ("read-only", &observed)]));
    assert_eq!(ask(&index, FRIEND, WEB, 80, "DELETE /"), "open/rule-1");
    assert_eq!(ask(&index, FRIEND, WEB, 80, ""), "open/rule-1");
}

#[test]
fn a_denied_path_is_denied_however_it_is_spelt() {
    let deny = "action: deny\nports: [81]\nrules: [{from: [{any: anyone}], to: [{paths: [/admin/**]}]}]";
    let index = PolicyIndex::new(&model(&[("open", ANYBODY), ("no-admin", deny)]));
    for path in ["/admin", "/admin/", "/admin/x", "/ADMIN/x", "/%61dmin/x", "/%2561dmin"] {
        assert_eq!(ask(&index, FRIEND, WEB, 81, &format!("GET {path}")), "deny-rule", "{path}");
    }
    assert_eq!(ask(&index, FRIEND, WEB, 81, "GET /administrator"), "open/rule-1");
}

#[test]
fn denying_alone_allows_nobody() {
    let deny = "action: deny\nports: [81]\nrules: [{from: [{identity: spiffe://td/app/d/other}]}]";
    let index = PolicyIndex::new(&model(&[("shut", deny)]));
    assert_eq!(ask(&index, OTHER, WEB, 81, "GET /"), "deny-rule");
    assert_eq!(ask(&index, FRIEND, WEB, 81, "GET /"), "access-denied");
    assert_eq!(ask(&index, FRIEND, WEB, 80, "GET /"), "no-policy");
}

#[test]
fn header_fields_decide_and_make_the_port_a_layer_7_port() {
    let rule = "ports: [80]\nrules: [{from: [{any: authenticated}], to: [{headers: [{name: X-Tenant, exact: blue}, {name: x-debug, absent: true}]}]}]";
    let index = PolicyIndex::new(&model(&[("tenants", rule)]));
    assert!(index.asks_for_headers(&id(WEB)));
    let ask = |headers: &[(&str, &str)]| {
        Question { source: FRIEND, destination: WEB, request: "GET /", headers, ..Question::default() }
            .ask(&index)
    };
    assert_eq!(ask(&[("x-tenant", "blue")]), "tenants/rule-1");
    assert_eq!(ask(&[("X-TENANT", "blue")]), "tenants/rule-1");
    for headers in [
        &[][..],
        &[("x-tenant", "red")],
        &[("x-tenant", "blue"), ("x-tenant", "red")],
        &[("x-tenant", "blue"), ("X_Tenant", "red")],
        &[("x-tenant", "blue"), ("x_debug", "1")],
    ] {
        assert_eq!(ask(headers), "access-denied", "{headers:?}");
    }
    let opaque = Question { source: FRIEND, destination: WEB, ..Question::default() };
    assert_eq!(opaque.ask(&index), "opaque-to-l7-port");
    assert!(!PolicyIndex::new(&model(&[("open", ANYBODY)])).asks_for_headers(&id(WEB)));
}

#[test]
fn what_is_sealed_is_left_open_and_nothing_else_is() {
    let allow = "ports: [80]\nrules: [{from: [{identity: spiffe://td/app/d/friend}], to: [{methods: [GET], headers: [{name: x-tenant, exact: blue}]}]}]";
    let deny = "action: deny\nports: [80]\nrules: [{from: [{any: anyone}], to: [{headers: [{name: x-debug, present: true}]}, {paths: [/admin]}]}]";
    let index = PolicyIndex::new(&model(&[("tenants", allow), ("no-debug", deny)]));
    for (source, request, headers, foreseen, decided) in [
        (FRIEND, "GET /", &[][..], "open", "access-denied"),
        (FRIEND, "GET /", &[("x-tenant", "blue"), ("x-debug", "1")], "open", "deny-rule"),
        (FRIEND, "GET /", &[("x-tenant", "blue")], "open", "tenants/rule-1"),
        (FRIEND, "POST /", &[("x-tenant", "blue")], "access-denied", "access-denied"),
        (FRIEND, "GET /admin", &[("x-tenant", "blue")], "deny-rule", "deny-rule"),
        (OTHER, "GET /", &[("x-tenant", "blue")], "access-denied", "access-denied"),
    ] {
        let question = Question { source, destination: WEB, request, headers, ..Question::default() };
        assert_eq!(question.foresee(&index), foreseen, "{source} {request}");
        assert_eq!(question.ask(&index), decided, "{source} {request}");
    }
}

#[test]
fn addresses_are_judged_where_they_are_seen() {
    let allow = "ports: [22]\nrules: [{from: [{any: authenticated}], when: {sourceAddresses: [192.0.2.0/24, 'fd00::/8']}}]";
    let deny = "action: deny\nports: [22]\nrules: [{from: [{any: authenticated}], when: {sourceAddresses: [192.0.2.128/25]}}]";
    let index = PolicyIndex::new(&model(&[("near", allow), ("not-there", deny)]));
    let ask = |origin| {
        Question { source: FRIEND, destination: WEB, port: 22, origin, ..Question::default() }.ask(&index)
    };
    let seen = |address: &str| ask(Origin::Seen(address.parse().unwrap()));
    assert_eq!(seen("192.0.2.7"), "near/rule-1");
    assert_eq!(seen("::ffff:192.0.2.7"), "near/rule-1");
    assert_eq!(seen("fd00::1"), "near/rule-1");
    assert_eq!(seen("192.0.2.200"), "deny-rule");
    assert_eq!(seen("198.51.100.1"), "access-denied");
    // The caller's own sidecar leaves it to the destination.
    assert_eq!(ask(Origin::LeftToDestination), "near/rule-1");
}

#[test]
fn windows_open_and_close_by_the_clock() {
    let rule = "ports: [22]\nrules: [{from: [{any: authenticated}], when: {time: [{days: [mon-fri], from: '08:00', to: '18:00', utcOffset: '+01:00'}]}}]";
    let index = PolicyIndex::new(&model(&[("office", rule)]));
    let ask =
        |now| Question { source: FRIEND, destination: WEB, port: 22, now, ..Question::default() }.ask(&index);
    assert_eq!(ask(NOW), "office/rule-1");
    assert_eq!(ask(NOW + 5 * HOUR - 1), "office/rule-1");
    assert_eq!(ask(NOW + 5 * HOUR), "access-denied");
    assert_eq!(ask(NOW + 24 * HOUR), "office/rule-1", "Tuesday");
    assert_eq!(ask(NOW + 5 * 24 * HOUR), "access-denied", "Saturday");
    assert_eq!(index.next_change(NOW), Some(NOW + 5 * HOUR));
    assert_eq!(PolicyIndex::new(&model(&[("open", ANYBODY)])).next_change(NOW), None);
    assert_eq!(PolicyIndex::deny_all().next_change(NOW), None);
}

fn grant(name: &str, identity: &str, role: &str, not_after: &str) -> String {
    manifest("RoleGrant", name, &format!("identity: {identity}\nrole: {role}\nnotAfter: {not_after}"))
}

#[test]
fn a_role_opens_what_it_is_for_until_it_ends() {
    let rule = "ports: [22]\nrules: [{from: [{role: leader}]}]";
    let text = text(&[("leaders", rule)]) + &grant("friend-leads", FRIEND, "leader", "2026-03-02T13:00:00Z");
    let index = PolicyIndex::new(&model_of(&text));
    let ask =
        |source, now| Question { source, destination: WEB, port: 22, now, ..Question::default() }.ask(&index);
    assert_eq!(ask(FRIEND, NOW), "leaders/rule-1");
    assert_eq!(ask(OTHER, NOW), "access-denied");
    assert_eq!(ask(FRIEND, NOW + HOUR - 1), "leaders/rule-1");
    assert_eq!(ask(FRIEND, NOW + HOUR), "access-denied");
    assert_eq!(index.next_change(NOW), Some(NOW + HOUR));
    assert_eq!(index.next_change(NOW + HOUR), None);
}

#[test]
fn header_policies_are_found_by_workload_and_port() {
    let policy = "target: {workloads: [web]}\nports: [81]\nidentityHeaders:\n- names: [slipstream-authn-info]\n  entitled: [{identity: spiffe://td/app/d/friend}]\n- {names: [X-User], overwrite: nobody}\npeerHeader: X-Peer";
    let model = model_of(&(text(&[]) + &manifest("HeaderPolicy", "h", policy)));
    let index = PolicyIndex::new(&model);
    let (friend, other, web) = (id(FRIEND), id(OTHER), id(WEB));
    let fate = |source, port, name| index.header_plan(source, &web, port, NOW).fate(name);
    assert_eq!(fate(Some(&friend), 81, "slipstream-authn-info"), Fate::Keep);
    assert_eq!(fate(Some(&other), 81, "slipstream-authn-info"), Fate::Remove);
    assert_eq!(fate(None, 81, "slipstream_authn_info"), Fate::Remove);
    assert_eq!(fate(Some(&friend), 81, "x-user"), Fate::Overwrite("nobody"));
    assert_eq!(
        fate(Some(&friend), 81, "x-forwarded-for"),
        Fate::Remove,
        "the usual ones are in every policy"
    );
    assert_eq!(fate(Some(&friend), 81, "x-peer"), Fate::Remove);
    assert_eq!(index.header_plan(Some(&friend), &web, 81, NOW).peer_header(), Some("x-peer"));
    // Another port has no policy, and what always holds.
    assert_eq!(fate(Some(&friend), 80, "slipstream-authn-info"), Fate::Remove);
    assert_eq!(fate(Some(&friend), 80, "x-forwarded-for"), Fate::Keep);
    assert_eq!(index.header_plan(Some(&friend), &web, 80, NOW).peer_header(), None);
}

/// The one fault, without file and place.
#[track_caller]
pub(crate) fn assert_fault(text: &str, expected: &str) {
    let faults = faults_of(text);
    assert!(faults.len() == 1 && faults[0].contains(expected), "expected {expected}:\n{}", faults.join("\n"));
    assert!(faults[0].starts_with("test.yaml:") && faults[0].contains("; fix: "), "{faults:?}");
}

#[test]
fn values_of_rules_are_checked() {
    let from = "from: [{any: authenticated}]";
    let table = [
        ("action: forbid\nrules: []", "`forbid` is no action; fix: use one of `allow`, `deny`"),
        ("action: deny\nrules: []", "a policy that denies has no rules"),
        ("rules: [{FROM, when: {}}]", "`when` without `sourceAddresses` and `time` asks for nothing"),
        (
            "rules: [{FROM, when: {sourceAddresses: []}}]",
            "`sourceAddresses` is empty; fix: leave it out for any address",
        ),
        (
            "rules: [{FROM, when: {sourceAddresses: [10.0.0.1]}}]",
            "`10.0.0.1` is no address range; fix: write `10.0.0.1/32`",
        ),
        (
            "rules: [{FROM, when: {sourceAddresses: ['::ffff:10.0.0.0/104']}}]",
            "`::ffff:10.0.0.0/104` is no address range; fix: write it as a range of IPv4",
        ),
        ("rules: [{FROM, when: {time: []}}]", "`time` is empty"),
        ("rules: [{FROM, when: {time: [{}]}}]", "is always open"),
        ("rules: [{FROM, when: {time: [{days: []}]}}]", "`days` is empty"),
        (
            "rules: [{FROM, when: {time: [{days: [monday]}]}}]",
            "`monday` is no day of the week; fix: use one of `mon`, `tue`",
        ),
        ("rules: [{FROM, when: {time: [{from: '08:00'}]}}]", "has both `from` and `to`, or neither"),
        ("rules: [{FROM, when: {time: [{from: '8:00', to: '18:00'}]}}]", "`8:00` is no time of the day"),
        ("rules: [{FROM, when: {time: [{from: '24:00', to: '18:00'}]}}]", "`24:00` is no time of the day"),
        ("rules: [{FROM, when: {time: [{from: '08:00', to: '24:01'}]}}]", "`24:01` is no time of the day"),
        ("rules: [{FROM, when: {time: [{from: '08:00', to: '08:00'}]}}]", "closes when it opens"),
        ("rules: [{FROM, when: {time: [{days: [mon], utcOffset: CET}]}}]", "`CET` is no distance from UTC"),
        (
            "rules: [{FROM, when: {time: [{days: [mon], utcOffset: '+14:30'}]}}]",
            "`+14:30` is no distance from UTC",
        ),
        ("rules: [{from: [{role: 'the boss'}]}]", "`the boss` is no name for a role"),
        ("ports: [81]\nrules: [{FROM, to: [{headers: []}]}]", "`headers` is empty"),
        (
            "ports: [81]\nrules: [{FROM, to: [{headers: [{name: x}]}]}]",
            "exactly one of `exact`, `prefix`, `present`, `absent`",
        ),
        ("ports: [81]\nrules: [{FROM, to: [{headers: [{name: x, exact: a, prefix: a}]}]}]", "exactly one of"),
        (
            "ports: [81]\nrules: [{FROM, to: [{headers: [{name: x, present: false}]}]}]",
            "`false` says nothing here; fix: write `absent: true`",
        ),
        (
            "ports: [81]\nrules: [{FROM, to: [{headers: [{name: x, exact: ''}]}]}]",
            "is no value of a header field",
        ),
        (
            "ports: [81]\nrules: [{FROM, to: [{headers: [{name: 'x y', present: true}]}]}]",
            "`x y` is no header field to ask for",
        ),
        (
            "ports: [81]\nrules: [{FROM, to: [{headers: [{name: Content-Length, present: true}]}]}]",
            "frames or protects the message",
        ),
        (
            "ports: [22]\nrules: [{FROM, to: [{headers: [{name: x, present: true}]}]}]",
            "does not speak plain HTTP",
        ),
        ("ports: [22]\naction: deny\nrules: [{FROM, to: [{methods: [GET]}]}]", "does not speak plain HTTP"),
    ];
    for (spec, expected) in table {
        assert_fault(&text(&[("p", &spec.replace("FROM", from))]), expected);
    }
}

#[test]
fn rules_that_a_deny_leaves_nothing_of_are_refused() {
    let friend = "{identity: spiffe://td/app/d/friend}";
    let shadows = [
        ("ports: [81]\nrules: [{from: [FRIEND]}]", "action: deny\nrules: [{from: [{any: anyone}]}]"),
        ("ports: [81]\nrules: [{from: [FRIEND]}]", "action: deny\nrules: [{from: [{trustDomain: td}]}]"),
        (
            "ports: [81]\nrules: [{from: [FRIEND]}]",
            "action: deny\nports: [80, 81]\nrules: [{from: [{identity: 'spiffe://td/app/*/friend'}]}]",
        ),
        (
            "ports: [81]\nrules: [{from: [FRIEND], to: [{methods: [GET], paths: [/a/b]}]}]",
            "action: deny\nports: [81]\nrules: [{from: [FRIEND], to: [{methods: [GET, POST], paths: [/a/**]}]}]",
        ),
        ("rules: [{from: [FRIEND]}]", "action: deny\nrules: [{from: [FRIEND]}]"),
    ];
    for (allow, deny) in shadows {
        let (allow, deny) = (allow.replace("FRIEND", friend), deny.replace("FRIEND", friend));
        let text = text(&[("open", &allow), ("shut", &deny)]);
        assert_fault(&text, "rule `rule-1` can never allow anything: shut/rule-1 denies all of it");
        model_of(&text.replace("action: deny", "action: deny\n  mode: observe"));
    }
    let fine = [
        ("ports: [81]\nrules: [{from: [{any: authenticated}]}]", "action: deny\nrules: [{from: [FRIEND]}]"),
        ("rules: [{from: [FRIEND]}]", "action: deny\nports: [81]\nrules: [{from: [FRIEND]}]"),
        (
            "rules: [{from: [FRIEND]}]",
            "action: deny\nrules: [{from: [FRIEND], when: {time: [{days: [sun]}]}}]",
        ),
        (
            "ports: [81]\nrules: [{from: [FRIEND]}]",
            "action: deny\nports: [81]\nrules: [{from: [FRIEND], to: [{methods: [GET]}]}]",
        ),
    ];
    for (allow, deny) in fine {
        model(&[("open", &allow.replace("FRIEND", friend)), ("shut", &deny.replace("FRIEND", friend))]);
    }
}

#[test]
fn values_of_role_grants_are_checked() {
    let base = text(&[]);
    let end = "2026-03-02T13:00:00Z";
    let table = [
        (grant("g", "spiffe://td/app/*/x", "leader", end), "is no identity"),
        (grant("g", FRIEND, "The-Leader", end), "`The-Leader` is no name for a role"),
        (
            grant("g", FRIEND, "leader", "tomorrow"),
            "`tomorrow` is no moment; fix: write it such as `2026-03-31T18:00:00Z`",
        ),
        (grant("g", FRIEND, "leader", "2026-02-30T00:00:00Z"), "is no moment"),
        (
            manifest("RoleGrant", "g", &format!("identity: {FRIEND}\nrole: leader")),
            "the field `notAfter` is missing",
        ),
        (
            grant("g", FRIEND, "leader", end) + &grant("h", FRIEND, "leader", "2027-03-02T13:00:00Z"),
            "another RoleGrant gives spiffe://td/app/d/friend the role `leader`",
        ),
        (
            grant("g", FRIEND, "leader", end) + &grant("g", OTHER, "leader", end),
            "RoleGrant `g` is already declared",
        ),
    ];
    for (grants, expected) in table {
        assert_fault(&format!("{base}{grants}"), expected);
    }
}

#[test]
fn values_of_header_policies_are_checked() {
    let base = text(&[]);
    let table = [
        ("identityHeaders: []", "`identityHeaders` is empty"),
        ("identityHeaders: [{}]", "changes nothing"),
        ("identityHeaders: [{names: []}]", "`names` is empty"),
        ("identityHeaders: [{names: ['*']}]", "it would be every field"),
        ("identityHeaders: [{names: ['x-*-y']}]", "`*` stands for the rest of a name"),
        ("identityHeaders: [{names: [host]}]", "frames or protects the message"),
        ("identityHeaders: [{names: [mesh-cert]}]", "frames or protects the message"),
        ("identityHeaders: [{names: [x-a]}, {names: [X-A]}]", "`X-A` is named twice"),
        ("identityHeaders: [{names: [x-a], entitled: []}]", "`entitled` is empty"),
        (
            "identityHeaders: [{names: [x-a], entitled: [{role: a, class: app}]}]",
            "a source has exactly one of",
        ),
        ("identityHeaders: [{names: [x-a], overwrite: \"a\\nb\"}]", "is no value of a header field"),
        ("peerHeader: x-forwarded-client-cert", "frames or protects the message"),
        ("strip: [x-a]", "unknown field `strip`"),
    ];
    for (spec, expected) in table {
        let policy = manifest("HeaderPolicy", "h", &format!("target: {{workloads: [web]}}\n{spec}"));
        assert_fault(&format!("{base}{policy}"), expected);
    }
}

#[test]
fn two_header_policies_for_the_same_requests_are_refused() {
    let policies = |first: &str, second: &str| {
        let policy = |name: &str, rest: &str| manifest("HeaderPolicy", name, rest);
        text(&[]) + &policy("a", first) + &policy("b", second)
    };
    let (web, all) = ("target: {workloads: [web]}", "target: {workloads: ['*']}");
    for (first, second) in [
        (web.to_owned(), web.to_owned()),
        (all.to_owned(), format!("{web}\nports: [81]")),
        (format!("{web}\nports: [80, 81]"), format!("{all}\nports: [81]")),
    ] {
        assert_fault(
            &policies(&first, &second),
            "HeaderPolicy `a` at test.yaml:19 is for the requests to web as well",
        );
    }
    model_of(&policies(&format!("{web}\nports: [80]"), &format!("{web}\nports: [81]")));
    model_of(&policies(web, "target: {classes: [agent]}"));
}
