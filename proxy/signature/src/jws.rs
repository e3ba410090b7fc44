//! Messages that outlive the hop: signed, and sealed where they are private, so that whoever takes them from a queue, a
//! broker or a file verifies them long after the connection that carried them.
//!
//! A message is a compact JWS (RFC 7515 section 7.1) under the Ed25519 key of a signing certificate (`alg` is `EdDSA`,
//! RFC 8037 section 3.1). What a verifier without any network needs is in its header: the chain (`x5c`), and in the one
//! critical extension `mesh` the message's id, its times, whom it is for and its level.
//!
//! * [`Unproven`] is what was received; only [`Unproven::verify`] makes a [`Message`] of it.
//! * A private message is sealed, then signed. Its keys follow from a secret that HPKE takes to each recipient
//!   ([`mod@seal`]), from the sender and from everything the header says; the header commits to them.
//! * [`SeenMessages`] lets every message through once.
//! * [`jwt`] is the assertion of an identity, without a payload.
//!
//! What is signed here begins with the base64url of `{"`, which is `ey`. No other signature of the mesh is over bytes that
//! begin so: an HTTP signature base begins with `"`, everything of our own with `mesh-`, a certificate request with 0x30.

mod compact;
mod header;
pub mod jwt;
mod seen;
#[cfg(test)]
mod tests;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::CertificateDer;
use thiserror::Error;

use crate::key::VerifyingKey;
use crate::profile::MeshSigner;
use crate::seal::{self, COMMIT_LEN, MessageKeys, Recipient, SealError, SealedSecret, SealingKey, Secret};
use header::{Header, Mesh};

pub use seen::{MAX_SEEN, MAX_SEEN_PER_SENDER, SeenError, SeenMessages};

/// Most bytes of a payload. What is larger is a file: put its digest into a message.
pub const MAX_PAYLOAD: usize = 1024 * 1024;
/// Most bytes of a header: four certificates, an envelope for 64 recipients, and their identities at usual length.
pub const MAX_HEADER: usize = 48 * 1024;
/// Most bytes of a message as it is sent.
pub const MAX_MESSAGE: usize =
    encoded(MAX_HEADER) + encoded(MAX_SEALED) + encoded(compact::SIGNATURE_LEN) + 2;
/// Most identities that one message is for: as many as one secret is sealed for.
pub const MAX_AUDIENCE: usize = seal::MAX_RECIPIENTS;
/// Longest life of a message, in seconds: a week without a connection. Its certificate mostly ends before that.
pub const MAX_LIFETIME: u64 = 7 * 24 * 3600;
/// Life of a message when nobody says otherwise, in seconds: as long as an mF2C assertion.
pub const DEFAULT_LIFETIME: u64 = 600;
/// Longest content type, in bytes.
pub const MAX_CONTENT_TYPE: usize = 256;
/// Longest SPIFFE ID (SPIFFE ID section 2.3).
const MAX_SPIFFE_ID: usize = 2048;
/// Most certificates of a chain: as many as a verifier of chains takes.
const MAX_CHAIN: usize = 4;

const MAX_SEALED: usize = MAX_PAYLOAD + seal::CHUNK_OVERHEAD * (MAX_PAYLOAD / seal::MAX_CHUNK + 1);
const ID_LEN: usize = 16;

const fn encoded(bytes: usize) -> usize {
    (bytes * 4).div_ceil(3)
}

/// Why a message is not made, or not believed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum JwsError {
    /// `alg` is not `EdDSA`.
    #[error("the algorithm is not EdDSA")]
    Algorithm,
    /// It names neither us nor everybody.
    #[error("the message is for somebody else")]
    Audience,
    /// The signature does not verify.
    #[error("the signature does not verify")]
    BadSignature,
    /// It ends after the certificate it is signed under, or began before it.
    #[error("the message is not of the time of its certificate")]
    Certificate,
    /// `created` lies in the future by more than the skew allowed.
    #[error("the message was created in the future")]
    Clock,
    /// The header does not list exactly the extension that it has as critical.
    #[error("the critical extensions are not exactly the known one")]
    Critical,
    /// Its time is over.
    #[error("the message has expired")]
    Expired,
    /// It ends before it begins, or lives longer than [`MAX_LIFETIME`].
    #[error("the life of the message is out of bounds")]
    Lifetime,
    /// Not three parts of base64url, or a header that is not written as it has to be.
    #[error("the message is malformed")]
    Malformed,
    /// The cryptographic library failed to sign.
    #[error("signing failed")]
    NotSigned,
    /// It is not sealed, and only what is sealed was asked for.
    #[error("the message is not sealed")]
    NotSealed,
    /// Nobody, or more than [`MAX_AUDIENCE`], or a private message for everybody or for one without a key.
    #[error("the recipients are none, too many, or without a key")]
    Recipients,
    /// It does not open.
    #[error(transparent)]
    Seal(SealError),
    /// It is sealed, and has to be opened.
    #[error("the message is sealed")]
    Sealed,
    /// Longer than [`MAX_PAYLOAD`], [`MAX_HEADER`] or [`MAX_MESSAGE`].
    #[error("the message is too large")]
    TooLarge,
    /// It is a JWS of another kind.
    #[error("the type is not that of a message of the mesh")]
    Type,
}

