//! A real mesh in a lab: the control plane on one host, a sidecar beside each container that should have one.
//!
//! Every part is a process of its own, this same binary started again ([`part`]): what is tried here is what runs
//! elsewhere. A container's app and its sidecar share the container's network and nothing else; the sidecar may change
//! that network, the app may do nothing at all ([`Capabilities::None`]).
//!
//! ```no_run
//! # use signet_cli::lab::{HostPlan, Lab, mesh::{Mesh, Setup, app, call}};
//! # fn demo(yaml: &str) -> Result<(), Box<dyn std::error::Error>> {
//! let lab = Lab::new()?;
//! let (cloud, fog) = (lab.host("cloud", HostPlan::numbered(1))?, lab.host("fog", HostPlan::numbered(2))?);
//! let (server, client) = (fog.container("server")?, fog.container("client")?);
//! let _app = app(&server, &["rest"], &[8201])?;
//! // Without the mesh everything already works; with it, nothing changes for app and client:
//! let mesh = Mesh::start(&cloud, "mf2c.example")?;
//! mesh.apply("mesh.yaml", yaml)?;
//! let sidecars = [mesh.sidecar(&server, "cimi", Setup::default())?, mesh.sidecar(&client, "lm-um", Setup::default())?];
//! let place = (server.ipv4(), 8201).into();
//! sidecars[1].wait_until_known(place)?;
//! let transcript = call(client.namespace(), &["rest", "--to", &place.to_string()])?;
//! # Ok(()) }
//! ```

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;
use signet_identity::{Fingerprint, SpiffeId};
use signet_sync::proto::admin::explain_request::Question;
use signet_sync::proto::admin::revoke_request::Subject;
use signet_sync::proto::admin::{
    AbortRotationRequest, AddAreaRequest, ApplyRequest, Area, CreateTokenRequest, DeleteRequest, Diagnostic,
    ExplainRequest, ListAreasRequest, ListProxiesRequest, ManifestFile, Proxy, RevokeAreaRequest,
    RevokeRequest, RotateRequest, RotationRequest, RotationState, RotationTarget,
};
use tokio::runtime::{self, Runtime};
use tonic::transport::Channel;

use super::{Capabilities, Container, Host, LabError, Namespace, Proc, Program};
use crate::client::{ControlPlane, answered, found};
use crate::demo::clients::{LoadReport, Transcript};
use crate::output::Failure;

mod folder;
pub mod intruder;
mod probe;
mod sidecar;

pub use folder::Folder;
pub use sidecar::{Evidence, Metrics, Setup, Sidecar};

/// The first argument of a process that is a part of a mesh; the rest is a `signet` command line.
const PART: &str = "signet";
/// Where sidecars find the control plane on its host.
const CONTROL_PORT: u16 = 15012;
/// The control plane's health and metrics on its host.
const HEALTH_PORT: u16 = 15014;
/// How far apart the ports of two trust domains of one control plane are.
const NEXT_DOMAIN: u16 = 100;
/// How long a part may take to be ready: a second on an idle machine, tens on a small one under full load.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long one client may take for its calls.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks at a fact.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Enrolments one token of a lab is good for: the first and every restart without state.
const TOKEN_USES: u32 = 100;

/// Why the mesh could not do something.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The control plane refused or could not be asked.
    #[error("control plane: {0}")]
    Admin(#[from] Failure),
    /// A program printed what cannot be understood.
    #[error("{program} did not print a {what}; its output:\n{output}")]
    Answer {
        /// Which.
        program: String,
        /// What was expected.
        what: &'static str,
        /// What it printed.
        output: String,
    },
    /// The lab failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// Manifests were refused; nothing was stored.
    #[error("manifests are refused:\n{0}")]
    Manifests(String),
    /// A sidecar's answer about itself could not be had.
    #[error("{sidecar} cannot be asked for {what}: {source}")]
    Probe {
        /// Which.
        sidecar: String,
        /// What was asked.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// What was waited for did not happen.
    #[error("{part} did not {what} within {limit:?}; last seen: {seen}; the end of its log:\n{log}")]
    Overdue {
        /// Which process.
        part: String,
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// The state last seen.
        seen: String,
        /// The end of what it wrote.
        log: String,
    },
    /// The part was stopped and not started again.
    #[error("{0} is not running")]
    Stopped(String),
    /// The system failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The system's error.
        source: io::Error,
    },
}

impl MeshError {
    fn system(what: impl Into<String>, source: io::Error) -> Self {
        Self::System { what: what.into(), source }
    }
}

