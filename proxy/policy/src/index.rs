//! The policy model arranged for one question per request: what may this source do at this port?
//!
//! For every declared port of every workload the rules are picked out once, and those that name only exact identities
//! are kept by identity. A decision then looks at the rules written for its source, plus those with wildcards or
//! classes, however many policies the mesh has. Ports that nobody declared take a plain walk over the workload's
//! policies: the answer is the same, and input cannot grow the index.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use signet_identity::{SpiffeId, TrustDomain};

use crate::model::{
    AccessPolicyModel, EgressRule, MtlsMode, PolicyMode, PolicyModel, Protection, Protocol, RuleModel,
    SourceMatch, SpeaksFirst, Transport, WorkloadModel,
};
use crate::refusal::Refusal;
use crate::target::{check_authority_syntax, host_of};

/// Why a destination outside the mesh may be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// An egress rule lists it.
    Listed,
    /// It is not listed, but the source's mode is permissive. Count these: strict mode would refuse them.
    Permissive,
}

/// A [`PolicyModel`] ready to decide with. Immutable; replace it as a whole.
#[derive(Clone, Debug)]
pub struct PolicyIndex {
    /// `None` until a first policy arrived.
    rules: Option<Box<Ready>>,
}

#[derive(Clone, Debug)]
struct Ready {
    trust_domain: TrustDomain,
    egress: Vec<EgressRule>,
    workloads: HashMap<SpiffeId, Entry>,
    /// Lower-case host name to the workloads that are called by it: each agent has its own `cimi`.
    names: HashMap<String, Vec<SpiffeId>>,
    /// By network, then by address and port.
    advertised: HashMap<String, HashMap<(IpAddr, u16), Published>>,
}

/// What stands behind a published address and port.
#[derive(Clone, Debug)]
struct Published {
    workload: SpiffeId,
    target_port: u16,
}

/// One workload with the policies that select it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) model: WorkloadModel,
    pub(crate) mtls: MtlsMode,
    pub(crate) policies: Vec<Arc<IndexedPolicy>>,
    pub(crate) has_observers: bool,
    ports: HashMap<u16, PortRules>,
}

/// A policy in the shape that deciding needs.
#[derive(Debug)]
pub(crate) struct IndexedPolicy {
    pub(crate) name: Arc<str>,
    pub(crate) model: AccessPolicyModel,
    pub(crate) rules: Vec<Arc<IndexedRule>>,
}

/// A rule with the names a permit reports.
#[derive(Debug)]
pub(crate) struct IndexedRule {
    pub(crate) policy: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) model: RuleModel,
}

/// The enforced rules of one declared port.
#[derive(Clone, Debug)]
struct PortRules {
    facts: PortFacts,
    by_identity: HashMap<SpiffeId, Vec<Arc<IndexedRule>>>,
    /// Rules with a source that is not an exact identity.
    general: Vec<Arc<IndexedRule>>,
}

/// What enforced policies and the declaration make of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortFacts {
    /// Only HTTP passes.
    pub(crate) l7: bool,
    /// Some enforced policy selects it.
    pub(crate) selected: bool,
}

impl PolicyIndex {
    /// Arranges a model. Names in it that lead nowhere select nothing.
    pub fn new(model: &PolicyModel) -> Self {
        let policies: Vec<Arc<IndexedPolicy>> = model.policies.iter().map(index_policy).collect();
        let mut ready = Ready {
            trust_domain: model.trust_domain.clone(),
            egress: model.egress.clone(),
            workloads: HashMap::with_capacity(model.workloads.len()),
            names: HashMap::new(),
            advertised: HashMap::new(),
        };
        for workload in &model.workloads {
            for name in &workload.names {
                ready.names.entry(name.to_ascii_lowercase()).or_default().push(workload.id.clone());
            }
            for place in &workload.advertise {
                ready
                    .advertised
                    .entry(place.network.clone())
                    .or_default()
                    .entry((place.address.to_canonical(), place.port))
                    .or_insert_with(|| Published {
                        workload: workload.id.clone(),
                        target_port: place.target_port,
                    });
            }
            let entry = Entry::new(workload, model.mtls_of(workload), &policies);
            ready.workloads.entry(workload.id.clone()).or_insert(entry);
        }
        Self { rules: Some(Box::new(ready)) }
    }

    /// The index of a sidecar that has no policy yet: every decision is [`Refusal::NotReady`].
    pub fn deny_all() -> Self {
        Self { rules: None }
    }

    /// The mesh's trust domain, once a policy arrived.
    pub fn trust_domain(&self) -> Option<&TrustDomain> {
        self.rules.as_ref().map(|ready| &ready.trust_domain)
    }

