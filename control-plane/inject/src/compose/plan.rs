//! What becomes of each service, and what people should know about it.

use std::collections::BTreeSet;

use serde::Serialize;

use super::project::{Project, Service, texts};
use super::value::Value;
use super::{Fault, Options, host};

/// The control plane's service.
pub(super) const CONTROL_PLANE: &str = "signet-control-plane";
/// The operator's tool as a service.
pub(super) const TOOL: &str = "signet";
/// The service that keeps containers together which share a network namespace.
pub(super) const KEEPER: &str = "signet-keeper";
/// The volume with the control plane's socket for operators.
pub(super) const ADMIN_VOLUME: &str = "signet-admin";

/// What becomes of a service.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "action")]
pub enum Outcome {
    /// It is in the host's network, and has a guard there.
    Guarded,
    /// It stays as it is, outside the mesh.
    Left {
        /// Why.
        reason: String,
    },
    /// It has a namespace holder and a sidecar of its own.
    Meshed,
    /// It shares the network namespace and the sidecar of another service.
    Shares {
        /// Which.
        with: String,
    },
}

impl Outcome {
    /// Whether a sidecar stands beside it that is its own.
    pub(super) fn has_sidecar(&self) -> bool {
        matches!(self, Self::Guarded | Self::Meshed)
    }
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Good to know.
    Note,
    /// Less is protected than one could think, or something may stop working.
    Warning,
}

/// Something to know about a service or the file.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// The file it is about.
    pub file: String,
    /// The service; empty: the file as a whole.
    pub service: String,
    /// The line it is about.
    pub line: usize,
    /// How much it matters.
    pub severity: Severity,
    /// What it is.
    pub text: String,
}

/// What becomes of every service, in the file's order.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) findings: Vec<Finding>,
}

impl Plan {
    /// Decides for each service, and refuses what cannot be done.
    pub(super) fn make(file: &str, project: &Project, options: &Options) -> Result<Self, Fault> {
        let outcomes = project
            .services
            .iter()
            .map(|service| outcome(file, project, service))
            .collect::<Result<Vec<_>, _>>()?;
        let mut plan = Self { outcomes, findings: Vec::new() };
        plan.refuse_clashes(file, project)?;
        if plan.meshed(project).next().is_none() {
            let message = "no service of it can be meshed";
            return Err(Fault::new(file, 1, message, "see docs/install.md for what is not covered"));
        }
        plan.look(project, options);
        Ok(plan)
    }

    /// The services with a sidecar of their own.
    pub(super) fn meshed<'a>(&'a self, project: &'a Project) -> impl Iterator<Item = &'a Service> {
        let each = project.services.iter().zip(&self.outcomes);
        each.filter(|(_, outcome)| outcome.has_sidecar()).map(|(service, _)| service)
    }

    /// Whether the service has a guard in the host's network.
    pub(super) fn is_guarded(&self, project: &Project, name: &str) -> bool {
        let each = project.services.iter().zip(&self.outcomes);
        each.filter(|(service, _)| service.name == name).any(|(_, outcome)| *outcome == Outcome::Guarded)
    }

    /// The services beside a service with a sidecar of its own: whose network it uses, and which is to be healthy.
    pub(super) fn beside(&self, project: &Project, own: &str) -> (String, String) {
        if self.is_guarded(project, own) { (guard(own), guard(own)) } else { (holder(own), sidecar(own)) }
    }

