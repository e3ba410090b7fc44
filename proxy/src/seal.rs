//! Level `private`: seals a message for its destination before it is signed, and opens it after it is verified.
//!
//! What is sealed is the body and the listed header fields, and with them what would tell of the body: its length and
//! the application's own digest of it. The response is sealed under keys of its request.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use signet_identity::SpiffeId;
use signet_policy::Refusal;
use signet_signature::RequestView;
use signet_signature::seal::{
    COMMIT_FIELD, COMMIT_LEN, ExchangeKeys, MAX_RECIPIENTS, MessageKeys, Place, Recipient, SEAL_FIELD,
    SEALED_FIELDS_FIELD, SealError, SealedSecret, Secret,
};

use crate::body::{Body, Payload, Source};
use crate::headers::{self, CONTENT_DIGEST};
use crate::sign::SentRequest;
use crate::snapshot::Credentials;

/// How long a secret is used for new messages: what a key that becomes known opens.
const SECRET_LIFE: Duration = Duration::from_secs(60);
/// Destinations for which a secret is kept at once.
const SECRETS_MAX: usize = 256;
/// Secrets of callers that are remembered: two generations of this many, 32 bytes each and their names.
const OPENED_MAX: usize = 1024;

const SEAL: HeaderName = HeaderName::from_static(SEAL_FIELD);
const COMMIT: HeaderName = HeaderName::from_static(COMMIT_FIELD);
const FIELDS: HeaderName = HeaderName::from_static(SEALED_FIELDS_FIELD);

/// A workload and the key of one of its instances.
pub(crate) type Key = (SpiffeId, [u8; 32]);

/// Who shares a secret with whom: the sender's key identifier, and the recipients.
type Sent = (String, Vec<Key>);

/// A secret, and until when it is used for new messages.
type Kept = (Rc<SealedSecret>, Instant);

/// Secrets of one worker, sent and received: an X25519 operation each that is not repeated with every message.
#[derive(Default)]
pub(crate) struct Secrets {
    sent: RefCell<HashMap<Sent, Kept>>,
    opened: RefCell<[HashMap<[u8; 32], Secret>; 2]>,
}

impl Secrets {
    /// A secret that `sender` shares with the recipients.
    fn send(&self, sender: &str, recipients: &[Key], now: Instant) -> Result<Rc<SealedSecret>, Refusal> {
        if recipients.is_empty() {
            return Err(Refusal::RecipientUnknown);
        }
        let recipients = recipients.get(..MAX_RECIPIENTS).unwrap_or(recipients);
        let mut sent = self.sent.borrow_mut();
        let name = (sender.to_owned(), recipients.to_vec());
        if let Some((secret, until)) = sent.get(&name)
            && now < *until
        {
            return Ok(Rc::clone(secret));
        }
        let to: Vec<_> =
            recipients.iter().map(|(id, key)| Recipient { spiffe_id: id.as_str(), key }).collect();
        let secret = SealedSecret::new(sender, &to).map_err(|error| {
            tracing::warn!(%error, "nothing can be sealed for the destination");
            Refusal::RecipientUnknown
        })?;
        let secret = Rc::new(secret);
        if sent.len() >= SECRETS_MAX {
            sent.retain(|_, (_, until)| now < *until);
        }
        if sent.len() >= SECRETS_MAX {
            sent.clear();
        }
        sent.insert(name, (Rc::clone(&secret), now + SECRET_LIFE));
        Ok(secret)
    }

    /// The secret in an envelope of `sender`.
    fn open(&self, envelope: &[u8], sender: &str, credentials: &Credentials) -> Result<Secret, SealError> {
        let name = name(&[sender.as_bytes(), credentials.id().as_str().as_bytes(), envelope]);
        let mut opened = self.opened.borrow_mut();
        let [young, old] = &mut *opened;
        if let Some(secret) = young.get(&name).or_else(|| old.get(&name)) {
            return Ok(secret.clone());
        }
        let secret = Secret::open(envelope, sender, credentials.id().as_str(), &credentials.sealing_keys())?;
        if young.len() >= OPENED_MAX {
            *old = std::mem::take(young);
        }
        young.insert(name, secret.clone());
        Ok(secret)
    }
}

