//! One simulated proxy: the real protocol over real TLS and HTTP/2, with nothing behind it.
//!
//! It does what the proxy's control client does, at the same times: enrols with keys of its own, opens its stream with what it
//! holds, claims its address, answers every section, reports every ten seconds, and comes back with the same pauses.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use signet_identity::{
    ALPN_CONTROL, KeyRequest, SigningSvid, TlsSvid, TrustBundle, TrustDomain, backoff, client_config,
    dial_name, pinned_client_config,
};
use signet_signature::seal::SealingKey;
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::control_client::ControlClient;
use signet_sync::proto::sync::control_message::Message as Down;
use signet_sync::proto::sync::enrolment_client::EnrolmentClient;
use signet_sync::proto::sync::proxy_message::Message as Up;
use signet_sync::{MAX_MESSAGE_BYTES, MIN_PROTOCOL, PROTOCOL, Token, Version};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::board::{Board, Good};
use super::mesh::{Mesh, TRUST_DOMAIN};

// The times of the proxy's control client, see `proxy/src/control`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
const BACKOFF_ATTEMPTS: u32 = 4;
const SETTLED: Duration = Duration::from_secs(10);

/// Messages that wait for the connection, as of the proxy.
const OUTBOUND_MESSAGES: usize = 64;

/// Attempts at enrolment; the control plane has room for a number of strangers at a time.
const ENROL_ATTEMPTS: u32 = 20;

/// A proxy that has its certificates.
pub struct Proxy {
    address: IpAddr,
    tls: Arc<ClientConfig>,
    sealing_key: Vec<u8>,
    /// The key that signs policy, as it was told.
    pub policy_key: [u8; 32],
}

/// What ended a stream, or kept it from being opened: a kind for the counts, and a pause that was asked for.
struct Ended {
    kind: String,
    retry_after: Duration,
}

impl Ended {
    fn by(kind: impl Into<String>) -> Self {
        Self { kind: kind.into(), retry_after: Duration::ZERO }
    }
}

impl Proxy {
    /// Enrols the proxy of this number.
    ///
    /// # Errors
    /// In words why it got nothing.
    pub async fn enrol(number: usize, control: SocketAddr, token: &Token) -> Result<Self, String> {
        let address = Mesh::address(number);
        let mut attempt = 0;
        let response = loop {
            let (tls, signing) = (KeyRequest::new_tls(), KeyRequest::new_signing());
            let tls = tls.map_err(|error| error.to_string())?;
            let signing = signing.map_err(|error| error.to_string())?;
            match enrol(address, control, token, &tls, &signing).await {
                Ok(response) => break (response, tls, signing),
                Err(error) if attempt >= ENROL_ATTEMPTS => return Err(error),
                Err(_) => {}
            }
            tokio::time::sleep(backoff(attempt.min(BACKOFF_ATTEMPTS), jitter())).await;
            attempt += 1;
        };
        Self::from(address, response).map_err(|error| error.to_string())
    }

    fn from(
        address: IpAddr,
        (response, tls, signing): (wire::EnrolResponse, KeyRequest, KeyRequest),
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let bundle = TrustBundle::new(TrustDomain::parse(TRUST_DOMAIN)?, chain(response.roots))?;
        let tls = TlsSvid::new(chain(response.tls_chain), tls.key)?;
        let signing = SigningSvid::new(chain(response.signing_chain), signing.key)?;
        Ok(Self {
            address,
            tls: Arc::new(client_config(&tls, &bundle, &[ALPN_CONTROL])?),
            sealing_key: SealingKey::derive(signing.key.secret_der())?.public().to_vec(),
            policy_key: response.policy_key.as_slice().try_into()?,
        })
    }

    /// Follows the sections, for as long as the fleet lives.
    pub async fn live(self, control: SocketAddr, board: Arc<Board>) {
        let mut held = BTreeMap::new();
        let mut attempt = 0;
        loop {
            let begun = Instant::now();
            let ended = self.stream(control, &board, &mut held).await;
            board.failed(&ended.kind);
            if begun.elapsed() >= SETTLED {
                attempt = 0;
            }
            let pause = backoff(attempt.min(BACKOFF_ATTEMPTS), jitter());
            tokio::time::sleep(ended.retry_after + pause).await;
            attempt = attempt.saturating_add(1);
        }
    }

    async fn stream(
        &self,
        control: SocketAddr,
        board: &Board,
        held: &mut BTreeMap<String, Arc<Good>>,
    ) -> Ended {
        let (up, mut down) = match self.open(control, held).await {
            Ok(opened) => opened,
            Err(ended) => return ended,
        };
        let mut settled = false;
        let mut report = tokio::time::interval(REPORT_INTERVAL);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = loop {
            let sent = tokio::select! {
                received = down.message() => match received {
                    Ok(Some(message)) => match message.message {
                        Some(Down::Section(section)) => match take(section, board, held) {
                            Some(ack) => up.send(message_of(Up::Ack(ack))).await,
                            None => break Ended::by("a section that must not be"),
                        },
                        Some(Down::ClaimResult(result)) if result.accepted => {
                            if !std::mem::replace(&mut settled, true) {
                                board.settled.fetch_add(1, Ordering::AcqRel);
                            }
                            Ok(())
                        }
                        Some(Down::ClaimResult(result)) => break Ended::by(format!("claim {}", result.code)),
                        Some(Down::Goaway(goaway)) => {
                            let retry_after = Duration::from_millis(goaway.retry_after_ms);
                            break Ended { kind: format!("goaway {}", goaway.reason), retry_after };
                        }
                        Some(Down::ExplainQuery(_) | Down::Freshness(_)) | None => Ok(()),
                    },
                    Ok(None) => break Ended::by("stream closed"),
                    Err(status) => break Ended::by(refusal(&status)),
                },
                _ = report.tick() => up.send(message_of(Up::Status(status()))).await,
            };
            if sent.is_err() {
                break Ended::by("stream closed");
            }
        };
        if settled {
            board.settled.fetch_sub(1, Ordering::AcqRel);
        }
        ended
    }

