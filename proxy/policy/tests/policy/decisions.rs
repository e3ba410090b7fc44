//! What is allowed, what is refused, and under which code.

use signet_identity::TrustDomain;
use signet_policy::{
    Decision, Egress, Facts, Layer, MtlsMode, Origin, PolicyIndex, PolicyModel, Protection, ProtectionLevel,
    Protocol, RecordHash, Refusal, SignatureMode, SpeaksFirst, Transport, Verification, decide, explain,
    observe,
};

use crate::{MESH, NOW, ask, id, manifest, model_of};

const WEB: &str = "spiffe://td/app/d1/web";
const SQL: &str = "spiffe://td/app/d1/sql";
const OPEN: &str = "spiffe://td/external/d1/open";
const BOSS: &str = "spiffe://td/platform/d1/boss";
const PEER: &str = "spiffe://td/app/d2/peer";
const STRANGER: &str = "spiffe://other/app/d2/peer";

/// One mesh with every kind of rule.
fn mesh() -> PolicyModel {
    let workloads = [
        (
            "web",
            "class: app\ndevice: d1\nnetwork: n1\nnames: [web, Web.Example.]\nports: [{port: 80, protocol: http}, {port: 81}, {port: 82}, {port: 83}]\nadvertise: [{network: n2, address: 10.2.0.9, port: 8080, targetPort: 80}]",
        ),
        (
            "sql",
            "class: app\ndevice: d1\nnetwork: n1\nnames: [sql, shared]\nports: [{port: 3306, protocol: opaque, speaksFirst: server}]",
        ),
        ("open", "class: external\ndevice: d1\nnetwork: n1\nnames: [shared]\nmtls: {mode: permissive}"),
        ("boss", "class: platform\ndevice: d1\nnetwork: n1"),
    ];
    let policies = [
        (
            "web-l7",
            "target: {workloads: [web]}\nports: [80, 81, 82]\nrules:\n- name: read\n  from: [{identity: 'spiffe://td/app/*/peer'}]\n  to: [{methods: [GET, HEAD], paths: [/public/**, /exact]}, {methods: [POST], paths: [/jobs/*], ports: [80]}]",
        ),
        (
            "web-l4",
            "target: {workloads: [web]}\nports: [80, 82, 83]\nrules:\n- name: platform\n  from: [{class: platform}]\n- name: one\n  from: [{identity: spiffe://td/agent/d9/one}]\n  to: [{ports: [83]}]",
        ),
        (
            "sql-access",
            "target: {workloads: [sql]}\nrules:\n- from: [{identity: spiffe://td/app/d1/web}, {trustDomain: other}]",
        ),
        (
            "open-access",
            "target: {classes: [external]}\nrules:\n- name: anyone-reads\n  from: [{any: anyone}]\n  to: [{methods: [GET], ports: [80]}]\n- name: known\n  from: [{any: authenticated}]\n  to: [{ports: [22]}]",
        ),
        (
            "everything",
            "target: {workloads: ['*']}\nmode: observe\nrules:\n- name: watch\n  from: [{class: app}]\n  to: [{methods: [GET], ports: [80, 81, 83]}]",
        ),
    ];
    let text: String = std::iter::once(MESH.to_owned())
        .chain(workloads.iter().map(|(name, spec)| manifest("Workload", name, spec)))
        .chain(policies.iter().map(|(name, spec)| manifest("AccessPolicy", name, spec)))
        .collect();
    model_of(&text)
}

