//! What the mesh does not protect yet: ports that take plaintext or unsigned messages, or that no enforced rule is about.

use std::fmt;

use serde::Serialize;

use crate::model::{
    AccessPolicyModel, MtlsMode, PolicyAction, PolicyMode, PolicyModel, ProtectionLevel, WorkloadModel,
};

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
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRule => f.write_str("no enforced rule"),
            Self::ObserveOnly { policies } => write!(f, "only observed by {}", policies.join(", ")),
            Self::Plaintext => f.write_str("takes plaintext"),
            Self::Unsigned => f.write_str("takes unsigned messages"),
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
    if workload.protection.level == ProtectionLevel::Public {
        gaps.push(Gap::Unsigned);
    }
    gaps
}
