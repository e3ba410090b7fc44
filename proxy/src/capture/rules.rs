//! What is captured, and the table that does it.
//!
//! TCP is captured, never filtered. Everything else that leaves ([`Other`]) passes or is refused by a chain of its
//! own. Inbound packets that are not TCP are left alone: nothing here can authenticate them, and an app that
//! answers them is held by [`Other::Refuse`], which knows no exception for answers.

use std::str::FromStr;

use ipnet::IpNet;

use super::CaptureError;
use super::expression::{
    Expression, Verdict, came_by, destination, destination_port, icmp_types, leaves_by, marked, redirect_to,
    sent_by_user, tcp, tcp_opening, udp,
};
use super::nftables::{Chain, DESTINATION_PRIORITY, FILTER_PRIORITY, Hook, Kind, Ruleset};

/// The mark of the proxy's own sockets: "SG".
pub const MARK: u32 = 0x5167;
/// The user the proxy runs as where it may not mark its sockets.
pub const PROXY_UID: u32 = 1337;
/// The table's name; its family is `inet`.
pub const TABLE: &str = "signet";
/// DNS is never captured nor refused: names must resolve before anything is meshed.
pub const DNS_PORT: u16 = 53;
/// Ports and networks left out plus egress rules, together: each is one rule, and the transaction is one datagram
/// that must fit a socket's send buffer (208 KiB by default, under 1 KiB a rule).
pub const MAX_EXCEPTIONS: usize = 128;

pub(super) const LOOPBACK: &str = "lo";
pub(super) const OUTPUT: &str = "output";
pub(super) const PREROUTING: &str = "prerouting";
const OTHER: &str = "other";

/// ICMP that IP itself needs: echo answers, unreachable, time exceeded, parameter problem.
pub(super) const NEEDED_ICMP: [(u8, u8); 3] = [(0, 0), (3, 3), (11, 12)];
/// ICMPv6 that IP itself needs: errors, echo answers, multicast listeners, neighbour discovery, listener reports v2.
pub(super) const NEEDED_ICMPV6: [(u8, u8); 3] = [(1, 4), (129, 137), (143, 143)];

/// What to capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Where outbound connections are sent.
    pub outbound_port: u16,
    /// Where inbound connections are sent.
    pub inbound_port: u16,
    /// Whose connections are the proxy's own.
    pub exempt: Exempt,
    /// Inbound ports left alone, beside the two above.
    pub excluded_inbound_ports: Vec<u16>,
    /// Destination ports left alone, beside DNS.
    pub excluded_outbound_ports: Vec<u16>,
    /// Destination networks left alone.
    pub excluded_outbound_networks: Vec<IpNet>,
    /// What becomes of outbound packets that are not TCP.
    pub other: Other,
}

/// A table without its part about packets that are not TCP.
pub(super) fn redirects(mut table: Ruleset) -> Ruleset {
    table.chains.retain(|chain| chain.name != OTHER);
    table
}

impl Default for Rules {
    /// The usual ports, exemption by mark, health and metrics at 15020 left alone, everything but TCP passed.
    fn default() -> Self {
        Self {
            outbound_port: 15001,
            inbound_port: 15006,
            exempt: Exempt::Mark(MARK),
            excluded_inbound_ports: vec![15020],
            excluded_outbound_ports: Vec::new(),
            excluded_outbound_networks: Vec::new(),
            other: Other::Pass,
        }
    }
}

/// How the proxy's own connections are told from the app's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exempt {
    /// By socket mark: the app must hold neither `CAP_NET_ADMIN` nor `CAP_NET_RAW`, which can set marks too.
    Mark(u32),
    /// By user: the app must not run as this user. Without effect in a user namespace that does not map it.
    Uid(u32),
}

/// What becomes of outbound packets that are not TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Other {
    /// They pass.
    Pass,
    /// They are dropped and their sender gets `EPERM`, save DNS, loopback, what IP itself needs of ICMP, the
    /// proxy's own and these.
    Refuse {
        /// What passes all the same.
        egress: Vec<Egress>,
    },
}

