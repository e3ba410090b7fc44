//! Verifies signatures of the mesh profile.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName};

use super::cover::{self, Covered, UnboundBody};
use super::head::{Input, InputParams, tag_at_end};
use super::signer::list_tag;
use super::strip::{claims, is_claim};
use super::{
    ChannelId, ED25519_LEN, Form, MAX_COVERED, MAX_FIELD_BYTES, MAX_LABELS, Part, SignatureError,
    VALIDITY_SECONDS, nonce, tag,
};
use crate::batch::{BatchError, BatchSignature, RootCache};
use crate::digest;
use crate::input::{Member, SIGNATURE, SIGNATURE_INPUT, parse_inner_list, readable_members};
use crate::key::is_small_order;
use crate::mac::{MAC_LEN, MacKey};
use crate::message::{MessageView, RequestView, ResponseView};
use crate::replay::ReplayWindow;

/// Room for the base of a usual message: a response with its request takes some 900 bytes.
const BASE_USUAL: usize = 1024;

/// A signing key whose certificate chain has been verified by the caller.
#[derive(Clone, Debug)]
pub struct VerifiedKey {
    /// The SPIFFE ID in the certificate.
    pub spiffe_id: Arc<str>,
    /// The Ed25519 public key.
    pub public_key: [u8; 32],
}

/// How the freshness of a message is judged.
#[derive(Debug)]
pub enum Freshness<'a> {
    /// By the caller, who has the windows.
    Later,
    /// A response: it must repeat the nonce of its request.
    Nonce(&'a str),
    /// A request: it must be made for this channel, with a number that is new to the window.
    Window(&'a ChannelId, &'a mut ReplayWindow),
}

/// What binds the body of a verified message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyBinding {
    /// The SHA-256 digest of the content.
    Digest([u8; 32]),
    /// The body is signed records, which continue from the hash of the base.
    Records,
    /// Nothing yet: the digest follows in the trailers.
    Tail,
}

/// Proof that a head (or tail) was verified. Only this module makes one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VerifiedHead {
    /// The label the signature had.
    pub label: String,
    /// How it was signed.
    pub form: Form,
    /// The key that signed.
    pub keyid: String,
    /// The nonce, which the response has to repeat.
    pub nonce: String,
    /// The sequence number in the nonce.
    pub seq: u64,
    /// When the signer says it signed, in Unix seconds.
    pub created: u64,
    /// What binds the body.
    pub body: BodyBinding,
    /// The signature base. The record layer continues from its hash.
    pub base: Vec<u8>,
}

impl VerifiedHead {
    /// Checks a complete body against the signed digest.
    ///
    /// # Errors
    /// [`SignatureError::Digest`] when it differs, and when the body is not bound by a digest at all.
    pub fn verify_body(&self, body: &[u8]) -> Result<(), SignatureError> {
        self.verify_body_digest(&digest::sha256(body))
    }

    /// Checks the SHA-256 of a body that was hashed as it arrived.
    ///
    /// # Errors
    /// As [`verify_body`](Self::verify_body).
    pub fn verify_body_digest(&self, actual: &[u8; 32]) -> Result<(), SignatureError> {
        if self.body == BodyBinding::Digest(*actual) { Ok(()) } else { Err(SignatureError::Digest) }
    }
}

/// A message with which everything is right but for the signature, which is still to be checked. It proves nothing;
/// what it claims may be looked at to find its body.
#[must_use = "nothing was verified so far"]
pub struct Unproven {
    head: VerifiedHead,
    body: Result<BodyBinding, SignatureError>,
    key: VerifiedKey,
    signature: Vec<u8>,
}

impl Unproven {
    /// How it claims to be signed. [`Form::Mac`] was verified already.
    #[must_use]
    pub fn form(&self) -> Form {
        self.head.form
    }

    /// The nonce.
    #[must_use]
    pub fn nonce(&self) -> &str {
        &self.head.nonce
    }

