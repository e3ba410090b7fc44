//! The control stream: one task per proxy that pushes sections, takes claims and reports, and asks questions.
//!
//! Nothing a proxy does or omits grows this task: sections have one place each ([`Publisher`]), the proxy's messages
//! are not read while answers to it pile up, and what it changes for all others (claims, habits) has a budget.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use signet_policy::{PolicyModel, Protocol, Refusal, SpeaksFirst};
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::control_message::Message as Down;
use signet_sync::proto::sync::proxy_message::Message as Up;
use signet_sync::{
    ACK_TIMEOUT, Claim, MAX_NACK_BYTES, Publisher, SectionName, decode_claims, decode_edges, negotiate,
    sealing_key,
};
use tokio::sync::{mpsc, watch};
use tonic::{Request, Status, Streaming};

use crate::area::{Heard, Word};
use crate::caller::Caller;
use crate::claims::AnnounceError;
use crate::directory::{ClaimRefusal, Claimant, Habit};
use crate::metrics::count;
use crate::plain;
use crate::publish::Published;
use crate::records::{self, SealingKey};
use crate::registrar::Known;
use crate::services::frames::framed;
use crate::services::{Mesh, connection, peer, status};
use crate::streams::{Answer, Membership, Opened, Question};
use crate::told;

/// How long a proxy may take to say `Hello` on a stream it opened.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages handed to HTTP/2 before it has sent them: flow control does the rest.
const OUTBOUND_MAX: usize = 1;

/// Answers waiting for the proxy to read; at this many its own messages are not read any further.
const OUTBOX_MAX: usize = 64;

/// Addresses times ports of one proxy: far above a container's, far below what would slow the mesh.
const PLACES_MAX: usize = 256;

/// Observations waiting until the proxy may change something again; beyond, new ports are not taken up.
const HABITS_MAX: usize = 64;

/// The least time between two looks at a proxy's claims: each may cost a durable write.
const CLAIM_PAUSE: Duration = Duration::from_millis(200);

/// How often it is checked that the proxy may still be served and answers what it was sent.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Of these checks, one in so many asks the store; the others look at what is published, which costs nothing.
const STORE_CHECKS: u32 = 6;

/// When a proxy should come back after this control plane stopped in good order: not before, and all of them spread over a
/// time in which one processor shakes hands with so many.
const RETRY_AFTER_MS: u64 = 500;
const RETRY_SPREAD_MS_PER_STREAM: u64 = 1;

/// The longest of these times; the proxy takes up to a minute.
const RETRY_SPREAD_MAX_MS: u64 = 30_000;

/// How long the last message of a stream is offered to a proxy that does not read.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Questions a proxy has not answered yet; the oldest is given up.
const ASKED_MAX: usize = 16;

/// Characters of a proxy's version.
const VERSION_MAX: usize = 64;

/// The service.
pub(crate) struct ControlService(pub(crate) Mesh);

impl ControlService {
    /// Opens a stream: what is sent down it, until its status.
    pub(crate) async fn connect(
        &self,
        request: Request<Streaming<wire::ProxyMessage>>,
    ) -> Result<mpsc::Receiver<Result<Bytes, Status>>, Status> {
        let mesh = self.0.clone();
        let peer = peer(&mesh, &request)?;
        let source = connection(&request)?.source;
        let known = mesh
            .registrar
            .known(&peer, &mesh.model(), mesh.clock.best())
            .await
            .map_err(|error| status(&error))?;
        let (outbound, messages) = mpsc::channel(OUTBOUND_MAX);
        tokio::spawn(serve(mesh, peer, known, source, request.into_inner(), outbound));
        Ok(messages)
    }
}

/// An address and port.
type Place = (IpAddr, u16);

type Outbound = mpsc::Sender<Result<Bytes, Status>>;

