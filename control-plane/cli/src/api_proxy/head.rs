//! The head of a request or an answer (RFC 9112), and how the body behind it ends.

use std::fmt::Write as _;

use crate::chunked;

/// Bytes of a head: engines take one megabyte, clients send a few hundred and a registry's login.
pub(super) const HEAD_MAX: usize = 64 * 1024;
/// Fields of a head.
const FIELDS_MAX: usize = 100;

/// A request's head.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Head {
    pub(super) method: String,
    /// Path and query, as sent.
    pub(super) target: String,
    fields: Vec<(String, Vec<u8>)>,
    pub(super) body: Framing,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Framing {
    Chunked,
    Length(u64),
}

/// An answer, whole.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    fields: Vec<(String, Vec<u8>)>,
    pub(super) body: Vec<u8>,
}

impl Head {
    /// Reads a head and says how many bytes it has; `None` when there are more to come.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, String> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        let used = match request.parse(bytes) {
            Ok(httparse::Status::Complete(used)) => used,
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
            Ok(httparse::Status::Partial) => return Err(format!("the head is longer than {HEAD_MAX} bytes")),
            Err(error) => return Err(format!("no HTTP/1.1 request: {error}")),
        };
        let (Some(method), Some(target)) = (request.method, request.path) else {
            return Err("no HTTP/1.1 request".to_owned());
        };
        let fields = owned(request.headers);
        let body = framing(&fields)?;
        Ok(Some((Self { method: method.to_owned(), target: target.to_owned(), fields, body }, used)))
    }

    /// The first value of a field.
    pub(super) fn field(&self, name: &str) -> Option<&[u8]> {
        field(&self.fields, name)
    }

    /// Whether the body is a form, of which the engine takes what it would else take of the query.
    pub(super) fn is_form(&self) -> bool {
        let kinds = self.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        let form = |kind: &[u8]| {
            let kind = kind.to_ascii_lowercase();
            [b"form-data".as_slice(), b"form-urlencoded"]
                .iter()
                .any(|form| kind.windows(form.len()).any(|part| part == *form))
        };
        kinds.into_iter().any(|(_, kind)| form(kind))
    }

    /// The head as the engine gets it: its connection ends with the answer, so that what it takes for the next request is
    /// never something that was not looked at here.
    pub(super) fn for_engine(&self) -> Vec<u8> {
        let connection = if self.field("upgrade").is_some() { "Upgrade, close" } else { "close" };
        self.written(&["connection"], &[("Connection", connection)])
    }

    /// The head for another body.
    pub(super) fn with_body(&self, body: &[u8]) -> Vec<u8> {
        let length = body.len().to_string();
        let mut head = self.written(
            &["connection", "content-length", "expect", "transfer-encoding", "upgrade"],
            &[("Content-Length", &length), ("Connection", "close")],
        );
        head.extend_from_slice(body);
        head
    }

    fn written(&self, without: &[&str], with: &[(&str, &str)]) -> Vec<u8> {
        let mut out = format!("{} {} HTTP/1.1\r\n", self.method, self.target).into_bytes();
        for (name, value) in &self.fields {
            if !without.iter().any(|left_out| name.eq_ignore_ascii_case(left_out)) {
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(b": ");
                out.extend_from_slice(value);
                out.extend_from_slice(b"\r\n");
            }
        }
        for (name, value) in with {
            out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out
    }
}

impl Answer {
    /// A refusal in the engine's form.
    pub(super) fn refusal(status: u16, message: &str) -> Self {
        let body = serde_json::json!({ "message": message }).to_string().into_bytes();
        Self { status, fields: Vec::new(), body }
    }

    /// Reads an answer of which all bytes are there.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut rest = bytes;
        loop {
            let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
            let mut response = httparse::Response::new(&mut fields);
            let used = match response.parse(rest) {
                Ok(httparse::Status::Complete(used)) => used,
                Ok(httparse::Status::Partial) => return Err("the engine's answer breaks off".to_owned()),
                Err(error) => return Err(format!("the engine's answer is no HTTP: {error}")),
            };
            let status = response.code.unwrap_or(0);
            let fields = owned(response.headers);
            let after = rest.get(used..).unwrap_or_default();
            if (100..200).contains(&status) {
                rest = after;
                continue;
            }
            let body = match field(&fields, "transfer-encoding") {
                Some(_) => {
                    chunked::decode(after, after.len())
                        .map_err(|error| format!("the engine's answer: {error}"))?
                        .ok_or("the engine's answer breaks off")?
                        .body
                }
                None => after.to_vec(),
            };
            return Ok(Self { status, fields, body });
        }
    }

    pub(super) const fn is_success(&self) -> bool {
        self.status >= 200 && self.status < 300
    }

    /// The answer's bytes. The connection ends behind it.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let reason =
            http::StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason.unwrap_or("Unknown"));
        let framed = ["connection", "content-length", "content-type", "transfer-encoding"];
        for (name, value) in &self.fields {
            if !framed.iter().any(|own| name.eq_ignore_ascii_case(own)) {
                // Writing to a String cannot fail.
                let _ = write!(head, "{name}: {}\r\n", String::from_utf8_lossy(value));
            }
        }
        if !matches!(self.status, 204 | 304) {
            let _ = write!(head, "Content-Type: application/json\r\nContent-Length: {}\r\n", self.body.len());
        }
        head.push_str("Connection: close\r\n\r\n");
        let mut out = head.into_bytes();
        out.extend_from_slice(&self.body);
        out
    }
}

