//! Verifies a message and makes the proof that the rest of the pipeline asks for.

use std::rc::Rc;

use http::{HeaderMap, Request, Response, StatusCode, request, response};
use hyper::body::{Body as _, Incoming};
use signet_identity::SpiffeId;
use signet_policy::{Protection, ProtectionLevel, Refusal, Relay, SignatureMode, Verification};
use signet_signature::digest::sha256;
use signet_signature::record::{Direction, RecordReader};
use signet_signature::{
    BodyBinding, Form, ReplayWindow, ResponseView, Rules, SignatureError, Unproven, VerifiedHead,
    VerifiedKey, examine_origin_request, examine_origin_response, examine_request, examine_response,
};

use crate::body::{Body, BodyError, UnsignedBody, VerifiedBody, read_whole};
use crate::channel::Channel;
use crate::checkpoint;
use crate::clock;
use crate::deferred::{Owed, Place, check_unreserved};
use crate::headers;
use crate::relay::{Signer, fixed};
use crate::seal;
use crate::sign::SentRequest;
use crate::snapshot::Snapshot;
use crate::worker::Worker;

/// A message whose head, and every byte of whose body that is ever delivered, was signed by the peer
/// of the channel it came on; or whose receiver's policy asks for the authenticated channel alone. Where policy says
/// `async` an [`Owed`] comes with it: everything but the signature of the head was checked. Only this file can make one.
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

/// What a request must have: what the policy of the workload that it is for asks for.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub(crate) protection: Protection,
    /// The header fields that must not be there in clear, at level `private`.
    pub(crate) sealed_headers: &'a [String],
}

/// Verifies a request on the channel it came on; `received` is the same request as it arrived and
/// takes up its form and nonce, for the response. The nonce counts as used once its signature is
/// verified, whatever the body turns out to be.
pub(crate) async fn request(
    worker: &Worker,
    channel: &Rc<Channel>,
    snapshot: &Snapshot,
    received: &mut SentRequest,
    mut parts: request::Parts,
    body: Incoming,
    Terms { protection, sealed_headers }: Terms<'_>,
) -> Result<(Verified<Request<Body>>, Option<Owed>), Refusal> {
    let now = clock::now();
    headers::check_peer_framing(&parts.headers)?;
    let signed = signet_signature::claims_signature(&received.headers);
    if !signed && protection.level == ProtectionLevel::Public {
        worker.shared.metrics.unsigned_messages.inc(crate::ring::Direction::Inbound);
        let body = unsigned(&mut parts.headers, body)?;
        return Ok((Verified(Request::from_parts(parts, body)), None));
    }
    if protection.level == ProtectionLevel::Private
        && !seal::nothing_in_clear(&received.headers, sealed_headers)
    {
        return Err(if signed { Refusal::SealMissing } else { Refusal::SignatureMissing });
    }
    channel.learn(&received.headers, snapshot, now)?;
    let unproven = {
        let ledger = if protection.mode == SignatureMode::Hmac { channel.ledger() } else { None };
        let rules = Rules {
            mac: ledger.as_deref().map(|ledger| &ledger.peer),
            ..Rules::new(channel.peer.id().as_str(), clock::unix_seconds(), snapshot.clock_skew_s)
        };
        let mut window = channel.window().borrow_mut();
        let resolve = |keyid: &str| channel.resolve(keyid, now);
        examine_request(&received.view(), &channel.id, &mut window, resolve, rules)
            .map_err(|error| timed(worker, channel.peer.id(), error))?
    };
    check_unreserved(channel, unproven.seq()).map_err(refusal)?;
    if unproven.form() == Form::Mac {
        let ledger = channel.known_ledger().ok_or(Refusal::SignatureMode)?;
        ledger.received.admit(worker.moment()).map_err(|_| Refusal::CheckpointOverdue)?;
    }
    let inbound = crate::ring::Direction::Inbound;
    let key = unproven.key().clone();
    // What is sealed is opened only after it was verified.
    let verify = if seal::is_sealed(&parts.headers) { Verification::Gate } else { protection.verify };
    let (body, owed) = match later(worker, channel, &unproven, verify, inbound) {
        Some(place) => {
            let owed = place.put_off(unproven, None);
            let unproven = owed.unproven();
            received.form = Some(unproven.form());
            unproven.nonce().clone_into(&mut received.nonce);
            let bound = Bound { body: unproven.body().map_err(refusal)?, base: unproven.base(), key: &key };
            let body = payload(bound, Direction::ClientToServer, &mut parts.headers, body).await?;
            if headers::has_mesh_coding(&parts.headers) {
                return Err(Refusal::SealBroken);
            }
            (body, Some(owed))
        }
        None => {
            let head = prove(worker, unproven, Some(&mut channel.window().borrow_mut()));
            let head = head.map_err(refusal)?;
            received.form = Some(head.form);
            received.nonce.clone_from(&head.nonce);
            take_up(worker, channel, inbound, &head)?;
            let bound = Bound { body: head.body, base: &head.base, key: &key };
            let body = payload(bound, Direction::ClientToServer, &mut parts.headers, body).await?;
            let credentials = worker.shared.credentials().ok_or(Refusal::NotReady)?;
            let (secrets, headers) = (&worker.secrets, &mut parts.headers);
            let (body, keys) =
                seal::open_request(secrets, &credentials, &head.keyid, received, headers, body)?;
            received.response_keys = keys;
            (body, None)
        }
    };
    clean(&mut parts.headers);
    Ok((Verified(Request::from_parts(parts, body)), owed))
}

