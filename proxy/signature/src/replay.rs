//! The sliding window that lets every sequence number through once.
//!
//! One window belongs to one direction of one channel. It is a bitmap over the newest 4096 numbers
//! (RFC 6479 in spirit): constant memory, no clock, and nothing is ever evicted that could come back,
//! because whatever falls out at the low end is refused for good.

use thiserror::Error;

/// How many sequence numbers below the highest one may still arrive: far more than the streams a
/// connection has in flight, and 512 bytes of state.
pub const WINDOW: u64 = 4096;

const WORDS: usize = (WINDOW / 64) as usize;

/// Why a sequence number was refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Replay {
    /// Too many senders, or too many starts of one, are to be remembered at once.
    #[error("no room is left to remember which messages were seen")]
    Full,
    /// The number was accepted before.
    #[error("sequence number was used before")]
    Seen,
    /// The number is below the window, so whether it was used is no longer known.
    #[error("sequence number is older than the replay window")]
    TooOld,
    /// Numbers start at one.
    #[error("sequence number zero is not used")]
    Zero,
}

/// The numbers accepted so far in one direction of one channel.
#[derive(Clone)]
pub struct ReplayWindow {
    highest: u64,
    seen: [u64; WORDS],
}

impl ReplayWindow {
    /// A window that has accepted nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { highest: 0, seen: [0; WORDS] }
    }

    /// Whether `seq` would be accepted. Call it before the signature is verified, and [`commit`] after.
    ///
    /// # Errors
    /// When the number is zero, too old or already used.
    ///
    /// [`commit`]: Self::commit
    pub fn test(&self, seq: u64) -> Result<(), Replay> {
        if seq == 0 {
            Err(Replay::Zero)
        } else if seq > self.highest {
            Ok(())
        } else if self.highest - seq >= WINDOW {
            Err(Replay::TooOld)
        } else if self.seen[word(seq)] & bit(seq) != 0 {
            Err(Replay::Seen)
        } else {
            Ok(())
        }
    }

    /// Marks `seq` as used. Only a verified message may do this: otherwise anybody who can write to the
    /// channel could burn the numbers of messages still on their way.
    ///
    /// # Errors
    /// As [`test`](Self::test), which is repeated here so that no order of calls lets a number in twice.
    pub fn commit(&mut self, seq: u64) -> Result<(), Replay> {
        self.test(seq)?;
        if seq > self.highest {
            self.advance(seq);
        }
        self.seen[word(seq)] |= bit(seq);
        Ok(())
    }

    /// Moves the top to `seq`; slots that change their meaning are cleared.
    fn advance(&mut self, seq: u64) {
        if seq - self.highest >= WINDOW {
            self.seen = [0; WORDS];
        } else {
            for skipped in self.highest + 1..=seq {
                self.seen[word(skipped)] &= !bit(skipped);
            }
        }
        self.highest = seq;
    }
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for ReplayWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplayWindow").field("highest", &self.highest).finish_non_exhaustive()
    }
}

fn word(seq: u64) -> usize {
    // The remainder is below WORDS, so the index is always inside the bitmap.
    (seq / 64 % WORDS as u64) as usize
}

fn bit(seq: u64) -> u64 {
    1 << (seq % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(committed: &[u64]) -> ReplayWindow {
        let mut window = ReplayWindow::new();
        for seq in committed {
            window.commit(*seq).unwrap();
        }
        window
    }

    #[test]
    fn each_number_is_accepted_once_in_any_order() {
        let mut window = ReplayWindow::new();
        for seq in [3, 1, 2, 700, 699, 5000, 4999] {
            assert_eq!(window.commit(seq), Ok(()), "{seq}");
            assert_eq!(window.test(seq), Err(Replay::Seen), "{seq}");
        }
    }

    #[test]
    fn test_alone_burns_nothing() {
        let mut window = window(&[10]);
        assert_eq!(window.test(u64::MAX), Ok(()));
        assert_eq!(window.commit(9), Ok(()));
    }

    #[test]
    fn numbers_below_the_window_are_refused() {
        let window = window(&[1, WINDOW + 1]);
        assert_eq!(window.test(1), Err(Replay::TooOld));
        assert_eq!(window.test(2), Ok(()));
        assert_eq!(window.test(0), Err(Replay::Zero));
    }

    #[test]
    fn a_long_jump_forgets_nothing_that_could_come_back() {
        let mut window = window(&[1, 2, 3]);
        window.commit(u64::MAX).unwrap();
        for seq in [1, 3, u64::MAX - WINDOW] {
            assert_eq!(window.test(seq), Err(Replay::TooOld), "{seq}");
        }
        assert_eq!(window.test(u64::MAX - WINDOW + 1), Ok(()));
        assert_eq!(window.test(u64::MAX), Err(Replay::Seen));
    }

    #[test]
    fn five_million_numbers_use_constant_memory_and_none_replays() {
        let mut window = ReplayWindow::new();
        for seq in 1..=5_000_000 {
            window.commit(seq).unwrap();
        }
        assert!(std::mem::size_of::<ReplayWindow>() <= 520);
        for seq in [1, 2_500_000, 5_000_000 - WINDOW, 4_999_999, 5_000_000] {
            assert!(window.test(seq).is_err(), "{seq}");
        }
    }

    #[test]
    fn the_window_agrees_with_a_set_of_everything_seen() {
        let mut window = ReplayWindow::new();
        let mut seen = std::collections::HashSet::new();
        let (mut state, mut highest) = (0x9e37_79b9_7f4a_7c15_u64, 0_u64);
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let seq = (highest + 60).saturating_sub(state >> 32 & 0x1fff).max(1);
            let allowed = !seen.contains(&seq) && (seq > highest || highest - seq < WINDOW);
            assert_eq!(window.commit(seq).is_ok(), allowed, "{seq} below {highest}");
            if allowed {
                seen.insert(seq);
                highest = highest.max(seq);
            }
        }
    }
}
