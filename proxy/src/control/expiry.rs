//! Permissions that begin and end by the clock: roles that run out, windows that open and close.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::clock;
use crate::control::Node;

/// How often the clock is looked at: what ended is ended for open exchanges this much later at most, and a clock that is
/// set right is noticed as soon.
const TICK: Duration = Duration::from_secs(1);

/// Has everything that is open judged again whenever the same policy may say something else than before.
pub(super) async fn follow(node: &Node) -> Infallible {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = clock::unix_seconds();
        let last = node.judged_until.swap(now, Ordering::Relaxed);
        let next = node.snapshots.load().index.next_change(last);
        // A clock that was set back may have opened again what had ended.
        if now < last || next.is_some_and(|next| next <= now) {
            node.announce();
        }
    }
}
