//! Health, readiness and metrics over HTTP; the state in words over a Unix socket.
//!
//! In a shared network namespace loopback is no boundary, so what goes over TCP is harmless, and
//! dumps go over a socket in the proxy's own file system, to its own user and root only.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::unistd::Uid;
use serde::Serialize;
use signet_policy::Staleness;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::appoint::{self, Refused};
use crate::capture::Exempt;
use crate::clock;
use crate::probes::{Failed, Probes};
use crate::telemetry::metrics;
use crate::worker::Shared;

/// Admin connections at a time: probes, a scraper and a person.
const CONNECTIONS_MAX: usize = 32;
/// How long a client may take for its request line and headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one connection may last: one request and its answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// What is known about the capture rules, told by the control thread.
#[derive(Debug, Default)]
pub struct Health {
    /// The rules in the kernel are the ones that were asked for.
    pub capture_in_force: AtomicBool,
    /// A connection without the proxy's mark was captured: nothing leaks.
    pub canary_ok: AtomicBool,
    /// SIGTERM has arrived.
    pub draining: AtomicBool,
    /// The device was tampered with: there are no keys, and nothing is served.
    pub tampered: AtomicBool,
}

/// What the admin endpoints look at. The proxy proper comes once it has an identity.
#[derive(Clone)]
pub struct Admin {
    /// What the control thread found out.
    pub health: Arc<Health>,
    /// Set when the proxy has joined the mesh.
    pub shared: Arc<OnceLock<Arc<Shared>>>,
    /// The app's own probes, done for the kubelet.
    pub probes: Arc<Probes>,
    /// How the rules know our own connections.
    pub exempt: Exempt,
    /// Where wishes to give a role go; set with it.
    pub appoint: Arc<OnceLock<mpsc::Sender<appoint::Request>>>,
}

/// The answer to `/ready`, and to the state dump.
#[derive(Debug, Serialize)]
struct State {
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    policy_version: String,
    policy_in_force: bool,
    capture_in_force: bool,
    canary_ok: bool,
    draining: bool,
    /// The device was tampered with: there are no keys, and nothing is served any more.
    tampered: bool,
    /// False when the control plane was not heard for so long that policy lets nothing pass.
    policy_fresh: bool,
    /// Seconds since it last said that nothing is out of date.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_age_seconds: Option<u64>,
    /// Which clock is believed: `wall-clock`, `control-plane` or `floor`.
    clock: &'static str,
    /// How far the machine's clock is ahead of it.
    wall_clock_ahead_seconds: i64,
}

impl Admin {
    /// Nothing is known yet.
    pub fn new(probes: Arc<Probes>, exempt: Exempt) -> Self {
        let (health, shared, appoint) = Default::default();
        Self { health, shared, probes, exempt, appoint }
    }
}

impl State {
    fn of(admin: &Admin) -> Self {
        let health = &admin.health;
        let shared = admin.shared.get();
        let identity =
            shared.and_then(|shared| shared.credentials()).map(|credentials| credentials.id().to_string());
        let (policy_in_force, policy_version) = shared.map_or((false, String::new()), |shared| {
            let snapshot = shared.snapshot();
            (snapshot.ready, snapshot.policy_version.to_string())
        });
        let policy_fresh = shared.is_none_or(|shared| shared.snapshot().staleness() != Staleness::Refuse);
        let policy_age_seconds = shared.and_then(|shared| shared.snapshot().policy_age_s());
        let told = clock::told();
        let capture_in_force = health.capture_in_force.load(Ordering::Acquire);
        let canary_ok = health.canary_ok.load(Ordering::Acquire);
        let draining = health.draining.load(Ordering::Acquire);
        let tampered = health.tampered.load(Ordering::Acquire);
        Self {
            ready: identity.is_some()
                && policy_in_force
                && policy_fresh
                && capture_in_force
                && canary_ok
                && !draining
                && !tampered,
            identity,
            policy_version,
            policy_in_force,
            capture_in_force,
            canary_ok,
            draining,
            tampered,
            policy_fresh,
            policy_age_seconds,
            clock: told.source.as_str(),
            wall_clock_ahead_seconds: told.wall_ahead_ms / 1000,
        }
    }
}

