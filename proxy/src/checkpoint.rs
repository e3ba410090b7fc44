//! Exchanges signed checkpoints over what was authenticated on a connection (mode `hmac`).
//!
//! The dialling sidecar sends `OPTIONS *` of its own on the connection, with its checkpoint, and the other answers with
//! its own; both messages are signed like any other and neither reaches an application. It does so before the next
//! request when a checkpoint is due, and about once a second on connections where anything waits: so nothing is left
//! behind on one that becomes idle, and none is closed for being idle with anything waiting.

use std::rc::Rc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request};
use hyper::body::Incoming;
use signet_policy::{Protection, ProtectionLevel, Refusal, SignatureMode, Verification};
use signet_signature::Form;
use signet_signature::checkpoint::{Checkpoint, CheckpointError};

use crate::body::{Body, Payload};
use crate::channel::Channel;
use crate::head::{self, Origin};
use crate::headers::{MESH_CHECKPOINT, MESH_ORIGIN};
use crate::pool::Lease;
use crate::ring::Direction;
use crate::sign::{self, SentRequest};
use crate::verify::{self, Terms};
use crate::worker::{MeshKey, Worker};

/// How long an exchange may take: what waits for it is signed meanwhile, and a peer that is slower is stuck.
const LIMIT: Duration = Duration::from_secs(10);
/// Length of a `mesh-checkpoint` field: a note names its channel twice, and a SPIFFE ID has at most 2,048 bytes.
const NOTE_MAX: usize = 8 * 1024;
/// The exchange is between the two sidecars, whatever is behind them.
const AUTHORITY: &str = "mesh";

type MeshLease = Lease<MeshKey, Rc<Channel>>;

/// Whether a request is a sidecar's own: applications cannot send the field.
pub(crate) fn is_asked<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(MESH_CHECKPOINT)
}

/// The lease again, after checkpoints that were due were exchanged; none when that failed and the connection is given
/// up.
pub(crate) async fn settled(worker: &Rc<Worker>, lease: MeshLease) -> Option<MeshLease> {
    if !lease.context().wants_checkpoint(|| worker.moment(), false) {
        return Some(lease);
    }
    // In a task of its own: half an exchange would leave the two logs different.
    tokio::task::spawn_local(settle(Rc::clone(worker), lease)).await.ok().flatten()
}

/// Begins the exchange on every connection that nobody uses and where anything waits.
pub(crate) fn settle_idle(worker: &Rc<Worker>) {
    let now = worker.moment();
    for lease in worker.mesh.lease_where(|channel| channel.wants_checkpoint(|| now, true)) {
        tokio::task::spawn_local(settle_and_return(Rc::clone(worker), lease));
    }
}

/// The same, and waits for it: before the connections are closed.
pub(crate) async fn settle_all(worker: &Rc<Worker>) {
    let now = worker.moment();
    let leases = worker.mesh.lease_where(|channel| channel.wants_checkpoint(|| now, true));
    let settling: Vec<_> = leases
        .into_iter()
        .map(|lease| tokio::task::spawn_local(settle_and_return(Rc::clone(worker), lease)))
        .collect();
    for settling in settling {
        // What fails has said so.
        let _ = settling.await;
    }
}

async fn settle_and_return(worker: Rc<Worker>, lease: MeshLease) {
    if let Some(lease) = settle(worker, lease).await {
        lease.give_back();
    }
}

async fn settle(worker: Rc<Worker>, mut lease: MeshLease) -> Option<MeshLease> {
    let channel = Rc::clone(lease.context());
    let Some(_turn) = channel.begin_settling() else { return Some(lease) };
    let exchange = exchange(&worker, &mut lease, &channel);
    let refusal = match tokio::time::timeout(LIMIT, exchange).await {
        Ok(Ok(())) => return Some(lease),
        Ok(Err(refusal)) => refusal,
        Err(_) => Refusal::UpstreamTimeout,
    };
    tracing::info!(peer = %channel.peer.id(), code = refusal.code(), "no checkpoint was exchanged");
    if refusal == Refusal::CheckpointMismatch {
        worker.shared.metrics.refuse(Direction::Outbound, refusal);
    }
    give_up(&worker, &channel);
    None
}