    async fn open(
        &self,
        control: SocketAddr,
        held: &BTreeMap<String, Arc<Good>>,
    ) -> Result<(mpsc::Sender<wire::ProxyMessage>, Streaming<wire::ControlMessage>), Ended> {
        let opening = dial(self.address, control, self.tls.clone());
        let channel = tokio::time::timeout(CONNECT_TIMEOUT, opening).await;
        let channel = channel.map_err(|_| Ended::by("no connection within 10 s"))?.map_err(Ended::by)?;
        let have = held.values().map(|good| wire::SectionVersion {
            name: good.section.name.clone(),
            epoch: good.section.epoch,
            counter: good.section.counter,
            payload_sha256: good.sha256.clone(),
        });
        let hello = wire::Hello {
            protocol: PROTOCOL,
            min_protocol: MIN_PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            have: have.collect(),
            claims: vec![wire::Claim { address: octets(self.address), ports: Vec::new() }],
            sealing_key: self.sealing_key.clone(),
        };
        let (up, queue) = mpsc::channel(OUTBOUND_MESSAGES);
        let _ = up.try_send(message_of(Up::Hello(hello)));
        let mut client = ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let accepted = tokio::time::timeout(CALL_TIMEOUT, client.connect(ReceiverStream::new(queue))).await;
        let accepted = accepted.map_err(|_| Ended::by("no answer within 15 s"))?;
        Ok((up, accepted.map_err(|status| Ended::by(refusal(&status)))?.into_inner()))
    }
}

/// Takes a section; the answer to it, unless it must not be.
fn take(section: wire::Section, board: &Board, held: &mut BTreeMap<String, Arc<Good>>) -> Option<wire::Ack> {
    let version = Version::from(&section);
    let before = held.get(&section.name).map(|good| Version::from(&good.section));
    if before.is_some_and(|before| version < before) {
        board.fault(format!("{} went back to {version}", section.name));
        return None;
    }
    let good = match board.check(section) {
        Ok(good) => good,
        Err(error) => {
            board.fault(error);
            return None;
        }
    };
    let name = good.section.name.clone();
    if name == "policy" {
        board.answered(before.map_or(0, |before| before.counter), version.counter);
    }
    held.insert(name.clone(), good);
    Some(wire::Ack { name, epoch: version.epoch, counter: version.counter })
}

async fn enrol(
    address: IpAddr,
    control: SocketAddr,
    token: &Token,
    tls: &KeyRequest,
    signing: &KeyRequest,
) -> Result<wire::EnrolResponse, String> {
    let config =
        pinned_client_config(token.pin(), None, &[ALPN_CONTROL]).map_err(|error| error.to_string())?;
    let channel = tokio::time::timeout(CONNECT_TIMEOUT, dial(address, control, Arc::new(config))).await;
    let channel = channel.map_err(|_| "no connection within 10 s")?.map_err(str::to_owned)?;
    let request = wire::EnrolRequest {
        protocol: PROTOCOL,
        min_protocol: MIN_PROTOCOL,
        token_id: token.id().to_owned(),
        secret: token.secret().to_vec(),
        tls_csr: tls.csr.clone(),
        signing_csr: signing.csr.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    };
    let response = tokio::time::timeout(CALL_TIMEOUT, EnrolmentClient::new(channel).enrol(request)).await;
    let response = response.map_err(|_| "no answer within 15 s")?.map_err(|status| status.to_string())?;
    Ok(response.into_inner())
}

/// Connects from the proxy's own address and shakes hands. What failed, in a word.
async fn dial(source: IpAddr, control: SocketAddr, tls: Arc<ClientConfig>) -> Result<Channel, &'static str> {
    let connecting = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(source, 0))?;
        let stream = socket.connect(control).await?;
        stream.set_nodelay(true)?;
        Ok::<_, io::Error>(stream)
    };
    let stream = connecting.await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::ConnectionReset => "connection reset",
        _ => "no connection",
    })?;
    let shaken =
        TlsConnector::from(tls).connect(dial_name(), stream).await.map_err(|_| "handshake failed")?;
    let mut once = Some(TokioIo::new(shaken));
    let connector = tower::service_fn(move |_| {
        std::future::ready(once.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
    });
    Endpoint::from_static("http://control-plane.invalid")
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|_| "HTTP/2 not started")
}

/// The stable code of a refusal, or what broke.
fn refusal(status: &tonic::Status) -> String {
    let code = status.message().split(':').next().unwrap_or_default();
    let is_code = !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    if is_code { format!("refused {code}") } else { format!("stream broken ({:?})", status.code()) }
}

fn status() -> wire::Status {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = now.as_secs() + 3600;
    wire::Status {
        unix_ms: u64::try_from(now.as_millis()).unwrap_or_default(),
        capture_in_force: true,
        canary_ok: true,
        tls_not_after: seconds,
        signing_not_after: seconds,
        open_connections: 8,
        ..Default::default()
    }
}

fn message_of(message: Up) -> wire::ProxyMessage {
    wire::ProxyMessage { message: Some(message) }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn chain(ders: Vec<Vec<u8>>) -> Vec<CertificateDer<'static>> {
    ders.into_iter().map(CertificateDer::from).collect()
}

/// A number from 0 up to 1.
fn jitter() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        Err(_) => 0.5,
    }
}
