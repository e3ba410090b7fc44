//! The control stream's answers as bytes: gRPC over HTTP/2 without a copy for each proxy.
//!
//! The service that is generated from the schema encodes every message into a buffer of the stream's own, which stays as long as the
//! largest of them: a few hundred KiB for each of ten thousand proxies that all get the same section. Here a section is encoded once
//! and shared by all who are sent it; what concerns one proxy alone is small.
//!
//! The framing is gRPC's own (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>): a byte that says whether
//! the message is compressed, its length in four, the message; the status in the trailers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, header};
use hyper::body::{Body as HttpBody, Bytes, Frame};
use prost::Message as _;
use signet_sync::MAX_MESSAGE_BYTES;
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::control_message::Message as Down;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codec::{BufferSettings, Streaming};
use tonic::server::NamedService;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use tower::Service;

use super::control::ControlService;

/// The one method.
const CONNECT: &str = "/signet.sync.v1.Control/Connect";

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// What a stream has room for at once; it grows for a longer message. What proxies say is short: answers, and a report each 10 s.
const READ_BUFFER: usize = 1024;

/// Sections whose bytes are kept: those of a mesh of so many networks. Beyond, all are encoded anew.
const KEPT_MAX: usize = 4096;

/// The service `signet.sync.v1.Control`.
#[derive(Clone)]
pub(crate) struct ControlEndpoint {
    service: Arc<ControlService>,
    message_bytes: usize,
}

impl ControlEndpoint {
    /// Takes messages of up to `message_bytes`.
    pub(crate) fn new(service: ControlService, message_bytes: usize) -> Self {
        Self { service: Arc::new(service), message_bytes }
    }
}

impl NamedService for ControlEndpoint {
    const NAME: &'static str = "signet.sync.v1.Control";
}

impl Service<http::Request<Body>> for ControlEndpoint {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Self { service, message_bytes } = self.clone();
        Box::pin(async move {
            if request.uri().path() != CONNECT {
                return Ok(Status::unimplemented("there is no such method").into_http());
            }
            // Nothing is compressed: a message that says it is is refused by the decoder.
            let request = request.map(|body| {
                let buffer = BufferSettings::new(READ_BUFFER, READ_BUFFER);
                let decoder = ProstCodec::<wire::ControlMessage, wire::ProxyMessage>::raw_decoder(buffer);
                Streaming::new_request(decoder, body, None, Some(message_bytes))
            });
            Ok(match service.connect(Request::from_http(request)).await {
                Ok(frames) => answer(frames),
                Err(status) => status.into_http(),
            })
        })
    }
}

fn answer(frames: mpsc::Receiver<Result<Bytes, Status>>) -> http::Response<Body> {
    let mut response = http::Response::new(Body::new(Answers { frames, ended: false }));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// The messages of one stream, then its status.
struct Answers {
    frames: mpsc::Receiver<Result<Bytes, Status>>,
    ended: bool,
}

impl HttpBody for Answers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let status = match ready!(self.frames.poll_recv(context)) {
            Some(Ok(frame)) => return Poll::Ready(Some(Ok(Frame::data(frame)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// A message as it is sent.
///
/// # Errors
/// It is longer than a proxy takes.
pub(crate) fn framed(message: &wire::ControlMessage) -> Result<Bytes, Status> {
    let length = message.encoded_len();
    let (Ok(announced), true) = (u32::try_from(length), length <= MAX_MESSAGE_BYTES) else {
        return Err(Status::out_of_range(format!("a message of {length} bytes is more than a proxy takes")));
    };
    let mut frame = Vec::with_capacity(PREFIX + length);
    frame.push(0);
    frame.extend_from_slice(&announced.to_be_bytes());
    message.encode_raw(&mut frame);
    Ok(frame.into())
}

/// The newest sections as they are sent.
#[derive(Default)]
pub(crate) struct Frames {
    kept: Mutex<BTreeMap<String, Kept>>,
}

struct Kept {
    section: Arc<wire::Section>,
    frame: Bytes,
}

impl Frames {
    /// A section as it is sent; encoded when it is asked for the first time.
    ///
    /// # Errors
    /// As [`framed`].
    pub(crate) fn of(&self, section: &Arc<wire::Section>) -> Result<Bytes, Status> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.get(&section.name)
            && Arc::ptr_eq(&known.section, section)
        {
            return Ok(known.frame.clone());
        }
        let message = wire::ControlMessage { message: Some(Down::Section((**section).clone())) };
        let frame = framed(&message)?;
        if kept.len() >= KEPT_MAX && !kept.contains_key(&section.name) {
            kept.clear();
        }
        kept.insert(section.name.clone(), Kept { section: section.clone(), frame: frame.clone() });
        Ok(frame)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn section(name: &str, payload: &[u8]) -> Arc<wire::Section> {
        Arc::new(wire::Section { name: name.to_owned(), payload: payload.to_vec(), ..Default::default() })
    }

    #[test]
    fn section_is_encoded_once_for_all_and_anew_when_it_changes() -> Result<(), Status> {
        let frames = Frames::default();
        let (first, second) = (section("policy", b"one"), section("policy", b"two"));
        let shared = frames.of(&first)?;
        assert_eq!(shared.as_ptr(), frames.of(&first)?.as_ptr());
        let other = frames.of(&second)?;
        assert_ne!(shared, other);
        let decoded = wire::ControlMessage::decode(&other[PREFIX..]).map_err(|_| Status::internal(""))?;
        assert_eq!(decoded.message, Some(Down::Section((*second).clone())));
        assert_eq!(
            usize::try_from(u32::from_be_bytes([other[1], other[2], other[3], other[4]])).ok(),
            Some(other.len() - PREFIX)
        );
        Ok(())
    }

    #[test]
    fn sections_whose_bytes_are_kept_are_bounded() -> Result<(), Status> {
        let frames = Frames::default();
        for number in 0..=KEPT_MAX {
            frames.of(&section(&format!("directory/{number}"), b"payload"))?;
        }
        let kept = frames.kept.lock().unwrap_or_else(PoisonError::into_inner).len();
        assert!(kept <= KEPT_MAX, "{kept}");
        Ok(())
    }

    #[test]
    fn message_that_no_proxy_takes_is_not_sent() {
        let refused = framed(&wire::ControlMessage {
            message: Some(Down::Section((*section("policy", &vec![0; MAX_MESSAGE_BYTES])).clone())),
        });
        assert_eq!(refused.map_err(|status| status.code()).err(), Some(tonic::Code::OutOfRange));
    }

    #[tokio::test]
    async fn status_follows_the_messages_in_the_trailers() -> Result<(), Status> {
        for (last, code) in [(Some(Status::permission_denied("revoked: \u{e9}")), "7"), (None, "0")] {
            let (sender, frames) = mpsc::channel(4);
            let _ = sender.try_send(Ok(Bytes::from_static(b"\0\0\0\0\0")));
            if let Some(status) = last {
                let _ = sender.try_send(Err(status));
                let _ = sender.try_send(Ok(Bytes::from_static(b"never")));
            }
            drop(sender);
            let collected = answer(frames).into_body().collect().await?;
            let trailers = collected.trailers().cloned().unwrap_or_default();
            assert_eq!(trailers.get("grpc-status"), Some(&HeaderValue::from_static(code)));
            assert_eq!(&*collected.to_bytes(), b"\0\0\0\0\0");
        }
        Ok(())
    }
}
