//! Makes signatures of the mesh profile.

use std::fmt::{self, Write as _};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue};

use super::cover::{self, Covered, UnboundBody};
use super::{ChannelId, MAX_COVERED, MAX_FIELD_BYTES, MAX_LABELS, Part, SignError, VALIDITY_SECONDS, tag};
use crate::input::{self, joined, members};
use crate::key::KeyError;
use crate::message::{MessageView, RequestView, ResponseView};
use crate::record::RecordSigner;

/// The label of the signature over a head, and of the one over trailers.
const LABEL: &str = "mesh";
const TAIL_LABEL: &str = "mesht";

/// The identifier of a signing key: the SPIFFE ID and the SHA-256 of the leaf certificate. The full
/// hash stands there, because a truncated one could be made to collide by the signer.
#[must_use]
pub fn keyid(spiffe_id: &str, leaf_der: &[u8]) -> String {
    format!("{spiffe_id}#{}", URL_SAFE_NO_PAD.encode(digest(&SHA256, leaf_der)))
}

/// Signs messages in the name of one signing certificate.
pub struct MeshSigner {
    key: Ed25519KeyPair,
    keyid: String,
    public_key: [u8; 32],
}

/// The fields of a new signature, to be appended to those the message already has.
#[derive(Clone, Debug)]
pub struct SignedHead {
    /// A further line of `Signature-Input`.
    pub signature_input: HeaderValue,
    /// A further line of `Signature`.
    pub signature: HeaderValue,
    /// The nonce in it, which a response to this message repeats.
    pub nonce: String,
    /// The signature base. The record layer continues from its hash.
    pub base: Vec<u8>,
}

impl SignedHead {
    /// Appends both fields to the headers, or to the trailers for a tail.
    pub fn append_to(&self, fields: &mut HeaderMap) {
        fields.append("signature-input", self.signature_input.clone());
        fields.append("signature", self.signature.clone());
    }
}

impl MeshSigner {
    /// A signer from an Ed25519 private key as PKCS#8 DER and the [`keyid`] of its certificate.
    ///
    /// # Errors
    /// When the key is not Ed25519, or the identifier is not `<spiffe id>#<fingerprint>` in printable ASCII.
    pub fn new(pkcs8: &[u8], keyid: impl Into<String>) -> Result<Self, KeyError> {
        let key = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| KeyError::Unsupported)?;
        let keyid = keyid.into();
        let well_formed =
            keyid.split_once('#').is_some_and(|(id, print)| !id.is_empty() && !print.is_empty())
                && keyid.bytes().all(|byte| matches!(byte, b'!'..=b'~') && !matches!(byte, b'"' | b'\\'));
        if !well_formed || keyid.len() > MAX_FIELD_BYTES / 2 {
            return Err(KeyError::KeyId);
        }
        let public_key = key.public_key().as_ref().try_into().map_err(|_| KeyError::Unsupported)?;
        Ok(Self { key, keyid, public_key })
    }

    /// The identifier of the key.
    #[must_use]
    pub fn keyid(&self) -> &str {
        &self.keyid
    }

    /// The public key.
    #[must_use]
    pub fn public_key(&self) -> &[u8; 32] {
        &self.public_key
    }

    /// Signs a request for its place on a channel. `now` is in Unix seconds.
    ///
    /// # Errors
    /// When the message cannot be signed in a way that a verifier would accept.
    pub fn sign_request(
        &self,
        view: &RequestView<'_>,
        channel: &ChannelId,
        seq: u64,
        now: u64,
    ) -> Result<SignedHead, SignError> {
        self.sign_part(&MessageView::Request(*view), Part::Whole, &channel.nonce(seq), now)
    }

    /// Signs a response to the request that had `nonce`. `now` is in Unix seconds.
    ///
    /// # Errors
    /// As [`sign_request`](Self::sign_request), and when the view lacks the request.
    pub fn sign_response(
        &self,
        view: &ResponseView<'_>,
        nonce: &str,
        now: u64,
    ) -> Result<SignedHead, SignError> {
        self.sign_part(&MessageView::Response(*view), Part::Whole, nonce, now)
    }

    /// Signs the head of a message whose digest follows in the trailers.
    ///
    /// # Errors
    /// As [`sign_request`](Self::sign_request), and when the `trailer` field does not announce the tail.
    pub fn sign_head(
        &self,
        message: &MessageView<'_>,
        nonce: &str,
        now: u64,
    ) -> Result<SignedHead, SignError> {
        if !cover::announces_tail(message.headers()) {
            return Err(SignError::Trailer);
        }
        self.sign_part(message, Part::Head, nonce, now)
    }

    /// Signs the trailers of a message whose head had `nonce`.
    ///
    /// # Errors
    /// As [`sign_request`](Self::sign_request), and when there are no trailers with a `content-digest`.
    pub fn sign_tail(
        &self,
        message: &MessageView<'_>,
        nonce: &str,
        now: u64,
    ) -> Result<SignedHead, SignError> {
        self.sign_part(message, Part::Tail, nonce, now)
    }

    /// A bare Ed25519 signature, for the record layer. Its messages start with a context string, so they
    /// can never be mistaken for a signature base, which starts with a quotation mark.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        let signature = self.key.try_sign(message).map_err(|_| SignError::Crypto)?;
        signature.as_ref().try_into().map_err(|_| SignError::Crypto)
    }

    fn sign_part(
        &self,
        message: &MessageView<'_>,
        part: Part,
        nonce: &str,
        now: u64,
    ) -> Result<SignedHead, SignError> {
        if matches!(message, MessageView::Response(response) if response.request.is_none()) {
            return Err(SignError::NoRequest);
        }
        let label = free_label(message, part)?;
        let mut input = String::with_capacity(640);
        input.push_str(&label);
        input.push_str("=(");
        let mut base = String::with_capacity(1024);
        let (opening, mut count) = (input.len(), 0);
        cover::required(message, part, &mut |component: Covered<'_>| {
            if input.len() > opening {
                input.push(' ');
            }
            count += 1;
            if count > MAX_COVERED {
                return Err(SignError::TooLong);
            }
            component.write(&mut input);
            component.write(&mut base);
            base.push_str(": ");
            component.push_value(&mut base, message)?;
            base.push('\n');
            Ok(())
        })?;
        self.push_params(&mut input, tag(message, part), nonce, now);
        base.push_str("\"@signature-params\": ");
        base.push_str(input.get(label.len() + 1..).unwrap_or_default());
        self.seal(&label, input, base, nonce)
    }

    fn push_params(&self, input: &mut String, tag: &str, nonce: &str, now: u64) {
        let (keyid, expires) = (&self.keyid, now.saturating_add(VALIDITY_SECONDS));
        // Writing to a String cannot fail. Verifiers exist that only accept this order of parameters.
        let _ = write!(
            input,
            ");created={now};expires={expires};nonce=\"{nonce}\";alg=\"ed25519\";keyid=\"{keyid}\";tag=\"{tag}\""
        );
    }

    fn seal(&self, label: &str, input: String, base: String, nonce: &str) -> Result<SignedHead, SignError> {
        if input.len() > MAX_FIELD_BYTES {
            return Err(SignError::TooLong);
        }
        let mut signature = format!("{label}=:");
        STANDARD.encode_string(self.sign(base.as_bytes())?, &mut signature);
        signature.push(':');
        Ok(SignedHead {
            signature_input: HeaderValue::try_from(input).map_err(|_| SignError::TooLong)?,
            signature: HeaderValue::try_from(signature).map_err(|_| SignError::TooLong)?,
            nonce: nonce.to_owned(),
            base: base.into_bytes(),
        })
    }
}

