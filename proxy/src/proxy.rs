//! Puts the sidecar together: binds, captures, joins the mesh, starts the workers, and ends in good
//! order.
//!
//! The order matters: listeners before rules, so that what is captured waits instead of failing;
//! rules before anything else, so that nothing ever leaves in clear; workers only once there is an
//! identity and a policy state to act on.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use signet_tamper::{Tampering, Watch, WatchError};
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::LocalSet;

use crate::admin::{self, Admin, Health};
use crate::capture::CaptureError;
use crate::checkpoint;
use crate::config::Config;
use crate::control::{self, Control, ControlError, Dial, Hooks, Joined, Settings};
use crate::guard::Capture;
use crate::habit::Observation;
use crate::handshakes::Handshakes;
use crate::ring::Direction;
use crate::tampered::{self, Running};
use crate::telemetry::metrics::Metrics;
use crate::traffic::rate::RateLimits;
use crate::unix_socket::{self, Access};
use crate::worker::{Shared, Worker};
use crate::{appoint, clock, guard, inbound, listen, local, outbound, sockets, workload_api};
use signet_tpm::Tpm;

/// Observations about our own ports that wait for the control thread.
const OBSERVED_MAX: usize = 64;
/// How long connections may take for their last checkpoints, on drain: a round trip, and time to sign.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);
/// How long connections may take to end by themselves when everything is cut: a reset is written at once.
const CUT_LIMIT: Duration = Duration::from_millis(500);
/// How often a drain looks whether everything is done.
const DRAIN_STEP: Duration = Duration::from_millis(20);

