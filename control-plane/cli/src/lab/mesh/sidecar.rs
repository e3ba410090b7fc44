//! One sidecar: a real proxy process in a container's network.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use caps::Capability;
use serde_json::Value;

use super::{MeshError, START_LIMIT, probe, program, wait_until};
use crate::lab::{Capabilities, Container, Proc, Program};

/// Health and metrics, as by default.
const HEALTH_PORT: u16 = 15020;
/// Of a log, this much goes into an error.
const LOG_BYTES: usize = 4096;

/// How a sidecar differs from the usual.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// No state directory: a restart enrols anew.
    pub forgetful: bool,
    /// Further flags of `signet-proxy run`.
    pub flags: Vec<String>,
    /// Ports that it guards in a network that others use too: it is `signet-proxy guard` then.
    pub guarded: Vec<u16>,
    /// Capabilities beside the one to change its container's network.
    pub capabilities: Vec<Capability>,
    /// Evidence in place of a join token.
    pub evidence: Option<Evidence>,
    /// Environment variables, such as a log filter.
    pub environment: Vec<(String, String)>,
    /// The sidecar to run, `signet proxy` of this same binary without; the sidecar's arguments are added to its own.
    pub program: Option<Program>,
}

/// What a sidecar shows to enrol in place of a token of its own, and to whom.
#[derive(Clone, Debug)]
pub enum Evidence {
    /// What the control plane's attestor `kubernetes` checks.
    Pod {
        /// The file with it.
        token: PathBuf,
        /// The file with the mesh's roots.
        roots: PathBuf,
    },
    /// What it is, to the attestor of its host at this socket.
    Process(PathBuf),
    /// An SVID of another trust domain.
    Svid {
        /// The socket of its Workload API.
        socket: PathBuf,
        /// The file with the mesh's roots.
        roots: PathBuf,
    },
    /// The token in this file, which others may have too.
    Token(PathBuf),
    /// The TPM of its device.
    Tpm {
        /// Where it is, as the flag has it.
        place: String,
        /// The file with the mesh's roots.
        roots: PathBuf,
    },
}

/// A sidecar; dropping it kills it. The capture rules stay, so that nothing leaves the container in clear.
#[derive(Debug)]
pub struct Sidecar {
    container: Container,
    workload: String,
    program: Program,
    running: Option<Proc>,
    folder: PathBuf,
    control_plane: SocketAddr,
}

impl Sidecar {
    pub(super) fn start(
        container: &Container,
        workload: &str,
        control_plane: SocketAddr,
        folder: PathBuf,
        setup: Setup,
    ) -> Result<Self, MeshError> {
        let kind = if setup.guarded.is_empty() { "run" } else { "guard" };
        let ports = setup.guarded.iter().flat_map(|port| ["--ports".to_owned(), port.to_string()]);
        let mut program = setup
            .program
            .unwrap_or_else(|| program(&["proxy"]))
            .args([kind, "--control-plane", &control_plane.to_string()])
            .args(ports)
            .args([OsStr::new("--admin-socket"), folder.join("admin.sock").as_os_str()])
            .args(["--drain-seconds", "5"])
            .args(&setup.flags)
            // Root over this container's network and nothing else.
            .capabilities(Capabilities::Only(
                [&[Capability::CAP_NET_ADMIN][..], &setup.capabilities].concat(),
            ))
            .log(folder.join("log"));
        program = match &setup.evidence {
            None => program.args([OsStr::new("--token-file"), folder.join("token").as_os_str()]),
            Some(Evidence::Pod { token, roots }) => program
                .args([OsStr::new("--attestation-file"), token.as_os_str()])
                .args([OsStr::new("--roots-file"), roots.as_os_str()]),
            Some(Evidence::Process(socket)) => {
                program.args([OsStr::new("--token-socket"), socket.as_os_str()])
            }
            Some(Evidence::Token(file)) => program.args([OsStr::new("--token-file"), file.as_os_str()]),
            Some(Evidence::Svid { socket, roots }) => program
                .args([OsStr::new("--spiffe-endpoint-socket"), socket.as_os_str()])
                .args([OsStr::new("--roots-file"), roots.as_os_str()]),
            Some(Evidence::Tpm { place, roots }) => {
                program.args(["--tpm", place]).args([OsStr::new("--roots-file"), roots.as_os_str()])
            }
        };
        if !setup.forgetful {
            program = program.args([OsStr::new("--state-dir"), folder.join("state").as_os_str()]);
        }
        for (name, value) in setup.environment {
            program = program.env(name, value);
        }
        let (container, workload) = (container.clone(), workload.into());
        let mut sidecar = Self { container, workload, program, running: None, folder, control_plane };
        sidecar.begin()?;
        Ok(sidecar)
    }

