//! Peers: proxies of others, described by a small file.
//!
//! ```yaml
//! name: haproxy-h1
//! about: HAProxy on both hosts, HTTP/1.1 between them
//! needs: [{program: haproxy, package: haproxy from Debian}]
//! version: [haproxy, -v]
//! services: [small, http, grpc, bytes]
//! client: {template: haproxy-h1-client.cfg, command: [haproxy, -db, -f, "{{config}}"]}
//! server: {template: haproxy-h1-server.cfg, command: [haproxy, -db, -f, "{{config}}"]}
//! ```
//!
//! Templates stand beside the file. What they and the commands may name is listed in `README.md`. The built-in peers
//! are such files, compiled in.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use signet_cli::lab::Program;

use super::certificates::{CLIENT_NAME, Files, SERVER_NAME};
use super::service::Service;
use super::template::{self, TemplateError, Values};

/// A file with this much in it describes no peer.
const FILE_MAX: u64 = 64 * 1024;

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../peers/", $name)))),*]
    };
}

/// The built-in peers' files and templates by name.
const BUILT_IN: [(&str, &str); 17] = built_in![
    "envoy-h1.yaml",
    "envoy-h2.yaml",
    "envoy-h1-client.yaml",
    "envoy-h2-client.yaml",
    "envoy-server.yaml",
    "haproxy-h1.yaml",
    "haproxy-h2.yaml",
    "haproxy-h1-client.cfg",
    "haproxy-h2-client.cfg",
    "haproxy-h1-server.cfg",
    "haproxy-h2-server.cfg",
    "nginx.yaml",
    "nginx-client.conf",
    "nginx-server.conf",
    "stunnel.yaml",
    "stunnel-client.conf",
    "stunnel-server.conf",
];
/// The built-in peers, in the order in which they are reported.
pub const NAMES: [&str; 6] = ["nginx", "haproxy-h1", "haproxy-h2", "stunnel", "envoy-h1", "envoy-h2"];

/// A peer as its file has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// By which it is chosen and reported.
    pub name: String,
    /// One line for the report.
    pub about: String,
    /// What must be installed.
    #[serde(default)]
    pub needs: Vec<Need>,
    /// The command whose first line of output tells the version.
    #[serde(default)]
    pub version: Vec<String>,
    /// What it can carry.
    pub services: Vec<Service>,
    /// Whether it parses HTTP; a peer that carries bytes is no match for one that does.
    #[serde(default = "yes")]
    pub parses_http: bool,
    /// The process beside the client.
    pub client: Side,
    /// The process beside the back end.
    pub server: Side,
    /// Where its templates are: beside its file, or compiled in.
    #[serde(skip)]
    folder: Option<PathBuf>,
}

/// Something that must be installed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Need {
    /// A program of `PATH`.
    #[serde(default)]
    pub program: Option<String>,
    /// A file.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// Where it comes from, in words.
    pub package: String,
}

/// One process of a peer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Side {
    /// Its configuration file's template; none for programs that need no file.
    #[serde(default)]
    pub template: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
}

const fn yes() -> bool {
    true
}

/// Why a peer cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The file is not as described above.
    #[error("{0}: {1}")]
    File(String, String),
    /// Not installed.
    #[error("{what} is missing: install {package}")]
    Missing {
        /// Program or file.
        what: String,
        /// Where it comes from.
        package: String,
    },
    /// The system failed.
    #[error("{0}: {1}")]
    System(String, io::Error),
    /// A template or a command names something that does not exist.
    #[error("{0}: {1}")]
    Template(String, TemplateError),
}

/// Programs that were given by path.
pub type Programs = BTreeMap<String, PathBuf>;

/// Which end of the pair.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// Beside the client.
    Client,
    /// Beside the back end.
    Server,
}

impl Peer {
    /// One of [`NAMES`].
    pub fn built_in(name: &str) -> Option<Result<Self, PeerError>> {
        let text = built_in(&format!("{name}.yaml")).filter(|_| NAMES.contains(&name))?;
        Some(Self::parse(name, text))
    }

