//! Which of several endpoints takes the next request.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// How fast a peak of response times is forgotten.
const DECAY: Duration = Duration::from_secs(10);
/// What an endpoint counts as that has not answered yet: less than any that has, so that it is tried.
const UNKNOWN: f64 = 1.0;
/// What a failure counts as: an endpoint that refuses at once is not the fastest.
const FAILURE: Duration = Duration::from_secs(5);

/// How busy an endpoint is, as one worker sees it: response times as a moving average that follows every peak at
/// once and comes down slowly, and the requests under way.
pub(crate) struct Load {
    /// Nanoseconds.
    average: f64,
    updated: Instant,
    under_way: u32,
}

impl Load {
    pub(crate) fn new(now: Instant) -> Self {
        Self { average: 0.0, updated: now, under_way: 0 }
    }

    /// What another request would cost.
    pub(crate) fn cost(&self, now: Instant) -> f64 {
        (self.average * self.left_after(now)).max(UNKNOWN) * f64::from(self.under_way.saturating_add(1))
    }

    pub(crate) fn begin(&mut self) {
        self.under_way = self.under_way.saturating_add(1);
    }

    /// A request is over, its response read.
    pub(crate) fn end(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// A response took so long.
    pub(crate) fn observe(&mut self, took: Duration, now: Instant) {
        let took = took.as_nanos() as f64;
        let left = self.left_after(now);
        let decayed = self.average * left;
        self.average = if took > decayed { took } else { decayed + took * (1.0 - left) };
        self.updated = now;
    }

    /// A response did not come.
    pub(crate) fn fail(&mut self, took: Duration, now: Instant) {
        self.observe(took.max(FAILURE), now);
    }

    fn left_after(&self, now: Instant) -> f64 {
        (-now.saturating_duration_since(self.updated).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

/// Random numbers for balancing: nobody gains anything by guessing them.
pub(crate) struct Dice(Cell<u64>);

impl Default for Dice {
    fn default() -> Self {
        Self(Cell::new(RandomState::new().hash_one(0)))
    }
}

impl Dice {
    /// A number below `limit`, which is not zero.
    pub(crate) fn below(&self, limit: usize) -> usize {
        // SplitMix64.
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit.max(1) as u64) as usize
    }
}

/// The cheaper of two random endpoints out of `count`, among those that are `usable`.
pub(crate) fn two_choices(
    dice: &Dice,
    count: usize,
    usable: impl Fn(usize) -> bool,
    cost: impl Fn(usize) -> f64,
) -> Option<usize> {
    let usable_from = |start: usize| (0..count).map(|step| (start + step) % count).find(|at| usable(*at));
    let first = usable_from(dice.below(count))?;
    let second = (count > 1).then(|| (first + 1 + dice.below(count - 1)) % count).and_then(usable_from);
    match second {
        Some(second) if cost(second) < cost(first) => Some(second),
        _ => Some(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_follows_a_peak_at_once_and_forgets_it_slowly() {
        let now = Instant::now();
        let mut load = Load::new(now);
        let unknown = load.cost(now);
        load.observe(Duration::from_millis(100), now);
        let peak = load.cost(now);
        assert!(unknown < peak);
        load.observe(Duration::from_millis(1), now + Duration::from_millis(10));
        let after = load.cost(now + Duration::from_millis(10));
        assert!(after < peak && after > peak * 0.9, "{after} {peak}");
        assert!(load.cost(now + DECAY * 20) < peak / 1_000.0);
        let idle = load.cost(now);
        load.begin();
        assert!(load.cost(now) > idle * 1.5, "who is busy costs more");
        load.end();
        load.fail(Duration::from_millis(1), now);
        assert!(load.cost(now) > peak, "a quick failure is no quick answer");
    }

    #[test]
    fn two_choices_spread_and_avoid_the_expensive_and_the_unusable() {
        let dice = Dice::default();
        let mut counts = [0; 4];
        for _ in 0..4_000 {
            counts[two_choices(&dice, 4, |_| true, |_| 1.0).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
        let mut counts = [0; 4];
        for _ in 0..4_000 {
            counts[two_choices(&dice, 4, |at| at != 2, |at| if at == 0 { 9.0 } else { 1.0 }).unwrap()] += 1;
        }
        assert_eq!(counts[2], 0);
        assert!(counts[0] < counts[1] / 2 && counts[0] < counts[3] / 2, "{counts:?}");
        assert_eq!(two_choices(&dice, 4, |_| false, |_| 1.0), None);
        assert_eq!(two_choices(&dice, 0, |_| true, |_| 1.0), None);
        assert_eq!(two_choices(&dice, 1, |_| true, |_| 1.0), Some(0));
    }
}
