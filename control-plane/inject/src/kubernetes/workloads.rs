//! The mesh's own manifests for what was injected: who it is, what it is called and where it listens.

use serde_json::{Map, Value, json};

use super::objects::{Service, ServicePort, TargetPort};
use super::pod::PodWorkload;
use super::ports::WorkloadPort;
use super::{CLUSTER_DOMAIN, Options};

/// A workload and where it is.
pub(super) struct Located {
    pub(super) namespace: String,
    pub(super) workload: PodWorkload,
}

impl Located {
    /// Whether a Service of the same namespace sends its calls here.
    pub(super) fn is_behind(&self, service: &Service, namespace: &str) -> bool {
        let selected = |(name, value): (&String, &String)| self.workload.labels.get(name) == Some(value);
        self.namespace == namespace && service.selector.iter().all(selected)
    }

    /// The `Workload` manifest; `services` are those that it is behind.
    pub(super) fn manifest(&self, services: &[&Service], options: &Options) -> Value {
        let Self { namespace, workload } = self;
        let mut ports = workload.ports.clone();
        let (mut names, mut virtual_addresses) = (Vec::new(), Vec::new());
        for service in services {
            let name = &service.name;
            names.extend([
                name.clone(),
                format!("{name}.{namespace}"),
                format!("{name}.{namespace}.svc"),
                format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}"),
            ]);
            for port in &service.ports {
                let Some(target) = serve(&mut ports, port) else { continue };
                virtual_addresses.extend(service.addresses.iter().map(|address| {
                    json!({ "network": options.network, "address": address, "port": port.number, "targetPort": target })
                }));
            }
        }
        ports.sort_by_key(|port| port.number);
        let mut spec = Map::new();
        spec.insert("class".to_owned(), workload.class.as_deref().unwrap_or(&options.class).into());
        spec.insert("device".to_owned(), namespace.as_str().into());
        spec.insert("workload".to_owned(), workload.name.as_str().into());
        spec.insert("network".to_owned(), options.network.as_str().into());
        let ports = ports.iter().map(WorkloadPort::to_value).collect();
        for (field, entries) in [
            ("names", names.into_iter().map(Value::from).collect()),
            ("ports", ports),
            ("virtualAddresses", virtual_addresses),
        ] {
            if !Vec::is_empty(&entries) {
                spec.insert(field.to_owned(), entries.into());
            }
        }
        json!({
            "apiVersion": "signet.mf2c-project.eu/v1alpha1",
            "kind": "Workload",
            "metadata": { "name": self.manifest_name() },
            "spec": spec,
        })
    }

    /// The manifest's name: unique in the mesh, as the namespace is in the cluster.
    pub(super) fn manifest_name(&self) -> String {
        format!("{}.{}", self.workload.name, self.namespace)
    }
}

/// Adds what a Service knows of the port behind it; the number of that port, if it is there.
fn serve(ports: &mut Vec<WorkloadPort>, of: &ServicePort) -> Option<u16> {
    let found = match &of.target {
        TargetPort::Named(name) => ports.iter_mut().find(|port| port.name.as_ref() == Some(name))?,
        TargetPort::Number(number) => {
            // A container need not declare a port to listen on it.
            let place = ports.iter().position(|port| port.number == *number).unwrap_or_else(|| {
                ports.push(WorkloadPort { name: None, number: *number, protocol: None, fixed: false });
                ports.len() - 1
            });
            ports.get_mut(place)?
        }
    };
    if !found.fixed && of.protocol.is_some() {
        found.protocol = of.protocol;
    }
    Some(found.number)
}
