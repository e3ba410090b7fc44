//! The outbound pipeline: from the application beside us to another workload.
//!
//! ```text
//! app -> kernel redirect -> listen -> original destination -> route -> detect
//!   HTTP    per request: outbound/http.rs
//!   opaque  outbound/stream.rs
//!   an intermediary       outbound/relayed.rs
//!   not meshed            outbound/egress.rs
//! ```

mod egress;
mod http;
mod relayed;
mod stream;
mod upgrade;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use signet_identity::SpiffeId;
use signet_policy::{Origin, Permit, Protocol as Declared, Refusal, SpeaksFirst};
use tokio::net::TcpStream;

use crate::authorize::{Content, Grant};
use crate::clock;
use crate::detect::Protocol;
use crate::http_server::{self, Switch, Version};
use crate::prefixed::{HALF_SAID, HALF_SAID_HTTP, Prefixed};
use crate::problem;
use crate::ring::Direction;
use crate::snapshot::Snapshot;
use crate::sockets::{original_destination, reset_on_close};
use crate::worker::{Event, MeshKey, Worker};

/// A meshed destination, found in the directory.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    /// What the application dialled.
    pub(crate) address: SocketAddr,
    /// Who may answer there.
    pub(crate) identities: Vec<SpiffeId>,
    /// The first of them: whom policy speaks of.
    pub(crate) id: SpiffeId,
    /// The workload's own port, behind any published one.
    pub(crate) port: u16,
    pub(crate) network: String,
    pub(crate) declared: Declared,
    pub(crate) speaks_first: Option<SpeaksFirst>,
    /// Only HTTP may go there: some rule decides by method or path.
    pub(crate) http_only: bool,
}

impl Destination {
    pub(crate) fn key(&self, own: &SpiffeId) -> MeshKey {
        MeshKey {
            own: own.clone(),
            expected: self.identities.clone(),
            network: self.network.clone(),
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
        }
    }
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
    let (entry, network) = snapshot.lookup(address)?;
    let id = entry.identities.first()?.clone();
    let declared = match snapshot.index.protocol(&id, entry.target_port) {
        Declared::Auto => entry.protocol,
        declared => declared,
    };
    let observed = || worker.habits.borrow().recall(&id, entry.target_port, Instant::now());
    let speaks_first = snapshot
        .index
        .speaks_first(&id, entry.target_port)
        .or_else(|| entry.speaks_first_at(clock::unix_seconds()))
        .or_else(observed);
    Some(Destination {
        address,
        port: entry.target_port,
        network: network.to_owned(),
        identities: entry.identities.clone(),
        http_only: snapshot.index.is_l7(&id, entry.target_port),
        declared,
        speaks_first,
        id,
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
        let response = problem::response(refusal, &request_id);
        Box::pin(std::future::ready(Ok(response))) as http_server::Answer
    };
    // The client may break off; it has its answer or does not want it.
    let _ = http_server::serve(client, version, worker.drain.clone(), Switch::default(), respond).await;
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
