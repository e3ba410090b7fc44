//! The shape of manifests as JSON Schema, for editors: names, words and bounds come from what reads and compiles them,
//! and a test asks the reader for its fields.

use serde_json::{Map, Value, json};

use crate::compile::{
    access_policy, condition, intermediary, mesh, normalization_policy, traffic_policy, value, workload,
};
use crate::manifest::{API_VERSION, Kind};
use crate::traffic_policy::IDEMPOTENT_METHODS;

/// The JSON Schema (draft 7, which editors know) of one manifest.
pub fn json_schema() -> Value {
    let kinds: Vec<&str> = Kind::ALL.into_iter().map(Kind::as_str).collect();
    let by_kind: Vec<Value> = Kind::ALL
        .into_iter()
        .map(|kind| {
            json!({
                "if": { "properties": { "kind": { "const": kind.as_str() } } },
                "then": { "properties": { "spec": spec(kind) } },
            })
        })
        .collect();
    let labels = json!({ "type": "object", "additionalProperties": { "type": "string" } });
    let metadata = fields(
        &["name"],
        [("name", name("Unique for its kind.")), ("labels", labels.clone()), ("annotations", labels)],
    );
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Signet manifest",
        "type": "object",
        "additionalProperties": false,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": { "const": API_VERSION },
            "kind": { "enum": kinds },
            "metadata": metadata,
            "spec": { "type": "object" },
        },
        "allOf": by_kind,
    })
}

/// The shape of a kind's `spec`.
pub(crate) fn spec(kind: Kind) -> Value {
    match kind {
        Kind::AccessPolicy => access_policy_spec(),
        Kind::EgressPolicy => egress_policy_spec(),
        Kind::Federation => federation_spec(),
        Kind::HeaderPolicy => header_policy_spec(),
        Kind::Mesh => mesh_spec(),
        Kind::NormalizationPolicy => normalization_policy_spec(),
        Kind::ProtectionPolicy => protection_policy_spec(),
        Kind::RoleAppointer => role_appointer_spec(),
        Kind::RoleGrant => role_grant_spec(),
        Kind::TrafficPolicy => traffic_policy_spec(),
        Kind::Workload => workload_spec(),
    }
}

fn mesh_spec() -> Value {
    let network = fields(
        &["name"],
        [
            ("name", name("")),
            ("cidrs", list(text("An address range."))),
            ("gateways", list(text("An address."))),
        ],
    );
    let egress = fields(
        &["cidr", "protocol"],
        [
            ("cidr", text("The addresses.")),
            ("ports", list(port())),
            ("protocol", words(mesh::TRANSPORTS, "")),
            ("comment", text("")),
        ],
    );
    let route = fields(
        &["to", "port"],
        [
            ("to", name("The workload that gets the request.")),
            ("port", port()),
            ("path", text("The beginning of the paths that are for it; `/` when left out.")),
            ("replacePrefix", text("What stands in its place when the workload gets the request.")),
            ("host", text("The host that the workload gets; the caller's when left out.")),
            ("mayChange", list(json!({ "enum": intermediary::CHANGEABLE }))),
        ],
    );
    let intermediary = fields(
        &["name", "addresses", "ports", "routes"],
        [
            ("name", name("")),
            ("addresses", list(text("Where it is reached and where its requests come from."))),
            ("ports", list(port())),
            ("routes", list(route)),
        ],
    );
    let lifetime = || fields(&[], [("lifetime", duration()), ("rejoin", duration())]);
    let bound = || {
        fields(
            &["budget"],
            [
                ("budget", duration()),
                ("then", words(mesh::WHEN_STALE, "`life-safety` keeps rules marked `lifeSafety`.")),
            ],
        )
    };
    let offline =
        fields(&[], [("agent", bound()), ("app", bound()), ("external", bound()), ("platform", bound())]);
    let certificates = fields(
        &[],
        [("agent", lifetime()), ("app", lifetime()), ("external", lifetime()), ("platform", lifetime())],
    );
    fields(
        &["trustDomain"],
        [
            ("trustDomain", text("The trust domain of all identities of the mesh.")),
            ("mtls", mtls()),
            ("protection", protection()),
            ("clockSkew", duration()),
            ("networks", list(network)),
            ("egress", list(egress)),
            ("intermediaries", list(intermediary)),
            ("certificates", certificates),
            ("offline", offline),
        ],
    )
}

