//! The policy model arranged for one question per request: what may this source do at this port?
//!
//! For every declared port of every workload the rules are picked out once, and those that name only exact identities
//! are kept by identity. A decision then looks at the rules written for its source, plus those with wildcards or
//! classes, however many policies the mesh has. Ports that nobody declared take a plain walk over the workload's
//! policies: the answer is the same, and input cannot grow the index.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use signet_identity::{SpiffeId, TrustDomain};

use crate::condition::{RequestHeaders, TimeWindow};
use crate::decide::{Facts, Layer, Origin};
use crate::egress_policy::{EgressEntry, EgressPolicyModel, NamePattern, Origination};
use crate::header_policy::{FieldPattern, HeaderPlan};
use crate::intermediary::{Intermediaries, Relay};
use crate::model::{
    AccessPolicyModel, Caller, Conditions, EgressRule, HeaderPolicyModel, MtlsMode, Operation, PolicyAction,
    PolicyMode, PolicyModel, Protection, Protocol, RoleGrantModel, RuleModel, SourceMatch, SpeaksFirst,
    Target, Transport, WorkloadModel,
};
use crate::normal::{NormalTarget, NormalizationPolicyModel, ReceivedTarget, read_target};
use crate::offline::{Offline, OfflineBound};
use crate::protection::{Answer, ProtectionPolicyModel, answers};
use crate::refusal::Refusal;
use crate::target::{check_authority_syntax, host_of};
use crate::traffic_policy::TrafficPolicyModel;

/// A map that is asked several times for each request. Its keys are what operators wrote, and workloads that may appoint; their
/// numbers are bounded and the hash has a seed of its own in each process, so a fast one is enough.
type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Why a destination outside the mesh may be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// An egress rule lists it.
    Listed,
    /// It may be, for some names: see [`PolicyIndex::egress_to`].
    Named,
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
    workloads: Map<SpiffeId, Entry>,
    /// Whether there is any traffic policy: most meshes begin without.
    has_traffic: bool,
    /// Lower-case host name to the workloads that are called by it: each agent has its own `cimi`.
    names: Map<String, Vec<SpiffeId>>,
    /// By network, then by address and port.
    advertised: Map<String, Map<(IpAddr, u16), Published>>,
    roles: Map<SpiffeId, Vec<RoleGrantModel>>,
    /// By network, then by address and port.
    virtual_addresses: Map<String, Map<(IpAddr, u16), Vec<Published>>>,
    /// The different windows that rules ask for.
    windows: Vec<TimeWindow>,
    intermediaries: Intermediaries,
    offline: Offline,
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
    /// The header fields that any rule, of whatever mode, asks for.
    asked_fields: Vec<FieldPattern>,
    header_policies: Vec<Arc<HeaderPolicyModel>>,
    protection_policies: Vec<Arc<ProtectionPolicyModel>>,
    normalization_policies: Vec<Arc<NormalizationPolicyModel>>,
    traffic_policies: Vec<Arc<TrafficPolicyModel>>,
    egress_policies: Vec<Arc<EgressPolicyModel>>,
    ports: Map<u16, PortRules>,
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
    /// It is what two trust domains let each other do.
    is_federation: bool,
}

/// The enforced rules of one declared port.
#[derive(Clone, Debug)]
struct PortRules {
    facts: PortFacts,
    allow: RuleSet,
    deny: RuleSet,
}

/// The rules of one action at one port.
#[derive(Clone, Debug, Default)]
struct RuleSet {
    by_identity: Map<SpiffeId, Vec<Arc<IndexedRule>>>,
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
    /// Some enforced policy that denies selects it.
    pub(crate) denies: bool,
}

/// What a rule is asked about, but for who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) port: u16,
    pub(crate) request: Option<(&'a str, &'a str, Option<&'a RequestHeaders>)>,
    origin: Origin,
    now: u64,
}