#[test]
fn rules_decide_by_source_method_path_and_port() {
    let index = PolicyIndex::new(&mesh());
    let one = "spiffe://td/agent/d9/one";
    let table = [
        // Identity pattern, method and path.
        (PEER, WEB, 80, "GET /public/a", "web-l7/read"),
        (PEER, WEB, 80, "GET /public", "web-l7/read"),
        (PEER, WEB, 80, "HEAD /exact", "web-l7/read"),
        (PEER, WEB, 80, "GET /exact/", "access-denied"),
        (PEER, WEB, 80, "get /public/a", "access-denied"),
        (PEER, WEB, 80, "POST /public/a", "access-denied"),
        (PEER, WEB, 80, "POST /jobs/7", "web-l7/read"),
        (PEER, WEB, 80, "POST /jobs/7/8", "access-denied"),
        (PEER, WEB, 80, "POST /exact", "access-denied"),
        // The second operation is for port 80 only.
        (PEER, WEB, 81, "GET /public/a", "web-l7/read"),
        (PEER, WEB, 81, "POST /jobs/7", "access-denied"),
        // A class is a class of the own trust domain only.
        (BOSS, WEB, 80, "DELETE /x", "web-l4/platform"),
        ("spiffe://other/platform/d1/boss", WEB, 80, "DELETE /x", "access-denied"),
        (STRANGER, WEB, 80, "GET /public/a", "access-denied"),
        // Exact identity and its own port.
        (one, WEB, 83, "GET /x", "web-l4/one"),
        (one, WEB, 83, "", "web-l4/one"),
        (one, WEB, 80, "GET /x", "access-denied"),
        // Opaque workloads.
        (WEB, SQL, 3306, "", "sql-access/rule-1"),
        // Not even by name: only a Federation admits another trust domain.
        (STRANGER, SQL, 3306, "", "access-denied"),
        (PEER, SQL, 3306, "", "access-denied"),
        (WEB, SQL, 3307, "", "sql-access/rule-1"),
        // Ports that no policy selects, workloads that nobody declared.
        (PEER, WEB, 9999, "GET /public/a", "no-policy"),
        (PEER, WEB, 9999, "", "no-policy"),
        (PEER, "spiffe://td/app/d1/ghost", 80, "GET /", "no-policy"),
        (PEER, BOSS, 80, "GET /", "no-policy"),
        // Plaintext.
        ("", WEB, 80, "GET /public/a", "plaintext-refused"),
        ("", OPEN, 80, "GET /", "open-access/anyone-reads"),
        ("", OPEN, 22, "", "access-denied"),
        (PEER, OPEN, 22, "", "open-access/known"),
        (STRANGER, OPEN, 22, "", "access-denied"),
        (STRANGER, OPEN, 80, "POST /", "access-denied"),
        (STRANGER, OPEN, 80, "", "opaque-to-l7-port"),
        // What is not a plain request.
        (PEER, WEB, 80, "GET /public/../x", "ambiguous-target"),
        (PEER, WEB, 80, "GET /public%2fx", "ambiguous-target"),
        (PEER, WEB, 80, "GET public", "ambiguous-target"),
        (PEER, WEB, 80, "CONNECT /public/a", "connect-refused"),
        (BOSS, WEB, 80, "OPTIONS *", "web-l4/platform"),
        (PEER, WEB, 80, "OPTIONS *", "access-denied"),
        (BOSS, WEB, 80, "GET *", "ambiguous-target"),
    ];
    for (source, destination, port, request, expected) in table {
        assert_eq!(ask(&index, source, destination, port, request), expected, "{source} {port} {request}");
    }
}

/// Ports 80 (declared HTTP, L7 and L4 rules), 81 (only L7 rules), 82 (L7 and L4 rules), 83 (only L4 rules).
#[test]
fn an_l4_allow_never_opens_an_l7_port_to_bytes() {
    let index = PolicyIndex::new(&mesh());
    let denied = "access-denied";
    let opaque = "opaque-to-l7-port";
    let table = [
        (80, true, ["web-l4/platform", opaque, "web-l7/read", opaque]),
        (81, true, [denied, opaque, "web-l7/read", opaque]),
        (82, true, ["web-l4/platform", opaque, "web-l7/read", opaque]),
        (83, false, ["web-l4/platform", "web-l4/platform", denied, denied]),
        (84, false, ["no-policy", "no-policy", "no-policy", "no-policy"]),
    ];
    for (port, l7, expected) in table {
        assert_eq!(index.is_l7(&id(WEB), port), l7, "{port}");
        let found = [(BOSS, "GET /public/x"), (BOSS, ""), (PEER, "GET /public/x"), (PEER, "")]
            .map(|(source, request)| ask(&index, source, WEB, port, request));
        assert_eq!(found, expected, "{port}");
    }
}

