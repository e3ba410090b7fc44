//! Plain clients for the demonstration's apps: `signet app call …`.
//!
//! Each makes a fixed series of calls and yields a [`Transcript`]. The HTTP clients work on the bare socket, so
//! what the transcript shows is what arrived, header case included.

use std::io;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::net::TcpStream;

mod greeter;
mod grpc;
mod http1;
mod line;
mod load;
mod rest;
mod sse;
mod tcp;
mod transcript;

pub use load::{Load, LoadReport};
pub use transcript::{Exchange, Payload, Timing, Transcript};

/// Where to call.
#[derive(Debug, Clone, Args)]
pub struct To {
    /// Host and port to connect to; also the Host header
    #[arg(long = "to", value_name = "HOST:PORT")]
    pub address: String,
    /// Seconds until a call that has not ended counts as failed
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub timeout: u64,
}

/// One of the clients.
#[derive(Debug, Clone, Subcommand)]
pub enum Client {
    /// The REST service: create, read, list, replace, delete, large bodies both ways, errors
    Rest(To),
    /// GET requests with an EDN body
    GetWithBody(To),
    /// One HTTP/1.1 request of your own
    Http(http1::OneRequest),
    /// gRPC: unary, large, streaming, an error, an unknown method
    Grpc(To),
    /// A line, an answer, many bytes, half-close, the digest of all
    Line(To),
    /// Waits for the banner, then speaks
    Greeter(To),
    /// Reads an event stream and notes when each event came
    Sse(sse::Events),
    /// Sends some bytes, if any, and reads until the other side closes
    Tcp(tcp::Opaque),
    /// Calls again and again and counts failures
    Load(Load),
}

/// What a client has to show.
#[derive(Debug, serde::Serialize)]
#[serde(untagged)]
pub enum Shown {
    /// Of a client that makes a series of calls.
    Transcript(Transcript),
    /// Of the load client.
    Load(LoadReport),
}

impl Shown {
    /// Whether every call ended as calls should: a refusal over HTTP is an answer, a reset is not.
    pub fn is_complete(&self) -> bool {
        match self {
            Self::Transcript(transcript) => {
                transcript.exchanges.iter().all(|exchange| exchange.error.is_none())
            }
            Self::Load(report) => report.failed == 0 && report.ok > 0,
        }
    }
}

impl Client {
    /// Makes the calls. What goes wrong on the way is part of what is shown.
    pub async fn run(self) -> Shown {
        let (name, exchanges) = match self {
            Self::Rest(to) => ("rest", rest::calls(&to).await),
            Self::GetWithBody(to) => ("get-with-body", rest::edn_calls(&to).await),
            Self::Http(request) => ("http", http1::one(&request).await),
            Self::Grpc(to) => ("grpc", grpc::calls(&to).await),
            Self::Line(to) => ("line", line::calls(&to).await),
            Self::Greeter(to) => ("greeter", greeter::calls(&to).await),
            Self::Sse(events) => ("sse", sse::calls(&events).await),
            Self::Tcp(opaque) => ("tcp", tcp::calls(&opaque).await),
            Self::Load(load) => return Shown::Load(load.run().await),
        };
        Shown::Transcript(Transcript { client: name.to_owned(), exchanges })
    }
}

impl To {
    const fn limit(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let stream = self.within(TcpStream::connect(&self.address)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn within<T>(&self, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        match tokio::time::timeout(self.limit(), work).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}
