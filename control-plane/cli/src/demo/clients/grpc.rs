//! gRPC calls over a bare HTTP/2 connection, so that a trailers-only answer shows as one.

use std::io;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

use super::transcript::{Exchange, Timing};
use super::{Payload, To};
use crate::demo::apps::{Ask, pattern};

/// Above 64 KiB, below the 4 MiB that gRPC servers take by default.
const LARGE: usize = 200_000;

pub(super) async fn calls(to: &To) -> Vec<Exchange> {
    let mut exchanges = Vec::new();
    let mut connection = None;
    for (call, path, ask) in series() {
        let mut exchange = Exchange::new(call);
        let (start, mut first) = (Instant::now(), None);
        match to.within(one(to, &mut connection, path, &ask, &mut exchange, &mut first)).await {
            Ok(()) => {}
            Err(error) => {
                connection = None;
                exchange = exchange.failed(&error);
            }
        }
        exchange.timing = Timing::since(start, first);
        exchanges.push(exchange);
    }
    exchanges
}

fn series() -> [(&'static str, &'static str, Ask); 6] {
    let ask = |text: &str, times, payload| Ask { text: text.into(), times, payload };
    [
        ("Tell", "/demo.Agent/Tell", ask("hello", 0, Vec::new())),
        ("Tell with a large message", "/demo.Agent/Tell", ask("large", 0, pattern(LARGE))),
        ("Stream of 5", "/demo.Agent/Stream", ask("hello", 5, Vec::new())),
        ("Stream of none", "/demo.Agent/Stream", ask("hello", 0, Vec::new())),
        ("Tell that fails", "/demo.Agent/Tell", ask("error", 0, Vec::new())),
        ("method that is not there", "/demo.Agent/Other", ask("hello", 0, Vec::new())),
    ]
}

async fn one(
    to: &To,
    connection: &mut Option<SendRequest<Full<Bytes>>>,
    path: &str,
    ask: &Ask,
    exchange: &mut Exchange,
    first: &mut Option<Instant>,
) -> io::Result<()> {
    let sender = match connection {
        Some(sender) => sender,
        none => none.insert(open(to).await?),
    };
    let request = http::Request::post(format!("http://{}{path}", to.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "signet-demo")
        .body(Full::new(framed(ask)))
        .map_err(io::Error::other)?;
    sender.ready().await.map_err(stable)?;
    let response = sender.send_request(request).await.map_err(stable)?;
    first.get_or_insert_with(Instant::now);
    exchange.status = Some(response.status().as_u16());
    exchange.take_headers(fields(response.headers()));

    let mut body = response.into_body();
    let mut received = BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame.map_err(stable)?.into_data() {
            Ok(data) => received.extend_from_slice(&data),
            Err(frame) => exchange.trailers = frame.trailers_ref().map(fields).unwrap_or_default(),
        }
    }
    exchange.body = Payload::from(received.as_ref());
    Ok(())
}

async fn open(to: &To) -> io::Result<SendRequest<Full<Bytes>>> {
    let stream = to.connect().await?;
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(stable)?;
    // Its end shows in the next call.
    tokio::spawn(async { _ = connection.await });
    Ok(sender)
}

/// A message behind the five bytes that gRPC puts before each: not compressed, and its length.
fn framed(ask: &Ask) -> Bytes {
    let message = ask.encode_to_vec();
    let mut bytes = BytesMut::with_capacity(5 + message.len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.extend_from_slice(&message);
    bytes.freeze()
}

fn fields(headers: &http::HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.as_bytes().escape_ascii().to_string()))
        .collect()
}

fn stable(error: hyper::Error) -> io::Error {
    io::Error::other(error.to_string())
}
