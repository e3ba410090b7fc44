//! How often one proxy may change what all others are told.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Changes a proxy may make at once: its addresses as they come up, and the habits of its first ports.
const BURST: u32 = 8;

/// One more every so often. Each may cost a durable write, and a new directory for every proxy.
const REFILL: Duration = Duration::from_secs(10);

/// Proxies whose changes are counted before those that made none for long are forgotten.
const FORGET_ABOVE: usize = 1_024;

/// Counts claims and observed habits, or something else that is not free, per instance: the replicas of one identity start together and must not wait for
/// each other, while whoever stole a key is one instance.
pub(crate) struct Churn {
    burst: u32,
    refill: Duration,
    /// When the budget of an instance is full again; it lacks one change for each refill until then.
    full_at: Mutex<HashMap<String, Instant>>,
}

impl Default for Churn {
    fn default() -> Self {
        Self::new(BURST, REFILL)
    }
}

impl Churn {
    /// Budgets of `burst`, with one more after each `refill`.
    pub(crate) fn new(burst: u32, refill: Duration) -> Self {
        Self { burst, refill, full_at: Mutex::default() }
    }

    /// Takes one change from the budget of `instance`.
    ///
    /// # Errors
    /// When there is none left: the time at which there is one.
    pub(crate) fn take(&self, instance: &str, now: Instant) -> Result<(), Instant> {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let known = full_at.get(instance).copied().filter(|at| *at > now).unwrap_or(now);
        // So far ahead lies "full" after a change from an empty budget.
        let horizon = now + self.refill * self.burst;
        let next = known + self.refill;
        if next > horizon {
            return Err(now + (next - horizon));
        }
        if full_at.len() >= FORGET_ABOVE {
            full_at.retain(|_, at| *at > now);
        }
        full_at.insert(instance.to_owned(), next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_taken_then_one_change_at_a_time() {
        let (churn, start) = (Churn::default(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(churn.take("one", start), Ok(()));
        }
        let again = churn.take("one", start).unwrap_err();
        assert_eq!(again, start + REFILL);
        assert_eq!(churn.take("one", again - Duration::from_millis(1)), Err(again));
        assert_eq!(churn.take("one", again), Ok(()));
        assert_eq!(churn.take("one", again), Err(again + REFILL));
    }

    #[test]
    fn one_instance_costs_another_nothing_and_rest_restores_the_burst() {
        let (churn, start) = (Churn::default(), Instant::now());
        while churn.take("one", start).is_ok() {}
        assert_eq!(churn.take("two", start), Ok(()));
        let rested = start + REFILL * BURST;
        for _ in 0..BURST {
            assert_eq!(churn.take("one", rested), Ok(()));
        }
        assert!(churn.take("one", rested).is_err());
    }

    #[test]
    fn instances_at_rest_are_forgotten() {
        let (churn, start) = (Churn::default(), Instant::now());
        for number in 0..FORGET_ABOVE {
            churn.take(&number.to_string(), start).unwrap();
        }
        churn.take("late", start + REFILL * BURST).unwrap();
        assert_eq!(churn.full_at.lock().unwrap().len(), 1);
    }
}
