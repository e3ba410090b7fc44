//! Digest fields (RFC 9530): `sha-256` is made, `sha-256` and `sha-512` are checked.
//!
//! SHA-512 is never made, because it costs three times as much on processors without an instruction
//! for it and adds nothing here.

use aws_lc_rs::digest::{Context, SHA256, SHA512};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName};
use thiserror::Error;

use crate::field;

/// Longest value of a digest field that is parsed, in bytes: several algorithms fit ten times over.
pub const MAX_FIELD_BYTES: usize = 4096;

/// Why content does not fit its digest field.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DigestError {
    /// The field is missing.
    #[error("digest field is missing")]
    Missing,
    /// The field is not a dictionary of byte sequences of the right length.
    #[error("digest field is malformed")]
    Malformed,
    /// The content has another digest.
    #[error("content does not match its digest")]
    Mismatch,
    /// The field names no algorithm that is both known and secure.
    #[error("digest field has no usable algorithm")]
    Unsupported,
}

/// The value of a digest field for `content`: `sha-256=:…:`.
#[must_use]
pub fn sha256_header(content: &[u8]) -> String {
    header_of(&sha256(content))
}

/// The SHA-256 of `content`.
#[must_use]
pub fn sha256(content: &[u8]) -> [u8; 32] {
    let mut digest = StreamingDigest::new();
    digest.update(content);
    digest.finish()
}

/// Checks `content` against the `Content-Digest` field in `headers`.
///
/// # Errors
/// When the field is missing or malformed, names no usable algorithm, or any digest it names differs.
pub fn verify_digest(headers: &HeaderMap, content: &[u8]) -> Result<(), DigestError> {
    let mut verifier = DigestVerifier::from_headers(headers)?;
    verifier.update(content);
    verifier.finish()
}

/// Makes a SHA-256 digest while content passes by.
pub struct StreamingDigest(Context);

impl StreamingDigest {
    /// A digest of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    /// Adds a piece of content.
    pub fn update(&mut self, content: &[u8]) {
        self.0.update(content);
    }

    /// The digest.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        let mut digest = [0; 32];
        // SHA-256 is 32 bytes long, so the slices have the same length.
        digest.copy_from_slice(self.0.finish().as_ref());
        digest
    }

    /// The value of a digest field.
    #[must_use]
    pub fn finish_header(self) -> String {
        header_of(&self.finish())
    }
}

impl Default for StreamingDigest {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for StreamingDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamingDigest").finish_non_exhaustive()
    }
}

/// Checks content against a digest field while it passes by.
pub struct DigestVerifier {
    expected: Vec<(Context, Vec<u8>)>,
}

impl DigestVerifier {
    /// A verifier for the `Content-Digest` field in `headers`, which may be a trailer section.
    ///
    /// # Errors
    /// When the field is missing or malformed, or names no usable algorithm.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, DigestError> {
        let value = field::combined(headers, "content-digest").map_err(|_| DigestError::Malformed)?;
        Self::from_value(&value.ok_or(DigestError::Missing)?)
    }

    /// A verifier for the value of a digest field. Algorithms that are not known or not secure are
    /// passed over; every one that is known must fit.
    ///
    /// # Errors
    /// As [`from_headers`](Self::from_headers).
    pub fn from_value(value: &str) -> Result<Self, DigestError> {
        if value.len() > MAX_FIELD_BYTES {
            return Err(DigestError::Malformed);
        }
        let dictionary: sfv::Dictionary =
            sfv::Parser::new(value).parse().map_err(|_| DigestError::Malformed)?;
        let mut expected = Vec::new();
        for (name, member) in &dictionary {
            let algorithm = match name.as_str() {
                "sha-256" => &SHA256,
                "sha-512" => &SHA512,
                _ => continue,
            };
            let sfv::ListEntry::Item(item) = member else { return Err(DigestError::Malformed) };
            let digest = item.bare_item.as_byte_sequence().ok_or(DigestError::Malformed)?;
            if digest.len() != algorithm.output_len() {
                return Err(DigestError::Malformed);
            }
            expected.push((Context::new(algorithm), digest.to_owned()));
        }
        if expected.is_empty() { Err(DigestError::Unsupported) } else { Ok(Self { expected }) }
    }

    /// Adds a piece of content.
    pub fn update(&mut self, content: &[u8]) {
        for (context, _) in &mut self.expected {
            context.update(content);
        }
    }

    /// Compares every digest.
    ///
    /// # Errors
    /// [`DigestError::Mismatch`] when one differs.
    pub fn finish(self) -> Result<(), DigestError> {
        let fits = |(context, expected): (Context, Vec<u8>)| context.finish().as_ref() == expected;
        if self.expected.into_iter().all(fits) { Ok(()) } else { Err(DigestError::Mismatch) }
    }
}

impl std::fmt::Debug for DigestVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DigestVerifier").field("algorithms", &self.expected.len()).finish_non_exhaustive()
    }
}

// Looked up for every message, so it is not read from text each time.
static CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

/// The digest, if the field is exactly one `sha-256` member: the only form the mesh profile makes, so
/// that two claims about one body cannot stand side by side.
pub(crate) fn only_sha256(fields: &HeaderMap) -> Option<[u8; 32]> {
    let mut lines = fields.get_all(&CONTENT_DIGEST).iter();
    let line = lines.next()?.to_str().ok()?;
    let encoded = line.trim().strip_prefix("sha-256=:")?.strip_suffix(':')?;
    if lines.next().is_some() {
        return None;
    }
    STANDARD.decode(encoded).ok()?.try_into().ok()
}

fn header_of(digest: &[u8; 32]) -> String {
    let mut value = String::with_capacity(54);
    value.push_str("sha-256=:");
    STANDARD.encode_string(digest, &mut value);
    value.push(':');
    value
}