impl<'a> Asked<'a> {
    pub(crate) fn of(facts: &Facts<'a>) -> Self {
        let request = match facts.layer {
            Layer::Http { method, path, headers, .. } => Some((method, path, headers)),
            Layer::Opaque => None,
        };
        Self { port: facts.port, request, origin: facts.origin, now: facts.now }
    }
}

impl PolicyIndex {
    /// Arranges a model. Names in it that lead nowhere select nothing.
    pub fn new(model: &PolicyModel) -> Self {
        let ordinary = model.policies.iter().map(|policy| index_policy(policy, false));
        let federation = model.federation_policies.iter().map(|policy| index_policy(policy, true));
        let policies: Vec<Arc<IndexedPolicy>> = ordinary.chain(federation).collect();
        let mut ready = Ready {
            trust_domain: model.trust_domain.clone(),
            egress: model.egress.clone(),
            workloads: Map::default(),
            has_traffic: !model.traffic_policies.is_empty(),
            names: Map::default(),
            advertised: Map::default(),
            roles: Map::default(),
            virtual_addresses: Map::default(),
            windows: windows_of(model),
            intermediaries: Intermediaries::new(model),
            offline: model.offline,
        };
        for grant in &model.role_grants {
            ready.roles.entry(grant.identity.clone()).or_default().push(grant.clone());
        }
        let header_policies: Vec<Arc<HeaderPolicyModel>> =
            model.header_policies.iter().cloned().map(Arc::new).collect();
        let protection_policies: Vec<Arc<ProtectionPolicyModel>> =
            model.protection_policies.iter().cloned().map(Arc::new).collect();
        let normalization_policies: Vec<Arc<NormalizationPolicyModel>> =
            model.normalization_policies.iter().cloned().map(Arc::new).collect();
        let egress_policies: Vec<Arc<EgressPolicyModel>> =
            model.egress_policies.iter().cloned().map(Arc::new).collect();
        let traffic_policies: Vec<Arc<TrafficPolicyModel>> =
            model.traffic_policies.iter().cloned().map(Arc::new).collect();
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
            for place in &workload.virtual_addresses {
                let network = ready.virtual_addresses.entry(place.network.clone()).or_default();
                network
                    .entry((place.address.to_canonical(), place.port))
                    .or_default()
                    .push(Published { workload: workload.id.clone(), target_port: place.target_port });
            }
            let is_foreign = workload.id.trust_domain() != model.trust_domain.as_str();
            let selected = |target: &Target| target.selects(workload) && (!is_foreign || target.is_by_name());
            let mut entry = Entry::new(
                workload,
                &selected,
                model.mtls_of(workload),
                &policies,
                &header_policies,
                &protection_policies,
                &normalization_policies,
            );
            let selecting = traffic_policies.iter().filter(|policy| selected(&policy.target));
            entry.traffic_policies = selecting.cloned().collect();
            let selecting = egress_policies.iter().filter(|policy| selected(&policy.target));
            entry.egress_policies = selecting.cloned().collect();
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

    /// How long a workload may go on without its control plane, where policy bounds that.
    pub fn offline_bound(&self, workload: &SpiffeId) -> Option<OfflineBound> {
        let offline =
            self.rules.as_ref().map(|ready| &ready.offline).filter(|offline| !offline.is_empty())?;
        offline.of(self.workload(workload)?.class)
    }

    /// What was declared about a workload.
    pub fn workload(&self, id: &SpiffeId) -> Option<&WorkloadModel> {
        self.entry(id).map(|entry| &entry.model)
    }

    /// The mode in force for a workload; strict for one that is not declared.
    pub fn mtls(&self, workload: &SpiffeId) -> MtlsMode {
        self.entry(workload).map_or(MtlsMode::Strict, |entry| entry.mtls)
    }

    /// How messages to a port of a workload, and their answers, are protected; signed for one that is not declared.
    /// `request` is its method and raw path; `None` for bytes that are not HTTP.
    pub fn protection(&self, workload: &SpiffeId, port: u16, request: Option<(&str, &str)>) -> Protection {
        let Some(entry) = self.entry(workload) else { return Protection::default() };
        let mut strictest: Option<Protection> = None;
        entry.protection_answers(port, request, |answer| {
            strictest =
                Some(strictest.map_or(answer.protection, |so_far| so_far.strictest(answer.protection)));
        });
        strictest.unwrap_or(entry.model.protection)
    }

    /// The header fields that are sealed in messages of level `private` like this one, and in their answers.
    pub fn sealed_headers(
        &self,
        workload: &SpiffeId,
        port: u16,
        request: Option<(&str, &str)>,
    ) -> Vec<String> {
        let mut names = BTreeSet::new();
        if let Some(entry) = self.entry(workload) {
            entry.protection_answers(port, request, |answer| names.extend(answer.sealed_headers));
        }
        names.into_iter().cloned().collect()
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

    /// Whether only HTTP passes at this port: declared as HTTP, or decided on or protected by method or path.
    pub fn is_l7(&self, destination: &SpiffeId, port: u16) -> bool {
        self.entry(destination).is_some_and(|entry| entry.port_facts(port).l7)
    }

    /// Whether any enforced rule could allow this source anything at this port. To be asked before the first bytes are
    /// known; it allows nothing by itself.
    pub fn l4_possible(
        &self,
        source: Option<&SpiffeId>,
        destination: &SpiffeId,
        port: u16,
        now: u64,
    ) -> bool {
        let (Some(caller), Some(entry)) = (self.caller(source, now), self.entry(destination)) else {
            return false;
        };
        if source.is_none() && entry.mtls == MtlsMode::Strict {
            return false;
        }
        entry.find_rule(PolicyAction::Allow, &caller, port, |_| true).is_some()
    }

    /// Whether the header fields of requests to a workload have to be kept for [`Facts`].
    pub fn asks_for_headers(&self, destination: &SpiffeId) -> bool {
        self.entry(destination).is_some_and(|entry| !entry.asked_fields.is_empty())
    }

    /// What becomes of the header fields of a permitted request before the application gets it.
    pub fn header_plan<'a>(
        &'a self,
        source: Option<&'a SpiffeId>,
        destination: &SpiffeId,
        port: u16,
        now: u64,
    ) -> HeaderPlan<'a> {
        let entry = self.entry(destination);
        let policy =
            entry.and_then(|entry| entry.header_policies.iter().find(|policy| policy.selects_port(port)));
        HeaderPlan {
            policy: policy.map(Arc::as_ref),
            caller: self.caller(source, now),
            asked: entry.map_or(&[], |entry| &entry.asked_fields),
        }
    }

