//! Pure: what the store holds after a number of commits, and what changed lately.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::layout::{Commit, Pointer, Snapshot, Standing, Written};
use crate::store::{CHANGES_MAX, Changes, Entry, Listing, Revision, Write, broken};

/// What stands, and how it came to be.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) revision: u64,
    /// The newest commit; none while nothing was written.
    pub(super) newest: Option<Pointer>,
    pub(super) snapshot: Option<Pointer>,
    /// Commits since the snapshot, the newest last.
    pub(super) log: Vec<Pointer>,
    entries: BTreeMap<String, (u64, Vec<u8>)>,
    changes: VecDeque<(u64, Vec<String>)>,
    /// Keys in `changes`.
    kept: usize,
    /// Changes up to this revision are no longer known.
    forgotten: u64,
}

impl State {
    /// What a snapshot says; `at` is where it was found.
    pub(super) fn restored(snapshot: Snapshot, at: Pointer) -> Self {
        let newest = Pointer { sequence: at.sequence, id: snapshot.commit, parts: snapshot.commit_parts };
        let entry = |entry: Standing| (entry.key, (entry.revision, entry.value));
        Self {
            revision: snapshot.revision,
            newest: Some(newest),
            snapshot: Some(at),
            entries: snapshot.entries.into_iter().map(entry).collect(),
            forgotten: snapshot.revision,
            ..Self::default()
        }
    }

    /// Everything, to be restored from.
    pub(super) fn snapshot(&self) -> Option<(u64, Snapshot)> {
        let newest = self.newest.as_ref()?;
        let entries = self.entries.iter().map(|(key, (revision, value))| Standing {
            key: key.clone(),
            value: value.clone(),
            revision: *revision,
        });
        let snapshot = Snapshot {
            revision: self.revision,
            commit: newest.id.clone(),
            commit_parts: newest.parts,
            entries: entries.collect(),
        };
        Some((newest.sequence, snapshot))
    }

    /// The sequence of the newest commit, 0 before the first.
    pub(super) fn sequence(&self) -> u64 {
        self.newest.as_ref().map_or(0, |newest| newest.sequence)
    }

