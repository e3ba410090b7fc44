//! A server and a client in two containers of one host, first without and then with a mesh between them.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use signet_cli::lab::mesh::{Mesh, Setup, Sidecar};
use signet_cli::lab::{Container, Host, HostPlan, Lab, Namespace, Proc, Program, Tap};
use tempfile::TempDir;

pub(crate) type Failure = Box<dyn Error>;

/// What a real program may take to start or to finish on a small machine under full load.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Two containers, and a folder for what the programs need.
pub(crate) struct Pair {
    pub(crate) server: Container,
    pub(crate) client: Container,
    pub(crate) folder: TempDir,
    host: Host,
    _lab: Lab,
}

/// The same with a sidecar in each container.
pub(crate) struct Meshed {
    pub(crate) server: Sidecar,
    pub(crate) client: Sidecar,
    tap: Tap,
    _mesh: Mesh,
}

impl Pair {
    pub(crate) fn new() -> Result<Self, Failure> {
        let lab = Lab::new()?;
        let host = lab.host("host", HostPlan::numbered(1))?;
        let (server, client) = (host.container("server")?, host.container("client")?);
        let folder = tempfile::Builder::new().prefix("peers-").tempdir()?;
        Ok(Self { server, client, folder, host, _lab: lab })
    }

    /// A further container, without a sidecar.
    pub(crate) fn stranger(&self) -> Result<Container, Failure> {
        Ok(self.host.container("stranger")?)
    }

    /// Where the server's port is for everybody else.
    pub(crate) fn place(&self, port: u16) -> SocketAddr {
        (self.server.ipv4(), port).into()
    }

    /// A file in the folder.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    /// Starts the server and waits until it listens.
    pub(crate) fn serve(&self, program: Program, port: u16) -> Result<Proc, Failure> {
        self.serve_at(&self.server, program, port)
    }

    /// Starts a server in another container.
    pub(crate) fn serve_at(
        &self,
        container: &Container,
        program: Program,
        port: u16,
    ) -> Result<Proc, Failure> {
        let server = container.namespace().start(program)?;
        wait_for_port(port, &server)?;
        Ok(server)
    }

    /// Runs a client to its end.
    pub(crate) fn call(&self, program: Program) -> Result<String, Failure> {
        run(&self.client, program)
    }

    /// Puts a mesh between them: the client may use this port, in the way a rule's `to` says, or in any.
    pub(crate) fn mesh(&self, port: u16, to: &str) -> Result<Meshed, Failure> {
        self.mesh_with(port, to, "")
    }

    /// The same with further settings of the Mesh.
    pub(crate) fn mesh_with(&self, port: u16, to: &str, settings: &str) -> Result<Meshed, Failure> {
        let mesh = Mesh::start(&self.host, "mesh.example")?;
        mesh.apply("pair.yaml", &manifests(port, to, settings))?;
        // Before any of its connections: how one begins tells whether it is in clear.
        let tap = Tap::start(self.server.namespace(), "eth0", &[], None)?;
        let server = mesh.begin_sidecar(&self.server, "server", Setup::default())?;
        let client = mesh.begin_sidecar(&self.client, "client", Setup::default())?;
        server.wait_until_ready()?;
        client.wait_until_ready()?;
        client.wait_until_known(self.place(port))?;
        Ok(Meshed { server, client, tap, _mesh: mesh })
    }
}

/// The port is bound when the kernel says so: to ask it by connecting would be a client.
pub(crate) fn wait_for_port(port: u16, server: &Proc) -> Result<(), Failure> {
    let bound = || {
        let table = |version: &str| std::fs::read_to_string(format!("/proc/{}/net/{version}", server.id()));
        let listens = |line: &str| {
            let mut columns = line.split_whitespace().skip(1);
            let local = columns.next().is_some_and(|local| local.ends_with(&format!(":{port:04X}")));
            // Column 4 is the state; 0A is LISTEN.
            local && columns.nth(1) == Some("0A")
        };
        let found =
            ["tcp", "tcp6"].iter().any(|version| table(version).is_ok_and(|text| text.lines().any(listens)));
        (found || server.status().is_some()).then_some(found)
    };
    match signet_cli::lab::mesh::wait_until(LIMIT, bound) {
        Some(true) => Ok(()),
        _ => Err(format!("the server does not listen at {port}:\n{}", server.output()).into()),
    }
}

/// Runs a program to its end; the newest MiB of what it prints if it succeeds, an error with that if not.
pub(crate) fn run(container: &Container, program: Program) -> Result<String, Failure> {
    run_at(container.namespace(), program)
}

/// The same anywhere.
pub(crate) fn run_at(place: &Namespace, program: Program) -> Result<String, Failure> {
    let running = place.start(program)?;
    let status = running.wait(LIMIT)?;
    let output = running.output();
    if status.success() { Ok(output) } else { Err(format!("{output}({status})").into()) }
}

impl Meshed {
    /// Checks that what the client did went through the mesh and in no other way: nothing in clear, and so many
    /// HTTP requests or record streams at least, counted by both sidecars.
    pub(crate) fn check(&self, metric: &str, at_least: u32) -> Result<(), Failure> {
        let report = self.tap.report()?;
        assert_eq!(report.lost, 0, "the tap was too slow");
        assert!(report.in_clear().is_empty(), "in clear: {:?}", report.in_clear());
        for (sidecar, direction) in [(&self.client, "outbound"), (&self.server, "inbound")] {
            let metrics = sidecar.metrics()?;
            let count = metrics.sum(metric, &[direction]);
            assert!(count >= at_least.into(), "{direction} {metric} is {count}, not {at_least}");
            assert_eq!(metrics.sum("signet_plaintext_connections_total", &[]), 0.0, "{direction} plaintext");
        }
        Ok(())
    }
}

fn manifests(port: u16, to: &str, settings: &str) -> String {
    format!(
        "\
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: {{name: pair}}
spec:
  trustDomain: mesh.example
  networks: [{{name: lan, gateways: [10.0.0.1, 'fd00::1']}}]
{settings}---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: {{name: server}}
spec: {{class: app, device: host, network: lan, ports: [{{port: {port}}}]}}
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: {{name: client}}
spec: {{class: app, device: host, network: lan}}
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: AccessPolicy
metadata: {{name: client-may-use-server}}
spec:
  target: {{workloads: [server]}}
  rules:
  - from: [{{identity: 'spiffe://mesh.example/app/host/client'}}]
    {to}
"
    )
}
