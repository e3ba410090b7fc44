//! HTTP requests to another workload, one by one.

use std::pin::pin;
use std::rc::Rc;

use http::{HeaderValue, Request, Response, header, request};
use hyper::body::Incoming;
use signet_identity::SpiffeId;
use signet_policy::{Permit, Refusal};
use signet_signature::Form;
use tracing::Instrument;

use super::Destination;
use crate::authorize::{Content, Grant};
use crate::body::{Body, BodyError, Payload};
use crate::channel::Channel;
use crate::head::{self, Origin};
use crate::headers::MESH_REQUEST_ID;
use crate::http_client;
use crate::http_server::{self, Version};
use crate::pool::{Connection, Lease};
use crate::prefixed::Prefixed;
use crate::problem;
use crate::recheck::Recheck;
use crate::ring::Direction;
use crate::sign::{self, SentRequest};
use crate::target;
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
    let caller = Rc::new(Caller { worker, own, destination, version });
    let served = http_server::serve(client, version, drain, move |request| {
        let caller = Rc::clone(&caller);
        Box::pin(async move { Ok(caller.respond(request).await) })
    });
    if let Err(error) = served.await {
        tracing::debug!(%address, %error, "application connection ended");
    }
}

struct Caller {
    worker: Rc<Worker>,
    own: SpiffeId,
    destination: Destination,
    version: Version,
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
        let authority = match &grant.content {
            Content::Http { authority, .. } => authority.clone(),
            Content::Opaque => String::new(),
        };
        let form = self.form();
        let mut payload = Payload::take(body, form.is_some()).await.map_err(|_| Refusal::MalformedMessage)?;
        sign::bind(&mut parts.headers, &payload, form)?;
        parts.headers.insert(
            MESH_REQUEST_ID,
            HeaderValue::from_str(request_id).map_err(|_| Refusal::MalformedMessage)?,
        );
        parts.version = self.wire_version();
        for attempt in 1..=ATTEMPTS {
            let lease = self.checkout().await?;
            let channel = Rc::clone(lease.context());
            let grant = self.judge_peer(grant, &channel)?;
            let reused = lease.reused;
            let (request, sent) =
                sign::request(&self.worker, &channel, parts, &authority, payload, form).await?;
            let signed = form.is_some();
            let request =
                request.map(|body| body.rechecked(|| Recheck::of(&self.worker, grant.clone(), signed)));
            match lease.send(request).await {
                Ok((response, hold)) => {
                    let response = self.deliver(response, &channel, &sent, grant).await?;
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

    /// What the request asks for, in the bytes that will be sent; refused where that is ambiguous.
    fn judge(&self, parts: &request::Parts) -> Result<Grant, Refusal> {
        if parts.headers.get(header::UPGRADE).is_some_and(is_websocket) {
            return Err(Refusal::UpgradeUnsupported);
        }
        let content = target::content(&parts.method, &parts.uri, &parts.headers)?;
        let snapshot = self.worker.shared.snapshot();
        let content = content.with_headers(&snapshot.index, &self.destination.id, &parts.headers);
        Ok(self.destination.grant(&self.own, content))
    }

    /// The same exchange with the workload that really answers there: still trusted, and permitted.
    fn judge_peer(&self, grant: &Grant, channel: &Rc<Channel>) -> Result<Grant, Refusal> {
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

    /// How requests are signed, whoever of those that may answer does.
    fn form(&self) -> Option<Form> {
        let snapshot = self.worker.shared.snapshot();
        sign::form(self.destination.identities.iter().map(|id| snapshot.index.protection(id)))
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
        let sender =
            http_client::open(stream, self.version).await.map_err(|_| Refusal::UpstreamUnreachable)?;
        Ok(Connection { sender, usable_until: Some(channel.usable_until), context: channel })
    }

    async fn deliver(
        &self,
        response: Response<Incoming>,
        channel: &Rc<Channel>,
        sent: &SentRequest,
        grant: Grant,
    ) -> Result<Response<Body>, Refusal> {
        let (parts, body) = response.into_parts();
        head::check_response(&parts, Origin::Mesh, Refusal::ResponseUnverified)?;
        if parts.status.is_informational() {
            return Err(Refusal::ResponseUnverified);
        }
        let snapshot = self.worker.shared.snapshots.load_full();
        let verified = verify::response(&self.worker, channel, &snapshot, sent, parts, body).await?;
        self.worker.shared.metrics.requests.inc(Direction::Outbound);
        let signed = sent.form.is_some();
        Ok(verified.into_inner().map(|body| body.rechecked(|| Recheck::of(&self.worker, grant, signed))))
    }
}

/// Other upgrades may be ignored (RFC 9110 section 7.8); a WebSocket client would wait for ever.
fn is_websocket(value: &HeaderValue) -> bool {
    value.as_bytes().eq_ignore_ascii_case(b"websocket")
}
