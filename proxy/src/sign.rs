//! Signs a message for the connection it is about to travel on, and for no other.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Uri, request, response};
use signet_identity::Fingerprint;
use signet_policy::Refusal;
use signet_signature::record::Direction;
use signet_signature::{RequestView, ResponseView, SignError, SignedHead, parse_signatures, sha256_header};

use crate::body::{Body, Payload, SignedBody};
use crate::channel::{Channel, encode_chain};
use crate::clock;
use crate::headers::{self, CONTENT_DIGEST, MESH_CERT, MESH_ORIGIN, MESH_REQUEST_ID};
use crate::problem;
use crate::snapshot::Credentials;
use crate::telemetry::metrics::Metrics;

/// Between sidecars plaintext is what was captured, whatever protects the hop; both ends agree.
pub(crate) const SCHEME: &str = "http";

/// The tag of request signatures.
const REQUEST_TAG: &str = "mesh-req-v1";

/// A request as it was signed: what the signature of its response covers.
pub(crate) struct SentRequest {
    pub(crate) method: http::Method,
    pub(crate) uri: Uri,
    pub(crate) authority: String,
    pub(crate) headers: HeaderMap,
    pub(crate) nonce: String,
    /// The certificate it was signed under.
    pub(crate) signer: Fingerprint,
}

impl SentRequest {
    pub(crate) fn view(&self) -> RequestView<'_> {
        RequestView::new(&self.method, &self.uri, SCHEME, &self.authority, &self.headers)
    }
}

/// Prepares an application's head for the mesh: what belongs to the hop or to the mesh goes, and
/// the payload is bound to what will be signed.
pub(crate) fn bind(headers: &mut HeaderMap, payload: &Payload) -> Result<(), Refusal> {
    headers::check_framing(headers)?;
    headers::strip_hop(headers);
    headers::strip_protected(headers);
    if headers::has_records(headers) {
        return Err(Refusal::MalformedMessage);
    }
    if let Payload::Whole(bytes) = payload
        && headers.contains_key(CONTENT_DIGEST)
    {
        signet_signature::verify_digest(headers, bytes).map_err(|_| Refusal::DigestMismatch)?;
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

/// Signs a bound request for the next place on `channel`.
pub(crate) fn request(
    credentials: &Credentials,
    channel: &Channel,
    metrics: &Metrics,
    parts: request::Parts,
    authority: &str,
    payload: Payload,
) -> Result<(Request<Body>, SentRequest), Refusal> {
    let sequence = channel.next_sequence();
    let view = RequestView::new(&parts.method, &parts.uri, SCHEME, authority, &parts.headers);
    let signed = credentials
        .signer
        .sign_request(&view, &channel.id, sequence, clock::unix_seconds())
        .map_err(|error| unsignable(&error))?;
    metrics.signatures.inc();
    let sent = SentRequest {
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        authority: authority.to_owned(),
        headers: parts.headers.clone(),
        nonce: signed.nonce.clone(),
        signer: credentials.signing.fingerprint,
    };
    let mut request = Request::from_parts(parts, Body::empty());
    // Framing is the hop's own and is not signed.
    if matches!(payload, Payload::Stream { .. }) && request.version() == http::Version::HTTP_11 {
        headers::frame_as_chunked(request.headers_mut());
    }
    signed.append_to(request.headers_mut());
    if channel.must_introduce(sent.signer) {
        introduce(request.headers_mut(), credentials);
    }
    *request.body_mut() = body(credentials, Direction::ClientToServer, &signed, payload);
    Ok((request, sent))
}

/// Signs a bound response to `received`, the request as it arrived.
pub(crate) fn response(
    credentials: &Credentials,
    channel: &Channel,
    metrics: &Metrics,
    received: &SentRequest,
    parts: response::Parts,
    payload: Payload,
) -> Result<Response<Body>, Refusal> {
    let view = ResponseView {
        status: parts.status.as_u16(),
        headers: &parts.headers,
        trailers: None,
        request: Some(received.view()),
    };
    let signed = credentials
        .signer
        .sign_response(&view, &received.nonce, clock::unix_seconds())
        .map_err(|error| unsignable(&error))?;
    metrics.signatures.inc();
    let mut response = Response::from_parts(parts, Body::empty());
    signed.append_to(response.headers_mut());
    if channel.answer_introduces(credentials.signing.fingerprint, &received.headers) {
        introduce(response.headers_mut(), credentials);
    }
    *response.body_mut() = body(credentials, Direction::ServerToClient, &signed, payload);
    Ok(response)
}

/// A refusal as this sidecar's own signed response; unsigned where the request gives nothing to
/// bind it to.
pub(crate) fn refusal(
    credentials: Option<&Arc<Credentials>>,
    channel: &Channel,
    metrics: &Metrics,
    received: SentRequest,
    refusal: Refusal,
    request_id: &str,
) -> Response<Body> {
    let plain = || problem::response(refusal, request_id);
    let Some(credentials) = credentials else { return plain() };
    let (mut parts, _) = plain().into_parts();
    // The answer to HEAD has no content to digest (RFC 9110 section 9.3.2).
    let headless = received.method == http::Method::HEAD;
    let content = if headless { Bytes::new() } else { problem::body(refusal, request_id) };
    let payload = Payload::Whole(content);
    if bind(&mut parts.headers, &payload).is_err() {
        return plain();
    }
    parts.headers.insert(MESH_ORIGIN, HeaderValue::from_static("sidecar"));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        parts.headers.insert(MESH_REQUEST_ID, id);
    }
    response(credentials, channel, metrics, &received, parts, payload).unwrap_or_else(|_| plain())
}

/// The nonce of a request that was not, or not yet, verified.
pub(crate) fn claimed_nonce(headers: &HeaderMap) -> String {
    let signatures = parse_signatures(headers).unwrap_or_default();
    let ours = signatures.iter().find(|signature| signature.params().tag() == Some(REQUEST_TAG));
    ours.and_then(|signature| signature.params().nonce()).unwrap_or_default().to_owned()
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
