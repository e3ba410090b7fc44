//! Taking trust back: of an identity, or of the instance that a certificate belongs to.
//!
//! Revoking one certificate alone would be escaped by a renewal, so all that its instance holds is revoked, and the
//! instance loses the right to renew, and nothing is sealed for it any more. Every revocation writes the registration it is
//! about: a renewal or enrolment under way expects that record as it was, fails, looks again, and finds itself revoked. Roles
//! that were given by what is revoked go in the same commit, and the tokens it could enrol with again are void: only an
//! operator lets it back in, with a new token, and for an identity by lifting its revocation first.
//!
//! The list is bounded: an entry about a certificate goes [`KEPT_AFTER`] the certificate has ended, an identity's stays until
//! it is lifted.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use signet_identity::{Fingerprint, SpiffeId};
use signet_policy::MAX_REJOIN_S;
use signet_sync::{MAX_ENTRIES, MAX_SECTION_BYTES};
use thiserror::Error;

use crate::appointments;
use crate::records::{
    self, Found, Instance, REGISTRATIONS, REVOCATIONS, REVOKED_HOLDERS, Registration, Revocation, SealingKey,
    Subject, TOKENS, Token, registration_key, unix_seconds,
};
use crate::store::{Expect, Revision, Store, StoreError, Write};

/// How long a certificate stays on the list after its end: as long as policy may let one that ended get its holder a new one,
/// so that no backup that is restored meanwhile brings it back; longer than any clock may be behind that is still believed.
pub(crate) const KEPT_AFTER: Duration = Duration::from_secs(MAX_REJOIN_S);

/// The longest life that policy gives a certificate. So long one stays on the list whose end is not known, for it was never
/// recorded.
pub(crate) const LONGEST_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// Of the reason, what stands beside the other certificates of an instance: there may be a hundred, and all proxies hold them.
const REASON_OF_OTHERS: usize = 64;

/// An entry of the list without its reason, as proxies are sent it. Identities, of which there are few, may take more.
const ENTRY_BYTES: usize = 48;

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
    take_back(store, subject, reason, Why::default(), now).await
}

/// The same by an area's word: that an instance which was revoked holds more.
pub(crate) async fn revoke_as_told(
    store: &dyn Store,
    subject: &Subject,
    reason: &str,
    area: &str,
    now: SystemTime,
) -> Result<Revision, RevocationError> {
    take_back(store, subject, reason, Why { told_by: Some(area), tampered: None }, now).await
}

/// What else is known of a revocation.
#[derive(Clone, Copy, Default)]
struct Why<'a> {
    tampered: Option<&'a SpiffeId>,
    told_by: Option<&'a str>,
}

/// The same for the instance of `id` that holds this certificate and reports that its device was tampered with.
pub(crate) async fn revoke_tampered(
    store: &dyn Store,
    id: &SpiffeId,
    leaf: Fingerprint,
    reason: &str,
    now: SystemTime,
) -> Result<Revision, RevocationError> {
    take_back(store, &Subject::Certificate(leaf), reason, Why { tampered: Some(id), told_by: None }, now)
        .await
}

