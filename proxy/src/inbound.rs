//! The inbound pipeline: from another workload to the application beside us.
//!
//! ```text
//! wire -> listen -> original destination -> detect
//!   mesh ALPN  tls::accept -> Peer
//!     mesh-h1, mesh-h2  per request: inbound/http.rs   verify -> decide -> forward
//!     mesh-rec          inbound/stream.rs
//!   HTTP of an intermediary   inbound/relayed.rs       verify -> decide -> forward
//!   anything else       inbound/plaintext.rs           refused in strict mode
//! ```

mod app;
mod http;
mod plaintext;
mod relayed;
mod stream;
mod upgrade;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ::http::{HeaderMap, Request};
use signet_identity::{ALPN_H1, ALPN_H2, ALPN_RECORDS, SpiffeId};
use signet_policy::{MtlsMode, Origin, Refusal};
use signet_signature::Form;
use signet_signature::seal::MessageKeys;
use tokio::net::TcpStream;

use crate::authorize::{Content, Grant};
use crate::body::{Body, Payload};
use crate::clock;
use crate::detect::Protocol;
use crate::headers;
use crate::http_server::Version;
use crate::limits::Stranger;
use crate::prefixed::Prefixed;
use crate::ring::Direction;
use crate::seal;
use crate::sign;
use crate::snapshot::Snapshot;
use crate::sockets::{canonical, original_destination, reset_on_close};
use crate::tls;
use crate::worker::{Event, Worker};

/// How long a caller may stay silent before its ClientHello where plaintext is not taken: the bound
/// on half-open connections.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// One of our own ports, as a caller reached it.
#[derive(Clone, Debug)]
pub(crate) struct Reached {
    /// Our identity.
    pub(crate) own: SpiffeId,
    /// The application's address: the kernel's original destination.
    pub(crate) address: SocketAddr,
    /// Where the caller comes from, as far as addresses tell.
    pub(crate) caller: SocketAddr,
}

impl Reached {
    /// The facts of an exchange with a caller of this identity, or of none.
    fn grant(&self, source: Option<SpiffeId>, content: Content) -> Grant {
        Grant {
            source,
            origin: Origin::Seen(self.caller.ip()),
            destination: self.own.clone(),
            port: self.address.port(),
            content,
            channel: None,
            signer: None,
            judged: Cell::default(),
        }
    }
}

/// Serves one captured inbound connection.
pub(crate) async fn serve(worker: Rc<Worker>, client: TcpStream) {
    let Ok(caller) = client.peer_addr().map(canonical) else { return };
    let Ok(address) = original_destination(&client) else {
        return refuse(&worker, &client, caller, Refusal::LoopDetected);
    };
    // The rules redirect whatever enters the interface, also what a neighbour only routes through us.
    if !worker.own.contains(address.ip()) {
        return refuse(&worker, &client, caller, Refusal::LoopDetected);
    }
    let Some(stranger) = worker.strangers.enter(caller.ip()) else {
        return refuse(&worker, &client, caller, Refusal::Overloaded);
    };
    let snapshot = worker.shared.snapshot();
    let Some(credentials) = worker.shared.credentials().filter(|_| snapshot.ready) else {
        return refuse(&worker, &client, caller, Refusal::NotReady);
    };
    let strict = snapshot.index.mtls(credentials.id()) == MtlsMode::Strict;
    let is_relayed = snapshot.index.hands_on(caller.ip(), credentials.id(), address.port());
    drop(snapshot);
    let reached = Reached { own: credentials.id().clone(), address, caller };
    let mut client = Prefixed::new(client);
    if is_relayed {
        return Box::pin(relayed::serve(worker, client, reached, stranger)).await;
    }
    if !strict {
        // Boxed like every branch but the usual one: a task is as large as its largest branch as long as it lives.
        return Box::pin(plaintext::permissive(worker, client, reached, stranger)).await;
    }
    match tokio::time::timeout(HELLO_TIMEOUT, client.detect()).await {
        Ok(Ok(Some(Protocol::Mesh))) => mesh(worker, client, reached, stranger).await,
        // Nothing was said: a port scan or a health check at TCP level, not worth a refusal.
        Ok(Ok(None) | Err(_)) => {}
        Ok(Ok(Some(_))) | Err(_) => refuse(&worker, client.get_ref(), caller, Refusal::PlaintextRefused),
    }
}

/// Serves a caller whose ClientHello offers a mesh protocol.
async fn mesh(worker: Rc<Worker>, client: Prefixed, reached: Reached, stranger: Stranger) {
    let (stream, channel) = match Box::pin(tls::accept(&worker, client)).await {
        Ok(accepted) => accepted,
        Err(refusal) => {
            let unknown = Event {
                request_id: &worker.request_id(),
                direction: Direction::Inbound,
                peer: "",
                address: reached.caller,
                grant: None,
                outcome: &Err(refusal),
            };
            return worker.record(&unknown);
        }
    };
    // From here on the caller's identity is what its use is counted by.
    drop(stranger);
    let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    match alpn.as_deref() {
        Some(ALPN_H1) => http::serve(worker, stream, channel, reached, Version::Http1).await,
        Some(ALPN_H2) => http::serve(worker, stream, channel, reached, Version::Http2).await,
        Some(ALPN_RECORDS) => Box::pin(stream::serve(&worker, stream, channel, reached)).await,
        // The handshake fails where no protocol is shared.
        _ => {}
    }
}

/// Counts a permitted request of `caller`, unless a limit of the workload has been reached: then `retry_after` tells when
/// it may come again.
fn admit(
    worker: &Worker,
    snapshot: &Snapshot,
    grant: &Grant,
    caller: &str,
    retry_after: &mut Option<Duration>,
) -> Result<(), Refusal> {
    let Some(asked) = grant.content.request() else { return Ok(()) };
    let rates = &worker.shared.rates;
    rates.admit(&snapshot.index, &grant.destination, grant.port, asked, caller).map_err(|wait| {
        *retry_after = Some(wait);
        Refusal::RateLimited
    })
}

/// Tells the application who calls, and keeps from it what this caller may not say. To be done with what was decided on,
/// right before it is handed on.
fn tell_caller(request: &mut Request<Body>, snapshot: &Snapshot, grant: &Grant) {
    let caller = grant.source.as_ref();
    let plan = snapshot.index.header_plan(caller, &grant.destination, grant.port, clock::unix_seconds());
    headers::tell_caller(request.headers_mut(), &plan, caller);
    request.body_mut().withhold(headers::withheld_trailers(&plan));
}

/// Prepares the application's response for its signature, sealed where its request was.
fn bind(
    worker: &Worker,
    headers: &mut HeaderMap,
    payload: Payload,
    form: Option<Form>,
    keys: Option<Box<MessageKeys>>,
    grant: &Grant,
) -> Result<Payload, Refusal> {
    sign::prepare(headers, &payload, form)?;
    let payload = match keys {
        Some(keys) => {
            let names = seal::names(&grant.sealed_headers(&worker.shared.snapshot().index));
            seal::response(*keys, &names, headers, payload)?
        }
        None => payload,
    };
    sign::bind(headers, &payload, form)?;
    Ok(payload)
}

fn refuse(worker: &Worker, client: &TcpStream, caller: SocketAddr, refusal: Refusal) {
    reset_on_close(client);
    worker.record(&Event {
        request_id: &worker.request_id(),
        direction: Direction::Inbound,
        peer: "",
        address: caller,
        grant: None,
        outcome: &Err(refusal),
    });
}
