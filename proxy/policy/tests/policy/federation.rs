//! Two trust domains: what passes between them is what both name.

use signet_policy::{
    Fate, Federated, MAX_FEDERATED_PAIRS, PolicyIndex, PolicyModel, ProtectionLevel, Protocol, TooManyPairs,
    federate,
};

use crate::{MESH, NOW, ask, faults_of, id, manifest, model_of};

const CIMI: &str = "spiffe://td/platform/d1/cimi";
const CART: &str = "spiffe://shop/app/d2/cart";
const OTHER: &str = "spiffe://shop/app/d2/other";
const LOCAL: &str = "spiffe://td/app/d1/local";

/// The platform: it lets the shop's carts read, and anybody of its own do everything.
fn platform(federation: &str) -> PolicyModel {
    let text = [
        MESH.to_owned(),
        manifest(
            "Workload",
            "cimi",
            "class: platform\ndevice: d1\nnetwork: n1\nnames: [cimi]\nports: [{port: 8201}, {port: 22}]",
        ),
        manifest("Workload", "local", "class: app\ndevice: d1\nnetwork: n1"),
        manifest(
            "AccessPolicy",
            "open",
            "target: {workloads: ['*']}\nrules: [{from: [{any: anyone}, {any: authenticated}, {trustDomain: shop}]}]",
        ),
        manifest(
            "AccessPolicy",
            "never",
            "target: {workloads: [cimi]}\naction: deny\nports: [8201]\nrules: [{from: [{any: authenticated}], to: [{paths: [/api/secret]}]}]",
        ),
        manifest(
            "ProtectionPolicy",
            "sealed",
            "target: {classes: [platform]}\nports: [8201]\nrules: [{to: [{paths: [/api/private]}], level: private}]",
        ),
        federation.to_owned(),
    ];
    model_of(&text.concat())
}

fn shop(federation: &str) -> PolicyModel {
    let text = [
        MESH.replace("trustDomain: td", "trustDomain: shop"),
        manifest("Workload", "cart", "class: app\ndevice: d2\nnetwork: n1"),
        manifest("Workload", "other", "class: app\ndevice: d2\nnetwork: n1"),
        manifest(
            "AccessPolicy",
            "open",
            "target: {workloads: ['*']}\nrules: [{from: [{any: authenticated}]}]",
        ),
        federation.to_owned(),
    ];
    model_of(&text.concat())
}

const IN: &str = "trustDomain: shop\ninbound:\n- name: read\n  from: [{identity: 'spiffe://shop/app/*/cart'}]\n  \
                  workloads: [cimi]\n  to: [{methods: [GET], paths: [/api/**], ports: [8201]}]";
const OUT: &str =
    "trustDomain: td\noutbound: [{workloads: [cart, other], to: [{identity: spiffe://td/platform/d1/cimi}]}]";

fn federation(spec: &str) -> String {
    manifest("Federation", "meeting", spec)
}

/// Both with what they let each other do.
fn met(of_platform: &str, of_shop: &str) -> ([PolicyModel; 2], [Federated; 2]) {
    let (mut platform, mut shop) = (platform(of_platform), shop(of_shop));
    let (own, other) = (platform.clone(), shop.clone());
    let federated = [federate(&mut platform, &other).unwrap(), federate(&mut shop, &own).unwrap()];
    ([platform, shop], federated)
}

#[test]
fn nothing_passes_unless_both_sides_say_so() {
    for (of_platform, of_shop) in [
        (String::new(), federation(OUT)),
        (federation(IN), String::new()),
        (federation(&IN.replace("/*/cart", "/*/nobody")), federation(OUT)),
        (federation(IN), federation(&OUT.replace("d1/cimi", "d1/other"))),
        (federation(IN), federation(&OUT.replace("[cart, other]", "[other]"))),
    ] {
        let (models, federated) = met(&of_platform, &of_shop);
        assert!(federated.iter().all(Federated::is_empty), "{of_platform} {of_shop}");
        let [platform, shop] = models.map(|model| PolicyIndex::new(&model));
        assert_eq!(ask(&platform, CART, CIMI, 8201, "GET /api/user"), "access-denied");
        assert!(!platform.l4_possible(Some(&id(CART)), &id(CIMI), 8201, NOW));
        assert_eq!(ask(&shop, CART, CIMI, 8201, "GET /api/user"), "no-policy");
    }
}

