//! Verifies a message and makes the proof that the rest of the pipeline asks for.

use std::time::SystemTime;

use http::{HeaderMap, Request, Response, StatusCode, request, response};
use hyper::body::{Body as _, Incoming};
use signet_identity::SpiffeId;
use signet_policy::{ProtectionLevel, Refusal};
use signet_signature::record::{Direction, RecordReader};
use signet_signature::{
    BodyBinding, ResponseView, Rules, SignatureError, VerifiedHead, VerifiedKey, verify_request,
    verify_response,
};

use crate::body::{Body, BodyError, UnsignedBody, VerifiedBody, read_whole};
use crate::channel::Channel;
use crate::clock;
use crate::headers;
use crate::seal;
use crate::sign::SentRequest;
use crate::snapshot::Snapshot;
use crate::worker::Worker;

/// A message whose head, and every byte of whose body that is ever delivered, was signed by the peer
/// of the channel it came on; or whose receiver's policy asks for the authenticated channel alone. Only this
/// file can make one.
pub(crate) struct Verified<M>(M);

impl<M> Verified<M> {
    /// The message; what is done with it no longer carries the proof.
    pub(crate) fn into_inner(self) -> M {
        self.0
    }

    pub(crate) fn get_mut(&mut self) -> &mut M {
        &mut self.0
    }
}

/// Verifies a request on the channel it came on; `received` is the same request as it arrived and
/// takes up its form and nonce, for the response. The nonce counts as used once its signature is
/// verified, whatever the body turns out to be.
pub(crate) async fn request(
    worker: &Worker,
    channel: &Channel,
    snapshot: &Snapshot,
    received: &mut SentRequest,
    mut parts: request::Parts,
    body: Incoming,
    own: &SpiffeId,
) -> Result<Verified<Request<Body>>, Refusal> {
    let now = SystemTime::now();
    headers::check_peer_framing(&parts.headers)?;
    let floor = snapshot.index.protection(own).level;
    let signed = signet_signature::claims_signature(&received.headers);
    if !signed && floor == ProtectionLevel::Public {
        worker.shared.metrics.unsigned_messages.inc(crate::ring::Direction::Inbound);
        let body = unsigned(&mut parts.headers, body)?;
        return Ok(Verified(Request::from_parts(parts, body)));
    }
    if floor == ProtectionLevel::Private
        && !seal::nothing_in_clear(&received.headers, snapshot.index.sealed_headers(own))
    {
        return Err(if signed { Refusal::SealMissing } else { Refusal::SignatureMissing });
    }
    channel.learn(&received.headers, snapshot, now)?;
    let mut key = None;
    let known_roots = worker.roots.borrow().counts();
    let head = verify_request(
        &received.view(),
        &channel.id,
        &mut channel.window().borrow_mut(),
        |keyid| remember(&mut key, channel.resolve(keyid, now)),
        Rules {
            roots: Some(&mut worker.roots.borrow_mut()),
            ..Rules::new(channel.peer.id().as_str(), clock::unix_seconds(), snapshot.clock_skew_s)
        },
    );
    count(worker, known_roots, head.is_ok());
    let head = head.map_err(refusal)?;
    received.form = Some(head.form);
    received.nonce.clone_from(&head.nonce);
    let body = payload(&head, key.as_ref(), Direction::ClientToServer, &mut parts.headers, body).await?;
    let credentials = worker.shared.credentials().ok_or(Refusal::NotReady)?;
    let secrets = &worker.secrets;
    let (body, keys) =
        seal::open_request(secrets, &credentials, &head.keyid, received, &mut parts.headers, body)?;
    received.response_keys = keys;
    clean(&mut parts.headers);
    Ok(Verified(Request::from_parts(parts, body)))
}

