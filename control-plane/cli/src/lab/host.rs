//! Hosts with containers, joined by a switch.
//!
//! ```text
//!              wire (bridge "switch")
//!          cloud │            │ fog               ports of the switch, named after the hosts: the taps' places
//!           eth0 │            │ eth0              10.0.0.N/24, fd00::N/64
//!        host "cloud"      host "fog"             masquerade, published ports
//!            br0 │            │ br0               172.18.0.1/16, fd18::1/64 on every host
//!           eth0 │            │ eth0
//!     container "server"   container "client"     172.18.0.2 …
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::nat::Nat;
use super::{LabError, Namespace, Tap};

const SWITCH: &str = "switch";
const OUTER: &str = "eth0";
const BRIDGE: &str = "br0";

/// Hosts on one switch.
#[derive(Debug)]
pub struct Lab {
    wire: Namespace,
}

/// The addresses of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPlan {
    /// On the switch.
    pub ipv4: Ipv4Net,
    /// On the switch.
    pub ipv6: Ipv6Net,
    /// Of its containers; the host takes the first.
    pub containers_ipv4: Ipv4Net,
    /// Of its containers; the host takes the first.
    pub containers_ipv6: Ipv6Net,
}

/// A machine with containers.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    plan: HostPlan,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    containers: usize,
    published: Vec<(SocketAddr, SocketAddr)>,
}

/// A network stack behind a host's bridge. Programs of one container share it, like an app and its sidecar.
#[derive(Clone, Debug)]
pub struct Container {
    namespace: Namespace,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

impl HostPlan {
    /// Host number `number` of a lab: 10.0.0.`number`, fd00::`number`, and the same container networks,
    /// 172.18.0.0/16 and fd18::/64, on every host.
    pub fn numbered(number: u8) -> Self {
        let host = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into());
        Self {
            ipv4: Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, number), 24),
            ipv6: Ipv6Net::new_assert(host, 64),
            containers_ipv4: Ipv4Net::new_assert(Ipv4Addr::new(172, 18, 0, 0), 16),
            containers_ipv6: Ipv6Net::new_assert(Ipv6Addr::new(0xfd18, 0, 0, 0, 0, 0, 0, 0), 64),
        }
    }
}

impl Lab {
    /// A switch without hosts; needs [`super::enter`] before.
    ///
    /// # Errors
    /// What [`Namespace`] and its links can fail with, as for all that follow.
    pub fn new() -> Result<Self, LabError> {
        let wire = Namespace::new("wire")?;
        wire.add_bridge(SWITCH)?;
        Ok(Self { wire })
    }

    /// The switch's namespace. Its interfaces are named after the hosts.
    pub fn wire(&self) -> &Namespace {
        &self.wire
    }

    /// Adds a host; the name has at most 15 bytes, because its port of the switch is named so.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn host(&self, name: &str, plan: HostPlan) -> Result<Host, LabError> {
        let namespace = Namespace::new(name)?;
        namespace.add_veth(OUTER, &self.wire, name)?;
        self.wire.attach(name, SWITCH)?;
        namespace.add_address(OUTER, plan.ipv4.into())?;
        namespace.add_address(OUTER, plan.ipv6.into())?;
        namespace.add_bridge(BRIDGE)?;
        let host = Host { namespace, plan, state: Mutex::default() };
        host.namespace.add_address(BRIDGE, host.bridge_ipv4().into())?;
        host.namespace.add_address(BRIDGE, host.bridge_ipv6().into())?;
        host.namespace.forward_packets()?;
        host.translate(&[])?;
        Ok(host)
    }

    /// Watches what a host sends and receives on the switch, see [`Tap::start`].
    ///
    /// # Errors
    /// As [`Tap::start`].
    pub fn tap(&self, host: &str, canaries: &[&[u8]], pcap: Option<&Path>) -> Result<Tap, LabError> {
        Tap::start(&self.wire, host, canaries, pcap)
    }
}

