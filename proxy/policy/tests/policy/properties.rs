//! Properties over random models, requests and texts.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use signet_identity::{Class, SpiffeId, TrustDomain};
use signet_policy::{
    AccessPolicyModel, Caller, Conditions, Facts, HeaderMatch, IdentityPattern, Layer, MtlsMode, Operation,
    Origin, PathPattern, PolicyAction, PolicyIndex, PolicyMode, PolicyModel, PortModel, Protection, Protocol,
    Refusal, RequestHeaders, RoleGrantModel, RuleModel, SourceMatch, Target, TimeWindow, ValueMatch,
    WorkloadApi, WorkloadModel, check_target, compile, decide, explain, observe, parse_manifests,
};

use crate::{MESH, NOW, id, manifest};

const IDS: [&str; 5] = [
    "spiffe://td/app/d/a",
    "spiffe://td/app/d/b",
    "spiffe://td/platform/d/c",
    "spiffe://other/app/d/a",
    "spiffe://td/free/form/of/path",
];
const PORTS: [u16; 3] = [80, 81, 9];
const METHODS: [&str; 3] = ["GET", "POST", "OPTIONS"];
const PATHS: [&str; 9] = ["/", "/a", "/a/", "/a/b", "/a/b/c", "/b", "/a//b", "/a/%2e%2e", "*"];