/// Serves one stream from `Hello` to its end.
async fn serve(
    mesh: Mesh,
    peer: Caller,
    known: Known,
    source: IpAddr,
    mut inbound: Streaming<wire::ProxyMessage>,
    outbound: Outbound,
) {
    let hello = match hello(&mut inbound).await {
        Ok(hello) => hello,
        Err(refusal) => return say_goodbye(&outbound, Err(refusal)).await,
    };
    let opened = Opened {
        spiffe_id: peer.id().clone(),
        instance: known.instance,
        leaf: peer.fingerprint().to_string(),
        network: known.network,
        version: plain::text(&hello.version, VERSION_MAX),
        protocol: hello.protocol,
    };
    let (membership, questions) = mesh.streams.open(opened);
    mesh.metrics.streams.inc();
    tracing::info!(id = %peer.id(), %source, "proxy connected");
    let mut session = Session::new(mesh.clone(), peer, source, membership, &hello);
    let end = session.run(&hello, &mut inbound, &outbound, questions).await;
    tracing::info!(id = %session.peer.id(), %source, %end, "proxy disconnected");
    let streams = mesh.streams.count();
    if let Err(error) = mesh.claims.release(session.membership.stream.id, mesh.clock.best()).await {
        tracing::error!(%error, "leases cannot be recorded");
    }
    mesh.metrics.streams.dec();
    match end {
        End::Closed => {}
        End::Draining => say_goodbye(&outbound, Ok(goaway("draining", spread(streams)))).await,
        End::Refused(refusal) => say_goodbye(&outbound, Err(refusal)).await,
        End::Superseded => say_goodbye(&outbound, Ok(goaway("superseded", 0))).await,
    }
}

async fn hello(inbound: &mut Streaming<wire::ProxyMessage>) -> Result<wire::Hello, Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no Hello in time"))??;
    let Some(wire::ProxyMessage { message: Some(Up::Hello(hello)) }) = first else {
        return Err(Status::invalid_argument("the first message is not a Hello"));
    };
    negotiate(hello.min_protocol, hello.protocol)
        .map_err(|mismatch| Status::failed_precondition(mismatch.to_string()))?;
    Ok(hello)
}

async fn say_goodbye(outbound: &Outbound, message: Result<wire::ControlMessage, Status>) {
    let frame = message.and_then(|message| framed(&message));
    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, outbound.send(frame)).await;
}

fn goaway(reason: &str, later_ms: u64) -> wire::ControlMessage {
    let retry_after_ms = RETRY_AFTER_MS.saturating_add(later_ms);
    down(Down::Goaway(wire::Goaway { reason: reason.to_owned(), retry_after_ms }))
}

/// How much later one of so many comes back: a number by chance.
fn spread(streams: usize) -> u64 {
    let most = (streams as u64).saturating_mul(RETRY_SPREAD_MS_PER_STREAM).min(RETRY_SPREAD_MAX_MS);
    let mut bytes = [0; 8];
    // Without randomness all come back at once, which they survive.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_be_bytes(bytes) % (most + 1)
}

fn down(message: Down) -> wire::ControlMessage {
    wire::ControlMessage { message: Some(message) }
}

/// What waits to be sent.
enum Outgoing {
    /// To all who have not got it yet, in the same bytes.
    Section(Arc<wire::Section>),
    /// To this proxy.
    Message(wire::ControlMessage),
}

/// How a stream ended.
#[derive(Debug)]
enum End {
    Closed,
    Draining,
    Refused(Status),
    Superseded,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("closed by the proxy"),
            Self::Draining => f.write_str("draining"),
            Self::Refused(status) => f.write_str(status.message()),
            Self::Superseded => f.write_str("superseded by a newer stream"),
        }
    }
}

