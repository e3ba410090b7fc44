//! `AccessPolicy` manifests: target, rules, and whether they make sense for what they target.

use std::collections::HashSet;

use serde_saphyr::Spanned;
use signet_identity::TrustDomain;

use crate::compile::{MAX_RULES_PER_POLICY, Scope, condition, value};
use crate::diagnostic::{Place, quoted, suggestion};
use crate::manifest::{AccessPolicySpec, List, OperationSpec, RuleSpec, SourceSpec, TargetSpec};
use crate::model::{
    AccessPolicyModel, Operation, PolicyAction, PolicyMode, Protocol, RuleModel, SourceMatch, SpeaksFirst,
    Target, WorkloadModel,
};
use crate::pattern::{IdentityPattern, PathPattern, PatternError};

/// Stands for all workloads, or all classes, when it is the only entry.
const EVERYTHING: &str = "*";

/// Longest HTTP method; the longest registered one has 17 letters.
const MAX_METHOD_BYTES: usize = 32;

pub(crate) const MODES: &[(&str, PolicyMode)] =
    &[("enforce", PolicyMode::Enforce), ("observe", PolicyMode::Observe)];

pub(crate) const ACTIONS: &[(&str, PolicyAction)] =
    &[("allow", PolicyAction::Allow), ("deny", PolicyAction::Deny)];

pub(crate) const ANY: &[(&str, SourceMatch)] =
    &[("anyone", SourceMatch::Anyone), ("authenticated", SourceMatch::Authenticated)];

pub(super) fn lower(
    scope: &mut Scope<'_>,
    spec: &AccessPolicySpec,
    workloads: &HashSet<&str>,
) -> Option<AccessPolicyModel> {
    let manifest_name = scope.manifest.spanned_name().clone();
    let name = value::name(scope, &manifest_name, "AccessPolicy");
    let target = target(scope, &spec.target, workloads);
    let ports = ports(scope, spec.ports.as_ref());
    let mode = match &spec.mode {
        Some(text) => value::word(scope, text, "policy mode", MODES),
        None => Some(PolicyMode::Enforce),
    };
    let action = match &spec.action {
        Some(text) => value::word(scope, text, "action", ACTIONS),
        None => Some(PolicyAction::Allow),
    };
    let List(rules) = &spec.rules;
    // No rules that allow are a way to say «nobody», which is what default deny means anyway.
    if rules.value.is_empty() && action == Some(PolicyAction::Deny) {
        let message = "a policy that denies has no rules".to_owned();
        scope.refuse(Place::of(rules), message, "add a rule, or remove the policy");
    }
    if rules.value.len() > MAX_RULES_PER_POLICY {
        let message = format!("{} rules, and {MAX_RULES_PER_POLICY} are accepted", rules.value.len());
        scope.refuse(Place::of(rules), message, "split the policy");
        return None;
    }
    let mut names = HashSet::new();
    let mut lowered = Vec::with_capacity(rules.value.len());
    for (number, entry) in rules.value.iter().enumerate() {
        let Some(rule) = rule(scope, number + 1, &entry.value, &ports) else { continue };
        if let Some(marked) = entry.value.life_safety.as_ref().filter(|marked| marked.value)
            && action == Some(PolicyAction::Deny)
        {
            let message = "a rule that denies keeps no flow open".to_owned();
            scope.refuse(Place::of(marked), message, "mark the rules that allow, or remove `lifeSafety`");
        }
        if !names.insert(rule.name.clone()) {
            let place = entry.value.name.as_ref().map_or_else(|| Place::of(entry), Place::of);
            let message = format!("rule {} is there twice", quoted(&rule.name));
            scope.refuse(place, message, "rename one of the two");
        }
        lowered.push(rule);
    }
    Some(AccessPolicyModel {
        name: name?,
        target: target?,
        ports,
        mode: mode?,
        action: action?,
        rules: lowered,
    })
}

pub(super) fn target(
    scope: &mut Scope<'_>,
    spec: &Spanned<TargetSpec>,
    workloads: &HashSet<&str>,
) -> Option<Target> {
    let (list, what) = match (&spec.value.workloads, &spec.value.classes) {
        (Some(list), None) => (list, "workloads"),
        (None, Some(list)) => (list, "classes"),
        _ => {
            let message = "a target has either `workloads` or `classes`".to_owned();
            scope.refuse(Place::of(spec), message, "write `workloads: [\"*\"]` for all");
            return None;
        }
    };
    if list.0.value.is_empty() {
        let message = format!("`{what}` is empty");
        scope.refuse(Place::of(&list.0), message, format!("name some, or write `{what}: [\"*\"]` for all"));
        return None;
    }
    let entries = value::within_bounds(scope, &list.0, what);
    if let Some(star) = entries.iter().find(|entry| entry.value == EVERYTHING) {
        if entries.len() > 1 {
            let message = "`*` stands for all and is not alone".to_owned();
            scope.refuse(Place::of(star), message, "remove `*`, or the others");
        }
        return Some(Target::Everything);
    }
    if what == "classes" {
        return Some(Target::Classes(entries.iter().filter_map(|text| value::class(scope, text)).collect()));
    }
    for entry in entries.iter().filter(|entry| !workloads.contains(entry.value.as_str())) {
        if scope.findings.is_full() {
            break;
        }
        let mut known: Vec<&str> = workloads.iter().copied().collect();
        known.sort_unstable();
        let message = format!("no Workload is called {}", quoted(&entry.value));
        scope.refuse(Place::of(entry), message, suggestion(&entry.value, known.into_iter()));
    }
    Some(Target::Workloads(entries.iter().map(|entry| entry.value.clone()).collect()))
}

