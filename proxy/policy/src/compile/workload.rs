//! `Workload` manifests: identity, names, ports, addresses.

use std::collections::HashMap;
use std::net::IpAddr;

use serde_saphyr::Spanned;
use signet_identity::{Class, SpiffeId};

use crate::compile::{Scope, value, workload_api};
use crate::diagnostic::{Findings, Place, quoted, suggestion};
use crate::manifest::{AdvertiseSpec, Manifest, PortSpec, WorkloadSpec};
use crate::model::{Advertised, PolicyModel, PortModel, Protocol, SpeaksFirst, WorkloadModel};
use crate::pattern::is_identity_segment;

pub(crate) const PROTOCOLS: &[(&str, Protocol)] = &[
    ("auto", Protocol::Auto),
    ("grpc", Protocol::Grpc),
    ("http", Protocol::Http),
    ("http2", Protocol::Http2),
    ("opaque", Protocol::Opaque),
    ("tls", Protocol::Tls),
];

pub(crate) const SIDES: &[(&str, SpeaksFirst)] =
    &[("client", SpeaksFirst::Client), ("server", SpeaksFirst::Server)];

pub(super) fn lower(scope: &mut Scope<'_>, spec: &WorkloadSpec, mesh: &PolicyModel) -> Option<WorkloadModel> {
    let manifest_name = scope.manifest.spanned_name().clone();
    let name = value::name(scope, &manifest_name, "Workload");
    let class = value::class(scope, &spec.class);
    let id = identity(scope, spec, class, mesh);
    let network = network(scope, &spec.network, mesh);
    let names = value::entries(scope, spec.names.as_ref(), "names", "when it is called by address only");
    let names = names.iter().filter_map(|text| value::host_name(scope, text)).collect();
    let ports = ports(scope, spec);
    let mtls = spec.mtls.as_ref().and_then(|mtls| value::mtls_mode(scope, mtls));
    let protection = match &spec.protection {
        Some(given) => value::protection(scope, given, mesh.protection),
        None => mesh.protection,
    };
    let sealed_headers = spec.protection.as_ref().and_then(|given| value::sealed_headers(scope, given));
    let addresses =
        value::entries(scope, spec.addresses.as_ref(), "addresses", "to accept any of its network");
    let addresses = addresses.iter().filter_map(|text| address(scope, text, network, mesh)).collect();
    let advertise = value::entries(scope, spec.advertise.as_ref(), "advertise", "when nothing is published");
    let advertise =
        advertise.iter().filter_map(|entry| advertised(scope, &entry.value, &ports, mesh)).collect();
    let virtual_addresses = spec.virtual_addresses.as_ref();
    let virtual_addresses =
        value::entries(scope, virtual_addresses, "virtualAddresses", "when it has addresses of its own only");
    let virtual_addresses =
        virtual_addresses.iter().filter_map(|entry| advertised(scope, &entry.value, &ports, mesh)).collect();
    Some(WorkloadModel {
        name: name?,
        id: id?,
        class: class?,
        network: network?.to_owned(),
        names,
        ports,
        mtls,
        protection,
        sealed_headers: sealed_headers.unwrap_or_else(|| mesh.sealed_headers.clone()),
        addresses,
        advertise,
        virtual_addresses,
        workload_api: workload_api::lower(scope, spec.workload_api.as_ref()),
    })
}

fn identity(
    scope: &mut Scope<'_>,
    spec: &WorkloadSpec,
    class: Option<Class>,
    mesh: &PolicyModel,
) -> Option<SpiffeId> {
    let manifest_name = scope.manifest.spanned_name().clone();
    let workload = spec.workload.as_ref().unwrap_or(&manifest_name);
    for (text, what) in [(&spec.device, "device"), (workload, "workload")] {
        if !is_identity_segment(&text.value) {
            let message = format!("{} cannot be the {what} in a SPIFFE ID", quoted(&text.value));
            scope.refuse(Place::of(text), message, "use letters, digits, `.`, `-` and `_`");
            return None;
        }
    }
    match SpiffeId::workload(&mesh.trust_domain, class?, &spec.device.value, &workload.value) {
        Ok(id) if id.is_control_plane() => {
            let message = format!("{id} is the control plane's own identity");
            scope.refuse(Place::of(workload), message, "choose another `workload`");
            None
        }
        Ok(id) => Some(id),
        Err(error) => {
            let message = format!("class, device and workload make no identity: {error}");
            scope.refuse(Place::of(workload), message, "shorten `device` or `workload`");
            None
        }
    }
}

/// The name of a network that the mesh declares.
fn network<'a>(scope: &mut Scope<'_>, text: &'a Spanned<String>, mesh: &PolicyModel) -> Option<&'a str> {
    if mesh.network(&text.value).is_some() {
        return Some(&text.value);
    }
    let fix = match mesh.networks.as_slice() {
        [] => format!("add `networks: [{{name: {}}}]` to the Mesh", text.value.escape_debug()),
        networks => suggestion(&text.value, networks.iter().map(|network| network.name.as_str())),
    };
    scope.refuse(
        Place::of(text),
        format!("network {} is not declared in the Mesh", quoted(&text.value)),
        fix,
    );
    None
}