impl RecordSigner for MeshSigner {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        // Should the library ever fail, what goes out is a signature that nobody accepts.
        Self::sign(self, message).unwrap_or([0; 64])
    }
}

impl fmt::Debug for MeshSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshSigner").field("keyid", &self.keyid).finish_non_exhaustive()
    }
}

impl From<UnboundBody> for SignError {
    fn from(_: UnboundBody) -> Self {
        Self::Body
    }
}

/// A label that no signature of the message has yet. The application may have used ours; a label means
/// nothing, so ours gives way.
fn free_label(message: &MessageView<'_>, part: Part) -> Result<String, SignError> {
    let (fields, label) = match part {
        Part::Whole | Part::Head => (message.headers(), LABEL),
        Part::Tail => (message.trailers().ok_or(SignError::Body)?, TAIL_LABEL),
    };
    if !fields.contains_key("signature-input") && !fields.contains_key("signature") {
        return Ok(label.to_owned());
    }
    let inputs = joined(fields, "signature-input", MAX_FIELD_BYTES)?;
    let signatures = joined(fields, "signature", MAX_FIELD_BYTES)?;
    let inputs = members(&inputs, MAX_LABELS)?;
    let signatures = members(&signatures, MAX_LABELS)?;
    for member in &inputs {
        let list = input::parse_inner_list(member.value)?;
        if list_tag(&list).is_some_and(|tag| tag.starts_with("mesh-")) {
            return Err(SignError::ReservedTag);
        }
    }
    if inputs.len().max(signatures.len()) >= MAX_LABELS {
        return Err(SignError::TooManySignatures);
    }
    let taken = |label: &str| inputs.iter().chain(&signatures).any(|member| member.label == label);
    let numbered = (2..).map(|number| format!("{label}{number}"));
    // The message has fewer labels than there are numbers, so a free one is found at once.
    Ok(std::iter::once(label.to_owned()).chain(numbered).find(|label| !taken(label)).unwrap_or_default())
}

pub(crate) fn list_tag(list: &sfv::InnerList) -> Option<&str> {
    let tag = list.params.get(sfv::KeyRef::from_str("tag").ok()?)?;
    tag.as_string().map(sfv::StringRef::as_str)
}
