//! One data-plane thread: its listeners, its connection pools, its tasks. Nothing here is shared
//! with other workers but what [`Shared`] holds.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use signet_identity::SpiffeId;
use signet_policy::{Permit, Refusal, observe};
use signet_signature::batch::RootCache;
use signet_signature::checkpoint::Moment;
use signet_sync::Gap;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::authorize::{Content, Grant};
use crate::batcher::Batcher;
use crate::channel::Channel;
use crate::checkpoint;
use crate::clock;
use crate::config::Config;
use crate::edges::Edges;
use crate::guard::Canary;
use crate::habit::Habits;
use crate::handshakes::Handshakes;
use crate::http_server::Version;
use crate::limits::{Connections, Limits, Strangers};
use crate::outbound::egress::OutsideKey;
use crate::outbound::originate::Originations;
use crate::own::OwnAddresses;
use crate::pool::Pool;
use crate::relay::{Epochs, Relayed, Signers};
use crate::ring::{Direction, Record, Ring, Told, clip};
use crate::seal::Secrets;
use crate::snapshot::{Credentials, Snapshot};
use crate::telemetry::metrics::Metrics;
use crate::traffic::Traffic;
use crate::traffic::rate::RateLimits;

/// Mesh connections stay for callers that come once a minute.
const MESH_IDLE: Duration = Duration::from_secs(90);
/// Application connections go before the shortest keep-alive timeout in use (5 s, Node.js).
const APP_IDLE: Duration = Duration::from_secs(3);
/// How often idle connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);
/// Application connections opened for a record stream that turned out to be HTTP, per caller.
const PARKED_PER_CALLER: usize = 64;
/// Records told of one request. Each takes less than 8 KiB, an identity at its longest three times and four short texts, so they
/// fit in a message to the control plane.
const TOLD_MAX: usize = 128;
/// How long such a connection waits for the request it was opened for.
const PARKED_FOR: Duration = Duration::from_secs(5);

/// What every thread of the proxy may use.
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// Policy, directory and trust in force.
    pub snapshots: Arc<ArcSwap<Snapshot>>,
    /// The identity in force, once there is one.
    pub credentials: Arc<ArcSwapOption<Credentials>>,
    /// Told of every change of the two above.
    pub changes: watch::Receiver<u64>,
    /// What was observed about who speaks first on our own ports, for the control plane.
    pub observed: tokio::sync::mpsc::Sender<crate::habit::Observation>,
    /// Where handshakes are made.
    pub handshakes: Handshakes,
    /// Counters.
    pub metrics: Metrics,
    /// One ring per worker.
    pub rings: Vec<Ring>,
    /// Where something went past the mesh's protection.
    pub edges: Edges,
    /// The connection that proves the capture.
    pub canary: Canary,
    pub(crate) parked: Parked,
    pub(crate) relayed: Relayed,
    /// How many requests of whom this workload has taken lately.
    pub(crate) rates: RateLimits,
}

impl Shared {
    pub(crate) fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshots.load()
    }

    pub(crate) fn credentials(&self) -> Option<Arc<Credentials>> {
        self.credentials.load_full()
    }

    /// What the workers remember about a request, as JSON; `None` when nothing.
    pub fn explain(&self, request_id: &str) -> Option<String> {
        let own = self.credentials().map_or_else(String::new, |credentials| credentials.id().to_string());
        let records = self.rings.iter().flat_map(|ring| ring.find(request_id)).take(TOLD_MAX);
        let told: Vec<Told> = records.map(|record| Told::new(record, &own)).collect();
        if told.is_empty() { None } else { serde_json::to_string(&told).ok() }
    }
}

/// The boundary within which mesh connections are shared; compared in full.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct MeshKey {
    pub(crate) own: SpiffeId,
    /// Everybody who may answer.
    pub(crate) expected: Rc<[SpiffeId]>,
    pub(crate) network: Rc<str>,
    pub(crate) address: SocketAddr,
}

/// An application of ours, as dialled. Connections are never shared between callers: an application
/// may keep state by connection, and one caller's leftovers are nobody else's.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct AppKey {
    /// The verified caller; none for plaintext.
    pub(crate) caller: Option<SpiffeId>,
    pub(crate) address: SocketAddr,
    pub(crate) version: Version,
}