fn source_match() -> impl Strategy<Value = SourceMatch> {
    let pattern = select(vec![
        "spiffe://td/app/d/a",
        "spiffe://td/app/*/b",
        "spiffe://td/**",
        "spiffe://td/*/d/*",
        "spiffe://other/app/**",
    ]);
    prop_oneof![
        1 => Just(SourceMatch::Anyone),
        1 => Just(SourceMatch::Authenticated),
        1 => select(vec![Class::App, Class::Platform]).prop_map(SourceMatch::Class),
        1 => select(vec!["leader", "former", "nobody"]).prop_map(|role| SourceMatch::Role(role.to_owned())),
        4 => pattern.prop_map(|text| SourceMatch::Identity(IdentityPattern::parse(text).unwrap())),
        1 => select(vec!["td", "other"]).prop_map(|name| SourceMatch::TrustDomain(TrustDomain::parse(name).unwrap())),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let patterns = vec(select(vec!["/", "/a", "/a/*", "/a/**", "/**", "/*/b"]), 0..3);
    let value = prop_oneof![
        Just(ValueMatch::Absent),
        Just(ValueMatch::Present),
        Just(ValueMatch::Exact("a".to_owned())),
        Just(ValueMatch::Prefix("a".to_owned())),
    ];
    let header = value.prop_map(|value| HeaderMatch { name: "x-tenant".to_owned(), value });
    let headers = prop_oneof![4 => Just(Vec::new()), 1 => vec(header, 1..3)];
    (vec(select(METHODS.to_vec()), 0..2), patterns, vec(select(PORTS.to_vec()), 0..2), headers).prop_map(
        |(methods, paths, ports, headers)| Operation {
            methods: methods.into_iter().map(str::to_owned).collect(),
            paths: paths.into_iter().map(|text| PathPattern::parse(text).unwrap()).collect(),
            ports,
            headers,
        },
    )
}

fn conditions() -> impl Strategy<Value = Conditions> {
    let range = select(vec!["192.0.2.0/24", "198.51.100.0/24"]);
    let monday = TimeWindow { days: 1, from: 0, to: 1_440, utc_offset: 0 };
    let window = select(vec![monday, TimeWindow { days: 2, ..monday }]);
    let some = (vec(range, 0..2), vec(window, 0..2)).prop_map(|(ranges, time)| Conditions {
        source_addresses: ranges.into_iter().map(|range| range.parse().unwrap()).collect(),
        time,
    });
    prop_oneof![3 => Just(Conditions::default()), 1 => some]
}

fn policy() -> impl Strategy<Value = AccessPolicyModel> {
    let target = prop_oneof![
        Just(Target::Everything),
        vec(select(vec![Class::App, Class::Platform]), 1..2).prop_map(Target::Classes),
        vec(select(vec!["a", "b", "c", "ghost"]), 1..3)
            .prop_map(|names| Target::Workloads(names.into_iter().map(str::to_owned).collect())),
    ];
    let rule = (vec(source_match(), 0..3), vec(operation(), 0..3), conditions());
    let mode = prop_oneof![3 => Just(PolicyMode::Enforce), 1 => Just(PolicyMode::Observe)];
    let action = prop_oneof![3 => Just(PolicyAction::Allow), 1 => Just(PolicyAction::Deny)];
    (target, vec(select(PORTS.to_vec()), 0..2), mode, action, vec(rule, 0..3)).prop_map(
        |(target, ports, mode, action, rules)| {
            let rules = rules
                .into_iter()
                .enumerate()
                .map(|(number, (from, to, when))| RuleModel {
                    name: format!("r{number}"),
                    from,
                    to,
                    when,
                    life_safety: false,
                })
                .collect();
            AccessPolicyModel { name: String::new(), target, ports, mode, action, rules }
        },
    )
}

fn workload(
    name: &str,
    path: &str,
    class: Class,
    protocol: Protocol,
    mtls: Option<MtlsMode>,
) -> WorkloadModel {
    let port = |port, protocol| PortModel { port, name: None, protocol, speaks_first: None };
    WorkloadModel {
        name: name.to_owned(),
        id: id(path),
        class,
        network: "n".to_owned(),
        names: vec![format!("{name}.mesh"), "shared.mesh".to_owned()],
        ports: vec![port(80, protocol), port(81, Protocol::Auto)],
        mtls,
        protection: Protection::default(),
        sealed_headers: Vec::new(),
        addresses: Vec::new(),
        advertise: Vec::new(),
        virtual_addresses: Vec::new(),
        workload_api: WorkloadApi::default(),
    }
}

fn model() -> impl Strategy<Value = PolicyModel> {
    let protocol = select(vec![Protocol::Auto, Protocol::Http, Protocol::Opaque]);
    let mtls = select(vec![None, Some(MtlsMode::Permissive)]);
    (vec(policy(), 0..6), protocol, mtls).prop_map(|(mut policies, protocol, mtls)| {
        for (number, policy) in policies.iter_mut().enumerate() {
            policy.name = format!("p{number}");
        }
        let mut model = PolicyModel::empty(TrustDomain::parse("td").unwrap());
        model.workloads = vec![
            workload("a", IDS[0], Class::App, protocol, mtls),
            workload("b", IDS[1], Class::App, Protocol::Auto, None),
            workload("c", IDS[2], Class::Platform, Protocol::Auto, None),
        ];
        model.policies = policies;
        model.role_grants = ["leader", "former"]
            .map(|role| RoleGrantModel {
                name: role.to_owned(),
                identity: id(IDS[0]),
                role: role.to_owned(),
                not_after: if role == "leader" { NOW + 1 } else { NOW },
            })
            .to_vec();
        model
    })
}

/// Source, where from, destination, port, and method, path, host and header fields for HTTP.
#[derive(Clone, Debug)]
struct Asked {
    origin: Origin,
    headers: Option<RequestHeaders>,
    source: Option<SpiffeId>,
    destination: SpiffeId,
    port: u16,
    request: Option<(&'static str, &'static str, &'static str)>,
}

impl Asked {
    fn facts(&self) -> Facts<'_> {
        Facts {
            source: self.source.as_ref(),
            origin: self.origin,
            destination: &self.destination,
            port: self.port,
            layer: self.request.map_or(Layer::Opaque, |(method, path, authority)| Layer::Http {
                method,
                path,
                authority,
                headers: self.headers.as_ref(),
            }),
            now: NOW,
        }
    }
}

fn asked() -> impl Strategy<Value = Asked> {
    let hosts = select(vec!["elsewhere", "a.mesh", "B.mesh.:80", "shared.mesh"]);
    let request = (select(METHODS.to_vec()), select(PATHS.to_vec()), hosts);
    let source = proptest::option::weighted(0.9, select(IDS.to_vec()));
    let origin = select(vec![Origin::LeftToDestination, Origin::Seen([192, 0, 2, 1].into())]);
    let field = (select(vec!["x-tenant", "x_tenant"]), select(vec!["a", "b", "b, a"]));
    let headers = vec(field, 0..3).prop_map(|fields| {
        RequestHeaders::new(fields.into_iter().map(|(name, value)| (name, value.as_bytes())))
    });
    let headers = proptest::option::weighted(0.9, headers);
    let place = (select(IDS.to_vec()), select(PORTS.to_vec()));
    (source, origin, place, proptest::option::of(request), headers).prop_map(
        |(source, origin, (destination, port), request, headers)| Asked {
            source: source.map(id),
            origin,
            destination: id(destination),
            port,
            request,
            headers,
        },
    )
}

/// What the rules say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Allowed,
    Denied,
    Nothing,
}

