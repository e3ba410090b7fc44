//! Pure: which of several clocks to believe.
//!
//! - The *floor* is time that certainly passed: a signed moment, carried on by the clock that counts from the machine's
//!   start. It never goes back, and nothing unauthenticated raises it, so that a wall clock gone wild leaves no mark.
//! - The *anchor* is what the control plane said, in this start of the machine. With it a step of the wall clock is seen
//!   for what it is, in either direction. An anchor moves only where two of three agree: a control plane whose own clock
//!   jumped is not followed.
//! - Without an anchor the wall clock is believed down to the floor.

use std::fmt;

use crate::clock::Saved;

/// How far the wall clock may lie from the anchored time: the way of the control plane's word over a slow link, and what a
/// clock is corrected by at a time.
const TOLERANCE_MS: u64 = 5_000;
/// A thousandth of the time since: ten times what a cheap quartz is wrong by.
const DRIFT: u64 = 1_000;

/// What the machine's clocks say at one moment, in milliseconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Reading {
    /// The time of day, since 1970.
    pub(super) wall: u64,
    /// Since the machine started, sleep included. Cannot be set.
    pub(super) boot: u64,
}

/// A time of day and the moment it belongs to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Mark {
    ms: u64,
    /// Since the machine started.
    boot: u64,
}

impl Mark {
    fn since(&self, now: Reading) -> u64 {
        now.boot.saturating_sub(self.boot)
    }

    /// The time now, if the clock since then was right.
    fn carried(&self, now: Reading) -> u64 {
        self.ms.saturating_add(self.since(now))
    }

    /// The time now at least, however fast that clock was.
    fn at_least(&self, now: Reading) -> u64 {
        let since = self.since(now);
        self.ms.saturating_add(since - since / DRIFT)
    }

    fn agrees(&self, other_ms: u64, now: Reading) -> bool {
        self.carried(now).abs_diff(other_ms) <= TOLERANCE_MS + self.since(now) / DRIFT
    }
}

/// Which clock was believed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    /// The anchor: the wall clock was set to something else meanwhile.
    Anchor,
    /// The floor: the wall clock lies before it.
    Floor,
    /// The wall clock.
    Wall,
}

impl Source {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Anchor => "control-plane",
            Self::Floor => "floor",
            Self::Wall => "wall-clock",
        }
    }
}

/// What time it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Told {
    /// Milliseconds since 1970.
    pub(crate) ms: u64,
    /// Which clock says so.
    pub(crate) source: Source,
    /// How far the wall clock is ahead of that, in milliseconds.
    pub(crate) wall_ahead_ms: i64,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, side) = (
            self.wall_ahead_ms.unsigned_abs() / 1000,
            match self.wall_ahead_ms {
                ..0 => "behind",
                0.. => "ahead of",
            },
        );
        match self.source {
            Source::Anchor => {
                write!(f, "by the control plane's time; this machine's clock is {seconds} s {side} it")
            }
            Source::Floor => {
                write!(f, "by the last time that is certain; this machine's clock is {seconds} s {side} it")
            }
            Source::Wall => f.write_str("by this machine's clock, which nothing contradicts"),
        }
    }
}

/// What came of a word of the control plane.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Heard {
    /// It is the time now.
    Believed,
    /// It lies before what certainly passed, by so many milliseconds.
    Behind(u64),
    /// Neither the wall clock nor what was heard before agrees: so many milliseconds away from the latter.
    Doubted(i64),
}

/// Believes the best clock there is. Copied, changed and stored back as a whole.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Keeper {
    floor: Mark,
    anchor: Option<Mark>,
}

impl Keeper {
    pub(super) fn tell(&self, now: Reading) -> Told {
        let floor = self.floor.at_least(now);
        let (ms, source) = match self.anchor {
            Some(anchor) if anchor.agrees(now.wall, now) && now.wall >= floor => (now.wall, Source::Wall),
            Some(anchor) => (anchor.carried(now).max(floor), Source::Anchor),
            None if now.wall >= floor => (now.wall, Source::Wall),
            None => (floor, Source::Floor),
        };
        Told { ms, source, wall_ahead_ms: difference(now.wall, ms) }
    }

    /// Raises the floor to a time that certainly passed.
    pub(super) fn passed(&mut self, ms: u64, now: Reading) {
        if ms > self.floor.at_least(now) {
            self.floor = Mark { ms, boot: now.boot };
        }
    }

    /// Anchors at the control plane's word, unless two others contradict it.
    pub(super) fn hear(&mut self, ms: u64, now: Reading) -> Heard {
        let floor = self.floor.at_least(now);
        if ms.saturating_add(TOLERANCE_MS) < floor {
            return Heard::Behind(floor - ms);
        }
        if let Some(anchor) = self.anchor
            && !anchor.agrees(ms, now)
            && ms.abs_diff(now.wall) > TOLERANCE_MS
        {
            return Heard::Doubted(difference(ms, anchor.carried(now)));
        }
        self.anchor = Some(Mark { ms, boot: now.boot });
        self.passed(ms, now);
        Heard::Believed
    }

    pub(super) fn is_anchored(&self) -> bool {
        self.anchor.is_some()
    }

    pub(super) fn restore(&mut self, saved: &Saved, boot_id: Option<&str>, now: Reading) {
        let same_start = boot_id.is_some_and(|id| !id.is_empty() && id == saved.boot_id);
        let continues = same_start && saved.boot_ms <= now.boot;
        let mark = |ms| Mark { ms, boot: if continues { saved.boot_ms } else { now.boot } };
        let floor = mark(saved.floor_ms);
        if floor.at_least(now) > self.floor.at_least(now) {
            self.floor = floor;
        }
        if continues && saved.anchored_ms > 0 && self.anchor.is_none() {
            self.anchor = Some(mark(saved.anchored_ms));
        }
    }

    pub(super) fn save(&self, boot_id: String, now: Reading) -> Saved {
        Saved {
            floor_ms: self.floor.at_least(now),
            anchored_ms: self.anchor.map_or(0, |anchor| anchor.carried(now)),
            boot_ms: now.boot,
            boot_id,
        }
    }
}

fn difference(a: u64, b: u64) -> i64 {
    let distance = i64::try_from(a.abs_diff(b)).unwrap_or(i64::MAX);
    if a >= b { distance } else { -distance }
}

#[cfg(test)]
mod tests;
