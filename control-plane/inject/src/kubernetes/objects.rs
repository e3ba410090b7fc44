//! Which objects have pods, and where; what a Service says.

use std::collections::BTreeMap;

use serde_json::Value;

use super::at::At;
use super::documents::Step;
use super::ports::{by_app_protocol, by_name};
use super::reason::{InjectError, Reason};

/// Kinds with a pod: the version of the API that has them, and the way to the pod or its template.
const WITH_POD: [(&str, &str, &[&str]); 8] = [
    ("CronJob", "batch/v1", &["spec", "jobTemplate", "spec", "template"]),
    ("DaemonSet", "apps/v1", &["spec", "template"]),
    ("Deployment", "apps/v1", &["spec", "template"]),
    ("Job", "batch/v1", &["spec", "template"]),
    ("Pod", "v1", &[]),
    ("ReplicaSet", "apps/v1", &["spec", "template"]),
    ("ReplicationController", "v1", &["spec", "template"]),
    ("StatefulSet", "apps/v1", &["spec", "template"]),
];

/// What an object is.
pub(super) enum Object {
    /// A list of objects, at this field.
    List,
    /// Something without pods.
    Other,
    /// A Service.
    Service,
    /// Something with a pod.
    WithPod(WithPod),
}

/// An object with a pod.
pub(super) struct WithPod {
    pub(super) kind: &'static str,
    pub(super) way: &'static [&'static str],
    /// The object's name.
    pub(super) name: String,
    pub(super) namespace: Option<String>,
}

/// A Service, as far as callers need it.
pub(super) struct Service {
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    pub(super) selector: BTreeMap<String, String>,
    /// Addresses that the cluster gave it.
    pub(super) addresses: Vec<String>,
    /// It has none on purpose.
    pub(super) headless: bool,
    pub(super) ports: Vec<ServicePort>,
}

/// A TCP port of a Service.
pub(super) struct ServicePort {
    pub(super) number: u16,
    pub(super) protocol: Option<&'static str>,
    pub(super) target: TargetPort,
}

/// The port of the pod behind it.
pub(super) enum TargetPort {
    Named(String),
    Number(u16),
}

/// Tells what an object is.
pub(super) fn classify(value: &Value) -> Result<Object, InjectError> {
    let root = At::root(value, "pod");
    let not = |missing, fix| InjectError::at(&[], Reason::NotKubernetes { missing, fix });
    if !value.is_object() {
        return Err(not("apiVersion", "name a file with manifests"));
    }
    let (version, kind) = (root.text("apiVersion")?, root.text("kind")?);
    if version.is_none() && value.get("services").is_some_and(Value::is_object) {
        return Err(InjectError::at(&[], Reason::Compose));
    }
    let version = version.ok_or_else(|| not("apiVersion", "write `apiVersion` and `kind`"))?;
    let kind = kind.ok_or_else(|| not("kind", "write `kind`"))?;
    let expect = |wanted: &'static str| {
        let reason = || Reason::ApiVersion { kind: kind.to_owned(), found: version.to_owned(), wanted };
        if version == wanted { Ok(()) } else { Err(InjectError::at(&["apiVersion".into()], reason())) }
    };
    // Others may have kinds of these names in groups of their own.
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let of_kubernetes = matches!(group, "" | "apps" | "batch" | "extensions");
    if kind == "List" && of_kubernetes {
        expect("v1")?;
        return Ok(Object::List);
    }
    if kind == "Service" && of_kubernetes {
        expect("v1")?;
        return Ok(Object::Service);
    }
    let Some((kind, wanted, way)) = WITH_POD.into_iter().find(|(known, ..)| *known == kind && of_kubernetes)
    else {
        return Ok(Object::Other);
    };
    expect(wanted)?;
    let metadata = root.object("metadata")?.ok_or_else(|| root.missing("metadata", "a mapping"))?;
    let generated = metadata.text("generateName")?.map(|name| name.trim_end_matches('-'));
    let name = metadata.text("name")?.or(generated).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| metadata.missing("name", "a text"))?.to_owned();
    let namespace = metadata.text("namespace")?.map(str::to_owned);
    Ok(Object::WithPod(WithPod { kind, way, name, namespace }))
}

/// The pod of an object.
pub(super) fn pod_of<'v>(
    object: &'v mut Value,
    way: &'static [&'static str],
) -> Result<(&'v mut Value, Vec<Step>), InjectError> {
    let mut path = Vec::new();
    let mut here = object;
    for step in way {
        path.push(Step::from(*step));
        let shape =
            || Reason::Shape { field: (*step).to_owned(), expected: "a mapping", explain: "deployment.spec" };
        here = match here.get_mut(*step) {
            Some(next) if next.is_object() => next,
            _ => return Err(InjectError::at(&path, shape())),
        };
    }
    Ok((here, path))
}

/// Reads a Service; `None` for one that selects no pods.
pub(super) fn service(value: &Value) -> Result<Option<Service>, InjectError> {
    let root = At::root(value, "service.spec");
    let (Some(metadata), Some(spec)) = (root.object("metadata")?, root.object("spec")?) else {
        return Err(root.missing("spec", "a mapping"));
    };
    let name = metadata.text("name")?.ok_or_else(|| metadata.missing("name", "a text"))?.to_owned();
    let selector = spec.object("selector")?.map(|selector| selector.value().clone());
    let text = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
    let selector: BTreeMap<String, String> = match selector.as_ref().and_then(Value::as_object) {
        Some(selector) if !selector.is_empty() => selector.iter().filter_map(text).collect(),
        _ => return Ok(None),
    };
    let mut addresses: Vec<String> = spec.texts("clusterIPs")?.into_iter().map(str::to_owned).collect();
    addresses.extend(spec.text("clusterIP")?.map(str::to_owned));
    let headless = addresses.iter().any(|address| address == "None");
    addresses.retain(|address| !address.is_empty() && address != "None");
    addresses.sort();
    addresses.dedup();
    let mut ports = Vec::new();
    for port in spec.objects("ports")? {
        if port.text("protocol")?.is_none_or(|protocol| protocol == "TCP") {
            ports.push(ServicePort::read(&port)?);
        }
    }
    let namespace = metadata.text("namespace")?.map(str::to_owned);
    Ok(Some(Service { name, namespace, selector, addresses, headless, ports }))
}

impl ServicePort {
    fn read(at: &At<'_>) -> Result<Self, InjectError> {
        let number = at.port("port")?.ok_or_else(|| at.missing("port", "a port"))?;
        let named = at.field("targetPort").and_then(|target| target.value().as_str().map(str::to_owned));
        let target = match named {
            Some(name) => TargetPort::Named(name),
            None => TargetPort::Number(at.port("targetPort")?.unwrap_or(number)),
        };
        let said = at.text("appProtocol")?.and_then(by_app_protocol);
        let protocol = said.or(at.text("name")?.and_then(by_name));
        Ok(Self { number, protocol, target })
    }
}
