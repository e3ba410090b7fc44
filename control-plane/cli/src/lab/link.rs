//! Links, addresses and routes, by rtnetlink messages of our own.
//!
//! Layout: `include/uapi/linux/{rtnetlink,if_link,if_addr,veth}.h`. Numbers are in host order, addresses in network order.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::net::if_::if_nametoindex;
use signet_proxy::capture::netlink::{
    ACK, Answer, Attributes, CREATE, Connection, EXCLUSIVE, NetlinkError, Request, attributes,
};

use super::{LabError, Namespace, write};

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;

const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_MASTER: u16 = 10;
const LINK_STATE: u16 = 16;
const LINK_INFO: u16 = 18;
const LINK_NAMESPACE: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_MASTER_DATA: u16 = 5;
const VETH_PEER: u16 = 1;
const BRIDGE_PORT_STATE: u16 = 1;
const FLAG_UP: u32 = 1;
const STATE_UP: u8 = 6;
const STATE_UNKNOWN: u8 = 0;
const PORT_FORWARDING: u8 = 3;

const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const ADDRESS_FLAGS: u16 = 8;
/// Usable at once, without asking the neighbours first.
const NO_DUPLICATE_DETECTION: u32 = 2;

const ROUTE_DESTINATION: u16 = 1;
const ROUTE_GATEWAY: u16 = 5;
const MAIN_TABLE: u8 = 254;
const BY_ADMINISTRATOR: u8 = 4;
const UNICAST: u8 = 1;

const LINK_HEADER: usize = 16;
const INET: u8 = 2;
const INET6: u8 = 10;
/// A bridge without an address of its own takes the lowest of its ports: with each new port it may become another, and who
/// knew the old one is not heard for half a minute. Each bridge is alone in its network.
const BRIDGE_ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// A link that is up on both ends carries within moments; longer means that an end is down.
const CARRIER_LIMIT: Duration = Duration::from_secs(5);
const CARRIER_PAUSE: Duration = Duration::from_millis(1);

/// Brings up `lo` and makes later IPv6 interfaces quiet and usable at once, in the calling thread's namespace.
pub(super) fn prepare(name: &str) -> Result<(), LabError> {
    let settings =
        [("accept_dad", "0"), ("dad_transmits", "0"), ("accept_ra", "0"), ("router_solicitations", "0")];
    for (setting, value) in settings {
        let path = format!("/proc/sys/net/ipv6/conf/default/{setting}");
        // A kernel without IPv6 has none of them, and then nothing is to be set.
        if Path::new(&path).exists() {
            write(Path::new(&path), value)?;
        }
    }
    send(name, &up("lo")?)
}

impl Namespace {
    /// Adds a bridge, up.
    ///
    /// # Errors
    /// [`LabError::Netlink`], as for all that follow.
    pub fn add_bridge(&self, bridge: &str) -> Result<(), LabError> {
        let body = Attributes::new()
            .text(LINK_NAME, bridge)
            .bytes(LINK_ADDRESS, &BRIDGE_ADDRESS)
            .nest(LINK_INFO, Attributes::new().text(INFO_KIND, "bridge"));
        let purpose = format!("add bridge {bridge}");
        self.request(link(NEW_LINK, CREATE | EXCLUSIVE, 0, (0, 0), body, purpose))?;
        self.set_up(bridge)
    }

    /// Lays a cable: `interface` here, `peer_interface` there, both up and carrying when this returns.
    ///
    /// # Errors
    /// [`LabError::Overdue`] when the link does not carry in time.
    pub fn add_veth(&self, interface: &str, peer: &Self, peer_interface: &str) -> Result<(), LabError> {
        self.request(veth(interface, peer_interface, peer.descriptor()))?;
        peer.set_up(peer_interface)?;
        self.set_up(interface)?;
        self.wait_for_carrier(interface)?;
        peer.wait_for_carrier(peer_interface)
    }

    /// Removes a link; of a cable, both ends.
    ///
    /// # Errors
    /// [`LabError::Netlink`].
    pub fn remove_link(&self, interface: &str) -> Result<(), LabError> {
        let index = self.index(interface)?;
        self.request(link(DELETE_LINK, 0, index, (0, 0), Attributes::new(), format!("remove {interface}")))
    }

