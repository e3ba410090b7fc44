//! The greeter's client: it says nothing before the banner is there.

use std::io;
use std::time::Instant;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::To;
use super::line::recorded;
use super::transcript::Exchange;

/// Longest line of the server.
const LINE_MAX: u64 = 4096;

pub(super) async fn calls(to: &To) -> Vec<Exchange> {
    let start = Instant::now();
    let mut stream = match to.connect().await {
        Ok(stream) => BufReader::new(stream),
        Err(error) => return vec![Exchange::new("banner").failed(&error)],
    };
    let mut exchanges = Vec::new();
    for (call, said) in [("banner", ""), ("hello", "hello\r\n"), ("quit", "quit\r\n"), ("end", "")] {
        let result = to.within(async {
            stream.write_all(said.as_bytes()).await?;
            let mut line = Vec::new();
            (&mut stream).take(LINE_MAX).read_until(b'\n', &mut line).await?;
            // Only after "quit" may the server have no more to say.
            if line.is_empty() == (call == "end") {
                Ok(line)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        });
        exchanges.push(recorded(Exchange::new(call), result.await, start));
        if exchanges.last().is_some_and(|exchange| exchange.error.is_some()) {
            break;
        }
    }
    exchanges
}
