//! Backups: all that a control plane must not forget, in one file, and the way back.
//!
//! The file holds the authority's keys and everything in the store, as it was at one revision. It is a secret.
//!
//! Restoring begins a new epoch: each section goes on in an epoch above all that the backup, and the store that it
//! replaces, know of, proven by the policy key. So proxies that saw later versions take the restored state, and refuse
//! whatever anybody replays of the epochs before. The state says of itself that it was restored.
//!
//! What must not come back is not brought back: join tokens are used up, for nobody knows which were used since;
//! revocations of the store that is replaced stay, and whom they are about is not registered again.

pub(crate) mod command;
mod file;
mod restore;

pub(crate) use self::file::{Backup, BackupError};
pub(crate) use self::restore::{Restoring, restore};
