//! HTTPS in front of the API.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream as _;
use tokio_stream::wrappers::WatchStream;

use super::api::{Answer, Asked, Target, answer};
use super::cluster::Cluster;
use super::refusal;

type Answered = Response<Either<Full<Bytes>, Watch>>;

/// Never returns; dropped, it ends every connection.
pub(super) async fn serve(listener: TcpListener, config: Arc<ServerConfig>, cluster: Cluster) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(connection(stream, TlsAcceptor::from(config.clone()), cluster.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, cluster: Cluster) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = service_fn(move |request| {
        let cluster = cluster.clone();
        async move {
            let changes = request.method() == Method::PATCH;
            let answered = respond(&cluster, request).await;
            if changes && cluster.loses_an_answer() { Err(io::Error::other("lost")) } else { Ok(answered) }
        }
    });
    // Clients that break off are their own affair.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(cluster: &Cluster, request: Request<Incoming>) -> Answered {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return whole(refusal(400, "BadRequest", "the body broke off"));
    };
    let body = body.to_bytes();
    let text = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let asked = Asked {
        method: &head.method,
        path: head.uri.path(),
        query: query(head.uri.query().unwrap_or_default()),
        token: text(AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")),
        form: text(CONTENT_TYPE).unwrap_or_default(),
        body: &body,
    };
    match answer(cluster, &asked) {
        Answer::Whole(code, value) => whole((code, value)),
        Answer::Watch { of, from } => {
            let changes = WatchStream::new(cluster.version.subscribe());
            let watch = Watch {
                cluster: cluster.clone(),
                of: *of,
                from,
                changes,
                lines: VecDeque::new(),
                ended: false,
                begun: false,
            };
            json_of(StatusCode::OK, Either::Right(watch))
        }
    }
}

fn whole((code, value): (u16, Value)) -> Answered {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json_of(status, Either::Left(Full::new(value.to_string().into())))
}

fn json_of(status: StatusCode, body: Either<Full<Bytes>, Watch>) -> Answered {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        match byte {
            b'%' => match (hex(rest.next()), hex(rest.next())) {
                (Some(high), Some(low)) => bytes.push(u8::try_from(high * 16 + low).unwrap_or_default()),
                _ => bytes.push(b'%'),
            },
            b'+' => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The events of a collection, line by line, for as long as the connection lasts.
struct Watch {
    cluster: Cluster,
    of: Target,
    from: u64,
    changes: WatchStream<u64>,
    lines: VecDeque<Value>,
    ended: bool,
    begun: bool,
}

impl Watch {
    fn look(&mut self) {
        let state = self.cluster.lock();
        if self.from < state.forgotten {
            let (_, status) = refusal(410, "Expired", "too old resource version");
            self.lines.push_back(json!({ "type": "ERROR", "object": status }));
            self.ended = true;
            return;
        }
        for event in
            state.events.iter().filter(|event| event.version > self.from && self.of.is_of(&event.key))
        {
            if self.of.selects(&event.object) {
                self.lines.push_back(json!({ "type": event.kind, "object": event.object }));
            }
        }
        self.from = state.version;
        // A bookmark at once, so that a watch that has seen nothing yet knows where it stands.
        if !self.begun {
            self.begun = true;
            self.lines.push_back(json!({ "type": "BOOKMARK", "object": self.of.bookmark(state.version) }));
        }
    }
}

impl Body for Watch {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(format!("{line}\n").into()))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match Pin::new(&mut self.changes).poll_next(cx) {
                Poll::Ready(Some(_)) => self.look(),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
