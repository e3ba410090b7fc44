//! Connections kept for the next request, one pool per worker and purpose.
//!
//! The key is compared in full: it *is* the identity boundary (DESIGN: own identity, expected
//! identity, network, address). HTTP/1.1 connections serve one request at a time and are kept
//! idle; HTTP/2 connections are shared. What a connection is worth beyond its socket (the signing
//! channel, say) travels with it as the context `C`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use signet_policy::Refusal;
use tokio::sync::Notify;

use crate::body::{Body, Hold};
use crate::clock;

/// Idle HTTP/1.1 connections kept per key: what a burst of callers needs again at once.
const IDLE_PER_KEY: usize = 64;
/// Idle connections kept per pool, whatever the number of keys: a bound on descriptors.
const IDLE_TOTAL: usize = 1024;
/// Streams per HTTP/2 connection before another is opened; the usual limit of servers.
const STREAMS_PER_CONNECTION: usize = 100;
/// HTTP/2 connections per key: 1,600 requests in flight to one workload.
const CONNECTIONS_PER_KEY: usize = 16;

/// One established HTTP connection, as the client of it sees it.
pub(crate) struct Connection<C> {
    pub(crate) sender: Sender,
    pub(crate) context: C,
    /// No request starts on the connection after this time: a certificate ends.
    pub(crate) usable_until: Option<SystemTime>,
}

/// The request half of a connection.
pub(crate) enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// The request could not be carried out.
pub(crate) struct SendError {
    /// The request itself when nothing of it was sent: it may go another way.
    pub(crate) unsent: Option<Request<Body>>,
    pub(crate) source: hyper::Error,
}

/// The pool; cheap to share within its worker.
pub(crate) struct Pool<K, C> {
    idle_timeout: Duration,
    state: RefCell<State<K, C>>,
}

/// A map that every request asks for its connection. It holds as many keys as connections that are idle, shared or being
/// opened, so keys that collide would win little, and a fast hash is enough.
type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

struct State<K, C> {
    http1: Map<K, Vec<Idle<C>>>,
    http1_total: usize,
    http2: Map<K, Vec<Shared<C>>>,
    dialing: Map<K, Rc<Attempt>>,
}

struct Idle<C> {
    sender: http1::SendRequest<Body>,
    context: C,
    usable_until: Option<SystemTime>,
    since: Instant,
}

struct Shared<C> {
    sender: http2::SendRequest<Body>,
    context: C,
    usable_until: Option<SystemTime>,
    streams: Rc<Cell<usize>>,
    used: Rc<Cell<Instant>>,
}

/// The right to send one request on one connection.
pub(crate) struct Lease<K: Eq + Hash + Clone + 'static, C: Clone + 'static> {
    pool: Rc<Pool<K, C>>,
    key: K,
    connection: Connection<C>,
    /// Whether the connection served an earlier request: only then may "closed before sent" be a
    /// race with its idle timeout.
    pub(crate) reused: bool,
    stream: Option<Hold>,
}

/// Counts a stream on a shared connection until its response body is done.
struct StreamCount {
    streams: Rc<Cell<usize>>,
    used: Rc<Cell<Instant>>,
}

impl StreamCount {
    fn hold(streams: &Rc<Cell<usize>>, used: &Rc<Cell<Instant>>) -> Hold {
        streams.set(streams.get() + 1);
        Rc::new(Self { streams: Rc::clone(streams), used: Rc::clone(used) })
    }
}

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.streams.set(self.streams.get() - 1);
        self.used.set(Instant::now());
    }
}

fn usable(until: Option<SystemTime>) -> bool {
    until.is_none_or(|until| clock::now() < until)
}

impl<K: Eq + Hash + Clone + 'static, C: Clone + 'static> Pool<K, C> {
    /// A pool that closes connections which were idle for `idle_timeout`.
    pub(crate) fn new(idle_timeout: Duration) -> Rc<Self> {
        let state =
            State { http1: Map::default(), http1_total: 0, http2: Map::default(), dialing: Map::default() };
        Rc::new(Self { idle_timeout, state: RefCell::new(state) })
    }

    /// An HTTP/1.1 connection: the most recently used idle one, else a new one from `dial`.
    pub(crate) async fn checkout_http1<F>(
        self: &Rc<Self>,
        key: &K,
        dial: impl FnOnce() -> F,
    ) -> Result<Lease<K, C>, Refusal>
    where
        F: Future<Output = Result<Connection<C>, Refusal>>,
    {
        if let Some(connection) = self.take_idle(key) {
            return Ok(self.lease(key, connection, true, None));
        }
        Ok(self.lease(key, dial().await?, false, None))
    }