fn workload_spec() -> Value {
    let ports = fields(
        &["port"],
        [
            ("port", port()),
            ("name", name("")),
            ("protocol", words(workload::PROTOCOLS, "What is spoken there.")),
            ("speaksFirst", words(workload::SIDES, "Which side sends the first byte.")),
        ],
    );
    let advertise = fields(
        &["network", "address", "port", "targetPort"],
        [
            ("network", name("")),
            ("address", text("The address callers dial.")),
            ("port", port()),
            ("targetPort", port()),
        ],
    );
    let jwt = fields(&[], [("audiences", list(text("Whom the application may show a token to.")))]);
    let workload_api = fields(
        &[],
        [
            ("x509", described(json!({ "type": "boolean" }), "An X.509-SVID of the application's own.")),
            ("jwt", jwt),
        ],
    );
    fields(
        &["class", "device", "network"],
        [
            ("class", words(value::CLASSES, "")),
            ("device", text("The machine.")),
            ("workload", text("The last part of the identity; the manifest's name when left out.")),
            ("network", name("The network its container is in.")),
            ("names", list(text("A host name it is called by."))),
            ("ports", list(ports)),
            ("mtls", mtls()),
            ("protection", protection()),
            ("addresses", list(text("An address that may be claimed for it."))),
            ("advertise", list(advertise.clone())),
            ("virtualAddresses", list(advertise)),
            ("workloadApi", workload_api),
        ],
    )
}

fn operation() -> Value {
    let header = fields(
        &["name"],
        [
            ("name", text("The field.")),
            ("exact", text("Its value.")),
            ("prefix", text("How its value begins.")),
            ("present", json!({ "const": true })),
            ("absent", json!({ "const": true })),
        ],
    );
    fields(
        &[],
        [
            ("methods", list(text("A method, in capitals."))),
            ("paths", list(text("A path; `*` is one segment, a final `/**` the rest."))),
            ("ports", list(port())),
            ("headers", list(header)),
        ],
    )
}

fn federation_spec() -> Value {
    let foreigner = || {
        let identity =
            text("A SPIFFE ID of the other trust domain; `*` is one segment, a final `/**` the rest.");
        list(fields(&["identity"], [("identity", identity)]))
    };
    let own = || list(text("A Workload's name."));
    let inbound = fields(
        &["from", "workloads"],
        [("name", name("")), ("from", foreigner()), ("workloads", own()), ("to", list(operation()))],
    );
    let outbound =
        fields(&["workloads", "to"], [("name", name("")), ("workloads", own()), ("to", foreigner())]);
    fields(
        &["trustDomain"],
        [
            ("trustDomain", text("The other trust domain.")),
            ("inbound", described(list(inbound), "Who of there may call what here.")),
            ("outbound", described(list(outbound), "Who of here may call whom there.")),
        ],
    )
}

