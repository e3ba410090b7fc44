//! HTTP/1.1 by hand: what a peer writes and reads is exactly what stands here, however wrong.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use signet_cli::lab::Namespace;

use super::stage::{Failure, connect};

/// Longest line that is read.
const LINE_MAX: u64 = 128 * 1024;

/// A request or a response, read to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// First line.
    pub(crate) start: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
}

impl Message {
    /// The first field of this name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// A response's status; 0 if it is none.
    pub(crate) fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    /// The code of a refusal.
    pub(crate) fn code(&self) -> Option<String> {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        Some(problem.get("code")?.as_str()?.to_owned())
    }
}

/// Reads a request; `None` when the connection ends cleanly before its first byte.
pub(crate) fn read_request(stream: &mut impl BufRead) -> io::Result<Option<Message>> {
    read(stream, false)
}

/// Reads a response. One without a length goes on to the end of the connection.
pub(crate) fn read_response(stream: &mut impl BufRead, has_body: bool) -> io::Result<Message> {
    read_head(stream)?.map_or_else(
        || Err(io::ErrorKind::UnexpectedEof.into()),
        |mut message| {
            let bodiless = !has_body || matches!(message.status(), 100..=199 | 204 | 304);
            if !bodiless {
                read_body(stream, &mut message, true)?;
            }
            Ok(message)
        },
    )
}

fn read(stream: &mut impl BufRead, to_the_end: bool) -> io::Result<Option<Message>> {
    let Some(mut message) = read_head(stream)? else { return Ok(None) };
    read_body(stream, &mut message, to_the_end)?;
    Ok(Some(message))
}

fn read_head(stream: &mut impl BufRead) -> io::Result<Option<Message>> {
    let Some(start) = line(stream)? else { return Ok(None) };
    Ok(Some(Message { start, headers: fields(stream)?, ..Message::default() }))
}

fn read_body(stream: &mut impl BufRead, message: &mut Message, to_the_end: bool) -> io::Result<()> {
    let is_chunked =
        message.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
    let length = message.header("content-length").map(str::parse);
    match (is_chunked, length) {
        (true, _) => {
            while let Some(size) = chunk_size(stream)? {
                read_exactly(stream, size, &mut message.body)?;
                some(line(stream)?)?;
            }
            message.trailers = fields(stream)?;
        }
        (false, Some(Ok(length))) => read_exactly(stream, length, &mut message.body)?,
        (false, Some(Err(_))) => return Err(io::ErrorKind::InvalidData.into()),
        (false, None) if to_the_end => {
            stream.read_to_end(&mut message.body)?;
        }
        (false, None) => {}
    }
    Ok(())
}

fn chunk_size(stream: &mut impl BufRead) -> io::Result<Option<u64>> {
    let text = some(line(stream)?)?;
    let digits = text.split(';').next().unwrap_or_default().trim();
    let size = u64::from_str_radix(digits, 16).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok((size > 0).then_some(size))
}

fn read_exactly(stream: &mut impl BufRead, size: u64, into: &mut Vec<u8>) -> io::Result<()> {
    let read = stream.by_ref().take(size).read_to_end(into)?;
    if read as u64 == size { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn fields(stream: &mut impl BufRead) -> io::Result<Vec<(String, String)>> {
    let mut fields = Vec::new();
    loop {
        let text = some(line(stream)?)?;
        match text.split_once(':') {
            Some((name, value)) => fields.push((name.to_owned(), value.trim().to_owned())),
            None if text.is_empty() => return Ok(fields),
            None => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn line(stream: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut text = Vec::new();
    if stream.by_ref().take(LINE_MAX).read_until(b'\n', &mut text)? == 0 {
        return Ok(None);
    }
    if !text.ends_with(b"\n") {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let text = text.trim_ascii_end();
    String::from_utf8(text.to_vec()).map(Some).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn some<T>(found: Option<T>) -> io::Result<T> {
    found.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// A client's connection.
pub(crate) struct Caller {
    stream: BufReader<TcpStream>,
}

impl Caller {
    pub(crate) fn open(from: &Namespace, to: SocketAddr) -> Result<Self, Failure> {
        Ok(Self { stream: BufReader::new(connect(from, to)?) })
    }

    /// Writes bytes as they are.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes.as_ref())
    }

    /// Reads a response to its end.
    pub(crate) fn answer(&mut self) -> io::Result<Message> {
        read_response(&mut self.stream, true)
    }

    /// Reads a response that has no body whatever it says.
    pub(crate) fn head(&mut self) -> io::Result<Message> {
        read_response(&mut self.stream, false)
    }

    /// Reads what is left; a reset is an end too.
    pub(crate) fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
            _ => Ok(rest),
        }
    }

    /// The socket.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream.into_inner()
    }
}

/// One GET request on a connection of its own.
pub(crate) fn get(from: &Namespace, to: SocketAddr, target: &str) -> Result<Message, Failure> {
    let mut caller = Caller::open(from, to)?;
    caller.send(format!("GET {target} HTTP/1.1\r\nHost: {to}\r\n\r\n"))?;
    Ok(caller.answer()?)
}
