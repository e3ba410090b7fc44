//! The manifests of a project: its Mesh, a Workload and an AccessPolicy for each service.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;

use super::beside::token_file;
use super::emit::quoted;
use super::plan::{Plan, Severity};
use super::ports::{named_in, range};
use super::project::{Project, Service, texts};
use super::{Fault, Options, host};

/// Most ports of one workload; a policy's lists take 1,000.
const PORTS_MAX: usize = 500;
/// What of a service may tell ports of others.
const TELLING: [&str; 5] = ["command", "entrypoint", "environment", "healthcheck", "labels"];

/// An identity that needs a join token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Enrolment {
    /// The service, which is also the last part of the identity.
    pub service: String,
    /// The network that its sidecar enrols in.
    pub network: String,
    /// Where its token is expected, below the mesh's directory.
    pub token_file: String,
}

/// The manifests, and what needs a token.
pub(super) fn describe(
    file: &str,
    project: &Project,
    plan: &mut Plan,
    options: &Options,
) -> Result<(String, Vec<Enrolment>), Fault> {
    let mut out = head(options);
    let told = told_ports(project);
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut enrolments = Vec::new();
    let meshed: Vec<String> = plan.meshed(project).map(|service| service.name.clone()).collect();
    for service in meshed.into_iter().filter_map(|name| project.service(&name)) {
        let name = manifest_name(&service.name, &mut known);
        let is_guarded = plan.is_guarded(project, &service.name);
        let published = published(service, options);
        // What nobody guards must not look as if it were.
        let ports = if is_guarded {
            host::guarded(file, project, plan, service)?
        } else {
            ports(project, plan, service, &published, &told)
        };
        // In the host's network every port is reached at the host's address; but whoever comes from outside has to show
        // who it is, once the mesh is strict.
        let reached: BTreeMap<u16, Option<u16>> = if is_guarded {
            ports.iter().map(|port| (*port, Some(*port))).collect()
        } else {
            published.clone()
        };
        let published = if is_guarded { BTreeMap::new() } else { published };
        if ports.is_empty() {
            let text = "no port of it is known: if it serves, callers reach it in clear; fix: list its ports under \
                        `expose`";
            plan.find(&service.name, service.line, Severity::Warning, text.to_owned());
        }
        workload(&mut out, &name, service, &ports, &published, &reached, options);
        access(&mut out, &name, &published, options);
        enrolments.push(Enrolment {
            service: service.name.clone(),
            network: options.mesh.clone(),
            token_file: token_file(&service.name),
        });
    }
    Ok((out, enrolments))
}

fn head(options: &Options) -> String {
    let Options { mesh, trust_domain, strict, .. } = options;
    // Folders are called `2024` and `on`, too.
    let quoted_mesh = quoted(mesh);
    let mode = if *strict { "strict" } else { "permissive" };
    let outside = options.host_address.map_or_else(String::new, |address| {
        let length = if address.is_ipv4() { 32 } else { 128 };
        let name = quoted(&format!("{mesh}-outside"));
        format!(
            "\n    # Where others reach this host.\n    - {{name: {name}, cidrs: [\"{address}/{length}\"]}}"
        )
    });
    let mut out = format!(
        "# Written by `signet inject compose`. It counts when the control plane starts for the first time; after that\n\
         # edit it and run `signet apply -f`.\n\
         apiVersion: signet.mf2c-project.eu/v1alpha1\n\
         kind: Mesh\n\
         metadata: {{name: {quoted_mesh}}}\n\
         spec:\n  \
           trustDomain: {trust_domain}\n  \
           # permissive: plaintext is accepted and counted, destinations outside are reached. When `signet coverage` is\n  \
           # quiet, make it strict and list under `egress` what services may reach outside.\n  \
           mtls: {{mode: {mode}}}\n  \
           networks:\n    \
             # All networks of the Compose file: on one engine they do not overlap.\n    \
             - {{name: {quoted_mesh}}}{outside}\n"
    );
    if !strict {
        out.push_str(
            "---\n\
             # Nothing is refused on the first day. Delete this policy and the lines `mode: observe` below once the sidecars\n\
             # log no more `would be refused`.\n\
             apiVersion: signet.mf2c-project.eu/v1alpha1\n\
             kind: AccessPolicy\n\
             metadata: {name: everybody-for-now}\n\
             spec:\n  \
               target: {workloads: [\"*\"]}\n  \
               rules: [{name: everybody, from: [{any: anyone}]}]\n",
        );
    }
    out
}

