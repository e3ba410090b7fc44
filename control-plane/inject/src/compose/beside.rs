//! What is added: a holder and a sidecar for each service, the control plane, the operator's tool.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::plan::{ADMIN_VOLUME, CONTROL_PLANE, Plan, TOOL, holder, secret, volume};
use super::project::{Project, Service, once, texts};
use super::value::{Entry, Value};
use super::{Options, ROLE_HOLDER, ROLE_LABEL, host};

/// What Docker refuses on a container that uses another one's network: the holder has it instead.
pub(super) const MOVED: [&str; 11] = [
    "dns",
    "dns_opt",
    "dns_search",
    "domainname",
    "expose",
    "external_links",
    "extra_hosts",
    "hostname",
    "mac_address",
    "networks",
    "ports",
];

/// The volume's place within sidecars and the control plane.
const STATE: &str = "/var/lib/signet";

/// The namespace holder of a service.
pub(super) fn holder_of(project: &Project, plan: &Plan, service: &Service, options: &Options) -> Value {
    let mut added = program(options, "signet-proxy", Some(&["hold"]));
    added.set("labels", Value::mapping([(ROLE_LABEL, Value::text(ROLE_HOLDER))]));
    added.set("cap_add", Value::list(["NET_ADMIN"]));
    let key = |key: &str| service.whole.get(key).cloned();
    for key_name in MOVED.into_iter().filter(|name| *name != "networks") {
        if let Some(value) = key(key_name) {
            added.set(key_name, value);
        }
    }
    // Those who share the network have ports to tell of, too.
    let exposed: BTreeSet<&str> =
        plan.group(project, &service.name).flat_map(|each| texts(each.whole.get("expose"))).collect();
    if service.whole.get("expose").is_none() && !exposed.is_empty() {
        added.set("expose", Value::list(exposed));
    }
    if let Some(links) = key("links") {
        let links = texts(Some(&links)).into_iter().map(|link| {
            let (target, alias) = link.split_once(':').unwrap_or((link, link));
            plan.sidecar_of(project, target)
                .map_or_else(|| link.to_owned(), |own| format!("{}:{alias}", plan.beside(project, own).0))
        });
        added.set("links", Value::list(links.collect::<Vec<_>>()));
    }
    let networks = service.networks().into_iter().map(|(network, said)| {
        let mut said = if said.entries().is_some() { said } else { Value::empty() };
        let own: Vec<String> = texts(said.get("aliases")).into_iter().map(str::to_owned).collect();
        let container = service.whole.text_of("container_name").map(str::to_owned);
        let aliases = once(std::iter::once(service.name.clone()).chain(own).chain(container));
        said.set("aliases", Value::list(aliases));
        (network, said)
    });
    added.set("networks", Value::mapping(networks));
    let kernel: Vec<Entry> = sysctls(service).into_iter().filter(is_of_network).collect();
    if !kernel.is_empty() {
        added.set("sysctls", Value::mapping(kernel.into_iter().map(|entry| (entry.key, entry.value))));
    }
    added.set("healthcheck", healthcheck(&["/signet-proxy", "hold", "--check"], "15s"));
    with_habits(added, project, plan, service)
}

/// The sidecar of a service.
pub(super) fn sidecar_of(project: &Project, plan: &Plan, service: &Service, options: &Options) -> Value {
    let name = service.name.as_str();
    let mut added = program(options, "signet-proxy", Some(&["run"]));
    added.set("network_mode", Value::text(format!("service:{}", holder(name))));
    added.set("cap_add", Value::list(["NET_ADMIN"]));
    let control_plane = Value::text(format!("{CONTROL_PLANE}:15012"));
    enrolled(&mut added, vec![("SIGNET_CONTROL_PLANE", control_plane)], name);
    let healthy = || Value::mapping([("condition", Value::text("service_healthy"))]);
    added.set("depends_on", Value::mapping([(holder(name).as_str(), healthy()), (CONTROL_PLANE, healthy())]));
    added.set("healthcheck", healthcheck(&["/signet-proxy", "ready"], "60s"));
    with_habits(added, project, plan, service)
}