    /// Plugs an interface into a bridge; it forwards when this returns.
    ///
    /// # Errors
    /// [`LabError::Netlink`], [`LabError::Overdue`].
    pub fn attach(&self, interface: &str, bridge: &str) -> Result<(), LabError> {
        let (index, master) = (self.index(interface)?, self.index(bridge)?);
        let body = Attributes::new().host_u32(LINK_MASTER, master);
        self.request(link(NEW_LINK, 0, index, (0, 0), body, format!("attach {interface} to {bridge}")))?;
        self.wait_for_carrier(interface)
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// [`LabError::Netlink`].
    pub fn set_up(&self, interface: &str) -> Result<(), LabError> {
        let named = interface.to_owned();
        let request = self.run(move || up(&named))??;
        self.request(request)
    }

    /// Adds an address, usable at once; its network becomes reachable by this interface.
    ///
    /// # Errors
    /// [`LabError::Netlink`].
    pub fn add_address(&self, interface: &str, address: IpNet) -> Result<(), LabError> {
        let index = self.index(interface)?;
        self.request(new_address(index, address, interface))
    }

    /// Adds a route; `0.0.0.0/0` and `::/0` are the default routes.
    ///
    /// # Errors
    /// [`LabError::Netlink`].
    pub fn add_route(&self, network: IpNet, gateway: IpAddr) -> Result<(), LabError> {
        self.request(new_route(network, gateway))
    }

    /// Lets packets pass through from one interface to another.
    ///
    /// # Errors
    /// [`LabError::System`] where the settings cannot be written.
    pub fn forward_packets(&self) -> Result<(), LabError> {
        self.run(|| {
            write(Path::new("/proc/sys/net/ipv4/ip_forward"), "1")?;
            write(Path::new("/proc/sys/net/ipv6/conf/all/forwarding"), "1")?;
            // Bridged frames are not to meet the rules for routed packets; the setting exists only with that feature.
            for setting in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
                let path = format!("/proc/sys/net/bridge/{setting}");
                if Path::new(&path).exists() {
                    write(Path::new(&path), "0")?;
                }
            }
            Ok(())
        })?
    }

    /// Sets a kernel parameter of this network, such as `net/ipv4/ip_local_port_range`.
    ///
    /// # Errors
    /// [`LabError::System`] where it cannot be written.
    pub fn set_parameter(&self, parameter: &str, value: &str) -> Result<(), LabError> {
        let (path, value) = (format!("/proc/sys/{parameter}"), value.to_owned());
        self.run(move || {
            fs::write(&path, value).map_err(|error| LabError::system(format!("write {path}"), error))
        })?
    }

    fn index(&self, interface: &str) -> Result<u32, LabError> {
        let interface = interface.to_owned();
        self.run(move || index(&interface))?
    }

    fn request(&self, request: Request) -> Result<(), LabError> {
        let name = self.name().to_owned();
        self.run(move || send(&name, &request))?
    }

    fn wait_for_carrier(&self, interface: &str) -> Result<(), LabError> {
        let index = self.index(interface)?;
        let deadline = Instant::now() + CARRIER_LIMIT;
        // Nothing is ever sent: waiting on it is the pause between two looks.
        let (_sender, pause) = channel::<()>();
        loop {
            let name = self.name().to_owned();
            if self.run(move || carries(&name, index))?? {
                return Ok(());
            }
            if Instant::now() > deadline {
                let program = format!("interface {interface} of {}", self.name());
                let (what, output) = ("carry".into(), String::new());
                return Err(LabError::Overdue { program, what, limit: CARRIER_LIMIT, output });
            }
            let _ = pause.recv_timeout(CARRIER_PAUSE);
        }
    }
}

fn send(namespace: &str, request: &Request) -> Result<(), LabError> {
    let sent =
        Connection::route().and_then(|mut connection| connection.transact(std::slice::from_ref(request)));
    sent.map_err(|source| LabError::Netlink { namespace: namespace.into(), source })
}

fn index(interface: &str) -> Result<u32, LabError> {
    if_nametoindex(interface).map_err(|error| LabError::system(format!("find interface {interface}"), error))
}

fn up(interface: &str) -> Result<Request, LabError> {
    let purpose = format!("bring up {interface}");
    Ok(link(NEW_LINK, 0, index(interface)?, (FLAG_UP, FLAG_UP), Attributes::new(), purpose))
}

/// Whether the interface carries frames: up at both ends and, in a bridge, forwarding.
fn carries(namespace: &str, index: u32) -> Result<bool, LabError> {
    let question = link(GET_LINK, 0, 0, (0, 0), Attributes::new(), "list links".into());
    let read = || -> Result<bool, NetlinkError> {
        let links = Connection::route()?.dump(&question)?;
        let is_it = |answer: &&Answer| answer.body.get(4..8) == Some(&index.to_ne_bytes());
        let Some(found) = links.iter().find(is_it) else { return Ok(false) };
        link_carries(found.body.get(LINK_HEADER..).ok_or(NetlinkError::Malformed)?)
    };
    read().map_err(|source| LabError::Netlink { namespace: namespace.into(), source })
}

fn link_carries(body: &[u8]) -> Result<bool, NetlinkError> {
    let (mut up, mut bridged, mut forwarding) = (false, false, false);
    for (kind, value) in attributes(body)? {
        match kind {
            LINK_STATE => up = matches!(value, [STATE_UP | STATE_UNKNOWN]),
            LINK_MASTER => bridged = true,
            LINK_INFO => {
                for (kind, value) in attributes(value)? {
                    let port = if kind == INFO_MASTER_DATA { attributes(value)? } else { Vec::new() };
                    forwarding |= port.contains(&(BRIDGE_PORT_STATE, &[PORT_FORWARDING]));
                }
            }
            _ => {}
        }
    }
    Ok(up && (forwarding || !bridged))
}

