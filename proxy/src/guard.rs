//! Keeps the capture rules in force, and proves it.
//!
//! The rules follow the policy: in strict mode UDP and other protocols are refused but for what
//! `Mesh.egress` lists; of a policy that has grown stale not even that. They are read back regularly, and a connection without the proxy's mark,
//! the canary, must come out at the proxy's own listener. The rules stay when the process ends:
//! a proxy that is down means refused traffic, never traffic in clear.
//!
//! In a network that others use too the rules follow the directory instead: its places are what is captured.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use signet_policy::{MtlsMode, PolicyModel, Staleness, Transport, WorkloadModel};
use socket2::SockRef;
use tokio::net::TcpSocket;
use tokio::sync::Notify;

use crate::admin::Health;
use crate::capture::host::{self, HostRules};
use crate::capture::{self, Backend, CaptureError, Egress, Exempt, Other, Rules, Way};
use crate::config::Config;
use crate::snapshot::Snapshot;
use crate::worker::Shared;

/// How often the rules are read back and the canary is sent.
const CHECK: Duration = Duration::from_secs(2);
/// How long the canary may take to come out at our own listener: it never leaves the machine.
const CANARY_TIMEOUT: Duration = Duration::from_secs(2);
/// Where the canary dials when the control plane is in this network namespace, or known by name: an
/// address for documentation (RFC 5737), which no network routes.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// The canary that is on its way, known by its source port.
#[derive(Debug, Default)]
pub struct Canary {
    port: AtomicU32,
    seen: AtomicBool,
}

impl Canary {
    /// Whether an accepted connection is the canary; it is then done.
    pub(crate) fn claim(&self, source: SocketAddr) -> bool {
        let ours = self.port.load(Ordering::Acquire) == u32::from(source.port()) && source.port() != 0;
        if ours {
            self.seen.store(true, Ordering::Release);
        }
        ours
    }

    /// Dials without the proxy's mark, or with the canary's own; true when the connection was captured, or could not even leave.
    async fn fly(&self, address: SocketAddr, mark: Option<u32>) -> std::io::Result<bool> {
        let (socket, any) = match address {
            SocketAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            SocketAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        if let Some(mark) = mark {
            SockRef::from(&socket).set_mark(mark)?;
        }
        socket.bind(SocketAddr::new(any, 0))?;
        self.seen.store(false, Ordering::Release);
        self.port.store(u32::from(socket.local_addr()?.port()), Ordering::Release);
        let connected = tokio::time::timeout(CANARY_TIMEOUT, async {
            let mut stream = socket.connect(address).await?;
            // Our listener closes it; anybody else would have to be told nothing.
            let mut nothing = [0; 1];
            tokio::io::AsyncReadExt::read(&mut stream, &mut nothing).await
        })
        .await;
        self.port.store(0, Ordering::Release);
        let unroutable =
            matches!(&connected, Ok(Err(error)) if error.kind() == std::io::ErrorKind::NetworkUnreachable);
        Ok(unroutable || self.seen.load(Ordering::Acquire))
    }
}

/// Rules of either kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Capture {
    /// Of a network that others use too.
    Host(HostRules),
    /// Of a network of the app's own.
    Own(Rules, Way),
}

impl Capture {
    /// The first rules of a process: the strictest, or what an earlier process knew of the mesh.
    pub(crate) fn start(config: &Config) -> Result<Option<(Self, Backend)>, CaptureError> {
        let Some(way) = config.capture else { return Ok(None) };
        let (capture, backend) = match &config.host {
            Some(guard) => {
                let rules = guard.rules(config, host::left_behind(&guard.name)?);
                host::claim(&rules)?;
                (Self::Host(rules), Backend::NfTables)
            }
            None => {
                let rules = initial_rules(config);
                let backend = capture::install(&rules, way)?;
                (Self::Own(rules, way), backend)
            }
        };
        capture.verify()?;
        Ok(Some((capture, backend)))
    }

    fn install(&self) -> Result<(), CaptureError> {
        match self {
            Self::Host(rules) => host::install(rules),
            Self::Own(rules, way) => capture::install(rules, *way).map(drop),
        }
    }

    fn verify(&self) -> Result<(), CaptureError> {
        match self {
            Self::Host(rules) => host::verify(rules),
            Self::Own(rules, way) => capture::verify(rules, *way).map(drop),
        }
    }

    /// What is wanted in its place now.
    fn next(&self, shared: &Shared, snapshot: &Snapshot) -> Self {
        match (self, &shared.config.host) {
            // Without a directory, what was known last: a place never looks unmeshed because the control plane is away.
            (Self::Host(_), Some(guard)) if snapshot.ready => {
                Self::Host(guard.rules(&shared.config, places(snapshot)))
            }
            (Self::Host(rules), _) => Self::Host(rules.clone()),
            (Self::Own(_, way), _) => Self::Own(wanted(shared, snapshot), *way),
        }
    }
}

