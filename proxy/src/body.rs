//! Message bodies on their way through the proxy.
//!
//! Small bodies of known length travel whole under the head's digest (T0). Everything else is
//! cut into signed records while it flows (T2): [`SignedBody`] on the way to the other sidecar,
//! [`VerifiedBody`] on the way to the application. Neither ever holds more than 256 KiB. Where nothing is signed
//! (level `public`), every body passes as it comes: [`UnsignedBody`].

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use signet_policy::Refusal;
use signet_signature::record::{Direction, Event, RecordReader, RecordSigner, RecordWriter};
use signet_signature::seal::{CHUNK_OVERHEAD, ChunkReader, ChunkWriter, MAX_CHUNK};
use thiserror::Error;

use crate::clock;
use crate::headers;
use crate::recheck::Recheck;

/// Bodies up to this length, when it is known beforehand, are signed as a whole (T0).
pub(crate) const WHOLE_MAX: usize = 64 * 1024;

/// The same for one that is sealed: what comes out of it must not be longer than [`WHOLE_MAX`].
pub(crate) const SEALED_WHOLE_MAX: usize = WHOLE_MAX - (WHOLE_MAX / MAX_CHUNK + 1) * CHUNK_OVERHEAD;

/// How long a whole body may make no progress: it is read before anybody else sees any of it.
const STALLED: Duration = Duration::from_secs(30);

/// Records are handed on once this much is ready; several DATA records share one write.
const CHUNK: usize = 64 * 1024;

/// Something that lives exactly as long as a body: a stream's place in the pool, say.
pub(crate) type Hold = Rc<dyn std::any::Any>;

/// Why a body ends before its end. The connection it is on is then cut, never closed cleanly.
#[derive(Debug, Error)]
pub enum BodyError {
    /// The application or the other sidecar broke off.
    #[error("message body broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// More or fewer bytes than the signed length said.
    #[error("message body is not as long as its signed length")]
    Length,
    /// Policy, trust or revocation changed and the exchange is no longer allowed.
    #[error("exchange is no longer permitted")]
    NoLongerPermitted,
    /// No byte came for half a minute, or for as long as policy gives it.
    #[error("message body makes no progress")]
    Stalled,
    /// A record of the body could not be verified.
    #[error("signed record refused: {0}")]
    Record(&'static str),
}

impl BodyError {
    /// The body error behind a failed exchange, as the refusal it is.
    pub(crate) fn behind(error: &hyper::Error) -> Option<Refusal> {
        let body = std::error::Error::source(error)?.downcast_ref::<Self>()?;
        Some(match body {
            Self::Broken(_) | Self::Length => Refusal::StreamTruncated,
            Self::NoLongerPermitted => Refusal::AccessDenied,
            Self::Record("record-bad-signature" | "record-hash-mismatch") => Refusal::BadSignature,
            Self::Record("record-truncated" | "seal-truncated") => Refusal::StreamTruncated,
            Self::Record("seal-broken" | "seal-malformed") => Refusal::SealBroken,
            Self::Record(_) => Refusal::RecordMalformed,
            Self::Stalled => Refusal::UpstreamTimeout,
        })
    }
}

impl From<BodyError> for io::Error {
    fn from(error: BodyError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// How long a body may make no progress, and until when it has to make some.
struct Idle {
    limit: Duration,
    until: Pin<Box<tokio::time::Sleep>>,
    /// Whether somebody waits for more: other time is not the sender's.
    waiting: bool,
}

impl Idle {
    /// Whether it made none for too long.
    fn poll_over<T>(&mut self, polled: &Poll<T>, cx: &mut Context<'_>) -> bool {
        let began = polled.is_pending() && !self.waiting;
        self.waiting = polled.is_pending();
        if began {
            self.until.as_mut().reset(tokio::time::Instant::now() + self.limit);
        }
        self.waiting && self.until.as_mut().poll(cx).is_ready()
    }
}

type Withheld = Box<dyn Fn(&HeaderName) -> bool>;

/// Any body the proxy sends.
pub(crate) struct Body {
    kind: Kind,
    recheck: Option<Recheck>,
    /// Tells trailer fields that its reader may not get.
    withheld: Option<Withheld>,
    idle: Option<Box<Idle>>,
    _holds: Vec<Hold>,
}

enum Kind {
    /// All of it, then perhaps trailers.
    Whole(Option<Bytes>),
    /// As it comes, for traffic outside the mesh.
    Plain(Incoming),
    Signed(Box<SignedBody>),
    Unsigned(Box<UnsignedBody>),
    Verified(Box<VerifiedBody>),
    Opened(Box<OpenedBody>),
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self::whole(Bytes::new())
    }

    pub(crate) fn whole(bytes: Bytes) -> Self {
        Kind::Whole((!bytes.is_empty()).then_some(bytes)).into()
    }

    pub(crate) fn plain(incoming: Incoming) -> Self {
        Kind::Plain(incoming).into()
    }

    /// All of it, where it was signed as a whole.
    pub(crate) fn into_whole(self) -> Option<Bytes> {
        match self.kind {
            Kind::Whole(bytes) => Some(bytes.unwrap_or_default()),
            Kind::Opened(_) | Kind::Plain(_) | Kind::Signed(_) | Kind::Unsigned(_) | Kind::Verified(_) => {
                None
            }
        }
    }

    /// Whether the length of what comes out is known beforehand.
    pub(crate) fn has_length(&self) -> bool {
        self.size_hint().exact().is_some()
    }

    /// The payload again, when nothing of it was sent: it can be signed for another connection.
    pub(crate) fn reclaim(self) -> Option<Payload> {
        match self.kind {
            Kind::Whole(bytes) => Some(Payload::Whole(bytes.unwrap_or_default())),
            Kind::Signed(body) if !body.started => {
                Some(Payload::Stream { source: body.source, length: body.length })
            }
            Kind::Unsigned(body) if !body.started => {
                Some(Payload::Stream { source: body.source, length: body.length })
            }
            Kind::Plain(_) | Kind::Signed(_) | Kind::Unsigned(_) | Kind::Verified(_) | Kind::Opened(_) => {
                None
            }
        }
    }

    /// Whether nothing of it is still to come from elsewhere.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.kind, Kind::Whole(_))
    }

