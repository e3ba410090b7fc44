//! What a machine with Docker does to its containers' packets: masquerading, published ports; and cutting a host off.
//!
//! Published ports are reached from other hosts, from the host itself and from the host's own containers (these last
//! appear to come from the bridge). They are not reached at `127.0.0.1`.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use signet_proxy::capture::expression::{
    Expression, Verdict, destination, destination_port, leaves_by, nat_to, source, tcp,
};
use signet_proxy::capture::nftables::{
    self, Chain, DESTINATION_PRIORITY, Hook, Kind, Ruleset, SOURCE_PRIORITY,
};

use super::{LabError, Namespace};

const NAT_TABLE: &str = "lab_nat";
const CUT_TABLE: &str = "lab_cut";
/// Before connection tracking, so that not even known connections pass.
const CUT_PRIORITY: i32 = -400;

/// The translations of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nat {
    /// Container networks whose packets take the host's address where they leave.
    pub masqueraded: Vec<IpNet>,
    /// By which interfaces they leave: the outer one, and the bridge for the detour of a container that calls a
    /// published port of its own host.
    pub outward: Vec<String>,
    /// TCP connections to the first address go to the second; both of one IP version.
    pub published: Vec<(SocketAddr, SocketAddr)>,
}

impl Namespace {
    /// Puts the translations in force in place of earlier ones, atomically; connections that live keep theirs.
    ///
    /// # Errors
    /// [`LabError::Netlink`].
    pub fn translate(&self, nat: &Nat) -> Result<(), LabError> {
        self.install(table(nat))
    }

    /// Cuts this namespace off: nothing but loopback goes in, out or through until [`Self::heal`]. Packets are lost
    /// without a word, as with a pulled plug; addresses and routes stay.
    ///
    /// # Errors
    /// [`LabError::Netlink`].
    pub fn cut(&self) -> Result<(), LabError> {
        let hooks = [("arriving", Hook::Prerouting), ("leaving", Hook::Postrouting)];
        let chains = hooks.map(|(name, hook)| {
            let mut chain = Chain::new(name, Kind::Filter, hook, CUT_PRIORITY);
            chain.drops = true;
            let loopback = match hook {
                Hook::Postrouting => leaves_by("lo"),
                _ => signet_proxy::capture::expression::came_by("lo"),
            };
            chain.decide("loopback", loopback, Verdict::Accept);
            chain
        });
        self.install(Ruleset { chains: chains.to_vec(), ..Ruleset::new(CUT_TABLE) })
    }

    /// Ends [`Self::cut`].
    ///
    /// # Errors
    /// [`LabError::Netlink`].
    pub fn heal(&self) -> Result<(), LabError> {
        self.run(|| nftables::delete(CUT_TABLE))?.map_err(|source| self.refusal(source))
    }

    fn install(&self, table: Ruleset) -> Result<(), LabError> {
        self.run(move || nftables::apply(&table))?.map_err(|source| self.refusal(source))
    }

    fn refusal(&self, source: signet_proxy::capture::netlink::NetlinkError) -> LabError {
        LabError::Netlink { namespace: self.name().into(), source }
    }
}

fn table(nat: &Nat) -> Ruleset {
    let mut arriving = Chain::new("arriving", Kind::Nat, Hook::Prerouting, DESTINATION_PRIORITY);
    let mut local = Chain::new("local", Kind::Nat, Hook::Output, DESTINATION_PRIORITY);
    for (outer, inner) in &nat.published {
        for chain in [&mut arriving, &mut local] {
            chain.act(&format!("publish {outer}"), to(*outer), nat_to(inner.ip(), inner.port()));
        }
    }
    let mut leaving = Chain::new("leaving", Kind::Nat, Hook::Postrouting, SOURCE_PRIORITY);
    for network in &nat.masqueraded {
        for interface in &nat.outward {
            let matches = [source(network), leaves_by(interface)].concat();
            leaving.act(&format!("masquerade {network}"), matches, vec![Expression::Masquerade]);
        }
    }
    Ruleset { chains: vec![arriving, local, leaving], ..Ruleset::new(NAT_TABLE) }
}

fn to(address: SocketAddr) -> Vec<Expression> {
    let host: IpAddr = address.ip();
    [destination(&host.into()), tcp(), destination_port(address.port())].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_port_is_translated_for_arriving_and_local_connections() {
        let published = vec![("10.0.0.1:8080".parse().unwrap(), "172.18.0.2:80".parse().unwrap())];
        let masqueraded = vec!["172.18.0.0/16".parse().unwrap()];
        let table = table(&Nat { masqueraded, outward: vec!["eth0".into(), "br0".into()], published });
        let [arriving, local, leaving] = &table.chains[..] else { panic!("{table:?}") };
        assert_eq!(arriving.rules, local.rules);
        let words = arriving.rules[0].to_string();
        let expected = "\"publish 10.0.0.1:8080\": meta nfproto == 0x02 @network,16,4 == 0x0a000001 \
                        meta l4proto == 0x06 @transport,2,2 == 0x1f90 load 0xac120002 load 0x0050 dnat ip";
        assert_eq!(words, expected);
        assert_eq!(leaving.rules.len(), 2);
    }
}
