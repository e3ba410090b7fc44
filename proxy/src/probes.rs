//! Probes of an app that are done for the kubelet, which has no identity and so cannot reach the app in a strict mesh.
//!
//! `GET /probe/CONTAINER/KIND` on the admin port does the probe that the setting `SIGNET_PROBES` has under
//! `CONTAINER/KIND`, and nothing else: whoever asks chooses neither address nor path, and gets a status, never a body.
//! The app is dialled at the address that the question came to, so what listens on loopback alone fails as it would for
//! the kubelet. However many ask at once, one probe of a name is under way, and all of them get its outcome.

mod grpc;
mod tls;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use crate::capture::Exempt;
use crate::sockets;

/// Longest text of the setting: what the kernel takes for one variable.
const TEXT_MAX: usize = 128 * 1024;
/// Most probes: three of each of 64 containers.
const PROBES_MAX: usize = 192;
/// Most header fields of one probe.
const FIELDS_MAX: usize = 32;
/// The longest a probe may take, in seconds; kubelets ask again long before.
const SECONDS_MAX: u64 = 60;
/// The largest head of an app's answer.
const HEAD_MAX: usize = 64 * 1024;

/// The setting cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ProbesError {
    /// A probe that cannot be done.
    #[error("probe `{name}`: {reason}")]
    Probe {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No JSON of this form.
    #[error("{0}")]
    Syntax(String),
    /// Too much of it.
    #[error("there are more than {PROBES_MAX} probes or {TEXT_MAX} bytes")]
    TooMany,
}

/// Why a probe failed. The texts go into the kubelet's events, so they say nothing of the app.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum Failed {
    /// It answered with something that is no success.
    #[error("the app answered with status {0}")]
    Status(u16),
    /// It does not listen, or does not speak as expected.
    #[error("the app does not answer as the probe expects")]
    Unanswered,
    /// It took longer than `timeoutSeconds`.
    #[error("the app did not answer in time")]
    TimedOut,
}

/// All probes of a pod, by `CONTAINER/KIND`.
#[derive(Debug, Default)]
pub struct Probes(BTreeMap<String, Probe>);

#[derive(Debug)]
struct Probe {
    way: Way,
    timeout: Duration,
    /// When the last one ended, and how.
    last: Mutex<Option<(Instant, Result<(), Failed>)>>,
}

#[derive(Debug)]
enum Way {
    Grpc { port: u16, service: String },
    Http { port: u16, tls: bool, request: Box<Request<()>> },
    Tcp { port: u16 },
}

