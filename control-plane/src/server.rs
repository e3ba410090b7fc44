//! The control port: TCP in, TLS 1.3 with our own verifier, then gRPC over HTTP/2.
//!
//! One port serves enrolment (no certificate) and everything else (a verified certificate): the handshake takes both,
//! each service asks for the `Peer` it needs. What an anonymous client can hold is bounded in number and time.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls_pki_types::UnixTime;
use signet_identity::{ALPN_CONTROL, VerifyError, attestation_binding, rejoin_server_config, renewal_time};
use signet_policy::MAX_REJOIN_S;
use signet_sync::MAX_MESSAGE_BYTES;
use signet_sync::proto::sync::areas_server::AreasServer;
use signet_sync::proto::sync::enrolment_server::EnrolmentServer;
use signet_sync::proto::sync::identity_server::IdentityServer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::time_provider::TimeProvider;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use self::anonymous::{Asked, Guest, Lobby};
use self::sources::Sources;
use crate::authority::slots::Slots;
use crate::authority::{self, Authority, AuthorityError};
use crate::caller::Caller;
use crate::clock::Clock;
use crate::metrics::{Metrics, count};
use crate::services::Mesh;
use crate::services::areas::AreasService;
use crate::services::control::ControlService;
use crate::services::enrolment::EnrolmentService;
use crate::services::frames::ControlEndpoint;
use crate::services::identity::IdentityService;

mod anonymous;
pub(crate) mod sources;

/// Connections at once: 12,288 proxies, each with a second one while it renews. The limit of open files may allow fewer.
const CONNECTIONS_MAX: usize = 24_576;

/// Files that are not connections: the store, sockets, logs.
const OTHER_FILES: u64 = 256;

/// Handshakes at once from one source: sidecars behind one gateway may all start together, a flood may not.
const HANDSHAKES_PER_SOURCE: usize = 64;

/// The longest handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Streams of one connection: a proxy has one control stream and a renewal.
const HTTP2_STREAMS: u32 = 16;

/// Bytes of a request's headers, decoded.
const HEADER_LIST_BYTES: u32 = 16 * 1024;

/// Streams reset before they were served, as of a rapid-reset flood.
const HTTP2_PENDING_RESETS: usize = 20;

/// A silent connection is asked this often whether it is still there, and dropped when it does not answer.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Bytes of an enrolment or renewal: a token and two certification requests.
const ENROLMENT_BYTES: usize = 64 * 1024;

/// Bytes of a proxy's message: its claims are the longest, an explanation may be.
const PROXY_MESSAGE_BYTES: usize = 1024 * 1024;

/// Pause after the system refused to accept a connection: it is out of descriptors, and trying again at once is a spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

/// Connections whose handshake is done, waiting for HTTP/2 to take them.
const READY_MAX: usize = 64;

/// What is known of a connection; every request carries it.
#[derive(Clone)]
pub(crate) struct ConnectionInfo {
    /// Who called, if a certificate was shown and verified.
    pub(crate) peer: Option<Caller>,
    /// What evidence is bound to that is good for this connection alone.
    pub(crate) binding: [u8; 32],
    /// Where the call comes from.
    pub(crate) source: IpAddr,
    /// To be noted by the service that callers without a certificate are let in for.
    pub(crate) asked: Asked,
}

/// Serves proxies until `mesh.draining` and the last call end. `sharers` trust domains divide what this process may open.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    mesh: Mesh,
    sharers: usize,
) -> Result<(), tonic::transport::Error> {
    let (ready, connections) = mpsc::channel(READY_MAX);
    let draining = mesh.draining.clone();
    let accepting = accept(listener, tls, mesh.metrics.clone(), ready, sharers);
    let enrolment = EnrolmentServer::new(EnrolmentService(mesh.clone()));
    let areas = AreasServer::new(AreasService(mesh.clone()));
    let identity = IdentityServer::new(IdentityService(mesh.clone()));
    let control = ControlEndpoint::new(ControlService(mesh), PROXY_MESSAGE_BYTES);
    let serving = Server::builder()
        .max_concurrent_streams(HTTP2_STREAMS)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_max_pending_accept_reset_streams(Some(HTTP2_PENDING_RESETS))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(enrolment.max_decoding_message_size(ENROLMENT_BYTES))
        .add_service(identity.max_decoding_message_size(ENROLMENT_BYTES))
        .add_service(control)
        .add_service(
            areas.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), draining.clone().cancelled_owned());
    tokio::pin!(serving);
    tokio::select! {
        result = &mut serving => result,
        () = accepting => serving.await,
        () = draining.cancelled() => serving.await,
    }
}

