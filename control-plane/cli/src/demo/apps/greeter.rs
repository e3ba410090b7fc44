//! TCP service that speaks first, as mail and database servers do: a banner, then each line back.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// What it says before the client has sent a byte.
pub(crate) const BANNER: &str = "220 greeter ready\r\n";
/// Longest line it gives back.
const LINE_MAX: u64 = 64 * 1024;

pub(super) async fn serve(stream: TcpStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(BANNER.as_bytes()).await?;
    loop {
        let mut line = Vec::new();
        (&mut stream).take(LINE_MAX).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            break;
        }
        if line.trim_ascii_end().eq_ignore_ascii_case(b"quit") {
            stream.write_all(b"221 bye\r\n").await?;
            break;
        }
        let mut reply = b"250 ".to_vec();
        reply.extend_from_slice(&line);
        stream.write_all(&reply).await?;
    }
    stream.shutdown().await
}