/// What this side knows of one stream.
struct Session {
    mesh: Mesh,
    peer: Caller,
    source: IpAddr,
    membership: Membership,
    publisher: Publisher,
    /// Sections the proxy has or was sent: their later versions follow even when they no longer concern it.
    held: BTreeSet<SectionName>,
    /// When the outbox last was empty or got shorter.
    moved: Instant,
    outbox: VecDeque<Outgoing>,
    asked: VecDeque<Question>,
    claims: Vec<Claim>,
    /// The verdicts the proxy was told.
    told: BTreeMap<Place, Result<(), ClaimRefusal>>,
    /// The policy the verdicts were made under.
    judged_by: Option<Arc<PolicyModel>>,
    claim_at: Option<tokio::time::Instant>,
    /// The proxy changed its claims, and no change was taken from its budget for that yet.
    claims_changed: bool,
    /// What the proxy observed on its ports and nobody was told yet.
    habits: BTreeMap<u16, Habit>,
    habit_at: Option<tokio::time::Instant>,
    /// Counter of the revocations last offered.
    revocations: Option<u64>,
    /// Checks since the stream was opened.
    checks: u32,
    /// Whether versions that were not made here were looked for.
    foreign_told: bool,
    /// At an area: the origin's words, in the place of our own.
    words: Option<watch::Receiver<Word>>,
}

impl Session {
    fn new(mesh: Mesh, peer: Caller, source: IpAddr, membership: Membership, hello: &wire::Hello) -> Self {
        let publisher = Publisher::new(hello);
        let held = publisher.states().map(|state| state.name).collect();
        let words = mesh.authority.area().map(|area| area.words());
        Self {
            mesh,
            peer,
            source,
            membership,
            publisher,
            held,
            outbox: VecDeque::new(),
            moved: Instant::now(),
            asked: VecDeque::new(),
            claims: Vec::new(),
            told: BTreeMap::new(),
            judged_by: None,
            claim_at: None,
            claims_changed: false,
            habits: BTreeMap::new(),
            habit_at: None,
            revocations: None,
            checks: 0,
            foreign_told: false,
            words,
        }
    }

    async fn run(
        &mut self,
        hello: &wire::Hello,
        inbound: &mut Streaming<wire::ProxyMessage>,
        outbound: &Outbound,
        mut questions: mpsc::Receiver<Question>,
    ) -> End {
        let mut published = self.mesh.published.clone();
        let stream = self.membership.stream.clone();
        let draining = self.mesh.draining.clone();
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        let mut words = self.words.clone();
        published.mark_changed();
        if let Err(refusal) = self.announce(&hello.sealing_key).await {
            return End::Refused(refusal);
        }
        if let Err(refusal) = self.set_claims(&hello.claims) {
            return End::Refused(refusal);
        }
        // Before any section: as soon as the proxy has them all it knows that they are the newest.
        self.tell_freshness();
        loop {
            if self.outbox.is_empty() {
                self.moved = Instant::now();
            }
            self.fill_outbox();
            let (claim_at, habit_at) = (self.claim_at, self.habit_at);
            let step = tokio::select! {
                permit = outbound.reserve(), if !self.outbox.is_empty() => match (permit, self.outbox.pop_front()) {
                    (Ok(permit), Some(message)) => {
                        self.moved = Instant::now();
                        self.encoded(message).map(|frame| permit.send(Ok(frame)))
                    }
                    _ => return End::Closed,
                },
                message = inbound.message(), if self.outbox.len() < OUTBOX_MAX => match message {
                    Ok(Some(message)) => self.handle(message),
                    Ok(None) | Err(_) => return End::Closed,
                },
                changed = published.changed() => match changed {
                    Ok(()) => {
                        let current = published.borrow_and_update().clone();
                        if self.offer(&current) { self.check().await } else { Ok(()) }
                    }
                    Err(_) => return End::Draining,
                },
                Some(question) = questions.recv() => { self.ask(question); Ok(()) }
                () = sleep_until(claim_at), if claim_at.is_some() && self.outbox.len() < OUTBOX_MAX => self.claim().await,
                () = sleep_until(habit_at), if habit_at.is_some() => { self.tell_habits(); Ok(()) }
                () = stream.displaced.notified() => { self.claim_soon(); Ok(()) }
                _ = check.tick() => {
                    // An area's are told when they come.
                    if self.words.is_none() {
                        self.tell_freshness();
                    }
                    self.look().await
                }
                () = word(&mut words) => { self.tell_freshness(); Ok(()) }
                () = stream.superseded.cancelled() => return End::Superseded,
                () = draining.cancelled() => return End::Draining,
                () = outbound.closed() => return End::Closed,
            };
            if let Err(refusal) = step {
                return End::Refused(refusal);
            }
        }
    }