    /// How requests to a port of a workload are sent and how many it takes, where a policy says.
    pub fn traffic(&self, destination: &SpiffeId, port: u16) -> Option<&Arc<TrafficPolicyModel>> {
        if !self.rules.as_ref()?.has_traffic {
            return None;
        }
        self.entry(destination)?.traffic_policies.iter().find(|policy| policy.selects_port(port))
    }

    /// The workloads behind a virtual address, each with the container port that stands behind the dialled one.
    pub fn behind<'a>(
        &'a self,
        network: &str,
        address: IpAddr,
        port: u16,
    ) -> impl Iterator<Item = (&'a SpiffeId, u16)> + use<'a> {
        let places = self
            .rules
            .as_ref()
            .and_then(|ready| ready.virtual_addresses.get(network)?.get(&(address.to_canonical(), port)));
        places.into_iter().flatten().map(|place| (&place.workload, place.target_port))
    }

    /// The first moment after this one at which the same question may get another answer with nobody changing
    /// anything: a role ends, a window opens or closes.
    pub fn next_change(&self, after: u64) -> Option<u64> {
        let ready = self.rules.as_ref()?;
        let roles = ready.roles.values().flatten().map(|grant| grant.not_after).filter(|end| *end > after);
        roles.chain(ready.windows.iter().filter_map(|window| window.next_change(after))).min()
    }

    /// What a request to a port of a workload asks for, in the one form that is decided on and handed on. What two
    /// programs could read differently is refused, unless a policy of that workload says for its route which reading
    /// counts.
    ///
    /// # Errors
    /// [`Refusal::ConnectRefused`] for CONNECT, [`Refusal::AmbiguousTarget`].
    pub fn read_target<'a>(
        &self,
        destination: &SpiffeId,
        port: u16,
        received: &ReceivedTarget<'a>,
    ) -> Result<NormalTarget<'a>, Refusal> {
        let policies = self.entry(destination).map_or(&[][..], |entry| &entry.normalization_policies);
        let policies = policies.iter().map(Arc::as_ref).filter(|policy| policy.selects_port(port));
        read_target(policies, received)
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

    /// Whether `source` may reach a destination that is not in the mesh, as far as that can be told before it has said
    /// anything.
    ///
    /// # Errors
    /// [`Refusal::UnmeshedDestination`] when it is not listed and the source is strict or selected by an egress policy,
    /// [`Refusal::NotReady`] before the first policy.
    pub fn egress(
        &self,
        source: &SpiffeId,
        address: IpAddr,
        port: u16,
        transport: Transport,
    ) -> Result<Egress, Refusal> {
        let mut entries = self.egress_entries(source);
        if entries.any(|entry| !entry.names.is_empty() && entry.covers(address, port, transport)) {
            return Ok(Egress::Named);
        }
        self.egress_by_address(source, address, port, transport)
    }

    /// Whether `source` may reach a TCP destination outside the mesh by this name, given as an authority or a server
    /// name, or without having named it; and the TLS to open towards it.
    ///
    /// # Errors
    /// As for [`Self::egress`].
    pub fn egress_to(
        &self,
        source: &SpiffeId,
        address: IpAddr,
        port: u16,
        name: Option<&str>,
    ) -> Result<Option<&Origination>, Refusal> {
        if let Some(name) = name {
            let host = host_of(name).to_ascii_lowercase();
            let mut entries =
                self.egress_entries(source).filter(|entry| entry.covers(address, port, Transport::Tcp));
            if let Some(entry) = entries.find(|entry| entry.matches_name(&host)) {
                return Ok(entry.tls.as_ref());
            }
        }
        self.egress_by_address(source, address, port, Transport::Tcp).map(|_| None)
    }

    /// The name by which an egress policy of `source` lists a TCP destination that was called by this authority or server
    /// name: policy's words, not the caller's.
    pub fn egress_name(
        &self,
        source: &SpiffeId,
        address: IpAddr,
        port: u16,
        called: &str,
    ) -> Option<&NamePattern> {
        let host = host_of(called).to_ascii_lowercase();
        let mut covering =
            self.egress_entries(source).filter(|entry| entry.covers(address, port, Transport::Tcp));
        covering.find_map(|entry| entry.names.iter().find(|pattern| pattern.matches(&host)))
    }

    /// Whether an egress policy selects a workload: it then reaches nothing that is not listed.
    pub fn restricts_egress(&self, source: &SpiffeId) -> bool {
        self.entry(source).is_some_and(|entry| !entry.egress_policies.is_empty())
    }

    fn egress_entries(&self, source: &SpiffeId) -> impl Iterator<Item = &EgressEntry> {
        self.entry(source).into_iter().flat_map(|entry| &entry.egress_policies).flat_map(|policy| &policy.to)
    }

    fn egress_by_address(
        &self,
        source: &SpiffeId,
        address: IpAddr,
        port: u16,
        transport: Transport,
    ) -> Result<Egress, Refusal> {
        let Some(ready) = &self.rules else { return Err(Refusal::NotReady) };
        let listed = ready.egress.iter().any(|rule| rule.matches(address, port, transport))
            || self
                .egress_entries(source)
                .any(|entry| entry.names.is_empty() && entry.covers(address, port, transport));
        if listed {
            return Ok(Egress::Listed);
        }
        match self.mtls(source) {
            MtlsMode::Permissive if !self.restricts_egress(source) => Ok(Egress::Permissive),
            MtlsMode::Permissive | MtlsMode::Strict => Err(Refusal::UnmeshedDestination),
        }
    }

    /// Whether applications reach an intermediary at this address: a proxy that is not of the mesh.
    pub fn is_intermediary(&self, address: SocketAddr) -> bool {
        self.rules.as_ref().is_some_and(|ready| ready.intermediaries.is_at(address))
    }

    /// The way that a request for this path takes behind the intermediary at this address.
    pub fn relay(&self, address: SocketAddr, path: &str) -> Option<&Relay> {
        self.rules.as_ref()?.intermediaries.relay(address, path)
    }

    /// Whether an intermediary with this address hands anything on to this port.
    pub fn hands_on(&self, from: IpAddr, to: &SpiffeId, port: u16) -> bool {
        self.rules.as_ref().is_some_and(|ready| ready.intermediaries.hands_on(from, to, port))
    }

    /// The ways by which an intermediary with this address may have brought a request to this port, whose origin asked
    /// for `path`.
    pub fn relays_from<'a>(
        &'a self,
        from: IpAddr,
        to: &'a SpiffeId,
        port: u16,
        path: &'a str,
    ) -> impl Iterator<Item = &'a Relay> {
        let ready = self.rules.as_ref().into_iter();
        ready.flat_map(move |ready| ready.intermediaries.relays_from(from, to, port, path))
    }

    /// A source as rules see it; `None` before the first policy.
    pub(crate) fn caller<'a>(&'a self, id: Option<&'a SpiffeId>, now: u64) -> Option<Caller<'a>> {
        let ready = self.rules.as_ref()?;
        let roles = match id {
            Some(id) if !ready.roles.is_empty() => ready.roles.get(id).map_or(&[][..], Vec::as_slice),
            _ => &[],
        };
        Some(Caller { id, trust_domain: &ready.trust_domain, roles, now })
    }

    pub(crate) fn entry(&self, id: &SpiffeId) -> Option<&Entry> {
        self.rules.as_ref()?.workloads.get(id)
    }
}

