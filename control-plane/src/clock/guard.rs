//! Pure: may a certificate be issued at what the clock says?

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How far the clock may lie before the last certificate issued: what leaves are set back by, so that one issued now still
/// begins before the time of whoever gets it.
const BEHIND_MAX_MS: u64 = 5 * 60 * 1000;
/// How far it may step ahead at a time: a machine that was asleep in a way that the counting clock does not see, for a while.
const JUMP_MAX_MS: u64 = 60 * 60 * 1000;
/// A thousandth of the time since the last look: ten times what a cheap quartz is wrong by.
const DRIFT: u64 = 1_000;
/// How far it may lie ahead of the last certificate when it is looked at for the first time: a plant's holidays. No revocation
/// ends earlier by it than its certificate could come back, for those are kept longer than this.
const AWAY_MAX_MS: u64 = 30 * 24 * 60 * 60 * 1000;
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
    /// An operator said that the clock is right at the start.
    is_right: bool,
    /// Of the first look, in milliseconds since the machine started.
    looked: Option<u64>,
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
    /// The latest time that is possible.
    pub(super) latest: SystemTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Away { by_s: u64 },
    Behind { by_s: u64 },
    Jumped { by_s: u64 },
    Unset,
}

impl Fault {
    pub(crate) fn code(&self) -> &'static str {
        match self.kind {
            Kind::Behind { .. } => "clock-behind",
            Kind::Away { .. } | Kind::Jumped { .. } => "clock-jumped",
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
            Kind::Away { by_s } => write!(
                f,
                "the control plane's clock is {by_s} s ahead of the last certificate that it has issued; nothing is issued \
                 until it is set right, most connected proxies' clocks say the same, or the control plane is started with \
                 --clock-is-right"
            ),
            Kind::Jumped { by_s } => write!(
                f,
                "the control plane's clock has jumped {by_s} s ahead; nothing is issued until it is set back, most \
                 connected proxies' clocks say the same, or the control plane is started again"
            ),
            Kind::Unset => {
                f.write_str("the control plane's clock stands before 2025; nothing is issued until it is set")
            }
        }
    }
}

impl std::error::Error for Fault {}

impl Guard {
    /// With the time of the last certificate, 0 if there is none, and whether an operator says that the clock is right.
    pub(super) fn new(issued_ms: u64, is_right: bool) -> Self {
        Self { issued_ms, is_right, looked: None, believed: None, doubted: None }
    }

    /// The time to issue at. `offsets` are what connected proxies reported since a moment, each in its place: our clock minus
    /// theirs, in milliseconds.
    pub(super) fn judge(
        &mut self,
        now: Reading,
        offsets: impl FnOnce(Instant) -> Vec<Option<i64>>,
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
        } else if carried.is_none() && self.is_long_after(now.wall_ms) {
            Some(Kind::Away { by_s: (now.wall_ms - self.issued_ms) / 1000 })
        } else {
            None
        };
        let looked = *self.looked.get_or_insert(now.boot_ms);
        if let Some(kind) = kind {
            let since = *self.doubted.get_or_insert(now.at);
            if kind == Kind::Unset || !is_vouched_for(&offsets(since)) {
                // Time goes on since the last belief, or, where there was none, since the first look.
                let counted = if carried.is_some() { 0 } else { now.boot_ms.saturating_sub(looked) };
                let instead = expected.max(self.issued_ms.saturating_add(counted)).max(EARLIEST_MS);
                let latest = if matches!(kind, Kind::Away { .. }) { now.wall_ms } else { instead };
                let [instead, latest] = [instead, latest].map(|ms| UNIX_EPOCH + Duration::from_millis(ms));
                return Err(Fault { kind, instead, latest });
            }
            // Certificates of the wrong time may have been issued; the time is what it is.
            self.issued_ms = now.wall_ms;
        }
        self.doubted = None;
        self.believed = Some((now.wall_ms, now.boot_ms));
        self.issued_ms = self.issued_ms.max(now.wall_ms);
        Ok(UNIX_EPOCH + Duration::from_millis(now.wall_ms))
    }

    /// Whether the clock is so far ahead of the last certificate that something else than a holiday is to be feared.
    fn is_long_after(&self, wall_ms: u64) -> bool {
        !self.is_right && self.issued_ms > 0 && wall_ms > self.issued_ms.saturating_add(AWAY_MAX_MS)
    }
}

