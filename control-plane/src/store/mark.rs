//! How far a store was, in a file of its own: an older copy of it in its place is noticed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::StoreError;

/// The newest acknowledged revision, rewritten in place: one line, well inside one disk sector.
pub(super) struct Mark {
    file: File,
    /// What the file holds as far as this process knows.
    written: Mutex<u64>,
}

impl Mark {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let file = private_file(path).map_err(StoreError::Io)?;
        Ok(Self { file, written: Mutex::new(0) })
    }

    /// Zero when nothing was acknowledged yet.
    pub(super) fn read(&self) -> Result<u64, StoreError> {
        let mut line = String::new();
        let mut bounded = (&self.file).take(64);
        (&self.file).rewind().map_err(StoreError::Io)?;
        bounded.read_to_string(&mut line).map_err(StoreError::Io)?;
        if line.is_empty() {
            return Ok(0);
        }
        let number = line.strip_suffix('\n').filter(|digits| digits.len() == 20);
        number
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| StoreError::Corrupted("its high-water mark is unreadable".to_owned()))
    }

    /// A lower number never replaces a higher one: commits are serialised by the database, their marks are not.
    pub(super) fn write(&self, revision: u64) -> Result<(), StoreError> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if revision > *written {
            self.file.write_all_at(format!("{revision:020}\n").as_bytes(), 0).map_err(StoreError::Io)?;
            self.file.sync_data().map_err(StoreError::Io)?;
            *written = revision;
        }
        Ok(())
    }
}

fn private_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}
