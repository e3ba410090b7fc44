//! Manifests in few words: each function writes one document.

/// Trust domain of every site.
pub const TRUST_DOMAIN: &str = "site.example";

/// The Mesh: containers are in network `lan`, the host's own address is in `area`.
pub fn mesh(settings: &[&str]) -> String {
    let networks = "networks: [{name: lan, cidrs: [172.18.0.0/16, 'fd18::/64'], gateways: [10.0.0.1, 'fd00::1']}, \
                    {name: area, cidrs: [10.0.0.0/24, 'fd00::/64']}]";
    document("Mesh", "site", &[&[&format!("trustDomain: {TRUST_DOMAIN}"), networks], settings].concat())
}

/// A workload `spiffe://site.example/app/host/NAME`, such as with `ports: [{port: 8201, protocol: http}]`.
pub fn workload(name: &str, settings: &[&str]) -> String {
    document("Workload", name, &[&["class: app", "device: host", "network: lan"], settings].concat())
}

/// A policy for one workload. Without rules it allows nobody.
pub fn policy(name: &str, workload: &str, rules: &[&str]) -> String {
    let target = format!("target: {{workloads: [{workload}]}}");
    document("AccessPolicy", name, &[&target, &format!("rules: [{}]", rules.join(", "))])
}

/// A rule for another workload: `to` is what it may do, such as `{methods: [GET], paths: [/api/**]}`; empty is
/// everything.
pub fn allow(caller: &str, to: &str) -> String {
    let identity = format!("spiffe://{TRUST_DOMAIN}/app/host/{caller}");
    let to = if to.is_empty() { String::new() } else { format!(", to: [{to}]") };
    format!("{{from: [{{identity: '{identity}'}}]{to}}}")
}

/// A policy that denies, for one workload: each rule in full.
pub fn deny(name: &str, workload: &str, rules: &[&str]) -> String {
    let target = format!("target: {{workloads: [{workload}]}}");
    document("AccessPolicy", name, &[&target, "action: deny", &format!("rules: [{}]", rules.join(", "))])
}

/// A header policy for one workload, such as with `peerHeader: x-peer`.
pub fn header_policy(name: &str, workload: &str, settings: &[&str]) -> String {
    let target = format!("target: {{workloads: [{workload}]}}");
    document("HeaderPolicy", name, &[&[target.as_str()], settings].concat())
}

/// A protection policy for one workload, such as with `default: {level: private}`.
pub fn protection_policy(name: &str, workload: &str, settings: &[&str]) -> String {
    let target = format!("target: {{workloads: [{workload}]}}");
    document("ProtectionPolicy", name, &[&[target.as_str()], settings].concat())
}

/// A normalization policy for one workload, such as with `rules: [{to: [{paths: [/**]}], path: [slashes]}]`.
pub fn normalization_policy(name: &str, workload: &str, settings: &[&str]) -> String {
    let target = format!("target: {{workloads: [{workload}]}}");
    document("NormalizationPolicy", name, &[&[target.as_str()], settings].concat())
}

/// A traffic policy for one workload, such as with `timeouts: {request: 1s}`.
pub fn traffic_policy(name: &str, workload: &str, settings: &[&str]) -> String {
    let target = format!("target: {{workloads: [{workload}]}}");
    document("TrafficPolicy", name, &[&[target.as_str()], settings].concat())
}

/// An egress policy for one workload: each entry in full.
pub fn egress_policy(name: &str, workload: &str, entries: &[&str]) -> String {
    let target = format!("target: {{workloads: [{workload}]}}");
    document("EgressPolicy", name, &[&target, &format!("to: [{}]", entries.join(", "))])
}

/// What another trust domain may call here, or be called there, such as with `inbound: [{from: …, workloads: […]}]`.
pub fn federation(name: &str, trust_domain: &str, settings: &[&str]) -> String {
    let trust_domain = format!("trustDomain: {trust_domain}");
    document("Federation", name, &[&[trust_domain.as_str()], settings].concat())
}

/// A role for a workload, until a moment such as `2026-03-31T18:00:00Z`.
pub fn role_grant(name: &str, holder: &str, role: &str, not_after: &str) -> String {
    let identity = format!("identity: spiffe://{TRUST_DOMAIN}/app/host/{holder}");
    document("RoleGrant", name, &[&identity, &format!("role: {role}"), &format!("notAfter: {not_after}")])
}

/// Who may give a role: `appointers` and `appointees` are sources, such as `{role: leader}`.
pub fn role_appointer(name: &str, role: &str, appointers: &str, appointees: &str, lifetime: &str) -> String {
    let settings = [
        format!("role: {role}"),
        format!("appointers: [{appointers}]"),
        format!("appointees: [{appointees}]"),
        format!("maxLifetime: {lifetime}"),
    ];
    document("RoleAppointer", name, &settings.each_ref().map(String::as_str))
}

fn document(kind: &str, name: &str, settings: &[&str]) -> String {
    let spec: String = settings.iter().map(|setting| format!("  {setting}\n")).collect();
    format!(
        "---\napiVersion: signet.mf2c-project.eu/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{spec}"
    )
}
