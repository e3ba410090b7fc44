//! Files that hold secrets: readable by their owner only, and replaced whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::unistd::Uid;

/// Room beyond a file's length, in which its end is found without growing.
const READ_PROBE: usize = 64;

/// Creates the directory (and its parents) if it is missing, for its owner only.
pub(crate) fn private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Who else could put files of their own into the directory, and what the operator does about it; `None` when nobody.
pub(crate) fn intruders(path: &Path) -> io::Result<Option<String>> {
    let found = std::fs::metadata(path)?;
    let own = Uid::effective().as_raw();
    Ok(fault(found.uid(), found.mode(), own, path))
}

fn fault(owner: u32, mode: u32, own: u32, path: &Path) -> Option<String> {
    let path = path.display();
    if owner != own {
        return Some(format!("it belongs to user {owner}, not to {own}; fix: chown {own} {path}"));
    }
    if mode & 0o022 != 0 {
        let mode = mode & 0o7777;
        return Some(format!("others may write to it (mode {mode:04o}); fix: chmod 700 {path}"));
    }
    None
}

/// Creates a file of its owner only, which is empty and nobody else's: whatever was there is removed, not followed.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Replaces `path` with `contents`: after a crash the file is the old or the new one, never a part.
pub(crate) fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = create(&unfinished)?;
    file.write_all(contents)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Reads a text file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<String> {
    let file = File::open(path)?;
    // Large enough at once: where it holds keys, a text that grows leaves copies behind.
    let length = file.metadata()?.len().min(limit);
    let mut text = String::with_capacity(length as usize + READ_PROBE);
    file.take(limit + 1).read_to_string(&mut text)?;
    if text.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is larger than it can be"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_that_somebody_prepared_gets_no_secret() {
        let directory = tempfile::tempdir().unwrap();
        let (path, bait) = (directory.path().join("keys.pem"), directory.path().join("bait"));
        std::fs::write(&bait, "old").unwrap();
        symlink(&bait, directory.path().join("keys.new")).unwrap();
        replace(&path, b"secret").unwrap();
        assert_eq!(std::fs::read(&bait).unwrap(), b"old");
        // The same with a hard link, which keeps its mode and owner.
        std::fs::set_permissions(&bait, std::fs::Permissions::from_mode(0o666)).unwrap();
        std::fs::hard_link(&bait, directory.path().join("keys.new")).unwrap();
        replace(&path, b"secret").unwrap();
        assert_eq!(std::fs::read(&bait).unwrap(), b"old");
        assert_eq!(std::fs::read(&path).unwrap(), b"secret");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_directory_is_ours_alone_or_its_fault_has_a_fix() {
        let path = Path::new("/state");
        assert_eq!(fault(7, 0o40700, 7, path), None);
        assert_eq!(fault(0, 0o40755, 0, path), None);
        assert!(fault(8, 0o40700, 7, path).unwrap().ends_with("fix: chown 7 /state"));
        for mode in [0o40720, 0o40702, 0o41777] {
            assert!(fault(7, mode, 7, path).unwrap().ends_with("fix: chmod 700 /state"), "{mode:o}");
        }
    }
}