/// A destination that packets other than TCP may go to. Read from `CIDR`, or `CIDR:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Where to.
    pub network: IpNet,
    /// UDP to this port only; without a port, to any.
    pub port: Option<u16>,
}

/// A text that is no egress rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not CIDR or CIDR:PORT, such as 10.0.0.0/8:123")]
pub struct EgressError(String);

impl FromStr for Egress {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || EgressError(text.into());
        let (address, rest) = text.split_once('/').ok_or_else(wrong)?;
        let (prefix, port) = match rest.split_once(':') {
            Some((prefix, port)) => (prefix, Some(port.parse().map_err(|_| wrong())?)),
            None => (rest, None),
        };
        let network = format!("{address}/{prefix}").parse().map_err(|_| wrong())?;
        Ok(Self { network, port })
    }
}

impl Rules {
    /// The table that captures.
    ///
    /// # Errors
    /// [`CaptureError::TooManyExceptions`].
    pub(super) fn table(&self) -> Result<Ruleset, CaptureError> {
        self.check_bounds()?;
        let mut chains = vec![self.output(), self.prerouting()];
        if let Other::Refuse { egress } = &self.other {
            chains.push(self.refuse_others(egress));
        }
        Ok(Ruleset { chains, ..Ruleset::new(TABLE) })
    }

    pub(super) fn check_bounds(&self) -> Result<(), CaptureError> {
        let egress = match &self.other {
            Other::Pass => 0,
            Other::Refuse { egress } => egress.len(),
        };
        let ports = self.excluded_inbound_ports.len() + self.excluded_outbound_ports.len();
        let found = ports + self.excluded_outbound_networks.len() + egress;
        if found > MAX_EXCEPTIONS { Err(CaptureError::TooManyExceptions { found }) } else { Ok(()) }
    }

    /// Ports of this machine whose connections reach their listener directly. The outbound port is
    /// not among them: the proxy listens there on loopback alone, so an application could take it on
    /// another address and be reached in clear.
    pub(super) fn direct_ports(&self) -> impl Iterator<Item = u16> {
        std::iter::once(self.inbound_port).chain(self.excluded_inbound_ports.iter().copied())
    }

    fn exempt_match(&self) -> Vec<Expression> {
        match self.exempt {
            Exempt::Mark(mark) => marked(mark),
            Exempt::Uid(uid) => sent_by_user(uid),
        }
    }

    fn output(&self) -> Chain {
        let mut chain = Chain::new(OUTPUT, Kind::Nat, Hook::Output, DESTINATION_PRIORITY);
        // Covers 127/8, ::1 and this machine's own addresses.
        chain.decide("loopback", leaves_by(LOOPBACK), Verdict::Return);
        chain.decide("the proxy's own", self.exempt_match(), Verdict::Return);
        for port in [DNS_PORT].iter().chain(&self.excluded_outbound_ports) {
            let matches = [tcp(), destination_port(*port)].concat();
            chain.decide(&format!("excluded port {port}"), matches, Verdict::Return);
        }
        for network in &self.excluded_outbound_networks {
            chain.decide(&format!("excluded network {network}"), destination(network), Verdict::Return);
        }
        chain.act("capture outbound TCP", tcp_opening(), redirect_to(self.outbound_port));
        chain
    }

    fn prerouting(&self) -> Chain {
        let mut chain = Chain::new(PREROUTING, Kind::Nat, Hook::Prerouting, DESTINATION_PRIORITY);
        chain.decide("loopback", came_by(LOOPBACK), Verdict::Return);
        for port in self.direct_ports() {
            let matches = [tcp(), destination_port(port)].concat();
            chain.decide(&format!("excluded port {port}"), matches, Verdict::Return);
        }
        chain.act("capture inbound TCP", tcp_opening(), redirect_to(self.inbound_port));
        chain
    }

