//! Without the control plane: killed, killed again and again, or behind a cut link.

use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use signet_cli::lab::Namespace;
use signet_cli::lab::mesh::{Mesh, Setup, Sidecar, app, client, load_report, program, wait_until};
use signet_cli::lab::runner::TestResult;

use crate::protocols::http::get;
use crate::protocols::stage::{
    CLIENT_MAY_ALL, Failure, LIMIT, Stage, TRUST_DOMAIN, connect, manifests, policy,
};

const PORT: u16 = 8201;
/// Long enough to live through an outage, short enough that renewals are seen.
const CERTIFICATES: &str = "certificates: {app: {lifetime: 20s}}";
/// How long a sidecar may take to find a control plane that is back; back-off grows with the outage, which here is short.
const RETURN_LIMIT: Duration = Duration::from_secs(60);

fn http_port() -> String {
    format!("ports: [{{port: {PORT}, protocol: http}}]")
}

pub(super) fn traffic_and_restarts_go_on_without_a_control_plane() -> TestResult {
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let mut meshed = stage.mesh(&manifests(CERTIFICATES, &http_port(), CLIENT_MAY_ALL), &[PORT])?;
    let (from, to) = (stage.client.namespace(), stage.place(PORT));
    assert_eq!(get(from, to, "/api")?.status(), 200);

    meshed.mesh.kill_control_plane();
    no_call_fails(from, to)?;
    meshed.server.restart()?;
    meshed.client.restart()?;
    no_call_fails(from, to)?;

    meshed.mesh.start_control_plane()?;
    everybody_is_back(&meshed.mesh, 2)?;
    for sidecar in [&meshed.server, &meshed.client] {
        sidecar.wait_for("renew its certificate", RETURN_LIMIT, |sidecar| {
            sidecar.metrics().is_ok_and(|metrics| metrics.value("signet_rotations_total") >= 1.0)
        })?;
    }
    no_call_fails(from, to)
}

fn no_call_fails(from: &Namespace, to: SocketAddr) -> TestResult {
    let arguments = ["load", "--to", &to.to_string(), "--path", "/api", "--seconds", "2", "--rate", "200"];
    let report = load_report(&client(from, &arguments)?)?;
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    assert!(report.ok > 0, "no call was made");
    Ok(())
}

fn everybody_is_back(mesh: &Mesh, expected: usize) -> TestResult {
    let connected =
        || mesh.proxies().map_or(0, |proxies| proxies.iter().filter(|proxy| proxy.connected).count());
    let all = wait_until(RETURN_LIMIT, || (connected() == expected).then_some(()));
    assert!(all.is_some(), "{} of {expected} are connected", connected());
    Ok(())
}

pub(super) fn sidecar_with_neither_state_nor_control_plane_lets_nothing_through() -> TestResult {
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let mut mesh = Mesh::start(&stage.cloud, TRUST_DOMAIN)?;
    mesh.apply("mesh.yaml", &manifests("mtls: {mode: permissive}", &http_port(), "- from: [{any: anyone}]"))?;
    let forgetful = Setup { forgetful: true, ..Setup::default() };
    let mut sidecar = mesh.sidecar(&stage.server, "server", forgetful)?;
    let outside = stage.host.container("outside")?;
    let _outside_app = app(&outside, &["rest"], &[PORT])?;
    let there = SocketAddr::from((outside.ipv4(), PORT));
    // As permissive as a mesh can be: both directions work in clear.
    assert_eq!(get(outside.namespace(), stage.place(PORT), "/api")?.status(), 200);
    assert_eq!(get(stage.server.namespace(), there, "/api")?.status(), 200);

    mesh.kill_control_plane();
    sidecar.begin()?;
    let (status, says) = wait_until(LIMIT, || ready(&sidecar).ok()).ok_or("nobody answers at /ready")?;
    assert_eq!(status, 503, "{says}");
    assert_eq!((&says["ready"], &says["identity"]), (&Value::Bool(false), &Value::Null), "{says}");
    assert_nothing_passes(outside.namespace(), stage.place(PORT))?;
    assert_nothing_passes(stage.server.namespace(), there)?;

    mesh.start_control_plane()?;
    sidecar.wait_for("become ready", RETURN_LIMIT, |sidecar| {
        sidecar.state().is_ok_and(|state| state["ready"] == true)
    })?;
    assert_eq!(get(outside.namespace(), stage.place(PORT), "/api")?.status(), 200);
    Ok(())
}

