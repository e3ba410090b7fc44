//! What a Compose file describes: its services with all that they extend, and what makes a file no use.

use std::collections::{BTreeMap, HashSet};

use super::extends::Extender;
use super::ports::{Published, interpolated, published};
use super::value::{Entry, Value};
use super::{Fault, Read, merge};

/// Most services of a project: each gets two more beside it.
const SERVICES_MAX: usize = 1_000;
/// Most entries of `ports` in a file: each is compared with all others.
const PUBLISHED_MAX: usize = 2_000;
/// Ports of the sidecar within the namespace that it shares with the app.
const SIDECAR_PORTS: [u16; 3] = [15_001, 15_006, 15_020];

/// One service.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: String,
    /// The line of its name.
    pub(super) line: usize,
    /// All that is said of it, with what it extends.
    pub(super) whole: Value,
    /// What it publishes, as far as it does not depend on variables.
    pub(super) ports: Vec<Published>,
    /// Lines of `ports` that depend on a variable without a default.
    pub(super) unknown_ports: Vec<usize>,
}

impl Service {
    fn new(name: String, line: usize, whole: Value) -> Self {
        Self { name, line, whole, ports: Vec::new(), unknown_ports: Vec::new() }
    }

    /// Reads its ports, and refuses what cannot run.
    fn check(&mut self, file: &str) -> Result<(), Fault> {
        if self.whole.get("image").is_none() && self.whole.get("build").is_none() {
            let message = format!("the service `{}` has no `image` and no `build`", self.name);
            return Err(Fault::new(file, self.line, message, "give it one"));
        }
        replicas(file, self)?;
        read_ports(file, self)
    }

    /// The line of one of its keys, or of its name.
    pub(super) fn line_of(&self, key: &str) -> usize {
        self.whole.entry(key).map(|entry| entry.line).filter(|line| *line != 0).unwrap_or(self.line)
    }

    /// The profiles it belongs to; none: it is always there.
    pub(super) fn profiles(&self) -> Vec<&str> {
        texts(self.whole.get("profiles"))
    }

    /// The networks it is in, with what it says of each; `default` where it says nothing.
    pub(super) fn networks(&self) -> Vec<(String, Value)> {
        let said = self.whole.get("networks").cloned().map(super::merge::names);
        let named: Vec<(String, Value)> = said
            .as_ref()
            .and_then(Value::entries)
            .unwrap_or_default()
            .iter()
            .map(|entry| (entry.key.clone(), entry.value.clone()))
            .collect();
        if named.is_empty() { vec![("default".to_owned(), Value::plain(""))] } else { named }
    }

    /// The names by which others reach it, its own first.
    pub(super) fn names(&self) -> Vec<String> {
        let networks = self.networks();
        let aliases = networks.iter().flat_map(|(_, said)| texts(said.get("aliases"))).map(str::to_owned);
        let container = self.whole.text_of("container_name").and_then(interpolated);
        once(std::iter::once(self.name.clone()).chain(aliases).chain(container))
    }
}

/// Each of the words once, in their order.
pub(super) fn once(words: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut seen = HashSet::new();
    words.into_iter().filter(|word| seen.insert(word.clone())).collect()
}

/// What one file of a project says. Its lines are its own.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) services: Vec<Own>,
    pub(super) root: Value,
}

/// What one file says of one service.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) name: String,
    /// The line of its name.
    pub(super) line: usize,
    /// As it stands there, merge keys worked out.
    pub(super) said: Value,
    /// The same with what it extends.
    pub(super) whole: Value,
}

/// A whole project. Its lines are counted through all files.
#[derive(Debug)]
pub(super) struct Project {
    pub(super) services: Vec<Service>,
    pub(super) root: Value,
}

/// The texts of a list, or of the one text that stands for it.
pub(super) fn texts(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(value) => match value.items() {
            Some(items) => items.iter().filter_map(Value::as_text).collect(),
            None => value.as_text().into_iter().collect(),
        },
        None => Vec::new(),
    }
}

impl Part {
    /// Reads a file whose aliases are worked out. Only the first of a project has to have services.
    pub(super) fn read(file: &str, root: Value, read: &Read<'_>, first: bool) -> Result<Self, Fault> {
        let Some(found) = root.entries() else {
            let message = "it is no Compose file: no mapping stands at its top";
            return Err(Fault::new(file, root.line, message, "name a Compose file"));
        };
        version(file, &root)?;
        let Some(section) = root.entry("services") else {
            if !first {
                return Ok(Self { services: Vec::new(), root });
            }
            let line = found.first().map_or(1, |entry| entry.line);
            let message = "it is no Compose file of version 2 or 3: there are no `services`";
            return Err(Fault::new(file, line, message, "put the services under `services:`"));
        };
        let entries = section
            .value
            .entries()
            .filter(|entries| !entries.is_empty())
            .ok_or_else(|| Fault::new(file, section.line, "`services` holds no service", "add one"))?;
        if entries.len() > SERVICES_MAX {
            let message = format!("more than {SERVICES_MAX} services");
            return Err(Fault::new(file, section.line, message, "split the project"));
        }
        let mut extender = Extender::new(file, &section.value, read);
        let services =
            entries.iter().map(|entry| own(file, entry, &mut extender)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { services, root })
    }
}

