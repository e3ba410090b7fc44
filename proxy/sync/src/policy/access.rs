//! Access policies to protobuf and back.

use signet_policy::{
    AccessPolicyModel, Conditions, HeaderMatch, IdentityPattern, Operation, PathPattern, PolicyAction,
    PolicyMode, RuleModel, SourceMatch, Target, TimeWindow, ValueMatch,
};

use super::{class_from, class_to, each, ports_from, ports_to, prefix_from, prefix_to, trust_domain};
use crate::DecodeError;
use crate::proto::sync as wire;
use crate::proto::sync::header_match::Value;
use crate::proto::sync::source::Source;
use crate::proto::sync::target::Target as WireTarget;

pub(super) fn policy_from(policy: wire::AccessPolicy) -> Result<AccessPolicyModel, DecodeError> {
    Ok(AccessPolicyModel {
        name: policy.name,
        target: target_from("policy.policies.target", policy.target)?,
        ports: ports_from("policy.policies.ports", &policy.ports)?,
        mode: match wire::PolicyMode::try_from(policy.mode) {
            Ok(wire::PolicyMode::Enforce) => PolicyMode::Enforce,
            Ok(wire::PolicyMode::Observe) => PolicyMode::Observe,
            Ok(wire::PolicyMode::Unspecified) | Err(_) => {
                return Err(DecodeError::Enum { field: "policy.policies.mode", value: policy.mode });
            }
        },
        action: match wire::PolicyAction::try_from(policy.action) {
            // Written before it could be said, when rules only allowed.
            Ok(wire::PolicyAction::Allow | wire::PolicyAction::Unspecified) => PolicyAction::Allow,
            Ok(wire::PolicyAction::Deny) => PolicyAction::Deny,
            Err(_) => {
                return Err(DecodeError::Enum { field: "policy.policies.action", value: policy.action });
            }
        },
        rules: each(policy.rules, rule_from)?,
    })
}

pub(super) fn target_from(field: &'static str, target: Option<wire::Target>) -> Result<Target, DecodeError> {
    Ok(match target.and_then(|target| target.target).ok_or(DecodeError::Missing { field })? {
        WireTarget::Everything(_) => Target::Everything,
        WireTarget::Classes(list) => Target::Classes(each(list.classes, |c| class_from(field, c))?),
        WireTarget::Workloads(list) => Target::Workloads(list.names),
    })
}

pub(super) fn target_to(target: &Target) -> wire::Target {
    let target = match target {
        Target::Classes(classes) => WireTarget::Classes(wire::target::Classes {
            classes: classes.iter().map(|&class| class_to(class)).collect(),
        }),
        Target::Everything => WireTarget::Everything(wire::target::Everything {}),
        Target::Workloads(names) => {
            WireTarget::Workloads(wire::target::WorkloadNames { names: names.clone() })
        }
    };
    wire::Target { target: Some(target) }
}

pub(super) fn policy_to(policy: &AccessPolicyModel) -> wire::AccessPolicy {
    let mode = match policy.mode {
        PolicyMode::Enforce => wire::PolicyMode::Enforce,
        PolicyMode::Observe => wire::PolicyMode::Observe,
    };
    wire::AccessPolicy {
        name: policy.name.clone(),
        target: Some(target_to(&policy.target)),
        ports: ports_to(&policy.ports),
        mode: mode.into(),
        rules: policy.rules.iter().map(rule_to).collect(),
        action: match policy.action {
            PolicyAction::Allow => wire::PolicyAction::Allow,
            PolicyAction::Deny => wire::PolicyAction::Deny,
        }
        .into(),
    }
}

fn rule_from(rule: wire::Rule) -> Result<RuleModel, DecodeError> {
    Ok(RuleModel {
        name: rule.name,
        from: each(rule.from, source_from)?,
        to: each(rule.to, operation_from)?,
        when: rule.when.map_or_else(|| Ok(Conditions::default()), conditions_from)?,
        life_safety: rule.life_safety,
    })
}

fn rule_to(rule: &RuleModel) -> wire::Rule {
    wire::Rule {
        name: rule.name.clone(),
        from: rule.from.iter().map(source_to).collect(),
        to: rule.to.iter().map(operation_to).collect(),
        when: (!rule.when.is_empty()).then(|| wire::Conditions {
            source_addresses: rule.when.source_addresses.iter().map(prefix_to).collect(),
            time: rule.when.time.iter().map(window_to).collect(),
        }),
        life_safety: rule.life_safety,
    }
}