fn access_policy_spec() -> Value {
    let days: Vec<&str> = condition::DAYS.to_vec();
    let day = days.join("|");
    let clock =
        |about: &str| json!({ "type": "string", "pattern": "^[0-9]{2}:[0-9]{2}$", "description": about });
    let window = fields(
        &[],
        [
            ("days", list(json!({ "type": "string", "pattern": format!("^({day})(-({day}))?$") }))),
            ("from", clock("When it opens.")),
            ("to", clock("When it closes; not later than `from` is on the day after.")),
            ("utcOffset", json!({ "type": "string", "pattern": "^(Z|[+-][0-9]{2}:[0-9]{2})$" })),
        ],
    );
    let when = fields(
        &[],
        [
            ("sourceAddresses", list(text("An address range, as the destination sees it."))),
            ("time", list(window)),
        ],
    );
    let rule = fields(
        &["from"],
        [
            ("name", name("")),
            ("from", list(source())),
            ("to", list(operation())),
            ("when", when),
            ("lifeSafety", described(json!({ "type": "boolean" }), "Still allows when the policy is stale.")),
        ],
    );
    let rules = json!({ "type": "array", "items": rule });
    fields(
        &["target", "rules"],
        [
            ("target", target()),
            ("ports", list(port())),
            ("mode", words(access_policy::MODES, "`observe` reports and decides nothing.")),
            ("action", words(access_policy::ACTIONS, "`deny` wins over every `allow`.")),
            ("rules", rules),
        ],
    )
}

fn header_policy_spec() -> Value {
    let entry = fields(
        &[],
        [
            ("names", list(text("A field, or with a final `*` the beginning of some."))),
            ("entitled", list(source())),
            ("overwrite", text("What the field says instead.")),
        ],
    );
    fields(
        &["target"],
        [
            ("target", target()),
            ("ports", list(port())),
            ("identityHeaders", list(entry)),
            ("peerHeader", text("The field that carries the caller's verified identity.")),
        ],
    )
}

fn normalization_policy_spec() -> Value {
    let rule = fields(
        &["to"],
        [
            ("to", list(route())),
            ("path", list(words(normalization_policy::PATH, ""))),
            ("host", list(words(normalization_policy::HOST, ""))),
            ("headers", list(words(normalization_policy::HEADERS, ""))),
        ],
    );
    fields(&["target", "rules"], [("target", target()), ("ports", list(port())), ("rules", list(rule))])
}

fn route() -> Value {
    fields(
        &[],
        [
            ("methods", list(text("A method, in capitals."))),
            ("paths", list(text("A path; `*` is one segment, a final `/**` the rest."))),
        ],
    )
}

fn protection_policy_spec() -> Value {
    let mut rule = protection();
    if let Some(properties) = rule.get_mut("properties").and_then(Value::as_object_mut) {
        properties.remove("recordHash");
        properties.insert("name".to_owned(), name(""));
        properties.insert("to".to_owned(), list(route()));
    }
    if let Some(rule) = rule.as_object_mut() {
        rule.insert("required".to_owned(), json!(["to"]));
    }
    fields(
        &["target"],
        [("target", target()), ("ports", list(port())), ("default", protection()), ("rules", list(rule))],
    )
}

fn role_appointer_spec() -> Value {
    fields(
        &["role", "appointers", "appointees", "maxLifetime"],
        [
            ("role", name("")),
            ("appointers", list(source())),
            ("appointees", list(source())),
            ("maxLifetime", duration()),
        ],
    )
}

fn role_grant_spec() -> Value {
    fields(
        &["identity", "role", "notAfter"],
        [
            ("identity", text("A whole SPIFFE ID.")),
            ("role", name("")),
            ("notAfter", json!({ "type": "string", "format": "date-time" })),
        ],
    )
}

fn egress_policy_spec() -> Value {
    let tls = fields(
        &["originate"],
        [
            ("originate", json!({ "const": true })),
            ("serverName", text("The name that the server has to prove; the one called when left out.")),
            ("port", port()),
            ("caCertificates", text("The authorities that may vouch for it, in PEM form.")),
            ("systemRoots", json!({ "type": "boolean" })),
        ],
    );
    let entry = fields(
        &[],
        [
            ("names", list(text("A host name, or `*.` and one for all below it."))),
            ("cidrs", list(text("An address range."))),
            ("ports", list(port())),
            ("protocol", words(mesh::TRANSPORTS, "`tcp` when left out.")),
            ("tls", tls),
            ("comment", text("")),
        ],
    );
    let to = json!({ "type": "array", "items": entry });
    fields(&["target", "to"], [("target", target()), ("to", to)])
}