/// Whether more than half of those who are connected say the same time as the clock, so that one alone, which may be slower to
/// leave than the others to report, vouches only where there is no other.
fn is_vouched_for(offsets: &[Option<i64>]) -> bool {
    let agree = offsets.iter().flatten().filter(|offset| offset.unsigned_abs() <= VOUCH_MAX_MS).count();
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
        guard
            .judge(reading, |_| offsets.iter().copied().map(Some).collect())
            .map_or_else(|fault| fault.code(), |_| "ok")
    }

    #[test]
    fn a_clock_behind_the_last_certificate_issues_nothing_until_it_is_right() {
        let mut guard = Guard::new(T0, false);
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
        let mut guard = Guard::new(0, false);
        assert_eq!(code(&mut guard, at(T0, 0), &[]), "ok");
        assert_eq!(code(&mut guard, at(T0 + 24 * HOUR, 1_000), &[]), "clock-jumped");
        let fault = guard.judge(at(T0 + 24 * HOUR, 2_000), |_| Vec::new()).unwrap_err();
        assert_eq!(fault.instead, UNIX_EPOCH + Duration::from_millis(T0 + 2_000));
        let mut guard = Guard::new(T0, false);
        for hour in 0..100 {
            assert_eq!(code(&mut guard, at(T0 + hour * HOUR, hour * HOUR), &[]), "ok");
        }
        let fault = guard.judge(at(T0 + 200 * HOUR, 100 * HOUR), |_| Vec::new()).unwrap_err();
        assert_eq!(fault.instead, UNIX_EPOCH + Duration::from_millis(T0 + 100 * HOUR), "counted once");
        let back = at(T0 + 100 * HOUR + 3_000, 100 * HOUR + 3_000);
        assert_eq!(code(&mut guard, back, &[]), "ok", "nothing of the jump is left behind");
        // Time that passed is no jump.
        assert_eq!(code(&mut guard, at(T0 + 148 * HOUR, 148 * HOUR), &[]), "ok");
    }

    #[test]
    fn proxies_vouch_for_a_clock_only_if_most_say_the_same() {
        let jumped = |offsets: &[i64]| {
            let mut guard = Guard::new(0, false);
            code(&mut guard, at(T0, 0), &[]);
            code(&mut guard, at(T0 + 24 * HOUR, 1_000), offsets)
        };
        assert_eq!(jumped(&[]), "clock-jumped");
        assert_eq!(jumped(&[DAY, DAY, 0]), "clock-jumped");
        assert_eq!(jumped(&[DAY, 0]), "clock-jumped");
        assert_eq!(jumped(&[DAY, 0, -1_000]), "ok");
        // Certificates were issued a day ahead; the clock is right again, and everybody knows.
        let mut guard = Guard::new(T0 + 24 * HOUR, false);
        assert_eq!(code(&mut guard, at(T0, 0), &[0]), "ok");
        assert_eq!(code(&mut guard, at(T0 + 1_000, 1_000), &[]), "ok");
    }

    #[test]
    fn a_clock_that_was_never_set_issues_nothing_whatever_proxies_say() {
        assert_eq!(code(&mut Guard::new(0, false), at(20_000, 20_000), &[0, 0]), "clock-unset");
        // It is no jump when it is set: it was not believed before.
        let mut guard = Guard::new(0, false);
        code(&mut guard, at(20_000, 20_000), &[]);
        assert_eq!(code(&mut guard, at(T0, 30_000), &[]), "ok");
    }

    #[test]
    fn reports_from_before_a_doubt_do_not_count() {
        let mut guard = Guard::new(0, false);
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

    #[test]
    fn one_proxy_of_several_does_not_vouch_before_most_of_them_have_reported() {
        let judge = |offsets: &[Option<i64>]| {
            let mut guard = Guard::new(0, false);
            guard.judge(at(T0, 0), |_| Vec::new()).unwrap();
            guard.judge(at(T0 + 24 * HOUR, 1_000), |_| offsets.to_vec()).is_ok()
        };
        assert!(judge(&[Some(0)]));
        assert!(!judge(&[Some(0), None]));
        assert!(!judge(&[Some(0), None, None]));
        assert!(judge(&[Some(0), Some(0), None]));
    }

    #[test]
    fn a_clock_far_ahead_of_the_last_certificate_at_the_start_issues_nothing_until_proxies_or_an_operator_say_so()
     {
        let late = T0 + 31 * 24 * HOUR;
        let mut guard = Guard::new(T0, false);
        assert_eq!(code(&mut guard, at(late, 5_000), &[]), "clock-jumped");
        let fault = guard.judge(at(late, 65_000), |_| Vec::new()).unwrap_err();
        assert!(fault.to_string().contains("--clock-is-right"), "{fault}");
        // Time goes on meanwhile; what is shown to others is good at either time.
        assert_eq!(fault.instead, UNIX_EPOCH + Duration::from_millis(T0 + 60_000));
        assert_eq!(fault.latest, UNIX_EPOCH + Duration::from_millis(late));
        assert_eq!(code(&mut guard, at(late, 66_000), &[0]), "ok");
        assert_eq!(code(&mut guard, at(late + 1_000, 67_000), &[]), "ok");
        assert_eq!(code(&mut Guard::new(T0, false), at(T0 + 29 * 24 * HOUR, 0), &[]), "ok");
        assert_eq!(code(&mut Guard::new(T0, true), at(late, 0), &[]), "ok");
        assert_eq!(code(&mut Guard::new(0, false), at(late, 0), &[]), "ok", "nothing was issued before");
    }
}
