//! The outbound pipeline: from the application beside us to another workload.
//!
//! ```text
//! app -> kernel redirect -> listen -> original destination -> route -> detect
//!   HTTP    per request: outbound/http.rs
//!   opaque  outbound/stream.rs
//!   an intermediary       outbound/relayed.rs
//!   not meshed            outbound/egress.rs
//! ```

mod directed;
pub(crate) mod egress;
mod http;
pub(crate) mod originate;
mod relayed;
mod stream;
mod upgrade;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use ::http::{HeaderMap, HeaderValue};
use signet_identity::SpiffeId;
use signet_policy::{Origin, Permit, Protocol as Declared, Refusal, SpeaksFirst};
use signet_signature::Form;
use signet_sync::Entry;
use tokio::net::TcpStream;

use crate::authorize::{Content, Grant};
use crate::body::Payload;
use crate::clock;
use crate::detect::Protocol;
use crate::headers::MESH_REQUEST_ID;
use crate::http_server::{self, REST, Switch, Version};
use crate::prefixed::{HALF_SAID, HALF_SAID_HTTP, Prefixed};
use crate::problem;
use crate::ring::Direction;
use crate::sign;
use crate::snapshot::Snapshot;
use crate::sockets::{original_destination, reset_on_close};
use crate::traffic::Choice;
use crate::worker::{Event, MeshKey, Worker};

/// A meshed destination, found in the directory.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    /// What the application dialled.
    pub(crate) address: SocketAddr,
    /// Who may answer there.
    pub(crate) identities: Rc<[SpiffeId]>,
    /// The first of them: whom policy speaks of.
    pub(crate) id: SpiffeId,
    /// The workload's own port, behind any published one.
    pub(crate) port: u16,
    pub(crate) network: Rc<str>,
    pub(crate) declared: Declared,
    pub(crate) speaks_first: Option<SpeaksFirst>,
    /// Only HTTP may go there: some rule decides by method or path.
    pub(crate) http_only: bool,
    /// The virtual address that was dialled, where it is one of the endpoints behind one.
    pub(crate) behind: Option<Rc<Virtual>>,
}

/// An address that stands for endpoints.
#[derive(Debug)]
pub(crate) struct Virtual {
    pub(crate) network: Rc<str>,
    pub(crate) address: SocketAddr,
    /// The first workload behind it, whose traffic policy counts.
    pub(crate) owner: (SpiffeId, u16),
}

impl Destination {
    pub(crate) fn key(&self, own: &SpiffeId) -> MeshKey {
        MeshKey {
            own: own.clone(),
            expected: Rc::clone(&self.identities),
            network: Rc::clone(&self.network),
            address: self.address,
        }
    }

    /// The facts of an exchange with it.
    pub(crate) fn grant(&self, source: &SpiffeId, content: Content) -> Grant {
        Grant {
            source: Some(source.clone()),
            origin: Origin::LeftToDestination,
            destination: self.id.clone(),
            port: self.port,
            content,
            channel: None,
            signer: None,
            judged: Cell::default(),
        }
    }
}

/// Prepares an application's request for its signature, and names it. One that will be sealed is bound after that.
fn prepare(
    headers: &mut HeaderMap,
    payload: &Payload,
    form: Option<Form>,
    will_be_sealed: bool,
    request_id: &str,
) -> Result<(), Refusal> {
    sign::prepare(headers, payload, form)?;
    if !will_be_sealed {
        sign::bind(headers, payload, form)?;
    }
    let id = HeaderValue::from_str(request_id).map_err(|_| Refusal::MalformedMessage)?;
    headers.insert(MESH_REQUEST_ID, id);
    Ok(())
}

