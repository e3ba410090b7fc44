//! Whether this machine's clock is good enough to issue certificates by.
//!
//! A certificate with a wrong beginning or end is refused by proxies whose clocks are right, or outlives what it should. So
//! nothing is issued while the clock lies before certificates that were issued already, or has jumped ahead of the clock that
//! counts from the machine's start; unless most connected proxies, who keep the time by themselves, say the same as the clock.
//! Certificates in force stay so: every proxy renews at half their life, and tries again.

mod guard;

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

pub use self::guard::Fault;
use self::guard::{Guard, Reading};
use crate::records::{self, unix_seconds};
use crate::store::{Store, StoreError};
use crate::streams::Streams;

/// How far the record of the last certificate may lag behind: so seldom is it written.
const RECORD_PERIOD_S: u64 = 30;
/// How seldom it is written when no certificate is issued, in seconds: far below what a clock may be ahead at the start.
const REMEMBER_PERIOD_S: u64 = 3600;
/// How often the file of a drill is read.
const DRILL_PERIOD: Duration = Duration::from_millis(200);
/// Bytes of that file: a signed number of seconds.
const DRILL_BYTES: u64 = 32;

/// When a certificate was issued last.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Issued {
    /// Unix seconds.
    at: u64,
}

/// The control plane's clock.
pub(crate) struct Clock {
    guard: Mutex<Guard>,
    /// Unix seconds of the record in the store.
    recorded: AtomicU64,
    store: Arc<dyn Store>,
    streams: Arc<Streams>,
    drill: Option<PathBuf>,
    /// What a drill adds to the machine's clock, in milliseconds.
    drill_ms: AtomicI64,
}

impl Clock {
    /// Reads when a certificate was issued last, and the file of a drill.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        streams: Arc<Streams>,
        drill: Option<PathBuf>,
        is_right: bool,
    ) -> Result<Self, StoreError> {
        let issued =
            records::read::<Issued>(&*store, records::ISSUED).await?.map_or(0, |found| found.record.at);
        let clock = Self {
            guard: Mutex::new(Guard::new(issued.saturating_mul(1000), is_right)),
            recorded: AtomicU64::new(issued),
            store,
            streams,
            drill,
            drill_ms: AtomicI64::new(0),
        };
        clock.read_drill();
        Ok(clock)
    }

    /// The time to issue a certificate at; durably recorded, but for the last [`RECORD_PERIOD_S`] seconds.
    pub(crate) async fn issuing(&self) -> Result<SystemTime, ClockError> {
        let now = self.judge().map_err(ClockError::Fault)?;
        self.record(unix_seconds(now), RECORD_PERIOD_S).await?;
        Ok(now)
    }

    /// Remembers that the clock is believed, where certificates were issued before: whoever has long ones asks for none for
    /// weeks, and after a restart that must not look like a jump.
    pub(crate) async fn remember(&self) -> Result<(), StoreError> {
        match self.judge() {
            Ok(now) if self.has_issued() => self.record(unix_seconds(now), REMEMBER_PERIOD_S).await,
            _ => Ok(()),
        }
    }

    /// Writes that it is so late, unless the last record is younger than `period_s` seconds.
    async fn record(&self, seconds: u64, period_s: u64) -> Result<(), StoreError> {
        if self.recorded.load(Ordering::Relaxed).abs_diff(seconds) >= period_s {
            let found = records::read::<Issued>(&*self.store, records::ISSUED).await?;
            let record = Issued { at: seconds };
            let write =
                records::put(records::ISSUED.to_owned(), records::unchanged(found.as_ref()), &record)?;
            match self.store.commit(vec![write]).await {
                // Somebody else issues at this moment, and has recorded it.
                Ok(_) | Err(StoreError::Conflict { .. }) => self.recorded.store(seconds, Ordering::Relaxed),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What time it is, unless the clock is not believed: for what cannot be made good again.
    pub(crate) fn believed(&self) -> Result<SystemTime, Fault> {
        self.judge()
    }

    /// What time it is, with a clock that is not believed too: the latest that is certain.
    pub(crate) fn best(&self) -> SystemTime {
        self.judge().unwrap_or_else(|fault| fault.instead)
    }

    /// The latest time that it may be: what has to be good for whoever knows the time ends after it.
    pub(crate) fn latest(&self) -> SystemTime {
        self.judge().unwrap_or_else(|fault| fault.latest)
    }

    /// Whether a certificate was issued at any time.
    pub(crate) fn has_issued(&self) -> bool {
        self.recorded.load(Ordering::Relaxed) > 0
    }

    /// What is wrong with the clock now.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.judge().err()
    }

    fn judge(&self) -> Result<SystemTime, Fault> {
        let now = self.reading();
        let mut guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        guard.judge(now, |since| self.streams.clock_offsets(since))
    }

    fn reading(&self) -> Reading {
        let wall = machine().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        // Linux has had this clock since 2.6.39.
        let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        Reading {
            wall_ms: wall.saturating_add_signed(self.drill_ms.load(Ordering::Relaxed)),
            boot_ms: boot.as_millis() as u64,
            at: Instant::now(),
        }
    }

    /// What the machine's clock says, believed or not: for what proxies' clocks are compared with.
    pub(crate) fn wall_ms(&self) -> u64 {
        self.reading().wall_ms
    }

    /// Moves the machine's clock, for this process, by what a file says; see the proxy's setting of the same name.
    pub(crate) async fn follow_drill(&self) {
        if self.drill.is_none() {
            return std::future::pending().await;
        }
        let mut ticks = tokio::time::interval(DRILL_PERIOD);
        loop {
            ticks.tick().await;
            self.read_drill();
        }
    }

    pub(crate) fn read_drill(&self) {
        let Some(file) = &self.drill else { return };
        let text = crate::files::read(file, DRILL_BYTES).unwrap_or_default();
        let ms = text.trim().parse::<i64>().unwrap_or(0).saturating_mul(1000);
        if self.drill_ms.swap(ms, Ordering::Relaxed) != ms {
            tracing::warn!(ms, file = %file.display(), "drill: the clock is moved");
        }
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clock").finish_non_exhaustive()
    }
}

/// What the machine's clock says, which is a claim: where there is no [`Clock`] yet, or nothing hangs on it.
#[expect(clippy::disallowed_methods, reason = "this is where the claim is heard")]
pub(crate) fn machine() -> SystemTime {
    SystemTime::now()
}

/// Whether a clock was never set.
pub(crate) fn is_unset(now: SystemTime) -> bool {
    now.duration_since(UNIX_EPOCH).unwrap_or_default() < Duration::from_millis(guard::EARLIEST_MS)
}

/// Why nothing is issued now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClockError {
    #[error(transparent)]
    Fault(Fault),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ClockError {
    /// A stable name for metrics, logs and the proxy's own errors.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Fault(fault) => fault.code(),
            Self::Store(_) => "store-unavailable",
        }
    }
}

impl From<&ClockError> for tonic::Status {
    fn from(error: &ClockError) -> Self {
        match error {
            ClockError::Fault(fault) => Self::unavailable(format!("{}: {fault}", fault.code())),
            ClockError::Store(error) => {
                tracing::error!(%error, "the store failed");
                Self::unavailable("store-unavailable: the control plane cannot write now, try again")
            }
        }
    }
}
