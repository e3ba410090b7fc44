//! What lies where in etcd, and how it is written.
//!
//! | key, below the prefix | value |
//! |---|---|
//! | `head` | JSON: the newest revision, the name of its commit, and what of it still has to be put in place |
//! | `entry/KEY` | the revision that wrote it (20 digits), a line feed, the value |
//! | `change/REVISION` | JSON: the name of that commit and the keys it wrote |
//! | `staged/REVISION-NAME/NUMBER` | a part of a commit that is too large for one transaction |

use prost::Message;
use serde::{Deserialize, Serialize};

use crate::store::{Entry, Revision, StoreError, Write};

/// Version of all this.
const FORMAT: u32 = 1;

/// Digits of a revision: the order of the keys is that of the numbers.
const DIGITS: usize = 20;

/// Keys that a record of changes names; of a commit of more, watchers list everything anew.
pub(super) const CHANGE_KEYS_MAX: usize = 2_048;

/// Keys below one prefix.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    prefix: String,
}

/// Where the store is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    format: u32,
    pub(super) revision: u64,
    /// The name of the newest commit.
    pub(super) commit: String,
    /// Parts of it that are staged and not all in place yet; 0 when it is complete.
    pub(super) staged: u32,
}

/// What a commit wrote.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    pub(super) commit: String,
    /// None: more than are named.
    pub(super) keys: Option<Vec<String>>,
}

/// A part of a commit.
#[derive(Clone, Message)]
pub(super) struct Part {
    #[prost(message, repeated, tag = "1")]
    pub(super) writes: Vec<PartWrite>,
}

/// One write of it.
#[derive(Clone, Message)]
pub(super) struct PartWrite {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    /// Nothing deletes the key.
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) value: Option<Vec<u8>>,
}

impl From<Write> for PartWrite {
    fn from(write: Write) -> Self {
        Self { key: write.key, value: write.value }
    }
}

impl Head {
    pub(super) fn new(revision: u64, commit: String, staged: u32) -> Self {
        Self { format: FORMAT, revision, commit, staged }
    }

    pub(super) fn complete(&self) -> Self {
        Self { staged: 0, ..self.clone() }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let head: Self = json(bytes, "head")?;
        if head.format == FORMAT {
            Ok(head)
        } else {
            Err(StoreError::Corrupted(format!(
                "it is of format {}, this version knows {FORMAT}",
                head.format
            )))
        }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, StoreError> {
        to_json(self)
    }
}

impl Change {
    pub(super) fn new(commit: String, keys: Vec<String>) -> Self {
        Self { commit, keys: (keys.len() <= CHANGE_KEYS_MAX).then_some(keys) }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        json(bytes, "change")
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, StoreError> {
        to_json(self)
    }
}

impl Layout {
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix }
    }

    pub(super) fn head(&self) -> Vec<u8> {
        format!("{}head", self.prefix).into_bytes()
    }

    pub(super) fn entry(&self, key: &str) -> Vec<u8> {
        format!("{}entry/{key}", self.prefix).into_bytes()
    }

    pub(super) fn change(&self, revision: u64) -> Vec<u8> {
        format!("{}change/{revision:0DIGITS$}", self.prefix).into_bytes()
    }

    /// Where everything staged is.
    pub(super) fn staged(&self) -> Vec<u8> {
        format!("{}staged/", self.prefix).into_bytes()
    }

    /// Where the parts of one commit are.
    pub(super) fn parts(&self, revision: u64, commit: &str) -> Vec<u8> {
        format!("{}staged/{revision:0DIGITS$}-{commit}/", self.prefix).into_bytes()
    }

    pub(super) fn part(&self, revision: u64, commit: &str, number: u32) -> Vec<u8> {
        let mut key = self.parts(revision, commit);
        key.extend(format!("{number:06}").into_bytes());
        key
    }

    /// The revision that something staged was staged for.
    pub(super) fn staged_for(&self, key: &[u8]) -> Option<u64> {
        let rest = key.strip_prefix(self.staged().as_slice())?;
        std::str::from_utf8(rest.get(..DIGITS)?).ok()?.parse().ok()
    }

    /// An entry as it is found.
    pub(super) fn decode_entry(&self, key: &[u8], value: &[u8]) -> Result<Entry, StoreError> {
        let name = key.strip_prefix(self.entry("").as_slice()).and_then(|key| std::str::from_utf8(key).ok());
        let damaged =
            || StoreError::Corrupted(format!("{} is not as it was written", String::from_utf8_lossy(key)));
        let name = name.ok_or_else(damaged)?;
        let (digits, value) = value.split_at_checked(DIGITS + 1).ok_or_else(damaged)?;
        let digits = digits.strip_suffix(b"\n").and_then(|digits| std::str::from_utf8(digits).ok());
        let revision = digits.and_then(|digits| digits.parse().ok()).ok_or_else(damaged)?;
        Ok(Entry { key: name.to_owned(), value: value.to_vec(), revision: Revision(revision) })
    }
}

pub(super) fn encode_entry(revision: u64, value: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{revision:0DIGITS$}\n").into_bytes();
    bytes.extend_from_slice(value);
    bytes
}

/// The first key behind all that begin with a prefix; empty asks etcd for all there are.
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

fn json<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| StoreError::Corrupted(format!("{what}: {error}")))
}

fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::Io(std::io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_they_were_written_and_what_is_else_is_damage() {
        let layout = Layout::new("/x/".into());
        let key = layout.entry("token/é");
        let entry = layout.decode_entry(&key, &encode_entry(7, b"{}\n")).unwrap();
        assert_eq!(
            (entry.key.as_str(), entry.value.as_slice(), entry.revision.0),
            ("token/é", &b"{}\n"[..], 7)
        );
        assert_eq!(layout.decode_entry(&key, &encode_entry(7, b"")).unwrap().value, b"");
        for damaged in [&b""[..], b"7\n{}", b"00000000000000000007{}", b"0000000000000000000x\n{}"] {
            assert!(matches!(layout.decode_entry(&key, damaged), Err(StoreError::Corrupted(_))));
        }
    }

    #[test]
    fn the_end_of_a_prefix_is_the_first_key_behind_it() {
        assert_eq!(end_of(b"a/"), b"a0");
        assert_eq!(end_of(b"a\xff\xff"), b"b");
        assert_eq!(end_of(b"\xff"), b"\0");
    }

    #[test]
    fn what_is_staged_tells_what_for() {
        let layout = Layout::new("/x/".into());
        let key = layout.part(12, "abc", 3);
        assert!(key.starts_with(&layout.parts(12, "abc")));
        assert_eq!(layout.staged_for(&key), Some(12));
        assert_eq!(layout.staged_for(b"/x/staged/12"), None);
    }

    #[test]
    fn a_head_of_another_format_is_refused() {
        let head = Head::new(3, "c".into(), 0);
        assert_eq!(Head::decode(&head.encode().unwrap()).unwrap(), head);
        let other =
            String::from_utf8(head.encode().unwrap()).unwrap().replace("\"format\":1", "\"format\":2");
        assert!(Head::decode(other.as_bytes()).unwrap_err().to_string().contains("format 2"));
    }
}