/// The state of one worker.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) mesh: Rc<Pool<MeshKey, Rc<Channel>>>,
    pub(crate) apps: Rc<Pool<AppKey, ()>>,
    /// Servers outside the mesh that requests go to by name.
    pub(crate) outside: Rc<Pool<OutsideKey, ()>>,
    pub(crate) originations: Originations,
    pub(crate) habits: RefCell<Habits>,
    pub(crate) limits: Limits,
    /// What is known of the destinations that requests are sent to.
    pub(crate) traffic: Traffic,
    /// True from SIGTERM on.
    pub(crate) drain: watch::Receiver<bool>,
    pub(crate) inbound: Connections,
    pub(crate) outbound: Connections,
    pub(crate) strangers: Strangers,
    pub(crate) own: OwnAddresses,
    pub(crate) batcher: Rc<Batcher>,
    pub(crate) secrets: Secrets,
    /// Places of requests that go to intermediaries.
    pub(crate) epochs: Epochs,
    /// Who signed what came from intermediaries.
    pub(crate) signers: Signers,
    /// Roots of batches that were verified here.
    pub(crate) roots: RefCell<RootCache>,
    /// Whose last message was refused for its time, and how far its clock is ahead of ours: for the answer to say.
    skew: RefCell<Option<(SpiffeId, i64)>>,
    /// Messages that were handed on and are being verified.
    pub(crate) unproven: Rc<Cell<usize>>,
    /// Seconds that this worker has seen pass.
    turns: Cell<u64>,
    started: Instant,
    index: usize,
    requests: Cell<u64>,
    /// Tells request ids of this process from those of all others in the mesh: 48 random bits.
    epoch: u64,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, index: usize, drain: watch::Receiver<bool>) -> Rc<Self> {
        Rc::new(Self {
            shared,
            mesh: Pool::new(MESH_IDLE),
            apps: Pool::new(APP_IDLE),
            outside: Pool::new(APP_IDLE),
            originations: Originations::default(),
            habits: RefCell::default(),
            limits: Limits::default(),
            traffic: Traffic::default(),
            drain,
            inbound: Connections::default(),
            outbound: Connections::default(),
            strangers: Strangers::default(),
            own: OwnAddresses::default(),
            batcher: Rc::default(),
            secrets: Secrets::default(),
            epochs: Epochs::default(),
            signers: Signers::default(),
            roots: RefCell::default(),
            skew: RefCell::default(),
            unproven: Rc::default(),
            turns: Cell::default(),
            started: Instant::now(),
            index,
            requests: Cell::new(0),
            epoch: random_epoch(),
        })
    }

    /// An id that no other request of the mesh has, but by a chance of one in 2^48 for each two processes.
    pub(crate) fn request_id(&self) -> String {
        let number = self.requests.get();
        self.requests.set(number + 1);
        hexadecimal(self.epoch, self.index as u8, number)
    }

    /// Now, as logs of authenticated messages tell it.
    pub(crate) fn moment(&self) -> Moment {
        Moment { at: self.started.elapsed(), turn: self.turns.get() }
    }

    /// The connections of one direction.
    pub(crate) fn connections(&self, direction: Direction) -> &Connections {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    /// Connections that are being served.
    pub(crate) fn open_connections(&self) -> usize {
        self.inbound.open() + self.outbound.open()
    }

    /// Lets go of peers that are no longer trusted, at every change.
    pub(crate) async fn follow_trust(&self) {
        let mut changes = self.shared.changes.clone();
        while changes.changed().await.is_ok() {
            let snapshot = self.shared.snapshots.load_full();
            self.mesh.retain(|channel| channel.check_trust(&snapshot).is_ok());
        }
    }

    /// Closes idle connections, forever.
    pub(crate) async fn sweep(self: &Rc<Self>) {
        let mut ticks = tokio::time::interval(SWEEP);
        // A worker that stood still has not seen the time pass.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.turns.set(self.turns.get() + 1);
            checkpoint::settle_idle(self);
            self.mesh.sweep();
            self.apps.sweep();
            self.outside.sweep();
            self.shared.parked.sweep();
            self.traffic.sweep(Instant::now());
        }
    }

    /// Remembers and counts what was decided about an exchange.
    pub(crate) fn record(&self, event: &Event<'_>) {
        if let Err(refusal) = event.outcome {
            self.shared.metrics.refuse(event.direction, *refusal);
            tracing::warn!(
                target: "signet::access", request_id = event.request_id, direction = event.direction.as_str(),
                peer = event.peer, address = %event.address, code = refusal.code(), "refused"
            );
        } else {
            tracing::debug!(
                target: "signet::access", request_id = event.request_id, direction = event.direction.as_str(),
                peer = event.peer, address = %event.address, "allowed"
            );
        }
        if let Some(grant) = event.grant {
            let is_observed = self.observe(event.request_id, grant);
            // Bytes are noted when they flow.
            if is_observed && event.outcome.is_ok() && grant.content.request().is_some() {
                self.lacked(grant, &[Gap::Uncovered]);
            }
        }
        let (method, path, authority) = match event.grant.map(|grant| &grant.content) {
            Some(Content::Http { method, path, authority, .. }) => (&**method, &**path, &**authority),
            Some(Content::Opaque) | None => ("-", "", ""),
        };
        if let Some(ring) = self.shared.rings.get(self.index) {
            ring.push(Record {
                request_id: clip(event.request_id),
                unix_ms: clock::unix_ms(),
                direction: event.direction,
                peer: event.peer.to_owned(),
                address: event.address,
                port: event.grant.map_or(0, |grant| grant.port),
                method: clip(method),
                authority: clip(authority),
                path: clip(path),
                outcome: event.outcome.clone(),
                policy: Arc::clone(&self.shared.snapshot().policy_version),
            });
        }
    }
}