async fn exchange(worker: &Worker, lease: &mut MeshLease, channel: &Rc<Channel>) -> Result<(), Refusal> {
    let broken = |_| Refusal::UpstreamUnreachable;
    let Checkpoint { note, entries } = seal(worker, channel)?;
    let mut parts = asking(lease.version())?;
    let payload = Payload::Whole(entries.into());
    sign::bind(&mut parts.headers, &payload, Some(Form::Single))?;
    parts.headers.insert(MESH_CHECKPOINT, encode(&note)?);
    // Nothing is awaited between the seal and the send, so the checkpoint stays ahead of whatever follows.
    let (request, mut sent) =
        sign::request(worker, channel, parts, AUTHORITY, payload, Some(Form::Single), None).await?;
    let (parts, body) = lease.send_before(request).await.map_err(broken)?.into_parts();
    head::check_response(&parts, Origin::Mesh, Refusal::ResponseUnverified)?;
    let note = parts.headers.get(MESH_CHECKPOINT).and_then(decode);
    let snapshot = worker.shared.snapshots.load_full();
    let (answer, _) =
        verify::response(worker, channel, &snapshot, &mut sent, parts, body, Verification::Gate).await?;
    let answer = answer.into_inner();
    if answer.status() != StatusCode::OK {
        // Its reason is in its own records.
        return Err(Refusal::ResponseUnverified);
    }
    let entries = answer.into_body().into_whole().ok_or(Refusal::ResponseUnverified)?;
    let note = note.ok_or(Refusal::ResponseUnverified)?;
    cover(worker, channel, Direction::Outbound, &note, &entries)?;
    lease.ready().await.map_err(broken)
}

/// Answers the other sidecar's checkpoint with our own. `received` is the request as it arrived.
pub(crate) async fn answer(
    worker: &Worker,
    channel: &Rc<Channel>,
    received: &mut SentRequest,
    parts: request::Parts,
    body: Incoming,
) -> Result<Response<Body>, Refusal> {
    // Only who was permitted to call, and authenticated that, is worth the work.
    if !channel.known_ledger().is_some_and(|ledger| ledger.received.is_used()) {
        return Err(Refusal::SignatureMode);
    }
    head::check_request(&parts, Origin::Mesh)?;
    let note = parts.headers.get(MESH_CHECKPOINT).and_then(decode).ok_or(Refusal::SignatureMalformed)?;
    let protection = Protection {
        level: ProtectionLevel::Protected,
        mode: SignatureMode::Ed25519,
        verify: Verification::Gate,
        ..Protection::default()
    };
    let terms = Terms { protection, sealed_headers: &[] };
    let snapshot = worker.shared.snapshots.load_full();
    channel.check_trust(&snapshot)?;
    let (request, _) = verify::request(worker, channel, &snapshot, received, parts, body, terms).await?;
    let entries = request.into_inner().into_body().into_whole().ok_or(Refusal::MalformedMessage)?;
    cover(worker, channel, Direction::Inbound, &note, &entries)?;

    let Checkpoint { note, entries } = seal(worker, channel)?;
    let (mut parts, ()) = Response::new(()).into_parts();
    let payload = Payload::Whole(entries.into());
    sign::bind(&mut parts.headers, &payload, received.form)?;
    parts.headers.insert(MESH_CHECKPOINT, encode(&note)?);
    parts.headers.insert(MESH_ORIGIN, HeaderValue::from_static("sidecar"));
    sign::response(worker, channel, received, parts, payload).await
}

fn seal(worker: &Worker, channel: &Channel) -> Result<Checkpoint, Refusal> {
    let credentials = worker.shared.credentials().ok_or(Refusal::NotReady)?;
    let mut ledger = channel.known_ledger().ok_or(Refusal::NotReady)?;
    let checkpoint = ledger.sent.seal(&credentials.signer).map_err(|_| Refusal::NotReady)?;
    worker.shared.metrics.checkpoints_signed.inc();
    Ok(checkpoint)
}

