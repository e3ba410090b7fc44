//! Signs a message for the connection it is about to travel on, and for no other; or, where policy says
//! `public`, prepares it to travel on the authenticated connection unsigned.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Uri, header, request, response};
use signet_identity::Fingerprint;
use signet_policy::{Protection, ProtectionLevel, Refusal, Relay, SignatureMode, Verification};
use signet_signature::checkpoint::Moment;
use signet_signature::record::Direction;
use signet_signature::seal::MessageKeys;
use signet_signature::{
    Form, LabelledSignature, MessageView, RequestView, ResponseView, SignError, SignedHead, Unsigned,
    parse_signatures, sha256_header,
};

use crate::body::{Body, Payload, SEALED_WHOLE_MAX, SignedBody, WHOLE_MAX};
use crate::channel::{Channel, encode_chain};
use crate::clock;
use crate::headers::{
    self, CONTENT_DIGEST, MESH_AUDIENCE, MESH_CERT, MESH_ORIGIN, MESH_REQUEST_ID, MESH_TARGET,
};
use crate::problem;
use crate::relay;
use crate::seal::{self, Original, Sealing};
use crate::snapshot::Credentials;
use crate::worker::Worker;

/// Between sidecars plaintext is what was captured, whatever protects the hop; both ends agree.
pub(crate) const SCHEME: &str = "http";

/// The tags of request signatures.
const REQUEST_TAGS: [(&str, Form); 3] =
    [("mesh-req-v1", Form::Single), ("mesh-req-b-v1", Form::Batch), ("mesh-req-m-v1", Form::Mac)];

/// A request as it was sent: what the signature of its response covers.
pub(crate) struct SentRequest {
    pub(crate) method: http::Method,
    pub(crate) uri: Uri,
    pub(crate) authority: String,
    /// None of a request that is sent unsigned: nobody asks for them.
    pub(crate) headers: HeaderMap,
    /// How it was signed; its response is signed likewise. None: not at all.
    pub(crate) form: Option<Form>,
    pub(crate) nonce: String,
    /// The certificate it was signed under.
    pub(crate) signer: Fingerprint,
    /// What its response is sealed with; none where the request was not sealed.
    pub(crate) response_keys: Option<Box<MessageKeys>>,
    /// What it was before it was sealed.
    pub(crate) original: Option<Box<Original>>,
}

impl SentRequest {
    /// The request as it was before it was signed, when nothing of it was sent: for another connection.
    pub(crate) fn unsent(self, request: Request<Body>) -> Option<(request::Parts, Payload)> {
        let (mut parts, body) = request.into_parts();
        let Some(original) = self.original else {
            if self.form.is_some() {
                parts.headers = self.headers;
            }
            return Some((parts, body.reclaim()?));
        };
        parts.headers = original.headers;
        let payload = match (original.whole, body.reclaim()?) {
            (Some(whole), _) => Payload::Whole(whole),
            (None, Payload::Stream { source, .. }) => {
                Payload::Stream { source: source.unsealed(), length: original.length }
            }
            (None, Payload::Whole(_)) => return None,
        };
        Some((parts, payload))
    }

    pub(crate) fn view(&self) -> RequestView<'_> {
        RequestView::new(&self.method, &self.uri, SCHEME, &self.authority, &self.headers)
    }
}

/// How a message is signed; none where it is not.
pub(crate) fn form(protection: Protection) -> Option<Form> {
    match (protection.level, protection.mode) {
        (ProtectionLevel::Public, _) => None,
        (_, SignatureMode::Ed25519) => Some(Form::Single),
        (_, SignatureMode::Ed25519Batch) => Some(Form::Batch),
        (_, SignatureMode::Hmac) => Some(Form::Mac),
    }
}

/// The same protection, proven by each message itself and before it is handed on.
pub(crate) fn at_once(protection: Protection) -> Protection {
    let mode = match protection.mode {
        SignatureMode::Hmac => SignatureMode::Ed25519Batch,
        signed => signed,
    };
    Protection { mode, verify: Verification::Gate, ..protection }
}

/// The longest body that travels whole.
pub(crate) fn whole_max(form: Option<Form>, sealed: bool) -> usize {
    match form {
        None => 0,
        Some(_) if sealed => SEALED_WHOLE_MAX,
        Some(_) => WHOLE_MAX,
    }
}

