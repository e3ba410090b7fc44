//! Manifests to the policy model: values are read, names resolved, and contradictions between manifests refused.

pub(crate) mod access_policy;
pub(crate) mod condition;
mod conflict;
mod egress_policy;
mod federation;
mod header_policy;
pub(crate) mod intermediary;
pub(crate) mod mesh;
pub(crate) mod normalization_policy;
mod overlap;
mod protection_policy;
mod role_appointer;
mod role_grant;
pub(crate) mod traffic_policy;
pub(crate) mod value;
pub(crate) mod workload;
mod workload_api;

use std::collections::{HashMap, HashSet};

pub use self::mesh::MAX_REJOIN_S;
pub use self::value::{rfc3339, unix_seconds};
use crate::diagnostic::{Diagnostic, Findings, Place, quoted};
use crate::manifest::{Kind, Manifest, Spec, TargetSpec};
use crate::model::{AccessPolicyModel, PolicyModel, SourceMatch, Target, WorkloadModel};

/// Most entries of any list in a manifest: more is better said with a wildcard.
pub const MAX_LIST_ENTRIES: usize = 1_000;

/// Most rules of one policy.
pub const MAX_RULES_PER_POLICY: usize = 1_000;

/// Most header policies of a mesh: one for all workloads of a kind is usual.
pub const MAX_HEADER_POLICIES: usize = 1_000;

/// Most egress policies of a mesh: as with header policies.
pub const MAX_EGRESS_POLICIES: usize = 1_000;

/// Most Federations of a mesh: one for each trust domain that it meets.
pub const MAX_FEDERATIONS: usize = 100;

/// Most traffic policies of a mesh: as with header policies.
pub const MAX_TRAFFIC_POLICIES: usize = 1_000;

/// Most access policies of a mesh.
pub const MAX_POLICIES: usize = 10_000;

/// Most workloads of a mesh.
pub const MAX_WORKLOADS: usize = 10_000;

/// Most normalization policies of a mesh: exceptions are rare.
pub const MAX_NORMALIZATION_POLICIES: usize = 1_000;

/// Most protection policies of a mesh: one for the mesh and one for each kind of workload is usual.
pub const MAX_PROTECTION_POLICIES: usize = 1_000;

/// Most rules of all protection policies for one workload, and of all normalization policies, each policy counted as one
/// more: every request is compared with them.
pub(crate) const MAX_ROUTE_RULES: usize = 1_000;

/// Most role appointers of a mesh: one or two for each role.
pub const MAX_ROLE_APPOINTERS: usize = 1_000;

/// Most role grants of a mesh: each workload holds one or two.
pub const MAX_ROLE_GRANTS: usize = 10_000;

/// Most manifests of a mesh, of all kinds.
pub const MAX_MANIFESTS: usize = 1
    + MAX_EGRESS_POLICIES
    + MAX_FEDERATIONS
    + MAX_HEADER_POLICIES
    + MAX_NORMALIZATION_POLICIES
    + MAX_POLICIES
    + MAX_PROTECTION_POLICIES
    + MAX_ROLE_APPOINTERS
    + MAX_ROLE_GRANTS
    + MAX_TRAFFIC_POLICIES
    + MAX_WORKLOADS;

/// Most places in the index of every sidecar: each source of each rule, at each port of each workload it is for.
/// A place takes about 40 bytes, so this keeps the index under 40 MiB; 1,000 rules for all of 100 services with three
/// ports each take 400,000.
pub const MAX_SELECTED_RULES: usize = 1_000_000;

