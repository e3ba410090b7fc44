//! A raw HTTP/1.1 message as people paste it: strict, except that line ends may be bare LF and the empty line after
//! a head without a body may be missing.

use std::str::FromStr;

use http::{HeaderMap, HeaderName, HeaderValue};
use signet_signature::{MessageView, RequestView, ResponseView};

use crate::chunked::{self, ChunkedError};

/// Most bytes of a message, body included: it is a tool for looking at single messages.
pub(crate) const MESSAGE_MAX: usize = 1024 * 1024;
/// Most header fields.
const HEADERS_MAX: usize = 128;

/// Why bytes are not a message that can be relied on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("a carriage return stands alone")]
    BareCarriageReturn,
    #[error("Content-Length says {declared} bytes, {there} are there")]
    BodyTooShort { declared: usize, there: usize },
    #[error("chunked body: {0}")]
    Chunked(#[from] ChunkedError),
    #[error("chunked body is not complete")]
    ChunkedIncomplete,
    #[error("Content-Length is not one decimal number")]
    ContentLength,
    #[error("message is empty")]
    Empty,
    #[error("body framing is ambiguous: Transfer-Encoding must be `chunked` alone, without Content-Length")]
    Framing,
    #[error("head is malformed: {0}")]
    Head(httparse::Error),
    #[error("request needs exactly one Host field")]
    Host,
    #[error("a header value continues on the next line (obs-fold), line {line}")]
    ObsFold { line: usize },
    #[error("request target is malformed")]
    Target,
    #[error("message is longer than {MESSAGE_MAX} bytes")]
    TooLong,
    #[error("{0} bytes follow the end of the body")]
    TrailingBytes(usize),
}

/// The scheme a request was made with: a raw message does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// A message, with its bytes kept so that it can be written again.
pub(crate) struct Message {
    /// The head up to its last field, each line with its end.
    head: Vec<u8>,
    line_end: &'static str,
    /// Everything after the empty line, as it came.
    rest: Vec<u8>,
    start: Start,
    headers: HeaderMap,
    trailers: Option<HeaderMap>,
    body: Vec<u8>,
}

enum Start {
    Request(RequestLine),
    Response { status: u16 },
}

/// The request line, taken apart.
struct RequestLine {
    method: String,
    target: String,
    scheme: String,
    authority: String,
    path: String,
    query: Option<String>,
}

impl Message {
    /// Reads a request or a response. `scheme` counts for a request whose target has none; without it, `http` is
    /// taken when the authority names port 80, else `https`.
    pub(crate) fn parse(bytes: &[u8], scheme: Option<Scheme>) -> Result<Self, MessageError> {
        if bytes.len() > MESSAGE_MAX {
            return Err(MessageError::TooLong);
        }
        // Empty lines before the start line are to be passed over (RFC 9112 section 2.2).
        let start =
            bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).ok_or(MessageError::Empty)?;
        let Lines { head, line_end, rest } = split_head(&bytes[start..])?;
        let (start, headers) = parse_head(&head, line_end, scheme)?;
        let (body, trailers) = body(&headers, rest)?;
        Ok(Self { head, line_end, rest: rest.to_vec(), start, headers, trailers, body })
    }

    pub(crate) const fn is_request(&self) -> bool {
        matches!(self.start, Start::Request(_))
    }

    pub(crate) const fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    pub(crate) const fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    /// The content, without transfer coding.
    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    /// What signatures are about. `request` is the one that a response answers.
    pub(crate) fn view<'a>(&'a self, request: Option<&'a Self>) -> MessageView<'a> {
        match &self.start {
            Start::Request(line) => MessageView::Request(self.request_view(line)),
            Start::Response { status } => MessageView::Response(ResponseView {
                status: *status,
                headers: &self.headers,
                trailers: self.trailers(),
                request: request.and_then(|message| match &message.start {
                    Start::Request(line) => Some(message.request_view(line)),
                    Start::Response { .. } => None,
                }),
            }),
        }
    }

    fn request_view<'a>(&'a self, line: &'a RequestLine) -> RequestView<'a> {
        RequestView {
            method: &line.method,
            scheme: &line.scheme,
            authority: &line.authority,
            path: &line.path,
            query: line.query.as_deref(),
            target: &line.target,
            headers: &self.headers,
            trailers: self.trailers(),
        }
    }

    /// Adds a field after all others.
    pub(crate) fn add_header(&mut self, name: &'static str, value: &HeaderValue) {
        self.head.extend([name.as_bytes(), b": ", value.as_bytes(), self.line_end.as_bytes()].concat());
        if let Ok(name) = HeaderName::from_str(name) {
            self.headers.append(name, value.clone());
        }
    }

    /// The message as it goes over the wire.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        [self.head.as_slice(), self.line_end.as_bytes(), &self.rest].concat()
    }
}

struct Lines<'a> {
    head: Vec<u8>,
    line_end: &'static str,
    rest: &'a [u8],
}

/// Splits after the empty line, or at the end where there is none.
fn split_head(bytes: &[u8]) -> Result<Lines<'_>, MessageError> {
    let (mut end, mut number, mut line_end) = (0, 0, "\r\n");
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = rest.iter().position(|&byte| byte == b'\n').map_or(rest.len(), |position| position + 1);
        let (line, after) = rest.split_at(length);
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        if number == 0 && !text.ends_with(b"\r") {
            line_end = "\n";
        }
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        number += 1;
        rest = after;
        if text.is_empty() {
            break;
        }
        if text.contains(&b'\r') {
            return Err(MessageError::BareCarriageReturn);
        }
        if number > 1 && matches!(text.first(), Some(b' ' | b'\t')) {
            return Err(MessageError::ObsFold { line: number });
        }
        end += length;
    }
    let mut head = bytes[..end].to_vec();
    if !head.ends_with(b"\n") {
        head.extend_from_slice(line_end.as_bytes());
    }
    Ok(Lines { head, line_end, rest })
}