fn workload(
    out: &mut String,
    name: &str,
    service: &Service,
    ports: &BTreeSet<u16>,
    published: &BTreeMap<u16, Option<u16>>,
    reached: &BTreeMap<u16, Option<u16>>,
    options: &Options,
) {
    let mut lines = vec![
        "---".to_owned(),
        "apiVersion: signet.mf2c-project.eu/v1alpha1".to_owned(),
        "kind: Workload".to_owned(),
        format!("metadata: {{name: {}}}", quoted(name)),
        "spec:".to_owned(),
        format!("  class: {}", options.class),
        format!("  device: {}", quoted(&options.device)),
    ];
    if name != service.name {
        lines.push(format!("  workload: {}", quoted(&service.name)));
    }
    lines.push(format!("  network: {}", quoted(&options.mesh)));
    let names: Vec<String> =
        service.names().iter().filter(|name| is_host_name(name)).map(|name| quoted(name)).collect();
    if !names.is_empty() {
        lines.push(format!("  names: [{}]", names.join(", ")));
    }
    if options.strict && !published.is_empty() {
        lines.push("  # Outside clients have no certificate.".to_owned());
        lines.push("  mtls: {mode: permissive}".to_owned());
    }
    if !ports.is_empty() {
        lines.push("  ports:".to_owned());
        lines.extend(ports.iter().map(|port| format!("    - {{port: {port}}}")));
    }
    let networks = service.networks();
    let fixed: Vec<String> =
        networks.iter().filter_map(|(_, said)| said.text_of("ipv4_address")).map(quoted).collect();
    if fixed.len() == networks.len() && fixed.iter().all(|address| !address.contains('$')) {
        lines.push(format!("  addresses: [{}]", fixed.join(", ")));
    }
    if let Some(address) = options.host_address {
        let places: Vec<String> = reached
            .iter()
            .filter_map(|(port, host)| Some((port, (*host)?)))
            .map(|(port, host)| {
                let network = quoted(&format!("{}-outside", options.mesh));
                format!(
                    "    - {{network: {network}, address: \"{address}\", port: {host}, targetPort: {port}}}"
                )
            })
            .collect();
        if !places.is_empty() {
            lines.push("  advertise:".to_owned());
            lines.extend(places);
        }
    }
    for line in lines {
        out.push_str(&line);
        out.push('\n');
    }
}

fn access(out: &mut String, name: &str, published: &BTreeMap<u16, Option<u16>>, options: &Options) {
    let mode = if options.strict { "" } else { "  mode: observe\n" };
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "---\n\
         apiVersion: signet.mf2c-project.eu/v1alpha1\n\
         kind: AccessPolicy\n\
         metadata: {{name: {}}}\n\
         spec:\n  \
           target: {{workloads: [{}]}}\n\
         {mode}  \
           rules:\n    \
             - {{name: workloads-of-the-mesh, from: [{{any: authenticated}}]}}\n",
        quoted(&format!("{name}-access")),
        quoted(name),
    );
    if !published.is_empty() {
        let ports: Vec<String> = published.keys().map(u16::to_string).collect();
        let ports = ports.join(", ");
        let _ = writeln!(
            out,
            "    # The class external: whoever comes from outside, by published ports only.\n    \
             - {{name: external, from: [{{any: anyone}}], to: [{{ports: [{ports}]}}]}}"
        );
    }
}

/// Published TCP ports of the container, with the host's where it is fixed and others reach it.
fn published(service: &Service, options: &Options) -> BTreeMap<u16, Option<u16>> {
    let outside = options.host_address.map(|address| address.to_string());
    let reached = |address: &str| {
        let bare = address.trim_matches(['[', ']']);
        matches!(bare, "" | "0.0.0.0" | "::") || outside.as_deref() == Some(bare)
    };
    let mut all = BTreeMap::new();
    for port in service.ports.iter().filter(|port| !port.udp) {
        let (first, last) = port.container;
        for (at, container) in (first..=last).enumerate().take(PORTS_MAX) {
            let fixed =
                port.host.filter(|_| reached(&port.address)).filter(|host| host.1 - host.0 == last - first);
            let host = fixed.and_then(|host| host.0.checked_add(u16::try_from(at).ok()?));
            if all.len() < PORTS_MAX {
                all.entry(container).or_insert(host);
            }
        }
    }
    all
}

/// All TCP ports that the file tells of.
fn ports(
    project: &Project,
    plan: &Plan,
    service: &Service,
    published: &BTreeMap<u16, Option<u16>>,
    told: &HashMap<String, BTreeSet<u16>>,
) -> BTreeSet<u16> {
    let mut ports: BTreeSet<u16> = published.keys().copied().collect();
    for name in service.names() {
        ports.extend(told.get(&name).into_iter().flatten());
    }
    for each in plan.group(project, &service.name) {
        for text in texts(each.whole.get("expose")) {
            let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            if let (Some((first, last)), "tcp") = (range(number), protocol) {
                ports.extend((first..=last).take(PORTS_MAX));
            }
        }
        if let Some(check) = each.whole.get("healthcheck") {
            check.each_text(&mut |text| {
                named_in(text, |host, port| {
                    if matches!(host, "localhost" | "127.0.0.1" | "0.0.0.0") {
                        ports.insert(port);
                    }
                });
            });
        }
    }
    ports.into_iter().take(PORTS_MAX).collect()
}

/// The ports that services name behind names of others, as in `http://web:8080/`.
fn told_ports(project: &Project) -> HashMap<String, BTreeSet<u16>> {
    let mut told: HashMap<String, BTreeSet<u16>> =
        project.services.iter().flat_map(Service::names).map(|name| (name, BTreeSet::new())).collect();
    let values = project.services.iter().flat_map(|service| TELLING.map(|key| service.whole.get(key)));
    for value in values.flatten() {
        value.each_text(&mut |text| {
            named_in(text, |host, port| {
                if let Some(ports) = told.get_mut(host).filter(|ports| ports.len() < PORTS_MAX) {
                    ports.insert(port);
                }
            });
        });
    }
    told
}

/// A service's name as manifests may be called, and each only once.
fn manifest_name(service: &str, known: &mut BTreeSet<String>) -> String {
    let lower = service.to_ascii_lowercase().replace('_', "-");
    let trimmed = lower.trim_matches(['-', '.']);
    let base = if trimmed.is_empty() { "service" } else { trimmed };
    let mut name = base.to_owned();
    let mut number = 2;
    while !known.insert(name.clone()) {
        name = format!("{base}-{number}");
        number += 1;
    }
    name
}

fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    name.len() <= 253 && name.split('.').all(label)
}