/// The meaning of policies, written down as plainly as possible: no index, no order, no shortcut.
fn naive(model: &PolicyModel, asked: &Asked) -> Result<Said, Refusal> {
    let workload = model.workload(&asked.destination).ok_or(Refusal::NoPolicy)?;
    if asked.source.is_none() && model.mtls_of(workload) == MtlsMode::Strict {
        return Err(Refusal::PlaintextRefused);
    }
    let selecting: Vec<&AccessPolicyModel> = model
        .policies
        .iter()
        .filter(|policy| policy.mode == PolicyMode::Enforce && policy.target.selects(workload))
        .filter(|policy| policy.ports.is_empty() || policy.ports.contains(&asked.port))
        .collect();
    let at_port =
        |operation: &&Operation| operation.ports.is_empty() || operation.ports.contains(&asked.port);
    let l7 = workload.port(asked.port).is_some_and(|port| port.protocol.is_http())
        || selecting
            .iter()
            .flat_map(|policy| &policy.rules)
            .flat_map(|rule| &rule.to)
            .filter(at_port)
            .any(Operation::is_l7);
    match asked.request {
        Some((method, path, host)) => {
            if path.contains("//") || path.contains('%') || (path == "*" && method != "OPTIONS") {
                return Err(Refusal::AmbiguousTarget);
            }
            let host = host.to_lowercase().replace(":80", "");
            let host = host.trim_end_matches('.');
            let declared = |workload: &WorkloadModel| workload.names.iter().any(|name| name == host);
            if model.workloads.iter().any(declared) && !declared(workload) {
                return Err(Refusal::AuthorityMismatch);
            }
        }
        None if l7 => return Err(Refusal::OpaqueToL7Port),
        None => {}
    }
    let roles: Vec<RoleGrantModel> = model
        .role_grants
        .iter()
        .filter(|grant| Some(&grant.identity) == asked.source.as_ref())
        .cloned()
        .collect();
    let caller =
        Caller { id: asked.source.as_ref(), trust_domain: &model.trust_domain, roles: &roles, now: NOW };
    let matches = |rule: &RuleModel, action: PolicyAction| {
        let source = rule.from.iter().any(|from| from.matches(&caller));
        let operation = rule.to.is_empty()
            || rule.to.iter().filter(at_port).any(|operation| match asked.request {
                Some((method, path, _)) => {
                    operation.matches_method(method, action)
                        && operation.matches_path(path, action)
                        && operation.matches_headers(asked.headers.as_ref(), action)
                }
                None => !operation.is_l7(),
            });
        let address = match asked.origin {
            _ if rule.when.source_addresses.is_empty() => true,
            Origin::Seen(address) => rule.when.source_addresses.iter().any(|range| range.contains(&address)),
            Origin::LeftToDestination => action == PolicyAction::Allow,
        };
        let time = rule.when.time.is_empty() || rule.when.time.iter().any(|window| window.is_open(NOW));
        // No policy of this kind lets another trust domain in.
        let foreign = asked.source.as_ref().is_some_and(|id| id.trust_domain() != "td");
        let asked = action == PolicyAction::Deny || !foreign;
        asked && source && operation && address && time
    };
    let says = |action: PolicyAction| {
        let acting = selecting.iter().filter(|policy| policy.action == action);
        acting.flat_map(|policy| &policy.rules).any(|rule| matches(rule, action))
    };
    if says(PolicyAction::Deny) {
        return Ok(Said::Denied);
    }
    if selecting.is_empty() {
        return Err(Refusal::NoPolicy);
    }
    Ok(if says(PolicyAction::Allow) { Said::Allowed } else { Said::Nothing })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decide_agrees_with_a_naive_evaluator(model in model(), asked in asked()) {
        let index = PolicyIndex::new(&model);
        let decided = decide(&index, &asked.facts());
        match naive(&model, &asked) {
            Ok(Said::Allowed) => {
                let permit = decided.unwrap();
                let policy = model.policies.iter().find(|policy| policy.name == permit.policy()).unwrap();
                prop_assert_eq!((policy.mode, policy.action), (PolicyMode::Enforce, PolicyAction::Allow));
                prop_assert!(policy.rules.iter().any(|rule| rule.name == permit.rule()));
                prop_assert!(index.l4_possible(asked.source.as_ref(), &asked.destination, asked.port, NOW));
            }
            Ok(Said::Denied) => prop_assert_eq!(decided.unwrap_err(), Refusal::DenyRule),
            Ok(Said::Nothing) => prop_assert_eq!(decided.unwrap_err(), Refusal::AccessDenied),
            Err(refusal) => prop_assert_eq!(decided.unwrap_err(), refusal),
        }
    }

    #[test]
    fn explanations_agree_with_decisions(model in model(), asked in asked()) {
        let index = PolicyIndex::new(&model);
        let explanation = explain(&index, &asked.facts());
        let enforced_match = |action| {
            let matches = |rule: &signet_policy::RuleReport| {
                rule.matched && rule.mode == PolicyMode::Enforce && rule.action == action
            };
            explanation.rules.iter().any(matches)
        };
        let (allows, denies) = (enforced_match(PolicyAction::Allow), enforced_match(PolicyAction::Deny));
        match decide(&index, &asked.facts()) {
            Ok(_) => prop_assert!(allows && !denies, "{}", explanation),
            Err(Refusal::DenyRule) => {
                prop_assert!(denies, "{}", explanation);
                let named = matches!(&explanation.decision, signet_policy::Decision::Refused { rule: Some(_), .. });
                prop_assert!(named, "{}", explanation);
            }
            Err(Refusal::AccessDenied) => prop_assert!(!allows && !denies, "{}", explanation),
            Err(_) => {}
        }
        let observed = observe(&index, &asked.facts());
        for seen in observed {
            let reported = explanation.rules.iter().any(|rule| rule.policy == *seen.policy && rule.matched);
            prop_assert_eq!(seen.rule.is_some(), reported);
            prop_assert_eq!(seen.allowed(), reported == (seen.action == PolicyAction::Allow));
        }
    }

    #[test]
    fn models_survive_serialization(model in model()) {
        let text = serde_json::to_string(&model).unwrap();
        prop_assert_eq!(serde_json::from_str::<PolicyModel>(&text).unwrap(), model);
    }

    #[test]
    fn targets_and_decisions_never_panic(method in "\\PC{0,8}", target in "\\PC{0,40}|[/%.;a2eEfF*?#\\\\ ]{0,30}", host in "\\PC{0,20}|[a:.\\[\\]0-9]{0,20}", port: u16) {
        let checked = check_target(&method, &target, None, &[&host]);
        let index = PolicyIndex::new(&PolicyModel::empty(TrustDomain::parse("td").unwrap()));
        let (source, destination) = (id(IDS[0]), id(IDS[1]));
        let layer = Layer::Http { method: &method, path: &target, authority: &host, headers: None };
        let origin = Origin::LeftToDestination;
        let facts = Facts { source: Some(&source), origin, destination: &destination, port, layer, now: NOW };
        prop_assert!(decide(&index, &facts).is_err());
        let _ = explain(&index, &facts).to_string();
        if let Ok(checked) = checked {
            prop_assert!(checked.path().bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(!checked.path().contains("//") && !checked.path().contains(['\\', ';', '#', '?']));
        }
    }

    #[test]
    fn what_is_denied_is_denied_in_every_spelling(path in "(/[aA%610x]{0,6}){1,3}/?") {
        let denied = PathPattern::parse("/a/*/0/**").unwrap();
        let decoded_once = String::from_utf8_lossy(&lenient(path.as_bytes())).into_owned();
        let decoded_twice = String::from_utf8_lossy(&lenient(decoded_once.as_bytes())).into_owned();
        for read in [&path, &decoded_once, &decoded_twice] {
            let read = read.to_ascii_lowercase();
            // A pattern is matched narrowly against what an application may make of the path.
            if check_target("GET", &path, None, &["h"]).is_ok() && denied.matches(&read) {
                prop_assert!(denied.matches_any_spelling(&path), "{} is read as {}", path, read);
            }
        }
    }

    #[test]
    fn an_accepted_path_means_the_same_after_decoding(path in "(/[a.%2eE5cCfF0-9]{0,6}){1,4}") {
        if check_target("GET", &path, None, &["h"]).is_ok() {
            let decoded = decoded(path.as_bytes());
            prop_assert_eq!(decoded.iter().filter(|byte| **byte == b'/').count(), path.matches('/').count());
            prop_assert!(!decoded.split(|byte| *byte == b'/').any(|segment| matches!(segment, b"." | b"..")));
            prop_assert!(!decoded.iter().any(|byte| *byte == 0 || *byte == b'\\'));
        }
    }

    #[test]
    fn random_texts_never_panic(text in "\\PC{0,200}|[-a-z:{}\\[\\]&*!|>'\"%#@\\n\\t ]{0,200}") {
        let _ = parse_manifests("random.yaml", &text).and_then(|manifests| compile(&manifests));
    }

    #[test]
    fn random_values_never_panic(kind in select(vec!["Workload", "AccessPolicy", "Mesh", "HeaderPolicy", "RoleGrant", "TrafficPolicy", "EgressPolicy", "Federation"]), values in vec("[-a-z0-9/*.:'\\[\\]{} ]{0,20}", 8)) {
        let [a, b, c, d, e, f, g, h] = values.try_into().unwrap();
        let spec = match kind {
            "Workload" => format!("class: {a}\ndevice: {b}\nnetwork: n1\nnames: [{c}]\nports: [{{port: {d}, protocol: {e}}}]\naddresses: [{f}]\nadvertise: {g}"),
            "AccessPolicy" => format!("target: {{workloads: [{a}]}}\nports: [{b}]\nrules: [{{from: [{{identity: {c}}}, {{any: {d}}}], to: [{{methods: [{e}], paths: [{f}], ports: [{g}]}}]}}]\nmode: {h}"),
            "HeaderPolicy" => format!("target: {{classes: [{a}]}}\nports: [{b}]\nidentityHeaders: [{{names: [{c}], entitled: [{{role: {d}}}], overwrite: {e}}}, {{names: [{f}]}}]\npeerHeader: {g}\n{h}"),
            "RoleGrant" => format!("identity: {a}\nrole: {b}\nnotAfter: {c}\n{d}: {e}{f}{g}{h}"),
            "TrafficPolicy" => format!("target: {{classes: [app]}}\nports: [{a}]\ntimeouts: {{request: {b}}}\nretries: {{attempts: {c}, on: [{d}]}}\nrateLimits: [{{requests: 1, per: {e}, key: {f}}}]\nroutes: [{{to: [{{paths: [{g}]}}], rateLimits: []}}]\n{h}"),
            "Federation" => format!("trustDomain: {a}\ninbound: [{{from: [{{identity: {b}}}], workloads: [{c}], to: [{{paths: [{d}], ports: [{e}]}}]}}]\noutbound: [{{name: {f}, workloads: [{g}], to: [{{identity: {h}}}]}}]"),
            "EgressPolicy" => format!("target: {{classes: [app]}}\nto: [{{names: [{a}], cidrs: [{b}], ports: [{c}], protocol: {d}}}, {{names: [{e}], tls: {{originate: true, serverName: {f}, caCertificates: {g}, port: {h}}}}}]"),
            _ => format!("trustDomain: {a}\nclockSkew: {b}\nnetworks: [{{name: {c}, cidrs: [{d}], gateways: [{e}]}}]\negress: [{{cidr: {f}, protocol: {g}}}]\ncertificates: {{app: {{lifetime: {h}}}}}"),
        };
        let text = format!("{MESH}{}", manifest(kind, "x", &spec));
        if let Ok(model) = parse_manifests("random.yaml", &text).and_then(|manifests| compile(&manifests)) {
            PolicyIndex::new(&model);
        }
    }
}

/// Decodes what is an escape and leaves the rest.
fn lenient(mut bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    while let Some((first, rest)) = bytes.split_first() {
        bytes = rest;
        let digits =
            rest.get(..2).filter(|digits| *first == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        match digits.and_then(|digits| std::str::from_utf8(digits).ok()) {
            Some(digits) => {
                decoded.push(u8::from_str_radix(digits, 16).unwrap());
                bytes = &rest[2..];
            }
            None => decoded.push(*first),
        }
    }
    decoded
}

fn decoded(mut bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    while let Some((first, rest)) = bytes.split_first() {
        bytes = rest;
        if *first == b'%' {
            let digits = std::str::from_utf8(&rest[..2]).unwrap();
            decoded.push(u8::from_str_radix(digits, 16).unwrap());
            bytes = &rest[2..];
        } else {
            decoded.push(*first);
        }
    }
    decoded
}