/// Call in `main` after [`super::helper`]: a process that was started for a mesh, as a part of it or to clean up after it,
/// does that and returns its exit code; in every other process nothing happens.
pub fn part() -> Option<ExitCode> {
    if let Some(code) = folder::sweep(std::env::args_os().skip(1)) {
        return Some(code);
    }
    let mut arguments = std::env::args_os().skip(1);
    let is_part = arguments.next().is_some_and(|first| first == PART);
    is_part.then(|| crate::cli::run(std::iter::once(OsString::from(PART)).chain(arguments)))
}

/// This same binary as the program of one command line of `signet`.
pub fn program(arguments: &[&str]) -> Program {
    Program::this().args([PART]).args(arguments)
}

/// Starts an app, named as in `signet app NAME`, with an empty capability set; returns once it listens at each port, IPv4
/// and IPv6.
///
/// # Errors
/// [`MeshError::Lab`], with its output when it does not get there.
pub fn app(container: &Container, name: &[&str], ports: &[u16]) -> Result<Proc, MeshError> {
    let addresses: Vec<SocketAddr> =
        ports.iter().map(|&port| (std::net::Ipv6Addr::UNSPECIFIED, port).into()).collect();
    app_at(container, name, &addresses)
}

/// As [`app`], at these addresses.
///
/// # Errors
/// As [`app`].
pub fn app_at(container: &Container, name: &[&str], addresses: &[SocketAddr]) -> Result<Proc, MeshError> {
    let listens = addresses.iter().flat_map(|address| ["--listen".to_owned(), address.to_string()]);
    let program = program(&["app"]).args(name).args(listens).capabilities(Capabilities::None);
    let running = container.namespace().start(program)?;
    for address in addresses {
        running.wait_for_line(&format!("listening {address}"), START_LIMIT)?;
    }
    Ok(running)
}

/// Starts a client, named as in `signet app call …`, with an empty capability set.
///
/// # Errors
/// [`MeshError::Lab`].
pub fn client(from: &Namespace, arguments: &[&str]) -> Result<Proc, MeshError> {
    let program = program(&["app", "call"]).args(arguments).capabilities(Capabilities::None);
    Ok(from.start(program)?)
}

/// Runs a client to its end. Failed calls are part of the transcript, not an error.
///
/// # Errors
/// [`MeshError::Answer`] when it has no transcript to show.
pub fn call(from: &Namespace, arguments: &[&str]) -> Result<Transcript, MeshError> {
    transcript(&client(from, arguments)?)
}

/// Waits for the end of a client and returns its transcript.
///
/// # Errors
/// As [`call`].
pub fn transcript(client: &Proc) -> Result<Transcript, MeshError> {
    shown(client, "transcript")
}

/// Waits for the end of a load client and returns its report; send it `terminate` to end it sooner.
///
/// # Errors
/// As [`call`].
pub fn load_report(client: &Proc) -> Result<LoadReport, MeshError> {
    shown(client, "load report")
}

fn shown<T: serde::de::DeserializeOwned>(client: &Proc, what: &'static str) -> Result<T, MeshError> {
    client.wait(CALL_LIMIT)?;
    let output = client.output();
    serde_json::from_str(&output).map_err(|_| MeshError::Answer {
        program: "the client".into(),
        what,
        output,
    })
}

/// Looks at a fact again and again until it holds; `None` when the limit has passed.
pub fn wait_until<R>(limit: Duration, mut look: impl FnMut() -> Option<R>) -> Option<R> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        pause(LOOK_AGAIN);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the pause between two looks at a fact, or a pace that is asked for"
)]
pub(crate) fn pause(length: Duration) {
    std::thread::sleep(length);
}

/// The control plane, and the folder in which every part of the mesh keeps its things. Dropping it removes both, and so
/// does the end of this process, however it ends.
#[derive(Debug)]
pub struct Mesh {
    control_plane: Option<Proc>,
    program: Program,
    host: Namespace,
    address: SocketAddr,
    runtime: Runtime,
    sidecars: Cell<usize>,
    /// Where operators ask, and where the control plane keeps its keys.
    socket: PathBuf,
    state: PathBuf,
    health: u16,
    /// Last, so that nothing runs any more when the folder goes.
    folder: Folder,
}

impl Mesh {
    /// Starts a control plane for a trust domain on a host and waits until it is ready.
    ///
    /// # Errors
    /// [`MeshError::Lab`] with its output when it does not get there.
    pub fn start(host: &Host, trust_domain: &str) -> Result<Self, MeshError> {
        Self::start_program(program(&[]), host.namespace(), host.ipv4(), trust_domain)
    }

