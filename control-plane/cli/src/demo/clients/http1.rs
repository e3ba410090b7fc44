//! An HTTP/1.1 client on the bare socket: it shows header fields exactly as they arrive.

use std::io;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::transcript::{Exchange, Timing};
use super::{Payload, To};
use crate::chunked;

/// Most header fields of an answer.
const HEADERS_MAX: usize = 64;
/// Most bytes of an answer: above the largest that the demonstration's apps send.
const ANSWER_MAX: usize = 32 * 1024 * 1024;
/// Bytes asked of the socket at a time.
const READ: usize = 64 * 1024;
/// Most repetitions of one request: each is kept for the transcript.
const REPEAT_MAX: i64 = 10_000;
/// Bytes in each chunk of a chunked request.
const CHUNK: usize = 8 * 1024;

/// One request from the command line.
#[derive(Debug, Clone, clap::Args)]
pub struct OneRequest {
    #[command(flatten)]
    pub(super) to: To,
    /// Request method
    #[arg(long, default_value = "GET")]
    pub(super) method: String,
    /// Request target, query included
    #[arg(long, default_value = "/")]
    pub(super) path: String,
    /// Header field, sent as it stands; may be repeated; a Host field replaces the usual one
    #[arg(long = "header", value_name = "NAME: VALUE")]
    pub(super) headers: Vec<String>,
    /// Request body
    #[arg(long, value_name = "TEXT")]
    pub(super) body: Option<String>,
    /// Send the body in chunks
    #[arg(long, requires = "body")]
    pub(super) chunked: bool,
    /// How often to send it over the one connection
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=REPEAT_MAX), value_name = "N")]
    pub(super) repeat: u32,
}

/// One request as it will be written.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Option<Vec<u8>>,
    pub(super) chunked: bool,
}

impl Request {
    pub(super) fn new(method: &str, target: &str) -> Self {
        Self { method: method.into(), target: target.into(), headers: Vec::new(), body: None, chunked: false }
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(super) fn body(mut self, content_type: &str, body: Vec<u8>) -> Self {
        self.body = Some(body);
        self.header("Content-Type", content_type)
    }

    pub(super) fn in_chunks(mut self) -> Self {
        self.chunked = true;
        self
    }

    fn to_bytes(&self, host: &str) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.extend(["Host: ", host, "\r\n"]);
        }
        for (name, value) in &self.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        match (&self.body, self.chunked) {
            (Some(_), true) => head.push_str("Transfer-Encoding: chunked\r\n"),
            (Some(body), false) => head.push_str(&format!("Content-Length: {}\r\n", body.len())),
            (None, _) => {}
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        match (&self.body, self.chunked) {
            (Some(body), true) => {
                for chunk in body.chunks(CHUNK) {
                    bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                    bytes.extend_from_slice(chunk);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
            }
            (Some(body), false) => bytes.extend_from_slice(body),
            (None, _) => {}
        }
        bytes
    }
}

/// One answer, complete.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Vec<(String, String)>,
    keep_alive: bool,
}

/// A connection that is kept between calls and opened when there is none.
pub(super) struct Connection<'a> {
    to: &'a To,
    stream: Option<TcpStream>,
    received: Vec<u8>,
}

impl<'a> Connection<'a> {
    pub(super) const fn new(to: &'a To) -> Self {
        Self { to, stream: None, received: Vec::new() }
    }

    /// Whether the next call goes over a connection that is there already.
    pub(super) const fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Ends the connection: the next call opens a new one.
    pub(super) fn close(&mut self) {
        self.stream = None;
        self.received.clear();
    }

    /// One call as an entry of a transcript.
    pub(super) async fn exchange(&mut self, request: &Request) -> Exchange {
        let exchange = Exchange::new(format!("{} {}", request.method, request.target));
        let (start, mut first) = (Instant::now(), None);
        let result = self.call(request, |_| _ = first.get_or_insert_with(Instant::now)).await;
        let mut exchange = match result {
            Ok(answer) => answer.recorded(exchange),
            Err(error) => exchange.failed(&error),
        };
        exchange.timing = Timing::since(start, first);
        exchange
    }

    /// One call; `watch` sees all bytes of the answer so far each time that some arrive. No call is repeated, and
    /// a call that fails takes its connection with it.
    pub(super) async fn call(&mut self, request: &Request, watch: impl FnMut(&[u8])) -> io::Result<Answer> {
        let to = self.to;
        let result = to.within(self.call_without_limit(request, watch)).await;
        if !result.as_ref().is_ok_and(|answer| answer.keep_alive) {
            self.close();
        }
        result
    }

