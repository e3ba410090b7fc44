//! Signed checkpoints over authenticated messages (`hmac`): what makes them provable afterwards.
//!
//! A code made with a key of the channel ([`MacKey`](crate::MacKey)) convinces the other end and nobody else. So each
//! end keeps a log of what it sent that way, one for each direction of each channel, and signs its Merkle root now and
//! then. The other end holds the same leaves, since it verified the same messages, and accepts only a root over them.
//!
//! ```text
//! leaf = SHA-256(0x00 | number of the message u64 | signature base)
//! node = SHA-256(0x01 | left | right)                                  tree of RFC 9162 section 2.1
//! note = origin \n size \n root in base64 \n \n — origin base64(key id 4 | Ed25519 signature 64) \n
//! origin = mesh/<spiffe id>/<channel id>/<c2s or s2c>
//! ```
//!
//! The note is a signed note with a checkpoint of a transparency log in it (C2SP `signed-note`, `tlog-checkpoint`).
//! Beside it travel the entries it adds to the log, number and leaf of each, in the order of the log: messages overtake
//! each other, and some never arrive. What the receiver has must be as it has it; the rest is the sender's word, and
//! a message that arrives later must be the one announced.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use crate::batch::{hash, node};
use crate::profile::{ChannelId, MeshSigner, SignError, verify_ed25519};
use crate::record::Direction;
use crate::replay::{Replay, ReplayWindow};

/// Most messages that one checkpoint adds: its entries are 40 KiB, a body that is signed whole. So many waiting are also
/// a reason to make one.
pub const MAX_ENTRIES: usize = 1024;

/// Most messages of one direction that wait for a checkpoint: what a sender could deny at any moment.
pub const MAX_DEBT: usize = 2 * MAX_ENTRIES;

/// After this long a message is reason enough for a checkpoint.
pub const DUE: Duration = Duration::from_secs(1);

/// A message that waits longer stops the direction.
pub const OVERDUE: Duration = Duration::from_secs(2);

/// Turns of its own that a worker must have seen meanwhile: one that stood still itself blames nobody.
const OVERDUE_TURNS: u64 = 2;

/// Entries remembered of messages that did not arrive yet, or never will: five times the streams of a connection.
const MAX_ANNOUNCED: usize = 1024;

const LEAF_PREFIX: &[u8] = &[0];
/// Number and leaf.
const ENTRY: usize = 8 + 32;
const SIGNATURE: usize = 64;
const KEY_ID: usize = 4;
/// What a signed note calls Ed25519.
const ED25519: u8 = 1;

type Hash = [u8; 32];

/// Why a checkpoint, or a message that waits for one, was refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum CheckpointError {
    /// Nobody known to belong to the peer signed the checkpoint.
    #[error("checkpoint is not signed by the peer")]
    BadSignature,
    /// The entries are not what they should be.
    #[error("entries of the checkpoint are malformed")]
    Malformed,
    /// The checkpoint is over other messages than those that were received.
    #[error("checkpoint does not fit the messages received")]
    Mismatch,
    /// Too many messages, or one for too long, wait for a checkpoint.
    #[error("too much waits for a checkpoint")]
    Overdue,
}

/// A moment, by the clock and by the turns of a worker that sees about one in a second.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The time since any moment that stays the same, of a clock that only goes on.
    pub at: Duration,
    /// How many turns the worker has seen.
    pub turn: u64,
}

impl Moment {
    fn is_due(&self, now: Self) -> bool {
        now.at.saturating_sub(self.at) >= DUE
    }

    fn is_overdue(&self, now: Self) -> bool {
        now.at.saturating_sub(self.at) > OVERDUE && now.turn.saturating_sub(self.turn) >= OVERDUE_TURNS
    }
}

/// A checkpoint on its way.
#[derive(Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The signed note.
    pub note: String,
    /// The entries that it adds.
    pub entries: Vec<u8>,
}

/// The messages of one direction that this end authenticated.
pub struct SentLog {
    origin: String,
    tree: Tree,
    waiting: VecDeque<(u64, Hash, Moment)>,
}

impl SentLog {
    /// The log of what `spiffe_id` sends on a channel.
    #[must_use]
    pub fn new(spiffe_id: &str, channel: &ChannelId, direction: Direction) -> Self {
        let origin = origin(spiffe_id, channel, direction);
        Self { origin, tree: Tree::default(), waiting: VecDeque::new() }
    }

    /// Whether another message may be added before the next checkpoint; else it has to be signed.
    #[must_use]
    pub fn has_room(&self, now: Moment) -> bool {
        self.waiting.len() < MAX_DEBT
            && !self.waiting.front().is_some_and(|(_, _, since)| since.is_overdue(now))
    }

