//! Payload of section `revocations`: certificates and identities that are no longer believed before they expire.

use std::collections::HashMap;

use prost::Message;
use signet_identity::{Fingerprint, SpiffeId};

use crate::bytes::{at_most, fields_at_most, key, spiffe_id};
use crate::proto::sync as wire;
use crate::{DecodeError, MAX_ENTRIES, MAX_NACK_BYTES};

/// What is revoked, with constant-time-sized look-ups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    entries: HashMap<Subject, Revocation>,
}

/// A certificate or a whole identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// One leaf certificate, TLS or signing.
    Certificate(Fingerprint),
    /// Every certificate of an identity.
    Identity(SpiffeId),
}

/// Why and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// For people.
    pub reason: String,
    /// Unix seconds.
    pub revoked_at: u64,
}

impl Revocations {
    /// From a section's payload.
    ///
    /// # Errors
    /// [`DecodeError`] names the field.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        fields_at_most("revocations.entries", payload)?;
        Self::try_from(wire::Revocations::decode(payload)?)
    }

    /// Revokes `subject`; an earlier entry for it is replaced.
    pub fn insert(&mut self, subject: Subject, revocation: Revocation) {
        self.entries.insert(subject, revocation);
    }

    /// The entry that revokes a certificate: its own, or its identity's.
    pub fn of(&self, id: &SpiffeId, fingerprint: Fingerprint) -> Option<&Revocation> {
        if self.entries.is_empty() {
            return None;
        }
        self.entries
            .get(&Subject::Certificate(fingerprint))
            .or_else(|| self.entries.get(&Subject::Identity(id.clone())))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl TryFrom<wire::Revocations> for Revocations {
    type Error = DecodeError;

    fn try_from(revocations: wire::Revocations) -> Result<Self, DecodeError> {
        at_most("revocations.entries", revocations.entries.len(), MAX_ENTRIES)?;
        let mut entries = HashMap::with_capacity(revocations.entries.len());
        for entry in revocations.entries {
            let subject = match entry.subject {
                Some(wire::revocation::Subject::Fingerprint(bytes)) => {
                    Subject::Certificate(Fingerprint(key("revocations.fingerprint", &bytes)?))
                }
                Some(wire::revocation::Subject::SpiffeId(text)) => {
                    Subject::Identity(spiffe_id("revocations.spiffe_id", &text)?)
                }
                // A kind of subject this version does not know must not be passed over in silence.
                None => return Err(DecodeError::Missing { field: "revocations.subject" }),
            };
            if entry.reason.len() > MAX_NACK_BYTES {
                return Err(DecodeError::Name { field: "revocations.reason" });
            }
            entries.insert(subject, Revocation { reason: entry.reason, revoked_at: entry.revoked_at });
        }
        Ok(Self { entries })
    }
}

impl From<&Revocations> for wire::Revocations {
    fn from(revocations: &Revocations) -> Self {
        let mut entries: Vec<_> = revocations.entries.iter().collect();
        // A payload is signed, so the same content must always be the same bytes.
        entries.sort_by_key(|(subject, _)| *subject);
        let entries = entries
            .into_iter()
            .map(|(subject, revocation)| wire::Revocation {
                subject: Some(match subject {
                    Subject::Certificate(f) => wire::revocation::Subject::Fingerprint(f.0.to_vec()),
                    Subject::Identity(id) => wire::revocation::Subject::SpiffeId(id.to_string()),
                }),
                reason: revocation.reason.clone(),
                revoked_at: revocation.revoked_at,
            })
            .collect();
        Self { entries }
    }
}
