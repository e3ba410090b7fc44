//! From a backup to a state that proxies take. Pure up to the one commit at its end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::SystemTime;

use signet_sync::MAX_ENTRIES;

use super::{Backup, BackupError};
use crate::authority::Keyring;
use crate::records::{
    self, APPOINTMENTS, AUTHORITY, Appointment, Claim, REGISTRATIONS, REPLICAS, RESTORED, REVOCATIONS,
    REVOKED_HOLDERS, Registration, Restored, Revocation, SealingKey, SectionVersion, Subject, TOKENS, Token,
    VERSIONS, unix_seconds,
};
use crate::revocation::{KEPT_AFTER, certificates};
use crate::store::{Entry, Expect, Listing, Revision, Store, Write};

/// How far behind everything that was counted the store goes on: control planes that remember how far it was find it farther.
const REVISION_GAP: u64 = 1_000_000;

/// What is restored, and how.
pub(crate) struct Restoring<'a> {
    pub(crate) backup: &'a Backup,
    /// Put it in the place of what the store holds.
    pub(crate) replace: bool,
    /// The new epoch; none takes the next one of all that are known.
    pub(crate) epoch: Option<u64>,
    /// Join tokens stay as good as they were.
    pub(crate) keep_tokens: bool,
}

/// Restores into a store and a state directory, which may both be empty. All of it or, when anything is wrong, nothing.
pub(crate) async fn restore(
    restoring: &Restoring<'_>,
    store: &dyn Store,
    directory: &Path,
    now: SystemTime,
) -> Result<Restored, BackupError> {
    let keyring = Keyring::from_text(&restoring.backup.authority)?;
    let present = store.list("").await?;
    if !present.entries.is_empty() {
        let mine: BTreeMap<&str, &[u8]> = restoring.backup.entries().collect();
        if present
            .entries
            .iter()
            .any(|entry| entry.key == AUTHORITY && mine.get(AUTHORITY) != Some(&&*entry.value))
        {
            return Err(BackupError::OtherAuthority);
        }
        if !restoring.replace {
            return Err(BackupError::NotEmpty(present.revision.0));
        }
    }
    let there = Keyring::load(directory, keyring.first()?.trust_domain())?;
    if there
        .as_ref()
        .map(Keyring::text)
        .transpose()?
        .is_some_and(|there| *there != restoring.backup.authority)
    {
        return Err(BackupError::OtherAuthority);
    }
    let (entries, restored) = plan(restoring, &present, now)?;
    let gone = present.entries.iter().filter(|entry| !entries.contains_key(&entry.key));
    let mut writes: Vec<Write> = gone.map(|entry| Write::delete(&entry.key, Expect::Any)).collect();
    writes.extend(entries.into_iter().map(|(key, value)| Write::put(key, Expect::Any, value)));
    let least = Revision(present.revision.0.max(restoring.backup.revision).saturating_add(REVISION_GAP));
    store.commit_from(writes, least).await?;
    // A store without its authority is refused at the start; keys without their store would begin an empty mesh.
    if there.is_none() {
        keyring.store(directory)?;
    }
    Ok(restored)
}

/// All entries of the restored state.
fn plan(
    restoring: &Restoring<'_>,
    present: &Listing,
    now: SystemTime,
) -> Result<(BTreeMap<String, Vec<u8>>, Restored), BackupError> {
    let backup = restoring.backup;
    let mut entries = BTreeMap::new();
    for (key, value) in backup.entries() {
        entries.insert(key.to_owned(), value.to_vec());
    }
    let kept = |entry: &&Entry| {
        [REVOCATIONS, REVOKED_HOLDERS, VERSIONS].iter().any(|prefix| entry.key.starts_with(prefix))
    };
    let mut epochs = vec![1];
    for found in [&entries, &by_key(&present.entries)] {
        if let Some(value) = found.get(RESTORED) {
            epochs.push(read::<Restored>(RESTORED, value)?.epoch);
        }
        for (key, value) in found.iter().filter(|(key, _)| key.starts_with(VERSIONS)) {
            epochs.push(read::<SectionVersion>(key, value)?.epoch);
        }
    }
    let known = epochs.into_iter().max().unwrap_or(1);
    let epoch = restoring.epoch.unwrap_or_else(|| known.saturating_add(1));
    if epoch <= known {
        return Err(BackupError::Epoch(known));
    }
    // Revoked stays revoked; sections that the backup does not know are emptied, for they cannot be taken back.
    for entry in present.entries.iter().filter(kept) {
        entries.entry(entry.key.clone()).or_insert_with(|| entry.value.clone());
    }
    drop_revoked(&mut entries, &by_key(&present.entries), now)?;
    let restored = Restored {
        epoch,
        at: unix_seconds(now),
        backup_at: backup.made_at,
        backup_revision: backup.revision,
    };
    let mut changed = Vec::new();
    for (key, value) in &entries {
        if key.starts_with(VERSIONS) {
            // Without a digest its next version is a new one, whatever is in it.
            let version = SectionVersion { epoch, counter: 0, payload_sha256: String::new(), made_from: 0 };
            changed.push((key.clone(), write(&version)?));
        } else if key.starts_with(TOKENS) && !restoring.keep_tokens {
            let token: Token = read(key, value)?;
            changed.push((key.clone(), write(&Token { uses: 0, ..token })?));
        } else if key.starts_with(records::CLAIMS) {
            // Whoever had its stream is gone.
            let claim: Claim = read(key, value)?;
            changed.push((key.clone(), write(&Claim { replica: String::new(), ..claim })?));
        }
    }
    entries.extend(changed);
    entries.retain(|key, _| !key.starts_with(REPLICAS));
    entries.insert(RESTORED.to_owned(), write(&restored)?);
    Ok((entries, restored))
}

