//! HTTP requests through a proxy that is not of the mesh, to a workload behind it: signed for that workload, and sealed
//! where its policy asks for it. What comes back counts only with that workload's signature.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use signet_identity::SpiffeId;
use signet_policy::{Origin as Whence, Permit, ProtectionLevel, Refusal, Relay};
use signet_signature::Form;
use tokio::net::TcpStream;

use super::http::wished;
use crate::authorize::{Content, Grant};
use crate::body::{Body, BodyError, Hold, Payload};
use crate::detect::Protocol;
use crate::head::{self, Origin};
use crate::headers::{self, MESH_PROTECTION};
use crate::http_client;
use crate::http_server::{self, REST, Switch, Version};
use crate::pool::{Connection, Lease};
use crate::prefixed::{HALF_SAID_HTTP, Prefixed};
use crate::problem;
use crate::recheck::Recheck;
use crate::ring::Direction;
use crate::seal::{self, Sealing};
use crate::sign;
use crate::snapshot::Snapshot;
use crate::sockets;
use crate::target;
use crate::verify;
use crate::worker::{AppKey, Event, Worker};

/// Serves one connection of the application to an intermediary.
pub(super) async fn serve(worker: Rc<Worker>, own: SpiffeId, client: TcpStream, address: SocketAddr) {
    let mut client = Prefixed::new(client);
    let version = match client.detect_within(HALF_SAID_HTTP).await {
        Ok(Some(Protocol::Http1)) => Version::Http1,
        Ok(Some(Protocol::Http2)) => Version::Http2,
        // Nobody could sign it for who is behind.
        Ok(Some(_)) => {
            return super::refuse(&worker, client.get_ref(), Some(address), Refusal::OpaqueToL7Port);
        }
        Ok(None) | Err(_) => return,
    };
    let drain = worker.drain.clone();
    let caller = Rc::new(Caller { worker, own, address, version });
    let served = http_server::serve(client, version, drain, Switch::default(), REST, move |request| {
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
    /// The intermediary.
    address: SocketAddr,
    version: Version,
}

impl Caller {
    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let request_id = self.worker.request_id();
        let mut grant = None;
        let outcome = self.exchange(request, &request_id, &mut grant).await;
        let (response, decided) = match outcome {
            Ok((response, permit)) => (response, Ok(permit)),
            Err(refusal) => {
                let callee = grant.as_ref().map(|grant: &Grant| &grant.destination);
                let note = self.worker.note(refusal, callee);
                (problem::response(refusal, &request_id, note.as_deref()), Err(refusal))
            }
        };
        self.worker.record(&Event {
            request_id: &request_id,
            direction: Direction::Outbound,
            peer: grant.as_ref().map_or("", |grant: &Grant| grant.destination.as_str()),
            address: self.address,
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
        let asked = target::unambiguous(&parts.method, &parts.uri, &parts.headers)?;
        let Content::Http { method, path, authority, .. } = asked else {
            return Err(Refusal::MalformedMessage);
        };
        if headers::is_websocket(&parts.headers) {
            return Err(Refusal::UpgradeUnsupported);
        }
        let snapshot = self.worker.shared.snapshots.load_full();
        let relay = snapshot.index.relay(self.address, &path).cloned().ok_or(Refusal::IntermediaryRoute)?;
        // What is decided on is what the workload gets.
        let forwarded = relay.forwarded(&path, &authority);
        let content = Content::Http {
            method,
            path: forwarded.path.into(),
            authority: forwarded.authority.into(),
            headers: None,
        };
        let grant = granted.insert(Grant {
            source: Some(self.own.clone()),
            origin: Whence::LeftToDestination,
            destination: relay.to.clone(),
            port: relay.port,
            content: content.with_headers(&snapshot.index, &relay.to, &parts.headers),
            channel: None,
            signer: None,
            judged: Cell::default(),
        });
        let permit = grant.decide(&snapshot)?;
        let sealing = sealing(&snapshot, grant, parts.headers.get(MESH_PROTECTION))?;
        let form = Some(Form::Single);
        let whole_max = sign::whole_max(form, sealing.is_some());
        let payload = Payload::take(body, whole_max).await.map_err(|_| Refusal::MalformedMessage)?;
        super::prepare(&mut parts.headers, &payload, form, sealing.is_some(), request_id)?;
        parts.version = self.version.into();
        let (request, mut sent) =
            sign::relayed_request(&self.worker, &relay, parts, &authority, payload, sealing.as_ref())?;
        let recheck = || Recheck::of(&self.worker, grant.clone(), true);
        let (response, hold) = self.send(request.map(|body| body.rechecked(recheck))).await?;
        let response = self.deliver(response, &relay, &mut sent).await?;
        self.worker.shared.metrics.requests.inc(Direction::Outbound);
        Ok((response.map(|body| body.holding(hold).rechecked(recheck)), permit))
    }

    /// Sends a request to the intermediary. It is the same message on another connection, since nothing of it was sent.
    async fn send(&self, mut request: Request<Body>) -> Result<(Response<Incoming>, Option<Hold>), Refusal> {
        for attempt in 0.. {
            let lease = self.checkout().await?;
            let reused = lease.reused;
            match lease.send(request).await {
                Ok(answered) => return Ok(answered),
                Err(failed) => {
                    if let Some(refusal) = BodyError::behind(&failed.source) {
                        return Err(refusal);
                    }
                    tracing::debug!(error = %failed.source, reused, "intermediary did not answer");
                    let unsent = failed.unsent.filter(|_| reused && attempt == 0);
                    request = unsent.ok_or(Refusal::UpstreamUnreachable)?;
                }
            }
        }
        Err(Refusal::UpstreamUnreachable)
    }

    async fn checkout(&self) -> Result<Lease<AppKey, ()>, Refusal> {
        let Self { worker, address, version, .. } = self;
        let key = AppKey { caller: None, address: *address, version: *version };
        let open = || {
            Box::pin(async {
                let stream = sockets::dial(*address, worker.shared.config.exempt).await;
                let stream = stream.map_err(|_| Refusal::UpstreamUnreachable)?;
                let sender =
                    http_client::open(stream, *version).await.map_err(|_| Refusal::UpstreamUnreachable)?;
                Ok(Connection { sender, context: (), usable_until: None })
            })
        };
        match version {
            Version::Http1 => worker.apps.checkout_http1(&key, open).await,
            Version::Http2 => worker.apps.checkout_http2(&key, open).await,
        }
    }

    async fn deliver(
        &self,
        response: Response<Incoming>,
        relay: &Relay,
        sent: &mut sign::SentRequest,
    ) -> Result<Response<Body>, Refusal> {
        let (parts, body) = response.into_parts();
        head::check_response(&parts, Origin::Mesh, Refusal::ResponseUnverified)?;
        if parts.status.is_informational() {
            return Err(Refusal::ResponseUnverified);
        }
        let snapshot = self.worker.shared.snapshots.load_full();
        let verified = verify::relayed_response(&self.worker, relay, &snapshot, sent, parts, body).await?;
        Ok(verified.into_inner())
    }
}

/// For whom a request is sealed, where policy or the application asks for that. It is signed in any case: behind an
/// intermediary there is no connection that would tell who calls.
fn sealing(
    snapshot: &Snapshot,
    grant: &Grant,
    wish: Option<&HeaderValue>,
) -> Result<Option<Sealing>, Refusal> {
    let level = grant.protection(&snapshot.index).level;
    let level = level.max(wish.map(wished).transpose()?.unwrap_or(ProtectionLevel::Protected));
    if level != ProtectionLevel::Private {
        return Ok(None);
    }
    let entries = snapshot.directories.iter().flat_map(|directory| directory.of(&grant.destination));
    let mut recipients: Vec<_> = entries.flat_map(|entry| &entry.sealing_keys).collect();
    recipients.sort_unstable();
    recipients.dedup();
    let recipients = recipients.into_iter().map(|key| (grant.destination.clone(), *key)).collect();
    Ok(Some(Sealing { recipients, fields: seal::names(&grant.sealed_headers(&snapshot.index)) }))
}