/// Verifies a request that an intermediary brought, as its origin sent it: `received` has the target that the origin
/// wrote and the fields that the intermediary may not change. It is accepted once.
pub(crate) async fn relayed_request(
    worker: &Worker,
    signer: &Signer,
    snapshot: &Snapshot,
    received: &mut SentRequest,
    mut parts: request::Parts,
    body: Incoming,
    Terms { protection, sealed_headers }: Terms<'_>,
) -> Result<Verified<Request<Body>>, Refusal> {
    let now = clock::now();
    headers::check_peer_framing(&parts.headers)?;
    if protection.level == ProtectionLevel::Private && !seal::nothing_in_clear(&parts.headers, sealed_headers)
    {
        return Err(Refusal::SealMissing);
    }
    let rules = Rules::new(signer.id().as_str(), clock::unix_seconds(), snapshot.clock_skew_s);
    let resolve = |keyid: &str| signer.resolve(keyid, now);
    let unproven = examine_origin_request(&received.view(), resolve, rules)
        .map_err(|error| timed(worker, signer.id(), error))?;
    let key = unproven.key().clone();
    let head = prove(worker, unproven, None).map_err(refusal)?;
    worker.shared.relayed.admit(&head, snapshot.clock_skew_s).map_err(refusal)?;
    received.form = Some(head.form);
    received.nonce.clone_from(&head.nonce);
    let bound = Bound { body: head.body, base: &head.base, key: &key };
    let body = payload(bound, Direction::ClientToServer, &mut parts.headers, body).await?;
    let credentials = worker.shared.credentials().ok_or(Refusal::NotReady)?;
    let (secrets, headers) = (&worker.secrets, &mut parts.headers);
    let (body, keys) = seal::open_request(secrets, &credentials, &head.keyid, received, headers, body)?;
    received.response_keys = keys;
    clean(&mut parts.headers);
    Ok(Verified(Request::from_parts(parts, body)))
}

/// Verifies the response to a request that went through an intermediary: signed by the workload that the request was
/// for, whatever the intermediary makes of its failures.
pub(crate) async fn relayed_response(
    worker: &Worker,
    relay: &Relay,
    snapshot: &Snapshot,
    sent: &mut SentRequest,
    mut parts: response::Parts,
    body: Incoming,
) -> Result<Verified<Response<Body>>, Refusal> {
    let now = clock::now();
    let unverified = |error: SignatureError| {
        timed(worker, &relay.to, error.clone());
        tracing::warn!(peer = %relay.to, code = error.code(), %error, "response of an intermediary refused");
        Refusal::ResponseUnverified
    };
    headers::check_peer_framing(&parts.headers).map_err(|_| Refusal::ResponseUnverified)?;
    let signer = worker.signers.of(&parts.headers, snapshot).map_err(|_| Refusal::ResponseUnverified)?;
    let fixed = fixed(&parts.headers, &relay.may_change);
    let unproven = {
        let view = ResponseView {
            status: parts.status.as_u16(),
            headers: &fixed,
            trailers: None,
            request: Some(sent.view()),
        };
        let rules = Rules::new(relay.to.as_str(), clock::unix_seconds(), snapshot.clock_skew_s);
        let resolve = |keyid: &str| signer.resolve(keyid, now);
        examine_origin_response(&view, &sent.nonce, resolve, rules).map_err(unverified)?
    };
    let key = unproven.key().clone();
    let head = prove(worker, unproven, None).map_err(unverified)?;
    let bound = Bound { body: head.body, base: &head.base, key: &key };
    let body = payload(bound, Direction::ServerToClient, &mut parts.headers, body).await;
    let body = body.map_err(|_| Refusal::ResponseUnverified)?;
    let body = match sent.response_keys.take() {
        Some(keys) => {
            let headless = sent.method == http::Method::HEAD || parts.status == StatusCode::NOT_MODIFIED;
            seal::open_response(*keys, &mut parts.headers, body, headless)
                .map_err(|_| Refusal::ResponseUnverified)?
        }
        None if seal::claims_seal(&parts.headers) => return Err(Refusal::ResponseUnverified),
        None => body,
    };
    clean(&mut parts.headers);
    Ok(Verified(Response::from_parts(parts, body)))
}