impl Project {
    /// Lays the files of a project over each other, as Compose does. Each comes with the number of lines before it.
    pub(super) fn of<'a>(
        file: &str,
        parts: impl IntoIterator<Item = (&'a Part, usize)>,
    ) -> Result<Self, Fault> {
        let mut root = Value::empty();
        let mut services: Vec<Service> = Vec::new();
        for (part, before) in parts {
            root = merge::files(root, part.root.clone().moved(before));
            for own in &part.services {
                let whole = own.whole.clone().moved(before);
                match services.iter_mut().find(|known| known.name == own.name) {
                    Some(known) => known.whole = merge::services(known.whole.clone(), whole),
                    None => services.push(Service::new(own.name.clone(), own.line + before, whole)),
                }
            }
        }
        if services.len() > SERVICES_MAX {
            return Err(Fault::new(
                file,
                1,
                format!("more than {SERVICES_MAX} services"),
                "split the project",
            ));
        }
        services.iter_mut().try_for_each(|service| service.check(file))?;
        let project = Self { services, root };
        project.refuse_port_twice(file)?;
        Ok(project)
    }

    pub(super) fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// Two services that publish the same port never start together.
    fn refuse_port_twice(&self, file: &str) -> Result<(), Fault> {
        let mut count = 0;
        let mut seen: BTreeMap<bool, Vec<(&Service, &Published)>> = BTreeMap::new();
        for service in &self.services {
            count += service.ports.len();
            if count > PUBLISHED_MAX {
                let message = format!("more than {PUBLISHED_MAX} ports are published");
                return Err(Fault::new(file, service.line_of("ports"), message, "publish ranges"));
            }
            for port in &service.ports {
                let earlier = seen.entry(port.udp).or_default();
                let taken =
                    earlier.iter().find(|(other, known)| port.collides(known) && together(service, other));
                if let Some((other, known)) = taken {
                    let host = port.host.map_or(0, |host| host.0);
                    let message = format!(
                        "port {host} of the host is published by `{}` and, at line {}, by `{}`",
                        service.name, known.line, other.name
                    );
                    return Err(Fault::new(file, port.line, message, "publish another one"));
                }
                earlier.push((service, port));
            }
        }
        Ok(())
    }
}

/// Whether two services can be up at once for all that their profiles say.
fn together(one: &Service, other: &Service) -> bool {
    let (ours, theirs) = (one.profiles(), other.profiles());
    one.name == other.name
        || ours.is_empty() && theirs.is_empty()
        || ours.iter().any(|name| theirs.contains(name))
}

fn version(file: &str, root: &Value) -> Result<(), Fault> {
    let Some(version) = root.get("version") else { return Ok(()) };
    let text = version.as_text().unwrap_or("a mapping");
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    let known = matches!(major, "2" | "3") && minor.parse::<u8>().is_ok();
    if known {
        return Ok(());
    }
    let message = format!("version {text} of the Compose format is not known");
    Err(Fault::new(file, version.line, message, "use 2.x or 3.x, or leave `version` out"))
}

fn own(file: &str, entry: &Entry, extender: &mut Extender<'_>) -> Result<Own, Fault> {
    let (name, line) = (entry.key.clone(), entry.line);
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    // `.` and `..` are no part of an identity.
    if name.bytes().all(|byte| byte == b'.') || !name.bytes().all(valid) {
        let message = format!("`{name}` is no name for a service");
        return Err(Fault::new(file, line, message, "use letters, digits, `.`, `_` and `-`"));
    }
    if entry.value.entries().is_none() {
        let message = format!("the service `{name}` is no mapping");
        return Err(Fault::new(file, line, message, "give it an `image` or a `build`"));
    }
    let whole = extender.resolve(&entry.value)?;
    Ok(Own { name, line, said: entry.value.clone(), whole })
}

fn replicas(file: &str, service: &Service) -> Result<(), Fault> {
    let deployed = service.whole.get("deploy").and_then(|deploy| deploy.entry("replicas"));
    for entry in [service.whole.entry("scale"), deployed].into_iter().flatten() {
        let count = entry.value.as_text().and_then(interpolated).and_then(|text| text.parse::<u32>().ok());
        if count.is_some_and(|count| count > 1) {
            let message = format!(
                "`{}` runs more than once: its containers would share one network namespace",
                service.name
            );
            let line = if entry.line == 0 { service.line } else { entry.line };
            return Err(Fault::new(
                file,
                line,
                message,
                "write one service for each, with an alias in common",
            ));
        }
    }
    Ok(())
}

fn read_ports(file: &str, service: &mut Service) -> Result<(), Fault> {
    let Some(ports) = service.whole.get("ports") else { return Ok(()) };
    let line = service.line_of("ports");
    let items = ports
        .items()
        .ok_or_else(|| Fault::new(file, line, "`ports` is no list", "write `- \"8080:80\"` under it"))?;
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for item in items {
        let line = if item.line == 0 { line } else { item.line };
        match published(item) {
            None => unknown.push(line),
            Some(Err(reason)) => {
                return Err(Fault::new(file, line, reason, "write HOST:CONTAINER, such as \"8080:80\""));
            }
            Some(Ok(port)) => {
                let taken =
                    SIDECAR_PORTS.into_iter().find(|own| (port.container.0..=port.container.1).contains(own));
                if let Some(taken) = taken {
                    let message = format!("port {taken} within the container is the sidecar's");
                    return Err(Fault::new(file, line, message, "let the app listen at another one"));
                }
                known.push(port);
            }
        }
    }
    (service.ports, service.unknown_ports) = (known, unknown);
    Ok(())
}
