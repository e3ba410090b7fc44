//! One `POST /containers/create` becomes three containers: a holder that owns the network, a sidecar in it, and the app,
//! which joins it. Pure: bodies in, bodies out.

use serde_json::{Map, Value, json};
use signet_inject::compose::{ROLE_HOLDER, ROLE_LABEL};

use super::body::Body;
use super::mounts;
use crate::attestor::rules::WORKLOAD_LABEL;
use crate::attestor::{TOKEN_FILE, TOKEN_FOLDER};

/// The label that a holder, its sidecar and its app have in common.
pub(crate) const GROUP_LABEL: &str = "signet.mf2c-project.eu/group";
/// The label of a sidecar that came late: the container it stands beside.
pub(crate) const BESIDE_LABEL: &str = "signet.mf2c-project.eu/beside";
/// Values of the role's label, besides the holder's.
pub(crate) const ROLE_APP: &str = "app";
pub(crate) const ROLE_SIDECAR: &str = "sidecar";

/// What Docker refuses on a container that uses another one's network: the holder has it instead.
const MOVED: [&str; 4] = ["Domainname", "ExposedPorts", "Hostname", "MacAddress"];
/// The same of `HostConfig`.
const MOVED_OF_HOST: [&str; 8] = [
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "ExtraHosts",
    "Links",
    "NetworkMode",
    "PortBindings",
    "PublishAllPorts",
];
/// Ports that the sidecar has within the namespace.
const OWN_PORTS: [&str; 3] = ["15001", "15006", "15020"];
/// What an app needs to get round its sidecar.
const POWERS: [&str; 4] = ["ALL", "NET_ADMIN", "NET_RAW", "SYS_ADMIN"];
/// Where the sidecar keeps its keys: a volume that nothing else mounts.
const STATE: &str = "/var/lib/signet";

/// What all sidecars here have in common.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The control plane as sidecars reach it, `HOST:PORT`.
    pub(crate) control_plane: String,
    /// The sidecar's image, by its id once it is known: who may use the engine can give its tag to another.
    pub(crate) image: String,
    /// What no meshed container may mount: paths, with the folders above and below them, and names of volumes.
    pub(crate) reserved: Vec<String>,
}

/// What is to be made.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) holder: Value,
    sidecar: Map<String, Value>,
    app: Body,
    /// What the caller should know.
    pub(crate) warnings: Vec<String>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) body: &'a Body,
    /// The name the container is to have.
    pub(crate) name: Option<&'a str>,
    /// The workload it is to be.
    pub(crate) workload: &'a str,
    /// Names the three containers.
    pub(crate) group: &'a str,
    /// What the image says it listens on.
    pub(crate) exposed: Option<&'a Map<String, Value>>,
}

/// Plans the three containers.
///
/// # Errors
/// What cannot be meshed, and how to go on.
pub(crate) fn plan(asked: Asked<'_>, settings: &Settings) -> Result<Plan, String> {
    let Asked { body, workload, group, .. } = asked;
    refuse(body, settings)?;
    let warnings = warned_of(body);
    let mut app = body.clone();
    let mut holder = program(settings, "hold", ROLE_HOLDER, workload);
    for field in MOVED {
        if let Some(value) = app.take(field) {
            holder.insert(field.to_owned(), value);
        }
    }
    if body.host_is("PublishAllPorts") {
        expose(&mut holder, asked.exposed);
    }
    let mut host = host_of(restart(body), body.host("LogConfig"));
    for field in MOVED_OF_HOST {
        if let Some(value) = app.take_host(field) {
            host.insert(field.to_owned(), value);
        }
    }
    let sysctls = body.host("Sysctls").and_then(Value::as_object).cloned().unwrap_or_default();
    let (of_network, others): (Map<_, _>, Map<_, _>) =
        sysctls.into_iter().partition(|(name, _)| name.starts_with("net."));
    if !of_network.is_empty() {
        host.insert("Sysctls".to_owned(), of_network.into());
        app.set_host("Sysctls", others.into());
    }
    holder.insert("HostConfig".to_owned(), host.into());
    if let Some(networking) =
        networking(app.take("NetworkingConfig"), body.host_text("NetworkMode"), asked.name)
    {
        holder.insert("NetworkingConfig".to_owned(), networking);
    }
    let mut sidecar = sidecar_of(settings, workload, restart(body), body.host("LogConfig"));
    label_group(&mut holder, group);
    label_group(&mut sidecar, group);
    drop_powers(&mut app);
    for (name, value) in [(ROLE_LABEL, ROLE_APP), (GROUP_LABEL, group), (WORKLOAD_LABEL, workload)] {
        app.set_label(name, value);
    }
    Ok(Plan { holder: holder.into(), sidecar, app, warnings })
}

