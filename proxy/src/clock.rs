//! What time it is: the one place where the machine's clocks are read.
//!
//! A wall clock is a claim. It is taken for true as long as nothing better is known; what is better is kept by the
//! [`Keeper`]: a floor of time that certainly passed, and the time that the control plane told on an authenticated
//! connection, carried on by the clock that counts from the machine's start and cannot be set. Everything that judges by
//! a time of day asks [`now`] and its kin; what measures spans alone may use `Instant`.

mod keeper;
mod saved;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use nix::time::{ClockId, clock_gettime};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

pub(crate) use self::keeper::{Heard, Source, Told};
use self::keeper::{Keeper, Reading};
pub(crate) use self::saved::Saved;

/// How often the file of the drill is read.
const DRILL_PERIOD: Duration = Duration::from_millis(200);
/// A signed number of seconds takes no more.
const DRILL_BYTES: u64 = 32;
/// Farthest that a drill moves the clock: a century.
const DRILL_MAX_S: i64 = 100 * 366 * 86_400;

/// The process has one, as the machine has: it is read on every thread, and changed rarely.
static KEEPER: LazyLock<ArcSwap<Keeper>> = LazyLock::new(|| ArcSwap::from_pointee(Keeper::default()));
/// Changes come one after the other.
static CHANGES: Mutex<()> = Mutex::new(());
/// What a drill adds to the wall clock, in milliseconds.
static DRILL_MS: AtomicI64 = AtomicI64::new(0);

/// Now, with where it comes from and how far the wall clock is off.
pub(crate) fn told() -> Told {
    KEEPER.load().tell(reading())
}

/// Now, in milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    told().ms
}

/// Now, in seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    unix_ms() / 1000
}

/// Now.
pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(unix_ms())
}

/// Since the machine started, sleep included; cannot be set.
pub(crate) fn since_boot() -> Duration {
    Duration::from_millis(reading().boot)
}

/// Takes up a time that certainly passed: signed by the authority, as the beginning of a certificate.
pub(crate) fn passed(time: SystemTime) {
    let ms = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    change(|keeper, reading| keeper.passed(ms, reading));
}

/// Takes up what the control plane says the time is, on an authenticated connection and under its signature.
pub(crate) fn hear(ms: u64) -> Heard {
    change(|keeper, reading| keeper.hear(ms, reading))
}

/// Whether the authority's word decides what time it is: nothing better was heard since the machine started.
pub(crate) fn asks_authority() -> bool {
    !KEEPER.load().is_anchored()
}

/// Takes up what an earlier process knew.
pub(crate) fn restore(saved: &Saved) {
    let boot_id = boot_id();
    change(|keeper, reading| keeper.restore(saved, boot_id.as_deref(), reading));
}

/// What a later process is to know.
pub(crate) fn save() -> Saved {
    KEEPER.load().save(boot_id().unwrap_or_default(), reading())
}

fn change<R>(apply: impl FnOnce(&mut Keeper, Reading) -> R) -> R {
    let _one = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut keeper = **KEEPER.load();
    let outcome = apply(&mut keeper, reading());
    KEEPER.store(keeper.into());
    outcome
}

#[expect(clippy::disallowed_methods, reason = "this is where the claim is looked at")]
fn reading() -> Reading {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    // Linux has had this clock since 2.6.39; without it the machine could not run this program.
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    Reading {
        wall: wall.saturating_add_signed(DRILL_MS.load(Ordering::Relaxed)),
        boot: boot.as_millis() as u64,
    }
}

/// Names this start of the machine.
fn boot_id() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// The time for TLS handshakes.
#[derive(Debug)]
pub(crate) struct Handshakes;

impl TimeProvider for Handshakes {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(unix_seconds())))
    }
}

/// Moves this process's wall clock by what a file says, as somebody would who set the machine's: a drill of what a wrong
/// clock does, without a machine of one's own. It gives no power that setting the clock does not give.
pub(crate) async fn drill(file: PathBuf) {
    let mut ticks = tokio::time::interval(DRILL_PERIOD);
    let mut last = 0;
    loop {
        ticks.tick().await;
        let seconds = drilled(&file);
        if seconds != last {
            tracing::warn!(seconds, file = %file.display(), "drill: the wall clock is moved");
            last = seconds;
        }
    }
}

/// Reads the file of a drill once. What cannot be read moves nothing.
pub(crate) fn drilled(file: &Path) -> i64 {
    use std::io::Read as _;
    let read = std::fs::File::open(file).and_then(|file| {
        let mut text = String::new();
        file.take(DRILL_BYTES).read_to_string(&mut text)?;
        Ok(text)
    });
    let seconds = read.ok().and_then(|text| text.trim().parse::<i64>().ok());
    let seconds = seconds.filter(|seconds| seconds.abs() <= DRILL_MAX_S).unwrap_or(0);
    DRILL_MS.store(seconds * 1000, Ordering::Relaxed);
    seconds
}