    /// A place on an HTTP/2 connection: an open one with room, else a new one from `dial`. Callers
    /// of one key wait for the one that dials, and share its failure.
    pub(crate) async fn checkout_http2<F>(
        self: &Rc<Self>,
        key: &K,
        dial: impl FnOnce() -> F,
    ) -> Result<Lease<K, C>, Refusal>
    where
        F: Future<Output = Result<Connection<C>, Refusal>>,
    {
        loop {
            if let Some(lease) = self.share(key) {
                return Ok(lease);
            }
            let waiting = self.state.borrow().dialing.get(key).cloned();
            let Some(attempt) = waiting else { break };
            attempt.done.notified().await;
            if let Some(refusal) = attempt.failed.get() {
                return Err(refusal);
            }
        }
        let dialing = Dialing::begin(self, key);
        let connection = dial().await.inspect_err(|refusal| dialing.attempt.failed.set(Some(*refusal)))?;
        self.insert_shared(key, &connection);
        drop(dialing);
        // The new connection was inserted with room for at least this request.
        Ok(self.share(key).unwrap_or_else(|| self.lease(key, connection, false, None)))
    }

    /// Every connection whose context is `wanted`: idle ones are taken out, shared ones get one more stream.
    pub(crate) fn lease_where(self: &Rc<Self>, wanted: impl Fn(&C) -> bool) -> Vec<Lease<K, C>> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let mut leases = Vec::new();
        for (key, idle) in &mut state.http1 {
            for c in idle.extract_if(.., |c| wanted(&c.context) && c.sender.is_ready()) {
                state.http1_total -= 1;
                let Idle { sender, context, usable_until, .. } = c;
                let connection = Connection { sender: Sender::Http1(sender), context, usable_until };
                leases.push(self.lease(key, connection, true, None));
            }
        }
        state.http1.retain(|_, idle| !idle.is_empty());
        for (key, shared) in &state.http2 {
            for c in shared.iter().filter(|c| wanted(&c.context) && !c.sender.is_closed()) {
                let stream = StreamCount::hold(&c.streams, &c.used);
                let connection = Connection {
                    sender: Sender::Http2(c.sender.clone()),
                    context: c.context.clone(),
                    usable_until: c.usable_until,
                };
                leases.push(self.lease(key, connection, true, Some(stream)));
            }
        }
        leases
    }

    /// Lets no further request start on connections that fail `keep`: trust has changed.
    pub(crate) fn retain(&self, keep: impl Fn(&C) -> bool) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let mut left = 0;
        state.http1.retain(|_, idle| {
            idle.retain(|c| keep(&c.context));
            left += idle.len();
            !idle.is_empty()
        });
        state.http1_total = left;
        state.http2.retain(|_, shared| {
            shared.retain(|c| keep(&c.context));
            !shared.is_empty()
        });
    }

    /// Closes what was idle too long or may not be used any more. To be called about once a second.
    pub(crate) fn sweep(&self) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let timeout = self.idle_timeout;
        let mut left = 0;
        state.http1.retain(|_, idle| {
            idle.retain(|c| !c.sender.is_closed() && c.since.elapsed() < timeout && usable(c.usable_until));
            left += idle.len();
            !idle.is_empty()
        });
        state.http1_total = left;
        state.http2.retain(|_, shared| {
            shared.retain(|c| {
                let idle = c.streams.get() == 0 && c.used.get().elapsed() >= timeout;
                !c.sender.is_closed() && !idle && usable(c.usable_until)
            });
            !shared.is_empty()
        });
    }

    /// Closes every connection that is idle: on drain.
    pub(crate) fn clear(&self) {
        let mut state = self.state.borrow_mut();
        state.http1.clear();
        state.http1_total = 0;
        state.http2.clear();
    }

    fn lease(
        self: &Rc<Self>,
        key: &K,
        connection: Connection<C>,
        reused: bool,
        stream: Option<Hold>,
    ) -> Lease<K, C> {
        Lease { pool: Rc::clone(self), key: key.clone(), connection, reused, stream }
    }

    fn take_idle(&self, key: &K) -> Option<Connection<C>> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let idle = state.http1.get_mut(key)?;
        let mut found = None;
        while let Some(candidate) = idle.pop() {
            state.http1_total -= 1;
            if candidate.sender.is_ready() && usable(candidate.usable_until) {
                found = Some(candidate);
                break;
            }
        }
        // A list that is empty now stays for the connection's return; what stays empty is swept.
        found.map(|c| Connection {
            sender: Sender::Http1(c.sender),
            context: c.context,
            usable_until: c.usable_until,
        })
    }

    fn put_idle(&self, key: K, idle: Idle<C>) {
        let mut state = self.state.borrow_mut();
        if state.http1_total >= IDLE_TOTAL {
            return;
        }
        let list = state.http1.entry(key).or_default();
        if list.len() < IDLE_PER_KEY {
            list.push(idle);
            state.http1_total += 1;
        }
    }

    fn share(self: &Rc<Self>, key: &K) -> Option<Lease<K, C>> {
        let mut state = self.state.borrow_mut();
        let list = state.http2.get_mut(key)?;
        list.retain(|c| !c.sender.is_closed() && usable(c.usable_until));
        let full = list.len() >= CONNECTIONS_PER_KEY;
        let best = list.iter().min_by_key(|c| c.streams.get())?;
        if best.streams.get() >= STREAMS_PER_CONNECTION && !full {
            return None;
        }
        let stream = StreamCount::hold(&best.streams, &best.used);
        let connection = Connection {
            sender: Sender::Http2(best.sender.clone()),
            context: best.context.clone(),
            usable_until: best.usable_until,
        };
        drop(state);
        Some(self.lease(key, connection, true, Some(stream)))
    }

    fn insert_shared(&self, key: &K, connection: &Connection<C>) {
        let Sender::Http2(sender) = &connection.sender else { return };
        self.state.borrow_mut().http2.entry(key.clone()).or_default().push(Shared {
            sender: sender.clone(),
            context: connection.context.clone(),
            usable_until: connection.usable_until,
            streams: Rc::default(),
            used: Rc::new(Cell::new(Instant::now())),
        });
    }
}

