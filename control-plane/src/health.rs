//! `/live`, `/ready`, `/metrics`, `/roots.pem` and `/bundle.json`: plain HTTP for people, probes and scrapers. Nothing can be changed
//! here, and nothing secret is shown.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use signet_sync::SectionName;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::authority::Authority;
use crate::metrics::Metrics;
use crate::publish::Published;

/// Connections at once: a few probes and scrapers.
const CONNECTIONS_MAX: usize = 64;

/// The longest wait for a request's headers, also between requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 * 1024;

/// Pause after the system refused to accept a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

/// What is shown.
pub(crate) struct Health {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) draining: CancellationToken,
    pub(crate) published: watch::Receiver<Arc<Published>>,
}

impl Health {
    /// Grows with every change of whom the trust domain believes, also from one epoch to the next.
    fn sequence(&self) -> u64 {
        let published = self.published.borrow();
        let anchors = published.sections.get(&SectionName::Anchors);
        anchors.map_or(0, |anchors| (anchors.epoch << 32).saturating_add(anchors.counter))
    }
}

/// Serves until it is dropped.
pub(crate) async fn serve(listener: TcpListener, health: Arc<Health>) {
    serve_by(listener, move |request| answer(&health, request)).await;
}

/// Serves a control plane that was tampered with, of which nothing is left but this word.
pub(crate) async fn serve_tampered(listener: TcpListener) {
    const TEXT: &str = "text/plain; charset=utf-8";
    let answer = |request: &Request<Incoming>| match request.uri().path() {
        "/live" => response(StatusCode::OK, TEXT, "live\n".to_owned()),
        _ => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "tampered\n".to_owned()),
    };
    serve_by(listener, answer).await;
}

async fn serve_by<F>(listener: TcpListener, answer: F)
where
    F: Fn(&Request<Incoming>) -> Response<Full<Bytes>> + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(HEAD_BYTES);
            // A client that breaks off is its own affair.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            drop(permit);
        });
    }
}

fn answer(health: &Health, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n".to_owned());
    }
    match request.uri().path() {
        "/live" => response(StatusCode::OK, TEXT, "live\n".to_owned()),
        // It listens only after the first state is published, so ready means: not going away.
        "/ready" if health.draining.is_cancelled() => {
            response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n".to_owned())
        }
        "/ready" => response(StatusCode::OK, TEXT, "ready\n".to_owned()),
        "/metrics" => response(StatusCode::OK, OPEN_METRICS, health.metrics.text()),
        "/roots.pem" => match health.authority.roots_pem() {
            Ok(roots) => response(StatusCode::OK, "application/x-pem-file", roots),
            Err(error) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{error}\n")),
        },
        "/bundle.json" => match health.authority.bundle_document(health.sequence()) {
            Ok(bundle) => response(StatusCode::OK, "application/json", bundle),
            Err(error) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{error}\n")),
        },
        _ => {
            let known = "try /live, /ready, /metrics, /roots.pem or /bundle.json\n";
            response(StatusCode::NOT_FOUND, TEXT, known.to_owned())
        }
    }
}

fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
