//! Line-based TCP service that waits for the client, and whose end matters.
//!
//! It answers the first line with one line of JSON, then reads until the client closes its sending side and
//! answers with the digest of all it has read: a proxy that loses a half-close, or a byte, shows.

use std::io;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::hex;

/// Longest first line.
const LINE_MAX: u64 = 64 * 1024;
/// Bytes read at a time after it.
const READ: usize = 16 * 1024;

pub(super) async fn serve(stream: TcpStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut first = Vec::new();
    (&mut stream).take(LINE_MAX).read_until(b'\n', &mut first).await?;
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    digest.update(&first);
    let mut bytes = first.len();
    let text = String::from_utf8_lossy(first.trim_ascii_end());
    answer(&mut stream, &json!({ "ok": true, "line": text })).await?;

    let mut block = vec![0; READ];
    loop {
        let read = stream.read(&mut block).await?;
        if read == 0 {
            break;
        }
        digest.update(&block[..read]);
        bytes += read;
    }
    answer(&mut stream, &json!({ "bytes": bytes, "sha256": hex(digest.finish().as_ref()) })).await?;
    stream.shutdown().await
}

async fn answer(stream: &mut BufReader<TcpStream>, value: &serde_json::Value) -> io::Result<()> {
    stream.write_all(format!("{value}\n").as_bytes()).await
}
