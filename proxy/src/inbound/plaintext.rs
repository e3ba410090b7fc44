//! Callers without a sidecar, where the mode is `permissive`. They have no identity: only rules
//! for `anyone` let them in, and HTTP is still judged by method and path.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use http::{Request, Response};
use hyper::body::Incoming;
use signet_policy::{MtlsMode, Permit, Refusal, SpeaksFirst};
use signet_sync::Gap;
use tokio::net::TcpStream;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Reached, admit, app, refuse, tell_caller};
use crate::authorize::{Content, Grant};
use crate::body::Body;
use crate::detect::Protocol;
use crate::head::{self, Origin};
use crate::headers;
use crate::http_server::{self, Switch, Version};
use crate::limits::Stranger;
use crate::opaque;
use crate::prefixed::Prefixed;
use crate::problem;
use crate::recheck::Recheck;
use crate::ring::Direction;
use crate::round_trip;
use crate::sockets::reset_on_close;
use crate::target::{self, Addressee};
use crate::worker::{AppKey, Event, Worker};

/// How long an application's greeting is held back at least for a caller that might still turn out to
/// be a sidecar unknown to us: its ClientHello follows its handshake at once.
const GREETING_HOLD: Duration = Duration::from_millis(50);
/// The same in round trips of its connection: one for the handshake's end and the ClientHello behind
/// it, and as much again for a path that is slower than measured.
const GREETING_ROUND_TRIPS: u32 = 2;
/// And at most: one round trip by satellite (600 ms) fits, and a plain client, for whom this is waiting
/// in vain, still takes the server for a slow one.
const GREETING_HOLD_MAX: Duration = Duration::from_secs(1);
/// How long a caller may stay silent where its own bytes are needed to go on.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a caller that is known to have a sidecar may take for its ClientHello.
const MESHED_HELLO: Duration = Duration::from_secs(10);

/// What a caller turned out to be.
enum Caller {
    /// It left, or broke off, without a word.
    Gone,
    /// A program without a sidecar. The application is dialled already where it had to be, to find
    /// out who speaks first.
    Plain { spoken: Spoken, app: Option<TcpStream> },
    /// Another sidecar.
    Sidecar,
    /// It has a sidecar, and that said nothing.
    Silent,
}

/// What a program without a sidecar speaks.
#[derive(Clone, Copy)]
enum Spoken {
    Http(Version),
    Opaque,
}

/// Serves a caller after telling sidecars from other programs.
pub(crate) async fn permissive(
    worker: Rc<Worker>,
    mut client: Prefixed,
    reached: Reached,
    stranger: Stranger,
) {
    match identify(&worker, &mut client, &reached).await {
        Caller::Gone => {}
        Caller::Plain { spoken, app } => {
            // From here on it counts as what it is: an open connection.
            drop(stranger);
            match spoken {
                Spoken::Http(version) => {
                    if let Some(app) = app {
                        worker.shared.parked.put(reached.address, None, app);
                    }
                    serve_http(worker, client, reached, version).await;
                }
                Spoken::Opaque => carry(&worker, client, app, &reached).await,
            }
        }
        Caller::Sidecar => super::mesh(worker, client, reached, stranger).await,
        Caller::Silent => refuse(&worker, client.get_ref(), reached.caller, Refusal::PlaintextRefused),
    }
}

async fn identify(worker: &Worker, client: &mut Prefixed, reached: &Reached) -> Caller {
    let snapshot = worker.shared.snapshot();
    let meshed = snapshot.is_meshed(reached.caller.ip());
    let server_first =
        snapshot.index.speaks_first(&reached.own, reached.address.port()) == Some(SpeaksFirst::Server);
    let opaque_passes = reached.grant(None, Content::Opaque).decide(&snapshot).is_ok();
    drop(snapshot);
    let detected = match (meshed, server_first) {
        (true, _) => timeout(MESHED_HELLO, client.detect()).await,
        (false, true) => timeout(Duration::ZERO, client.detect()).await,
        (false, false) => first_words(client).await,
    };
    match detected {
        Ok(detected) => caller(detected, None),
        Err(_) if meshed => Caller::Silent,
        Err(_) if opaque_passes => first_to_speak(worker, client, reached).await,
        // Opaque bytes will not pass, but a slow HTTP client may.
        Err(_) => match timeout(SILENCE, client.detect()).await {
            Ok(detected) => caller(detected, None),
            Err(_) => Caller::Gone,
        },
    }
}

