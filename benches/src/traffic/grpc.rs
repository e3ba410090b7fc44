//! gRPC unary calls, as many at a time as a busy client has, on one connection as gRPC clients use it.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::Place;

/// What gRPC messages are called.
pub const CONTENT_TYPE: &str = "application/grpc";
/// Bytes of a message: a small protobuf.
const MESSAGE: usize = 64;
/// How long one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Where to, and how many at a time.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Plan {
    /// Where to.
    pub to: Place,
    /// Calls at a time.
    pub streams: usize,
    /// How long.
    pub length: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Outcome {
    /// Calls that were answered with status 0.
    pub calls: u64,
    /// From the first to the end, seconds.
    pub seconds: f64,
}

/// Calls until the time is over.
///
/// # Errors
/// The first call that fails.
pub async fn run(plan: &Plan) -> io::Result<Outcome> {
    let stream = TcpStream::connect(plan.to).await?;
    stream.set_nodelay(true)?;
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = shaken.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let begun = Instant::now();
    let end = begun + plan.length;
    let mut callers: JoinSet<io::Result<u64>> = JoinSet::new();
    for _ in 0..plan.streams {
        let (mut sender, to) = (sender.clone(), plan.to);
        callers.spawn(async move {
            let mut calls = 0;
            while Instant::now() < end {
                let overdue = |_| io::Error::from(io::ErrorKind::TimedOut);
                tokio::time::timeout(CALL_LIMIT, call(&mut sender, to)).await.map_err(overdue)??;
                calls += 1;
            }
            Ok(calls)
        });
    }
    let mut calls = 0;
    while let Some(done) = callers.join_next().await {
        calls += done??;
    }
    Ok(Outcome { calls, seconds: begun.elapsed().as_secs_f64() })
}

async fn call(sender: &mut SendRequest<Full<Bytes>>, to: Place) -> io::Result<()> {
    let mut message = vec![0; 5 + MESSAGE];
    // Not compressed, then the length, big-endian; it fits one byte.
    message[4] = MESSAGE as u8;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{to}/load.Test/Call"))
        .header("content-type", CONTENT_TYPE)
        .header("te", "trailers")
        .body(Full::new(Bytes::from(message)))
        .map_err(io::Error::other)?;
    sender.ready().await.map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let in_head = response.headers().get("grpc-status").cloned();
    let body = response.into_body().collect().await.map_err(io::Error::other)?;
    let told = body.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned().or(in_head);
    if told != Some(HeaderValue::from_static("0")) {
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        return Err(io::Error::other(format!("status {status}, grpc-status {told:?}: {text}")));
    }
    Ok(())
}
