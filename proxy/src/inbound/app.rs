//! The application beside us, dialled at the address its caller meant.
//!
//! Never at loopback: what listens only there stays unreachable, and an application's rule that
//! trusts 127.0.0.1 is never met.

use std::net::SocketAddr;

use signet_policy::Refusal;
use tokio::net::TcpStream;

use crate::http_client;
use crate::http_server::Version;
use crate::pool::{Connection, Lease};
use crate::sockets;
use crate::worker::{AppKey, Worker};

/// A connection to the application: one that was opened to see who speaks first, else a new one.
async fn connect(worker: &Worker, key: &AppKey) -> Result<TcpStream, Refusal> {
    match worker.shared.parked.take(key.address, key.caller.as_ref()) {
        Some(stream) => Ok(stream),
        None => dial(worker, key.address).await,
    }
}

/// A new connection to the application.
pub(crate) async fn dial(worker: &Worker, address: SocketAddr) -> Result<TcpStream, Refusal> {
    if address.ip().is_loopback() || !worker.own.contains(address.ip()) {
        return Err(Refusal::LoopDetected);
    }
    sockets::dial(address, worker.shared.config.exempt).await.map_err(|error| {
        tracing::info!(%address, %error, "application cannot be reached");
        Refusal::UpstreamUnreachable
    })
}

/// A place for one HTTP request.
pub(crate) async fn checkout(worker: &Worker, key: &AppKey) -> Result<Lease<AppKey, ()>, Refusal> {
    // Boxed: a new connection is rare, and would make the task of every request larger.
    let open = || {
        Box::pin(async {
            let stream = connect(worker, key).await?;
            let sender =
                http_client::open(stream, key.version).await.map_err(|_| Refusal::UpstreamUnreachable)?;
            Ok(Connection { sender, context: (), usable_until: None })
        })
    };
    match key.version {
        Version::Http1 => worker.apps.checkout_http1(key, open).await,
        Version::Http2 => worker.apps.checkout_http2(key, open).await,
    }
}