/// Compiles all manifests of a mesh together.
///
/// # Errors
/// All faults found. Without exactly one `Mesh` manifest nothing else is looked at.
pub fn compile(manifests: &[Manifest]) -> Result<PolicyModel, Vec<Diagnostic>> {
    let mut findings = Findings::default();
    refuse_duplicates(manifests, &mut findings);
    refuse_excess(manifests, &mut findings);
    let Some((mesh, spec)) = the_mesh(manifests, &mut findings) else {
        return Err(findings.into_list());
    };
    let Some(mut model) = mesh::lower(&mut Scope::new(mesh, &mut findings), spec) else {
        return Err(findings.into_list());
    };
    let mut places = Vec::new();
    for manifest in manifests {
        if let Spec::Workload(spec) = manifest.spec() {
            let scope = &mut Scope::new(manifest, &mut findings);
            if let Some(workload) = workload::lower(scope, spec, &model) {
                model.workloads.push(workload);
                places.push(manifest);
            }
        }
    }
    workload::refuse_conflicts(&model.workloads, &places, &mut findings);
    intermediary::refuse_unknown(&mut Scope::new(mesh, &mut findings), spec, &model);
    let declared = declared_names(manifests);
    let (mut policies, mut header_policies, mut granted) = (Vec::new(), Vec::new(), HashSet::new());
    let (mut protection_policies, mut normalization_policies) = (Vec::new(), Vec::new());
    let (mut traffic_policies, mut egress_policies) = (Vec::new(), Vec::new());
    let mut federated = HashSet::new();
    for manifest in manifests {
        let scope = &mut Scope::new(manifest, &mut findings);
        match manifest.spec() {
            Spec::AccessPolicy(spec) => {
                if let Some(policy) = access_policy::lower(scope, spec, &declared) {
                    access_policy::refuse_contradictions(scope, spec, &policy, &model.workloads);
                    model.policies.push(policy);
                    policies.push(manifest);
                }
            }
            Spec::EgressPolicy(spec) => {
                if let Some(policy) = egress_policy::lower(scope, spec, &declared) {
                    model.egress_policies.push(policy);
                    egress_policies.push(manifest);
                }
            }
            Spec::Federation(spec) => {
                federation::refuse_own(scope, spec, &model.trust_domain);
                if let Some(federation) = federation::lower(scope, spec, &declared, &mut federated) {
                    federation::refuse_contradictions(scope, spec, &model.workloads);
                    model.federations.push(federation);
                }
            }
            Spec::HeaderPolicy(spec) => {
                if let Some(policy) = header_policy::lower(scope, spec, &declared) {
                    model.header_policies.push(policy);
                    header_policies.push(manifest);
                }
            }
            Spec::NormalizationPolicy(spec) => {
                if let Some(policy) = normalization_policy::lower(scope, spec, &declared) {
                    normalization_policy::refuse_contradictions(scope, spec, &policy, &model.workloads);
                    model.normalization_policies.push(policy);
                    normalization_policies.push(manifest);
                }
            }
            Spec::ProtectionPolicy(spec) => {
                if let Some(policy) = protection_policy::lower(scope, spec, &declared) {
                    protection_policy::refuse_contradictions(scope, spec, &policy, &model.workloads);
                    model.protection_policies.push(policy);
                    protection_policies.push(manifest);
                }
            }
            Spec::RoleAppointer(spec) => {
                model.role_appointers.extend(role_appointer::lower(scope, spec));
            }
            Spec::RoleGrant(spec) => {
                if let Some(grant) = role_grant::lower(scope, spec, &mut granted) {
                    model.role_grants.push(grant);
                }
            }
            Spec::TrafficPolicy(spec) => {
                if let Some(policy) = traffic_policy::lower(scope, spec, &declared) {
                    model.traffic_policies.push(policy);
                    traffic_policies.push(manifest);
                }
            }
            Spec::Mesh(_) | Spec::Workload(_) => {}
        }
    }
    egress_policy::refuse_excess(&model, &egress_policies, &mut findings);
    conflict::refuse_shadowed_rules(&model, &policies, &mut findings);
    let policies = model.protection_policies.iter().zip(protection_policies);
    let policies = policies.map(|(policy, manifest)| (&policy.target, policy.rules.len(), manifest));
    protection_policy::refuse_excess(&model, policies, &mut findings);
    let policies = model.normalization_policies.iter().zip(normalization_policies);
    let policies = policies.map(|(policy, manifest)| (&policy.target, policy.rules.len(), manifest));
    protection_policy::refuse_excess(&model, policies, &mut findings);
    let reach = model.header_policies.iter().map(|policy| (&policy.target, &*policy.ports));
    overlap::refuse_overlap(&model, reach, &header_policies, &mut findings);
    let reach = model.traffic_policies.iter().map(|policy| (&policy.target, &*policy.ports));
    overlap::refuse_overlap(&model, reach, &traffic_policies, &mut findings);
    if let (true, Some(first)) = (selected_rules(&model) > MAX_SELECTED_RULES, manifests.first()) {
        Scope::new(first, &mut findings).refuse(
            Place::START,
            "all rules, times the workloads, ports and sources they are for, are too many for a sidecar"
                .to_owned(),
            "target fewer workloads, or name classes instead of single identities",
        );
    }
    findings.into_result(model)
}

