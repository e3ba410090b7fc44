//! The envelope: one secret, encrypted to each recipient.
//!
//! ```text
//! u8 version = 1 | u8 n | n times: key id [8] | enc [32] | sealed secret [48]
//! key id = SHA-256("mesh-seal-key-id-v1\0" || public key), first 8 bytes
//! info   = "mesh-seal-v1\0" || u64 len || sender's key identifier || u64 len || recipient's SPIFFE ID
//! ```

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;

use super::hpke::{self, KEY_LEN};
use super::{ExchangeKeys, MessageKeys, Place, SealError, SealingKey};

/// Most recipients of one secret: the instances behind one address, or the subscribers of one message.
pub const MAX_RECIPIENTS: usize = 64;

const VERSION: u8 = 1;
const KEY_ID_LEN: usize = 8;
const SECRET_LEN: usize = 32;
const SEALED_LEN: usize = SECRET_LEN + super::aead::TAG_LEN;
const ENTRY_LEN: usize = KEY_ID_LEN + KEY_LEN + SEALED_LEN;

/// Somebody who is to read a message.
#[derive(Clone, Copy, Debug)]
pub struct Recipient<'a> {
    /// Its SPIFFE ID.
    pub spiffe_id: &'a str,
    /// Its X25519 key, as its sidecar published it.
    pub key: &'a [u8; 32],
}

/// What the keys of many messages are derived from.
#[derive(Clone)]
pub struct Secret([u8; SECRET_LEN]);

impl Secret {
    /// The keys of one exchange.
    #[must_use]
    pub fn exchange(&self, place: &Place) -> ExchangeKeys {
        let mut info = b"mesh-seal-message-v1\0".to_vec();
        for part in [&place.method, &place.authority, &place.path, &place.query, &place.nonce] {
            push(&mut info, part);
        }
        let prk = hpke::extract(digest(&SHA256, &info).as_ref(), &[&self.0]);
        ExchangeKeys {
            request: MessageKeys::derive(&prk, b"request"),
            response: MessageKeys::derive(&prk, b"response"),
        }
    }

    /// The keys of a message that belongs to no exchange, and to everything in `parts`.
    pub(crate) fn message<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> MessageKeys {
        let mut info = b"mesh-seal-jws-v1\0".to_vec();
        parts.into_iter().for_each(|part| push(&mut info, part));
        let prk = hpke::extract(digest(&SHA256, &info).as_ref(), &[&self.0]);
        MessageKeys::derive(&prk, b"message")
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A secret and the envelope that takes it to its recipients.
#[derive(Clone, Debug)]
pub struct SealedSecret {
    /// The secret.
    pub secret: Secret,
    /// The envelope.
    pub envelope: Vec<u8>,
}

impl SealedSecret {
    /// A new secret of `sender`, which is the key identifier it signs under. A recipient whose key cannot be used is
    /// left out: it is one instance of several, and must not keep the others from being reached.
    ///
    /// # Errors
    /// [`SealError::Recipients`], [`SealError::Key`] when no recipient is left.
    pub fn new(sender: &str, recipients: &[Recipient<'_>]) -> Result<Self, SealError> {
        if recipients.is_empty() || recipients.len() > MAX_RECIPIENTS {
            return Err(SealError::Recipients);
        }
        let mut secret = [0; SECRET_LEN];
        rand::fill(&mut secret).map_err(|_| SealError::Key)?;
        let mut entries = Vec::with_capacity(recipients.len() * ENTRY_LEN);
        for recipient in recipients {
            let info = info(sender, recipient.spiffe_id);
            let Some((enc, context)) = hpke::setup_sender(recipient.key, &info) else { continue };
            entries.extend_from_slice(&key_id(recipient.key));
            entries.extend_from_slice(&enc);
            entries.extend_from_slice(&context.seal(&[], &secret));
        }
        if entries.is_empty() {
            return Err(SealError::Key);
        }
        let count = u8::try_from(entries.len() / ENTRY_LEN).map_err(|_| SealError::Recipients)?;
        let envelope = [&[VERSION, count][..], &entries].concat();
        Ok(Self { secret: Secret(secret), envelope })
    }
}

impl Secret {
    /// The secret in an envelope of `sender` that was made for `own_id` and one of its keys.
    ///
    /// # Errors
    /// [`SealError::Malformed`], [`SealError::NotForUs`]; [`SealError::Broken`] when it was made by or for
    /// somebody else.
    pub fn open(
        envelope: &[u8],
        sender: &str,
        own_id: &str,
        keys: &[&SealingKey],
    ) -> Result<Self, SealError> {
        let [VERSION, count, entries @ ..] = envelope else { return Err(SealError::Malformed) };
        let count = usize::from(*count);
        if count == 0 || count > MAX_RECIPIENTS || entries.len() != count * ENTRY_LEN {
            return Err(SealError::Malformed);
        }
        for entry in entries.chunks_exact(ENTRY_LEN) {
            let (id, rest) = entry.split_at(KEY_ID_LEN);
            let Some(key) = keys.iter().find(|key| key_id(&key.public) == id) else { continue };
            let (enc, sealed) = rest.split_at(KEY_LEN);
            let enc = enc.try_into().map_err(|_| SealError::Malformed)?;
            let context = hpke::setup_receiver(enc, &key.private, &key.public, &info(sender, own_id));
            let secret = context.and_then(|context| context.open(&[], sealed)).ok_or(SealError::Broken)?;
            return Ok(Self(secret.try_into().map_err(|_| SealError::Malformed)?));
        }
        Err(SealError::NotForUs)
    }
}

fn key_id(public: &[u8; KEY_LEN]) -> [u8; KEY_ID_LEN] {
    let digest = digest(&SHA256, &[&b"mesh-seal-key-id-v1\0"[..], public].concat());
    let mut id = [0; KEY_ID_LEN];
    for (out, byte) in id.iter_mut().zip(digest.as_ref()) {
        *out = *byte;
    }
    id
}

fn info(sender: &str, recipient: &str) -> Vec<u8> {
    let mut info = b"mesh-seal-v1\0".to_vec();
    push(&mut info, sender);
    push(&mut info, recipient);
    info
}

/// With its length before it, so that nothing can be moved from one part to the next.
fn push(out: &mut Vec<u8>, part: &str) {
    out.extend_from_slice(&(part.len() as u64).to_be_bytes());
    out.extend_from_slice(part.as_bytes());
}
