//! What is kept on disk is believed only as far as it proves itself.

use std::fs;
use std::path::Path;
use std::time::Duration;

use signet_cli::lab::mesh::intruder::{Caller, Draft, Identity, inside};
use signet_cli::lab::mesh::{Mesh, Setup, Sidecar, app, wait_until};
use signet_cli::lab::runner::TestResult;

use crate::protocols::http::get;
use crate::protocols::stage::{CLIENT_MAY_ALL, Failure, LIMIT, Stage, TRUST_DOMAIN, manifests, policy};

const PORT: u16 = 8201;
/// Where a sidecar keeps its sections, in its state directory.
const SECTIONS: &str = "sections.pb";

fn yaml(rules: &str) -> String {
    manifests("", &format!("ports: [{{port: {PORT}, protocol: http}}]"), rules)
}

pub(super) fn sidecar_killed_as_soon_as_it_is_ready_starts_again_on_its_own() -> TestResult {
    let stage = Stage::new()?;
    let mut mesh = Mesh::start(&stage.cloud, TRUST_DOMAIN)?;
    mesh.apply("mesh.yaml", &yaml(CLIENT_MAY_ALL))?;
    let mut sidecar = mesh.sidecar(&stage.server, "server", Setup::default())?;
    sidecar.kill();
    mesh.kill_control_plane();
    sidecar.restart()?;
    Ok(())
}

/// One bit of one byte, wherever it is.
pub(super) fn saved_policy_that_was_tampered_with_is_not_used() -> TestResult {
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let mut meshed = stage.mesh(&yaml(CLIENT_MAY_ALL), &[PORT])?;
    let is_served = || {
        get(stage.client.namespace(), stage.place(PORT), "/api").is_ok_and(|answer| answer.status() == 200)
    };
    assert!(is_served());
    let saved = meshed.server.folder().join("state").join(SECTIONS);
    wait_until(LIMIT, || saved.exists().then_some(())).ok_or("the sections were not saved")?;
    meshed.mesh.kill_control_plane();
    meshed.server.restart()?;
    assert!(wait_until(LIMIT, || is_served().then_some(())).is_some(), "its state alone is enough");

    meshed.server.kill();
    turn_a_bit(&saved, b"server-access")?;
    meshed.server.begin()?;
    wait_until_told(&meshed.server, "policy")?;
    assert!(!is_served(), "a policy that nobody signed is in force");
    assert_eq!(meshed.server.state()?["ready"], false);

    // What was lost comes again from the control plane.
    meshed.mesh.start_control_plane()?;
    meshed.server.restart()?;
    assert!(wait_until(LIMIT, || is_served().then_some(())).is_some(), "served again");
    Ok(())
}

/// Whoever damages what is kept about revocations must not bring the revoked back.
pub(super) fn revoked_certificate_stays_refused_on_tampered_state() -> TestResult {
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let mut mesh = Mesh::start(&stage.cloud, TRUST_DOMAIN)?;
    mesh.apply("mesh.yaml", &yaml(CLIENT_MAY_ALL))?;
    let mut server = mesh.sidecar(&stage.server, "server", Setup::default())?;
    let identity = Identity::enrol(stage.client.namespace(), mesh.address(), mesh.token("client")?)?;
    let is_served = || {
        let (identity, to) = (identity.clone(), stage.place(PORT));
        let called = inside(stage.client.namespace(), move || async move {
            let mut caller = Caller::open(&identity, to).await?;
            let request = caller.sign(&Draft::new("GET", "/api", "server"))?;
            Ok(caller.call(&request).await?.status)
        });
        called.is_ok_and(|status| status == 200)
    };
    assert!(is_served());
    mesh.revoke(identity.tls.fingerprint, "stolen")?;
    assert!(wait_until(LIMIT, || (!is_served()).then_some(())).is_some(), "revoked");
    let saved = server.folder().join("state").join(SECTIONS);
    let revoked = identity.tls.fingerprint.0;
    let has = || position(&fs::read(&saved).ok()?, &revoked).map(drop);
    wait_until(LIMIT, has).ok_or("the revocation was not saved")?;
    mesh.kill_control_plane();
    server.restart()?;
    assert!(!is_served(), "a restart forgets the revocation");

    server.kill();
    turn_a_bit(&saved, &revoked)?;
    server.begin()?;
    wait_until_told(&server, "revocations")?;
    // With the state it has it may serve others or nobody; it must have decided before this is asked.
    server.wait_for("answer", LIMIT, |server| {
        server.state().is_ok_and(|state| state["identity"].is_string())
    })?;
    assert!(!is_served(), "the revoked certificate is accepted again");
    Ok(())
}