impl JwsError {
    /// A stable name.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Algorithm => "message-algorithm",
            Self::Audience => "message-audience",
            Self::BadSignature => "message-bad-signature",
            Self::Certificate => "message-certificate",
            Self::Clock => "message-clock",
            Self::Critical => "message-critical",
            Self::Expired => "message-expired",
            Self::Lifetime => "message-lifetime",
            Self::Malformed => "message-malformed",
            Self::NotSealed => "message-not-sealed",
            Self::NotSigned => "message-not-signed",
            Self::Recipients => "message-recipients",
            Self::Seal(error) => error.code(),
            Self::Sealed => "message-sealed",
            Self::TooLarge => "message-too-large",
            Self::Type => "message-type",
        }
    }
}

/// What tells a message from every other: 128 random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId([u8; ID_LEN]);

impl MessageId {
    /// A new one.
    ///
    /// # Errors
    /// [`JwsError::NotSigned`] when there is no randomness.
    pub fn random() -> Result<Self, JwsError> {
        let mut id = [0; ID_LEN];
        rand::fill(&mut id).map_err(|_| JwsError::NotSigned)?;
        Ok(Self(id))
    }

    fn parse(text: &str) -> Option<Self> {
        Some(Self(URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?))
    }
}

impl std::fmt::Display for MessageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// Whom a message is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Whoever can verify it. Never of a private one.
    Any,
    /// These SPIFFE IDs, at least one and at most [`MAX_AUDIENCE`].
    Only(Vec<String>),
}

impl Audience {
    /// These identities, or everybody for the single word `any`.
    ///
    /// # Errors
    /// [`JwsError::Recipients`] when there are none, too many, the same twice, or something that is no SPIFFE ID.
    pub fn new(identities: Vec<String>) -> Result<Self, JwsError> {
        if identities == [ANY] {
            return Ok(Self::Any);
        }
        if identities.is_empty() || identities.len() > MAX_AUDIENCE {
            return Err(JwsError::Recipients);
        }
        for (at, id) in identities.iter().enumerate() {
            let printable = id.bytes().all(|byte| byte.is_ascii_graphic());
            let is_id = id.starts_with("spiffe://") && id.len() <= MAX_SPIFFE_ID && printable;
            if !is_id || identities.iter().take(at).any(|earlier| earlier == id) {
                return Err(JwsError::Recipients);
            }
        }
        Ok(Self::Only(identities))
    }

    /// Whether an identity is meant.
    #[must_use]
    pub fn includes(&self, id: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Only(identities) => identities.iter().any(|one| one == id),
        }
    }

    /// As in the header.
    #[must_use]
    pub fn to_list(&self) -> Vec<String> {
        match self {
            Self::Any => vec![ANY.to_owned()],
            Self::Only(identities) => identities.clone(),
        }
    }
}

/// Everybody, where identities stand.
const ANY: &str = "any";

/// How a message is protected. A public one needs nothing of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Sealed, then signed.
    Private,
    /// Signed.
    Protected,
}

impl Level {
    /// The name in the header.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Protected => "protected",
        }
    }
}

/// What a message says of itself, all of it signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its id.
    pub id: MessageId,
    /// When it was made, Unix seconds.
    pub created: u64,
    /// From when on nobody believes it, Unix seconds.
    pub expires: u64,
    /// Whom it is for.
    pub audience: Audience,
    /// What the payload is (RFC 7515 section 4.1.10); visible ASCII and spaces, at most [`MAX_CONTENT_TYPE`].
    pub content_type: Option<String>,
}

