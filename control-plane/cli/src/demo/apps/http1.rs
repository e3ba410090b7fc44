//! A small HTTP/1.1 server side, written by hand so that header names leave in the case the app chose.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::chunked;

/// Most bytes of a request head; servers in the field take 8 to 64 KiB.
const HEAD_MAX: usize = 64 * 1024;
/// Most header fields of a request.
const HEADERS_MAX: usize = 64;
/// Most bytes of a request body: enough for the demonstration's largest upload.
const BODY_MAX: usize = 16 * 1024 * 1024;
/// Bytes asked of the socket at a time.
const READ: usize = 64 * 1024;

/// One request, complete with its body.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    /// Names as received.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    keep_alive: bool,
}

impl Request {
    /// The request target up to the query.
    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or(&self.target)
    }

    /// A parameter of the query, as it stands there.
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        query
            .split('&')
            .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
            .map(|(_, value)| value)
    }

    /// The first value of a header field.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// How an answer's body travels.
#[derive(Debug)]
pub(super) enum Body {
    /// With `Content-Length`.
    Length(Vec<u8>),
    /// In chunks of these bytes.
    Chunked(Vec<Vec<u8>>),
    /// No body and no length: 204.
    None,
}

/// One answer.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) reason: &'static str,
    /// Written in this order and this case.
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Body,
}

impl Response {
    pub(super) fn new(status: u16, reason: &'static str, content_type: &str, body: Vec<u8>) -> Self {
        Self {
            status,
            reason,
            headers: vec![("Content-Type", content_type.to_owned())],
            body: Body::Length(body),
        }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn head(&self, keep_alive: bool) -> String {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, self.reason);
        for (name, value) in &self.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        match &self.body {
            Body::Length(body) => head.push_str(&format!("Content-Length: {}\r\n", body.len())),
            Body::Chunked(_) => head.push_str("Transfer-Encoding: chunked\r\n"),
            Body::None => {}
        }
        if !keep_alive {
            head.push_str("Connection: close\r\n");
        }
        head.push_str("\r\n");
        head
    }
}

/// One client connection.
pub(super) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    pub(super) const fn new(stream: TcpStream) -> Self {
        Self { stream, received: Vec::new() }
    }

    /// The next request; `None` when the client has closed or asked for no more.
    pub(super) async fn next(&mut self) -> io::Result<Option<Request>> {
        loop {
            if let Some(head) = parse_head(&self.received)? {
                return self.body(head).await.map(Some);
            }
            if self.received.len() > HEAD_MAX {
                return Err(invalid("request head is too long"));
            }
            if !self.fill().await? {
                return if self.received.is_empty() {
                    Ok(None)
                } else {
                    Err(invalid("request ends in its head"))
                };
            }
        }
    }

    /// Sends an answer; `false` when the connection ends with it.
    pub(super) async fn respond(&mut self, request: &Request, response: Response) -> io::Result<bool> {
        let mut bytes = response.head(request.keep_alive).into_bytes();
        if request.method != "HEAD" {
            match response.body {
                Body::Length(body) => bytes.extend(body),
                Body::Chunked(chunks) => {
                    for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
                        bytes.extend(chunk_of(chunk));
                    }
                    bytes.extend_from_slice(LAST_CHUNK);
                }
                Body::None => {}
            }
        }
        self.stream.write_all(&bytes).await?;
        if !request.keep_alive {
            self.stream.shutdown().await?;
        }
        Ok(request.keep_alive)
    }

    /// Sends bytes as they are, for an answer that is made piece by piece.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    async fn body(&mut self, head: Head) -> io::Result<Request> {
        self.received.drain(..head.length);
        let mut request = head.request;
        if request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        loop {
            match head.framing {
                Framing::Length(length) if self.received.len() >= length => {
                    let rest = self.received.split_off(length);
                    request.body = std::mem::replace(&mut self.received, rest);
                    return Ok(request);
                }
                Framing::Length(_) => {}
                Framing::Chunked => {
                    let decoded = chunked::decode(&self.received, BODY_MAX)
                        .map_err(|error| invalid(&error.to_string()))?;
                    if let Some(decoded) = decoded {
                        self.received.drain(..decoded.consumed);
                        request.body = decoded.body;
                        return Ok(request);
                    }
                }
            }
            if !self.fill().await? {
                return Err(invalid("request ends in its body"));
            }
        }
    }

    async fn fill(&mut self) -> io::Result<bool> {
        self.received.reserve(READ);
        Ok(self.stream.read_buf(&mut self.received).await? > 0)
    }
}

/// Ends a chunked body.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// One chunk on the wire.
pub(super) fn chunk_of(data: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
    chunk.extend_from_slice(data);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

struct Head {
    request: Request,
    length: usize,
    framing: Framing,
}

enum Framing {
    Chunked,
    Length(usize),
}

fn parse_head(bytes: &[u8]) -> io::Result<Option<Head>> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(length) =
        parsed.parse(bytes).map_err(|error| invalid(&error.to_string()))?
    else {
        return Ok(None);
    };
    let headers = parsed
        .headers
        .iter()
        .map(|field| (field.name.to_owned(), String::from_utf8_lossy(field.value).into_owned()))
        .collect();
    let mut request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        target: parsed.path.unwrap_or_default().to_owned(),
        headers,
        body: Vec::new(),
        keep_alive: parsed.version == Some(1),
    };
    if request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
        request.keep_alive = false;
    }
    let framing = match (request.header("transfer-encoding"), request.header("content-length")) {
        (None, None) => Framing::Length(0),
        (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => Framing::Chunked,
        (None, Some(digits)) => match digits.parse() {
            Ok(length) if length <= BODY_MAX => Framing::Length(length),
            _ => return Err(invalid("content-length is not acceptable")),
        },
        _ => return Err(invalid("body framing is ambiguous")),
    };
    Ok(Some(Head { request, length, framing }))
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
