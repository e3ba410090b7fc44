//! The one place that sleeps.

use std::thread;
use std::time::Duration;

/// A pause between two looks at a fact, or until a figure has settled.
#[expect(
    clippy::disallowed_methods,
    reason = "the pause between two looks, or a settling time that is asked for"
)]
pub fn pause(length: Duration) {
    thread::sleep(length);
}
