//! One Ed25519 signature for many messages: a Merkle tree over their signature bases (`ed25519-batch`).
//!
//! Each message carries the signature of the root and its own path to it, so each is proven alone and for
//! good: a verifier needs neither the other messages nor the channel they went over. The tree has the shape
//! of RFC 9162 section 2.1. A leaf is blinded, so that a path tells nothing about the messages beside it.
//!
//! ```text
//! value = version u8 = 1 | depth u8 | index u16 | size u16 | blinder 16 | path 32 * depth | signature 64
//! leaf  = SHA-256(0x00 | "mesh-batch-v1" 00 | blinder | message)
//! node  = SHA-256(0x01 | left | right)
//! signature = Ed25519("mesh-batch-root-v1" 00 | size u16 | root)
//! ```
//!
//! What is signed begins with `m` and a signature base with a quotation mark, so neither signature can be
//! taken for the other. Hashes are not shortened: a signer could otherwise make two messages for one leaf.

use std::collections::HashMap;

use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::rand;
use thiserror::Error;

use crate::profile::verify_ed25519;

/// Most messages under one signature: a path of eight hashes, 342 bytes in all. What is ready at the same
/// moment on one worker is rarely more, and a larger tree would save less than its longer paths cost.
pub const MAX_BATCH: usize = 256;

/// Bytes of the longest value.
pub(crate) const MAX_VALUE: usize = FIXED + BLINDER + MAX_DEPTH * HASH + SIGNATURE;

/// The levels of a tree of [`MAX_BATCH`] leaves.
const MAX_DEPTH: usize = 8;

/// Roots remembered by a [`RootCache`]: two generations of this many, 64 KiB. A root is asked for again
/// within milliseconds, by the other messages of its batch.
const ROOTS: usize = 256;

const VERSION: u8 = 1;
const BLINDER: usize = 16;
const HASH: usize = 32;
const SIGNATURE: usize = 64;
const FIXED: usize = 6;

const LEAF_CONTEXT: &[u8] = b"\x00mesh-batch-v1\0";
const NODE_PREFIX: &[u8] = &[1];
const ROOT_CONTEXT: &[u8] = b"mesh-batch-root-v1\0";

type Hash = [u8; HASH];

/// Why a batch signature was refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BatchError {
    /// The bytes are not a batch signature, or it places the message outside of its tree.
    #[error("batch signature is malformed")]
    Malformed,
    /// The root that the message leads to was not signed by the key.
    #[error("batch signature does not verify")]
    BadSignature,
}

/// The root statement could not be signed, or no randomness was to be had.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("batch cannot be signed")]
pub struct NotSigned;

/// Signs up to [`MAX_BATCH`] messages at once; the values come in the order of the messages.
///
/// # Errors
/// When there are no or too many messages, or the key or the random generator fails.
pub fn sign_batch(
    messages: &[&[u8]],
    sign: impl FnOnce(&[u8]) -> Option<[u8; SIGNATURE]>,
) -> Result<Vec<Vec<u8>>, NotSigned> {
    let mut blinders = vec![0; BLINDER * messages.len()];
    rand::fill(&mut blinders).map_err(|_| NotSigned)?;
    let (blinders, _) = blinders.as_chunks::<BLINDER>();
    sign_blinded(messages, blinders, sign)
}

fn sign_blinded(
    messages: &[&[u8]],
    blinders: &[[u8; BLINDER]],
    sign: impl FnOnce(&[u8]) -> Option<[u8; SIGNATURE]>,
) -> Result<Vec<Vec<u8>>, NotSigned> {
    if messages.is_empty() || messages.len() > MAX_BATCH {
        return Err(NotSigned);
    }
    let leaves: Vec<Hash> =
        messages.iter().zip(blinders).map(|(message, blinder)| leaf(blinder, message)).collect();
    let mut paths = vec![Vec::with_capacity(MAX_DEPTH); leaves.len()];
    let root = grow(&leaves, &mut paths);
    let size = leaves.len() as u16;
    let signature = sign(&statement(size, &root)).ok_or(NotSigned)?;
    let value = |((index, path), blinder): ((usize, &Vec<Hash>), &[u8; BLINDER])| {
        let mut value = Vec::with_capacity(FIXED + BLINDER + HASH * path.len() + SIGNATURE);
        value.extend_from_slice(&[VERSION, path.len() as u8]);
        value.extend_from_slice(&(index as u16).to_be_bytes());
        value.extend_from_slice(&size.to_be_bytes());
        value.extend_from_slice(blinder);
        value.extend_from_slice(path.as_flattened());
        value.extend_from_slice(&signature);
        value
    };
    Ok(paths.iter().enumerate().zip(blinders).map(value).collect())
}

