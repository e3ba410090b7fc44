//! The device is opened: the sidecar ends everything, destroys its keys, tells, and does not come back by itself.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use signet_cli::lab::mesh::{Mesh, Metrics, Setup, app, client, program, transcript, wait_until};
use signet_cli::lab::runner::TestResult;
use signet_cli::lab::tap::Tap;

use super::memory;
use crate::protocols::http::get;
use crate::protocols::stage::{CLIENT_MAY_ALL, Failure, LIMIT, Stage, TRUST_DOMAIN, connect, manifests};

const REST: u16 = 8201;
const EVENTS: u16 = 8000;
const BYTES: u16 = 3306;
const CLIENT: &str = "spiffe://mesh.example/app/host/client";

fn with_flags(flags: &[&str]) -> Setup {
    Setup { flags: flags.iter().map(|&flag| flag.to_owned()).collect(), ..Setup::default() }
}

fn yaml() -> String {
    let ports = format!(
        "ports: [{{port: {REST}, protocol: http}}, {{port: {EVENTS}, protocol: http}}, {{port: {BYTES}}}]"
    );
    manifests("", &ports, CLIENT_MAY_ALL)
}

pub(super) fn tampering_under_load_cuts_everything_destroys_the_keys_and_needs_a_person() -> TestResult {
    let stage = Stage::new()?;
    let _apps = [
        app(&stage.server, &["rest"], &[REST])?,
        app(&stage.server, &["sse"], &[EVENTS])?,
        app(&stage.server, &["greeter"], &[BYTES])?,
    ];
    let mesh = Mesh::start(&stage.cloud, TRUST_DOMAIN)?;
    mesh.apply("mesh.yaml", &yaml())?;
    let sensor = mesh.folder().join("sensor");
    fs::write(&sensor, "0\n")?;
    let sensor_flag = sensor.to_str().ok_or("an odd folder")?;
    let server = mesh.sidecar(&stage.server, "server", Setup::default())?;
    let mut sidecar = mesh.sidecar(&stage.client, "client", with_flags(&["--tamper-file", sensor_flag]))?;
    for port in [REST, EVENTS, BYTES] {
        sidecar.wait_until_known(stage.place(port))?;
    }
    let state = sidecar.folder().join("state");
    let pid = sidecar.process().ok_or("no process")?.id();
    let secret = |file: &str| memory::forms(&fs::read_to_string(state.join(file))?);
    let (tls, signing) = (secret("tls.pem")?, secret("signing.pem")?);
    assert!(memory::holds(pid, &tls)? && memory::holds(pid, &signing)?, "keys that are in use are found");

    // Open and under load: a stream of events, bytes, and calls one after the other.
    let from = stage.client.namespace();
    let events = client(
        from,
        &[
            "sse",
            "--to",
            &stage.place(EVENTS).to_string(),
            "--events",
            "100000",
            "--every",
            "20",
            "--timeout",
            "60",
        ],
    )?;
    let load = client(
        from,
        &["load", "--to", &stage.place(REST).to_string(), "--path", "/api", "--seconds", "5", "--rate", "50"],
    )?;
    let mut bytes = connect(from, stage.place(BYTES))?;
    let mut greeting = [0; 19];
    bytes.read_exact(&mut greeting)?;
    let tap = Tap::start(stage.server.namespace(), "eth0", &[b"/canary-of-the-tampered"], None)?;

    let opened = Instant::now();
    fs::write(&sensor, "1\n")?;
    let mut rest = Vec::new();
    let end = bytes.read_to_end(&mut rest);
    let cut = opened.elapsed();
    assert!(end.is_err() && rest.is_empty(), "it looks like an end: {end:?} after {rest:?}");
    sidecar.wait_for("notice", LIMIT, |sidecar| {
        sidecar.state().is_ok_and(|state| state["tampered"] == true && state["ready"] == false)
    })?;
    let told = || mesh.control_metrics().ok().filter(|metrics| reports(metrics) == 1.0).map(drop);
    wait_until(LIMIT, told).ok_or_else(|| format!("not told: {}", sidecar.log_tail()))?;
    let reported = opened.elapsed();
    let gone = || sidecar.log_tail().contains("no key is left in memory").then_some(());
    wait_until(LIMIT, gone).ok_or_else(|| format!("keys stay: {}", sidecar.log_tail()))?;
    println!(
        "the open stream ended after {cut:?}, the report was seen after {reported:?}, no key after {:?}",
        opened.elapsed()
    );
    assert!(!memory::holds(pid, &tls)?, "the key for TLS is in memory");
    assert!(!memory::holds(pid, &signing)?, "the key for messages is in memory");
    assert_eq!(files(&state)?, ["tampered"]);
    assert!(transcript(&events)?.exchanges[0].timing.events_ms.len() < 100_000);
    drop(load);

    // What the app sends is refused, and nobody sees it in clear.
    for _ in 0..3 {
        let answer = get(from, stage.place(REST), "/canary-of-the-tampered");
        assert!(answer.is_err(), "answered: {answer:?}");
    }
    let report = tap.report()?;
    assert_eq!((report.lost, report.sightings.len()), (0, 0), "in clear: {:?}", report.sightings);

    // The mesh knows.
    let revoked = signet(&stage, &mesh, &["revoke", "--list"])?;
    let of_client = |entry: &&Value| entry["tampered"] == CLIENT;
    let entry = revoked["revocations"].as_array().and_then(|list| list.iter().find(of_client));
    let entry = entry.ok_or_else(|| format!("not on the list: {revoked}"))?;
    assert!(entry["reason"].as_str().is_some_and(|reason| reason.starts_with("tampered: ")), "{entry}");
    let check = signet(&stage, &mesh, &["check"])?;
    let is_told = |finding: &Value| finding["id"] == "proxy-tampered" && finding["severity"] == "error";
    assert!(check["checks"].as_array().is_some_and(|checks| checks.iter().any(is_told)), "{check}");
    assert_eq!(server.state()?["ready"], true, "others go on");

    // It does not come back: by a restart, by a quiet sensor, or with the token it had.
    fs::write(&sensor, "0\n")?;
    sidecar.begin()?;
    let refused = sidecar.process().ok_or("no process")?.wait(LIMIT)?;
    assert_eq!(refused.code(), Some(64), "{}", sidecar.log_tail());
    assert!(sidecar.log_tail().contains("this device was tampered with"), "{}", sidecar.log_tail());
    fs::remove_file(state.join("tampered"))?;
    sidecar.begin()?;
    let is_refused = || sidecar.log_tail().contains("the control plane refused").then_some(());
    wait_until(LIMIT, is_refused).ok_or_else(|| format!("its token is good: {}", sidecar.log_tail()))?;
    assert_ne!(sidecar.state()?["ready"], true);
    fs::write(sidecar.folder().join("token"), mesh.token("client")?)?;
    sidecar.restart()?;
    sidecar.wait_until_known(stage.place(REST))?;
    assert_eq!(get(from, stage.place(REST), "/api")?.status(), 200, "let in by an operator");
    Ok(())
}