    /// Says what time it is and what the newest versions are: at the beginning and every [`CHECK_INTERVAL`]; nothing while the store
    /// cannot be read. One that the proxy does not read takes the place of no other.
    fn tell_freshness(&mut self) {
        if self.outbox.len() >= OUTBOX_MAX {
            return;
        }
        let said = match &mut self.words {
            None => self.mesh.freshness(),
            Some(words) => words.borrow_and_update().as_ref().map(Heard::passed_on),
        };
        if let Some(said) = said {
            self.tell(Down::Freshness(said));
        }
    }

    fn tell(&mut self, message: Down) {
        self.outbox.push_back(Outgoing::Message(down(message)));
    }

    /// Sections go out one at a time, behind what is already waiting.
    fn fill_outbox(&mut self) {
        if self.outbox.is_empty()
            && let Some(section) = self.publisher.poll(Instant::now())
        {
            self.outbox.push_back(Outgoing::Section(section));
        }
    }

    fn encoded(&self, message: Outgoing) -> Result<Bytes, Status> {
        match message {
            Outgoing::Section(section) => self.mesh.frames.of(&section),
            Outgoing::Message(message) => framed(&message),
        }
    }

    /// Queues what is new for this proxy. Whether it may be one that must not be served any more.
    fn offer(&mut self, published: &Published) -> bool {
        let network = &self.membership.stream.network;
        self.held.extend(published.concerning(network).filter(|name| published.sections.contains_key(name)));
        for section in self.held.iter().filter_map(|name| published.sections.get(name)) {
            self.publisher.publish(section.clone());
        }
        // What refused a claim may be over, and one that was accepted may be gone: an attestor says that an instance has left
        // an address, and another of the same identity is there already.
        let unsettled = self.told.iter().any(|(&(address, port), outcome)| {
            outcome.is_err() || !published.is_claimed(network, address, port)
        });
        let model_changed =
            self.judged_by.as_ref().is_some_and(|model| !Arc::ptr_eq(model, &published.model));
        if model_changed || unsettled {
            self.claim_soon();
        }
        self.record_sections();
        let revocations = published.sections.get(&SectionName::Revocations).map(|section| section.counter);
        let revoked = std::mem::replace(&mut self.revocations, revocations) != revocations;
        revoked || (model_changed && published.model.workload(self.peer.id()).is_none())
    }

    fn handle(&mut self, message: wire::ProxyMessage) -> Result<(), Status> {
        match message.message {
            Some(Up::Ack(ack)) => {
                self.publisher.on_ack(&ack);
                self.mesh.metrics.acknowledgements.inc();
                self.record_sections();
            }
            Some(Up::Nack(mut nack)) => {
                nack.code = plain::text(&nack.code, MAX_NACK_BYTES);
                nack.error = plain::text(&nack.error, MAX_NACK_BYTES);
                self.publisher.on_nack(&nack);
                self.mesh.metrics.refused_sections.inc();
                self.record_sections();
                tracing::warn!(id = %self.peer.id(), section = ?truncated(&nack.name), code = ?truncated(&nack.code),
                    error = ?truncated(&nack.error), "the proxy refused a section and keeps its last good one");
            }
            Some(Up::Claims(claims)) => self.set_claims(&claims.claims)?,
            Some(Up::Status(status)) => self.set_status(status),
            Some(Up::Habit(habit)) => self.observe(&habit)?,
            Some(Up::ExplainAnswer(answer)) => self.answer(answer),
            Some(Up::Hello(_)) => return Err(Status::invalid_argument("a second Hello")),
            // A newer proxy may say things this version does not know.
            None => {}
        }
        Ok(())
    }

