//! Protection policies to protobuf and back.

use signet_policy::{
    PathPattern, ProtectionChange, ProtectionLevel, ProtectionPolicyModel, ProtectionRuleModel, RecordHash,
    Route, SignatureMode, Verification,
};

use super::access::{target_from, target_to};
use super::{each, ports_from, ports_to};
use crate::bytes::{at_most, name};
use crate::proto::sync as wire;
use crate::{DecodeError, MAX_SEALED_HEADERS};

const CHANGE: &str = "policy.protection_policies.change";

pub(super) fn policy_from(policy: wire::ProtectionPolicy) -> Result<ProtectionPolicyModel, DecodeError> {
    Ok(ProtectionPolicyModel {
        name: policy.name,
        target: target_from("policy.protection_policies.target", policy.target)?,
        ports: ports_from("policy.protection_policies.ports", &policy.ports)?,
        default: policy.default.map(change_from).transpose()?,
        rules: each(policy.rules, rule_from)?,
    })
}

pub(super) fn policy_to(policy: &ProtectionPolicyModel) -> wire::ProtectionPolicy {
    wire::ProtectionPolicy {
        name: policy.name.clone(),
        target: Some(target_to(&policy.target)),
        ports: ports_to(&policy.ports),
        default: policy.default.as_ref().map(change_to),
        rules: policy.rules.iter().map(rule_to).collect(),
    }
}

fn rule_from(rule: wire::ProtectionRule) -> Result<ProtectionRuleModel, DecodeError> {
    let change = rule.change.ok_or(DecodeError::Missing { field: CHANGE })?;
    Ok(ProtectionRuleModel {
        name: rule.name,
        to: each(rule.to, |route| route_from("policy.protection_policies.rules.to", route))?,
        change: change_from(change)?,
    })
}

fn rule_to(rule: &ProtectionRuleModel) -> wire::ProtectionRule {
    wire::ProtectionRule {
        name: rule.name.clone(),
        to: rule.to.iter().map(route_to).collect(),
        change: Some(change_to(&rule.change)),
    }
}

pub(super) fn route_from(field: &'static str, route: wire::Route) -> Result<Route, DecodeError> {
    Ok(Route {
        methods: route.methods,
        paths: each(route.paths, |path| {
            PathPattern::parse(&path).map_err(|source| DecodeError::Pattern { field, source })
        })?,
    })
}

pub(super) fn route_to(route: &Route) -> wire::Route {
    wire::Route {
        methods: route.methods.clone(),
        paths: route.paths.iter().map(ToString::to_string).collect(),
    }
}

fn change_from(change: wire::ProtectionChange) -> Result<ProtectionChange, DecodeError> {
    let unknown = |value| DecodeError::Enum { field: CHANGE, value };
    let sealed_headers = match change.sealed_headers {
        Some(list) => {
            at_most(CHANGE, list.names.len(), MAX_SEALED_HEADERS)?;
            Some(each(list.names, |text| name(CHANGE, text))?)
        }
        None => None,
    };
    Ok(ProtectionChange {
        level: match wire::ProtectionLevel::try_from(change.level) {
            Ok(wire::ProtectionLevel::Unspecified) => None,
            Ok(wire::ProtectionLevel::Public) => Some(ProtectionLevel::Public),
            Ok(wire::ProtectionLevel::Protected) => Some(ProtectionLevel::Protected),
            Ok(wire::ProtectionLevel::Private) => Some(ProtectionLevel::Private),
            Err(_) => return Err(unknown(change.level)),
        },
        mode: match wire::SignatureMode::try_from(change.mode) {
            Ok(wire::SignatureMode::Unspecified) => None,
            Ok(wire::SignatureMode::Ed25519) => Some(SignatureMode::Ed25519),
            Ok(wire::SignatureMode::Ed25519Batch) => Some(SignatureMode::Ed25519Batch),
            Ok(wire::SignatureMode::Hmac) => Some(SignatureMode::Hmac),
            Err(_) => return Err(unknown(change.mode)),
        },
        record_hash: match wire::RecordHash::try_from(change.record_hash) {
            Ok(wire::RecordHash::Unspecified) => None,
            Ok(wire::RecordHash::Blake3) => Some(RecordHash::Blake3),
            Ok(wire::RecordHash::Sha256) => Some(RecordHash::Sha256),
            Err(_) => return Err(unknown(change.record_hash)),
        },
        verify: match wire::Verification::try_from(change.verify) {
            Ok(wire::Verification::Unspecified) => None,
            Ok(wire::Verification::Gate) => Some(Verification::Gate),
            Ok(wire::Verification::Async) => Some(Verification::Async),
            Err(_) => return Err(unknown(change.verify)),
        },
        sealed_headers,
    })
}

fn change_to(change: &ProtectionChange) -> wire::ProtectionChange {
    let level = change.level.map_or(wire::ProtectionLevel::Unspecified, |level| match level {
        ProtectionLevel::Public => wire::ProtectionLevel::Public,
        ProtectionLevel::Protected => wire::ProtectionLevel::Protected,
        ProtectionLevel::Private => wire::ProtectionLevel::Private,
    });
    let mode = change.mode.map_or(wire::SignatureMode::Unspecified, |mode| match mode {
        SignatureMode::Ed25519 => wire::SignatureMode::Ed25519,
        SignatureMode::Ed25519Batch => wire::SignatureMode::Ed25519Batch,
        SignatureMode::Hmac => wire::SignatureMode::Hmac,
    });
    let record_hash = change.record_hash.map_or(wire::RecordHash::Unspecified, |hash| match hash {
        RecordHash::Blake3 => wire::RecordHash::Blake3,
        RecordHash::Sha256 => wire::RecordHash::Sha256,
    });
    let verify = change.verify.map_or(wire::Verification::Unspecified, |verify| match verify {
        Verification::Gate => wire::Verification::Gate,
        Verification::Async => wire::Verification::Async,
    });
    let sealed = |names: &Vec<String>| wire::SealedHeaders { names: names.clone() };
    wire::ProtectionChange {
        level: level.into(),
        mode: mode.into(),
        record_hash: record_hash.into(),
        verify: verify.into(),
        sealed_headers: change.sealed_headers.as_ref().map(sealed),
    }
}
