//! `NormalizationPolicy` manifests: exceptions from the refusal of ambiguous requests.

use std::collections::{BTreeSet, HashSet};

use serde_saphyr::Spanned;

use crate::compile::{Scope, access_policy, protection_policy, value};
use crate::diagnostic::Place;
use crate::manifest::{List, NormalizationPolicySpec, NormalizationRuleSpec};
use crate::model::WorkloadModel;
use crate::normal::{Form, NormalizationPolicyModel, NormalizationRuleModel};

pub(crate) const PATH: &[(&str, Form)] = &[
    ("backslash", Form::Backslash),
    ("dot-segments", Form::DotSegments),
    ("escaped-slash", Form::EscapedSlash),
    ("escapes", Form::Escapes),
    ("parameters", Form::Parameters),
    ("slashes", Form::Slashes),
];

pub(crate) const HOST: &[(&str, Form)] = &[
    ("case", Form::HostCase),
    ("default-port", Form::HostDefaultPort),
    ("trailing-dot", Form::HostTrailingDot),
];

pub(crate) const HEADERS: &[(&str, Form)] =
    &[("duplicates", Form::HeaderDuplicates), ("underscores", Form::HeaderUnderscores)];

pub(super) fn lower(
    scope: &mut Scope<'_>,
    spec: &NormalizationPolicySpec,
    workloads: &HashSet<&str>,
) -> Option<NormalizationPolicyModel> {
    let manifest_name = scope.manifest.spanned_name().clone();
    let name = value::name(scope, &manifest_name, "NormalizationPolicy");
    let target = access_policy::target(scope, &spec.target, workloads);
    let ports = access_policy::ports(scope, spec.ports.as_ref());
    if spec.rules.0.value.is_empty() {
        let message = "a policy without rules changes nothing".to_owned();
        scope.refuse(Place::of(&spec.rules.0), message, "add a rule, or remove the policy");
    }
    let entries = value::within_bounds(scope, &spec.rules.0, "rules");
    let rules = entries.iter().filter_map(|entry| rule(scope, entry)).collect();
    Some(NormalizationPolicyModel { name: name?, target: target?, ports, rules })
}

fn rule(scope: &mut Scope<'_>, spec: &Spanned<NormalizationRuleSpec>) -> Option<NormalizationRuleModel> {
    let NormalizationRuleSpec { to, path, host, headers } = &spec.value;
    if to.0.value.is_empty() {
        let fix = "name its routes; `paths: [/**]` is all of them";
        scope.refuse(Place::of(&to.0), "`to` is empty".to_owned(), fix);
    }
    if path.is_none() && host.is_none() && headers.is_none() {
        let message = "a rule without `path`, `host` and `headers` changes nothing".to_owned();
        scope.refuse(Place::of(spec), message, "list what is taken there");
        return None;
    }
    let routes = value::within_bounds(scope, &to.0, "to");
    let to = routes.iter().filter_map(|entry| protection_policy::route(scope, entry)).collect();
    let mut accepted = BTreeSet::new();
    for (list, what, words) in [(path, "path", PATH), (host, "host", HOST), (headers, "headers", HEADERS)] {
        forms(scope, list.as_ref(), what, words, &mut accepted);
    }
    Some(NormalizationRuleModel { to, forms: accepted })
}

fn forms(
    scope: &mut Scope<'_>,
    list: Option<&List<String>>,
    what: &str,
    words: &[(&str, Form)],
    into: &mut BTreeSet<Form>,
) {
    for text in value::entries(scope, list, what, "to accept none of these") {
        if let Some(form) = value::word(scope, text, "form of a request", words)
            && !into.insert(form)
        {
            let message = format!("`{}` is listed twice", text.value);
            scope.refuse(Place::of(text), message, "remove one of the two");
        }
    }
}

/// Refuses ports that none of the targeted workloads has.
pub(super) fn refuse_contradictions(
    scope: &mut Scope<'_>,
    spec: &NormalizationPolicySpec,
    policy: &NormalizationPolicyModel,
    workloads: &[WorkloadModel],
) {
    let targeted: Vec<&WorkloadModel> =
        workloads.iter().filter(|workload| policy.target.selects(workload)).collect();
    access_policy::refuse_unknown_ports(scope, spec.ports.iter(), &targeted);
}