impl Head {
    /// What the times must be for anybody, at any time.
    fn check(&self) -> Result<(), JwsError> {
        match self.expires.checked_sub(self.created) {
            Some(1..=MAX_LIFETIME) => {}
            _ => return Err(JwsError::Lifetime),
        }
        let fits = |text: &String| {
            text.len() <= MAX_CONTENT_TYPE && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        };
        if self.content_type.as_ref().is_none_or(fits) { Ok(()) } else { Err(JwsError::Malformed) }
    }

    /// The keys of a private message: they follow from everything that is said of it.
    fn keys(&self, secret: &Secret, keyid: &str) -> MessageKeys {
        let (id, created, expires) =
            (self.id.to_string(), self.created.to_string(), self.expires.to_string());
        let audience = self.audience.to_list();
        let typed = if self.content_type.is_some() { "typed" } else { "" };
        let fixed = [keyid, &id, &created, &expires, typed, self.content_type.as_deref().unwrap_or_default()];
        secret.message(fixed.into_iter().chain(audience.iter().map(String::as_str)))
    }
}

/// Signs a payload. The chain is that of the signer's certificate, leaf first.
///
/// # Errors
/// [`JwsError::Lifetime`], [`JwsError::Malformed`] for the content type, [`JwsError::TooLarge`],
/// [`JwsError::NotSigned`].
pub fn sign(
    signer: &MeshSigner,
    chain: &[CertificateDer<'_>],
    head: &Head,
    payload: &[u8],
) -> Result<String, JwsError> {
    if payload.len() > MAX_PAYLOAD {
        return Err(JwsError::TooLarge);
    }
    head.check()?;
    compact::sign(signer, &Header::new(chain, head, None).to_json()?, payload)
}

/// Seals a payload for recipients, then signs it. Everybody in the audience must be among them, and nobody else.
///
/// # Errors
/// As [`sign`], and [`JwsError::Recipients`], [`JwsError::Seal`].
pub fn seal(
    signer: &MeshSigner,
    chain: &[CertificateDer<'_>],
    head: &Head,
    recipients: &[Recipient<'_>],
    payload: &[u8],
) -> Result<String, JwsError> {
    if payload.len() > MAX_PAYLOAD {
        return Err(JwsError::TooLarge);
    }
    head.check()?;
    let Audience::Only(audience) = &head.audience else { return Err(JwsError::Recipients) };
    let has_key = |id: &String| recipients.iter().any(|recipient| recipient.spiffe_id == id);
    if !audience.iter().all(has_key)
        || !recipients.iter().all(|recipient| head.audience.includes(recipient.spiffe_id))
    {
        return Err(JwsError::Recipients);
    }
    let sealed = SealedSecret::new(signer.keyid(), recipients).map_err(|error| match error {
        SealError::Recipients => JwsError::Recipients,
        error => JwsError::Seal(error),
    })?;
    let keys = head.keys(&sealed.secret, signer.keyid());
    let seal = Seal { envelope: sealed.envelope, commitment: keys.commitment };
    let header = Header::new(chain, head, Some(&seal)).to_json()?;
    compact::sign(signer, &header, &keys.seal_whole(payload))
}

/// What takes the keys of a private message to its recipients.
#[derive(Clone, Debug)]
struct Seal {
    envelope: Vec<u8>,
    commitment: [u8; COMMIT_LEN],
}

/// A message as received: nothing of it is to be believed yet.
#[derive(Debug)]
pub struct Unproven<'a> {
    parts: compact::Parts<'a>,
    chain: Vec<CertificateDer<'static>>,
    head: Head,
    seal: Option<Seal>,
}

/// Who signed, as the verified chain says.
#[derive(Clone, Copy, Debug)]
pub struct Signer<'a> {
    /// The SPIFFE ID of the leaf.
    pub spiffe_id: &'a str,
    /// `<spiffe id>#<fingerprint>`.
    pub keyid: &'a str,
    /// The leaf's Ed25519 key.
    pub public_key: &'a [u8; 32],
    /// From when on the leaf is valid, Unix seconds.
    pub not_before: u64,
    /// When it ends, Unix seconds.
    pub not_after: u64,
}

/// How a message is judged.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Who verifies; none for an auditor, who is not asked whether he was meant.
    pub own: Option<&'a str>,
    /// Unix seconds.
    pub now: u64,
    /// Seconds by which clocks may differ.
    pub skew: u64,
}

