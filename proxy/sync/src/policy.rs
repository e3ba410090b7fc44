//! Payload of section `policy`: `signet_policy::PolicyModel` to protobuf and back.
//!
//! Reading is strict where skipping would widen a permission: an unknown enum value, target or kind of source refuses
//! the whole policy. A new *field* that narrows a rule must raise the section's `minimum_reader`, because an old reader
//! cannot see it.

mod access;
mod egress;
mod header;
mod normal;
mod offline;
mod protection;
mod traffic;

use ipnet::IpNet;
use prost::Message;
use signet_identity::{Class, TrustDomain};
use signet_policy::{
    Advertised, EgressRule, IntermediaryModel, IntermediaryRoute, JwtApi, Lifetimes, MtlsMode, Network,
    Offline, PolicyAction, PolicyModel, PortModel, Protection, ProtectionLevel, RecordHash, Rejoin,
    RoleGrantModel, RuleModel, SignatureMode, SourceMatch, Verification, WorkloadApi, WorkloadModel,
};

use crate::bytes::{address, at_most, fields_at_most, name, octets, port, spiffe_id};
use crate::directory::{protocol_from, speaks_first_from};
use crate::proto::sync as wire;
use crate::{DecodeError, MAX_SEALED_HEADERS};

/// The lowest protocol number whose readers understand all of a policy: what they would pass over could be a
/// permission.
pub fn minimum_reader(model: &PolicyModel) -> u32 {
    let asks_for_more = |rule: &RuleModel| {
        !rule.when.is_empty()
            || rule.to.iter().any(|operation| !operation.headers.is_empty())
            || rule.from.iter().any(|source| matches!(source, SourceMatch::Role(_)))
    };
    let is_newest = !model.protection_policies.is_empty()
        || !model.normalization_policies.is_empty()
        || !model.intermediaries.is_empty()
        || !model.traffic_policies.is_empty()
        || !model.egress_policies.is_empty()
        || model.workloads.iter().any(|workload| !workload.virtual_addresses.is_empty());
    let is_new = !model.header_policies.is_empty()
        || !model.role_grants.is_empty()
        || model
            .policies
            .iter()
            .any(|policy| policy.action == PolicyAction::Deny || policy.rules.iter().any(asks_for_more));
    match (is_newest, is_new) {
        _ if !model.offline.is_empty() => 4,
        (true, _) => 3,
        (false, true) => 2,
        (false, false) => 1,
    }
}

/// The policy in a section's payload.
pub(crate) fn decode(payload: &[u8]) -> Result<PolicyModel, DecodeError> {
    fields_at_most("policy", payload)?;
    PolicyModel::try_from(wire::Policy::decode(payload)?)
}

impl TryFrom<wire::Policy> for PolicyModel {
    type Error = DecodeError;

    fn try_from(policy: wire::Policy) -> Result<Self, DecodeError> {
        let lifetimes = policy.lifetimes.ok_or(DecodeError::Missing { field: "policy.lifetimes" })?;
        Ok(Self {
            trust_domain: trust_domain("policy.trust_domain", &policy.trust_domain)?,
            mtls: mtls_from("policy.mtls", policy.mtls)?
                .ok_or(DecodeError::Enum { field: "policy.mtls", value: policy.mtls })?,
            sealed_headers: sealed_from("policy.sealed_headers", policy.protection.as_ref())?,
            protection: protection_from("policy.protection", policy.protection)?,
            clock_skew_s: policy.clock_skew_s,
            networks: each(policy.networks, network_from)?,
            egress: each(policy.egress, egress_from)?,
            lifetimes: Lifetimes {
                agent: lifetimes.agent,
                app: lifetimes.app,
                external: lifetimes.external,
                platform: lifetimes.platform,
            },
            offline: policy.offline.map_or_else(|| Ok(Offline::default()), offline::offline_from)?,
            rejoin: policy.rejoin.map_or_else(Rejoin::default, |rejoin| Rejoin {
                agent: rejoin.agent,
                app: rejoin.app,
                external: rejoin.external,
                platform: rejoin.platform,
            }),
            workloads: each(policy.workloads, workload_from)?,
            policies: each(policy.policies, access::policy_from)?,
            header_policies: each(policy.header_policies, header::policy_from)?,
            role_grants: each(policy.role_grants, grant_from)?,
            protection_policies: each(policy.protection_policies, protection::policy_from)?,
            intermediaries: each(policy.intermediaries, intermediary_from)?,
            normalization_policies: each(policy.normalization_policies, normal::policy_from)?,
            // Who may appoint is the control plane's to know; what came of it are grants.
            role_appointers: Vec::new(),
            egress_policies: each(policy.egress_policies, egress::policy_from)?,
            traffic_policies: each(policy.traffic_policies, traffic::policy_from)?,
            // What is meant is the control plane's to know; what came of it are policies.
            federations: Vec::new(),
            federation_policies: each(policy.federation_policies, access::policy_from)?,
        })
    }
}