impl Entry {
    fn new(
        workload: &WorkloadModel,
        selected: &dyn Fn(&Target) -> bool,
        mtls: MtlsMode,
        policies: &[Arc<IndexedPolicy>],
        header_policies: &[Arc<HeaderPolicyModel>],
        protection_policies: &[Arc<ProtectionPolicyModel>],
        normalization_policies: &[Arc<NormalizationPolicyModel>],
    ) -> Self {
        let policies: Vec<Arc<IndexedPolicy>> =
            policies.iter().filter(|policy| selected(&policy.model.target)).cloned().collect();
        let operations = policies.iter().flat_map(|policy| &policy.rules).flat_map(|rule| &rule.model.to);
        let names: BTreeSet<&str> =
            operations.flat_map(|operation| &operation.headers).map(|field| field.name.as_str()).collect();
        let asked_fields = names.into_iter().map(FieldPattern::named).collect();
        let mut entry = Self {
            model: workload.clone(),
            mtls,
            has_observers: policies.iter().any(|policy| policy.model.mode == PolicyMode::Observe),
            asked_fields,
            header_policies: header_policies
                .iter()
                .filter(|policy| selected(&policy.target))
                .cloned()
                .collect(),
            protection_policies: protection_policies
                .iter()
                .filter(|policy| selected(&policy.target))
                .cloned()
                .collect(),
            normalization_policies: normalization_policies
                .iter()
                .filter(|policy| selected(&policy.target))
                .cloned()
                .collect(),
            traffic_policies: Vec::new(),
            egress_policies: Vec::new(),
            policies,
            ports: Map::default(),
        };
        entry.ports =
            workload.ports.iter().map(|declared| (declared.port, entry.pick(declared.port))).collect();
        entry
    }

