//! The health check of gRPC: one call of `grpc.health.v1.Health/Check`.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Method, Request, StatusCode, Version, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpStream;

use super::{Failed, beside};

/// Longest name of a service.
pub(super) const SERVICE_MAX: usize = 1024;
/// The largest answer that is read: a number.
const ANSWER_MAX: usize = 4 * 1024;
/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: i32 = 1;

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CheckResponse {
    #[prost(int32, tag = "1")]
    pub(super) status: i32,
}

/// A message with gRPC's prefix: not compressed, and its length.
pub(super) fn framed(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    // Bounded by the name of a service.
    frame.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    frame.put_slice(&message.encode_to_vec());
    frame.freeze()
}

/// Whether the service says that it serves.
pub(super) async fn ask(stream: TcpStream, service: &str) -> Result<(), Failed> {
    let handshake = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|_| Failed::Unanswered)?;
    let call = async {
        let request = request(service).ok_or(Failed::Unanswered)?;
        let response = sender.send_request(request).await.map_err(|_| Failed::Unanswered)?;
        if response.status() != StatusCode::OK {
            return Err(Failed::Status(response.status().as_u16()));
        }
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|_| Failed::Unanswered)?;
        let refused =
            body.trailers().and_then(|fields| fields.get("grpc-status")).is_some_and(|it| it != "0");
        let message = body.to_bytes();
        let answer = message.get(5..).and_then(|message| CheckResponse::decode(message).ok());
        match answer {
            Some(CheckResponse { status: SERVING }) if !refused => Ok(()),
            _ => Err(Failed::Unanswered),
        }
    };
    beside(connection, call).await
}

fn request(service: &str) -> Option<Request<Full<Bytes>>> {
    let body = Full::new(framed(&CheckRequest { service: service.to_owned() }));
    Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri("http://localhost/grpc.health.v1.Health/Check")
        .header(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
        .header(header::TE, HeaderValue::from_static("trailers"))
        .body(body)
        .ok()
}
