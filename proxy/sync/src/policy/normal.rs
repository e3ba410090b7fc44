//! Normalization policies to protobuf and back.

use signet_policy::{Form, NormalizationPolicyModel, NormalizationRuleModel};

use super::access::{target_from, target_to};
use super::protection::{route_from, route_to};
use super::{each, ports_from, ports_to};
use crate::DecodeError;
use crate::proto::sync as wire;

pub(super) fn policy_from(
    policy: wire::NormalizationPolicy,
) -> Result<NormalizationPolicyModel, DecodeError> {
    Ok(NormalizationPolicyModel {
        name: policy.name,
        target: target_from("policy.normalization_policies.target", policy.target)?,
        ports: ports_from("policy.normalization_policies.ports", &policy.ports)?,
        rules: each(policy.rules, rule_from)?,
    })
}

pub(super) fn policy_to(policy: &NormalizationPolicyModel) -> wire::NormalizationPolicy {
    wire::NormalizationPolicy {
        name: policy.name.clone(),
        target: Some(target_to(&policy.target)),
        ports: ports_to(&policy.ports),
        rules: policy.rules.iter().map(rule_to).collect(),
    }
}

fn rule_from(rule: wire::NormalizationRule) -> Result<NormalizationRuleModel, DecodeError> {
    Ok(NormalizationRuleModel {
        to: each(rule.to, |route| route_from("policy.normalization_policies.rules.to", route))?,
        forms: rule.forms.into_iter().map(form_from).collect::<Result<_, _>>()?,
    })
}

fn rule_to(rule: &NormalizationRuleModel) -> wire::NormalizationRule {
    wire::NormalizationRule {
        to: rule.to.iter().map(route_to).collect(),
        forms: rule.forms.iter().map(|form| form_to(*form).into()).collect(),
    }
}

fn form_from(value: i32) -> Result<Form, DecodeError> {
    let known = Form::ALL.into_iter().find(|form| i32::from(form_to(*form)) == value);
    known.ok_or(DecodeError::Enum { field: "policy.normalization_policies.rules.forms", value })
}

fn form_to(form: Form) -> wire::RequestForm {
    match form {
        Form::Backslash => wire::RequestForm::Backslash,
        Form::DotSegments => wire::RequestForm::DotSegments,
        Form::EscapedSlash => wire::RequestForm::EscapedSlash,
        Form::Escapes => wire::RequestForm::Escapes,
        Form::HeaderDuplicates => wire::RequestForm::HeaderDuplicates,
        Form::HeaderUnderscores => wire::RequestForm::HeaderUnderscores,
        Form::HostCase => wire::RequestForm::HostCase,
        Form::HostDefaultPort => wire::RequestForm::HostDefaultPort,
        Form::HostTrailingDot => wire::RequestForm::HostTrailingDot,
        Form::Parameters => wire::RequestForm::Parameters,
        Form::Slashes => wire::RequestForm::Slashes,
    }
}
