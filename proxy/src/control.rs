//! The control client: gets and renews the proxy's identity, follows the sections, reports.
//!
//! ```text
//! open ─► join ─► run ┬─ stream: connect, apply sections, answer, report; again and again
//!   ▲               ▲ └─ renew:  half-life, fresh keys; ends only when the certificates have
//!   └─ state        └──────────── enrol again (token), or believe a clock that was set right
//! ```
//!
//! Invariants:
//! - Nothing is believed that was not verified: the control plane by pin or by identity, certificates by the roots,
//!   sections by their signatures; what comes from the state directory is verified like what comes from the wire.
//! - What is given up for tampering comes back by nobody's word: nothing is published or written after that.
//! - A failed renewal or a lost stream changes nothing of what is in force. Certificates that have ended are withdrawn.
//! - What is shown to get an identity is sent to nobody but the control plane under a pin: the token's, or those of the
//!   roots that were given with the evidence.

mod app_svid;
mod appoint;
mod connect;
mod custody;
mod enrol;
mod expiry;
mod interfaces;
mod island;
mod proof;
mod renew;
mod state;
mod stream;
mod tampering;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::future::BoxFuture;
use signet_identity::{
    SigningSvid, SpiffeId, TlsSvid, TrustBundle, area_of_chain, spki_sha256, verify_signing_chain,
    verify_tls_chain,
};
use signet_sync::{Edge, Subscriber, Tally};
use signet_tpm::{Tpm, TpmError};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tonic::transport::Channel;

use crate::clock;
use crate::config::{HostPort, TokenSource};
use crate::control::connect::ControlPlane;
pub use crate::control::island::Contact;
use crate::control::island::Island;
pub use crate::control::proof::ProofError;
use crate::control::state::{State, StateError};
pub(crate) use crate::control::tampering::destroy;
use crate::habit::Observation;
use crate::snapshot::{Credentials, Snapshot};

/// Where the control plane is, and how to get an identity from it.
#[derive(Debug)]
pub struct Settings {
    /// Name or address of its gRPC port.
    pub control_plane: HostPort,
    /// The join token or what stands for it, needed until there is an identity.
    pub token: Option<TokenSource>,
    /// Where the keys of channels are made and kept; in memory without.
    pub tpm: Option<Tpm>,
    /// Where identity and last good sections are kept; without it a restart enrols anew.
    pub state_dir: Option<PathBuf>,
    /// How connections are opened.
    pub dial: Dial,
}

/// Opens a TCP connection, with whatever marks the proxy's own sockets.
#[derive(Clone)]
pub struct Dial(Arc<dyn Fn(SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> + Send + Sync>);

impl Dial {
    /// From a function that connects.
    pub fn new<F, R>(dial: F) -> Self
    where
        F: Fn(SocketAddr) -> R + Send + Sync + 'static,
        R: Future<Output = io::Result<TcpStream>> + Send + 'static,
    {
        Self(Arc::new(move |address| Box::pin(dial(address))))
    }
}

impl std::fmt::Debug for Dial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dial").finish_non_exhaustive()
    }
}

/// What the control client asks of the rest of the proxy.
pub struct Hooks {
    /// What is remembered about a request id, as JSON.
    #[expect(clippy::type_complexity, reason = "spelled out, the type says what is asked for")]
    pub explain: Box<dyn Fn(&str) -> Option<String> + Send + Sync>,
    /// How the proxy is, now.
    pub health: Box<dyn Fn() -> Health + Send + Sync>,
    /// Who speaks first on the workload's own ports, as observed.
    pub observed: mpsc::Receiver<Observation>,
    /// Roles that the workload wants to give.
    pub appointments: mpsc::Receiver<crate::appoint::Request>,
    /// What the application is to get for itself.
    pub app_svids: mpsc::Receiver<crate::workload_api::Question>,
    /// Notified when [`Hooks::health`] has changed enough to be reported at once.
    pub report: Arc<Notify>,
}