/// Verifies the response to a request that was sent on this channel. Only who asked without a signature
/// takes an answer without one, and only who authenticated takes one that is no more than that.
pub(crate) async fn response(
    worker: &Worker,
    channel: &Rc<Channel>,
    snapshot: &Snapshot,
    sent: &mut SentRequest,
    mut parts: response::Parts,
    body: Incoming,
    verification: Verification,
) -> Result<(Verified<Response<Body>>, Option<Owed>), Refusal> {
    let now = clock::now();
    headers::check_peer_framing(&parts.headers).map_err(|_| Refusal::ResponseUnverified)?;
    if sent.form.is_none() {
        worker.shared.metrics.unsigned_messages.inc(crate::ring::Direction::Outbound);
        let body = unsigned(&mut parts.headers, body).map_err(|_| Refusal::ResponseUnverified)?;
        return Ok((Verified(Response::from_parts(parts, body)), None));
    }
    channel.learn(&parts.headers, snapshot, now).map_err(|_| {
        channel.unconfirm();
        Refusal::ResponseUnverified
    })?;
    let unverified = |error: SignatureError| {
        channel.unconfirm();
        timed(worker, channel.peer.id(), error.clone());
        tracing::warn!(peer = %channel.peer.id(), code = error.code(), %error, "response refused");
        Refusal::ResponseUnverified
    };
    let unproven = {
        let view = ResponseView {
            status: parts.status.as_u16(),
            headers: &parts.headers,
            trailers: None,
            request: Some(sent.view()),
        };
        let ledger = if sent.form == Some(Form::Mac) { channel.known_ledger() } else { None };
        let rules = Rules {
            mac: ledger.as_deref().map(|ledger| &ledger.peer),
            ..Rules::new(channel.peer.id().as_str(), clock::unix_seconds(), snapshot.clock_skew_s)
        };
        examine_response(&view, &sent.nonce, |keyid| channel.resolve(keyid, now), rules)
            .map_err(unverified)?
    };
    let outbound = crate::ring::Direction::Outbound;
    let key = unproven.key().clone();
    let sealed = sent.response_keys.is_some() || seal::is_sealed(&parts.headers);
    let verify = if sealed { Verification::Gate } else { verification };
    let (body, owed) = match later(worker, channel, &unproven, verify, outbound) {
        Some(place) => {
            let owed = place.put_off(unproven, Some(sent.signer));
            let unproven = owed.unproven();
            let bound =
                Bound { body: unproven.body().map_err(unverified)?, base: unproven.base(), key: &key };
            (payload(bound, Direction::ServerToClient, &mut parts.headers, body).await, Some(owed))
        }
        None => {
            let head = prove(worker, unproven, None).map_err(unverified)?;
            channel.confirm(sent.signer);
            take_up(worker, channel, outbound, &head).map_err(|_| Refusal::ResponseUnverified)?;
            let bound = Bound { body: head.body, base: &head.base, key: &key };
            (payload(bound, Direction::ServerToClient, &mut parts.headers, body).await, None)
        }
    };
    let body = body.map_err(|_| Refusal::ResponseUnverified)?;
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
    Ok((Verified(Response::from_parts(parts, body)), owed))
}

/// The place of a message that is verified later, where policy wants that and there is room. A code costs less to
/// verify than to put off, and was verified already.
fn later(
    worker: &Worker,
    channel: &Rc<Channel>,
    unproven: &Unproven,
    verification: Verification,
    direction: crate::ring::Direction,
) -> Option<Place> {
    if verification == Verification::Gate || unproven.form() == Form::Mac {
        return None;
    }
    Place::take(worker, channel, unproven, direction)
}

