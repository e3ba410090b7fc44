//! Trust domains that meet: what each of two allows, and what becomes of it.
//!
//! The manifests of a trust domain say who of the other may call which of its workloads, and which of its workloads may
//! call whom there. Something passes only where both say so: [`federate`] pairs the two and makes ordinary policies of
//! what is left, in exact identities. No wildcard reaches a sidecar, and nothing else admits a foreign identity: what
//! allows in an ordinary policy is not asked about it, see [`crate::decide()`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use signet_identity::{SpiffeId, TrustDomain};
use thiserror::Error;

use crate::index::PolicyIndex;
use crate::model::{
    AccessPolicyModel, Conditions, MtlsMode, Operation, PolicyAction, PolicyMode, PolicyModel, PortModel,
    Protocol, RuleModel, SourceMatch, Target, WorkloadModel,
};
use crate::pattern::IdentityPattern;

/// Most callers, times the workloads each of them may call, between two trust domains: all that the two say is written
/// out in exact identities, for every sidecar.
pub const MAX_FEDERATED_PAIRS: usize = 10_000;

/// What one trust domain says of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FederationModel {
    /// The manifest's name.
    pub name: String,
    /// The other trust domain.
    pub trust_domain: TrustDomain,
    /// Who of there may call what here.
    pub inbound: Vec<InboundRule>,
    /// Who of here may call whom there.
    pub outbound: Vec<OutboundRule>,
}

/// Who of the other trust domain may call what here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InboundRule {
    /// Its name, or `rule-N` counted from 1.
    pub name: String,
    /// The callers, all of the other trust domain.
    pub from: Vec<IdentityPattern>,
    /// The manifest names of the workloads that may be called.
    pub workloads: Vec<String>,
    /// The operations; empty means all.
    pub to: Vec<Operation>,
}

/// Who of here may call whom in the other trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutboundRule {
    /// Its name, or `rule-N` counted from 1.
    pub name: String,
    /// The manifest names of the callers.
    pub workloads: Vec<String>,
    /// Who may be called, all of the other trust domain.
    pub to: Vec<IdentityPattern>,
}

/// What two trust domains let each other do, put into the policy of one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Federated {
    /// Who of the other trust domain may be called from here.
    pub callees: BTreeSet<SpiffeId>,
    /// Who of the other trust domain may call something here.
    pub callers: BTreeSet<SpiffeId>,
}

impl Federated {
    /// Whether nothing may pass in either direction.
    pub fn is_empty(&self) -> bool {
        self.callees.is_empty() && self.callers.is_empty()
    }
}

/// Two trust domains name more of each other than sidecars can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the Federations of the two trust domains name more than 10000 pairs of a caller and a callee")]
pub struct TooManyPairs;

/// Puts into `own` what it and `other` both allow: nothing without a Federation on either side.
///
/// - For who may call something of `own`: a policy that admits these callers.
/// - For who of `other` may be called: the workload as `other` declares it, under the name `<trust domain>/<name>`,
///   without its host names and addresses, with a policy that admits these callers, and with what `other` asks of the
///   protection of messages to it.
///
/// # Errors
/// [`TooManyPairs`]; nothing has changed then.
pub fn federate(own: &mut PolicyModel, other: &PolicyModel) -> Result<Federated, TooManyPairs> {
    let (Some(ours), Some(theirs)) =
        (own.federation_with(&other.trust_domain), other.federation_with(&own.trust_domain))
    else {
        return Ok(Federated::default());
    };
    let mut room = MAX_FEDERATED_PAIRS;
    let called_here = meetings(own, ours, other, theirs, &mut room)?;
    let called_there = meetings(other, theirs, own, ours, &mut room)?;
    let mut federated = Federated::default();
    let mut policies = Vec::new();
    for met in &called_here {
        federated.callers.extend(met.callers.iter().cloned());
        policies.push(met.policy(&ours.name, &met.inbound.name, met.callee.name.clone()));
    }
    let mut stubs = BTreeMap::new();
    let index = PolicyIndex::new(other);
    for met in &called_there {
        let stub = stubs.entry(&met.callee.name).or_insert_with(|| stub(other, &index, met.callee));
        federated.callees.insert(stub.id.clone());
        policies.push(met.policy(&ours.name, &met.outbound.name, stub.name.clone()));
    }
    let asked = other.protection_policies.iter().filter_map(|policy| {
        let selected = stubs.iter().filter(|(name, _)| {
            other.workload_named(name).is_some_and(|workload| policy.target.selects(workload))
        });
        let names: Vec<String> = selected.map(|(_, stub)| stub.name.clone()).collect();
        let name = foreign_name(&other.trust_domain, &policy.name);
        (!names.is_empty()).then(|| crate::protection::ProtectionPolicyModel {
            name,
            target: Target::Workloads(names),
            ..policy.clone()
        })
    });
    let asked: Vec<_> = asked.collect();
    let stubs: Vec<WorkloadModel> = stubs.into_values().collect();
    own.workloads.extend(stubs);
    own.protection_policies.extend(asked);
    own.federation_policies.extend(policies);
    Ok(federated)
}

