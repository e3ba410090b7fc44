//! A hand-made proxy towards the control plane.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use signet_cli::lab::Container;
use signet_cli::lab::mesh::intruder::Identity;
use signet_identity::{ALPN_CONTROL, client_config, dial_name};
use signet_sync::PROTOCOL;
use signet_sync::proto::sync::control_client::ControlClient;
use signet_sync::proto::sync::control_message::Message as FromControl;
use signet_sync::proto::sync::proxy_message::Message as FromProxy;
use signet_sync::proto::sync::{Ack, Claim, ClaimResult, ControlMessage, Hello, ProxyMessage};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::{Failure, wait_for};

/// How long the control plane may take to answer.
const LIMIT: Duration = Duration::from_secs(15);

/// A control stream with claims of one's own choice; it lasts until this is dropped.
#[derive(Debug)]
pub struct Claimant {
    verdicts: Arc<Mutex<Vec<ClaimResult>>>,
    _end: oneshot::Sender<()>,
}

impl Claimant {
    /// Opens the stream from inside a container and claims these places.
    ///
    /// # Errors
    /// The lab fails. That the stream is refused shows when verdicts are waited for.
    pub fn start(
        from: &Container,
        identity: &Identity,
        control_plane: SocketAddr,
        places: &[SocketAddr],
    ) -> Result<Self, Failure> {
        Self::start_with_key(from, identity, control_plane, places, Vec::new())
    }

    /// The same, with a key that callers may seal for.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_key(
        from: &Container,
        identity: &Identity,
        control_plane: SocketAddr,
        places: &[SocketAddr],
        sealing_key: Vec<u8>,
    ) -> Result<Self, Failure> {
        let config = client_config(&identity.tls, &identity.bundle, &[ALPN_CONTROL])?;
        let claims = places.iter().map(claim).collect();
        let (verdicts, (end, ended)) = (Arc::new(Mutex::new(Vec::new())), oneshot::channel());
        let noted = Arc::clone(&verdicts);
        from.namespace().thread("claimant", move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|error| error.to_string())?.block_on(async {
                tokio::select! {
                    outcome = hold(config, control_plane, claims, sealing_key, &noted) => outcome.map_err(|error| error.to_string()),
                    _ = ended => Ok(()),
                }
            })
        })?;
        Ok(Self { verdicts, _end: end })
    }

    /// Waits for the verdict on a place: accepted, or the code of the refusal.
    ///
    /// # Errors
    /// There is none.
    pub fn verdict(&self, on: SocketAddr) -> Result<Result<(), String>, Failure> {
        let wanted = claim(&on);
        let verdict = wait_for(&format!("a verdict on {on}"), || {
            let verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
            let newest = |verdict: &&ClaimResult| {
                verdict.address == wanted.address && verdict.port == u32::from(on.port())
            };
            verdicts.iter().rev().find(newest).cloned()
        })
        .map_err(|error| format!("{error}; there are {:?}", self.verdicts))?;
        Ok(if verdict.accepted { Ok(()) } else { Err(verdict.code) })
    }
}

/// A gRPC channel to the control plane over TLS of one's own choice. Call it inside a namespace.
///
/// # Errors
/// No connection, no TLS.
pub async fn channel(
    config: ClientConfig,
    control_plane: SocketAddr,
) -> Result<Channel, tonic::transport::Error> {
    let config = Arc::new(config);
    let connect = move |_| {
        let config = Arc::clone(&config);
        async move {
            let tcp = TcpStream::connect(control_plane).await?;
            TlsConnector::from(config).connect(dial_name(), tcp).await.map(TokioIo::new)
        }
    };
    let endpoint =
        Endpoint::from_static("http://control-plane.invalid").timeout(LIMIT).connect_timeout(LIMIT);
    endpoint.connect_with_connector(tower::service_fn(connect)).await
}

fn claim(place: &SocketAddr) -> Claim {
    let address = match place.ip() {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    };
    Claim { address, ports: vec![place.port().into()] }
}

/// Follows the stream as a good proxy does: every section is acknowledged.
async fn hold(
    config: ClientConfig,
    control_plane: SocketAddr,
    claims: Vec<Claim>,
    sealing_key: Vec<u8>,
    verdicts: &Mutex<Vec<ClaimResult>>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (sender, receiver) = mpsc::channel(16);
    let say = |message| sender.send(ProxyMessage { message: Some(message) });
    let version = "by hand".to_owned();
    say(FromProxy::Hello(Hello {
        protocol: PROTOCOL,
        min_protocol: PROTOCOL,
        version,
        have: Vec::new(),
        claims,
        sealing_key,
    }))
    .await?;
    let mut client = ControlClient::new(channel(config, control_plane).await?);
    let mut messages = client.connect(ReceiverStream::new(receiver)).await?.into_inner();
    while let Some(ControlMessage { message }) = messages.message().await? {
        match message {
            Some(FromControl::Section(section)) => {
                let (name, epoch, counter) = (section.name, section.epoch, section.counter);
                say(FromProxy::Ack(Ack { name, epoch, counter })).await?;
            }
            Some(FromControl::ClaimResult(verdict)) => {
                verdicts.lock().unwrap_or_else(PoisonError::into_inner).push(verdict);
            }
            _ => {}
        }
    }
    Ok(())
}