    /// From a file.
    ///
    /// # Errors
    /// [`PeerError::File`], [`PeerError::System`].
    pub fn read(path: &Path) -> Result<Self, PeerError> {
        let name = path.display().to_string();
        let text = read(path).map_err(|error| PeerError::System(name.clone(), error))?;
        let mut peer = Self::parse(&name, &text)?;
        peer.folder = Some(path.parent().map(Path::to_owned).unwrap_or_default());
        Ok(peer)
    }

    fn parse(name: &str, text: &str) -> Result<Self, PeerError> {
        serde_saphyr::from_str(text).map_err(|error| PeerError::File(name.into(), error.to_string()))
    }

    /// Whether everything is installed.
    ///
    /// # Errors
    /// [`PeerError::Missing`] names the first that is not.
    pub fn check(&self, programs: &Programs) -> Result<(), PeerError> {
        for need in &self.needs {
            let missing = |what: String| PeerError::Missing { what, package: need.package.clone() };
            if let Some(program) = &need.program {
                find(program, programs).ok_or_else(|| missing(format!("the program {program}")))?;
            }
            if let Some(file) = need.file.as_ref().filter(|file| !file.exists()) {
                return Err(missing(file.display().to_string()));
            }
        }
        Ok(())
    }

    /// The first line with a version that its version command prints, if it has one.
    pub fn version(&self, programs: &Programs) -> Option<String> {
        let (program, arguments) = self.version.split_first()?;
        let output = Command::new(find(program, programs)?).args(arguments).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        version_line(&String::from_utf8_lossy(&text))
    }

    /// Writes the configuration of one side to a folder; the program to start.
    ///
    /// # Errors
    /// As [`PeerError`] tells.
    pub fn program(
        &self,
        end: End,
        folder: &Path,
        files: &Files,
        redirect: bool,
        programs: &Programs,
    ) -> Result<Program, PeerError> {
        let (side, label) = match end {
            End::Client => (&self.client, "client"),
            End::Server => (&self.server, "server"),
        };
        let folder = folder.join(label);
        let system = |error| PeerError::System(folder.display().to_string(), error);
        fs::create_dir_all(&folder).map_err(system)?;
        let mut values = values(end, &folder, files, redirect);
        if let Some(template) = &side.template {
            let filled = template::fill(&self.template(template)?, &values)
                .map_err(|error| PeerError::Template(template.clone(), error))?;
            let config = folder.join(template);
            fs::write(&config, filled).map_err(system)?;
            values.insert("config".into(), config.display().to_string());
        }
        let fill = |word: &String| {
            template::fill(word, &values).map_err(|error| PeerError::Template(self.name.clone(), error))
        };
        let words: Vec<String> = side.command.iter().map(fill).collect::<Result<_, _>>()?;
        let (program, arguments) = words
            .split_first()
            .ok_or_else(|| PeerError::File(self.name.clone(), format!("the {label} has no command")))?;
        let program = find(program, programs).unwrap_or_else(|| program.into());
        Ok(Program::new(program).args(arguments).directory(&folder).log(folder.join("log")))
    }

    fn template(&self, name: &str) -> Result<String, PeerError> {
        match &self.folder {
            Some(folder) => read(&folder.join(name)).map_err(|error| PeerError::System(name.into(), error)),
            None => built_in(name)
                .map(str::to_owned)
                .ok_or_else(|| PeerError::File(name.into(), "is not built in".into())),
        }
    }
}

/// The first line with a number such as `1.22`, without the path of the program before it.
fn version_line(text: &str) -> Option<String> {
    let is_version = |line: &&str| {
        line.as_bytes().windows(3).any(|w| w[0].is_ascii_digit() && w[1] == b'.' && w[2].is_ascii_digit())
    };
    let line = text.lines().map(str::trim).find(is_version)?;
    let words = line.split_whitespace().skip_while(|word| word.starts_with('/'));
    Some(words.collect::<Vec<_>>().join(" "))
}