    fn pick(&self, port: u16) -> PortRules {
        let of = |action| RuleSet::new(self.rules_at(port, PolicyMode::Enforce, action));
        PortRules { facts: self.work_out(port), allow: of(PolicyAction::Allow), deny: of(PolicyAction::Deny) }
    }

    /// The facts of a port without the index.
    fn work_out(&self, port: u16) -> PortFacts {
        let declared = self.model.port(port).is_some_and(|declared| declared.protocol.is_http());
        // A deny that is about requests must see requests, like any other rule that is.
        let ruled = || {
            [PolicyAction::Allow, PolicyAction::Deny]
                .into_iter()
                .flat_map(|action| self.rules_at(port, PolicyMode::Enforce, action))
                .flat_map(|rule| &rule.model.to)
                .any(|operation| operation.is_l7() && operation.covers_port(port))
        };
        let mut selecting = self
            .policies
            .iter()
            .filter(|policy| policy.model.mode == PolicyMode::Enforce && policy.model.selects_port(port));
        // Bytes that are not HTTP must be no way round what is asked of a route.
        let routed = || {
            let mut policies = self.protection_policies.iter();
            policies.any(|policy| policy.selects_port(port) && !policy.rules.is_empty())
        };
        PortFacts {
            l7: declared || ruled() || routed(),
            selected: selecting.clone().next().is_some(),
            denies: selecting.any(|policy| policy.model.action == PolicyAction::Deny),
        }
    }

