//! Connections that are opened, used once and kept: what an idle connection costs in memory.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Place;
use super::response::Response;

/// What is printed once all are open.
pub const HOLDING: &str = "holding";
/// How long one request may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long they are kept when nobody ends this process.
const HOLD_LIMIT: Duration = Duration::from_secs(600);

/// Where to, and how many.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Plan {
    /// Where to.
    pub to: Place,
    /// What is asked once on each.
    pub path: String,
    /// How many.
    pub connections: usize,
}

/// Opens them, says so and keeps them until it is killed.
///
/// # Errors
/// The first connection that cannot be opened or is not answered.
pub fn hold(plan: &Plan) -> io::Result<()> {
    let open: Vec<TcpStream> = (0..plan.connections).map(|_| used(plan)).collect::<io::Result<_>>()?;
    println!("{HOLDING} {}", open.len());
    // Nobody wakes it: a wait with an end.
    let (_keep, never) = std::sync::mpsc::channel::<()>();
    let _ = never.recv_timeout(HOLD_LIMIT);
    Ok(())
}

fn used(plan: &Plan) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(plan.to)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", plan.path, plan.to).as_bytes())?;
    let (mut buffer, mut response) = ([0; 4096], Response::default());
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if response.take(buffer.get(..count).unwrap_or_default())? {
            return Ok(stream);
        }
    }
}
