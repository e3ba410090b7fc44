//! How many requests of whom this workload has taken lately.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use pingora_limits::estimator::Estimator;
use signet_identity::SpiffeId;
use signet_policy::{PolicyIndex, RateKey, RateLimit, RequestSettings, TrafficPolicyModel};

/// Hashes and slots of a count-min sketch, as pingora's own rates have: 32 KiB whatever the number of callers. Two of
/// 1,024 callers that are counted at once share all four slots with a chance of one in 10⁹.
const HASHES: usize = 4;
const SLOTS: usize = 1024;
/// Policies whose counts are kept: one for each port of a workload. Beyond, all start anew.
const POLICIES_MAX: usize = 16;

/// The counts of all workers. A request reads atomics; only the first under a changed policy builds anything.
pub(crate) struct RateLimits {
    started: Instant,
    counted: ArcSwap<HashMap<String, Vec<Counted>>>,
}

/// One limit and its count.
#[derive(Clone)]
struct Counted {
    route: Option<usize>,
    limit: RateLimit,
    window: Arc<Window>,
}

impl RateLimits {
    pub(crate) fn new(now: Instant) -> Self {
        Self { started: now, counted: ArcSwap::default() }
    }

    /// Counts a request of `caller`, unless one of the limits has been reached: then the time until it could be taken.
    pub(crate) fn take(
        &self,
        policy: &TrafficPolicyModel,
        settings: &RequestSettings<'_>,
        caller: &str,
        now: Instant,
    ) -> Result<(), Duration> {
        let now = u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX);
        for (number, limit) in settings.rate_limits.iter().enumerate() {
            let window = self.window(policy, settings.limited_by, limit);
            if let Err(wait) = window.take(key(limit, caller), limit.requests, now) {
                // A request that is refused counts nowhere.
                for taken in settings.rate_limits.iter().take(number) {
                    self.window(policy, settings.limited_by, taken).give_back(key(taken, caller), now);
                }
                return Err(Duration::from_millis(wait));
            }
        }
        Ok(())
    }

    /// The same under the policy in force for a port of this workload, if there is one.
    pub(crate) fn admit(
        &self,
        index: &PolicyIndex,
        own: &SpiffeId,
        port: u16,
        request: (&str, &str),
        caller: &str,
    ) -> Result<(), Duration> {
        let Some(policy) = index.traffic(own, port) else { return Ok(()) };
        let (method, path) = request;
        self.take(policy, &policy.settings_of(method, path), caller, Instant::now())
    }

    fn window(&self, policy: &TrafficPolicyModel, route: Option<usize>, limit: &RateLimit) -> Arc<Window> {
        let is_it = |counted: &&Counted| counted.route == route && counted.limit == *limit;
        let find = |counted: &HashMap<String, Vec<Counted>>| {
            let known = counted.get(&policy.name)?.iter().find(is_it)?;
            Some(Arc::clone(&known.window))
        };
        if let Some(window) = find(&self.counted.load()) {
            return window;
        }
        self.counted.rcu(|counted| {
            let mut changed = HashMap::clone(counted);
            let known = changed.remove(&policy.name).unwrap_or_default();
            if changed.len() >= POLICIES_MAX {
                changed.clear();
            }
            // What a policy says anew is counted anew; the rest goes on.
            let kept = policy.rate_limits().map(|(route, limit)| {
                let same = known.iter().find(|known| known.route == route && known.limit == *limit);
                same.cloned().unwrap_or_else(|| Counted {
                    route,
                    limit: *limit,
                    window: Arc::new(Window::new(limit.per_ms)),
                })
            });
            let kept = kept.collect();
            changed.insert(policy.name.clone(), kept);
            changed
        });
        find(&self.counted.load()).unwrap_or_else(|| Arc::new(Window::new(limit.per_ms)))
    }
}

fn key<'a>(limit: &RateLimit, caller: &'a str) -> &'a str {
    match limit.key {
        RateKey::Identity => caller,
        RateKey::Workload => "",
    }
}

/// A time that slides over two fixed ones: of the one before counts the part that is not yet past, as if its requests
/// had come evenly. So nobody gets twice the limit by coming at the border of two.
struct Window {
    per_ms: u64,
    /// Which fixed time is under way.
    number: AtomicU64,
    counts: [Estimator; 2],
}

impl Window {
    fn new(per_ms: u64) -> Self {
        let counts = [Estimator::new(HASHES, SLOTS), Estimator::new(HASHES, SLOTS)];
        Self { per_ms: per_ms.max(1), number: AtomicU64::new(0), counts }
    }