    /// Publishes the instance's key to what is sealed for it; a proxy that opens nothing has none.
    async fn announce(&self, key: &[u8]) -> Result<(), Status> {
        if key.is_empty() {
            return Ok(());
        }
        let key = sealing_key("hello.sealing_key", key)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let expires = records::unix_seconds(self.peer.not_after());
        let leaf = self.peer.fingerprint().to_string();
        let key = SealingKey { id: self.peer.id().clone(), key, leaf, expires };
        let announced = self.mesh.claims.announce(&self.membership.stream.instance, &key).await;
        match announced {
            Ok(()) => Ok(()),
            // Its state may have been set back; it needs policy all the same.
            Err(error @ AnnounceError::Older) => {
                tracing::warn!(id = %self.peer.id(), %error, "a key to what is sealed is not published");
                Ok(())
            }
            Err(AnnounceError::Store(error)) => {
                tracing::error!(%error, "a key to what is sealed cannot be recorded");
                Err(Status::unavailable("store-unavailable: keys cannot be recorded now"))
            }
            Err(error) => Err(Status::invalid_argument(format!("sealing-key: {error}"))),
        }
    }

    fn set_claims(&mut self, claims: &[wire::Claim]) -> Result<(), Status> {
        let claims =
            decode_claims(claims).map_err(|error| Status::invalid_argument(format!("claims: {error}")))?;
        if self.judged_by.is_none() || claims != self.claims {
            self.claims = claims;
            self.claims_changed = true;
            self.claim_soon();
        }
        Ok(())
    }

    fn claim_soon(&mut self) {
        let pause = if self.judged_by.is_none() { Duration::ZERO } else { CLAIM_PAUSE };
        self.claim_at.get_or_insert_with(|| tokio::time::Instant::now() + pause);
    }

    /// Has the claims judged and recorded, and tells the proxy every verdict that is new to it.
    async fn claim(&mut self) -> Result<(), Status> {
        self.claim_at = None;
        if self.claims_changed
            && let Err(later) = self.may_change()
        {
            self.claim_at = Some(later);
            return Ok(());
        }
        self.claims_changed = false;
        let model = self.mesh.model();
        let (places, surplus) = self.places(&model);
        let stream = self.membership.stream.clone();
        let claimant = Claimant { id: self.peer.id(), network: &stream.network, source: self.source };
        let judged =
            self.mesh.claims.claim(stream.id, claimant, &places, &model, self.mesh.clock.best()).await;
        let judged = judged.map_err(|error| {
            tracing::error!(%error, "claims cannot be recorded");
            Status::unavailable("store-unavailable: claims cannot be recorded now")
        })?;
        self.mesh.streams.displaced(&judged.displaced);
        let mut told = BTreeMap::new();
        for verdict in judged.verdicts {
            told.insert((verdict.address, verdict.port), verdict.outcome);
        }
        if let Some(place) = surplus {
            told.insert(place, Err(ClaimRefusal::TooMany));
        }
        for (place, outcome) in &told {
            if self.told.get(place) != Some(outcome) {
                count(&self.mesh.metrics.claims, outcome.map_or_else(ClaimRefusal::code, |()| "ok"));
                self.outbox.push_back(Outgoing::Message(claim_result(*place, *outcome)));
            }
        }
        self.told = told;
        self.judged_by = Some(model);
        Ok(())
    }

    /// Takes one from the proxy's budget of changes that others are told of, or says when there will be one.
    fn may_change(&self) -> Result<(), tokio::time::Instant> {
        let taken = self.mesh.churn.take(&self.membership.stream.instance, Instant::now());
        taken.map_err(tokio::time::Instant::from_std)
    }

