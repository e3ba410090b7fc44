//! Opening an HTTP connection over a stream that is already established.

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::head::{READ_BYTES_MAX, READ_FIELDS_MAX};
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
            let (sender, connection) = http1::Builder::new()
                .max_buf_size(READ_BYTES_MAX)
                .max_headers(READ_FIELDS_MAX)
                .preserve_header_case(true)
                .title_case_headers(true)
                .handshake(TokioIo::new(io))
                .await?;
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

/// Failures show up at the requests that meet them.
fn run(connection: impl Future<Output = hyper::Result<()>> + 'static) {
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended");
        }
    });
}
