//! Small servers in the shapes that fog and edge agents use: `signet app NAME --listen ADDR…`.
//!
//! They are plain programs: no certificate, no key, nothing of Signet. What they answer depends only on what
//! they are asked, never on the time or on who asks, so that two transcripts can be compared byte by byte.

use std::future::Future;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use clap::Subcommand;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

mod get_with_body;
mod greeter;
mod grpc;
mod http1;
mod line;
mod loopback_only;
mod rest;
mod sse;

pub use grpc::{Ask, Told};
pub(crate) use rest::pattern;

/// Most connections one app serves at a time: the demonstration's load uses far fewer.
const CONNECTIONS_MAX: usize = 1024;
/// Pause after a failed `accept`, so that a lack of file descriptors does not spin.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(50);

/// One of the servers.
#[derive(Debug, Clone, Subcommand)]
pub enum App {
    /// JSON REST service under /api, like CIMI
    Rest(Listen),
    /// HTTP service whose GET requests have an EDN body, like dataClay's proxy
    GetWithBody(Listen),
    /// gRPC service over HTTP/2 without TLS
    Grpc(Listen),
    /// Line-based TCP service that waits for the client
    Line(Listen),
    /// TCP service that speaks first
    Greeter(Listen),
    /// Event stream (Server-Sent Events)
    Sse(Listen),
    /// TCP service that listens on a loopback address alone
    LoopbackOnly(Listen),
}

/// Where an app listens.
#[derive(Debug, Clone, clap::Args)]
pub struct Listen {
    /// Address and port; may be repeated; port 0 takes a free one, told on standard output
    #[arg(long = "listen", required = true, value_name = "ADDR")]
    pub addresses: Vec<SocketAddr>,
}

impl App {
    /// Serves until the process is stopped; writes `listening ADDR` for each address once it is bound.
    ///
    /// # Errors
    /// An address that cannot be bound, or is not a loopback address where only such are served.
    pub async fn run(self) -> io::Result<()> {
        let mut serving = JoinSet::new();
        for &address in &self.listen().addresses {
            let listener = TcpListener::bind(address).await?;
            let bound = listener.local_addr()?;
            serving.spawn(self.serve(listener)?);
            let mut out = io::stdout().lock();
            writeln!(out, "listening {bound}")?;
            out.flush()?;
        }
        while serving.join_next().await.is_some() {}
        Ok(())
    }

    /// Serves one listener until the returned future is dropped.
    ///
    /// # Errors
    /// `LoopbackOnly` refuses a listener on any other address.
    pub fn serve(&self, listener: TcpListener) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        let app = self.clone();
        if matches!(app, Self::LoopbackOnly(_)) {
            loopback_only::check(listener.local_addr()?)?;
        }
        Ok(accept_each(listener, move |stream| {
            let app = app.clone();
            async move {
                // A client that goes away is no event worth a word: the next one is served.
                let _ = app.connection(stream).await;
            }
        }))
    }

    async fn connection(self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        match self {
            Self::Rest(_) => rest::serve(stream).await,
            Self::GetWithBody(_) => get_with_body::serve(stream).await,
            Self::Grpc(_) => grpc::serve(stream).await,
            Self::Line(_) => line::serve(stream).await,
            Self::Greeter(_) => greeter::serve(stream).await,
            Self::Sse(_) => sse::serve(stream).await,
            Self::LoopbackOnly(_) => loopback_only::serve(stream).await,
        }
    }

    const fn listen(&self) -> &Listen {
        match self {
            Self::Rest(listen)
            | Self::GetWithBody(listen)
            | Self::Grpc(listen)
            | Self::Line(listen)
            | Self::Greeter(listen)
            | Self::Sse(listen)
            | Self::LoopbackOnly(listen) => listen,
        }
    }
}

/// Runs `serve` for each connection, at most [`CONNECTIONS_MAX`] at a time.
async fn accept_each<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(serve(stream));
            }
            Err(_) => tokio::time::sleep(ACCEPT_BACK_OFF).await,
        }
    }
}

/// Lower-case hexadecimal SHA-256.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