/// The proxy could not be started.
#[derive(Debug, Error)]
pub enum RunError {
    /// A listener could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address or path.
        address: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The capture rules could not be installed.
    #[error("cannot capture traffic: {0}")]
    Capture(#[from] CaptureError),
    /// There is no way to an identity.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The device was tampered with while this was not running.
    #[error("this device was tampered with, and its keys are destroyed: {0}")]
    Tampered(Tampering),
    /// A runtime, a thread or a signal handler could not be set up.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
    /// What tells of tampering cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
}

/// The listeners of one worker.
struct Listeners {
    outbound: Vec<std::net::TcpListener>,
    inbound: std::net::TcpListener,
}

/// Everything that is bound before there is an identity.
struct Bound {
    workers: Vec<Listeners>,
    local: local::Listeners,
    workload_api: Option<workload_api::Listener>,
}

/// What other threads have for the control thread.
struct Asked {
    observations: mpsc::Receiver<Observation>,
    appointments: mpsc::Receiver<appoint::Request>,
    app_svids: mpsc::Receiver<workload_api::Question>,
}

/// Runs the sidecar until SIGTERM or SIGINT and the drain that follows.
///
/// # Errors
/// When it cannot be started. Rules that were installed stay: traffic is then refused.
pub fn run(config: Config) -> Result<ExitCode, RunError> {
    let exempt = config.exempt;
    if let Some(file) = &config.clock_drill {
        clock::drilled(file);
    }
    // Before a key is read.
    let mut watch = Watch::start(&config.tamper)?;
    if let Some(why) = watch.noticed() {
        if let Some(directory) = &config.state_dir {
            control::destroy(directory, &why);
        }
        return Err(RunError::Tampered(why));
    }
    if watch.is_needed() && config.state_dir.is_none() {
        tracing::warn!(
            "without --state-dir nothing is left after tampering that keeps a restart from enrolling anew, but the control \
             plane's word"
        );
    }
    let control = Control::open(Settings {
        control_plane: config.control_plane.clone(),
        token: config.token.clone(),
        tpm: config.tpm.clone().map(Tpm::new).transpose().map_err(ControlError::Tpm)?,
        state_dir: config.state_dir.clone(),
        dial: Dial::new(move |address| sockets::dial(address, exempt)),
    })?;
    if config.host.is_some() {
        // Workers share ports, and two guards of one host with the same ports would share them as well.
        for address in
            sockets::loopback(config.outbound_port).into_iter().chain([wildcard(config.inbound_port)])
        {
            sockets::refuse_shared(address).map_err(bind_error(address))?;
        }
    }
    let listeners = (0..config.workers).map(|_| bind(&config)).collect::<Result<Vec<_>, _>>()?;
    let local = local::Listeners::bind(&config.local)
        .map_err(|(address, source)| RunError::Bind { address, source })?;
    let workload_api = workload_api::Listener::bind(config.workload_api.as_ref())
        .map_err(|(address, source)| RunError::Bind { address, source })?;
    let admin = Admin::new(Arc::clone(&config.probes), exempt);
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let guarded = config.host.clone();
    let ended = runtime.block_on(async {
        serve_admin(&config, &admin)?;
        if let Some(file) = config.clock_drill.clone() {
            tokio::spawn(clock::drill(file));
        }
        let installed = install(&config)?;
        let joined = tokio::select! {
            joined = control.join() => joined,
            stopped = stop_signal() => return Ok(stopped.map(|()| ExitCode::SUCCESS)?),
            why = watch.tampering() => {
                // What waits in them was captured.
                drop((listeners, local, workload_api));
                tampered::before_joining(&admin.health, config.state_dir.as_deref(), &why);
                stop_signal().await?;
                return Ok(ExitCode::FAILURE);
            }
        };
        let listeners = Bound { workers: listeners, local, workload_api };
        serve(config, joined, listeners, installed, admin, watch).await
    });
    if let (Ok(_), Some(guard)) = (&ended, guarded) {
        guard.leave();
    }
    ended
}

/// Serves traffic with an identity, until told to stop or tampered with.
async fn serve(
    config: Config,
    mut joined: Joined,
    listeners: Bound,
    installed: Option<Capture>,
    admin: Admin,
    mut watch: Watch,
) -> Result<ExitCode, RunError> {
    let (observed, observations) = mpsc::channel(OBSERVED_MAX);
    let (appoint, appointments) = mpsc::channel(appoint::WAITING_MAX);
    let (questions, app_svids) = mpsc::channel(workload_api::WAITING_MAX);
    let Bound { workers: listeners, local, workload_api } = listeners;
    let handshakes = if config.tpm.is_some() { Handshakes::apart()? } else { Handshakes::default() };
    let shared = Arc::new(Shared {
        handshakes,
        snapshots: joined.snapshots(),
        credentials: joined.credentials(),
        changes: joined.changes(),
        observed,
        metrics: Metrics::default(),
        rings: listeners.iter().map(|_| Default::default()).collect(),
        edges: Default::default(),
        canary: Default::default(),
        parked: Default::default(),
        relayed: Default::default(),
        rates: RateLimits::new(Instant::now()),
        config,
    });
    // Set once, here.
    let _ = admin.shared.set(Arc::clone(&shared));
    let _ = admin.appoint.set(appoint);
    let (drain, draining) = watch::channel(false);
    let (cut, cutting) = watch::channel(false);
    let ends = Ends { drain: draining, cut: cutting.clone() };
    let start = |(index, listeners)| start_worker(index, listeners, Arc::clone(&shared), ends.clone());
    let workers = listeners.into_iter().enumerate().map(start).collect::<Result<Vec<_>, _>>()?;
    local::start(local, Arc::clone(&shared), cutting.clone())?;
    workload_api::start(workload_api, Arc::clone(&shared), questions, cutting)?;
    let report = Arc::new(Notify::new());
    tokio::spawn(guard::keep(Arc::clone(&shared), Arc::clone(&admin.health), installed, Arc::clone(&report)));
    tokio::spawn(admin::follow(Arc::clone(&shared)));
    let noticed = tokio::select! {
        never = joined.run(hooks(&shared, &admin.health, Asked { observations, appointments, app_svids }, report)) => match never {},
        stopped = stop_signal() => stopped.map(|()| None)?,
        why = watch.tampering() => Some(why),
    };
    let mut workers =
        tokio::task::spawn_blocking(move || workers.into_iter().all(|worker| worker.join().is_ok()));
    let is_stopped = noticed.is_none();
    let why = match noticed {
        Some(why) => why,
        None => {
            tracing::info!("draining");
            watch.stopping();
            admin.health.draining.store(true, Ordering::Release);
            // A worker that already ended has nothing to drain.
            let _ = drain.send(true);
            tokio::select! {
                ended = &mut workers => {
                    return Ok(if matches!(ended, Ok(true)) { ExitCode::SUCCESS } else { ExitCode::FAILURE });
                }
                why = watch.tampering() => why,
            }
        }
    };
    let state_dir = shared.config.state_dir.clone();
    tampered::give_up(Running { joined, cut, workers }, &admin.health, state_dir.as_deref(), &why).await;
    // It stays and says why nothing is served, for a supervisor would only start it again and again.
    if !is_stopped {
        stop_signal().await?;
    }
    Ok(ExitCode::FAILURE)
}

/// How a worker is told to end.
#[derive(Clone)]
struct Ends {
    /// In good order: what is open goes on for a while.
    drain: watch::Receiver<bool>,
    /// At once, whatever is open.
    cut: watch::Receiver<bool>,
}

/// Waits until one of these says so; for ever when its other end is gone, which it is with the process.
async fn told(mut signal: watch::Receiver<bool>) {
    if signal.wait_for(|told| *told).await.is_err() {
        std::future::pending().await
    }
}

fn hooks(shared: &Arc<Shared>, health: &Arc<Health>, asked: Asked, report: Arc<Notify>) -> Hooks {
    let Asked { observations, appointments, app_svids } = asked;
    let explained = Arc::clone(shared);
    let (shared, health) = (Arc::clone(shared), Arc::clone(health));
    Hooks {
        explain: Box::new(move |request_id| explained.explain(request_id)),
        health: Box::new(move || {
            let (edges, edges_lost) = shared.edges.list();
            control::Health {
                capture_in_force: health.capture_in_force.load(Ordering::Acquire),
                canary_ok: health.canary_ok.load(Ordering::Acquire),
                open_connections: u32::try_from(shared.metrics.open_connections.get()).unwrap_or_default(),
                refused: shared.metrics.refused().into_iter().map(|(code, n)| (code.to_owned(), n)).collect(),
                unprotected: control::Unprotected {
                    plaintext_in: shared.metrics.plaintext.get(Direction::Inbound),
                    plaintext_out: shared.metrics.plaintext.get(Direction::Outbound),
                    unsigned_requests: shared.metrics.unsigned_messages.get(Direction::Inbound),
                    unsigned_responses: shared.metrics.unsigned_messages.get(Direction::Outbound),
                    observed_refusals: shared.metrics.observed_refusals.get(),
                },
                edges,
                edges_lost,
            }
        }),
        observed: observations,
        appointments,
        app_svids,
        report,
    }
}

fn serve_admin(config: &Config, admin: &Admin) -> Result<(), RunError> {
    let listener = std::net::TcpListener::bind(config.admin_addr).map_err(bind_error(config.admin_addr))?;
    listener.set_nonblocking(true)?;
    tokio::spawn(admin::serve_tcp(TcpListener::from_std(listener)?, admin.clone()));
    if let Some(path) = &config.admin_socket {
        let listener = unix_socket::bind(path, Access::Owner).map_err(bind_error(path.display()))?;
        tokio::spawn(admin::serve_unix(UnixListener::from_std(listener)?, admin.clone()));
    }
    Ok(())
}

fn bind(config: &Config) -> Result<Listeners, RunError> {
    let listen = |address: SocketAddr| sockets::listen(address).map_err(bind_error(address));
    let mut outbound = Vec::new();
    for address in sockets::loopback(config.outbound_port) {
        match listen(address) {
            Ok(listener) => outbound.push(listener),
            // A kernel without IPv6 has no ::1, and no IPv6 traffic to capture.
            Err(RunError::Bind { source, .. }) if address.is_ipv6() && no_ipv6(&source) => {}
            Err(error) => return Err(error),
        }
    }
    let inbound = match listen(wildcard(config.inbound_port)) {
        Err(RunError::Bind { source, .. }) if no_ipv6(&source) => {
            listen(SocketAddr::from(([0, 0, 0, 0], config.inbound_port)))?
        }
        bound => bound?,
    };
    Ok(Listeners { outbound, inbound })
}

fn wildcard(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

fn no_ipv6(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(nix::errno::Errno::from_raw);
    matches!(code, Some(nix::errno::Errno::EAFNOSUPPORT | nix::errno::Errno::EADDRNOTAVAIL))
}

fn bind_error(address: impl ToString) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::Bind { address: address.to_string(), source }
}

/// Installs the first rules; the guard changes them once a policy says so.
fn install(config: &Config) -> Result<Option<Capture>, CaptureError> {
    let Some((capture, backend)) = Capture::start(config)? else { return Ok(None) };
    tracing::info!(%backend, "capture rules are in force");
    Ok(Some(capture))
}

fn start_worker(
    index: usize,
    listeners: Listeners,
    shared: Arc<Shared>,
    ends: Ends,
) -> io::Result<std::thread::JoinHandle<()>> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        LocalSet::new().block_on(&runtime, async move {
            if let Err(error) = work(index, listeners, shared, ends).await {
                tracing::error!(index, %error, "worker cannot listen");
            }
        });
    })
}

