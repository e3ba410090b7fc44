//! Sidecars on their own: as long as policy lets them, as long as their certificates last, and back again.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use signet_cli::lab::mesh::{Sidecar, app, wait_until};
use signet_cli::lab::runner::TestResult;
use signet_identity::Fingerprint;

use super::drill::{DAY, Drill};
use crate::protocols::http::get;
use crate::protocols::stage::{CLIENT_MAY_ALL, Failure, LIMIT, Meshed, Stage, manifests};

const PORT: u16 = 8201;
/// How long a sidecar may take to find a control plane that is back.
const RETURN_LIMIT: Duration = Duration::from_secs(60);

fn port() -> String {
    format!("ports: [{{port: {PORT}, protocol: http}}]")
}

/// Status, and the problem document if it is one.
fn call(stage: &Stage, path: &str) -> Result<(u16, Value), Failure> {
    let answer = get(stage.client.namespace(), stage.place(PORT), path)?;
    Ok((answer.status(), serde_json::from_slice(&answer.body).unwrap_or_default()))
}

/// Both sidecars with nobody to ask, `offset` seconds later by their machines' clocks, after a start of the machine: what
/// was kept of the clock's own is of another start.
fn alone(meshed: &mut Meshed, drills: &[Drill; 2], offset: i64) -> Result<(), Failure> {
    meshed.mesh.kill_control_plane();
    for (sidecar, drill) in [&mut meshed.server, &mut meshed.client].into_iter().zip(drills) {
        sidecar.kill();
        drill.set(offset)?;
        drill.forget_the_clock(sidecar)?;
        sidecar.begin()?;
    }
    Ok(())
}

fn state(sidecar: &Sidecar, field: &str) -> Value {
    sidecar.state().map_or(Value::Null, |state| state[field].clone())
}

/// The control plane's word is on disk: what a start without it needs.
fn wait_until_saved(sidecar: &Sidecar) -> TestResult {
    let saved = sidecar.folder().join("state").join("freshness.pb");
    wait_until(LIMIT, || saved.exists().then_some(())).ok_or("the control plane's word was not saved")?;
    Ok(())
}

pub(super) fn cold_start_alone_serves_within_the_budget_and_then_what_is_marked_for_life_safety() -> TestResult
{
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let drills = [Drill::new()?, Drill::new()?];
    let rules = format!(
        "{CLIENT_MAY_ALL}\n    - {{from: [{{any: authenticated}}], to: [{{paths: [/api/alarm]}}], lifeSafety: true}}"
    );
    let mesh = "certificates: {app: {lifetime: 30d}}\n  offline: {app: {budget: 72h, then: life-safety}}";
    let mut meshed = super::drill::mesh(&stage, &drills, &manifests(mesh, &port(), &rules), &[PORT])?;
    for sidecar in [&meshed.server, &meshed.client] {
        wait_until_saved(sidecar)?;
    }
    let (allowed, _) = call(&stage, "/api")?;
    let (alarm, _) = call(&stage, "/api/alarm")?;
    assert_eq!(allowed, 200);

    // Two days later, by a clock that nothing contradicts: within the budget.
    alone(&mut meshed, &drills, 2 * DAY)?;
    meshed.server.wait_until_ready()?;
    meshed.client.wait_until_ready()?;
    assert_eq!(call(&stage, "/api")?.0, 200);

    // Four days later.
    alone(&mut meshed, &drills, 4 * DAY)?;
    meshed.server.wait_until_ready()?;
    meshed.client.wait_until_ready()?;
    let (status, problem) = call(&stage, "/api")?;
    assert_eq!((status, &problem["code"]), (503, &Value::from("policy-stale")), "{problem}");
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("last heard 3456") && detail.contains("the bound is 259200 s"), "{detail}");
    assert_eq!(call(&stage, "/api/alarm")?.0, alarm, "what is marked goes on");
    let metrics = meshed.client.metrics()?;
    assert_eq!(metrics.value("signet_policy_stale"), 1.0);
    assert_eq!(metrics.value("signet_policy_age_limit_seconds"), 259_200.0);
    assert!(metrics.value("signet_policy_age_seconds") >= 345_600.0);

    // Somebody answers again; nothing is started anew.
    for drill in &drills {
        drill.set(0)?;
    }
    meshed.mesh.start_control_plane()?;
    let served = || call(&stage, "/api").is_ok_and(|(status, _)| status == 200).then_some(());
    wait_until(RETURN_LIMIT, served).ok_or("not served again")?;
    Ok(())
}

