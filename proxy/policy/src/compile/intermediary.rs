//! Intermediaries in the `Mesh` manifest: proxies that are not of the mesh, what they hand on and may rewrite.

use serde_saphyr::Spanned;

use crate::compile::{Scope, value};
use crate::diagnostic::{Place, quoted, suggestion};
use crate::manifest::{IntermediaryRouteSpec, IntermediarySpec, MeshSpec};
use crate::model::{IntermediaryModel, IntermediaryRoute, PolicyModel};
use crate::target::{check_authority_syntax, check_path};

/// The fields that an intermediary may be let change: those that signatures would cover, but for what says how the
/// content is to be read.
pub(crate) const CHANGEABLE: [&str; 4] = ["authorization", "cookie", "location", "set-cookie"];

pub(super) fn lower(
    scope: &mut Scope<'_>,
    spec: &Spanned<IntermediarySpec>,
    before: &[IntermediaryModel],
) -> Option<IntermediaryModel> {
    let IntermediarySpec { name, addresses, ports, routes } = &spec.value;
    let read = value::name(scope, name, "intermediary");
    if before.iter().any(|other| other.name == name.value) {
        let message = format!("intermediary {} is declared twice", quoted(&name.value));
        scope.refuse(Place::of(name), message, "rename or remove one of the two");
    }
    let mut places = Vec::new();
    for text in value::entries(scope, Some(addresses), "addresses", "never: it has to be reached") {
        places.extend(value::address(scope, text));
    }
    let entries = value::entries(scope, Some(ports), "ports", "never: it has to be reached");
    let ports = value::ports(scope, entries);
    let taken = before.iter().find(|other| {
        other.addresses.iter().any(|address| places.contains(address))
            && other.ports.iter().any(|port| ports.contains(port))
    });
    if let Some(other) = taken {
        let message = format!("intermediary {} has one of these addresses and ports", quoted(&other.name));
        scope.refuse(Place::of(name), message, "merge the two, or correct the addresses");
    }
    let mut lowered: Vec<IntermediaryRoute> = Vec::new();
    for entry in value::entries(scope, Some(routes), "routes", "never: nothing would be handed on") {
        let Some(route) = lower_route(scope, &entry.value) else { continue };
        if lowered.iter().any(|other| other.path == route.path) {
            let message = format!("path {} has two routes", quoted(&route.path));
            let place = entry.value.path.as_ref().map_or_else(|| Place::of(&entry.value.to), Place::of);
            scope.refuse(place, message, "keep one of the two");
        } else {
            lowered.push(route);
        }
    }
    Some(IntermediaryModel { name: read?, addresses: places, ports, routes: lowered })
}

fn lower_route(scope: &mut Scope<'_>, spec: &IntermediaryRouteSpec) -> Option<IntermediaryRoute> {
    let to = value::name(scope, &spec.to, "workload");
    let port = value::port(scope, &spec.port);
    let path = match &spec.path {
        Some(text) => prefix(scope, text),
        None => Some("/".to_owned()),
    };
    let replace_prefix = match &spec.replace_prefix {
        Some(text) => Some(prefix(scope, text)?),
        None => None,
    };
    let host = match &spec.host {
        Some(text) if check_authority_syntax(&text.value).is_err() => {
            let message = format!("{} is no host", quoted(&text.value));
            scope.refuse(Place::of(text), message, "write it as the workload gets it, such as `lm-um:46000`");
            return None;
        }
        Some(text) => Some(text.value.clone()),
        None => None,
    };
    let mut may_change = Vec::new();
    let entries =
        value::entries(scope, spec.may_change.as_ref(), "mayChange", "when it changes none of them");
    for text in entries {
        let name = text.value.to_ascii_lowercase();
        if CHANGEABLE.contains(&name.as_str()) {
            may_change.push(name);
        } else {
            let message = format!("{} is not for an intermediary to change", quoted(&text.value));
            let fix =
                "fields that no signature covers may change anyway; others must arrive as they were sent";
            scope.refuse(Place::of(text), message, fix);
        }
    }
    may_change.sort_unstable();
    may_change.dedup();
    Some(IntermediaryRoute { to: to?, port: port?, path: path?, replace_prefix, host, may_change })
}

/// The beginning of a path, in whole segments and without a slash at the end.
fn prefix(scope: &mut Scope<'_>, text: &Spanned<String>) -> Option<String> {
    let trimmed = match text.value.strip_suffix('/') {
        Some("") | None => text.value.as_str(),
        Some(trimmed) => trimmed,
    };
    if check_path(trimmed).is_ok() && !trimmed.contains('*') {
        return Some(trimmed.to_owned());
    }
    let message = format!("{} is not the beginning of a path", quoted(&text.value));
    scope.refuse(Place::of(text), message, "write whole segments, such as `/lm`, without wildcards");
    None
}

/// Refuses routes to workloads, or ports of theirs, that nobody declared.
pub(super) fn refuse_unknown(scope: &mut Scope<'_>, spec: &MeshSpec, model: &PolicyModel) {
    let Some(intermediaries) = &spec.intermediaries else { return };
    for route in intermediaries.0.value.iter().flat_map(|entry| &entry.value.routes.0.value) {
        let (to, port) = (&route.value.to, &route.value.port);
        let Some(workload) = model.workload_named(&to.value) else {
            let names = model.workloads.iter().map(|workload| workload.name.as_str());
            let message = format!("there is no Workload {}", quoted(&to.value));
            scope.refuse(Place::of(to), message, suggestion(&to.value, names));
            continue;
        };
        let declared = workload.ports.iter().any(|known| u32::from(known.port) == port.value);
        if !declared && !workload.ports.is_empty() {
            let message = format!("Workload {} has no port {}", quoted(&to.value), port.value);
            scope.refuse(Place::of(port), message, "use a port that the Workload declares");
        }
    }
}