impl Plan {
    /// The sidecar's body, once its holder is there.
    pub(crate) fn sidecar(&self, holder: &str) -> Value {
        let mut sidecar = self.sidecar.clone();
        if let Some(Value::Object(host)) = sidecar.get_mut("HostConfig") {
            host.insert("NetworkMode".to_owned(), joined(holder).into());
        }
        sidecar.into()
    }

    /// The app's body, once its holder is there.
    pub(crate) fn app(&self, holder: &str) -> Value {
        guest(self.app.clone(), holder)
    }
}

/// A sidecar that lives in the namespace of a container that was there before it.
pub(crate) fn late_sidecar(settings: &Settings, workload: &str, container: &str) -> Value {
    let mut sidecar = sidecar_of(settings, workload, "always", None);
    if let Some(Value::Object(labels)) = sidecar.get_mut("Labels") {
        labels.insert(BESIDE_LABEL.to_owned(), container.into());
    }
    if let Some(Value::Object(host)) = sidecar.get_mut("HostConfig") {
        host.insert("NetworkMode".to_owned(), joined(container).into());
    }
    sidecar.into()
}

/// A container that lives in the namespace of a meshed one: without what gets round the sidecar.
pub(crate) fn guest(mut body: Body, holder: &str) -> Value {
    body.set_host("NetworkMode", joined(holder).into());
    drop_powers(&mut body);
    body.into_value()
}

fn joined(holder: &str) -> String {
    format!("container:{holder}")
}

fn refuse(body: &Body, settings: &Settings) -> Result<(), String> {
    let mode = body.host_text("NetworkMode");
    if mode == "host" {
        return Err("host-network: a container in the host's network has no namespace of its own to put a sidecar in; fix: \
                    give it a network, or keep it out by the label signet.mf2c-project.eu/inject=false"
            .to_owned());
    }
    let ports = ["ExposedPorts"].map(|field| body.get(field)).into_iter().chain([body.host("PortBindings")]);
    for port in ports.flatten().filter_map(Value::as_object).flat_map(Map::keys) {
        let number = port.split('/').next().unwrap_or(port);
        if OWN_PORTS.contains(&number) {
            return Err(format!(
                "own-port: the port {port} is the sidecar's within the container; fix: use another"
            ));
        }
    }
    mounts::fault(body, settings).map_or(Ok(()), Err)
}

/// How a container can get round its sidecar.
pub(crate) fn warned_of(body: &Body) -> Vec<String> {
    let mut why = Vec::new();
    if body.host_is("Privileged") {
        why.push("it is privileged".to_owned());
    }
    let added =
        body.host_texts("CapAdd").into_iter().map(capability).filter(|name| POWERS.contains(&&**name));
    why.extend(added.map(|name| format!("it has {name}")));
    if body.host_text("PidMode") == "host" {
        why.push("it has the host's processes".to_owned());
    }
    if mounts::sources(body).into_iter().any(|source| mounts::leads_to(source, "/var/run/docker.sock")) {
        why.push("it has the engine's socket".to_owned());
    }
    let told = |reason: String| {
        format!("signet: egress not enforceable: {reason}, by which it can get round its sidecar")
    };
    why.into_iter().map(told).collect()
}

/// A capability's name without prefix, in capitals.
fn capability(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    name.strip_prefix("CAP_").unwrap_or(&name).to_owned()
}

/// Takes away what gets round the sidecar, unless it was asked for by name.
fn drop_powers(app: &mut Body) {
    let added: Vec<String> = app.host_texts("CapAdd").into_iter().map(capability).collect();
    let mut dropped: Vec<String> = app.host_texts("CapDrop").into_iter().map(str::to_owned).collect();
    for name in ["NET_ADMIN", "NET_RAW"] {
        let known = dropped.iter().any(|drop| [name, "ALL"].contains(&&*capability(drop)));
        if !known && !added.iter().any(|add| add == name) {
            dropped.push(name.to_owned());
        }
    }
    app.set_host("CapDrop", dropped.into());
}