/// Turns a bit of a saved section, where these bytes stand.
fn turn_a_bit(saved: &Path, at: &[u8]) -> TestResult {
    let mut bytes = fs::read(saved)?;
    let place = position(&bytes, at).ok_or("this was not saved")?;
    bytes[place] ^= 1;
    Ok(fs::write(saved, bytes)?)
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// The sidecar's log says that a section was refused.
fn wait_until_told(sidecar: &Sidecar, section: &str) -> TestResult {
    let log = sidecar.folder().join("log");
    let told = wait_until(LIMIT, || {
        let log = fs::read_to_string(&log).ok()?;
        let is_it = |line: &str| (line.contains("WARN") || line.contains("ERROR")) && line.contains(section);
        log.lines().any(is_it).then_some(())
    });
    assert!(told.is_some(), "it does not say that {section} was refused:\n{}", sidecar.log_tail());
    Ok(())
}

/// The control plane comes back from an old copy of its state: what it permitted then was withdrawn since.
pub(super) fn policy_rolled_back_with_the_control_plane_is_refused() -> TestResult {
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let mut meshed = stage.mesh(&yaml(CLIENT_MAY_ALL), &[PORT])?;
    let status = || -> Option<u16> {
        get(stage.client.namespace(), stage.place(PORT), "/api").ok().map(|answer| answer.status())
    };
    assert_eq!(status(), Some(200));
    let (kept, old) = (meshed.mesh.folder().join("control-plane"), meshed.mesh.folder().join("old"));
    meshed.mesh.kill_control_plane();
    copy(&kept, &old)?;
    meshed.mesh.start_control_plane()?;
    let permitted = policy_version(&meshed.client);
    meshed.mesh.apply("closed.yaml", &policy("server-access", "", "[]"))?;
    let arrived = || {
        let versions = [&meshed.server, &meshed.client].map(policy_version);
        versions.iter().all(|version| !version.is_empty() && *version != permitted).then_some(versions)
    };
    let newest = wait_until(Duration::from_secs(60), arrived).ok_or("the newest policy did not arrive")?;
    assert_eq!(status(), Some(403));

    meshed.mesh.kill_control_plane();
    fs::remove_dir_all(&kept)?;
    copy(&old, &kept)?;
    // It may refuse to start on what is older than it has said; then there is nobody to roll the policy back.
    if meshed.mesh.start_control_plane().is_ok() {
        let heard = || {
            let proxies = meshed.mesh.proxies().ok()?;
            let all = proxies.iter().filter(|proxy| proxy.connected && proxy.status.is_some()).count() == 2;
            all.then_some(proxies)
        };
        let proxies = wait_until(Duration::from_secs(60), heard).ok_or("the sidecars did not come back")?;
        println!("{proxies:?}");
        let versions = [&meshed.server, &meshed.client].map(policy_version);
        assert_eq!(versions, newest, "an older policy took the place of a newer one");
    }
    assert_eq!(status(), Some(403), "a policy that was withdrawn is in force again");
    meshed.server.restart()?;
    assert_eq!(status(), Some(403), "… after a restart");
    Ok(())
}

/// The version of the policy in force; empty when there is none.
fn policy_version(sidecar: &Sidecar) -> String {
    sidecar
        .state()
        .ok()
        .and_then(|state| Some(state["policy_version"].as_str()?.to_owned()))
        .unwrap_or_default()
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
