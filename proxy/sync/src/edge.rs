//! Edges that lack protection: a proxy lists its own in each status, and the control plane shows those of all.

use std::net::IpAddr;

use prost::Message;
use signet_identity::SpiffeId;
use signet_policy::NamePattern;

use crate::bytes::{address, octets, port, spiffe_id};
use crate::proto::sync as wire;
use crate::proto::sync::edge::End as WireEnd;
use crate::{DecodeError, MAX_EDGE_BYTES, MAX_EDGES};

/// The other end of what the reporting proxy's workload sent or got, and the port that was called.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Edge {
    /// The other end.
    pub end: End,
    /// The port that was called, whichever end it is of.
    pub port: u16,
}

/// Who is at the other end. No name in it is one that anybody made up: it was proven, or stands in policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// A caller that proved nothing, by its address.
    Address(IpAddr),
    /// A caller that proved who it is.
    Caller(SpiffeId),
    /// A destination outside the mesh, with the name by which policy lists it, where it does.
    Outside(IpAddr, Option<NamePattern>),
}

/// What something lacked that was let pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// A mutually authenticated connection.
    Plaintext,
    /// An enforced rule: what would refuse it only observes, or it left by permissive mode alone.
    Uncovered,
    /// A signature.
    Unsigned,
}

/// How often an edge lacked what, and when last. Requests are counted, and connections that are not HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Without a mutually authenticated connection.
    pub plaintext: u64,
    /// Without an enforced rule.
    pub uncovered: u64,
    /// Without a signature.
    pub unsigned: u64,
    /// The last of them, in milliseconds since 1970.
    pub last_seen_ms: u64,
}

impl Tally {
    /// Counts one.
    pub fn count(&mut self, gap: Gap, now_ms: u64) {
        let counter = match gap {
            Gap::Plaintext => &mut self.plaintext,
            Gap::Uncovered => &mut self.uncovered,
            Gap::Unsigned => &mut self.unsigned,
        };
        *counter = counter.saturating_add(1);
        self.last_seen_ms = now_ms;
    }

    /// Takes up what another proxy of the same workload counted.
    pub fn add(&mut self, other: Self) {
        self.plaintext = self.plaintext.saturating_add(other.plaintext);
        self.uncovered = self.uncovered.saturating_add(other.uncovered);
        self.unsigned = self.unsigned.saturating_add(other.unsigned);
        self.last_seen_ms = self.last_seen_ms.max(other.last_seen_ms);
    }
}

/// Edges from `Status.edges`, and how many were left out: those beyond [`MAX_EDGES`] or [`MAX_EDGE_BYTES`], and those that
/// this version cannot read. A report is for people, so what can be read of it is taken.
pub fn decode_edges(edges: &[wire::Edge]) -> (Vec<(Edge, Tally)>, u64) {
    let mut bytes = 0;
    let within = edges.iter().take(MAX_EDGES).take_while(|edge| {
        bytes += edge.encoded_len();
        bytes <= MAX_EDGE_BYTES
    });
    let read: Vec<(Edge, Tally)> = within.filter_map(|edge| decode(edge).ok()).collect();
    let left_out = edges.len() - read.len();
    (read, left_out as u64)
}

fn decode(edge: &wire::Edge) -> Result<(Edge, Tally), DecodeError> {
    let end = match edge.end.as_ref().ok_or(DecodeError::Missing { field: "edge.end" })? {
        WireEnd::Caller(id) => End::Caller(spiffe_id("edge.caller", id)?),
        WireEnd::CallerAddress(octets) => End::Address(address("edge.caller_address", octets)?),
        WireEnd::OutsideAddress(octets) => {
            let name = match edge.outside_name.as_str() {
                "" => None,
                name => Some(
                    NamePattern::parse(name).map_err(|_| DecodeError::Name { field: "edge.outside_name" })?,
                ),
            };
            End::Outside(address("edge.outside_address", octets)?, name)
        }
    };
    let tally = Tally {
        plaintext: edge.plaintext,
        uncovered: edge.uncovered,
        unsigned: edge.unsigned,
        last_seen_ms: edge.last_seen_ms,
    };
    Ok((Edge { end, port: port("edge.port", edge.port)? }, tally))
}

impl From<&(Edge, Tally)> for wire::Edge {
    fn from((Edge { end, port }, tally): &(Edge, Tally)) -> Self {
        let (end, name) = match end {
            End::Address(address) => (WireEnd::CallerAddress(octets(*address)), None),
            End::Caller(id) => (WireEnd::Caller(id.to_string()), None),
            End::Outside(address, name) => (WireEnd::OutsideAddress(octets(*address)), name.as_ref()),
        };
        Self {
            end: Some(end),
            port: u32::from(*port),
            outside_name: name.map(ToString::to_string).unwrap_or_default(),
            plaintext: tally.plaintext,
            unsigned: tally.unsigned,
            uncovered: tally.uncovered,
            last_seen_ms: tally.last_seen_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges() -> Vec<(Edge, Tally)> {
        let caller = End::Caller(SpiffeId::parse("spiffe://mesh.example/app/edge/web").unwrap());
        let name = NamePattern::parse("*.example.com").unwrap();
        let ends = [
            caller,
            End::Address("192.0.2.7".parse().unwrap()),
            End::Address("2001:db8::7".parse().unwrap()),
            End::Outside("198.51.100.1".parse().unwrap(), None),
            End::Outside("198.51.100.1".parse().unwrap(), Some(name)),
        ];
        let tally = Tally { plaintext: 1, uncovered: 2, unsigned: 3, last_seen_ms: 4 };
        ends.map(|end| (Edge { end, port: 443 }, tally)).to_vec()
    }

    fn on_the_wire(edges: &[(Edge, Tally)]) -> Vec<wire::Edge> {
        edges.iter().map(wire::Edge::from).collect()
    }

    #[test]
    fn edges_are_read_as_they_were_written() {
        assert_eq!(decode_edges(&on_the_wire(&edges())), (edges(), 0));
    }

    #[test]
    fn what_cannot_be_read_is_left_out_and_counted() {
        let good = on_the_wire(&edges()).remove(0);
        let mut wrong = vec![good.clone(); 7];
        wrong[0].end = None;
        wrong[1].end = Some(WireEnd::Caller("web\u{1b}[2J".into()));
        wrong[2].end = Some(WireEnd::CallerAddress(vec![1, 2, 3]));
        wrong[3].end = Some(WireEnd::CallerAddress(
            "::ffff:192.0.2.7".parse::<std::net::Ipv6Addr>().unwrap().octets().into(),
        ));
        wrong[4].port = 0;
        wrong[5].port = 65_536;
        wrong[6].end = Some(WireEnd::OutsideAddress(vec![192, 0, 2, 1]));
        wrong[6].outside_name = "evil\n".into();
        wrong.push(good);
        assert_eq!(decode_edges(&wrong), (edges()[..1].to_vec(), 7));
    }

    #[test]
    fn a_proxy_fills_no_more_than_its_room() {
        let good = on_the_wire(&edges()).remove(0);
        let (read, left_out) = decode_edges(&vec![good.clone(); MAX_EDGES + 5]);
        assert_eq!((read.len(), left_out), (MAX_EDGES, 5));
        let long = WireEnd::Caller(format!("spiffe://mesh.example/{}", "a".repeat(2_000)));
        let (read, left_out) = decode_edges(&vec![wire::Edge { end: Some(long), ..good }; 100]);
        assert!(read.len() * 2_000 <= MAX_EDGE_BYTES && read.len() > 20, "{}", read.len());
        assert_eq!(left_out, 100 - read.len() as u64);
    }
}
