//! The state directory: the identity and the last good sections, so that a restart needs no control plane.
//!
//! Every file is written beside its place, synced and renamed, mode 0600: after a crash there is the old one or the
//! new one. Nothing read back is believed: certificates and sections are verified like those from the wire.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;
use signet_identity::{Keys, SigningSvid, SvidError, TlsSvid};
use signet_sync::proto::sync as wire;
use signet_sync::{MAX_SECTION_BYTES, MAX_SECTIONS};
use signet_tamper::{MARKER, Tampering};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::clock::{self, Saved};
use crate::control::Identity;
use crate::control::enrol::{EnrolError, assemble};

/// The answer to the enrolment, without its certificates.
const ENROLMENT: &str = "enrolment.pb";
/// Certificate chain and key for TLS.
const TLS: &str = "tls.pem";
/// Certificate chain and key for messages.
const SIGNING: &str = "signing.pem";
/// The last good sections, each with its length before it, anchors first.
const SECTIONS: &str = "sections.pb";

/// What is known of the time, see [`Saved`].
const CLOCK: &str = "clock.pb";
/// The control plane's last word that what is held is the newest, as it was signed.
const FRESHNESS: &str = "freshness.pb";

/// The largest of these two files read: a few numbers and a signature.
const MAX_SMALL_BYTES: usize = 4 * 1024;
/// The largest identity file read: roots and chains are a few kilobytes.
const MAX_IDENTITY_BYTES: usize = 256 * 1024;
/// Room beyond a file's length, in which its end is found without growing.
const READ_PROBE: usize = 64;
/// The largest file of sections read. Directories of many networks are never all full.
const MAX_SECTIONS_BYTES: usize = 16 * MAX_SECTION_BYTES;

/// The state directory cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// A file or the directory cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file was altered or is of another version.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key is in a TPM that cannot be used.
    #[error("the key of {} is in a TPM that cannot be used now; start again when it can", path.display())]
    KeyUnavailable {
        /// The file with the certificate.
        path: PathBuf,
    },
    /// The device was tampered with: the keys that were here are destroyed.
    #[error(
        "this device was tampered with ({said}) and its keys are destroyed; look at the device, then remove {} and start \
         with a new token",
        marker.display()
    )]
    GivenUp {
        /// What the marker says.
        said: String,
        /// The file that says so.
        marker: PathBuf,
    },
}

/// An open state directory.
#[derive(Clone, Debug)]
pub(super) struct State {
    directory: PathBuf,
    /// Where the key of channels is, if not in the directory.
    keys: Keys,
    /// Held while a file is written: its unfinished form has one name.
    turn: Arc<Mutex<()>>,
}

