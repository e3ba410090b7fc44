//! The decision: pure, total, default deny.

use std::net::IpAddr;
use std::sync::Arc;

use signet_identity::SpiffeId;

use crate::condition::RequestHeaders;
use crate::index::{Asked, Entry, IndexedRule, PolicyIndex};
use crate::model::{MtlsMode, PolicyAction, PolicyMode};
use crate::offline::Staleness;
use crate::refusal::Refusal;
use crate::target::check_path;

/// Everything a decision may depend on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The identity the source proved; `None` for plaintext.
    pub source: Option<&'a SpiffeId>,
    /// Where the connection comes from.
    pub origin: Origin,
    /// The workload the message is for.
    pub destination: &'a SpiffeId,
    /// The container port it is for.
    pub port: u16,
    /// What kind of message it is.
    pub layer: Layer<'a>,
    /// When, in seconds since 1970.
    pub now: u64,
}

/// Where a connection comes from, as far as whoever decides can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The address the destination sees.
    Seen(IpAddr),
    /// Only the destination will see it: conditions on it are its to judge, and stand in nobody's way before.
    LeftToDestination,
}

impl Origin {
    /// The address, where it is known.
    pub fn address(self) -> Option<IpAddr> {
        match self {
            Self::Seen(address) => Some(address.to_canonical()),
            Self::LeftToDestination => None,
        }
    }
}

/// What the mesh sees of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer<'a> {
    /// One HTTP request.
    Http {
        /// The method, as received.
        method: &'a str,
        /// The raw path, without the query.
        path: &'a str,
        /// The host and optional port the request names.
        authority: &'a str,
        /// The header fields as received; `None` when nobody kept them because no rule asked for any.
        headers: Option<&'a RequestHeaders>,
    },
    /// Bytes: TLS of the application's own, or any protocol that is not HTTP.
    Opaque,
}

/// Proof that [`decide()`] allowed something, and which rule did. There is no other way to get one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "whoever forwards must hold the permit"]
pub struct Permit {
    policy: Arc<str>,
    rule: Arc<str>,
}

impl Permit {
    fn from_rule(rule: &IndexedRule) -> Self {
        Self { policy: Arc::clone(&rule.policy), rule: Arc::clone(&rule.name) }
    }

    /// The name of the policy that allows it.
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// The name of the rule that allows it. Others may too.
    pub fn rule(&self) -> &str {
        &self.rule
    }
}

/// What one observe-mode policy would have said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The policy.
    pub policy: Arc<str>,
    /// Whether its rules allow or deny.
    pub action: PolicyAction,
    /// The rule that matches; `None` if none does.
    pub rule: Option<Arc<str>>,
}

impl Observation {
    /// Whether the policy would have let it pass.
    pub fn allowed(&self) -> bool {
        match self.action {
            PolicyAction::Allow => self.rule.is_some(),
            PolicyAction::Deny => self.rule.is_none(),
        }
    }
}

/// Decides on one message.
///
/// Policies in observe mode have no part in it; see [`observe`].
///
/// # Errors
/// The refusal, with the first of these that applies: `not-ready`, `no-policy` for a workload nobody declared,
/// `plaintext-refused`, `connect-refused`, `ambiguous-target`, `authority-mismatch`, `opaque-to-l7-port`, `deny-rule`,
/// and, when no rule allows it, `no-policy` or `access-denied`.
pub fn decide(index: &PolicyIndex, facts: &Facts<'_>) -> Result<Permit, Refusal> {
    decide_while(index, facts, Staleness::Fresh)
}

/// Decides under a policy that may have grown stale.
///
/// # Errors
/// Those of [`decide()`], and `policy-stale` for what was allowed before. What denies, denies.
pub fn decide_while(index: &PolicyIndex, facts: &Facts<'_>, staleness: Staleness) -> Result<Permit, Refusal> {
    judge(index, facts, staleness, IndexedRule::covers)
}

