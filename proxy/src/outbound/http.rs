//! HTTP requests to another workload, one by one.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::pin::pin;
use std::rc::Rc;

use http::{HeaderMap, HeaderValue, Request, Response, request};
use hyper::body::Incoming;
use signet_identity::SpiffeId;
use signet_policy::{Permit, Protection, ProtectionLevel, Refusal};
use tracing::Instrument;

use super::Destination;
use super::upgrade::{self, Switched};
use crate::authorize::Grant;
use crate::body::{Body, BodyError, Payload};
use crate::channel::Channel;
use crate::checkpoint;
use crate::head::{self, Origin};
use crate::headers::{self, MESH_PROTECTION, MESH_REQUEST_ID};
use crate::http_client;
use crate::http_server::{self, Switch, Version};
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
    };
    let caller = Rc::new(caller);
    let serving = Rc::clone(&caller);
    let served = http_server::serve(client, version, drain, switch, move |request| {
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
    own: SpiffeId,
    pub(super) destination: Destination,
    version: Version,
    pub(super) switch: Switch,
    /// What the connection goes on as, once it is switched.
    pub(super) switched: RefCell<Option<Switched>>,
}

impl Caller {
    /// Answers one request, with the far application's response or with the reason for none.
    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let request_id = self.worker.request_id();
        let mut grant = None;
        let span = request_span(Direction::Outbound, request.method(), request.headers());
        let outcome = {
            // Pinned here, not moved into the span.
            let exchange = pin!(self.exchange(request, &request_id, &mut grant));
            exchange.instrument(span).await
        };
        let (response, decided) = match outcome {
            Ok((response, permit)) => (response, Ok(permit)),
            Err(refusal) => (problem::response(refusal, &request_id), Err(refusal)),
        };
        self.worker.record(&Event {
            request_id: &request_id,
            direction: Direction::Outbound,
            peer: self.destination.id.as_str(),
            address: self.destination.address,
            grant: grant.as_ref(),
            outcome: &decided,
        });
        response
    }

    async fn exchange(
        &self,
        request: Request<Incoming>,
        request_id: &str,
        granted: &mut Option<Grant>,
    ) -> Result<(Response<Body>, Permit), Refusal> {
        let (mut parts, body) = request.into_parts();
        head::check_request(&parts, Origin::App)?;
        let grant = granted.insert(self.judge(&parts)?);
        let permit = grant.decide(&self.worker.shared.snapshot())?;
        if self.version == Version::Http1 && headers::is_websocket(&parts.headers) {
            let grant = grant.clone();
            let response = Box::pin(upgrade::exchange(self, parts, body, grant, request_id)).await?;
            return Ok((response, permit));
        }
        let authority = target::received_authority(&parts.uri, &parts.headers).to_owned();
        let (protection, sealing) = self.protection(&parts.headers, grant)?;
        let form = sign::form(protection);
        let whole_max = sign::whole_max(form, sealing.is_some());
        let mut payload = Payload::take(body, whole_max).await.map_err(|_| Refusal::MalformedMessage)?;
        sign::prepare(&mut parts.headers, &payload, form)?;
        if sealing.is_none() {
            sign::bind(&mut parts.headers, &payload, form)?;
        }
        parts.headers.insert(
            MESH_REQUEST_ID,
            HeaderValue::from_str(request_id).map_err(|_| Refusal::MalformedMessage)?,
        );
        parts.version = self.wire_version();
        for attempt in 1..=ATTEMPTS {
            let lease = self.checkout().await?;
            // What is due on it goes first; if that fails, the next connection is tried.
            let Some(lease) = checkpoint::settled(&self.worker, lease).await else { continue };
            let channel = Rc::clone(lease.context());
            let grant = self.judge_peer(grant, &channel)?;
            let reused = lease.reused;
            let sealing = sealing.as_deref();
            let (request, mut sent) =
                sign::request(&self.worker, &channel, parts, &authority, payload, form, sealing).await?;
            let signed = form.is_some();
            let request =
                request.map(|body| body.rechecked(|| Recheck::of(&self.worker, grant.clone(), signed)));
            match lease.send(request).await {
                Ok((response, hold)) => {
                    let response = self.deliver(response, &channel, &mut sent, grant).await?;
                    return Ok((response.map(|body| body.holding(hold)), permit));
                }
                Err(failed) => {
                    if let Some(refusal) = BodyError::behind(&failed.source) {
                        // It was the application's own body that broke off.
                        return Err(refusal);
                    }
                    tracing::debug!(error = %failed.source, reused, "request not answered");
                    let unsent = failed.unsent.filter(|_| reused && attempt < ATTEMPTS);
                    (parts, payload) = match unsent.and_then(|request| sent.unsent(request)) {
                        Some(again) => again,
                        // An answer came, and nobody could have signed it: its head cannot be read.
                        None if failed.source.is_parse() => return Err(Refusal::ResponseUnverified),
                        None => return Err(Refusal::UpstreamUnreachable),
                    };
                    self.worker.shared.metrics.retries.inc();
                }
            }
        }
        Err(Refusal::UpstreamUnreachable)
    }

    /// What the request asks for, as its destination will read it; refused where that is ambiguous. It is sent as it is.
    fn judge(&self, parts: &request::Parts) -> Result<Grant, Refusal> {
        let snapshot = self.worker.shared.snapshot();
        let Destination { id, port, .. } = &self.destination;
        let to = Addressee { index: &snapshot.index, workload: id, port: *port };
        let (content, normal) = target::content(to, &parts.method, &parts.uri, &parts.headers)?;
        let content = content.with_headers(&snapshot.index, id, &normal.fields(&parts.headers));
        Ok(self.destination.grant(&self.own, content))
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
        headers: &HeaderMap,
        grant: &Grant,
    ) -> Result<(Protection, Option<Box<Sealing>>), Refusal> {
        let snapshot = self.worker.shared.snapshot();
        let identities = &self.destination.identities;
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
        let entry = snapshot.lookup(self.destination.address).map(|(entry, _)| entry);
        let keys = entry.map(|entry| &*entry.sealing_keys).unwrap_or_default();
        let recipients = identities.iter().flat_map(|id| keys.iter().map(|key| (id.clone(), *key)));
        let listed: BTreeSet<String> =
            identities.iter().flat_map(|id| of(id).sealed_headers(&snapshot.index)).collect();
        let fields = seal::names(listed.iter());
        Ok((protection, Some(Box::new(Sealing { recipients: recipients.collect(), fields }))))
    }

    fn wire_version(&self) -> http::Version {
        match self.version {
            Version::Http1 => http::Version::HTTP_11,
            Version::Http2 => http::Version::HTTP_2,
        }
    }

    async fn checkout(&self) -> Result<Lease<MeshKey, Rc<Channel>>, Refusal> {
        let key = self.destination.key(&self.own);
        match self.version {
            // Boxed: a new connection is rare, and its handshakes would make the task of every request three times larger.
            Version::Http1 => {
                self.worker.mesh.checkout_http1(&key, || Box::pin(self.dial(Alpn::Http1))).await
            }
            Version::Http2 => {
                self.worker.mesh.checkout_http2(&key, || Box::pin(self.dial(Alpn::Http2))).await
            }
        }
    }

    async fn dial(&self, alpn: Alpn) -> Result<Connection<Rc<Channel>>, Refusal> {
        let Destination { address, identities, .. } = &self.destination;
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
            let _outcome = owed.verify(&self.worker, self.destination.address, grant.clone());
        }
        self.worker.shared.metrics.requests.inc(Direction::Outbound);
        let signed = sent.form.is_some();
        Ok(verified.into_inner().map(|body| body.rechecked(|| Recheck::of(&self.worker, grant, signed))))
    }
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