impl State {
    /// Makes the directory, mode 0700, if there is none.
    pub(super) fn open(directory: PathBuf, keys: Keys) -> Result<Self, StateError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|source| StateError::Io { path: directory.clone(), source })?;
        let state = Self { directory, keys, turn: Arc::default() };
        state.refuse_given_up()?;
        Ok(state)
    }

    /// Destroys all that is kept in a state directory, whether it can be read or not, and leaves a word for the next start.
    pub(super) fn give_up(directory: &Path, why: &Tampering) -> signet_tamper::Surrender {
        let kept = [TLS, SIGNING, ENROLMENT, SECTIONS, FRESHNESS, CLOCK];
        let unfinished = kept.map(unfinished);
        let files = kept.into_iter().chain(unfinished.iter().map(String::as_str));
        signet_tamper::give_up(directory, files, why, clock::unix_seconds())
    }

    fn refuse_given_up(&self) -> Result<(), StateError> {
        let marker = self.directory.join(MARKER);
        match signet_tamper::given_up(&self.directory) {
            Ok(None) => Ok(()),
            Ok(Some(said)) => Err(StateError::GivenUp { said, marker }),
            Err(source) => Err(StateError::Io { path: marker, source }),
        }
    }

    /// The saved identity; `None` when there is none. It may have ended.
    pub(super) fn load_identity(&self) -> Result<Option<Identity>, StateError> {
        let Some(enrolment) = self.read(ENROLMENT, MAX_IDENTITY_BYTES)? else { return Ok(None) };
        let (Some(tls), Some(signing)) =
            (self.read(TLS, MAX_IDENTITY_BYTES)?, self.read(SIGNING, MAX_IDENTITY_BYTES)?)
        else {
            return Ok(None);
        };
        let enrolment =
            wire::EnrolResponse::decode(enrolment.as_slice()).map_err(|e| self.damaged(ENROLMENT, &e))?;
        let tls = TlsSvid::from_pem_in(&tls, &self.keys).map_err(|e| match e {
            SvidError::KeyUnavailable => StateError::KeyUnavailable { path: self.directory.join(TLS) },
            e => self.damaged(TLS, &e),
        })?;
        let signing = SigningSvid::from_pem(&signing).map_err(|e: SvidError| self.damaged(SIGNING, &e))?;
        assemble(enrolment, tls, signing).map(Some).map_err(|e: EnrolError| self.damaged(ENROLMENT, &e))
    }

    /// Saves a new identity. The enrolment comes last: without it the other files mean nothing.
    pub(super) fn save_identity(&self, identity: &Identity) -> Result<(), StateError> {
        self.save_svids(identity)?;
        let enrolment = wire::EnrolResponse {
            roots: identity.bundle.roots().iter().map(|root| root.to_vec()).collect(),
            policy_key: identity.policy_key.to_vec(),
            spiffe_id: identity.tls.id.to_string(),
            network: identity.network.to_string(),
            control_plane_spiffe_id: identity.control_plane.to_string(),
            ..wire::EnrolResponse::default()
        };
        self.write(ENROLMENT, &enrolment.encode_to_vec())
    }

    /// Saves renewed certificates and keys.
    pub(super) fn save_svids(&self, identity: &Identity) -> Result<(), StateError> {
        self.write(TLS, identity.tls.to_pem().as_bytes())?;
        self.write(SIGNING, identity.signing.to_pem().as_bytes())
    }

    /// The saved sections, in the order they are to be applied. What cannot be read counts as not saved: the control
    /// plane has it, and until then everything is refused.
    pub(super) fn load_sections(&self) -> Vec<wire::Section> {
        let bytes = match self.read(SECTIONS, MAX_SECTIONS_BYTES) {
            Ok(bytes) => bytes.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "the saved sections cannot be read");
                return Vec::new();
            }
        };
        let mut rest = bytes.as_slice();
        let mut sections = Vec::new();
        while !rest.is_empty() && sections.len() < MAX_SECTIONS {
            match wire::Section::decode_length_delimited(&mut rest) {
                Ok(section) => sections.push(section),
                Err(error) => {
                    tracing::warn!(error = %self.damaged(SECTIONS, &error), "saved sections are lost");
                    break;
                }
            }
        }
        sections
    }

    /// Saves the last good sections.
    pub(super) fn save_sections(&self, sections: &[Arc<wire::Section>]) -> Result<(), StateError> {
        let bytes: Vec<u8> =
            sections.iter().flat_map(|section| section.encode_length_delimited_to_vec()).collect();
        self.write(SECTIONS, &bytes)
    }

    /// What was known of the time. What cannot be read counts as not saved, and says so.
    pub(super) fn load_clock(&self) -> Option<Saved> {
        let bytes = self.read_small(CLOCK)?;
        let saved = Saved::from_bytes(&bytes);
        if saved.is_none() {
            tracing::warn!(file = %self.directory.join(CLOCK).display(), "the saved clock is damaged and not believed");
        }
        saved
    }

    /// The control plane's last word that what is held is the newest; still to be verified.
    pub(super) fn load_freshness(&self) -> Option<wire::Freshness> {
        wire::Freshness::decode(self.read_small(FRESHNESS)?.as_slice()).ok()
    }

    fn read_small(&self, name: &str) -> Option<Zeroizing<Vec<u8>>> {
        let read = self.read(name, MAX_SMALL_BYTES);
        read.inspect_err(|error| tracing::warn!(%error, "saved state cannot be read")).ok().flatten()
    }

    /// Saves what is known of the time, and the control plane's last word.
    pub(super) fn save_clock(&self, saved: &Saved, said: Option<&wire::Freshness>) -> Result<(), StateError> {
        if let Some(said) = said {
            self.write(FRESHNESS, &said.encode_to_vec())?;
        }
        self.write(CLOCK, &saved.to_bytes())
    }

    fn read(&self, name: &str, max: usize) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
        let path = self.directory.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Io { path, source }),
        };
        // Large enough at once where it may hold a key: a vector that grows leaves copies behind.
        let length = file.metadata().map_or(0, |file| file.len()).min(max as u64);
        let mut bytes = Zeroizing::new(Vec::with_capacity(length as usize + READ_PROBE));
        let read = file.take(max as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|source| StateError::Io { path: path.clone(), source })?;
        if bytes.len() > max {
            return Err(StateError::Damaged { path, reason: format!("it is larger than {max} bytes") });
        }
        Ok(Some(bytes))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // What is under way when the directory is given up brings nothing back.
        self.refuse_given_up()?;
        let path = self.directory.join(name);
        let new = self.directory.join(unfinished(name));
        replace(&self.directory, &new, &path, bytes).map_err(|source| StateError::Io { path, source })
    }

    fn damaged(&self, name: &str, reason: &dyn std::error::Error) -> StateError {
        StateError::Damaged { path: self.directory.join(name), reason: reason.to_string() }
    }
}

/// The name under which a file is written before it takes its place.
fn unfinished(name: &str) -> String {
    format!("{name}.new")
}

fn replace(directory: &Path, new: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    // One left by a crash could have other permissions; a key must not be written into it.
    match std::fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(new, path)?;
    // The rename itself is durable only with the directory.
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_who_write_the_same_file_at_once_all_succeed() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path().join("state"), Keys::Memory).unwrap();
        std::thread::scope(|scope| {
            for writer in 0..4_u8 {
                let state = state.clone();
                scope.spawn(move || (0..50).for_each(|_| state.write(CLOCK, &[writer; 64]).unwrap()));
            }
        });
        let last = state.read(CLOCK, MAX_SMALL_BYTES).unwrap().unwrap();
        assert!(last.len() == 64 && last.iter().all(|byte| *byte == last[0]));
    }
}