    /// Starts it again without waiting; one that runs is killed before.
    ///
    /// # Errors
    /// [`MeshError::Lab`].
    pub fn begin(&mut self) -> Result<(), MeshError> {
        self.running = None;
        self.running = Some(self.container.namespace().start(self.program.clone())?);
        Ok(())
    }

    /// Kills it and starts it again, and waits until it is ready.
    ///
    /// # Errors
    /// As [`super::Mesh::sidecar`].
    pub fn restart(&mut self) -> Result<(), MeshError> {
        self.begin()?;
        self.wait_until_ready()
    }

    /// The same sidecar in another container, with its state and at another control plane: a device that moved.
    ///
    /// # Errors
    /// As [`Self::restart`].
    pub fn moved(mut self, container: &Container, control_plane: SocketAddr) -> Result<Self, MeshError> {
        self.running = None;
        self.container = container.clone();
        self.program = self.program.replacing(&self.control_plane.to_string(), &control_plane.to_string());
        self.control_plane = control_plane;
        self.restart()?;
        Ok(self)
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// Asks it to end and waits for the end of its drain; its exit code.
    ///
    /// # Errors
    /// [`MeshError::Lab`] when it does not end.
    pub fn terminate(&mut self, limit: Duration) -> Result<Option<i32>, MeshError> {
        let running = self.running.as_ref().ok_or_else(|| MeshError::Stopped(self.name()))?;
        running.terminate()?;
        let status = running.wait(limit)?;
        self.running = None;
        Ok(status.code())
    }

    /// The process, to signal it or to see what it printed.
    pub fn process(&self) -> Option<&Proc> {
        self.running.as_ref()
    }

    /// Its container.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// Name of its workload.
    pub fn workload(&self) -> &str {
        &self.workload
    }

    /// Its state directory, admin socket and log.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// Waits until it is ready: an identity, policy and directory in force, rules in force, no leak.
    ///
    /// # Errors
    /// [`MeshError::Overdue`], at once when the process has ended.
    pub fn wait_until_ready(&self) -> Result<(), MeshError> {
        self.wait_for("become ready", START_LIMIT, |sidecar| {
            sidecar.state().is_ok_and(|state| state["ready"] == true)
        })
    }

    /// Waits until its directory has a place: only then does it know that the place is meshed.
    ///
    /// # Errors
    /// As [`Self::wait_until_ready`].
    pub fn wait_until_known(&self, place: SocketAddr) -> Result<(), MeshError> {
        let place = place.to_string();
        self.wait_for(&format!("learn what is at {place}"), START_LIMIT, |sidecar| {
            let places = sidecar.directory().unwrap_or_default();
            places
                .as_array()
                .is_some_and(|places| places.iter().any(|known| known["address"] == place.as_str()))
        })
    }

    /// Waits until something holds for it.
    ///
    /// # Errors
    /// [`MeshError::Overdue`], at once when the process has ended.
    pub fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        holds: impl Fn(&Self) -> bool,
    ) -> Result<(), MeshError> {
        let ended = || self.running.as_ref().is_none_or(|running| running.status().is_some());
        let outcome = wait_until(limit, || if holds(self) { Some(true) } else { ended().then_some(false) });
        if outcome == Some(true) {
            return Ok(());
        }
        let seen = match (ended(), self.state()) {
            (true, _) => "ended".to_owned(),
            (false, Ok(state)) => state.to_string(),
            (false, Err(error)) => error.to_string(),
        };
        Err(MeshError::Overdue { part: self.name(), what: what.into(), limit, seen, log: self.log_tail() })
    }

