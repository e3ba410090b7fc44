//! The kubelet's probes, which come over the network and without an identity: a strict mesh refuses them at the app's
//! port. So the kubelet asks the sidecar, and the sidecar asks the app with the probe as it was written.

use serde_json::{Map, Value, json};

use super::at::At;
use super::model::{Container, List, Pod};
use super::reason::{Finding, InjectError, Reason};
use super::sidecar::ADMIN_PORT;

/// A container's field, and the probe's name at the sidecar.
const KINDS: [(&str, &str); 3] =
    [("livenessProbe", "liveness"), ("readinessProbe", "readiness"), ("startupProbe", "startup")];
/// The ways of a probe that go over the network.
const WAYS: [&str; 3] = ["grpc", "httpGet", "tcpSocket"];

/// A probe that the sidecar takes over.
pub(super) struct Taken {
    list: List,
    number: usize,
    field: &'static str,
    way: &'static str,
    /// `CONTAINER/KIND`.
    name: String,
    /// What the sidecar is told.
    probe: Value,
}

/// What can be taken over, and findings about what can not.
pub(super) fn read(pod: &Pod<'_>, findings: &mut Vec<Finding>) -> Result<Vec<Taken>, InjectError> {
    let mut taken = Vec::new();
    for container in pod.containers.iter().filter(|container| container.stays) {
        for (field, kind) in KINDS {
            if let Some(probe) = container.at.object(field)? {
                taken.extend(read_one(container, &probe, field, kind, findings)?);
            }
        }
        hooks(container, findings)?;
    }
    Ok(taken)
}

fn read_one(
    container: &Container<'_>,
    probe: &At<'_>,
    field: &'static str,
    kind: &str,
    findings: &mut Vec<Finding>,
) -> Result<Option<Taken>, InjectError> {
    let mut way = None;
    for name in WAYS {
        if let Some(at) = probe.object(name)? {
            way = Some((name, at));
        }
    }
    // By `exec`: the kubelet runs it inside the container.
    let Some((way, at)) = way else { return Ok(None) };
    if at.text("host")?.is_some_and(|host| !host.is_empty()) {
        findings.push(Finding::ProbeLeftAlone {
            container: container.name.to_owned(),
            probe: field.to_owned(),
            because: "it names a `host`, and goes there".to_owned(),
        });
        return Ok(None);
    }
    let port = port(container, &at)?;
    let what = match way {
        "httpGet" => {
            let scheme = at.text("scheme")?.unwrap_or("HTTP");
            if scheme == "HTTPS" {
                let (container, probe) = (container.name.to_owned(), field.to_owned());
                findings.push(Finding::ProbeOverTls { container, probe });
            }
            json!({ "port": port, "path": path(&at)?, "scheme": scheme, "httpHeaders": headers(&at)? })
        }
        "grpc" => json!({ "port": port, "service": at.text("service")?.unwrap_or_default() }),
        _ => json!({ "port": port }),
    };
    // The sidecar takes 1 to 60; the kubelet has given up by then.
    let seconds = probe.number("timeoutSeconds")?.unwrap_or(1).clamp(1, 60);
    let mut told = Map::new();
    told.insert(way.to_owned(), what);
    told.insert("timeoutSeconds".to_owned(), seconds.into());
    Ok(Some(Taken {
        list: container.list,
        number: container.number,
        field,
        way,
        name: format!("{}/{kind}", container.name),
        probe: told.into(),
    }))
}

fn port(container: &Container<'_>, at: &At<'_>) -> Result<u16, InjectError> {
    let named = at.field("port").filter(|port| port.value().is_string());
    match named.as_ref().and_then(|port| port.value().as_str()) {
        Some(name) => {
            // Kubernetes takes a number in quotes too.
            let number = container.port_called(name).or_else(|| name.parse().ok().filter(|port| *port != 0));
            let wrong = || Reason::ProbePort(name.to_owned());
            number.ok_or_else(|| named.as_ref().unwrap_or(at).refuse(wrong()))
        }
        None => at.port("port")?.ok_or_else(|| at.missing("port", "a port")),
    }
}

fn path(at: &At<'_>) -> Result<String, InjectError> {
    let path = at.text("path")?.unwrap_or("/");
    // The kubelet adds what is missing at the beginning.
    Ok(if path.starts_with('/') { path.to_owned() } else { format!("/{path}") })
}

fn headers(at: &At<'_>) -> Result<Vec<Value>, InjectError> {
    let header = |at: At<'_>| -> Result<Value, InjectError> {
        let name = at.text("name")?.ok_or_else(|| at.missing("name", "a text"))?;
        Ok(json!({ "name": name, "value": at.text("value")?.unwrap_or_default() }))
    };
    at.objects("httpHeaders")?.into_iter().map(header).collect()
}

/// A hook changes something, so the sidecar does not run it for everybody who asks.
fn hooks(container: &Container<'_>, findings: &mut Vec<Finding>) -> Result<(), InjectError> {
    let Some(lifecycle) = container.at.object("lifecycle")? else { return Ok(()) };
    for hook in ["postStart", "preStop"] {
        let Some(at) = lifecycle.object(hook)? else { continue };
        if at.field("httpGet").is_some() || at.field("tcpSocket").is_some() {
            let (container, hook) = (container.name.to_owned(), hook.to_owned());
            findings.push(Finding::HookOverNetwork { container, hook });
        }
    }
    Ok(())
}

/// Sends the kubelet to the sidecar. Times and thresholds stay the probe's own.
pub(super) fn redirect(pod: &mut Value, taken: &[Taken]) {
    for probe in taken {
        let pointer = format!("/spec/{}/{}/{}", probe.list.name(), probe.number, probe.field);
        if let Some(fields) = pod.pointer_mut(&pointer).and_then(Value::as_object_mut) {
            fields.remove(probe.way);
            let path = format!("/probe/{}", probe.name);
            fields
                .insert("httpGet".to_owned(), json!({ "path": path, "port": ADMIN_PORT, "scheme": "HTTP" }));
        }
    }
}

/// The sidecar's setting `SIGNET_PROBES`; `None` without a probe.
pub(super) fn setting(taken: &[Taken]) -> Option<String> {
    let all: Map<String, Value> =
        taken.iter().map(|probe| (probe.name.clone(), probe.probe.clone())).collect();
    // Kubernetes puts variables in the place of `$(NAME)` in a variable's value, and never in a probe.
    (!all.is_empty()).then(|| Value::from(all).to_string().replace('$', "$$"))
}