/// How the proxy is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Health {
    /// The capture rules are in force.
    pub capture_in_force: bool,
    /// The last canary did not leak.
    pub canary_ok: bool,
    /// Open connections, both ways.
    pub open_connections: u32,
    /// Refusals since start, by code.
    pub refused: BTreeMap<String, u64>,
    /// What went past the mesh's protection since start.
    pub unprotected: Unprotected,
    /// Where it did, the last one seen first.
    pub edges: Vec<(Edge, Tally)>,
    /// How often one of those gave its place to another.
    pub edges_lost: u64,
}

/// What went past the mesh's protection because policy lets it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Unprotected {
    /// Connections in plaintext that came in.
    pub plaintext_in: u64,
    /// Connections in plaintext that went out.
    pub plaintext_out: u64,
    /// Requests received without a signature.
    pub unsigned_requests: u64,
    /// Responses received without a signature.
    pub unsigned_responses: u64,
    /// Exchanges that a policy in `mode: observe` would have refused.
    pub observed_refusals: u64,
}

/// Where the proxy stands with its control plane, for readiness and metrics.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Link {
    /// There is an identity, and its certificates have not ended.
    pub enrolled: bool,
    /// The stream is open.
    pub connected: bool,
    /// Why the last attempt at anything failed, until one succeeds.
    pub error: Option<String>,
    /// Sections refused since start.
    pub refused_sections: u64,
}

/// A setting with which the control client cannot work.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Neither a token nor an identity that holds in the state directory.
    #[error("no identity can be had: there is no token, and the state directory holds no identity in force")]
    NoIdentity,
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The token, or what an attestor is to check, cannot be read.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The TPM cannot be used.
    #[error(transparent)]
    Tpm(#[from] TpmError),
}

/// The control client before it has an identity.
pub struct Control {
    plane: ControlPlane,
    token: Option<TokenSource>,
    state: Option<State>,
    tpm: Option<Tpm>,
    saved: Option<Identity>,
    link: watch::Sender<Link>,
}

impl Control {
    /// Reads the token and the state directory; sends nothing yet.
    ///
    /// # Errors
    /// [`ControlError`], when nothing could ever come of it.
    pub fn open(settings: Settings) -> Result<Self, ControlError> {
        let Settings { control_plane, token, tpm, state_dir, dial } = settings;
        let state =
            state_dir.map(|directory| State::open(directory, custody::keys(tpm.as_ref()))).transpose()?;
        // Before anything is judged by a time of day.
        if let Some(saved) = state.as_ref().and_then(State::load_clock) {
            clock::restore(&saved);
        }
        let saved = match state.as_ref().map(State::load_identity) {
            // A device that starts before its TPM still has its identity.
            Some(Err(error @ StateError::KeyUnavailable { .. })) => return Err(error.into()),
            Some(Err(error)) if token.is_some() => {
                tracing::warn!(%error, "the saved identity cannot be used; enrolling anew");
                None
            }
            Some(loaded) => loaded?,
            None => None,
        };
        if let Some(identity) = &saved {
            identity.has_begun();
        }
        if saved.is_none() {
            // A token is looked at again when it is used: its file may be gone once there is an identity.
            proof::check(token.as_ref().ok_or(ControlError::NoIdentity)?)?;
        }
        let plane = ControlPlane::new(control_plane, dial);
        Ok(Self { plane, token, tpm, state, saved, link: watch::Sender::default() })
    }

    /// Where the proxy stands with its control plane.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    /// Waits until there is an identity that holds: the saved one, or one enrolled for. Retries for ever.
    pub async fn join(self) -> Joined {
        let Self { plane, token, tpm, state, saved, link } = self;
        let subscriber = saved.as_ref().map(|identity| restore(identity, state.as_ref()));
        // Roots may have changed since the identity was saved; the saved anchors know.
        let saved = match (saved, subscriber.as_ref().and_then(Subscriber::bundle)) {
            (Some(identity), Some(bundle)) => Some(Identity { bundle: Arc::clone(bundle), ..identity }),
            (saved, _) => saved,
        };
        let island = subscriber.as_ref().and_then(|subscriber| Island::restore(state.as_ref()?, subscriber));
        let origin = Origin { plane, token, tpm, state, link };
        let identity = origin.obtain(saved.as_ref()).await;
        Joined::new(origin, identity, subscriber, island.unwrap_or_default())
    }
}