    /// The sequence number in the nonce.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.head.seq
    }

    /// The signature base.
    #[must_use]
    pub fn base(&self) -> &[u8] {
        &self.head.base
    }

    /// The key that is to have signed.
    #[must_use]
    pub fn key(&self) -> &VerifiedKey {
        &self.key
    }

    /// What binds the body.
    ///
    /// # Errors
    /// [`SignatureError::Digest`] when the digest is not acceptable.
    pub fn body(&self) -> Result<BodyBinding, SignatureError> {
        self.body.clone()
    }

    /// Checks a complete body against the digest.
    ///
    /// # Errors
    /// As [`VerifiedHead::verify_body`].
    pub fn verify_body(&self, body: &[u8]) -> Result<(), SignatureError> {
        if self.body()? == BodyBinding::Digest(digest::sha256(body)) {
            Ok(())
        } else {
            Err(SignatureError::Digest)
        }
    }

    /// Checks the signature, and uses up the number in the window of a request.
    ///
    /// # Errors
    /// [`SignatureError::BadSignature`], [`SignatureError::Malformed`] for a batch,
    /// [`SignatureError::Replay`] when the number was used meanwhile.
    pub fn prove(
        self,
        roots: Option<&mut RootCache>,
        window: Option<&mut ReplayWindow>,
    ) -> Result<VerifiedHead, SignatureError> {
        let Self { mut head, body, key, signature } = self;
        match head.form {
            Form::Batch => {
                let mut none = RootCache::default();
                let roots = roots.unwrap_or(&mut none);
                BatchSignature::parse(&signature)?.verify(&key.public_key, &head.base, roots)?;
            }
            // When it was examined.
            Form::Mac => {}
            Form::Single => verify_ed25519(&key.public_key, &head.base, &signature)?,
        }
        if let Some(window) = window {
            window.commit(head.seq)?;
        }
        head.body = body?;
        Ok(head)
    }
}

// What is signed may hold credentials, so it is never printed.
impl fmt::Debug for Unproven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unproven").field("form", &self.head.form).finish_non_exhaustive()
    }
}

/// Who must have signed, and what time it is.
#[derive(Debug)]
pub struct Rules<'a> {
    /// The SPIFFE ID of the mTLS peer.
    pub signer: &'a str,
    /// The time, in Unix seconds.
    pub now: u64,
    /// How far clocks may differ, in seconds.
    pub skew: u64,
    /// Roots of batches verified before; without them each message's root is verified.
    pub roots: Option<&'a mut RootCache>,
    /// The key of the direction, only where [`Form::Mac`] was agreed on for this channel; without it that form is
    /// refused, whoever made it.
    pub mac: Option<&'a MacKey>,
}

impl<'a> Rules<'a> {
    /// Rules for one message, without a memory of roots and without a key of the channel.
    #[must_use]
    pub fn new(signer: &'a str, now: u64, skew: u64) -> Self {
        Self { signer, now, skew, roots: None, mac: None }
    }
}

/// Verifies a request on a channel. `resolve` answers the verified key for a key identifier. On success the
/// sequence number is used up; the body is still to be checked.
///
/// # Errors
/// The first rule that the message breaks, in the order: one signature of ours, well formed, coverage,
/// key, algorithm, time, replay, signature, digest.
pub fn verify_request(
    view: &RequestView<'_>,
    channel: &ChannelId,
    window: &mut ReplayWindow,
    resolve: impl FnOnce(&str) -> Option<VerifiedKey>,
    rules: Rules<'_>,
) -> Result<VerifiedHead, SignatureError> {
    let judge = Judge { freshness: Freshness::Window(channel, window), rules };
    judge.verify(&MessageView::Request(*view), Part::Whole, resolve)
}

/// Does everything of [`verify_request`] but what [`Unproven::prove`] does: the check of the signature itself. The
/// number is found unused and stays so.
///
/// # Errors
/// As [`verify_request`], without those of the signature. [`Form::Mac`] is checked at once: it costs less than waiting.
pub fn examine_request(
    view: &RequestView<'_>,
    channel: &ChannelId,
    window: &mut ReplayWindow,
    resolve: impl FnOnce(&str) -> Option<VerifiedKey>,
    rules: Rules<'_>,
) -> Result<Unproven, SignatureError> {
    let judge = Judge { freshness: Freshness::Window(channel, window), rules };
    judge.examine(&MessageView::Request(*view), Part::Whole, resolve)
}

/// Does the same for a response.
///
/// # Errors
/// As [`verify_response`], without those of the signature.
pub fn examine_response(
    view: &ResponseView<'_>,
    expected_nonce: &str,
    resolve: impl FnOnce(&str) -> Option<VerifiedKey>,
    rules: Rules<'_>,
) -> Result<Unproven, SignatureError> {
    let judge = Judge { freshness: Freshness::Nonce(expected_nonce), rules };
    judge.examine(&MessageView::Response(*view), Part::Whole, resolve)
}

