//! Commits: in one transaction where they fit, else staged first and put in place after one write that decides.
//!
//! Every commit is a transaction that demands the head as it was read and writes the next one. So all commits of all
//! control planes are in one order, and what was read beside that head is still true when it succeeds.
//!
//! A large commit is written to keys that nobody reads. The transaction that decides writes the head only, which then
//! says how many parts wait. Whoever finds such a head, reader or writer, puts the parts in place before anything else;
//! each part is put in place only under that very head, so however many do it at once, nothing is written late.
//!
//! A transaction whose answer got lost may have happened. Each commit has a random name, in the head and in its record
//! of changes: whoever is in doubt looks whether it is there.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;

use super::layout::{Change, Head, Part, PartWrite, encode_entry, end_of};
use super::{EtcdStore, Seen, client::Outcome, wire};
use crate::store::{Entry, Expect, Revision, StoreError, Write, broken};

/// Writes of one transaction: etcd takes 128 operations (`--max-txn-ops`), and four are ours.
pub(super) const OPERATIONS_MAX: usize = 120;

/// Bytes of values in one transaction: etcd takes requests of 1.5 MiB (`--max-request-bytes`), and one value may have 1 MiB.
const BYTES_MAX: usize = 1024 * 1024;

/// Records of changes that are kept for watchers.
pub(super) const CHANGES_KEPT: u64 = 1_024;

/// How often a commit is tried when others are always faster: each time that it fails, one of theirs succeeded.
const ATTEMPTS_MAX: usize = 256;

/// How long a commit whose answers get lost is tried again; it is held up behind nothing for longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pause after an answer got lost.
const PAUSE: Duration = Duration::from_millis(100);

