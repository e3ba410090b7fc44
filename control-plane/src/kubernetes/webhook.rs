//! The admission webhook: pods that are about to be made get their sidecar, by the same code as `signet inject kubernetes`.
//!
//! HTTPS under a certificate of the mesh's own authority, for the name by which the API server calls. Whoever else reaches the
//! port may ask too: what is answered is computed from the question, holds no secret and changes nothing.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use signet_identity::{KeyRequest, outside_server_config, renewal_time};
use signet_inject::kubernetes::{Admission, Options, admit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::authority::{Authority, AuthorityError, BACKDATE, Issuing};
use crate::metrics::{Metrics, count};
use crate::server::sources::{Share, Sources};

/// Where the API server asks.
const PATH: &str = "/inject";
/// Connections at once: a few API servers, which keep theirs open, and whoever else tries.
const CONNECTIONS_MAX: usize = 128;
/// Of those, connections of one source: an API server opens one for each pod that is made at the same time.
const CONNECTIONS_SHARE: usize = 96;
/// Bytes of a review: the API server takes no larger request itself.
const BODY_BYTES: usize = 3 * 1024 * 1024;
/// Reviews whose bodies are held at once; others wait for their turn.
const REVIEWS_MAX: usize = 32;
/// Of those, reviews of one source: a pod that asks slowly must not take everybody's turn.
const REVIEWS_SHARE: usize = 16;
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 * 1024;
/// The longest handshake, and the longest wait for a head or a turn; the API server waits for 10 s as a rule.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest wait for a body, while it has its turn: an API server sends it with the head.
const BODY_PATIENCE: Duration = Duration::from_secs(2);
/// Pause after the system refused to accept a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);
/// How long a certificate lives; it is made anew at half of that, and when another issuer certifies.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How often the clock is looked at.
const LOOK: Duration = Duration::from_secs(60);

/// Serves reviews.
pub(crate) struct Webhook {
    authority: Arc<Authority>,
    certificate: Mutex<Certificate>,
    metrics: Arc<Metrics>,
    name: String,
    options: Options,
    reviews: Semaphore,
    shares: Arc<Sources>,
    /// Told when a source gives back a share.
    given_back: Notify,
    /// Namespaces whose pods are never changed, whatever the selector says.
    spared: [String; 2],
}

/// A place among the reviews that are read and judged.
struct Turn<'w> {
    share: Option<Share>,
    _permit: Option<SemaphorePermit<'w>>,
    of: &'w Webhook,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.share = None;
        self.of.given_back.notify_waiters();
    }
}

struct Certificate {
    config: Arc<ServerConfig>,
    renew_at: SystemTime,
    /// Who issued it.
    issuer: String,
}

impl Webhook {
    /// `namespace` is that of the control plane and its Service.
    pub(crate) fn new(
        authority: Arc<Authority>,
        metrics: Arc<Metrics>,
        namespace: &str,
        options: Options,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let name = format!("{}.{namespace}.svc", super::SERVICE);
        let certificate = Mutex::new(certificate(&authority, &name, now)?);
        let spared = ["kube-system".to_owned(), namespace.to_owned()];
        Ok(Self {
            authority,
            certificate,
            metrics,
            name,
            options,
            reviews: Semaphore::new(REVIEWS_MAX),
            shares: Sources::new(REVIEWS_SHARE),
            given_back: Notify::new(),
            spared,
        })
    }

