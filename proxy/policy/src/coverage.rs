//! What the mesh does not protect yet: ports that take plaintext or unsigned messages, or that no enforced rule is about.

use std::fmt;

use serde::Serialize;

use crate::model::{
    AccessPolicyModel, MtlsMode, PolicyAction, PolicyMode, PolicyModel, ProtectionLevel, WorkloadModel,
};
use crate::protection::{ProtectionPolicyModel, answers};

/// A port of a workload with what it lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Exposure {
    /// The workload's manifest name.
    pub workload: String,
    /// The container port; `None` for all ports of a workload that declares none.
    pub port: Option<u16>,
    /// What is missing; never empty.
    pub gaps: Vec<Gap>,
}

/// What a port lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "gap")]
pub enum Gap {
    /// No enforced rule allows anything there: nobody may call it.
    NoRule,
    /// Policies that look at it, and decide nothing.
    ObserveOnly {
        /// Their names.
        policies: Vec<String>,
    },
    /// Callers without an identity are taken where a rule lets them in.
    Plaintext,
    /// Messages without a signature are taken.
    Unsigned,
    /// Messages without a signature are taken at some routes.
    UnsignedRoutes {
        /// The rules of protection policies that say so.
        rules: Vec<String>,
    },
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRule => f.write_str("no enforced rule"),
            Self::ObserveOnly { policies } => write!(f, "only observed by {}", policies.join(", ")),
            Self::Plaintext => f.write_str("takes plaintext"),
            Self::Unsigned => f.write_str("takes unsigned messages"),
            Self::UnsignedRoutes { rules } => {
                write!(f, "takes unsigned messages by {}", rules.join(", "))
            }
        }
    }
}

/// Every port that lacks something, in the order of the workloads.
pub fn coverage(model: &PolicyModel) -> Vec<Exposure> {
    let mut exposures = Vec::new();
    for workload in &model.workloads {
        let selecting: Vec<&AccessPolicyModel> =
            model.policies.iter().filter(|policy| policy.target.selects(workload)).collect();
        let ports: Vec<Option<u16>> = match workload.ports.as_slice() {
            [] => vec![None],
            ports => ports.iter().map(|declared| Some(declared.port)).collect(),
        };
        for port in ports {
            let gaps = gaps(model, workload, &selecting, port);
            if !gaps.is_empty() {
                exposures.push(Exposure { workload: workload.name.clone(), port, gaps });
            }
        }
    }
    exposures
}

fn gaps(
    model: &PolicyModel,
    workload: &WorkloadModel,
    selecting: &[&AccessPolicyModel],
    port: Option<u16>,
) -> Vec<Gap> {
    let at = |policy: &AccessPolicyModel, mode: PolicyMode| {
        let is_about = |rule: &crate::model::RuleModel| {
            let covers =
                |operation: &crate::model::Operation| port.is_none_or(|port| operation.covers_port(port));
            rule.to.is_empty() || rule.to.iter().any(covers)
        };
        policy.mode == mode
            && policy.action == PolicyAction::Allow
            && port.is_none_or(|port| policy.selects_port(port))
            && policy.rules.iter().any(is_about)
    };
    let mut gaps = Vec::new();
    if !selecting.iter().any(|policy| at(policy, PolicyMode::Enforce)) {
        let observing = selecting.iter().filter(|policy| at(policy, PolicyMode::Observe));
        let policies: Vec<String> = observing.map(|policy| policy.name.clone()).collect();
        gaps.push(if policies.is_empty() { Gap::NoRule } else { Gap::ObserveOnly { policies } });
    }
    if model.mtls_of(workload) == MtlsMode::Permissive {
        gaps.push(Gap::Plaintext);
    }
    gaps.extend(unsigned(model, workload, port));
    gaps
}

/// What takes unsigned messages at a port: everything, or single routes.
fn unsigned(model: &PolicyModel, workload: &WorkloadModel, port: Option<u16>) -> Option<Gap> {
    let about = |policy: &&ProtectionPolicyModel| {
        policy.target.selects(workload) && port.is_none_or(|port| policy.selects_port(port))
    };
    let selecting: Vec<&ProtectionPolicyModel> = model.protection_policies.iter().filter(about).collect();
    let mut level: Option<ProtectionLevel> = None;
    answers(workload, selecting.iter().copied(), None, |asked| {
        level = level.max(Some(asked.protection.level));
    });
    if level == Some(ProtectionLevel::Public) {
        return Some(Gap::Unsigned);
    }
    let rules: Vec<String> = selecting
        .iter()
        .flat_map(|policy| policy.rules.iter().map(move |rule| (policy, rule)))
        .filter(|(_, rule)| rule.change.level == Some(ProtectionLevel::Public))
        .map(|(policy, rule)| format!("{}/{}", policy.name, rule.name))
        .collect();
    (!rules.is_empty()).then_some(Gap::UnsignedRoutes { rules })
}