/// Everything that is dialled through the mesh: what the directories list, virtual addresses, intermediaries.
fn places(snapshot: &Snapshot) -> BTreeSet<SocketAddr> {
    let place = |address: IpAddr, port| SocketAddr::new(address.to_canonical(), port);
    let entries = snapshot.directories.iter().flat_map(|directory| directory.entries());
    // Port 0 only tells that an address is known.
    let listed = entries.filter(|entry| entry.port != 0).map(|entry| place(entry.address, entry.port));
    let known = |network: &str| snapshot.directories.iter().any(|directory| directory.network() == network);
    let policy = snapshot.policy.as_deref();
    let virtuals = policy.into_iter().flat_map(|policy| &policy.workloads);
    let virtuals = virtuals.flat_map(|workload| &workload.virtual_addresses).filter(|at| known(&at.network));
    let intermediaries = policy.into_iter().flat_map(|policy| &policy.intermediaries).flat_map(|between| {
        between
            .addresses
            .iter()
            .flat_map(move |address| between.ports.iter().map(move |port| (*address, *port)))
    });
    listed
        .chain(virtuals.map(|at| place(at.address, at.port)))
        .chain(intermediaries.map(|(address, port)| place(address, port)))
        .collect()
}

/// The rules before the first policy: the strictest.
pub(crate) fn initial_rules(config: &Config) -> Rules {
    rules(config, None, None, MtlsMode::Strict, Staleness::Fresh)
}

/// The rules this proxy needs under a policy. One that has grown stale lets nothing past the proxy, as it lets nothing leave by
/// it: no listed datagrams, and in permissive mode nothing else that is not meshed.
fn rules(
    config: &Config,
    policy: Option<&PolicyModel>,
    own: Option<&WorkloadModel>,
    own_mode: MtlsMode,
    staleness: Staleness,
) -> Rules {
    let is_fresh = staleness == Staleness::Fresh;
    let egress =
        policy.iter().flat_map(|policy| &policy.egress).filter(|rule| rule.protocol == Transport::Udp);
    let mut exceptions: Vec<Egress> =
        egress.flat_map(|rule| exceptions(std::slice::from_ref(&rule.cidr), &rule.ports)).collect();
    let selecting = || {
        let policies = policy.iter().flat_map(|policy| &policy.egress_policies);
        policies.filter(|policy| own.is_some_and(|own| policy.target.selects(own)))
    };
    let entries = selecting().flat_map(|policy| &policy.to);
    let datagrams = entries.filter(|entry| entry.protocol == Transport::Udp);
    exceptions.extend(datagrams.flat_map(|entry| self::exceptions(&entry.cidrs, &entry.ports)));
    if !is_fresh {
        exceptions.clear();
    }
    // An egress policy lists all that may leave, in permissive mode too.
    let passes = is_fresh && own_mode == MtlsMode::Permissive && selecting().next().is_none();
    let mut excluded_inbound_ports = config.exclude_inbound.clone();
    excluded_inbound_ports.push(config.admin_addr.port());
    Rules {
        outbound_port: config.outbound_port,
        inbound_port: config.inbound_port,
        exempt: config.exempt,
        excluded_inbound_ports,
        other: if passes { Other::Pass } else { Other::Refuse { egress: exceptions } },
        ..Rules::default()
    }
}

/// Each range with each port; all ports when there are none.
fn exceptions(ranges: &[IpNet], ports: &[u16]) -> Vec<Egress> {
    let ports: Vec<Option<u16>> =
        if ports.is_empty() { vec![None] } else { ports.iter().copied().map(Some).collect() };
    let with_ports = |network: &IpNet| {
        let network = *network;
        ports.iter().map(move |port| Egress { network, port: *port }).collect::<Vec<_>>()
    };
    ranges.iter().flat_map(with_ports).collect()
}

