//! Serving HTTP on one accepted connection, with every limit in one place.

mod http1;

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::body::Body;
use crate::head::READ_BYTES_MAX;
use crate::prefixed::Prefixed;
use crate::sockets::reset_on_close;
use crate::tls::MeshStream;

/// How long the workload's own clients, and sidecars, may be silent between two requests: what Envoy gives them. How many
/// connections there are is bounded elsewhere, and such a one costs little.
pub(crate) const REST: Duration = Duration::from_secs(3600);
/// The same for those who have not shown who they are: longer than clients commonly keep a connection for.
pub(crate) const STRANGERS_REST: Duration = Duration::from_secs(60);
/// Streams per connection: the same as hyper's default, written down.
const STREAMS_MAX: u32 = 200;
/// Flow-control window per stream and per connection: bounds what waits unread in memory.
pub(crate) const STREAM_WINDOW: u32 = 256 * 1024;
pub(crate) const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes written and not yet taken by the peer, per stream.
pub(crate) const SEND_BUFFER: usize = 256 * 1024;
/// A silent HTTP/2 peer is asked for a sign of life this often, and given this long.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(20);
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Which HTTP is spoken.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

impl From<Version> for http::Version {
    fn from(version: Version) -> Self {
        match version {
            Version::Http1 => Self::HTTP_11,
            Version::Http2 => Self::HTTP_2,
        }
    }
}

/// Runs futures that stay on this worker's thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExecutor;

impl<F: Future + 'static> Executor<F> for LocalExecutor
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// A connection that can be ended so that its peer does not take it for a clean end.
pub(crate) trait Reset {
    /// Makes the close that follows a TCP reset.
    fn reset(&self);
}

impl Reset for Prefixed {
    fn reset(&self) {
        reset_on_close(self.get_ref());
    }
}

impl Reset for MeshStream {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

/// The answer to one request. Boxed where it begins: it is large, and every move of it would be a copy. Taking a
/// connection apart after a failure wants futures that can be moved, too.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>>>>;

/// Set by a service that answers 101: the connection speaks another protocol from there on.
pub(crate) type Switch = Rc<Cell<bool>>;

/// Why a connection ended before its time.
#[derive(Debug, Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("connection broke off between two requests: {0}")]
    Io(#[from] std::io::Error),
    #[error("header section was not complete within 30 s")]
    SlowHead,
}

/// Serves one connection until it ends or, on drain, until what was begun is answered. A connection that was switched to
/// another protocol is given back, with what was read of that already. Between two requests of HTTP/1.1 its client may be
/// silent for `rest`; HTTP/2 asks for signs of life.
pub(crate) async fn serve<I, F>(
    io: I,
    version: Version,
    mut drain: watch::Receiver<bool>,
    switch: Switch,
    rest: Duration,
    respond: F,
) -> Result<Option<(I, Bytes)>, ServeError>
where
    I: AsyncRead + AsyncWrite + Reset + Unpin + 'static,
    F: Fn(Request<Incoming>) -> Answer + Unpin + 'static,
{
    let draining = async move {
        // The sender lives as long as the worker; if it is gone, the process is ending too.
        let _ = drain.wait_for(|draining| *draining).await;
    };
    match version {
        Version::Http1 => http1::serve(&http1::RealTime, io, draining, switch, rest, respond).await,
        Version::Http2 => {
            // Boxed: in place it would double what every connection of HTTP/1.1 keeps for this.
            let mut connection =
                Box::pin(http2_builder().serve_connection(TokioIo::new(io), service_fn(respond)));
            tokio::select! {
                done = connection.as_mut() => return Ok(done.map(|()| None)?),
                () = draining => connection.as_mut().graceful_shutdown(),
            }
            Ok(connection.await.map(|()| None)?)
        }
    }
}

fn http2_builder() -> http2::Builder<LocalExecutor> {
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(READ_BYTES_MAX as u32)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .auto_date_header(false);
    builder
}