/// A place where this proxy expects a workload of the mesh.
#[derive(Debug, Serialize)]
struct Known {
    network: String,
    address: String,
    workload: String,
}

fn places(admin: &Admin) -> Vec<Known> {
    let Some(shared) = admin.shared.get() else { return Vec::new() };
    let snapshot = shared.snapshot();
    let known = |network: &str, entry: &signet_sync::Entry| Known {
        network: network.to_owned(),
        address: SocketAddr::new(entry.address, entry.port).to_string(),
        workload: entry.workload.clone(),
    };
    let of = |directory: &Arc<signet_sync::Directory>| -> Vec<Known> {
        directory.entries().iter().map(|entry| known(directory.network(), entry)).collect()
    };
    snapshot.directories.iter().flat_map(of).collect()
}

/// Serves `/live`, `/ready`, `/metrics` and the app's probes until the process ends.
pub(crate) async fn serve_tcp(listener: TcpListener, admin: Admin) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Beyond the bound a client is turned away, so that the next probe is not kept waiting.
                let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
                let admin = admin.clone();
                tokio::spawn(async move {
                    let here = stream.local_addr().map(|address| address.ip().to_canonical()).ok();
                    let limit = CONNECTION_TIMEOUT + admin.probes.longest();
                    serve(stream, limit, move |request| answer_tcp(admin.clone(), here, request)).await;
                    drop(slot);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Serves `/state`, `/directory`, `/requests/<id>` and `/appointments` to this user and root.
pub(crate) async fn serve_unix(listener: UnixListener, admin: Admin) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Beyond the bound a client is turned away, so that the next probe is not kept waiting.
                let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
                let trusted = stream
                    .peer_cred()
                    .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == Uid::current().as_raw());
                if !trusted {
                    continue;
                }
                let admin = admin.clone();
                tokio::spawn(async move {
                    serve(stream, CONNECTION_TIMEOUT, move |request| answer_unix(admin.clone(), request))
                        .await;
                    drop(slot);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Keeps the gauges that follow policy and identity.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let mut changes = shared.changes.clone();
    let mut last = None;
    loop {
        let metrics = &shared.metrics;
        metrics.ready.set(i64::from(shared.snapshot().ready));
        if let Some(credentials) = shared.credentials() {
            let ends = credentials.tls.not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
            metrics.certificate_expiry.set(ends.as_secs_f64());
            let current = credentials.tls.fingerprint;
            if last.replace(current).is_some_and(|previous| previous != current) {
                metrics.rotations.inc();
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn serve<I, F, R>(io: I, limit: Duration, answer: F)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(io), service);
    // A probe that goes away early is not an event.
    let _ = tokio::time::timeout(limit, connection).await;
}

async fn answer_tcp(admin: Admin, here: Option<IpAddr>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".into());
    }
    if let (Some(probe), Some(here)) = (request.uri().path().strip_prefix("/probe/"), here) {
        return answer_probe(admin.probes.ask(probe, here, admin.exempt).await);
    }
    let admin = &admin;
    match request.uri().path() {
        "/live" => text(StatusCode::OK, "text/plain", "live\n".into()),
        "/ready" => {
            let state = State::of(admin);
            let status = if state.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            // Who this is and under which policy is for the Unix socket.
            let public = State { identity: None, policy_version: String::new(), ..state };
            text(status, "application/json", json(&public))
        }
        "/metrics" => {
            if let Some(shared) = admin.shared.get() {
                measure_time(shared);
            }
            let metrics = admin.shared.get().map(|shared| shared.metrics.encode()).unwrap_or_default();
            text(StatusCode::OK, metrics::CONTENT_TYPE, metrics)
        }
        _ => text(StatusCode::NOT_FOUND, "text/plain", "try /live, /ready or /metrics\n".into()),
    }
}

/// Ages grow by themselves: they are measured when they are asked for.
fn measure_time(shared: &Shared) {
    let (metrics, snapshot, told) = (&shared.metrics, shared.snapshot(), clock::told());
    // Before the first confirmation there is no age.
    metrics.policy_age.set(snapshot.policy_age_s().map_or(f64::NAN, |age| age as f64));
    let bound = snapshot.offline_bound();
    metrics.policy_age_limit.set(bound.map_or(0.0, |bound| bound.budget_s as f64));
    metrics.policy_stale.set(i64::from(snapshot.staleness() != Staleness::Fresh));
    metrics.clock_skew.set(told.wall_ahead_ms as f64 / 1000.0);
    metrics.clock_believed.set(i64::from(told.source == clock::Source::Wall));
}

fn answer_probe(outcome: Option<Result<(), Failed>>) -> Response<Full<Bytes>> {
    match outcome {
        Some(Ok(())) => text(StatusCode::OK, "text/plain", "ok\n".into()),
        Some(Err(failed)) => text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{failed}\n")),
        None => text(StatusCode::NOT_FOUND, "text/plain", "no such probe\n".into()),
    }
}

async fn answer_unix(admin: Admin, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.uri().path() == "/appointments" {
        return answer_appointment(&admin, request).await;
    }
    answer_state(&admin, &request)
}

/// `POST` gives a role, `DELETE` takes it back.
async fn answer_appointment(admin: &Admin, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let refused = |status, code: &str, detail: &str| {
        text(status, "application/json", json(&serde_json::json!({ "code": code, "detail": detail })))
    };
    let dismiss = match *request.method() {
        Method::POST => false,
        Method::DELETE => true,
        _ => return refused(StatusCode::METHOD_NOT_ALLOWED, "bad-request", "use POST or DELETE"),
    };
    let body = Limited::new(request.into_body(), appoint::WISH_BYTES_MAX).collect().await;
    let Ok(body) = body else {
        return refused(StatusCode::PAYLOAD_TOO_LARGE, "bad-request", "send at most 4 KiB of JSON");
    };
    let wish = match appoint::Wish::read(&body.to_bytes(), dismiss) {
        Ok(wish) => wish,
        Err(reason) => return refused(StatusCode::BAD_REQUEST, "bad-request", &reason),
    };
    let (answer, answered) = oneshot::channel();
    let asked = admin.appoint.get().map(|queue| queue.try_send(appoint::Request { wish, answer }));
    if !matches!(asked, Some(Ok(()))) {
        let detail = "the sidecar has not joined the mesh, or is asked too much; try again";
        return refused(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail);
    }
    match answered.await {
        Ok(Ok(not_after)) => {
            text(StatusCode::OK, "application/json", json(&serde_json::json!({ "notAfter": not_after })))
        }
        Ok(Err(Refused::ByPolicy(reason))) => {
            let (code, detail) = reason.split_once(": ").unwrap_or(("refused", &reason));
            refused(StatusCode::FORBIDDEN, code, detail)
        }
        Ok(Err(Refused::Unavailable(reason))) => {
            refused(StatusCode::SERVICE_UNAVAILABLE, "unavailable", &reason)
        }
        Err(_) => refused(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "the sidecar is being stopped"),
    }
}

fn answer_state(admin: &Admin, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    match path {
        "/directory" => return text(StatusCode::OK, "application/json", json(&places(admin))),
        "/state" => return text(StatusCode::OK, "application/json", json(&State::of(admin))),
        _ => {}
    }
    match path.strip_prefix("/requests/").and_then(|id| admin.shared.get()?.explain(id)) {
        Some(records) => text(StatusCode::OK, "application/json", records),
        None => text(
            StatusCode::NOT_FOUND,
            "text/plain",
            "try /state, /directory, /requests/<id> or /appointments\n".into(),
        ),
    }
}

fn json(value: &impl Serialize) -> String {
    // Strings and booleans always serialise.
    serde_json::to_string(value).unwrap_or_default()
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
