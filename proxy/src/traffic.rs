//! What traffic policies ask for, on both sides: of the sender time limits, retries, rests for endpoints that fail,
//! limits of concurrency and a choice between endpoints; of the receiver limits of rate.
//!
//! All state of the sender is its worker's own. Nothing here is touched for a destination with one address and no
//! traffic policy.

mod balance;
mod breaker;
mod budget;
pub(crate) mod rate;
mod slots;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use pingora_ketama::{Bucket, Continuum};
use signet_identity::SpiffeId;
use signet_policy::{CircuitBreaking, HashOn, LoadBalancing, Refusal, RetryBudget};

use self::balance::{Dice, Load, two_choices};
use self::breaker::{Admission, Breaker, Change};
use self::budget::Budget;
use self::slots::Slots;
use crate::body::Hold;
use crate::headers::MESH_RETRY;
use crate::outbound::{self, Destination};
use crate::snapshot::Snapshot;
use crate::telemetry::metrics::Metrics;

pub(crate) use self::breaker::Verdict;

/// How long what is known of a destination outlives its last request: longer than any rest but the longest.
const KEPT: Duration = Duration::from_secs(600);

/// Where an application dials: a network and an address in it.
type Place = (Rc<str>, SocketAddr);

/// What one worker knows of the destinations it sends to. Keys come from the directory, which is bounded.
#[derive(Default)]
pub(crate) struct Traffic {
    upstreams: RefCell<HashMap<Place, Rc<Upstream>>>,
    shares: RefCell<HashMap<(SpiffeId, u16), Rc<Share>>>,
    states: RefCell<HashMap<(Place, SpiffeId), Rc<State>>>,
    dice: Dice,
}

/// What all requests to one port of a workload have together.
pub(crate) struct Share {
    budget: RefCell<Budget>,
    pub(crate) slots: Rc<Slots>,
}

/// What is known of one endpoint, however it is reached.
struct State {
    load: RefCell<Load>,
    breaker: RefCell<Breaker>,
}

/// A dialled address and the endpoints that requests to it may go to.
pub(crate) struct Upstream {
    pub(crate) share: Rc<Share>,
    endpoints: RefCell<Endpoints>,
    used: Cell<Instant>,
}

#[derive(Default)]
struct Endpoints {
    /// The snapshot they were found in, and whether they were looked for.
    found: Option<(u64, bool)>,
    all: Vec<Endpoint>,
    ring: Option<Continuum>,
}

#[derive(Clone)]
struct Endpoint {
    destination: Rc<Destination>,
    state: Rc<State>,
}

impl Traffic {
    /// What is known of the address that was dialled.
    pub(crate) fn upstream(&self, dialled: &Destination, now: Instant) -> Rc<Upstream> {
        let (network, address, owner) = match &dialled.behind {
            Some(behind) => (&behind.network, behind.address, &behind.owner),
            None => (&dialled.network, dialled.address, &(dialled.id.clone(), dialled.port)),
        };
        let share = || {
            let mut shares = self.shares.borrow_mut();
            let share = shares.entry(owner.clone()).or_insert_with(|| {
                Rc::new(Share { budget: RefCell::new(Budget::new(now)), slots: Rc::default() })
            });
            Rc::clone(share)
        };
        let mut upstreams = self.upstreams.borrow_mut();
        let upstream = upstreams.entry((network.clone(), address)).or_insert_with(|| {
            Rc::new(Upstream { share: share(), endpoints: RefCell::default(), used: Cell::new(now) })
        });
        Rc::clone(upstream)
    }

    /// Forgets what was not used for long. To be called about once a second.
    pub(crate) fn sweep(&self, now: Instant) {
        self.upstreams.borrow_mut().retain(|_, upstream| {
            Rc::strong_count(upstream) > 1 || now.saturating_duration_since(upstream.used.get()) < KEPT
        });
        self.shares.borrow_mut().retain(|_, share| Rc::strong_count(share) > 1 || !share.slots.is_idle());
        self.states.borrow_mut().retain(|_, state| Rc::strong_count(state) > 1);
    }