    /// What was declared about a workload.
    pub fn workload(&self, id: &SpiffeId) -> Option<&WorkloadModel> {
        self.entry(id).map(|entry| &entry.model)
    }

    /// The mode in force for a workload; strict for one that is not declared.
    pub fn mtls(&self, workload: &SpiffeId) -> MtlsMode {
        self.entry(workload).map_or(MtlsMode::Strict, |entry| entry.mtls)
    }

    /// How messages to a workload are protected; signed for one that is not declared.
    pub fn protection(&self, workload: &SpiffeId) -> Protection {
        self.entry(workload).map_or_else(Protection::default, |entry| entry.model.protection)
    }

    /// The header fields that are sealed in messages of level `private` to and from a workload.
    pub fn sealed_headers(&self, workload: &SpiffeId) -> &[String] {
        self.entry(workload).map_or(&[], |entry| &entry.model.sealed_headers)
    }

    /// The declared protocol of a port; `auto` when nothing was declared.
    pub fn protocol(&self, destination: &SpiffeId, port: u16) -> Protocol {
        self.workload(destination)
            .and_then(|workload| workload.port(port))
            .map_or(Protocol::Auto, |declared| declared.protocol)
    }

    /// Which side speaks first on a port, where that was declared.
    pub fn speaks_first(&self, destination: &SpiffeId, port: u16) -> Option<SpeaksFirst> {
        self.workload(destination)?.port(port)?.speaks_first
    }

    /// Whether only HTTP passes at this port: declared as HTTP, or decided on by method or path.
    pub fn is_l7(&self, destination: &SpiffeId, port: u16) -> bool {
        self.entry(destination).is_some_and(|entry| entry.port_facts(port).l7)
    }

    /// Whether any enforced rule could allow this source anything at this port. To be asked before the first bytes are
    /// known; it allows nothing by itself.
    pub fn l4_possible(&self, source: Option<&SpiffeId>, destination: &SpiffeId, port: u16) -> bool {
        let (Some(ready), Some(entry)) = (&self.rules, self.entry(destination)) else { return false };
        if source.is_none() && entry.mtls == MtlsMode::Strict {
            return false;
        }
        entry.find_rule(source, port, &ready.trust_domain, |_| true).is_some()
    }

    /// The workload published at an address, and the container port behind it.
    pub fn advertised(&self, network: &str, address: IpAddr, port: u16) -> Option<(&SpiffeId, u16)> {
        let published = self.rules.as_ref()?.advertised.get(network)?.get(&(address.to_canonical(), port))?;
        Some((&published.workload, published.target_port))
    }

    /// Whether a request for this host may go to this workload. A host that nobody declared may: DNS decides on names
    /// the mesh does not know. Port, letter case and a trailing dot make no difference.
    ///
    /// # Errors
    /// [`Refusal::AuthorityMismatch`] when the host is a declared name of other workloads only,
    /// [`Refusal::AmbiguousTarget`] when it is no plain host.
    pub fn check_authority(&self, destination: &SpiffeId, authority: &str) -> Result<(), Refusal> {
        check_authority_syntax(authority).map_err(|_| Refusal::AmbiguousTarget)?;
        let Some(ready) = &self.rules else { return Err(Refusal::NotReady) };
        let host = host_of(authority);
        let host = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(host)
        };
        match ready.names.get(host.as_ref()) {
            Some(owners) if !owners.contains(destination) => Err(Refusal::AuthorityMismatch),
            _ => Ok(()),
        }
    }

    /// Whether `source` may reach a destination that is not in the mesh.
    ///
    /// # Errors
    /// [`Refusal::UnmeshedDestination`] when it is not listed and the source is strict, [`Refusal::NotReady`] before
    /// the first policy.
    pub fn egress(
        &self,
        source: &SpiffeId,
        address: IpAddr,
        port: u16,
        transport: Transport,
    ) -> Result<Egress, Refusal> {
        let Some(ready) = &self.rules else { return Err(Refusal::NotReady) };
        if ready.egress.iter().any(|rule| rule.matches(address, port, transport)) {
            return Ok(Egress::Listed);
        }
        match self.mtls(source) {
            MtlsMode::Permissive => Ok(Egress::Permissive),
            MtlsMode::Strict => Err(Refusal::UnmeshedDestination),
        }
    }

    pub(crate) fn entry(&self, id: &SpiffeId) -> Option<&Entry> {
        self.rules.as_ref()?.workloads.get(id)
    }
}

