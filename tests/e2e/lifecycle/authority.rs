//! Issuer and root are replaced under load, with the control plane killed in every phase; and at once.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use signet_cli::lab::Namespace;
use signet_cli::lab::mesh::intruder::{Caller, Draft, Identity, inside};
use signet_cli::lab::mesh::{Mesh, Sidecar, app, client, load_report, wait_until};
use signet_cli::lab::runner::TestResult;
use signet_identity::{Fingerprint, SigningSvid, TlsSvid};
use signet_sync::proto::admin::{RotationOutcome, RotationPhase, RotationState, RotationTarget};

use crate::protocols::http::get;
use crate::protocols::stage::{CLIENT_MAY_ALL, Failure, Stage, connect, manifests};

const REST: u16 = 8201;
const BYTES: u16 = 3306;
/// How long one rotation may take here: its control plane is killed three times, and after each time proxies pause up to
/// ten seconds; the instance that nobody holds any more is waited for, too.
const ROTATION_LIMIT: Duration = Duration::from_secs(180);

pub(super) fn issuer_and_root_rotate_twice_under_load_and_kills_and_no_call_or_stream_breaks() -> TestResult {
    let stage = Stage::new()?;
    let _apps = [app(&stage.server, &["rest"], &[REST])?, app(&stage.server, &["greeter"], &[BYTES])?];
    let ports = format!("ports: [{{port: {REST}, protocol: http}}, {{port: {BYTES}}}]");
    let mut meshed = stage.mesh(&manifests("", &ports, CLIENT_MAY_ALL), &[REST, BYTES])?;
    // It has no sidecar, and speaks for itself.
    let bare = stage.host.container("bare")?;
    let bare = bare.namespace();
    let mut bytes = BufReader::new(connect(stage.client.namespace(), stage.place(BYTES))?);
    echo(&mut bytes, "220 greeter ready\r\n", "")?;
    let to = stage.place(REST).to_string();
    let load = client(
        stage.client.namespace(),
        &[
            "load",
            "--to",
            &to,
            "--path",
            "/api",
            "--seconds",
            "3600",
            "--rate",
            "50",
            "--kept",
            "4",
            "--fresh",
            "2",
        ],
    )?;
    let mut seen = vec![issuers(&meshed.server)?];
    for target in [RotationTarget::Issuer, RotationTarget::Root, RotationTarget::Issuer, RotationTarget::Root]
    {
        let before = meshed.mesh.rotation()?;
        let mut left_behind = enrolled(bare, &meshed.mesh)?;
        assert!(is_served(bare, stage.place(REST), &left_behind));
        rotate_with_kills(&mut meshed.mesh, target)?;
        let after = meshed.mesh.rotation()?;
        assert_eq!(after.last_outcome(), RotationOutcome::Completed);
        assert_ne!(after.issuer, before.issuer);
        assert_eq!(after.root != before.root, target == RotationTarget::Root);
        for sidecar in [&meshed.server, &meshed.client] {
            // Both certificates of both sides, as they lie on their disks.
            let own = issuers(sidecar)?;
            assert_eq!(own, [after.issuer.clone(), after.issuer.clone()], "{}", sidecar.workload());
        }
        // It would believe the server; it is the server that does not believe it.
        let fresh = enrolled(bare, &meshed.mesh)?;
        assert!(is_served(bare, stage.place(REST), &fresh));
        left_behind.bundle = fresh.bundle;
        // The last anchors are still on their way: the control plane was killed as soon as they were made.
        let refused = || (!is_served(bare, stage.place(REST), &left_behind)).then_some(());
        let refused = wait_until(ROTATION_LIMIT, refused);
        assert!(refused.is_some(), "a certificate of the retired {target:?} is accepted");
        let own = issuers(&meshed.server)?;
        assert!(!seen.contains(&own), "an issuer came back");
        seen.push(own);
        echo(&mut bytes, "250 still here\n", "still here\n")?;
    }
    load.terminate()?;
    let report = load_report(&load)?;
    println!("{} calls, {} failed, p99 {} ms, 4 rotations", report.ok, report.failed, report.p99_ms);
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    assert!(report.ok > 100, "{} calls are no load", report.ok);
    echo(&mut bytes, "250 still here\n", "still here\n")
}

