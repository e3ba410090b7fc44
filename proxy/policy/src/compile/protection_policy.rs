//! `ProtectionPolicy` manifests: how messages of single routes are protected.

use std::collections::{HashMap, HashSet};

use serde_saphyr::Spanned;

use crate::compile::{MAX_PROTECTION_RULES, Scope, access_policy, value};
use crate::diagnostic::{Findings, Place, quoted};
use crate::manifest::{Manifest, ProtectionPolicySpec, ProtectionRuleSpec, ProtectionSpec, RouteSpec};
use crate::model::{PolicyModel, Protocol, SpeaksFirst, Target, WorkloadModel};
use crate::pattern::PathPattern;
use crate::protection::{ProtectionChange, ProtectionPolicyModel, ProtectionRuleModel};
use crate::route::Route;

pub(super) fn lower(
    scope: &mut Scope<'_>,
    spec: &ProtectionPolicySpec,
    workloads: &HashSet<&str>,
) -> Option<ProtectionPolicyModel> {
    let manifest_name = scope.manifest.spanned_name().clone();
    let name = value::name(scope, &manifest_name, "ProtectionPolicy");
    let target = access_policy::target(scope, &spec.target, workloads);
    let ports = access_policy::ports(scope, spec.ports.as_ref());
    if spec.default.is_none() && spec.rules.is_none() {
        let message = "a policy without `default` and `rules` changes nothing".to_owned();
        scope.refuse(Place::of(&manifest_name), message, "add one of them, or remove the policy");
    }
    let default = match &spec.default {
        Some(given) => Some(change(scope, &given.value, Place::of(given))?),
        None => None,
    };
    let entries = value::entries(scope, spec.rules.as_ref(), "rules", "when only `default` is meant");
    let (mut names, mut routes) = (HashSet::new(), HashSet::new());
    let mut rules = Vec::with_capacity(entries.len());
    for (number, entry) in entries.iter().enumerate() {
        let Some(rule) = rule(scope, number + 1, entry, &mut routes) else { continue };
        if !names.insert(rule.name.clone()) {
            let place = entry.value.name.as_ref().map_or_else(|| Place::of(entry), Place::of);
            let message = format!("rule {} is there twice", quoted(&rule.name));
            scope.refuse(place, message, "rename one of the two");
        }
        rules.push(rule);
    }
    Some(ProtectionPolicyModel { name: name?, target: target?, ports, default, rules })
}

/// A method and a path of a rule; `None` is any.
type Asked = (Option<String>, Option<PathPattern>);

fn rule(
    scope: &mut Scope<'_>,
    number: usize,
    spec: &Spanned<ProtectionRuleSpec>,
    seen: &mut HashSet<Asked>,
) -> Option<ProtectionRuleModel> {
    let ProtectionRuleSpec { name, to, level, mode, sealed_headers, verify } = &spec.value;
    let name = match name {
        Some(text) => value::name(scope, text, "rule"),
        None => Some(format!("rule-{number}")),
    };
    if to.0.value.is_empty() {
        let fix = "name its routes, or use the policy's `default` for all of them";
        scope.refuse(Place::of(&to.0), "`to` is empty".to_owned(), fix);
    }
    let mut routes = Vec::new();
    for entry in value::within_bounds(scope, &to.0, "to") {
        let Some(route) = route(scope, entry) else { continue };
        refuse_repeated(scope, entry, &route, seen);
        routes.push(route);
    }
    let given = ProtectionSpec {
        level: level.clone(),
        mode: mode.clone(),
        record_hash: None,
        sealed_headers: sealed_headers.clone(),
        verify: verify.clone(),
    };
    let change = change(scope, &given, Place::of(spec))?;
    Some(ProtectionRuleModel { name: name?, to: routes, change })
}

pub(super) fn route(scope: &mut Scope<'_>, spec: &Spanned<RouteSpec>) -> Option<Route> {
    let RouteSpec { methods, paths } = &spec.value;
    if methods.is_none() && paths.is_none() {
        let message = "a route without `methods` and `paths` is every request".to_owned();
        scope.refuse(Place::of(spec), message, "use the policy's `default` if that is meant");
        return None;
    }
    Some(Route {
        methods: access_policy::methods(scope, methods.as_ref()),
        paths: access_policy::paths(scope, paths.as_ref()),
    })
}