    /// As [`Self::start`], in any namespace, found by sidecars at this address of it, and by another `signet` program
    /// than this binary. Sidecars are told theirs by [`Setup::program`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_program(
        signet: Program,
        host: &Namespace,
        address: Ipv4Addr,
        trust_domain: &str,
    ) -> Result<Self, MeshError> {
        let folder = Folder::new().map_err(failed("make a folder"))?;
        let (state, socket) = (folder.path().join("control-plane"), folder.path().join("admin.sock"));
        let program = control_plane(signet, &folder, &state, &[trust_domain])
            .args([OsStr::new("--admin-socket"), socket.as_os_str()]);
        let mut mesh = Self::at(program, host, address, folder, (state, socket), 0)?;
        mesh.start_control_plane()?;
        Ok(mesh)
    }

    /// Starts one control plane for several trust domains on a host, with name-constrained issuers, and waits until it is ready.
    /// The process goes with the first of them.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_several(host: &Host, trust_domains: &[&str]) -> Result<Vec<Self>, MeshError> {
        let mut folders = Vec::new();
        for _ in trust_domains {
            folders.push(Folder::new().map_err(failed("make a folder"))?);
        }
        let Some(first) = folders.first() else { return Ok(Vec::new()) };
        let all = first.path().join("control-plane");
        let program = control_plane(program(&[]), first, &all, trust_domains).args(["--name-constraints"]);
        let mut meshes = Vec::new();
        for ((folder, domain), number) in folders.into_iter().zip(trust_domains).zip(0..) {
            let state = all.join(domain);
            let socket = state.join("admin.sock");
            let (program, host_namespace) = (program.clone(), host.namespace());
            meshes.push(Self::at(program, host_namespace, host.ipv4(), folder, (state, socket), number)?);
        }
        if let Some(first) = meshes.first_mut() {
            first.start_control_plane()?;
        }
        Ok(meshes)
    }

    /// Adds an area with this grant to the mesh and starts its control plane on another host, whose network the area is to
    /// have; waits until it is ready. A trust domain, a network, patterns of identities, a budget in seconds.
    ///
    /// # Errors
    /// As [`Self::start`], and [`MeshError::Admin`] when the parent refuses.
    pub fn start_area(
        &self,
        host: &Host,
        (trust_domain, area): (&str, &str),
        network: &str,
        identities: &[&str],
        budget_s: u64,
    ) -> Result<Self, MeshError> {
        let request = AddAreaRequest {
            name: area.into(),
            networks: vec![network.into()],
            identities: identities.iter().map(|&pattern| pattern.into()).collect(),
            budget_s,
        };
        let token = self.ask(async |mut client| answered(client.add_area(request).await))?.token;
        let folder = Folder::new().map_err(failed("make a folder"))?;
        let (state, socket) = (folder.path().join("control-plane"), folder.path().join("admin.sock"));
        let file = folder.path().join("token");
        write_secret(&file, &token).map_err(failed("write the token"))?;
        let program = control_plane(program(&[]), &folder, &state, &[trust_domain])
            .args([OsStr::new("--admin-socket"), socket.as_os_str()])
            .args(["--area", area, "--parent", &self.address.to_string()])
            .args([OsStr::new("--token-file"), file.as_os_str()]);
        let mut mesh = Self::at(program, host.namespace(), host.ipv4(), folder, (state, socket), 0)?;
        mesh.start_control_plane()?;
        Ok(mesh)
    }

    /// The areas under this control plane.
    ///
    /// # Errors
    /// [`MeshError::Admin`].
    pub fn areas(&self) -> Result<Vec<Area>, MeshError> {
        Ok(self.ask(async |mut client| answered(client.list_areas(ListAreasRequest {}).await))?.areas)
    }

    /// Ends an area.
    ///
    /// # Errors
    /// [`MeshError::Admin`].
    pub fn revoke_area(&self, name: &str) -> Result<u64, MeshError> {
        let request = RevokeAreaRequest { name: name.into() };
        Ok(self.ask(async |mut client| answered(client.revoke_area(request).await))?.revision)
    }

    fn at(
        program: Program,
        host: &Namespace,
        address: Ipv4Addr,
        folder: Folder,
        (state, socket): (PathBuf, PathBuf),
        number: u16,
    ) -> Result<Self, MeshError> {
        let runtime =
            runtime::Builder::new_current_thread().enable_all().build().map_err(failed("make a runtime"))?;
        Ok(Self {
            control_plane: None,
            program,
            host: host.clone(),
            address: SocketAddr::from((address, CONTROL_PORT + number * NEXT_DOMAIN)),
            runtime,
            sidecars: Cell::new(0),
            socket,
            state,
            health: HEALTH_PORT + number * NEXT_DOMAIN,
            folder,
        })
    }

    /// Starts the control plane again on what it has stored, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_control_plane(&mut self) -> Result<(), MeshError> {
        // The old one must be gone before the new one binds.
        self.control_plane = None;
        let running = self.host.start(self.program.clone())?;
        running.wait_for_line("listening control=", START_LIMIT)?;
        self.control_plane = Some(running);
        Ok(())
    }

    /// Kills the control plane: no drain, no last word.
    pub fn kill_control_plane(&mut self) {
        self.control_plane = None;
    }

    /// What every part keeps: sockets, logs, state directories. Mode 0700.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The control plane's socket for operators: `signet … --control-plane unix:PATH`.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    /// The control plane's state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Where sidecars reach the control plane.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Applies manifests; what proxies are being sent has changed when it returns. Returns the store's revision.
    ///
    /// # Errors
    /// [`MeshError::Manifests`] with every fault, [`MeshError::Admin`].
    pub fn apply(&self, name: &str, yaml: &str) -> Result<u64, MeshError> {
        let files = vec![ManifestFile { name: name.into(), text: yaml.into() }];
        let response = self
            .ask(async |mut client| answered(client.apply(ApplyRequest { files, dry_run: false }).await))?;
        accepted(&response.diagnostics).map(|()| response.revision)
    }

    /// Deletes a manifest. Returns the store's revision.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn delete(&self, kind: &str, name: &str) -> Result<u64, MeshError> {
        let request = DeleteRequest { kind: kind.into(), name: name.into(), dry_run: false };
        let response = self.ask(async |mut client| answered(client.delete(request).await))?;
        accepted(&response.diagnostics).map(|()| response.revision)
    }

    /// A token for a workload, good for a hundred enrolments.
    ///
    /// # Errors
    /// [`MeshError::Admin`], such as for a workload that was not applied.
    pub fn token(&self, workload: &str) -> Result<String, MeshError> {
        self.token_for(workload, TOKEN_USES)
    }

    /// A token for a workload, good for as many enrolments.
    ///
    /// # Errors
    /// As for [`Self::token`].
    pub fn token_for(&self, workload: &str, uses: u32) -> Result<String, MeshError> {
        let request = CreateTokenRequest {
            workload: workload.into(),
            uses,
            instances: uses,
            ..CreateTokenRequest::default()
        };
        Ok(self.ask(async |mut client| answered(client.create_token(request).await))?.token)
    }

    /// Revokes a certificate.
    ///
    /// # Errors
    /// [`MeshError::Admin`].
    pub fn revoke(&self, certificate: Fingerprint, reason: &str) -> Result<u64, MeshError> {
        let subject = Some(Subject::Fingerprint(certificate.to_string()));
        let request = RevokeRequest { subject, reason: reason.into() };
        Ok(self.ask(async |mut client| answered(client.revoke(request).await))?.revision)
    }

    /// Revokes an identity.
    ///
    /// # Errors
    /// [`MeshError::Admin`].
    pub fn revoke_identity(&self, id: &SpiffeId, reason: &str) -> Result<u64, MeshError> {
        let subject = Some(Subject::SpiffeId(id.to_string()));
        let request = RevokeRequest { subject, reason: reason.into() };
        Ok(self.ask(async |mut client| answered(client.revoke(request).await))?.revision)
    }

    /// Begins a rotation of the issuer or the root, or replaces it at once.
    ///
    /// # Errors
    /// [`MeshError::Admin`].
    pub fn rotate(&self, target: RotationTarget, emergency: bool) -> Result<RotationState, MeshError> {
        let request = RotateRequest { target: target.into(), emergency, ..RotateRequest::default() };
        self.ask(async |mut client| answered(client.rotate(request).await))
    }

    /// How far the rotation under way is.
    ///
    /// # Errors
    /// [`MeshError::Admin`].
    pub fn rotation(&self) -> Result<RotationState, MeshError> {
        self.ask(async |mut client| answered(client.rotation(RotationRequest::default()).await))
    }

    /// Calls the rotation under way off.
    ///
    /// # Errors
    /// [`MeshError::Admin`].
    pub fn abort_rotation(&self) -> Result<RotationState, MeshError> {
        self.ask(async |mut client| answered(client.abort_rotation(AbortRotationRequest::default()).await))
    }

    /// What the control plane knows of the sidecars.
    ///
    /// # Errors
    /// [`MeshError::Admin`].
    pub fn proxies(&self) -> Result<Vec<Proxy>, MeshError> {
        Ok(self.ask(async |mut client| answered(client.list_proxies(ListProxiesRequest {}).await))?.proxies)
    }

    /// What all sidecars together remember of a request, as `signet explain REQUEST_ID -o json` shows it.
    ///
    /// # Errors
    /// [`MeshError::Admin`].
    pub fn explain(&self, request_id: &str) -> Result<Option<Value>, MeshError> {
        let request = ExplainRequest { question: Some(Question::RequestId(request_id.into())) };
        let response = self.ask(async |mut client| found(client.explain(request).await))?;
        let parse = |json: String| {
            serde_json::from_str(&json).map_err(|_| answer("control plane", "explanation", json))
        };
        response.map(|response| parse(response.json)).transpose()
    }

    /// The control plane's own counters.
    ///
    /// # Errors
    /// [`MeshError::Probe`].
    pub fn control_metrics(&self) -> Result<Metrics, MeshError> {
        let asked = probe::tcp(&self.host, SocketAddr::from((Ipv4Addr::LOCALHOST, self.health)), "/metrics")?;
        let (_, text) = asked.map_err(|source| MeshError::Probe {
            sidecar: "the control plane".into(),
            what: "metrics".into(),
            source,
        })?;
        Ok(Metrics::parse(&text))
    }

    /// Starts a sidecar for a workload inside a container's network and waits until it is ready.
    ///
    /// # Errors
    /// [`MeshError::Overdue`] with its last state and the end of its log.
    pub fn sidecar(&self, container: &Container, workload: &str, setup: Setup) -> Result<Sidecar, MeshError> {
        let sidecar = self.begin_sidecar(container, workload, setup)?;
        sidecar.wait_until_ready()?;
        Ok(sidecar)
    }

    /// As [`Self::sidecar`], without waiting: several start faster side by side.
    ///
    /// # Errors
    /// [`MeshError::Lab`], [`MeshError::Admin`].
    pub fn begin_sidecar(
        &self,
        container: &Container,
        workload: &str,
        setup: Setup,
    ) -> Result<Sidecar, MeshError> {
        let token = if setup.evidence.is_some() { None } else { Some(self.token(workload)?) };
        let number = self.sidecars.replace(self.sidecars.get() + 1);
        // Short: the path of a Unix socket has at most 107 bytes.
        let folder = self.folder.path().join(format!("{number}-{workload}"));
        let made = fs::create_dir(&folder).and_then(|()| match &token {
            Some(token) => write_secret(&folder.join("token"), token),
            None => Ok(()),
        });
        made.map_err(|error| MeshError::system("write the token", error))?;
        Sidecar::start(container, workload, self.address, folder, setup)
    }

    fn ask<T>(&self, question: impl AsyncFnOnce(Admin) -> Result<T, Failure>) -> Result<T, MeshError> {
        let socket = ControlPlane::at(self.socket());
        Ok(self.runtime.block_on(async { question(socket.connect().await?).await })?)
    }
}