impl Worker {
    /// What was measured that a refusal is about: how old policy is, or how far a peer's clock is off.
    pub(crate) fn note(&self, refusal: Refusal, peer: Option<&SpiffeId>) -> Option<String> {
        match refusal {
            Refusal::PolicyStale => {
                let snapshot = self.shared.snapshot();
                let bound = snapshot.offline_bound()?.budget_s;
                Some(match snapshot.policy_age_s() {
                    Some(age) => format!("it last heard {age} s ago, and the bound is {bound} s"),
                    None => format!("it never heard, and the bound is {bound} s"),
                })
            }
            Refusal::ResponseUnverified | Refusal::SignatureClock | Refusal::SignatureExpired => {
                let skew = self.skew.borrow();
                let (whose, ahead) = skew.as_ref()?;
                let ahead = (Some(whose) == peer).then_some(*ahead)?;
                let side = if ahead < 0 { "behind" } else { "ahead" };
                let off = ahead.unsigned_abs();
                Some(format!("the peer's clock is {off} s {side}, judged {}", clock::told()))
            }
            _ => None,
        }
    }

    /// Notes how far the times that a peer signs are ahead of ours, in seconds, where a message was refused for that.
    pub(crate) fn note_skew(&self, peer: &SpiffeId, ahead_s: i64) {
        *self.skew.borrow_mut() = Some((peer.clone(), ahead_s));
    }

    /// A message of this signer was in time.
    pub(crate) fn in_time(&self, keyid: &str) {
        let mut skew = self.skew.borrow_mut();
        skew.take_if(|(peer, _)| keyid.strip_prefix(peer.as_str()).is_some_and(|rest| rest.starts_with('#')));
    }

    /// Notes what an exchange with our workload lacked that was let pass. What leaves is noted at its destination or, where
    /// that is outside the mesh, by `outbound/egress.rs`.
    pub(crate) fn lacked(&self, grant: &Grant, gaps: &[Gap]) {
        if let Some(edge) = grant.inbound_edge() {
            self.shared.edges.lacked(edge, gaps, clock::unix_ms());
        }
    }

    /// The same for a connection that is not HTTP, when it begins to carry bytes.
    pub(crate) fn carries(&self, grant: &Grant, gap: Option<Gap>) {
        let observed = observe(&self.shared.snapshot().index, &grant.facts());
        let is_uncovered = observed.iter().any(|observation| !observation.allowed());
        let gaps: Vec<Gap> = gap.into_iter().chain(is_uncovered.then_some(Gap::Uncovered)).collect();
        if !gaps.is_empty() {
            self.lacked(grant, &gaps);
        }
    }