/// Begins a rotation and kills the control plane in each phase it is found in, and once it is over.
fn rotate_with_kills(mesh: &mut Mesh, target: RotationTarget) -> TestResult {
    let number = mesh.rotate(target, false)?.number;
    let mut killed_in = Vec::new();
    let over = |state: &RotationState| state.last_number == number;
    let mut look = || -> Result<Option<()>, Failure> {
        let state = mesh.rotation()?;
        let phase = state.phase();
        let is_new = !killed_in.contains(&phase);
        if is_new {
            killed_in.push(phase);
            mesh.kill_control_plane();
            mesh.start_control_plane()?;
        }
        Ok((over(&state) && !is_new).then_some(()))
    };
    let mut failed = None;
    let done = wait_until(ROTATION_LIMIT, || match look() {
        Ok(done) => done,
        Err(failure) => {
            failed = Some(failure);
            Some(())
        }
    });
    if let Some(failure) = failed {
        return Err(failure);
    }
    assert!(done.is_some(), "the rotation is not over: {:?}", mesh.rotation()?);
    println!("{target:?}: killed in {killed_in:?}");
    assert!(killed_in.len() >= 2 && killed_in.contains(&RotationPhase::Unspecified), "{killed_in:?}");
    Ok(())
}

pub(super) fn emergency_cuts_what_is_open_under_the_old_root_and_what_was_stolen_is_worth_nothing()
-> TestResult {
    let stage = Stage::new()?;
    let _apps = [app(&stage.server, &["rest"], &[REST])?, app(&stage.server, &["greeter"], &[BYTES])?];
    let ports = format!("ports: [{{port: {REST}, protocol: http}}, {{port: {BYTES}}}]");
    let meshed = stage.mesh(&manifests("", &ports, CLIENT_MAY_ALL), &[REST, BYTES])?;
    let bare = stage.host.container("bare")?;
    let bare = bare.namespace();
    let token = meshed.mesh.token("client")?;
    let mut stolen = enrolled(bare, &meshed.mesh)?;
    assert!(is_served(bare, stage.place(REST), &stolen));
    let mut bytes = BufReader::new(connect(stage.client.namespace(), stage.place(BYTES))?);
    echo(&mut bytes, "220 greeter ready\r\n", "")?;

    let state = meshed.mesh.rotate(RotationTarget::Root, true)?;
    assert_eq!(state.last_outcome(), RotationOutcome::Emergency);
    // The end of the stream is what the app sees of it; it reads until then.
    let mut line = String::new();
    let end = bytes.read_line(&mut line);
    assert!(end.is_err() || line.is_empty(), "the open stream goes on: {line:?}");
    for sidecar in [&meshed.server, &meshed.client] {
        let own = wait_until(ROTATION_LIMIT, || {
            issuers(sidecar).ok().filter(|own| own.iter().all(|issuer| *issuer == state.issuer))
        });
        assert!(own.is_some(), "{} has no certificate of the new root", sidecar.workload());
    }
    let served = wait_until(ROTATION_LIMIT, || {
        let answer = get(stage.client.namespace(), stage.place(REST), "/api").ok()?;
        (answer.status() == 200).then_some(())
    });
    assert!(served.is_some(), "those who were connected are served again");
    stolen.bundle = enrolled(bare, &meshed.mesh)?.bundle;
    assert!(
        !is_served(bare, stage.place(REST), &stolen),
        "a certificate of the root that was given up is accepted"
    );
    let late = Identity::enrol(bare, meshed.mesh.address(), token);
    assert!(late.is_err(), "a token that pins the root that was given up is good");
    Ok(())
}

/// The fingerprint of the issuer of both certificates that a sidecar keeps.
pub(super) fn issuers(sidecar: &Sidecar) -> Result<[String; 2], Failure> {
    let state = sidecar.folder().join("state");
    let tls = TlsSvid::from_pem(&fs::read(state.join("tls.pem"))?)?;
    let signing = SigningSvid::from_pem(&fs::read(state.join("signing.pem"))?)?;
    Ok([&tls.chain, &signing.chain].map(|chain| Fingerprint::of(&chain[1]).to_string()))
}

/// Another instance of the client's identity.
fn enrolled(from: &Namespace, mesh: &Mesh) -> Result<Identity, Failure> {
    Ok(Identity::enrol(from, mesh.address(), mesh.token("client")?)?)
}

/// Whether the server's sidecar takes a request of this identity, on a connection of its own.
fn is_served(from: &Namespace, to: SocketAddr, identity: &Identity) -> bool {
    let identity = identity.clone();
    let called = inside(from, move || async move {
        let mut caller = Caller::open(&identity, to).await?;
        let request = caller.sign(&Draft::new("GET", "/api", "server"))?;
        Ok(caller.call(&request).await?.status)
    });
    called.is_ok_and(|status| status == 200)
}

fn echo(stream: &mut BufReader<TcpStream>, expected: &str, said: &str) -> TestResult {
    stream.get_mut().write_all(said.as_bytes())?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    assert_eq!(line, expected);
    Ok(())
}