/// Checks what can be checked of manifests without the Mesh and the Workloads they belong to: the values of policies
/// and grants, each by itself. Names of workloads are taken as declared.
pub fn check_values(manifests: &[Manifest]) -> Vec<Diagnostic> {
    let mut findings = Findings::default();
    refuse_duplicates(manifests, &mut findings);
    let (mut granted, mut federated) = (HashSet::new(), HashSet::new());
    for manifest in manifests {
        let scope = &mut Scope::new(manifest, &mut findings);
        match manifest.spec() {
            Spec::AccessPolicy(spec) => {
                access_policy::lower(scope, spec, &named_by(&spec.target.value));
            }
            Spec::EgressPolicy(spec) => {
                egress_policy::lower(scope, spec, &named_by(&spec.target.value));
            }
            Spec::Federation(spec) => {
                let inbound =
                    spec.inbound.iter().flat_map(|list| &list.0.value).map(|rule| &rule.value.workloads);
                let outbound =
                    spec.outbound.iter().flat_map(|list| &list.0.value).map(|rule| &rule.value.workloads);
                let named = inbound.chain(outbound).flat_map(|list| &list.0.value);
                let named: HashSet<&str> = named.map(|name| name.value.as_str()).collect();
                federation::lower(scope, spec, &named, &mut federated);
            }
            Spec::HeaderPolicy(spec) => {
                header_policy::lower(scope, spec, &named_by(&spec.target.value));
            }
            Spec::NormalizationPolicy(spec) => {
                normalization_policy::lower(scope, spec, &named_by(&spec.target.value));
            }
            Spec::ProtectionPolicy(spec) => {
                protection_policy::lower(scope, spec, &named_by(&spec.target.value));
            }
            Spec::RoleAppointer(spec) => {
                role_appointer::lower(scope, spec);
            }
            Spec::RoleGrant(spec) => {
                role_grant::lower(scope, spec, &mut granted);
            }
            Spec::TrafficPolicy(spec) => {
                traffic_policy::lower(scope, spec, &named_by(&spec.target.value));
            }
            Spec::Mesh(_) | Spec::Workload(_) => {}
        }
    }
    findings.into_list()
}

fn named_by(target: &TargetSpec) -> HashSet<&str> {
    target.workloads.iter().flat_map(|list| &list.0.value).map(|name| name.value.as_str()).collect()
}

/// One manifest being compiled, and where its faults go.
struct Scope<'a> {
    manifest: &'a Manifest,
    findings: &'a mut Findings,
}

impl<'a> Scope<'a> {
    fn new(manifest: &'a Manifest, findings: &'a mut Findings) -> Self {
        Self { manifest, findings }
    }

    fn refuse(&mut self, place: Place, message: String, fix: impl Into<String>) {
        self.findings.push(self.manifest.file(), self.manifest.place(place), message, fix);
    }
}

fn refuse_duplicates(manifests: &[Manifest], findings: &mut Findings) {
    let mut seen: HashMap<(Kind, &str), &Manifest> = HashMap::new();
    for manifest in manifests {
        // Two meshes are refused whatever they are called.
        if manifest.kind() == Kind::Mesh {
            continue;
        }
        let first = *seen.entry((manifest.kind(), manifest.name())).or_insert(manifest);
        if !std::ptr::eq(first, manifest) {
            let message = format!(
                "{} {} is already declared at {}:{}",
                manifest.kind(),
                quoted(manifest.name()),
                first.file(),
                first.line()
            );
            let place = Place::of(manifest.spanned_name());
            Scope::new(manifest, findings).refuse(place, message, "rename or remove one of the two");
        }
    }
}

