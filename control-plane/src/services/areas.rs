//! What areas ask of this control plane: to be let in, to go on, and the stream between the two.
//!
//! An area's stream is a proxy's with another way up: sections go down as they are, and up come its own directories and whom it
//! certified. What it says is checked against its record in the store, which an operator changes, and never against its own word.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::area_message::Message as Up;
use signet_sync::proto::sync::areas_server::Areas;
use signet_sync::proto::sync::control_message::Message as Down;
use signet_sync::{ACK_TIMEOUT, Publisher, SectionError, SectionName, Subscriber, negotiate};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::areas::{self, Area, AreaError, Requests};
use crate::caller::Caller;
use crate::plain;
use crate::publish::Published;
use crate::services::{Mesh, connection, peer, peer_or_ended};
use crate::streams::AreaStream;

/// How long an area may take to say `Hello` on a stream it opened.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an area that joins waits until everybody is told of its key.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the origin's word is said and the area looked up.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Messages handed to HTTP/2 before it has sent them.
const OUTBOUND_MAX: usize = 1;

/// Messages that wait for the area to read; at this many its own are not read any further.
const OUTBOX_MAX: usize = 64;

/// Instances in one message.
const INSTANCES_MAX: usize = 256;

/// Characters of an area's words in our log.
const WORDS_MAX: usize = 200;

/// The service.
pub(crate) struct AreasService(pub(crate) Mesh);

#[tonic::async_trait]
impl Areas for AreasService {
    type FollowStream = ReceiverStream<Result<wire::ControlMessage, Status>>;

    async fn join(
        &self,
        request: Request<wire::JoinAreaRequest>,
    ) -> Result<Response<wire::Delegation>, Status> {
        let mesh = &self.0;
        let connection = connection(&request)?;
        connection.asked.note();
        let source = connection.source;
        mesh.refuse_at_an_area("areas join")?;
        let request = request.into_inner();
        let protocol = agreed(request.min_protocol, request.protocol)?;
        let section_key = <[u8; 32]>::try_from(&*request.section_key)
            .map_err(|_| Status::invalid_argument("bad-request: a section key has 32 bytes"))?;
        let now = mesh.clock.issuing().await.map_err(|error| Status::from(&error))?;
        let requests = Requests { issuer: &request.issuer_csr, end: &request.end_csr };
        let token = (&*request.token_id, &*request.secret);
        let joined = areas::join(&*mesh.store, &mesh.authority, token, section_key, requests, now).await;
        let (delegation, revision) = joined.map_err(|error| {
            tracing::warn!(%source, code = error.code(), "an area is not let in");
            status(&error)
        })?;
        // Its directories are refused until anchors name its key.
        let mut published = mesh.published.clone();
        let named = published.wait_for(|published| published.revision >= revision);
        let _ = tokio::time::timeout(PUBLISH_TIMEOUT, named).await;
        tracing::info!(%source, area = delegation.area, "an area joined");
        Ok(Response::new(wire::Delegation { protocol, ..delegation }))
    }

    async fn renew(
        &self,
        request: Request<wire::RenewAreaRequest>,
    ) -> Result<Response<wire::Delegation>, Status> {
        let mesh = &self.0;
        mesh.refuse_at_an_area("areas join")?;
        let caller = peer_or_ended(&request)?;
        let request = request.into_inner();
        let protocol = agreed(request.min_protocol, request.protocol)?;
        let now = mesh.clock.issuing().await.map_err(|error| Status::from(&error))?;
        let requests = Requests { issuer: &request.issuer_csr, end: &request.end_csr };
        let bundle = mesh.authority.bundle().map_err(|error| status(&error.into()))?;
        let renewed = async {
            // The handshake believes retired roots. One that was replaced in an emergency vouches for no area: they are made anew.
            if !caller.is_believed_by(&bundle, now.min(caller.not_after())) {
                return Err(AreaError::Ended);
            }
            let area = areas::caller(&*mesh.store, caller.id(), caller.fingerprint()).await?;
            areas::renew(&*mesh.store, &mesh.authority, area, caller.not_after(), requests, now).await
        };
        let (delegation, _) = renewed.await.map_err(|error| {
            tracing::warn!(id = %caller.id(), code = error.code(), "an area's renewal is refused");
            status(&error)
        })?;
        tracing::info!(area = delegation.area, "an area's delegation is renewed");
        Ok(Response::new(wire::Delegation { protocol, ..delegation }))
    }