    /// Whether a checkpoint should be made now.
    #[must_use]
    pub fn is_due(&self, now: Moment) -> bool {
        self.waiting.len() >= MAX_ENTRIES
            || self.waiting.front().is_some_and(|(_, _, since)| since.is_due(now))
    }

    /// Whether nothing waits for a checkpoint.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds a message by its number and signature base.
    pub fn append(&mut self, seq: u64, base: &[u8], now: Moment) {
        self.waiting.push_back((seq, leaf(seq, base), now));
    }

    /// Signs a checkpoint that adds what waits, the oldest first, at most [`MAX_ENTRIES`]. Nothing waiting is no error.
    ///
    /// # Errors
    /// [`SignError::Crypto`]; the log is then useless.
    pub fn seal(&mut self, signer: &MeshSigner) -> Result<Checkpoint, SignError> {
        let count = self.waiting.len().min(MAX_ENTRIES);
        let mut entries = Vec::with_capacity(count * ENTRY);
        for (seq, leaf, _) in self.waiting.drain(..count) {
            self.tree.push(leaf);
            entries.extend_from_slice(&seq.to_be_bytes());
            entries.extend_from_slice(&leaf);
        }
        let text = text(&self.origin, &self.tree);
        let signature = signer.sign(text.as_bytes())?;
        let value = [&key_id(&self.origin, signer.public_key())[..], &signature].concat();
        let note = format!("{text}\n— {} {}\n", self.origin, STANDARD.encode(value));
        Ok(Checkpoint { note, entries })
    }
}

/// The messages of one direction that the other end authenticated.
pub struct ReceivedLog {
    origin: String,
    tree: Tree,
    uncovered: HashMap<u64, (Hash, Moment)>,
    oldest: Option<Moment>,
    announced: BTreeMap<u64, Hash>,
    /// The numbers of the newest entries: no number is entered twice.
    entered: ReplayWindow,
}

impl ReceivedLog {
    /// The log of what `spiffe_id`, the peer, sends on a channel.
    #[must_use]
    pub fn new(spiffe_id: &str, channel: &ChannelId, direction: Direction) -> Self {
        Self {
            origin: origin(spiffe_id, channel, direction),
            tree: Tree::default(),
            uncovered: HashMap::new(),
            oldest: None,
            announced: BTreeMap::new(),
            entered: ReplayWindow::new(),
        }
    }

    /// Whether any message was ever received.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.tree.size > 0 || !self.uncovered.is_empty()
    }

    /// How many messages wait for a checkpoint.
    #[must_use]
    pub fn debt(&self) -> usize {
        self.uncovered.len()
    }

    /// Whether what was received should have been covered by now.
    #[must_use]
    pub fn is_due(&self, now: Moment) -> bool {
        self.debt() >= MAX_ENTRIES || self.oldest.is_some_and(|since| since.is_due(now))
    }

    /// Whether another message is taken.
    ///
    /// # Errors
    /// [`CheckpointError::Overdue`].
    pub fn admit(&self, now: Moment) -> Result<(), CheckpointError> {
        let late = self.oldest.is_some_and(|since| since.is_overdue(now));
        if late || self.debt() >= MAX_DEBT { Err(CheckpointError::Overdue) } else { Ok(()) }
    }

    /// Takes up a verified message; whether a checkpoint has covered it already.
    ///
    /// # Errors
    /// [`CheckpointError::Mismatch`] when a checkpoint has already announced another one under its number.
    pub fn receive(&mut self, seq: u64, base: &[u8], now: Moment) -> Result<bool, CheckpointError> {
        let leaf = leaf(seq, base);
        match self.announced.remove(&seq) {
            Some(announced) if announced == leaf => Ok(true),
            Some(_) => Err(CheckpointError::Mismatch),
            None => {
                self.uncovered.insert(seq, (leaf, now));
                self.oldest.get_or_insert(now);
                Ok(false)
            }
        }
    }

    /// Checks a checkpoint by the messages received and takes it up; `keys` are the signing keys of the peer. Returns how
    /// many messages it covers that waited for it.
    ///
    /// # Errors
    /// What is wrong with it. The channel has to be given up then.
    pub fn cover<'a>(
        &mut self,
        note: &str,
        entries: &[u8],
        keys: impl IntoIterator<Item = &'a [u8; 32]>,
    ) -> Result<usize, CheckpointError> {
        let (entries, rest) = entries.as_chunks::<ENTRY>();
        if !rest.is_empty() || entries.len() > MAX_ENTRIES {
            return Err(CheckpointError::Malformed);
        }
        let (mut tree, mut entered) = (self.tree.clone(), self.entered.clone());
        let mut covered = 0;
        for entry in entries {
            let (seq, theirs) = read(entry);
            match entered.commit(seq) {
                // Below the window are late ones, such as the answer to a request that was waited for long.
                Ok(()) | Err(Replay::TooOld) if !self.announced.contains_key(&seq) => {}
                _ => return Err(CheckpointError::Mismatch),
            }
            let own = self.uncovered.get(&seq).map(|(leaf, _)| *leaf);
            covered += usize::from(own.is_some());
            tree.push(own.unwrap_or(theirs));
        }
        let signature = note.strip_prefix(&text(&self.origin, &tree)).ok_or(CheckpointError::Mismatch)?;
        self.check_signature(note, signature, keys)?;
        (self.tree, self.entered) = (tree, entered);
        for entry in entries {
            let (seq, leaf) = read(entry);
            if self.uncovered.remove(&seq).is_none() {
                self.announced.insert(seq, leaf);
            }
        }
        while self.announced.len() > MAX_ANNOUNCED {
            self.announced.pop_first();
        }
        self.oldest = self.uncovered.values().map(|(_, since)| *since).min_by_key(|since| since.at);
        Ok(covered)
    }

    fn check_signature<'a>(
        &self,
        note: &str,
        signature: &str,
        keys: impl IntoIterator<Item = &'a [u8; 32]>,
    ) -> Result<(), CheckpointError> {
        let bad = CheckpointError::BadSignature;
        let line = signature.strip_prefix("\n— ").and_then(|line| line.strip_suffix('\n')).ok_or(bad)?;
        let value = line.strip_prefix(&*self.origin).and_then(|line| line.strip_prefix(' ')).ok_or(bad)?;
        let value = STANDARD.decode(value).map_err(|_| bad)?;
        let (id, signature) = value.split_first_chunk::<KEY_ID>().ok_or(bad)?;
        let key = keys.into_iter().find(|key| key_id(&self.origin, key) == *id).ok_or(bad)?;
        let text = note.split_once("\n\n").map(|(text, _)| format!("{text}\n")).ok_or(bad)?;
        if signature.len() != SIGNATURE {
            return Err(bad);
        }
        verify_ed25519(key, text.as_bytes(), signature).map_err(|_| bad)
    }
}