impl Host {
    /// Its network stack: programs started here are on the host's own network.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its address on the switch.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.plan.ipv4.addr()
    }

    /// Its address on the switch.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.plan.ipv6.addr()
    }

    /// Adds a container with the next free addresses and default routes through the host.
    ///
    /// # Errors
    /// [`LabError::AddressesUsedUp`], and as [`Lab::new`].
    pub fn container(&self, name: &str) -> Result<Container, LabError> {
        let number = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.containers += 1;
            state.containers
        };
        let used_up = || LabError::AddressesUsedUp(self.namespace.name().into());
        // The host has the first usable address.
        let ipv4 = self.plan.containers_ipv4.hosts().nth(number).ok_or_else(used_up)?;
        let ipv6 = nth_ipv6(&self.plan.containers_ipv6, number as u128 + 1).ok_or_else(used_up)?;
        let namespace = Namespace::new(name)?;
        let port = format!("veth{number}");
        namespace.add_veth(OUTER, &self.namespace, &port)?;
        self.namespace.attach(&port, BRIDGE)?;
        let (bridge_ipv4, bridge_ipv6) = (self.bridge_ipv4(), self.bridge_ipv6());
        namespace.add_address(OUTER, with_prefix(ipv4.into(), bridge_ipv4.into()))?;
        namespace.add_address(OUTER, with_prefix(ipv6.into(), bridge_ipv6.into()))?;
        namespace.add_route(IpNet::V4(Ipv4Net::default()), bridge_ipv4.addr().into())?;
        namespace.add_route(IpNet::V6(Ipv6Net::default()), bridge_ipv6.addr().into())?;
        Ok(Container { namespace, ipv4, ipv6 })
    }

    /// Publishes a container's TCP port at a port of this host, IPv4 and IPv6.
    ///
    /// # Errors
    /// [`LabError::Netlink`].
    pub fn publish(&self, port: u16, container: &Container, container_port: u16) -> Result<(), LabError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = |address: IpAddr| SocketAddr::new(address, container_port);
        state.published.push((SocketAddr::new(self.ipv4().into(), port), inner(container.ipv4.into())));
        state.published.push((SocketAddr::new(self.ipv6().into(), port), inner(container.ipv6.into())));
        self.translate(&state.published)
    }

    fn translate(&self, published: &[(SocketAddr, SocketAddr)]) -> Result<(), LabError> {
        let masqueraded = vec![self.plan.containers_ipv4.into(), self.plan.containers_ipv6.into()];
        let outward = vec![OUTER.into(), BRIDGE.into()];
        self.namespace.translate(&Nat { masqueraded, outward, published: published.to_vec() })
    }

    fn bridge_ipv4(&self) -> Ipv4Net {
        let network = self.plan.containers_ipv4;
        // A network without hosts is refused by the kernel when the address is added.
        let first = network.hosts().next().unwrap_or_else(|| network.addr());
        Ipv4Net::new(first, network.prefix_len()).unwrap_or(network)
    }

    fn bridge_ipv6(&self) -> Ipv6Net {
        let network = self.plan.containers_ipv6;
        let first = nth_ipv6(&network, 1).unwrap_or_else(|| network.addr());
        Ipv6Net::new(first, network.prefix_len()).unwrap_or(network)
    }
}

impl Container {
    /// A network stack that stands behind no host: whoever calls has laid its cables and given it these addresses.
    pub fn alone(namespace: Namespace, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Self {
        Self { namespace, ipv4, ipv6 }
    }

    /// Its network stack.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its address behind the host.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.ipv4
    }

    /// Its address behind the host.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.ipv6
    }
}

fn nth_ipv6(network: &Ipv6Net, number: u128) -> Option<Ipv6Addr> {
    let address = Ipv6Addr::from_bits(network.network().to_bits().checked_add(number)?);
    network.contains(&address).then_some(address)
}

fn with_prefix(address: IpAddr, like: IpNet) -> IpNet {
    IpNet::new(address, like.prefix_len()).unwrap_or_else(|_| address.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_networks_are_the_same_on_every_host() {
        let (first, second) = (HostPlan::numbered(1), HostPlan::numbered(2));
        assert_ne!(first.ipv4, second.ipv4);
        assert_eq!(first.containers_ipv4, second.containers_ipv4);
        assert_eq!(first.containers_ipv6, second.containers_ipv6);
    }

    #[test]
    fn ipv6_addresses_end_with_their_network() {
        let network: Ipv6Net = "fd18::/127".parse().unwrap();
        assert_eq!(nth_ipv6(&network, 1), Some("fd18::1".parse().unwrap()));
        assert_eq!(nth_ipv6(&network, 2), None);
    }
}