    /// Its state, as at `/ready`.
    ///
    /// # Errors
    /// [`MeshError::Probe`].
    pub fn state(&self) -> Result<Value, MeshError> {
        self.ask("/state").map(|(_, state)| state)
    }

    /// The places it knows.
    ///
    /// # Errors
    /// [`MeshError::Probe`].
    pub fn directory(&self) -> Result<Value, MeshError> {
        self.ask("/directory").map(|(_, places)| places)
    }

    /// What it remembers of a request: one record for each time the request passed it.
    ///
    /// # Errors
    /// [`MeshError::Probe`].
    pub fn request(&self, id: &str) -> Result<Option<Value>, MeshError> {
        self.ask(&format!("/requests/{id}")).map(|(status, records)| (status == 200).then_some(records))
    }

    /// Its counters.
    ///
    /// # Errors
    /// [`MeshError::Probe`].
    pub fn metrics(&self) -> Result<Metrics, MeshError> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, HEALTH_PORT));
        let asked = probe::tcp(self.container.namespace(), address, "/metrics")?;
        let (_, text) = asked.map_err(|source| self.probe_error("metrics", source))?;
        Ok(Metrics::parse(&text))
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        let tail = log.get(log.len().saturating_sub(LOG_BYTES)..).unwrap_or_default();
        String::from_utf8_lossy(tail).into_owned()
    }

    fn ask(&self, target: &str) -> Result<(u16, Value), MeshError> {
        let asked = probe::unix(&self.folder.join("admin.sock"), target);
        let (status, text) = asked.map_err(|source| self.probe_error(target, source))?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    fn probe_error(&self, what: &str, source: std::io::Error) -> MeshError {
        MeshError::Probe { sidecar: self.name(), what: what.into(), source }
    }

    fn name(&self) -> String {
        format!("the sidecar of {}", self.workload)
    }
}

/// Counters of one process at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    pub(super) fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(samples.collect())
    }

    /// One sample by its whole name, labels included as they are written; 0 when it is not there.
    pub fn value(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// The samples whose name and labels contain all of these words, summed up.
    pub fn sum(&self, metric: &str, labels: &[&str]) -> f64 {
        let of = |name: &str| {
            name.split('{').next() == Some(metric) && labels.iter().all(|label| name.contains(label))
        };
        self.0.iter().filter(|(name, _)| of(name)).map(|(_, value)| value).sum()
    }

    /// Refusals with this code, both directions.
    pub fn refusals(&self, code: &str) -> u64 {
        // Counters are whole numbers far below 2^53.
        self.sum("signet_refusals_total", &[&format!("code=\"{code}\"")]) as u64
    }

    /// Every sample.
    pub fn samples(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_label() {
        let metrics = Metrics::parse(
            "# TYPE signet_refusals counter\n\
             signet_refusals_total{direction=\"inbound\",code=\"replay\"} 2\n\
             signet_refusals_total{direction=\"outbound\",code=\"replay\"} 1\n\
             signet_signatures_total 7\n# EOF\n",
        );
        assert_eq!(metrics.value("signet_signatures_total"), 7.0);
        assert_eq!(metrics.refusals("replay"), 3);
        assert_eq!(metrics.sum("signet_refusals_total", &["inbound"]), 2.0);
        assert_eq!(metrics.refusals("expired"), 0);
    }
}
