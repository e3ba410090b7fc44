//! WebSockets of another workload: the handshake is a verified exchange, what follows on its connection are records.

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, StatusCode};
use signet_policy::{Permit, Refusal};
use signet_signature::seal::MessageKeys;
use signet_sync::Gap;
use tokio::net::TcpStream;

use super::http::{Callee, identify};
use super::{app, bind};
use crate::authorize::Grant;
use crate::body::{Body, Payload};
use crate::head::{self, Origin};
use crate::headers::{self, MESH_UPGRADE, WEBSOCKET};
use crate::http_client;
use crate::opaque;
use crate::recheck::Recheck;
use crate::records::{self, Destination};
use crate::ring::Direction;
use crate::sign::{self, SentRequest};
use crate::sockets::reset_on_close;
use crate::tls::MeshStream;
use crate::verify::Verified;

/// What the two sidecars switch their connection to.
const RECORDS: HeaderValue = HeaderValue::from_static("mesh-rec");

/// What a mesh connection goes on as.
pub(super) struct Switched {
    app: TcpStream,
    /// The application's first bytes, when they came right behind its answer.
    first: Bytes,
    grant: Grant,
}

/// Carries a handshake to the application, on a connection of its own. It takes the permit as [`Callee`]'s forwarding
/// does: there is no other way to the application.
pub(super) async fn exchange(
    callee: &Callee,
    _permit: &Permit,
    request: Verified<Request<Body>>,
    received: &SentRequest,
    keys: Option<Box<MessageKeys>>,
    grant: Grant,
) -> Result<Response<Body>, Refusal> {
    let worker = &callee.worker;
    if received.headers.get(MESH_UPGRADE) != Some(&WEBSOCKET) {
        return Err(Refusal::UpgradeUnsupported);
    }
    let mut request = request.into_inner();
    if !request.body().is_nothing() {
        return Err(Refusal::MalformedMessage);
    }
    identify(request.headers_mut(), callee.channel.peer.id(), &callee.reached.own);
    headers::switch_to(request.headers_mut(), WEBSOCKET);
    let stream = app::dial(worker, callee.reached.address).await?;
    let mut connection = http_client::open_once(stream).await.map_err(|_| Refusal::UpstreamUnreachable)?;
    let response = connection.send(request).await.map_err(|error| {
        tracing::info!(%error, "application did not answer the handshake");
        Refusal::UpstreamUnreachable
    })?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return callee.sign(received, keys, grant, response).await;
    }
    let (mut parts, _) = response.into_parts();
    head::check_response(&parts, Origin::App, Refusal::UpstreamUnreachable)?;
    if !headers::is_websocket(&parts.headers) {
        return Err(Refusal::UpstreamUnreachable);
    }
    let (app, first) = connection.switched().await.ok_or(Refusal::UpstreamUnreachable)?;
    let unbound = |_| Refusal::UpstreamUnreachable;
    let payload = Payload::Whole(Bytes::new());
    let payload = bind(worker, &mut parts.headers, payload, received.form, keys, &grant).map_err(unbound)?;
    parts.headers.insert(MESH_UPGRADE, WEBSOCKET);
    let response = sign::response(worker, &callee.channel, received, parts, payload).await;
    let mut response = response.map_err(unbound)?;
    headers::switch_to(response.headers_mut(), RECORDS);
    callee.switched.replace(Some(Box::new(Switched { app, first, grant })));
    callee.switch.set(true);
    Ok(response)
}

/// Carries the bytes of a connection that was switched.
pub(super) async fn carry(callee: &Callee, mesh: MeshStream, read: Bytes) {
    let Some(switched) = callee.switched.take() else { return };
    let Switched { app, first, grant } = *switched;
    let (worker, channel, own) = (&callee.worker, &callee.channel, &callee.reached.own);
    // As its handshake: it is the same route.
    let protection = grant.protection(&worker.shared.snapshot().index);
    let reached = Destination { workload: own.as_str(), port: callee.reached.address.port(), protection };
    let opened = match records::accept(worker, mesh, read, channel, reached).await {
        Ok(opened) => opened.answer().await,
        Err(refusal) => Err(refusal),
    };
    let records = match opened {
        Ok(records) => records,
        Err(refusal) => {
            tracing::info!(code = refusal.code(), "stream after a handshake was not opened");
            return reset_on_close(&app);
        }
    };
    let signed = records.writer.is_signed();
    worker.shared.metrics.streams.inc(Direction::Inbound);
    if !signed {
        worker.shared.metrics.unsigned_messages.inc(Direction::Inbound);
        worker.lacked(&grant, &[Gap::Unsigned]);
    }
    let recheck = Recheck::of(worker, grant, signed);
    if let Err(broken) = opaque::carry(records, app, BytesMut::from(first), recheck).await {
        tracing::info!(code = broken.code(), error = %broken, "inbound stream broke off");
    }
}
