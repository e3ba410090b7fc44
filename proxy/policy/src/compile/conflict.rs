//! Rules that contradict each other: an allow that a deny leaves nothing of.

use crate::compile::Scope;
use crate::diagnostic::{Findings, Place, quoted};
use crate::manifest::{Manifest, Spec};
use crate::model::{
    AccessPolicyModel, Operation, PolicyAction, PolicyMode, PolicyModel, RuleModel, SourceMatch, Target,
};

/// Most comparisons of single entries of rules: a second's worth. Contradictions beyond it are left to `explain`.
const MAX_COMPARISONS: usize = 20_000_000;

/// Refuses enforced rules that can never allow anything because one denying rule covers all of them. `manifests` holds
/// the manifest of each policy.
pub(super) fn refuse_shadowed_rules(model: &PolicyModel, manifests: &[&Manifest], findings: &mut Findings) {
    let of = |action| {
        model
            .policies
            .iter()
            .zip(manifests)
            .filter(move |(policy, _)| policy.mode == PolicyMode::Enforce && policy.action == action)
    };
    let denying: Vec<(&AccessPolicyModel, &RuleModel)> = of(PolicyAction::Deny)
        .flat_map(|(policy, _)| policy.rules.iter().map(move |rule| (policy, rule)))
        .collect();
    if denying.is_empty() {
        return;
    }
    let mut left = MAX_COMPARISONS;
    for (policy, manifest) in of(PolicyAction::Allow) {
        for (number, rule) in policy.rules.iter().enumerate() {
            let mut shadow = None;
            for (denying, deny) in &denying {
                left = left.saturating_sub(comparisons(denying, deny, policy, rule));
                if left == 0 || findings.is_full() {
                    return;
                }
                if covers_rule(deny, rule)
                    && covers_ports(&denying.ports, &policy.ports)
                    && covers_target(&denying.target, &policy.target, model)
                {
                    shadow = Some((denying, deny));
                    break;
                }
            }
            if let Some((denying, deny)) = shadow {
                let message = format!(
                    "rule {} can never allow anything: {}/{} denies all of it",
                    quoted(&rule.name),
                    denying.name,
                    deny.name
                );
                let place = place_of(manifest, number);
                Scope::new(manifest, findings).refuse(
                    place,
                    message,
                    "remove it, or narrow the rule that denies",
                );
            }
        }
    }
}

/// How many entries are compared at most.
fn comparisons(
    denying: &AccessPolicyModel,
    deny: &RuleModel,
    policy: &AccessPolicyModel,
    rule: &RuleModel,
) -> usize {
    let entries = |rule: &RuleModel| -> usize {
        let of = |operation: &Operation| 1 + operation.methods.len() + operation.paths.len();
        rule.from.len() + rule.to.iter().map(of).sum::<usize>()
    };
    let names = |target: &Target| match target {
        Target::Workloads(names) => names.len(),
        Target::Classes(_) | Target::Everything => 1,
    };
    (1 + entries(deny)).saturating_mul(1 + entries(rule)).saturating_add(
        (denying.ports.len() + names(&denying.target))
            .saturating_mul(policy.ports.len() + names(&policy.target)),
    )
}

fn place_of(manifest: &Manifest, number: usize) -> Place {
    let rule = match manifest.spec() {
        Spec::AccessPolicy(spec) => spec.rules.0.value.get(number),
        _ => None,
    };
    rule.map_or_else(|| Place::of(manifest.spanned_name()), Place::of)
}

fn covers_target(wide: &Target, narrow: &Target, model: &PolicyModel) -> bool {
    match (wide, narrow) {
        (Target::Everything, _) => true,
        (Target::Classes(wide), Target::Classes(narrow)) => narrow.iter().all(|class| wide.contains(class)),
        (Target::Workloads(wide), Target::Workloads(narrow)) => narrow.iter().all(|name| wide.contains(name)),
        (Target::Classes(wide), Target::Workloads(narrow)) => narrow
            .iter()
            .all(|name| model.workload_named(name).is_some_and(|workload| wide.contains(&workload.class))),
        (_, Target::Everything) | (Target::Workloads(_), Target::Classes(_)) => false,
    }
}

fn covers_ports(wide: &[u16], narrow: &[u16]) -> bool {
    wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(|port| wide.contains(port)))
}

fn covers_rule(wide: &RuleModel, narrow: &RuleModel) -> bool {
    (wide.when.is_empty() || wide.when == narrow.when)
        && narrow.from.iter().all(|source| wide.from.iter().any(|other| covers_source(other, source)))
        && (wide.to.is_empty()
            || (!narrow.to.is_empty()
                && narrow.to.iter().all(|one| wide.to.iter().any(|other| covers_operation(other, one)))))
}

fn covers_source(wide: &SourceMatch, narrow: &SourceMatch) -> bool {
    match (wide, narrow) {
        (SourceMatch::Anyone, _) => true,
        (SourceMatch::Authenticated, narrow) => *narrow != SourceMatch::Anyone,
        (SourceMatch::TrustDomain(domain), SourceMatch::Identity(pattern)) => {
            pattern.trust_domain() == domain
        }
        (SourceMatch::Identity(wide), SourceMatch::Identity(narrow)) => {
            wide == narrow || narrow.exact().is_some_and(|id| wide.matches(&id))
        }
        (wide, narrow) => wide == narrow,
    }
}

fn covers_operation(wide: &Operation, narrow: &Operation) -> bool {
    let listed = |wide: &[String], narrow: &[String]| {
        wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(|one| wide.contains(one)))
    };
    let path = |one: &crate::pattern::PathPattern| {
        wide.paths.iter().any(|other| other == one || (one.is_exact() && other.matches(one.as_str())))
    };
    listed(&wide.methods, &narrow.methods)
        && (wide.paths.is_empty() || (!narrow.paths.is_empty() && narrow.paths.iter().all(path)))
        && covers_ports(&wide.ports, &narrow.ports)
        && (wide.headers.is_empty() || wide.headers == narrow.headers)
}
