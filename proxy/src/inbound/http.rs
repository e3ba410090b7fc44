//! Signed HTTP requests from another workload, one by one: verify, decide, forward.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response, request};
use hyper::body::Incoming;
use signet_identity::SpiffeId;
use signet_policy::{Blame, Permit, Refusal};
use signet_signature::seal::MessageKeys;
use signet_sync::Gap;
use tracing::Instrument;

use super::upgrade::{self, Switched};
use super::{Reached, admit, app, bind, tell_caller};
use crate::authorize::{Content, Grant};
use crate::body::{Body, BodyError, Hold, Payload};
use crate::channel::Channel;
use crate::checkpoint;
use crate::head::{self, Origin};
use crate::headers::{CLIENT_CERT, MESH_REQUEST_ID, MESH_UPGRADE, frame_as_chunked};
use crate::http_server::{self, REST, Switch, Version};
use crate::problem;
use crate::recheck::Recheck;
use crate::ring::{Direction, clip};
use crate::seal;
use crate::sign::{self, SentRequest, claimed};
use crate::snapshot::Snapshot;
use crate::target::{self, Addressee};
use crate::telemetry::trace::request_span;
use crate::tls::MeshStream;
use crate::verify::{self, Terms, Verified};
use crate::worker::{AppKey, Event, Worker};

/// Request ids of other proxies longer than this are not taken over.
const REQUEST_ID_MAX: usize = 64;

/// Serves the requests of one mesh connection.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    stream: MeshStream,
    channel: Rc<Channel>,
    reached: Reached,
    version: Version,
) {
    let drain = worker.drain.clone();
    let peer = channel.peer.id().clone();
    let carried = Rc::clone(&channel);
    let switch = Switch::default();
    let callee = Callee {
        worker,
        channel,
        reached,
        version,
        switch: Rc::clone(&switch),
        switched: RefCell::default(),
    };
    let callee = Rc::new(callee);
    let serving = Rc::clone(&callee);
    let mut served = pin!(http_server::serve(stream, version, drain, switch, REST, move |request| {
        let callee = Rc::clone(&serving);
        Box::pin(async move { Ok(callee.respond(request).await) })
    }));
    let served = poll_fn(|cx| match served.as_mut().poll(cx) {
        // What a cut channel was about to say is not said: the connection is dropped as it is.
        Poll::Pending => carried.poll_cut(cx).map(|()| Ok(None)),
        ended => ended,
    });
    match served.await {
        Ok(None) => {}
        Ok(Some((mesh, read))) => Box::pin(upgrade::carry(&callee, mesh, read)).await,
        Err(error) => tracing::debug!(%peer, %error, "mesh connection ended"),
    }
}

pub(super) struct Callee {
    pub(super) worker: Rc<Worker>,
    pub(super) channel: Rc<Channel>,
    pub(super) reached: Reached,
    version: Version,
    pub(super) switch: Switch,
    /// What the connection goes on as, once it is switched. Boxed: nearly none is, and each would keep room for it.
    pub(super) switched: RefCell<Option<Box<Switched>>>,
}

/// What an exchange leaves behind for its record, however far it came.
#[derive(Default)]
struct Trail {
    grant: Option<Grant>,
    received: Option<SentRequest>,
    /// Whether its refusal is recorded already.
    recorded: bool,
    /// The caller's name for the request, once it is verified.
    request_id: Option<String>,
    /// When it may come again.
    retry_after: Option<Duration>,
}

impl Trail {
    /// Notes a request that was answered and had no signature.
    fn note_unsigned(&self, worker: &Worker) {
        if let (Some(grant), Some(SentRequest { form: None, .. })) = (&self.grant, &self.received) {
            worker.lacked(grant, &[Gap::Unsigned]);
        }
    }
}