    /// What is asked of a message's protection, by everything that has something to say about it.
    pub(crate) fn protection_answers<'a>(
        &'a self,
        port: u16,
        request: Option<(&str, &str)>,
        take: impl FnMut(Answer<'a>),
    ) {
        let policies = self.protection_policies.iter().map(Arc::as_ref);
        answers(&self.model, policies.filter(|policy| policy.selects_port(port)), request, take);
    }

    pub(crate) fn port_facts(&self, port: u16) -> PortFacts {
        self.ports.get(&port).map_or_else(|| self.work_out(port), |rules| rules.facts)
    }

    /// The rules of policies of one mode and action that have something to say about a port.
    pub(crate) fn rules_at(
        &self,
        port: u16,
        mode: PolicyMode,
        action: PolicyAction,
    ) -> impl Iterator<Item = &Arc<IndexedRule>> {
        self.policies
            .iter()
            .filter(move |policy| {
                policy.model.mode == mode && policy.model.action == action && policy.model.selects_port(port)
            })
            .flat_map(|policy| &policy.rules)
            .filter(move |rule| rule.covers_port(port))
    }

    /// An enforced rule at this port that matches the source and passes `accepts`.
    pub(crate) fn find_rule(
        &self,
        action: PolicyAction,
        caller: &Caller<'_>,
        port: u16,
        accepts: impl Fn(&IndexedRule) -> bool,
    ) -> Option<&Arc<IndexedRule>> {
        let Some(rules) = self.ports.get(&port) else {
            return self
                .rules_at(port, PolicyMode::Enforce, action)
                .find(|rule| rule.matches_source(caller, action) && accepts(rule));
        };
        let rules = match action {
            PolicyAction::Allow => &rules.allow,
            PolicyAction::Deny => &rules.deny,
        };
        let written_for_source = caller.id.and_then(|id| rules.by_identity.get(id)).into_iter().flatten();
        let written_for_source = written_for_source.filter(|rule| rule.is_asked_about(caller, action));
        let general = rules.general.iter().filter(|rule| rule.matches_source(caller, action));
        written_for_source.chain(general).find(|rule| accepts(rule))
    }
}

impl RuleSet {
    fn new<'a>(rules: impl Iterator<Item = &'a Arc<IndexedRule>>) -> Self {
        let mut set = Self::default();
        for rule in rules {
            match exact_sources(&rule.model) {
                Some(sources) => {
                    for source in sources {
                        set.by_identity.entry(source).or_default().push(Arc::clone(rule));
                    }
                }
                None => set.general.push(Arc::clone(rule)),
            }
        }
        set
    }
}

