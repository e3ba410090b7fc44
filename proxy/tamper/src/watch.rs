//! Watches a file and a program for as long as the process lives.
//!
//! Each has a thread of its own that does nothing else, so that neither load nor a lock delays it. The file is read at an
//! interval rather than by inotify: what a sensor is shown by, sysfs, tells nobody of a change.

mod command;
mod file;

use std::io;
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;

use crate::reserve;
use crate::settings::Settings;

/// How often the file is read. What it says counts when it is read twice in a row, so tampering is noticed within two of
/// them, and a file that is being written is not taken for one that says something.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// When a machine or a container is stopped, watching programs end as we are told to: so long the end of one is held back,
/// to see whether we are.
pub const STOP_GRACE: Duration = Duration::from_secs(1);

/// Two things are watched, and one word of each is enough.
const WORDS: usize = 2;

/// What was noticed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Tampering {
    /// The command ended, or closed its output.
    CommandEnded,
    /// The command printed this.
    CommandSaid(String),
    /// The file was there and is gone.
    FileGone,
    /// The file says this.
    FileSays(String),
    /// The file cannot be read any more.
    FileUnreadable(io::ErrorKind),
}

impl Tampering {
    /// A stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::CommandEnded => "command-ended",
            Self::CommandSaid(_) => "command-said",
            Self::FileGone => "file-gone",
            Self::FileSays(_) => "file-says",
            Self::FileUnreadable(_) => "file-unreadable",
        }
    }
}

impl std::fmt::Display for Tampering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CommandEnded => f.write_str("the tamper command ended"),
            Self::CommandSaid(text) => write!(f, "the tamper command said {text:?}"),
            Self::FileGone => f.write_str("the tamper file is gone"),
            Self::FileSays(text) => write!(f, "the tamper file says {text:?}"),
            Self::FileUnreadable(kind) => write!(f, "the tamper file cannot be read any more: {kind}"),
        }
    }
}

/// What is to be watched cannot be: nothing was tampered with, and nothing may start.
#[derive(Debug, Error)]
pub enum WatchError {
    /// The program cannot be started.
    #[error("--tamper-command: {program} cannot be started: {source}")]
    Command {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The file is there, or may be, and cannot be read.
    #[error("--tamper-file: {} cannot be read: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no thread for it.
    #[error("what tells of tampering cannot be watched: {0}")]
    Thread(io::Error),
}

/// What is watched. Dropping it ends the watch, and the command.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<Tampering>,
    /// Kept, so that the wait has no end where nothing is watched.
    _waiting: mpsc::Sender<Tampering>,
    stopping: Arc<AtomicBool>,
    command: Option<Child>,
    is_needed: bool,
}

impl Watch {
    /// Begins to watch. What the file says already is noticed before this returns, which takes an [`INTERVAL`] then.
    ///
    /// # Errors
    /// [`WatchError`].
    pub fn start(settings: &Settings) -> Result<Self, WatchError> {
        reserve::hold();
        let (waiting, events) = mpsc::channel(WORDS);
        let stopping = Arc::new(AtomicBool::new(false));
        if let Some(path) = &settings.file {
            file::watch(path, waiting.clone())?;
        }
        let command = match &settings.command {
            Some(words) => Some(command::watch(words, waiting.clone(), Arc::clone(&stopping))?),
            None => None,
        };
        let is_needed = settings.file.is_some() || command.is_some();
        Ok(Self { events, _waiting: waiting, stopping, command, is_needed })
    }

    /// Whether anything is watched.
    pub fn is_needed(&self) -> bool {
        self.is_needed
    }

    /// What has been noticed, without waiting.
    pub fn noticed(&mut self) -> Option<Tampering> {
        self.events.try_recv().ok()
    }

    /// Waits until something is noticed; for ever where nothing is watched. Nothing is lost when the wait is given up.
    pub async fn tampering(&mut self) -> Tampering {
        match self.events.recv().await {
            Some(noticed) => noticed,
            // Not while `_waiting` lives.
            None => std::future::pending().await,
        }
    }

    /// This program was told to stop, and what it watches by may be too: the command's end means nothing from now on.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// The same, for whoever hears of the stop while somebody else waits for tampering.
    pub fn on_stop(&self) -> impl FnOnce() + Send + use<> {
        let stopping = Arc::clone(&self.stopping);
        move || stopping.store(true, Ordering::Release)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stopping();
        if let Some(command) = &mut self.command {
            // It may have ended by itself.
            let _ = command.kill();
            let _ = command.wait();
        }
    }
}

/// Text from a sensor, for people: one line of it, without what a terminal would act on.
fn clipped(bytes: &[u8]) -> String {
    const CHARACTERS_MAX: usize = 80;
    let text = String::from_utf8_lossy(bytes);
    let line = text.trim().lines().next().unwrap_or_default();
    line.chars().filter(|character| !character.is_control()).take(CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests;
