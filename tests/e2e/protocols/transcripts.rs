//! The applications' own clients see no difference.

use std::net::SocketAddr;

use signet_cli::demo::clients::Transcript;
use signet_cli::lab::mesh::{Mesh, Setup, app, call};
use signet_cli::lab::runner::TestResult;
use signet_cli::lab::{Container, HostPlan, Lab, Proc};

use super::stage::{Failure, TRUST_DOMAIN};

/// Each application with its client's arguments and its port.
const APPS: [(&[&str], u16); 6] = [
    (&["rest"], 8201),
    (&["get-with-body"], 6472),
    (&["grpc"], 1034),
    (&["line"], 46080),
    (&["greeter"], 3306),
    (&["sse", "--events", "3", "--every", "20"], 8000),
];
/// Bytes of those calls that a listener on the wire would read.
const CANARIES: [&[u8]; 4] =
    [b"cloud-entry-point", b"X-CIMI-Request-ID", b"220 greeter ready", b"event: reading"];

pub(super) fn every_app_answers_its_client_as_without_the_mesh() -> TestResult {
    meshed_answers_are_the_plain_ones("{}")
}

pub(super) fn every_app_answers_its_client_as_without_the_mesh_in_plain_rfc_9421() -> TestResult {
    meshed_answers_are_the_plain_ones("{mode: ed25519}")
}

pub(super) fn every_app_answers_its_client_as_without_the_mesh_at_level_public() -> TestResult {
    meshed_answers_are_the_plain_ones("{level: public}")
}

pub(super) fn every_app_answers_its_client_as_without_the_mesh_at_level_private() -> TestResult {
    meshed_answers_are_the_plain_ones("{level: private}")
}

/// Two machines that use the same container subnet, reached at published ports over IPv4 and IPv6.
fn meshed_answers_are_the_plain_ones(protection: &str) -> TestResult {
    let lab = Lab::new()?;
    let cloud = lab.host("cloud", HostPlan::numbered(1))?;
    let (fog, edge) = (lab.host("fog", HostPlan::numbered(2))?, lab.host("edge", HostPlan::numbered(3))?);
    let (server, client) = (fog.container("server")?, edge.container("client")?);
    assert_eq!(server.ipv4(), client.ipv4(), "both machines number their containers alike");
    let _apps = start_apps(&server)?;
    for (_, port) in APPS {
        fog.publish(port, &server, port)?;
    }
    let addresses: [std::net::IpAddr; 2] = [fog.ipv4().into(), fog.ipv6().into()];
    let plain = calls(&client, &addresses)?;

    let tap = lab.tap("fog", &CANARIES, None)?;
    let mesh = Mesh::start(&cloud, TRUST_DOMAIN)?;
    mesh.apply("mesh.yaml", &manifests(protection))?;
    let sidecars = [
        mesh.begin_sidecar(&server, "server", Setup::default())?,
        mesh.begin_sidecar(&client, "client", Setup::default())?,
    ];
    for sidecar in &sidecars {
        sidecar.wait_until_ready()?;
    }
    for address in addresses {
        for (_, port) in APPS {
            sidecars[1].wait_until_known((address, port).into())?;
        }
    }
    let meshed = calls(&client, &addresses)?;
    for (plain, meshed) in plain.iter().zip(&meshed) {
        assert!(
            plain.exchanges.iter().all(|exchange| exchange.error.is_none()),
            "without the mesh: {plain:?}"
        );
        assert_eq!(plain.differences(meshed), Vec::<String>::new(), "{}", plain.client);
    }
    let report = tap.report()?;
    assert_eq!(report.lost, 0, "the tap saw everything");
    assert!(report.sightings.is_empty(), "in clear on the wire: {:?}", report.sightings);
    assert!(report.in_clear().is_empty(), "not TLS: {:?}", report.in_clear());
    Ok(())
}

fn start_apps(server: &Container) -> Result<Vec<Proc>, Failure> {
    APPS.iter().map(|(client, port)| Ok(app(server, &client[..1], &[*port])?)).collect()
}

fn calls(client: &Container, addresses: &[std::net::IpAddr]) -> Result<Vec<Transcript>, Failure> {
    let mut transcripts = Vec::new();
    for &address in addresses {
        for (arguments, port) in APPS {
            let to = SocketAddr::from((address, port)).to_string();
            let arguments = [&arguments[..1], &["--to", &to], &arguments[1..]].concat();
            transcripts.push(call(client.namespace(), &arguments)?);
        }
    }
    Ok(transcripts)
}

fn manifests(protection: &str) -> String {
    let ports: String = APPS
        .iter()
        .map(|(app, port)| match app[0] {
            "line" | "greeter" => format!("{{port: {port}}}, "),
            "grpc" => format!("{{port: {port}, protocol: grpc}}, "),
            _ => format!("{{port: {port}, protocol: http}}, "),
        })
        .collect();
    let advertise: String = ["10.0.0.2", "fd00::2"]
        .iter()
        .flat_map(|address| {
            APPS.iter().map(move |(_, port)| {
                format!("{{network: area, address: '{address}', port: {port}, targetPort: {port}}}, ")
            })
        })
        .collect();
    format!(
        "\
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: {{name: transcripts}}
spec:
  trustDomain: {TRUST_DOMAIN}
  networks:
    - {{name: fog, cidrs: [172.18.0.0/16, 'fd18::/64'], gateways: [10.0.0.2, 'fd00::2']}}
    - {{name: edge, cidrs: [172.18.0.0/16, 'fd18::/64'], gateways: [10.0.0.3, 'fd00::3']}}
    - {{name: area, cidrs: [10.0.0.0/24, 'fd00::/64']}}
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: {{name: server}}
spec: {{class: app, device: fog, network: fog, ports: [{ports}], advertise: [{advertise}], protection: {protection}}}
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: {{name: client}}
spec: {{class: app, device: edge, network: edge}}
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: AccessPolicy
metadata: {{name: client-may-use-server}}
spec:
  target: {{workloads: [server]}}
  rules:
  - from: [{{identity: 'spiffe://{TRUST_DOMAIN}/app/edge/client'}}]
"
    )
}