#[test]
fn what_both_name_passes_at_both_ends_and_no_more() {
    let (models, federated) = met(&federation(IN), &federation(OUT));
    assert_eq!(federated[0].callers, [id(CART)].into());
    assert_eq!(federated[1].callees, [id(CIMI)].into());
    assert!(federated[0].callees.is_empty() && federated[1].callers.is_empty());
    let [platform, shop] = models.map(|model| PolicyIndex::new(&model));
    let table = [
        (CART, 8201, "GET /api/user", "federation/meeting/read", "federation/meeting/rule-1"),
        (CART, 8201, "POST /api/user", "access-denied", "access-denied"),
        (CART, 8201, "GET /admin", "access-denied", "access-denied"),
        (CART, 22, "", "access-denied", "access-denied"),
        (CART, 8201, "", "opaque-to-l7-port", "opaque-to-l7-port"),
        (OTHER, 8201, "GET /api/user", "access-denied", "access-denied"),
        // What denies is asked about everybody; only its own side knows of it.
        (CART, 8201, "GET /api/secret", "deny-rule", "federation/meeting/rule-1"),
    ];
    for (source, port, request, at_callee, at_caller) in table {
        assert_eq!(
            ask(&platform, source, CIMI, port, request),
            at_callee,
            "callee: {source} {port} {request}"
        );
        assert_eq!(ask(&shop, source, CIMI, port, request), at_caller, "caller: {source} {port} {request}");
    }
    // Within a trust domain nothing has changed, and what is the caller's own says nothing about the other's workloads.
    assert_eq!(ask(&platform, LOCAL, CIMI, 8201, "POST /admin"), "open/rule-1");
    assert_eq!(ask(&platform, LOCAL, CART, 80, "GET /"), "no-policy");
}

#[test]
fn caller_knows_what_the_callee_asks_of_messages_and_nothing_that_decides_at_home() {
    let ([_, shop], _) = met(&federation(IN), &federation(OUT));
    let stub = shop.workload(&id(CIMI)).unwrap();
    assert_eq!(stub.name, "td/cimi");
    assert!(stub.names.is_empty() && stub.addresses.is_empty() && stub.advertise.is_empty());
    assert_eq!(stub.port(8201).unwrap().protocol, Protocol::Http, "it is decided on by request there");
    assert_eq!(stub.port(22).unwrap().protocol, Protocol::Auto);
    let index = PolicyIndex::new(&shop);
    let level = |path| index.protection(&id(CIMI), 8201, Some(("GET", path))).level;
    assert_eq!(
        (level("/api/user"), level("/api/private")),
        (ProtectionLevel::Protected, ProtectionLevel::Private)
    );
}

#[test]
fn who_is_entitled_to_say_who_calls_is_nobody_of_another_domain_unless_named() {
    for (entitled, expected) in [
        ("{any: authenticated}", [Fate::Keep, Fate::Remove]),
        ("{any: anyone}", [Fate::Keep, Fate::Remove]),
        ("{class: app}", [Fate::Keep, Fate::Remove]),
        ("{identity: 'spiffe://shop/**'}", [Fate::Remove, Fate::Keep]),
    ] {
        let headers = format!(
            "target: {{workloads: [cimi]}}\nidentityHeaders: [{{names: [x-user], entitled: [{entitled}]}}]"
        );
        let both = federation(IN) + &manifest("HeaderPolicy", "headers", &headers);
        let ([platform, _], _) = met(&both, &federation(OUT));
        let index = PolicyIndex::new(&platform);
        let fates = [LOCAL, CART].map(id);
        let fates = fates
            .each_ref()
            .map(|id| index.header_plan(Some(id), &crate::id(CIMI), 8201, NOW).fate("x-user"));
        assert_eq!(fates, expected, "{entitled}");
    }
}