fn parse_head(
    head: &[u8],
    line_end: &str,
    scheme: Option<Scheme>,
) -> Result<(Start, HeaderMap), MessageError> {
    let complete = [head, line_end.as_bytes()].concat();
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    if complete.starts_with(b"HTTP/") {
        let mut parsed = httparse::Response::new(&mut fields);
        whole(parsed.parse(&complete))?;
        return Ok((
            Start::Response { status: parsed.code.unwrap_or_default() },
            header_map(parsed.headers)?,
        ));
    }
    let mut parsed = httparse::Request::new(&mut fields);
    whole(parsed.parse(&complete))?;
    let headers = header_map(parsed.headers)?;
    let line =
        request_line(parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default(), &headers, scheme)?;
    Ok((Start::Request(line), headers))
}

fn whole(parsed: httparse::Result<usize>) -> Result<(), MessageError> {
    match parsed {
        Ok(httparse::Status::Complete(_)) => Ok(()),
        Ok(httparse::Status::Partial) => Err(MessageError::Head(httparse::Error::NewLine)),
        Err(error) => Err(MessageError::Head(error)),
    }
}

fn header_map(fields: &[httparse::Header<'_>]) -> Result<HeaderMap, MessageError> {
    let mut headers = HeaderMap::new();
    for field in fields {
        let name =
            HeaderName::from_str(field.name).map_err(|_| MessageError::Head(httparse::Error::HeaderName))?;
        let value = HeaderValue::from_bytes(field.value)
            .map_err(|_| MessageError::Head(httparse::Error::HeaderValue))?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// Takes the request target apart: origin, absolute, authority or asterisk form (RFC 9112 section 3.2).
fn request_line(
    method: &str,
    target: &str,
    headers: &HeaderMap,
    scheme: Option<Scheme>,
) -> Result<RequestLine, MessageError> {
    if !target.bytes().all(|byte| matches!(byte, b'!'..=b'~') && byte != b'#') {
        return Err(MessageError::Target);
    }
    let host = host(headers)?;
    let mut of_target = None;
    let (authority, path_and_query) = if target == "*" || target.starts_with('/') {
        (host, target)
    } else if method == "CONNECT" {
        (target, "")
    } else {
        let (of, rest) = target.split_once("://").ok_or(MessageError::Target)?;
        of_target = Some(of.to_ascii_lowercase()).filter(|of| of == "http" || of == "https");
        if of_target.is_none() {
            return Err(MessageError::Target);
        }
        rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()))
    };
    if authority.is_empty() || authority.contains('@') {
        return Err(MessageError::Target);
    }
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (path_and_query, None),
    };
    let guessed = if authority.ends_with(":80") { Scheme::Http } else { Scheme::Https };
    Ok(RequestLine {
        method: method.to_owned(),
        target: target.to_owned(),
        scheme: of_target.unwrap_or_else(|| scheme.unwrap_or(guessed).as_str().to_owned()),
        authority: authority.to_owned(),
        path: if path.is_empty() && method != "CONNECT" { "/".to_owned() } else { path.to_owned() },
        query,
    })
}

fn host(headers: &HeaderMap) -> Result<&str, MessageError> {
    let mut hosts = headers.get_all(http::header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().map_err(|_| MessageError::Host),
        _ => Err(MessageError::Host),
    }
}

fn body(headers: &HeaderMap, rest: &[u8]) -> Result<(Vec<u8>, Option<HeaderMap>), MessageError> {
    let codings = headers.get_all(http::header::TRANSFER_ENCODING);
    let mut lengths = headers.get_all(http::header::CONTENT_LENGTH).iter();
    let coded = codings.iter().next().is_some();
    match (coded, lengths.next(), lengths.next()) {
        (false, None, _) => Ok((rest.to_vec(), None)),
        (false, Some(length), None) => Ok((of_length(length, rest)?, None)),
        (true, None, _) => {
            let mut codings = codings.iter();
            let only =
                codings.next().is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
            if !only || codings.next().is_some() {
                return Err(MessageError::Framing);
            }
            let decoded = chunked::decode(rest, MESSAGE_MAX)?.ok_or(MessageError::ChunkedIncomplete)?;
            no_more(&rest[decoded.consumed..])?;
            let trailers = decoded.trailers.iter().map(|(name, value)| httparse::Header { name, value });
            Ok((decoded.body, Some(header_map(&trailers.collect::<Vec<_>>())?)))
        }
        (false, Some(_), Some(_)) => Err(MessageError::ContentLength),
        (true, Some(_), _) => Err(MessageError::Framing),
    }
}

/// The declared length of the rest. A body that is left out altogether is empty: heads are pasted alone.
fn of_length(length: &HeaderValue, rest: &[u8]) -> Result<Vec<u8>, MessageError> {
    let digits = length.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(MessageError::ContentLength);
    }
    let declared: usize =
        length.to_str().ok().and_then(|text| text.parse().ok()).ok_or(MessageError::ContentLength)?;
    match rest.split_at_checked(declared) {
        Some((body, after)) => {
            no_more(after)?;
            Ok(body.to_vec())
        }
        None if rest.is_empty() => Ok(Vec::new()),
        None => Err(MessageError::BodyTooShort { declared, there: rest.len() }),
    }
}

/// Editors end a file with a line end; anything else would be part of another message.
fn no_more(after: &[u8]) -> Result<(), MessageError> {
    if after.iter().all(|byte| matches!(byte, b'\r' | b'\n')) {
        Ok(())
    } else {
        Err(MessageError::TrailingBytes(after.len()))
    }
}

#[cfg(test)]
mod tests;
