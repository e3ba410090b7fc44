//! Makes signatures of the mesh profile.

use std::fmt::{self, Write as _};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::cover::{self, Covered, UnboundBody};
use super::strip::claims_signature;
use super::{
    ChannelId, ED25519_LEN, Form, MAX_COVERED, MAX_FIELD_BYTES, MAX_LABELS, Part, SignError, SignedHead,
    Unsigned, VALIDITY_SECONDS, tag,
};
use crate::batch::{MAX_VALUE, NotSigned, sign_batch};
use crate::input::{self, SIGNATURE, SIGNATURE_INPUT, readable_members};
use crate::key::KeyError;
use crate::mac::{MAC_LEN, MacKey};
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

    /// Prepares a request for its place on a channel. `now` is in Unix seconds.
    ///
    /// # Errors
    /// When the message cannot be signed in a way that a verifier would accept.
    pub fn prepare_request(
        &self,
        view: &RequestView<'_>,
        channel: &ChannelId,
        seq: u64,
        now: u64,
        form: Form,
    ) -> Result<Unsigned, SignError> {
        self.prepare(&MessageView::Request(*view), Part::Whole, form, &channel.nonce(seq), now)
    }

    /// Prepares a response to the request that had `nonce`. `now` is in Unix seconds.
    ///
    /// # Errors
    /// As [`prepare_request`](Self::prepare_request), and when the view lacks the request.
    pub fn prepare_response(
        &self,
        view: &ResponseView<'_>,
        nonce: &str,
        now: u64,
        form: Form,
    ) -> Result<Unsigned, SignError> {
        self.prepare(&MessageView::Response(*view), Part::Whole, form, nonce, now)
    }

    /// Signs a message prepared as [`Form::Single`].
    ///
    /// # Errors
    /// [`SignError::Crypto`] when the cryptographic library fails or the message was prepared as the other form.
    pub fn sign_single(&self, unsigned: Unsigned) -> Result<SignedHead, SignError> {
        if unsigned.form() != Form::Single {
            return Err(SignError::Crypto);
        }
        let signature = self.sign(unsigned.base())?;
        unsigned.seal(&signature)
    }

    /// Signs messages prepared as [`Form::Batch`], at most [`MAX_BATCH`](crate::batch::MAX_BATCH), with one signature. The
    /// heads come in the order of the messages.
    ///
    /// # Errors
    /// [`SignError::Crypto`], for all of them.
    pub fn sign_batch(&self, unsigned: Vec<Unsigned>) -> Result<Vec<SignedHead>, SignError> {
        if unsigned.iter().any(|message| message.form() != Form::Batch) {
            return Err(SignError::Crypto);
        }
        let bases: Vec<&[u8]> = unsigned.iter().map(Unsigned::base).collect();
        let values = sign_batch(&bases, |statement| self.sign(statement).ok());
        let values = values.map_err(|NotSigned| SignError::Crypto)?;
        unsigned.into_iter().zip(values).map(|(message, value)| message.seal(&value)).collect()
    }

    /// Authenticates a message prepared as [`Form::Mac`] with the key of its direction.
    ///
    /// # Errors
    /// [`SignError::Crypto`] when the message was prepared as another form.
    pub fn sign_mac(&self, unsigned: Unsigned, key: &MacKey) -> Result<SignedHead, SignError> {
        if unsigned.form() != Form::Mac {
            return Err(SignError::Crypto);
        }
        let code = key.sign(unsigned.base());
        unsigned.seal(&code)
    }

    /// Signs a request alone, for its place on a channel. `now` is in Unix seconds.
    ///
    /// # Errors
    /// As [`prepare_request`](Self::prepare_request) and [`sign_single`](Self::sign_single).
    pub fn sign_request(
        &self,
        view: &RequestView<'_>,
        channel: &ChannelId,
        seq: u64,
        now: u64,
    ) -> Result<SignedHead, SignError> {
        self.sign_single(self.prepare_request(view, channel, seq, now, Form::Single)?)
    }

    /// Signs a response alone. `now` is in Unix seconds.
    ///
    /// # Errors
    /// As [`prepare_response`](Self::prepare_response) and [`sign_single`](Self::sign_single).
    pub fn sign_response(
        &self,
        view: &ResponseView<'_>,
        nonce: &str,
        now: u64,
    ) -> Result<SignedHead, SignError> {
        self.sign_single(self.prepare_response(view, nonce, now, Form::Single)?)
    }

    /// Signs a request or response that passes an intermediary, as its origin sends it. The nonce of a request is a place
    /// in an epoch of the signer's own for its destination; a response repeats it. `now` is in Unix seconds.
    ///
    /// # Errors
    /// As [`prepare_request`](Self::prepare_request) and [`sign_single`](Self::sign_single).
    pub fn sign_origin(
        &self,
        message: &MessageView<'_>,
        nonce: &str,
        now: u64,
    ) -> Result<SignedHead, SignError> {
        self.sign_single(self.prepare(message, Part::Origin, Form::Single, nonce, now)?)
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
        self.sign_single(self.prepare(message, Part::Head, Form::Single, nonce, now)?)
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
        self.sign_single(self.prepare(message, Part::Tail, Form::Single, nonce, now)?)
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

    fn prepare(
        &self,
        message: &MessageView<'_>,
        part: Part,
        form: Form,
        nonce: &str,
        now: u64,
    ) -> Result<Unsigned, SignError> {
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
        self.push_params(&mut input, tag(message, part, form), form, nonce, now);
        base.push_str("\"@signature-params\": ");
        base.push_str(input.get(label.len() + 1..).unwrap_or_default());
        check_room(message, part, form, &input)?;
        Unsigned::new(form, label, input, base, nonce)
    }

    fn push_params(&self, input: &mut String, tag: &str, form: Form, nonce: &str, now: u64) {
        let (keyid, expires) = (&self.keyid, now.saturating_add(VALIDITY_SECONDS));
        let alg = match form {
            Form::Batch => "",
            Form::Mac => ";alg=\"hmac-sha256\"",
            Form::Single => ";alg=\"ed25519\"",
        };
        // Writing to a String cannot fail. Verifiers exist that only accept this order of parameters.
        let _ = write!(input, ");created={now};expires={expires};nonce=\"");
        for part in [nonce, "\"", alg, ";keyid=\"", keyid, "\";tag=\"", tag, "\""] {
            input.push_str(part);
        }
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

/// Refuses fields that would be longer than a verifier reads, together with what is there already.
fn check_room(message: &MessageView<'_>, part: Part, form: Form, input: &str) -> Result<(), SignError> {
    let fields = match part {
        Part::Whole | Part::Origin | Part::Head => message.headers(),
        Part::Tail => message.trailers().ok_or(SignError::Body)?,
    };
    let signature = match form {
        Form::Batch => MAX_VALUE,
        Form::Mac => MAC_LEN,
        Form::Single => ED25519_LEN,
    };
    // Four characters for three bytes, two colons, an equals sign and the longest label that is ever made.
    let signature = signature.div_ceil(3) * 4 + 3 + "mesht".len() + 2;
    for (name, own) in [(&SIGNATURE_INPUT, input.len()), (&SIGNATURE, signature)] {
        // Lines are joined by a comma and a space.
        let there: usize = fields.get_all(name).iter().map(|line| line.len() + 2).sum();
        if there + own > MAX_FIELD_BYTES {
            return Err(SignError::TooLong);
        }
    }
    Ok(())
}

/// A label that no signature of the message has yet. The application may have used ours; a label means
/// nothing, so ours gives way.
fn free_label(message: &MessageView<'_>, part: Part) -> Result<String, SignError> {
    let (fields, label) = match part {
        Part::Whole | Part::Origin | Part::Head => (message.headers(), LABEL),
        Part::Tail => (message.trailers().ok_or(SignError::Body)?, TAIL_LABEL),
    };
    if !fields.contains_key(&SIGNATURE_INPUT) && !fields.contains_key(&SIGNATURE) {
        return Ok(label.to_owned());
    }
    let inputs = readable_members(fields, &SIGNATURE_INPUT, MAX_LABELS, MAX_FIELD_BYTES)?;
    let signatures = readable_members(fields, &SIGNATURE, MAX_LABELS, MAX_FIELD_BYTES)?;
    if claims_signature(fields) {
        return Err(SignError::ReservedTag);
    }
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