    fn take(&self, key: &str, requests: u32, now_ms: u64) -> Result<(), u64> {
        let number = now_ms / self.per_ms;
        self.turn(number);
        let [current, before] = self.halves(number);
        let count = current.incr(key, 1) as f64;
        let before = before.get(key).max(0) as f64;
        let (limit, per) = (f64::from(requests), self.per_ms as f64);
        let past = (now_ms % self.per_ms) as f64 / per;
        if before * (1.0 - past) + count <= limit {
            return Ok(());
        }
        current.decr(key, 1);
        // When what is past leaves room for one more.
        let wait = if count <= limit {
            1.0 - (limit - count) / before - past
        } else {
            (1.0 - past) + (1.0 - (limit - 1.0) / (count - 1.0)).max(0.0)
        };
        Err((wait.clamp(0.0, 2.0) * per).ceil() as u64)
    }

    fn give_back(&self, key: &str, now_ms: u64) {
        let [current, _] = self.halves(now_ms / self.per_ms);
        current.decr(key, 1);
    }

    fn halves(&self, number: u64) -> [&Estimator; 2] {
        let [even, odd] = &self.counts;
        if number.is_multiple_of(2) { [even, odd] } else { [odd, even] }
    }

    /// Begins another time. Requests of other workers at this very moment may go uncounted; nobody is counted twice.
    fn turn(&self, number: u64) {
        let last = self.number.load(Ordering::Acquire);
        if last >= number
            || self.number.compare_exchange(last, number, Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            return;
        }
        let [current, before] = self.halves(number);
        current.reset();
        if number - last > 1 {
            before.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use signet_policy::{Target, TrafficSettings};

    fn policy(limits: Vec<RateLimit>) -> TrafficPolicyModel {
        TrafficPolicyModel {
            name: "t".to_owned(),
            target: Target::Everything,
            ports: Vec::new(),
            settings: TrafficSettings { rate_limits: Some(limits), ..TrafficSettings::default() },
            routes: Vec::new(),
            circuit_breaking: None,
            concurrency: None,
            load_balancing: None,
        }
    }

    fn limit(requests: u32, key: RateKey) -> RateLimit {
        RateLimit { requests, per_ms: 1_000, key }
    }

    #[test]
    fn one_caller_at_its_limit_does_not_hurt_another() {
        let (start, policy) = (Instant::now(), policy(vec![limit(3, RateKey::Identity)]));
        let rates = RateLimits::new(start);
        let take = |caller| rates.take(&policy, &policy.settings_of("GET", "/"), caller, start).is_ok();
        assert_eq!([take("a"), take("a"), take("a"), take("a")], [true, true, true, false]);
        assert!(take("b") && !take("a"));
    }

    #[test]
    fn what_is_refused_counts_nowhere() {
        let start = Instant::now();
        let policy = policy(vec![limit(5, RateKey::Workload), limit(1, RateKey::Identity)]);
        let rates = RateLimits::new(start);
        let take = |caller| rates.take(&policy, &policy.settings_of("GET", "/"), caller, start).is_ok();
        assert!(take("a"));
        for _ in 0..10 {
            assert!(!take("a"));
        }
        for caller in ["b", "c", "d", "e"] {
            assert!(take(caller), "{caller}");
        }
        assert!(!take("f"), "the workload has taken five");
    }

    #[test]
    fn the_time_slides_and_the_wait_is_what_it_takes() {
        let window = Window::new(1_000);
        assert!((0..4).all(|_| window.take("a", 4, 900).is_ok()));
        // At the border nothing is given away.
        let wait = window.take("a", 4, 1_000).unwrap_err();
        assert_eq!(wait, 250, "a quarter of the time before has to be past");
        assert!(window.take("a", 4, 1_000 + wait - 1).is_err());
        assert!(window.take("a", 4, 1_000 + wait).is_ok());
        assert!((0..4).all(|_| window.take("a", 4, 5_000).is_ok()), "long after");
        let wait = window.take("a", 4, 5_000).unwrap_err();
        assert!(window.take("a", 4, 5_000 + wait - 10).is_err() && window.take("a", 4, 5_000 + wait).is_ok());
    }

    #[test]
    fn counts_survive_a_policy_that_changes_something_else() {
        let start = Instant::now();
        let rates = RateLimits::new(start);
        let before = policy(vec![limit(1, RateKey::Identity)]);
        assert!(rates.take(&before, &before.settings_of("GET", "/"), "a", start).is_ok());
        let after = policy(vec![limit(1, RateKey::Identity), limit(9, RateKey::Workload)]);
        assert!(rates.take(&after, &after.settings_of("GET", "/"), "a", start).is_err());
        for number in 0..2 * POLICIES_MAX {
            let mut other = before.clone();
            other.name = format!("p{number}");
            assert!(rates.take(&other, &other.settings_of("GET", "/"), "a", start).is_ok());
            assert!(rates.counted.load().len() <= POLICIES_MAX);
        }
    }
}
