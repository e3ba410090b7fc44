//! What manifests compile to: plain data that the control plane signs and every sidecar loads.
//!
//! Values are valid by construction: identities, trust domains, patterns and address ranges are checked types, also on
//! the way in. Names of workloads, classes and networks are resolved by [`crate::compile()`]; a model from elsewhere whose
//! names lead nowhere selects nothing. Reading refuses a field that this version does not know instead of skipping it,
//! because a skipped restriction would be a permission.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use signet_identity::{Class, SpiffeId, TrustDomain};

use crate::appoint::RoleAppointerModel;
use crate::condition::{HeaderMatch, RequestHeaders, TimeWindow};
use crate::diagnostic::suggestion;
use crate::egress_policy::EgressPolicyModel;
use crate::federation::FederationModel;
use crate::header_policy::FieldPattern;
use crate::normal::NormalizationPolicyModel;
use crate::offline::Offline;
use crate::pattern::{IdentityPattern, PathPattern};
use crate::protection::ProtectionPolicyModel;
use crate::route::{matches_method, matches_path};
use crate::traffic_policy::TrafficPolicyModel;
use crate::workload_api::WorkloadApi;

/// Everything the mesh's manifests say, resolved and checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyModel {
    /// The trust domain of every workload in it.
    pub trust_domain: TrustDomain,
    /// The mode of workloads that set none.
    pub mtls: MtlsMode,
    /// How messages to workloads that set nothing are protected.
    pub protection: Protection,
    /// The header fields that level `private` seals with the body, in lower case and sorted.
    #[serde(default)]
    pub sealed_headers: Vec<String>,
    /// How far clocks may differ when signatures are checked, in seconds.
    pub clock_skew_s: u64,
    /// The networks that addresses are told apart by.
    pub networks: Vec<Network>,
    /// What may be reached outside the mesh from strict workloads.
    pub egress: Vec<EgressRule>,
    /// Certificate lifetimes per class.
    pub lifetimes: Lifetimes,
    /// How long workloads may go on without the control plane, per class.
    #[serde(default)]
    pub offline: Offline,
    /// How long after its end a certificate still gets its holder a new one, per class in seconds; the control plane's
    /// affair, not sent to sidecars.
    #[serde(default)]
    pub rejoin: Rejoin,
    /// The workloads, in the order declared.
    pub workloads: Vec<WorkloadModel>,
    /// The access policies, in the order declared.
    pub policies: Vec<AccessPolicyModel>,
    /// The header policies, in the order declared.
    #[serde(default)]
    pub header_policies: Vec<HeaderPolicyModel>,
    /// Who holds which role until when.
    #[serde(default)]
    pub role_grants: Vec<RoleGrantModel>,
    /// HTTP proxies that are not of the mesh and may stand between two workloads of it.
    #[serde(default)]
    pub intermediaries: Vec<IntermediaryModel>,
    /// How messages of single routes are protected, in the order declared.
    #[serde(default)]
    pub protection_policies: Vec<ProtectionPolicyModel>,
    /// Exceptions from the refusal of ambiguous requests, in the order declared.
    #[serde(default)]
    pub normalization_policies: Vec<NormalizationPolicyModel>,
    /// Who may give which role; the control plane's affair, not sent to sidecars.
    #[serde(default)]
    pub role_appointers: Vec<RoleAppointerModel>,
    /// The egress policies, in the order declared.
    #[serde(default)]
    pub egress_policies: Vec<EgressPolicyModel>,
    /// The traffic policies, in the order declared.
    #[serde(default)]
    pub traffic_policies: Vec<TrafficPolicyModel>,
    /// What is said of other trust domains; the control plane's affair, not sent to sidecars.
    #[serde(default)]
    pub federations: Vec<FederationModel>,
    /// What both sides of a federation allow: see [`federate`](crate::federate). No other policy allows a caller of another
    /// trust domain anything, or a call to one.
    #[serde(default)]
    pub federation_policies: Vec<AccessPolicyModel>,
}