    /// The first key of which something else is expected.
    pub(super) fn broken<'a>(&self, writes: &'a [Write]) -> Option<&'a str> {
        let found = |key: &str| {
            Ok::<_, std::convert::Infallible>(self.entries.get(key).map(|(revision, _)| Revision(*revision)))
        };
        match broken(writes, found) {
            Ok(broken) => broken,
            Err(never) => match never {},
        }
    }

    /// What is to be written next: the last of several writes of a key counts.
    pub(super) fn next(&self, writes: &[Write], least: Revision) -> (u64, Commit) {
        let last: BTreeMap<&str, Option<&Vec<u8>>> =
            writes.iter().map(|write| (write.key.as_str(), write.value.as_ref())).collect();
        let written =
            |(key, value): (&str, Option<&Vec<u8>>)| Written { key: key.to_owned(), value: value.cloned() };
        let commit = Commit {
            revision: (self.revision + 1).max(least.0),
            previous: self.newest.as_ref().map(|newest| newest.id.clone()),
            previous_parts: self.newest.as_ref().map_or(0, |newest| newest.parts),
            writes: last.into_iter().map(written).collect(),
        };
        (self.sequence() + 1, commit)
    }

    /// Takes in the next commit.
    pub(super) fn apply(&mut self, commit: Commit, at: Pointer) {
        self.revision = commit.revision;
        self.log.push(at.clone());
        self.newest = Some(at);
        let mut keys = Vec::with_capacity(commit.writes.len());
        for Written { key, value } in commit.writes {
            match value {
                Some(value) => drop(self.entries.insert(key.clone(), (commit.revision, value))),
                None => drop(self.entries.remove(&key)),
            }
            keys.push(key);
        }
        self.kept += keys.len();
        self.changes.push_back((commit.revision, keys));
        // A commit without keys counts as one, so that the queue has its bound too.
        while self.kept + self.changes.len() > CHANGES_MAX as usize {
            let Some((revision, keys)) = self.changes.pop_front() else { break };
            self.kept -= keys.len();
            self.forgotten = revision;
        }
    }

    pub(super) fn entry(&self, key: &str) -> Option<Entry> {
        let (revision, value) = self.entries.get(key)?;
        Some(Entry { key: key.to_owned(), value: value.clone(), revision: Revision(*revision) })
    }

    pub(super) fn list(&self, prefix: &str) -> Listing {
        let under = self.entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        let entries = under.map(|(key, (revision, value))| Entry {
            key: key.clone(),
            value: value.clone(),
            revision: Revision(*revision),
        });
        Listing { revision: Revision(self.revision), entries: entries.collect() }
    }

    /// None when they are no longer known.
    pub(super) fn changes_since(&self, prefix: &str, after: Revision) -> Option<Changes> {
        if after.0 < self.forgotten {
            return None;
        }
        let later = self.changes.iter().rev().take_while(|(revision, _)| *revision > after.0);
        let keys: BTreeSet<&String> =
            later.flat_map(|(_, keys)| keys).filter(|key| key.starts_with(prefix)).collect();
        let mut changes = Changes {
            revision: Revision(self.revision.max(after.0)),
            written: Vec::new(),
            deleted: Vec::new(),
        };
        for key in keys {
            match self.entry(key) {
                Some(entry) => changes.written.push(entry),
                None => changes.deleted.push(key.clone()),
            }
        }
        Some(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Expect;

    fn commit(state: &mut State, writes: &[Write]) {
        assert_eq!(state.broken(writes), None);
        let (sequence, commit) = state.next(writes, Revision(0));
        state.apply(commit, Pointer { sequence, id: format!("{sequence:x}"), parts: 1 });
    }

    #[test]
    fn a_snapshot_and_what_came_after_it_say_what_all_commits_say() {
        let (mut all, mut half) = (State::default(), State::default());
        for step in 0..20_u8 {
            let put = Write::put(format!("key/{}", step % 7), Expect::Any, vec![step]);
            let writes = [put, Write::delete(format!("key/{}", (step + 3) % 7), Expect::Any)];
            commit(&mut all, &writes);
            commit(&mut half, &writes);
            if step == 10 {
                let (sequence, snapshot) = half.snapshot().unwrap();
                half = State::restored(snapshot, Pointer { sequence, id: "s".into(), parts: 1 });
                assert!(
                    half.changes_since("", Revision(3)).is_none(),
                    "what a snapshot does not know it does not deny"
                );
            }
        }
        assert_eq!(all.list(""), half.list(""));
        assert_eq!(all.newest, half.newest);
        assert_eq!(half.log.len(), 9);
        assert_eq!(all.changes_since("key/", Revision(15)), half.changes_since("key/", Revision(15)));
    }

    #[test]
    fn of_more_changes_than_are_kept_the_oldest_are_forgotten_and_said_to_be() {
        let mut state = State::default();
        for _ in 0..=CHANGES_MAX {
            commit(&mut state, &[]);
        }
        assert!(state.changes_since("", Revision(0)).is_none());
        assert!(state.changes_since("", Revision(state.revision)).is_some());
        assert!(state.changes.len() as u64 <= CHANGES_MAX);
    }

    #[test]
    fn a_revision_that_leaps_loses_nobody_who_watches() {
        let mut state = State::default();
        commit(&mut state, &[Write::put("a", Expect::Absent, Vec::new())]);
        let (sequence, commit) = state.next(&[Write::put("b", Expect::Absent, Vec::new())], Revision(100));
        assert_eq!((sequence, commit.revision), (2, 100));
        state.apply(commit, Pointer { sequence, id: "x".into(), parts: 1 });
        let changes = state.changes_since("", Revision(1)).unwrap();
        assert_eq!((changes.revision, changes.written.len()), (Revision(100), 1));
        assert_eq!(state.broken(&[Write::put("b", Expect::At(Revision(2)), Vec::new())]), Some("b"));
    }
}