/// The last good sections, verified anew.
fn restore(identity: &Identity, state: Option<&State>) -> Subscriber {
    let mut subscriber = identity.subscriber();
    for section in state.map(State::load_sections).unwrap_or_default() {
        let name = section.name.clone();
        if let Err(error) = subscriber.apply(section) {
            tracing::warn!(section = %name, code = error.code(), %error, "a saved section was refused");
        }
    }
    subscriber
}

/// Where identities come from.
struct Origin {
    plane: ControlPlane,
    token: Option<TokenSource>,
    tpm: Option<Tpm>,
    state: Option<State>,
    link: watch::Sender<Link>,
}

impl Origin {
    /// `known` as soon as it holds, the same with new certificates if policy lets it back in, or a new identity for the
    /// token. A clock may be set right at any time, so a known identity is looked at before each attempt.
    async fn obtain(&self, known: Option<&Identity>) -> Identity {
        let mut attempt = 0;
        loop {
            if let Some(identity) = known.filter(|identity| identity.holds_at(clock::now())) {
                self.link.send_modify(|link| link.enrolled = true);
                return identity.clone();
            }
            if let Some(ended) = known {
                match renew::rejoin(self, ended).await {
                    Ok(identity) => {
                        tracing::info!(id = %identity.tls.id, "back in the mesh with the keys of certificates that had ended");
                        if let Some(state) = &self.state
                            && let Err(error) = state.save_svids(&identity)
                        {
                            self.failed("saving the renewed certificates", &error);
                        }
                        self.link.send_modify(|link| {
                            link.enrolled = true;
                            link.error = None;
                        });
                        return identity;
                    }
                    Err(error) => self.failed("renewal of certificates that have ended", &error),
                }
            }
            // Without a token there is nothing else to try.
            if known.is_none() || self.token.is_some() {
                match self.enrol().await {
                    Ok(identity) => return identity,
                    Err(error) => self.failed("enrolment", &error),
                }
            }
            tokio::time::sleep(signet_identity::backoff(attempt, jitter())).await;
            attempt = attempt.saturating_add(1);
        }
    }

    async fn enrol(&self) -> Result<Identity, JoinError> {
        let source = self.token.as_ref().ok_or(ControlError::NoIdentity)?;
        let proof = proof::read(source).await.map_err(ControlError::Proof)?;
        let identity = enrol::enrol(self, proof).await?;
        tracing::info!(id = %identity.tls.id, network = %identity.network, "enrolled");
        if let Some(state) = &self.state
            && let Err(error) = state.save_identity(&identity)
        {
            tracing::error!(%error, "the identity could not be saved: a restart will need a new token");
        }
        self.link.send_modify(|link| {
            link.enrolled = true;
            link.error = None;
        });
        Ok(identity)
    }

    /// Says once per attempt what went wrong. Nothing that is in force changes.
    fn failed(&self, what: &str, error: &dyn std::error::Error) {
        let text = format!("{what}: {error}");
        tracing::warn!("{text}");
        self.link.send_modify(|link| link.error = Some(text));
    }
}

