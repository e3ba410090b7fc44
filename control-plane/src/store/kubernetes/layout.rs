//! What lies where in the namespace, and how it is written.
//!
//! | Secret | what it holds |
//! |---|---|
//! | `NAME-head` | JSON: the newest commit and the newest snapshot. It alone is ever changed |
//! | `NAME-c-SEQUENCE-ID-PART` | a part of a commit: what it wrote, and which commit was before it |
//! | `NAME-s-SEQUENCE-ID-PART` | a part of a snapshot: everything that stood after a commit |

use prost::Message;
use serde::{Deserialize, Serialize};

use crate::store::StoreError;

/// Version of all this.
const FORMAT: u32 = 1;

/// Bytes of one part: a page of 250 objects stays below what is read of one answer, and each below what Kubernetes takes.
pub(super) const PART_BYTES: usize = 128 * 1024;

/// Digits of a sequence: the order of the names is that of the numbers.
const DIGITS: usize = 20;

/// A commit or a snapshot, and where it is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pointer {
    /// Commits are counted; a revision may leap, this does not.
    pub(super) sequence: u64,
    /// Random: of two that were made for the same place one alone is in the history.
    pub(super) id: String,
    pub(super) parts: u32,
}

/// The newest of everything.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    format: u32,
    pub(super) revision: u64,
    pub(super) commit: Pointer,
    pub(super) snapshot: Option<Pointer>,
}

impl Head {
    pub(super) fn new(revision: u64, commit: Pointer, snapshot: Option<Pointer>) -> Self {
        Self { format: FORMAT, revision, commit, snapshot }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let head: Self = serde_json::from_slice(bytes)
            .map_err(|error| StoreError::Corrupted(format!("its head: {error}")))?;
        if head.format == FORMAT {
            Ok(head)
        } else {
            let what = format!("it is of format {}, this version knows {FORMAT}", head.format);
            Err(StoreError::Corrupted(what))
        }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, StoreError> {
        serde_json::to_vec(self).map_err(|error| StoreError::Io(std::io::Error::other(error)))
    }
}

/// What a commit wrote.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Commit {
    #[prost(uint64, tag = "1")]
    pub(super) revision: u64,
    /// The commit before it; none of the first.
    #[prost(string, optional, tag = "2")]
    pub(super) previous: Option<String>,
    #[prost(uint32, tag = "3")]
    pub(super) previous_parts: u32,
    #[prost(message, repeated, tag = "4")]
    pub(super) writes: Vec<Written>,
}

/// One key that a commit wrote.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Written {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    /// Nothing deletes the key.
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) value: Option<Vec<u8>>,
}

/// Everything that stood after a commit.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Snapshot {
    #[prost(uint64, tag = "1")]
    pub(super) revision: u64,
    #[prost(string, tag = "2")]
    pub(super) commit: String,
    #[prost(uint32, tag = "3")]
    pub(super) commit_parts: u32,
    #[prost(message, repeated, tag = "4")]
    pub(super) entries: Vec<Standing>,
}

/// One entry of a snapshot.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Standing {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
    #[prost(uint64, tag = "3")]
    pub(super) revision: u64,
}

/// A commit or a snapshot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Commit,
    Snapshot,
}

/// The names of one store's Secrets.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
}

impl Names {
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix }
    }

    /// What all of them are labelled with.
    pub(super) fn label(&self) -> &str {
        &self.prefix
    }

    pub(super) fn head(&self) -> String {
        format!("{}-head", self.prefix)
    }

    /// The names of all parts.
    pub(super) fn parts(&self, kind: Kind, of: &Pointer) -> impl Iterator<Item = String> {
        let letter = match kind {
            Kind::Commit => 'c',
            Kind::Snapshot => 's',
        };
        let stem = format!("{}-{letter}-{:0DIGITS$}-{}", self.prefix, of.sequence, of.id);
        (0..of.parts).map(move |part| format!("{stem}-{part}"))
    }

    /// What a part is of, and the sequence that it was made for; none of the head and of what is not ours.
    pub(super) fn made_for(&self, name: &str) -> Option<(Kind, u64)> {
        let rest = name.strip_prefix(&self.prefix)?;
        let commit = rest.strip_prefix("-c-").map(|rest| (Kind::Commit, rest));
        let (kind, rest) = commit.or_else(|| Some((Kind::Snapshot, rest.strip_prefix("-s-")?)))?;
        Some((kind, rest.get(..DIGITS)?.parse().ok()?))
    }
}

/// Into parts; at least one.
pub(super) fn divided(message: &impl Message) -> Vec<Vec<u8>> {
    let bytes = message.encode_to_vec();
    if bytes.is_empty() {
        return vec![bytes];
    }
    bytes.chunks(PART_BYTES).map(<[u8]>::to_vec).collect()
}

/// Out of all parts.
pub(super) fn joined<M: Message + Default>(parts: &[Vec<u8>]) -> Result<M, StoreError> {
    M::decode(parts.concat().as_slice())
        .map_err(|_| StoreError::Corrupted("a part of it is not as it was written".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_divided_is_joined_again() {
        for bytes in [0, 1, PART_BYTES - 40, PART_BYTES, 3 * PART_BYTES + 7] {
            let writes = vec![Written { key: "a".into(), value: Some(vec![7; bytes]) }];
            let commit = Commit { revision: 3, previous: Some("x".into()), previous_parts: 2, writes };
            let parts = divided(&commit);
            assert!(
                parts.iter().all(|part| part.len() <= PART_BYTES) && parts.len() <= bytes / PART_BYTES + 2
            );
            assert_eq!(joined::<Commit>(&parts).unwrap(), commit);
        }
        assert_eq!(divided(&Snapshot::default()).len(), 1);
        assert!(joined::<Commit>(&[vec![0xff; 9]]).is_err());
    }

    #[test]
    fn a_part_tells_what_it_was_made_for_and_names_are_names_of_kubernetes() {
        let names = Names::new("signet-store-mesh.example".into());
        let pointer = Pointer { sequence: u64::MAX, id: "0f".repeat(8), parts: 2 };
        for kind in [Kind::Commit, Kind::Snapshot] {
            let all: Vec<String> = names.parts(kind, &pointer).collect();
            assert_eq!(all.len(), 2);
            for name in all {
                assert_eq!(names.made_for(&name), Some((kind, u64::MAX)));
                assert!(
                    name.len() <= 253
                        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
                );
            }
        }
        assert_eq!(names.made_for(&names.head()), None);
        assert_eq!(names.made_for("signet-store-other-c-00000000000000000001-0f-0"), None);
    }

    #[test]
    fn a_head_of_another_format_is_refused() {
        let head = Head::new(3, Pointer { sequence: 2, id: "a".into(), parts: 1 }, None);
        let bytes = head.encode().unwrap();
        assert_eq!(Head::decode(&bytes).unwrap(), head);
        let other = String::from_utf8(bytes).unwrap().replace("\"format\":1", "\"format\":2");
        assert!(Head::decode(other.as_bytes()).unwrap_err().to_string().contains("format 2"));
    }
}
