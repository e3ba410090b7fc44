//! `signet check` tells the truth about a running mesh.

use serde_json::Value;
use signet_cli::lab::mesh::{Mesh, Setup, program, wait_until};
use signet_cli::lab::runner::TestResult;

use crate::protocols::stage::{CLIENT_MAY_ALL, Failure, LIMIT, SERVER, Stage, TRUST_DOMAIN, manifests};

pub(super) fn check_names_the_proxy_whose_rules_were_removed_until_they_are_repaired() -> TestResult {
    let stage = Stage::new()?;
    let mesh = Mesh::start(&stage.cloud, TRUST_DOMAIN)?;
    mesh.apply("mesh.yaml", &manifests("", "ports: [{port: 8201}]", CLIENT_MAY_ALL))?;
    let (code, report) = check(&stage, &mesh)?;
    assert_eq!((code, &report["ok"]), (Some(1), &Value::Bool(false)), "nobody has enrolled: {report}");
    assert_eq!(of_mesh(&report, "proxy-enrolled"), Some("error"), "{report}");
    assert_eq!(of_mesh(&report, "root-expiry"), Some("ok"), "{report}");

    let server = mesh.sidecar(&stage.server, "server", Setup::default())?;
    let _client = mesh.sidecar(&stage.client, "client", Setup::default())?;
    // Both have reported once when they are well.
    let well = || check(&stage, &mesh).ok().filter(|(code, _)| *code == Some(0));
    let (_, report) = wait_until(LIMIT, well).ok_or_else(|| format!("{:?}", check(&stage, &mesh)))?;
    assert_eq!(report["ok"], true);
    assert_eq!(report["proxies"].as_array().map(Vec::len), Some(2), "{report}");

    // The guard repairs them again and again; somebody removes them again and again.
    let found = wait_until(LIMIT, || {
        let remove = program(&["proxy", "capture", "remove"]);
        let removed = stage.server.namespace().start(remove).ok()?.wait(LIMIT).ok()?;
        assert!(removed.success(), "{removed}");
        let (code, report) = check(&stage, &mesh).ok()?;
        // A directory that is on its way is a ✗ too, but not the one that is waited for.
        (code == Some(1) && !without_rules(&report).is_empty()).then_some(report)
    });
    let report = found.ok_or("check did not notice that the rules were removed")?;
    assert_eq!(without_rules(&report), [SERVER], "{report}");

    wait_until(LIMIT, well).ok_or_else(|| format!("not repaired: {:?}", check(&stage, &mesh)))?;
    assert_eq!(server.process().and_then(|process| process.status()), None);
    let verify = stage.server.namespace().start(program(&["proxy", "capture", "verify"]))?;
    assert!(verify.wait(LIMIT).is_ok(), "{}", verify.output());
    Ok(())
}

pub(super) fn check_warns_of_a_sidecar_that_is_missing_and_of_one_that_enrolled_anew() -> TestResult {
    let stage = Stage::new()?;
    let mesh = Mesh::start(&stage.cloud, TRUST_DOMAIN)?;
    mesh.apply("mesh.yaml", &manifests("", "ports: [{port: 8201}]", CLIENT_MAY_ALL))?;
    let mut server = mesh.sidecar(&stage.server, "server", Setup { forgetful: true, ..Setup::default() })?;
    // A sidecar's first reports can be from before its rules were looked at.
    let settled = |warnings: u64| {
        let is_it =
            |(code, report): &(Option<i32>, Value)| *code == Some(0) && report["warnings"] == warnings;
        wait_until(LIMIT, || check(&stage, &mesh).ok().filter(is_it))
            .ok_or_else(|| format!("{:?}", check(&stage, &mesh)))
    };
    // The client's workload has none; warnings fail only where that is asked for.
    let (_, report) = settled(1)?;
    assert_eq!(of_mesh(&report, "sidecar-missing"), Some("warning"), "{report}");
    let strict = checked(&stage, &mesh, &["--strict"])?;
    assert_eq!((strict.0, &strict.1["ok"]), (Some(1), &Value::Bool(false)), "{strict:?}");

    // Its volume is gone: it enrols as another instance, and the old one is no error.
    server.restart()?;
    let (_, report) = settled(2)?;
    let lost = &report["proxies"][0];
    assert_eq!((&lost["connected"], &lost["checks"][0]["id"]), (&false.into(), &"proxy-superseded".into()));
    assert_eq!(report["proxies"][1]["connected"], true, "{report}");

    // With nobody in its place it is one.
    server.kill();
    let missing = wait_until(LIMIT, || check(&stage, &mesh).ok().filter(|(code, _)| *code == Some(1)));
    let (_, report) = missing.ok_or("a sidecar that was killed is not missed")?;
    assert_eq!(report["proxies"][1]["checks"][0]["id"], "proxy-connected", "{report}");
    Ok(())
}

/// How bad the finding about the mesh as a whole with this id is.
fn of_mesh<'a>(report: &'a Value, id: &str) -> Option<&'a str> {
    let mut checks = report["checks"].as_array().into_iter().flatten();
    checks.find(|check| check["id"] == id)?["severity"].as_str()
}

/// The proxies whose capture rules a report calls missing.
fn without_rules(report: &Value) -> Vec<&str> {
    let proxies = report["proxies"].as_array().into_iter().flatten();
    let missing = |proxy: &&Value| {
        let mut checks = proxy["checks"].as_array().into_iter().flatten();
        checks.any(|check| check["id"] == "capture-rules" && check["severity"] == "error")
    };
    proxies.filter(missing).filter_map(|proxy| proxy["spiffe_id"].as_str()).collect()
}

/// Exit code and report.
fn check(stage: &Stage, mesh: &Mesh) -> Result<(Option<i32>, Value), Failure> {
    checked(stage, mesh, &[])
}

fn checked(stage: &Stage, mesh: &Mesh, flags: &[&str]) -> Result<(Option<i32>, Value), Failure> {
    let socket = mesh.socket();
    let program = program(&["check", "-o", "json"]).args(flags);
    let program = program.args(["--control-plane"]).args([socket.as_os_str()]);
    let running = stage.cloud.namespace().start(program)?;
    let status = running.wait(LIMIT)?;
    Ok((status.code(), serde_json::from_str(&running.output())?))
}