/// What the sidecar answers at `/ready`.
fn ready(sidecar: &Sidecar) -> Result<(u16, Value), Failure> {
    let answer = get(sidecar.container().namespace(), SocketAddr::from(([127, 0, 0, 1], 15020)), "/ready")?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    Ok((answer.status(), serde_json::from_slice(&answer.body).unwrap_or(Value::String(text))))
}

/// How long an answer that must not come is waited for; the sidecar may leave its caller waiting.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(2);

/// No connection, no answer, or a refusal: in no case an answer of the app.
fn assert_nothing_passes(from: &Namespace, to: SocketAddr) -> TestResult {
    let http = format!("GET /api HTTP/1.1\r\nHost: {to}\r\n\r\n");
    for request in [http.as_bytes(), b"\x00 no http at all \r\n\r\n"] {
        let Ok(mut stream) = connect(from, to) else { continue };
        stream.set_read_timeout(Some(SILENCE))?;
        std::io::Write::write_all(&mut stream, request)?;
        let mut heard = Vec::new();
        // A reset, or nothing, is what is wanted; the app would have answered either.
        let _ = stream.read_to_end(&mut heard);
        let heard = String::from_utf8_lossy(&heard).into_owned();
        assert!(heard.is_empty() || heard.contains("\"not-ready\""), "{to}: {heard}");
    }
    Ok(())
}

/// Each change is the last thing the control plane ever said before it was killed.
pub(super) fn control_plane_killed_after_each_acknowledgement_loses_nothing() -> TestResult {
    const KILLS: usize = 12;
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let mut meshed = stage.mesh(&manifests("", &http_port(), CLIENT_MAY_ALL), &[PORT])?;
    let mut revisions = Vec::new();
    for kill in 0..KILLS {
        let workload = format!(
            "apiVersion: signet.mf2c-project.eu/v1alpha1\nkind: Workload\nmetadata: {{name: kept-{kill}}}\n\
             spec: {{class: app, device: host, network: lan}}\n"
        );
        revisions.push(meshed.mesh.apply("kept.yaml", &workload)?);
        meshed.mesh.kill_control_plane();
        meshed.mesh.start_control_plane()?;
    }
    assert!(revisions.is_sorted_by(|before, after| before < after), "{revisions:?}");
    let stored = signet(&stage, &meshed.mesh, &["get", "workload", "-o", "json"])?;
    let lost: Vec<usize> = (0..KILLS).filter(|kill| !stored.contains(&format!("\"kept-{kill}\""))).collect();
    assert!(lost.is_empty(), "lost after kills {lost:?}: {stored}");

    // The sidecars follow whoever is there in the end, with what was applied last.
    assert_eq!(get(stage.client.namespace(), stage.place(PORT), "/api")?.status(), 200);
    meshed.mesh.apply("closed.yaml", &policy("server-access", "", "[]"))?;
    let refused = || {
        get(stage.client.namespace(), stage.place(PORT), "/api").ok().filter(|answer| answer.status() == 403)
    };
    assert!(wait_until(RETURN_LIMIT, refused).is_some(), "the newest policy is not in force");
    Ok(())
}

/// What `signet` prints.
fn signet(stage: &Stage, mesh: &Mesh, arguments: &[&str]) -> Result<String, Failure> {
    let socket = mesh.socket();
    let program = program(arguments).args(["--control-plane"]).args([socket.as_os_str()]);
    let running = stage.cloud.namespace().start(program)?;
    let status = running.wait(LIMIT)?;
    let output = running.output();
    if status.success() { Ok(output) } else { Err(format!("{output}({status})").into()) }
}

pub(super) fn policy_applied_behind_a_cut_link_arrives_when_it_heals() -> TestResult {
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let meshed = stage.mesh(&manifests("", &http_port(), CLIENT_MAY_ALL), &[PORT])?;
    let (from, to) = (stage.client.namespace(), stage.place(PORT));
    assert_eq!(get(from, to, "/api")?.status(), 200);

    stage.cloud.namespace().cut()?;
    no_call_fails(from, to)?;
    meshed.mesh.apply("closed.yaml", &policy("server-access", "", "[]"))?;
    assert_eq!(get(from, to, "/api")?.status(), 200, "the policy in force is the one that arrived last");
    stage.cloud.namespace().heal()?;
    let refused = || get(from, to, "/api").ok().filter(|answer| answer.status() == 403);
    assert!(wait_until(RETURN_LIMIT, refused).is_some(), "the policy did not arrive");
    everybody_is_back(&meshed.mesh, 2)
}
