//! Signet's own pairs: a control plane and two sidecars that capture, as in production.
//!
//! The control plane stands on neither host. It is idle while anything is measured.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use signet_cli::lab::mesh::{Mesh, MeshError, Metrics, Setup, Sidecar};
use signet_cli::lab::{Container, Program};

use super::service::{CLIENT, SERVER, Service};
use super::stage::Stage;
use super::wait::pause;

const TRUST_DOMAIN: &str = "load.example";
/// How long a sidecar may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks whether it is.
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// How messages are protected, in the words of the Mesh manifest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mode {
    /// The pair's name.
    pub name: &'static str,
    /// One line for the report.
    pub about: &'static str,
    /// `spec.protection`.
    pub protection: &'static str,
    /// What a build does that knows no `spec.protection`.
    is_default: bool,
}

/// Every mode.
pub const MODES: [Mode; 6] = [
    Mode {
        name: "signet-public",
        about: "Signet, mutual TLS and policy, nothing signed",
        protection: "{level: public}",
        is_default: false,
    },
    Mode {
        name: "signet-ed25519",
        about: "Signet, every request and response signed (RFC 9421)",
        protection: "{level: protected, mode: ed25519}",
        is_default: true,
    },
    Mode {
        name: "signet-batch",
        about: "Signet, signed in batches",
        protection: "{level: protected, mode: ed25519-batch}",
        is_default: false,
    },
    Mode {
        name: "signet-batch-async",
        about: "Signet, signed in batches, verified while it is delivered",
        protection: "{level: protected, mode: ed25519-batch, verify: async}",
        is_default: false,
    },
    Mode {
        name: "signet-hmac",
        about: "Signet, authenticated with a key of the channel",
        protection: "{level: protected, mode: hmac}",
        is_default: false,
    },
    Mode {
        name: "signet-private",
        about: "Signet, signed, bodies sealed to the destination",
        protection: "{level: private}",
        is_default: false,
    },
];

/// The programs and their settings.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The `signet` program: control plane and tool.
    pub signet: PathBuf,
    /// The sidecar as it is shipped.
    pub proxy: PathBuf,
    /// Words before it on the sidecars' command line, such as a wrapper that limits them; mostly none.
    pub wrapper: Vec<String>,
    /// Worker threads of each sidecar.
    pub workers: usize,
}

/// A mesh with its two sidecars.
#[derive(Debug)]
pub struct Pair {
    /// Dropped before the mesh.
    pub client: Sidecar,
    /// Dropped before the mesh.
    pub server: Sidecar,
    _mesh: Mesh,
    /// From the start of the client's sidecar to ready, with enrolment.
    pub enrolled_after: Duration,
}

impl Pair {
    /// Starts everything and waits until the client's sidecar knows the server.
    ///
    /// # Errors
    /// [`MeshError::Manifests`] when this build does not offer the mode.
    pub fn start(stage: &Stage, mode: Mode, launch: &Launch) -> Result<Self, MeshError> {
        let control_plane = Program::new(&launch.signet);
        let (control, address) = stage.control()?;
        let mesh = Mesh::start_program(control_plane, &control, address, TRUST_DOMAIN)?;
        apply(&mesh, mode)?;
        let server = mesh.sidecar(&stage.server.container(), "server", setup(launch))?;
        let (client, enrolled_after) = begin(&mesh, &stage.client.container(), launch)?;
        for service in Service::ALL {
            client.wait_until_known(service.back_end())?;
        }
        Ok(Self { client, server, _mesh: mesh, enrolled_after })
    }

    /// Kills the client's sidecar and starts it again with the identity and policy it has stored: the time to ready.
    ///
    /// # Errors
    /// [`MeshError::Overdue`].
    pub fn restart_client(&mut self) -> Result<Duration, MeshError> {
        self.client.kill();
        let begun = Instant::now();
        self.client.begin()?;
        let ready = wait_until_ready(&self.client, begun)?;
        for service in Service::ALL {
            self.client.wait_until_known(service.back_end())?;
        }
        Ok(ready)
    }

