//! Sealing: what only the destination workload may read, wherever TLS ends on the way.
//!
//! * The sender makes a secret and encrypts it to each recipient's X25519 key with HPKE (RFC 9180): the *envelope*.
//!   HPKE's `info` names sender and recipient, so an envelope cannot be passed on as somebody else's.
//! * Each message has keys of its own, derived from the secret and from what the message is: method, authority, path,
//!   query and nonce. A body moved to another message does not open. So one envelope serves many messages, and its
//!   two X25519 operations are paid once.
//! * A response is sealed under keys of its request: nothing more has to be agreed.
//! * AES-GCM alone does not commit to its key. Each message carries a commitment, derived with the keys and covered
//!   by the signature, so that nobody can open evidence to another plaintext.
//! * Bodies are cut into chunks, each authenticated with its place; the last is marked, so that an end is an end.
//!
//! Sealed is inside, signed is outside: a gateway verifies what it cannot read.

mod aead;
mod chunk;
mod envelope;
mod fields;
mod hpke;
#[cfg(test)]
mod tests;

use aws_lc_rs::agreement::{PrivateKey, X25519};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::signature::Ed25519KeyPair;
use thiserror::Error;
use zeroize::Zeroizing;

pub use chunk::{Chunk, ChunkReader, ChunkWriter, MAX_CHUNK, OVERHEAD as CHUNK_OVERHEAD};
pub use envelope::{MAX_RECIPIENTS, Recipient, SealedSecret, Secret};
pub use fields::MAX_BYTES as MAX_FIELDS_BYTES;

use crate::base::BaseError;
use crate::derived;
use crate::message::RequestView;
use aead::Cipher;

/// The content coding of a sealed body.
pub const SEAL_CODING: &str = "mesh-hpke";

/// The header of a request that carries its envelope.
pub const SEAL_FIELD: &str = "mesh-seal";

/// The header that carries the commitment to the keys of a sealed message.
pub const COMMIT_FIELD: &str = "mesh-commit";

/// The header that carries sealed header fields.
pub const SEALED_FIELDS_FIELD: &str = "mesh-sealed-fields";

/// Bytes of a commitment.
pub const COMMIT_LEN: usize = 32;

/// The number under which header fields are sealed; chunks of a body never come so far.
const FIELDS_NUMBER: u64 = u64::MAX;

/// Why a message cannot be sealed or opened.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SealError {
    /// The keys that open it are not those it commits to, or it was altered, cut or reordered.
    #[error("sealed part does not open")]
    Broken,
    /// The recipient's key is not a usable X25519 key.
    #[error("key of a recipient cannot be used")]
    Key,
    /// The envelope, a chunk or the sealed fields are not written as they have to be.
    #[error("sealed part is malformed")]
    Malformed,
    /// The envelope is addressed to none of our keys.
    #[error("sealed for another key")]
    NotForUs,
    /// More recipients than [`MAX_RECIPIENTS`], or none.
    #[error("number of recipients is out of bounds")]
    Recipients,
    /// More or longer fields than [`MAX_FIELDS_BYTES`] hold.
    #[error("fields to be sealed are too large")]
    TooLarge,
}

impl SealError {
    /// A stable name.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Broken => "seal-broken",
            Self::Key => "seal-key",
            Self::Malformed => "seal-malformed",
            Self::NotForUs => "seal-not-for-us",
            Self::Recipients => "seal-recipients",
            Self::TooLarge => "seal-too-large",
        }
    }
}

/// A workload's key to what is sealed for it. It is derived from the private key of its signing certificate, so that
/// it comes, is stored and goes with that.
pub struct SealingKey {
    private: PrivateKey,
    public: [u8; hpke::KEY_LEN],
}

impl SealingKey {
    /// The key that belongs to an Ed25519 key in PKCS#8.
    ///
    /// # Errors
    /// [`SealError::Key`] when that is no Ed25519 key.
    pub fn derive(signing_key: &[u8]) -> Result<Self, SealError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(signing_key).map_err(|_| SealError::Key)?;
        let seed: Curve25519SeedBin<'_> =
            pair.seed().and_then(|seed| seed.as_be_bytes()).map_err(|_| SealError::Key)?;
        let prk = Zeroizing::new(hpke::extract(b"mesh-sealing-key-v1", &[seed.as_ref()]));
        let mut private = Zeroizing::new([0; hpke::KEY_LEN]);
        hpke::expand(&prk, &[b"x25519"], &mut *private);
        let private = PrivateKey::from_private_key(&X25519, &*private).map_err(|_| SealError::Key)?;
        let public = private.compute_public_key().map_err(|_| SealError::Key)?;
        let public = public.as_ref().try_into().map_err(|_| SealError::Key)?;
        Ok(Self { private, public })
    }

    /// What senders need.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.public
    }
}

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealingKey").finish_non_exhaustive()
    }
}