impl EtcdStore {
    /// Makes a commit. The caller holds the turn of this process, so that it competes with other processes alone.
    pub(super) async fn commit_in_turn(
        &self,
        writes: Vec<Write>,
        least: Revision,
    ) -> Result<Revision, StoreError> {
        let commit = super::random_name()?;
        let merged = merge(&writes);
        let expected: Vec<String> = writes
            .iter()
            .filter(|write| write.expect != Expect::Any)
            .map(|write| write.key.clone())
            .collect();
        let keys: Vec<String> = merged.keys().cloned().collect();
        let parts = parts(merged);
        let mut in_doubt_since = None;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        for _ in 0..ATTEMPTS_MAX {
            let (seen, found) = self.consistent(&expected).await?;
            if let Some(since) = in_doubt_since
                && let Some(revision) = self.find_commit(&commit, since, &seen).await?
            {
                return Ok(revision);
            }
            check(&writes, &found)?;
            let revision = (seen.revision() + 1).max(least.0);
            let staged = if parts.len() > 1 { self.stage(revision, &commit, &parts).await? } else { 0 };
            let request = self.deciding(&seen, revision, &commit, &keys, &parts, staged)?;
            match self.client().txn_once(request).await? {
                Outcome::Done(answer) if answer.succeeded => {
                    if staged > 0 {
                        // It is decided; if this fails, the next who looks does it.
                        let _ = self.settled().await;
                    }
                    return Ok(Revision(revision));
                }
                Outcome::Done(_) => {}
                Outcome::Unknown(status) => {
                    in_doubt_since.get_or_insert_with(|| seen.revision());
                    if tokio::time::Instant::now() >= deadline {
                        let reason = format!("whether a write happened is not known: {}", status.message());
                        return Err(StoreError::Refused(reason));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        Err(StoreError::Conflict { key: "head".to_owned() })
    }

    /// The transaction that makes the commit: whole, or only its head where parts are staged.
    fn deciding(
        &self,
        seen: &Seen,
        revision: u64,
        commit: &str,
        keys: &[String],
        parts: &[Part],
        staged: u32,
    ) -> Result<wire::TxnRequest, StoreError> {
        let layout = self.layout();
        let mut compare = vec![seen.is_still()];
        let head = Head::new(revision, commit.to_owned(), staged);
        let change = Change::new(commit.to_owned(), keys.to_vec());
        let mut success =
            vec![put(layout.head(), head.encode()?), put(layout.change(revision), change.encode()?)];
        if let Some(old) = revision.checked_sub(CHANGES_KEPT) {
            success.push(delete(layout.change(old), Vec::new()));
        }
        if staged > 0 {
            // All parts go at once, so the first stands for all.
            compare.push(exists(layout.part(revision, commit, 0)));
        } else {
            success.extend(parts.iter().flat_map(|part| self.in_place(part, revision)));
        }
        Ok(wire::TxnRequest { compare, success })
    }

    /// Writes the parts where nobody reads them yet.
    async fn stage(&self, revision: u64, commit: &str, parts: &[Part]) -> Result<u32, StoreError> {
        let count = u32::try_from(parts.len()).map_err(|error| StoreError::Refused(error.to_string()))?;
        for (number, part) in (0..count).zip(parts) {
            let key = self.layout().part(revision, commit, number);
            self.client().put(wire::PutRequest { key, value: part.encode_to_vec() }).await?;
        }
        Ok(count)
    }

    /// Puts the parts of the newest commit in place, if any wait; returns the head after that.
    pub(super) async fn settled(&self) -> Result<Seen, StoreError> {
        loop {
            let seen = self.head().await?;
            let Some(head) = seen.head().filter(|head| head.staged > 0) else { return Ok(seen) };
            self.put_in_place(&seen, head).await?;
        }
    }

    async fn put_in_place(&self, seen: &Seen, head: &Head) -> Result<(), StoreError> {
        let layout = self.layout();
        for number in 0..head.staged {
            let key = layout.part(head.revision, &head.commit, number);
            let found = self.client().range(wire::RangeRequest { key, ..Default::default() }).await?;
            // Somebody else was faster.
            let Some(found) = found.kvs.into_iter().next() else { return Ok(()) };
            let part = Part::decode(&*found.value)
                .map_err(|error| StoreError::Corrupted(format!("a part of a commit: {error}")))?;
            let success = self.in_place(&part, head.revision).collect();
            let done =
                self.client().txn(wire::TxnRequest { compare: vec![seen.is_still()], success }).await?;
            if !done.succeeded {
                return Ok(());
            }
        }
        let parts = layout.parts(head.revision, &head.commit);
        let end = end_of(&parts);
        let success = vec![put(layout.head(), head.complete().encode()?), delete(parts, end)];
        self.client().txn(wire::TxnRequest { compare: vec![seen.is_still()], success }).await.map(drop)
    }

    fn in_place<'a>(&'a self, part: &'a Part, revision: u64) -> impl Iterator<Item = wire::RequestOp> + 'a {
        part.writes.iter().map(move |PartWrite { key, value }| match value {
            Some(value) => put(self.layout().entry(key), encode_entry(revision, value)),
            None => delete(self.layout().entry(key), Vec::new()),
        })
    }

    /// The revision of a commit that may have happened after `since`.
    async fn find_commit(
        &self,
        commit: &str,
        since: u64,
        seen: &Seen,
    ) -> Result<Option<Revision>, StoreError> {
        for (revision, change) in self.changes(since, seen.revision()).await? {
            if change.commit == commit {
                return Ok(Some(Revision(revision)));
            }
        }
        // What was compacted away meanwhile cannot be told from what never was.
        if seen.revision().saturating_sub(since) >= CHANGES_KEPT {
            return Err(StoreError::Refused("whether a commit happened is not known any more".to_owned()));
        }
        Ok(None)
    }

    /// Removes what was staged for commits that never came: they cannot come any more when the head has passed them.
    pub(super) async fn remove_orphans(&self) -> Result<(), StoreError> {
        let seen = self.settled().await?;
        let key = self.layout().staged();
        let request =
            wire::RangeRequest { range_end: end_of(&key), key, keys_only: true, ..Default::default() };
        for found in self.client().range(request).await?.kvs {
            let revision = self.layout().staged_for(&found.key);
            let parts = found.key.iter().rposition(|byte| *byte == b'/').map(|at| &found.key[..=at]);
            if let (Some(revision), Some(parts)) = (revision, parts)
                && revision <= seen.revision()
            {
                let success = vec![delete(parts.to_vec(), end_of(parts))];
                self.client().txn(wire::TxnRequest { compare: Vec::new(), success }).await?;
            }
        }
        Ok(())
    }
}

/// Whether every expectation holds.
fn check(writes: &[Write], found: &BTreeMap<String, Entry>) -> Result<(), StoreError> {
    match broken::<StoreError>(writes, |key| Ok(found.get(key).map(|entry| entry.revision)))? {
        Some(key) => Err(StoreError::Conflict { key: key.to_owned() }),
        None => Ok(()),
    }
}

/// What is left of the writes: the last one of each key.
fn merge(writes: &[Write]) -> BTreeMap<String, PartWrite> {
    writes.iter().map(|write| (write.key.clone(), PartWrite::from(write.clone()))).collect()
}

/// Cut into what one transaction takes.
fn parts(writes: BTreeMap<String, PartWrite>) -> Vec<Part> {
    let mut parts = Vec::new();
    let (mut part, mut bytes) = (Part::default(), 0);
    for write in writes.into_values() {
        let size = write.key.len() + write.value.as_ref().map_or(0, Vec::len);
        if !part.writes.is_empty() && (part.writes.len() >= OPERATIONS_MAX || bytes + size > BYTES_MAX) {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += size;
        part.writes.push(write);
    }
    parts.push(part);
    parts
}

pub(super) fn put(key: Vec<u8>, value: Vec<u8>) -> wire::RequestOp {
    let put = wire::PutRequest { key, value };
    wire::RequestOp { request: Some(wire::request_op::Request::RequestPut(put)) }
}

fn delete(key: Vec<u8>, range_end: Vec<u8>) -> wire::RequestOp {
    let delete = wire::DeleteRangeRequest { key, range_end };
    wire::RequestOp { request: Some(wire::request_op::Request::RequestDeleteRange(delete)) }
}

fn exists(key: Vec<u8>) -> wire::Compare {
    wire::Compare {
        result: wire::compare::Result::Greater.into(),
        target: wire::compare::Target::Create.into(),
        key,
        target_union: Some(wire::compare::TargetUnion::CreateRevision(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(count: usize, bytes: usize) -> BTreeMap<String, PartWrite> {
        merge(
            &(0..count)
                .map(|n| Write::put(format!("{n:05}"), Expect::Any, vec![0; bytes]))
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn parts_fit_what_etcd_takes_and_lose_nothing() {
        for (count, bytes, most) in [(0, 0, 1), (1, BYTES_MAX, 1), (OPERATIONS_MAX, 1, 1), (500, 40_000, 22)]
        {
            let parts = parts(writes(count, bytes));
            assert!(parts.len() <= most, "{} parts", parts.len());
            assert_eq!(parts.iter().map(|part| part.writes.len()).sum::<usize>(), count);
            for part in &parts {
                // The limit is that of a request: with its largest value it has to fit 1.5 MiB.
                assert!(part.encoded_len() < 1_400_000 && part.writes.len() <= OPERATIONS_MAX);
            }
        }
    }

    #[test]
    fn expectations_are_about_what_stands_and_what_the_commit_itself_wrote() {
        let entry = Entry { key: "a".into(), value: Vec::new(), revision: Revision(3) };
        let found = BTreeMap::from([("a".to_owned(), entry)]);
        let at = |revision| Write::put("a", Expect::At(Revision(revision)), Vec::new());
        assert!(check(&[at(3)], &found).is_ok() && check(&[at(2)], &found).is_err());
        assert!(check(&[at(3), at(3)], &found).is_err());
        let again = [Write::delete("a", Expect::Any), Write::put("a", Expect::Absent, Vec::new())];
        assert!(check(&again, &found).is_ok());
        assert!(check(&again[1..], &found).is_err());
    }
}