    /// The client side's counters, the server side's.
    ///
    /// # Errors
    /// [`MeshError::Probe`].
    pub fn metrics(&self) -> Result<[Metrics; 2], MeshError> {
        Ok([self.client.metrics()?, self.server.metrics()?])
    }
}

fn begin(mesh: &Mesh, container: &Container, launch: &Launch) -> Result<(Sidecar, Duration), MeshError> {
    let sidecar = mesh.begin_sidecar(container, "client", setup(launch))?;
    // The token was made before; the start itself is the last thing that call does.
    let begun = Instant::now();
    let ready = wait_until_ready(&sidecar, begun)?;
    Ok((sidecar, ready))
}

/// Looks more often than the lab does: milliseconds count here.
fn wait_until_ready(sidecar: &Sidecar, begun: Instant) -> Result<Duration, MeshError> {
    while begun.elapsed() < READY_LIMIT {
        if sidecar.state().is_ok_and(|state| state["ready"] == true) {
            return Ok(begun.elapsed());
        }
        if sidecar.process().is_none_or(|process| process.status().is_some()) {
            break;
        }
        pause(LOOK_AGAIN);
    }
    // Ended or overdue: this says which, with its log.
    sidecar.wait_until_ready()?;
    Ok(begun.elapsed())
}

fn setup(launch: &Launch) -> Setup {
    let flags = vec!["--workers".to_owned(), launch.workers.to_string()];
    let program = match launch.wrapper.split_first() {
        Some((first, rest)) => Program::new(first).args(rest).args([&launch.proxy]),
        None => Program::new(&launch.proxy),
    };
    // What a sidecar tells of each connection is no part of what is measured, as with the peers.
    let environment = vec![("SIGNET_LOG".to_owned(), "warn".to_owned())];
    Setup { flags, environment, program: Some(program), ..Setup::default() }
}

fn apply(mesh: &Mesh, mode: Mode) -> Result<(), MeshError> {
    let outcome = mesh.apply("load.yaml", &manifests(Some(mode.protection)));
    match outcome {
        // An older build signs so without being told, and does not know how to be told.
        Err(MeshError::Manifests(text)) if mode.is_default && text.contains("protection") => {
            mesh.apply("load.yaml", &manifests(None)).map(drop)
        }
        other => other.map(drop),
    }
}

fn manifests(protection: Option<&str>) -> String {
    let protection = protection.map(|text| format!("\n  protection: {text}")).unwrap_or_default();
    let port =
        |service: Service, protocol: &str| format!("{{port: {}, protocol: {protocol}}}", service.port());
    let ports = [
        port(Service::Small, "http"),
        port(Service::Http, "http"),
        port(Service::Grpc, "grpc"),
        port(Service::Bytes, "opaque"),
    ]
    .join(", ");
    let (small, http, grpc, bytes) =
        (Service::Small.port(), Service::Http.port(), Service::Grpc.port(), Service::Bytes.port());
    format!(
        r#"apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: {{name: load}}
spec:
  trustDomain: {TRUST_DOMAIN}
  mtls: {{mode: strict}}
  networks: [{{name: cable, cidrs: [10.0.0.0/24]}}]{protection}
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: {{name: client}}
spec: {{class: agent, device: host-a, network: cable, addresses: [{CLIENT}]}}
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: {{name: server}}
spec: {{class: agent, device: host-b, network: cable, addresses: [{SERVER}], ports: [{ports}]}}
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: AccessPolicy
metadata: {{name: calls}}
spec:
  target: {{workloads: [server]}}
  ports: [{small}, {http}, {grpc}]
  rules:
    - from: [{{identity: "spiffe://{TRUST_DOMAIN}/agent/host-a/client"}}]
      to: [{{methods: [GET, POST], paths: [/**]}}]
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: AccessPolicy
metadata: {{name: bytes}}
spec:
  target: {{workloads: [server]}}
  ports: [{bytes}]
  rules:
    - from: [{{identity: "spiffe://{TRUST_DOMAIN}/agent/host-a/client"}}]
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_accepted_by_this_build() {
        let manifests = signet_policy::parse_manifests("load.yaml", &manifests(None)).unwrap();
        signet_policy::compile(&manifests).unwrap();
    }
}