impl From<&PolicyModel> for wire::Policy {
    fn from(model: &PolicyModel) -> Self {
        Self {
            trust_domain: model.trust_domain.to_string(),
            mtls: mtls_to(Some(model.mtls)),
            protection: Some(protection_to(model.protection, &model.sealed_headers)),
            clock_skew_s: model.clock_skew_s,
            networks: model.networks.iter().map(network_to).collect(),
            egress: model.egress.iter().map(egress_to).collect(),
            lifetimes: Some(wire::Lifetimes {
                agent: model.lifetimes.agent,
                app: model.lifetimes.app,
                external: model.lifetimes.external,
                platform: model.lifetimes.platform,
            }),
            offline: (!model.offline.is_empty()).then(|| offline::offline_to(&model.offline)),
            rejoin: (model.rejoin != Rejoin::default()).then_some(wire::Rejoin {
                agent: model.rejoin.agent,
                app: model.rejoin.app,
                external: model.rejoin.external,
                platform: model.rejoin.platform,
            }),
            workloads: model.workloads.iter().map(workload_to).collect(),
            policies: model.policies.iter().map(access::policy_to).collect(),
            header_policies: model.header_policies.iter().map(header::policy_to).collect(),
            role_grants: model.role_grants.iter().map(grant_to).collect(),
            protection_policies: model.protection_policies.iter().map(protection::policy_to).collect(),
            intermediaries: model.intermediaries.iter().map(intermediary_to).collect(),
            normalization_policies: model.normalization_policies.iter().map(normal::policy_to).collect(),
            egress_policies: model.egress_policies.iter().map(egress::policy_to).collect(),
            traffic_policies: model.traffic_policies.iter().map(traffic::policy_to).collect(),
            federation_policies: model.federation_policies.iter().map(access::policy_to).collect(),
        }
    }
}

fn grant_from(grant: wire::RoleGrant) -> Result<RoleGrantModel, DecodeError> {
    Ok(RoleGrantModel {
        name: grant.name,
        identity: spiffe_id("policy.role_grants.spiffe_id", &grant.spiffe_id)?,
        role: grant.role,
        not_after: grant.not_after,
    })
}

fn grant_to(grant: &RoleGrantModel) -> wire::RoleGrant {
    wire::RoleGrant {
        name: grant.name.clone(),
        spiffe_id: grant.identity.to_string(),
        role: grant.role.clone(),
        not_after: grant.not_after,
    }
}

fn intermediary_from(read: wire::Intermediary) -> Result<IntermediaryModel, DecodeError> {
    let route = |read: wire::IntermediaryRoute| {
        Ok(IntermediaryRoute {
            to: read.to,
            port: port("policy.intermediaries.routes.port", read.port)?,
            path: read.path,
            replace_prefix: read.replace_prefix,
            host: read.host,
            may_change: read.may_change,
        })
    };
    Ok(IntermediaryModel {
        name: read.name,
        addresses: each(read.addresses, |octets| address("policy.intermediaries.addresses", &octets))?,
        ports: ports_from("policy.intermediaries.ports", &read.ports)?,
        routes: each(read.routes, route)?,
    })
}