/// `flags` are the flags' values and which of them to change.
fn link(
    kind: u16,
    mode: u16,
    index: u32,
    flags: (u32, u32),
    attributes: Attributes,
    purpose: String,
) -> Request {
    let body = [link_header(index, flags), attributes.into_bytes()].concat();
    Request { kind, flags: mode | ACK, body, purpose }
}

fn link_header(index: u32, (flags, changed): (u32, u32)) -> Vec<u8> {
    [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), changed.to_ne_bytes()].concat()
}

fn veth(interface: &str, peer_interface: &str, peer_namespace: u32) -> Request {
    let named = Attributes::new().text(LINK_NAME, peer_interface).host_u32(LINK_NAMESPACE, peer_namespace);
    let peer = [link_header(0, (0, 0)), named.into_bytes()].concat();
    let data = Attributes::new().bytes(VETH_PEER, &peer);
    let info = Attributes::new().text(INFO_KIND, "veth").nest(INFO_DATA, data);
    let body = Attributes::new().text(LINK_NAME, interface).nest(LINK_INFO, info);
    let purpose = format!("add cable {interface} to {peer_interface}");
    link(NEW_LINK, CREATE | EXCLUSIVE, 0, (0, 0), body, purpose)
}

fn new_address(index: u32, address: IpNet, interface: &str) -> Request {
    let (family, octets) = family(address.addr());
    let flags = if address.addr().is_ipv6() { NO_DUPLICATE_DETECTION } else { 0 };
    let header = [[family, address.prefix_len(), 0, 0], index.to_ne_bytes()].concat();
    let attributes =
        Attributes::new().bytes(LOCAL, &octets).bytes(ADDRESS, &octets).host_u32(ADDRESS_FLAGS, flags);
    let body = [header, attributes.into_bytes()].concat();
    let purpose = format!("add address {address} to {interface}");
    Request { kind: NEW_ADDRESS, flags: CREATE | EXCLUSIVE | ACK, body, purpose }
}

fn new_route(network: IpNet, gateway: IpAddr) -> Request {
    let (family, octets) = family(network.network());
    let (_, gateway_octets) = self::family(gateway);
    let header = [family, network.prefix_len(), 0, 0, MAIN_TABLE, BY_ADMINISTRATOR, 0, UNICAST, 0, 0, 0, 0];
    let mut attributes = Attributes::new().bytes(ROUTE_GATEWAY, &gateway_octets);
    if network.prefix_len() > 0 {
        attributes = attributes.bytes(ROUTE_DESTINATION, &octets);
    }
    let body = [header.to_vec(), attributes.into_bytes()].concat();
    let purpose = format!("add route to {network} by {gateway}");
    Request { kind: NEW_ROUTE, flags: CREATE | EXCLUSIVE | ACK, body, purpose }
}

fn family(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (INET, address.octets().to_vec()),
        IpAddr::V6(address) => (INET6, address.octets().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        Attributes::new().bytes(kind, value).into_bytes()
    }

    #[test]
    fn address_has_the_bytes_the_kernel_documents() {
        let request = new_address(7, "10.0.0.1/24".parse().unwrap(), "eth0");
        let expected = [
            [2, 24, 0, 0].to_vec(),
            7u32.to_ne_bytes().to_vec(),
            attribute(2, &[10, 0, 0, 1]),
            attribute(1, &[10, 0, 0, 1]),
            attribute(8, &[0; 4]),
        ];
        assert_eq!(request.body, expected.concat());
        assert_eq!(request.kind, 20);
    }

    #[test]
    fn default_route_names_no_destination() {
        let request = new_route("::/0".parse().unwrap(), "fd00::1".parse().unwrap());
        let gateway = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let expected = [vec![10, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0], attribute(5, &gateway)];
        assert_eq!(request.body, expected.concat());
    }

    #[test]
    fn cable_names_both_ends_and_the_far_namespace() {
        let peer = [vec![0; 16], attribute(3, b"eth0\0"), attribute(28, &9u32.to_ne_bytes())].concat();
        let data = attribute(0x8002, &attribute(1, &peer));
        let info = attribute(0x8000 | 18, &[attribute(1, b"veth\0"), data].concat());
        let expected = [vec![0; 16], attribute(3, b"v1\0"), info].concat();
        assert_eq!(veth("v1", "eth0", 9).body, expected);
    }

    #[test]
    fn bridged_link_carries_only_when_it_forwards() {
        let up = attribute(LINK_STATE, &[STATE_UP]);
        let master = attribute(LINK_MASTER, &3u32.to_ne_bytes());
        let port = |state| {
            attribute(LINK_INFO, &attribute(INFO_MASTER_DATA, &attribute(BRIDGE_PORT_STATE, &[state])))
        };
        assert!(link_carries(&up).unwrap());
        assert!(!link_carries(&attribute(LINK_STATE, &[2])).unwrap());
        assert!(!link_carries(&[up.clone(), master.clone(), port(1)].concat()).unwrap());
        assert!(link_carries(&[up, master, port(PORT_FORWARDING)].concat()).unwrap());
    }
}