/// Verifies the response to a request that was sent on this channel. Only who asked without a signature
/// takes an answer without one.
pub(crate) async fn response(
    worker: &Worker,
    channel: &Channel,
    snapshot: &Snapshot,
    sent: &mut SentRequest,
    mut parts: response::Parts,
    body: Incoming,
) -> Result<Verified<Response<Body>>, Refusal> {
    let now = SystemTime::now();
    headers::check_peer_framing(&parts.headers).map_err(|_| Refusal::ResponseUnverified)?;
    if sent.form.is_none() {
        worker.shared.metrics.unsigned_messages.inc(crate::ring::Direction::Outbound);
        let body = unsigned(&mut parts.headers, body).map_err(|_| Refusal::ResponseUnverified)?;
        return Ok(Verified(Response::from_parts(parts, body)));
    }
    channel.learn(&parts.headers, snapshot, now).map_err(|_| Refusal::ResponseUnverified)?;
    let view = ResponseView {
        status: parts.status.as_u16(),
        headers: &parts.headers,
        trailers: None,
        request: Some(sent.view()),
    };
    let mut key = None;
    let known_roots = worker.roots.borrow().counts();
    let head = verify_response(
        &view,
        &sent.nonce,
        |keyid| remember(&mut key, channel.resolve(keyid, now)),
        Rules {
            roots: Some(&mut worker.roots.borrow_mut()),
            ..Rules::new(channel.peer.id().as_str(), clock::unix_seconds(), snapshot.clock_skew_s)
        },
    );
    count(worker, known_roots, head.is_ok());
    let head = head.map_err(|error| {
        tracing::warn!(peer = %channel.peer.id(), code = error.code(), %error, "response refused");
        Refusal::ResponseUnverified
    })?;
    channel.confirm(sent.signer);
    let body = payload(&head, key.as_ref(), Direction::ServerToClient, &mut parts.headers, body)
        .await
        .map_err(|_| Refusal::ResponseUnverified)?;
    let body = match sent.response_keys.take() {
        Some(keys) => {
            let headless = sent.method == http::Method::HEAD || parts.status == StatusCode::NOT_MODIFIED;
            seal::open_response(*keys, &mut parts.headers, body, headless).map_err(|refusal| {
                tracing::warn!(peer = %channel.peer.id(), code = refusal.code(), "response does not open");
                Refusal::ResponseUnverified
            })?
        }
        None if seal::claims_seal(&parts.headers) => return Err(Refusal::ResponseUnverified),
        None => body,
    };
    clean(&mut parts.headers);
    Ok(Verified(Response::from_parts(parts, body)))
}

/// The body of a message that carries no signature of ours, where policy asks for none. What is said by the
/// mesh goes all the same, and so does the coding that only signed bodies have.
fn unsigned(headers: &mut HeaderMap, body: Incoming) -> Result<Body, Refusal> {
    if seal::claims_seal(headers)
        || headers::has_mesh_coding(headers)
        || signet_signature::claims_signature(headers)
    {
        return Err(Refusal::MalformedMessage);
    }
    headers::strip_known_hop(headers);
    headers::strip_protected(headers);
    signet_signature::strip(headers);
    Ok(if body.is_end_stream() { Body::empty() } else { UnsignedBody::new(body).into() })
}

/// Reads and checks a whole body, or starts to verify a streamed one.
async fn payload(
    head: &VerifiedHead,
    key: Option<&VerifiedKey>,
    direction: Direction,
    headers: &mut HeaderMap,
    mut body: Incoming,
) -> Result<Body, Refusal> {
    match &head.body {
        BodyBinding::Digest(_) => {
            if headers::has_records(headers) {
                return Err(Refusal::MalformedMessage);
            }
            let (whole, trailers) = read_whole(&mut body).await.map_err(|error| broken(&error))?;
            // Trailers of a whole body are signed nowhere.
            if trailers.is_some_and(|trailers| !trailers.is_empty()) {
                return Err(Refusal::SignatureCoverage);
            }
            head.verify_body(&whole).map_err(refusal)?;
            Ok(Body::whole(whole))
        }
        BodyBinding::Records => {
            let key = key.ok_or(Refusal::SignatureUnknownKey)?;
            let reader = RecordReader::body(direction, &head.base, &key.public_key)
                .map_err(|_| Refusal::RecordMalformed)?;
            let length = headers::remove_records(headers)?;
            Ok(VerifiedBody::new(body, reader, length).into())
        }
        // A direct hop has no intermediary that would need a tail.
        BodyBinding::Tail => Err(Refusal::SignatureMalformed),
    }
}

/// Removes what the mesh added and what only the mesh may say.
fn clean(headers: &mut HeaderMap) {
    headers::strip_known_hop(headers);
    headers::restore_digest(headers);
    headers::strip_protected(headers);
    signet_signature::strip(headers);
}

fn count(worker: &Worker, known_roots: (u64, u64), verified: bool) {
    let metrics = &worker.shared.metrics;
    let (hits, misses) = worker.roots.borrow().counts();
    metrics.verifications.inc_by(verified.into());
    metrics.root_cache_hits.inc_by(hits - known_roots.0);
    metrics.root_cache_misses.inc_by(misses - known_roots.1);
}

fn remember(key: &mut Option<VerifiedKey>, found: Option<VerifiedKey>) -> Option<VerifiedKey> {
    key.clone_from(&found);
    found
}

fn broken(error: &BodyError) -> Refusal {
    match error {
        BodyError::Length => Refusal::BodyTooLarge,
        _ => Refusal::StreamTruncated,
    }
}

/// The refusal for a signature that was not accepted.
pub(crate) fn refusal(error: SignatureError) -> Refusal {
    match error.code() {
        "bad-signature" => Refusal::BadSignature,
        "clock" => Refusal::SignatureClock,
        "coverage" => Refusal::SignatureCoverage,
        "digest" => Refusal::DigestMismatch,
        "expired" => Refusal::SignatureExpired,
        "missing" => Refusal::SignatureMissing,
        "replay" => Refusal::Replay,
        "unknown-key" => Refusal::SignatureUnknownKey,
        _ => Refusal::SignatureMalformed,
    }
}