/// Serves one captured outbound connection.
pub(crate) async fn serve(worker: Rc<Worker>, client: TcpStream) {
    if client.peer_addr().is_ok_and(|source| worker.shared.canary.claim(source)) {
        return;
    }
    let Ok(address) = original_destination(&client) else {
        // Somebody dialled the capture port itself: answering would be a loop.
        return refuse(&worker, &client, client.local_addr().ok(), Refusal::LoopDetected);
    };
    let Some(credentials) = worker.shared.credentials() else {
        return refuse(&worker, &client, Some(address), Refusal::NotReady);
    };
    let snapshot = worker.shared.snapshot();
    if !snapshot.ready {
        return refuse(&worker, &client, Some(address), Refusal::NotReady);
    }
    let destination = route(&worker, &snapshot, address);
    let is_intermediary = destination.is_none() && snapshot.index.is_intermediary(address);
    drop(snapshot);
    match destination {
        None if is_intermediary => {
            Box::pin(relayed::serve(worker, credentials.id().clone(), client, address)).await;
        }
        None => Box::pin(egress::serve(&worker, credentials.id(), client, address)).await,
        Some(destination) => {
            meshed(worker, credentials.id().clone(), Prefixed::new(client), destination).await
        }
    }
}

/// Finds the workload behind an address.
fn route(worker: &Worker, snapshot: &Snapshot, address: SocketAddr) -> Option<Destination> {
    let Some((entry, network)) = snapshot.lookup(address) else {
        return behind(worker, snapshot, address);
    };
    Some(remembered(worker, destination(snapshot, entry, network, None)?))
}

/// A destination with what was observed here about who speaks first, where nothing else says it.
fn remembered(worker: &Worker, mut destination: Destination) -> Destination {
    if destination.speaks_first.is_none() {
        let (id, port) = (&destination.id, destination.port);
        destination.speaks_first = worker.habits.borrow().recall(id, port, Instant::now());
    }
    destination
}

/// One of the endpoints behind a virtual address: for a whole connection here, and for each request anew where they
/// are told apart. Where none is known yet, the address is dialled as it is, and the workloads behind it may answer.
fn behind(worker: &Worker, snapshot: &Snapshot, address: SocketAddr) -> Option<Destination> {
    let workloads = |network: &str| snapshot.index.behind(network, address.ip(), address.port());
    let networks = snapshot.directories.iter().map(|directory| directory.network());
    let (network, owner) =
        networks.filter_map(|network| Some((network, workloads(network).next()?))).next()?;
    let owner = (owner.0.clone(), owner.1);
    let identities: Rc<[SpiffeId]> = workloads(network).map(|(id, _)| id.clone()).collect();
    let stands_for = Virtual { network: network.into(), address, owner: owner.clone() };
    let dialled = Destination {
        address,
        http_only: workloads(network).any(|(id, port)| snapshot.index.is_l7(id, port)),
        declared: snapshot.index.protocol(&owner.0, owner.1),
        speaks_first: snapshot.index.speaks_first(&owner.0, owner.1),
        id: owner.0,
        port: owner.1,
        identities,
        network: network.into(),
        behind: Some(Rc::new(stands_for)),
    };
    let now = Instant::now();
    let choice =
        Choice { snapshot, dialled: &dialled, balancing: None, breaking: None, key: None, tried: &[] };
    let chosen = worker.traffic.choose(&worker.traffic.upstream(&dialled, now), &choice, now).ok()?;
    Some(remembered(worker, (*chosen.destination).clone()))
}

/// The endpoints that requests dialled at a destination may go to as well: all behind its virtual address, or all of
/// its own workload in its network.
pub(crate) fn alternatives(snapshot: &Snapshot, dialled: &Destination) -> Vec<Destination> {
    let network = dialled.behind.as_ref().map_or(&*dialled.network, |behind| &*behind.network);
    let Some(directory) = snapshot.directories.iter().find(|directory| directory.network() == network) else {
        return Vec::new();
    };
    let of = |id: &SpiffeId, port: u16| {
        let entries = directory.of(id).filter(move |entry| entry.target_port == port && entry.port != 0);
        entries.filter_map(|entry| destination(snapshot, entry, network, dialled.behind.as_ref())).collect()
    };
    match &dialled.behind {
        Some(behind) => {
            let places = snapshot.index.behind(network, behind.address.ip(), behind.address.port());
            places.flat_map(|(id, port)| -> Vec<Destination> { of(id, port) }).collect()
        }
        None => of(&dialled.id, dialled.port),
    }
}