    /// Brings the endpoints of an upstream up to date: those of its workload where requests are `spread`, else the one
    /// that was dialled.
    fn refresh(
        &self,
        upstream: &Upstream,
        snapshot: &Snapshot,
        dialled: &Destination,
        spread: bool,
        now: Instant,
    ) {
        if upstream.endpoints.borrow().found == Some((snapshot.edition, spread)) {
            return;
        }
        let mut found = if spread { outbound::alternatives(snapshot, dialled) } else { Vec::new() };
        if found.is_empty() {
            found.push(dialled.clone());
        }
        // In one order, so that every worker and sidecar has the same ring.
        found.sort_by_key(|destination| destination.address);
        let mut states = self.states.borrow_mut();
        let all: Vec<Endpoint> = found
            .into_iter()
            .map(|destination| {
                let key = ((destination.network.clone(), destination.address), destination.id.clone());
                let state = states.entry(key).or_insert_with(|| {
                    let (load, breaker) = (Load::new(now), Breaker::new(now));
                    Rc::new(State { load: RefCell::new(load), breaker: RefCell::new(breaker) })
                });
                Endpoint { state: Rc::clone(state), destination: Rc::new(destination) }
            })
            .collect();
        let mut endpoints = upstream.endpoints.borrow_mut();
        let same = |one: &[Endpoint], other: &[Endpoint]| {
            let addresses =
                |list: &[Endpoint]| list.iter().map(|e| e.destination.address).collect::<Vec<_>>();
            addresses(one) == addresses(other)
        };
        let ring = endpoints.ring.take().filter(|_| same(&endpoints.all, &all));
        *endpoints = Endpoints { found: Some((snapshot.edition, spread)), all, ring };
    }
}

/// How a try finds its endpoint.
pub(crate) struct Choice<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) dialled: &'a Destination,
    pub(crate) balancing: Option<&'a LoadBalancing>,
    pub(crate) breaking: Option<CircuitBreaking>,
    /// What is hashed, where something is.
    pub(crate) key: Option<&'a [u8]>,
    /// Endpoints that this request has been to; others are better.
    pub(crate) tried: &'a [SocketAddr],
}

impl Traffic {
    /// Chooses the endpoint for one try of a request; the time until one could take it where all of them rest.
    pub(crate) fn choose(
        &self,
        upstream: &Rc<Upstream>,
        choice: &Choice<'_>,
        now: Instant,
    ) -> Result<Try, Duration> {
        let spread = choice.balancing.is_some() || choice.dialled.behind.is_some();
        self.refresh(upstream, choice.snapshot, choice.dialled, spread, now);
        upstream.used.set(now);
        let mut endpoints = upstream.endpoints.borrow_mut();
        let Endpoints { all, ring, .. } = &mut *endpoints;
        let rests = |at: usize| {
            choice.breaking.is_some()
                && all.get(at).is_none_or(|endpoint| endpoint.state.breaker.borrow().is_open(now))
        };
        let is_new = |at: usize| {
            all.get(at).is_some_and(|endpoint| !choice.tried.contains(&endpoint.destination.address))
        };
        let mut by_ring = || {
            let (Some(LoadBalancing::ConsistentHash(_)), Some(key)) = (choice.balancing, choice.key) else {
                return None;
            };
            let ring = ring.get_or_insert_with(|| {
                let buckets: Vec<Bucket> =
                    all.iter().map(|endpoint| Bucket::new(endpoint.destination.address, 1)).collect();
                Continuum::new(&buckets)
            });
            let mut nodes = ring
                .node_iter(key)
                .take(RING_STEPS)
                .filter_map(|node| all.iter().position(|endpoint| endpoint.destination.address == *node));
            nodes.find(|at| !rests(*at) && is_new(*at))
        };
        let by_load = |usable: &dyn Fn(usize) -> bool| {
            let cost =
                |at: usize| all.get(at).map_or(f64::MAX, |endpoint| endpoint.state.load.borrow().cost(now));
            two_choices(&self.dice, all.len(), usable, cost)
        };
        let chosen = if all.len() == 1 { (!rests(0)).then_some(0) } else { by_ring() }
            .or_else(|| by_load(&|at| !rests(at) && is_new(at)))
            .or_else(|| by_load(&|at| !rests(at)))
            .and_then(|at| all.get(at));
        let Some(endpoint) = chosen else {
            let rests = all.iter().filter_map(|endpoint| endpoint.state.breaker.borrow().rest(now));
            return Err(rests.min().unwrap_or(TRIED_SOON));
        };
        let admission = match choice.breaking {
            Some(_) => endpoint.state.breaker.borrow_mut().admit(),
            None => Admission::Usual,
        };
        endpoint.state.load.borrow_mut().begin();
        Ok(Try {
            busy: Rc::new(Busy(Rc::clone(&endpoint.state))),
            destination: Rc::clone(&endpoint.destination),
            upstream: Rc::clone(upstream),
            breaking: choice.breaking,
            admission: Some(admission),
            began: now,
        })
    }
}

