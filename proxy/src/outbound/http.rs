//! HTTP requests to another workload, one by one.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response, request};
use hyper::body::Incoming;
use signet_identity::SpiffeId;
use signet_policy::{Blame, Permit, Protection, ProtectionLevel, Refusal, RetryOn};
use signet_signature::Form;
use tokio::time::timeout;
use tracing::Instrument;

use super::Destination;
use super::upgrade::{self, Switched};
use crate::authorize::Grant;
use crate::body::{Body, BodyError, Payload};
use crate::channel::Channel;
use crate::checkpoint;
use crate::head::{self, Origin};
use crate::headers::{self, MESH_PROTECTION};
use crate::http_client;
use crate::http_server::{self, REST, Switch, Version};
use crate::pool::{Connection, Lease};
use crate::prefixed::Prefixed;
use crate::problem;
use crate::recheck::Recheck;
use crate::ring::Direction;
use crate::seal::{self, Sealing};
use crate::severable::Severable;
use crate::sign::{self, SentRequest};
use crate::target::{self, Addressee};
use crate::telemetry::trace::request_span;
use crate::tls::{self, Alpn};
use crate::traffic::Upstream;
use crate::verify;
use crate::worker::{Event, MeshKey, Worker};

/// A request whose pooled connection closed before it was sent goes out once more, on a new one.
const ATTEMPTS: usize = 2;

/// Serves the requests of one application connection.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    own: SpiffeId,
    client: Prefixed,
    destination: Destination,
    version: Version,
) {
    let address = destination.address;
    let drain = worker.drain.clone();
    let switch = Switch::default();
    let caller = Caller {
        worker,
        own,
        destination,
        version,
        switch: Rc::clone(&switch),
        switched: RefCell::default(),
        upstream: OnceCell::new(),
    };
    let caller = Rc::new(caller);
    let serving = Rc::clone(&caller);
    let served = http_server::serve(client, version, drain, switch, REST, move |request| {
        let caller = Rc::clone(&serving);
        Box::pin(async move { Ok(caller.respond(request).await) })
    });
    match served.await {
        Ok(None) => {}
        Ok(Some((client, read))) => Box::pin(upgrade::carry(&caller, client, read)).await,
        Err(error) => tracing::debug!(%address, %error, "application connection ended"),
    }
}

pub(super) struct Caller {
    pub(super) worker: Rc<Worker>,
    pub(super) own: SpiffeId,
    pub(super) destination: Destination,
    version: Version,
    pub(super) switch: Switch,
    /// What the connection goes on as, once it is switched. Boxed: nearly none is, and each would keep room for it.
    pub(super) switched: RefCell<Option<Box<Switched>>>,
    /// What is known of the destination, once a request needs it.
    pub(super) upstream: OnceCell<Rc<Upstream>>,
}

/// What an exchange leaves behind for its record, however far it came.
#[derive(Default)]
pub(super) struct Trail {
    pub(super) grant: Option<Grant>,
    /// The endpoint it was sent to, where that is not simply the one that was dialled.
    pub(super) sent_to: Option<SocketAddr>,
    /// When it may be tried again.
    pub(super) retry_after: Option<Duration>,
}

/// Why a request was not answered.
pub(super) struct Failed {
    pub(super) refusal: Refusal,
    /// The failure it is to a retry; none where another try would end the same.
    pub(super) retryable: Option<RetryOn>,
    /// Whether the time that policy gives was up.
    pub(super) timed_out: bool,
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, retryable: None, timed_out: false }
    }
}

/// What policy sets for the sending of a request.
#[derive(Clone, Copy, Default)]
pub(super) struct Limits {
    /// How long a new connection may take.
    pub(super) connect: Option<Duration>,
    /// How long a streamed body may make no progress.
    pub(super) idle: Option<Duration>,
}

/// A request before it is signed for a connection.
pub(super) struct Unsigned {
    pub(super) parts: request::Parts,
    pub(super) payload: Payload,
}

impl Unsigned {
    /// The same request once more, where all of it is here.
    pub(super) fn copy(&self) -> Option<Self> {
        let Payload::Whole(bytes) = &self.payload else { return None };
        Some(Self { parts: self.parts.clone(), payload: Payload::Whole(bytes.clone()) })
    }
}

