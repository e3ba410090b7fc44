//! Machines without a clock, clocks that jump, and a control plane whose own clock is wrong.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use signet_cli::lab::Namespace;
use signet_cli::lab::mesh::{Mesh, Sidecar, app, client, load_report, wait_until};
use signet_cli::lab::runner::TestResult;

use super::drill::{DAY, Drill};
use crate::protocols::http::get;
use crate::protocols::stage::{CLIENT_MAY_ALL, Failure, LIMIT, Stage, manifests};

const PORT: u16 = 8201;
const RETURN_LIMIT: Duration = Duration::from_secs(60);

fn port() -> String {
    format!("ports: [{{port: {PORT}, protocol: http}}]")
}

/// What moves a clock from now back to a minute after the beginning of 1970.
fn to_1970() -> Result<i64, Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(60 - i64::try_from(now)?)
}

fn clock(sidecar: &Sidecar) -> Value {
    sidecar.state().map_or(Value::Null, |state| state["clock"].clone())
}

fn no_call_fails(from: &Namespace, to: SocketAddr) -> TestResult {
    let arguments = ["load", "--to", &to.to_string(), "--path", "/api", "--seconds", "3", "--rate", "100"];
    let report = load_report(&client(from, &arguments)?)?;
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    assert!(report.ok > 0, "no call was made");
    Ok(())
}

pub(super) fn machine_that_boots_in_1970_serves_from_its_state_and_takes_the_control_planes_time()
-> TestResult {
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let drills = [Drill::new()?, Drill::new()?];
    let mut meshed = super::drill::mesh(&stage, &drills, &manifests("", &port(), CLIENT_MAY_ALL), &[PORT])?;
    let saved = meshed.server.folder().join("state").join("freshness.pb");
    wait_until(LIMIT, || saved.exists().then_some(())).ok_or("the control plane's word was not saved")?;

    meshed.mesh.kill_control_plane();
    meshed.server.kill();
    drills[0].set(to_1970()?)?;
    drills[0].forget_the_clock(&meshed.server)?;
    meshed.server.restart()?;
    assert_eq!(clock(&meshed.server), "floor");
    no_call_fails(stage.client.namespace(), stage.place(PORT))?;
    assert!(meshed.server.metrics()?.value("signet_clock_skew_seconds") < -1e9);

    meshed.mesh.start_control_plane()?;
    meshed.server.wait_for("take the control plane's time", RETURN_LIMIT, |sidecar| {
        clock(sidecar) == "control-plane"
    })?;
    no_call_fails(stage.client.namespace(), stage.place(PORT))?;
    // Somebody sets the clock.
    drills[0].set(0)?;
    meshed.server.wait_for("believe its machine's clock", LIMIT, |sidecar| clock(sidecar) == "wall-clock")?;
    no_call_fails(stage.client.namespace(), stage.place(PORT))
}

pub(super) fn machine_without_a_clock_enrols_and_serves() -> TestResult {
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let drills = [Drill::new()?, Drill::new()?];
    for drill in &drills {
        drill.set(to_1970()?)?;
    }
    let meshed = super::drill::mesh(&stage, &drills, &manifests("", &port(), CLIENT_MAY_ALL), &[PORT])?;
    no_call_fails(stage.client.namespace(), stage.place(PORT))?;
    for sidecar in [&meshed.server, &meshed.client] {
        assert_eq!(clock(sidecar), "control-plane");
    }
    Ok(())
}

