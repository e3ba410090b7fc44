//! `extends`: a service that begins as another one, of this file or of another.
//!
//! It is worked out here because docker-compose 1.29 refuses to extend a service that uses another one's network.

use std::collections::HashMap;

use super::tree::Tree;
use super::value::{Data, Value, expand};
use super::{Fault, Read, merge};

/// Longest chain of services that extend each other; real ones have two or three.
const CHAIN_MAX: usize = 16;
/// Most other files that may be read.
const FILES_MAX: usize = 64;
/// Most that services of a project have from others, see [`Value::weight`]: many can extend one that is long.
const WEIGHT_MAX: usize = 64 * 1024 * 1024;

/// Works out what services extend.
pub(super) struct Extender<'a> {
    main: &'a str,
    services: &'a Value,
    read: &'a Read<'a>,
    files: HashMap<String, Value>,
    /// What may still be taken from others.
    left: usize,
}

impl<'a> Extender<'a> {
    /// `services` are those of the file called `main`; `read` gives the text of others by their path.
    pub(super) fn new(main: &'a str, services: &'a Value, read: &'a Read<'a>) -> Self {
        Self { main, services, read, files: HashMap::new(), left: WEIGHT_MAX }
    }

    /// The service with everything that it extends.
    pub(super) fn resolve(&mut self, service: &Value) -> Result<Value, Fault> {
        self.follow(None, service.clone(), 0)
    }

    /// `path` is the file that the service stands in, `None` for the main one.
    fn follow(&mut self, path: Option<&str>, service: Value, depth: usize) -> Result<Value, Fault> {
        let Some(entry) = service.entry("extends") else { return Ok(service) };
        let (file, line) = (path.unwrap_or(self.main).to_owned(), entry.line.max(entry.value.line));
        if depth >= CHAIN_MAX {
            let message = format!("services extend each other in a circle, or more than {CHAIN_MAX} deep");
            return Err(Fault::new(&file, line, message, "write one of them out"));
        }
        let (name, other) = match entry.value.as_text() {
            Some(name) => (Some(name), None),
            None => (entry.value.text_of("service"), entry.value.text_of("file")),
        };
        let name = name.ok_or_else(|| {
            Fault::new(&file, line, "`extends` names no service", "write `extends: {service: NAME}`")
        })?;
        let from = other.map(|other| join(directory(path.unwrap_or_default()), other));
        let from = from.as_deref().or(path);
        let main = self.main;
        let services = match from {
            None => self.services,
            Some(from) => self.load(from, &file, line)?,
        };
        let base = services.get(name).ok_or_else(|| {
            let place = from.unwrap_or(main);
            Fault::new(&file, line, format!("{place} has no service `{name}`"), "name one that is there")
        })?;
        let (weight, mut base) = (base.weight(), base.clone());
        self.left = self.left.checked_sub(weight).ok_or_else(|| {
            let message = "what services extend is too much";
            Fault::new(&file, line, message, "split the project")
        })?;
        // Paths are meant from where they stand, and from here on from the main file's folder.
        rebase(&mut base, directory(from.unwrap_or_default()));
        let mut base = self.follow(from, base, depth + 1)?;
        let mut over = service;
        over.remove("extends");
        base.remove("extends");
        Ok(merge::services(base, over))
    }

    fn load(&mut self, path: &str, file: &str, line: usize) -> Result<&Value, Fault> {
        if !self.files.contains_key(path) {
            if self.files.len() >= FILES_MAX {
                let message = format!("more than {FILES_MAX} other files are extended");
                return Err(Fault::new(file, line, message, "put them together"));
            }
            let text = (self.read)(path).map_err(|reason| {
                Fault::new(file, line, format!("{path}: {reason}"), "name a file that can be read")
            })?;
            let root = expand(path, &Tree::parse(path, &text)?)?;
            let services = root.get("services").cloned().ok_or_else(|| {
                Fault::new(path, root.line.max(1), "there are no services", "name a Compose file")
            })?;
            self.files.insert(path.to_owned(), services);
        }
        self.files.get(path).ok_or_else(|| Fault::new(file, line, "no such file", "name another"))
    }
}