    async fn follow(
        &self,
        request: Request<Streaming<wire::AreaMessage>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let mesh = self.0.clone();
        mesh.refuse_at_an_area("areas join")?;
        let caller = peer(&mesh, &request)?;
        let found = areas::caller(&*mesh.store, caller.id(), caller.fingerprint()).await;
        let area = found.map_err(|error| status(&error))?.record;
        let (outbound, messages) = mpsc::channel(OUTBOUND_MAX);
        tokio::spawn(serve(mesh, caller, area, request.into_inner(), outbound));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

fn agreed(min_protocol: u32, protocol: u32) -> Result<u32, Status> {
    negotiate(min_protocol, protocol).map_err(|mismatch| Status::failed_precondition(mismatch.to_string()))
}

/// A refusal as the area, or an operator, sees it. Faults of the store are not its business.
pub(crate) fn status(error: &AreaError) -> Status {
    let code = match error {
        AreaError::Authority(_) | AreaError::Busy | AreaError::Store(_) | AreaError::Revocation(_) => {
            Code::Unavailable
        }
        AreaError::Budget | AreaError::Grant(_) | AreaError::NoNetwork(_) | AreaError::Request(_) => {
            Code::InvalidArgument
        }
        AreaError::Full => Code::ResourceExhausted,
        AreaError::Name(_) | AreaError::Network { .. } => Code::AlreadyExists,
        AreaError::Unknown => Code::NotFound,
        AreaError::Ended | AreaError::OtherKey | AreaError::Revoked | AreaError::Token => {
            Code::PermissionDenied
        }
    };
    match error {
        AreaError::Authority(_) | AreaError::Store(_) | AreaError::Revocation(_) => {
            tracing::error!(%error, "an area cannot be served");
            Status::new(code, format!("{}: the control plane cannot do that now, try again", error.code()))
        }
        _ => Status::new(code, format!("{}: {error}", error.code())),
    }
}

type Outbound = mpsc::Sender<Result<wire::ControlMessage, Status>>;

async fn serve(
    mesh: Mesh,
    caller: Caller,
    area: Area,
    mut inbound: Streaming<wire::AreaMessage>,
    outbound: Outbound,
) {
    let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await;
    let Ok(Ok(Some(wire::AreaMessage { message: Some(Up::Hello(hello)) }))) = first else {
        let refusal = Status::invalid_argument("the first message is not a Hello, or came too late");
        let _ = outbound.try_send(Err(refusal));
        return;
    };
    tracing::info!(area = area.name, "an area is connected");
    let stream = mesh.streams.area(&area.name);
    let publisher = Publisher::new(&hello);
    let held = publisher.states().map(|state| state.name).collect();
    let mut session = Session {
        mesh,
        caller,
        area,
        stream,
        publisher,
        held,
        outbox: VecDeque::new(),
        moved: Instant::now(),
        checked: None,
    };
    let refusal = session.run(&mut inbound, &outbound).await;
    tracing::info!(
        area = session.area.name,
        end = refusal.as_ref().map_or("closed", Status::message),
        "an area is gone"
    );
    if let Some(refusal) = refusal {
        let _ = outbound.try_send(Err(refusal));
    }
}

struct Session {
    mesh: Mesh,
    caller: Caller,
    /// As of the last look at the store.
    area: Area,
    stream: AreaStream,
    publisher: Publisher,
    held: BTreeSet<SectionName>,
    /// When the outbox last was empty or got shorter.
    moved: Instant,
    outbox: VecDeque<wire::ControlMessage>,
    /// Checks what the area signed, by the anchors it was made from.
    checked: Option<(Arc<wire::Section>, Subscriber)>,
}

impl Session {
    /// Until the end, and why, where this side ends it.
    async fn run(
        &mut self,
        inbound: &mut Streaming<wire::AreaMessage>,
        outbound: &Outbound,
    ) -> Option<Status> {
        let mut published = self.mesh.published.clone();
        published.mark_changed();
        let draining = self.mesh.draining.clone();
        let superseded = self.stream.superseded.clone();
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        loop {
            if self.outbox.is_empty() {
                self.moved = Instant::now();
            }
            if self.outbox.is_empty()
                && let Some(section) = self.publisher.poll(Instant::now())
            {
                self.outbox.push_back(down(Down::Section((*section).clone())));
            }
            let step = tokio::select! {
                permit = outbound.reserve(), if !self.outbox.is_empty() => match (permit, self.outbox.pop_front()) {
                    (Ok(permit), Some(message)) => {
                        self.moved = Instant::now();
                        permit.send(Ok(message));
                        Ok(())
                    }
                    _ => return None,
                },
                message = inbound.message(), if self.outbox.len() < OUTBOX_MAX => match message {
                    Ok(Some(message)) => self.handle(message).await,
                    Ok(None) | Err(_) => return None,
                },
                changed = published.changed() => match changed {
                    Ok(()) => {
                        let current = published.borrow_and_update().clone();
                        self.offer(&current);
                        // It may have been revoked.
                        self.look().await
                    }
                    Err(_) => return None,
                },
                _ = check.tick() => {
                    // An area that does not read is owed no more than the last of these.
                    if self.outbox.len() < OUTBOX_MAX && let Some(said) = self.mesh.freshness() {
                        self.outbox.push_back(down(Down::Freshness(said)));
                    }
                    self.look().await
                }
                () = superseded.cancelled() => return Some(Status::aborted("superseded by a newer stream")),
                () = draining.cancelled() => {
                    let goaway = wire::Goaway { reason: "draining".to_owned(), retry_after_ms: 0 };
                    let _ = outbound.try_send(Ok(down(Down::Goaway(goaway))));
                    return None;
                }
                () = outbound.closed() => return None,
            };
            if let Err(refusal) = step {
                return Some(refusal);
            }
        }
    }

    /// Everything but what the area says itself.
    fn offer(&mut self, published: &Published) {
        for (name, section) in &published.sections {
            let is_own =
                matches!(name, SectionName::Directory(network) if self.area.networks.contains(network));
            if !is_own {
                self.held.insert(name.clone());
                self.publisher.publish(section.clone());
            }
        }
    }

    async fn look(&mut self) -> Result<(), Status> {
        let now = Instant::now();
        // It may answer pings and give no room for anything else.
        if self.publisher.overdue(now) || now.saturating_duration_since(self.moved) >= ACK_TIMEOUT {
            return Err(Status::deadline_exceeded("a section was not answered in time"));
        }
        if self.caller.not_after() <= self.mesh.clock.best() {
            return Err(Status::unauthenticated("certificate-expired: renew the delegation"));
        }
        let found = areas::caller(&*self.mesh.store, self.caller.id(), self.caller.fingerprint()).await;
        self.area = found.map_err(|error| status(&error))?.record;
        Ok(())
    }

    async fn handle(&mut self, message: wire::AreaMessage) -> Result<(), Status> {
        match message.message {
            Some(Up::Ack(ack)) => self.publisher.on_ack(&ack),
            Some(Up::Nack(nack)) => {
                self.publisher.on_nack(&nack);
                tracing::warn!(
                    area = self.area.name,
                    section = plain::text(&nack.name, WORDS_MAX),
                    code = plain::text(&nack.code, WORDS_MAX),
                    "the area refused a section and keeps its last good one"
                );
            }
            Some(Up::Directory(section)) => self.take_directory(&section).await?,
            Some(Up::Instances(said)) => self.take_instances(said).await?,
            Some(Up::Hello(_)) => return Err(Status::invalid_argument("a second Hello")),
            // A newer area may say things this version does not know.
            None => {}
        }
        Ok(())
    }

    async fn take_directory(&mut self, section: &wire::Section) -> Result<(), Status> {
        let published = self.mesh.published.borrow().clone();
        let anchors = published.sections.get(&SectionName::Anchors).cloned();
        let anchors = anchors.ok_or_else(|| Status::internal("there are no anchors"))?;
        let is_checked = self.checked.as_ref().is_some_and(|(by, _)| Arc::ptr_eq(by, &anchors));
        if !is_checked {
            let (domain, key) = (self.mesh.authority.trust_domain(), self.mesh.authority.origins_key());
            let mut subscriber = Subscriber::new(domain.clone(), key);
            let applied = subscriber.apply((*anchors).clone());
            applied.map_err(|_| Status::internal("our own anchors are refused"))?;
            self.checked = Some((anchors, subscriber));
        }
        let Some((_, subscriber)) = &self.checked else { return Ok(()) };
        let refused = match subscriber.check_directory(section) {
            Ok(directory) => {
                let (store, model) = (&*self.mesh.store, &published.model);
                let taken = areas::take_directory(store, &self.area, section, &directory, model).await;
                taken.map_err(|error| status(&error))?.err().map(str::to_owned)
            }
            // Its key may not be named yet, or its network not be its own: on its next stream it says it again.
            Err(error @ SectionError::KeyNotAllowed(_)) => {
                return Err(Status::failed_precondition(format!("area-directory: {error}")));
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = refused {
            tracing::error!(
                area = self.area.name,
                section = plain::text(&section.name, WORDS_MAX),
                reason,
                "an area's directory is refused; its last good one stays"
            );
        }
        Ok(())
    }

    async fn take_instances(&mut self, said: wire::AreaInstances) -> Result<(), Status> {
        if said.instances.len() > INSTANCES_MAX {
            return Err(Status::invalid_argument(format!(
                "more than {INSTANCES_MAX} instances in one message"
            )));
        }
        let model = self.mesh.model();
        let bundle = self.mesh.authority.bundle().map_err(|error| {
            tracing::error!(%error, "the roots in force cannot be read");
            Status::unavailable("authority-unavailable: try again")
        })?;
        for instance in said.instances {
            let id = plain::text(&instance.spiffe_id, WORDS_MAX);
            let now = self.mesh.clock.best();
            let known = (&*model, &bundle);
            let taken = areas::take_instance(&*self.mesh.store, &self.area, instance, known, now).await;
            if let Err(reason) = taken.map_err(|error| status(&error))? {
                tracing::error!(
                    area = self.area.name,
                    id,
                    reason,
                    "what an area says of an instance is refused"
                );
            }
        }
        Ok(())
    }
}

fn down(message: Down) -> wire::ControlMessage {
    wire::ControlMessage { message: Some(message) }
}