    fn refuse_others(&self, egress: &[Egress]) -> Chain {
        let mut chain = Chain::new(OTHER, Kind::Filter, Hook::Output, FILTER_PRIORITY);
        chain.drops = true;
        chain.decide("TCP is captured", tcp(), Verdict::Accept);
        chain.decide("loopback", leaves_by(LOOPBACK), Verdict::Accept);
        chain.decide("the proxy's own", self.exempt_match(), Verdict::Accept);
        chain.decide("DNS", [udp(), destination_port(DNS_PORT)].concat(), Verdict::Accept);
        for (first, last) in NEEDED_ICMP {
            chain.decide("ICMP that IP needs", icmp_types(false, first, last), Verdict::Accept);
        }
        for (first, last) in NEEDED_ICMPV6 {
            chain.decide("ICMPv6 that IP needs", icmp_types(true, first, last), Verdict::Accept);
        }
        for Egress { network, port } in egress {
            let mut matches = destination(network);
            matches.extend(udp());
            if let Some(port) = port {
                matches.extend(destination_port(*port));
            }
            chain.decide(&format!("egress to {network}"), matches, Verdict::Accept);
        }
        chain
    }
}

/// The table that captures nothing new and keeps the connections it has redirected: each chain holds one redirect
/// that never matches, because without any redirect the kernel stops translating the living ones too.
pub(super) fn drained() -> Ruleset {
    let never = || [tcp_opening(), destination_port(0)].concat();
    let mut output = Chain::new(OUTPUT, Kind::Nat, Hook::Output, DESTINATION_PRIORITY);
    let mut prerouting = Chain::new(PREROUTING, Kind::Nat, Hook::Prerouting, DESTINATION_PRIORITY);
    for chain in [&mut output, &mut prerouting] {
        chain.act("draining: never matches", never(), redirect_to(Rules::default().outbound_port));
    }
    Ruleset { chains: vec![output, prerouting], ..Ruleset::new(TABLE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purposes(chain: &Chain) -> Vec<&str> {
        chain.rules.iter().map(|rule| rule.purpose.as_str()).collect()
    }

    #[test]
    fn exemptions_stand_before_the_redirect() {
        let rules = Rules {
            excluded_outbound_ports: vec![2379],
            excluded_outbound_networks: vec!["10.0.0.0/8".parse().unwrap()],
            ..Rules::default()
        };
        let table = rules.table().unwrap();
        let expected = [
            "loopback",
            "the proxy's own",
            "excluded port 53",
            "excluded port 2379",
            "excluded network 10.0.0.0/8",
            "capture outbound TCP",
        ];
        assert_eq!(purposes(&table.chains[0]), expected);
        let expected = ["loopback", "excluded port 15006", "excluded port 15020", "capture inbound TCP"];
        assert_eq!(purposes(&table.chains[1]), expected);
        assert_eq!(table.chains.len(), 2, "what is not TCP passes");
    }

    #[test]
    fn refusing_chain_drops_what_no_rule_names() {
        let egress = vec!["10.0.0.0/8:123".parse().unwrap()];
        let table = Rules { other: Other::Refuse { egress }, ..Rules::default() }.table().unwrap();
        let chain = &table.chains[2];
        assert!(chain.drops);
        assert_eq!(purposes(chain).last(), Some(&"egress to 10.0.0.0/8"));
        let accepts = |rule: &super::super::nftables::Rule| {
            rule.expressions.last() == Some(&Expression::Verdict(Verdict::Accept))
        };
        assert!(chain.rules.iter().all(accepts));
    }

    #[test]
    fn exceptions_are_bounded() {
        let excluded_inbound_ports = (1..=MAX_EXCEPTIONS as u16 + 1).collect();
        let rules = Rules { excluded_inbound_ports, ..Rules::default() };
        assert!(matches!(rules.table(), Err(CaptureError::TooManyExceptions { found: 129 })));
    }

    #[test]
    fn egress_is_read_with_and_without_port() {
        let egress = |text: &str| text.parse::<Egress>();
        let network = "fd00::/8".parse().unwrap();
        assert_eq!(egress("fd00::/8:123"), Ok(Egress { network, port: Some(123) }));
        assert_eq!(egress("fd00::/8"), Ok(Egress { network, port: None }));
        for wrong in ["10.0.0.1", "10.0.0.0/33", "10.0.0.0/8:x", "10.0.0.0/8:65536", ""] {
            assert!(egress(wrong).is_err(), "{wrong}");
        }
    }
}
