//! Serving HTTP on one accepted connection, with every limit in one place.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use crate::body::Body;
use crate::head::READ_BYTES_MAX;
use crate::prefixed::Prefixed;
use crate::sockets::reset_on_close;
use crate::tls::MeshStream;

/// How long a client may take for a header section: slow headers hold a connection hostage.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Streams per connection: the same as hyper's default, written down.
const STREAMS_MAX: u32 = 200;
/// Flow-control window per stream and per connection: bounds what waits unread in memory.
pub(crate) const STREAM_WINDOW: u32 = 256 * 1024;
pub(crate) const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes written and not yet taken by the peer, per stream.
pub(crate) const SEND_BUFFER: usize = 256 * 1024;
/// How long a peer that does not read is waited for when all that is left to say is goodbye.
const FAREWELL: Duration = Duration::from_secs(1);
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

/// Serves one connection until it ends or, on drain, until what was begun is answered. A connection that was switched to
/// another protocol is given back, with what was read of that already.
pub(crate) async fn serve<I, F>(
    io: I,
    version: Version,
    mut drain: watch::Receiver<bool>,
    switch: Switch,
    respond: F,
) -> hyper::Result<Option<(I, Bytes)>>
where
    I: AsyncRead + AsyncWrite + Reset + Unpin + 'static,
    F: Fn(Request<Incoming>) -> Answer + Unpin + 'static,
{
    let service = service_fn(respond);
    let draining = async move {
        // The sender lives as long as the worker; if it is gone, the process is ending too.
        let _ = drain.wait_for(|draining| *draining).await;
    };
    match version {
        Version::Http1 => {
            let mut connection = http1_builder().serve_connection(TokioIo::new(io), service);
            let mut draining = std::pin::pin!(draining);
            let mut drained = false;
            let served = poll_fn(|cx| {
                if !drained && draining.as_mut().poll(cx).is_ready() {
                    drained = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                connection.poll_without_shutdown(cx)
            });
            let served = served.await;
            let parts = connection.into_parts();
            let mut io = parts.io.into_inner();
            if served.is_ok() && switch.get() {
                return Ok(Some((io, parts.read_buf)));
            }
            match &served {
                // close_notify or FIN: everything was said.
                Ok(()) => drop(tokio::time::timeout(FAREWELL, io.shutdown()).await),
                // The end of a body that broke off must not look like its end.
                Err(_) => io.reset(),
            }
            served.map(|()| None)
        }
        Version::Http2 => {
            // Boxed: in place it would double what every connection of HTTP/1.1 keeps for this.
            let mut connection = Box::pin(http2_builder().serve_connection(TokioIo::new(io), service));
            tokio::select! {
                done = connection.as_mut() => return done.map(|()| None),
                () = draining => connection.as_mut().graceful_shutdown(),
            }
            connection.await.map(|()| None)
        }
    }
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(READ_BYTES_MAX)
        .half_close(true)
        .auto_date_header(false)
        // What the application wrote is what arrives; where a field was set aside on the way its
        // usual spelling comes back.
        .preserve_header_case(true)
        .title_case_headers(true);
    builder
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
