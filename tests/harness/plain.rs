//! A client that knows nothing of the mesh: bytes out, bytes in, and how the connection ended.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use signet_cli::lab::mesh::intruder::Answer;
use signet_cli::lab::{Container, Namespace};

use crate::Failure;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(15);
/// Bytes read at a time.
const READ: usize = 16 * 1024;

/// How a connection ended for the one who read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With a FIN: as if all had been said.
    Clean,
    /// Not yet.
    Open,
    /// With a reset, or never accepted.
    Reset,
}

/// One connection of a plain client.
#[derive(Debug)]
pub struct Plain {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Plain {
    /// Connects from inside a container.
    ///
    /// # Errors
    /// The connection is refused, or the lab fails.
    pub fn dial(from: &Container, to: SocketAddr) -> Result<Self, Failure> {
        Ok(dial(from.namespace(), to)??)
    }

    /// Sends bytes and tells what comes back until the end, from a connection that may be refused at any moment.
    ///
    /// # Errors
    /// The lab fails.
    pub fn tell(from: &Container, to: SocketAddr, bytes: &[u8]) -> Result<(Vec<u8>, Ended), Failure> {
        let Ok(mut plain) = dial(from.namespace(), to)? else { return Ok((Vec::new(), Ended::Reset)) };
        if plain.send(bytes).is_err() {
            return Ok((Vec::new(), Ended::Reset));
        }
        Ok(plain.rest())
    }

    /// Makes one HTTP request with exactly these bytes.
    ///
    /// # Errors
    /// There is no answer.
    pub fn ask(from: &Container, to: SocketAddr, request: &str) -> Result<Answer, Failure> {
        let told = |error: &dyn std::fmt::Display| format!("{to} does not answer {request:?}: {error}");
        let mut plain = Self::dial(from, to).map_err(|error| told(&error))?;
        plain.send(request.as_bytes()).map_err(|error| told(&error))?;
        Ok(plain.answer().map_err(|error| told(&error))?)
    }

    /// Its own end, as everybody sees it who is reached directly.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn own_end(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Closes the sending side.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Reads one HTTP answer.
    ///
    /// # Errors
    /// The connection ends before.
    pub fn answer(&mut self) -> io::Result<Answer> {
        loop {
            if let Some((answer, used)) = parse(&self.received) {
                self.received.drain(..used);
                return Ok(answer);
            }
            if self.read()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads until this text has come.
    ///
    /// # Errors
    /// The connection ends before.
    pub fn read_until(&mut self, text: &str) -> io::Result<()> {
        while !self.received.windows(text.len()).any(|window| window == text.as_bytes()) {
            if self.read()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Reads to the end: all that was not read yet, and how it ended.
    pub fn rest(&mut self) -> (Vec<u8>, Ended) {
        let ended = loop {
            match self.read() {
                Ok(0) => break Ended::Clean,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    break Ended::Open;
                }
                Err(_) => break Ended::Reset,
            }
        };
        (std::mem::take(&mut self.received), ended)
    }

    fn read(&mut self) -> io::Result<usize> {
        let mut block = [0; READ];
        let read = self.stream.read(&mut block)?;
        self.received.extend_from_slice(&block[..read]);
        Ok(read)
    }
}

/// A GET request as a simple client writes it.
pub fn get(path: &str, host: impl std::fmt::Display) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

/// A UDP socket of a container, at any port or at a given one.
///
/// # Errors
/// It cannot be bound, or the lab fails.
pub fn datagrams(of: &Container, port: u16) -> Result<UdpSocket, Failure> {
    let at = SocketAddr::from((of.ipv4(), port));
    let socket = of.namespace().run(move || UdpSocket::bind(at))??;
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(socket)
}

fn dial(from: &Namespace, to: SocketAddr) -> Result<io::Result<Plain>, Failure> {
    let connect = move || {
        let stream = TcpStream::connect_timeout(&to, LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(stream)
    };
    // The socket stays in the namespace it was made in, whoever uses it.
    Ok(from.run(connect)?.map(|stream| Plain { stream, received: Vec::new() }))
}

fn parse(bytes: &[u8]) -> Option<(Answer, usize)> {
    let head_end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let field =
        |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    let headers: Vec<_> = lines.filter_map(field).collect();
    let value = |name: &str| {
        headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
    };
    let rest = &bytes[head_end..];
    let length = if value("transfer-encoding").is_some() {
        // The tests' own apps send chunks of text that never looks like a last chunk.
        rest.windows(5).position(|window| window == b"0\r\n\r\n")? + 5
    } else {
        value("content-length").and_then(|digits| digits.parse().ok()).unwrap_or(0)
    };
    let body = rest.get(..length)?.to_vec();
    Some((Answer { status, headers, body }, head_end + length))
}
