//! The mesh's policy: what operators write, what it compiles to, and the one function that decides.
//!
//! ```text
//! YAML text --parse_manifests--> Manifest --compile--> PolicyModel --PolicyIndex::new--> PolicyIndex
//!                                                          |                                 |
//!                                              travels to every sidecar       decide(index, facts) -> Permit | Refusal
//! ```
//!
//! Invariants:
//!
//! * What no enforced rule allows is refused, and so is everything before the first policy arrived. A rule that denies
//!   wins over every rule that allows.
//! * A port with any rule on methods, paths or header fields, denying ones included, is a layer-7 port: bytes that are
//!   not HTTP never pass there.
//! * [`decide()`] and [`check_target()`] are pure, take untrusted input, and neither panic nor allocate in proportion to it.
//! * A [`Permit`] is made by [`decide()`] alone, so code that asks for one cannot skip the decision.
//! * Every «no» of the product is a [`Refusal`] with a stable code.
//!
//! This crate does no I/O and reads no clock. The language is documented in `docs/policy.md`.

mod appoint;
mod cases;
mod compile;
mod condition;
mod coverage;
mod crd;
mod decide;
mod diagnostic;
mod egress_policy;
mod explain;
mod federation;
mod header_policy;
mod index;
mod intermediary;
mod manifest;
mod model;
mod normal;
mod offline;
mod pattern;
mod protection;
mod refusal;
mod route;
mod schema;
mod target;
mod traffic_policy;
mod workload_api;

pub use appoint::RoleAppointerModel;
pub use cases::{CaseFile, CaseResult, MAX_CASES, parse_cases};
pub use compile::{
    MAX_EGRESS_POLICIES, MAX_FEDERATIONS, MAX_HEADER_POLICIES, MAX_LIST_ENTRIES, MAX_MANIFESTS,
    MAX_NORMALIZATION_POLICIES, MAX_POLICIES, MAX_PROTECTION_POLICIES, MAX_REJOIN_S, MAX_ROLE_APPOINTERS,
    MAX_ROLE_GRANTS, MAX_RULES_PER_POLICY, MAX_SELECTED_RULES, MAX_TRAFFIC_POLICIES, MAX_WORKLOADS,
    check_values, compile, rfc3339, unix_seconds,
};
pub use condition::{HeaderMatch, RequestHeaders, TimeWindow, ValueMatch};
pub use coverage::{Exposure, Gap, coverage};
pub use crd::{CustomResource, custom_resources, plural_of};
pub use decide::{Facts, Layer, Observation, Origin, Permit, decide, decide_while, foresee, observe};
pub use diagnostic::{Diagnostic, MAX_DIAGNOSTICS};
pub use egress_policy::{
    EgressEntry, EgressPolicyModel, MAX_EGRESS_ENTRIES, NameError, NamePattern, Origination,
};
pub use explain::{Decision, Explanation, ProtectionReport, RuleReport, TrafficReport, explain};
pub use federation::{
    Federated, FederationModel, InboundRule, MAX_FEDERATED_PAIRS, OutboundRule, TooManyPairs, federate,
};
pub use header_policy::{ALWAYS_STRIPPED, Fate, FieldNameError, FieldPattern, HeaderPlan, IDENTITY_FIELDS};
pub use index::{Egress, PolicyIndex};
pub use intermediary::{Forwarded, Relay};
pub use manifest::{
    API_VERSION, Kind, MAX_DOCUMENTS, MAX_TEXT_BYTES, Manifest, UnknownKind, parse_manifests,
};
pub use model::{
    AccessPolicyModel, Advertised, Caller, Conditions, EgressRule, HeaderPolicyModel, IdentityFields,
    IntermediaryModel, IntermediaryRoute, Lifetimes, MtlsMode, Network, Operation, PolicyAction, PolicyMode,
    PolicyModel, PortModel, Protection, ProtectionLevel, Protocol, RecordHash, Rejoin, RoleGrantModel,
    RuleModel, SignatureMode, SourceMatch, SpeaksFirst, Target, Transport, Verification, WorkloadModel,
};
pub use normal::{Form, NormalTarget, NormalizationPolicyModel, NormalizationRuleModel, ReceivedTarget};
pub use offline::{Offline, OfflineBound, Staleness, WhenStale};
pub use pattern::{IdentityPattern, PathPattern, PatternError};
pub use protection::{ProtectionChange, ProtectionPolicyModel, ProtectionRuleModel};
pub use refusal::{Blame, Refusal};
pub use route::Route;
pub use schema::json_schema;
pub use target::{RequestTarget, check_target};
pub use traffic_policy::{
    CircuitBreaking, Concurrency, HashOn, LoadBalancing, MAX_RATE_LIMITS, MAX_TRAFFIC_ROUTES, RateKey,
    RateLimit, RequestSettings, Retries, RetryBudget, RetryOn, SuccessRate, Timeouts, TrafficPolicyModel,
    TrafficRoute, TrafficSettings,
};
pub use workload_api::{JwtApi, WorkloadApi};