/// An address that can be in a network.
fn address(
    scope: &mut Scope<'_>,
    text: &Spanned<String>,
    network: Option<&str>,
    mesh: &PolicyModel,
) -> Option<IpAddr> {
    let address = value::address(scope, text)?;
    let network = mesh.network(network?)?;
    if network.contains(address) {
        return Some(address);
    }
    let ranges: Vec<String> = network.cidrs.iter().map(ToString::to_string).collect();
    let message = format!("{address} is not in the network {}", quoted(&network.name));
    scope.refuse(Place::of(text), message, format!("use an address of {}", ranges.join(", ")));
    None
}

fn ports(scope: &mut Scope<'_>, spec: &WorkloadSpec) -> Vec<PortModel> {
    let mut ports: Vec<PortModel> = Vec::new();
    for entry in value::entries(scope, spec.ports.as_ref(), "ports", "when they are not known") {
        let Some(port) = port(scope, &entry.value) else { continue };
        if ports.iter().any(|other| other.port == port.port) {
            let message = format!("port {} is declared twice", port.port);
            scope.refuse(Place::of(&entry.value.port), message, "remove one of the two");
        } else {
            ports.push(port);
        }
    }
    ports
}

fn port(scope: &mut Scope<'_>, spec: &PortSpec) -> Option<PortModel> {
    let port = value::port(scope, &spec.port);
    let name = spec.name.as_ref().and_then(|name| value::name(scope, name, "port"));
    let protocol = match &spec.protocol {
        Some(text) => value::word(scope, text, "protocol", PROTOCOLS)?,
        None => Protocol::Auto,
    };
    let speaks_first = match &spec.speaks_first {
        Some(text) => Some((value::word(scope, text, "side of a connection", SIDES)?, text)),
        None => None,
    };
    if let Some((SpeaksFirst::Server, text)) = speaks_first
        && (protocol.is_http() || protocol == Protocol::Tls)
    {
        let message = format!("with protocol {} the client speaks first", protocol.as_str());
        scope.refuse(Place::of(text), message, "remove `speaksFirst`, or use `protocol: opaque`");
    }
    Some(PortModel { port: port?, name, protocol, speaks_first: speaks_first.map(|(side, _)| side) })
}

fn advertised(
    scope: &mut Scope<'_>,
    spec: &AdvertiseSpec,
    ports: &[PortModel],
    mesh: &PolicyModel,
) -> Option<Advertised> {
    let network = network(scope, &spec.network, mesh);
    let address = address(scope, &spec.address, network, mesh);
    let port = value::port(scope, &spec.port);
    let target_port = value::port(scope, &spec.target_port)?;
    if !ports.is_empty() && ports.iter().all(|declared| declared.port != target_port) {
        let message = format!("port {target_port} is not one of the workload's `ports`");
        scope.refuse(Place::of(&spec.target_port), message, "declare it there, or correct the number");
    }
    Some(Advertised { network: network?.to_owned(), address: address?, port: port?, target_port })
}

/// Refuses what two workloads cannot share: an identity, a published address, an own address and port.
/// `places` holds the manifest of each workload.
pub(super) fn refuse_conflicts(workloads: &[WorkloadModel], places: &[&Manifest], findings: &mut Findings) {
    let mut identities: HashMap<&SpiffeId, &Manifest> = HashMap::new();
    let mut published: HashMap<(&str, IpAddr, u16), &Manifest> = HashMap::new();
    let mut claimed: HashMap<(&str, IpAddr), Vec<(&WorkloadModel, &Manifest)>> = HashMap::new();
    for (workload, &manifest) in workloads.iter().zip(places) {
        // Several workloads may stand behind a virtual address, so only other kinds of places conflict with it.
        for place in &workload.virtual_addresses {
            let at = |other: &&Advertised| other.network == place.network && other.address == place.address;
            let taken = workloads.iter().find(|other| {
                other.advertise.iter().find(at).is_some_and(|other| other.port == place.port)
                    || (other.network == place.network && other.addresses.contains(&place.address))
            });
            if let Some(other) = taken {
                let message = format!("{} is an address of {} itself", place.address, quoted(&other.name));
                let fix = "take an address that nothing has: what is dialled there goes to one of the workload's own";
                Scope::new(manifest, findings).refuse(Place::of(manifest.spanned_name()), message, fix);
            }
        }
        let mut refuse = |first: &Manifest, what: String| {
            let place = Place::of(manifest.spanned_name());
            let message =
                format!("{what} already belongs to {} at {}:{}", first.name(), first.file(), first.line());
            Scope::new(manifest, findings).refuse(place, message, "change one of the two");
        };
        if let Some(first) = identities.insert(&workload.id, manifest) {
            refuse(first, format!("the identity {}", workload.id));
        }
        for place in &workload.advertise {
            let key = (place.network.as_str(), place.address, place.port);
            if let Some(first) = published.insert(key, manifest) {
                refuse(
                    first,
                    format!("port {} at {} in {}", place.port, place.address, quoted(&place.network)),
                );
            }
        }
        for &address in &workload.addresses {
            let others = claimed.entry((&workload.network, address)).or_default();
            if let Some((_, first)) = others.iter().find(|(other, _)| share_a_port(workload, other)) {
                refuse(first, format!("the address {address} in {}", quoted(&workload.network)));
            }
            others.push((workload, manifest));
        }
    }
}

/// Workloads in one network namespace share their address and differ in their ports.
fn share_a_port(one: &WorkloadModel, other: &WorkloadModel) -> bool {
    one.ports.is_empty()
        || other.ports.is_empty()
        || one.ports.iter().any(|port| other.port(port.port).is_some())
}