async fn take_back(
    store: &dyn Store,
    subject: &Subject,
    reason: &str,
    why: Why<'_>,
    now: SystemTime,
) -> Result<Revision, RevocationError> {
    for _ in 0..ATTEMPTS_MAX {
        let unknown = match subject {
            Subject::Identity(_) => None,
            Subject::Certificate(_) => Some(unix_seconds(now + LONGEST_LIFE)),
        };
        let mut subjects = BTreeMap::from([(subject.key(), (subject.clone(), unknown))]);
        let mut writes = Vec::new();
        match subject {
            Subject::Identity(id) => {
                writes.push(same_registration(store, id).await?);
                writes.extend(appointments::without(store, id, None).await?);
                writes.extend(without_sealing_keys(store, id).await?);
                writes.extend(without_tokens(store, |_, token| token.id == *id).await?);
            }
            Subject::Certificate(leaf) => {
                let (instances, unregistered) = without_holders(store, *leaf).await?;
                writes.extend(unregistered);
                for (id, instance) in instances {
                    writes.extend(appointments::without(store, &id, Some(&instance.first)).await?);
                    for (held, end) in certificates(&instance, now) {
                        subjects.insert(held.key(), (held, Some(end)));
                    }
                    writes.extend(without_tokens(store, |token, _| token == instance.token).await?);
                    // Whom an attestor knows would come back by itself.
                    if instance.token.contains('/') {
                        let key = format!("{REVOKED_HOLDERS}{}", instance.token);
                        writes.push(Write::put(key, Expect::Any, unix_seconds(now).to_string().into_bytes()));
                    }
                    writes.push(Write::delete(SealingKey::key(&id, &instance.first), Expect::Any));
                }
            }
        }
        let listed = records::list::<Revocation>(store, REVOCATIONS).await?;
        let of = |revocation: &Revocation| (revocation.subject.key(), revocation.reason.len());
        let mut sizes: BTreeMap<String, usize> = listed.iter().map(|found| of(&found.record)).collect();
        for (key, (listed, end)) in subjects {
            // The reason is told of what was asked for; the rest goes with it.
            let shown: String = if listed == *subject {
                reason.to_owned()
            } else {
                reason.chars().take(REASON_OF_OTHERS).collect()
            };
            let revocation = Revocation {
                subject: listed,
                reason: shown,
                revoked_at: unix_seconds(now),
                expires: end.map(|end| end.saturating_add(KEPT_AFTER.as_secs())),
                tampered: why.tampered.cloned(),
                told_by: why.told_by.map(str::to_owned),
            };
            writes.push(records::put(key.clone(), Expect::Any, &revocation)?);
            sizes.insert(key, revocation.reason.len());
        }
        let bytes: usize = sizes.values().map(|reason| ENTRY_BYTES + reason).sum();
        if sizes.len() > MAX_ENTRIES || bytes > MAX_SECTION_BYTES {
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

/// Lets an identity enrol again; false when it was not revoked. What it held before stays revoked, and its tokens stay void.
pub(crate) async fn lift(
    store: &dyn Store,
    id: &SpiffeId,
    now: SystemTime,
) -> Result<Option<Revision>, RevocationError> {
    let key = Subject::Identity(id.clone()).key();
    for _ in 0..ATTEMPTS_MAX {
        let Some(found) = records::read::<Revocation>(store, &key).await? else { return Ok(None) };
        let registered = records::read::<Registration>(store, &registration_key(id)).await?;
        let instances = registered.as_ref().map(|found| &*found.record.instances).unwrap_or_default();
        let Revocation { reason, revoked_at, .. } = &found.record;
        let mut writes = vec![Write::delete(key.clone(), Expect::At(found.revision))];
        for (subject, end) in instances.iter().flat_map(|instance| certificates(instance, now)) {
            let expires = Some(end.saturating_add(KEPT_AFTER.as_secs()));
            let (key, reason) = (subject.key(), reason.clone());
            let revoked_at = *revoked_at;
            let revocation =
                Revocation { subject, reason, revoked_at, expires, tampered: None, told_by: None };
            writes.push(records::put(key, Expect::Any, &revocation)?);
        }
        if store.list(REVOCATIONS).await?.entries.len() + writes.len() > MAX_ENTRIES + 1 {
            return Err(RevocationError::Full);
        }
        let emptied = Registration { id: id.clone(), instances: Vec::new() };
        writes.push(records::put(registration_key(id), records::unchanged(registered.as_ref()), &emptied)?);
        match store.commit(writes).await {
            Ok(revision) => return Ok(Some(revision)),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Conflict { key }.into())
}

/// Takes entries about certificates that ended long ago off the list.
pub(crate) async fn sweep(store: &dyn Store, now: SystemTime) -> Result<(), StoreError> {
    let now = unix_seconds(now);
    let mut gone = Vec::new();
    for found in records::list::<Revocation>(store, REVOCATIONS).await? {
        if found.record.expires.is_some_and(|expires| expires <= now) {
            gone.push(Write::delete(found.record.subject.key(), Expect::At(found.revision)));
        }
    }
    if gone.is_empty() {
        return Ok(());
    }
    match store.commit(gone).await {
        // It was revoked anew at the same time; the next sweep looks again.
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The writes that withdraw tokens. Their records stay until they expire: a prepared directory would bring back what is gone.
async fn without_tokens(
    store: &dyn Store,
    is_meant: impl Fn(&str, &Token) -> bool,
) -> Result<Vec<Write>, StoreError> {
    let mut writes = Vec::new();
    for entry in store.list(TOKENS).await?.entries {
        let Found { record, revision } = records::decode::<Token>(&entry)?;
        let name = entry.key.strip_prefix(TOKENS).unwrap_or_default();
        if !record.withdrawn && is_meant(name, &record) {
            let withdrawn = Token { withdrawn: true, ..record };
            writes.push(records::put(entry.key.clone(), Expect::At(revision), &withdrawn)?);
        }
    }
    Ok(writes)
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

/// All instances that hold a certificate, of which identity, and the writes that take them off their registrations. There may be
/// several: one that moved is known where it enrolled and by the word of an area.
async fn without_holders(
    store: &dyn Store,
    leaf: Fingerprint,
) -> Result<(Vec<(SpiffeId, Instance)>, Vec<Write>), StoreError> {
    let leaf = leaf.to_string();
    let (mut gone, mut writes) = (Vec::new(), Vec::new());
    for Found { record, revision } in records::list::<Registration>(store, REGISTRATIONS).await? {
        let holds = |instance: &Instance| {
            let mut leaves = instance.leaves.iter();
            leaves.any(|held| held.fingerprint == leaf || held.signing.as_ref() == Some(&leaf))
        };
        if !record.instances.iter().any(holds) {
            continue;
        }
        let Registration { id, instances } = record;
        let (holders, kept): (Vec<_>, Vec<_>) = instances.into_iter().partition(holds);
        gone.extend(holders.into_iter().map(|instance| (id.clone(), instance)));
        let key = registration_key(&id);
        writes.push(records::put(key, Expect::At(revision), &Registration { id, instances: kept })?);
    }
    Ok((gone, writes))
}

/// All certificates of an instance that have not ended, for TLS and for signing, each with its end in Unix seconds; and its
/// first one, by which a backup knows it, whatever it held then.
pub(crate) fn certificates(instance: &Instance, now: SystemTime) -> impl Iterator<Item = (Subject, u64)> {
    let now = unix_seconds(now);
    let leaves = instance.leaves.iter().filter(move |leaf| leaf.not_after > now);
    let both = leaves.flat_map(|leaf| {
        let texts = [Some(&leaf.fingerprint), leaf.signing.as_ref()];
        texts.into_iter().flatten().map(|text| (text, leaf.not_after))
    });
    let last = instance.leaves.iter().map(|leaf| leaf.not_after).max().unwrap_or(now);
    let mut held = instance.leaves.iter().filter(move |leaf| leaf.not_after > now);
    let first =
        if held.any(|leaf| leaf.fingerprint == instance.first) { None } else { Some(&instance.first) };
    let both = both.chain(first.map(|first| (first, last)));
    // What stands in the record was written from a fingerprint.
    both.filter_map(|(text, end)| Some((Subject::Certificate(text.parse().ok()?), end)))
}

#[cfg(test)]
mod tests;
