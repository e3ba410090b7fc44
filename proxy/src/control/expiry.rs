//! Permissions that begin and end by the clock: roles that run out, windows that open and close.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use signet_policy::Staleness;
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
    let mut stood = Staleness::Fresh;
    let mut followed = clock::told().source;
    loop {
        ticks.tick().await;
        let stands = node.snapshots.load().staleness();
        if stands != stood {
            stood = stands;
            tell(node, stands);
            node.announce();
        }
        let told = clock::told();
        if told.source != followed {
            followed = told.source;
            tracing::warn!(source = followed.as_str(), "the time goes on {told}");
        }
        let now = told.ms / 1000;
        let last = node.judged_until.swap(now, Ordering::Relaxed);
        let next = node.snapshots.load().index.next_change(last);
        // A clock that was set back may have opened again what had ended.
        if now < last || next.is_some_and(|next| next <= now) {
            node.announce();
        }
    }
}

/// Says what becomes of exchanges when policy has grown stale, and when it is confirmed again.
fn tell(node: &Node, stands: Staleness) {
    let snapshot = node.snapshots.load();
    let age_s = snapshot.policy_age_s();
    let bound_s = snapshot.offline_bound().map(|bound| bound.budget_s);
    match stands {
        Staleness::Fresh => tracing::info!(age_s, "the policy is confirmed again"),
        Staleness::LifeSafety => tracing::error!(
            age_s,
            bound_s,
            "the control plane was not heard for longer than policy lets this class go on: only life-safety rules allow"
        ),
        Staleness::Refuse => tracing::error!(
            age_s,
            bound_s,
            "the control plane was not heard for longer than policy lets this class go on: nothing is carried"
        ),
    }
}