fn traffic_policy_spec() -> Value {
    let timeouts = || {
        fields(
            &[],
            [
                ("connect", milliseconds("For a new connection, handshake included.")),
                (
                    "request",
                    milliseconds("From the request to the head of its response, all tries together."),
                ),
                ("idle", milliseconds("How long a streamed body may make no progress.")),
            ],
        )
    };
    let budget = fields(
        &[],
        [
            ("percent", number(0, 100, "Of the requests of the last ten seconds.")),
            ("minPerSecond", number(0, 1_000, "Besides.")),
        ],
    );
    let retries = || {
        fields(
            &["attempts"],
            [
                ("attempts", number(0, traffic_policy::MAX_ATTEMPTS, "After the first.")),
                ("on", list(words(traffic_policy::RETRY_ON, ""))),
                ("methods", list(json!({ "enum": IDEMPOTENT_METHODS }))),
                ("budget", budget.clone()),
            ],
        )
    };
    let limit = fields(
        &["requests", "per"],
        [
            ("requests", number(1, 1_000_000, "")),
            ("per", milliseconds("")),
            ("key", words(traffic_policy::RATE_KEYS, "Whose requests are counted together.")),
        ],
    );
    let of_route = fields(
        &[],
        [
            ("methods", list(text("A method, in capitals."))),
            ("paths", list(text("A path; `*` is one segment, a final `/**` the rest."))),
        ],
    );
    let route = fields(
        &["to"],
        [
            ("to", list(of_route)),
            ("timeouts", timeouts()),
            ("retries", retries()),
            ("rateLimits", json!({ "type": "array", "items": limit.clone() })),
        ],
    );
    let success_rate = fields(
        &["minimum", "volume"],
        [("minimum", number(1, 100, "In percent.")), ("volume", number(1, 10_000, "Within ten seconds."))],
    );
    let circuit_breaking = fields(
        &[],
        [
            ("consecutiveFailures", number(1, 1_000, "")),
            ("successRate", success_rate),
            ("ejectionTime", milliseconds("The first rest; each that follows at once is as much longer.")),
            ("maxEjectionPercent", number(0, 100, "How many endpoints may rest; one always may.")),
        ],
    );
    let concurrency = fields(
        &["maxRequests"],
        [("maxRequests", number(1, 100_000, "")), ("maxPending", number(0, 10_000, ""))],
    );
    let mut hash = fields(
        &[],
        [
            ("header", text("The value of this field.")),
            ("path", json!({ "const": true })),
            ("sourceIdentity", json!({ "const": true })),
        ],
    );
    exactly_one(&mut hash);
    let load_balancing =
        fields(&["policy"], [("policy", words(traffic_policy::BALANCERS, "")), ("hash", hash)]);
    fields(
        &["target"],
        [
            ("target", target()),
            ("ports", list(port())),
            ("timeouts", timeouts()),
            ("retries", retries()),
            ("rateLimits", list(limit)),
            ("routes", list(route)),
            ("circuitBreaking", circuit_breaking),
            ("concurrency", concurrency),
            ("loadBalancing", load_balancing),
        ],
    )
}

fn source() -> Value {
    let any: Vec<&str> = access_policy::ANY.iter().map(|(word, _)| *word).collect();
    let mut source = fields(
        &[],
        [
            ("identity", text("A SPIFFE ID; `*` is one segment, a final `/**` the rest.")),
            ("class", words(value::CLASSES, "")),
            ("role", name("Whoever holds this role, see RoleGrant.")),
            ("trustDomain", text("Every identity of it.")),
            ("any", json!({ "enum": any })),
        ],
    );
    exactly_one(&mut source);
    source
}