/// Verifies the signature of an examined message.
pub(crate) fn prove(
    worker: &Worker,
    unproven: Unproven,
    window: Option<&mut ReplayWindow>,
) -> Result<VerifiedHead, SignatureError> {
    let mut roots = worker.roots.borrow_mut();
    let known = roots.counts();
    let head = unproven.prove(Some(&mut roots), window);
    let metrics = &worker.shared.metrics;
    if let Ok(head) = &head {
        let ahead_s = head.created.cast_signed().saturating_sub(clock::unix_seconds().cast_signed());
        metrics.peer_skew.set(ahead_s);
        worker.in_time(&head.keyid);
    }
    let (hits, misses) = roots.counts();
    metrics.verifications.inc_by(head.is_ok().into());
    metrics.root_cache_hits.inc_by(hits - known.0);
    metrics.root_cache_misses.inc_by(misses - known.1);
    head
}

/// Enters a message that was only authenticated among those that wait for a checkpoint.
fn take_up(
    worker: &Worker,
    channel: &Channel,
    direction: crate::ring::Direction,
    head: &VerifiedHead,
) -> Result<(), Refusal> {
    if head.form != Form::Mac {
        return Ok(());
    }
    let taken = {
        let mut ledger = channel.known_ledger().ok_or(Refusal::SignatureMode)?;
        let now = worker.moment();
        ledger.received.admit(now).and_then(|()| ledger.received.receive(head.seq, &head.base, now))
    };
    let covered = taken.map_err(|error| checkpoint::incident(worker, channel, direction, error))?;
    worker.shared.metrics.macs_covered.inc_by(covered.into());
    Ok(())
}

/// What a head says of its body, and who says it.
#[derive(Clone, Copy)]
struct Bound<'a> {
    body: BodyBinding,
    base: &'a [u8],
    key: &'a VerifiedKey,
}

/// The body of a message that carries no signature of ours, where policy asks for none. What is said by the
/// mesh goes all the same, and so does the coding that only signed bodies have.
fn unsigned(headers: &mut HeaderMap, body: Incoming) -> Result<Body, Refusal> {
    if seal::claims_seal(headers) || signet_signature::claims_signature(headers) {
        return Err(Refusal::MalformedMessage);
    }
    headers::strip_known_hop(headers);
    headers::strip_protected(headers);
    signet_signature::strip(headers);
    Ok(if body.is_end_stream() { Body::empty() } else { UnsignedBody::new(body).into() })
}

/// Reads and checks a whole body, or starts to verify a streamed one.
async fn payload(
    bound: Bound<'_>,
    direction: Direction,
    headers: &mut HeaderMap,
    mut body: Incoming,
) -> Result<Body, Refusal> {
    match bound.body {
        BodyBinding::Digest(signed) => {
            if headers::has_records(headers) {
                return Err(Refusal::MalformedMessage);
            }
            let (whole, trailers) = read_whole(&mut body).await.map_err(|error| broken(&error))?;
            // Trailers of a whole body are signed nowhere.
            if trailers.is_some_and(|trailers| !trailers.is_empty()) {
                return Err(Refusal::SignatureCoverage);
            }
            if sha256(&whole) != signed {
                return Err(Refusal::DigestMismatch);
            }
            Ok(Body::whole(whole))
        }
        BodyBinding::Records => {
            let reader = RecordReader::body(direction, bound.base, &bound.key.public_key)
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

fn broken(error: &BodyError) -> Refusal {
    match error {
        BodyError::Length => Refusal::BodyTooLarge,
        _ => Refusal::StreamTruncated,
    }
}

/// The refusal for a signature that was examined, with what was measured where it is about time.
fn timed(worker: &Worker, peer: &SpiffeId, error: SignatureError) -> Refusal {
    if let Some(ahead_s) = error.skew_s() {
        worker.shared.metrics.peer_skew.set(ahead_s);
        worker.note_skew(peer, ahead_s);
        tracing::warn!(
            %peer, ahead_s, code = error.code(), "a message is refused for its time, judged {}", clock::told()
        );
    }
    refusal(error)
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
        "mode" => Refusal::SignatureMode,
        "replay" => Refusal::Replay,
        "unknown-key" => Refusal::SignatureUnknownKey,
        _ => Refusal::SignatureMalformed,
    }
}
