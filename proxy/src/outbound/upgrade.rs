//! WebSockets of the application: the handshake is a signed exchange on a connection of its own, what follows on that
//! connection are records.

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode, request};
use hyper::body::Incoming;
use signet_policy::{Refusal, Verification};

use super::http::Caller;
use crate::authorize::Grant;
use crate::body::{Body, Payload};
use crate::head::{self, Origin};
use crate::headers::{self, MESH_UPGRADE, WEBSOCKET};
use crate::http_client;
use crate::opaque::{self, Records};
use crate::prefixed::Prefixed;
use crate::recheck::Recheck;
use crate::records;
use crate::ring::Direction;
use crate::sign;
use crate::target;
use crate::tls::{self, Alpn};
use crate::verify;

/// What the two sidecars switch their connection to.
const RECORDS: HeaderValue = HeaderValue::from_static("mesh-rec");

/// What an application connection goes on as.
pub(super) struct Switched {
    records: Records,
    grant: Grant,
}

/// Carries a handshake to the far application, and its answer back; when that is 101, the stream is open.
pub(super) async fn exchange(
    caller: &Caller,
    mut parts: request::Parts,
    body: Incoming,
    grant: Grant,
    request_id: &str,
) -> Result<Response<Body>, Refusal> {
    let worker = &caller.worker;
    let (protection, sealing) = caller.protection(&caller.destination, &parts.headers, &grant)?;
    // Nothing would come to cover a code: the connection goes on as something else.
    let form = sign::form(sign::at_once(protection));
    let whole_max = sign::whole_max(form, sealing.is_some());
    let payload = Payload::take(body, whole_max).await.map_err(|_| Refusal::MalformedMessage)?;
    // Bytes after the handshake belong to the other protocol; a handshake has no body.
    if !matches!(&payload, Payload::Whole(bytes) if bytes.is_empty()) {
        return Err(Refusal::MalformedMessage);
    }
    super::prepare(&mut parts.headers, &payload, form, sealing.is_some(), request_id)?;
    parts.headers.insert(MESH_UPGRADE, WEBSOCKET);
    let authority = target::received_authority(&parts.uri, &parts.headers).to_owned();
    let (address, identities) = (caller.destination.address, &caller.destination.identities);
    let (stream, channel) = tls::dial(worker, address, identities, Alpn::Http1).await?;
    let grant = caller.judge_peer(&grant, &channel)?;
    let mut connection = http_client::open_once(stream).await.map_err(|_| Refusal::UpstreamUnreachable)?;
    let sealing = sealing.as_deref();
    let (mut request, mut sent) =
        sign::request(worker, &channel, parts, &authority, payload, form, sealing).await?;
    headers::switch_to(request.headers_mut(), RECORDS);
    let response = connection.send(request).await.map_err(|error| {
        tracing::debug!(%error, "handshake not answered");
        if error.is_parse() { Refusal::ResponseUnverified } else { Refusal::UpstreamUnreachable }
    })?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return caller.deliver(response, &channel, &mut sent, grant, address).await;
    }
    let (parts, body) = response.into_parts();
    head::check_response(&parts, Origin::Mesh, Refusal::ResponseUnverified)?;
    // Covered like every field of the mesh: true once the answer is verified.
    if parts.headers.get(MESH_UPGRADE) != Some(&WEBSOCKET) {
        return Err(Refusal::ResponseUnverified);
    }
    let snapshot = worker.shared.snapshots.load_full();
    let verified =
        verify::response(worker, &channel, &snapshot, &mut sent, parts, body, Verification::Gate).await?;
    worker.shared.metrics.requests.inc(Direction::Outbound);

    let (mesh, read) = connection.switched().await.ok_or(Refusal::UpstreamUnreachable)?;
    let peer = channel.peer.id();
    let to = records::Destination {
        workload: peer.as_str(),
        port: caller.destination.port,
        // The frames get no less than the handshake got: what the application asked for, or policy since.
        protection: protection.strictest(grant.protection(&snapshot.index)),
    };
    let records = records::open(worker, mesh, read, &channel, to, false).await?;
    caller.switched.replace(Some(Box::new(Switched { records, grant })));
    caller.switch.set(true);
    let mut response = verified.0.into_inner();
    headers::switch_to(response.headers_mut(), WEBSOCKET);
    Ok(response)
}

/// Carries the bytes of a connection that was switched.
pub(super) async fn carry(caller: &Caller, client: Prefixed, read: Bytes) {
    let Some(switched) = caller.switched.take() else { return };
    let Switched { records, grant } = *switched;
    let worker = &caller.worker;
    let signed = records.writer.is_signed();
    worker.shared.metrics.streams.inc(Direction::Outbound);
    if !signed {
        worker.shared.metrics.unsigned_messages.inc(Direction::Outbound);
    }
    let (client, prefix) = client.into_parts();
    let mut first = BytesMut::from(read);
    first.extend_from_slice(&prefix);
    let recheck = Recheck::of(worker, grant, signed);
    if let Err(broken) = opaque::carry(records, client, first, recheck).await {
        tracing::info!(code = broken.code(), error = %broken, "outbound stream broke off");
    }
}