/// The root over `leaves`; every leaf's path is written on the way up, from the leaf to the root.
fn grow(leaves: &[Hash], paths: &mut [Vec<Hash>]) -> Hash {
    if let [only] = leaves {
        return *only;
    }
    // The largest power of two below the number of leaves (RFC 9162 section 2.1.1).
    let split = leaves.len().next_power_of_two() / 2;
    let (left, right) = leaves.split_at(split);
    let (left_paths, right_paths) = paths.split_at_mut(split);
    let (left, right) = (grow(left, left_paths), grow(right, right_paths));
    left_paths.iter_mut().for_each(|path| path.push(right));
    right_paths.iter_mut().for_each(|path| path.push(left));
    node(&left, &right)
}

/// A received batch signature: where the message stands in which tree.
#[derive(Debug)]
pub struct BatchSignature<'a> {
    index: u16,
    size: u16,
    blinder: &'a [u8; BLINDER],
    path: &'a [Hash],
    signature: &'a [u8; SIGNATURE],
}

impl<'a> BatchSignature<'a> {
    /// Reads the value of a `Signature` member.
    ///
    /// # Errors
    /// [`BatchError::Malformed`] for another version, a tree that is too large, an index outside of it, or a
    /// length that does not fit.
    pub fn parse(value: &'a [u8]) -> Result<Self, BatchError> {
        Self::read(value).ok_or(BatchError::Malformed)
    }

    fn read(value: &'a [u8]) -> Option<Self> {
        let ([version, depth, index_high, index_low, size_high, size_low], rest) =
            value.split_first_chunk::<FIXED>()?;
        let (blinder, rest) = rest.split_first_chunk::<BLINDER>()?;
        let (path, signature) = rest.split_last_chunk::<SIGNATURE>()?;
        let (path, none) = path.as_chunks::<HASH>();
        let index = u16::from_be_bytes([*index_high, *index_low]);
        let size = u16::from_be_bytes([*size_high, *size_low]);
        let sound = *version == VERSION
            && none.is_empty()
            && path.len() == usize::from(*depth)
            && path.len() <= MAX_DEPTH
            && index < size
            && usize::from(size) <= MAX_BATCH;
        sound.then_some(Self { index, size, blinder, path, signature })
    }

    /// Checks that `message` is the one signed here, under `public_key`. A root that was found signed before
    /// is not verified again.
    ///
    /// # Errors
    /// [`BatchError::Malformed`] when the path does not end at the root, [`BatchError::BadSignature`].
    pub fn verify(
        &self,
        public_key: &[u8; 32],
        message: &[u8],
        roots: &mut RootCache,
    ) -> Result<(), BatchError> {
        let root = self.climb(leaf(self.blinder, message)).ok_or(BatchError::Malformed)?;
        let seen = Root { public_key: *public_key, size: self.size, root, signature: *self.signature };
        if roots.contains(&seen) {
            return Ok(());
        }
        verify_ed25519(public_key, &statement(self.size, &root), self.signature)
            .map_err(|_| BatchError::BadSignature)?;
        roots.insert(seen);
        Ok(())
    }

    /// The root that a leaf leads to (RFC 9162 section 2.1.3.2); `None` when the path has another length than
    /// the place of the leaf asks for.
    fn climb(&self, leaf: Hash) -> Option<Hash> {
        let (mut place, mut last) = (self.index, self.size - 1);
        let mut hash = leaf;
        for beside in self.path {
            if last == 0 {
                return None;
            }
            if place & 1 == 1 || place == last {
                hash = node(beside, &hash);
                while place & 1 == 0 && place != 0 {
                    place >>= 1;
                    last >>= 1;
                }
            } else {
                hash = node(&hash, beside);
            }
            place >>= 1;
            last >>= 1;
        }
        (last == 0).then_some(hash)
    }
}

/// Roots whose signature was verified, so that it is verified once for a batch and not for each message.
/// Whole entries are compared, the key and the signature among them.
#[derive(Debug, Default)]
pub struct RootCache {
    /// Two generations instead of an order of use: when the younger is full, the older is forgotten.
    young: HashMap<Root, ()>,
    old: HashMap<Root, ()>,
    hits: u64,
    misses: u64,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Root {
    public_key: [u8; 32],
    size: u16,
    root: Hash,
    signature: [u8; SIGNATURE],
}

impl RootCache {
    /// How often a root was found here, and how often its signature had to be verified.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.hits, self.misses)
    }

    fn contains(&mut self, root: &Root) -> bool {
        let known = self.young.contains_key(root) || self.old.contains_key(root);
        *(if known { &mut self.hits } else { &mut self.misses }) += 1;
        known
    }

    fn insert(&mut self, root: Root) {
        if self.young.len() >= ROOTS {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(root, ());
    }
}

fn leaf(blinder: &[u8; BLINDER], message: &[u8]) -> Hash {
    hash(&[LEAF_CONTEXT, blinder, message])
}

pub(crate) fn node(left: &Hash, right: &Hash) -> Hash {
    hash(&[NODE_PREFIX, left, right])
}

fn statement(size: u16, root: &Hash) -> Vec<u8> {
    [ROOT_CONTEXT, &size.to_be_bytes(), root].concat()
}

pub(crate) fn hash(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut hash = [0; HASH];
    // SHA-256 is 32 bytes long, so the slices have the same length.
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

#[cfg(test)]
mod tests;
