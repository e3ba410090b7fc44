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

/// The proxies whose capture rules a report calls missing.
fn without_rules(report: &Value) -> Vec<&str> {
    let proxies = report["proxies"].as_array().into_iter().flatten();
    let missing = |proxy: &&Value| {
        let mut checks = proxy["checks"].as_array().into_iter().flatten();
        checks.any(|check| check["name"] == "rules in force" && check["ok"] == false)
    };
    proxies.filter(missing).filter_map(|proxy| proxy["spiffe_id"].as_str()).collect()
}

/// Exit code and report.
fn check(stage: &Stage, mesh: &Mesh) -> Result<(Option<i32>, Value), Failure> {
    let socket = mesh.socket();
    let program = program(&["check", "-o", "json", "--control-plane"]).args([socket.as_os_str()]);
    let running = stage.cloud.namespace().start(program)?;
    let status = running.wait(LIMIT)?;
    Ok((status.code(), serde_json::from_str(&running.output())?))
}
