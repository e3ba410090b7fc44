//! What idle sidecars take, all together: real processes in networks of their own, each with its capture rules, its
//! certificates and everybody's directory.
//!
//! `cargo test --release -p signet-cli --test memory -- --nocapture` prints the figure of docs/performance.md.

use std::fs;
use std::net::SocketAddr;
use std::process::ExitCode;

use signet_cli::lab::mesh::{Mesh, Setup, Sidecar};
use signet_cli::lab::runner::{self, Test, TestResult};
use signet_cli::lab::{HostPlan, Lab, Program, helper};

const TESTS: &[Test] = &[(
    "twenty_six_idle_sidecars_take_at_most_260_mib_together",
    twenty_six_idle_sidecars_take_at_most_260_mib_together,
)];

/// Components of one mF2C agent.
const SIDECARS: u8 = 26;
/// What they may take: 10 MiB each.
const BOUND_KIB: u64 = 260 * 1024;
const TRUST_DOMAIN: &str = "mesh.example";
const PORT: u16 = 8080;

fn main() -> ExitCode {
    helper();
    runner::main(TESTS)
}

fn twenty_six_idle_sidecars_take_at_most_260_mib_together() -> TestResult {
    let signet = env!("CARGO_BIN_EXE_signet");
    let lab = Lab::new()?;
    let (cloud, fog) = (lab.host("cloud", HostPlan::numbered(2))?, lab.host("fog", HostPlan::numbered(1))?);
    let mesh = Mesh::start_program(Program::new(signet), cloud.namespace(), cloud.ipv4(), TRUST_DOMAIN)?;
    mesh.apply("mesh.yaml", &manifests())?;
    let (mut sidecars, mut places) = (Vec::new(), Vec::new());
    for number in 0..SIDECARS {
        let container = fog.container(&name(number))?;
        let setup = Setup { program: Some(Program::new(signet).args(["proxy"])), ..Setup::default() };
        places.push(SocketAddr::from((container.ipv4(), PORT)));
        sidecars.push(mesh.sidecar(&container, &name(number), setup)?);
    }
    // Each has the whole directory: that is what a sidecar of this mesh carries.
    for sidecar in &sidecars {
        for place in &places {
            sidecar.wait_until_known(*place)?;
        }
    }
    let memory = sidecars.iter().map(proportional_kib).collect::<Result<Vec<_>, _>>()?;
    let (all, most) = (memory.iter().sum::<u64>(), memory.iter().max().copied().unwrap_or_default());
    println!("{SIDECARS} idle sidecars: {all} KiB together, {most} KiB at most");
    assert!(all > 0 && all <= BOUND_KIB, "{all} KiB are more than {BOUND_KIB} KiB: {memory:?}");
    Ok(())
}

/// A sidecar's share of memory: what it has for itself, and of what several processes share, its part.
fn proportional_kib(sidecar: &Sidecar) -> Result<u64, Box<dyn std::error::Error>> {
    let process = sidecar.process().ok_or("the sidecar has ended")?.id();
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss")?;
    Ok(line.trim().strip_suffix(" kB").ok_or("another unit")?.trim().parse()?)
}

fn name(number: u8) -> String {
    format!("component-{number}")
}

fn manifests() -> String {
    let workload = |number| {
        format!(
            "---\napiVersion: signet.mf2c-project.eu/v1alpha1\nkind: Workload\nmetadata: {{name: {}}}\nspec: {{class: app, \
             device: box, network: fog, ports: [{{port: {PORT}}}]}}\n",
            name(number)
        )
    };
    let workloads: String = (0..SIDECARS).map(workload).collect();
    format!(
        "apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: {{name: mesh}}
spec:
  trustDomain: {TRUST_DOMAIN}
  mtls: {{mode: strict}}
  networks: [{{name: fog, gateways: [10.0.0.1, 'fd00::1']}}]
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: AccessPolicy
metadata: {{name: components}}
spec:
  target: {{classes: [app]}}
  rules:
    - from: [{{class: app}}]
{workloads}"
    )
}