// Leaves tell nothing, and there are thousands.
impl fmt::Debug for SentLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SentLog").field("size", &self.tree.size).finish_non_exhaustive()
    }
}

impl fmt::Debug for ReceivedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceivedLog").field("size", &self.tree.size).finish_non_exhaustive()
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint").field("entries", &(self.entries.len() / ENTRY)).finish_non_exhaustive()
    }
}

/// A Merkle tree of which only the roots of its complete subtrees are kept, the largest first: enough to add leaves and
/// to know the root (RFC 9162 section 2.1.1).
#[derive(Clone, Default)]
struct Tree {
    size: u64,
    subtrees: Vec<Hash>,
}

impl Tree {
    fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        // One subtree for each bit of the size that is set; each trailing one is merged.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.subtrees.pop() {
                hash = node(&left, &hash);
            }
        }
        self.subtrees.push(hash);
        self.size += 1;
    }

    fn root(&self) -> Hash {
        let mut subtrees = self.subtrees.iter().rev();
        let Some(last) = subtrees.next() else { return hash(&[]) };
        subtrees.fold(*last, |right, left| node(left, &right))
    }
}

fn leaf(seq: u64, base: &[u8]) -> Hash {
    hash(&[LEAF_PREFIX, &seq.to_be_bytes(), base])
}

fn read(entry: &[u8; ENTRY]) -> (u64, Hash) {
    let (mut seq, mut leaf) = ([0; 8], [0; 32]);
    seq.copy_from_slice(&entry[..8]);
    leaf.copy_from_slice(&entry[8..]);
    (u64::from_be_bytes(seq), leaf)
}

fn origin(spiffe_id: &str, channel: &ChannelId, direction: Direction) -> String {
    let direction = match direction {
        Direction::ClientToServer => "c2s",
        Direction::ServerToClient => "s2c",
    };
    format!("mesh/{spiffe_id}/{channel}/{direction}")
}

/// The text of a note, which is what is signed. It begins with `mesh/`, as nothing else does that these keys sign.
fn text(origin: &str, tree: &Tree) -> String {
    format!("{origin}\n{}\n{}\n", tree.size, STANDARD.encode(tree.root()))
}

fn key_id(name: &str, public_key: &[u8; 32]) -> [u8; KEY_ID] {
    let hash = digest(&SHA256, &[name.as_bytes(), b"\n", &[ED25519], public_key].concat());
    let mut id = [0; KEY_ID];
    id.iter_mut().zip(hash.as_ref()).for_each(|(id, byte)| *id = *byte);
    id
}

#[cfg(test)]
mod tests;