pub(super) fn stale_policy_that_refuses_lets_nothing_pass_and_is_not_ready_until_confirmed() -> TestResult {
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let drills = [Drill::new()?, Drill::new()?];
    let mesh = "certificates: {app: {lifetime: 30d}}\n  offline: {app: {budget: 72h}}";
    let mut meshed = super::drill::mesh(&stage, &drills, &manifests(mesh, &port(), CLIENT_MAY_ALL), &[PORT])?;
    for sidecar in [&meshed.server, &meshed.client] {
        wait_until_saved(sidecar)?;
    }
    alone(&mut meshed, &drills, 4 * DAY)?;
    let stale =
        |sidecar: &Sidecar| state(sidecar, "policy_fresh") == false && state(sidecar, "ready") == false;
    meshed.server.wait_for("know that its policy is stale", LIMIT, stale)?;
    meshed.client.wait_for("know that its policy is stale", LIMIT, stale)?;
    let (status, problem) = call(&stage, "/api")?;
    assert_eq!((status, &problem["code"]), (503, &Value::from("policy-stale")), "{problem}");

    // Whoever takes the control plane's word away gains nothing by it.
    meshed.server.kill();
    fs::remove_file(meshed.server.folder().join("state").join("freshness.pb"))?;
    meshed.server.begin()?;
    meshed.server.wait_for("know that its policy is stale", LIMIT, stale)?;

    for drill in &drills {
        drill.set(0)?;
    }
    meshed.mesh.start_control_plane()?;
    meshed.server.wait_for("become ready", RETURN_LIMIT, |sidecar| state(sidecar, "ready") == true)?;
    meshed.client.wait_for("become ready", RETURN_LIMIT, |sidecar| state(sidecar, "ready") == true)?;
    assert_eq!(call(&stage, "/api")?.0, 200);
    Ok(())
}

pub(super) fn certificates_that_ended_offline_fail_closed_and_come_back_without_anybody() -> TestResult {
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let mesh = "certificates: {app: {lifetime: 8s, rejoin: 1h}}";
    let mut meshed = stage.mesh(&manifests(mesh, &port(), CLIENT_MAY_ALL), &[PORT])?;
    assert_eq!(call(&stage, "/api")?.0, 200);
    for sidecar in [&meshed.server, &meshed.client] {
        // What a device in the field has left.
        fs::remove_file(sidecar.folder().join("token"))?;
    }

    meshed.mesh.kill_control_plane();
    for sidecar in [&meshed.server, &meshed.client] {
        sidecar.wait_for("let its certificates go", RETURN_LIMIT, |sidecar| {
            state(sidecar, "identity").is_null() && state(sidecar, "ready") == false
        })?;
    }
    assert!(!call(&stage, "/api").is_ok_and(|(status, _)| status == 200), "served after the end");
    // Not even a start helps.
    meshed.server.begin()?;

    meshed.mesh.start_control_plane()?;
    let served = || call(&stage, "/api").is_ok_and(|(status, _)| status == 200).then_some(());
    wait_until(RETURN_LIMIT, served).ok_or("not served again")?;

    // One that was revoked meanwhile stays out.
    let client = meshed.mesh.proxies()?.into_iter().find(|proxy| proxy.spiffe_id.ends_with("/client"));
    let leaf: Fingerprint = client.ok_or("the client is not known")?.instance.parse()?;
    meshed.client.kill();
    meshed.mesh.revoke(leaf, "left on a train")?;
    meshed.client.begin()?;
    meshed.client.wait_for("be refused", RETURN_LIMIT, |sidecar| {
        let log = sidecar.log_tail();
        log.contains("revoked") || log.contains("no such instance is enrolled")
    })?;
    meshed
        .client
        .wait_for("let its certificates go", RETURN_LIMIT, |sidecar| state(sidecar, "ready") == false)?;
    assert!(!call(&stage, "/api").is_ok_and(|(status, _)| status == 200), "a revoked client is served");
    Ok(())
}

pub(super) fn certificates_that_ended_are_worth_nothing_where_policy_lets_nobody_back() -> TestResult {
    let stage = Stage::new()?;
    let mesh = "certificates: {app: {lifetime: 4s, rejoin: 0s}}";
    let mut meshed = stage.mesh(&manifests(mesh, &port(), CLIENT_MAY_ALL), &[PORT])?;
    fs::remove_file(meshed.server.folder().join("token"))?;
    meshed.mesh.kill_control_plane();
    meshed
        .server
        .wait_for("let its certificates go", RETURN_LIMIT, |sidecar| state(sidecar, "identity").is_null())?;
    meshed.mesh.start_control_plane()?;
    meshed.server.wait_for("be refused", RETURN_LIMIT, |sidecar| {
        sidecar.log_tail().contains("the certificate has expired")
    })?;
    assert_eq!(state(&meshed.server, "ready"), false);
    Ok(())
}