#[test]
fn a_rule_of_any_source_makes_the_port_l7_for_everybody() {
    let workload = manifest("Workload", "w", "class: app\ndevice: d\nnetwork: n1\nports: [{port: 80}]");
    let open = manifest("AccessPolicy", "open", "target: {workloads: [w]}\nrules: [{from: [{any: anyone}]}]");
    let narrow =
        "target: {workloads: [w]}\nrules: [{from: [{identity: spiffe://td/app/d/x}], to: [{paths: [/x]}]}]";
    let destination = "spiffe://td/app/d/w";

    let index = PolicyIndex::new(&model_of(&format!("{MESH}{workload}{open}")));
    assert_eq!(ask(&index, PEER, destination, 80, ""), "open/rule-1");

    let both = format!("{MESH}{workload}{open}{}", manifest("AccessPolicy", "narrow", narrow));
    let index = PolicyIndex::new(&model_of(&both));
    assert_eq!(ask(&index, PEER, destination, 80, ""), "opaque-to-l7-port");
    assert_eq!(ask(&index, PEER, destination, 80, "GET /anything"), "open/rule-1");

    let observed = format!("{narrow}\nmode: observe");
    let watched = format!("{MESH}{workload}{open}{}", manifest("AccessPolicy", "narrow", &observed));
    let index = PolicyIndex::new(&model_of(&watched));
    assert_eq!(ask(&index, PEER, destination, 80, ""), "open/rule-1");
}

#[test]
fn before_the_first_policy_nothing_passes() {
    let index = PolicyIndex::deny_all();
    assert_eq!(ask(&index, BOSS, WEB, 80, "GET /"), "not-ready");
    assert_eq!(ask(&index, BOSS, WEB, 80, ""), "not-ready");
    assert!(!index.l4_possible(Some(&id(BOSS)), &id(WEB), 80, NOW));
    assert_eq!(index.check_authority(&id(WEB), "web"), Err(Refusal::NotReady));
    let anywhere = "192.0.2.1".parse().unwrap();
    assert_eq!(index.egress(&id(WEB), anywhere, 80, Transport::Tcp), Err(Refusal::NotReady));
    assert_eq!(index.mtls(&id(WEB)), MtlsMode::Strict);

    let empty = PolicyIndex::new(&PolicyModel::empty(TrustDomain::parse("td").unwrap()));
    assert_eq!(ask(&empty, BOSS, WEB, 80, "GET /"), "no-policy");
}

#[test]
fn a_host_of_another_workload_is_refused() {
    let index = PolicyIndex::new(&mesh());
    let check = |destination: &str, authority| index.check_authority(&id(destination), authority).err();
    for own in
        ["web", "WEB", "web.", "web:80", "web.example", "web.example.:80", "elsewhere.example", "10.0.0.1:80"]
    {
        assert_eq!(check(WEB, own), None, "{own}");
    }
    for foreign in ["sql", "SQL", "sql.", "sql:80", "Sql.:3306", "shared"] {
        assert_eq!(check(WEB, foreign), Some(Refusal::AuthorityMismatch), "{foreign}");
    }
    for shared_by in [SQL, OPEN] {
        assert_eq!(check(shared_by, "shared"), None);
    }
    assert_eq!(check("spiffe://td/app/d1/ghost", "web"), Some(Refusal::AuthorityMismatch));
    assert_eq!(check(WEB, "user@sql"), Some(Refusal::AmbiguousTarget));
    assert_eq!(check(WEB, ""), Some(Refusal::AmbiguousTarget));

    let (source, destination) = (id(BOSS), id(WEB));
    let layer = Layer::Http { method: "GET", path: "/", authority: "sql", headers: None };
    let facts = Facts {
        source: Some(&source),
        origin: Origin::LeftToDestination,
        destination: &destination,
        port: 80,
        layer,
        now: NOW,
    };
    assert_eq!(decide(&index, &facts).err(), Some(Refusal::AuthorityMismatch));
}

#[test]
fn observe_policies_report_and_never_decide() {
    let index = PolicyIndex::new(&mesh());
    let (peer, boss, web) = (id(PEER), id(BOSS), id(WEB));
    let says = |source, port, method| {
        let layer = Layer::Http { method, path: "/", authority: "web", headers: None };
        let origin = Origin::LeftToDestination;
        let facts = Facts { source: Some(source), origin, destination: &web, port, layer, now: NOW };
        let decided = decide(&index, &facts).map(|permit| permit.policy().to_owned());
        let observed: Vec<_> = observe(&index, &facts)
            .into_iter()
            .map(|seen| (seen.policy.to_string(), seen.rule.as_deref().map(str::to_owned), seen.allowed()))
            .collect();
        (decided, observed)
    };
    let seen = |rule: Option<&str>| vec![("everything".to_owned(), rule.map(str::to_owned), rule.is_some())];
    assert_eq!(says(&peer, 80, "GET"), (Err(Refusal::AccessDenied), seen(Some("watch"))));
    assert_eq!(says(&boss, 80, "GET"), (Ok("web-l4".to_owned()), seen(None)));
    assert_eq!(says(&peer, 9, "GET"), (Err(Refusal::NoPolicy), seen(None)));
    // Its methods do not make port 83 a layer-7 port.
    assert!(!index.is_l7(&web, 83));
}