/// Takes out what was revoked since the backup: the registrations of instances of which any certificate is on the list, and of
/// identities that are on it; roles that those gave; and tokens that were withdrawn. What an identity on the list held goes on
/// the list itself, so that lifting its revocation does not let it back in, here or by being taken up.
fn drop_revoked(
    entries: &mut BTreeMap<String, Vec<u8>>,
    present: &BTreeMap<String, Vec<u8>>,
    now: SystemTime,
) -> Result<(), BackupError> {
    let mut revoked: BTreeMap<String, Revocation> = BTreeMap::new();
    for (key, value) in under(entries, REVOCATIONS) {
        revoked.insert(key.clone(), read(key, value)?);
    }
    let mut listed = BTreeMap::new();
    let mut dropped = BTreeSet::new();
    for (from, is_restored) in [(&*entries, true), (present, false)] {
        for (key, value) in under(from, REGISTRATIONS) {
            let registration: Registration = read(key, value)?;
            let of_identity = revoked.get(&Subject::Identity(registration.id.clone()).key());
            for instance in &registration.instances {
                let names =
                    instance.leaves.iter().flat_map(|leaf| [Some(&leaf.fingerprint), leaf.signing.as_ref()]);
                let mut names = names.flatten().chain([&instance.first]);
                let is_named = names.any(|name| revoked.contains_key(&format!("{REVOCATIONS}{name}")));
                if let Some(Revocation { reason, revoked_at, .. }) = of_identity {
                    for (subject, end) in certificates(instance, now) {
                        let expires = Some(end.saturating_add(KEPT_AFTER.as_secs()));
                        let key = subject.key();
                        let (reason, revoked_at) = (reason.clone(), *revoked_at);
                        listed.insert(
                            key,
                            Revocation {
                                subject,
                                reason,
                                revoked_at,
                                expires,
                                tampered: None,
                                told_by: None,
                            },
                        );
                    }
                }
                if is_restored && (is_named || of_identity.is_some()) {
                    dropped.insert((registration.id.clone(), instance.first.clone()));
                }
            }
        }
    }
    let mut changed = Vec::new();
    for (key, value) in under(entries, REGISTRATIONS) {
        let mut registration: Registration = read(key, value)?;
        let id = registration.id.clone();
        registration.instances.retain(|instance| !dropped.contains(&(id.clone(), instance.first.clone())));
        changed.push((key.clone(), write(&registration)?));
    }
    for (key, value) in under(entries, TOKENS) {
        let token: Token = read(key, value)?;
        let now_there = present.get(key).map(|value| read::<Token>(key, value)).transpose()?;
        let withdrawn = token.withdrawn || now_there.is_some_and(|there| there.withdrawn);
        changed.push((key.clone(), write(&Token { withdrawn, ..token })?));
    }
    let mut gone = Vec::new();
    for (key, value) in under(entries, APPOINTMENTS) {
        let Appointment { by, instance, identity, .. } = read(key, value)?;
        let is_revoked = |id| revoked.contains_key(&Subject::Identity(id).key());
        if dropped.contains(&(by.clone(), instance)) || is_revoked(by) || is_revoked(identity) {
            gone.push(key.clone());
        }
    }
    gone.extend(dropped.iter().map(|(id, first)| SealingKey::key(id, first)));
    entries.retain(|key, _| !gone.contains(key));
    entries.extend(changed);
    for (key, revocation) in listed {
        if !revoked.contains_key(&key) {
            entries.insert(key, write(&revocation)?);
        }
    }
    if under(entries, REVOCATIONS).count() > MAX_ENTRIES {
        return Err(BackupError::Revocations);
    }
    Ok(())
}

fn under<'a>(
    entries: &'a BTreeMap<String, Vec<u8>>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a String, &'a Vec<u8>)> {
    entries.range(prefix.to_owned()..).take_while(move |(key, _)| key.starts_with(prefix))
}

fn by_key(entries: &[Entry]) -> BTreeMap<String, Vec<u8>> {
    entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect()
}

fn read<T: serde::de::DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, BackupError> {
    let entry = Entry { key: key.to_owned(), value: value.to_vec(), revision: Revision(0) };
    Ok(records::decode(&entry)?.record)
}

fn write<T: serde::Serialize>(record: &T) -> Result<Vec<u8>, BackupError> {
    let write = records::put(String::new(), Expect::Any, record)?;
    Ok(write.value.unwrap_or_default())
}

#[cfg(test)]
mod tests;