/// What the caller says while its greeting is held back.
async fn first_words(client: &mut Prefixed) -> Result<io::Result<Option<Protocol>>, Elapsed> {
    let accepted = Instant::now();
    // Who speaks at once, as nearly everybody does, costs the kernel no question.
    if let Ok(detected) = timeout(GREETING_HOLD, client.detect()).await {
        return Ok(detected);
    }
    let hold = greeting_hold(round_trip::measured(client.get_ref()).await);
    timeout_at(accepted + hold, client.detect()).await
}

/// How long a greeting is held back; the shortest time where the kernel does not tell the round trip.
fn greeting_hold(round_trip: Option<Duration>) -> Duration {
    let needed = round_trip.unwrap_or_default().saturating_mul(GREETING_ROUND_TRIPS);
    needed.clamp(GREETING_HOLD, GREETING_HOLD_MAX)
}

/// Nobody spoke in time: the application is dialled, and whoever speaks now speaks first.
async fn first_to_speak(worker: &Worker, client: &mut Prefixed, reached: &Reached) -> Caller {
    let Ok(app) = app::dial(worker, reached.address).await else {
        reset_on_close(client.get_ref());
        return Caller::Gone;
    };
    let mut first = [0; 1];
    tokio::select! {
        biased;
        detected = client.detect() => caller(detected, Some(app)),
        _ = app.peek(&mut first) => Caller::Plain { spoken: Spoken::Opaque, app: Some(app) },
        () = tokio::time::sleep(SILENCE) => Caller::Gone,
    }
}

fn caller(detected: io::Result<Option<Protocol>>, app: Option<TcpStream>) -> Caller {
    let spoken = match detected {
        Ok(Some(Protocol::Mesh)) => return Caller::Sidecar,
        Ok(Some(Protocol::Http1)) => Spoken::Http(Version::Http1),
        Ok(Some(Protocol::Http2)) => Spoken::Http(Version::Http2),
        Ok(Some(Protocol::Opaque | Protocol::Tls) | None) => Spoken::Opaque,
        Err(_) => return Caller::Gone,
    };
    Caller::Plain { spoken, app }
}

/// Passes on bytes that are not HTTP, if policy lets them.
async fn carry(worker: &Rc<Worker>, client: Prefixed, app: Option<TcpStream>, reached: &Reached) {
    let grant = reached.grant(None, Content::Opaque);
    let decided = grant.decide(&worker.shared.snapshot());
    record(worker, &worker.request_id(), reached, Some(&grant), &decided);
    if decided.is_err() {
        return reset_on_close(client.get_ref());
    }
    let app = match app {
        Some(app) => app,
        None => match app::dial(worker, reached.address).await {
            Ok(app) => app,
            Err(refusal) => return refuse(worker, client.get_ref(), reached.caller, refusal),
        },
    };
    worker.shared.metrics.plaintext.inc(Direction::Inbound);
    worker.carries(&grant, Some(Gap::Plaintext));
    let (client, first): (TcpStream, BytesMut) = client.into_parts();
    let recheck = still_permissive(worker, grant.clone());
    if let Err(error) = opaque::copy(client, first, app, recheck).await {
        tracing::debug!(caller = %reached.caller, %error, "plaintext connection broke off");
    }
}

/// Plaintext goes on while the mode takes it and a rule allows it.
fn still_permissive(worker: &Rc<Worker>, grant: Grant) -> Recheck {
    Recheck::by(worker, move |snapshot| {
        snapshot.index.mtls(&grant.destination) == MtlsMode::Permissive && grant.stands(snapshot)
    })
}

async fn serve_http(worker: Rc<Worker>, client: Prefixed, reached: Reached, version: Version) {
    worker.shared.metrics.plaintext.inc(Direction::Inbound);
    let drain = worker.drain.clone();
    let rest = http_server::STRANGERS_REST;
    let served = http_server::serve(client, version, drain, Switch::default(), rest, move |request| {
        let (worker, reached) = (Rc::clone(&worker), reached.clone());
        Box::pin(async move { Ok(respond(&worker, &reached, version, request).await) })
    });
    if let Err(error) = served.await {
        tracing::debug!(%error, "plaintext connection ended");
    }
}

