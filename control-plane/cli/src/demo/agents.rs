//! The demonstration's machines: two agents and a cloud node, with containers and the apps in them.
//!
//! ```text
//!   cloud 10.0.0.1        agent-a 10.0.0.2                       agent-b 10.0.0.3
//!   control plane         172.18.0.0/16: cimi, dcproxy, …        172.18.0.0/16, the same: lm-um, …
//!        └──────────────────────┴──────────── wire ────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::demo::report::Outcome;
use crate::lab::mesh::{MeshError, app, app_at};
use crate::lab::{Container, Host, HostPlan, Lab, LabError, Proc};

/// A container and what runs in it.
struct Place {
    workload: &'static str,
    /// App and port, published at the host under the same number.
    app: Option<(&'static str, u16)>,
}

const AGENT_A: [Place; 8] = [
    Place { workload: "a-cimi", app: Some(("rest", 8201)) },
    Place { workload: "a-dcproxy", app: Some(("get-with-body", 6472)) },
    Place { workload: "a-logicmodule", app: Some(("grpc", 1034)) },
    Place { workload: "a-aclib", app: Some(("line", 46080)) },
    Place { workload: "a-database", app: Some(("greeter", 3306)) },
    Place { workload: "a-event-manager", app: Some(("sse", 8000)) },
    Place { workload: "a-lm-um", app: None },
    Place { workload: "a-app", app: Some(("rest", 9000)) },
];
const AGENT_B: [Place; 3] = [
    Place { workload: "b-lm-um", app: Some(("rest", 8201)) },
    Place { workload: "b-app", app: None },
    // Never gets a sidecar.
    Place { workload: STRANGER, app: None },
];

/// The container that nobody protects and nobody trusts.
pub(super) const STRANGER: &str = "stranger";
/// A service of `a-app` that listens at loopback alone; its port is published all the same.
pub(super) const LOOPBACK_PORT: u16 = 6379;

/// The machines, with every app running.
pub(super) struct Agents {
    pub(super) lab: Lab,
    pub(super) cloud: Host,
    pub(super) a: Host,
    b: Host,
    containers: BTreeMap<&'static str, Container>,
    apps: BTreeMap<&'static str, Proc>,
    _loopback: Option<Proc>,
}

impl Agents {
    /// Builds the machines and starts the apps.
    pub(super) fn build() -> Result<Self, MeshError> {
        let lab = Lab::new()?;
        let cloud = lab.host("cloud", HostPlan::numbered(1))?;
        let a = lab.host("agent-a", HostPlan::numbered(2))?;
        let b = lab.host("agent-b", HostPlan::numbered(3))?;
        let mut agents =
            Self { lab, cloud, a, b, containers: BTreeMap::new(), apps: BTreeMap::new(), _loopback: None };
        for (host, places) in [(&agents.a, &AGENT_A[..]), (&agents.b, &AGENT_B[..])] {
            for place in places {
                let container = host.container(place.workload)?;
                if let Some((name, port)) = place.app {
                    agents.apps.insert(place.workload, app(&container, &[name], &[port])?);
                    host.publish(port, &container, port)?;
                }
                agents.containers.insert(place.workload, container);
            }
        }
        let address = SocketAddr::from(([127, 0, 0, 1], LOOPBACK_PORT));
        agents._loopback = Some(app_at(agents.container("a-app"), &["loopback-only"], &[address])?);
        agents.a.publish(LOOPBACK_PORT, agents.container("a-app"), LOOPBACK_PORT)?;
        Ok(agents)
    }

    /// The container of a workload.
    pub(super) fn container(&self, workload: &str) -> &Container {
        // Every name asked for stands in one of the tables above.
        &self.containers[workload]
    }

    /// Workloads that get a sidecar.
    pub(super) fn workloads(&self) -> impl Iterator<Item = &'static str> {
        self.containers.keys().copied().filter(|workload| *workload != STRANGER)
    }

    /// A published port of agent A.
    pub(super) fn published(&self, port: u16) -> SocketAddr {
        (self.a.ipv4(), port).into()
    }

    /// A published port of agent A, IPv6.
    pub(super) fn published_ipv6(&self, port: u16) -> SocketAddr {
        (self.a.ipv6(), port).into()
    }

    /// No app may do anything beyond its own files and sockets.
    pub(super) fn powerless(&self) -> Result<Outcome, MeshError> {
        let able: Vec<&str> =
            self.apps.iter().filter(|(_, app)| !is_powerless(app.id())).map(|(name, _)| *name).collect();
        let apps = self.apps.len() as f64;
        Ok(Outcome::holds(apps, "apps")
            .only_if(able.is_empty(), || format!("these have some: {}", able.join(", "))))
    }

    /// Watches what agent A sends and receives between the machines.
    pub(super) fn tap(&self, canaries: &[&[u8]]) -> Result<crate::lab::Tap, LabError> {
        self.lab.tap("agent-a", canaries, None)
    }

    /// Process id of a workload's app: by it, tools enter the container's network.
    pub(super) fn app_id(&self, workload: &str) -> Option<u32> {
        self.apps.get(workload).map(Proc::id)
    }
}

/// Whether every capability set of a process is empty, the one that bounds what it may gain included.
fn is_powerless(process: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let sets: Vec<&str> =
        status.lines().filter_map(|line| line.strip_prefix("Cap")?.split_whitespace().nth(1)).collect();
    !sets.is_empty() && sets.iter().all(|set| set.bytes().all(|digit| digit == b'0'))
}
