//! Bytes between a client and the engine.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::UnixStream;

use super::head::{Answer, Framing, HEAD_MAX, Head};
use crate::chunked;

/// A client that has connected asks at once.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// How long a body that is read whole may take: it comes from the same machine.
const BODY_LIMIT: Duration = Duration::from_secs(60);
/// The body of a request that is changed: a container with thousands of variables has under a megabyte.
pub(super) const BODY_MAX: usize = 4 * 1024 * 1024;
/// An answer that is changed: the details of a container.
const ANSWER_MAX: usize = 16 * 1024 * 1024;
/// How long a client may go on sending after the engine has ended the answer.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// One read.
const PIECE: usize = 16 * 1024;

/// A client's request: its head, and what came behind it so far.
pub(super) struct Request {
    pub(super) head: Head,
    rest: Vec<u8>,
}

/// Why a request is not read.
#[derive(Debug)]
pub(super) enum Unread {
    /// Nothing came, or the client is gone.
    Gone,
    /// It is told.
    Refused(Answer),
}

impl From<io::Error> for Unread {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// Reads a request's head.
pub(super) async fn request(client: &mut UnixStream) -> Result<Request, Unread> {
    let whole = async {
        let mut bytes = Vec::new();
        loop {
            match Head::parse(&bytes) {
                Ok(Some((head, used))) => {
                    let rest = bytes.split_off(used);
                    return Ok(Request { head, rest });
                }
                Ok(None) => {}
                Err(reason) => {
                    return Err(Unread::Refused(Answer::refusal(400, &format!("signet: {reason}"))));
                }
            }
            more(client, &mut bytes, HEAD_MAX).await?;
        }
    };
    tokio::time::timeout(HEAD_LIMIT, whole).await.unwrap_or(Err(Unread::Gone))
}

/// Reads the body behind a head, whole.
pub(super) async fn body(client: &mut UnixStream, request: Request) -> Result<(Head, Vec<u8>), Unread> {
    let Request { head, rest: mut bytes } = request;
    let too_long = || {
        let message = format!("signet: the body is longer than {BODY_MAX} bytes");
        Unread::Refused(Answer::refusal(413, &message))
    };
    if head.field("expect").is_some() {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let whole = async {
        match head.body {
            Framing::Length(length) => {
                let length =
                    usize::try_from(length).ok().filter(|length| *length <= BODY_MAX).ok_or_else(too_long)?;
                while bytes.len() < length {
                    more(client, &mut bytes, length).await?;
                }
                bytes.truncate(length);
                Ok(bytes)
            }
            Framing::Chunked => {
                // Decoded anew with each doubling and where it may be the end, so that small pieces cost little.
                let mut next = 0;
                loop {
                    if bytes.len() >= next || bytes.ends_with(b"\n\r\n") || bytes.ends_with(b"\n\n") {
                        match chunked::decode(&bytes, BODY_MAX) {
                            Ok(Some(decoded)) => return Ok(decoded.body),
                            Ok(None) if bytes.len() > 2 * BODY_MAX => return Err(too_long()),
                            Ok(None) => next = 2 * bytes.len(),
                            Err(chunked::ChunkedError::TooLong(_)) => return Err(too_long()),
                            Err(error) => {
                                let message = format!("signet: the body: {error}");
                                return Err(Unread::Refused(Answer::refusal(400, &message)));
                            }
                        }
                    }
                    more(client, &mut bytes, 2 * BODY_MAX + PIECE).await?;
                }
            }
        }
    };
    let read = tokio::time::timeout(BODY_LIMIT, whole).await.unwrap_or(Err(Unread::Gone))?;
    Ok((head, read))
}

async fn more(client: &mut UnixStream, bytes: &mut Vec<u8>, limit: usize) -> Result<(), Unread> {
    let mut piece = [0; PIECE];
    let room = limit.saturating_sub(bytes.len()).clamp(1, PIECE);
    let read = client.read(piece.get_mut(..room).unwrap_or_default()).await?;
    if read == 0 {
        return Err(Unread::Gone);
    }
    bytes.extend_from_slice(piece.get(..read).unwrap_or_default());
    Ok(())
}

/// Hands a request to the engine and everything back, until the engine has ended its answer. What is within is nobody's
/// business here: bodies, followed logs, events, and the streams that attach, exec and builds turn a connection into.
pub(super) async fn pass(client: &mut UnixStream, request: Request, engine: &Path) -> io::Result<()> {
    let mut engine = match UnixStream::connect(engine).await {
        Ok(engine) => engine,
        Err(error) => return answer(client, &unreachable(engine, &error)).await,
    };
    engine.write_all(&request.head.for_engine()).await?;
    engine.write_all(&request.rest).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_engine, mut to_engine) = engine.split();
    let up = async {
        // The end of input is told to the engine, as attached programs wait for it.
        let _ = copy(&mut from_client, &mut to_engine).await;
        let _ = to_engine.shutdown().await;
        std::future::pending::<()>().await;
    };
    let down = async {
        let _ = copy(&mut from_engine, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
    // What the client still sends is taken off its hands, so that it reads the answer's end and no broken connection.
    let _ = tokio::time::timeout(LAST_WORDS, copy(&mut from_client, &mut tokio::io::sink())).await;
    Ok(())
}

/// Asks the engine and waits for its answer.
pub(super) async fn ask(engine: &Path, request: &[u8]) -> Answer {
    let whole = async {
        let mut stream = UnixStream::connect(engine).await.map_err(|error| unreachable(engine, &error))?;
        stream.write_all(request).await.map_err(|error| unreachable(engine, &error))?;
        let mut bytes = Vec::new();
        let limit = u64::try_from(ANSWER_MAX).unwrap_or(u64::MAX);
        let read = (&mut stream).take(limit).read_to_end(&mut bytes).await;
        read.map_err(|error| unreachable(engine, &error))?;
        Answer::parse(&bytes).map_err(|reason| Answer::refusal(502, &format!("signet: {reason}")))
    };
    // No limit: stopping a container takes as long as it was given, and the client knows how long that is.
    whole.await.unwrap_or_else(|refusal| refusal)
}

/// Answers a client.
pub(super) async fn answer(client: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    client.write_all(&answer.to_bytes()).await?;
    client.shutdown().await?;
    let _ = tokio::time::timeout(LAST_WORDS, copy(client, &mut tokio::io::sink())).await;
    Ok(())
}

fn unreachable(engine: &Path, error: &io::Error) -> Answer {
    Answer::refusal(502, &format!("signet: the engine at {}: {error}", engine.display()))
}