/// The control plane is away when it happens: nobody can be told, and the keys go all the same.
pub(super) fn tampering_destroys_the_keys_though_nobody_can_be_told() -> TestResult {
    let stage = Stage::new()?;
    let mut mesh = Mesh::start(&stage.cloud, TRUST_DOMAIN)?;
    mesh.apply("mesh.yaml", &yaml())?;
    let sensor = mesh.folder().join("sensor");
    let flags = ["--tamper-file", sensor.to_str().ok_or("an odd folder")?];
    let mut sidecar = mesh.sidecar(&stage.client, "client", with_flags(&flags))?;
    let state = sidecar.folder().join("state");
    let pid = sidecar.process().ok_or("no process")?.id();
    let tls = memory::forms(&fs::read_to_string(state.join("tls.pem"))?)?;
    mesh.kill_control_plane();
    fs::write(&sensor, "")?;
    let gone = || sidecar.log_tail().contains("no key is left in memory").then_some(());
    wait_until(LIMIT, gone).ok_or_else(|| format!("keys stay: {}", sidecar.log_tail()))?;
    assert!(sidecar.log_tail().contains("the control plane could not be told"), "{}", sidecar.log_tail());
    assert!(!memory::holds(pid, &tls)?, "the key is in memory");
    assert_eq!(files(&state)?, ["tampered"]);
    // Opened while it was off: the file says so before a key is read.
    fs::remove_file(state.join("tampered"))?;
    fs::write(state.join("tls.pem"), "a key")?;
    sidecar.begin()?;
    assert_eq!(sidecar.process().ok_or("no process")?.wait(LIMIT)?.code(), Some(64));
    assert_eq!(files(&state)?, ["tampered"]);
    Ok(())
}

