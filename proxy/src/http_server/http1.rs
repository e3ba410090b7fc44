//! HTTP/1.1 on one accepted connection. One that is silent between two requests is taken away from hyper until its client
//! speaks again, and then keeps no buffers: applications hold many such connections open for long.

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1::{Builder, Parts};
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use super::{Answer, Reset, ServeError, Switch};
use crate::body::Body;
use crate::head::READ_BYTES_MAX;

/// How long a client may take for a header section, give or take a [`BEAT`]: slow headers hold a connection hostage.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a connection is looked at: whether it is silent, or stays in the middle of a head. A timer for each request
/// would cost more than what it finds.
const BEAT: Duration = Duration::from_secs(5);
/// How long a peer that does not read is waited for when all that is left to say is goodbye.
const FAREWELL: Duration = Duration::from_secs(1);
/// What is read at once of a client that speaks again; hyper reads the rest.
const AWAKENING: usize = 512;

/// The time a connection goes by.
pub(super) trait Timer {
    /// Now.
    fn now(&self) -> Instant;
    /// Resolves then.
    fn sleep_until(&self, then: Instant) -> impl Future<Output = ()>;
}

/// The runtime's.
#[derive(Debug)]
pub(super) struct RealTime;

impl Timer for RealTime {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep_until(&self, then: Instant) -> impl Future<Output = ()> {
        tokio::time::sleep_until(then.into())
    }
}

/// Serves the connection; see [`super::serve`].
pub(super) async fn serve<I, F>(
    timer: &impl Timer,
    io: I,
    draining: impl Future<Output = ()>,
    switch: Switch,
    rest: Duration,
    respond: F,
) -> Result<Option<(I, Bytes)>, ServeError>
where
    I: AsyncRead + AsyncWrite + Reset + Unpin + 'static,
    F: Fn(Request<Incoming>) -> Answer + Unpin + 'static,
{
    let progress = Rc::<Progress>::default();
    let mut io = Resumed { io, read: Bytes::new(), progress: Rc::clone(&progress) };
    let mut service = Counted { respond, progress: Rc::clone(&progress) };
    let mut draining = pin!(draining);
    loop {
        let (ended, parts) = until_silent(timer, io, service, &switch, &progress, draining.as_mut()).await;
        (io, service) = (parts.io.into_inner(), parts.service);
        match ended {
            Ended::Over(Ok(())) if switch.get() => return Ok(Some((io.io, parts.read_buf))),
            Ended::Over(over) => return end(io.io, over).await,
            Ended::Silent => io.read = parts.read_buf,
        }
        if io.read.is_empty() {
            let spoken = tokio::select! {
                () = draining.as_mut() => Ok(false),
                () = timer.sleep_until(timer.now() + rest) => Ok(false),
                spoken = poll_fn(|cx| io.poll_awake(cx)) => spoken,
            };
            match spoken {
                Ok(true) => {}
                Ok(false) => return end(io.io, Ok(())).await,
                Err(error) => return end(io.io, Err(error.into())).await,
            }
        }
    }
}

async fn end<I>(mut io: I, over: Result<(), ServeError>) -> Result<Option<(I, Bytes)>, ServeError>
where
    I: AsyncWrite + Reset + Unpin,
{
    match &over {
        // close_notify or FIN: everything was said.
        Ok(()) => drop(timeout(FAREWELL, io.shutdown()).await),
        // The end of a body that broke off must not look like its end.
        Err(_) => io.reset(),
    }
    over.map(|()| None)
}

enum Ended {
    Over(Result<(), ServeError>),
    /// Everything that was asked is answered, and the answer is written.
    Silent,
}

