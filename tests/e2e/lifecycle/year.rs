//! The rotations of a year one after the other, with the control plane killed at random moments.
//!
//! One issuer each week and one root each quarter are `SIGNET_TEST_ROTATIONS=56`; without it there is one of each. A run prints
//! its seed, and `SIGNET_TEST_SEED` repeats its moments.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use signet_cli::lab::mesh::{app, client, load_report, wait_until};
use signet_cli::lab::runner::TestResult;
use signet_sync::proto::admin::{RotationOutcome, RotationTarget};

use super::authority::issuers;
use crate::protocols::stage::{CLIENT_MAY_ALL, Failure, Stage, manifests};

const PORT: u16 = 8201;
const ROTATIONS: u64 = 2;
/// Rotations of a quarter: an issuer each week, and a root.
const QUARTER: u64 = 14;
/// The latest moment of a kill after the operator's command, in milliseconds: two sidecars take about that long to follow.
const MOMENT_MAX: u64 = 1_500;
/// How long a rotation may take: sidecars whose control plane was killed pause up to ten seconds.
const ROTATION_LIMIT: Duration = Duration::from_secs(120);

pub(super) fn rotations_of_a_year_under_load_and_kills_at_random_moments_fail_no_call() -> TestResult {
    let rotations = number("SIGNET_TEST_ROTATIONS")?.unwrap_or(ROTATIONS);
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = number("SIGNET_TEST_SEED")?.unwrap_or_else(|| u64::from(since.subsec_nanos()));
    println!("SIGNET_TEST_SEED={seed} SIGNET_TEST_ROTATIONS={rotations}");
    let stage = Stage::new()?;
    let _app = app(&stage.server, &["rest"], &[PORT])?;
    let ports = format!("ports: [{{port: {PORT}, protocol: http}}]");
    let mut meshed = stage.mesh(&manifests("", &ports, CLIENT_MAY_ALL), &[PORT])?;
    let to = stage.place(PORT).to_string();
    let words = ["load", "--to", &to, "--path", "/api", "--seconds", "3600", "--rate", "50"];
    let load =
        client(stage.client.namespace(), &[words.as_slice(), &["--kept", "4", "--fresh", "2"]].concat())?;
    let begun = Instant::now();
    let mut killed_before_the_end = 0;
    for rotation in 0..rotations {
        let target = if rotation % QUARTER == 1 { RotationTarget::Root } else { RotationTarget::Issuer };
        let before = meshed.mesh.rotation()?;
        let number = meshed.mesh.rotate(target, false)?.number;
        let is_over = |mesh: &signet_cli::lab::mesh::Mesh| {
            mesh.rotation().is_ok_and(|state| state.last_number == number)
        };
        // At that moment, or as soon as all is done.
        let moment = Duration::from_millis(chance(seed, rotation) % MOMENT_MAX);
        let over = wait_until(moment, || is_over(&meshed.mesh).then_some(())).is_some();
        killed_before_the_end += u64::from(!over);
        meshed.mesh.kill_control_plane();
        meshed.mesh.start_control_plane()?;
        let over = wait_until(ROTATION_LIMIT, || is_over(&meshed.mesh).then_some(()));
        assert!(over.is_some(), "{rotation}: {target:?} is not over: {:?}", meshed.mesh.rotation()?);
        let after = meshed.mesh.rotation()?;
        assert_eq!(after.last_outcome(), RotationOutcome::Completed);
        assert_ne!(after.issuer, before.issuer);
        assert_eq!(after.root != before.root, target == RotationTarget::Root);
        for sidecar in [&meshed.server, &meshed.client] {
            let own = issuers(sidecar)?;
            assert_eq!(own, [after.issuer.clone(), after.issuer.clone()], "{}", sidecar.workload());
        }
    }
    load.terminate()?;
    let report = load_report(&load)?;
    println!(
        "{rotations} rotations in {} s, {killed_before_the_end} killed before their end: {} calls, {} failed, p99 {} ms",
        begun.elapsed().as_secs(),
        report.ok,
        report.failed,
        report.p99_ms,
    );
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    // Two rotations may be over within a second.
    assert!(report.ok > 20 * rotations, "{} calls are no load", report.ok);
    Ok(())
}

fn chance(seed: u64, number: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, number).hash(&mut hasher);
    hasher.finish()
}

fn number(variable: &str) -> Result<Option<u64>, Failure> {
    let Ok(text) = std::env::var(variable) else { return Ok(None) };
    Ok(Some(text.parse().map_err(|_| format!("{variable}={text} is no number"))?))
}