fn target() -> Value {
    let mut classes: Vec<&str> = value::CLASSES.iter().map(|(word, _)| *word).collect();
    classes.push("*");
    let mut target = fields(
        &[],
        [
            ("workloads", list(text("A Workload's name, or `*` alone for all."))),
            ("classes", list(json!({ "enum": classes }))),
        ],
    );
    exactly_one(&mut target);
    target
}

fn mtls() -> Value {
    fields(&["mode"], [("mode", words(value::MTLS_MODES, ""))])
}

fn protection() -> Value {
    fields(
        &[],
        [
            ("level", words(value::LEVELS, "")),
            ("mode", words(value::SIGNATURE_MODES, "")),
            ("recordHash", words(value::RECORD_HASHES, "")),
            ("verify", words(value::VERIFICATIONS, "")),
            ("sealedHeaders", list(text("A header field that level `private` seals with the body."))),
        ],
    )
}

fn exactly_one(of: &mut Value) {
    if let Some(of) = of.as_object_mut() {
        of.insert("minProperties".to_owned(), 1.into());
        of.insert("maxProperties".to_owned(), 1.into());
    }
}

fn fields<const N: usize>(required: &[&str], properties: [(&str, Value); N]) -> Value {
    let properties: Map<String, Value> =
        properties.into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect();
    let mut object = json!({ "type": "object", "additionalProperties": false, "properties": properties });
    if let (Some(object), false) = (object.as_object_mut(), required.is_empty()) {
        object.insert("required".to_owned(), json!(required));
    }
    object
}

/// A list that is there has entries.
fn list(items: Value) -> Value {
    json!({ "type": "array", "minItems": 1, "items": items })
}

fn text(about: &str) -> Value {
    described(json!({ "type": "string" }), about)
}

fn name(about: &str) -> Value {
    described(json!({ "type": "string", "pattern": "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$" }), about)
}

fn duration() -> Value {
    json!({ "type": "string", "pattern": "^[0-9]+[smhd]$" })
}

fn milliseconds(about: &str) -> Value {
    described(json!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h)$" }), about)
}

fn number(least: u32, most: u32, about: &str) -> Value {
    described(json!({ "type": "integer", "minimum": least, "maximum": most }), about)
}

fn port() -> Value {
    json!({ "type": "integer", "minimum": 1, "maximum": u16::MAX })
}

fn words<T>(table: &[(&str, T)], about: &str) -> Value {
    let words: Vec<&str> = table.iter().map(|(word, _)| *word).collect();
    described(json!({ "enum": words }), about)
}