    async fn call_without_limit(
        &mut self,
        request: &Request,
        watch: impl FnMut(&[u8]),
    ) -> io::Result<Answer> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(self.to.connect().await?),
        };
        let bytes = request.to_bytes(&self.to.address);
        // Reading while writing: an app that answers a large request early must not block both sides.
        let (mut reader, mut writer) = stream.split();
        let write = async {
            // A server may answer and close before it has read everything: what can be read decides.
            let _ = writer.write_all(&bytes).await;
            std::future::pending::<io::Result<Answer>>().await
        };
        let read = read_answer(&mut reader, &mut self.received, request.method == "HEAD", watch);
        tokio::select! {
            answer = read => answer,
            never = write => never,
        }
    }
}

impl Answer {
    pub(super) fn recorded(self, mut exchange: Exchange) -> Exchange {
        exchange.status = Some(self.status);
        exchange.take_headers(self.headers);
        exchange.body = Payload::from(self.body.as_slice());
        exchange.trailers = self.trailers;
        exchange
    }
}

pub(super) async fn one(request: &OneRequest) -> Vec<Exchange> {
    let mut wanted = Request::new(&request.method, &request.path);
    wanted.headers = request
        .headers
        .iter()
        .map(|field| field.split_once(':').map_or((field.as_str(), ""), |(name, value)| (name, value.trim())))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    wanted.body = request.body.clone().map(String::into_bytes);
    wanted.chunked = request.chunked;
    let mut connection = Connection::new(&request.to);
    let mut exchanges = Vec::new();
    for _ in 0..request.repeat {
        exchanges.push(connection.exchange(&wanted).await);
    }
    exchanges
}

enum Framing {
    Chunked,
    Close,
    Length(usize),
}

async fn read_answer(
    reader: &mut (impl tokio::io::AsyncRead + Unpin),
    received: &mut Vec<u8>,
    is_head: bool,
    mut watch: impl FnMut(&[u8]),
) -> io::Result<Answer> {
    let mut ended = false;
    loop {
        if let Some((answer, used)) = parse_answer(received, is_head, ended)? {
            received.drain(..used);
            // 100 Continue and its like are not the answer.
            if (100..200).contains(&answer.status) && answer.status != 101 {
                continue;
            }
            return Ok(answer);
        }
        if ended {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if received.len() > ANSWER_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "answer is too long"));
        }
        received.reserve(READ);
        ended = reader.read_buf(received).await? == 0;
        if !ended {
            watch(received);
        }
    }
}

fn parse_answer(bytes: &[u8], is_head: bool, ended: bool) -> io::Result<Option<(Answer, usize)>> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut fields);
    let status = parsed.parse(bytes).map_err(|error| invalid(error.to_string()))?;
    let httparse::Status::Complete(head) = status else { return Ok(None) };
    let headers: Vec<(String, String)> =
        parsed.headers.iter().map(|field| (field.name.to_owned(), text(field.value))).collect();
    let mut answer = Answer {
        status: parsed.code.unwrap_or_default(),
        keep_alive: parsed.version == Some(1) && !has(&headers, "connection", "close"),
        headers,
        body: Vec::new(),
        trailers: Vec::new(),
    };
    let framing = framing(&answer, is_head).ok_or_else(|| invalid("body framing is unclear".to_owned()))?;
    let rest = &bytes[head..];
    let used = match framing {
        Framing::Length(length) if rest.len() >= length => {
            answer.body = rest[..length].to_vec();
            length
        }
        Framing::Chunked => {
            match chunked::decode(rest, ANSWER_MAX).map_err(|error| invalid(error.to_string()))? {
                Some(decoded) => {
                    answer.body = decoded.body;
                    answer.trailers =
                        decoded.trailers.into_iter().map(|(name, value)| (name, text(&value))).collect();
                    decoded.consumed
                }
                None => return Ok(None),
            }
        }
        Framing::Close if ended => {
            answer.body = rest.to_vec();
            answer.keep_alive = false;
            rest.len()
        }
        Framing::Length(_) | Framing::Close => return Ok(None),
    };
    Ok(Some((answer, head + used)))
}

fn framing(answer: &Answer, is_head: bool) -> Option<Framing> {
    if is_head || matches!(answer.status, 100..=199 | 204 | 304) {
        return Some(Framing::Length(0));
    }
    if has(&answer.headers, "transfer-encoding", "chunked") {
        return Some(Framing::Chunked);
    }
    match answer.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        Some((_, digits)) => digits.parse().ok().map(Framing::Length),
        None => Some(Framing::Close),
    }
}

fn has(headers: &[(String, String)], name: &str, value: &str) -> bool {
    headers.iter().any(|(known, is)| known.eq_ignore_ascii_case(name) && is.eq_ignore_ascii_case(value))
}

/// A field value as text; bytes that are not UTF-8 are escaped, so that none is lost.
fn text(value: &[u8]) -> String {
    std::str::from_utf8(value).map_or_else(|_| value.escape_ascii().to_string(), str::to_owned)
}