/// What a sealed message belongs to. All of it stands in clear text beside it, and none of it can be exchanged.
#[derive(Clone, Debug)]
pub struct Place {
    /// The request's method.
    pub method: String,
    /// The request's authority, as its signature covers it.
    pub authority: String,
    /// The request's path, likewise; the whole target of a request that has none.
    pub path: String,
    /// The request's query, likewise.
    pub query: String,
    /// The nonce of the request's signature.
    pub nonce: String,
}

impl Place {
    /// The place of a request.
    ///
    /// # Errors
    /// When the signature could not cover the request either.
    pub fn of(request: &RequestView<'_>, nonce: &str) -> Result<Self, BaseError> {
        let (mut authority, mut path, mut query) = (String::new(), String::new(), String::new());
        derived::push_authority(&mut authority, request)?;
        if request.has_no_path() {
            path.push_str(request.target);
        } else {
            derived::push_path(&mut path, request)?;
            derived::push_query(&mut query, request)?;
        }
        Ok(Self { method: request.method.to_owned(), authority, path, query, nonce: nonce.to_owned() })
    }
}

/// The keys of one exchange.
pub struct ExchangeKeys {
    /// Of the request.
    pub request: MessageKeys,
    /// Of its response.
    pub response: MessageKeys,
}

/// The key of one message. It seals or opens one body and one set of fields.
pub struct MessageKeys {
    cipher: Cipher,
    /// What proves that no other key was meant.
    pub commitment: [u8; COMMIT_LEN],
}

impl MessageKeys {
    fn derive(prk: &[u8; 32], label: &[u8]) -> Self {
        let mut key = [0; aead::KEY_LEN];
        let mut nonce = [0; aead::NONCE_LEN];
        let mut commitment = [0; COMMIT_LEN];
        hpke::expand(prk, &[label, b" key"], &mut key);
        hpke::expand(prk, &[label, b" nonce"], &mut nonce);
        hpke::expand(prk, &[label, b" commit"], &mut commitment);
        Self { cipher: Cipher::new(&key, nonce), commitment }
    }

    /// Seals header fields. To be called at most once.
    ///
    /// # Errors
    /// [`SealError::TooLarge`].
    pub fn seal_fields(&self, fields: &http::HeaderMap) -> Result<Vec<u8>, SealError> {
        let plaintext = fields::write(fields)?;
        let mut out = Vec::with_capacity(plaintext.len() + aead::TAG_LEN);
        self.cipher.seal(FIELDS_NUMBER, b"fields", &plaintext, &mut out);
        Ok(out)
    }

    /// Opens header fields.
    ///
    /// # Errors
    /// [`SealError::Broken`], [`SealError::Malformed`].
    pub fn open_fields(&self, mut sealed: Vec<u8>) -> Result<http::HeaderMap, SealError> {
        let opened = self.cipher.open(FIELDS_NUMBER, b"fields", &mut sealed).ok_or(SealError::Broken)?;
        fields::parse(opened)
    }

    /// Seals a whole payload.
    pub(crate) fn seal_whole(self, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(payload.len() + CHUNK_OVERHEAD * (payload.len() / MAX_CHUNK + 1));
        self.into_writer().finish(payload, &mut out);
        out
    }

    /// Opens what [`seal_whole`](Self::seal_whole) made.
    pub(crate) fn open_whole(self, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut reader = self.into_reader();
        let mut input = bytes::BytesMut::from(sealed);
        let mut out = Vec::with_capacity(sealed.len());
        while let Some(chunk) = reader.decode(&mut input)? {
            out.extend_from_slice(&chunk.data);
        }
        // Cut at the end of a chunk, everything before opens.
        if reader.is_done() && input.is_empty() { Ok(out) } else { Err(SealError::Broken) }
    }

    /// The writer of the body.
    #[must_use]
    pub fn into_writer(self) -> ChunkWriter {
        ChunkWriter::new(self.cipher)
    }

    /// The reader of the body.
    #[must_use]
    pub fn into_reader(self) -> ChunkReader {
        ChunkReader::new(self.cipher)
    }
}