    /// Whether there is nothing in it, and nothing comes.
    pub(crate) fn is_nothing(&self) -> bool {
        matches!(self.kind, Kind::Whole(None))
    }

    /// What was sealed in a verified body; `length` is what its sender said how long that is.
    ///
    /// # Errors
    /// [`Refusal::SealBroken`] when a whole body does not open, or is of another length.
    pub(crate) fn opened(self, mut reader: ChunkReader, length: Option<u64>) -> Result<Self, Refusal> {
        match self.kind {
            Kind::Whole(bytes) => {
                let mut sealed = BytesMut::from(bytes.unwrap_or_default());
                let mut plain = BytesMut::new();
                while let Some(chunk) = reader.decode(&mut sealed).map_err(|_| Refusal::SealBroken)? {
                    if plain.is_empty() {
                        plain = chunk.data;
                    } else {
                        plain.extend_from_slice(&chunk.data);
                    }
                }
                if !reader.is_done() || length.is_some_and(|length| length != plain.len() as u64) {
                    return Err(Refusal::SealBroken);
                }
                Ok(Self::whole(plain.freeze()))
            }
            Kind::Verified(inner) => {
                let input = BytesMut::new();
                Ok(Kind::Opened(Box::new(OpenedBody { inner, reader, input, remaining: length })).into())
            }
            // Nothing else was ever verified.
            _ => Err(Refusal::SealBroken),
        }
    }

    /// Lets the body go on only while its exchange is permitted. A whole one is permitted already.
    pub(crate) fn rechecked(mut self, recheck: impl FnOnce() -> Recheck) -> Self {
        if !matches!(self.kind, Kind::Whole(_)) {
            self.recheck = Some(recheck());
        }
        self
    }

    /// Keeps trailer fields from its reader. A whole body has none.
    pub(crate) fn withhold(&mut self, withheld: impl Fn(&HeaderName) -> bool + 'static) {
        if !matches!(self.kind, Kind::Whole(_)) {
            self.withheld = Some(Box::new(withheld));
        }
    }

    /// Lets the body make no progress for so long at most. A whole one is here already.
    pub(crate) fn idle_at_most(mut self, limit: Option<Duration>) -> Self {
        if let Some(limit) = limit
            && !matches!(self.kind, Kind::Whole(_))
        {
            self.idle =
                Some(Box::new(Idle { limit, until: Box::pin(tokio::time::sleep(limit)), waiting: false }));
        }
        self
    }