/// Prepares an application's head for the mesh: what belongs to the hop or to the mesh goes.
pub(crate) fn prepare(headers: &mut HeaderMap, payload: &Payload, form: Option<Form>) -> Result<(), Refusal> {
    headers::check_framing(headers)?;
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // Both at once is the application's mistake; chunked is what was read (RFC 9112 section 6.3).
        headers.remove(header::CONTENT_LENGTH);
    }
    headers::strip_hop(headers);
    headers::strip_protected(headers);
    if headers::has_mesh_coding(headers) {
        return Err(Refusal::MalformedMessage);
    }
    if form.is_none() {
        // Nobody would verify what looks like a signature of ours.
        let claims = signet_signature::claims_signature(headers);
        return if claims { Err(Refusal::MalformedMessage) } else { Ok(()) };
    }
    if let Payload::Whole(bytes) = payload
        && headers.contains_key(CONTENT_DIGEST)
    {
        signet_signature::verify_digest(headers, bytes).map_err(|_| Refusal::DigestMismatch)?;
    }
    Ok(())
}

/// Binds the payload to what will be signed, if anything is.
pub(crate) fn bind(headers: &mut HeaderMap, payload: &Payload, form: Option<Form>) -> Result<(), Refusal> {
    if form.is_none() {
        return Ok(());
    }
    headers::set_aside_digest(headers);
    match payload {
        Payload::Whole(bytes) => {
            let digest =
                HeaderValue::try_from(sha256_header(bytes)).map_err(|_| Refusal::MalformedMessage)?;
            headers.insert(CONTENT_DIGEST, digest);
        }
        Payload::Stream { length, .. } => headers::add_records(headers, *length),
    }
    Ok(())
}

/// Signs a request for the next place on `channel`. It is bound already, unless it is to be sealed first.
pub(crate) async fn request(
    worker: &Worker,
    channel: &Channel,
    mut parts: request::Parts,
    authority: &str,
    mut payload: Payload,
    form: Option<Form>,
    sealing: Option<&Sealing>,
) -> Result<(Request<Body>, SentRequest), Refusal> {
    let credentials = worker.shared.credentials().ok_or(Refusal::NotReady)?;
    let form = form.map(|form| channel.affordable(form, || worker.moment()));
    let sequence = if form.is_some() { channel.next_sequence() } else { 0 };
    let (mut response_keys, mut original) = (None, None);
    if let Some(sealing) = sealing {
        let unsealed = original.insert(Box::new(Original::of(&parts.headers, &payload)));
        let view = RequestView::new(&parts.method, &parts.uri, SCHEME, authority, &unsealed.headers);
        let (sender, nonce) = (credentials.signing.keyid(), channel.id.nonce(sequence));
        let headers = &mut parts.headers;
        let (sealed, keys) =
            seal::request(&worker.secrets, sealing, &sender, &view, &nonce, headers, payload)?;
        payload = sealed;
        response_keys = Some(keys);
        bind(headers, &payload, form)?;
    }
    let mut sent = SentRequest {
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        authority: authority.to_owned(),
        headers: if form.is_some() { parts.headers.clone() } else { HeaderMap::new() },
        form,
        nonce: String::new(),
        signer: credentials.signing.fingerprint,
        response_keys,
        original,
    };
    let mut request = Request::from_parts(parts, Body::empty());
    // Framing is the hop's own and is not signed.
    if matches!(payload, Payload::Stream { .. }) && request.version() == http::Version::HTTP_11 {
        let declared = form.is_none() && request.headers().contains_key(header::CONTENT_LENGTH);
        if !declared {
            headers::frame_as_chunked(request.headers_mut());
        }
    }
    let Some(form) = form else {
        *request.body_mut() = payload.unsigned();
        return Ok((request, sent));
    };
    let unsigned = credentials
        .signer
        .prepare_request(&sent.view(), &channel.id, sequence, clock::unix_seconds(), form)
        .map_err(|error| unsignable(&error))?;
    let signed = seal(worker, channel, &credentials, unsigned).await?;
    signed.append_to(request.headers_mut());
    if channel.must_introduce(sent.signer) {
        introduce(request.headers_mut(), &credentials);
    }
    *request.body_mut() = body(&credentials, Direction::ClientToServer, &signed, payload);
    sent.nonce = signed.nonce;
    Ok((request, sent))
}

