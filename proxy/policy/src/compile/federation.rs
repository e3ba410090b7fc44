//! `Federation` manifests: who of another trust domain may call what, and who may call whom there.

use std::collections::HashSet;

use serde_saphyr::Spanned;
use signet_identity::TrustDomain;

use crate::compile::{Scope, access_policy, value};
use crate::diagnostic::{Place, quoted, suggestion};
use crate::federation::{FederationModel, InboundRule, OutboundRule};
use crate::manifest::federation::{FederationSpec, ForeignSpec, InboundSpec, OutboundSpec};
use crate::manifest::{List, OperationSpec};
use crate::model::WorkloadModel;
use crate::pattern::IdentityPattern;

/// What was said of other trust domains before is in `seen`: two manifests about one would be read as neither of them.
pub(super) fn lower(
    scope: &mut Scope<'_>,
    spec: &FederationSpec,
    workloads: &HashSet<&str>,
    seen: &mut HashSet<TrustDomain>,
) -> Option<FederationModel> {
    let manifest_name = scope.manifest.spanned_name().clone();
    let name = value::name(scope, &manifest_name, "Federation");
    let trust_domain = other_domain(scope, &spec.trust_domain, seen)?;
    if spec.inbound.is_none() && spec.outbound.is_none() {
        let message = "a Federation without `inbound` and `outbound` lets nothing pass".to_owned();
        scope.refuse(Place::of(&spec.trust_domain), message, "say who may call whom, or remove the manifest");
    }
    let mut names = HashSet::new();
    let mut inbound = Vec::new();
    for (number, entry) in rules(scope, spec.inbound.as_ref(), "inbound").iter().enumerate() {
        let InboundSpec { name, from, workloads: callees, to } = &entry.value;
        let name = rule_name(scope, name.as_ref(), number + 1, &mut names);
        let from = foreigners(scope, from, "from", &trust_domain);
        let callees = own_workloads(scope, callees, workloads);
        let to = value::entries(scope, to.as_ref(), "to", "to allow everything on all ports");
        let to = to.iter().filter_map(|entry| access_policy::operation(scope, entry, &[])).collect();
        inbound.extend(name.map(|name| InboundRule { name, from, workloads: callees, to }));
    }
    names.clear();
    let mut outbound = Vec::new();
    for (number, entry) in rules(scope, spec.outbound.as_ref(), "outbound").iter().enumerate() {
        let OutboundSpec { name, workloads: callers, to } = &entry.value;
        let name = rule_name(scope, name.as_ref(), number + 1, &mut names);
        let callers = own_workloads(scope, callers, workloads);
        let to = foreigners(scope, to, "to", &trust_domain);
        outbound.extend(name.map(|name| OutboundRule { name, workloads: callers, to }));
    }
    Some(FederationModel { name: name?, trust_domain, inbound, outbound })
}

/// Refuses ports that no workload has, and requests where none are spoken.
pub(super) fn refuse_contradictions(scope: &mut Scope<'_>, spec: &FederationSpec, all: &[WorkloadModel]) {
    let entries = spec.inbound.as_ref().map(|list| &*list.0.value).unwrap_or_default();
    for InboundSpec { workloads, to, .. } in entries.iter().map(|entry| &entry.value) {
        let named =
            |workload: &&WorkloadModel| workloads.0.value.iter().any(|name| name.value == workload.name);
        let targeted: Vec<&WorkloadModel> = all.iter().filter(named).collect();
        let operations: &[Spanned<OperationSpec>] =
            to.as_ref().map(|list| &*list.0.value).unwrap_or_default();
        for operation in operations {
            access_policy::refuse_l7_without_http(scope, operation, |_| true, &targeted);
        }
        let ports = operations.iter().filter_map(|operation| operation.value.ports.as_ref());
        access_policy::refuse_unknown_ports(scope, ports, &targeted);
    }
}