/// One attempt to open a shared connection, and what those who wait for it are told.
#[derive(Default)]
struct Attempt {
    done: Notify,
    failed: Cell<Option<Refusal>>,
}

/// Marks a key as being dialled; dropping it, by success, failure or cancellation, wakes the others.
struct Dialing<'a, K: Eq + Hash + Clone, C> {
    pool: &'a Pool<K, C>,
    key: K,
    attempt: Rc<Attempt>,
}

impl<'a, K: Eq + Hash + Clone, C> Dialing<'a, K, C> {
    fn begin(pool: &'a Pool<K, C>, key: &K) -> Self {
        let attempt = Rc::<Attempt>::default();
        pool.state.borrow_mut().dialing.insert(key.clone(), Rc::clone(&attempt));
        Self { pool, key: key.clone(), attempt }
    }
}

impl<K: Eq + Hash + Clone, C> Drop for Dialing<'_, K, C> {
    fn drop(&mut self) {
        self.pool.state.borrow_mut().dialing.remove(&self.key);
        self.attempt.done.notify_waiters();
    }
}

impl<K: Eq + Hash + Clone + 'static, C: Clone + 'static> Lease<K, C> {
    /// What travels with the connection.
    pub(crate) fn context(&self) -> &C {
        &self.connection.context
    }

    /// Which HTTP the connection speaks.
    pub(crate) fn version(&self) -> http::Version {
        match self.connection.sender {
            Sender::Http1(_) => http::Version::HTTP_11,
            Sender::Http2(_) => http::Version::HTTP_2,
        }
    }

    /// Sends a request of our own and keeps the lease, for the request that it is meant for.
    pub(crate) async fn send_before(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let sent = match &mut self.connection.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(request).await,
        };
        sent.map_err(|error| error.into_error())
    }

    /// Waits until the connection can take the next request: the answer to the one before was read.
    pub(crate) async fn ready(&mut self) -> Result<(), hyper::Error> {
        match &mut self.connection.sender {
            Sender::Http1(sender) => sender.ready().await,
            Sender::Http2(sender) => sender.ready().await,
        }
    }

    /// Gives the connection back without having sent anything more.
    pub(crate) fn give_back(self) {
        let Self { pool, key, connection: Connection { sender, context, usable_until }, .. } = self;
        if let Sender::Http1(sender) = sender {
            pool.put_idle(key, Idle { sender, context, usable_until, since: Instant::now() });
        }
    }

    /// Sends the request and waits for the response's head. An HTTP/1.1 connection goes back to
    /// the pool by itself once the response was read to its end.
    pub(crate) async fn send(
        self,
        request: Request<Body>,
    ) -> Result<(Response<Incoming>, Option<Hold>), SendError> {
        let Self { pool, key, connection, stream, .. } = self;
        match connection.sender {
            Sender::Http1(mut sender) => {
                let response = sender.try_send_request(request).await.map_err(unsent)?;
                tokio::task::spawn_local(async move {
                    if sender.ready().await.is_ok() {
                        let idle = Idle {
                            sender,
                            context: connection.context,
                            usable_until: connection.usable_until,
                            since: Instant::now(),
                        };
                        pool.put_idle(key, idle);
                    }
                });
                Ok((response, None))
            }
            Sender::Http2(mut sender) => {
                let response = sender.try_send_request(request).await.map_err(unsent)?;
                Ok((response, stream))
            }
        }
    }
}

fn unsent(mut error: hyper::client::conn::TrySendError<Request<Body>>) -> SendError {
    SendError { unsent: error.take_message(), source: error.into_error() }
}