    /// Never returns.
    pub(crate) async fn run(self: Arc<Self>, listener: TcpListener) {
        tokio::select! {
            () = self.clone().accept(listener) => {}
            () = self.keep_fresh() => {}
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let sources = Sources::new(CONNECTIONS_SHARE);
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (Some(share), Ok(permit)) = (sources.enter(peer.ip()), permits.clone().try_acquire_owned())
            else {
                count(&self.metrics.admissions, "overloaded");
                continue;
            };
            let webhook = self.clone();
            tokio::spawn(async move {
                webhook.serve(stream, peer.ip()).await;
                drop((permit, share));
            });
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, source: IpAddr) {
        let config = self.certificate.lock().unwrap_or_else(PoisonError::into_inner).config.clone();
        let shaken = tokio::time::timeout(PATIENCE, TlsAcceptor::from(config).accept(stream)).await;
        let Ok(Ok(stream)) = shaken else {
            count(&self.metrics.admissions, "handshake-failed");
            return;
        };
        let service = service_fn(move |request| {
            let webhook = self.clone();
            async move { Ok::<_, Infallible>(webhook.answer(request, source).await) }
        });
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(HEAD_BYTES);
        // A client that breaks off is its own affair.
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    }

    /// Waits for a turn of its own.
    async fn turn(&self, source: IpAddr) -> Turn<'_> {
        let share = loop {
            // Listened to before it is looked, so that nothing is missed in between.
            let given_back = self.given_back.notified();
            match self.shares.enter(source) {
                Some(share) => break share,
                None => given_back.await,
            }
        };
        Turn { share: Some(share), _permit: self.reviews.acquire().await.ok(), of: self }
    }

    async fn answer(&self, request: Request<Incoming>, source: IpAddr) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return text(StatusCode::NOT_FOUND, "admission reviews are taken at /inject");
        }
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "an admission review is posted");
        }
        let Ok(_turn) = tokio::time::timeout(PATIENCE, self.turn(source)).await else {
            count(&self.metrics.admissions, "overloaded");
            return text(StatusCode::TOO_MANY_REQUESTS, "too many reviews at once");
        };
        let reading = Limited::new(request.into_body(), BODY_BYTES).collect();
        let Ok(body) = tokio::time::timeout(BODY_PATIENCE, reading).await else {
            count(&self.metrics.admissions, "timeout");
            return text(StatusCode::REQUEST_TIMEOUT, "the review did not arrive in time");
        };
        let Ok(body) = body else {
            count(&self.metrics.admissions, "malformed");
            return text(StatusCode::PAYLOAD_TOO_LARGE, "a review has at most 3 MiB");
        };
        match admit(&body.to_bytes(), &self.spared, &self.options) {
            Ok(Admission { answer, outcome, about }) => {
                count(&self.metrics.admissions, outcome);
                tracing::info!(pod = about, outcome, "pod reviewed");
                let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Err(error) => {
                count(&self.metrics.admissions, "malformed");
                tracing::warn!(%error, "a review was refused");
                text(StatusCode::BAD_REQUEST, &error.to_string())
            }
        }
    }

    async fn keep_fresh(&self) {
        let mut slots = self.authority.changes();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                // A rotation: who certifies next, does so before the one in force is retired.
                _ = slots.changed() => {}
            }
            let now = crate::clock::machine();
            let due = {
                let held = self.certificate.lock().unwrap_or_else(PoisonError::into_inner);
                let is_other = |issuing: &Issuing| issuing.issuer() != held.issuer;
                now >= held.renew_at || self.authority.issuing().as_ref().is_ok_and(is_other)
            };
            if !due {
                continue;
            }
            match certificate(&self.authority, &self.name, now) {
                Ok(new) => {
                    *self.certificate.lock().unwrap_or_else(PoisonError::into_inner) = new;
                    tracing::info!(name = self.name, "the webhook's certificate was renewed");
                }
                Err(error) => tracing::error!(%error, "the webhook's certificate cannot be renewed"),
            }
        }
    }
}

fn certificate(authority: &Authority, name: &str, now: SystemTime) -> Result<Certificate, AuthorityError> {
    let request = KeyRequest::new_tls()?;
    let not_after = now + LIFETIME;
    let issuing = authority.issuing()?;
    let chain = issuing.dns(&request.csr, name, now - BACKDATE, not_after)?;
    let config = outside_server_config(chain, request.key, &[b"http/1.1"])?;
    // One control plane has nobody to fall in step with, so there is no jitter.
    let renew_at = renewal_time(now, not_after, 0.5);
    Ok(Certificate { config: Arc::new(config), renew_at, issuer: issuing.issuer() })
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