/// A program of Signet with nothing that it does not need.
fn program(settings: &Settings, command: &str, role: &str, workload: &str) -> Map<String, Value> {
    let labels = Map::from_iter([
        (ROLE_LABEL.to_owned(), Value::from(role)),
        (WORKLOAD_LABEL.to_owned(), workload.into()),
    ]);
    Map::from_iter([
        ("Image".to_owned(), Value::from(&*settings.image)),
        ("Cmd".to_owned(), json!([command])),
        ("Labels".to_owned(), labels.into()),
    ])
}

fn sidecar_of(
    settings: &Settings,
    workload: &str,
    restart: &str,
    logging: Option<&Value>,
) -> Map<String, Value> {
    let mut sidecar = program(settings, "run", ROLE_SIDECAR, workload);
    sidecar.insert(
        "Env".to_owned(),
        json!([
            format!("SIGNET_CONTROL_PLANE={}", settings.control_plane),
            format!("SIGNET_STATE_DIR={STATE}"),
            format!("SIGNET_TOKEN_FILE={TOKEN_FOLDER}/{TOKEN_FILE}"),
        ]),
    );
    let mut host = host_of(restart, logging);
    let volumes = [STATE, TOKEN_FOLDER].map(|target| json!({ "Type": "volume", "Target": target }));
    host.insert("Mounts".to_owned(), volumes.to_vec().into());
    sidecar.insert("HostConfig".to_owned(), host.into());
    sidecar
}

fn label_group(container: &mut Map<String, Value>, group: &str) {
    if let Some(Value::Object(labels)) = container.get_mut("Labels") {
        labels.insert(GROUP_LABEL.to_owned(), group.into());
    }
}

/// When the engine starts what stands beside a container by itself: before one that it starts by itself, whenever that is.
fn restart(body: &Body) -> &'static str {
    let policy = body.host("RestartPolicy").and_then(|policy| policy.get("Name")).and_then(Value::as_str);
    if matches!(policy, None | Some("" | "no")) { "no" } else { "always" }
}

fn host_of(policy: &str, logging: Option<&Value>) -> Map<String, Value> {
    let mut host = Map::from_iter([
        ("CapAdd".to_owned(), json!(["NET_ADMIN"])),
        ("CapDrop".to_owned(), json!(["ALL"])),
        ("ReadonlyRootfs".to_owned(), true.into()),
        ("RestartPolicy".to_owned(), json!({ "Name": policy })),
    ]);
    if let Some(logging) = logging {
        host.insert("LogConfig".to_owned(), logging.clone());
    }
    host
}

/// What the image listens on counts where all of it is published.
fn expose(holder: &mut Map<String, Value>, image: Option<&Map<String, Value>>) {
    let ports = holder.entry("ExposedPorts").or_insert_with(|| Map::new().into());
    if let (Value::Object(ports), Some(image)) = (ports, image) {
        for port in image.keys() {
            ports.entry(port.clone()).or_insert_with(|| json!({}));
        }
    }
}

/// The networks of the container, in which the holder answers to its name too.
fn networking(given: Option<Value>, mode: &str, name: Option<&str>) -> Option<Value> {
    let named = name.filter(|_| !matches!(mode, "" | "default" | "bridge"));
    let Some(name) = named else { return given };
    let mut networking = given.and_then(|value| value.as_object().cloned()).unwrap_or_default();
    let mut endpoints =
        networking.remove("EndpointsConfig").and_then(|value| value.as_object().cloned()).unwrap_or_default();
    if endpoints.is_empty() {
        endpoints.insert(mode.to_owned(), json!({}));
    }
    for endpoint in endpoints.values_mut() {
        alias(endpoint, name);
    }
    networking.insert("EndpointsConfig".to_owned(), endpoints.into());
    Some(networking.into())
}

/// Lets an endpoint answer to a name too.
pub(crate) fn alias(endpoint: &mut Value, name: &str) {
    if !endpoint.is_object() {
        *endpoint = json!({});
    }
    let Value::Object(endpoint) = endpoint else { return };
    let mut aliases =
        endpoint.remove("Aliases").and_then(|value| value.as_array().cloned()).unwrap_or_default();
    if !aliases.iter().any(|alias| alias == name) {
        aliases.push(name.into());
    }
    endpoint.insert("Aliases".to_owned(), aliases.into());
}

#[cfg(test)]
mod tests;
