//! Mutual TLS with another sidecar, on the destination's own port.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use signet_identity::{SpiffeId, dial_name, expect};
use signet_policy::Refusal;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::channel::Channel;
use crate::clock;
use crate::prefixed::Prefixed;
use crate::ring::Direction;
use crate::snapshot::Credentials;
use crate::sockets;
use crate::worker::Worker;

/// How long a handshake may take: two round trips on a bad radio link, with a retransmission.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// An authenticated, encrypted connection to another sidecar.
pub(crate) type MeshStream = TlsStream<Prefixed>;

/// Which of the mesh's protocols a connection is opened for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Alpn {
    Http1,
    Http2,
    Records,
}

/// Opens a connection to the sidecar in front of `address`, which must be one of `expected`.
pub(crate) async fn dial(
    worker: &Worker,
    address: SocketAddr,
    expected: &[SpiffeId],
    alpn: Alpn,
) -> Result<(MeshStream, Rc<Channel>), Refusal> {
    let credentials = worker.shared.credentials().ok_or(Refusal::NotReady)?;
    let tcp = sockets::dial(address, worker.shared.config.exempt).await.map_err(|error| {
        tracing::debug!(%address, %error, "destination cannot be reached");
        Refusal::UpstreamUnreachable
    })?;
    let connector = TlsConnector::from(credentials.client_config(alpn).clone());
    let handshake = connector.connect(dial_name(), Prefixed::new(tcp));
    let handshake = worker.shared.handshakes.make(handshake.into_future());
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => TlsStream::from(stream),
        Ok(Err(error)) => return Err(handshake_refusal(address, &error)),
        Err(_) => return Err(Refusal::UpstreamTimeout),
    };
    let channel = established(worker, &credentials, &stream, Direction::Outbound)?;
    if let Err(error) = expect(&channel.peer, expected) {
        tracing::warn!(%address, %error, "the workload at this address is not the expected one");
        return Err(Refusal::PeerIdentityMismatch);
    }
    Ok((stream, channel))
}

/// Accepts a connection whose ClientHello offers a mesh protocol.
pub(crate) async fn accept(worker: &Worker, stream: Prefixed) -> Result<(MeshStream, Rc<Channel>), Refusal> {
    let credentials = worker.shared.credentials().ok_or(Refusal::NotReady)?;
    let handshake = TlsAcceptor::from(credentials.server_config().clone()).accept(stream);
    let handshake = worker.shared.handshakes.make(handshake.into_future());
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => TlsStream::from(stream),
        Ok(Err(error)) => {
            tracing::info!(%error, "caller could not be authenticated, judged {}", clock::told());
            return Err(Refusal::PeerUnverified);
        }
        Err(_) => return Err(Refusal::UpstreamTimeout),
    };
    let channel = established(worker, &credentials, &stream, Direction::Inbound)?;
    Ok((stream, channel))
}

fn established(
    worker: &Worker,
    credentials: &Credentials,
    stream: &MeshStream,
    direction: Direction,
) -> Result<Rc<Channel>, Refusal> {
    let channel =
        Channel::new(credentials, stream, &worker.shared.metrics.mesh_connections).map_err(|error| {
            tracing::warn!(%error, "authenticated connection has no usable identity");
            Refusal::PeerUnverified
        })?;
    // It has nothing to say here: whoever speaks as one has stolen its keys.
    if channel.peer.id().is_control_plane() {
        tracing::warn!(peer = %channel.peer.id(), "a control plane's identity is nobody between sidecars");
        return Err(Refusal::PeerUnverified);
    }
    channel.check_trust(&worker.shared.snapshot())?;
    worker.shared.metrics.handshakes.inc(direction);
    Ok(Rc::new(channel))
}

/// A peer that fails in TLS is told from one that is not there.
fn handshake_refusal(address: SocketAddr, error: &io::Error) -> Refusal {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    tracing::warn!(%address, %error, "no authenticated connection, judged {}", clock::told());
    match tls {
        Some(_) => Refusal::PeerUnverified,
        None => Refusal::UpstreamUnreachable,
    }
}