#[test]
fn possible_sources_are_told_from_impossible_ones_before_any_byte() {
    let index = PolicyIndex::new(&mesh());
    let possible = |source: &str, destination: &str, port| {
        let source = (!source.is_empty()).then(|| id(source));
        index.l4_possible(source.as_ref(), &id(destination), port, NOW)
    };
    assert!(possible(PEER, WEB, 80));
    assert!(possible(PEER, WEB, 81));
    assert!(!possible(PEER, WEB, 83));
    assert!(!possible(STRANGER, WEB, 80));
    assert!(possible("spiffe://td/agent/d9/one", WEB, 83));
    assert!(!possible("spiffe://td/agent/d9/one", WEB, 80));
    assert!(!possible("", WEB, 80));
    assert!(possible("", OPEN, 80));
    assert!(!possible("", OPEN, 22));
    assert!(!possible(PEER, "spiffe://td/app/d1/ghost", 80));
}

#[test]
fn declarations_can_be_looked_up() {
    let model = mesh();
    let index = PolicyIndex::new(&model);
    let published = "10.2.0.9".parse().unwrap();
    let mapped = "::ffff:10.2.0.9".parse().unwrap();
    assert_eq!(index.advertised("n2", published, 8080), Some((&id(WEB), 80)));
    assert_eq!(index.advertised("n2", mapped, 8080), Some((&id(WEB), 80)));
    assert_eq!(index.advertised("n1", published, 8080), None);
    assert_eq!(index.advertised("n2", published, 80), None);
    assert_eq!(
        model.advertised("n2", published, 8080).map(|(w, port)| (w.name.as_str(), port)),
        Some(("web", 80))
    );
    assert_eq!(index.protocol(&id(WEB), 80), Protocol::Http);
    assert_eq!(index.protocol(&id(WEB), 9), Protocol::Auto);
    assert_eq!(index.speaks_first(&id(SQL), 3306), Some(SpeaksFirst::Server));
    assert_eq!(index.mtls(&id(OPEN)), MtlsMode::Permissive);
    assert_eq!(model.workload(&id(WEB)), model.workload_named("web"));
    assert_eq!(model.workload_named("web").unwrap().names, ["web", "web.example"]);
}

#[test]
fn a_workload_takes_over_the_protection_it_does_not_set_itself() {
    let workloads = manifest("Workload", "s", "class: app\ndevice: d\nnetwork: n1")
        + &manifest("Workload", "p", "class: app\ndevice: d\nnetwork: n1\nprotection: {level: public}");
    let model = model_of(&format!(
        "{MESH}  protection: {{mode: hmac, recordHash: sha-256, verify: async}}\n{workloads}"
    ));
    let index = PolicyIndex::new(&model);
    let mesh = Protection {
        level: ProtectionLevel::Protected,
        mode: SignatureMode::Hmac,
        record_hash: RecordHash::Sha256,
        verify: Verification::Async,
    };
    assert_eq!(index.protection(&id("spiffe://td/app/d/s"), 80, None), mesh);
    let public = Protection { level: ProtectionLevel::Public, ..mesh };
    assert_eq!(index.protection(&id("spiffe://td/app/d/p"), 80, None), public);
    // Whoever was never declared is not public because others are.
    assert_eq!(index.protection(&id("spiffe://td/app/d/ghost"), 80, None), Protection::default());
    assert_eq!(
        PolicyIndex::deny_all().protection(&id("spiffe://td/app/d/p"), 80, None),
        Protection::default()
    );
}