pub(super) fn ports(scope: &mut Scope<'_>, list: Option<&List<u32>>) -> Vec<u16> {
    let entries = value::entries(scope, list, "ports", "for all ports");
    value::ports(scope, entries)
}

fn rule(scope: &mut Scope<'_>, number: usize, spec: &RuleSpec, policy_ports: &[u16]) -> Option<RuleModel> {
    let name = match &spec.name {
        Some(text) => value::name(scope, text, "rule"),
        None => Some(format!("rule-{number}")),
    };
    let List(from) = &spec.from;
    if from.value.is_empty() {
        let fix = "write `- any: authenticated` for every identity, or `- any: anyone` for everybody";
        scope.refuse(Place::of(from), "`from` is empty".to_owned(), fix);
    }
    let from = value::within_bounds(scope, from, "from");
    let from = from.iter().filter_map(|entry| source(scope, entry)).collect();
    let to = value::entries(scope, spec.to.as_ref(), "to", "to allow everything on the policy's ports");
    let to = to.iter().filter_map(|entry| operation(scope, entry, policy_ports)).collect();
    let when = condition::conditions(scope, spec.when.as_ref());
    let life_safety = spec.life_safety.as_ref().is_some_and(|marked| marked.value);
    Some(RuleModel { name: name?, from, to, when, life_safety })
}

pub(super) fn source(scope: &mut Scope<'_>, spec: &Spanned<SourceSpec>) -> Option<SourceMatch> {
    let SourceSpec { identity, class, role, trust_domain, any } = &spec.value;
    match (identity, class, role, trust_domain, any) {
        (Some(text), None, None, None, None) => {
            let parsed = IdentityPattern::parse(&text.value);
            pattern(scope, text, "identity pattern", parsed).map(SourceMatch::Identity)
        }
        (None, Some(text), None, None, None) => value::class(scope, text).map(SourceMatch::Class),
        (None, None, Some(text), None, None) => value::name(scope, text, "role").map(SourceMatch::Role),
        (None, None, None, Some(text), None) => {
            let parsed = TrustDomain::parse(&text.value);
            if let Err(error) = &parsed {
                let message = format!("{} is no trust domain: {error}", quoted(&text.value));
                scope.refuse(
                    Place::of(text),
                    message,
                    "write it without scheme and wildcard, such as `mf2c.example`",
                );
            }
            parsed.ok().map(SourceMatch::TrustDomain)
        }
        (None, None, None, None, Some(text)) => any_source(scope, text),
        _ => {
            let message =
                "a source has exactly one of `identity`, `class`, `role`, `trustDomain`, `any`".to_owned();
            scope.refuse(Place::of(spec), message, "start a new list entry with `- ` for each");
            None
        }
    }
}

fn any_source(scope: &mut Scope<'_>, text: &Spanned<String>) -> Option<SourceMatch> {
    let found = ANY.iter().find(|(word, _)| *word == text.value).map(|(_, source)| source.clone());
    if found.is_none() {
        let message = format!("`any` cannot be {}", quoted(&text.value));
        scope.refuse(Place::of(text), message, suggestion(&text.value, ANY.iter().map(|(word, _)| *word)));
    }
    found
}

pub(super) fn operation(
    scope: &mut Scope<'_>,
    spec: &Spanned<OperationSpec>,
    policy_ports: &[u16],
) -> Option<Operation> {
    let OperationSpec { methods, paths, ports: port_list, headers } = &spec.value;
    if methods.is_none() && paths.is_none() && port_list.is_none() && headers.is_none() {
        let message =
            "an operation without `methods`, `paths`, `headers` and `ports` is everything".to_owned();
        scope.refuse(Place::of(spec), message, "leave out `to` if that is meant");
        return None;
    }
    let methods = self::methods(scope, methods.as_ref());
    let paths = self::paths(scope, paths.as_ref());
    let ports = ports(scope, port_list.as_ref());
    if let Some(stray) = ports.iter().find(|port| !policy_ports.is_empty() && !policy_ports.contains(port)) {
        let message = format!("the policy does not select port {stray}");
        scope.refuse(
            Place::of(spec),
            message,
            format!("add {stray} to the policy's `ports`, or remove it here"),
        );
    }
    let headers = value::entries(scope, headers.as_ref(), "headers", "for any header fields");
    let headers = headers.iter().filter_map(|entry| condition::header(scope, entry)).collect();
    Some(Operation { methods, paths, ports, headers })
}

