//! A hand-made peer: it speaks the mesh's protocols with its own hands, so that it can also speak them wrongly.
//!
//! [`Identity`] is what it has (enrolled for with a token, or issued by an authority of its own), [`Caller`] one
//! authenticated HTTP connection on which it signs as a sidecar would and then sends whatever it likes, [`Stream`] one
//! record stream. Everything asynchronous runs inside a namespace by [`inside`].

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use rustls_pki_types::CertificateDer;
use signet_identity::{
    ALPN_H1, Authority, IssueError, KeyRequest, RequestError, SigningSvid, SpiffeId, SvidError, TlsError,
    TlsSvid, TrustBundle, VerifyError, channel_id, client_config, dial_name, mac_keys, peer,
};
use signet_proxy::config::TokenSource;
use signet_proxy::control::{Control, ControlError, Dial, Settings};
use signet_signature::record::{RecordError, WriteError};
use signet_signature::{ChannelId, KeyError, MeshSigner, RequestView, SignError, sha256_header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

mod stream;

pub use stream::Stream;

use super::MeshError;
use crate::lab::Namespace;

/// How long anything of a peer may take.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest answer that is read.
const ANSWER_MAX: usize = 1024 * 1024;
/// Header fields of an answer.
const FIELDS_MAX: usize = 64;

/// Why the peer could not do what it wanted. A refusal over HTTP is an answer, not an error.
#[derive(Debug, thiserror::Error)]
pub enum IntruderError {
    /// The answer is not HTTP.
    #[error("answer cannot be read: {0}")]
    Answer(String),
    /// The connection failed, broke off or was reset; a refused certificate shows so too.
    #[error(transparent)]
    Broken(#[from] io::Error),
    /// The control plane did not enrol it.
    #[error(transparent)]
    Enrolment(#[from] ControlError),
    /// The authority did not issue.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The signing key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The message cannot be put in words.
    #[error("message is malformed: {0}")]
    Message(String),
    /// The namespace is gone or has no thread to give.
    #[error(transparent)]
    Mesh(#[from] Box<MeshError>),
    /// Records of the other side were refused.
    #[error("record refused: {0}")]
    Record(#[from] RecordError),
    /// The other side refused the stream with this code.
    #[error("stream refused: {0}")]
    Refused(String),
    /// The key request failed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The message cannot be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The certificates do not fit the keys.
    #[error(transparent)]
    Svid(#[from] SvidError),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The other side is not who it should be.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The records cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl IntruderError {
    /// Whether the connection was cut rather than closed: reset, or ended by a TLS alert.
    pub fn is_cut(&self) -> bool {
        matches!(self, Self::Broken(_))
    }
}

/// Runs asynchronous work on a thread inside a namespace and returns its result.
///
/// # Errors
/// The work's own, and [`IntruderError::Mesh`].
pub fn inside<R, F>(
    namespace: &Namespace,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<R, IntruderError>
where
    R: Send + 'static,
    F: Future<Output = Result<R, IntruderError>>,
{
    let body = move || -> Result<R, IntruderError> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work())
    };
    let thread = namespace.thread("intruder", body).map_err(|error| Box::new(MeshError::from(error)))?;
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Certificates and keys, and whom they make believe.
#[derive(Clone, Debug)]
pub struct Identity {
    /// For TLS.
    pub tls: TlsSvid,
    /// For messages.
    pub signing: SigningSvid,
    /// The roots it checks others by.
    pub bundle: TrustBundle,
}

impl Identity {
    /// Enrols with the control plane as a sidecar does, from inside a namespace.
    ///
    /// # Errors
    /// [`IntruderError::Enrolment`] for a malformed token, [`IntruderError::Broken`] when nothing came of it in time.
    pub fn enrol(from: &Namespace, control_plane: SocketAddr, token: String) -> Result<Self, IntruderError> {
        inside(from, move || async move {
            let token = Some(TokenSource::Text(token));
            let dial = Dial::new(TcpStream::connect);
            let control = Control::open(Settings {
                control_plane: control_plane.into(),
                token,
                tpm: None,
                state_dir: None,
                dial,
            })?;
            let joined = within(async { Ok(control.join().await) }).await?;
            let credentials =
                joined.credentials().load_full().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            let bundle = (*joined.snapshots().load().bundle).clone();
            Ok(Self { tls: credentials.tls.clone(), signing: credentials.signing.clone(), bundle })
        })
    }

    /// Has an authority of its own issue both certificates; it believes `bundle`.
    ///
    /// # Errors
    /// What issuing can fail with.
    pub fn issue(authority: &Authority, id: &SpiffeId, bundle: TrustBundle) -> Result<Self, IntruderError> {
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        let (tls, signing) = (KeyRequest::new_tls()?, KeyRequest::new_signing()?);
        let tls = TlsSvid::new(authority.issue_tls(&tls.csr, id, now - hour, now + hour)?, tls.key)?;
        let chain = authority.issue_signing(&signing.csr, id, now - hour, now + hour)?;
        Ok(Self { tls, signing: SigningSvid::new(chain, signing.key)?, bundle })
    }

    /// Its SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.tls.id
    }

    /// Opens TLS with a mesh protocol to an address.
    ///
    /// # Errors
    /// [`IntruderError::Broken`] and [`IntruderError::Tls`]. A certificate that the other side refuses may show only
    /// when something is read.
    pub async fn connect(
        &self,
        address: SocketAddr,
        alpn: &[u8],
    ) -> Result<TlsStream<TcpStream>, IntruderError> {
        let config = Arc::new(client_config(&self.tls, &self.bundle, &[alpn])?);
        within(async {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            TlsConnector::from(config).connect(dial_name(), tcp).await
        })
        .await
    }
}

/// A request before it is signed.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Method.
    pub method: String,
    /// Request target as it is written.
    pub target: String,
    /// Host.
    pub authority: String,
    /// Further header fields.
    pub headers: Vec<(String, String)>,
    /// Body, signed as a whole.
    pub body: Vec<u8>,
}

impl Draft {
    /// A request without body.
    pub fn new(method: &str, target: &str, authority: &str) -> Self {
        let (method, target, authority) = (method.into(), target.into(), authority.into());
        Self { method, target, authority, headers: Vec::new(), body: Vec::new() }
    }

    /// The request with a body.
    pub fn with_body(mut self, content_type: &str, body: &[u8]) -> Self {
        self.headers.push(("content-type".into(), content_type.into()));
        self.body = body.into();
        self
    }

    /// The request with a header field.
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// A signed request, open to every kind of manipulation.
#[derive(Clone, Debug)]
pub struct Signed {
    /// Method and target as they will be written.
    pub start: (String, String),
    /// Header fields as they will be written.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Body as it will be written.
    pub body: Vec<u8>,
}

impl Signed {
    /// Without the fields of this name.
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self
    }

    /// With another value for a field; the field is added where it is missing.
    pub fn with(self, name: &str, value: &str) -> Self {
        let mut changed = self.without(name);
        changed.headers.push((name.into(), value.as_bytes().into()));
        changed
    }

    /// With one bit of the body's last byte turned.
    pub fn with_tampered_body(mut self) -> Self {
        if let Some(last) = self.body.last_mut() {
            *last ^= 1;
        }
        self
    }

    /// The message as it goes over the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.start.0, self.start.1).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Header fields.
    pub headers: Vec<(String, String)>,
    /// Body; of a body in records, the records.
    pub body: Vec<u8>,
}

impl Answer {
    /// The refusal's code, if the answer is one (RFC 9457).
    pub fn code(&self) -> Option<String> {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        Some(problem.get("code")?.as_str()?.to_owned())
    }

    /// The request id that `signet explain` answers to.
    pub fn request_id(&self) -> Option<String> {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        Some(problem.get("request_id")?.as_str()?.to_owned())
    }
}

/// One HTTP/1.1 connection into the mesh.
pub struct Caller {
    stream: TlsStream<TcpStream>,
    /// What signatures on this connection are bound to.
    pub channel: ChannelId,
    /// The keys of this connection for messages of the caller and of the server.
    pub keys: [[u8; 32]; 2],
    /// Who answers, by certificate.
    pub peer: SpiffeId,
    /// The key it signs with; replace it to sign with another.
    pub signer: MeshSigner,
    /// The signing chain it shows.
    pub chain: Vec<CertificateDer<'static>>,
    /// The number of the next message.
    pub sequence: u64,
    received: Vec<u8>,
}

impl Caller {
    /// Connects as a sidecar would.
    ///
    /// # Errors
    /// As [`Identity::connect`].
    pub async fn open(identity: &Identity, address: SocketAddr) -> Result<Self, IntruderError> {
        let stream = identity.connect(address, ALPN_H1).await?;
        let state = stream.get_ref().1;
        Ok(Self {
            channel: ChannelId(channel_id(state)?),
            keys: mac_keys(state)?,
            peer: peer(state)?.id().clone(),
            signer: MeshSigner::new(identity.signing.key.secret_der(), identity.signing.keyid())?,
            chain: identity.signing.chain.clone(),
            sequence: 1,
            received: Vec::new(),
            stream,
        })
    }

    /// Signs a request for the next place on this connection.
    ///
    /// # Errors
    /// [`IntruderError::Message`], [`IntruderError::Sign`].
    pub fn sign(&mut self, draft: &Draft) -> Result<Signed, IntruderError> {
        let (channel, sequence) = (self.channel, self.sequence);
        self.sequence += 1;
        self.sign_for(draft, &channel, sequence, now())
    }

    /// Signs a request for any place and time.
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub fn sign_for(
        &self,
        draft: &Draft,
        channel: &ChannelId,
        sequence: u64,
        now: u64,
    ) -> Result<Signed, IntruderError> {
        let mut headers = HeaderMap::new();
        let mut add = |name: &str, value: &str| -> Result<(), IntruderError> {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(malformed)?;
            headers.append(name, HeaderValue::from_str(value).map_err(malformed)?);
            Ok(())
        };
        add("host", &draft.authority)?;
        for (name, value) in &draft.headers {
            add(name, value)?;
        }
        if !draft.body.is_empty() {
            add("content-length", &draft.body.len().to_string())?;
        }
        add("content-digest", &sha256_header(&draft.body))?;
        let method = Method::from_bytes(draft.method.as_bytes()).map_err(malformed)?;
        let uri: Uri = draft.target.parse().map_err(malformed)?;
        let view = RequestView::new(&method, &uri, "http", &draft.authority, &headers);
        self.signer.sign_request(&view, channel, sequence, now)?.append_to(&mut headers);
        headers.append("mesh-cert", mesh_cert(&self.chain)?);
        let fields = headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
        Ok(Signed {
            start: (draft.method.clone(), draft.target.clone()),
            headers: fields.collect(),
            body: draft.body.clone(),
        })
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// [`IntruderError::Broken`].
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), IntruderError> {
        let stream = &mut self.stream;
        within(async {
            stream.write_all(bytes).await?;
            stream.flush().await
        })
        .await
    }

    /// Reads one answer.
    ///
    /// # Errors
    /// [`IntruderError::Answer`], [`IntruderError::Broken`].
    pub async fn answer(&mut self) -> Result<Answer, IntruderError> {
        loop {
            if let Some((answer, used)) = parse(&self.received)? {
                self.received.drain(..used);
                return Ok(answer);
            }
            if self.received.len() > ANSWER_MAX {
                return Err(IntruderError::Answer("it is too long".into()));
            }
            let (stream, received) = (&mut self.stream, &mut self.received);
            if within(stream.read_buf(received)).await? == 0 {
                return Err(IntruderError::Broken(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// As [`Self::send`] and [`Self::answer`].
    pub async fn call(&mut self, request: &Signed) -> Result<Answer, IntruderError> {
        self.send(&request.to_bytes()).await?;
        self.answer().await
    }
}

/// A signing chain as the field that introduces it.
fn mesh_cert(chain: &[CertificateDer<'_>]) -> Result<HeaderValue, IntruderError> {
    let items: Vec<String> = chain.iter().map(|der| format!(":{}:", BASE64_STANDARD.encode(der))).collect();
    HeaderValue::try_from(items.join(", ")).map_err(malformed)
}

/// The key id under which an identity signs: what another key would be passed off for.
pub fn keyid(identity: &Identity) -> String {
    identity.signing.keyid()
}

fn parse(bytes: &[u8]) -> Result<Option<(Answer, usize)>, IntruderError> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response.parse(bytes).map_err(|error| IntruderError::Answer(error.to_string()))?;
    let httparse::Status::Complete(head) = parsed else { return Ok(None) };
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let headers: Vec<_> =
        response.headers.iter().map(|field| (field.name.to_owned(), text(field.value))).collect();
    let value = |name: &str| {
        headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    };
    let rest = bytes.get(head..).unwrap_or_default();
    let (body, used) = if value("transfer-encoding").is_some() {
        let decoded = crate::chunked::decode(rest, ANSWER_MAX)
            .map_err(|error| IntruderError::Answer(error.to_string()))?;
        let Some(decoded) = decoded else { return Ok(None) };
        (decoded.body, decoded.consumed)
    } else {
        let length = value("content-length").and_then(|digits| digits.parse().ok()).unwrap_or(0);
        let Some(body) = rest.get(..length) else { return Ok(None) };
        (body.to_vec(), length)
    };
    let status = response.code.unwrap_or_default();
    Ok(Some((Answer { status, headers, body }, head + used)))
}

fn malformed(error: impl std::fmt::Display) -> IntruderError {
    IntruderError::Message(error.to_string())
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> Result<T, IntruderError> {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(IntruderError::Broken(io::ErrorKind::TimedOut.into())),
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Unix seconds.
pub fn now() -> u64 {
    now_ms() / 1000
}
