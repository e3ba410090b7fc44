//! `EgressPolicy` manifests: what workloads may reach outside the mesh.

use std::collections::HashSet;

use serde_saphyr::Spanned;
use signet_identity::authorities;

use crate::compile::mesh::{MAX_UDP_EGRESS, TRANSPORTS, udp_pairs};
use crate::compile::{Scope, access_policy, value};
use crate::diagnostic::{Findings, Place, quoted};
use crate::egress_policy::{EgressEntry, EgressPolicyModel, MAX_EGRESS_ENTRIES, NamePattern, Origination};
use crate::manifest::Manifest;
use crate::manifest::egress::{EgressEntrySpec, EgressPolicySpec, OriginationSpec};
use crate::model::{PolicyModel, Transport};

/// Where TLS is served when nothing else is said.
const HTTPS: u16 = 443;

pub(super) fn lower(
    scope: &mut Scope<'_>,
    spec: &EgressPolicySpec,
    workloads: &HashSet<&str>,
) -> Option<EgressPolicyModel> {
    let manifest_name = scope.manifest.spanned_name().clone();
    let name = value::name(scope, &manifest_name, "EgressPolicy");
    let target = access_policy::target(scope, &spec.target, workloads);
    // An empty list is the way to say «nothing».
    let entries = value::within_bounds(scope, &spec.to.0, "to");
    if entries.len() > MAX_EGRESS_ENTRIES {
        let message = format!("{} entries, and {MAX_EGRESS_ENTRIES} are accepted", entries.len());
        scope.refuse(
            Place::of(&spec.to.0),
            message,
            "split the policy, or use broader ranges and `*.` names",
        );
        return None;
    }
    let to = entries.iter().filter_map(|entry| self::entry(scope, entry)).collect();
    Some(EgressPolicyModel { name: name?, target: target?, to })
}

fn entry(scope: &mut Scope<'_>, spec: &Spanned<EgressEntrySpec>) -> Option<EgressEntry> {
    let EgressEntrySpec { names, cidrs, ports, protocol, tls, .. } = &spec.value;
    if names.is_none() && cidrs.is_none() {
        let message = "an entry has `names`, `cidrs` or both".to_owned();
        scope.refuse(Place::of(spec), message, "write `cidrs: [0.0.0.0/0, '::/0']` if everything is meant");
        return None;
    }
    let protocol = match protocol {
        Some(text) => value::word(scope, text, "transport protocol", TRANSPORTS)?,
        None => Transport::Tcp,
    };
    let mut patterns = Vec::new();
    for text in value::entries(scope, names.as_ref(), "names", "to go by address alone") {
        match NamePattern::parse(&text.value) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => {
                let message = format!("{} is no name for egress: {error}", quoted(&text.value));
                scope.refuse(Place::of(text), message, "write such as `api.example.com` or `*.example.com`");
            }
        }
    }
    let ranges = value::entries(scope, cidrs.as_ref(), "cidrs", "to go by name alone");
    let ranges = ranges.iter().filter_map(|text| value::cidr(scope, text)).collect();
    let ports = access_policy::ports(scope, ports.as_ref());
    if let (Some(list), Transport::Udp) = (names, protocol) {
        let message = "UDP carries no name that a sidecar could see".to_owned();
        scope.refuse(Place::of(&list.0), message, "list `cidrs` instead");
    }
    let tls = match tls {
        Some(spec) => {
            if names.is_none() || protocol == Transport::Udp {
                let message = "TLS is opened for HTTP that calls a name, and this entry has none".to_owned();
                scope.refuse(Place::of(spec), message, "add `names`, or remove `tls`");
            }
            Some(origination(scope, spec)?)
        }
        None => None,
    };
    Some(EgressEntry { names: patterns, cidrs: ranges, ports, protocol, tls })
}

fn origination(scope: &mut Scope<'_>, spec: &Spanned<OriginationSpec>) -> Option<Origination> {
    let OriginationSpec { originate, server_name, port, ca_certificates, system_roots } = &spec.value;
    if !originate.value {
        let message = "`originate: false` says nothing here".to_owned();
        scope.refuse(
            Place::of(originate),
            message,
            "remove `tls`: what the application says is passed on as it is",
        );
    }
    let server_name = match server_name {
        Some(text) => match NamePattern::parse(&text.value) {
            Ok(pattern) if !text.value.starts_with('*') => Some(pattern.to_string()),
            _ => {
                let message = format!("{} is no name that a server could prove", quoted(&text.value));
                scope.refuse(Place::of(text), message, "write one host name, such as `api.example.com`");
                return None;
            }
        },
        None => None,
    };
    let port = match port {
        Some(number) => value::port(scope, number)?,
        None => HTTPS,
    };
    if let Some(text) = ca_certificates
        && let Err(error) = authorities(&text.value)
    {
        let message = format!("`caCertificates` cannot be used: {error}");
        let fix = "write `caCertificates: |` and below it the authorities' certificates, from -----BEGIN CERTIFICATE-----";
        scope.refuse(Place::of(text), message, fix);
    }
    let system_roots = system_roots.as_ref().is_some_and(|yes| yes.value);
    if ca_certificates.is_none() && !system_roots {
        let message = "`tls` says not who may vouch for the server".to_owned();
        scope.refuse(Place::of(spec), message, "add `caCertificates`, or `systemRoots: true`");
    }
    let ca_certificates = ca_certificates.as_ref().map(|text| text.value.clone());
    Some(Origination { server_name, port, ca_certificates, system_roots })
}

/// Refuses more UDP destinations for one workload than the rules of its sidecar hold.
pub(super) fn refuse_excess(model: &PolicyModel, manifests: &[&Manifest], findings: &mut Findings) {
    for workload in &model.workloads {
        let mut pairs = udp_pairs(&model.egress);
        let selecting = model.egress_policies.iter().zip(manifests);
        for (policy, manifest) in selecting.filter(|(policy, _)| policy.target.selects(workload)) {
            let udp = policy.to.iter().filter(|entry| entry.protocol == Transport::Udp);
            let more: usize = udp.map(|entry| entry.cidrs.len() * entry.ports.len().max(1)).sum();
            pairs += more;
            if pairs > MAX_UDP_EGRESS && more > 0 {
                let message = format!(
                    "with this policy UDP of {} may go to {pairs} pairs of range and port, and a sidecar takes \
                     {MAX_UDP_EGRESS}",
                    workload.name
                );
                let place = Place::of(manifest.spanned_name());
                let fix = "use broader ranges, or leave `ports` out";
                Scope::new(manifest, findings).refuse(place, message, fix);
                return;
            }
        }
    }
}
