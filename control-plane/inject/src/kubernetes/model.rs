//! What the injector has to know of a pod, read once from its YAML.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::at::At;
use super::reason::{InjectError, Reason};

/// Most containers of a pod; what its sidecar is told of their probes stays below the kernel's bound for a variable.
const CONTAINERS_MAX: usize = 64;

/// A pod, or the template of one.
pub(super) struct Pod<'v> {
    pub(super) containers: Vec<Container<'v>>,
    pub(super) host_network: bool,
    pub(super) host_processes: bool,
    pub(super) shares_processes: bool,
    pub(super) volumes: Vec<Volume<'v>>,
    pub(super) windows: bool,
}

/// A container or an init container.
pub(super) struct Container<'v> {
    pub(super) at: At<'v>,
    pub(super) name: &'v str,
    /// The list it is in.
    pub(super) list: List,
    /// Its place in the list.
    pub(super) number: usize,
    /// It goes on beside the others: a container, or a sidecar among the init containers.
    pub(super) stays: bool,
    pub(super) ports: Vec<Port<'v>>,
    /// The volumes it mounts, and those it has as devices.
    pub(super) mounts: Vec<Volume<'v>>,
    pub(super) security: Security<'v>,
}

/// Which list of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    Containers,
    InitContainers,
}

/// A port that a container declares.
pub(super) struct Port<'v> {
    pub(super) at: At<'v>,
    pub(super) name: Option<&'v str>,
    pub(super) number: u16,
    pub(super) protocol: &'v str,
}

/// What a container may do, the pod's settings worked in.
pub(super) struct Security<'v> {
    pub(super) added: Vec<&'v str>,
    pub(super) dropped: Vec<&'v str>,
    /// Where its user is given, for the place of a fault.
    pub(super) user: Option<(At<'v>, u64)>,
    pub(super) privileged: bool,
}

/// A volume of the pod, or where one is mounted.
pub(super) struct Volume<'v> {
    pub(super) at: At<'v>,
    pub(super) name: &'v str,
    pub(super) host_path: Option<&'v str>,
}

impl List {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Containers => "containers",
            Self::InitContainers => "initContainers",
        }
    }
}

impl<'v> Pod<'v> {
    /// Reads an object with `metadata` and `spec`.
    pub(super) fn read(object: &'v Value) -> Result<Self, InjectError> {
        let root = At::root(object, "pod.spec");
        let spec = root.object("spec")?.ok_or_else(|| root.missing("spec", "a mapping"))?;
        let context = spec.object("securityContext")?;
        let mut containers = Vec::new();
        for list in [List::InitContainers, List::Containers] {
            for (number, at) in spec.objects(list.name())?.into_iter().enumerate() {
                containers.push(Container::read(at, list, number, context.as_ref())?);
            }
        }
        if !containers.iter().any(|container| container.list == List::Containers) {
            return Err(spec.missing("containers", "a list with an entry"));
        }
        if containers.len() > CONTAINERS_MAX {
            return Err(spec.refuse(Reason::TooMany { what: "containers", most: CONTAINERS_MAX }));
        }
        let volumes = spec.objects("volumes")?.into_iter().map(Volume::read).collect::<Result<_, _>>()?;
        let os = spec.object("os")?.map(|os| os.text("name")).transpose()?.flatten();
        Ok(Self {
            containers,
            host_network: spec.flag("hostNetwork")?,
            host_processes: spec.flag("hostPID")?,
            shares_processes: spec.flag("shareProcessNamespace")?,
            volumes,
            windows: os == Some("windows"),
        })
    }
}

impl<'v> Container<'v> {
    fn read(at: At<'v>, list: List, number: usize, pod: Option<&At<'v>>) -> Result<Self, InjectError> {
        let name = at.text("name")?.ok_or_else(|| at.missing("name", "a text"))?;
        let ports = at.objects("ports")?.into_iter().map(Port::read).collect::<Result<_, _>>()?;
        let stays = list == List::Containers || at.text("restartPolicy")? == Some("Always");
        let security = Security::read(at.object("securityContext")?.as_ref(), pod)?;
        let mut mounts = at.objects("volumeMounts")?;
        mounts.extend(at.objects("volumeDevices")?);
        let mounts = mounts.into_iter().map(Volume::read).collect::<Result<_, _>>()?;
        Ok(Self { at, name, list, number, stays, ports, mounts, security })
    }

    /// The number behind a port's name.
    pub(super) fn port_called(&self, name: &str) -> Option<u16> {
        self.ports.iter().find(|port| port.name == Some(name)).map(|port| port.number)
    }
}

impl<'v> Port<'v> {
    fn read(at: At<'v>) -> Result<Self, InjectError> {
        let number = at.port("containerPort")?.ok_or_else(|| at.missing("containerPort", "a port"))?;
        Ok(Self { name: at.text("name")?, number, protocol: at.text("protocol")?.unwrap_or("TCP"), at })
    }
}

impl<'v> Security<'v> {
    fn read(own: Option<&At<'v>>, pod: Option<&At<'v>>) -> Result<Self, InjectError> {
        let user = |context: Option<&At<'v>>| -> Result<Option<(At<'v>, u64)>, InjectError> {
            let Some(context) = context else { return Ok(None) };
            Ok(context.number("runAsUser")?.and_then(|user| Some((context.field("runAsUser")?, user))))
        };
        let capabilities = own.map(|own| own.object("capabilities")).transpose()?.flatten();
        let list = |name| capabilities.as_ref().map(|all| all.texts(name)).transpose();
        Ok(Self {
            added: list("add")?.unwrap_or_default(),
            dropped: list("drop")?.unwrap_or_default(),
            user: match user(own)? {
                Some(user) => Some(user),
                None => user(pod)?,
            },
            privileged: own.map(|own| own.flag("privileged")).transpose()?.unwrap_or_default(),
        })
    }

    /// Whether it has a capability that the runtime gives (`given`) or not.
    pub(super) fn holds(&self, capability: &str, given: bool) -> bool {
        let named = |list: &[&str]| {
            list.iter().map(|name| name.trim_start_matches("CAP_")).any(|name| name == capability)
        };
        let all = |list: &[&str]| list.contains(&"ALL");
        self.privileged
            || named(&self.added)
            || ((all(&self.added) || (given && !all(&self.dropped))) && !named(&self.dropped))
    }
}

impl<'v> Volume<'v> {
    fn read(at: At<'v>) -> Result<Self, InjectError> {
        let name = at.text("name")?.ok_or_else(|| at.missing("name", "a text"))?;
        let host_path = at.object("hostPath")?.map(|host| host.text("path")).transpose()?.flatten();
        Ok(Self { at, name, host_path })
    }
}

/// A field of a mapping to be written to, made where it is not there. The way there was read before.
pub(super) fn made<'v>(value: &'v mut Value, name: &str, empty: Value) -> &'v mut Value {
    if !value.is_object() {
        *value = json!({});
    }
    // Made an object above.
    let Value::Object(fields) = value else { unreachable!("an object") };
    let field = fields.entry(name).or_insert_with(|| empty.clone());
    if field.is_null() {
        *field = empty;
    }
    field
}

/// The labels of an object, those that are text.
pub(super) fn labels(object: &Value) -> BTreeMap<String, String> {
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    let text = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
    labels.map(|labels| labels.iter().filter_map(text).collect()).unwrap_or_default()
}
