//! The demonstration, told in order.

use std::collections::BTreeMap;
use std::time::Instant;

use super::agents::{Agents, STRANGER};
use super::checks::calls::{self, CALLS, CANARIES, Tally};
use super::checks::{CheckError, forgery, outage, policy, rotation, wire};
use super::report::{Outcome, Report};
use crate::lab::mesh::{Mesh, MeshError, Setup, Sidecar};

/// The manifests of the demonstration's mesh.
pub(super) const MANIFESTS: &str = include_str!("mesh.yaml");
/// The trust domain they are for.
pub(super) const TRUST_DOMAIN: &str = "mf2c.example";

/// The machines and their mesh.
pub(super) struct Stage {
    // Dropped first: sidecars and control plane end before the networks they are in.
    pub(super) sidecars: BTreeMap<&'static str, Sidecar>,
    pub(super) mesh: Mesh,
    pub(super) agents: Agents,
}

/// Tells the whole story. What cannot go on is in the report too.
pub(super) fn tell(report: &mut Report) -> Option<Stage> {
    match tell_all(report) {
        Ok(stage) => Some(stage),
        Err(error) => {
            report.broken("the demonstration runs to its end", &error);
            None
        }
    }
}

fn tell_all(report: &mut Report) -> Result<Stage, CheckError> {
    report.say("Two agents and a cloud node, each with a network of its own, on this machine alone.");

    report.heading("Without the mesh");
    let agents = Agents::build()?;
    report.check("the apps run, with no capability at all", || agents.powerless());
    let tap = agents.tap(&CANARIES)?;
    let plain = CALLS.iter().map(|call| call.make(&agents)).collect::<Result<Vec<_>, _>>()?;
    report.check("every app answers its client", || Ok::<_, MeshError>(calls::answered(&plain)));
    report.check("a packet tap between the agents reads along", || {
        Ok::<_, CheckError>(wire::reads_everything(&tap.report()?))
    });
    drop(tap);

    report.heading("The same apps and clients, with a sidecar beside each");
    let started = Instant::now();
    // From the first packet of the mesh on.
    let tap = agents.tap(&CANARIES)?;
    let mesh = Mesh::start(&agents.cloud, TRUST_DOMAIN)?;
    mesh.apply("mesh.yaml", MANIFESTS)?;
    let sidecars = start_sidecars(&agents, &mesh)?;
    let mut stage = Stage { sidecars, mesh, agents };
    report.check("control plane, identities, policy, capture are in place", || {
        Ok::<_, MeshError>(Outcome::holds(started.elapsed().as_secs_f64(), "s"))
    });
    let before = stage.tally()?;
    let mut meshed = Vec::new();
    for (call, plain) in CALLS.iter().zip(&plain) {
        let transcript = call.make(&stage.agents)?;
        report.check(&format!("{}: as without", call.name), || {
            Ok::<_, MeshError>(calls::same(plain, &transcript))
        });
        meshed.push(transcript);
    }
    report.check("every message was signed by its sender and verified", || {
        calls::signed(before, &meshed, || stage.tally())
    });
    report.check("the packet tap reads nothing", || Ok::<_, CheckError>(wire::reads_nothing(&tap.report()?)));
    report.check("nothing between the agents is in clear", || {
        Ok::<_, CheckError>(wire::is_all_tls(&tap.report()?))
    });
    drop(tap);
    report.check("the first event of a stream is not held back", || {
        Ok::<_, MeshError>(calls::first_event(&plain, &meshed))
    });
    report
        .check("a server that speaks first waits for no timeout", || calls::greeting(&stage.agents, &plain));

    forgery::tell(report, &stage)?;
    policy::tell(report, &stage);
    rotation::tell(report, &stage);
    outage::tell(report, &mut stage);
    Ok(stage)
}

fn start_sidecars(agents: &Agents, mesh: &Mesh) -> Result<BTreeMap<&'static str, Sidecar>, MeshError> {
    let begin = |workload| {
        Ok((workload, mesh.begin_sidecar(agents.container(workload), workload, Setup::default())?))
    };
    let sidecars = agents.workloads().map(begin).collect::<Result<BTreeMap<_, _>, MeshError>>()?;
    for sidecar in sidecars.values() {
        sidecar.wait_until_ready()?;
    }
    for call in &CALLS {
        if let Some(sidecar) = sidecars.get(call.from) {
            sidecar.wait_until_known(call.address(agents))?;
        }
    }
    Ok(sidecars)
}

impl Stage {
    /// What all sidecars have counted.
    pub(super) fn tally(&self) -> Result<Tally, MeshError> {
        Tally::of(self.sidecars.values())
    }

    /// The sidecar of a workload.
    pub(super) fn sidecar(&self, workload: &str) -> &Sidecar {
        // Every workload asked for has one.
        &self.sidecars[workload]
    }

    /// The container without a sidecar.
    pub(super) fn stranger(&self) -> &crate::lab::Container {
        self.agents.container(STRANGER)
    }
}