/// An entry of the directory as a destination.
fn destination(
    snapshot: &Snapshot,
    entry: &Entry,
    network: &str,
    behind: Option<&Rc<Virtual>>,
) -> Option<Destination> {
    let id = entry.identities.first()?.clone();
    let declared = match snapshot.index.protocol(&id, entry.target_port) {
        Declared::Auto => entry.protocol,
        declared => declared,
    };
    let speaks_first = snapshot
        .index
        .speaks_first(&id, entry.target_port)
        .or_else(|| entry.speaks_first_at(clock::unix_seconds()));
    Some(Destination {
        address: SocketAddr::new(entry.address, entry.port),
        port: entry.target_port,
        network: network.into(),
        identities: entry.identities.as_slice().into(),
        http_only: snapshot.index.is_l7(&id, entry.target_port),
        declared,
        speaks_first,
        id,
        behind: behind.cloned(),
    })
}

/// Who is known, or declared, to speak first decides how the protocol is found out.
///
/// What is not HTTP is boxed: a connection's task is as large as its largest branch for as long as it lives, and
/// of these connections a sidecar may hold thousands that are idle.
async fn meshed(worker: Rc<Worker>, own: SpiffeId, mut client: Prefixed, destination: Destination) {
    let silent_start = match (destination.declared, destination.speaks_first) {
        _ if destination.http_only => false,
        (declared, _) if declared.is_http() => false,
        (Declared::Tls, _) | (_, Some(SpeaksFirst::Client)) => false,
        (Declared::Opaque, _) | (_, Some(SpeaksFirst::Server)) => {
            return Box::pin(stream::carry(&worker, &own, client, &destination, false)).await;
        }
        (_, None) => true,
    };
    let protocol = if silent_start {
        match Box::pin(stream::race(&worker, &own, client, &destination)).await {
            Some((detected, protocol)) => {
                client = detected;
                protocol
            }
            None => return,
        }
    } else {
        let http_only = destination.http_only || destination.declared.is_http();
        match client.detect_within(if http_only { HALF_SAID_HTTP } else { HALF_SAID }).await {
            Ok(Some(protocol)) => protocol,
            // A client that connects and leaves without a word still has to be seen to do so, but
            // not by an HTTP application.
            Ok(None) if http_only => return,
            Ok(None) => Protocol::Opaque,
            Err(_) => return reset_on_close(client.get_ref()),
        }
    };
    match protocol {
        Protocol::Http1 => http::serve(worker, own, client, destination, Version::Http1).await,
        Protocol::Http2 => http::serve(worker, own, client, destination, Version::Http2).await,
        // An application that speaks our ALPN itself is carried like any other TLS.
        Protocol::Mesh | Protocol::Opaque | Protocol::Tls => {
            Box::pin(stream::carry(&worker, &own, client, &destination, false)).await
        }
    }
}

/// Refuses a connection in its own language: HTTP is answered with the reason, anything else reset.
async fn explain(worker: &Rc<Worker>, client: TcpStream, address: SocketAddr, refusal: Refusal) {
    let mut client = Prefixed::new(client);
    // A client that waits for the server to speak first learns by the reset.
    let version = match tokio::time::timeout(HALF_SAID, client.detect()).await {
        Ok(Ok(Some(Protocol::Http1))) => Version::Http1,
        Ok(Ok(Some(Protocol::Http2))) => Version::Http2,
        _ => return refuse(worker, client.get_ref(), Some(address), refusal),
    };
    let refused = Rc::clone(worker);
    let respond = move |_| {
        let request_id = refused.request_id();
        refused.record(&unmeshed(&request_id, address, &Err(refusal)));
        let note = refused.note(refusal, None);
        let response = problem::response(refusal, &request_id, note.as_deref());
        Box::pin(std::future::ready(Ok(response))) as http_server::Answer
    };
    // The client may break off; it has its answer or does not want it.
    let _ = http_server::serve(client, version, worker.drain.clone(), Switch::default(), REST, respond).await;
}

/// Ends a connection with a reset and says why in the records.
fn refuse(worker: &Worker, client: &TcpStream, address: Option<SocketAddr>, refusal: Refusal) {
    reset_on_close(client);
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
    let outcome = Err(refusal);
    worker.record(&unmeshed(&worker.request_id(), address.unwrap_or(unknown), &outcome));
}

fn unmeshed<'a>(request_id: &'a str, address: SocketAddr, outcome: &'a Result<Permit, Refusal>) -> Event<'a> {
    Event { request_id, direction: Direction::Outbound, peer: "", address, grant: None, outcome }
}
