//! The back end: HTTP/1.1 (a small answer, a delayed one, a sink, a download), gRPC without TLS, and plain bytes.

use std::convert::Infallible;
use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::pacer::Pacer;
use super::{Place, bulk, grpc};

/// What is printed once every port is open.
pub const LISTENING: &str = "listening";
/// The small answer, as long as the file of the throughput measure.
pub const SMALL: usize = 1024;
/// How long the delayed answer takes.
pub const DELAY: Duration = Duration::from_millis(2);
/// Connections that may wait to be accepted: those of the largest measure open one after the other.
const BACKLOG: i32 = 4096;
/// Of a download or of plain bytes, this much is handed over at a time.
const CHUNK: usize = 256 * 1024;
/// A download's length; its reader leaves long before its end.
const DOWNLOAD: u64 = 1 << 40;

static ZEROS: [u8; CHUNK] = [0; CHUNK];

/// Where it listens.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Places {
    /// HTTP/1.1.
    pub http: Place,
    /// gRPC: HTTP/2 without TLS.
    pub grpc: Place,
    /// Plain bytes.
    pub bytes: Place,
}

/// Serves until it is killed.
///
/// # Errors
/// A place that cannot be bound.
pub async fn serve(places: Places) -> io::Result<()> {
    let (http, grpc, bytes) = (bind(places.http)?, bind(places.grpc)?, bind(places.bytes)?);
    let pacer = Pacer::default();
    let pacing = tokio::spawn(pacer.clone().run());
    {
        let mut out = io::stdout().lock();
        writeln!(out, "{LISTENING}")?;
        out.flush()?;
    }
    tokio::join!(
        each(http, move |stream| http1(stream, pacer.clone())),
        each(grpc, http2),
        each(bytes, plain_bytes)
    );
    pacing.abort();
    Ok(())
}

fn bind(place: Place) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(place), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&place.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn each<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        // A lack of descriptors shows as failed requests, not here.
        if let Ok((stream, _)) = listener.accept().await
            && stream.set_nodelay(true).is_ok()
        {
            tokio::spawn(serve(stream));
        }
    }
}

async fn http1(stream: TcpStream, pacer: Pacer) {
    let answer = service_fn(move |request| {
        let pacer = pacer.clone();
        async move { Ok::<_, Infallible>(answer(request, pacer).await) }
    });
    // A client that goes away is no event worth a word.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

async fn answer(request: Request<Incoming>, pacer: Pacer) -> Response<Zeros> {
    let length = match request.uri().path() {
        "/delay" => {
            pacer.wait(DELAY).await;
            SMALL as u64
        }
        "/download" => DOWNLOAD,
        "/sink" => {
            let mut body = request.into_body();
            while let Some(Ok(_)) = body.frame().await {}
            0
        }
        "/small" => SMALL as u64,
        _ => {
            let mut response = Response::new(Zeros(0));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
    };
    Response::new(Zeros(length))
}

/// A body of this many zeros.
struct Zeros(u64);

impl Body for Zeros {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = self.0.min(CHUNK as u64);
        self.0 -= length;
        // It is at most as long as the constant.
        let chunk = Bytes::from_static(ZEROS.get(..length as usize).unwrap_or_default());
        Poll::Ready((length > 0).then(|| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.0 == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

async fn http2(stream: TcpStream) {
    let answer = service_fn(|request: Request<Incoming>| async {
        let asked = request.into_body().collect().await;
        let message = asked.map(|body| body.to_bytes()).unwrap_or_default();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let body = Told { message: Some(message), trailers: Some(trailers) };
        let mut response = Response::new(body);
        response.headers_mut().insert("content-type", HeaderValue::from_static(grpc::CONTENT_TYPE));
        Ok::<_, Infallible>(response)
    });
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    // As above.
    let _ = builder.serve_connection(TokioIo::new(stream), answer).await;
}

/// The answer to a call: the same message, and that all went well.
struct Told {
    message: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Body for Told {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = self.message.take().map(Frame::data);
        Poll::Ready(data.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }
}

/// Sends without end once the client has spoken.
async fn plain_bytes(mut stream: TcpStream) {
    let mut opening = [0; bulk::OPENING.len()];
    if stream.read_exact(&mut opening).await.is_ok() && opening == bulk::OPENING {
        while stream.write_all(&ZEROS).await.is_ok() {}
    }
}
