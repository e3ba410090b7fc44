//! Asks a part about itself: one small HTTP request, one answer, no library.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::super::{LabError, Namespace};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// The longest answer: metrics are some tens of KiB.
const ANSWER_MAX: u64 = 4 * 1024 * 1024;

/// Asks over a Unix socket; status and body.
pub(super) fn unix(socket: &Path, target: &str) -> io::Result<(u16, String)> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    ask(stream, target)
}

/// Asks over TCP from inside a namespace.
pub(super) fn tcp(
    from: &Namespace,
    address: SocketAddr,
    target: &str,
) -> Result<io::Result<(u16, String)>, LabError> {
    let target = target.to_owned();
    from.run(move || {
        let stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        ask(stream, &target)
    })
}

fn ask(mut stream: impl Read + Write, target: &str) -> io::Result<(u16, String)> {
    stream
        .write_all(format!("GET {target} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    let text =
        String::from_utf8(answer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let parsed = text.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    });
    parsed.ok_or_else(|| io::ErrorKind::InvalidData.into())
}