async fn accept(
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    metrics: Arc<Metrics>,
    ready: mpsc::Sender<io::Result<Accepted>>,
    sharers: usize,
) {
    let permits = Arc::new(Semaphore::new(connections_max(sharers)));
    let lobby = Lobby::new();
    let handshakes = Sources::new(HANDSHAKES_PER_SOURCE);
    loop {
        let (stream, source) = match listener.accept().await {
            Ok((stream, source)) => (stream, source.ip().to_canonical()),
            Err(error) if is_about_the_connection(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "connections cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (Ok(permit), Some(handshake)) = (permits.clone().try_acquire_owned(), handshakes.enter(source))
        else {
            count(&metrics.connections, "overloaded");
            continue;
        };
        let acceptor = TlsAcceptor::from(tls.borrow().clone());
        let (metrics, ready, lobby) = (metrics.clone(), ready.clone(), lobby.clone());
        tokio::spawn(async move {
            let shaken = shake(acceptor, stream, source, permit, lobby).await;
            drop(handshake);
            match shaken {
                Ok(accepted) => {
                    count(&metrics.connections, "ok");
                    let _ = ready.send(Ok(accepted)).await;
                }
                Err(outcome) => count(&metrics.connections, outcome),
            }
        });
    }
}

/// As many connections as there may be: the limit of open files is raised as far as the system lets us, and some are left for
/// everything else. Of several trust domains none can take what is another's.
fn connections_max(sharers: usize) -> usize {
    let wanted = CONNECTIONS_MAX as u64 + OTHER_FILES;
    let share = CONNECTIONS_MAX / sharers.max(1);
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return share };
    let raised = wanted.min(hard);
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, raised.max(soft), hard) {
        Ok(()) => raised.max(soft),
        Err(_) => soft,
    };
    let most = usize::try_from(limit.saturating_sub(OTHER_FILES)).unwrap_or(CONNECTIONS_MAX) / sharers.max(1);
    if most < share {
        tracing::info!(
            connections = most,
            "the limit of open files allows fewer connections; raise it (ulimit -n) for more proxies"
        );
    }
    most.clamp(1, share)
}

/// Such an error ends one connection, not the listener.
fn is_about_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn shake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    source: IpAddr,
    permit: OwnedSemaphorePermit,
    lobby: Lobby,
) -> Result<Accepted, &'static str> {
    let _ = stream.set_nodelay(true);
    let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
    let stream = shaken.map_err(|_| "handshake-timeout")?.map_err(|_| "handshake-failed")?;
    let peer = match signet_identity::peer(stream.get_ref().1) {
        Ok(peer) => Some(Caller::new(peer, stream.get_ref().1.peer_certificates().unwrap_or_default())),
        Err(VerifyError::NoCertificate) => None,
        Err(_) => return Err("handshake-failed"),
    };
    let binding = attestation_binding(stream.get_ref().1).map_err(|_| "handshake-failed")?;
    let asked = Asked::default();
    let guest = match peer {
        Some(_) => None,
        None => Some(lobby.enter(source, asked.clone()).ok_or("overloaded")?),
    };
    Ok(Accepted { stream, info: ConnectionInfo { peer, binding, source, asked }, guest, _permit: permit })
}

/// A connection after its handshake. An anonymous one ends when its time is up, whatever it does.
struct Accepted {
    stream: TlsStream<TcpStream>,
    info: ConnectionInfo,
    guest: Option<Guest>,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Accepted {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(guest) = &mut self.guest
            && guest.poll_end(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The control plane's own TLS configuration, with a fresh certificate before the last one ends.
pub(crate) struct OwnCertificate {
    authority: Arc<Authority>,
    clock: Arc<Clock>,
    config: watch::Sender<Arc<ServerConfig>>,
    renew_at: SystemTime,
    made_for: Arc<Slots>,
}

impl OwnCertificate {
    /// A clock that is not believed issues nothing to others. For itself the control plane takes the latest time that is
    /// certain: proxies whose clocks are right have to reach it to tell.
    pub(crate) fn issue(authority: Arc<Authority>, clock: Arc<Clock>) -> Result<Self, AuthorityError> {
        let made_for = authority.slots();
        let (config, renew_at) = server_config(&authority, &clock)?;
        Ok(Self { authority, clock, config: watch::Sender::new(config), renew_at, made_for })
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.config.subscribe()
    }

    /// Issues a new certificate at half of the last one's life, and whenever other keys came to certify or be shown; never
    /// returns.
    pub(crate) async fn keep_fresh(mut self) {
        /// How often the wall clock is looked at: it may jump, a timer does not.
        const LOOK: Duration = Duration::from_secs(60);
        let mut slots = self.authority.changes();
        slots.mark_changed();
        let mut made_for = self.made_for.clone();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = slots.changed() => {}
            }
            if let Some(fault) = self.clock.fault() {
                tracing::error!(code = fault.code(), "{fault}");
            }
            let (now, wanted) = (self.clock.best(), slots.borrow_and_update().1.clone());
            // An area's is its parent's affair: whatever there is now is taken up.
            if now < self.renew_at && wanted == made_for && self.authority.area().is_none() {
                continue;
            }
            match server_config(&self.authority, &self.clock) {
                Ok((config, renew_at)) => {
                    self.config.send_replace(config);
                    self.renew_at = renew_at;
                    made_for = wanted;
                }
                Err(error) => tracing::error!(%error, "the control plane's certificate cannot be renewed"),
            }
        }
    }
}

fn server_config(
    authority: &Authority,
    clock: &Arc<Clock>,
) -> Result<(Arc<ServerConfig>, SystemTime), AuthorityError> {
    let now = clock.best();
    let authority::Server { svid, bundle, shown } = authority.server(now, clock.latest())?;
    // How long after its end a certificate is good for a renewal is policy's; here it may only be shown.
    let grace = Duration::from_secs(MAX_REJOIN_S);
    let mut config = rejoin_server_config(&svid, &bundle, &shown, &[ALPN_CONTROL], grace)?;
    config.time_provider = Arc::new(Handshakes(clock.clone()));
    // One control plane has nobody to fall in step with, so there is no jitter.
    Ok((Arc::new(config), renewal_time(now, svid.not_after, 0.5)))
}

/// The time that callers' certificates are judged at.
#[derive(Debug)]
struct Handshakes(Arc<Clock>);

impl TimeProvider for Handshakes {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.best().duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}