/// Keeps the rules until the process ends. `installed` are those in force now; `None` where
/// somebody else keeps them.
pub(crate) async fn keep(
    shared: Arc<Shared>,
    health: Arc<Health>,
    mut installed: Option<Capture>,
    report: Arc<Notify>,
) {
    let mut changes = shared.changes.clone();
    let mut unguarded = BTreeSet::new();
    loop {
        // Seen before it is looked at, so that no change falls between.
        changes.borrow_and_update();
        if let Some(installed) = &mut installed {
            let snapshot = shared.snapshot();
            let wanted = installed.next(&shared, &snapshot);
            // Until a directory is there, what leaves for the mesh is not known to a guard.
            let known = shared.config.host.is_none() || snapshot.ready;
            tell_unguarded(&shared, &snapshot, &mut unguarded);
            drop(snapshot);
            let in_force = enforce(installed, wanted).await && known;
            if health.capture_in_force.swap(in_force, Ordering::AcqRel) != in_force {
                report.notify_one();
            }
        } else {
            health.capture_in_force.store(true, Ordering::Release);
        }
        // After tampering nobody listens where the rules lead, so a canary could not come out; the rules are looked at still.
        let safe = health.tampered.load(Ordering::Acquire) || canary(&shared, installed.as_ref()).await;
        if !safe {
            tracing::error!("a connection that has to be captured was not: traffic can leak");
        }
        if health.canary_ok.swap(safe, Ordering::AcqRel) != safe {
            report.notify_one();
        }
        tokio::select! {
            () = tokio::time::sleep(CHECK) => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

fn wanted(shared: &Shared, snapshot: &Snapshot) -> Rules {
    let credentials = shared.credentials();
    let own = credentials.as_ref().map(|credentials| credentials.id());
    let mode = own.map_or(MtlsMode::Strict, |own| snapshot.index.mtls(own));
    let own = own.and_then(|own| snapshot.index.workload(own));
    rules(&shared.config, snapshot.policy.as_deref(), own, mode, snapshot.staleness())
}

/// Tells of ports that others are told to reach through the mesh, and that nobody captures here.
fn tell_unguarded(shared: &Shared, snapshot: &Snapshot, told: &mut BTreeSet<u16>) {
    let Some(guard) = &shared.config.host else { return };
    let credentials = shared.credentials();
    let own = credentials.as_ref().and_then(|credentials| snapshot.index.workload(credentials.id()));
    let declared = own.into_iter().flat_map(|own| &own.ports).map(|declared| declared.port);
    let missing: BTreeSet<u16> = declared.filter(|port| !guard.ports.contains(port)).collect();
    if missing != *told && !missing.is_empty() {
        tracing::warn!(ports = ?missing, "the Workload declares ports that are not guarded; add them to --ports");
    }
    *told = missing;
}

/// Installs `wanted` where it differs from what is in the kernel. False when the rules were found
/// changed by somebody else, even though they are repaired: something may have passed meanwhile.
async fn enforce(installed: &mut Capture, wanted: Capture) -> bool {
    let unchanged = *installed == wanted;
    let rules = wanted.clone();
    let outcome = tokio::task::spawn_blocking(move || -> Result<(), CaptureError> {
        let tampered = match rules.verify() {
            Ok(()) => return Ok(()),
            Err(error) => unchanged.then_some(error),
        };
        rules.install()?;
        rules.verify()?;
        tampered.map_or(Ok(()), Err)
    });
    match outcome.await {
        Ok(Ok(())) => {
            *installed = wanted;
            true
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "capture rules were not in force");
            false
        }
        Err(_) => false,
    }
}

/// By user id the proxy's own connections are exempt, so it cannot send a canary itself.
async fn canary(shared: &Shared, installed: Option<&Capture>) -> bool {
    if matches!(shared.config.exempt, Exempt::Uid(_)) {
        return true;
    }
    let mark = match installed {
        // Of what leaves, only places of the mesh are captured; a canary's mark is, wherever it goes.
        Some(Capture::Host(rules)) => Some(rules.canary_mark()),
        _ => None,
    };
    let elsewhere = shared.config.control_plane.address().filter(|address| !address.ip().is_loopback());
    let address = elsewhere.unwrap_or(NOWHERE);
    match shared.canary.fly(address, mark).await {
        Ok(captured) => captured,
        Err(error) => {
            tracing::warn!(%error, "canary could not be sent");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use signet_policy::{compile, parse_manifests};

    use super::*;

    const MESH: &str = "apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec:
  trustDomain: mesh.example
  networks: [{ name: edge }]
  egress: [{ cidr: 192.0.2.0/24, ports: [123], protocol: udp }]
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: api }
spec: { class: app, device: edge, network: edge }
";

    #[test]
    fn policy_that_has_grown_stale_lets_nothing_past_the_proxy() {
        let line = ["signet-proxy", "--control-plane", "cp:1", "--token", "t"];
        let config: Config = crate::config::Arguments::try_parse_from(line).unwrap().try_into().unwrap();
        let policy = compile(&parse_manifests("test", MESH).unwrap()).unwrap();
        let own = policy.workloads.first();
        let other = |mode, staleness| rules(&config, Some(&policy), own, mode, staleness).other;
        let listed = Egress { network: "192.0.2.0/24".parse().unwrap(), port: Some(123) };
        assert_eq!(other(MtlsMode::Strict, Staleness::Fresh), Other::Refuse { egress: vec![listed] });
        assert_eq!(other(MtlsMode::Permissive, Staleness::Fresh), Other::Pass);
        for mode in [MtlsMode::Strict, MtlsMode::Permissive] {
            for staleness in [Staleness::LifeSafety, Staleness::Refuse] {
                assert_eq!(other(mode, staleness), Other::Refuse { egress: Vec::new() });
            }
        }
    }
}