/// Cutting the sensor's wire is tampering; stopping the machine, which ends the sensor's program too, is not.
pub(super) fn end_of_a_tamper_command_is_tampering_unless_the_sidecar_is_stopped_too() -> TestResult {
    let stage = Stage::new()?;
    let mesh = Mesh::start(&stage.cloud, TRUST_DOMAIN)?;
    mesh.apply("mesh.yaml", &yaml())?;
    let wire = mesh.folder().join("wire");
    mkfifo(&wire, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let command = format!("cat {}", wire.display());
    let mut sidecar =
        mesh.begin_sidecar(&stage.client, "client", with_flags(&["--tamper-command", &command]))?;
    // As long as nobody reads it, it cannot be opened.
    let open = || File::options().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&wire).ok();
    let whole = wait_until(LIMIT, open).ok_or("the command was not started")?;
    sidecar.wait_until_ready()?;
    let state = sidecar.folder().join("state");
    sidecar.process().ok_or("no process")?.terminate()?;
    drop(whole);
    assert_eq!(sidecar.terminate(LIMIT)?, Some(0), "{}", sidecar.log_tail());
    assert!(state.join("tls.pem").exists(), "its keys are there");

    sidecar.begin()?;
    let whole = wait_until(LIMIT, open).ok_or("the command was not started")?;
    sidecar.wait_until_ready()?;
    drop(whole);
    sidecar
        .wait_for("notice", LIMIT, |sidecar| sidecar.state().is_ok_and(|state| state["tampered"] == true))?;
    wait_until(LIMIT, || (files(&state).ok()? == ["tampered"]).then_some(())).ok_or("its keys stay")?;
    let marker = fs::read_to_string(state.join("tampered"))?;
    assert!(marker.starts_with("the tamper command ended"), "{marker}");

    // A sensor that cannot be started is a setting, and destroys nothing.
    let broken = with_flags(&["--tamper-command", "/nonexistent/sensor"]);
    let server = mesh.begin_sidecar(&stage.server, "server", broken)?;
    assert_eq!(server.process().ok_or("no process")?.wait(LIMIT)?.code(), Some(64), "{}", server.log_tail());
    assert!(!server.folder().join("state").join("tampered").exists());
    Ok(())
}

fn reports(metrics: &Metrics) -> f64 {
    metrics.sum("signet_control_tampering_reports_total", &["outcome=\"ok\""])
}

fn files(directory: &Path) -> Result<Vec<String>, Failure> {
    let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = entries.collect::<Result<Vec<_>, Failure>>()?;
    names.sort();
    Ok(names)
}

/// What a command of the operator's prints as JSON, whatever its exit code.
fn signet(stage: &Stage, mesh: &Mesh, arguments: &[&str]) -> Result<Value, Failure> {
    let socket = format!("unix:{}", mesh.socket().display());
    let asked = program(arguments).args(["-o", "json", "--control-plane", &socket]);
    let asked = stage.cloud.namespace().start(asked)?;
    asked.wait(LIMIT)?;
    Ok(serde_json::from_str(&asked.output())?)
}