    /// What is claimed, at most [`PLACES_MAX`] of it, and the first place beyond.
    fn places(&self, model: &PolicyModel) -> (BTreeSet<Place>, Option<Place>) {
        let declared: Vec<u16> = match model.workload(self.peer.id()) {
            Some(workload) if !workload.ports.is_empty() => {
                workload.ports.iter().map(|port| port.port).collect()
            }
            // Port 0 is the address itself: a workload that serves nothing is still known to have a sidecar. Of an
            // undeclared one nothing can be claimed, and it stands for the address in the refusal.
            _ => vec![0],
        };
        let mut places = BTreeSet::new();
        for claim in &self.claims {
            let ports = if claim.ports.is_empty() { &declared } else { &claim.ports };
            for port in ports {
                let place = (claim.address.to_canonical(), *port);
                if places.len() >= PLACES_MAX && !places.contains(&place) {
                    return (places, Some(place));
                }
                places.insert(place);
            }
        }
        (places, None)
    }

    fn set_status(&self, mut status: wire::Status) {
        // The codes this version knows are also all that is kept.
        status.refused.retain(|code, _| Refusal::from_code(code).is_some());
        let (edges, left_out) = decode_edges(&std::mem::take(&mut status.edges));
        status.edges_lost = status.edges_lost.saturating_add(left_out);
        let ours = i64::try_from(self.mesh.clock.wall_ms()).unwrap_or(i64::MAX);
        let theirs = i64::try_from(status.unix_ms).unwrap_or(i64::MAX);
        self.membership.stream.set_status(status, edges.into(), ours.saturating_sub(theirs));
    }

    /// Takes up an observation, which is told to others as soon as the proxy's budget allows it.
    fn observe(&mut self, habit: &wire::Habit) -> Result<(), Status> {
        let port = u16::try_from(habit.port).map_err(|_| Status::invalid_argument("habit: no such port"))?;
        let model = self.mesh.model();
        let declares = |workload: &signet_policy::WorkloadModel| {
            workload.ports.is_empty() || workload.port(port).is_some()
        };
        let has_room = self.habits.len() < HABITS_MAX || self.habits.contains_key(&port);
        if has_room && model.workload(self.peer.id()).is_some_and(declares) {
            let observed = Habit { protocol: protocol(habit), speaks_first: speaks_first(habit), expires: 0 };
            self.habits.insert(port, observed);
            self.tell_habits();
        }
        Ok(())
    }

    /// Passes on what was observed, as far as the budget goes. What only repeats is free.
    fn tell_habits(&mut self) {
        self.habit_at = None;
        while let Some((&port, &observed)) = self.habits.first_key_value() {
            let now = self.mesh.clock.best();
            if self.mesh.habits.is_news(self.peer.id(), port, observed, now) {
                if let Err(later) = self.may_change() {
                    self.habit_at = Some(later);
                    return;
                }
                self.mesh.habits.observe(self.peer.id(), port, observed, now);
            }
            self.habits.remove(&port);
        }
    }

    fn ask(&mut self, question: Question) {
        // Who does not read does not answer: whoever asked is told so by the end of the question.
        if self.outbox.len() >= OUTBOX_MAX {
            return;
        }
        let query = wire::ExplainQuery { query_id: question.id, request_id: question.request_id.clone() };
        self.tell(Down::ExplainQuery(query));
        if self.asked.len() >= ASKED_MAX {
            self.asked.pop_front();
        }
        self.asked.push_back(question);
    }

    fn answer(&mut self, answer: wire::ExplainAnswer) {
        let Some(at) = self.asked.iter().position(|question| question.id == answer.query_id) else { return };
        let Some(question) = self.asked.remove(at) else { return };
        let (records, dropped) = match answer.json.as_str() {
            "" => (Vec::new(), Vec::new()),
            text => told::read(text, &question.request_id, self.peer.id()),
        };
        for reason in &dropped {
            tracing::warn!(id = %self.peer.id(), request_id = question.request_id, %reason,
                "of what the proxy says about a past request something is dropped");
        }
        // Whoever asked may have stopped waiting.
        let _ = question.answer.try_send(Answer {
            spiffe_id: self.peer.id().clone(),
            instance: self.membership.stream.leaf.clone(),
            records,
            dropped,
        });
    }