    /// The service itself and those that share its namespace.
    pub(super) fn group<'a>(
        &'a self,
        project: &'a Project,
        name: &'a str,
    ) -> impl Iterator<Item = &'a Service> {
        let each = project.services.iter().zip(&self.outcomes);
        each.filter(move |(service, outcome)| match outcome {
            Outcome::Guarded | Outcome::Meshed => service.name == name,
            Outcome::Shares { with } => with == name,
            Outcome::Left { .. } => false,
        })
        .map(|(service, _)| service)
    }

    /// The service whose sidecar `name` uses, if it is meshed.
    pub(super) fn sidecar_of<'a>(&'a self, project: &'a Project, name: &str) -> Option<&'a str> {
        let at = project.services.iter().position(|service| service.name == name)?;
        match self.outcomes.get(at)? {
            Outcome::Guarded | Outcome::Meshed => {
                project.services.get(at).map(|service| service.name.as_str())
            }
            Outcome::Shares { with } => Some(with),
            Outcome::Left { .. } => None,
        }
    }

    fn refuse_clashes(&self, file: &str, project: &Project) -> Result<(), Fault> {
        let mut services = BTreeSet::from([CONTROL_PLANE, KEEPER, TOOL].map(str::to_owned));
        let mut volumes = BTreeSet::from([CONTROL_PLANE.to_owned(), ADMIN_VOLUME.to_owned()]);
        let mut secrets = BTreeSet::new();
        for service in self.meshed(project) {
            let (holder, sidecar) = self.beside(project, &service.name);
            services.extend([holder, sidecar]);
            volumes.insert(volume(&service.name));
            secrets.insert(secret(&service.name));
        }
        for (section, added) in [("services", services), ("volumes", volumes), ("secrets", secrets)] {
            let entries = project.root.get(section).and_then(Value::entries).unwrap_or_default();
            if let Some(entry) = entries.iter().find(|entry| added.contains(&entry.key)) {
                let message = format!("`{}` of {section} is a name that is added here", entry.key);
                return Err(Fault::new(file, entry.line, message, "rename it"));
            }
        }
        Ok(())
    }

    fn look(&mut self, project: &Project, options: &Options) {
        for key in ["name", "include"] {
            if let Some(entry) = project.root.entry(key) {
                let more = if key == "include" { ", and what it includes is not meshed" } else { "" };
                self.find(
                    "",
                    entry.line,
                    Severity::Warning,
                    format!("docker-compose 1.29 refuses `{key}`{more}"),
                );
            }
        }
        for (service, outcome) in project.services.iter().zip(self.outcomes.clone()) {
            match outcome {
                Outcome::Left { reason } => {
                    let line = service.line_of("network_mode");
                    self.find(&service.name, line, Severity::Warning, format!("not meshed: {reason}"));
                }
                Outcome::Shares { with } => {
                    let line = service.line_of("network_mode");
                    let text = format!("shares the network, the sidecar and the identity of `{with}`");
                    self.find(&service.name, line, Severity::Note, text);
                    self.look_at(service, options);
                }
                Outcome::Guarded | Outcome::Meshed => self.look_at(service, options),
            }
        }
    }

    fn look_at(&mut self, service: &Service, options: &Options) {
        use Severity::{Note, Warning};
        let name = service.name.as_str();
        for (key, reason) in unenforceable(service) {
            let text = format!("egress not enforceable: {reason}");
            self.find(name, service.line_of(key), Warning, text);
        }
        if service.whole.text_of("user").is_some_and(|user| user.split(':').next() == Some("1337")) {
            let text =
                "runs as user 1337, which sidecars run as where they are told by their user".to_owned();
            self.find(name, service.line_of("user"), Warning, text);
        }
        for (key, path) in holding(service, &options.directory) {
            let text = format!(
                "{path} holds {}, where the authority's keys and all join tokens are: whoever reads them can be anybody \
                 in the mesh; fix: {}",
                options.directory,
                if key == "build" {
                    "name the folder in its .dockerignore, or another outside by --directory"
                } else {
                    "name a folder outside of it by --directory"
                }
            );
            self.find(name, service.line_of(key), Warning, text);
        }
        let mut local = false;
        if let Some(test) = service.whole.get("healthcheck").and_then(|check| check.get("test")) {
            test.each_text(&mut |text| local |= text.contains("localhost") || text.contains("127.0.0.1"));
        }
        if local {
            let text = "healthcheck by localhost works as it is".to_owned();
            self.find(name, service.line_of("healthcheck"), Note, text);
        }
        let networks = service.networks();
        let fixed = networks.iter().all(|(_, said)| said.get("ipv4_address").is_some());
        if networks.len() > 1 && !fixed {
            let text = format!(
                "is in {} networks: only its address in the one by which it reaches the control plane is meshed to \
                 callers; fix: give it an `ipv4_address` in each",
                networks.len()
            );
            self.find(name, service.line_of("networks"), Warning, text);
        }
        for line in &service.unknown_ports {
            let text =
                "the published port depends on a variable: add it to the Workload in mesh.yaml".to_owned();
            self.find(name, *line, Warning, text);
        }
        for port in &service.ports {
            if port.udp {
                let text = format!("port {} is not TCP: what comes there is not protected", port.container.0);
                self.find(name, port.line, Warning, text);
            } else if options.host_address.is_some() && port.host.is_none() {
                let text = "the host's port is chosen by the engine, so it is not advertised".to_owned();
                self.find(name, port.line, Note, text);
            }
        }
    }

    pub(super) fn find(&mut self, service: &str, line: usize, severity: Severity, text: String) {
        self.findings.push(Finding {
            file: String::new(),
            service: service.to_owned(),
            line,
            severity,
            text,
        });
    }
}

pub(super) fn holder(name: &str) -> String {
    format!("{name}-holder")
}

pub(super) fn sidecar(name: &str) -> String {
    format!("{name}-sidecar")
}

pub(super) fn guard(name: &str) -> String {
    format!("{name}-guard")
}

pub(super) fn volume(name: &str) -> String {
    format!("signet-{name}")
}

pub(super) fn secret(name: &str) -> String {
    format!("signet-{name}-token")
}