#[test]
fn unmeshed_destinations_need_a_listing_unless_the_source_is_permissive() {
    let egress = "egress:\n  - {cidr: 192.0.2.0/24, ports: [443], protocol: tcp}\n  - {cidr: '2001:db8::/32', protocol: udp, comment: all ports}\n";
    let workloads = manifest("Workload", "s", "class: app\ndevice: d\nnetwork: n1")
        + &manifest("Workload", "p", "class: app\ndevice: d\nnetwork: n1\nmtls: {mode: permissive}");
    let index = PolicyIndex::new(&model_of(&format!("{MESH}  {egress}{workloads}")));
    let ask = |source: &str, address: &str, port, transport| {
        index.egress(&id(source), address.parse().unwrap(), port, transport)
    };
    let (strict, permissive) = ("spiffe://td/app/d/s", "spiffe://td/app/d/p");
    assert_eq!(ask(strict, "192.0.2.7", 443, Transport::Tcp), Ok(Egress::Listed));
    assert_eq!(ask(strict, "::ffff:192.0.2.7", 443, Transport::Tcp), Ok(Egress::Listed));
    assert_eq!(ask(strict, "192.0.2.7", 80, Transport::Tcp), Err(Refusal::UnmeshedDestination));
    assert_eq!(ask(strict, "192.0.2.7", 443, Transport::Udp), Err(Refusal::UnmeshedDestination));
    assert_eq!(ask(strict, "2001:db8::1", 9, Transport::Udp), Ok(Egress::Listed));
    assert_eq!(ask(permissive, "192.0.2.7", 80, Transport::Tcp), Ok(Egress::Permissive));
    assert_eq!(
        ask("spiffe://td/app/d/ghost", "192.0.2.7", 80, Transport::Tcp),
        Err(Refusal::UnmeshedDestination)
    );
}

#[test]
fn explanations_name_every_rule_and_its_reason() {
    let index = PolicyIndex::new(&mesh());
    let (source, destination) = (id(PEER), id(WEB));
    let explained = |port, layer| {
        let origin = Origin::LeftToDestination;
        explain(
            &index,
            &Facts { source: Some(&source), origin, destination: &destination, port, layer, now: NOW },
        )
    };
    let http = |method, path| Layer::Http { method, path, authority: "web", headers: None };

    let denied = explained(80, http("POST", "/exact"));
    let Decision::Refused { code, status, .. } = &denied.decision else { panic!("{denied}") };
    assert_eq!((*code, *status), (Refusal::AccessDenied, 403));
    let reasons: Vec<_> =
        denied.rules.iter().map(|rule| (rule.policy.as_str(), rule.matched, rule.reason.as_str())).collect();
    assert_eq!(
        reasons,
        [
            ("web-l7", false, "no single operation has both the method POST and the path /exact"),
            ("web-l4", false, "the source spiffe://td/app/d2/peer is none of those in `from`"),
            ("web-l4", false, "the source spiffe://td/app/d2/peer is none of those in `from`"),
            ("everything", false, "it does not allow the method POST"),
        ]
    );
    assert_eq!(
        denied.to_string().lines().next().unwrap(),
        "spiffe://td/app/d2/peer -> spiffe://td/app/d1/web:80 POST /exact: refused access-denied (403): policies select this port and none of their rules allows this caller to do this"
    );

    let allowed = explained(80, http("GET", "/public/x"));
    assert_eq!(allowed.decision, Decision::Allowed { policy: "web-l7".to_owned(), rule: "read".to_owned() });
    assert!(allowed.rules[0].matched && allowed.rules[3].matched);

    let note = |port, layer| explained(port, layer).note.unwrap();
    assert_eq!(note(80, Layer::Opaque), "port 80 is declared as http");
    assert_eq!(note(81, Layer::Opaque), "an enforced rule decides on port 81 by method, path or header");
    assert_eq!(note(80, http("GET", "/a//b")), "the path holds an empty segment (`//`)");
    assert!(
        note(80, Layer::Http { method: "GET", path: "/", authority: "sql", headers: None })
            .contains("another workload")
    );
    assert!(explained(83, Layer::Opaque).rules[3].reason.contains("opaque bytes"));

    let json = serde_json::to_value(&denied).unwrap();
    assert_eq!(json["decision"]["outcome"], "refused");
    assert_eq!(json["decision"]["code"], "access-denied");
    assert_eq!(json["rules"][0]["mode"], "enforce");
    assert!(!explained(80, http("GET", "/\u{1b}[31m")).to_string().contains('\u{1b}'));
}