/// Serves requests until the connection is over, or silent between two of them. Somebody speaks: a head has begun.
async fn until_silent<I, F>(
    timer: &impl Timer,
    io: Resumed<I>,
    service: Counted<F>,
    switch: &Switch,
    progress: &Progress,
    mut draining: Pin<&mut impl Future<Output = ()>>,
) -> (Ended, Parts<TokioIo<Resumed<I>>, Counted<F>>)
where
    I: AsyncRead + AsyncWrite + Reset + Unpin + 'static,
    F: Fn(Request<Incoming>) -> Answer + Unpin + 'static,
{
    // Boxed: a silent connection keeps no room for it.
    let mut connection = Box::new(builder().serve_connection(TokioIo::new(io), service));
    let (began, before) = (timer.now(), progress.begun.get());
    let mut beat = pin!(timer.sleep_until(began + BEAT));
    let mut seen = None;
    let mut is_last = false;
    let ended = poll_fn(|cx| {
        if !is_last && draining.as_mut().poll(cx).is_ready() {
            is_last = true;
            Pin::new(&mut *connection).graceful_shutdown();
        }
        if let Poll::Ready(over) = connection.poll_without_shutdown(cx) {
            return Poll::Ready(Ended::Over(over.map_err(ServeError::from)));
        }
        while beat.as_mut().poll(cx).is_ready() {
            let now = timer.now();
            beat.set(timer.sleep_until(now + BEAT));
            // Twice in a row: hyper has had a turn since the answer was complete, and has dealt with what is left of a
            // body that the answer did not wait for. Only then does it say by its end that it is between two requests.
            let begun = progress.is_answered().then(|| progress.begun.get());
            let was_silent = std::mem::replace(&mut seen, begun) == begun && begun.is_some();
            let begun = progress.begun.get();
            if begun == before {
                if now - began >= HEADER_TIMEOUT {
                    return Poll::Ready(Ended::Over(Err(ServeError::SlowHead)));
                }
            } else if was_silent && !is_last && !switch.get() {
                // At once over, if hyper sees it between two requests as well. Otherwise, while a body is still handed
                // on whose answer did not wait for it, with that.
                is_last = true;
                Pin::new(&mut *connection).graceful_shutdown();
                if let Poll::Ready(over) = connection.poll_without_shutdown(cx) {
                    return Poll::Ready(match over {
                        Ok(()) => Ended::Silent,
                        Err(error) => Ended::Over(Err(error.into())),
                    });
                }
            }
        }
        Poll::Pending
    });
    let ended = ended.await;
    (ended, connection.into_parts())
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .max_buf_size(READ_BYTES_MAX)
        .half_close(true)
        .auto_date_header(false)
        // What the application wrote is what arrives; where a field was set aside on the way its
        // usual spelling comes back.
        .preserve_header_case(true)
        .title_case_headers(true);
    builder
}

/// How far a connection has come.
#[derive(Default)]
struct Progress {
    /// Requests whose head was complete.
    begun: Cell<u64>,
    /// Held by what is not answered yet, and by answers that are not at their end.
    under_way: Rc<()>,
    /// Whether something may be left of what was written.
    is_writing: Cell<bool>,
}

impl Progress {
    /// Whether nothing is left to be said.
    fn is_answered(&self) -> bool {
        Rc::strong_count(&self.under_way) == 1 && !self.is_writing.get()
    }
}

/// The service, counting.
struct Counted<F> {
    respond: F,
    progress: Rc<Progress>,
}

impl<F: Fn(Request<Incoming>) -> Answer> Service<Request<Incoming>> for Counted<F> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        self.progress.begun.set(self.progress.begun.get().wrapping_add(1));
        Answering { answer: (self.respond)(request), under_way: Rc::clone(&self.progress.under_way) }
    }
}

struct Answering {
    answer: Answer,
    under_way: Rc<()>,
}

impl Future for Answering {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(self.answer.as_mut().poll(cx))?;
        // What is whole is written at once.
        let under_way = (!response.body().is_whole()).then(|| Rc::clone(&self.under_way) as _);
        Poll::Ready(Ok(response.map(|body| body.holding(under_way))))
    }
}

/// A connection of which something was read before.
struct Resumed<I> {
    io: I,
    read: Bytes,
    progress: Rc<Progress>,
}

impl<I: AsyncRead + Unpin> Resumed<I> {
    /// Waits for the client to speak; false when it closes instead.
    fn poll_awake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut bytes = [0; AWAKENING];
        let mut buffer = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
        self.read = Bytes::copy_from_slice(buffer.filled());
        Poll::Ready(Ok(!self.read.is_empty()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Resumed<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let given = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..given]);
        self.read.advance(given);
        if self.read.is_empty() {
            self.read = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Resumed<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.progress.is_writing.set(true);
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.progress.is_writing.set(true);
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    // Called when everything was handed to `poll_write`, not before.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.progress.is_writing.set(false);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