/// One worker: accepts until the drain, then waits for what is open, up to the drain's limit.
async fn work(
    index: usize,
    listeners: Listeners,
    shared: Arc<Shared>,
    Ends { drain, cut }: Ends,
) -> io::Result<()> {
    let limit = shared.config.drain;
    let worker = Worker::new(shared, index, drain.clone());
    let sweeping = Rc::clone(&worker);
    tokio::task::spawn_local(async move { sweeping.sweep().await });
    let following = Rc::clone(&worker);
    tokio::task::spawn_local(async move { following.follow_trust().await });
    for listener in listeners.outbound {
        // The application's last calls still go out while it drains.
        let listener = TcpListener::from_std(listener)?;
        tokio::task::spawn_local(listen::accept(
            Rc::clone(&worker),
            Direction::Outbound,
            listener,
            outbound::serve,
            told(cut.clone()),
        ));
    }
    let inbound = TcpListener::from_std(listeners.inbound)?;
    let ending = async {
        tokio::select! {
            () = told(drain) => {}
            () = told(cut.clone()) => {}
        }
    };
    listen::accept(Rc::clone(&worker), Direction::Inbound, inbound, inbound::serve, ending).await;
    tokio::select! {
        () = finish(&worker, limit) => {}
        // What is left then ends with the thread.
        () = told(cut) => {
            let _ = tokio::time::timeout(CUT_LIMIT, ended(&worker)).await;
        }
    }
    Ok(())
}

/// Ends in good order: last checkpoints, idle connections, and then what is open, up to the drain's limit.
async fn finish(worker: &Rc<Worker>, limit: Duration) {
    if tokio::time::timeout(SETTLE_LIMIT, checkpoint::settle_all(worker)).await.is_err() {
        tracing::warn!("some connections end without their last checkpoint");
    }
    worker.mesh.clear();
    worker.apps.clear();
    worker.outside.clear();
    if tokio::time::timeout(limit, ended(worker)).await.is_err() {
        tracing::warn!(open = worker.open_connections(), "drain ended with connections open");
    }
}

/// Waits until nothing is open.
async fn ended(worker: &Worker) {
    while worker.open_connections() > 0 {
        tokio::time::sleep(DRAIN_STEP).await;
    }
}

async fn stop_signal() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
