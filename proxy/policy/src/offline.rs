//! How long a sidecar may go on without hearing from its control plane, and what then.

use serde::{Deserialize, Serialize};
use signet_identity::Class;

/// The bounds of each class of workload; none means that only certificates end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Offline {
    /// Agents.
    #[serde(default)]
    pub agent: Option<OfflineBound>,
    /// Application components.
    #[serde(default)]
    pub app: Option<OfflineBound>,
    /// Holders of an identity outside the mesh.
    #[serde(default)]
    pub external: Option<OfflineBound>,
    /// Platform components.
    #[serde(default)]
    pub platform: Option<OfflineBound>,
}

impl Offline {
    /// The bound of a class.
    pub fn of(&self, class: Class) -> Option<OfflineBound> {
        match class {
            Class::Agent => self.agent,
            Class::App => self.app,
            Class::External => self.external,
            Class::Platform => self.platform,
        }
    }

    /// Whether no class has one.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How long, and what then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OfflineBound {
    /// Seconds since the control plane last said that policy and revocations are the newest.
    pub budget_s: u64,
    /// What then.
    pub then: WhenStale,
}

/// What a sidecar does when its bound has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenStale {
    /// Only rules marked `lifeSafety` allow.
    LifeSafety,
    /// Nothing is carried.
    Refuse,
}

/// How far what is held may still be gone by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Staleness {
    /// It was confirmed within the bound, or there is none.
    #[default]
    Fresh,
    /// The bound has passed: only rules marked `lifeSafety` allow.
    LifeSafety,
    /// The bound has passed: nothing is allowed.
    Refuse,
}

impl OfflineBound {
    /// What holds at an age in seconds; none is the age of what was never confirmed.
    pub fn staleness(self, age_s: Option<u64>) -> Staleness {
        match (age_s, self.then) {
            (Some(age), _) if age <= self.budget_s => Staleness::Fresh,
            (_, WhenStale::LifeSafety) => Staleness::LifeSafety,
            (_, WhenStale::Refuse) => Staleness::Refuse,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_holds_to_its_last_second_and_what_was_never_confirmed_is_stale() {
        let bound = |then| OfflineBound { budget_s: 60, then };
        for (then, stale) in
            [(WhenStale::LifeSafety, Staleness::LifeSafety), (WhenStale::Refuse, Staleness::Refuse)]
        {
            assert_eq!(bound(then).staleness(Some(60)), Staleness::Fresh);
            assert_eq!(bound(then).staleness(Some(61)), stale);
            assert_eq!(bound(then).staleness(None), stale);
        }
    }
}