fn described(mut shape: Value, about: &str) -> Value {
    if let (Some(shape), false) = (shape.as_object_mut(), about.is_empty()) {
        shape.insert("description".to_owned(), about.into());
    }
    shape
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::manifest::egress::EgressPolicySpec;
    use crate::manifest::federation::FederationSpec;
    use crate::manifest::traffic::TrafficPolicySpec;
    use crate::manifest::{
        AccessPolicySpec, HeaderPolicySpec, MeshSpec, NormalizationPolicySpec, ProtectionPolicySpec,
        RoleAppointerSpec, RoleGrantSpec, WorkloadSpec, read_document,
    };

    /// What the reader says of an object with a field that nobody knows, and of an empty one.
    fn of_reader<T: DeserializeOwned>(around: &str) -> (Vec<String>, Option<String>) {
        let read = |inner: &str| read_document::<T>(&around.replace("HERE", inner)).err();
        let unknown = read("{zzz: 1}").unwrap();
        let serde_saphyr::Error::SerdeUnknownField { expected, .. } = unknown.without_snippet() else {
            panic!("{around}: {unknown}")
        };
        let missing = read("{}");
        let missing = missing.as_ref().and_then(|error| match error.without_snippet() {
            serde_saphyr::Error::SerdeMissingField { field, .. } => Some((*field).to_owned()),
            _ => None,
        });
        (expected.iter().map(|field| (*field).to_owned()).collect(), missing)
    }

    fn check<T: DeserializeOwned>(kind: Kind, around: &str, pointer: &str) {
        let (mut known, missing) = of_reader::<T>(around);
        let schema = spec(kind);
        let object = schema.pointer(pointer).unwrap_or_else(|| panic!("{kind}: no {pointer}"));
        let mut described: Vec<String> = object["properties"].as_object().unwrap().keys().cloned().collect();
        known.sort();
        described.sort();
        assert_eq!(described, known, "{kind} {pointer}");
        let required = object.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
        match missing {
            Some(field) => assert!(required.contains(&field.clone().into()), "{kind} {pointer}: {field}"),
            None => assert!(required.is_empty(), "{kind} {pointer}: {required:?}"),
        }
    }

    #[test]
    fn the_schema_has_the_fields_that_the_reader_knows() {
        check::<MeshSpec>(Kind::Mesh, "HERE", "");
        check::<MeshSpec>(Kind::Mesh, "{trustDomain: a, mtls: HERE}", "/properties/mtls");
        check::<MeshSpec>(Kind::Mesh, "{trustDomain: a, protection: HERE}", "/properties/protection");
        check::<MeshSpec>(Kind::Mesh, "{trustDomain: a, networks: [HERE]}", "/properties/networks/items");
        check::<MeshSpec>(Kind::Mesh, "{trustDomain: a, egress: [HERE]}", "/properties/egress/items");
        check::<MeshSpec>(Kind::Mesh, "{trustDomain: a, certificates: HERE}", "/properties/certificates");
        let intermediaries = "/properties/intermediaries/items";
        check::<MeshSpec>(Kind::Mesh, "{trustDomain: a, intermediaries: [HERE]}", intermediaries);
        let route = "{trustDomain: a, intermediaries: [{name: a, addresses: [], ports: [], routes: [HERE]}]}";
        check::<MeshSpec>(Kind::Mesh, route, &format!("{intermediaries}/properties/routes/items"));
        let app = "/properties/certificates/properties/app";
        check::<MeshSpec>(Kind::Mesh, "{trustDomain: a, certificates: {app: HERE}}", app);
        check::<WorkloadSpec>(Kind::Workload, "HERE", "");
        let rest = "class: a, device: a, network: a";
        check::<WorkloadSpec>(
            Kind::Workload,
            &format!("{{{rest}, ports: [HERE]}}"),
            "/properties/ports/items",
        );
        let advertise = format!("{{{rest}, advertise: [HERE]}}");
        check::<WorkloadSpec>(Kind::Workload, &advertise, "/properties/advertise/items");
        check::<AccessPolicySpec>(Kind::AccessPolicy, "HERE", "");
        check::<AccessPolicySpec>(Kind::AccessPolicy, "{rules: [], target: HERE}", "/properties/target");
        let rules = "/properties/rules/items";
        let rule = |rest: &str| format!("{{target: {{}}, rules: [{rest}]}}");
        check::<AccessPolicySpec>(Kind::AccessPolicy, &rule("HERE"), rules);
        let under = |place: &str| format!("{rules}/properties/{place}");
        check::<AccessPolicySpec>(Kind::AccessPolicy, &rule("{from: [HERE]}"), &under("from/items"));
        check::<AccessPolicySpec>(Kind::AccessPolicy, &rule("{from: [], to: [HERE]}"), &under("to/items"));
        let header = rule("{from: [], to: [{headers: [HERE]}]}");
        check::<AccessPolicySpec>(Kind::AccessPolicy, &header, &under("to/items/properties/headers/items"));
        check::<AccessPolicySpec>(Kind::AccessPolicy, &rule("{from: [], when: HERE}"), &under("when"));
        let window = rule("{from: [], when: {time: [HERE]}}");
        check::<AccessPolicySpec>(Kind::AccessPolicy, &window, &under("when/properties/time/items"));
        check::<HeaderPolicySpec>(Kind::HeaderPolicy, "HERE", "");
        let entry = "{target: {}, identityHeaders: [HERE]}";
        check::<HeaderPolicySpec>(Kind::HeaderPolicy, entry, "/properties/identityHeaders/items");
        check::<ProtectionPolicySpec>(Kind::ProtectionPolicy, "HERE", "");
        let default = "{target: {}, default: HERE}";
        check::<ProtectionPolicySpec>(Kind::ProtectionPolicy, default, "/properties/default");
        check::<ProtectionPolicySpec>(Kind::ProtectionPolicy, "{target: {}, rules: [HERE]}", rules);
        let route = "{target: {}, rules: [{to: [HERE]}]}";
        check::<ProtectionPolicySpec>(Kind::ProtectionPolicy, route, &under("to/items"));
        check::<NormalizationPolicySpec>(Kind::NormalizationPolicy, "HERE", "");
        check::<NormalizationPolicySpec>(Kind::NormalizationPolicy, &rule("HERE"), rules);
        check::<NormalizationPolicySpec>(
            Kind::NormalizationPolicy,
            &rule("{to: [HERE]}"),
            &under("to/items"),
        );
        check::<RoleAppointerSpec>(Kind::RoleAppointer, "HERE", "");
        check::<RoleGrantSpec>(Kind::RoleGrant, "HERE", "");
        let egress = Kind::EgressPolicy;
        check::<EgressPolicySpec>(egress, "HERE", "");
        check::<EgressPolicySpec>(egress, "{target: {}, to: [HERE]}", "/properties/to/items");
        let tls = "/properties/to/items/properties/tls";
        check::<EgressPolicySpec>(egress, "{target: {}, to: [{tls: HERE}]}", tls);
        let federation = Kind::Federation;
        check::<FederationSpec>(federation, "HERE", "");
        let (inbound, outbound) = ("/properties/inbound/items", "/properties/outbound/items");
        check::<FederationSpec>(federation, "{trustDomain: a, inbound: [HERE]}", inbound);
        check::<FederationSpec>(federation, "{trustDomain: a, outbound: [HERE]}", outbound);
        let from = "{trustDomain: a, inbound: [{workloads: [], from: [HERE]}]}";
        check::<FederationSpec>(federation, from, &format!("{inbound}/properties/from/items"));
        let to = "{trustDomain: a, inbound: [{workloads: [], from: [], to: [HERE]}]}";
        check::<FederationSpec>(federation, to, &format!("{inbound}/properties/to/items"));
        let traffic = Kind::TrafficPolicy;
        check::<TrafficPolicySpec>(traffic, "HERE", "");
        for (field, under) in [
            ("timeouts", "HERE"),
            ("retries", "HERE"),
            ("circuitBreaking", "HERE"),
            ("concurrency", "HERE"),
            ("loadBalancing", "HERE"),
        ] {
            let around = format!("{{target: {{}}, {field}: {under}}}");
            check::<TrafficPolicySpec>(traffic, &around, &format!("/properties/{field}"));
        }
        for (around, pointer) in [
            ("retries: {attempts: 1, budget: HERE}", "retries/properties/budget"),
            ("rateLimits: [HERE]", "rateLimits/items"),
            ("routes: [HERE]", "routes/items"),
            ("routes: [{to: [HERE]}]", "routes/items/properties/to/items"),
            ("circuitBreaking: {successRate: HERE}", "circuitBreaking/properties/successRate"),
            ("loadBalancing: {policy: p2c, hash: HERE}", "loadBalancing/properties/hash"),
        ] {
            let around = format!("{{target: {{}}, {around}}}");
            check::<TrafficPolicySpec>(traffic, &around, &format!("/properties/{pointer}"));
        }
    }
}
