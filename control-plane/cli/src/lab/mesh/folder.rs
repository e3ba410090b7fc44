//! A folder that goes when its process goes, however that ends.
//!
//! A process that is killed cannot clean up, so another does: this same binary started again, which waits for the end of
//! a pipe that only its parent holds, and then removes the folder.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use super::wait_until;

/// The first argument of the process that removes a folder; the folder is the second.
const SWEEPER: &str = "lab-sweep";
/// Programs that are being killed may still write for a moment.
const SWEEP_LIMIT: Duration = Duration::from_secs(5);

/// A folder of mode 0700. Dropping it removes it; so does the end of the process.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    sweeper: Child,
}

impl Folder {
    /// Makes one in the system's folder for temporary things.
    ///
    /// # Errors
    /// The system's, when it cannot be made or nobody can be started to remove it.
    pub fn new() -> io::Result<Self> {
        let path = tempfile::Builder::new().prefix("signet-").tempdir()?.keep();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        let sweeper = Command::new("/proc/self/exe")
            .args([OsStr::new(SWEEPER), path.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C is for whoever fills the folder.
            .process_group(0)
            .spawn()?;
        Ok(Self { path, sweeper })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.sweeper.stdin.take());
        // It does not take longer than its limit, and how it ends changes nothing.
        let _ = self.sweeper.wait();
    }
}

/// Sweeps, in a process that was started for it.
pub(super) fn sweep(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    arguments.next().filter(|first| first == SWEEPER)?;
    let folder = PathBuf::from(arguments.next()?);
    // Nothing is ever sent: it ends when the parent's end of the pipe does.
    let _ = io::stdin().read(&mut [0; 1]);
    let gone = || match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => None,
        _ => Some(()),
    };
    Some(if wait_until(SWEEP_LIMIT, gone).is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
