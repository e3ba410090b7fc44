//! When to renew: pure arithmetic over times that are passed in.
//!
//! A certificate is renewed about half-way through and kept until its very end: a renewal that fails is retried
//! with [`backoff`] and takes nothing away.

use std::time::{Duration, SystemTime};

/// How far, as a part of the half-life, the renewal time is spread to either side, so that workloads enrolled
/// together do not renew together.
const RENEWAL_SPREAD: f64 = 0.1;

/// How far a retry is spread to either side.
const BACKOFF_SPREAD: f64 = 0.2;
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_LIMIT: Duration = Duration::from_secs(60);
/// 2^7 × 0.5 s is past the limit already; keeps the shift small for any `attempt`.
const BACKOFF_DOUBLINGS: u32 = 7;

/// When to renew an SVID that was received at `obtained` and ends at `not_after`: half of that time later, give
/// or take 10 % of the half by `jitter` (random, 0 to 1). `obtained` is not the certificate's notBefore, which
/// is set back for the sake of slow clocks and would make short lives renew at once.
///
/// An SVID that has ended is to be renewed at `obtained`.
pub fn renewal_time(obtained: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let left = not_after.duration_since(obtained).unwrap_or_default();
    obtained + spread(left / 2, RENEWAL_SPREAD, jitter)
}

/// How long to wait after `attempt` failed renewals (0 for the first): 0.5 s doubling to 60 s, give or take
/// 20 % by `jitter` (random, 0 to 1).
pub fn backoff(attempt: u32, jitter: f64) -> Duration {
    let doubled = BACKOFF_FIRST * (1 << attempt.min(BACKOFF_DOUBLINGS));
    spread(doubled.min(BACKOFF_LIMIT), BACKOFF_SPREAD, jitter)
}

fn spread(middle: Duration, part: f64, jitter: f64) -> Duration {
    let jitter = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.5 };
    middle.mul_f64(1.0 + part * (2.0 * jitter - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: SystemTime = SystemTime::UNIX_EPOCH;

    fn seconds(jitter: f64) -> f64 {
        let end = T0 + Duration::from_secs(3600);
        renewal_time(T0, end, jitter).duration_since(T0).unwrap().as_secs_f64()
    }

    #[test]
    fn renewal_falls_around_half_life() {
        assert_eq!((seconds(0.0), seconds(0.5), seconds(1.0)), (1620.0, 1800.0, 1980.0));
    }

    #[test]
    fn jitter_outside_its_range_stays_within_bounds() {
        assert_eq!((seconds(-3.0), seconds(7.0), seconds(f64::NAN)), (1620.0, 1980.0, 1800.0));
        assert_eq!(seconds(f64::INFINITY), 1800.0);
    }

    #[test]
    fn ended_svid_is_renewed_at_once() {
        let obtained = T0 + Duration::from_secs(10);
        assert_eq!(renewal_time(obtained, T0, 1.0), obtained);
    }

    #[test]
    fn backoff_doubles_from_half_a_second_to_a_minute() {
        let waits: Vec<f64> = (0..10).map(|attempt| backoff(attempt, 0.5).as_secs_f64()).collect();
        assert_eq!(waits, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]);
        assert_eq!(backoff(u32::MAX, 0.0), Duration::from_secs(48));
        assert_eq!(backoff(0, 1.0), Duration::from_millis(600));
    }
}
