//! Pure: may a certificate be issued at what the clock says?

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How far the clock may lie before the last certificate issued: what leaves are set back by, so that one issued now still
/// begins before the time of whoever gets it.
const BEHIND_MAX_MS: u64 = 5 * 60 * 1000;
/// How far it may step ahead at a time: a machine that was asleep in a way that the counting clock does not see, for a while.
const JUMP_MAX_MS: u64 = 60 * 60 * 1000;
/// A thousandth of the time since the last look: ten times what a cheap quartz is wrong by.
const DRIFT: u64 = 1_000;
/// How far a proxy's clock may differ from ours and still vouch for it.
const VOUCH_MAX_MS: u64 = 5 * 60 * 1000;
/// 1 January 2025: before this program was written no clock can be right.
pub(super) const EARLIEST_MS: u64 = 1_735_689_600_000;

/// What the clocks say at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    /// Milliseconds since 1970.
    pub(super) wall_ms: u64,
    /// Since the machine started, sleep included.
    pub(super) boot_ms: u64,
    /// The same moment, to compare with when proxies reported.
    pub(super) at: Instant,
}

/// Remembers when the clock was last believed.
#[derive(Debug)]
pub(super) struct Guard {
    issued_ms: u64,
    believed: Option<(u64, u64)>,
    /// Since when it is not: what proxies reported before says nothing about the clock as it is now.
    doubted: Option<Instant>,
}

/// Why nothing is issued, and the time to go by instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    kind: Kind,
    /// The latest time that is certain.
    pub(super) instead: SystemTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Behind { by_s: u64 },
    Jumped { by_s: u64 },
    Unset,
}

impl Fault {
    pub(crate) fn code(&self) -> &'static str {
        match self.kind {
            Kind::Behind { .. } => "clock-behind",
            Kind::Jumped { .. } => "clock-jumped",
            Kind::Unset => "clock-unset",
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            Kind::Behind { by_s } => write!(
                f,
                "the control plane's clock is {by_s} s behind certificates that it has issued; nothing is issued until it \
                 is set right"
            ),
            Kind::Jumped { by_s } => write!(
                f,
                "the control plane's clock has jumped {by_s} s ahead; nothing is issued until it is set back, a proxy's \
                 clock says the same, or the control plane is started again"
            ),
            Kind::Unset => {
                f.write_str("the control plane's clock stands before 2025; nothing is issued until it is set")
            }
        }
    }
}

impl std::error::Error for Fault {}

impl Guard {
    pub(super) fn new(issued_ms: u64) -> Self {
        Self { issued_ms, believed: None, doubted: None }
    }

    /// The time to issue at. `offsets` are what connected proxies reported since a moment: our clock minus theirs, in
    /// milliseconds.
    pub(super) fn judge(
        &mut self,
        now: Reading,
        offsets: impl FnOnce(Instant) -> Vec<i64>,
    ) -> Result<SystemTime, Fault> {
        let carried = self.believed.map(|(wall, boot)| (wall, now.boot_ms.saturating_sub(boot)));
        let expected = carried.map_or(0, |(wall, since)| wall.saturating_add(since));
        let drift = carried.map_or(0, |(_, since)| since / DRIFT);
        let kind = if now.wall_ms < EARLIEST_MS {
            Some(Kind::Unset)
        } else if now.wall_ms.saturating_add(BEHIND_MAX_MS) < self.issued_ms {
            Some(Kind::Behind { by_s: (self.issued_ms - now.wall_ms) / 1000 })
        } else if carried.is_some() && now.wall_ms > expected.saturating_add(JUMP_MAX_MS + drift) {
            Some(Kind::Jumped { by_s: (now.wall_ms - expected) / 1000 })
        } else {
            None
        };
        if let Some(kind) = kind {
            let since = *self.doubted.get_or_insert(now.at);
            if kind == Kind::Unset || !is_vouched_for(&offsets(since)) {
                let instead = expected.max(self.issued_ms).max(EARLIEST_MS);
                return Err(Fault { kind, instead: UNIX_EPOCH + Duration::from_millis(instead) });
            }
            // Certificates of the wrong time may have been issued; the time is what it is.
            self.issued_ms = now.wall_ms;
        }
        self.doubted = None;
        self.believed = Some((now.wall_ms, now.boot_ms));
        self.issued_ms = self.issued_ms.max(now.wall_ms);
        Ok(UNIX_EPOCH + Duration::from_millis(now.wall_ms))
    }
}