/// What every proxy has: its token, and a volume for its keys.
pub(super) fn enrolled(added: &mut Value, mut settings: Vec<(&'static str, Value)>, name: &str) {
    settings.push(("SIGNET_TOKEN_FILE", Value::text(format!("/run/secrets/{}", secret(name)))));
    settings.push(("SIGNET_STATE_DIR", Value::text(STATE)));
    added.set("environment", Value::mapping(settings));
    added.set("secrets", Value::list([secret(name)]));
    added.set("volumes", Value::list([format!("{}:{STATE}", volume(name))]));
}

/// The control plane, in every network in which a sidecar is.
pub(super) fn control_plane(project: &Project, plan: &Plan, options: &Options) -> Value {
    let mut added = program(options, "signet-control-plane", None);
    added.set(
        "environment",
        Value::mapping([
            ("SIGNET_TRUST_DOMAIN", Value::text(&*options.trust_domain)),
            ("SIGNET_BOOTSTRAP_DIR", Value::text("/bootstrap")),
            ("SIGNET_STATE_DIR", Value::text(STATE)),
            ("SIGNET_ADMIN_SOCKET", Value::text("/run/signet/admin.sock")),
        ]),
    );
    let mounts = [
        format!("{CONTROL_PLANE}:{STATE}"),
        format!("{ADMIN_VOLUME}:/run/signet"),
        format!("{}/bootstrap:/bootstrap:ro", options.directory),
    ];
    added.set("volumes", Value::list(mounts));
    let mut networks: BTreeMap<String, Value> = BTreeMap::new();
    if !host::guards(project, plan).is_empty() {
        added.set("ports", Value::list([host::control_plane_port(options)]));
    }
    for service in plan.meshed(project).filter(|service| !plan.is_guarded(project, &service.name)) {
        for (network, _) in service.networks() {
            let said = fixed_address(project, &network).map_or_else(
                || Value::plain(""),
                |address| Value::mapping([("ipv4_address", Value::text(address.to_string()))]),
            );
            networks.insert(network, said);
        }
    }
    if networks.is_empty() {
        networks.insert("default".to_owned(), Value::plain(""));
    }
    added.set("networks", Value::mapping(networks));
    added.set("healthcheck", healthcheck(&["/signet-control-plane", "ready"], "30s"));
    added
}

/// What an engine that restarts gives up on, and what a restarted holder leaves behind, it brings back. It has the
/// engine's socket and no network.
pub(super) fn keeper(options: &Options) -> Option<Value> {
    const SOCKET: &str = "/var/run/docker.sock";
    let socket = options.docker_socket.as_deref()?;
    let mut added = program(options, "signet", Some(&["docker", "keep"]));
    // The engine's socket is root's.
    added.set("user", Value::text("0:0"));
    added.set("network_mode", Value::text("none"));
    added.set("volumes", Value::list([format!("{socket}:{SOCKET}")]));
    Some(added)
}

/// The operator's tool, started by hand only.
pub(super) fn tool(options: &Options) -> Value {
    let mut added = program(options, "signet", None);
    added.remove("restart");
    added.set("network_mode", Value::text("none"));
    added
        .set("environment", Value::mapping([("SIGNET_ADMIN_SOCKET", Value::text("/run/signet/admin.sock"))]));
    added.set("volumes", Value::list([format!("{ADMIN_VOLUME}:/run/signet")]));
    added.set("profiles", Value::list([TOOL]));
    added
}

/// The volumes that are added.
pub(super) fn volumes(project: &Project, plan: &Plan) -> Vec<(String, Value)> {
    let of_services = plan.meshed(project).map(|service| volume(&service.name));
    let all = of_services.chain([CONTROL_PLANE.to_owned(), ADMIN_VOLUME.to_owned()]);
    all.map(|name| (name, Value::empty())).collect()
}

/// The secrets that are added: join tokens.
pub(super) fn secrets(project: &Project, plan: &Plan, options: &Options) -> Vec<(String, Value)> {
    let each = plan.meshed(project).map(|service| {
        let file = format!("{}/{}", options.directory, token_file(&service.name));
        (secret(&service.name), Value::mapping([("file", Value::text(file))]))
    });
    each.collect()
}

/// Where a service's token is, below the mesh's directory.
pub(super) fn token_file(name: &str) -> String {
    format!("tokens/{name}.token")
}

/// What `sysctls` says, as entries.
pub(super) fn sysctls(service: &Service) -> Vec<Entry> {
    match service.whole.get("sysctls") {
        None => Vec::new(),
        Some(value) => match value.entries() {
            Some(entries) => entries.to_vec(),
            None => texts(Some(value))
                .into_iter()
                .filter_map(|text| text.split_once('='))
                .map(|(key, said)| Entry {
                    key: key.to_owned(),
                    line: value.line,
                    merged: false,
                    value: Value::text(said),
                })
                .collect(),
        },
    }
}

/// Whether a kernel setting belongs to a network namespace.
pub(super) fn is_of_network(entry: &Entry) -> bool {
    entry.key.starts_with("net.")
}

/// A program of Signet with nothing that it does not need.
pub(super) fn program(options: &Options, name: &str, command: Option<&[&str]>) -> Value {
    let image = format!("{}{name}:{}", options.image_prefix, options.tag);
    let mut added = Value::mapping([("image", Value::text(image))]);
    if let Some(command) = command {
        added.set("command", Value::list(command.iter().copied()));
    }
    added.set("restart", Value::text("always"));
    added.set("read_only", Value::plain("true"));
    added.set("cap_drop", Value::list(["ALL"]));
    added
}

pub(super) fn healthcheck(test: &[&str], start: &str) -> Value {
    Value::mapping([
        ("test", Value::list(["CMD"].iter().chain(test).copied())),
        ("interval", Value::text("2s")),
        ("timeout", Value::text("5s")),
        ("retries", Value::plain("15")),
        ("start_period", Value::text(start)),
    ])
}

/// What holds for the service holds for what stands beside it: when it is up, and where its output goes.
pub(super) fn with_habits(mut added: Value, project: &Project, plan: &Plan, service: &Service) -> Value {
    if let Some(logging) = service.whole.get("logging") {
        added.set("logging", logging.clone());
    }
    let profiles: Vec<Vec<&str>> = plan.group(project, &service.name).map(Service::profiles).collect();
    if profiles.iter().all(|profiles| !profiles.is_empty()) {
        let all: BTreeSet<&str> = profiles.into_iter().flatten().collect();
        added.set("profiles", Value::list(all));
    }
    added
}

/// An address for the control plane where services have fixed ones, so that it takes none of theirs: the highest that
/// is free. `None`: the engine may choose.
fn fixed_address(project: &Project, network: &str) -> Option<Ipv4Addr> {
    let mut taken: Vec<Ipv4Addr> = Vec::new();
    for service in &project.services {
        for (_, said) in service.networks().iter().filter(|(name, _)| name == network) {
            taken.extend(said.text_of("ipv4_address").and_then(|text| text.parse::<Ipv4Addr>().ok()));
        }
    }
    if taken.is_empty() {
        return None;
    }
    let config = project.root.get("networks")?.get(network)?.get("ipam")?.get("config")?;
    config.each_text(&mut |text| taken.extend(text.parse::<Ipv4Addr>().ok()));
    let subnet =
        config.items()?.iter().filter_map(|item| item.text_of("subnet")).find(|text| text.contains('.'))?;
    let (base, length) = subnet.split_once('/')?;
    let (base, length): (Ipv4Addr, u32) = (base.parse().ok()?, length.parse().ok()?);
    let hosts = 2_u32.checked_pow(32_u32.checked_sub(length)?)?.checked_sub(2)?;
    let base = u32::from(base);
    (1..=hosts)
        .rev()
        .map(|host| Ipv4Addr::from(base.wrapping_add(host)))
        .find(|address| !taken.contains(address))
}

/// What `service` needs to be started before it that its moved keys no longer say.
pub(super) fn implied(service: &Service) -> Vec<String> {
    let links = texts(service.whole.get("links"));
    let linked = links.into_iter().map(|link| link.split(':').next().unwrap_or(link).to_owned());
    let shared = service.whole.text_of("network_mode").and_then(|mode| mode.strip_prefix("service:"));
    linked.chain(shared.map(str::to_owned)).collect()
}
