//! Keeps the capture rules in force, and proves it.
//!
//! The rules follow the policy: in strict mode UDP and other protocols are refused but for what
//! `Mesh.egress` lists. They are read back regularly, and a connection without the proxy's mark,
//! the canary, must come out at the proxy's own listener. The rules stay when the process ends:
//! a proxy that is down means refused traffic, never traffic in clear.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use signet_policy::{MtlsMode, PolicyModel, Transport, WorkloadModel};
use tokio::net::TcpSocket;
use tokio::sync::Notify;

use crate::admin::Health;
use crate::capture::{self, CaptureError, Egress, Exempt, Other, Rules, Way};
use crate::config::Config;
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

    /// Dials without the mark; true when the connection was captured, or could not even leave.
    async fn fly(&self, address: SocketAddr) -> std::io::Result<bool> {
        let (socket, any) = match address {
            SocketAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            SocketAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
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

/// The rules before the first policy: the strictest.
pub(crate) fn initial_rules(config: &Config) -> Rules {
    rules(config, None, None, MtlsMode::Strict)
}

/// The rules this proxy needs under a policy.
fn rules(
    config: &Config,
    policy: Option<&PolicyModel>,
    own: Option<&WorkloadModel>,
    own_mode: MtlsMode,
) -> Rules {
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
    // An egress policy lists all that may leave, in permissive mode too.
    let passes = own_mode == MtlsMode::Permissive && selecting().next().is_none();
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
    mut installed: Option<Rules>,
    report: Arc<Notify>,
) {
    let mut changes = shared.changes.clone();
    loop {
        if let (Some(rules), Some(way)) = (&mut installed, shared.config.capture) {
            let wanted = wanted(&shared);
            let in_force = enforce(rules, wanted, way).await;
            if health.capture_in_force.swap(in_force, Ordering::AcqRel) != in_force {
                report.notify_one();
            }
        } else {
            health.capture_in_force.store(true, Ordering::Release);
        }
        let safe = canary(&shared).await;
        if !safe {
            tracing::error!("a connection without the proxy's mark was not captured: traffic can leak");
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

fn wanted(shared: &Shared) -> Rules {
    let snapshot = shared.snapshot();
    let credentials = shared.credentials();
    let own = credentials.as_ref().map(|credentials| credentials.id());
    let mode = own.map_or(MtlsMode::Strict, |own| snapshot.index.mtls(own));
    let own = own.and_then(|own| snapshot.index.workload(own));
    rules(&shared.config, snapshot.policy.as_deref(), own, mode)
}

/// Installs `wanted` where it differs from what is in the kernel. False when the rules were found
/// changed by somebody else, even though they are repaired: something may have passed meanwhile.
async fn enforce(installed: &mut Rules, wanted: Rules, way: Way) -> bool {
    let unchanged = *installed == wanted;
    let rules = wanted.clone();
    let outcome = tokio::task::spawn_blocking(move || -> Result<(), CaptureError> {
        let tampered = match capture::verify(&rules, way) {
            Ok(_) => return Ok(()),
            Err(error) => unchanged.then_some(error),
        };
        capture::install(&rules, way)?;
        capture::verify(&rules, way)?;
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
async fn canary(shared: &Shared) -> bool {
    if matches!(shared.config.exempt, Exempt::Uid(_)) {
        return true;
    }
    let elsewhere = shared.config.control_plane.address().filter(|address| !address.ip().is_loopback());
    let address = elsewhere.unwrap_or(NOWHERE);
    match shared.canary.fly(address).await {
        Ok(captured) => captured,
        Err(error) => {
            tracing::warn!(%error, "canary could not be sent");
            false
        }
    }
}
