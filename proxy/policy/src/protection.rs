//! How the messages of one route are protected: what protection policies add to the settings of mesh and workload.
//!
//! Every policy that selects a workload and a port gives an answer for a request, and the strictest answer counts, so no
//! policy can lower what another asks for. Within a policy a rule lowers the policy's default for requests that are
//! spelt as it is written, and raises it for those that some server might take for one of its route.

use serde::{Deserialize, Serialize};

use crate::model::{
    Protection, ProtectionLevel, RecordHash, SignatureMode, Target, Verification, WorkloadModel, covers,
};
use crate::route::Route;

/// How messages to some workloads are protected, by route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProtectionPolicyModel {
    /// The manifest's name.
    pub name: String,
    /// The workloads whose requests it is about.
    pub target: Target,
    /// Their ports; empty means all.
    pub ports: Vec<u16>,
    /// What is asked of everything at these ports, bytes that are not HTTP included; nothing when absent.
    pub default: Option<ProtectionChange>,
    /// What is asked of single routes instead.
    pub rules: Vec<ProtectionRuleModel>,
}

impl ProtectionPolicyModel {
    /// Whether the policy selects this port, leaving aside of which workload.
    pub fn selects_port(&self, port: u16) -> bool {
        covers(&self.ports, port)
    }
}

/// How messages of some routes are protected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProtectionRuleModel {
    /// Its name, or `rule-N` counted from 1.
    pub name: String,
    /// The routes; never empty.
    pub to: Vec<Route>,
    /// What is asked of them.
    pub change: ProtectionChange,
}

/// Settings that take the place of others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProtectionChange {
    /// What a message must have.
    pub level: Option<ProtectionLevel>,
    /// How it is signed.
    pub mode: Option<SignatureMode>,
    /// What the records of bytes that are not HTTP are hashed with.
    pub record_hash: Option<RecordHash>,
    /// When its signature is checked.
    pub verify: Option<Verification>,
    /// The header fields that level `private` seals, in lower case and sorted.
    pub sealed_headers: Option<Vec<String>>,
}

impl ProtectionChange {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn over(&self, inherited: Protection) -> Protection {
        Protection {
            level: self.level.unwrap_or(inherited.level),
            mode: self.mode.unwrap_or(inherited.mode),
            record_hash: self.record_hash.unwrap_or(inherited.record_hash),
            verify: self.verify.unwrap_or(inherited.verify),
        }
    }
}

impl Protection {
    /// What satisfies both: of each setting the stricter one.
    #[must_use]
    pub fn strictest(self, other: Self) -> Self {
        // A code proves a message to one side only; of a batch only those who have its root can check one.
        let proof = |mode: SignatureMode| match mode {
            SignatureMode::Hmac => 0,
            SignatureMode::Ed25519Batch => 1,
            SignatureMode::Ed25519 => 2,
        };
        Self {
            level: self.level.max(other.level),
            mode: if proof(self.mode) >= proof(other.mode) { self.mode } else { other.mode },
            record_hash: match (self.record_hash, other.record_hash) {
                (RecordHash::Blake3, RecordHash::Blake3) => RecordHash::Blake3,
                _ => RecordHash::Sha256,
            },
            verify: match (self.verify, other.verify) {
                (Verification::Async, Verification::Async) => Verification::Async,
                _ => Verification::Gate,
            },
        }
    }
}

/// What one policy, or the workload itself, asks of a message.
pub(crate) struct Answer<'a> {
    /// The policy and, unless it is its default, the rule; `None` for the workload's own settings.
    pub(crate) by: Option<(&'a ProtectionPolicyModel, Option<&'a ProtectionRuleModel>)>,
    pub(crate) protection: Protection,
    pub(crate) sealed_headers: &'a [String],
}

/// Gives all answers for a message to a port of a workload, at least one; `policies` are those that select both.
/// `request` is its method and path; `None` for bytes that are not HTTP.
pub(crate) fn answers<'a>(
    workload: &'a WorkloadModel,
    policies: impl Iterator<Item = &'a ProtectionPolicyModel>,
    request: Option<(&str, &str)>,
    mut take: impl FnMut(Answer<'a>),
) {
    let mut answered = false;
    for policy in policies {
        let default = policy.default.as_ref();
        let base = default.map_or(workload.protection, |change| change.over(workload.protection));
        let base_headers = default.and_then(|change| change.sealed_headers.as_deref());
        let base_headers = base_headers.unwrap_or(&workload.sealed_headers);
        let mut as_written = false;
        if let Some((method, path)) = request {
            for rule in &policy.rules {
                if !rule.to.iter().any(|route| route.matches_any_spelling(method, path)) {
                    continue;
                }
                as_written |= rule.to.iter().any(|route| route.matches(method, path));
                take(Answer {
                    by: Some((policy, Some(rule))),
                    protection: rule.change.over(base),
                    sealed_headers: rule.change.sealed_headers.as_deref().unwrap_or(base_headers),
                });
            }
        }
        if !as_written && default.is_some() {
            take(Answer { by: Some((policy, None)), protection: base, sealed_headers: base_headers });
        }
        answered |= as_written || default.is_some();
    }
    if !answered {
        take(Answer { by: None, protection: workload.protection, sealed_headers: &workload.sealed_headers });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_setting_the_stricter_one_counts() {
        let weak = Protection {
            level: ProtectionLevel::Public,
            mode: SignatureMode::Hmac,
            record_hash: RecordHash::Blake3,
            verify: Verification::Async,
        };
        let levels = [ProtectionLevel::Public, ProtectionLevel::Protected, ProtectionLevel::Private];
        for pair in levels.windows(2) {
            let [low, high] = [pair[0], pair[1]].map(|level| Protection { level, ..weak });
            assert_eq!((low.strictest(high), high.strictest(low)), (high, high));
        }
        let modes = [SignatureMode::Hmac, SignatureMode::Ed25519Batch, SignatureMode::Ed25519];
        for pair in modes.windows(2) {
            let [low, high] = [pair[0], pair[1]].map(|mode| Protection { mode, ..weak });
            assert_eq!((low.strictest(high), high.strictest(low)), (high, high));
        }
        let gate = Protection { verify: Verification::Gate, ..weak };
        assert_eq!((gate.strictest(weak), weak.strictest(gate)), (gate, gate));
        let sha = Protection { record_hash: RecordHash::Sha256, ..weak };
        assert_eq!((sha.strictest(weak), weak.strictest(sha)), (sha, sha));
        assert_eq!(weak.strictest(weak), weak);
    }
}