impl Entry {
    fn new(workload: &WorkloadModel, mtls: MtlsMode, policies: &[Arc<IndexedPolicy>]) -> Self {
        let policies: Vec<Arc<IndexedPolicy>> =
            policies.iter().filter(|policy| policy.model.target.selects(workload)).cloned().collect();
        let mut entry = Self {
            model: workload.clone(),
            mtls,
            has_observers: policies.iter().any(|policy| policy.model.mode == PolicyMode::Observe),
            policies,
            ports: HashMap::new(),
        };
        entry.ports =
            workload.ports.iter().map(|declared| (declared.port, entry.pick(declared.port))).collect();
        entry
    }

    fn pick(&self, port: u16) -> PortRules {
        let mut picked =
            PortRules { facts: self.work_out(port), by_identity: HashMap::new(), general: Vec::new() };
        for rule in self.rules_at(port, PolicyMode::Enforce) {
            match exact_sources(&rule.model) {
                Some(sources) => {
                    for source in sources {
                        picked.by_identity.entry(source).or_default().push(Arc::clone(rule));
                    }
                }
                None => picked.general.push(Arc::clone(rule)),
            }
        }
        picked
    }

    /// The facts of a port without the index.
    fn work_out(&self, port: u16) -> PortFacts {
        let declared = self.model.port(port).is_some_and(|declared| declared.protocol.is_http());
        let ruled = || {
            self.rules_at(port, PolicyMode::Enforce)
                .flat_map(|rule| &rule.model.to)
                .any(|operation| operation.is_l7() && operation.covers_port(port))
        };
        PortFacts {
            l7: declared || ruled(),
            selected: self
                .policies
                .iter()
                .any(|policy| policy.model.mode == PolicyMode::Enforce && policy.model.selects_port(port)),
        }
    }

    pub(crate) fn port_facts(&self, port: u16) -> PortFacts {
        self.ports.get(&port).map_or_else(|| self.work_out(port), |rules| rules.facts)
    }

    /// The rules of policies of one mode that have something to say about a port.
    pub(crate) fn rules_at(&self, port: u16, mode: PolicyMode) -> impl Iterator<Item = &Arc<IndexedRule>> {
        self.policies
            .iter()
            .filter(move |policy| policy.model.mode == mode && policy.model.selects_port(port))
            .flat_map(|policy| &policy.rules)
            .filter(move |rule| rule.covers_port(port))
    }

    /// An enforced rule at this port that matches the source and passes `accepts`.
    pub(crate) fn find_rule(
        &self,
        source: Option<&SpiffeId>,
        port: u16,
        own: &TrustDomain,
        accepts: impl Fn(&IndexedRule) -> bool,
    ) -> Option<&Arc<IndexedRule>> {
        let Some(rules) = self.ports.get(&port) else {
            return self
                .rules_at(port, PolicyMode::Enforce)
                .find(|rule| rule.model.matches_source(source, own) && accepts(rule));
        };
        let written_for_source = source.and_then(|id| rules.by_identity.get(id)).into_iter().flatten();
        let general = rules.general.iter().filter(|rule| rule.model.matches_source(source, own));
        written_for_source.chain(general).find(|rule| accepts(rule))
    }
}

impl IndexedRule {
    fn covers_port(&self, port: u16) -> bool {
        self.model.to.is_empty() || self.model.to.iter().any(|operation| operation.covers_port(port))
    }

    /// Whether the rule allows this at a port that its policy selects, leaving the source aside.
    pub(crate) fn allows(&self, port: u16, request: Option<(&str, &str)>) -> bool {
        self.model.to.is_empty()
            || self.model.to.iter().any(|operation| {
                operation.covers_port(port)
                    && match request {
                        Some((method, path)) => {
                            operation.allows_method(method) && operation.allows_path(path)
                        }
                        None => !operation.is_l7(),
                    }
            })
    }
}

fn index_policy(model: &AccessPolicyModel) -> Arc<IndexedPolicy> {
    let name: Arc<str> = model.name.as_str().into();
    let rules = model
        .rules
        .iter()
        .map(|rule| {
            Arc::new(IndexedRule {
                policy: Arc::clone(&name),
                name: rule.name.as_str().into(),
                model: rule.clone(),
            })
        })
        .collect();
    Arc::new(IndexedPolicy { name, model: model.clone(), rules })
}

/// The identities a rule is for, if it names nothing but exact ones.
fn exact_sources(rule: &RuleModel) -> Option<Vec<SpiffeId>> {
    rule.from
        .iter()
        .map(|source| match source {
            SourceMatch::Identity(pattern) => pattern.exact(),
            _ => None,
        })
        .collect()
}