fn intermediary_to(model: &IntermediaryModel) -> wire::Intermediary {
    let route = |route: &IntermediaryRoute| wire::IntermediaryRoute {
        to: route.to.clone(),
        port: route.port.into(),
        path: route.path.clone(),
        replace_prefix: route.replace_prefix.clone(),
        host: route.host.clone(),
        may_change: route.may_change.clone(),
    };
    wire::Intermediary {
        name: model.name.clone(),
        addresses: model.addresses.iter().map(|&address| octets(address)).collect(),
        ports: model.ports.iter().map(|port| u32::from(*port)).collect(),
        routes: model.routes.iter().map(route).collect(),
    }
}

fn network_from(network: wire::Network) -> Result<Network, DecodeError> {
    Ok(Network {
        name: network.name,
        cidrs: each(network.cidrs, |cidr| prefix_from("policy.networks.cidrs", &cidr))?,
        gateways: each(network.gateways, |gateway| address("policy.networks.gateways", &gateway))?,
    })
}

fn network_to(network: &Network) -> wire::Network {
    wire::Network {
        name: network.name.clone(),
        cidrs: network.cidrs.iter().map(prefix_to).collect(),
        gateways: network.gateways.iter().map(|&gateway| octets(gateway)).collect(),
    }
}

fn egress_from(rule: wire::EgressRule) -> Result<EgressRule, DecodeError> {
    let cidr = rule.cidr.ok_or(DecodeError::Missing { field: "policy.egress.cidr" })?;
    Ok(EgressRule {
        cidr: prefix_from("policy.egress.cidr", &cidr)?,
        ports: ports_from("policy.egress.ports", &rule.ports)?,
        protocol: egress::transport_from("policy.egress.protocol", rule.protocol)?,
        comment: rule.comment,
    })
}

fn egress_to(rule: &EgressRule) -> wire::EgressRule {
    wire::EgressRule {
        cidr: Some(prefix_to(&rule.cidr)),
        ports: ports_to(&rule.ports),
        protocol: egress::transport_to(rule.protocol),
        comment: rule.comment.clone(),
    }
}

fn workload_from(workload: wire::Workload) -> Result<WorkloadModel, DecodeError> {
    Ok(WorkloadModel {
        name: workload.name,
        id: spiffe_id("policy.workloads.spiffe_id", &workload.spiffe_id)?,
        class: class_from("policy.workloads.class", workload.class)?,
        network: workload.network,
        names: workload.names,
        ports: each(workload.ports, port_from)?,
        mtls: mtls_from("policy.workloads.mtls", workload.mtls)?,
        sealed_headers: sealed_from("policy.workloads.sealed_headers", workload.protection.as_ref())?,
        protection: protection_from("policy.workloads.protection", workload.protection)?,
        addresses: each(workload.addresses, |a| address("policy.workloads.addresses", &a))?,
        advertise: each(workload.advertise, advertised_from)?,
        virtual_addresses: each(workload.virtual_addresses, advertised_from)?,
        workload_api: workload.workload_api.map(workload_api_from).unwrap_or_default(),
    })
}

fn workload_to(workload: &WorkloadModel) -> wire::Workload {
    wire::Workload {
        name: workload.name.clone(),
        spiffe_id: workload.id.to_string(),
        class: class_to(workload.class),
        network: workload.network.clone(),
        names: workload.names.clone(),
        ports: workload.ports.iter().map(port_to).collect(),
        mtls: mtls_to(workload.mtls),
        protection: Some(protection_to(workload.protection, &workload.sealed_headers)),
        addresses: workload.addresses.iter().map(|&a| octets(a)).collect(),
        advertise: workload.advertise.iter().map(advertised_to).collect(),
        virtual_addresses: workload.virtual_addresses.iter().map(advertised_to).collect(),
        workload_api: (!workload.workload_api.is_empty()).then(|| workload_api_to(&workload.workload_api)),
    }
}

fn workload_api_from(offered: wire::WorkloadApi) -> WorkloadApi {
    WorkloadApi { x509: offered.x509, jwt: offered.jwt.map(|jwt| JwtApi { audiences: jwt.audiences }) }
}