fn owned(fields: &[httparse::Header<'_>]) -> Vec<(String, Vec<u8>)> {
    fields.iter().map(|field| (field.name.to_owned(), field.value.to_vec())).collect()
}

fn field<'a>(fields: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a [u8]> {
    fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
}

/// How the body ends. What two readers could take differently is refused.
fn framing(fields: &[(String, Vec<u8>)]) -> Result<Framing, String> {
    let all = |name: &str| -> Vec<&[u8]> {
        let named = fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.trim_ascii()).collect()
    };
    match (all("content-length").as_slice(), all("transfer-encoding").as_slice()) {
        ([], []) => Ok(Framing::Length(0)),
        ([], [encoding]) if encoding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        ([], [_]) => Err("a Transfer-Encoding other than chunked".to_owned()),
        ([digits], []) => {
            // `parse` would take a sign.
            let number = std::str::from_utf8(digits)
                .ok()
                .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let length = number.and_then(|text| text.parse().ok());
            length.map(Framing::Length).ok_or_else(|| "a Content-Length that is no number".to_owned())
        }
        _ => Err("more than one of Content-Length and Transfer-Encoding".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<(Head, usize)>, String> {
        Head::parse(text.as_bytes())
    }

    #[test]
    fn a_head_goes_to_the_engine_as_it_came_but_for_its_connection() {
        let text = "POST /v1.41/exec/a/start HTTP/1.1\r\nHost: docker\r\nX-Odd: \u{e9} \r\nconnection: Upgrade\r\n\
                    Upgrade: tcp\r\nContent-Length: 2\r\n\r\n{}";
        let (head, used) = parse(text).unwrap().unwrap();
        assert_eq!((head.body, used), (Framing::Length(2), text.len() - 2));
        let expected = "POST /v1.41/exec/a/start HTTP/1.1\r\nHost: docker\r\nX-Odd: \u{e9}\r\nUpgrade: tcp\r\n\
                        Content-Length: 2\r\nConnection: Upgrade, close\r\n\r\n";
        assert_eq!(String::from_utf8(head.for_engine()).unwrap(), expected);
    }

    #[test]
    fn every_prefix_of_a_head_asks_for_more() {
        let text = "GET /events HTTP/1.1\r\nHost: docker\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(parse(&text[..end]), Ok(None), "prefix of {end} bytes");
        }
    }

    #[test]
    fn what_two_readers_could_take_differently_is_refused() {
        for fields in [
            "Content-Length: 1\r\nContent-Length: 2",
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Content-Length: +1",
            "Content-Length: 0x1",
            "Content-Length: 99999999999999999999",
            "Host : docker",
        ] {
            assert!(parse(&format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n")).is_err(), "{fields}");
        }
    }

    #[test]
    fn a_head_without_end_is_refused() {
        let text = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(HEAD_MAX));
        assert!(parse(&text).is_err());
        let many: String = (0..=FIELDS_MAX).map(|number| format!("X-{number}: a\r\n")).collect();
        assert!(parse(&format!("GET / HTTP/1.1\r\n{many}\r\n")).is_err());
        assert!(parse("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").is_err());
    }

    #[test]
    fn an_answer_is_read_chunked_or_not_and_behind_interim_ones() {
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nApi-Version: 1.41\r\nTransfer-Encoding: chunked\
                    \r\n\r\n2\r\n{}\r\n0\r\n\r\n";
        let answer = Answer::parse(text.as_bytes()).unwrap();
        assert_eq!((answer.status, &*answer.body), (201, &b"{}"[..]));
        let expected = "HTTP/1.1 201 Created\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\n\
                        Content-Length: 2\r\nConnection: close\r\n\r\n{}";
        assert_eq!(String::from_utf8(answer.to_bytes()).unwrap(), expected);
        for broken in
            ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{"]
        {
            assert!(Answer::parse(broken.as_bytes()).is_err(), "{broken}");
        }
    }
}
