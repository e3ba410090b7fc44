//! What becomes of a directory with keys: a marker that nobody starts past, and files that are overwritten and removed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::reserve;
use crate::watch::Tampering;

/// The file that says that a directory was given up.
pub const MARKER: &str = "tampered";

/// Bytes of the marker that are read.
const MARKER_BYTES_MAX: u64 = 1024;

/// Bytes that are overwritten at a time.
const BLOCK: usize = 4096;

/// What became of a directory.
#[derive(Debug, Default)]
pub struct Surrender {
    /// Files that were overwritten and removed.
    pub destroyed: Vec<PathBuf>,
    /// What could not be done, with the file it was about.
    pub failed: Vec<(PathBuf, io::Error)>,
}

/// When and why a directory was given up, in the marker's words; `None` for one that was not.
///
/// # Errors
/// When that cannot be found out: then nobody may start either.
pub fn given_up(directory: &Path) -> io::Result<Option<String>> {
    let marker = match File::open(directory.join(MARKER)) {
        Ok(marker) => marker,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    marker.take(MARKER_BYTES_MAX).read_to_end(&mut bytes)?;
    let text: String = String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control()).collect();
    Ok(Some(text))
}

/// Gives a directory up: the marker first, so that a power cut leaves no way back, then these files. `at` is Unix seconds.
///
/// Goes on whatever fails. On flash and on file systems that write elsewhere, the old blocks may stay readable to whoever
/// reads the chip: overwriting does not reach them.
pub fn give_up<'a>(
    directory: &Path,
    files: impl IntoIterator<Item = &'a str>,
    why: &Tampering,
    at: u64,
) -> Surrender {
    reserve::lend();
    let mut surrender = Surrender::default();
    let marker = directory.join(MARKER);
    if let Err(error) = mark(directory, &marker, &format!("{why}, at {at} s since 1970\n")) {
        surrender.failed.push((marker, error));
    }
    for name in files {
        let path = directory.join(name);
        match destroy(&path) {
            Ok(()) => surrender.destroyed.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                // Overwritten or not: who starts next shall not find it.
                let _ = std::fs::remove_file(&path);
                surrender.failed.push((path, error));
            }
        }
    }
    if let Err(error) = File::open(directory).and_then(|directory| directory.sync_all()) {
        surrender.failed.push((directory.to_owned(), error));
    }
    surrender
}

fn mark(directory: &Path, marker: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(marker)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    File::open(directory)?.sync_all()
}

/// Overwrites a file in its place and removes it. A link is not followed.
fn destroy(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path)?;
    let mut left = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let zeros = [0; BLOCK];
    while left > 0 {
        let block = left.min(BLOCK);
        file.write_all(zeros.get(..block).unwrap_or(&zeros))?;
        left -= block;
    }
    file.sync_all()?;
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHY: Tampering = Tampering::FileGone;

    #[test]
    fn files_are_overwritten_and_gone_and_the_marker_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("key.pem"), directory.path().join("other"));
        std::fs::write(&path, vec![7; 2 * BLOCK + 1]).unwrap();
        std::fs::write(&other, "mine").unwrap();
        // A second name shows what the first one's blocks hold now.
        let witness = directory.path().join("witness");
        std::fs::hard_link(&path, &witness).unwrap();
        assert!(given_up(directory.path()).unwrap().is_none());
        let surrender = give_up(directory.path(), ["key.pem", "missing"], &WHY, 7);
        assert_eq!((surrender.destroyed, surrender.failed.len()), (vec![path.clone()], 0));
        assert!(!path.exists());
        assert_eq!(std::fs::read(witness).unwrap(), vec![0; 2 * BLOCK + 1]);
        assert_eq!(std::fs::read(other).unwrap(), b"mine");
        let said = given_up(directory.path()).unwrap().unwrap();
        assert_eq!(said, "the tamper file is gone, at 7 s since 1970");
    }

    #[test]
    fn a_link_is_removed_and_what_it_leads_to_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let bait = directory.path().join("bait");
        std::fs::write(&bait, "of others").unwrap();
        std::os::unix::fs::symlink(&bait, directory.path().join("key.pem")).unwrap();
        let surrender = give_up(directory.path(), ["key.pem"], &WHY, 7);
        assert_eq!(surrender.failed.len(), 1);
        assert!(!directory.path().join("key.pem").exists());
        assert_eq!(std::fs::read(bait).unwrap(), b"of others");
    }

    #[test]
    fn a_marker_that_cannot_be_read_is_not_taken_for_none() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(MARKER)).unwrap();
        assert!(given_up(directory.path()).is_err());
    }
}