/// What lets a service get round its sidecar: the key and the reason.
fn unenforceable(service: &Service) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    if service.whole.get("privileged").is_some_and(Value::is_true) {
        found.push(("privileged", "privileged".to_owned()));
    }
    for capability in added_capabilities(service) {
        if ["ALL", "NET_ADMIN", "NET_RAW", "SYS_ADMIN"].contains(&capability.as_str()) {
            found.push(("cap_add", capability));
        }
    }
    let reaches = |source: &str| {
        let parts = parts(source);
        source.starts_with('/')
            && (parts.last().is_some_and(|last| last.ends_with(".sock"))
                || matches!(parts.as_slice(), [] | ["run" | "var"] | ["var", "run"]))
    };
    if mounted(service).any(reaches) {
        found.push(("volumes", "the engine's socket".to_owned()));
    }
    if service.whole.text_of("pid") == Some("host") {
        found.push(("pid", "the host's processes".to_owned()));
    }
    found
}

/// The sources of a service's mounts.
fn mounted(service: &Service) -> impl Iterator<Item = &str> {
    let volumes = service.whole.get("volumes").and_then(Value::items).unwrap_or_default();
    volumes.iter().filter_map(|volume| match volume.as_text() {
        Some(text) => text.split(':').next(),
        None => volume.text_of("source"),
    })
}

/// A path's parts, as far as the text alone tells them.
fn parts(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !matches!(*part, "" | ".")).collect()
}

/// Mounts and build contexts that hold the mesh's directory, as far as their text tells: the key and the path.
fn holding<'a>(service: &'a Service, directory: &str) -> Vec<(&'static str, &'a str)> {
    let build = service.whole.get("build");
    let context = build.and_then(|build| build.as_text().or_else(|| build.text_of("context")));
    let mounts = mounted(service).filter(|source| source.starts_with(['.', '/']));
    let all = mounts.map(|source| ("volumes", source)).chain(context.map(|context| ("build", context)));
    all.filter(|(_, path)| holds(path, directory)).collect()
}

/// Whether one of two paths, both as seen from the project's folder, is within the other. What only the machine could
/// tell, such as a link or where the folder lies, is not known here.
fn holds(path: &str, directory: &str) -> bool {
    let (path_parts, own) = (parts(path), parts(directory));
    if path.starts_with('/') != directory.starts_with('/') {
        return path.starts_with('/') && path_parts.is_empty();
    }
    let up = |parts: &[&str]| parts.iter().take_while(|part| **part == "..").count();
    path_parts.len() == up(&path_parts) && up(&path_parts) > up(&own)
        || up(&path_parts) == up(&own) && (own.starts_with(&path_parts) || path_parts.starts_with(&own))
}

/// What `cap_add` names, without the prefix.
pub(super) fn added_capabilities(service: &Service) -> Vec<String> {
    let bare = |text: &str| {
        let text = text.to_ascii_uppercase();
        text.strip_prefix("CAP_").map_or_else(|| text.clone(), str::to_owned)
    };
    texts(service.whole.get("cap_add")).into_iter().map(bare).collect()
}

fn outcome(file: &str, project: &Project, service: &Service) -> Result<Outcome, Fault> {
    let left = |reason: &str| Ok(Outcome::Left { reason: reason.to_owned() });
    let mut current = service;
    // A chain of services that use each other's network is followed to its end.
    for _ in 0..=project.services.len() {
        let Some(mode) = current.whole.text_of("network_mode") else {
            return Ok(if current.name == service.name {
                Outcome::Meshed
            } else {
                Outcome::Shares { with: current.name.clone() }
            });
        };
        let line = current.line_of("network_mode");
        if current.whole.get("networks").is_some() {
            let message = format!("`{}` has a `network_mode` and `networks`", current.name);
            return Err(Fault::new(file, line, message, "keep one of them"));
        }
        match mode {
            "host"
                if host::declared(file, service)?.is_empty() && host::declared(file, current)?.is_empty() =>
            {
                return left(
                    "host network, and no port of it is known; fix: list its TCP ports under `expose`, or \
                     `x-signet: {ports: [8080]}`",
                );
            }
            "host" if current.name == service.name => return Ok(Outcome::Guarded),
            "host" if host::declared(file, current)?.is_empty() => {
                return left("host network, of a service without known ports");
            }
            "host" => return Ok(Outcome::Shares { with: current.name.clone() }),
            "none" => return left("it has no network"),
            "bridge" => return left("network_mode bridge: no service finds the control plane by name there"),
            _ if mode.contains('$') => return left("its network_mode depends on a variable"),
            _ => {}
        }
        let Some(target) = mode.strip_prefix("service:") else {
            return left(&format!("network_mode {mode}: the network is not this file's"));
        };
        current = project.service(target).ok_or_else(|| {
            Fault::new(file, line, format!("there is no service `{target}`"), "name one that is there")
        })?;
    }
    let line = service.line_of("network_mode");
    let message =
        format!("`{}` uses the network of services that use each other's in a circle", service.name);
    Err(Fault::new(file, line, message, "let one of them have a network of its own"))
}
