//! What one peer, and one worker, may use at the same time.

use pingora_limits::inflight::{Guard, Inflight};
use pingora_limits::rate::Rate;
use signet_identity::SpiffeId;
use signet_policy::Refusal;
use std::time::Duration;

/// Connections per worker: 10,000 clients at about 24 KiB each stay below 256 MiB.
pub(crate) const CONNECTIONS_MAX: usize = 10_000;
/// Requests in flight per peer and worker: a tenth of what the worker can hold.
const INFLIGHT_PER_PEER: isize = 1_000;
/// Refused requests per peer and second before the rest is refused unread: each costs 50 µs
/// of Ed25519, so this bounds the waste at half a percent of a core.
const FAILURES_PER_SECOND: f64 = 100.0;

/// The counters of one worker: count-min sketches, so their memory is fixed whatever the number of
/// peers, and they err only towards counting too much.
pub(crate) struct Limits {
    inflight: Inflight,
    failures: Rate,
}

impl Default for Limits {
    fn default() -> Self {
        Self { inflight: Inflight::new(), failures: Rate::new(Duration::from_secs(1)) }
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