pub(super) async fn respond(
    worker: &Rc<Worker>,
    reached: &Reached,
    version: Version,
    request: Request<Incoming>,
) -> Response<Body> {
    let request_id = worker.request_id();
    let mut granted = None;
    let mut wait = None;
    let outcome = exchange(worker, reached, version, request, &mut granted, &mut wait).await;
    let (response, decided) = match outcome {
        Ok((response, permit)) => {
            if let Some(grant) = &granted {
                worker.lacked(grant, &[Gap::Plaintext]);
            }
            (response, Ok(permit))
        }
        Err(refusal) => {
            let note = worker.note(refusal, None);
            let mut response = problem::response(refusal, &request_id, note.as_deref());
            problem::try_again(&mut response, wait);
            (response, Err(refusal))
        }
    };
    record(worker, &request_id, reached, granted.as_ref(), &decided);
    response
}

async fn exchange(
    worker: &Rc<Worker>,
    reached: &Reached,
    version: Version,
    request: Request<Incoming>,
    granted: &mut Option<Grant>,
    wait: &mut Option<Duration>,
) -> Result<(Response<Body>, Permit), Refusal> {
    let (mut parts, body) = request.into_parts();
    head::check_request(&parts, Origin::App)?;
    let snapshot = worker.shared.snapshots.load_full();
    let to = Addressee { index: &snapshot.index, workload: &reached.own, port: reached.address.port() };
    let (content, normal) = target::content(to, &parts.method, &parts.uri, &parts.headers)?;
    let content = content.with_headers(&snapshot.index, &reached.own, &normal.fields(&parts.headers));
    let grant = granted.insert(reached.grant(None, content)).clone();
    if snapshot.index.mtls(&grant.destination) != MtlsMode::Permissive {
        return Err(Refusal::PlaintextRefused);
    }
    let permit = grant.decide(&snapshot)?;
    if snapshot.index.traffic(&reached.own, grant.port).is_some() {
        // It has no identity but its address.
        admit(worker, &snapshot, &grant, &reached.caller.ip().to_string(), wait)?;
    }
    // Nobody vouches for what an unmeshed caller says about itself.
    headers::check_framing(&parts.headers)?;
    headers::strip_hop(&mut parts.headers);
    headers::strip_protected(&mut parts.headers);
    let body = Body::plain(body).rechecked(|| still_permissive(worker, grant.clone()));
    let mut request = Request::from_parts(parts, body);
    normal.apply(&mut request)?;
    tell_caller(&mut request, &snapshot, &grant);
    if version == Version::Http1 && !request.body().has_length() {
        headers::frame_as_chunked(request.headers_mut());
    }
    let lease = app::checkout(worker, &AppKey { caller: None, address: reached.address, version }).await?;
    let sent = lease.send(request).await;
    let (response, hold) = sent.map_err(|_| Refusal::UpstreamUnreachable)?;
    let (mut parts, body) = response.into_parts();
    head::check_response(&parts, Origin::App, Refusal::UpstreamUnreachable)?;
    headers::strip_hop(&mut parts.headers);
    let body = Body::plain(body).holding(hold).rechecked(|| still_permissive(worker, grant.clone()));
    Ok((Response::from_parts(parts, body), permit))
}

fn record(
    worker: &Worker,
    request_id: &str,
    reached: &Reached,
    grant: Option<&Grant>,
    outcome: &Result<Permit, Refusal>,
) {
    worker.record(&Event {
        request_id,
        direction: Direction::Inbound,
        peer: "",
        address: reached.caller,
        grant,
        outcome,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greeting_is_held_for_two_round_trips_within_its_bounds() {
        let held = |round_trip| greeting_hold(Some(Duration::from_millis(round_trip)));
        assert_eq!(greeting_hold(None), GREETING_HOLD);
        assert_eq!(held(0), GREETING_HOLD);
        assert_eq!(held(25), GREETING_HOLD);
        assert_eq!(held(26), Duration::from_millis(52));
        assert_eq!(held(300), Duration::from_millis(600));
        assert_eq!(held(501), GREETING_HOLD_MAX);
        assert_eq!(greeting_hold(Some(Duration::MAX)), GREETING_HOLD_MAX);
    }
}