impl PolicyModel {
    /// The model of a mesh nobody described yet: strict, without workloads, nothing allowed.
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            mtls: MtlsMode::Strict,
            protection: Protection::default(),
            sealed_headers: DEFAULT_SEALED_HEADERS.map(str::to_owned).to_vec(),
            clock_skew_s: DEFAULT_CLOCK_SKEW_S,
            networks: Vec::new(),
            egress: Vec::new(),
            lifetimes: Lifetimes::default(),
            offline: Offline::default(),
            rejoin: Rejoin::default(),
            workloads: Vec::new(),
            policies: Vec::new(),
            header_policies: Vec::new(),
            role_grants: Vec::new(),
            intermediaries: Vec::new(),
            protection_policies: Vec::new(),
            normalization_policies: Vec::new(),
            role_appointers: Vec::new(),
            egress_policies: Vec::new(),
            traffic_policies: Vec::new(),
            federations: Vec::new(),
            federation_policies: Vec::new(),
        }
    }

    /// What is said of another trust domain.
    pub fn federation_with(&self, other: &TrustDomain) -> Option<&FederationModel> {
        self.federations.iter().find(|federation| federation.trust_domain == *other)
    }

    /// How long after its end a certificate of this class still gets its holder a new one: as long as it was good for, where
    /// nothing else is said.
    pub fn rejoin_of(&self, class: Class) -> Duration {
        let said = match class {
            Class::Agent => self.rejoin.agent,
            Class::App => self.rejoin.app,
            Class::External => self.rejoin.external,
            Class::Platform => self.rejoin.platform,
        };
        said.map_or_else(|| self.lifetimes.of(class), Duration::from_secs)
    }

    /// The workload with this identity.
    pub fn workload(&self, id: &SpiffeId) -> Option<&WorkloadModel> {
        self.workloads.iter().find(|workload| workload.id == *id)
    }

    /// The workload declared under this manifest name.
    pub fn workload_named(&self, name: &str) -> Option<&WorkloadModel> {
        self.workloads.iter().find(|workload| workload.name == name)
    }

    /// A hint for whoever named a workload that there is not: the closest name, or some that there are.
    pub fn workload_hint(&self, name: &str) -> String {
        suggestion(name, self.workloads.iter().map(|workload| workload.name.as_str()))
    }

    /// The network with this name.
    pub fn network(&self, name: &str) -> Option<&Network> {
        self.networks.iter().find(|network| network.name == name)
    }

    /// The workload that the operator published at this address, and the container port behind it.
    pub fn advertised(&self, network: &str, address: IpAddr, port: u16) -> Option<(&WorkloadModel, u16)> {
        let address = address.to_canonical();
        self.workloads.iter().find_map(|workload| {
            let at = |place: &&Advertised| {
                place.network == network && place.address == address && place.port == port
            };
            workload.advertise.iter().find(at).map(|place| (workload, place.target_port))
        })
    }

    /// The mode in force for a workload: its own, or the mesh's.
    pub fn mtls_of(&self, workload: &WorkloadModel) -> MtlsMode {
        workload.mtls.unwrap_or(self.mtls)
    }
}

/// Five minutes: what machines without a battery-backed clock reach soon after start.
pub(crate) const DEFAULT_CLOCK_SKEW_S: u64 = 300;

/// What proves who somebody is to the application: not for those who only pass a message on.
const DEFAULT_SEALED_HEADERS: [&str; 3] = ["authorization", "cookie", "set-cookie"];

/// What a sidecar does with connections that are not mutually authenticated, and with destinations outside the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MtlsMode {
    /// Plaintext is accepted as an anonymous source, and unmeshed destinations are dialled and counted.
    Permissive,
    /// Plaintext is refused, and so is every unmeshed destination that is not listed as egress.
    Strict,
}

/// How messages to a workload are protected. Its receiver enforces the level; mode and verification are
/// choices of the two sidecars that change no proof.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Protection {
    /// What a message must have.
    pub level: ProtectionLevel,
    /// How the sender of a request signs, and its receiver the response.
    pub mode: SignatureMode,
    /// What the signed records of bytes that are not HTTP are hashed with.
    #[serde(default)]
    pub record_hash: RecordHash,
    /// When the signatures of HTTP messages are checked.
    #[serde(default)]
    pub verify: Verification,
}

/// What a message must have; a receiver refuses what has less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProtectionLevel {
    /// An authenticated, encrypted connection; nothing is signed.
    Public,
    /// A signature of its sender as well.
    #[default]
    Protected,
    /// A body and header fields that only the destination can read as well.
    Private,
}

/// How messages are signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignatureMode {
    /// One Ed25519 signature for each: plain RFC 9421, for third parties that read along.
    Ed25519,
    /// One Ed25519 signature for all that are ready at the same moment, and a path to it in each.
    #[default]
    Ed25519Batch,
    /// A code made with a key that both ends of the connection have, and a signature over many messages afterwards. The
    /// receiver takes it only where it stands here.
    Hmac,
}

