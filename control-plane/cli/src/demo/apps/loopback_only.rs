//! A service that its owner meant for this host alone, such as a database with `127.0.0.1 trust`.

use std::io;
use std::net::SocketAddr;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// What it tells whoever reaches it; a test that reads this from elsewhere has found a hole.
pub(crate) const SECRET: &str = "loopback secret\n";

pub(super) fn check(address: SocketAddr) -> io::Result<()> {
    if address.ip().is_loopback() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{address} is not a loopback address")))
    }
}

pub(super) async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(SECRET.as_bytes()).await?;
    stream.shutdown().await
}
