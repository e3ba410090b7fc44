//! Access policies to protobuf and back.

use signet_policy::{
    AccessPolicyModel, IdentityPattern, Operation, PathPattern, PolicyMode, RuleModel, SourceMatch, Target,
};

use super::{class_from, class_to, each, ports_from, ports_to, trust_domain};
use crate::DecodeError;
use crate::proto::sync as wire;
use crate::proto::sync::source::Source;
use crate::proto::sync::target::Target as WireTarget;

pub(super) fn policy_from(policy: wire::AccessPolicy) -> Result<AccessPolicyModel, DecodeError> {
    const TARGET: &str = "policy.policies.target";
    let target = policy.target.and_then(|t| t.target).ok_or(DecodeError::Missing { field: TARGET })?;
    Ok(AccessPolicyModel {
        name: policy.name,
        target: match target {
            WireTarget::Everything(_) => Target::Everything,
            WireTarget::Classes(list) => Target::Classes(each(list.classes, |c| class_from(TARGET, c))?),
            WireTarget::Workloads(list) => Target::Workloads(list.names),
        },
        ports: ports_from("policy.policies.ports", &policy.ports)?,
        mode: match wire::PolicyMode::try_from(policy.mode) {
            Ok(wire::PolicyMode::Enforce) => PolicyMode::Enforce,
            Ok(wire::PolicyMode::Observe) => PolicyMode::Observe,
            Ok(wire::PolicyMode::Unspecified) | Err(_) => {
                return Err(DecodeError::Enum { field: "policy.policies.mode", value: policy.mode });
            }
        },
        rules: each(policy.rules, rule_from)?,
    })
}

pub(super) fn policy_to(policy: &AccessPolicyModel) -> wire::AccessPolicy {
    let target = match &policy.target {
        Target::Classes(classes) => WireTarget::Classes(wire::target::Classes {
            classes: classes.iter().map(|&class| class_to(class)).collect(),
        }),
        Target::Everything => WireTarget::Everything(wire::target::Everything {}),
        Target::Workloads(names) => {
            WireTarget::Workloads(wire::target::WorkloadNames { names: names.clone() })
        }
    };
    let mode = match policy.mode {
        PolicyMode::Enforce => wire::PolicyMode::Enforce,
        PolicyMode::Observe => wire::PolicyMode::Observe,
    };
    wire::AccessPolicy {
        name: policy.name.clone(),
        target: Some(wire::Target { target: Some(target) }),
        ports: ports_to(&policy.ports),
        mode: mode.into(),
        rules: policy.rules.iter().map(rule_to).collect(),
    }
}

fn rule_from(rule: wire::Rule) -> Result<RuleModel, DecodeError> {
    Ok(RuleModel { name: rule.name, from: each(rule.from, source_from)?, to: each(rule.to, operation_from)? })
}

fn rule_to(rule: &RuleModel) -> wire::Rule {
    wire::Rule {
        name: rule.name.clone(),
        from: rule.from.iter().map(source_to).collect(),
        to: rule.to.iter().map(operation_to).collect(),
    }
}

fn source_from(source: wire::Source) -> Result<SourceMatch, DecodeError> {
    const FIELD: &str = "policy.policies.rules.from";
    match source.source.ok_or(DecodeError::Missing { field: FIELD })? {
        Source::Anyone(_) => Ok(SourceMatch::Anyone),
        Source::Authenticated(_) => Ok(SourceMatch::Authenticated),
        Source::Class(class) => Ok(SourceMatch::Class(class_from(FIELD, class)?)),
        Source::Identity(text) => IdentityPattern::parse(&text)
            .map(SourceMatch::Identity)
            .map_err(|source| DecodeError::Pattern { field: FIELD, source }),
        Source::TrustDomain(text) => Ok(SourceMatch::TrustDomain(trust_domain(FIELD, &text)?)),
    }
}

fn source_to(source: &SourceMatch) -> wire::Source {
    let source = match source {
        SourceMatch::Anyone => Source::Anyone(wire::source::Anyone {}),
        SourceMatch::Authenticated => Source::Authenticated(wire::source::Authenticated {}),
        SourceMatch::Class(class) => Source::Class(class_to(*class)),
        SourceMatch::Identity(pattern) => Source::Identity(pattern.to_string()),
        SourceMatch::TrustDomain(domain) => Source::TrustDomain(domain.to_string()),
    };
    wire::Source { source: Some(source) }
}

fn operation_from(operation: wire::Operation) -> Result<Operation, DecodeError> {
    Ok(Operation {
        methods: operation.methods,
        paths: each(operation.paths, |path| {
            PathPattern::parse(&path)
                .map_err(|source| DecodeError::Pattern { field: "policy.policies.rules.to.paths", source })
        })?,
        ports: ports_from("policy.policies.rules.to.ports", &operation.ports)?,
    })
}

fn operation_to(operation: &Operation) -> wire::Operation {
    wire::Operation {
        methods: operation.methods.clone(),
        paths: operation.paths.iter().map(ToString::to_string).collect(),
        ports: ports_to(&operation.ports),
    }
}