    /// Keeps `hold` alive until the body is done or dropped.
    pub(crate) fn holding(mut self, hold: Option<Hold>) -> Self {
        self._holds.extend(hold);
        self
    }
}

impl From<Kind> for Body {
    fn from(kind: Kind) -> Self {
        Self { kind, recheck: None, withheld: None, idle: None, _holds: Vec::new() }
    }
}

impl From<SignedBody> for Body {
    fn from(body: SignedBody) -> Self {
        Kind::Signed(Box::new(body)).into()
    }
}

impl From<UnsignedBody> for Body {
    fn from(body: UnsignedBody) -> Self {
        Kind::Unsigned(Box::new(body)).into()
    }
}

impl From<VerifiedBody> for Body {
    fn from(body: VerifiedBody) -> Self {
        Kind::Verified(Box::new(body)).into()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(recheck) = &mut self.recheck
            && !recheck.poll_permitted(cx)
        {
            return Poll::Ready(Some(Err(BodyError::NoLongerPermitted)));
        }
        let this = &mut *self;
        let mut polled = match &mut this.kind {
            Kind::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Plain(incoming) => Pin::new(incoming).poll_frame(cx).map_err(BodyError::Broken),
            Kind::Signed(body) => body.poll(cx),
            Kind::Unsigned(body) => body.poll(cx),
            Kind::Verified(body) => body.poll(cx),
            Kind::Opened(body) => body.poll(cx),
        };
        if let Some(idle) = &mut this.idle
            && idle.poll_over(&polled, cx)
        {
            return Poll::Ready(Some(Err(BodyError::Stalled)));
        }
        if let (Some(withheld), Poll::Ready(Some(Ok(frame)))) = (&this.withheld, &mut polled)
            && let Some(trailers) = frame.trailers_mut()
        {
            headers::remove_where(trailers, withheld);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole(bytes) => bytes.is_none(),
            Kind::Plain(incoming) => incoming.is_end_stream(),
            Kind::Signed(body) => body.done,
            Kind::Unsigned(body) => body.source.is_end_stream(),
            Kind::Verified(body) => body.done,
            Kind::Opened(body) => body.inner.done,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Kind::Plain(incoming) => incoming.size_hint(),
            Kind::Signed(_) => SizeHint::new(),
            Kind::Unsigned(body) => body.length.map_or_else(SizeHint::new, SizeHint::with_exact),
            Kind::Verified(body) => body.remaining.map_or_else(SizeHint::new, SizeHint::with_exact),
            Kind::Opened(body) => body.remaining.map_or_else(SizeHint::new, SizeHint::with_exact),
        }
    }
}

/// What a message carries, before it is known on which connection it travels.
pub(crate) enum Payload {
    /// All of it.
    Whole(Bytes),
    /// The rest is still to come, or ends in trailers.
    Stream {
        source: Source,
        /// What the application said its length would be.
        length: Option<u64>,
    },
}

/// Where the bytes of a streamed payload come from.
pub(crate) enum Source {
    Incoming(Incoming),
    /// Read already; only its trailers keep it from travelling whole.
    Ready(Bytes, HeaderMap),
    /// Sealed while it flows.
    Sealed(Box<SealedSource>),
}

/// A source whose bytes are sealed.
pub(crate) struct SealedSource {
    inner: Source,
    /// None after the last chunk.
    writer: Option<ChunkWriter>,
    /// They come after the last chunk.
    trailers: Option<HeaderMap>,
}

impl Payload {
    /// Takes a body of at most `whole_max` bytes into memory; everything else stays a stream.
    pub(crate) async fn take(mut body: Incoming, whole_max: usize) -> Result<Self, BodyError> {
        if body.is_end_stream() {
            return Ok(Self::Whole(Bytes::new()));
        }
        let length = body.size_hint().exact();
        if length.is_none_or(|length| length > whole_max as u64) {
            return Ok(Self::Stream { source: Source::Incoming(body), length });
        }
        let (whole, trailers) = read_whole(&mut body).await?;
        Ok(match trailers {
            Some(trailers) => Self::Stream { source: Source::Ready(whole, trailers), length },
            None => Self::Whole(whole),
        })
    }
}

impl Payload {
    /// The body of a message that nobody signs.
    pub(crate) fn unsigned(self) -> Body {
        match self {
            Self::Whole(bytes) => Body::whole(bytes),
            Self::Stream { source, length } => UnsignedBody { source, length, started: false }.into(),
        }
    }
}

/// Reads a body whose declared length is at most [`WHOLE_MAX`] to its end.
pub(crate) async fn read_whole(body: &mut Incoming) -> Result<(Bytes, Option<HeaderMap>), BodyError> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    let mut trailers = None;
    loop {
        let next = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
        let Ok(next) = tokio::time::timeout(STALLED, next).await else { return Err(BodyError::Stalled) };
        let Some(frame) = next else { break };
        match frame?.into_data() {
            Ok(data) if first.len() + rest.len() + data.len() > WHOLE_MAX => return Err(BodyError::Length),
            Ok(data) if first.is_empty() => first = data,
            Ok(data) => rest.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    if rest.is_empty() {
        return Ok((first, trailers));
    }
    let mut whole = BytesMut::with_capacity(first.len() + rest.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok((whole.freeze(), trailers))
}

impl SealedSource {
    /// Seals what the inner source has, as it comes: an event waits for nothing.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if self.writer.is_none() {
                return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            }
            let mut out = Vec::new();
            match ready!(self.inner.poll_frame(cx)?) {
                Some(frame) => match frame.into_data() {
                    Ok(data) => {
                        if let Some(writer) = &mut self.writer {
                            writer.write(&data, &mut out);
                        }
                    }
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        self.finish(&mut out);
                    }
                },
                None => self.finish(&mut out),
            }
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        if let Some(writer) = self.writer.take() {
            writer.finish(&[], out);
        }
    }
}