/// Takes up a checkpoint of the peer; one that does not fit ends the connection.
fn cover(
    worker: &Worker,
    channel: &Channel,
    direction: Direction,
    note: &str,
    entries: &Bytes,
) -> Result<(), Refusal> {
    match channel.cover(note, entries) {
        Ok(covered) => {
            worker.shared.metrics.checkpoints_verified.inc();
            worker.shared.metrics.macs_covered.inc_by(covered as u64);
            Ok(())
        }
        Err(error) => Err(incident(worker, channel, direction, error)),
    }
}

/// Ends a connection whose logs do not agree.
pub(crate) fn incident(
    worker: &Worker,
    channel: &Channel,
    direction: Direction,
    error: CheckpointError,
) -> Refusal {
    if error == CheckpointError::Overdue {
        // It can still come.
        return Refusal::CheckpointOverdue;
    }
    let refusal = Refusal::CheckpointMismatch;
    tracing::error!(
        target: "signet::incident", peer = %channel.peer.id(), channel = %channel.id, code = refusal.code(), %error,
        "connection is cut"
    );
    worker.shared.metrics.incident(direction, refusal);
    give_up(worker, channel);
    refusal
}

/// Ends a connection and lets nothing more begin on it.
pub(crate) fn give_up(worker: &Worker, channel: &Channel) {
    channel.cut();
    worker.mesh.retain(|channel| !channel.is_cut());
}

fn asking(version: Version) -> Result<request::Parts, Refusal> {
    let target = if version == Version::HTTP_2 {
        Uri::builder().scheme(sign::SCHEME).authority(AUTHORITY).path_and_query("*").build()
    } else {
        Ok(Uri::from_static("*"))
    };
    let target = target.map_err(|_| Refusal::MalformedMessage)?;
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = Method::OPTIONS;
    parts.uri = target;
    parts.version = version;
    if version != Version::HTTP_2 {
        parts.headers.insert(header::HOST, HeaderValue::from_static(AUTHORITY));
    }
    Ok(parts)
}

fn encode(note: &str) -> Result<HeaderValue, Refusal> {
    HeaderValue::try_from(format!(":{}:", BASE64_STANDARD.encode(note)))
        .map_err(|_| Refusal::MalformedMessage)
}

fn decode(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok().filter(|text| text.len() <= NOTE_MAX)?;
    let note = BASE64_STANDARD.decode(text.strip_prefix(':')?.strip_suffix(':')?).ok()?;
    String::from_utf8(note).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn note_survives_its_field() {
        let note = "mesh/spiffe://td/a/c2s\n1\nAAAA\n\n— mesh/spiffe://td/a/c2s BBBB\n";
        assert_eq!(decode(&encode(note).unwrap()).as_deref(), Some(note));
        for text in ["", ":", "AAAA", ":***:", ":/w==:"] {
            assert_eq!(decode(&HeaderValue::from_static(text)), None, "{text}");
        }
        assert_eq!(decode(&encode(&"n".repeat(NOTE_MAX)).unwrap()), None);
    }

    #[test]
    fn only_options_with_the_field_is_an_exchange() {
        let request = |method: &str, field: &str| {
            Request::builder().method(method).uri("*").header(field, ":AAAA:").body(()).unwrap()
        };
        assert!(is_asked(&request("OPTIONS", "mesh-checkpoint")));
        assert!(!is_asked(&request("OPTIONS", "mesh-other")));
        assert!(!is_asked(&request("POST", "mesh-checkpoint")));
    }

    #[test]
    fn exchange_names_no_path_whatever_carries_it() {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let parts = asking(version).unwrap();
            assert_eq!((parts.uri.path(), parts.method.as_str()), ("*", "OPTIONS"), "{version:?}");
        }
    }
}
