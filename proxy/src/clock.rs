//! The wall clock, read in one place.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, in milliseconds since 1970; 0 on a machine whose clock stands before that.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Now, in seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    unix_ms() / 1000
}