impl Callee {
    /// Answers one request: with the application's response or with a signed refusal.
    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        if checkpoint::is_asked(&request) {
            return Box::pin(self.settle(request)).await;
        }
        let _counted = self.worker.batcher.enter();
        let own_id = self.worker.request_id();
        let mut trail = Trail::default();
        let span = request_span(Direction::Inbound, request.method(), request.headers());
        let outcome = {
            // Pinned here, not moved into the span.
            let exchange = pin!(self.exchange(request, &mut trail));
            exchange.instrument(span).await
        };
        // Both ends speak of a verified request by its caller's id; until then anybody could say anything.
        let request_id = trail.request_id.take().unwrap_or(own_id);
        let (response, decided) = match outcome {
            Ok((response, permit)) => {
                trail.note_unsigned(&self.worker);
                (response, Ok(permit))
            }
            Err(refusal) => {
                let mut response = self.refuse(refusal, trail.received.take(), &request_id).await;
                problem::try_again(&mut response, trail.retry_after);
                (response, Err(refusal))
            }
        };
        if trail.recorded {
            return response;
        }
        self.worker.record(&Event {
            request_id: &request_id,
            direction: Direction::Inbound,
            peer: self.channel.peer.id().as_str(),
            address: self.reached.caller,
            grant: trail.grant.as_ref(),
            outcome: &decided,
        });
        response
    }

    /// Exchanges checkpoints with the other sidecar: nothing for the application.
    async fn settle(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let mut received = self.as_claimed(&parts);
        let outcome = match self.worker.limits.enter(self.channel.peer.id()) {
            Ok(_slot) => checkpoint::answer(&self.worker, &self.channel, &mut received, parts, body).await,
            Err(refusal) => Err(refusal),
        };
        let refusal = match outcome {
            Ok(response) => return response,
            Err(refusal) => refusal,
        };
        let request_id = self.worker.request_id();
        self.worker.record(&Event {
            request_id: &request_id,
            direction: Direction::Inbound,
            peer: self.channel.peer.id().as_str(),
            address: self.reached.caller,
            grant: None,
            outcome: &Err(refusal),
        });
        self.refuse(refusal, Some(received), &request_id).await
    }

    async fn exchange(
        &self,
        request: Request<Incoming>,
        trail: &mut Trail,
    ) -> Result<(Response<Body>, Permit), Refusal> {
        let worker = &self.worker;
        let snapshot = worker.shared.snapshots.load_full();
        let (parts, body) = request.into_parts();
        let received = trail.received.insert(self.as_claimed(&parts));
        let slot = worker.limits.enter(self.channel.peer.id())?;
        head::check_request(&parts, Origin::Mesh)?;
        let (content, mut normal) =
            target::content(self.addressee(&snapshot), &parts.method, &parts.uri, &parts.headers)?;
        let fields = normal.fields(&parts.headers);
        let content = content.with_headers(&snapshot.index, &self.reached.own, &fields);
        let grant = trail.grant.insert(self.grant(content)).clone();

        let mut protection = grant.protection(&snapshot.index);
        let is_handshake = received.headers.contains_key(&MESH_UPGRADE);
        if is_handshake {
            // Its connection goes on as something else: nothing would come to cover it, and nothing may come too early.
            protection = sign::at_once(protection);
        }
        let sealed_headers = grant.never_clear(&snapshot.index, protection.level);
        let terms = Terms { protection, sealed_headers: &sealed_headers };
        // Asked before the body is read, so that a caller without permission costs no memory, and again
        // after it: what is forwarded is permitted now.
        let is_sealed = seal::is_sealed(&parts.headers);
        let before = grant.decide_before(&snapshot, is_sealed)?;
        if !is_sealed {
            // Whoever is at its limit costs neither a body nor a verification.
            admit(worker, &snapshot, &grant, self.channel.peer.id().as_str(), &mut trail.retry_after)?;
        }
        let (mut verified, owed) =
            verify::request(worker, &self.channel, &snapshot, received, parts, body, terms).await?;
        let keys = received.response_keys.take();
        if owed.is_none() {
            trail.request_id = claimed_id(&received.headers);
        }
        let snapshot = worker.shared.snapshots.load_full();
        let grant = if keys.is_some() {
            // Fields that were sealed can be seen from here on.
            let content;
            (content, normal) = target::content(
                self.addressee(&snapshot),
                &received.method,
                &received.uri,
                &received.headers,
            )?;
            let fields = normal.fields(verified.get_mut().headers());
            let content = content.with_headers(&snapshot.index, &self.reached.own, &fields);
            trail.grant.insert(self.grant(content)).clone()
        } else {
            grant
        };
        let permit = match before {
            Some(permit) if grant.is_judged(&snapshot) => permit,
            _ => grant.decide(&snapshot)?,
        };
        if is_sealed {
            // Nobody without permission uses up what all callers share.
            admit(worker, &snapshot, &grant, self.channel.peer.id().as_str(), &mut trail.retry_after)?;
        }
        // What was signed has been verified and decided on; from here on it is what the application may see.
        normal.apply(verified.get_mut())?;
        tell_caller(verified.get_mut(), &snapshot, &grant);
        if is_handshake {
            if self.version == Version::Http2 {
                return Err(Refusal::UpgradeUnsupported);
            }
            let response =
                Box::pin(upgrade::exchange(self, &permit, verified, received, keys, grant)).await?;
            worker.shared.metrics.requests.inc(Direction::Inbound);
            return Ok((response, permit));
        }
        let outcome = owed.map(|owed| owed.verify(worker, self.reached.caller, grant.clone()));
        let to = Forward { worker, reached: &self.reached, version: self.version, grant: &grant };
        let forwarded = to.send(self.channel.peer.id(), permit, verified, received.form.is_some()).await;
        if let Some(outcome) = outcome {
            // Whatever came of it, nothing is said about a request that nobody signed.
            outcome.proven().await.inspect_err(|_| trail.recorded = true)?;
            trail.request_id = claimed_id(&received.headers);
        }
        let (permit, response, hold) = forwarded?;
        let response = self.sign(received, keys, grant, response).await?;
        // The peer's place and the stream's last as long as the response body.
        let response = response.map(|body| body.holding(hold).holding(Some(Rc::new(slot))));
        worker.shared.metrics.requests.inc(Direction::Inbound);
        Ok((response, permit))
    }

    fn addressee<'a>(&'a self, snapshot: &'a Snapshot) -> Addressee<'a> {
        Addressee { index: &snapshot.index, workload: &self.reached.own, port: self.reached.address.port() }
    }

    fn grant(&self, content: Content) -> Grant {
        let source = Some(self.channel.peer.id().clone());
        Grant { channel: Some(Rc::clone(&self.channel)), ..self.reached.grant(source, content) }
    }

    /// Signs the application's response, bound to the request as it was received.
    pub(super) async fn sign(
        &self,
        received: &SentRequest,
        keys: Option<Box<MessageKeys>>,
        grant: Grant,
        response: Response<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let (mut parts, body) = response.into_parts();
        head::check_response(&parts, Origin::App, Refusal::UpstreamUnreachable)?;
        if parts.status.is_informational() {
            // Nobody asked for an upgrade: it was stripped.
            return Err(Refusal::UpstreamUnreachable);
        }
        let form = received.form;
        let whole_max = sign::whole_max(form, keys.is_some());
        let payload = Payload::take(body, whole_max).await.map_err(|_| Refusal::UpstreamUnreachable)?;
        // What is wrong with its own response is not the caller's fault.
        let payload = bind(&self.worker, &mut parts.headers, payload, form, keys, &grant)
            .map_err(|_| Refusal::UpstreamUnreachable)?;
        let response = sign::response(&self.worker, &self.channel, received, parts, payload).await;
        let response = response.map_err(|_| Refusal::UpstreamUnreachable)?;
        let signed = received.form.is_some();
        Ok(response.map(|body| body.rechecked(|| Recheck::of(&self.worker, grant, signed))))
    }

    async fn refuse(
        &self,
        refusal: Refusal,
        received: Option<SentRequest>,
        request_id: &str,
    ) -> Response<Body> {
        // A message without a signature or a seal, of a mode that is not taken or over a limit, may come of a policy that is on
        // its way, and costs no verification.
        let of_policy = matches!(
            refusal,
            Refusal::RateLimited | Refusal::SealMissing | Refusal::SignatureMissing | Refusal::SignatureMode
        );
        let is_cheap = of_policy || refusal == Refusal::CheckpointOverdue;
        let (limits, peer) = (&self.worker.limits, self.channel.peer.id());
        if refusal.blame() == Blame::Caller && !of_policy {
            limits.failed(peer);
        }
        match received {
            // Signing costs as much as verifying; a caller at its limit gets no more of that.
            Some(mut received) if refusal != Refusal::Overloaded && (!is_cheap || limits.may_sign(peer)) => {
                if received.nonce.is_empty()
                    && let Some((form, nonce)) = claimed(&received.headers)
                {
                    (received.form, received.nonce) = (Some(form), nonce);
                }
                if received.form.is_some() && !self.channel.id.made(&received.nonce) {
                    // A refusal bound to another channel's request would be evidence about somebody else.
                    return crate::problem::response(refusal, request_id, None);
                }
                sign::refusal(&self.worker, &self.channel, received, refusal, request_id).await
            }
            _ => {
                let note = self.worker.note(refusal, Some(self.channel.peer.id()));
                crate::problem::response(refusal, request_id, note.as_deref())
            }
        }
    }

    /// The request as it arrived; its nonce counts only once it is verified.
    fn as_claimed(&self, parts: &request::Parts) -> SentRequest {
        SentRequest {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            authority: target::received_authority(&parts.uri, &parts.headers).to_owned(),
            headers: parts.headers.clone(),
            form: None,
            nonce: String::new(),
            signer: self.channel.peer.fingerprint(),
            response_keys: None,
            original: None,
        }
    }
}