    /// Tells what policies in `mode: observe` would have refused, and whether any would; they decide nothing.
    fn observe(&self, request_id: &str, grant: &Grant) -> bool {
        let mut refused = false;
        for observation in observe(&self.shared.snapshot().index, &grant.facts()) {
            if !observation.allowed() {
                refused = true;
                self.shared.metrics.observed_refusals.inc();
                tracing::info!(
                    target: "signet::access", request_id, policy = &*observation.policy,
                    rule = observation.rule.as_deref().unwrap_or_default(),
                    source = grant.source.as_ref().map_or("-", SpiffeId::as_str),
                    destination = grant.destination.as_str(), port = grant.port,
                    method = clip(grant.content.request().map_or("-", |(method, _)| method)), "would be refused"
                );
            }
        }
        refused
    }
}

/// Sidecars start at the same moment when a host does, so the clock would not tell them apart. Without randomness there is
/// no TLS either; ids are only for people.
fn random_epoch() -> u64 {
    let mut bytes = [0; 8];
    // Fails only together with everything else.
    let _ = aws_lc_rs::rand::fill(&mut bytes[2..]);
    u64::from_be_bytes(bytes)
}

/// A request id: twelve digits, two and ten. Written for every request, so by hand.
fn hexadecimal(epoch: u64, index: u8, number: u64) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let value = u128::from(epoch) << 48 | u128::from(index) << 40 | u128::from(number & 0xff_ffff_ffff);
    (0..24).rev().map(|place| DIGITS[(value >> (4 * place)) as usize & 0xf]).collect()
}

/// One decision, for the record.
pub(crate) struct Event<'a> {
    pub(crate) request_id: &'a str,
    pub(crate) direction: Direction,
    pub(crate) peer: &'a str,
    pub(crate) address: SocketAddr,
    pub(crate) grant: Option<&'a Grant>,
    pub(crate) outcome: &'a Result<Permit, Refusal>,
}

/// Whom a parked connection was opened for.
type ParkedKey = (SocketAddr, Option<SpiffeId>);

/// Connections to applications that wait for the HTTP request they turned out to be for. Shared,
/// since that request may arrive at another worker; touched only when a connection is opened.
#[derive(Debug, Default)]
pub(crate) struct Parked(Mutex<HashMap<ParkedKey, Vec<(std::net::TcpStream, Instant)>>>);

impl Parked {
    /// Keeps a connection for its caller's next request to the address.
    pub(crate) fn put(&self, address: SocketAddr, caller: Option<&SpiffeId>, stream: tokio::net::TcpStream) {
        let Ok(stream) = stream.into_std() else { return };
        let mut parked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let list = parked.entry((address, caller.cloned())).or_default();
        if list.len() < PARKED_PER_CALLER {
            list.push((stream, Instant::now()));
        }
    }

    /// The connection that waits for this caller's request, if one does and the application has
    /// neither closed it nor spoken.
    pub(crate) fn take(
        &self,
        address: SocketAddr,
        caller: Option<&SpiffeId>,
    ) -> Option<tokio::net::TcpStream> {
        let mut parked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (address, caller.cloned());
        let mut found = None;
        while let Some(list) = parked.get_mut(&key) {
            if list.is_empty() {
                parked.remove(&key);
                break;
            }
            let (stream, _) = list.remove(0);
            let silent = stream.peek(&mut [0; 1]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
            if silent {
                found = Some(stream);
                break;
            }
        }
        tokio::net::TcpStream::from_std(found?).ok()
    }

    fn sweep(&self) {
        let mut parked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parked.retain(|_, list| {
            list.retain(|(_, since)| since.elapsed() < PARKED_FOR);
            !list.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_of_processes_that_start_together_differ() {
        let ids = [random_epoch(), random_epoch()].map(|epoch| hexadecimal(epoch, 1, 0xab));
        assert_ne!(ids[0], ids[1]);
        for id in &ids {
            assert_eq!((id.len(), &id[12..]), (24, "0100000000ab"), "{id}");
        }
    }
}
