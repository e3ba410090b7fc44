//! Certificates that live two seconds, under load: each is replaced at half-life, and no call notices.

use crate::demo::report::{Outcome, Report};
use crate::demo::story::Stage;
use crate::lab::mesh::{MeshError, client, load_report};

/// How long the load runs.
const SECONDS: u32 = 6;
/// Fewest rotations of both sides together in that time: one a second each, less one at each end.
const ROTATIONS_MIN: f64 = 8.0;
/// Fewest calls that count as load, on a slow and busy machine.
const CALLS_MIN: u64 = 100;

/// Makes the checks.
pub(in crate::demo) fn tell(report: &mut Report, stage: &Stage) {
    let mut rotations = 0.0;
    let load = load(stage, &mut rotations);
    report.check("certificates of both sides rotate each second under load", || {
        Ok::<_, MeshError>(
            Outcome::holds(rotations, "rotations in 6 s")
                .only_if(rotations >= ROTATIONS_MIN, || "too few".into()),
        )
    });
    report.check("no call fails while certificates rotate", || load);
}

fn load(stage: &Stage, rotations: &mut f64) -> Result<Outcome, MeshError> {
    let sides = [stage.sidecar("a-app"), stage.sidecar("b-app")];
    let address = stage.agents.published(9000);
    sides[1].wait_until_known(address)?;
    let count = || -> Result<f64, MeshError> {
        sides.iter().map(|side| Ok(side.metrics()?.value("signet_rotations_total"))).sum()
    };
    let before = count()?;
    let seconds = SECONDS.to_string();
    let address = address.to_string();
    let arguments = ["load", "--to", &address, "--path", "/api", "--seconds", &seconds];
    let report = load_report(&client(stage.agents.container("b-app").namespace(), &arguments)?)?;
    *rotations = count()? - before;
    Ok(Outcome::holds(report.ok as f64, "calls")
        .only_if(report.failed == 0, || format!("{} calls failed: {:?}", report.failed, report.failures))
        .only_if(report.ok >= CALLS_MIN, || format!("only {} calls", report.ok)))
}