/// Refuses a Federation of the mesh with itself.
pub(super) fn refuse_own(scope: &mut Scope<'_>, spec: &FederationSpec, own: &TrustDomain) {
    if spec.trust_domain.value == own.as_str() {
        let message = format!("{} is the mesh's own trust domain", quoted(&spec.trust_domain.value));
        scope.refuse(
            Place::of(&spec.trust_domain),
            message,
            "name the other one, or write an AccessPolicy for what is within the mesh",
        );
    }
}

fn other_domain(
    scope: &mut Scope<'_>,
    text: &Spanned<String>,
    seen: &mut HashSet<TrustDomain>,
) -> Option<TrustDomain> {
    match TrustDomain::parse(&text.value) {
        Ok(trust_domain) => {
            if !seen.insert(trust_domain.clone()) {
                let message = format!("another Federation is about {}", quoted(&text.value));
                scope.refuse(Place::of(text), message, "write its rules into that one");
            }
            Some(trust_domain)
        }
        Err(error) => {
            let message = format!("{} is no trust domain: {error}", quoted(&text.value));
            scope.refuse(
                Place::of(text),
                message,
                "write it without scheme and wildcard, such as `mf2c.example`",
            );
            None
        }
    }
}

fn rules<'a, T>(scope: &mut Scope<'_>, list: Option<&'a List<T>>, what: &str) -> &'a [Spanned<T>] {
    value::entries(scope, list, what, "to let nothing pass that way")
}

fn rule_name(
    scope: &mut Scope<'_>,
    text: Option<&Spanned<String>>,
    number: usize,
    names: &mut HashSet<String>,
) -> Option<String> {
    let name = match text {
        Some(text) => value::name(scope, text, "rule")?,
        None => format!("rule-{number}"),
    };
    if let (false, Some(text)) = (names.insert(name.clone()), text) {
        let message = format!("rule {} is there twice", quoted(&name));
        scope.refuse(Place::of(text), message, "rename one of the two");
    }
    Some(name)
}

fn foreigners(
    scope: &mut Scope<'_>,
    list: &List<ForeignSpec>,
    what: &str,
    trust_domain: &TrustDomain,
) -> Vec<IdentityPattern> {
    if list.0.value.is_empty() {
        let fix = format!("name who is meant, such as `- identity: spiffe://{trust_domain}/app/d1/web`");
        scope.refuse(Place::of(&list.0), format!("`{what}` is empty"), fix);
    }
    let mut patterns = Vec::new();
    for entry in value::within_bounds(scope, &list.0, what) {
        let text = &entry.value.identity;
        let parsed = IdentityPattern::parse(&text.value);
        let Some(pattern) = access_policy::pattern(scope, text, "identity pattern", parsed) else { continue };
        if pattern.trust_domain() == trust_domain {
            patterns.push(pattern);
        } else {
            let message = format!("{} is not of the trust domain {trust_domain}", quoted(&text.value));
            let fix = format!("write an identity that begins with `spiffe://{trust_domain}/`");
            scope.refuse(Place::of(text), message, fix);
        }
    }
    patterns
}

fn own_workloads(scope: &mut Scope<'_>, list: &List<String>, known: &HashSet<&str>) -> Vec<String> {
    if list.0.value.is_empty() {
        let message = "`workloads` is empty".to_owned();
        scope.refuse(Place::of(&list.0), message, "name workloads of this mesh");
    }
    let mut names = Vec::new();
    for entry in value::within_bounds(scope, &list.0, "workloads") {
        if known.contains(entry.value.as_str()) {
            names.push(entry.value.clone());
            continue;
        }
        let mut known: Vec<&str> = known.iter().copied().collect();
        known.sort_unstable();
        let message = format!("no Workload is called {}", quoted(&entry.value));
        let fix = suggestion(&entry.value, known.into_iter());
        scope.refuse(Place::of(entry), message, fix);
    }
    names
}