/// A probe as Kubernetes writes it, its port as a number.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Written {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    timeout_seconds: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct HttpGet {
    port: u16,
    path: String,
    scheme: String,
    http_headers: Vec<Field>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Field {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TcpSocket {
    port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grpc {
    port: u16,
    service: String,
}

impl FromStr for Probes {
    type Err = ProbesError;

    fn from_str(text: &str) -> Result<Self, ProbesError> {
        if text.len() > TEXT_MAX {
            return Err(ProbesError::TooMany);
        }
        let written: BTreeMap<String, Written> =
            serde_json::from_str(text).map_err(|error| ProbesError::Syntax(error.to_string()))?;
        if written.len() > PROBES_MAX {
            return Err(ProbesError::TooMany);
        }
        let read = |(name, written): (String, Written)| match Probe::read(written) {
            Ok(probe) => Ok((name, probe)),
            Err(reason) => Err(ProbesError::Probe { name, reason }),
        };
        written.into_iter().map(read).collect::<Result<_, _>>().map(Self)
    }
}

impl Probes {
    /// The longest that any of them may take.
    pub(crate) fn longest(&self) -> Duration {
        self.0.values().map(|probe| probe.timeout).max().unwrap_or_default()
    }

    /// Does the probe of this name; `None` if there is none.
    pub(crate) async fn ask(
        &self,
        name: &str,
        address: IpAddr,
        exempt: Exempt,
    ) -> Option<Result<(), Failed>> {
        let probe = self.0.get(name)?;
        let asked = Instant::now();
        let mut last = probe.last.lock().await;
        if let Some((_, outcome)) = last.filter(|(ended, _)| *ended >= asked) {
            return Some(outcome);
        }
        let outcome = tokio::time::timeout(probe.timeout, probe.way.ask(address, exempt)).await;
        let outcome = outcome.unwrap_or(Err(Failed::TimedOut));
        *last = Some((Instant::now(), outcome));
        Some(outcome)
    }
}

impl Probe {
    fn read(written: Written) -> Result<Self, &'static str> {
        let way = match (written.http_get, written.tcp_socket, written.grpc) {
            (Some(http), None, None) => {
                let tls = match http.scheme.as_str() {
                    "HTTP" => false,
                    "HTTPS" => true,
                    _ => return Err("`scheme` is neither HTTP nor HTTPS"),
                };
                Way::Http { port: http.port, tls, request: Box::new(request(&http)?) }
            }
            (None, Some(tcp), None) => Way::Tcp { port: tcp.port },
            (None, None, Some(grpc)) if grpc.service.len() <= grpc::SERVICE_MAX => {
                Way::Grpc { port: grpc.port, service: grpc.service }
            }
            (None, None, Some(_)) => return Err("`service` is too long"),
            _ => return Err("exactly one of `httpGet`, `tcpSocket` and `grpc` is needed"),
        };
        if !(1..=SECONDS_MAX).contains(&written.timeout_seconds) {
            return Err("`timeoutSeconds` is not 1 to 60");
        }
        let timeout = Duration::from_secs(written.timeout_seconds);
        Ok(Self { way, timeout, last: Mutex::default() })
    }
}

/// The kubelet's request: its fields may be replaced, `Host` included.
fn request(of: &HttpGet) -> Result<Request<()>, &'static str> {
    if of.http_headers.len() > FIELDS_MAX {
        return Err("there are more than 32 `httpHeaders`");
    }
    let uri: Uri = of.path.parse().map_err(|_| "`path` is no path")?;
    if !of.path.starts_with('/') || uri.authority().is_some() {
        return Err("`path` is no path");
    }
    let mut request = Request::new(());
    *request.uri_mut() = uri;
    let fields = request.headers_mut();
    fields.insert(header::USER_AGENT, HeaderValue::from_static("kube-probe/signet"));
    fields.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    for field in &of.http_headers {
        let name = HeaderName::from_str(&field.name).map_err(|_| "a header's name is none")?;
        let value = HeaderValue::from_str(&field.value).map_err(|_| "a header's value is none")?;
        if [header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::UPGRADE]
            .contains(&name)
        {
            return Err("a header would change the framing of the request");
        }
        fields.insert(name, value);
    }
    fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

impl Way {
    async fn ask(&self, address: IpAddr, exempt: Exempt) -> Result<(), Failed> {
        let dial = async |port| {
            sockets::dial(SocketAddr::new(address, port), exempt).await.map_err(|_| Failed::Unanswered)
        };
        match self {
            Self::Grpc { port, service } => grpc::ask(dial(*port).await?, service).await,
            Self::Http { port, tls: false, request } => {
                ask_http(dial(*port).await?, request, address, *port).await
            }
            Self::Http { port, tls: true, request } => {
                let stream: TcpStream = dial(*port).await?;
                ask_http(tls::open(stream, address).await?, request, address, *port).await
            }
            Self::Tcp { port } => dial(*port).await.map(drop),
        }
    }
}

/// Asks and drops the connection once the status is known. A redirection counts as success and is not followed.
async fn ask_http<I>(io: I, request: &Request<()>, address: IpAddr, port: u16) -> Result<(), Failed>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    let handshake = builder.max_buf_size(HEAD_MAX).handshake(TokioIo::new(io));
    let (mut sender, connection) = handshake.await.map_err(|_| Failed::Unanswered)?;
    let mut request = request.clone().map(|()| Empty::<Bytes>::new());
    let host = HeaderValue::from_str(&SocketAddr::new(address, port).to_string());
    if let Ok(host) = host {
        request.headers_mut().entry(header::HOST).or_insert(host);
    }
    let answer = beside(connection, sender.send_request(request)).await;
    succeeded(answer.map_err(|_| Failed::Unanswered)?.status())
}

/// Runs a connection for as long as an exchange on it lasts. The exchange learns by itself when the connection ends.
async fn beside<T>(connection: impl Future, exchange: impl Future<Output = T>) -> T {
    let connection = async {
        connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        outcome = exchange => outcome,
        never = connection => match never {},
    }
}

/// What the kubelet takes for success.
fn succeeded(status: StatusCode) -> Result<(), Failed> {
    if status.is_success() || status.is_redirection() { Ok(()) } else { Err(Failed::Status(status.as_u16())) }
}

#[cfg(test)]
mod tests;
