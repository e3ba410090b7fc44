//! Payload of section `revocations`: certificates and identities that are no longer believed before they expire.

use std::collections::{BTreeMap, HashMap};

use prost::Message;
use signet_identity::{Fingerprint, MAX_FEDERATED, SpiffeId, TrustDomain};

use crate::bytes::{at_most, fields_at_most, key, spiffe_id};
use crate::proto::sync as wire;
use crate::{DecodeError, MAX_ENTRIES, MAX_NACK_BYTES};

/// What is revoked, with constant-time-sized look-ups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    entries: HashMap<Subject, Revocation>,
    /// Those of federated trust domains, which count for their own identities alone.
    federated: BTreeMap<TrustDomain, HashMap<Subject, Revocation>>,
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

    /// Takes over what a federated trust domain revoked: certificates, and the identities that are `named` here. Its operators'
    /// reasons stay its own.
    pub fn federate(&mut self, trust_domain: TrustDomain, theirs: &Self, named: impl Fn(&SpiffeId) -> bool) {
        let concerns = |(subject, _): &(&Subject, &Revocation)| match subject {
            Subject::Certificate(_) => true,
            Subject::Identity(id) => named(id),
        };
        let without_reason = |(subject, revocation): (&Subject, &Revocation)| {
            (subject.clone(), Revocation { reason: String::new(), revoked_at: revocation.revoked_at })
        };
        let taken = theirs.entries.iter().filter(concerns).map(without_reason).collect();
        self.federated.insert(trust_domain, taken);
    }

    /// The entry that revokes a certificate: its own, or its identity's. What another trust domain revoked counts for its own
    /// identities alone; what this one revoked, for all.
    pub fn of(&self, id: &SpiffeId, fingerprint: Fingerprint) -> Option<&Revocation> {
        let theirs = self.federated.iter().find(|(domain, _)| domain.as_str() == id.trust_domain());
        let lists = std::iter::once(&self.entries).chain(theirs.map(|(_, entries)| entries));
        lists.filter(|entries| !entries.is_empty()).find_map(|entries| {
            entries
                .get(&Subject::Certificate(fingerprint))
                .or_else(|| entries.get(&Subject::Identity(id.clone())))
        })
    }

    /// Those of the own trust domain, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Subject, &Revocation)> {
        self.entries.iter()
    }

    /// Number of entries, without those of federated trust domains.
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
        at_most("revocations.federated", revocations.federated.len(), MAX_FEDERATED)?;
        let all = revocations.federated.iter().map(|federated| federated.entries.len()).sum::<usize>();
        at_most("revocations.entries", all.saturating_add(revocations.entries.len()), MAX_ENTRIES)?;
        let mut federated = BTreeMap::new();
        for theirs in revocations.federated {
            let trust_domain = TrustDomain::parse(&theirs.trust_domain)
                .map_err(|source| DecodeError::Id { field: "revocations.federated.trust_domain", source })?;
            federated.insert(trust_domain, entries_from(theirs.entries)?);
        }
        Ok(Self { entries: entries_from(revocations.entries)?, federated })
    }
}

fn entries_from(read: Vec<wire::Revocation>) -> Result<HashMap<Subject, Revocation>, DecodeError> {
    let mut entries = HashMap::with_capacity(read.len());
    for entry in read {
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
    Ok(entries)
}

impl From<&Revocations> for wire::Revocations {
    fn from(revocations: &Revocations) -> Self {
        let federated =
            revocations.federated.iter().map(|(trust_domain, entries)| wire::FederatedRevocations {
                trust_domain: trust_domain.to_string(),
                entries: entries_to(entries),
            });
        Self { entries: entries_to(&revocations.entries), federated: federated.collect() }
    }
}

fn entries_to(entries: &HashMap<Subject, Revocation>) -> Vec<wire::Revocation> {
    let mut entries: Vec<_> = entries.iter().collect();
    // A payload is signed, so the same content must always be the same bytes.
    entries.sort_by_key(|(subject, _)| *subject);
    entries
        .into_iter()
        .map(|(subject, revocation)| wire::Revocation {
            subject: Some(match subject {
                Subject::Certificate(f) => wire::revocation::Subject::Fingerprint(f.0.to_vec()),
                Subject::Identity(id) => wire::revocation::Subject::SpiffeId(id.to_string()),
            }),
            reason: revocation.reason.clone(),
            revoked_at: revocation.revoked_at,
        })
        .collect()
}
