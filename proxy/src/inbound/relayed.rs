//! HTTP requests that a proxy brings which is not of the mesh: its address lets it in, and what it says counts for
//! nothing. Who calls is who signed the request, and it must be the one that was signed but for what policy lets the
//! intermediary rewrite.

use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use signet_policy::{MtlsMode, Permit, Refusal, Relay};
use signet_signature::seal::MessageKeys;

use super::http::{Forward, claimed_id};
use super::{HELLO_TIMEOUT, Reached, admit, bind, plaintext, refuse, tell_caller};
use crate::authorize::{Content, Grant};
use crate::body::{Body, Payload};
use crate::detect::Protocol;
use crate::head::{self, Origin};
use crate::headers::MESH_AUDIENCE;
use crate::http_server::{self, STRANGERS_REST, Switch, Version};
use crate::limits::Stranger;
use crate::prefixed::Prefixed;
use crate::problem;
use crate::recheck::Recheck;
use crate::relay::{self, Target};
use crate::ring::Direction;
use crate::seal;
use crate::sign::{self, SentRequest};
use crate::snapshot::Snapshot;
use crate::target;
use crate::verify::{self, Terms};
use crate::worker::{Event, Worker};

/// Serves a connection from an intermediary's address; a sidecar may have the same.
pub(super) async fn serve(worker: Rc<Worker>, mut client: Prefixed, reached: Reached, stranger: Stranger) {
    let version = match tokio::time::timeout(HELLO_TIMEOUT, client.detect()).await {
        Ok(Ok(Some(Protocol::Mesh))) => return super::mesh(worker, client, reached, stranger).await,
        Ok(Ok(Some(Protocol::Http1))) => Version::Http1,
        Ok(Ok(Some(Protocol::Http2))) => Version::Http2,
        Ok(Ok(None) | Err(_)) => return,
        Ok(Ok(Some(_))) | Err(_) => {
            return refuse(&worker, client.get_ref(), reached.caller, Refusal::PlaintextRefused);
        }
    };
    drop(stranger);
    let drain = worker.drain.clone();
    let callee = Rc::new(Callee { worker, reached, version });
    let served =
        http_server::serve(client, version, drain, Switch::default(), STRANGERS_REST, move |request| {
            let callee = Rc::clone(&callee);
            Box::pin(async move { Ok(callee.respond(request).await) })
        });
    if let Err(error) = served.await {
        tracing::debug!(%error, "connection of an intermediary ended");
    }
}

struct Callee {
    worker: Rc<Worker>,
    reached: Reached,
    version: Version,
}

/// What an exchange leaves behind for its record, however far it came.
#[derive(Default)]
struct Trail {
    grant: Option<Grant>,
    request_id: Option<String>,
    /// When it may come again.
    retry_after: Option<Duration>,
    /// The request, once it is verified: its refusal can be signed from then on.
    verified: Option<Received>,
}

/// A request as its origin sent it, and what the intermediary may change of its answer.
struct Received {
    request: SentRequest,
    may_change: Vec<String>,
}

