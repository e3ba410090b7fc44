//! Whether somebody who may do little started a program that may do more.
//!
//! The lab runs any program it is told to. A binary with file capabilities, or one that is set-uid, would run it for
//! whoever calls, so it does not run it then.

use std::fs;

use nix::unistd::{Gid, Uid};

/// The entry of the auxiliary vector with which the kernel tells that a program gained privileges by being started,
/// be it by set-uid, set-gid or file capabilities (`AT_SECURE` of `<elf.h>`).
const AT_SECURE: usize = 23;

/// Whether this process gained privileges by being started. Without an answer it did.
pub(super) fn is_gained() -> bool {
    Uid::current() != Uid::effective()
        || Gid::current() != Gid::effective()
        || fs::read("/proc/self/auxv").map_or(true, |vector| is_secure(&vector))
}

/// Reads an auxiliary vector: pairs of native words.
fn is_secure(vector: &[u8]) -> bool {
    const WORD: usize = size_of::<usize>();
    let (words, _) = vector.as_chunks::<WORD>();
    let (pairs, _) = words.as_chunks::<2>();
    let entry = pairs.iter().find(|[kind, _]| usize::from_ne_bytes(*kind) == AT_SECURE);
    entry.is_none_or(|[_, value]| usize::from_ne_bytes(*value) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(entries: &[(usize, usize)]) -> Vec<u8> {
        entries.iter().flat_map(|(kind, value)| [kind.to_ne_bytes(), value.to_ne_bytes()].concat()).collect()
    }

    #[test]
    fn a_program_that_gained_privileges_is_told_and_doubt_counts_as_gain() {
        assert!(!is_secure(&vector(&[(6, 4096), (AT_SECURE, 0), (0, 0)])));
        assert!(is_secure(&vector(&[(6, 4096), (AT_SECURE, 1), (0, 0)])));
        assert!(is_secure(&vector(&[(AT_SECURE + 1, 0)])));
        assert!(is_secure(&[]));
    }

    #[test]
    fn this_test_gained_none() {
        assert!(!is_gained());
    }
}
