//! Connections to the control plane: dialled, authenticated, and only then spoken on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, ClientConnection};
use signet_identity::{
    ALPN_CONTROL, Dating, MAX_CHAIN, Peer, SpiffeId, VerifyError, attestation_binding, control_client_config,
    dated_client_config, dial_name, expect, peer,
};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::clock;
use crate::config::HostPort;
use crate::control::{Dial, Identity, jitter};

/// How long connecting, handshake included, may take: a satellite link with losses needs some seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one of several addresses may take, so that one that swallows packets does not use up the time for all.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a silent connection is asked whether it lives, and how long the answer may take: half-open connections
/// are found within half a minute.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the control plane is.
pub(super) struct ControlPlane {
    address: HostPort,
    dial: Dial,
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub(super) enum ConnectError {
    #[error("the control plane cannot be reached: {0}")]
    Dial(std::io::Error),
    #[error("the handshake failed: {}", reason(.0))]
    Handshake(std::io::Error),
    #[error("HTTP/2 could not be started: {0}")]
    Http2(#[from] tonic::transport::Error),
    #[error("the server is not the control plane: {0}")]
    Identity(#[from] VerifyError),
    #[error("the server is {0}, which is not a control plane")]
    NotControlPlane(signet_identity::SpiffeId),
    #[error("no connection within 10 s")]
    Timeout,
    #[error("the connection cannot be set up: {0}")]
    Tls(#[from] signet_identity::TlsError),
}

/// What our own verifier objected to, in its words; anything else in the library's.
fn reason(error: &std::io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(objection))) => {
            objection.0.to_string()
        }
        Some(rustls::Error::InvalidCertificate(
            rustls::CertificateError::Expired | rustls::CertificateError::NotValidYet,
        )) => {
            format!("{error}, {}", clock::told())
        }
        _ => error.to_string(),
    }
}

impl ControlPlane {
    pub(super) fn new(address: HostPort, dial: Dial) -> Self {
        Self { address, dial }
    }

    /// A connection authenticated by the pin alone, and what was learned from its handshake.
    pub(super) async fn by_pin(&self, pin: [u8; 32]) -> Result<(Channel, Server), ConnectError> {
        let config = dated_client_config(pin, None, &[ALPN_CONTROL], dating())?;
        self.open(config, |connection| {
            let peer = peer(connection)?;
            if !peer.id().is_control_plane() {
                return Err(ConnectError::NotControlPlane(peer.id().clone()));
            }
            let shown = connection.peer_certificates().unwrap_or_default();
            let root = signet_identity::root_by_pin(shown, pin)?;
            let shown = shown.iter().take(MAX_CHAIN).map(|shown| shown.clone().into_owned()).collect();
            let binding = attestation_binding(connection)?;
            Ok(Server { peer, root, chain: shown, binding })
        })
        .await
    }

    /// A connection on which both sides have shown their SVIDs.
    pub(super) async fn as_identity(&self, identity: &Identity) -> Result<Channel, ConnectError> {
        Ok(self.as_identity_to(identity).await?.0)
    }

    /// The same, and which control plane of the trust domain that is: the one that gave the identity, or another area's, or the
    /// origin's, for a device that moved. Only the root certifies them.
    pub(super) async fn as_identity_to(
        &self,
        identity: &Identity,
    ) -> Result<(Channel, SpiffeId), ConnectError> {
        // No other trust domain has a say about this one's control plane.
        let bundle = identity.bundle.alone();
        let config = control_client_config(&identity.tls, &bundle, &[ALPN_CONTROL], dating())?;
        self.open(config, |connection| {
            let peer = peer(connection)?;
            if !peer.id().is_control_plane() {
                expect(&peer, std::slice::from_ref(&identity.control_plane))?;
            }
            Ok(peer.id().clone())
        })
        .await
    }

    /// The first of its addresses that answers, from any one on: proxies spread over replicas, and one that accepts and
    /// then fails is not everybody's first again.
    async fn reach(&self) -> std::io::Result<TcpStream> {
        let mut addresses = self.address.resolve().await?;
        let count = addresses.len();
        let first = (jitter() * count as f64) as usize;
        addresses.rotate_left(first.min(count.saturating_sub(1)));
        let mut failed = None;
        for address in addresses {
            let patience = if count > 1 { DIAL_TIMEOUT } else { CONNECT_TIMEOUT };
            match tokio::time::timeout(patience, (self.dial.0)(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failed = Some(error),
                Err(_) => failed = Some(std::io::ErrorKind::TimedOut.into()),
            }
        }
        Err(failed.unwrap_or_else(|| std::io::ErrorKind::NotFound.into()))
    }

    async fn open<P>(
        &self,
        mut config: ClientConfig,
        check: impl FnOnce(&ClientConnection) -> Result<P, ConnectError>,
    ) -> Result<(Channel, P), ConnectError> {
        config.time_provider = Arc::new(clock::Handshakes);
        let opening = async {
            let stream = self.reach().await.map_err(ConnectError::Dial)?;
            let connector = TlsConnector::from(Arc::new(config));
            let stream = connector.connect(dial_name(), stream).await.map_err(ConnectError::Handshake)?;
            let proof = check(stream.get_ref().1)?;
            if let Ok(server) = peer(stream.get_ref().1) {
                clock::passed(server.not_before());
            }
            Ok((http2(stream).await?, proof))
        };
        tokio::time::timeout(CONNECT_TIMEOUT, opening).await.map_err(|_| ConnectError::Timeout)?
    }
}

/// A control plane's certificate tells the time to a machine that has heard nothing better since it started.
fn dating() -> Dating {
    if clock::asks_authority() { Dating::AuthoritysWord } else { Dating::OwnClock }
}

/// Who answered under a pin.
pub(super) struct Server {
    pub(super) peer: Peer,
    pub(super) root: rustls_pki_types::CertificateDer<'static>,
    /// Its certificates and those by which older roots vouch for its own.
    pub(super) chain: Vec<rustls_pki_types::CertificateDer<'static>>,
    /// What evidence is bound to that is good for this connection alone.
    pub(super) binding: [u8; 32],
}

/// Speaks HTTP/2 on this connection, and never on another: tonic would connect again by itself, unauthenticated by us.
async fn http2(stream: TlsStream<TcpStream>) -> Result<Channel, tonic::transport::Error> {
    let once = Mutex::new(Some(stream));
    let connector = tower::service_fn(move |_| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        let stream =
            stream.map(TokioIo::new).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
        std::future::ready(stream)
    });
    Endpoint::from_static("http://control-plane.invalid")
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
}