/// When a receiver checks the signature of an HTTP message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verification {
    /// Right after it was handed on; the connection is cut if the signature turns out wrong.
    Async,
    /// Before any of it is handed on.
    #[default]
    Gate,
}

/// What signed records are hashed with. Either side may insist on SHA-256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordHash {
    /// BLAKE3: the faster one.
    #[default]
    Blake3,
    /// SHA-256, for those who may use nothing else (FIPS 140).
    #[serde(rename = "sha-256")]
    Sha256,
}

/// One network: the scope in which an address means one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The address ranges in it; empty means that any address can be.
    pub cidrs: Vec<IpNet>,
    /// Addresses that stand for many sources because they translate addresses.
    pub gateways: Vec<IpAddr>,
}

impl Network {
    /// Whether an address can belong to this network.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidrs.is_empty() || self.cidrs.iter().any(|cidr| cidr.contains(&address.to_canonical()))
    }
}

/// A transport protocol, as egress rules name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A range of addresses outside the mesh that may be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressRule {
    /// The addresses.
    pub cidr: IpNet,
    /// The ports; empty means all.
    pub ports: Vec<u16>,
    /// The transport protocol.
    pub protocol: Transport,
    /// The operator's reason.
    pub comment: Option<String>,
}

impl EgressRule {
    /// Whether this rule permits the destination.
    pub fn matches(&self, address: IpAddr, port: u16, transport: Transport) -> bool {
        self.protocol == transport && covers(&self.ports, port) && self.cidr.contains(&address.to_canonical())
    }
}

/// An HTTP proxy that is not of the mesh and may stand between two workloads of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IntermediaryModel {
    /// Its name.
    pub name: String,
    /// Where applications reach it and where its own requests come from.
    pub addresses: Vec<IpAddr>,
    /// The ports at which applications reach it.
    pub ports: Vec<u16>,
    /// What it hands on, and what it may rewrite.
    pub routes: Vec<IntermediaryRoute>,
}

/// What an intermediary hands on to one workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IntermediaryRoute {
    /// The manifest's name of the workload that gets the request.
    pub to: String,
    /// The port of that workload.
    pub port: u16,
    /// The beginning of the paths that are for it, in whole segments; `/` is all.
    pub path: String,
    /// What stands in place of that beginning when the workload gets the request; none: it stays.
    pub replace_prefix: Option<String>,
    /// The host that the workload gets; none: the one that the caller named.
    pub host: Option<String>,
    /// Fields that the intermediary may change, so that the signatures leave them out: in lower case and sorted.
    pub may_change: Vec<String>,
}

/// Certificate lifetimes in seconds, per class of workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lifetimes {
    /// Agents; as long as they should keep working without the control plane.
    pub agent: u64,
    /// Application components.
    pub app: u64,
    /// Holders of an identity outside the mesh.
    pub external: u64,
    /// Platform components.
    pub platform: u64,
}

impl Lifetimes {
    /// The lifetime of certificates of this class.
    pub fn of(&self, class: Class) -> Duration {
        Duration::from_secs(match class {
            Class::Agent => self.agent,
            Class::App => self.app,
            Class::External => self.external,
            Class::Platform => self.platform,
        })
    }
}

/// How long after its end a certificate still gets its holder a new one, in seconds; none where that is the lifetime itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rejoin {
    /// Agents.
    pub agent: Option<u64>,
    /// Application components.
    pub app: Option<u64>,
    /// Holders of an identity outside the mesh.
    pub external: Option<u64>,
    /// Platform components.
    pub platform: Option<u64>,
}

impl Default for Lifetimes {
    /// An hour for what is always connected, a day for what may be offline for a while.
    fn default() -> Self {
        const HOUR: u64 = 3_600;
        Self { agent: 24 * HOUR, app: HOUR, external: 24 * HOUR, platform: HOUR }
    }
}

