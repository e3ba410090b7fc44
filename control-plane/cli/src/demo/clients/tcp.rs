//! Bytes to a port and whatever comes back: for ports that should, or should not, be reached.

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::To;
use super::line::recorded;
use super::transcript::Exchange;

/// Most bytes read back.
const ANSWER_MAX: u64 = 1024 * 1024;

/// What to send where.
#[derive(Debug, Clone, clap::Args)]
pub struct Opaque {
    #[command(flatten)]
    to: To,
    /// Sent first; then the sending side is closed
    #[arg(long, default_value = "", value_name = "TEXT")]
    send: String,
}

pub(super) async fn calls(opaque: &Opaque) -> Vec<Exchange> {
    let start = Instant::now();
    let result = opaque.to.within(async {
        let mut stream = opaque.to.connect().await?;
        stream.write_all(opaque.send.as_bytes()).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
        Ok(answer)
    });
    vec![recorded(Exchange::new("send and read to the end"), result.await, start)]
}