/// Points of the ring that are looked at for an endpoint in use: each has 160 of them.
const RING_STEPS: usize = 1_000;
/// When to come again while one request tries the only endpoint.
const TRIED_SOON: Duration = Duration::from_secs(1);

/// Counts as a request under way until its response is read.
struct Busy(Rc<State>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.load.borrow_mut().end();
    }
}

/// One try of a request at one endpoint.
pub(crate) struct Try {
    pub(crate) destination: Rc<Destination>,
    upstream: Rc<Upstream>,
    busy: Rc<Busy>,
    breaking: Option<CircuitBreaking>,
    /// None once its end is known.
    admission: Option<Admission>,
    began: Instant,
}

impl Try {
    /// Tells what became of it, and keeps the endpoint's load until the hold is dropped.
    pub(crate) fn end(mut self, verdict: Verdict, metrics: &Metrics, now: Instant) -> Hold {
        let took = now.saturating_duration_since(self.began);
        match verdict {
            Verdict::Served => self.busy.0.load.borrow_mut().observe(took, now),
            Verdict::Failed => self.busy.0.load.borrow_mut().fail(took, now),
            Verdict::Unknown => {}
        }
        match self.learn(verdict, now) {
            Change::Ejected => {
                metrics.ejections.inc();
                tracing::warn!(address = %self.destination.address, "endpoint failed too often and is given a rest");
            }
            Change::Restored => {
                tracing::info!(address = %self.destination.address, "endpoint is used again");
            }
            Change::None => {}
        }
        Rc::clone(&self.busy) as Hold
    }

    fn learn(&mut self, verdict: Verdict, now: Instant) -> Change {
        let Some(admission) = self.admission.take() else { return Change::None };
        let breaking = self.breaking.as_ref();
        if breaking.is_none() {
            return Change::None;
        }
        let may_eject = verdict == Verdict::Failed && {
            let endpoints = self.upstream.endpoints.borrow();
            let resting = endpoints.all.iter().filter(|e| e.state.breaker.borrow().is_resting()).count();
            let share = breaking.map_or(0, |policy| policy.max_ejection_percent) as usize;
            resting < (endpoints.all.len() * share / 100).max(1)
        };
        self.busy.0.breaker.borrow_mut().learn(admission, verdict, breaking, may_eject, now)
    }
}

impl Drop for Try {
    /// The application went away, or the time was up before anybody could tell.
    fn drop(&mut self) {
        self.learn(Verdict::Unknown, Instant::now());
    }
}

impl Upstream {
    /// Counts a request towards the budget of retries.
    pub(crate) fn deposit(&self, now: Instant) {
        self.share.budget.borrow_mut().deposit(now);
    }

    /// Whether one more may be sent again.
    pub(crate) fn withdraw(&self, budget: RetryBudget, now: Instant) -> bool {
        self.share.budget.borrow_mut().withdraw(budget, now)
    }
}

/// What is hashed of a request.
pub(crate) fn hashed<'a>(
    balancing: Option<&LoadBalancing>,
    own: &'a SpiffeId,
    path: &'a str,
    headers: &'a HeaderMap,
) -> Option<&'a [u8]> {
    match balancing? {
        LoadBalancing::P2c => None,
        LoadBalancing::ConsistentHash(HashOn::Header(name)) => {
            headers.get(name).map(|value| value.as_bytes())
        }
        LoadBalancing::ConsistentHash(HashOn::Path) => Some(path.as_bytes()),
        LoadBalancing::ConsistentHash(HashOn::SourceIdentity) => Some(own.as_str().as_bytes()),
    }
}

/// What the application says about sending its request again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Idempotent,
    Never,
    None,
}

impl Mark {
    /// The mark of a request; it does not travel on.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let mut marks = headers.get_all(MESH_RETRY).iter();
        match (marks.next().map(http::HeaderValue::as_bytes), marks.next()) {
            (None, _) => Ok(Self::None),
            (Some(b"idempotent"), None) => Ok(Self::Idempotent),
            (Some(b"never"), None) => Ok(Self::Never),
            _ => Err(Refusal::MalformedMessage),
        }
    }
}
