//! Who speaks first on a port: remembered, so that only the first connections to it need a probe.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use signet_identity::SpiffeId;
use signet_policy::SpeaksFirst;

/// How long an observation is relied on.
const TTL: Duration = Duration::from_secs(600);
/// Ports remembered: far more than one component talks to. The map is cleared when full, which
/// costs a probe each.
const PORTS_MAX: usize = 1024;

/// What was observed on one of our own ports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Observation {
    /// The port.
    pub port: u16,
    /// Who spoke first.
    pub speaks_first: SpeaksFirst,
}

/// The observations of one worker about other workloads' ports.
#[derive(Debug, Default)]
pub(crate) struct Habits(HashMap<(SpiffeId, u16), (SpeaksFirst, Instant)>);

impl Habits {
    /// Who speaks first there, if that was seen in the last ten minutes.
    pub(crate) fn recall(&self, workload: &SpiffeId, port: u16, now: Instant) -> Option<SpeaksFirst> {
        let (first, since) = self.0.get(&(workload.clone(), port))?;
        (now.duration_since(*since) < TTL).then_some(*first)
    }

    /// Remembers who spoke first.
    pub(crate) fn observe(&mut self, workload: &SpiffeId, port: u16, first: SpeaksFirst, now: Instant) {
        if self.0.len() >= PORTS_MAX {
            self.0.clear();
        }
        self.0.insert((workload.clone(), port), (first, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_is_forgotten_after_ten_minutes() {
        let workload = SpiffeId::parse("spiffe://mf2c.example/platform/d/db").unwrap();
        let mut habits = Habits::default();
        let now = Instant::now();
        habits.observe(&workload, 3306, SpeaksFirst::Server, now);
        assert_eq!(habits.recall(&workload, 3306, now + TTL / 2), Some(SpeaksFirst::Server));
        assert_eq!(habits.recall(&workload, 3306, now + TTL), None);
        assert_eq!(habits.recall(&workload, 3307, now), None);
    }
}
