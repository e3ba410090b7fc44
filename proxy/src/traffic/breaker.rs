//! Gives an endpoint a rest when it fails too often.

use std::time::{Duration, Instant};

use signet_policy::CircuitBreaking;

/// Success is counted over ten seconds, then anew.
const WINDOW: Duration = Duration::from_secs(10);

/// Rests that follow each other without a success grow up to this many times the first.
const GROWTH_MAX: u32 = 10;

/// What became of a request, as far as its endpoint is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It answered.
    Served,
    /// It did not, or with a status from 500 on.
    Failed,
    /// Nobody knows: the application went away, or it was refused here.
    Unknown,
}

/// The state of one endpoint.
pub(crate) struct Breaker {
    state: State,
    consecutive: u32,
    served: u32,
    failed: u32,
    window_began: Instant,
    /// Rests in a row.
    rests: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    /// One request tries it.
    Probing,
}

/// The right to send one request to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Usual,
    /// It decides on whether the endpoint is used again.
    Probe,
}

/// What a verdict changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    Ejected,
    Restored,
}

impl Breaker {
    pub(crate) fn new(now: Instant) -> Self {
        Self { state: State::Closed, consecutive: 0, served: 0, failed: 0, window_began: now, rests: 0 }
    }

    /// Whether a request may go there now.
    pub(crate) fn is_open(&self, now: Instant) -> bool {
        match self.state {
            State::Closed => false,
            State::Open { until } => now < until,
            State::Probing => true,
        }
    }

    /// Whether it is not in use as others are.
    pub(crate) fn is_resting(&self) -> bool {
        self.state != State::Closed
    }