#[test]
fn more_pairs_than_sidecars_can_be_told_change_nothing() {
    let many: String = (0..150)
        .map(|n| manifest("Workload", &format!("w{n}"), &format!("class: app\ndevice: d{n}\nnetwork: n1")))
        .collect();
    let names = (0..150).map(|n| format!("w{n}")).collect::<Vec<_>>().join(", ");
    let inbound = format!(
        "trustDomain: shop\ninbound: [{{from: [{{identity: 'spiffe://shop/**'}}], workloads: [{names}]}}]"
    );
    let outbound = format!(
        "trustDomain: td\noutbound: [{{workloads: [{names}], to: [{{identity: 'spiffe://td/**'}}]}}]"
    );
    let mut own = model_of(&[MESH, &many, &federation(&inbound)].concat());
    let shop = MESH.replace("trustDomain: td", "trustDomain: shop");
    let other = model_of(&[&shop, &many, &federation(&outbound)].map(String::as_str).concat());
    const { assert!(150 * 150 > MAX_FEDERATED_PAIRS) };
    let before = own.clone();
    assert_eq!(federate(&mut own, &other), Err(TooManyPairs));
    assert_eq!(own, before);
}

#[test]
fn faults_are_named_with_their_place() {
    let workload = manifest(
        "Workload",
        "cimi",
        "class: app\ndevice: d\nnetwork: n1\nports: [{port: 1, protocol: opaque}]",
    );
    let inbound = |rule: &str| format!("trustDomain: shop\ninbound: [{rule}]");
    let from = "from: [{identity: 'spiffe://shop/**'}]";
    let table = [
        (
            "trustDomain: td\noutbound: [{workloads: [cimi], to: [{identity: 'spiffe://td/**'}]}]".to_owned(),
            "the mesh's own trust domain",
        ),
        ("trustDomain: Shop\noutbound: []".to_owned(), "`Shop` is no trust domain"),
        ("trustDomain: shop".to_owned(), "lets nothing pass"),
        ("trustDomain: shop\ninbound: []".to_owned(), "`inbound` is empty"),
        (inbound(&format!("{{{from}, workloads: [cmi]}}")), "no Workload is called `cmi`; fix: write `cimi`"),
        (inbound(&format!("{{{from}, workloads: []}}")), "`workloads` is empty"),
        (inbound("{from: [], workloads: [cimi]}"), "`from` is empty"),
        (
            inbound("{from: [{identity: 'spiffe://td/**'}], workloads: [cimi]}"),
            "is not of the trust domain shop",
        ),
        (inbound("{from: [{class: app}], workloads: [cimi]}"), "unknown field `class`"),
        (inbound("{from: [{any: authenticated}], workloads: [cimi]}"), "unknown field `any`"),
        (inbound("{from: [{identity: 'spiffe://*/app'}], workloads: [cimi]}"), "is no identity pattern"),
        (
            inbound(&format!("{{{from}, workloads: [cimi], to: [{{ports: [2]}}]}}")),
            "no targeted workload has port 2",
        ),
        (
            inbound(&format!("{{{from}, workloads: [cimi], to: [{{methods: [GET]}}]}}")),
            "does not speak plain HTTP",
        ),
        (
            inbound(&format!(
                "{{name: a, {from}, workloads: [cimi]}}, {{name: a, {from}, workloads: [cimi]}}"
            )),
            "rule `a` is there twice",
        ),
    ];
    for (spec, expected) in table {
        let faults = faults_of(&[MESH, &workload, &federation(&spec)].concat());
        let named = |fault: &String| fault.contains(expected) && fault.starts_with("test.yaml:");
        assert!(faults.iter().any(named), "{spec}: {faults:#?}");
    }
    let twice = [MESH, &workload, &federation(&inbound(&format!("{{{from}, workloads: [cimi]}}")))].concat()
        + &manifest("Federation", "again", &inbound(&format!("{{{from}, workloads: [cimi]}}")));
    assert!(faults_of(&twice).iter().any(|fault| fault.contains("another Federation is about `shop`")));
}