fn directory(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// `path` as seen from `directory`, without `.` and without `..` where it can be.
fn join(directory: &str, path: &str) -> String {
    if path.starts_with('/') || path.starts_with('~') {
        return path.to_owned();
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in directory.split('/').chain(path.split('/')).filter(|part| !matches!(*part, "" | ".")) {
        if part == ".." && parts.last().is_some_and(|last| *last != "..") {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    let root = if directory.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

/// Changes the relative paths of a service that stood in another folder.
fn rebase(service: &mut Value, directory: &str) {
    if directory.is_empty() {
        return;
    }
    let Data::Mapping(entries) = &mut service.data else { return };
    for entry in entries {
        match (entry.key.as_str(), &mut entry.value.data) {
            ("env_file" | "label_file", _) => each_path(&mut entry.value, directory),
            ("build", Data::Scalar { text, .. }) if !text.contains("://") => moved(text, directory),
            ("build", Data::Mapping(build)) => {
                for entry in build.iter_mut().filter(|entry| entry.key == "context") {
                    each_path(&mut entry.value, directory);
                }
            }
            ("volumes", Data::Sequence(volumes)) => {
                volumes.iter_mut().for_each(|volume| mount(volume, directory))
            }
            _ => {}
        }
    }
}

fn each_path(value: &mut Value, directory: &str) {
    match &mut value.data {
        Data::Scalar { text, .. } if !text.contains("://") => moved(text, directory),
        Data::Scalar { .. } => {}
        Data::Sequence(items) => items.iter_mut().for_each(|item| each_path(item, directory)),
        Data::Mapping(entries) => {
            for entry in entries.iter_mut().filter(|entry| entry.key == "path") {
                each_path(&mut entry.value, directory);
            }
        }
    }
}

fn mount(volume: &mut Value, directory: &str) {
    match &mut volume.data {
        Data::Scalar { text, .. } if text.starts_with('.') => {
            let (source, rest) = text.split_once(':').map_or((text.as_str(), None), |(a, b)| (a, Some(b)));
            let source = dotted(join(directory, source));
            *text = rest.map_or_else(|| source.clone(), |rest| format!("{source}:{rest}"));
        }
        Data::Mapping(entries) => {
            for entry in entries.iter_mut().filter(|entry| entry.key == "source") {
                if let Data::Scalar { text, .. } = &mut entry.value.data
                    && text.starts_with('.')
                {
                    *text = dotted(join(directory, text));
                }
            }
        }
        _ => {}
    }
}

fn moved(text: &mut String, directory: &str) {
    *text = dotted(join(directory, text));
}

/// A relative path that nobody takes for a volume's name.
fn dotted(path: String) -> String {
    if path.starts_with(['/', '.', '~']) { path } else { format!("./{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str, name: &str, others: &[(&str, &str)]) -> Result<Value, Fault> {
        let root = expand("main.yml", &Tree::parse("main.yml", text)?)?;
        let services = root.get("services").unwrap();
        let read = |path: &str| {
            let found = others.iter().find(|(name, _)| *name == path);
            found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| "not found".to_owned())
        };
        Extender::new("main.yml", services, &read).resolve(services.get(name).unwrap())
    }

    #[test]
    fn chain_over_two_files_is_followed_and_paths_are_moved() {
        let main = "services:\n  web:\n    extends: {file: base/app.yml, service: app}\n    image: b\n";
        let app = "services:\n  app:\n    extends: {file: ../more/root.yml, service: root}\n    env_file: app.env\n";
        let root =
            "services:\n  root:\n    image: a\n    build: .\n    volumes: [\"./x:/x\", \"named:/y\"]\n";
        let web = resolve(main, "web", &[("base/app.yml", app), ("more/root.yml", root)]).unwrap();
        assert_eq!(web.text_of("image"), Some("b"));
        assert_eq!(web.text_of("env_file"), Some("./base/app.env"));
        assert_eq!(web.get("extends").map(|_| ()), None);
        let volumes: Vec<_> =
            web.get("volumes").unwrap().items().unwrap().iter().map(|v| v.as_text()).collect();
        assert_eq!(volumes, [Some("./more/x:/x"), Some("named:/y")]);
    }

    #[test]
    fn long_service_that_many_extend_is_refused() {
        let text = format!(
            "services:\n  long: {{image: a, x-long: {}}}\n  short:\n    extends: long\n",
            "x".repeat(2_000_000)
        );
        let root = expand("f", &Tree::parse("f", &text).unwrap()).unwrap();
        let services = root.get("services").unwrap();
        let read = |_: &str| Err(String::new());
        let mut extender = Extender::new("f", services, &read);
        let short = services.get("short").unwrap();
        assert!(extender.resolve(short).is_ok());
        let refused = (0..100).find_map(|_| extender.resolve(short).err()).unwrap();
        assert_eq!((refused.line, &*refused.message), (4, "what services extend is too much"));
    }

    #[test]
    fn circles_and_missing_services_and_files_are_refused_with_their_line() {
        let circle = "services:\n  a:\n    extends: b\n  b:\n    extends: {service: a}\n";
        assert!(resolve(circle, "a", &[]).unwrap_err().message.contains("circle"));
        let missing = "services:\n  a:\n    image: x\n    extends: c\n";
        assert_eq!(resolve(missing, "a", &[]).unwrap_err().line, 4);
        let file = "services:\n  a:\n    extends: {file: no.yml, service: x}\n";
        assert_eq!(resolve(file, "a", &[]).unwrap_err().message, "no.yml: not found");
    }
}