fn conditions_from(when: wire::Conditions) -> Result<Conditions, DecodeError> {
    const ADDRESSES: &str = "policy.policies.rules.when.source_addresses";
    Ok(Conditions {
        source_addresses: each(when.source_addresses, |range| prefix_from(ADDRESSES, &range))?,
        time: each(when.time, |window| window_from(&window))?,
    })
}

fn window_from(window: &wire::TimeWindow) -> Result<TimeWindow, DecodeError> {
    const DAY: u16 = 24 * 60;
    let refused = DecodeError::Range { field: "policy.policies.rules.when.time" };
    let minute = |minute: u32| u16::try_from(minute).ok().filter(|minute| *minute <= DAY);
    let offset = i16::try_from(window.utc_offset).ok().filter(|offset| offset.unsigned_abs() <= DAY);
    let days = u8::try_from(window.days).ok().filter(|days| (1..=TimeWindow::EVERY_DAY).contains(days));
    match (days, minute(window.from), minute(window.to), offset) {
        (Some(days), Some(from), Some(to), Some(utc_offset)) if from < DAY && from != to => {
            Ok(TimeWindow { days, from, to, utc_offset })
        }
        _ => Err(refused),
    }
}

fn window_to(window: &TimeWindow) -> wire::TimeWindow {
    wire::TimeWindow {
        days: window.days.into(),
        from: window.from.into(),
        to: window.to.into(),
        utc_offset: window.utc_offset.into(),
    }
}

pub(super) fn source_from(source: wire::Source) -> Result<SourceMatch, DecodeError> {
    const FIELD: &str = "policy.policies.rules.from";
    match source.source.ok_or(DecodeError::Missing { field: FIELD })? {
        Source::Anyone(_) => Ok(SourceMatch::Anyone),
        Source::Authenticated(_) => Ok(SourceMatch::Authenticated),
        Source::Class(class) => Ok(SourceMatch::Class(class_from(FIELD, class)?)),
        Source::Identity(text) => IdentityPattern::parse(&text)
            .map(SourceMatch::Identity)
            .map_err(|source| DecodeError::Pattern { field: FIELD, source }),
        Source::Role(role) => Ok(SourceMatch::Role(role)),
        Source::TrustDomain(text) => Ok(SourceMatch::TrustDomain(trust_domain(FIELD, &text)?)),
    }
}

pub(super) fn source_to(source: &SourceMatch) -> wire::Source {
    let source = match source {
        SourceMatch::Anyone => Source::Anyone(wire::source::Anyone {}),
        SourceMatch::Authenticated => Source::Authenticated(wire::source::Authenticated {}),
        SourceMatch::Class(class) => Source::Class(class_to(*class)),
        SourceMatch::Identity(pattern) => Source::Identity(pattern.to_string()),
        SourceMatch::Role(role) => Source::Role(role.clone()),
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
        headers: each(operation.headers, header_from)?,
    })
}

fn header_from(header: wire::HeaderMatch) -> Result<HeaderMatch, DecodeError> {
    const FIELD: &str = "policy.policies.rules.to.headers";
    if header.name.is_empty() || header.name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(DecodeError::Name { field: FIELD });
    }
    let value = match header.value.ok_or(DecodeError::Missing { field: FIELD })? {
        Value::Absent(_) => ValueMatch::Absent,
        Value::Exact(text) => ValueMatch::Exact(text),
        Value::Prefix(text) => ValueMatch::Prefix(text),
        Value::Present(_) => ValueMatch::Present,
    };
    Ok(HeaderMatch { name: header.name, value })
}

fn header_to(header: &HeaderMatch) -> wire::HeaderMatch {
    let value = match &header.value {
        ValueMatch::Absent => Value::Absent(wire::header_match::Absent {}),
        ValueMatch::Exact(text) => Value::Exact(text.clone()),
        ValueMatch::Prefix(text) => Value::Prefix(text.clone()),
        ValueMatch::Present => Value::Present(wire::header_match::Present {}),
    };
    wire::HeaderMatch { name: header.name.clone(), value: Some(value) }
}

fn operation_to(operation: &Operation) -> wire::Operation {
    wire::Operation {
        methods: operation.methods.clone(),
        paths: operation.paths.iter().map(ToString::to_string).collect(),
        ports: ports_to(&operation.ports),
        headers: operation.headers.iter().map(header_to).collect(),
    }
}