/// Verifies the response to the request that was sent with `expected_nonce`. The view must hold that
/// request as it was sent, signed fields and all.
///
/// # Errors
/// As [`verify_request`].
pub fn verify_response(
    view: &ResponseView<'_>,
    expected_nonce: &str,
    resolve: impl FnOnce(&str) -> Option<VerifiedKey>,
    rules: Rules<'_>,
) -> Result<VerifiedHead, SignatureError> {
    let judge = Judge { freshness: Freshness::Nonce(expected_nonce), rules };
    judge.verify(&MessageView::Response(*view), Part::Whole, resolve)
}

/// Verifies the head of a message whose digest follows in the trailers.
///
/// # Errors
/// As [`verify_request`]; also when the head does not announce the tail.
pub fn verify_head(
    message: &MessageView<'_>,
    freshness: Freshness<'_>,
    resolve: impl FnOnce(&str) -> Option<VerifiedKey>,
    rules: Rules<'_>,
) -> Result<VerifiedHead, SignatureError> {
    if !cover::announces_tail(message.headers()) {
        return Err(SignatureError::Coverage("trailer".to_owned()));
    }
    Judge { freshness, rules }.verify(message, Part::Head, resolve)
}

/// Verifies the tail of a message by the signature in its trailers. It must come from the key and carry
/// the nonce of the verified `head`.
///
/// # Errors
/// As [`verify_request`]; [`SignatureError::WrongSigner`] when the key changed between head and tail.
pub fn verify_tail(
    message: &MessageView<'_>,
    head: &VerifiedHead,
    resolve: impl FnOnce(&str) -> Option<VerifiedKey>,
    rules: Rules<'_>,
) -> Result<VerifiedHead, SignatureError> {
    let judge = Judge { freshness: Freshness::Nonce(&head.nonce), rules };
    let tail = judge.verify(message, Part::Tail, resolve)?;
    if tail.keyid == head.keyid { Ok(tail) } else { Err(SignatureError::WrongSigner) }
}

/// Verifies a bare Ed25519 signature. There is one rule for it in the whole mesh: the library's strict,
/// cofactorless check, and no key of small order, under which one signature fits many messages.
///
/// # Errors
/// [`SignatureError::BadSignature`].
pub fn verify_ed25519(public_key: &[u8; 32], message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
    if is_small_order(public_key) {
        return Err(SignatureError::BadSignature);
    }
    let key = UnparsedPublicKey::new(&ED25519, public_key);
    key.verify(message, signature).map_err(|_| SignatureError::BadSignature)
}

/// Judges one signature.
pub(super) struct Judge<'a> {
    pub(super) freshness: Freshness<'a>,
    pub(super) rules: Rules<'a>,
}