/// One workload: an identity and where and how it can be called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadModel {
    /// The manifest's name; policies target it.
    pub name: String,
    /// Its identity.
    pub id: SpiffeId,
    /// Its class.
    pub class: Class,
    /// The name of the network its container is in.
    pub network: String,
    /// The host names it is called by, in lower case.
    pub names: Vec<String>,
    /// The ports it listens on; empty when the operator listed none, then any port is possible.
    pub ports: Vec<PortModel>,
    /// Its own mode, when it differs from the mesh's.
    pub mtls: Option<MtlsMode>,
    /// How messages to it are protected: what it sets itself, and the mesh's for the rest.
    pub protection: Protection,
    /// The header fields that level `private` seals with the body, in lower case and sorted.
    #[serde(default)]
    pub sealed_headers: Vec<String>,
    /// The only addresses that may be claimed for it; empty means any of its network.
    pub addresses: Vec<IpAddr>,
    /// Where its ports are published on other networks.
    pub advertise: Vec<Advertised>,
    /// Addresses that no endpoint has: what is dialled there goes to one of the endpoints of the workloads that list it.
    #[serde(default)]
    pub virtual_addresses: Vec<Advertised>,
    /// What its sidecar offers the application itself.
    #[serde(default, skip_serializing_if = "WorkloadApi::is_empty")]
    pub workload_api: WorkloadApi,
}

impl WorkloadModel {
    /// What was declared about a port.
    pub fn port(&self, port: u16) -> Option<&PortModel> {
        self.ports.iter().find(|declared| declared.port == port)
    }
}

/// One port of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortModel {
    /// The container port.
    pub port: u16,
    /// Its name, for people.
    pub name: Option<String>,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Which side sends the first byte, where that is known.
    pub speaks_first: Option<SpeaksFirst>,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Protocol {
    /// Found out from the first bytes.
    Auto,
    /// gRPC over HTTP/2 without TLS.
    Grpc,
    /// HTTP/1.1.
    Http,
    /// HTTP/2 without TLS.
    Http2,
    /// Bytes the mesh does not look into.
    Opaque,
    /// TLS of the application's own.
    Tls,
}

impl Protocol {
    /// Whether requests can be told apart, which makes the port a layer-7 port.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Grpc | Self::Http | Self::Http2)
    }

    /// The name in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Grpc => "grpc",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Opaque => "opaque",
            Self::Tls => "tls",
        }
    }
}

/// Which side of a connection sends the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SpeaksFirst {
    /// The side that connects.
    Client,
    /// The side that listens.
    Server,
}

/// A port published at an address of another network, for example a host port of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Advertised {
    /// The network the address is in.
    pub network: String,
    /// The address callers dial.
    pub address: IpAddr,
    /// The port callers dial.
    pub port: u16,
    /// The container port behind it.
    pub target_port: u16,
}

/// One access policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessPolicyModel {
    /// The manifest's name.
    pub name: String,
    /// The workloads it selects.
    pub target: Target,
    /// The ports it selects; empty means all.
    pub ports: Vec<u16>,
    /// Whether it decides.
    pub mode: PolicyMode,
    /// Whether its rules allow or deny.
    #[serde(default)]
    pub action: PolicyAction,
    /// What it allows or denies.
    pub rules: Vec<RuleModel>,
}

impl AccessPolicyModel {
    /// Whether the policy selects this port, leaving aside of which workload.
    pub fn selects_port(&self, port: u16) -> bool {
        covers(&self.ports, port)
    }
}

/// The workloads a policy selects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// All workloads of these classes.
    Classes(Vec<Class>),
    /// All workloads.
    Everything,
    /// The workloads with these manifest names.
    Workloads(Vec<String>),
}

impl Target {
    /// Whether it names its workloads one by one.
    pub(crate) fn is_by_name(&self) -> bool {
        matches!(self, Self::Workloads(_))
    }

    /// Whether the target selects a workload.
    pub fn selects(&self, workload: &WorkloadModel) -> bool {
        match self {
            Self::Classes(classes) => classes.contains(&workload.class),
            Self::Everything => true,
            Self::Workloads(names) => names.contains(&workload.name),
        }
    }
}

/// Whether a policy decides or only reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PolicyMode {
    /// Its rules allow, and it can make a port a layer-7 port.
    Enforce,
    /// It changes no decision; what it would have done is reported.
    Observe,
}

/// What the rules of a policy do with what they match. A deny wins over every allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PolicyAction {
    /// What a rule matches is allowed, unless something denies it.
    #[default]
    Allow,
    /// What a rule matches is refused, whatever allows it.
    Deny,
}