fn workload_api_to(offered: &WorkloadApi) -> wire::WorkloadApi {
    let jwt = offered.jwt.as_ref().map(|jwt| wire::JwtApi { audiences: jwt.audiences.clone() });
    wire::WorkloadApi { x509: offered.x509, jwt }
}

fn port_from(declared: wire::Port) -> Result<PortModel, DecodeError> {
    Ok(PortModel {
        port: port("policy.workloads.ports.port", declared.port)?,
        name: declared.name,
        protocol: protocol_from("policy.workloads.ports.protocol", declared.protocol)?,
        speaks_first: speaks_first_from("policy.workloads.ports.speaks_first", declared.speaks_first)?,
    })
}

fn port_to(declared: &PortModel) -> wire::Port {
    wire::Port {
        port: declared.port.into(),
        name: declared.name.clone(),
        protocol: wire::Protocol::from(declared.protocol).into(),
        speaks_first: wire::SpeaksFirst::from(declared.speaks_first).into(),
    }
}

fn advertised_from(place: wire::Advertised) -> Result<Advertised, DecodeError> {
    Ok(Advertised {
        network: place.network,
        address: address("policy.workloads.advertise.address", &place.address)?,
        port: port("policy.workloads.advertise.port", place.port)?,
        target_port: port("policy.workloads.advertise.target_port", place.target_port)?,
    })
}

fn advertised_to(place: &Advertised) -> wire::Advertised {
    wire::Advertised {
        network: place.network.clone(),
        address: octets(place.address),
        port: place.port.into(),
        target_port: place.target_port.into(),
    }
}

/// `None` is "unspecified", which only a workload may say.
fn mtls_from(field: &'static str, value: i32) -> Result<Option<MtlsMode>, DecodeError> {
    match wire::MtlsMode::try_from(value) {
        Ok(wire::MtlsMode::Unspecified) => Ok(None),
        Ok(wire::MtlsMode::Permissive) => Ok(Some(MtlsMode::Permissive)),
        Ok(wire::MtlsMode::Strict) => Ok(Some(MtlsMode::Strict)),
        Err(_) => Err(DecodeError::Enum { field, value }),
    }
}

fn mtls_to(mode: Option<MtlsMode>) -> i32 {
    match mode {
        None => wire::MtlsMode::Unspecified,
        Some(MtlsMode::Permissive) => wire::MtlsMode::Permissive,
        Some(MtlsMode::Strict) => wire::MtlsMode::Strict,
    }
    .into()
}

fn protection_from(
    field: &'static str,
    protection: Option<wire::Protection>,
) -> Result<Protection, DecodeError> {
    // Written before this could be said, when every message had a signature of its own.
    let Some(protection) = protection else {
        return Ok(Protection { mode: SignatureMode::Ed25519, ..Protection::default() });
    };
    let refused = |value| DecodeError::Enum { field, value };
    Ok(Protection {
        level: match wire::ProtectionLevel::try_from(protection.level) {
            Ok(wire::ProtectionLevel::Public) => ProtectionLevel::Public,
            Ok(wire::ProtectionLevel::Protected) => ProtectionLevel::Protected,
            Ok(wire::ProtectionLevel::Private) => ProtectionLevel::Private,
            Ok(wire::ProtectionLevel::Unspecified) | Err(_) => return Err(refused(protection.level)),
        },
        mode: match wire::SignatureMode::try_from(protection.mode) {
            Ok(wire::SignatureMode::Ed25519) => SignatureMode::Ed25519,
            Ok(wire::SignatureMode::Ed25519Batch) => SignatureMode::Ed25519Batch,
            Ok(wire::SignatureMode::Hmac) => SignatureMode::Hmac,
            Ok(wire::SignatureMode::Unspecified) | Err(_) => return Err(refused(protection.mode)),
        },
        record_hash: match wire::RecordHash::try_from(protection.record_hash) {
            Ok(wire::RecordHash::Blake3) => RecordHash::Blake3,
            Ok(wire::RecordHash::Sha256) => RecordHash::Sha256,
            // Younger than its neighbours: a sender that does not know it means the default.
            Ok(wire::RecordHash::Unspecified) => RecordHash::default(),
            Err(_) => return Err(refused(protection.record_hash)),
        },
        verify: match wire::Verification::try_from(protection.verify) {
            Ok(wire::Verification::Async) => Verification::Async,
            // The same.
            Ok(wire::Verification::Gate | wire::Verification::Unspecified) => Verification::Gate,
            Err(_) => return Err(refused(protection.verify)),
        },
    })
}

