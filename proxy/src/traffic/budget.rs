//! How much of the load may be retries.

use std::time::Instant;

use signet_policy::RetryBudget;

/// Requests and retries are counted over ten seconds, one at a time, so that a burst is remembered but not for long.
const SECONDS: usize = 10;

/// Requests and retries of the last seconds, to one destination.
pub(crate) struct Budget {
    started: Instant,
    /// Seconds since the start for which the newest slot counts.
    newest: u64,
    slots: [Slot; SECONDS],
}

#[derive(Clone, Copy, Default)]
struct Slot {
    requests: u32,
    retries: u32,
}

impl Budget {
    pub(crate) fn new(now: Instant) -> Self {
        Self { started: now, newest: 0, slots: [Slot::default(); SECONDS] }
    }

    /// Counts a request, which adds to what may be sent again.
    pub(crate) fn deposit(&mut self, now: Instant) {
        let slot = self.slot(now);
        slot.requests = slot.requests.saturating_add(1);
    }

    /// Takes one retry from the budget, if there is one left.
    pub(crate) fn withdraw(&mut self, budget: RetryBudget, now: Instant) -> bool {
        self.slot(now);
        let sum = |count: fn(&Slot) -> u32| self.slots.iter().map(|slot| u64::from(count(slot))).sum::<u64>();
        let free = u64::from(budget.min_per_second) * SECONDS as u64;
        let allowed = sum(|slot| slot.requests) * u64::from(budget.percent) / 100 + free;
        if sum(|slot| slot.retries) >= allowed {
            return false;
        }
        let slot = self.slot(now);
        slot.retries = slot.retries.saturating_add(1);
        true
    }

    /// The slot of this second; those that are past begin anew.
    fn slot(&mut self, now: Instant) -> &mut Slot {
        let second = now.saturating_duration_since(self.started).as_secs().max(self.newest);
        let passed = (second - self.newest).min(SECONDS as u64);
        for step in 1..=passed {
            self.slots[((self.newest + step) % SECONDS as u64) as usize] = Slot::default();
        }
        if passed == SECONDS as u64 {
            self.slots = [Slot::default(); SECONDS];
        }
        self.newest = second;
        &mut self.slots[(second % SECONDS as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn retries_are_a_part_of_the_load() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let fifth = RetryBudget { percent: 20, min_per_second: 0 };
        assert!(!budget.withdraw(fifth, start), "of nothing");
        for _ in 0..10 {
            budget.deposit(start);
        }
        let granted = (0..100).filter(|_| budget.withdraw(fifth, start)).count();
        assert_eq!(granted, 2);
        assert!(!budget.withdraw(fifth, start + Duration::from_secs(9)), "requests and retries still count");
        assert!(!budget.withdraw(fifth, start + Duration::from_secs(10)), "nothing counts any more");
        budget.deposit(start + Duration::from_secs(30));
        assert!(
            budget.withdraw(RetryBudget { percent: 100, min_per_second: 0 }, start + Duration::from_secs(30))
        );
    }

    #[test]
    fn a_lone_caller_may_try_again() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let one = RetryBudget { percent: 0, min_per_second: 1 };
        assert_eq!((0..100).filter(|_| budget.withdraw(one, start)).count(), SECONDS);
        assert!(!budget.withdraw(one, start + Duration::from_secs(5)));
        assert!(budget.withdraw(one, start + Duration::from_secs(10)));
    }
}
