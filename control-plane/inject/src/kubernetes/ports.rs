//! Where a workload listens, and what is spoken there.

use serde_json::{Map, Value};

use super::annotations::{Annotations, PROTOCOLS};
use super::model::{Container, Pod};
use super::reason::Finding;
use super::sidecar::PROXY;

/// A port of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPort {
    /// Its name, where the pod has one.
    pub name: Option<String>,
    /// Its number.
    pub number: u16,
    /// What is spoken there, as a `Workload` says it; `None` where nobody said.
    pub protocol: Option<&'static str>,
    /// Whether the operator said so, which no Service overrides.
    pub fixed: bool,
}

/// The TCP ports that the containers declare, and those of the annotation.
pub(super) fn of_pod(
    pod: &Pod<'_>,
    annotations: &Annotations,
    findings: &mut Vec<Finding>,
) -> Vec<WorkloadPort> {
    let mut ports: Vec<WorkloadPort> = Vec::new();
    let of_app = |container: &&Container<'_>| container.stays && container.name != PROXY;
    for container in pod.containers.iter().filter(of_app) {
        for port in &container.ports {
            if port.protocol != "TCP" {
                findings.push(Finding::NotTcp {
                    of: container.name.to_owned(),
                    port: port.number.into(),
                    protocol: port.protocol.to_owned(),
                });
            } else if !ports.iter().any(|known| known.number == port.number) {
                let protocol = port.name.and_then(by_name);
                let name = port.name.map(str::to_owned);
                ports.push(WorkloadPort { name, number: port.number, protocol, fixed: false });
            }
        }
    }
    for (number, protocol) in &annotations.ports {
        match ports.iter_mut().find(|port| port.number == *number) {
            Some(port) => (port.protocol, port.fixed) = (Some(*protocol), true),
            None => ports.push(WorkloadPort {
                name: None,
                number: *number,
                protocol: Some(protocol),
                fixed: true,
            }),
        }
    }
    ports.retain(|port| !annotations.excluded.contains(&port.number));
    ports.sort_by_key(|port| port.number);
    ports
}

/// What a port's name says of it, by the custom of `http-admin`, `grpc` and the like.
pub(super) fn by_name(name: &str) -> Option<&'static str> {
    let word = name.split('-').next().unwrap_or_default();
    match word {
        "https" => Some("tls"),
        "h2c" => Some("http2"),
        "tcp" => Some("opaque"),
        _ => PROTOCOLS.into_iter().find(|known| *known == word && *known != "auto"),
    }
}

/// What `appProtocol` says, by its registered names.
pub(super) fn by_app_protocol(text: &str) -> Option<&'static str> {
    match text {
        "kubernetes.io/h2c" => Some("http2"),
        "kubernetes.io/ws" => Some("http"),
        "https" | "kubernetes.io/wss" => Some("tls"),
        other => by_name(other),
    }
}

impl WorkloadPort {
    /// As an entry of `Workload.spec.ports`.
    pub(super) fn to_value(&self) -> Value {
        let mut entry = Map::new();
        entry.insert("port".to_owned(), self.number.into());
        if let Some(name) = &self.name {
            entry.insert("name".to_owned(), name.as_str().into());
        }
        if let Some(protocol) = self.protocol {
            entry.insert("protocol".to_owned(), protocol.into());
        }
        entry.into()
    }
}
