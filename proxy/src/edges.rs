//! Where something went past the mesh's protection because policy lets it, for `signet coverage`.
//!
//! What is fully protected never gets here. Nobody can fill the table with what they made up: a caller has one place for
//! each port it may call, by the name it proved or else by its address, and a destination outside has the name that policy
//! gives it. Nothing of a message is kept.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::mem::discriminant;
use std::sync::{Mutex, MutexGuard, PoisonError};

use signet_sync::{Edge, End, Gap, MAX_EDGES, Tally};

/// Callers with an identity, times ports: as many as one workload has.
const CALLERS_MAX: usize = 128;
/// Callers without one. Whoever has many addresses only displaces others of those.
const ADDRESSES_MAX: usize = 64;
/// Destinations outside the mesh; only the application beside us adds to them.
const OUTSIDE_MAX: usize = 64;

const _: () = assert!(CALLERS_MAX + ADDRESSES_MAX + OUTSIDE_MAX == MAX_EDGES, "all of them are reported");

/// The edges of this workload that lacked protection since start, those seen last.
#[derive(Debug, Default)]
pub struct Edges(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    // Asked for every request that is not signed. It is small, so keys that collide would win little.
    seen: HashMap<Edge, Tally, foldhash::fast::RandomState>,
    /// How often an edge gave its place to another.
    lost: u64,
}

impl Edges {
    /// Counts an exchange that lacked something and was let pass.
    pub(crate) fn lacked(&self, edge: Edge, gaps: &[Gap], now_ms: u64) {
        let mut table = self.lock();
        let tally = match table.seen.get_mut(&edge) {
            Some(tally) => tally,
            None => {
                table.make_room(&edge.end);
                table.seen.entry(edge).or_default()
            }
        };
        gaps.iter().for_each(|gap| tally.count(*gap, now_ms));
    }

    /// All that are kept, the last one seen first, and how often one gave its place to another.
    pub fn list(&self) -> (Vec<(Edge, Tally)>, u64) {
        let table = self.lock();
        let mut edges: Vec<_> = table.seen.iter().map(|(edge, tally)| (edge.clone(), *tally)).collect();
        edges.sort_by_key(|(_, tally)| Reverse(tally.last_seen_ms));
        (edges, table.lost)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Lets go of the one of the same kind that was not seen for longest, where there is no room for another.
    fn make_room(&mut self, end: &End) {
        let room = match end {
            End::Address(_) => ADDRESSES_MAX,
            End::Caller(_) => CALLERS_MAX,
            End::Outside(..) => OUTSIDE_MAX,
        };
        let same = || self.seen.iter().filter(|(edge, _)| discriminant(&edge.end) == discriminant(end));
        if same().count() < room {
            return;
        }
        let oldest = same().min_by_key(|(_, tally)| tally.last_seen_ms).map(|(edge, _)| edge.clone());
        if let Some(oldest) = oldest {
            self.seen.remove(&oldest);
            self.lost = self.lost.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use signet_identity::SpiffeId;

    use super::*;

    fn caller(name: usize) -> Edge {
        let id = SpiffeId::parse(&format!("spiffe://mesh.example/app/edge/{name}")).unwrap();
        Edge { end: End::Caller(id), port: 80 }
    }

    fn address(number: usize) -> Edge {
        let address = IpAddr::from(Ipv4Addr::from_bits(u32::try_from(number).unwrap()));
        Edge { end: End::Address(address), port: 80 }
    }

    fn keeps(edges: &Edges, edge: &Edge) -> bool {
        edges.list().0.iter().any(|(kept, _)| kept == edge)
    }

    #[test]
    fn each_gap_of_an_edge_is_counted_and_the_last_one_seen_is_first() {
        let edges = Edges::default();
        edges.lacked(caller(1), &[Gap::Unsigned], 1);
        edges.lacked(address(1), &[Gap::Plaintext, Gap::Uncovered], 2);
        edges.lacked(caller(1), &[Gap::Unsigned], 3);
        edges.lacked(caller(1), &[Gap::Uncovered], 3);
        let unsigned = Tally { plaintext: 0, uncovered: 1, unsigned: 2, last_seen_ms: 3 };
        let plaintext = Tally { plaintext: 1, uncovered: 1, unsigned: 0, last_seen_ms: 2 };
        assert_eq!(edges.list(), (vec![(caller(1), unsigned), (address(1), plaintext)], 0));
        let other_port = Edge { port: 81, ..caller(1) };
        edges.lacked(other_port.clone(), &[Gap::Unsigned], 4);
        assert!(keeps(&edges, &other_port) && keeps(&edges, &caller(1)));
    }

    #[test]
    fn a_full_table_forgets_who_was_not_seen_for_longest_and_says_so() {
        let edges = Edges::default();
        for at in 0..CALLERS_MAX {
            edges.lacked(caller(at), &[Gap::Unsigned], at as u64);
        }
        edges.lacked(caller(0), &[Gap::Unsigned], 1_000);
        assert_eq!(edges.list().1, 0);
        edges.lacked(caller(CALLERS_MAX), &[Gap::Unsigned], 1_001);
        assert_eq!((edges.list().0.len(), edges.list().1), (CALLERS_MAX, 1));
        assert!(keeps(&edges, &caller(0)) && !keeps(&edges, &caller(1)));
    }

    #[test]
    fn whoever_calls_from_many_addresses_displaces_no_verified_caller() {
        let edges = Edges::default();
        edges.lacked(caller(1), &[Gap::Unsigned], 0);
        for at in 0..10 * ADDRESSES_MAX {
            edges.lacked(address(at), &[Gap::Plaintext], at as u64 + 1);
        }
        assert!(keeps(&edges, &caller(1)));
        assert_eq!(edges.list().0.len(), ADDRESSES_MAX + 1);
        assert_eq!(edges.list().1, 9 * ADDRESSES_MAX as u64);
    }
}
