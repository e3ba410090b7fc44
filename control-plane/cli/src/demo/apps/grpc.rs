//! gRPC service over HTTP/2 without TLS: `demo.Agent` with one unary and one streaming method.
//!
//! The messages and the routing are written by hand, so that no schema file has to be compiled.

use std::convert::Infallible;
use std::io;
use std::task::{Context, Poll};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::{Service, ServiceExt, service_fn};

/// Most messages of one stream.
const TIMES_MAX: u32 = 10_000;

/// What a caller asks.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Ask {
    /// Comes back in each answer; the text `error` asks for a status that is not OK.
    #[prost(string, tag = "1")]
    pub text: String,
    /// How many messages `Stream` sends.
    #[prost(uint32, tag = "2")]
    pub times: u32,
    /// Filling, to make a message of a wanted size; each answer tells its length.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
}

/// What the service tells.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Told {
    /// The text asked with.
    #[prost(string, tag = "1")]
    pub text: String,
    /// Number of the message in its stream, from 0.
    #[prost(uint32, tag = "2")]
    pub number: u32,
    /// Bytes of payload received.
    #[prost(uint64, tag = "3")]
    pub payload_bytes: u64,
}

pub(super) async fn serve(stream: TcpStream) -> io::Result<()> {
    let service = TowerToHyperService::new(
        Agent.map_request(|request: http::Request<hyper::body::Incoming>| request.map(Body::new)),
    );
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        // Two runs are compared, and the time of day would differ.
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

#[derive(Clone, Copy)]
struct Agent;

impl Service<http::Request<Body>> for Agent {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = futures_util::future::BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Told, Ask>::default());
            Ok(match request.uri().path() {
                "/demo.Agent/Tell" => grpc.unary(service_fn(tell), request).await,
                "/demo.Agent/Stream" => grpc.server_streaming(service_fn(stream), request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

async fn tell(request: Request<Ask>) -> Result<Response<Told>, Status> {
    let ask = request.into_inner();
    refuse_if_asked(&ask)?;
    let mut response = Response::new(told(&ask, 0));
    response.metadata_mut().insert("x-agent-class", tonic::metadata::MetadataValue::from_static("fog"));
    Ok(response)
}

type Messages = futures_util::stream::BoxStream<'static, Result<Told, Status>>;

async fn stream(request: Request<Ask>) -> Result<Response<Messages>, Status> {
    let ask = request.into_inner();
    refuse_if_asked(&ask)?;
    let numbers = 0..ask.times.min(TIMES_MAX);
    let messages = futures_util::stream::iter(numbers.map(move |number| Ok(told(&ask, number))));
    Ok(Response::new(Box::pin(messages)))
}

fn refuse_if_asked(ask: &Ask) -> Result<(), Status> {
    if ask.text == "error" {
        Err(Status::failed_precondition("asked to fail: é, % and \"quotes\""))
    } else {
        Ok(())
    }
}

fn told(ask: &Ask, number: u32) -> Told {
    Told { text: ask.text.clone(), number, payload_bytes: ask.payload.len() as u64 }
}