impl Callee {
    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let snapshot = self.worker.shared.snapshot();
        let permissive = snapshot.index.mtls(&self.reached.own) == MtlsMode::Permissive;
        drop(snapshot);
        if permissive && !signet_signature::claims_signature(request.headers()) {
            return plaintext::respond(&self.worker, &self.reached, self.version, request).await;
        }
        let mut trail = Trail::default();
        let outcome = self.exchange(request, &mut trail).await;
        let request_id = trail.request_id.take().unwrap_or_else(|| self.worker.request_id());
        let (response, decided) = match outcome {
            Ok((response, permit)) => (response, Ok(permit)),
            Err(refusal) => {
                let mut response = self.refuse(refusal, trail.verified.as_ref(), &request_id);
                problem::try_again(&mut response, trail.retry_after);
                (response, Err(refusal))
            }
        };
        let source = trail.grant.as_ref().and_then(|grant| grant.source.as_ref());
        self.worker.record(&Event {
            request_id: &request_id,
            direction: Direction::Inbound,
            peer: source.map_or("", |source| source.as_str()),
            address: self.reached.caller,
            grant: trail.grant.as_ref(),
            outcome: &decided,
        });
        response
    }

    async fn exchange(
        &self,
        request: Request<Incoming>,
        trail: &mut Trail,
    ) -> Result<(Response<Body>, Permit), Refusal> {
        let worker = &self.worker;
        let snapshot = worker.shared.snapshots.load_full();
        let (mut parts, body) = request.into_parts();
        head::check_request(&parts, Origin::Mesh)?;
        if parts.version == http::Version::HTTP_10 {
            // nginx speaks that to whom it hands on. Framing is made afresh here, and the application's hop is ours.
            parts.version = http::Version::HTTP_11;
        }
        if !signet_signature::claims_signature(&parts.headers) {
            return Err(Refusal::SignatureMissing);
        }
        let content = target::unambiguous(&parts.method, &parts.uri, &parts.headers)?;
        let content = content.with_headers(&snapshot.index, &self.reached.own, &parts.headers);
        let (origin, relay) = self.origin(&snapshot, &parts, &content)?;
        let signer = worker.signers.of(&parts.headers, &snapshot)?;
        let slot = worker.limits.enter(signer.id())?;
        let source = Some(signer.id().clone());
        let grant = trail
            .grant
            .insert(Grant { signer: Some(Rc::clone(&signer)), ..self.reached.grant(source, content) });
        let protection = grant.protection(&snapshot.index);
        let sealed_headers = grant.never_clear(&snapshot.index, protection.level);
        grant.decide_before(&snapshot, seal::is_sealed(&parts.headers))?;
        let mut received = SentRequest {
            method: parts.method.clone(),
            uri: origin.uri,
            authority: origin.authority,
            headers: relay::fixed(&parts.headers, &relay.may_change),
            form: None,
            nonce: String::new(),
            signer: worker.shared.credentials().ok_or(Refusal::NotReady)?.signing.fingerprint,
            response_keys: None,
            original: None,
        };
        let terms = Terms { protection, sealed_headers: &sealed_headers };
        let verified =
            verify::relayed_request(worker, &signer, &snapshot, &mut received, parts, body, terms).await;
        let mut verified = match verified {
            Ok(verified) => verified,
            Err(refusal) => {
                if refusal.blame() == signet_policy::Blame::Caller && !received.nonce.is_empty() {
                    worker.limits.failed(signer.id());
                }
                return Err(refusal);
            }
        };
        trail.request_id = claimed_id(&received.headers);
        let keys = received.response_keys.take();
        let received =
            trail.verified.insert(Received { request: received, may_change: relay.may_change.clone() });
        let snapshot = worker.shared.snapshots.load_full();
        if keys.is_some() {
            // Fields that were sealed can be seen from here on.
            let fields = verified.get_mut().headers();
            grant.content = grant.content.clone().with_headers(&snapshot.index, &self.reached.own, fields);
        }
        let permit = grant.decide(&snapshot)?;
        // No sooner: until the signature is verified anybody could use up another's limit in its name. So a caller at its
        // limit costs a verification here.
        admit(worker, &snapshot, grant, signer.id().as_str(), &mut trail.retry_after)?;
        tell_caller(verified.get_mut(), &snapshot, grant);
        let to = Forward { worker, reached: &self.reached, version: self.version, grant };
        let (permit, response, hold) = to.send(signer.id(), permit, verified, true).await?;
        let response = self.sign(received, keys, grant, response).await?;
        worker.shared.metrics.requests.inc(Direction::Inbound);
        Ok((response.map(|body| body.holding(hold).holding(Some(Rc::new(slot)))), permit))
    }

    /// What the origin wrote, and by which way the intermediary made of it what arrived.
    fn origin(
        &self,
        snapshot: &Snapshot,
        parts: &http::request::Parts,
        arrived: &Content,
    ) -> Result<(Target, Relay), Refusal> {
        let written = Target::of(&parts.headers)?;
        let audience = relay::only(&parts.headers, &MESH_AUDIENCE)?.ok_or(Refusal::SignatureMissing)?;
        // One reading only, like any target.
        let hosts = [written.authority.as_str()];
        let target = written.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
        let checked = signet_policy::check_target(parts.method.as_str(), target, None, &hosts)?;
        let Content::Http { path, authority, .. } = arrived else { return Err(Refusal::MalformedMessage) };
        let (own, port) = (&self.reached.own, self.reached.address.port());
        let from = self.reached.caller.ip();
        let way = snapshot.index.relays_from(from, own, port, checked.path()).find(|way| {
            let expected = way.forwarded(checked.path(), checked.authority());
            *expected.path == **path && *expected.authority == **authority
        });
        let is_same = checked.query() == parts.uri.query() && audience.as_bytes() == own.as_str().as_bytes();
        let way = way.filter(|_| is_same).cloned();
        Ok((written, way.ok_or(Refusal::IntermediaryRewrite)?))
    }

    /// Signs the application's response for the origin of the request.
    async fn sign(
        &self,
        received: &Received,
        keys: Option<Box<MessageKeys>>,
        grant: &Grant,
        response: Response<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let (mut parts, body) = response.into_parts();
        head::check_response(&parts, Origin::App, Refusal::UpstreamUnreachable)?;
        if parts.status.is_informational() {
            return Err(Refusal::UpstreamUnreachable);
        }
        let form = received.request.form;
        let whole_max = sign::whole_max(form, keys.is_some());
        let payload = Payload::take(body, whole_max).await.map_err(|_| Refusal::UpstreamUnreachable)?;
        let payload = bind(&self.worker, &mut parts.headers, payload, form, keys, grant)
            .map_err(|_| Refusal::UpstreamUnreachable)?;
        let response =
            sign::relayed_response(&self.worker, &received.request, &received.may_change, parts, payload);
        let response = response.map_err(|_| Refusal::UpstreamUnreachable)?;
        Ok(response.map(|body| body.rechecked(|| Recheck::of(&self.worker, grant.clone(), true))))
    }

    /// A refusal of this sidecar, signed for the origin of a request that was verified: for anybody else it would be
    /// evidence about a stranger.
    fn refuse(&self, refusal: Refusal, received: Option<&Received>, request_id: &str) -> Response<Body> {
        let note = self.worker.note(refusal, None);
        let plain = || problem::response(refusal, request_id, note.as_deref());
        let Some(received) = received else { return plain() };
        let Ok((parts, payload)) = sign::refused(&received.request, refusal, request_id, note.as_deref())
        else {
            return plain();
        };
        sign::relayed_response(&self.worker, &received.request, &received.may_change, parts, payload)
            .unwrap_or_else(|_| plain())
    }
}