impl IndexedRule {
    /// Whether it has a say about this caller: one of another trust domain is admitted by a federation alone, and denied by
    /// whatever denies.
    pub(crate) fn is_asked_about(&self, caller: &Caller<'_>, action: PolicyAction) -> bool {
        action == PolicyAction::Deny || self.is_federation || !caller.is_foreign()
    }

    /// Whether it is about this caller.
    pub(crate) fn matches_source(&self, caller: &Caller<'_>, action: PolicyAction) -> bool {
        self.is_asked_about(caller, action) && self.model.matches_source(caller)
    }

    fn covers_port(&self, port: u16) -> bool {
        self.model.to.is_empty() || self.model.to.iter().any(|operation| operation.covers_port(port))
    }

    /// Whether the rule is about what is asked, at a port that its policy selects, leaving the source aside.
    pub(crate) fn covers(&self, asked: &Asked<'_>, action: PolicyAction) -> bool {
        self.covers_operation(asked, action) && holds(&self.model.when, asked, action)
    }

    /// Whether it may turn out to be, once the header fields are known: an allow may, a deny is not foreseen.
    pub(crate) fn may_cover(&self, asked: &Asked<'_>, action: PolicyAction) -> bool {
        let open = |operation: &Operation| action == PolicyAction::Allow || operation.headers.is_empty();
        self.covers_operation_if(asked, action, open) && holds(&self.model.when, asked, action)
    }

    /// The same as [`Self::covers`] without the conditions.
    pub(crate) fn covers_operation(&self, asked: &Asked<'_>, action: PolicyAction) -> bool {
        let headers = asked.request.and_then(|(_, _, headers)| headers);
        self.covers_operation_if(asked, action, |operation| operation.matches_headers(headers, action))
    }

    fn covers_operation_if(
        &self,
        asked: &Asked<'_>,
        action: PolicyAction,
        fields: impl Fn(&Operation) -> bool,
    ) -> bool {
        self.model.to.is_empty()
            || self.model.to.iter().any(|operation| {
                operation.covers_port(asked.port)
                    && match asked.request {
                        Some((method, path, _)) => {
                            operation.matches_method(method, action)
                                && operation.matches_path(path, action)
                                && fields(operation)
                        }
                        None => !operation.is_l7(),
                    }
            })
    }
}

/// Whether what a rule asks for besides holds.
fn holds(when: &Conditions, asked: &Asked<'_>, action: PolicyAction) -> bool {
    from_there(when, asked.origin, action) && in_time(when, asked.now)
}

pub(crate) fn in_time(when: &Conditions, now: u64) -> bool {
    when.time.is_empty() || when.time.iter().any(|window| window.is_open(now))
}

pub(crate) fn from_there(when: &Conditions, origin: Origin, action: PolicyAction) -> bool {
    match origin.address() {
        _ if when.source_addresses.is_empty() => true,
        Some(address) => when.source_addresses.iter().any(|range| range.contains(&address)),
        None => action == PolicyAction::Allow,
    }
}

/// The different windows of all rules.
fn windows_of(model: &PolicyModel) -> Vec<TimeWindow> {
    let rules = model.policies.iter().flat_map(|policy| &policy.rules);
    let windows: HashSet<TimeWindow> = rules.flat_map(|rule| rule.when.time.iter().copied()).collect();
    windows.into_iter().collect()
}

fn index_policy(model: &AccessPolicyModel, is_federation: bool) -> Arc<IndexedPolicy> {
    let name: Arc<str> = model.name.as_str().into();
    let rules = model
        .rules
        .iter()
        .map(|rule| {
            Arc::new(IndexedRule {
                policy: Arc::clone(&name),
                name: rule.name.as_str().into(),
                model: rule.clone(),
                is_federation,
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
