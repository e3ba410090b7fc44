//! The line service's client: one line, its answer, many bytes, half-close, the digest of all.

use std::io;
use std::time::Instant;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::transcript::{Exchange, Timing};
use super::{Payload, To};
use crate::demo::apps::pattern;

/// Longest answer.
const ANSWER_MAX: u64 = 64 * 1024;
/// Enough to fill the socket buffers on the way.
const MANY: usize = 500_000;

pub(super) async fn calls(to: &To) -> Vec<Exchange> {
    let start = Instant::now();
    let mut first = Exchange::new("line and answer");
    let mut stream = match to.connect().await {
        Ok(stream) => BufReader::new(stream),
        Err(error) => return vec![first.failed(&error)],
    };
    let result = to.within(line(&mut stream)).await;
    first = recorded(first, result, start);
    if first.error.is_some() {
        return vec![first];
    }
    let start = Instant::now();
    let result = to.within(half_close(&mut stream)).await;
    vec![first, recorded(Exchange::new("many bytes, half-close, digest"), result, start)]
}

async fn line(stream: &mut BufReader<TcpStream>) -> io::Result<Vec<u8>> {
    stream.write_all(b"{\"op\":\"status\",\"device\":\"pump-7\"}\n").await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_until(b'\n', &mut answer).await?;
    if answer.ends_with(b"\n") { Ok(answer) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

async fn half_close(stream: &mut BufReader<TcpStream>) -> io::Result<Vec<u8>> {
    stream.write_all(&pattern(MANY)).await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    if answer.ends_with(b"\n") { Ok(answer) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// An exchange with the bytes received or the reason for none.
pub(super) fn recorded(mut exchange: Exchange, result: io::Result<Vec<u8>>, start: Instant) -> Exchange {
    match result {
        Ok(bytes) => exchange.body = Payload::from(bytes.as_slice()),
        Err(error) => exchange = exchange.failed(&error),
    }
    exchange.timing = Timing::since(start, None);
    exchange
}
