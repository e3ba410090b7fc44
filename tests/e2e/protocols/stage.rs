//! A server's and a client's container on one machine, first without and then with a mesh between them.

use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use signet_cli::demo::clients::Transcript;
use signet_cli::lab::mesh::{Mesh, Setup, Sidecar};
use signet_cli::lab::{Container, Host, HostPlan, Lab, Namespace};
use signet_identity::SpiffeId;

pub(crate) type Failure = Box<dyn Error>;

/// What anything may take on a small machine under full load; nothing waits this long when it works.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// The trust domain of every test here.
pub(crate) const TRUST_DOMAIN: &str = "mesh.example";
/// The server's identity.
pub(crate) const SERVER: &str = "spiffe://mesh.example/app/host/server";
/// The rule that lets the client do anything.
pub(crate) const CLIENT_MAY_ALL: &str = "- from: [{identity: 'spiffe://mesh.example/app/host/client'}]";

/// The machine, and another one for the control plane.
pub(crate) struct Stage {
    pub(crate) server: Container,
    pub(crate) client: Container,
    pub(crate) host: Host,
    pub(crate) cloud: Host,
    _lab: Lab,
}

/// The mesh on it. Sidecars end before the control plane.
pub(crate) struct Meshed {
    pub(crate) server: Sidecar,
    pub(crate) client: Sidecar,
    pub(crate) mesh: Mesh,
}

impl Stage {
    pub(crate) fn new() -> Result<Self, Failure> {
        let lab = Lab::new()?;
        let host = lab.host("host", HostPlan::numbered(1))?;
        let cloud = lab.host("cloud", HostPlan::numbered(2))?;
        let (server, client) = (host.container("server")?, host.container("client")?);
        Ok(Self { server, client, host, cloud, _lab: lab })
    }

    /// The server's port.
    pub(crate) fn place(&self, port: u16) -> SocketAddr {
        (self.server.ipv4(), port).into()
    }

    /// The server's port, IPv6.
    pub(crate) fn place_ipv6(&self, port: u16) -> SocketAddr {
        (self.server.ipv6(), port).into()
    }

    /// Puts a sidecar beside both; the client's knows these ports of the server when this returns.
    pub(crate) fn mesh(&self, yaml: &str, ports: &[u16]) -> Result<Meshed, Failure> {
        let mesh = Mesh::start(&self.cloud, TRUST_DOMAIN)?;
        mesh.apply("mesh.yaml", yaml)?;
        let server = mesh.begin_sidecar(&self.server, "server", Setup::default())?;
        let client = mesh.begin_sidecar(&self.client, "client", Setup::default())?;
        server.wait_until_ready()?;
        client.wait_until_ready()?;
        for &port in ports {
            client.wait_until_known(self.place(port))?;
            client.wait_until_known(self.place_ipv6(port))?;
        }
        Ok(Meshed { server, client, mesh })
    }
}

/// The manifests of a stage: further fields of the Mesh and of the server's Workload, and the rules for the server.
pub(crate) fn manifests(mesh: &str, server: &str, rules: &str) -> String {
    format!(
        "\
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: {{name: stage}}
spec:
  trustDomain: {TRUST_DOMAIN}
  networks: [{{name: lan, gateways: [10.0.0.1, 'fd00::1']}}]
  {mesh}
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: {{name: server}}
spec: {{class: app, device: host, network: lan, {server}}}
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: {{name: client}}
spec: {{class: app, device: host, network: lan}}
---
{}",
        policy("server-access", "", rules)
    )
}

/// A policy for the server; `selection` is empty or `ports: […]`.
pub(crate) fn policy(name: &str, selection: &str, rules: &str) -> String {
    format!(
        "\
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: AccessPolicy
metadata: {{name: {name}}}
spec:
  target: {{workloads: [server]}}
  {selection}
  rules:
    {rules}
"
    )
}

/// The identity of the server's workload, parsed.
pub(crate) fn server_id() -> Result<SpiffeId, Failure> {
    Ok(SpiffeId::parse(SERVER)?)
}

/// A connection from inside a namespace; whoever reads from it fails rather than waits for ever.
pub(crate) fn connect(from: &Namespace, to: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = from.run(move || -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&to, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    })??;
    Ok(stream)
}

/// The statuses of a transcript; a call that failed has none.
pub(crate) fn statuses(transcript: &Transcript) -> Vec<Option<u16>> {
    transcript.exchanges.iter().map(|exchange| exchange.status).collect()
}
