//! The end of a sidecar whose device was tampered with.
//!
//! ```text
//! nothing in force ─► workers cut what is open ─► files destroyed ─► control plane told ─► keys gone, or the process is
//! ```
//!
//! The capture rules stay and are looked after: what the app sends is refused, not in clear. Nothing of this is undone but
//! by a person, see [`signet_tamper::give_up`].

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use signet_tamper::Tampering;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::Health;
use crate::control::{self, Joined};

/// How long the workers, and whoever still holds a key, may take once everything is cut: far more than they need, so that
/// a process that ends here is one in which something is wrong.
const LET_GO_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked whether the keys are gone.
const STEP: Duration = Duration::from_millis(10);
/// Exit code of a process that could not let go of its keys (`EX_SOFTWARE` in sysexits.h).
const EXIT_KEYS_HELD: i32 = 70;

/// What runs.
pub(crate) struct Running {
    pub(crate) joined: Joined,
    /// Ends the workers.
    pub(crate) cut: watch::Sender<bool>,
    /// Until they have ended.
    pub(crate) workers: JoinHandle<bool>,
}

/// There is no identity yet, and nobody to tell.
pub(crate) fn before_joining(health: &Health, state_dir: Option<&Path>, why: &Tampering) {
    tracing::error!(code = why.code(), "tampering: {why}; this sidecar had not joined");
    health.tampered.store(true, Ordering::Release);
    if let Some(directory) = state_dir {
        control::destroy(directory, why);
    }
}

/// Ends everything. When this returns no key is left; where one is, the process ends instead.
pub(crate) async fn give_up(running: Running, health: &Health, state_dir: Option<&Path>, why: &Tampering) {
    tracing::error!(code = why.code(), "tampering: {why}; everything is cut and the keys are destroyed");
    health.tampered.store(true, Ordering::Release);
    let Running { joined, cut, workers } = running;
    let keys = joined.withdraw();
    // Workers that have ended hear nothing.
    let _ = cut.send(true);
    if let Some(directory) = state_dir {
        control::destroy(directory, why);
    }
    match joined.report(why).await {
        Ok(()) => tracing::error!("the control plane knows, and has revoked this instance"),
        Err(error) => tracing::error!(%error, "the control plane could not be told: revoke this instance"),
    }
    let let_go = async {
        let _ = workers.await;
        while keys.strong_count() > 0 {
            tokio::time::sleep(STEP).await;
        }
    };
    if tokio::time::timeout(LET_GO_LIMIT, let_go).await.is_err() {
        tracing::error!("something still holds a key: the process ends");
        std::process::exit(EXIT_KEYS_HELD);
    }
    tracing::error!("no key is left in memory; this stays so until an operator acts");
}
