//! The device was opened, moved or cut: how that is noticed, and what becomes of the files with keys.
//!
//! ```text
//! --tamper-file ────┐
//!                   ├─► Watch ─► Tampering ─► the program ends what it does ─► give_up(directory)
//! --tamper-command ─┘                                                            │
//!                              next start: given_up(directory) says why not ◄────┘
//! ```
//!
//! Used by the sidecar and by the control plane. What each of them ends, and whom it tells, is its own affair.
//!
//! Invariants:
//! - What cannot be watched is never taken for untouched: a sensor that goes away is tampering, one that cannot be
//!   started is a setting that cannot be used.
//! - A lack of descriptors or memory is not tampering: a peer can bring it about. Descriptors are kept so that it hides none.
//! - A directory that was given up says so until a person removes what says it.

mod reserve;
mod settings;
mod surrender;
mod watch;

pub use settings::{Settings, SettingsError, TamperArguments};
pub use surrender::{MARKER, Surrender, give_up, given_up};
pub use watch::{INTERVAL, STOP_GRACE, Tampering, Watch, WatchError};