/// Why one attempt at an identity failed.
#[derive(Debug, Error)]
enum JoinError {
    #[error(transparent)]
    Enrol(#[from] enrol::EnrolError),
    #[error(transparent)]
    Token(#[from] ControlError),
}

/// The control client with an identity.
pub struct Joined {
    node: Node,
    subscriber: Subscriber,
}

impl Joined {
    fn new(origin: Origin, identity: Identity, subscriber: Option<Subscriber>, island: Island) -> Self {
        let subscriber =
            subscriber.filter(|s| identity.continues(s)).unwrap_or_else(|| identity.subscriber());
        let snapshot = identity.snapshot(0, &subscriber, island.contact());
        let node = Node {
            origin,
            island,
            identity: ArcSwap::from_pointee(identity),
            snapshots: Arc::new(ArcSwap::from_pointee(snapshot)),
            credentials: Arc::default(),
            changes: watch::Sender::new(0),
            judged_until: AtomicU64::new(clock::unix_seconds()),
            renew_now: Notify::new(),
            certifying: watch::Sender::default(),
            channel: Mutex::default(),
        };
        node.publish_credentials();
        Self { node, subscriber }
    }

    /// Policy, directories and trust in force.
    pub fn snapshots(&self) -> Arc<ArcSwap<Snapshot>> {
        Arc::clone(&self.node.snapshots)
    }

    /// The identity in force; `None` once its certificates have ended.
    pub fn credentials(&self) -> Arc<ArcSwapOption<Credentials>> {
        Arc::clone(&self.node.credentials)
    }

    /// Changes with every change of the two above.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.node.changes.subscribe()
    }

    /// Keeps identity and sections current, for ever.
    pub async fn run(&mut self, mut hooks: Hooks) -> Infallible {
        // They have a task of their own: a slow answer holds up nothing else.
        let mut appointments = std::mem::replace(&mut hooks.appointments, mpsc::channel(1).1);
        let mut app_svids = std::mem::replace(&mut hooks.app_svids, mpsc::channel(1).1);
        loop {
            tokio::select! {
                never = stream::follow(&self.node, &mut self.subscriber, &mut hooks) => match never {},
                () = renew::until_ended(&self.node) => {}
                never = expiry::follow(&self.node) => match never {},
                never = island::keep(&self.node) => match never {},
                () = appoint::serve(&self.node, &mut appointments) => {}
                () = app_svid::serve(&self.node, &mut app_svids) => {}
            }
            self.node.withdraw_credentials();
            let ended = self.node.identity.load_full();
            let identity = self.node.origin.obtain(Some(&ended)).await;
            if !identity.continues(&self.subscriber) {
                self.subscriber = identity.subscriber();
            }
            self.node.identity.store(Arc::new(identity));
            self.node.publish_credentials();
            self.node.publish_snapshot(&self.subscriber);
        }
    }
}

/// What the client's two tasks share. Both run in one task of one thread, so a load and a store never interleave.
struct Node {
    origin: Origin,
    island: Island,
    identity: ArcSwap<Identity>,
    snapshots: Arc<ArcSwap<Snapshot>>,
    credentials: Arc<ArcSwapOption<Credentials>>,
    changes: watch::Sender<u64>,
    /// Up to which second since 1970 everything that is open was judged by the clock.
    judged_until: AtomicU64,
    /// The roots changed so that the certificates in force no longer hold.
    renew_now: Notify,
    /// Which issuer certifies now, if that matters, and within which time to renew certificates of another one.
    certifying: watch::Sender<Option<([u8; 32], Duration)>>,
    /// The connection of the last stream: what has to be said without delay may go over it.
    channel: Mutex<Option<Channel>>,
}

impl Node {
    /// Whether the sections make the proxy ready that was not so before.
    fn completes(&self, subscriber: &Subscriber) -> bool {
        let identity = self.identity.load();
        !self.snapshots.load().ready && identity.snapshot(0, subscriber, self.island.contact()).ready
    }

    /// A stream was opened on this connection.
    fn connected(&self, channel: Channel) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = Some(channel);
    }

    fn publish_snapshot(&self, subscriber: &Subscriber) {
        if let Some(anchors) = subscriber.anchors() {
            self.adopt(&anchors.bundle);
            let certifying = anchors.issuer.map(|issuer| (issuer, anchors.renew_within));
            self.certifying.send_if_modified(|known| std::mem::replace(known, certifying) != certifying);
        }
        let identity = self.identity.load();
        let generation = *self.changes.borrow() + 1;
        let snapshot = identity.snapshot(generation, subscriber, self.island.contact());
        self.snapshots.store(Arc::new(snapshot));
        self.changes.send_replace(generation);
    }

