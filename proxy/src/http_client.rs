//! Opening an HTTP connection over a stream that is already established.

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

use crate::body::Body;
use crate::head::READ_BYTES_MAX;
use crate::http_server::{
    CONNECTION_WINDOW, LocalExecutor, PING_INTERVAL, PING_TIMEOUT, SEND_BUFFER, STREAM_WINDOW, Version,
};
use crate::pool::Sender;

/// Starts HTTP on `io`; the connection then runs on this worker until it ends.
pub(crate) async fn open<I>(io: I, version: Version) -> hyper::Result<Sender>
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    match version {
        Version::Http1 => {
            let (sender, connection) = http1_builder().handshake(TokioIo::new(io)).await?;
            run(connection);
            Ok(Sender::Http1(sender))
        }
        Version::Http2 => {
            let (sender, connection) = http2::Builder::new(LocalExecutor)
                .timer(TokioTimer::new())
                .max_header_list_size(READ_BYTES_MAX as u32)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_send_buf_size(SEND_BUFFER)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .handshake(TokioIo::new(io))
                .await?;
            run(connection);
            Ok(Sender::Http2(sender))
        }
    }
}

/// A connection for one request, which may switch it to another protocol.
pub(crate) struct Once<I> {
    sender: http1::SendRequest<Body>,
    ended: JoinHandle<hyper::Result<http1::Parts<TokioIo<I>>>>,
}

/// Starts HTTP/1.1 on `io` for one request.
pub(crate) async fn open_once<I>(io: I) -> hyper::Result<Once<I>>
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (sender, connection) = http1_builder().handshake(TokioIo::new(io)).await?;
    Ok(Once { sender, ended: tokio::task::spawn_local(connection.without_shutdown()) })
}

impl<I> Once<I> {
    /// Sends the request.
    pub(crate) async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        self.sender.send_request(request).await
    }

    /// The connection after it was answered with 101, and what was read of the other protocol already.
    pub(crate) async fn switched(self) -> Option<(I, Bytes)> {
        let parts = self.ended.await.ok()?.ok()?;
        Some((parts.io.into_inner(), parts.read_buf))
    }
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(READ_BYTES_MAX).preserve_header_case(true).title_case_headers(true);
    builder
}

/// Failures show up at the requests that meet them.
fn run(connection: impl Future<Output = hyper::Result<()>> + 'static) {
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended");
        }
    });
}