/// Signs a bound response to `received`, the request as it arrived; as that was signed, so is this.
pub(crate) async fn response(
    worker: &Worker,
    channel: &Channel,
    received: &SentRequest,
    parts: response::Parts,
    payload: Payload,
) -> Result<Response<Body>, Refusal> {
    let Some(form) = received.form else {
        return Ok(Response::from_parts(parts, payload.unsigned()));
    };
    let form = channel.affordable(form, || worker.moment());
    let credentials = worker.shared.credentials().ok_or(Refusal::NotReady)?;
    let view = ResponseView {
        status: parts.status.as_u16(),
        headers: &parts.headers,
        trailers: None,
        request: Some(received.view()),
    };
    let unsigned = credentials
        .signer
        .prepare_response(&view, &received.nonce, clock::unix_seconds(), form)
        .map_err(|error| unsignable(&error))?;
    let signed = seal(worker, channel, &credentials, unsigned).await?;
    let mut response = Response::from_parts(parts, Body::empty());
    signed.append_to(response.headers_mut());
    if channel.answer_introduces(credentials.signing.fingerprint, &received.headers) {
        introduce(response.headers_mut(), &credentials);
    }
    *response.body_mut() = body(&credentials, Direction::ServerToClient, &signed, payload);
    Ok(response)
}

/// Signs a request that goes through an intermediary, for the workload behind it. It is bound already, unless it is to
/// be sealed first.
pub(crate) fn relayed_request(
    worker: &Worker,
    relay: &Relay,
    mut parts: request::Parts,
    authority: &str,
    mut payload: Payload,
    sealing: Option<&Sealing>,
) -> Result<(Request<Body>, SentRequest), Refusal> {
    let credentials = worker.shared.credentials().ok_or(Refusal::NotReady)?;
    let nonce = worker.epochs.next(&relay.to)?;
    let audience = HeaderValue::from_str(relay.to.as_str()).map_err(|_| Refusal::MalformedMessage)?;
    parts.headers.insert(MESH_TARGET, relay::Target::field(&parts.uri, authority)?);
    parts.headers.insert(MESH_AUDIENCE, audience);
    let mut response_keys = None;
    if let Some(sealing) = sealing {
        let unsealed = parts.headers.clone();
        let view = RequestView::new(&parts.method, &parts.uri, SCHEME, authority, &unsealed);
        let (sender, headers) = (credentials.signing.keyid(), &mut parts.headers);
        let (sealed, keys) =
            seal::request(&worker.secrets, sealing, &sender, &view, &nonce, headers, payload)?;
        payload = sealed;
        response_keys = Some(keys);
        bind(headers, &payload, Some(Form::Single))?;
    }
    let sent = SentRequest {
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        authority: authority.to_owned(),
        headers: relay::fixed(&parts.headers, &relay.may_change),
        form: Some(Form::Single),
        nonce,
        signer: credentials.signing.fingerprint,
        response_keys,
        original: None,
    };
    let signed = credentials.signer.sign_origin(
        &MessageView::Request(sent.view()),
        &sent.nonce,
        clock::unix_seconds(),
    );
    let signed = signed.map_err(|error| unsignable(&error))?;
    worker.shared.metrics.signatures.inc();
    let mut request = Request::from_parts(parts, Body::empty());
    if matches!(payload, Payload::Stream { .. }) && request.version() == http::Version::HTTP_11 {
        headers::frame_as_chunked(request.headers_mut());
    }
    signed.append_to(request.headers_mut());
    introduce(request.headers_mut(), &credentials);
    *request.body_mut() = body(&credentials, Direction::ClientToServer, &signed, payload);
    Ok((request, sent))
}

/// Signs a bound response to a request that came from an intermediary.
pub(crate) fn relayed_response(
    worker: &Worker,
    received: &SentRequest,
    may_change: &[String],
    parts: response::Parts,
    payload: Payload,
) -> Result<Response<Body>, Refusal> {
    let credentials = worker.shared.credentials().ok_or(Refusal::NotReady)?;
    let fixed = relay::fixed(&parts.headers, may_change);
    let view = ResponseView {
        status: parts.status.as_u16(),
        headers: &fixed,
        trailers: None,
        request: Some(received.view()),
    };
    let now = clock::unix_seconds();
    let signed = credentials.signer.sign_origin(&MessageView::Response(view), &received.nonce, now);
    let signed = signed.map_err(|error| unsignable(&error))?;
    worker.shared.metrics.signatures.inc();
    let mut response = Response::from_parts(parts, Body::empty());
    signed.append_to(response.headers_mut());
    introduce(response.headers_mut(), &credentials);
    *response.body_mut() = body(&credentials, Direction::ServerToClient, &signed, payload);
    Ok(response)
}