/// One rule: these sources, these operations, under these conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleModel {
    /// Its name, or `rule-N` counted from 1.
    pub name: String,
    /// The sources; one of them has to match.
    pub from: Vec<SourceMatch>,
    /// The operations; one of them has to match. Empty means everything on the ports the policy selects.
    pub to: Vec<Operation>,
    /// What must hold besides.
    #[serde(default)]
    pub when: Conditions,
    /// Whether it still allows when the policy has grown stale, where policy keeps such rules.
    #[serde(default)]
    pub life_safety: bool,
}

impl RuleModel {
    /// Whether one of the sources matches.
    pub fn matches_source(&self, caller: &Caller<'_>) -> bool {
        self.from.iter().any(|source| source.matches(caller))
    }
}

/// A kind of source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceMatch {
    /// Anybody, also without an identity.
    Anyone,
    /// Anybody with a verified identity.
    Authenticated,
    /// Workloads of this class in the mesh's own trust domain. The path of a foreign identity says nothing about it.
    Class(Class),
    /// Identities that match.
    Identity(IdentityPattern),
    /// Whoever holds this role at the moment.
    Role(String),
    /// All identities of this trust domain.
    TrustDomain(TrustDomain),
}

impl SourceMatch {
    /// Whether a source matches.
    pub fn matches(&self, caller: &Caller<'_>) -> bool {
        let Some(id) = caller.id else { return matches!(self, Self::Anyone) };
        match self {
            Self::Anyone | Self::Authenticated => true,
            Self::Class(class) => {
                id.trust_domain() == caller.trust_domain.as_str()
                    && id.parts().is_some_and(|parts| parts.class == *class)
            }
            Self::Identity(pattern) => pattern.matches(id),
            Self::Role(role) => {
                caller.roles.iter().any(|held| held.is_in_force(caller.now) && held.role == *role)
            }
            Self::TrustDomain(domain) => id.trust_domain() == domain.as_str(),
        }
    }

    /// Whether a source that is meant to be trusted matches: one of another trust domain has to be named, for «anybody»
    /// means anybody of the own one.
    pub(crate) fn entitles(&self, caller: &Caller<'_>) -> bool {
        let is_named = !matches!(self, Self::Anyone | Self::Authenticated);
        (is_named || !caller.is_foreign()) && self.matches(caller)
    }
}

/// Who asks, as far as rules can tell.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The identity it proved; `None` for plaintext.
    pub id: Option<&'a SpiffeId>,
    /// The mesh's own trust domain.
    pub trust_domain: &'a TrustDomain,
    /// The role grants of this identity, also those that are over.
    pub roles: &'a [RoleGrantModel],
    /// Now, in seconds since 1970.
    pub now: u64,
}

impl Caller<'_> {
    /// Whether it is of another trust domain.
    pub(crate) fn is_foreign(&self) -> bool {
        self.id.is_some_and(|id| id.trust_domain() != self.trust_domain.as_str())
    }
}

/// An identity holds a role until a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RoleGrantModel {
    /// The manifest's name.
    pub name: String,
    /// Who holds the role.
    pub identity: SpiffeId,
    /// The role.
    pub role: String,
    /// The first moment at which it no longer counts, in seconds since 1970.
    pub not_after: u64,
}

impl RoleGrantModel {
    /// Whether it still counts.
    pub fn is_in_force(&self, now: u64) -> bool {
        now < self.not_after
    }
}

/// What must hold besides source and operation. Everything that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Conditions {
    /// Where the connection comes from, as the destination sees it; empty means anywhere.
    pub source_addresses: Vec<IpNet>,
    /// When; one of the windows has to be open. Empty means always.
    pub time: Vec<TimeWindow>,
}

impl Conditions {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.source_addresses.is_empty() && self.time.is_empty()
    }
}

/// What is done: the dimensions that are given must all match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Operation {
    /// HTTP methods; empty means all, and bytes that are not HTTP too unless there are paths or headers.
    pub methods: Vec<String>,
    /// Raw request paths; empty means all.
    pub paths: Vec<PathPattern>,
    /// Ports among those the policy selects; empty means all of them.
    pub ports: Vec<u16>,
    /// What the request's header fields must be like, all of it.
    #[serde(default)]
    pub headers: Vec<HeaderMatch>,
}

impl Operation {
    /// Whether the operation asks for something only HTTP has.
    pub fn is_l7(&self) -> bool {
        !self.methods.is_empty() || !self.paths.is_empty() || !self.headers.is_empty()
    }

    /// Whether the operation is about this port.
    pub fn covers_port(&self, port: u16) -> bool {
        covers(&self.ports, port)
    }