/// Whether a request may be allowed once its header fields can be read, for one that seals some of them: what a rule asks
/// of fields is left open, so that nothing is refused here that [`decide()`] would allow. It makes no [`Permit`].
///
/// # Errors
/// Those of [`decide_while()`], which the request would get whatever its fields are.
pub fn foresee(index: &PolicyIndex, facts: &Facts<'_>, staleness: Staleness) -> Result<(), Refusal> {
    judge(index, facts, staleness, IndexedRule::may_cover).map(|_| ())
}

fn judge(
    index: &PolicyIndex,
    facts: &Facts<'_>,
    staleness: Staleness,
    covers: impl Fn(&IndexedRule, &Asked<'_>, PolicyAction) -> bool,
) -> Result<Permit, Refusal> {
    let caller = index.caller(facts.source, facts.now).ok_or(Refusal::NotReady)?;
    let entry = index.entry(facts.destination).ok_or(Refusal::NoPolicy)?;
    if facts.source.is_none() && entry.mtls == MtlsMode::Strict {
        return Err(Refusal::PlaintextRefused);
    }
    let port = entry.port_facts(facts.port);
    match facts.layer {
        Layer::Http { method, path, authority, .. } => {
            check_request(method, path)?;
            index.check_authority(facts.destination, authority)?;
        }
        Layer::Opaque if port.l7 => return Err(Refusal::OpaqueToL7Port),
        Layer::Opaque => {}
    }
    let asked = Asked::of(facts);
    let matching = |action| entry.find_rule(action, &caller, facts.port, |rule| covers(rule, &asked, action));
    if port.denies && matching(PolicyAction::Deny).is_some() {
        return Err(Refusal::DenyRule);
    }
    let kept = || {
        entry.find_rule(PolicyAction::Allow, &caller, facts.port, |rule| {
            rule.model.life_safety && covers(rule, &asked, PolicyAction::Allow)
        })
    };
    match matching(PolicyAction::Allow) {
        Some(rule) if staleness == Staleness::Fresh => Ok(Permit::from_rule(rule)),
        Some(_) => {
            let kept = if staleness == Staleness::LifeSafety { kept() } else { None };
            kept.map(|rule| Permit::from_rule(rule)).ok_or(Refusal::PolicyStale)
        }
        None if port.selected => Err(Refusal::AccessDenied),
        None => Err(Refusal::NoPolicy),
    }
}

/// The request was checked where it was read; a caller that forgot must not get round a path rule.
fn check_request(method: &str, path: &str) -> Result<(), Refusal> {
    if method.eq_ignore_ascii_case("CONNECT") {
        return Err(Refusal::ConnectRefused);
    }
    if path == "*" && method == "OPTIONS" {
        return Ok(());
    }
    check_path(path).map_err(|_| Refusal::AmbiguousTarget)
}

/// What the observe-mode policies that select this port would have said, for logs and metrics. Free when there are
/// none.
pub fn observe(index: &PolicyIndex, facts: &Facts<'_>) -> Vec<Observation> {
    let (Some(caller), Some(entry)) = (index.caller(facts.source, facts.now), index.entry(facts.destination))
    else {
        return Vec::new();
    };
    if !entry.has_observers {
        return Vec::new();
    }
    let asked = Asked::of(facts);
    let said = |policy: &Arc<crate::index::IndexedPolicy>| {
        let action = policy.model.action;
        let matches =
            |rule: &&Arc<IndexedRule>| rule.matches_source(&caller, action) && rule.covers(&asked, action);
        let rule = policy.rules.iter().find(matches).map(|rule| Arc::clone(&rule.name));
        Observation { policy: Arc::clone(&policy.name), action, rule }
    };
    observers(entry, facts.port).map(said).collect()
}

fn observers(entry: &Entry, port: u16) -> impl Iterator<Item = &Arc<crate::index::IndexedPolicy>> {
    entry
        .policies
        .iter()
        .filter(move |policy| policy.model.mode == PolicyMode::Observe && policy.model.selects_port(port))
}
