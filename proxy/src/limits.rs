//! What one peer, and one worker, may use at the same time.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use pingora_limits::inflight::{Guard, Inflight};
use pingora_limits::rate::Rate;
use signet_identity::SpiffeId;
use signet_policy::Refusal;

/// Connections per worker and direction: 10,000 clients at about 24 KiB each stay below 256 MiB. Each
/// direction has its own budget, so that nobody outside can stop the application's own calls.
const CONNECTIONS_MAX: usize = 10_000;
/// Connections of callers that have not shown who they are, per worker: far more than handshakes in
/// progress, far fewer than would fill the budget.
const STRANGERS_MAX: usize = 2_000;
/// The same per source address. Behind one NAT stand the containers of one host.
const STRANGERS_PER_ADDRESS: usize = 256;
/// Requests in flight per peer and worker: a tenth of what the worker can hold.
const INFLIGHT_PER_PEER: isize = 1_000;
/// Refused requests per peer and second before the rest is refused unread: each costs 50 µs
/// of Ed25519, so this bounds the waste at half a percent of a core.
const FAILURES_PER_SECOND: f64 = 100.0;

/// Refusals per peer and second that are signed though they are not counted among those: the same waste again.
const SIGNED_PER_SECOND: isize = 100;

/// The open connections of one direction.
#[derive(Clone, Default)]
pub(crate) struct Connections(Rc<Cell<usize>>);

impl Connections {
    /// How many are open.
    pub(crate) fn open(&self) -> usize {
        self.0.get()
    }

    /// A place for one, given back when dropped; none when all are taken.
    pub(crate) fn enter(&self) -> Option<Place> {
        (self.open() < CONNECTIONS_MAX).then(|| Place::take(&self.0))
    }
}

/// Counts what is under way on a worker, without a bound of its own.
#[derive(Clone, Default)]
pub(crate) struct Counter(Rc<Cell<usize>>);

impl Counter {
    /// How many are under way.
    pub(crate) fn count(&self) -> usize {
        self.0.get()
    }

    /// One more, until it is dropped.
    pub(crate) fn take(&self) -> Place {
        Place::take(&self.0)
    }
}

/// A place among counted ones.
pub(crate) struct Place(Rc<Cell<usize>>);

impl Place {
    fn take(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Callers that have not shown who they are, by address.
#[derive(Clone, Default)]
pub(crate) struct Strangers {
    all: Rc<Cell<usize>>,
    by_address: Rc<RefCell<HashMap<IpAddr, usize>>>,
}

impl Strangers {
    /// A place for one stranger, given back when it is known or gone.
    pub(crate) fn enter(&self, address: IpAddr) -> Option<Stranger> {
        let address = site(address);
        let mut by_address = self.by_address.borrow_mut();
        let count = by_address.get(&address).copied().unwrap_or_default();
        if self.all.get() >= STRANGERS_MAX || count >= STRANGERS_PER_ADDRESS {
            return None;
        }
        by_address.insert(address, count + 1);
        Some(Stranger { _place: Place::take(&self.all), by_address: Rc::clone(&self.by_address), address })
    }
}

/// An IPv6 host has a whole /64 to call from, so that is what counts as one.
fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

/// A stranger's place.
pub(crate) struct Stranger {
    _place: Place,
    by_address: Rc<RefCell<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut by_address = self.by_address.borrow_mut();
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

/// The counters of one worker: count-min sketches, so their memory is fixed whatever the number of
/// peers, and they err only towards counting too much.
pub(crate) struct Limits {
    inflight: Inflight,
    failures: Rate,
    signed: Rate,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            inflight: Inflight::new(),
            failures: Rate::new(Duration::from_secs(1)),
            signed: Rate::new(Duration::from_secs(1)),
        }
    }
}

impl Limits {
    /// A place for one request of this peer, given back when dropped.
    pub(crate) fn enter(&self, peer: &SpiffeId) -> Result<Guard, Refusal> {
        if self.failures.rate(&peer.as_str()) > FAILURES_PER_SECOND {
            return Err(Refusal::Overloaded);
        }
        let (guard, count) = self.inflight.incr(peer.as_str(), 1);
        if count > INFLIGHT_PER_PEER { Err(Refusal::Overloaded) } else { Ok(guard) }
    }

    /// Counts a request that was refused by its caller's fault.
    pub(crate) fn failed(&self, peer: &SpiffeId) {
        self.failures.observe(&peer.as_str(), 1);
    }

    /// Whether one more refusal that is not counted as a failure is signed for this peer; else it is said unsigned. So many
    /// in a second cost as much as the failures may.
    pub(crate) fn may_sign(&self, peer: &SpiffeId) -> bool {
        self.signed.observe(&peer.as_str(), 1) <= SIGNED_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_that_are_no_failures_are_signed_up_to_a_bound_and_for_each_peer() {
        let id = |name| SpiffeId::parse(&format!("spiffe://mesh.example/app/edge/{name}")).unwrap();
        let limits = Limits::default();
        let asked = 1_000;
        // The second may change on the way, so the bound may be reached twice, or thrice on a slow host; never always.
        let signed = (0..asked).filter(|_| limits.may_sign(&id("one"))).count();
        assert!((100..asked).contains(&signed), "{signed}");
        assert!(limits.may_sign(&id("other")));
        assert!(limits.enter(&id("one")).is_ok(), "nothing of it is a failure");
    }

    #[test]
    fn one_address_full_of_strangers_does_not_shut_out_another() {
        let strangers = Strangers::default();
        let (crowd, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let held: Vec<_> = (0..STRANGERS_PER_ADDRESS).map(|_| strangers.enter(crowd).unwrap()).collect();
        assert!(strangers.enter(crowd).is_none());
        assert!(strangers.enter(other).is_some());
        drop(held);
        assert!(strangers.enter(crowd).is_some());
        assert!(strangers.by_address.borrow().is_empty());
    }

    #[test]
    fn a_peer_at_its_limit_does_not_hurt_another() {
        let limits = Limits::default();
        let greedy = SpiffeId::parse("spiffe://mf2c.example/app/d/greedy").unwrap();
        let modest = SpiffeId::parse("spiffe://mf2c.example/platform/d/cimi").unwrap();
        let held: Vec<_> = (0..INFLIGHT_PER_PEER).map(|_| limits.enter(&greedy).unwrap()).collect();
        assert_eq!(limits.enter(&greedy).err(), Some(Refusal::Overloaded));
        assert!(limits.enter(&modest).is_ok());
        drop(held);
        assert!(limits.enter(&greedy).is_ok());
    }
}
