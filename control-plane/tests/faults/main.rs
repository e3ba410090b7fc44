//! A disk that fails at random: system calls of the control plane that write, sync and rename are made to fail by libfiu, and the
//! process is killed in between. Nothing acknowledged is lost, nothing goes back, and no other authority appears.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test, also in its helpers")]
#![allow(clippy::disallowed_methods, reason = "tests go by the machine's clock")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use signet_sync::proto::admin::{RotateRequest, RotationTarget};

use crate::harness::{MESH, Server, TRUST_DOMAIN, assert_nothing_went_back, command, workload};

#[allow(dead_code, reason = "not all of it is needed here")]
#[path = "../process/harness.rs"]
mod harness;

/// Starts on the failing disk, each with another fault.
const STARTS: usize = 25;
/// Changes that are asked for in each.
const CHANGES: usize = 12;
/// What fails, one for each start in turn: the error is the one that the name stands for in libfiu's POSIX library, which
/// picks among those that the call can have.
const FAULTS: [&str; 5] = [
    "posix/io/sync/fsync",
    "posix/io/sync/fdatasync",
    "posix/io/rw/pwrite",
    "posix/io/dir/rename",
    "posix/io/sync/*",
];

/// The control plane, where each call of this kind fails with a chance of one in `often`.
fn failing(state: &Path, fault: &str, often: u32) -> Command {
    let plain = command(state);
    let chance = 1.0 / f64::from(often);
    let mut fiu = Command::new("fiu-run");
    fiu.args(["-x", "-c", &format!("enable_random name={fault},probability={chance}")])
        .arg(plain.get_program())
        .args(plain.get_args())
        .env("SIGNET_LOG", "off")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    fiu
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_whose_writes_syncs_and_renames_fail_loses_nothing_that_was_acknowledged() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(state.path());
    server.apply(MESH).await;
    let mut before = server.info().await;
    server.kill();
    let (mut acknowledged, mut refused) = (BTreeSet::new(), 0);
    let mut not_started = 0;
    for start in 0..STARTS {
        let fault = FAULTS[start % FAULTS.len()];
        match Server::try_spawn(failing(state.path(), fault, 8)) {
            Err(reason) => {
                println!("{fault}: {}", reason.trim());
                assert!(!reason.contains("panicked"), "{fault}: {reason}");
                not_started += 1;
            }
            Ok(server) => {
                for change in 0..CHANGES {
                    let name = format!("w{start}-{change}");
                    match server.try_apply(&workload(&name)).await {
                        Ok(answer) => {
                            assert!(answer.diagnostics.is_empty());
                            acknowledged.insert(name);
                        }
                        Err(_) => refused += 1,
                    }
                    if change == CHANGES / 2 {
                        // Keys are written by files and renames.
                        let request = RotateRequest {
                            target: RotationTarget::Issuer.into(),
                            trust_domain: TRUST_DOMAIN.to_owned(),
                            ..RotateRequest::default()
                        };
                        let _ = server.operator().await.rotate(request).await;
                    }
                }
                server.kill();
            }
        }
        // On a disk that works again.
        let server = Server::start(state.path());
        let stored = server.workloads().await;
        let lost: Vec<_> = acknowledged.difference(&stored).collect();
        assert!(lost.is_empty(), "{fault} lost {lost:?}");
        let after = server.info().await;
        assert_nothing_went_back(&before, &after);
        before = after;
        server.kill();
    }
    println!("{} acknowledged, {refused} refused, {not_started} of {STARTS} not started", acknowledged.len());
    assert!(!acknowledged.is_empty() && refused > 0, "the faults did not come to pass");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_beginning_on_a_failing_disk_makes_one_authority_or_none() {
    let mut not_started = 0;
    for attempt in 0..STARTS {
        let state = tempfile::tempdir().unwrap();
        let fault = FAULTS[attempt % FAULTS.len()];
        let begun = match Server::try_spawn(failing(state.path(), fault, 12)) {
            Err(reason) => {
                assert!(!reason.contains("panicked"), "{fault}: {reason}");
                println!("{fault}: {}", reason.trim());
                not_started += 1;
                None
            }
            Ok(server) => {
                let begun = server.info().await.root_fingerprints;
                server.kill();
                Some(begun)
            }
        };
        // Whatever was left half done is taken up or begun anew; what was once in force stays.
        let again = Server::start(state.path());
        let roots = again.info().await.root_fingerprints;
        assert_eq!(roots.len(), 1, "{fault}");
        assert!(begun.is_none_or(|begun| begun == roots), "{fault}: another authority");
        again.apply(MESH).await;
        again.kill();
        assert_eq!(Server::start(state.path()).info().await.root_fingerprints, roots);
    }
    println!("{not_started} of {STARTS} not started");
    assert!(not_started > 0, "the faults did not come to pass");
}