/// Two rules of one policy for the very same requests: one of the two is a mistake.
fn refuse_repeated(
    scope: &mut Scope<'_>,
    entry: &Spanned<RouteSpec>,
    route: &Route,
    seen: &mut HashSet<Asked>,
) {
    fn each<T: Clone>(list: &[T]) -> Vec<Option<T>> {
        if list.is_empty() { vec![None] } else { list.iter().cloned().map(Some).collect() }
    }
    for method in each(&route.methods) {
        for path in each(&route.paths) {
            let shown = path.as_ref().map_or("every path", |path| path.as_str()).to_owned();
            if !seen.insert((method.clone(), path)) {
                let method = method.as_deref().unwrap_or("every method");
                let message = format!("{method} at {shown} stands in two rules of this policy");
                scope.refuse(Place::of(entry), message, "keep it in one of them");
                return;
            }
        }
    }
}

fn change(scope: &mut Scope<'_>, spec: &ProtectionSpec, place: Place) -> Option<ProtectionChange> {
    let ProtectionSpec { level, mode, record_hash, sealed_headers, verify } = spec;
    let given = [level, mode, record_hash, verify].iter().any(|field| field.is_some());
    if !given && sealed_headers.is_none() {
        let message = "this changes nothing".to_owned();
        scope.refuse(place, message, "give one of `level`, `mode`, `verify`, `sealedHeaders`");
        return None;
    }
    Some(ProtectionChange {
        level: level.as_ref().and_then(|text| value::level(scope, text)),
        mode: mode.as_ref().and_then(|text| value::signature_mode(scope, text)),
        record_hash: record_hash.as_ref().and_then(|text| value::record_hash(scope, text)),
        verify: verify.as_ref().and_then(|text| value::verification(scope, text)),
        sealed_headers: value::sealed_headers(scope, spec),
    })
}

/// Refuses what a policy cannot mean for what it targets: ports that nobody has, and routes on a port that was declared
/// not to speak HTTP.
pub(super) fn refuse_contradictions(
    scope: &mut Scope<'_>,
    spec: &ProtectionPolicySpec,
    policy: &ProtectionPolicyModel,
    workloads: &[WorkloadModel],
) {
    let targeted: Vec<&WorkloadModel> =
        workloads.iter().filter(|workload| policy.target.selects(workload)).collect();
    access_policy::refuse_unknown_ports(scope, spec.ports.iter(), &targeted);
    let Some(rules) = &spec.rules else { return };
    let clash = targeted.iter().find_map(|workload| {
        let port = workload.ports.iter().find(|declared| {
            policy.selects_port(declared.port)
                && (matches!(declared.protocol, Protocol::Opaque | Protocol::Tls)
                    || declared.speaks_first == Some(SpeaksFirst::Server))
        })?;
        Some((workload, port))
    });
    if let Some((workload, port)) = clash {
        let message = format!(
            "there are rules for routes, and port {} of {} does not speak plain HTTP",
            port.port, workload.name
        );
        scope.refuse(Place::of(&rules.0), message, "give the policy `ports` that speak HTTP");
    }
}

/// Refuses more rules for one workload than a request should be compared with.
pub(super) fn refuse_excess(model: &PolicyModel, manifests: &[&Manifest], findings: &mut Findings) {
    let mut rules: HashMap<&str, usize> = HashMap::new();
    for (policy, &manifest) in model.protection_policies.iter().zip(manifests) {
        let names: Vec<&str> = match &policy.target {
            Target::Workloads(names) => {
                names.iter().map(String::as_str).collect::<HashSet<_>>().into_iter().collect()
            }
            target => {
                let selected = model.workloads.iter().filter(|workload| target.selects(workload));
                selected.map(|workload| workload.name.as_str()).collect()
            }
        };
        for name in names {
            let sum = rules.entry(name).or_default();
            *sum = sum.saturating_add(policy.rules.len() + 1);
            if *sum > MAX_PROTECTION_RULES {
                let place = Place::of(manifest.spanned_name());
                let message = format!(
                    "the protection policies of {name} have more than {MAX_PROTECTION_RULES} rules together"
                );
                Scope::new(manifest, findings).refuse(place, message, "use wildcards in paths");
                return;
            }
        }
    }
}
