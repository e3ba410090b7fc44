//! Destinations that are not meshed: passed on as they are where policy lets them, else refused.
//!
//! Where policy goes by names, the application's first bytes are looked at: HTTP is judged request by request by its
//! host, TLS by the server name of its ClientHello. Both are what the application says; only where the sidecar itself
//! opens TLS is the name proven.

use std::net::SocketAddr;
use std::rc::Rc;

use bytes::BytesMut;
use http::{Request, Response};
use hyper::body::Incoming;
use signet_identity::SpiffeId;
use signet_policy::{Egress, Origination, Refusal, Staleness, Transport};
use signet_sync::{Edge, End, Gap};
use tokio::net::TcpStream;

use super::originate;
use crate::authorize::Content;
use crate::body::Body;
use crate::clock;
use crate::detect::{self, Protocol};
use crate::head::{self, Origin};
use crate::headers;
use crate::http_client;
use crate::http_server::{self, REST, Switch, Version};
use crate::opaque;
use crate::pool::Connection;
use crate::prefixed::{HALF_SAID, HALF_SAID_HTTP, Prefixed};
use crate::problem;
use crate::recheck::Recheck;
use crate::ring::Direction;
use crate::snapshot::Snapshot;
use crate::sockets::dial;
use crate::target;
use crate::worker::Worker;

/// What stands outside the mesh, as dialled. Connections are shared by the requests of the one application.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct OutsideKey {
    address: SocketAddr,
    version: Version,
    tls: Option<originate::Key>,
}

/// Serves a connection to an unmeshed destination. DNS over TCP never gets here: it is not captured.
pub(crate) async fn serve(worker: &Rc<Worker>, own: &SpiffeId, client: TcpStream, address: SocketAddr) {
    let allowed = {
        let snapshot = worker.shared.snapshot();
        // What leaves the mesh is no rule's, so none can keep it.
        fresh(&snapshot)
            .and_then(|()| snapshot.index.egress(own, address.ip(), address.port(), Transport::Tcp))
    };
    match allowed {
        Err(refusal) => super::explain(worker, client, address, refusal).await,
        Ok(Egress::Named) => named(worker, own, client, address).await,
        Ok(Egress::Listed | Egress::Permissive) => {
            copy(worker, own, client, BytesMut::new(), address, None).await;
        }
    }
}

/// A policy that has grown stale lets nothing out of the mesh.
fn fresh(snapshot: &Snapshot) -> Result<(), Refusal> {
    if snapshot.staleness() == Staleness::Fresh { Ok(()) } else { Err(Refusal::PolicyStale) }
}

/// Waits for a name, as long as it takes HTTP and TLS to say one.
async fn named(worker: &Rc<Worker>, own: &SpiffeId, client: TcpStream, address: SocketAddr) {
    let mut client = Prefixed::new(client);
    // Where the server speaks first nobody names anything: what may pass without a name is not waited for long.
    let nameless = worker.shared.snapshot().index.egress_to(own, address.ip(), address.port(), None).is_ok();
    let patience = if nameless { HALF_SAID } else { HALF_SAID_HTTP };
    let detected = match tokio::time::timeout(patience, client.detect_within(patience)).await {
        Ok(Ok(Some(detected))) => detected,
        Ok(Ok(None) | Err(_)) => return,
        Err(_) => Protocol::Opaque,
    };
    let name = match detected {
        Protocol::Http1 => return http(worker, own, client, address, Version::Http1).await,
        Protocol::Http2 => return http(worker, own, client, address, Version::Http2).await,
        Protocol::Mesh | Protocol::Tls => detect::server_name(client.prefix()),
        Protocol::Opaque => None,
    };
    let (client, first) = client.into_parts();
    let judged = {
        let snapshot = worker.shared.snapshot();
        let tls = snapshot.index.egress_to(own, address.ip(), address.port(), name.as_deref());
        tls.map(|tls| tls.is_some())
    };
    match judged {
        // TLS within TLS is what nobody asked for.
        Ok(true) => super::refuse(worker, &client, Some(address), Refusal::UnmeshedDestination),
        Ok(false) => copy(worker, own, client, first, address, name).await,
        Err(refusal) => super::refuse(worker, &client, Some(address), refusal),
    }
}

/// Copies bytes both ways, as long as that is permitted.
async fn copy(
    worker: &Rc<Worker>,
    own: &SpiffeId,
    client: TcpStream,
    first: BytesMut,
    address: SocketAddr,
    name: Option<String>,
) {
    let Ok(server) = dial(address, worker.shared.config.exempt).await else {
        return super::refuse(worker, &client, Some(address), Refusal::UpstreamUnreachable);
    };
    worker.shared.metrics.plaintext.inc(Direction::Outbound);
    note_plaintext(worker, own, address, name.as_deref());
    let recheck = still_permitted(worker, own, address, name);
    if let Err(error) = opaque::copy(client, first, server, recheck).await {
        tracing::debug!(%address, %error, "unmeshed connection broke off");
    }
}

/// Notes that something left the mesh in clear, and whether anything but the permissive mode lets it.
fn note_plaintext(worker: &Worker, own: &SpiffeId, address: SocketAddr, called: Option<&str>) {
    let snapshot = worker.shared.snapshot();
    let (index, ip, port) = (&snapshot.index, address.ip(), address.port());
    let name = called.and_then(|called| index.egress_name(own, ip, port, called)).cloned();
    let edge = Edge { end: End::Outside(ip.to_canonical(), name), port };
    let gaps: &[Gap] = match index.egress(own, ip, port, Transport::Tcp) {
        Ok(Egress::Permissive) => &[Gap::Plaintext, Gap::Uncovered],
        Ok(Egress::Listed | Egress::Named) | Err(_) => &[Gap::Plaintext],
    };
    worker.shared.edges.lacked(edge, gaps, clock::unix_ms());
}

