//! Taking trust back: of an identity, or of the instance that a certificate belongs to.
//!
//! Revoking one certificate alone would be escaped by a renewal, so all that its instance holds is revoked, and the
//! instance loses the right to renew, and nothing is sealed for it any more. Every revocation writes the registration it is
//! about: a renewal or enrolment under way expects that record as it was, fails, looks again, and finds itself revoked. Roles
//! that were given by what is revoked go in the same commit.

use std::collections::BTreeSet;
use std::time::SystemTime;

use signet_identity::{Fingerprint, SpiffeId};
use signet_sync::MAX_ENTRIES;
use thiserror::Error;

use crate::appointments;
use crate::records::{
    self, Found, Instance, REGISTRATIONS, REVOCATIONS, REVOKED_HOLDERS, Registration, Revocation, SealingKey,
    Subject, registration_key, unix_seconds,
};
use crate::store::{Expect, Revision, Store, StoreError, Write};

/// How often a revocation is tried again when instances renew at the same time: each try is over in milliseconds, and
/// every one that fails means that another renewal succeeded.
const ATTEMPTS_MAX: usize = 256;

/// Why nothing was revoked.
#[derive(Debug, Error)]
pub(crate) enum RevocationError {
    #[error("as much is revoked as a proxy can hold")]
    Full,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Revokes `subject` and all that goes with it, durably.
pub(crate) async fn revoke(
    store: &dyn Store,
    subject: &Subject,
    reason: &str,
    now: SystemTime,
) -> Result<Revision, RevocationError> {
    for _ in 0..ATTEMPTS_MAX {
        let mut subjects = vec![subject.clone()];
        let mut writes = Vec::new();
        match subject {
            Subject::Identity(id) => {
                writes.push(same_registration(store, id).await?);
                writes.extend(appointments::without(store, id, None).await?);
                writes.extend(without_sealing_keys(store, id).await?);
            }
            Subject::Certificate(leaf) => {
                if let Some((id, instance, write)) = without_instance(store, *leaf).await? {
                    writes.extend(appointments::without(store, &id, Some(&instance.first)).await?);
                    subjects.extend(certificates(&instance, now).filter(|held| held != subject));
                    writes.push(write);
                    // Whom an attestor knows would come back by itself.
                    if instance.token.contains('/') {
                        let key = format!("{REVOKED_HOLDERS}{}", instance.token);
                        writes.push(Write::put(key, Expect::Any, unix_seconds(now).to_string().into_bytes()));
                    }
                    writes.push(Write::delete(SealingKey::key(&id, &instance.first), Expect::Any));
                }
            }
        }
        let listing = store.list(REVOCATIONS).await?;
        let mut keys: BTreeSet<String> = listing.entries.into_iter().map(|entry| entry.key).collect();
        for subject in subjects {
            let key = subject.key();
            let revocation = Revocation { subject, reason: reason.to_owned(), revoked_at: unix_seconds(now) };
            writes.push(records::put(key.clone(), Expect::Any, &revocation)?);
            keys.insert(key);
        }
        if keys.len() > MAX_ENTRIES {
            return Err(RevocationError::Full);
        }
        match store.commit(writes).await {
            Ok(revision) => return Ok(revision),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Conflict { key: REGISTRATIONS.to_owned() }.into())
}

/// Writes the registration of an identity as it is: the point is that it was written. One that has none gets one.
async fn same_registration(store: &dyn Store, id: &SpiffeId) -> Result<Write, StoreError> {
    let key = registration_key(id);
    let found = records::read::<Registration>(store, &key).await?;
    let expect = records::unchanged(found.as_ref());
    let registration =
        found.map_or_else(|| Registration { id: id.clone(), instances: Vec::new() }, |found| found.record);
    records::put(key, expect, &registration)
}

/// The writes that take back every key to what is sealed for an identity. One that is announced meanwhile is written
/// with the registration.
async fn without_sealing_keys(store: &dyn Store, id: &SpiffeId) -> Result<Vec<Write>, StoreError> {
    let mut writes = Vec::new();
    for entry in store.list(&SealingKey::key(id, "")).await?.entries {
        // What follows the identity may also be the rest of a longer one.
        if records::decode::<SealingKey>(&entry)?.record.id == *id {
            writes.push(Write::delete(entry.key, Expect::Any));
        }
    }
    Ok(writes)
}

/// The instance that holds a certificate, of which identity, and the write that takes it off its registration.
async fn without_instance(
    store: &dyn Store,
    leaf: Fingerprint,
) -> Result<Option<(SpiffeId, Instance, Write)>, StoreError> {
    let leaf = leaf.to_string();
    for Found { mut record, revision } in records::list::<Registration>(store, REGISTRATIONS).await? {
        let held = record.instances.iter().position(|instance| {
            let mut leaves = instance.leaves.iter();
            leaves.any(|held| held.fingerprint == leaf || held.signing.as_ref() == Some(&leaf))
        });
        if let Some(at) = held {
            let instance = record.instances.remove(at);
            let write = records::put(registration_key(&record.id), Expect::At(revision), &record)?;
            return Ok(Some((record.id, instance, write)));
        }
    }
    Ok(None)
}

/// All certificates of an instance that have not ended, for TLS and for signing.
fn certificates(instance: &Instance, now: SystemTime) -> impl Iterator<Item = Subject> {
    let now = unix_seconds(now);
    let leaves = instance.leaves.iter().filter(move |leaf| leaf.not_after > now);
    let texts = leaves.flat_map(|leaf| [Some(&leaf.fingerprint), leaf.signing.as_ref()]);
    // What stands in the record was written from a fingerprint.
    texts.flatten().filter_map(|text| text.parse().ok()).map(Subject::Certificate)
}

#[cfg(test)]
mod tests;