/// Where a request goes that was verified and permitted.
pub(super) struct Forward<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) reached: &'a Reached,
    pub(super) version: Version,
    pub(super) grant: &'a Grant,
}

impl Forward<'_> {
    /// Hands a request of `caller` to the application. It takes both proofs by value: there is no other way here.
    pub(super) async fn send(
        self,
        caller: &SpiffeId,
        permit: Permit,
        mut request: Verified<Request<Body>>,
        signed: bool,
    ) -> Result<(Permit, Response<Incoming>, Option<Hold>), Refusal> {
        let Self { worker, reached, version, grant } = self;
        identify(request.get_mut().headers_mut(), caller, &reached.own);
        let key = AppKey { address: reached.address, version, caller: Some(caller.clone()) };
        let recheck = || Recheck::of(worker, grant.clone(), signed);
        let mut request = request.into_inner().map(|body| body.rechecked(recheck));
        if version == Version::Http1 && !request.body().has_length() {
            frame_as_chunked(request.headers_mut());
        }
        for attempt in 0.. {
            let lease = app::checkout(worker, &key).await?;
            let reused = lease.reused;
            match lease.send(request).await {
                Ok((response, hold)) => {
                    return Ok((permit, response, hold));
                }
                Err(failed) => {
                    if let Some(refusal) = BodyError::behind(&failed.source) {
                        // It was the caller's body that ended before its end.
                        return Err(refusal);
                    }
                    tracing::info!(error = %failed.source, reused, "application did not answer");
                    let unsent = failed.unsent.filter(|_| reused && attempt == 0);
                    let Some(unsent) = unsent else { return Err(Refusal::UpstreamUnreachable) };
                    request = unsent;
                }
            }
        }
        Err(Refusal::UpstreamUnreachable)
    }
}

/// Tells the application who calls, in the form that Envoy made the convention.
pub(super) fn identify(headers: &mut HeaderMap, peer: &SpiffeId, own: &SpiffeId) {
    // SPIFFE IDs hold no characters that would need quoting here.
    let value = ["By=", own.as_str(), ";URI=", peer.as_str()].concat();
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(CLIENT_CERT, value);
    }
}

/// The caller's own id of the request, if it is one.
pub(super) fn claimed_id(headers: &HeaderMap) -> Option<String> {
    let claimed = headers.get(MESH_REQUEST_ID).and_then(|value| value.to_str().ok())?;
    let is_id = claimed.len() <= REQUEST_ID_MAX && claimed.bytes().all(|b| b.is_ascii_alphanumeric());
    is_id.then(|| clip(claimed))
}
