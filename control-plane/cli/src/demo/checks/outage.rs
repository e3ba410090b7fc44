//! Without a control plane everything goes on as it was.

use std::time::{Duration, Instant};

use crate::demo::report::{Outcome, Report};
use crate::demo::story::Stage;
use crate::lab::mesh::{MeshError, client, load_report, wait_until};

/// How long calls run without a control plane.
const SECONDS: &str = "3";
/// How long sidecars may take to find a control plane that is back: their back-off grows to a minute, and after an outage
/// of a few seconds is still below ten.
const RETURN_LIMIT: Duration = Duration::from_secs(30);

/// Makes the checks.
pub(in crate::demo) fn tell(report: &mut Report, stage: &mut Stage) {
    report.heading("The control plane is killed");
    stage.mesh.kill_control_plane();
    report.check("calls go on, none fails", || calls(stage));
    report.check("a sidecar that is killed starts from what it has kept", || {
        let started = Instant::now();
        if let Some(sidecar) = stage.sidecars.get_mut("a-cimi") {
            sidecar.restart()?;
        }
        Ok::<_, MeshError>(Outcome::holds(started.elapsed().as_secs_f64(), "s"))
    });
    report.check("calls go on after that, none fails", || calls(stage));
    report.check("started again, it knows everybody: all are back", || comes_back(stage));
}

fn calls(stage: &Stage) -> Result<Outcome, MeshError> {
    let address = stage.agents.published(8201).to_string();
    let arguments = ["load", "--to", &address, "--path", "/api", "--seconds", SECONDS];
    let report = load_report(&client(stage.agents.container("b-lm-um").namespace(), &arguments)?)?;
    Ok(Outcome::holds(report.ok as f64, "calls")
        .only_if(report.failed == 0, || format!("{} calls failed: {:?}", report.failed, report.failures))
        .only_if(report.ok > 0, || "no call was made".into()))
}

fn comes_back(stage: &mut Stage) -> Result<Outcome, MeshError> {
    let started = Instant::now();
    stage.mesh.start_control_plane()?;
    let expected = stage.sidecars.len();
    let connected =
        || stage.mesh.proxies().map_or(0, |proxies| proxies.iter().filter(|proxy| proxy.connected).count());
    let all = wait_until(RETURN_LIMIT, || (connected() >= expected).then_some(()));
    Ok(Outcome::holds(started.elapsed().as_secs_f64(), "s")
        .only_if(all.is_some(), || format!("{} of {expected} came back", connected())))
}