/// Names of header fields; none before they could be given, when nothing was sealed.
fn sealed_from(
    field: &'static str,
    protection: Option<&wire::Protection>,
) -> Result<Vec<String>, DecodeError> {
    let names = protection.map(|protection| &*protection.sealed_headers).unwrap_or_default();
    at_most(field, names.len(), MAX_SEALED_HEADERS)?;
    names.iter().map(|text| name(field, text.clone())).collect()
}

fn protection_to(protection: Protection, sealed_headers: &[String]) -> wire::Protection {
    wire::Protection {
        level: match protection.level {
            ProtectionLevel::Public => wire::ProtectionLevel::Public,
            ProtectionLevel::Protected => wire::ProtectionLevel::Protected,
            ProtectionLevel::Private => wire::ProtectionLevel::Private,
        }
        .into(),
        mode: match protection.mode {
            SignatureMode::Ed25519 => wire::SignatureMode::Ed25519,
            SignatureMode::Ed25519Batch => wire::SignatureMode::Ed25519Batch,
            SignatureMode::Hmac => wire::SignatureMode::Hmac,
        }
        .into(),
        record_hash: match protection.record_hash {
            RecordHash::Blake3 => wire::RecordHash::Blake3,
            RecordHash::Sha256 => wire::RecordHash::Sha256,
        }
        .into(),
        sealed_headers: sealed_headers.to_vec(),
        verify: match protection.verify {
            Verification::Async => wire::Verification::Async,
            // Left out, as it was before it could be said.
            Verification::Gate => wire::Verification::Unspecified,
        }
        .into(),
    }
}

fn class_from(field: &'static str, value: i32) -> Result<Class, DecodeError> {
    match wire::Class::try_from(value) {
        Ok(wire::Class::Agent) => Ok(Class::Agent),
        Ok(wire::Class::App) => Ok(Class::App),
        Ok(wire::Class::External) => Ok(Class::External),
        Ok(wire::Class::Platform) => Ok(Class::Platform),
        Ok(wire::Class::Unspecified) | Err(_) => Err(DecodeError::Enum { field, value }),
    }
}

fn class_to(class: Class) -> i32 {
    match class {
        Class::Agent => wire::Class::Agent,
        Class::App => wire::Class::App,
        Class::External => wire::Class::External,
        Class::Platform => wire::Class::Platform,
    }
    .into()
}

fn prefix_from(field: &'static str, prefix: &wire::Prefix) -> Result<IpNet, DecodeError> {
    let address = address(field, &prefix.address)?;
    let length = u8::try_from(prefix.length).map_err(|_| DecodeError::Prefix { field })?;
    IpNet::new(address, length).map_err(|_| DecodeError::Prefix { field })
}

fn prefix_to(prefix: &IpNet) -> wire::Prefix {
    wire::Prefix { address: octets(prefix.addr()), length: prefix.prefix_len().into() }
}

fn trust_domain(field: &'static str, text: &str) -> Result<TrustDomain, DecodeError> {
    TrustDomain::parse(text).map_err(|source| DecodeError::Id { field, source })
}

fn ports_from(field: &'static str, ports: &[u32]) -> Result<Vec<u16>, DecodeError> {
    ports.iter().map(|&number| port(field, number)).collect()
}

fn ports_to(ports: &[u16]) -> Vec<u32> {
    ports.iter().map(|&number| number.into()).collect()
}

fn each<A, B>(list: Vec<A>, from: impl Fn(A) -> Result<B, DecodeError>) -> Result<Vec<B>, DecodeError> {
    list.into_iter().map(from).collect()
}
