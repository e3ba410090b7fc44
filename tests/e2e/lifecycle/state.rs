//! What is kept on disk is believed only as far as it proves itself.

use std::fs;
use std::path::Path;
use std::time::Duration;

use signet_cli::lab::mesh::{app, wait_until};
use signet_cli::lab::runner::TestResult;

use crate::protocols::http::get;
use crate::protocols::stage::{CLIENT_MAY_ALL, Failure, LIMIT, Stage, manifests, policy};

const PORT: u16 = 8201;
/// Where a sidecar keeps its sections, in its state directory.
const SECTIONS: &str = "sections";

fn yaml(rules: &str) -> String {
    manifests("", &format!("ports: [{{port: {PORT}, protocol: http}}]"), rules)
}

/// One bit of one byte, wherever it is.
pub(super) fn saved_policy_that_was_tampered_with_is_not_used() -> TestResult {
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let mut meshed = stage.mesh(&yaml(CLIENT_MAY_ALL), &[PORT])?;
    let is_served = || get(stage.client.namespace(), stage.place(PORT), "/api").is_ok_and(|answer| answer.status() == 200);
    assert!(is_served());
    meshed.mesh.kill_control_plane();
    meshed.server.restart()?;
    assert!(wait_until(LIMIT, || is_served().then_some(())).is_some(), "its state alone is enough");

    meshed.server.kill();
    let state = meshed.server.folder().join("state");
    let saved = files(&state)?;
    let sections: Vec<_> = saved.iter().filter(|path| path.to_string_lossy().contains(SECTIONS)).collect();
    assert!(!sections.is_empty(), "no saved sections among {saved:?}");
    for path in sections {
        let mut bytes = fs::read(path)?;
        let middle = bytes.len() / 2;
        *bytes.get_mut(middle).ok_or("an empty section was saved")? ^= 1;
        fs::write(path, bytes)?;
    }
    meshed.server.begin()?;
    let log = meshed.server.folder().join("log");
    let told = wait_until(LIMIT, || {
        let log = fs::read_to_string(&log).unwrap_or_default();
        let line = log.lines().find(|line| {
            (line.contains("ERROR") || line.contains("WARN")) && (line.contains("section") || line.contains("state"))
        })?;
        Some(line.to_owned())
    });
    assert!(told.is_some(), "it does not say what is wrong:\n{}", meshed.server.log_tail());
    println!("{}", told.unwrap_or_default());
    assert!(meshed.server.process().and_then(|process| process.status()).is_some() || !meshed.server.state()?["ready"].as_bool().unwrap_or(false));
    assert!(!is_served(), "a policy that nobody signed is in force");

    // What was lost comes again from the control plane.
    meshed.mesh.start_control_plane()?;
    meshed.server.restart()?;
    assert!(wait_until(LIMIT, || is_served().then_some(())).is_some(), "served again");
    Ok(())
}

/// The control plane comes back from an old copy of its state: what it permitted then was withdrawn since.
pub(super) fn policy_rolled_back_with_the_control_plane_is_refused() -> TestResult {
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let mut meshed = stage.mesh(&yaml(CLIENT_MAY_ALL), &[PORT])?;
    let status = || -> Option<u16> { get(stage.client.namespace(), stage.place(PORT), "/api").ok().map(|answer| answer.status()) };
    assert_eq!(status(), Some(200));
    let (kept, old) = (meshed.mesh.folder().join("control-plane"), meshed.mesh.folder().join("old"));
    meshed.mesh.kill_control_plane();
    copy(&kept, &old)?;
    meshed.mesh.start_control_plane()?;
    meshed.mesh.apply("closed.yaml", &policy("server-access", "", "[]"))?;
    let refused = || (status() == Some(403)).then_some(());
    assert!(wait_until(Duration::from_secs(60), refused).is_some(), "the newest policy is not in force");

    meshed.mesh.kill_control_plane();
    fs::remove_dir_all(&kept)?;
    copy(&old, &kept)?;
    // It may refuse to start on what is older than it has said; then there is nobody to roll the policy back.
    if meshed.mesh.start_control_plane().is_ok() {
        for sidecar in [&meshed.server, &meshed.client] {
            sidecar.wait_for("refuse the older policy", Duration::from_secs(60), |sidecar| {
                sidecar.state().is_ok_and(|state| state["link"]["refused_sections"].as_u64() > Some(0))
                    || sidecar.log_tail().contains("refused")
            })?;
        }
        println!("{}", meshed.server.state()?);
    }
    assert_eq!(status(), Some(403), "a policy that was withdrawn is in force again");
    meshed.server.restart()?;
    assert_eq!(status(), Some(403), "… after a restart");
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<std::path::PathBuf>, Failure> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