impl Judge<'_> {
    fn verify(
        mut self,
        message: &MessageView<'_>,
        part: Part,
        resolve: impl FnOnce(&str) -> Option<VerifiedKey>,
    ) -> Result<VerifiedHead, SignatureError> {
        let unproven = self.examine(message, part, resolve)?;
        let window = match &mut self.freshness {
            Freshness::Nonce(_) | Freshness::Later => None,
            Freshness::Window(_, window) => Some(&mut **window),
        };
        unproven.prove(self.rules.roots.as_deref_mut(), window)
    }

    pub(super) fn examine(
        &self,
        message: &MessageView<'_>,
        part: Part,
        resolve: impl FnOnce(&str) -> Option<VerifiedKey>,
    ) -> Result<Unproven, SignatureError> {
        let fields = if part == Part::Tail { message.trailers() } else { Some(message.headers()) };
        let fields = fields.ok_or(SignatureError::Missing)?;
        let (label, form, received) = only_of_ours(fields, message, part)?;
        if form == Form::Mac && self.rules.mac.is_none() {
            return Err(SignatureError::Mode);
        }
        let signature = signature_bytes(fields, label, form)?;
        let (base, input) = match usual_base(message, part, received) {
            Some(usual) => usual,
            None => rebuilt_base(message, part, received)?,
        };
        // It was chosen by how it ends.
        if input.tag != tag(message, part, form) {
            return Err(SignatureError::Malformed);
        }
        let key = self.check_key(&input, form, resolve)?;
        self.check_time(&input)?;
        let seq = self.check_fresh(input.nonce)?;
        if form == Form::Mac && !self.rules.mac.is_some_and(|key| key.verifies(base.as_bytes(), &signature)) {
            return Err(SignatureError::BadSignature);
        }
        let head = VerifiedHead {
            label: label.to_owned(),
            form,
            keyid: input.keyid.to_owned(),
            nonce: input.nonce.to_owned(),
            seq,
            created: input.created,
            body: BodyBinding::Tail,
            base: base.into_bytes(),
        };
        Ok(Unproven { head, body: body_binding(message, part), key, signature })
    }

    /// The key must be known and belong to the SPIFFE ID in its identifier and to the peer; the algorithm must
    /// be named as the form of the signature asks for.
    fn check_key(
        &self,
        input: &InputParams<'_>,
        form: Form,
        resolve: impl FnOnce(&str) -> Option<VerifiedKey>,
    ) -> Result<VerifiedKey, SignatureError> {
        let key = resolve(input.keyid).ok_or(SignatureError::UnknownKey)?;
        let claimed = input.keyid.split_once('#').map(|(id, _)| id);
        if claimed != Some(&key.spiffe_id) || *key.spiffe_id != *self.rules.signer {
            return Err(SignatureError::WrongSigner);
        }
        let algorithm = match form {
            Form::Batch => None,
            Form::Mac => Some("hmac-sha256"),
            Form::Single => Some("ed25519"),
        };
        if input.alg == algorithm { Ok(key) } else { Err(SignatureError::Algorithm) }
    }

    fn check_time(&self, input: &InputParams<'_>) -> Result<(), SignatureError> {
        let validity = input.expires.checked_sub(input.created).ok_or(SignatureError::Malformed)?;
        if validity == 0 || validity > VALIDITY_SECONDS {
            Err(SignatureError::Malformed)
        } else if input.created > self.rules.now.saturating_add(self.rules.skew) {
            Err(SignatureError::Clock { ahead_s: input.created - self.rules.now })
        } else if self.rules.now >= input.expires.saturating_add(self.rules.skew) {
            Err(SignatureError::Expired { ago_s: self.rules.now.saturating_sub(input.created) })
        } else {
            Ok(())
        }
    }

    fn check_fresh(&self, nonce: &str) -> Result<u64, SignatureError> {
        match &self.freshness {
            Freshness::Nonce(expected) if nonce == *expected => {
                nonce::sequence_of(nonce).ok_or(SignatureError::Malformed)
            }
            Freshness::Nonce(_) => Err(SignatureError::OtherChannel),
            Freshness::Window(channel, window) => {
                let seq = channel.sequence(nonce)?;
                window.test(seq)?;
                Ok(seq)
            }
            Freshness::Later => nonce::sequence_of(nonce).ok_or(SignatureError::Malformed),
        }
    }
}

/// The one member whose tag is ours, in any form. Members are chosen by tag, because a label proves nothing.
fn only_of_ours<'a>(
    fields: &'a HeaderMap,
    message: &MessageView<'_>,
    part: Part,
) -> Result<(&'a str, Form, &'a str), SignatureError> {
    let form_of = |found: &str| {
        let forms: &[Form] = match part {
            Part::Whole => &[Form::Batch, Form::Single, Form::Mac],
            Part::Origin | Part::Head | Part::Tail => &[Form::Single],
        };
        forms.iter().copied().find(|form| tag(message, part, *form) == found)
    };
    let mut ours = None;
    let inputs = read(fields, &SIGNATURE_INPUT)?;
    // A claim in a line that cannot be read is no signature, and nothing to pass on.
    if claims(fields) > inputs.iter().filter(|member| is_claim(member.value.as_bytes())).count() {
        return Err(SignatureError::Malformed);
    }
    for member in inputs {
        let form = match tag_at_end(member.value).and_then(form_of) {
            Some(form) => Some(form),
            // A signature of somebody else, or one of ours in an unusual spelling.
            None => {
                let list = parse_inner_list(member.value).map_err(|_| SignatureError::Malformed)?;
                list_tag(&list).and_then(form_of)
            }
        };
        if let Some(form) = form
            && ours.replace((member.label, form, member.value)).is_some()
        {
            return Err(SignatureError::Multiple);
        }
    }
    ours.ok_or(SignatureError::Missing)
}

fn read<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Result<Vec<Member<'a>>, SignatureError> {
    readable_members(fields, name, MAX_LABELS, MAX_FIELD_BYTES).map_err(|_| SignatureError::Malformed)
}

