//! SPIFFE's Workload API with the library for Python at the other end: as the application, and in the place of SPIRE's agent.

use std::fs;

use serde_json::Value;
use signet_cli::lab::mesh::{Evidence, Mesh, Setup, program as signet};
use signet_cli::lab::runner::TestResult;
use signet_cli::lab::{Capabilities, HostPlan, Lab, Program};
use signet_tests::root_pem;

use crate::pair::{Failure, LIMIT, run};
use crate::programs::{app, python, script};

const ID: &str = "spiffe://mesh.example/app/host/app";
const MESH: &str = "apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: {name: mesh}
spec:
  trustDomain: mesh.example
  networks: [{name: lan, cidrs: [172.18.0.0/16, 'fd18::/64'], gateways: [10.0.0.1, 'fd00::1']}]
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: {name: app}
spec:
  class: app
  device: host
  network: lan
  workloadApi: {x509: true, jwt: {audiences: ['https://vault.example']}}
";

fn python_program(name: &str) -> Result<Program, Failure> {
    Ok(Program::new(python()?)
        .capabilities(Capabilities::None)
        .args([script(name)])
        .env("PYTHONUNBUFFERED", "1"))
}

/// The library reads and verifies what the sidecar gives, and OpenSSL takes the certificate for both ends of TLS.
pub(crate) fn spiffe_for_python_gets_and_verifies_its_svids() -> TestResult {
    let lab = Lab::new()?;
    let host = lab.host("host", HostPlan::numbered(1))?;
    let container = host.container("app")?;
    let folder = tempfile::Builder::new().prefix("peers-").tempdir()?;
    let file = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let mesh = Mesh::start(&host, "mesh.example")?;
    mesh.apply("mesh.yaml", MESH)?;
    let socket = file("spiffe.sock");
    let flags = ["--workload-api-socket", &socket, "--workload-api-uid", "0"].map(str::to_owned).to_vec();
    let _sidecar = mesh.sidecar(&container, "app", Setup { flags, ..Setup::default() })?;

    let arguments = [socket, "https://vault.example".to_owned(), file("")];
    let seen = run(&container, python_program("spiffe_client.py")?.args(arguments))?;
    let seen: Value = serde_json::from_str(&seen)?;
    for who in ["id", "token", "offline", "online"] {
        assert_eq!(seen[who], ID, "{who}: {seen}");
    }
    assert_eq!(seen["chain"], 2, "{seen}");
    assert_eq!(seen["handshake"], serde_json::json!([["URI", ID]]), "{seen}");
    assert!(seen["refused"].as_str().is_some_and(|why| why.contains("workload-api-not-offered")), "{seen}");
    for purpose in ["sslserver", "sslclient"] {
        let verify = app("openssl")?
            .args(["verify", "-purpose", purpose, "-CAfile", &file("roots.pem"), "-untrusted"])
            .args([file("chain.pem"), file("leaf.pem")]);
        let verified = run(&container, verify)?;
        assert!(verified.contains("leaf.pem: OK"), "{verified}");
    }
    Ok(())
}

/// An SVID over an RSA key, from a server that is not ours, lets a sidecar in as what the rules say.
pub(crate) fn sidecar_enrols_by_an_svid_of_another_implementation() -> TestResult {
    let lab = Lab::new()?;
    let host = lab.host("host", HostPlan::numbered(1))?;
    let container = host.container("app")?;
    let folder = tempfile::Builder::new().prefix("peers-").tempdir()?;
    let file = |name: &str| folder.path().join(name);
    let (socket, bundle, rules) = (file("agent.sock"), file("bundle.pem"), file("rules.yaml"));
    let agent = python_program("spiffe_agent.py")?.args([
        socket.as_os_str(),
        "spiffe://spire.example/ns/prod/sa/app".as_ref(),
        bundle.as_os_str(),
    ]);
    let agent = container.namespace().start(agent)?;
    agent.wait_for_line("serving", LIMIT)?;
    fs::write(
        &rules,
        format!(
            "trustDomains: [{{name: spire.example, bundle: {}}}]\n\
             workloads: [{{spiffeId: 'spiffe://spire.example/ns/prod/sa/app', workload: app}}]\n",
            bundle.display()
        ),
    )?;
    let control_plane = signet(&[]).env("SIGNET_ATTEST_SPIFFE", &rules);
    let mesh = Mesh::start_program(control_plane, host.namespace(), host.ipv4(), "mesh.example")?;
    mesh.apply("mesh.yaml", MESH)?;
    let roots = file("roots.pem");
    fs::write(&roots, root_pem(&mesh)?)?;
    let evidence = Some(Evidence::Svid { socket, roots });
    let _sidecar = mesh.sidecar(&container, "app", Setup { evidence, ..Setup::default() })?;
    let proxies = mesh.proxies()?;
    assert!(proxies.len() == 1 && proxies[0].spiffe_id == ID, "{proxies:?}");
    Ok(())
}