async fn seal(
    worker: &Worker,
    channel: &Channel,
    credentials: &Credentials,
    unsigned: Unsigned,
) -> Result<SignedHead, Refusal> {
    let metrics = &worker.shared.metrics;
    if unsigned.form() == Form::Mac {
        // Nothing is awaited here: messages leave in the order of their numbers.
        let signed = authenticate(channel, credentials, unsigned, worker.moment());
        metrics.macs.inc();
        return signed.map_err(|error| unsignable(&error));
    }
    let signed = match unsigned.form() {
        Form::Batch => worker.batcher.sign(&credentials.signer, unsigned, metrics).await,
        Form::Mac | Form::Single => credentials.signer.sign_single(unsigned),
    };
    metrics.signatures.inc();
    signed.map_err(|error| unsignable(&error))
}

fn authenticate(
    channel: &Channel,
    credentials: &Credentials,
    unsigned: Unsigned,
    now: Moment,
) -> Result<SignedHead, SignError> {
    let mut ledger = channel.ledger().ok_or(SignError::Crypto)?;
    let signed = credentials.signer.sign_mac(unsigned, &ledger.own)?;
    let seq = channel.id.sequence(&signed.nonce).map_err(|_| SignError::Crypto)?;
    ledger.sent.append(seq, &signed.base, now);
    Ok(signed)
}

/// A refusal as this sidecar's own response, signed as its request claims to be; unsigned where the
/// request gives nothing to bind it to.
pub(crate) async fn refusal(
    worker: &Worker,
    channel: &Channel,
    mut received: SentRequest,
    refusal: Refusal,
    request_id: &str,
) -> Response<Body> {
    let note = worker.note(refusal, Some(channel.peer.id()));
    let plain = || problem::response(refusal, request_id, note.as_deref());
    if received.form == Some(Form::Mac) {
        // What a request that was refused may cause is bounded by nothing that is settled later.
        received.form = Some(Form::Single);
    }
    let Ok((parts, payload)) = refused(&received, refusal, request_id, note.as_deref()) else {
        return plain();
    };
    response(worker, channel, &received, parts, payload).await.unwrap_or_else(|_| plain())
}

/// A refusal of a request, bound and ready to be signed.
pub(crate) fn refused(
    received: &SentRequest,
    refusal: Refusal,
    request_id: &str,
    note: Option<&str>,
) -> Result<(response::Parts, Payload), Refusal> {
    let (mut parts, _) = problem::response(refusal, request_id, note).into_parts();
    // The answer to HEAD has no content to digest (RFC 9110 section 9.3.2).
    let headless = received.method == http::Method::HEAD;
    let content = if headless { Bytes::new() } else { problem::body(refusal, request_id, note) };
    let payload = Payload::Whole(content);
    prepare(&mut parts.headers, &payload, received.form)?;
    bind(&mut parts.headers, &payload, received.form)?;
    parts.headers.insert(MESH_ORIGIN, HeaderValue::from_static("sidecar"));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        parts.headers.insert(MESH_REQUEST_ID, id);
    }
    Ok((parts, payload))
}

/// The form and nonce of a request that was not, or not yet, verified; none when it is not signed by us.
pub(crate) fn claimed(headers: &HeaderMap) -> Option<(Form, String)> {
    let signatures = parse_signatures(headers).unwrap_or_default();
    let params = signatures.iter().map(LabelledSignature::params);
    let (form, params) = params
        .filter_map(|params| {
            let (_, form) = REQUEST_TAGS.into_iter().find(|(tag, _)| params.tag() == Some(*tag))?;
            Some((form, params))
        })
        .next()?;
    Some((form, params.nonce().unwrap_or_default().to_owned()))
}

fn body(credentials: &Credentials, direction: Direction, signed: &SignedHead, payload: Payload) -> Body {
    match payload {
        Payload::Whole(bytes) => Body::whole(bytes),
        Payload::Stream { source, length } => {
            let signer = credentials.signer.clone();
            SignedBody::new(source, length, signer, direction, &signed.base).into()
        }
    }
}

fn introduce(headers: &mut HeaderMap, credentials: &Credentials) {
    if let Some(chain) = encode_chain(&credentials.signing.chain) {
        headers.insert(MESH_CERT, chain);
    }
}

fn unsignable(error: &SignError) -> Refusal {
    tracing::info!(%error, "message cannot be signed");
    Refusal::MalformedMessage
}
