//! Who may give a role to whom, besides the operator.

use serde::{Deserialize, Serialize};
use signet_identity::SpiffeId;

use crate::model::{Caller, PolicyModel, RoleGrantModel, SourceMatch};

/// Some may give a role to others for a while. Only the control plane asks: what comes of it are role grants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RoleAppointerModel {
    /// The manifest's name.
    pub name: String,
    /// The role.
    pub role: String,
    /// Who may give it; one of them has to match. Roles among them are those that the operator granted.
    pub appointers: Vec<SourceMatch>,
    /// To whom; one of them has to match.
    pub appointees: Vec<SourceMatch>,
    /// How long an appointment counts at most, in seconds.
    pub max_lifetime_s: u64,
}

impl PolicyModel {
    /// Until when an appointment counts at most that `appointer` made at `at`, as policy is `now`: for as long as one
    /// may last, and no longer than a role of the appointer's own by which it may appoint. `None` where it may not.
    ///
    /// Only what the operator granted makes somebody an appointer: who was appointed cannot appoint, so there are no
    /// chains to follow and no circles that keep themselves in office.
    pub fn appointed_until(
        &self,
        appointer: &SpiffeId,
        role: &str,
        appointee: &SpiffeId,
        at: u64,
        now: u64,
    ) -> Option<u64> {
        self.workload(appointer)?;
        self.workload(appointee)?;
        let entitled = self.role_appointers.iter().filter(|entry| entry.role == role).filter_map(|entry| {
            self.holds_until(&entry.appointees, appointee, now)?;
            let until = self.holds_until(&entry.appointers, appointer, now)?;
            Some(until.min(at.saturating_add(entry.max_lifetime_s)))
        });
        entitled.max().filter(|until| *until > now)
    }

    /// Until when one of the sources is this identity: for ever, unless it is one by a role.
    fn holds_until(&self, sources: &[SourceMatch], id: &SpiffeId, now: u64) -> Option<u64> {
        let granted = self.role_grants.iter().filter(|grant| grant.identity == *id);
        let roles: Vec<RoleGrantModel> = granted.cloned().collect();
        let caller = Caller { id: Some(id), trust_domain: &self.trust_domain, roles: &roles, now };
        let matching = sources.iter().filter(|source| source.matches(&caller));
        let until = matching.map(|source| match source {
            SourceMatch::Role(role) => {
                let held = roles.iter().filter(|grant| grant.role == *role && grant.is_in_force(now));
                held.map(|grant| grant.not_after).max().unwrap_or_default()
            }
            _ => u64::MAX,
        });
        until.max()
    }
}