impl<'a> Unproven<'a> {
    /// Reads a message.
    ///
    /// # Errors
    /// [`JwsError::TooLarge`], [`JwsError::Malformed`], [`JwsError::Type`], [`JwsError::Algorithm`],
    /// [`JwsError::Critical`], [`JwsError::Lifetime`].
    pub fn parse(message: &'a str) -> Result<Self, JwsError> {
        let parts = compact::Parts::split(message)?;
        let Header { chain, mesh, content_type } = Header::parse(&parts.header)?;
        let Mesh { id, created, expires, audience, seal } = mesh;
        let most = if seal.is_some() { MAX_SEALED } else { MAX_PAYLOAD };
        if parts.payload.len() > most {
            return Err(JwsError::TooLarge);
        }
        let head = Head { id, created, expires, audience, content_type };
        head.check()?;
        Ok(Self { parts, chain, head, seal })
    }

    /// The chain that came with it, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Verifies the message under the key that the caller found in its verified [`chain`](Self::chain).
    ///
    /// # Errors
    /// [`JwsError::BadSignature`] first; then what its times and its audience are refused for.
    pub fn verify(self, signer: &Signer<'_>, rules: Rules<'_>) -> Result<Message, JwsError> {
        self.parts.verify(signer.public_key)?;
        let Self { parts, head, seal, .. } = self;
        check_times(head.created, head.expires, signer, rules)?;
        if rules.own.is_some_and(|own| !head.audience.includes(own)) {
            return Err(JwsError::Audience);
        }
        Ok(Message {
            head,
            sender: signer.spiffe_id.to_owned(),
            keyid: signer.keyid.to_owned(),
            payload: parts.payload,
            seal,
        })
    }
}

fn check_times(created: u64, expires: u64, signer: &Signer<'_>, rules: Rules<'_>) -> Result<(), JwsError> {
    if created > rules.now.saturating_add(rules.skew) {
        Err(JwsError::Clock)
    } else if rules.now >= expires.saturating_add(rules.skew) {
        Err(JwsError::Expired)
    } else if expires > signer.not_after || created.saturating_add(rules.skew) < signer.not_before {
        Err(JwsError::Certificate)
    } else {
        Ok(())
    }
}

/// A message that its sender signed, and that is for us. Only [`Unproven::verify`] makes one.
#[derive(Debug)]
pub struct Message {
    head: Head,
    sender: String,
    keyid: String,
    payload: Vec<u8>,
    seal: Option<Seal>,
}

impl Message {
    /// What it says of itself.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The SPIFFE ID of who signed.
    #[must_use]
    pub fn sender(&self) -> &str {
        &self.sender
    }

    /// The identifier of the key it was signed with.
    #[must_use]
    pub fn keyid(&self) -> &str {
        &self.keyid
    }

    /// How it is protected.
    #[must_use]
    pub fn level(&self) -> Level {
        if self.seal.is_some() { Level::Private } else { Level::Protected }
    }

    /// The payload of a protected message.
    ///
    /// # Errors
    /// [`JwsError::Sealed`].
    pub fn payload(&self) -> Result<&[u8], JwsError> {
        if self.seal.is_some() { Err(JwsError::Sealed) } else { Ok(&self.payload) }
    }

    /// Opens a private message with one of our keys.
    ///
    /// # Errors
    /// [`JwsError::NotSealed`]; [`JwsError::Seal`] when it was sealed for other keys or by somebody else, or does not open.
    pub fn open(&self, own: &str, keys: &[&SealingKey]) -> Result<Vec<u8>, JwsError> {
        let seal = self.seal.as_ref().ok_or(JwsError::NotSealed)?;
        let secret = Secret::open(&seal.envelope, &self.keyid, own, keys).map_err(JwsError::Seal)?;
        let keys = self.head.keys(&secret, &self.keyid);
        // Both are in plain sight: no secret depends on how long this takes.
        if keys.commitment != seal.commitment {
            return Err(JwsError::Seal(SealError::Broken));
        }
        keys.open_whole(&self.payload).map_err(JwsError::Seal)
    }
}

/// The Ed25519 key of a signer, which is never one of small order.
fn verifying_key(public_key: &[u8; 32]) -> Result<VerifyingKey, JwsError> {
    VerifyingKey::from_ed25519(public_key).map_err(|_| JwsError::BadSignature)
}