pub(super) fn wall_clock_that_jumps_during_traffic_changes_nothing_and_is_told() -> TestResult {
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let drills = [Drill::new()?, Drill::new()?];
    // Certificates that live so short that every jump falls among renewals.
    let yaml = manifests("certificates: {app: {lifetime: 10s}}", &port(), CLIENT_MAY_ALL);
    let meshed = super::drill::mesh(&stage, &drills, &yaml, &[PORT])?;
    let (from, to) = (stage.client.namespace(), stage.place(PORT));
    let began = std::time::Instant::now();
    let jumps = [("a day ahead", DAY), ("a day back", -DAY), ("1970", to_1970()?), ("2040", 13 * 365 * DAY)];
    for (jump, seconds) in jumps {
        for drill in &drills {
            drill.set(seconds)?;
        }
        for sidecar in [&meshed.server, &meshed.client] {
            sidecar.wait_for(&format!("notice that its clock jumped: {jump}"), LIMIT, |sidecar| {
                let off = sidecar.metrics().map_or(0.0, |metrics| metrics.value("signet_clock_skew_seconds"));
                clock(sidecar) == "control-plane" && (off - seconds as f64).abs() < 60.0
            })?;
        }
        no_call_fails(from, to)?;
    }
    for sidecar in [&meshed.server, &meshed.client] {
        let rotations = sidecar.metrics()?.value("signet_rotations_total");
        assert!(rotations >= 1.0, "nothing was renewed");
        // At half of ten seconds give or take a tenth, and once more: no storm.
        let most = began.elapsed().as_secs_f64() / 4.5 + 2.0;
        assert!(rotations <= most, "{rotations} renewals, {most} at most");
    }
    let told = || {
        let proxies = meshed.mesh.proxies().unwrap_or_default();
        let off = |proxy: &signet_sync::proto::admin::Proxy| {
            proxy.status.as_ref().is_some_and(|status| status.wall_ahead_ms > 12 * 365 * DAY * 1000)
        };
        (proxies.len() == 2 && proxies.iter().all(off)).then_some(())
    };
    wait_until(LIMIT, told).ok_or("the control plane was not told how far the clocks are off")?;
    for drill in &drills {
        drill.set(0)?;
    }
    meshed.server.wait_for("believe its machine's clock", LIMIT, |sidecar| clock(sidecar) == "wall-clock")?;
    no_call_fails(from, to)
}

/// Renewals with this outcome.
fn renewals(mesh: &Mesh, outcome: &str) -> f64 {
    let label = format!("outcome=\"{outcome}\"");
    mesh.control_metrics().map_or(0.0, |metrics| metrics.sum("signet_control_renewals_total", &[&label]))
}

pub(super) fn control_plane_whose_clock_jumps_issues_nothing_and_nobody_loses_what_holds() -> TestResult {
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let (drills, cloud) = ([Drill::new()?, Drill::new()?], Drill::new()?);
    let yaml = manifests("certificates: {app: {lifetime: 30s}}", &port(), CLIENT_MAY_ALL);
    let mesh = cloud.control_plane(&stage)?;
    let mut meshed = super::drill::with(&stage, mesh, &drills, &yaml, &[PORT])?;
    let (from, to) = (stage.client.namespace(), stage.place(PORT));
    for (offset, restart, code) in [(DAY, false, "clock-jumped"), (-DAY, true, "clock-behind")] {
        // Renewals are at least a fifth of a life apart: this one comes of the wrong clock.
        let (refused, renewed) = (renewals(&meshed.mesh, code), renewals(&meshed.mesh, "ok"));
        cloud.set(offset)?;
        if restart {
            meshed.mesh.kill_control_plane();
            meshed.mesh.start_control_plane()?;
        }
        let seen = || (renewals(&meshed.mesh, code) > refused).then_some(());
        wait_until(RETURN_LIMIT, seen).ok_or_else(|| format!("no renewal was refused as {code}"))?;
        no_call_fails(from, to)?;
        for sidecar in [&meshed.server, &meshed.client] {
            assert_eq!(clock(sidecar), "wall-clock", "the control plane's clock was followed");
        }
        cloud.set(0)?;
        let before = if restart { 0.0 } else { renewed };
        let again = || (renewals(&meshed.mesh, "ok") > before).then_some(());
        wait_until(RETURN_LIMIT, again).ok_or("nothing is renewed again")?;
        no_call_fails(from, to)?;
    }
    Ok(())
}

pub(super) fn message_refused_for_its_time_says_how_far_the_clocks_are_apart() -> TestResult {
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let drills = [Drill::new()?, Drill::new()?];
    let yaml = manifests("certificates: {app: {lifetime: 30d}}", &port(), CLIENT_MAY_ALL);
    let mut meshed = super::drill::mesh(&stage, &drills, &yaml, &[PORT])?;
    meshed.mesh.kill_control_plane();
    // The client was started anew by itself, with a clock that nothing contradicts.
    meshed.client.kill();
    drills[1].set(DAY)?;
    drills[1].forget_the_clock(&meshed.client)?;
    meshed.client.restart()?;
    let answer = get(stage.client.namespace(), stage.place(PORT), "/api")?;
    let problem: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    // The server's answer is as far off for the client as the request was for the server.
    assert_eq!((answer.status(), &problem["code"]), (502, &Value::from("response-unverified")), "{problem}");
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("the peer's clock is 864") && detail.contains("s behind"), "{detail}");
    assert!(meshed.server.metrics()?.refusals("signature-clock") >= 1);
    assert!(meshed.server.log_tail().contains("ahead_s=864"), "{}", meshed.server.log_tail());
    Ok(())
}
