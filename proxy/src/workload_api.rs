//! SPIFFE's Workload API for the application beside the sidecar: X.509-SVIDs, JWT-SVIDs, and what to judge those of others by.
//!
//! * [`config`] – where it listens, and for whom: off unless asked for.
//! * `offer` – what the application gets now: pure, from policy, roots and what is held.
//! * `keeper` – keeps the application's own certificate in time; the key is made here, and is not the workload's.
//! * `tokens` – asks for JWT-SVIDs, and keeps them for half of their life.
//! * `authority` – what some libraries call the socket.
//! * `service` – the gRPC service; [`proto`] is its schema.
//!
//! What policy offers nobody is not there: the control plane checks again. It runs on a thread of its own, so that an
//! application that keeps it busy keeps nothing else waiting.

mod ask;
mod authority;
pub mod config;
mod keeper;
mod offer;
pub mod proto;
mod service;
mod tokens;

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use self::ask::Asker;
pub(crate) use self::ask::WAITING_MAX;
pub use self::ask::{Answer, AskError, Question};
use self::authority::Authorities;
use self::config::WorkloadApiConfig;
use self::offer::Offer;
use self::proto::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use self::service::Service;
use crate::unix_socket::{self, Access};
use crate::worker::Shared;

/// The metadata that every request carries, so that nobody can be made to send one by accident.
pub(crate) const SECURITY_HEADER: &str = "workload.spiffe.io";

/// Connections at once: the libraries of an application's processes keep one or two each.
const CONNECTIONS_MAX: usize = 32;

/// Streams of one connection: one for each kind of thing that is followed, and a few calls.
const STREAMS_MAX: u32 = 16;

/// Bytes of a request's headers, decoded.
const HEADER_LIST_BYTES: u32 = 8 * 1024;

/// Streams reset before they were served.
const PENDING_RESETS: usize = 20;

/// Bytes of a request: a token, and audiences.
const REQUEST_BYTES: usize = 32 * 1024;

/// Connections that wait for HTTP/2 to take them.
const READY_MAX: usize = 8;

/// Pause after a failed accept: out of descriptors, trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bound, and not served yet.
pub(crate) struct Listener {
    socket: StdListener,
    config: WorkloadApiConfig,
}

impl Listener {
    /// Binds what the settings ask for. The error names the place.
    pub(crate) fn bind(config: Option<&WorkloadApiConfig>) -> Result<Option<Self>, (String, io::Error)> {
        let Some(config) = config else { return Ok(None) };
        let bound = unix_socket::bind(&config.socket, Access::Group(config.gid));
        let socket = bound.map_err(|error| (config.socket.display().to_string(), error))?;
        Ok(Some(Self { socket, config: config.clone() }))
    }
}

/// Serves on a thread of its own until the process ends, or `cut` says that nothing is served any more. Questions go to the control thread.
pub(crate) fn start(
    listener: Option<Listener>,
    shared: Arc<Shared>,
    questions: mpsc::Sender<Question>,
    mut cut: watch::Receiver<bool>,
) -> io::Result<()> {
    let Some(Listener { socket, config }) = listener else { return Ok(()) };
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let socket = UnixListener::from_std(socket)?;
    drop(entered);
    std::thread::Builder::new().name("workload-api".to_owned()).spawn(move || {
        let asker = Asker::new(questions);
        let (offers, offer) = watch::channel(Offer::of(&shared));
        let (ready, connections) = mpsc::channel(READY_MAX);
        let service = Service::new(offer, asker.clone(), Arc::clone(&shared));
        let service = SpiffeWorkloadApiServer::new(service).max_decoding_message_size(REQUEST_BYTES);
        let serving = Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .http2_max_header_list_size(HEADER_LIST_BYTES)
            .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
            .add_service(service)
            .serve_with_incoming(ReceiverStream::new(connections));
        let keeping = keeper::keep(Arc::clone(&shared), asker, offers);
        runtime.block_on(async move {
            tokio::select! {
                served = serving => if let Err(error) = served {
                    tracing::error!(%error, "the Workload API has ended");
                },
                () = accept(socket, config, ready, shared) => {}
                () = keeping => {}
                // The process ends with the sender.
                _ = cut.wait_for(|cut| *cut) => {}
            }
        });
    })?;
    Ok(())
}

/// Accepts until nobody serves any more. Who is not listed is not heard.
async fn accept(
    listener: UnixListener,
    config: WorkloadApiConfig,
    ready: mpsc::Sender<io::Result<Accepted>>,
    shared: Arc<Shared>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let peer = stream.peer_cred().ok();
        let (uid, pid) = (peer.as_ref().map(|peer| peer.uid()), peer.as_ref().and_then(|peer| peer.pid()));
        if !uid.is_some_and(|uid| config.uids.contains(&uid)) {
            shared.metrics.workload_api_request("connect", "forbidden");
            tracing::warn!(uid, pid, "a user that --workload-api-uid does not list tried the Workload API");
            continue;
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            shared.metrics.workload_api_request("connect", "busy");
            continue;
        };
        tracing::debug!(uid, pid, "the application uses the Workload API");
        if ready.send(Ok(Accepted { stream, authorities: Authorities::new(), _place: place })).await.is_err()
        {
            return;
        }
    }
}

/// A connection with its place.
struct Accepted {
    stream: UnixStream,
    authorities: Authorities,
    _place: OwnedSemaphorePermit,
}

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if let Some(new) = buffer.filled_mut().get_mut(before..) {
            self.authorities.pass(new);
        }
        Poll::Ready(Ok(()))
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