impl Source {
    /// This source, sealed.
    pub(crate) fn sealed(inner: Self, writer: ChunkWriter) -> Self {
        Self::Sealed(Box::new(SealedSource { inner, writer: Some(writer), trailers: None }))
    }

    /// The source that was sealed, when nothing of it was sent.
    pub(crate) fn unsealed(self) -> Self {
        match self {
            Self::Sealed(sealed) => sealed.inner,
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        // One that was read already still has its trailers.
        matches!(self, Self::Incoming(incoming) if incoming.is_end_stream())
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Incoming(incoming) => Pin::new(incoming).poll_frame(cx).map_err(BodyError::Broken),
            Self::Ready(bytes, _) if !bytes.is_empty() => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            Self::Ready(_, trailers) => Poll::Ready(Some(Ok(Frame::trailers(std::mem::take(trailers))))),
            Self::Sealed(sealed) => sealed.poll_frame(cx),
        }
    }
}

/// A body that nobody signs: bytes and trailers as they come, but for trailers that may not stand there.
pub(crate) struct UnsignedBody {
    source: Source,
    length: Option<u64>,
    started: bool,
}

impl UnsignedBody {
    /// The body of a message that was received unsigned.
    pub(crate) fn new(incoming: Incoming) -> Self {
        let length = incoming.size_hint().exact();
        Self { source: Source::Incoming(incoming), length, started: false }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.started = true;
        let Some(frame) = ready!(self.source.poll_frame(cx)?) else { return Poll::Ready(None) };
        Poll::Ready(Some(Ok(match frame.into_trailers() {
            Ok(mut trailers) => {
                headers::strip_trailers(&mut trailers);
                Frame::trailers(trailers)
            }
            Err(frame) => frame,
        })))
    }
}

/// An application's body on its way to the other sidecar, as signed records.
pub(crate) struct SignedBody {
    source: Source,
    length: Option<u64>,
    started: bool,
    writer: RecordWriter,
    done: bool,
}

impl SignedBody {
    /// Signs `source` under the head whose signature base is `head_base`.
    pub(crate) fn new(
        source: Source,
        length: Option<u64>,
        signer: Arc<dyn RecordSigner>,
        direction: Direction,
        head_base: &[u8],
    ) -> Self {
        let writer = RecordWriter::body(signer, direction, head_base);
        Self { source, length, started: false, writer, done: false }
    }

    /// Collects what the source has ready and signs it when the source pauses: the receiver
    /// delivers nothing that is unsigned, so a signature at each flush is what keeps events prompt.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        self.started = true;
        let mut out = BytesMut::new();
        while out.len() < CHUNK {
            match self.source.poll_frame(cx) {
                Poll::Ready(Some(frame)) => match frame?.into_data() {
                    Ok(data) => self.append(&data, &mut out)?,
                    Err(frame) => {
                        let mut trailers = frame.into_trailers().unwrap_or_default();
                        headers::strip_trailers(&mut trailers);
                        return self.end(&trailers, out);
                    }
                },
                Poll::Ready(None) => return self.end(&HeaderMap::new(), out),
                Poll::Pending => {
                    self.writer.sign(clock::unix_ms(), &mut out);
                    if out.is_empty() {
                        return Poll::Pending;
                    }
                    break;
                }
            }
        }
        Poll::Ready(Some(Ok(Frame::data(out.freeze()))))
    }

    fn append(&mut self, data: &[u8], out: &mut BytesMut) -> Result<(), BodyError> {
        // The writer refuses only use after the end, which `done` rules out.
        self.writer.data(data, clock::unix_ms(), out).map_err(|_| BodyError::Record("write-after-end"))
    }

    fn end(
        &mut self,
        trailers: &HeaderMap,
        mut out: BytesMut,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.done = true;
        let ended = self.writer.fin_with_trailers(trailers, clock::unix_ms(), &mut out);
        Poll::Ready(Some(
            ended.map(|()| Frame::data(out.freeze())).map_err(|_| BodyError::Record("trailers-too-large")),
        ))
    }
}