/// A control plane for these trust domains, on the lab's ports, with its state in a directory and its log in a folder.
fn control_plane(signet: Program, folder: &Folder, state: &Path, trust_domains: &[&str]) -> Program {
    let each = |first: u16| -> String {
        let ports = (first..).step_by(NEXT_DOMAIN.into()).take(trust_domains.len());
        let addresses = ports.map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).to_string());
        addresses.collect::<Vec<_>>().join(",")
    };
    signet
        .args(["control-plane", "--trust-domain", &trust_domains.join(",")])
        .args(["--listen", &each(CONTROL_PORT), "--admin-listen", &each(HEALTH_PORT)])
        .args(["--drain-seconds", "1"])
        .args([OsStr::new("--state-dir"), state.as_os_str()])
        .log(folder.path().join("control-plane.log"))
}

type Admin = signet_sync::proto::admin::admin_client::AdminClient<Channel>;

fn accepted(diagnostics: &[Diagnostic]) -> Result<(), MeshError> {
    let line = |d: &Diagnostic| format!("{}:{}:{}: {}; fix: {}", d.file, d.line, d.column, d.message, d.fix);
    let lines: Vec<String> = diagnostics.iter().map(line).collect();
    if lines.is_empty() { Ok(()) } else { Err(MeshError::Manifests(lines.join("\n"))) }
}

fn answer(program: &str, what: &'static str, output: String) -> MeshError {
    MeshError::Answer { program: program.into(), what, output }
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> MeshError {
    move |source| MeshError::system(what, source)
}

fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}