    /// New roots: everything built on the old ones is built anew, and certificates they do not carry are replaced.
    fn adopt(&self, bundle: &Arc<TrustBundle>) {
        let identity = self.identity.load_full();
        if identity.bundle == *bundle {
            return;
        }
        let changed = Identity { bundle: Arc::clone(bundle), ..(*identity).clone() };
        if let Some(state) = &self.origin.state
            && let Err(error) = state.save_identity(&changed)
        {
            self.origin.failed("saving the new roots", &error);
        }
        if !changed.holds_at(clock::now()) {
            self.renew_now.notify_one();
        }
        self.identity.store(Arc::new(changed));
        self.publish_credentials();
    }

    fn publish_credentials(&self) {
        let identity = self.identity.load();
        let generation = *self.changes.borrow() + 1;
        let (tls, signing) = (identity.tls.clone(), identity.signing.clone());
        let former = self.credentials.load_full();
        match Credentials::new(generation, tls, signing, &identity.bundle, former.as_deref()) {
            Ok(credentials) => {
                self.credentials.store(Some(Arc::new(credentials)));
                self.announce();
            }
            // Cannot happen with SVIDs that were verified; what was in force stays so.
            Err(error) => self.origin.failed("credentials", &error),
        }
    }

    /// Begins a new generation with the same snapshot: everything that was judged before is judged again.
    fn announce(&self) {
        let generation = *self.changes.borrow() + 1;
        let snapshot = Snapshot { generation, ..Snapshot::clone(&self.snapshots.load()) };
        self.snapshots.store(Arc::new(snapshot));
        self.changes.send_replace(generation);
    }

    fn withdraw_credentials(&self) {
        tracing::error!("the certificates have ended: no mesh traffic until new ones are issued");
        self.credentials.store(None);
        self.announce();
        self.origin.link.send_modify(|link| link.enrolled = false);
    }
}

/// Who this proxy is, by whose word, and whom it believes.
#[derive(Clone)]
struct Identity {
    network: Arc<str>,
    control_plane: SpiffeId,
    policy_key: [u8; 32],
    bundle: Arc<TrustBundle>,
    tls: TlsSvid,
    signing: SigningSvid,
}

impl Identity {
    /// Whether peers that believe the same roots would accept both certificates.
    fn holds_at(&self, now: SystemTime) -> bool {
        verify_tls_chain(&self.bundle, &self.tls.chain, now).is_ok()
            && verify_signing_chain(&self.bundle, &self.signing.chain, now).is_ok()
    }

    /// Whether the issuer with this hash certified both.
    fn is_issued_by(&self, issuer: [u8; 32]) -> bool {
        let chains = [&self.tls.chain, &self.signing.chain];
        chains.iter().all(|chain| chain.get(1).is_some_and(|own| spki_sha256(own) == Ok(issuer)))
    }

    /// Whether an area certified it.
    fn is_of_area(&self) -> bool {
        area_of_chain(&self.tls.chain).is_some()
    }

    fn not_after(&self) -> SystemTime {
        self.tls.not_after.min(self.signing.not_after)
    }

    /// The authority signed both certificates: the later of their beginnings has passed.
    /// Where something better is known they have to be in force by that.
    fn has_begun(&self) {
        let (begins, now) = (self.tls.not_before.max(self.signing.not_before), clock::now());
        if (begins <= now || clock::asks_authority()) && self.holds_at(begins.max(now)) {
            clock::passed(begins);
        }
    }

    /// What this workload acts on, with what `subscriber` holds.
    fn snapshot(&self, generation: u64, subscriber: &Subscriber, contact: &Arc<Contact>) -> Snapshot {
        Snapshot {
            own: Some(self.tls.id.clone()),
            contact: Arc::clone(contact),
            ..Snapshot::of(generation, &self.network, &self.bundle, subscriber)
        }
    }

    fn subscriber(&self) -> Subscriber {
        Subscriber::new(self.bundle.trust_domain().clone(), self.policy_key)
    }

    /// Whether what `subscriber` holds was signed in the same trust.
    fn continues(&self, subscriber: &Subscriber) -> bool {
        subscriber.trust_domain() == self.bundle.trust_domain() && subscriber.policy_key() == &self.policy_key
    }
}

/// A number from 0 up to 1, so that proxies that failed together do not come back together.
pub(crate) fn jitter() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the control plane of the tests goes by the machine's clock")]
mod tests;