fn still_permitted(
    worker: &Rc<Worker>,
    own: &SpiffeId,
    address: SocketAddr,
    name: Option<String>,
) -> Recheck {
    let source = own.clone();
    Recheck::by(worker, move |snapshot| {
        let name = name.as_deref();
        let allowed = snapshot.index.egress_to(&source, address.ip(), address.port(), name).is_ok();
        allowed && fresh(snapshot).is_ok() && snapshot.lookup(address).is_none()
    })
}

/// Serves the requests of one application connection, each judged by its own host.
async fn http(worker: &Rc<Worker>, own: &SpiffeId, client: Prefixed, address: SocketAddr, version: Version) {
    let drain = worker.drain.clone();
    let (worker, own) = (Rc::clone(worker), own.clone());
    worker.shared.metrics.plaintext.inc(Direction::Outbound);
    let served = http_server::serve(client, version, drain, Switch::default(), REST, move |request| {
        let (worker, own) = (Rc::clone(&worker), own.clone());
        Box::pin(async move {
            let request_id = worker.request_id();
            let outcome = exchange(&worker, &own, request, address, version).await;
            Ok(outcome.unwrap_or_else(|refusal| {
                worker.record(&super::unmeshed(&request_id, address, &Err(refusal)));
                problem::response(refusal, &request_id, worker.note(refusal, None).as_deref())
            }))
        })
    });
    if let Err(error) = served.await {
        tracing::debug!(%address, %error, "unmeshed connection ended");
    }
}

async fn exchange(
    worker: &Rc<Worker>,
    own: &SpiffeId,
    request: Request<Incoming>,
    address: SocketAddr,
    version: Version,
) -> Result<Response<Body>, Refusal> {
    let (mut parts, body) = request.into_parts();
    head::check_request(&parts, Origin::App)?;
    let Content::Http { authority, .. } = target::unambiguous(&parts.method, &parts.uri, &parts.headers)?
    else {
        return Err(Refusal::MalformedMessage);
    };
    if headers::is_websocket(&parts.headers) {
        return Err(Refusal::UpgradeUnsupported);
    }
    let snapshot = worker.shared.snapshots.load_full();
    fresh(&snapshot)?;
    let tls = judge(&snapshot, own, address, &authority)?;
    headers::check_framing(&parts.headers)?;
    headers::strip_hop(&mut parts.headers);
    headers::strip_protected(&mut parts.headers);
    let tls = match tls {
        Some(tls) => Some((originate::Key::of(tls, &authority)?, tls)),
        None => None,
    };
    if tls.is_some() {
        originate::as_https(&mut parts)?;
    }
    let permitted = || still_permitted(worker, own, address, Some((*authority).to_owned()));
    let body = Body::plain(body).rechecked(permitted);
    let mut request = Request::from_parts(parts, body);
    if version == Version::Http1 && !request.body().has_length() {
        headers::frame_as_chunked(request.headers_mut());
    }
    let key = OutsideKey { address, version, tls: tls.as_ref().map(|(key, _)| key.clone()) };
    // Boxed: a new connection is rare, and would make the task of every request larger.
    let open = || Box::pin(connect(worker, &key, tls.as_ref().map(|(_, tls)| *tls)));
    let lease = match version {
        Version::Http1 => worker.outside.checkout_http1(&key, open).await?,
        Version::Http2 => worker.outside.checkout_http2(&key, open).await?,
    };
    let (response, hold) = lease.send(request).await.map_err(|error| {
        tracing::debug!(%address, error = %error.source, "server outside the mesh did not answer");
        Refusal::UpstreamUnreachable
    })?;
    let (mut parts, body) = response.into_parts();
    head::check_response(&parts, Origin::App, Refusal::UpstreamUnreachable)?;
    if parts.status.is_informational() {
        return Err(Refusal::UpstreamUnreachable);
    }
    headers::strip_hop(&mut parts.headers);
    if key.tls.is_none() {
        note_plaintext(worker, own, address, Some(&authority));
    }
    Ok(Response::from_parts(parts, Body::plain(body).holding(hold).rechecked(permitted)))
}

/// Whether a request may leave, and how.
fn judge<'a>(
    snapshot: &'a Snapshot,
    own: &SpiffeId,
    address: SocketAddr,
    authority: &str,
) -> Result<Option<&'a Origination>, Refusal> {
    // What has become a workload of the mesh is no longer reached in this way.
    if snapshot.lookup(address).is_some() {
        return Err(Refusal::UnmeshedDestination);
    }
    snapshot.index.egress_to(own, address.ip(), address.port(), Some(authority))
}

async fn connect(
    worker: &Rc<Worker>,
    key: &OutsideKey,
    tls: Option<&Origination>,
) -> Result<Connection<()>, Refusal> {
    let exempt = worker.shared.config.exempt;
    let sender = match (&key.tls, tls) {
        (Some(tls_key), Some(tls)) => {
            let address = SocketAddr::new(key.address.ip(), tls.port);
            let stream = originate::dial(worker, address, tls_key, key.version).await?;
            http_client::open(stream, key.version).await
        }
        _ => {
            let stream = dial(key.address, exempt).await.map_err(|_| Refusal::UpstreamUnreachable)?;
            http_client::open(stream, key.version).await
        }
    };
    let sender = sender.map_err(|_| Refusal::UpstreamUnreachable)?;
    Ok(Connection { sender, context: (), usable_until: None })
}