    /// The check that is made every now and then. What is published says who is revoked and declared, and a certificate that has
    /// not ended is one of its instance's.
    async fn look(&mut self) -> Result<(), Status> {
        self.checks = self.checks.wrapping_add(1);
        self.tell_foreign();
        let published = self.mesh.published.borrow().clone();
        let believed = self.peer.not_after() > self.mesh.clock.best()
            && published.model.workload(self.peer.id()).is_some()
            && published.revocations.of(self.peer.id(), self.peer.fingerprint()).is_none();
        if believed && !self.checks.is_multiple_of(STORE_CHECKS) && !self.is_overdue() {
            return Ok(());
        }
        self.check().await
    }

    /// Says once what nobody else would: the proxy verified a version that was not made here, so somebody else signs with the
    /// same keys, or has set this state back. Only now: a replica is behind the others for a moment.
    fn tell_foreign(&mut self) {
        // The first look is at once.
        if self.checks < 2 || std::mem::replace(&mut self.foreign_told, true) {
            return;
        }
        // Directories may be an area's, which says them to its own first.
        let ahead = self.publisher.ahead().filter(|(name, ..)| !matches!(name, SectionName::Directory(_)));
        for (name, held, latest) in ahead {
            self.mesh.metrics.foreign_sections.inc();
            tracing::error!(id = %self.peer.id(), section = %name, %held, %latest, code = "foreign-version",
                "a proxy holds a newer version than was ever made here: another control plane runs with the same keys, or this \
                 one's state was set back. Stop one of them; set a state back with `signet restore` alone, which begins an epoch");
        }
    }

    /// Whether the proxy leaves something unanswered, or unread: it may answer pings and give no room for anything else.
    fn is_overdue(&self) -> bool {
        let now = Instant::now();
        self.publisher.overdue(now) || now.saturating_duration_since(self.moved) >= ACK_TIMEOUT
    }

    /// Ends the stream of a proxy that was revoked, whose certificates ended, or that does not answer.
    async fn check(&self) -> Result<(), Status> {
        if self.is_overdue() {
            return Err(Status::deadline_exceeded("a section was not answered in time"));
        }
        let instance = &self.membership.stream.instance;
        self.mesh
            .registrar
            .still_known(&self.peer, instance, &self.mesh.model(), self.mesh.clock.best())
            .await
            .map_err(|error| status(&error))
    }

    fn record_sections(&self) {
        self.membership.stream.set_sections(self.publisher.states().collect());
    }
}

/// Waits for the origin's next word; for ever at the origin.
async fn word(words: &mut Option<watch::Receiver<Word>>) {
    if let Some(words) = words
        && words.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

async fn sleep_until(instant: Option<tokio::time::Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn claim_result((address, port): Place, outcome: Result<(), ClaimRefusal>) -> wire::ControlMessage {
    let octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    down(Down::ClaimResult(wire::ClaimResult {
        address: octets,
        port: u32::from(port),
        accepted: outcome.is_ok(),
        code: outcome.err().map_or_else(String::new, |refusal| refusal.code().to_owned()),
        detail: outcome.err().map_or_else(String::new, |refusal| refusal.to_string()),
    }))
}

fn protocol(habit: &wire::Habit) -> Option<Protocol> {
    match habit.protocol() {
        wire::Protocol::Auto | wire::Protocol::Unspecified => None,
        wire::Protocol::Grpc => Some(Protocol::Grpc),
        wire::Protocol::Http => Some(Protocol::Http),
        wire::Protocol::Http2 => Some(Protocol::Http2),
        wire::Protocol::Opaque => Some(Protocol::Opaque),
        wire::Protocol::Tls => Some(Protocol::Tls),
    }
}

fn speaks_first(habit: &wire::Habit) -> Option<SpeaksFirst> {
    match habit.speaks_first() {
        wire::SpeaksFirst::Client => Some(SpeaksFirst::Client),
        wire::SpeaksFirst::Server => Some(SpeaksFirst::Server),
        wire::SpeaksFirst::Unknown | wire::SpeaksFirst::Unspecified => None,
    }
}

/// A peer's text for the log.
fn truncated(text: &str) -> String {
    text.chars().take(200).collect()
}