/// Names what a secret was found in.
fn name(parts: &[&[u8]]) -> [u8; 32] {
    let mut digest = Context::new(&SHA256);
    for part in parts {
        digest.update(&(part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    let mut name = [0; 32];
    for (out, byte) in name.iter_mut().zip(digest.finish().as_ref()) {
        *out = *byte;
    }
    name
}

/// For whom a message is sealed, and what of it beside the body.
#[derive(Clone, Debug)]
pub(crate) struct Sealing {
    pub(crate) recipients: Vec<Key>,
    pub(crate) fields: Arc<[HeaderName]>,
}

/// Seals a request. Returns what is left to sign, and the keys of its response.
pub(crate) fn request(
    secrets: &Secrets,
    sealing: &Sealing,
    sender: &str,
    view: &RequestView<'_>,
    nonce: &str,
    headers: &mut HeaderMap,
    payload: Payload,
) -> Result<(Payload, Box<MessageKeys>), Refusal> {
    let place = Place::of(view, nonce).map_err(|_| Refusal::MalformedMessage)?;
    let secret = secrets.send(sender, &sealing.recipients, Instant::now())?;
    let ExchangeKeys { request, response } = secret.secret.exchange(&place);
    headers.insert(SEAL, binary(&secret.envelope)?);
    let payload = seal(request, &sealing.fields, headers, payload)?;
    Ok((payload, Box::new(response)))
}

/// Seals a response under the keys of its request.
pub(crate) fn response(
    keys: MessageKeys,
    fields: &[HeaderName],
    headers: &mut HeaderMap,
    payload: Payload,
) -> Result<Payload, Refusal> {
    seal(keys, fields, headers, payload)
}

fn seal(
    keys: MessageKeys,
    listed: &[HeaderName],
    headers: &mut HeaderMap,
    payload: Payload,
) -> Result<Payload, Refusal> {
    let mut fields = HeaderMap::new();
    // Both tell of the body: an attacker that guesses it could check the guess.
    for name in listed.iter().chain(&[header::CONTENT_LENGTH, CONTENT_DIGEST]) {
        for value in headers.get_all(name) {
            fields.append(name.clone(), value.clone());
        }
        headers.remove(name);
    }
    headers.insert(COMMIT, binary(&keys.commitment)?);
    if !fields.is_empty() {
        let sealed = keys.seal_fields(&fields).map_err(|_| Refusal::HeaderTooLarge)?;
        headers.insert(FIELDS, binary(&sealed)?);
    }
    Ok(match payload {
        Payload::Whole(bytes) if bytes.is_empty() => Payload::Whole(bytes),
        Payload::Whole(bytes) => {
            headers::add_seal(headers);
            let mut out = Vec::with_capacity(bytes.len() + 64);
            keys.into_writer().finish(&bytes, &mut out);
            Payload::Whole(out.into())
        }
        Payload::Stream { source, length: _ } => {
            headers::add_seal(headers);
            Payload::Stream { source: Source::sealed(source, keys.into_writer()), length: None }
        }
    })
}

/// Opens a request that `sender` signed. `Ok(None)` when it is not sealed. Returns the body and the keys for its
/// response.
pub(crate) fn open_request(
    secrets: &Secrets,
    credentials: &Credentials,
    sender: &str,
    received: &SentRequest,
    headers: &mut HeaderMap,
    body: Body,
) -> Result<(Body, Option<Box<MessageKeys>>), Refusal> {
    let Some(envelope) = bytes(headers, &SEAL)? else {
        return if headers::has_mesh_coding(headers) { Err(Refusal::SealBroken) } else { Ok((body, None)) };
    };
    let place = Place::of(&received.view(), &received.nonce).map_err(|_| Refusal::MalformedMessage)?;
    let secret = secrets.open(&envelope, sender, credentials).map_err(refusal)?;
    let ExchangeKeys { request, response } = secret.exchange(&place);
    Ok((open(request, headers, body, false)?, Some(Box::new(response))))
}

/// Opens a response under the keys of its request. A `headless` one says how long the body is that it does not have
/// (RFC 9110 section 8.6).
pub(crate) fn open_response(
    keys: MessageKeys,
    headers: &mut HeaderMap,
    body: Body,
    headless: bool,
) -> Result<Body, Refusal> {
    if headers.contains_key(headers::MESH_ORIGIN) && !headers.contains_key(&COMMIT) {
        // A refusal of the other sidecar: it holds nothing of the application's.
        return Ok(body);
    }
    open(keys, headers, body, headless)
}

fn open(keys: MessageKeys, headers: &mut HeaderMap, body: Body, headless: bool) -> Result<Body, Refusal> {
    let commitment = bytes(headers, &COMMIT)?.ok_or(Refusal::SealMissing)?;
    if commitment.len() != COMMIT_LEN || commitment != keys.commitment {
        return Err(Refusal::SealBroken);
    }
    let fields = match bytes(headers, &FIELDS)? {
        Some(sealed) => keys.open_fields(sealed).map_err(refusal)?,
        None => HeaderMap::new(),
    };
    if !fields.keys().all(headers::may_be_sealed) {
        return Err(Refusal::SealBroken);
    }
    let length = declared(&fields)?;
    // Framing of what was sealed says nothing about what is in it.
    headers.remove(header::CONTENT_LENGTH);
    let body = match (headers::remove_seal(headers), body.is_nothing()) {
        (true, _) => body.opened(keys.into_reader(), length)?,
        (false, true) if headless || length.is_none_or(|length| length == 0) => body,
        (false, true) => return Err(Refusal::SealBroken),
        (false, false) => return Err(Refusal::SealMissing),
    };
    for (name, value) in &fields {
        // The application's digest comes back where it would have been.
        let name = if *name == CONTENT_DIGEST { headers::MESH_ORIGINAL_DIGEST } else { name.clone() };
        headers.append(name, value.clone());
    }
    Ok(body)
}

/// The length that the application declared.
fn declared(fields: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let mut lines = fields.get_all(header::CONTENT_LENGTH).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Ok(None),
        (Some(only), None) => {
            // Digits alone: what comes out of the seal stands in the head as it is.
            let digits = only.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            digits.and_then(|text| text.parse().ok()).map(Some).ok_or(Refusal::SealBroken)
        }
        _ => Err(Refusal::SealBroken),
    }
}

/// Whether every field that is to be sealed is.
pub(crate) fn nothing_in_clear(headers: &HeaderMap, listed: &[String]) -> bool {
    headers.contains_key(&SEAL) && listed.iter().all(|name| !headers.contains_key(name))
}

/// Whether a message says that something of it is sealed.
pub(crate) fn is_sealed(headers: &HeaderMap) -> bool {
    [SEAL, COMMIT, FIELDS].iter().any(|name| headers.contains_key(name)) || headers::has_seal(headers)
}

/// The same, or that its body has a coding of the mesh at all.
pub(crate) fn claims_seal(headers: &HeaderMap) -> bool {
    is_sealed(headers) || headers::has_mesh_coding(headers)
}

/// The listed names, ready to be looked up.
pub(crate) fn names<'a>(listed: impl IntoIterator<Item = &'a String>) -> Arc<[HeaderName]> {
    // They were checked when the policy was compiled; what is no name is in no message.
    listed.into_iter().filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect()
}

/// A byte sequence of RFC 9651 section 3.3.5.
fn binary(bytes: &[u8]) -> Result<HeaderValue, Refusal> {
    let mut text = String::with_capacity(bytes.len() * 4 / 3 + 6);
    text.push(':');
    BASE64_STANDARD.encode_string(bytes, &mut text);
    text.push(':');
    HeaderValue::try_from(text).map_err(|_| Refusal::MalformedMessage)
}

/// The byte sequence in a field, which stands there once.
fn bytes(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Vec<u8>>, Refusal> {
    let mut lines = headers.get_all(name).iter();
    let (Some(only), None) = (lines.next(), lines.next()) else {
        return if headers.contains_key(name) { Err(Refusal::SealBroken) } else { Ok(None) };
    };
    let text = only.as_bytes().strip_prefix(b":").and_then(|text| text.strip_suffix(b":"));
    let bytes = text.and_then(|text| BASE64_STANDARD.decode(text).ok());
    bytes.map(Some).ok_or(Refusal::SealBroken)
}

fn refusal(error: SealError) -> Refusal {
    match error {
        SealError::NotForUs => Refusal::SealUnknownKey,
        _ => Refusal::SealBroken,
    }
}

/// The bytes of a body that was whole before it was sealed, for another attempt.
#[derive(Debug)]
pub(crate) struct Original {
    pub(crate) headers: HeaderMap,
    /// None for a stream, which gives itself back.
    pub(crate) whole: Option<Bytes>,
    pub(crate) length: Option<u64>,
}

impl Original {
    pub(crate) fn of(headers: &HeaderMap, payload: &Payload) -> Self {
        let (whole, length) = match payload {
            Payload::Whole(bytes) => (Some(bytes.clone()), None),
            Payload::Stream { length, .. } => (None, *length),
        };
        Self { headers: headers.clone(), whole, length }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_length_is_digits_and_stands_there_once() {
        let fields = |lines: &[&'static str]| -> HeaderMap {
            let mut fields = HeaderMap::new();
            for text in lines {
                fields.append(header::CONTENT_LENGTH, HeaderValue::from_static(text));
            }
            fields
        };
        assert_eq!(declared(&fields(&[])), Ok(None));
        assert_eq!(declared(&fields(&["5"])), Ok(Some(5)));
        for lines in [&["+5"][..], &["-5"], &[""], &["5 "], &["0x5"], &["5", "5"], &["99999999999999999999"]]
        {
            assert_eq!(declared(&fields(lines)), Err(Refusal::SealBroken), "{lines:?}");
        }
    }

    #[test]
    fn nothing_that_frames_routes_or_signs_comes_out_of_the_seal() {
        for name in ["host", "te", "signature", "signature-input", "mesh-target", "client_cert", "connection"]
        {
            assert!(!headers::may_be_sealed(&HeaderName::from_static(name)), "{name}");
        }
        for name in ["authorization", "cookie", "set-cookie", "content-length", "x-own"] {
            assert!(headers::may_be_sealed(&HeaderName::from_static(name)), "{name}");
        }
    }

    #[test]
    fn signed_records_are_no_seal() {
        let of = |name: &'static str, value| {
            HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
        };
        let records = of("content-encoding", "gzip, mesh-rec");
        assert!(!is_sealed(&records) && claims_seal(&records));
        for sealed in
            [of("content-encoding", "mesh-hpke, mesh-rec"), of(SEAL_FIELD, ":AA==:"), of(COMMIT_FIELD, "x")]
        {
            assert!(is_sealed(&sealed) && claims_seal(&sealed));
        }
    }
}