    /// How long it still rests; nothing for one that is tried at the moment.
    pub(crate) fn rest(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Open { until } => Some(until.saturating_duration_since(now)),
            State::Closed | State::Probing => None,
        }
    }

    /// Lets one request through; to be asked where [`Self::is_open`] says no.
    pub(crate) fn admit(&mut self) -> Admission {
        match self.state {
            State::Closed | State::Probing => Admission::Usual,
            State::Open { .. } => {
                self.state = State::Probing;
                Admission::Probe
            }
        }
    }

    /// Learns what became of a request. `may_eject` says whether another endpoint may rest.
    pub(crate) fn learn(
        &mut self,
        admission: Admission,
        verdict: Verdict,
        policy: Option<&CircuitBreaking>,
        may_eject: bool,
        now: Instant,
    ) -> Change {
        let Some(policy) = policy else {
            // Nobody asks for rests any more.
            *self = Self::new(now);
            return Change::None;
        };
        match (admission, verdict) {
            (Admission::Probe, Verdict::Served) => {
                *self = Self::new(now);
                return Change::Restored;
            }
            (Admission::Probe, Verdict::Failed) => {
                self.eject(policy, now);
                return Change::Ejected;
            }
            (Admission::Probe, Verdict::Unknown) => {
                // The next one tries.
                self.state = State::Open { until: now };
                return Change::None;
            }
            (Admission::Usual, _) => {}
        }
        // What was under way when the rest began says nothing new.
        if self.state != State::Closed || verdict == Verdict::Unknown {
            return Change::None;
        }
        if now.saturating_duration_since(self.window_began) >= WINDOW {
            (self.served, self.failed, self.window_began) = (0, 0, now);
        }
        match verdict {
            Verdict::Served => (self.served, self.consecutive, self.rests) = (self.served + 1, 0, 0),
            _ => (self.failed, self.consecutive) = (self.failed + 1, self.consecutive + 1),
        }
        if verdict == Verdict::Failed && may_eject && self.has_failed(policy) {
            self.eject(policy, now);
            return Change::Ejected;
        }
        Change::None
    }

    fn has_failed(&self, policy: &CircuitBreaking) -> bool {
        let all = self.served + self.failed;
        let in_a_row = policy.consecutive_failures.is_some_and(|limit| self.consecutive >= limit);
        let too_few = policy.success_rate.is_some_and(|rate| {
            all >= rate.volume && u64::from(self.served) * 100 < u64::from(rate.minimum) * u64::from(all)
        });
        in_a_row || too_few
    }

    fn eject(&mut self, policy: &CircuitBreaking, now: Instant) {
        let rests = (self.rests + 1).min(GROWTH_MAX);
        let rest = Duration::from_millis(policy.ejection_time_ms).saturating_mul(rests);
        *self = Self::new(now);
        self.rests = rests;
        self.state = State::Open { until: now.checked_add(rest).unwrap_or(now) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use signet_policy::SuccessRate;

    const REST: Duration = Duration::from_secs(1);

    fn policy(consecutive: Option<u32>, rate: Option<(u32, u32)>) -> CircuitBreaking {
        CircuitBreaking {
            consecutive_failures: consecutive,
            success_rate: rate.map(|(minimum, volume)| SuccessRate { minimum, volume }),
            ejection_time_ms: 1_000,
            max_ejection_percent: 50,
        }
    }

    fn tell(breaker: &mut Breaker, policy: &CircuitBreaking, verdict: Verdict, now: Instant) -> Change {
        let admission = breaker.admit();
        breaker.learn(admission, verdict, Some(policy), true, now)
    }

    #[test]
    fn failures_in_a_row_bring_a_rest_and_one_success_ends_it() {
        let (now, policy) = (Instant::now(), policy(Some(3), None));
        let mut breaker = Breaker::new(now);
        for verdict in [Verdict::Failed, Verdict::Failed, Verdict::Served, Verdict::Failed, Verdict::Failed] {
            assert_eq!(tell(&mut breaker, &policy, verdict, now), Change::None);
        }
        assert_eq!(tell(&mut breaker, &policy, Verdict::Failed, now), Change::Ejected);
        assert!(breaker.is_open(now) && breaker.rest(now) == Some(REST));
        let later = now + REST;
        assert!(!breaker.is_open(later));
        assert_eq!(breaker.admit(), Admission::Probe);
        assert!(breaker.is_open(later), "one request tries it");
        let change = breaker.learn(Admission::Probe, Verdict::Served, Some(&policy), true, later);
        assert_eq!(change, Change::Restored);
        assert!(!breaker.is_open(later) && !breaker.is_resting());
    }

    #[test]
    fn rests_grow_while_tries_fail_and_a_try_without_an_end_is_made_again() {
        let (mut now, policy) = (Instant::now(), policy(Some(1), None));
        let mut breaker = Breaker::new(now);
        for round in 1..=20 {
            assert_eq!(tell(&mut breaker, &policy, Verdict::Failed, now), Change::Ejected);
            assert_eq!(breaker.rest(now), Some(REST * round.min(GROWTH_MAX)));
            now += breaker.rest(now).unwrap();
        }
        assert_eq!(tell(&mut breaker, &policy, Verdict::Unknown, now), Change::None);
        assert!(!breaker.is_open(now));
        assert_eq!(breaker.admit(), Admission::Probe);
    }

    #[test]
    fn too_few_successes_bring_a_rest_once_there_are_enough_to_tell() {
        let (now, policy) = (Instant::now(), policy(None, Some((50, 4))));
        let mut breaker = Breaker::new(now);
        for verdict in [Verdict::Failed, Verdict::Served, Verdict::Failed] {
            assert_eq!(tell(&mut breaker, &policy, verdict, now), Change::None);
        }
        assert_eq!(tell(&mut breaker, &policy, Verdict::Failed, now), Change::Ejected);
        let mut breaker = Breaker::new(now);
        for _ in 0..3 {
            tell(&mut breaker, &policy, Verdict::Failed, now);
        }
        assert_eq!(
            tell(&mut breaker, &policy, Verdict::Failed, now + WINDOW),
            Change::None,
            "of another time"
        );
    }

    #[test]
    fn nothing_rests_that_may_not_or_that_nobody_asks_about() {
        let (now, policy) = (Instant::now(), policy(Some(1), None));
        let mut breaker = Breaker::new(now);
        let change = breaker.learn(Admission::Usual, Verdict::Failed, Some(&policy), false, now);
        assert_eq!((change, breaker.is_open(now)), (Change::None, false));
        tell(&mut breaker, &policy, Verdict::Failed, now);
        assert!(breaker.is_open(now));
        breaker.learn(Admission::Usual, Verdict::Served, None, true, now);
        assert!(!breaker.is_open(now));
    }
}