/// Whether more than half of those who reported say the same time as the clock.
fn is_vouched_for(offsets: &[i64]) -> bool {
    let agree = offsets.iter().filter(|offset| offset.unsigned_abs() <= VOUCH_MAX_MS).count();
    agree * 2 > offsets.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: u64 = 1_790_000_000_000;
    const HOUR: u64 = 3_600_000;
    const DAY: i64 = 24 * 3_600_000;

    fn at(wall_ms: u64, boot_ms: u64) -> Reading {
        Reading { wall_ms, boot_ms, at: Instant::now() }
    }

    fn code(guard: &mut Guard, reading: Reading, offsets: &[i64]) -> &'static str {
        guard.judge(reading, |_| offsets.to_vec()).map_or_else(|fault| fault.code(), |_| "ok")
    }

    #[test]
    fn a_clock_behind_the_last_certificate_issues_nothing_until_it_is_right() {
        let mut guard = Guard::new(T0);
        assert_eq!(code(&mut guard, at(T0 - 24 * HOUR, 0), &[]), "clock-behind");
        assert_eq!(code(&mut guard, at(T0 - 6 * 60_000, 1), &[]), "clock-behind");
        // Small corrections are of every day.
        assert_eq!(code(&mut guard, at(T0 - 60_000, 2), &[]), "ok");
        let fault = guard.judge(at(T0 - 24 * HOUR, 3), |_| Vec::new()).unwrap_err();
        assert!(fault.to_string().contains("86400 s behind"), "{fault}");
        assert!(fault.instead >= UNIX_EPOCH + Duration::from_millis(T0 - 60_000));
    }

    #[test]
    fn a_clock_that_jumps_ahead_issues_nothing_until_it_steps_back() {
        let mut guard = Guard::new(0);
        assert_eq!(code(&mut guard, at(T0, 0), &[]), "ok");
        assert_eq!(code(&mut guard, at(T0 + 24 * HOUR, 1_000), &[]), "clock-jumped");
        let fault = guard.judge(at(T0 + 24 * HOUR, 2_000), |_| Vec::new()).unwrap_err();
        assert_eq!(fault.instead, UNIX_EPOCH + Duration::from_millis(T0 + 2_000));
        assert_eq!(code(&mut guard, at(T0 + 3_000, 3_000), &[]), "ok", "nothing of the jump is left behind");
        // Time that passed is no jump.
        assert_eq!(code(&mut guard, at(T0 + 48 * HOUR, 48 * HOUR), &[]), "ok");
    }

    #[test]
    fn proxies_vouch_for_a_clock_only_if_most_say_the_same() {
        let jumped = |offsets: &[i64]| {
            let mut guard = Guard::new(0);
            code(&mut guard, at(T0, 0), &[]);
            code(&mut guard, at(T0 + 24 * HOUR, 1_000), offsets)
        };
        assert_eq!(jumped(&[]), "clock-jumped");
        assert_eq!(jumped(&[DAY, DAY, 0]), "clock-jumped");
        assert_eq!(jumped(&[DAY, 0]), "clock-jumped");
        assert_eq!(jumped(&[DAY, 0, -1_000]), "ok");
        // Certificates were issued a day ahead; the clock is right again, and everybody knows.
        let mut guard = Guard::new(T0 + 24 * HOUR);
        assert_eq!(code(&mut guard, at(T0, 0), &[0]), "ok");
        assert_eq!(code(&mut guard, at(T0 + 1_000, 1_000), &[]), "ok");
    }

    #[test]
    fn a_clock_that_was_never_set_issues_nothing_whatever_proxies_say() {
        assert_eq!(code(&mut Guard::new(0), at(20_000, 20_000), &[0, 0]), "clock-unset");
        // It is no jump when it is set: it was not believed before.
        let mut guard = Guard::new(0);
        code(&mut guard, at(20_000, 20_000), &[]);
        assert_eq!(code(&mut guard, at(T0, 30_000), &[]), "ok");
    }

    #[test]
    fn reports_from_before_a_doubt_do_not_count() {
        let mut guard = Guard::new(0);
        code(&mut guard, at(T0, 0), &[]);
        let mut asked = Vec::new();
        for boot in [1_000, 2_000] {
            let reading = at(T0 + 24 * HOUR, boot);
            let _ = guard.judge(reading, |since| {
                asked.push((since, reading.at));
                Vec::new()
            });
        }
        assert_eq!(asked[0].0, asked[0].1, "from the moment of the doubt on");
        assert_eq!(asked[1].0, asked[0].0);
    }
}
