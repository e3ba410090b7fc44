//! An app that notes every byte that reaches it.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use signet_cli::lab::Container;
use signet_proxy::sockets::canonical;

use crate::{Ended, Failure, wait_for};

/// Bytes read at a time.
const READ: usize = 16 * 1024;
/// What an HTTP request is answered with.
pub const ANSWER: &str = "recorded";

/// What of these bytes is answered, and how.
type Answering = Arc<dyn Fn(&[u8]) -> Option<(usize, Vec<u8>)> + Send + Sync>;

/// What came over one connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Whom it comes from, as the app sees it.
    pub peer: SocketAddr,
    /// Every byte.
    pub bytes: Vec<u8>,
    /// How it ended.
    pub ended: Ended,
}

/// The app; it listens until the test ends.
#[derive(Clone, Debug)]
pub struct Recorder {
    connections: Arc<Mutex<Vec<Connection>>>,
}

impl Recorder {
    /// Answers every HTTP request with 200 and [`ANSWER`].
    ///
    /// # Errors
    /// The port is taken, or the lab fails.
    pub fn http(container: &Container, port: u16) -> Result<Self, Failure> {
        Self::answering(container, port, |_| Some(200))
    }

    /// Answers every HTTP request with the status that `status` has for it, and not at all where it has none.
    ///
    /// # Errors
    /// As [`Self::http`].
    pub fn answering(
        container: &Container,
        port: u16,
        status: impl Fn(&str) -> Option<u16> + Send + Sync + 'static,
    ) -> Result<Self, Failure> {
        Self::start(
            container,
            port,
            Arc::new(move |bytes| {
                let used = request_length(bytes)?;
                let status = status(&String::from_utf8_lossy(&bytes[..used]))?;
                let head = format!("HTTP/1.1 {status} Recorded\r\nContent-Type: text/plain");
                Some((used, format!("{head}\r\nContent-Length: {}\r\n\r\n{ANSWER}", ANSWER.len()).into()))
            }),
        )
    }

    /// Answers every HTTP request with these bytes, and not at all where there are none.
    ///
    /// # Errors
    /// As [`Self::http`].
    pub fn raw(
        container: &Container,
        port: u16,
        answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Result<Self, Failure> {
        let answering = move |bytes: &[u8]| {
            let used = request_length(bytes)?;
            Some((used, answer(&String::from_utf8_lossy(&bytes[..used]))?))
        };
        Self::start(container, port, Arc::new(answering))
    }

    /// Listens and says nothing.
    ///
    /// # Errors
    /// As [`Self::http`].
    pub fn silent(container: &Container, port: u16) -> Result<Self, Failure> {
        Self::start(container, port, Arc::new(|_| None))
    }

    /// Every connection so far, in the order they came.
    pub fn connections(&self) -> Vec<Connection> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every byte of every connection as text.
    pub fn text(&self) -> String {
        self.connections()
            .iter()
            .map(|connection| String::from_utf8_lossy(&connection.bytes).into_owned())
            .collect()
    }

    /// The HTTP requests that are complete.
    pub fn requests(&self) -> Vec<String> {
        let mut requests = Vec::new();
        for connection in self.connections() {
            let mut rest = &connection.bytes[..];
            while let Some(length) = request_length(rest) {
                requests.push(String::from_utf8_lossy(&rest[..length]).into_owned());
                rest = &rest[length..];
            }
        }
        requests
    }

    /// Waits until something holds for its connections.
    ///
    /// # Errors
    /// It does not come about.
    pub fn wait_for(
        &self,
        what: &str,
        holds: impl Fn(&[Connection]) -> bool,
    ) -> Result<Vec<Connection>, Failure> {
        let look = || Some(self.connections()).filter(|connections| holds(connections));
        wait_for(what, look)
            .map_err(|error| format!("{error}; the app has seen {:?}", self.connections()).into())
    }

    fn start(container: &Container, port: u16, answer: Answering) -> Result<Self, Failure> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = container.namespace().run(move || TcpListener::bind(any))??;
        let connections = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&connections);
        thread::Builder::new().name("recorder".into()).spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let peer = stream.peer_addr().map(canonical).unwrap_or(any);
                let number = {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.push(Connection { peer, bytes: Vec::new(), ended: Ended::Open });
                    seen.len() - 1
                };
                let seen = Arc::clone(&seen);
                let answer = Arc::clone(&answer);
                thread::spawn(move || record(stream, &seen, number, &answer));
            }
        })?;
        Ok(Self { connections })
    }
}

fn record(mut stream: TcpStream, seen: &Mutex<Vec<Connection>>, number: usize, answer: &Answering) {
    let note = |work: &dyn Fn(&mut Connection)| {
        work(&mut seen.lock().unwrap_or_else(PoisonError::into_inner)[number]);
    };
    let (mut block, mut pending) = ([0; READ], Vec::new());
    loop {
        match stream.read(&mut block) {
            Ok(0) => return note(&|connection| connection.ended = Ended::Clean),
            Ok(read) => {
                pending.extend_from_slice(&block[..read]);
                note(&|connection| connection.bytes.extend_from_slice(&block[..read]));
            }
            Err(_) => return note(&|connection| connection.ended = Ended::Reset),
        }
        while let Some((used, answer)) = answer(&pending) {
            pending.drain(..used);
            // Who goes away before the answer shows at the next read.
            let _ = stream.write_all(&answer);
        }
    }
}

/// The length of the HTTP request these bytes begin with, once it is complete.
fn request_length(bytes: &[u8]) -> Option<usize> {
    let head_end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..head_end]).to_ascii_lowercase();
    let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let rest = &bytes[head_end..];
    let body = if value("transfer-encoding:").is_some() {
        // The tests' own bodies have no line that looks like the last chunk. Behind it there may be trailers.
        let last = rest.windows(5).position(|window| window == b"\r\n0\r\n").map_or(0, |at| at + 2);
        let trailers = rest.get(last..)?.strip_prefix(b"0")?;
        last + 1 + trailers.windows(4).position(|window| window == b"\r\n\r\n")? + 4
    } else {
        value("content-length:").and_then(|digits| digits.parse().ok()).unwrap_or(0)
    };
    (rest.len() >= body).then_some(head_end + body)
}
