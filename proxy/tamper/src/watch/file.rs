//! The file: read again and again.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use tokio::sync::mpsc::Sender;

use super::{INTERVAL, Tampering, WatchError, clipped};
use crate::reserve;

/// Bytes that are read: a sensor says one digit, a script a sentence.
const BYTES_MAX: u64 = 256;

/// Looks at once, and from then on in a thread until tampering was told or nobody listens.
pub(super) fn watch(path: &Path, told: Sender<Tampering>) -> Result<(), WatchError> {
    let mut seen = Seen::default();
    let first = match read(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(WatchError::File { path: path.to_owned(), source });
        }
        first => first,
    };
    if seen.judge(first).is_some() {
        pause();
        if let Some(tampering) = seen.judge(read(path)) {
            // The queue is empty.
            let _ = told.try_send(tampering);
            return Ok(());
        }
    }
    let path = path.to_owned();
    let watching = move || {
        while !told.is_closed() {
            pause();
            if let Some(tampering) = seen.judged_twice(read(&path)) {
                // Nobody listens, or as much as matters is told already.
                let _ = told.try_send(tampering);
                return;
            }
        }
    };
    let started = std::thread::Builder::new().name("tamper-file".into()).spawn(watching);
    started.map(drop).map_err(WatchError::Thread)
}

/// Nothing tells of a change: what a file says is a fact that has to be asked for.
#[expect(clippy::disallowed_methods, reason = "the thread does nothing but look now and then")]
fn pause() {
    std::thread::sleep(INTERVAL);
}

/// A look for which there is always a descriptor: one is kept for it.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Somebody else may have been faster when they were lent.
    reserve::hold();
    match look(path) {
        Err(error) if is_out_of_descriptors(&error) => {
            reserve::lend();
            look(path)
        }
        looked => looked,
    }
}

/// Never waits: a FIFO has nothing to say, which is not `0`.
fn look(path: &Path) -> io::Result<Vec<u8>> {
    let file: File = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What was read before.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The file was there.
    existed: bool,
    /// The last look found tampering.
    doubted: bool,
}

impl Seen {
    /// What a look means by itself.
    pub(super) fn judge(&mut self, read: io::Result<Vec<u8>>) -> Option<Tampering> {
        let judged = match read {
            Ok(bytes) => {
                self.existed = true;
                (bytes.trim_ascii() != b"0").then(|| Tampering::FileSays(clipped(&bytes)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.existed.then_some(Tampering::FileGone)
            }
            Err(error) if is_shortage(&error) => None,
            Err(error) => Some(Tampering::FileUnreadable(error.kind())),
        };
        self.doubted = judged.is_some();
        judged
    }

    /// What it means after the look before.
    pub(super) fn judged_twice(&mut self, read: io::Result<Vec<u8>>) -> Option<Tampering> {
        let doubted = self.doubted;
        self.judge(read).filter(|_| doubted)
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE))
}

/// What a busy machine says, whatever the file does: the next look will tell.
fn is_shortage(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EAGAIN | Errno::EINTR | Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM))
}
