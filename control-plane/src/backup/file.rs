//! The file: one line with a digest, then JSON.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::authority::AuthorityError;
use crate::files;
use crate::store::{Entry, Revision, StoreError};

const HEADER: &str = "signet-backup 1 sha256 ";

/// The largest backup: many times the state of the largest mesh.
const BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Everything at one revision. `Debug` is left out: it holds keys.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Backup {
    pub(crate) trust_domain: String,
    /// Unix seconds.
    pub(crate) made_at: u64,
    /// Of the store.
    pub(crate) revision: u64,
    /// The authority's file, word by word.
    pub(crate) authority: String,
    entries: Vec<SavedEntry>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SavedEntry {
    key: String,
    #[serde(with = "base64_text")]
    value: Vec<u8>,
}

/// Values are bytes to the store.
mod base64_text {
    use super::*;

    pub(super) fn serialize<S: serde::Serializer>(value: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(value))
    }

    pub(super) fn deserialize<'a, D: serde::Deserializer<'a>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// Why there is no backup, or nothing was restored.
#[derive(Debug, Error)]
pub(crate) enum BackupError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("{} is damaged or no backup: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("the epoch has to be above {0}, which is known already")]
    Epoch(u64),
    #[error("cannot use {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        error: std::io::Error,
    },
    #[error("the store holds a mesh already (revision {0}); give --replace to put the backup in its place")]
    NotEmpty(u64),
    #[error("the control plane does not answer: {0}")]
    NotAnswering(String),
    #[error("the backup is of the trust domain {found}, not of {wanted}")]
    OtherTrustDomain { found: String, wanted: String },
    #[error(
        "what is there belongs to another authority than the backup, or its keys were rotated after it; restore into an empty state directory and store"
    )]
    OtherAuthority,
    #[error(
        "the backup and the store together have more revocations than a proxy can hold; lift or let end some first"
    )]
    Revocations,
    #[error("others may read or write the state directory {}: {fault}", path.display())]
    SharedStateDirectory { path: PathBuf, fault: String },
    #[error("a control plane uses the store; stop it first")]
    Serving,
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for BackupError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::AlreadyOpen => Self::Serving,
            error => Self::Store(error),
        }
    }
}

impl Backup {
    pub(crate) fn new(
        trust_domain: String,
        made_at: u64,
        revision: Revision,
        authority: String,
        entries: Vec<Entry>,
    ) -> Self {
        let saved = |entry: Entry| SavedEntry { key: entry.key, value: entry.value };
        let entries = entries.into_iter().map(saved).collect();
        Self { trust_domain, made_at, revision: revision.0, authority, entries }
    }

    /// Keys and values.
    pub(crate) fn entries(&self) -> impl ExactSizeIterator<Item = (&str, &[u8])> {
        self.entries.iter().map(|entry| (entry.key.as_str(), entry.value.as_slice()))
    }

    /// Writes it for its owner alone; a file that is there is replaced whole.
    pub(crate) fn write(&self, path: &Path) -> Result<(), BackupError> {
        let failed = |error| BackupError::Io { path: path.to_owned(), error };
        let body = serde_json::to_string(self).map_err(|error| failed(error.into()))?;
        let text = format!("{HEADER}{}\n{body}\n", checksum(&body));
        files::replace(path, text.as_bytes()).map_err(failed)
    }

    /// Reads what [`Self::write`] wrote.
    pub(crate) fn read(path: &Path) -> Result<Self, BackupError> {
        let damaged =
            |reason: &str| BackupError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
        let text = files::read(path, BYTES_MAX).map_err(|error| match error.kind() {
            ErrorKind::InvalidData => damaged("it is no text, or too large"),
            _ => BackupError::Io { path: path.to_owned(), error },
        })?;
        let (head, body) = text.split_once('\n').ok_or_else(|| damaged("its first line is missing"))?;
        let body = body.trim_end_matches('\n');
        match head.strip_prefix(HEADER) {
            None => Err(damaged("it does not begin as one")),
            Some(sum) if sum != checksum(body) => Err(damaged("its digest is another one")),
            // What is wrong is told by place, not by content.
            Some(_) => serde_json::from_str(body).map_err(|error| {
                damaged(&format!("line {}, column {} is not understood", error.line() + 1, error.column()))
            }),
        }
    }
}

fn checksum(body: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, body.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_backup_is_read_as_it_was_written_and_a_damaged_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mesh.backup");
        let entry = Entry { key: "a".into(), value: vec![0, 255], revision: Revision(4) };
        Backup::new("td".into(), 7, Revision(4), "keys".into(), vec![entry]).write(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read = Backup::read(&path).unwrap();
        assert_eq!((read.trust_domain.as_str(), read.made_at, read.revision), ("td", 7, 4));
        assert_eq!(read.entries().collect::<Vec<_>>(), [("a", &[0, 255][..])]);
        let intact = std::fs::read(&path).unwrap();
        for at in 0..intact.len() - 1 {
            let mut bytes = intact.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert!(Backup::read(&path).is_err(), "byte {at}");
        }
        std::fs::write(&path, &intact[..intact.len() / 2]).unwrap();
        let refused = Backup::read(&path).err().unwrap();
        assert!(matches!(refused, BackupError::Damaged { .. }) && !refused.to_string().contains("keys"));
    }
}