/// The other sidecar's records on their way to the application: only verified bytes come out, and
/// the end only after its signature.
pub(crate) struct VerifiedBody {
    inner: Incoming,
    reader: RecordReader,
    input: BytesMut,
    /// What the signed length still promises.
    remaining: Option<u64>,
    done: bool,
}

impl VerifiedBody {
    /// Verifies the records in `inner`; `length` is the signed length of the payload, if any.
    pub(crate) fn new(inner: Incoming, reader: RecordReader, length: Option<u64>) -> Self {
        Self { inner, reader, input: BytesMut::new(), remaining: length, done: false }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        loop {
            match self.reader.decode(&mut self.input).map_err(|e| BodyError::Record(e.code()))? {
                Some(Event::Data(data)) => return Poll::Ready(Some(self.count(data))),
                Some(Event::Fin { trailers }) => return self.end(trailers),
                Some(Event::Alert(_)) => return Poll::Ready(Some(Err(BodyError::Record("record-alerted")))),
                Some(_) => return Poll::Ready(Some(Err(BodyError::Record("record-unexpected")))),
                None => {}
            }
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.feed(data);
                    }
                }
                None => {
                    let truncated = self.reader.finish().err().map_or("record-truncated", |e| e.code());
                    return Poll::Ready(Some(Err(BodyError::Record(truncated))));
                }
            }
        }
    }

    /// Adds bytes to decode; what was decoded before is gone from the buffer.
    fn feed(&mut self, data: Bytes) {
        if self.input.is_empty() {
            self.input = BytesMut::from(data);
        } else {
            self.input.extend_from_slice(&data);
        }
    }

    fn count(&mut self, data: Bytes) -> Result<Frame<Bytes>, BodyError> {
        if let Some(remaining) = &mut self.remaining {
            *remaining = remaining.checked_sub(data.len() as u64).ok_or(BodyError::Length)?;
        }
        Ok(Frame::data(data))
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.remaining.is_some_and(|left| left > 0) {
            return Poll::Ready(Some(Err(BodyError::Length)));
        }
        if self.input.has_remaining() {
            return Poll::Ready(Some(Err(BodyError::Record("record-after-end"))));
        }
        if trailers.as_ref().is_some_and(|trailers| !headers::trailers_are_harmless(trailers)) {
            return Poll::Ready(Some(Err(BodyError::Record("trailers-not-allowed"))));
        }
        self.done = true;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

/// The other workload's sealed chunks on their way to the application. Every one was verified, with the records it came
/// in; what comes out ends only after the chunk that is marked as the last.
pub(crate) struct OpenedBody {
    inner: Box<VerifiedBody>,
    reader: ChunkReader,
    /// At most a chunk and what one record brought on top of it.
    input: BytesMut,
    /// What the declared length still promises.
    remaining: Option<u64>,
}

impl OpenedBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let chunk = self.reader.decode(&mut self.input);
            match chunk.map_err(|error| BodyError::Record(error.code()))? {
                Some(chunk) if chunk.data.is_empty() => continue,
                Some(chunk) => return Poll::Ready(Some(self.count(chunk.data.freeze()))),
                None => {}
            }
            match ready!(self.inner.poll(cx)?).map(Frame::into_data) {
                Some(Ok(data)) => self.input.extend_from_slice(&data),
                Some(Err(trailers)) => {
                    self.check_end()?;
                    return Poll::Ready(Some(Ok(trailers)));
                }
                None => {
                    self.check_end()?;
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn count(&mut self, data: Bytes) -> Result<Frame<Bytes>, BodyError> {
        if let Some(remaining) = &mut self.remaining {
            *remaining = remaining.checked_sub(data.len() as u64).ok_or(BodyError::Length)?;
        }
        Ok(Frame::data(data))
    }

    fn check_end(&self) -> Result<(), BodyError> {
        if !self.reader.is_done() {
            return Err(BodyError::Record("seal-truncated"));
        }
        if self.remaining.is_some_and(|left| left > 0) { Err(BodyError::Length) } else { Ok(()) }
    }
}