fn signature_bytes(fields: &HeaderMap, label: &str, form: Form) -> Result<Vec<u8>, SignatureError> {
    let members = read(fields, &SIGNATURE)?;
    let member = members.iter().find(|member| member.label == label).ok_or(SignatureError::Missing)?;
    let encoded = member.value.strip_prefix(':').and_then(|value| value.strip_suffix(':'));
    let bytes = STANDARD.decode(encoded.ok_or(SignatureError::Malformed)?);
    let fits = |bytes: &Vec<u8>| match form {
        Form::Batch => true,
        Form::Mac => bytes.len() == MAC_LEN,
        Form::Single => bytes.len() == ED25519_LEN,
    };
    bytes.ok().filter(fits).ok_or(SignatureError::Malformed)
}

impl From<BatchError> for SignatureError {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::BadSignature => Self::BadSignature,
            BatchError::Malformed => Self::Malformed,
        }
    }
}

impl From<UnboundBody> for SignatureError {
    fn from(_: UnboundBody) -> Self {
        Self::Coverage("a body".to_owned())
    }
}

fn check_coverage(message: &MessageView<'_>, part: Part, input: &Input<'_>) -> Result<(), SignatureError> {
    if matches!(message, MessageView::Response(response) if response.request.is_none()) {
        return Err(SignatureError::Coverage("a request".to_owned()));
    }
    cover::required(message, part, &mut |component: Covered<'_>| {
        if input.covers(&component) {
            Ok(())
        } else {
            Err(SignatureError::Coverage(component.name.to_owned()))
        }
    })
}

/// The base of a signature that covers what our own signer covers, in its order: nearly every one. Then what
/// was received is compared as a whole instead of being taken apart.
fn usual_base<'a>(
    message: &MessageView<'_>,
    part: Part,
    received: &'a str,
) -> Option<(String, InputParams<'a>)> {
    if matches!(message, MessageView::Response(response) if response.request.is_none()) {
        return None;
    }
    let mut base = String::with_capacity(BASE_USUAL);
    let (mut separator, mut count, mut rest) = ('(', 0, received);
    cover::required(message, part, &mut |component: Covered<'_>| {
        count += 1;
        let start = base.len();
        component.write(&mut base);
        let unusual = || SignatureError::Coverage(String::new());
        let identifier = base.get(start..).unwrap_or_default();
        rest = rest
            .strip_prefix(separator)
            .and_then(|rest| rest.strip_prefix(identifier))
            .ok_or_else(unusual)?;
        separator = ' ';
        base.push_str(": ");
        component.push_value(&mut base, message).map_err(|_| unusual())?;
        base.push('\n');
        Ok::<(), SignatureError>(())
    })
    .ok()?;
    let params = rest.strip_prefix(')')?;
    if count > MAX_COVERED {
        return None;
    }
    let input = InputParams::parse(params)?;
    base.push_str("\"@signature-params\": ");
    base.push_str(received);
    Some((base, input))
}

/// The base over what was received: identifiers and parameters as they were spelled, values as this
/// message has them.
fn rebuilt_base<'a>(
    message: &MessageView<'_>,
    part: Part,
    received: &'a str,
) -> Result<(String, InputParams<'a>), SignatureError> {
    let input = Input::parse(received).ok_or(SignatureError::Malformed)?;
    check_coverage(message, part, &input)?;
    let mut base = String::with_capacity(BASE_USUAL);
    for component in &input.covered {
        component.write(&mut base);
        base.push_str(": ");
        let value = component.push_value(&mut base, message);
        value.map_err(|_| SignatureError::Coverage(component.name.to_owned()))?;
        base.push('\n');
    }
    base.push_str("\"@signature-params\": ");
    base.push_str(received);
    Ok((base, input.params))
}

fn body_binding(message: &MessageView<'_>, part: Part) -> Result<BodyBinding, SignatureError> {
    let fields = match part {
        Part::Head => return Ok(BodyBinding::Tail),
        Part::Whole | Part::Origin if cover::is_records(message.headers()) => {
            return Ok(BodyBinding::Records);
        }
        Part::Whole | Part::Origin => message.headers(),
        Part::Tail => message.trailers().ok_or(SignatureError::Digest)?,
    };
    digest::only_sha256(fields).map(BodyBinding::Digest).ok_or(SignatureError::Digest)
}