fn read(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > FILE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("longer than {FILE_MAX} bytes")));
    }
    fs::read_to_string(path)
}

fn built_in(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

fn values(end: End, folder: &Path, files: &Files, redirect: bool) -> Values {
    let mut values = Values::new();
    for service in Service::ALL {
        let (listen, to) = match end {
            End::Client if redirect => (service.entry(), service.redirected()),
            End::Client => (service.entry(), service.secured()),
            End::Server => (service.secured(), service.back_end()),
        };
        add_address(&mut values, &format!("listen.{service}"), listen);
        add_address(&mut values, &format!("to.{service}"), to);
    }
    let (own, other) = match end {
        End::Client => (CLIENT_NAME, SERVER_NAME),
        End::Server => (SERVER_NAME, CLIENT_NAME),
    };
    let paths = [
        ("authority", &*files.authority),
        ("bundle", &*files.bundle),
        ("certificate", &*files.certificate),
        ("folder", folder),
        ("key", &*files.key),
    ];
    values.extend(paths.map(|(name, path)| (name.to_owned(), path.display().to_string())));
    values.extend([("name".to_owned(), own.to_owned()), ("other-name".to_owned(), other.to_owned())]);
    values
}

fn add_address(values: &mut Values, name: &str, address: SocketAddr) {
    values.insert(name.into(), address.to_string());
    values.insert(format!("{name}.host"), address.ip().to_string());
    values.insert(format!("{name}.port"), address.port().to_string());
}

/// A program by the path that was given for it, or in `PATH` and where system programs are.
pub fn find(program: &str, programs: &Programs) -> Option<PathBuf> {
    if let Some(path) = programs.get(program) {
        return Some(path.clone());
    }
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| is_program(path));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Files {
        let path = |name: &str| PathBuf::from(name);
        Files { authority: path("a"), certificate: path("c"), key: path("k"), bundle: path("b") }
    }

    #[test]
    fn every_built_in_peer_parses_and_fills_its_templates() {
        let folder = tempfile::tempdir().unwrap();
        for name in NAMES {
            let peer = Peer::built_in(name).unwrap().unwrap();
            assert_eq!(peer.name, name);
            for (end, redirect) in [(End::Client, false), (End::Client, true), (End::Server, false)] {
                peer.program(end, folder.path(), &files(), redirect, &Programs::new()).unwrap();
            }
        }
    }

    #[test]
    fn the_example_of_a_peer_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer.yaml");
        fs::write(&path, "name: x\nabout: y\nservices: [bytes]\nclient: {command: [a, '{{to.bytes.port}}']}\nserver: {command: [b]}\n")
            .unwrap();
        let peer = Peer::read(&path).unwrap();
        peer.program(End::Client, folder.path(), &files(), false, &Programs::new()).unwrap();
        fs::write(&path, "name: x\ncolour: red\n").unwrap();
        assert!(matches!(Peer::read(&path), Err(PeerError::File(..))));
    }

    #[test]
    fn versions_are_found_behind_chatter_and_paths() {
        let found = |text: &str| version_line(text).unwrap_or_default();
        assert_eq!(found("[ ] Initializing\n[ ] stunnel 5.68 on x\n"), "[ ] stunnel 5.68 on x");
        assert_eq!(found("\n/opt/envoy  version: abc/1.40.0/Clean\n"), "version: abc/1.40.0/Clean");
        assert_eq!(version_line("none"), None);
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let mut peer = Peer::built_in("nginx").unwrap().unwrap();
        let program = Some("no-such-program-anywhere".to_owned());
        peer.needs = vec![Need { program, file: None, package: "no-such-package".into() }];
        let error = peer.check(&Programs::new()).unwrap_err().to_string();
        assert_eq!(error, "the program no-such-program-anywhere is missing: install no-such-package");
        let given = Programs::from([("no-such-program-anywhere".into(), "/bin/true".into())]);
        assert!(peer.check(&given).is_ok());
    }
}