impl Caller {
    /// Answers one request, with the far application's response or with the reason for none.
    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let _counted = self.worker.batcher.enter();
        let request_id = self.worker.request_id();
        let mut trail = Trail::default();
        let span = request_span(Direction::Outbound, request.method(), request.headers());
        let outcome = {
            // Pinned here, not moved into the span.
            let exchange = pin!(self.exchange(request, &request_id, &mut trail));
            exchange.instrument(span).await
        };
        let (response, decided) = match outcome {
            Ok((response, permit)) => (response, Ok(permit)),
            Err(refusal) => {
                let callee = trail.grant.as_ref().map(|grant| &grant.destination);
                let note = self.worker.note(refusal, callee);
                let mut response = problem::response(refusal, &request_id, note.as_deref());
                problem::try_again(&mut response, trail.retry_after);
                (response, Err(refusal))
            }
        };
        let callee = trail.grant.as_ref().map_or(&self.destination.id, |grant| &grant.destination);
        self.worker.record(&Event {
            request_id: &request_id,
            direction: Direction::Outbound,
            peer: callee.as_str(),
            address: trail.sent_to.unwrap_or(self.destination.address),
            grant: trail.grant.as_ref(),
            outcome: &decided,
        });
        response
    }

    async fn exchange(
        &self,
        request: Request<Incoming>,
        request_id: &str,
        trail: &mut Trail,
    ) -> Result<(Response<Body>, Permit), Refusal> {
        let (parts, body) = request.into_parts();
        head::check_request(&parts, Origin::App)?;
        let is_handshake = self.version == Version::Http1 && headers::is_websocket(&parts.headers);
        if !is_handshake && let Some(traffic) = self.traffic() {
            return Box::pin(self.directed(traffic, parts, body, request_id, trail)).await;
        }
        let (grant, permit) = self.permit(&self.destination, &parts, &mut trail.grant)?;
        if is_handshake {
            let grant = grant.clone();
            let response = Box::pin(upgrade::exchange(self, parts, body, grant, request_id)).await?;
            return Ok((response, permit));
        }
        let shape = self.shape(&self.destination, &parts.headers, grant)?;
        let payload = Payload::take(body, shape.whole_max()).await.map_err(|_| Refusal::MalformedMessage)?;
        let request = Unsigned { parts, payload };
        let sent = self.send(&self.destination, request, shape, grant, request_id, Limits::default()).await;
        let response = sent.map_err(|failed| failed.refusal)?;
        Ok((response, permit))
    }

    /// Permits a request to a destination, as far as this side can tell.
    pub(super) fn permit<'a>(
        &self,
        destination: &Destination,
        parts: &request::Parts,
        granted: &'a mut Option<Grant>,
    ) -> Result<(&'a Grant, Permit), Refusal> {
        let grant = granted.insert(self.judge(destination, parts)?);
        let permit = grant.decide(&self.worker.shared.snapshot())?;
        Ok((grant, permit))
    }

    /// Sends a request on one connection, and on another one if that had closed before the request left.
    pub(super) async fn send(
        &self,
        destination: &Destination,
        request: Unsigned,
        shape: Shape,
        grant: &Grant,
        request_id: &str,
        limits: Limits,
    ) -> Result<Response<Body>, Failed> {
        let Unsigned { mut parts, mut payload } = request;
        let Shape { form, sealing } = shape;
        let authority = target::received_authority(&parts.uri, &parts.headers).to_owned();
        super::prepare(&mut parts.headers, &payload, form, sealing.is_some(), request_id)?;
        parts.version = self.version.into();
        for attempt in 1..=ATTEMPTS {
            let lease = self.checkout(destination, limits.connect).await.map_err(unconnected)?;
            // What is due on it goes first; if that fails, the next connection is tried.
            let Some(lease) = checkpoint::settled(&self.worker, lease).await else { continue };
            let channel = Rc::clone(lease.context());
            let grant = self.judge_peer(grant, &channel)?;
            let reused = lease.reused;
            let sealing = sealing.as_deref();
            let (request, mut sent) =
                sign::request(&self.worker, &channel, parts, &authority, payload, form, sealing).await?;
            let signed = form.is_some();
            let recheck = || Recheck::of(&self.worker, grant.clone(), signed);
            let request = request.map(|body| body.rechecked(recheck).idle_at_most(limits.idle));
            match lease.send(request).await {
                Ok((response, hold)) => {
                    let response =
                        self.deliver(response, &channel, &mut sent, grant, destination.address).await?;
                    return Ok(response.map(|body| body.holding(hold)));
                }
                Err(failed) => {
                    if let Some(refusal) = BodyError::behind(&failed.source) {
                        // It was the application's own body that broke off.
                        return Err(refusal.into());
                    }
                    tracing::debug!(error = %failed.source, reused, "request not answered");
                    let unsent = failed.unsent.filter(|_| reused && attempt < ATTEMPTS);
                    (parts, payload) = match unsent.and_then(|request| sent.unsent(request)) {
                        Some(again) => again,
                        // An answer came, and nobody could have signed it: its head cannot be read.
                        None if failed.source.is_parse() => return Err(Refusal::ResponseUnverified.into()),
                        None => return Err(unanswered()),
                    };
                    self.worker.shared.metrics.retries.inc();
                }
            }
        }
        Err(unanswered())
    }

    /// What the request asks for, as its destination will read it; refused where that is ambiguous. It is sent as it is.
    fn judge(&self, destination: &Destination, parts: &request::Parts) -> Result<Grant, Refusal> {
        let snapshot = self.worker.shared.snapshot();
        let Destination { id, port, .. } = destination;
        let to = Addressee { index: &snapshot.index, workload: id, port: *port };
        let (content, normal) = target::content(to, &parts.method, &parts.uri, &parts.headers)?;
        let content = content.with_headers(&snapshot.index, id, &normal.fields(&parts.headers));
        Ok(destination.grant(&self.own, content))
    }

    /// The same exchange with the workload that really answers there: still trusted, and permitted.
    pub(super) fn judge_peer(&self, grant: &Grant, channel: &Rc<Channel>) -> Result<Grant, Refusal> {
        let snapshot = self.worker.shared.snapshot();
        let mut grant = grant.clone();
        grant.channel = Some(Rc::clone(channel));
        channel.check_trust(&snapshot)?;
        if grant.destination != *channel.peer.id() {
            grant.destination = channel.peer.id().clone();
            // Permitted with the first identity of the entry; this is another of them.
            let _permit = grant.decide(&snapshot)?;
        }
        Ok(grant)
    }

    /// How a request is protected, whoever of those that may answer does: as their policy asks for, or better where
    /// the application wants that.
    pub(super) fn protection(
        &self,
        destination: &Destination,
        headers: &HeaderMap,
        grant: &Grant,
    ) -> Result<(Protection, Option<Box<Sealing>>), Refusal> {
        let snapshot = self.worker.shared.snapshot();
        let identities = &destination.identities;
        let of = |id: &SpiffeId| Grant { destination: id.clone(), ..grant.clone() };
        let mut protection = grant.protection(&snapshot.index);
        for other in identities.iter().filter(|id| **id != grant.destination) {
            protection = protection.strictest(of(other).protection(&snapshot.index));
        }
        if let Some(wish) = headers.get(MESH_PROTECTION) {
            protection.level = protection.level.max(wished(wish)?);
        }
        if protection.level != ProtectionLevel::Private {
            return Ok((protection, None));
        }
        let entry = snapshot.lookup(destination.address).map(|(entry, _)| entry);
        let keys = entry.map(|entry| &*entry.sealing_keys).unwrap_or_default();
        let recipients = identities.iter().flat_map(|id| keys.iter().map(|key| (id.clone(), *key)));
        let listed: BTreeSet<String> =
            identities.iter().flat_map(|id| of(id).sealed_headers(&snapshot.index)).collect();
        let fields = seal::names(listed.iter());
        Ok((protection, Some(Box::new(Sealing { recipients: recipients.collect(), fields }))))
    }

    /// How a request is signed and sealed.
    pub(super) fn shape(
        &self,
        destination: &Destination,
        headers: &HeaderMap,
        grant: &Grant,
    ) -> Result<Shape, Refusal> {
        let (protection, sealing) = self.protection(destination, headers, grant)?;
        Ok(Shape { form: sign::form(protection), sealing })
    }

    /// A place on a connection; `connect` is how long a new one may take.
    async fn checkout(
        &self,
        destination: &Destination,
        connect: Option<Duration>,
    ) -> Result<Lease<MeshKey, Rc<Channel>>, Refusal> {
        let key = destination.key(&self.own);
        let dial = |alpn| {
            let dialling = self.dial(destination, alpn);
            async move {
                match connect {
                    Some(limit) => timeout(limit, dialling).await.unwrap_or(Err(Refusal::UpstreamTimeout)),
                    None => dialling.await,
                }
            }
        };
        match self.version {
            // Boxed: a new connection is rare, and its handshakes would make the task of every request three times larger.
            Version::Http1 => self.worker.mesh.checkout_http1(&key, || Box::pin(dial(Alpn::Http1))).await,
            Version::Http2 => self.worker.mesh.checkout_http2(&key, || Box::pin(dial(Alpn::Http2))).await,
        }
    }

    async fn dial(&self, destination: &Destination, alpn: Alpn) -> Result<Connection<Rc<Channel>>, Refusal> {
        let Destination { address, identities, .. } = destination;
        let (stream, channel) = tls::dial(&self.worker, *address, identities, alpn).await?;
        let sender = http_client::open(Severable::new(stream, Rc::clone(&channel)), self.version)
            .await
            .map_err(|_| Refusal::UpstreamUnreachable)?;
        Ok(Connection { sender, usable_until: Some(channel.usable_until), context: channel })
    }

    pub(super) async fn deliver(
        &self,
        response: Response<Incoming>,
        channel: &Rc<Channel>,
        sent: &mut SentRequest,
        grant: Grant,
        address: SocketAddr,
    ) -> Result<Response<Body>, Refusal> {
        let (parts, body) = response.into_parts();
        head::check_response(&parts, Origin::Mesh, Refusal::ResponseUnverified)?;
        if parts.status.is_informational() {
            return Err(Refusal::ResponseUnverified);
        }
        let snapshot = self.worker.shared.snapshots.load_full();
        let verification = grant.protection(&snapshot.index).verify;
        let verified = verify::response(&self.worker, channel, &snapshot, sent, parts, body, verification);
        let (verified, owed) = verified.await?;
        if let Some(owed) = owed {
            // The application has it by then; what is wrong ends the connection.
            let _outcome = owed.verify(&self.worker, address, grant.clone());
        }
        self.worker.shared.metrics.requests.inc(Direction::Outbound);
        let signed = sent.form.is_some();
        Ok(verified.into_inner().map(|body| body.rechecked(|| Recheck::of(&self.worker, grant, signed))))
    }
}

/// How a request is signed and sealed.
pub(super) struct Shape {
    pub(super) form: Option<Form>,
    pub(super) sealing: Option<Box<Sealing>>,
}

impl Shape {
    /// The longest body that travels whole.
    pub(super) fn whole_max(&self) -> usize {
        sign::whole_max(self.form, self.sealing.is_some())
    }
}

/// No connection: nothing was sent.
fn unconnected(refusal: Refusal) -> Failed {
    let is_failure = refusal.blame() == Blame::Callee;
    Failed { retryable: is_failure.then_some(RetryOn::ConnectFailure), ..refusal.into() }
}

/// The connection ended before a response came.
fn unanswered() -> Failed {
    Failed { retryable: Some(RetryOn::Reset), ..Refusal::UpstreamUnreachable.into() }
}

/// The level that an application asks for.
pub(super) fn wished(value: &HeaderValue) -> Result<ProtectionLevel, Refusal> {
    match value.as_bytes() {
        b"public" => Ok(ProtectionLevel::Public),
        b"protected" => Ok(ProtectionLevel::Protected),
        b"private" => Ok(ProtectionLevel::Private),
        _ => Err(Refusal::MalformedMessage),
    }
}