    /// Whether the method matches. What is denied is denied in every letter case.
    pub fn matches_method(&self, method: &str, action: PolicyAction) -> bool {
        matches_method(&self.methods, method, action)
    }

    /// Whether the raw path matches. What is denied is denied however it is spelt.
    pub fn matches_path(&self, path: &str, action: PolicyAction) -> bool {
        matches_path(&self.paths, path, action)
    }

    /// Whether the header fields are as asked for. Where nobody kept them, an allow does not match and a deny does.
    pub fn matches_headers(&self, headers: Option<&RequestHeaders>, action: PolicyAction) -> bool {
        self.headers.is_empty()
            || match headers {
                Some(fields) => self.headers.iter().all(|header| header.matches(fields, action)),
                None => action == PolicyAction::Deny,
            }
    }
}

/// What happens to header fields by which applications tell who calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderPolicyModel {
    /// The manifest's name.
    pub name: String,
    /// The workloads whose requests it is about.
    pub target: Target,
    /// Their ports; empty means all.
    pub ports: Vec<u16>,
    /// Which fields, and who may send them. The first entry that names a field counts.
    pub fields: Vec<IdentityFields>,
    /// The field that carries the caller's verified identity to the application, in lower case.
    pub peer_header: Option<String>,
}

impl HeaderPolicyModel {
    /// Whether the policy selects this port, leaving aside of which workload.
    pub fn selects_port(&self, port: u16) -> bool {
        covers(&self.ports, port)
    }
}

/// Header fields that only some may send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentityFields {
    /// Which fields.
    pub names: Vec<FieldPattern>,
    /// Who may send them; nobody when empty.
    pub entitled: Vec<SourceMatch>,
    /// What a request of anybody else says instead; without it the field is removed.
    pub overwrite: Option<String>,
}

/// An empty list of ports stands for all.
pub(crate) fn covers(ports: &[u16], port: u16) -> bool {
    ports.is_empty() || ports.contains(&port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_of_a_newer_version_is_refused() {
        let model = PolicyModel::empty(TrustDomain::parse("td").unwrap());
        let text = serde_json::to_string(&model).unwrap();
        assert_eq!(serde_json::from_str::<PolicyModel>(&text).unwrap(), model);
        let newer = text.replacen('{', "{\"unlessHeader\":\"x\",", 1);
        assert!(serde_json::from_str::<PolicyModel>(&newer).is_err());
    }

    #[test]
    fn class_and_anonymous_sources_are_told_apart() {
        let own = TrustDomain::parse("td").unwrap();
        let id = |text| SpiffeId::parse(text).unwrap();
        let matches = |source: &SourceMatch, id: Option<SpiffeId>| {
            source.matches(&Caller { id: id.as_ref(), trust_domain: &own, roles: &[], now: 0 })
        };
        let app = SourceMatch::Class(Class::App);
        assert!(matches(&app, Some(id("spiffe://td/app/d/x"))));
        assert!(!matches(&app, Some(id("spiffe://foreign/app/d/x"))));
        assert!(!matches(&app, Some(id("spiffe://td/agent/d/x"))));
        for (source, anonymous) in [
            (app, false),
            (SourceMatch::Anyone, true),
            (SourceMatch::Authenticated, false),
            (SourceMatch::Role("leader".to_owned()), false),
            (SourceMatch::TrustDomain(own.clone()), false),
            (SourceMatch::Identity(IdentityPattern::parse("spiffe://td/**").unwrap()), false),
        ] {
            assert_eq!(matches(&source, None), anonymous, "{source:?}");
        }
    }

    #[test]
    fn a_role_counts_until_its_end_and_not_a_moment_longer() {
        let own = TrustDomain::parse("td").unwrap();
        let holder = SpiffeId::parse("spiffe://td/agent/d/x").unwrap();
        let grant = RoleGrantModel {
            name: "g".to_owned(),
            identity: holder.clone(),
            role: "leader".to_owned(),
            not_after: 100,
        };
        let roles = std::slice::from_ref(&grant);
        let leads = |now, role: &str| {
            let caller = Caller { id: Some(&holder), trust_domain: &own, roles, now };
            SourceMatch::Role(role.to_owned()).matches(&caller)
        };
        assert!(leads(99, "leader"));
        assert!(!leads(100, "leader"));
        assert!(!leads(99, "backup"));
    }
}
