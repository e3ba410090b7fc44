//! Egress policies to protobuf and back.

use signet_policy::{
    EgressEntry, EgressPolicyModel, MAX_EGRESS_ENTRIES, NamePattern, Origination, Transport,
};

use super::access::{target_from, target_to};
use super::{each, ports_from, ports_to, prefix_from, prefix_to};
use crate::DecodeError;
use crate::bytes::{at_most, port};
use crate::proto::sync as wire;

pub(super) fn policy_from(policy: wire::EgressPolicy) -> Result<EgressPolicyModel, DecodeError> {
    at_most("policy.egress_policies.to", policy.to.len(), MAX_EGRESS_ENTRIES)?;
    Ok(EgressPolicyModel {
        name: policy.name,
        target: target_from("policy.egress_policies.target", policy.target)?,
        to: each(policy.to, entry_from)?,
    })
}

pub(super) fn policy_to(policy: &EgressPolicyModel) -> wire::EgressPolicy {
    wire::EgressPolicy {
        name: policy.name.clone(),
        target: Some(target_to(&policy.target)),
        to: policy.to.iter().map(entry_to).collect(),
    }
}

fn entry_from(entry: wire::EgressEntry) -> Result<EgressEntry, DecodeError> {
    const NAMES: &str = "policy.egress_policies.to.names";
    // Neither would mean everything, which has to be said.
    if entry.names.is_empty() && entry.cidrs.is_empty() {
        return Err(DecodeError::Missing { field: NAMES });
    }
    Ok(EgressEntry {
        names: each(entry.names, |name| {
            NamePattern::parse(&name).map_err(|_| DecodeError::Name { field: NAMES })
        })?,
        cidrs: each(entry.cidrs, |cidr| prefix_from("policy.egress_policies.to.cidrs", &cidr))?,
        ports: ports_from("policy.egress_policies.to.ports", &entry.ports)?,
        protocol: transport_from("policy.egress_policies.to.protocol", entry.protocol)?,
        tls: match entry.tls {
            Some(tls) => Some(origination_from(tls)?),
            None => None,
        },
    })
}

fn entry_to(entry: &EgressEntry) -> wire::EgressEntry {
    wire::EgressEntry {
        names: entry.names.iter().map(ToString::to_string).collect(),
        cidrs: entry.cidrs.iter().map(prefix_to).collect(),
        ports: ports_to(&entry.ports),
        protocol: transport_to(entry.protocol),
        tls: entry.tls.as_ref().map(|tls| wire::Origination {
            server_name: tls.server_name.clone(),
            port: tls.port.into(),
            ca_certificates: tls.ca_certificates.clone(),
            system_roots: tls.system_roots,
        }),
    }
}

fn origination_from(tls: wire::Origination) -> Result<Origination, DecodeError> {
    const NAME: &str = "policy.egress_policies.to.tls.server_name";
    if let Some(name) = &tls.server_name {
        let parsed = NamePattern::parse(name).map_err(|_| DecodeError::Name { field: NAME })?;
        if parsed.to_string() != *name || name.starts_with('*') {
            return Err(DecodeError::Name { field: NAME });
        }
    }
    Ok(Origination {
        server_name: tls.server_name,
        port: port("policy.egress_policies.to.tls.port", tls.port)?,
        ca_certificates: tls.ca_certificates,
        system_roots: tls.system_roots,
    })
}

pub(super) fn transport_from(field: &'static str, value: i32) -> Result<Transport, DecodeError> {
    match wire::Transport::try_from(value) {
        Ok(wire::Transport::Tcp) => Ok(Transport::Tcp),
        Ok(wire::Transport::Udp) => Ok(Transport::Udp),
        Ok(wire::Transport::Unspecified) | Err(_) => Err(DecodeError::Enum { field, value }),
    }
}

pub(super) fn transport_to(transport: Transport) -> i32 {
    match transport {
        Transport::Tcp => wire::Transport::Tcp,
        Transport::Udp => wire::Transport::Udp,
    }
    .into()
}