fn refuse_excess(manifests: &[Manifest], findings: &mut Findings) {
    let limits = [
        (Kind::AccessPolicy, MAX_POLICIES),
        (Kind::EgressPolicy, MAX_EGRESS_POLICIES),
        (Kind::Federation, MAX_FEDERATIONS),
        (Kind::HeaderPolicy, MAX_HEADER_POLICIES),
        (Kind::NormalizationPolicy, MAX_NORMALIZATION_POLICIES),
        (Kind::ProtectionPolicy, MAX_PROTECTION_POLICIES),
        (Kind::RoleAppointer, MAX_ROLE_APPOINTERS),
        (Kind::RoleGrant, MAX_ROLE_GRANTS),
        (Kind::TrafficPolicy, MAX_TRAFFIC_POLICIES),
        (Kind::Workload, MAX_WORKLOADS),
    ];
    for (kind, limit) in limits {
        if let Some(first) = manifests.iter().filter(|manifest| manifest.kind() == kind).nth(limit) {
            let place = Place::of(first.spanned_name());
            let message = format!("this is one {kind} more than the {limit} a mesh may have");
            Scope::new(first, findings).refuse(place, message, "merge or remove some");
        }
    }
}

fn the_mesh<'a>(
    manifests: &'a [Manifest],
    findings: &mut Findings,
) -> Option<(&'a Manifest, &'a crate::manifest::MeshSpec)> {
    let mut meshes = manifests.iter().filter_map(|manifest| match manifest.spec() {
        Spec::Mesh(spec) => Some((manifest, &**spec)),
        _ => None,
    });
    let Some(first) = meshes.next() else {
        let file = manifests.first().map_or("", Manifest::file);
        findings.push(
            file,
            Place::START,
            "there is no Mesh manifest".to_owned(),
            "add one document of kind Mesh; it names the trust domain",
        );
        return None;
    };
    for (second, _) in meshes {
        let message = format!("there is already a Mesh at {}:{}", first.0.file(), first.0.line());
        Scope::new(second, findings).refuse(Place::of(second.spanned_name()), message, "keep one of the two");
    }
    Some(first)
}

/// The names of all workload manifests, also of those with faults: a policy that targets one of these is not wrong.
fn declared_names(manifests: &[Manifest]) -> HashSet<&str> {
    manifests.iter().filter(|manifest| manifest.kind() == Kind::Workload).map(Manifest::name).collect()
}

fn selected_rules(model: &PolicyModel) -> usize {
    let places = |workload: &WorkloadModel| workload.ports.len() + 1;
    let all: usize = model.workloads.iter().map(places).sum();
    let by_name: HashMap<&str, usize> =
        model.workloads.iter().map(|workload| (workload.name.as_str(), places(workload))).collect();
    let in_target = |target: &Target| match target {
        Target::Everything => all,
        Target::Workloads(names) => names.iter().filter_map(|name| by_name.get(name.as_str())).sum(),
        Target::Classes(_) => {
            model.workloads.iter().filter(|workload| target.selects(workload)).map(places).sum()
        }
    };
    let entries = |policy: &AccessPolicyModel| -> usize {
        policy.rules.iter().map(|rule| rule.from.iter().filter(|from| is_exact(from)).count().max(1)).sum()
    };
    let access =
        model.policies.iter().map(|policy| in_target(&policy.target).saturating_mul(entries(policy)));
    // These are not kept by port: each workload refers to those that select it.
    let protection = model.protection_policies.iter().map(|policy| in_target(&policy.target));
    let normalization = model.normalization_policies.iter().map(|policy| in_target(&policy.target));
    access.chain(protection).chain(normalization).fold(0, usize::saturating_add)
}

fn is_exact(source: &SourceMatch) -> bool {
    matches!(source, SourceMatch::Identity(pattern) if pattern.exact().is_some())
}