/// One inbound rule and one outbound rule that meet at a callee.
struct Meeting<'a> {
    callee: &'a WorkloadModel,
    callers: Vec<SpiffeId>,
    inbound: &'a InboundRule,
    outbound: &'a OutboundRule,
}

impl Meeting<'_> {
    fn policy(&self, federation: &str, rule: &str, callee: String) -> AccessPolicyModel {
        let from = self.callers.iter().map(|caller| SourceMatch::Identity(IdentityPattern::of(caller)));
        AccessPolicyModel {
            name: format!("federation/{federation}"),
            target: Target::Workloads(vec![callee]),
            ports: Vec::new(),
            mode: PolicyMode::Enforce,
            action: PolicyAction::Allow,
            rules: vec![RuleModel {
                name: rule.to_owned(),
                from: from.collect(),
                to: self.inbound.to.clone(),
                when: Conditions::default(),
                life_safety: false,
            }],
        }
    }
}

/// Where what the callee's domain lets in meets what the caller's lets out.
fn meetings<'a>(
    callee_model: &'a PolicyModel,
    callee_says: &'a FederationModel,
    caller_model: &'a PolicyModel,
    caller_says: &'a FederationModel,
    room: &mut usize,
) -> Result<Vec<Meeting<'a>>, TooManyPairs> {
    let mut met = Vec::new();
    for outbound in &caller_says.outbound {
        let callers: Vec<&SpiffeId> =
            own_workloads(caller_model, &outbound.workloads).map(|w| &w.id).collect();
        for inbound in &callee_says.inbound {
            let admitted = callers.iter().filter(|id| inbound.from.iter().any(|pattern| pattern.matches(id)));
            let admitted: Vec<SpiffeId> = admitted.map(|id| (*id).clone()).collect();
            if admitted.is_empty() {
                continue;
            }
            for callee in own_workloads(callee_model, &inbound.workloads) {
                if outbound.to.iter().any(|pattern| pattern.matches(&callee.id)) {
                    *room = room.checked_sub(admitted.len()).ok_or(TooManyPairs)?;
                    met.push(Meeting { callee, callers: admitted.clone(), inbound, outbound });
                }
            }
        }
    }
    Ok(met)
}

/// The workloads of the model's own trust domain with these names.
fn own_workloads<'a>(model: &'a PolicyModel, names: &'a [String]) -> impl Iterator<Item = &'a WorkloadModel> {
    let found = names.iter().filter_map(|name| model.workload_named(name));
    found.filter(|workload| workload.id.trust_domain() == model.trust_domain.as_str())
}

/// A workload of another trust domain as its callers know it. Its host names stay away: they would decide on the authority
/// of requests between workloads of this one.
fn stub(other: &PolicyModel, index: &PolicyIndex, workload: &WorkloadModel) -> WorkloadModel {
    let port = |declared: &PortModel| PortModel {
        // What is decided on by request there has to arrive as requests.
        protocol: match declared.protocol {
            Protocol::Auto if index.is_l7(&workload.id, declared.port) => Protocol::Http,
            protocol => protocol,
        },
        ..declared.clone()
    };
    WorkloadModel {
        name: foreign_name(&other.trust_domain, &workload.name),
        names: Vec::new(),
        ports: workload.ports.iter().map(port).collect(),
        mtls: Some(MtlsMode::Strict),
        addresses: Vec::new(),
        advertise: Vec::new(),
        virtual_addresses: Vec::new(),
        ..workload.clone()
    }
}

/// No manifest's name has a `/`, so this is nobody else's.
fn foreign_name(trust_domain: &TrustDomain, name: &str) -> String {
    format!("{trust_domain}/{name}")
}
