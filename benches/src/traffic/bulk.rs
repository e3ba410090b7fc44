//! One connection from which as much as possible is read, over HTTP or as plain bytes.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Place;
use super::response::Response;

/// Read at a time: what a busy client would take.
const BUFFER: usize = 256 * 1024;
/// How long nothing may come.
const SILENCE: Duration = Duration::from_secs(10);
/// What the opaque back end waits for before it sends: the client speaks first.
pub const OPENING: &[u8] = b"send\n";

/// What to read, and for how long.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Plan {
    /// From where.
    pub to: Place,
    /// The path of the download; plain bytes without.
    pub path: Option<String>,
    /// How long.
    pub length: Duration,
}

/// What was read.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Outcome {
    /// How many bytes.
    pub bytes: u64,
    /// In how many seconds, from the first byte on.
    pub seconds: f64,
}

/// Reads until the time is over.
///
/// # Errors
/// A refused request, silence, or an end before its time.
pub fn read(plan: &Plan) -> io::Result<Outcome> {
    let mut stream = TcpStream::connect(plan.to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    match &plan.path {
        Some(path) => {
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", plan.to).as_bytes())?;
        }
        None => stream.write_all(OPENING)?,
    }
    let mut buffer = vec![0; BUFFER];
    let mut response = Response::default();
    let (mut bytes, mut begun) = (0, None);
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if plan.path.is_some() && !response.has_head() {
            response.take(buffer.get(..count).unwrap_or_default())?;
        }
        bytes += count as u64;
        let begun = *begun.get_or_insert_with(Instant::now);
        if begun.elapsed() >= plan.length {
            return Ok(Outcome { bytes, seconds: begun.elapsed().as_secs_f64() });
        }
    }
}