pub(super) fn methods(scope: &mut Scope<'_>, list: Option<&List<String>>) -> Vec<String> {
    let entries = value::entries(scope, list, "methods", "for all methods");
    entries.iter().filter_map(|text| method(scope, text)).collect()
}

pub(super) fn paths(scope: &mut Scope<'_>, list: Option<&List<String>>) -> Vec<PathPattern> {
    let entries = value::entries(scope, list, "paths", "for all paths");
    let read = |text: &Spanned<String>| PathPattern::parse(&text.value);
    entries.iter().filter_map(|text| pattern(scope, text, "path pattern", read(text))).collect()
}

fn method(scope: &mut Scope<'_>, text: &Spanned<String>) -> Option<String> {
    let method = text.value.as_str();
    let upper = method.to_ascii_uppercase();
    let is_token = (1..=MAX_METHOD_BYTES).contains(&method.len())
        && method.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    let fix = if method == EVERYTHING {
        "leave out `methods` for all methods".to_owned()
    } else if !is_token {
        "write a method such as `GET`".to_owned()
    } else if upper != method {
        format!("write `{upper}`: methods are case-sensitive")
    } else if method == "CONNECT" {
        "remove it: the mesh never carries CONNECT".to_owned()
    } else {
        return Some(upper);
    };
    scope.refuse(Place::of(text), format!("{} is no method to allow", quoted(method)), fix);
    None
}

pub(super) fn pattern<T>(
    scope: &mut Scope<'_>,
    text: &Spanned<String>,
    what: &str,
    parsed: Result<T, PatternError>,
) -> Option<T> {
    if let Err(error) = &parsed {
        let message = format!("{} is no {what}: {error}", quoted(&text.value));
        scope.refuse(Place::of(text), message, error.fix());
    }
    parsed.ok()
}

/// Refuses a policy that asks for something its targets cannot be: a port none of them has, or methods and paths on a
/// port that was declared not to speak HTTP.
pub(super) fn refuse_contradictions(
    scope: &mut Scope<'_>,
    spec: &AccessPolicySpec,
    policy: &AccessPolicyModel,
    workloads: &[WorkloadModel],
) {
    let targeted: Vec<&WorkloadModel> =
        workloads.iter().filter(|workload| policy.target.selects(workload)).collect();
    let mut lists: Vec<&List<u32>> = spec.ports.iter().collect();
    for rule in &spec.rules.0.value {
        let operations = rule.value.to.iter().flat_map(|to| &to.0.value);
        for operation in operations {
            lists.extend(&operation.value.ports);
            refuse_l7_without_http(scope, operation, |port| policy.selects_port(port), &targeted);
        }
    }
    refuse_unknown_ports(scope, lists.into_iter(), &targeted);
}

/// Refuses ports that none of the targeted workloads has, where all of them are known.
pub(super) fn refuse_unknown_ports<'a>(
    scope: &mut Scope<'_>,
    lists: impl Iterator<Item = &'a List<u32>>,
    targeted: &[&WorkloadModel],
) {
    let ports_are_known = !targeted.is_empty() && targeted.iter().all(|workload| !workload.ports.is_empty());
    let known: HashSet<u32> =
        targeted.iter().flat_map(|workload| &workload.ports).map(|declared| declared.port.into()).collect();
    for entry in lists.flat_map(|list| &list.0.value) {
        if ports_are_known && !known.contains(&entry.value) {
            let message = format!("no targeted workload has port {}", entry.value);
            scope.refuse(
                Place::of(entry),
                message,
                "correct the number, or declare the port in the Workload",
            );
        }
    }
}

pub(super) fn refuse_l7_without_http(
    scope: &mut Scope<'_>,
    operation: &Spanned<OperationSpec>,
    selects_port: impl Fn(u16) -> bool,
    targeted: &[&WorkloadModel],
) {
    let OperationSpec { methods, paths, headers, .. } = &operation.value;
    if methods.is_none() && paths.is_none() && headers.is_none() {
        return;
    }
    let covered = |port: u16| {
        selects_port(port)
            && operation
                .value
                .ports
                .as_ref()
                .is_none_or(|list| list.0.value.iter().any(|entry| entry.value == u32::from(port)))
    };
    let clash = targeted.iter().find_map(|workload| {
        let port = workload.ports.iter().find(|declared| {
            covered(declared.port)
                && (matches!(declared.protocol, Protocol::Opaque | Protocol::Tls)
                    || declared.speaks_first == Some(SpeaksFirst::Server))
        })?;
        Some((workload, port))
    });
    if let Some((workload, port)) = clash {
        let message = format!(
            "methods, paths or headers are asked for on port {} of {}, which does not speak plain HTTP",
            port.port, workload.name
        );
        scope.refuse(Place::of(operation), message, "give this operation `ports` that speak HTTP");
    }
}
