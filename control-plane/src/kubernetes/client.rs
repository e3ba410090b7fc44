//! The API server of Kubernetes: one HTTP/1.1 connection over TLS 1.3 for each call.
//!
//! The server is proven by its name under the cluster's authority, we by the token of our service account. Both files are read
//! for each connection, because the kubelet replaces them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use rustls_pki_types::ServerName;
use serde_json::Value;
use signet_identity::{authorities, outside_client_config};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// How long connecting may take, handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one answer may take. A review has a proxy waiting, which gives up after 15 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of one answer: a page of a list, whose objects have at most 1.5 MiB each and a few kilobytes as a rule.
const ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of the cluster's authorities, and of our own token.
const FILE_BYTES: u64 = 1024 * 1024;
/// A server that went away without a word is noticed within a minute.
const KEEPALIVE_IDLE_SECONDS: u32 = 30;
const KEEPALIVE_INTERVAL_SECONDS: u32 = 10;
const KEEPALIVE_PROBES: u32 = 3;

/// How a change is written: RFC 7396.
pub(crate) const MERGE_PATCH: &str = "application/merge-patch+json";
/// How a change is written: RFC 6902.
pub(crate) const JSON_PATCH: &str = "application/json-patch+json";
const JSON: &str = "application/json";

/// Where the API server is, and what proves it to us and us to it.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    host: String,
    port: u16,
    folder: PathBuf,
}

/// An answer that goes on, chunk by chunk.
pub(crate) struct Stream {
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
}

impl Client {
    /// `folder` holds `ca.crt` and `token`, as Kubernetes mounts them into a pod.
    pub(crate) fn new(host: String, port: u16, folder: PathBuf) -> Self {
        Self { host, port, folder }
    }

    /// Reads what is at a path.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.call(Method::GET, path, JSON, None).await
    }

    /// Makes an object, or has one judged.
    pub(crate) async fn create(&self, path: &str, object: &Value) -> Result<Value, ClientError> {
        self.call(Method::POST, path, JSON, Some(object)).await
    }

    /// Changes an object; `form` is [`MERGE_PATCH`] or [`JSON_PATCH`].
    pub(crate) async fn patch(
        &self,
        path: &str,
        form: &'static str,
        change: &Value,
    ) -> Result<Value, ClientError> {
        self.call(Method::PATCH, path, form, Some(change)).await
    }

    /// Removes an object.
    pub(crate) async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.call(Method::DELETE, path, JSON, None).await.map(drop)
    }

    /// Opens an answer that goes on until the server ends it.
    pub(crate) async fn stream(&self, path: &str) -> Result<Stream, ClientError> {
        let opening = self.send(Method::GET, path, JSON, None);
        let (response, connection) = tokio::time::timeout(CALL_TIMEOUT, opening).await??;
        if response.status() != StatusCode::OK {
            return Err(refused(response).await);
        }
        Ok(Stream { body: response.into_body(), _connection: connection })
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        form: &'static str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        let calling = async {
            let (response, _connection) = self.send(method, path, form, body).await?;
            if !response.status().is_success() {
                return Err(refused(response).await);
            }
            let bytes = whole(response.into_body()).await?;
            serde_json::from_slice(&bytes).map_err(|_| ClientError::Malformed)
        };
        tokio::time::timeout(CONNECT_TIMEOUT + CALL_TIMEOUT, calling).await?
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        form: &'static str,
        body: Option<&Value>,
    ) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), ClientError> {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, self.connect()).await??;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // What goes wrong on the connection, the request says.
        let connection = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
        let bytes = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.authority())
            .header(ACCEPT, JSON)
            .header(CONTENT_TYPE, form)
            .header(USER_AGENT, concat!("signet-control-plane/", env!("CARGO_PKG_VERSION")))
            .header(AUTHORIZATION, self.bearer().await?)
            .body(Full::new(bytes))
            .map_err(|_| ClientError::Malformed)?;
        Ok((sender.send_request(request).await?, connection))
    }

    async fn connect(&self) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ClientError> {
        let roots = self.file("ca.crt").await?;
        let roots = authorities(&roots).map_err(|error| self.unusable("ca.crt", error))?;
        let config = outside_client_config(roots, &[b"http/1.1"]).map_err(|_| ClientError::Tls)?;
        let name = ServerName::try_from(self.host.clone()).map_err(|_| ClientError::Tls)?;
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let _ = stream.set_nodelay(true);
        keep_alive(&stream);
        Ok(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
    }

    async fn bearer(&self) -> Result<HeaderValue, ClientError> {
        let token = self.file("token").await?;
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
            .map_err(|_| self.unusable("token", "it is no token"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    async fn file(&self, name: &'static str) -> Result<String, ClientError> {
        read(&self.folder.join(name)).await.map_err(|error| self.unusable(name, error))
    }

    fn unusable(&self, name: &str, error: impl ToString) -> ClientError {
        ClientError::Credentials { path: self.folder.join(name), reason: error.to_string() }
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl Stream {
    /// The next bytes; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.body.frame().await.transpose()? {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}

async fn read(path: &Path) -> io::Result<String> {
    use tokio::io::AsyncReadExt as _;
    let mut text = String::new();
    tokio::fs::File::open(path).await?.take(FILE_BYTES).read_to_string(&mut text).await?;
    Ok(text)
}

/// What cannot be set is missed only when a server goes away in silence.
fn keep_alive(stream: &TcpStream) {
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_SECONDS);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_SECONDS);
    let _ = setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES);
}

async fn whole(body: Incoming) -> Result<Bytes, ClientError> {
    let collected = Limited::new(body, ANSWER_BYTES).collect().await;
    collected.map(|body| body.to_bytes()).map_err(|error| {
        if error.is::<LengthLimitError>() { ClientError::TooLarge } else { ClientError::Malformed }
    })
}

/// What the server says in a `Status`, or else its code alone.
async fn refused(response: Response<Incoming>) -> ClientError {
    /// The most characters of its message that are repeated.
    const MESSAGE_CHARS: usize = 300;
    let status = response.status();
    let body = whole(response.into_body()).await.unwrap_or_default();
    let said: Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = said["message"].as_str().unwrap_or_default();
    let message = message.chars().take(MESSAGE_CHARS).collect::<String>().escape_debug().to_string();
    ClientError::Status { status, message }
}

/// Why the API server gave no answer that can be used.
#[derive(Debug, Error)]
pub(crate) enum ClientError {
    #[error("{} cannot be used: {reason}", path.display())]
    Credentials { path: PathBuf, reason: String },
    #[error("the API server cannot be reached: {0}")]
    Connection(#[from] io::Error),
    #[error("the connection to the API server broke: {0}")]
    Http(#[from] hyper::Error),
    #[error("the API server gave an answer that is none of Kubernetes")]
    Malformed,
    #[error("the API server answered {status}: {message}")]
    Status { status: StatusCode, message: String },
    #[error("TLS to the API server cannot be set up")]
    Tls,
    #[error("the API server did not answer in time")]
    Timeout(#[from] tokio::time::error::Elapsed),
    #[error("the API server's answer is larger than {ANSWER_BYTES} bytes")]
    TooLarge,
}

impl ClientError {
    /// Whether the server answered with this status.
    pub(crate) fn is(&self, wanted: StatusCode) -> bool {
        matches!(self, Self::Status { status, .. } if *status == wanted)
    }
}
