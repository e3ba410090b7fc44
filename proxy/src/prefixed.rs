//! A TCP stream whose first bytes were already read while looking at the protocol.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::detect::{Protocol, SNIFF_MAX, Sniff, sniff};

/// How long a client may stay in the middle of its first line or ClientHello where anything may be
/// spoken. One that has begun to speak and stops is a line protocol without line ends, or an attack.
pub const HALF_SAID: Duration = Duration::from_secs(1);
/// The same where only HTTP is spoken: a person at a keyboard, within the time for a header section.
pub const HALF_SAID_HTTP: Duration = Duration::from_secs(30);

/// What is read ahead at first, and at most: eight TLS records. TLS itself asks for 4 KiB at a time.
const AHEAD_FIRST: usize = 16 * 1024;
const AHEAD_MAX: usize = 128 * 1024;

/// A stream that first gives back what was read to detect its protocol. While more is waiting than its reader asks
/// for it reads ahead; it holds nothing of that while nothing comes.
#[derive(Debug)]
pub struct Prefixed {
    stream: TcpStream,
    prefix: BytesMut,
    /// Bytes to read ahead; 0 as long as readers get all there is.
    ahead: usize,
}

impl Prefixed {
    /// A stream of which nothing was read.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, prefix: BytesMut::new(), ahead: 0 }
    }

    /// The stream below.
    pub fn get_ref(&self) -> &TcpStream {
        &self.stream
    }

    /// What was read and not yet given back.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Takes the stream apart: the bytes already read come first.
    pub fn into_parts(self) -> (TcpStream, BytesMut) {
        (self.stream, self.prefix)
    }

    /// Waits for the client's first bytes and says what they are; `None` when the client closed
    /// without a word. Cancel safe: what was read stays in the prefix.
    ///
    /// There is no timeout before the first byte, that is for the caller to bound; `half_said` bounds
    /// the time from there to the verdict.
    pub async fn detect_within(&mut self, half_said: Duration) -> io::Result<Option<Protocol>> {
        if self.prefix.is_empty() && !self.fill().await? {
            return Ok(None);
        }
        match tokio::time::timeout(half_said, self.decide()).await {
            Ok(verdict) => verdict.map(Some),
            Err(_) => Ok(Some(Protocol::Opaque)),
        }
    }

    /// [`Self::detect_within`] one second, the patience where anything may be spoken.
    pub async fn detect(&mut self) -> io::Result<Option<Protocol>> {
        self.detect_within(HALF_SAID).await
    }

    async fn decide(&mut self) -> io::Result<Protocol> {
        loop {
            match sniff(&self.prefix) {
                Sniff::Is(protocol) => return Ok(protocol),
                Sniff::NeedMore => {
                    if !self.fill().await? {
                        return Ok(Protocol::Opaque);
                    }
                }
            }
        }
    }

    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let given = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..given]);
        self.prefix.advance(given);
        if self.prefix.is_empty() && self.ahead == 0 {
            // The allocation is not needed again; connections live long.
            self.prefix = BytesMut::new();
        }
    }

    /// Fills the empty prefix with what is there.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.stream.poll_read_ready(cx)?.is_pending() {
                self.prefix = BytesMut::new();
                return Poll::Pending;
            }
            self.prefix.reserve(self.ahead);
            match self.stream.try_read_buf(&mut self.prefix) {
                Ok(read) if read >= self.ahead => self.ahead = (2 * self.ahead).min(AHEAD_MAX),
                Ok(read) if read < AHEAD_FIRST / 4 => self.ahead = 0,
                Ok(read) if read < self.ahead / 4 => self.ahead = (self.ahead / 2).max(AHEAD_FIRST),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(error)),
            }
            return Poll::Ready(Ok(()));
        }
    }

    /// Reads once into the prefix; false at the end of the stream.
    async fn fill(&mut self) -> io::Result<bool> {
        self.prefix.reserve(SNIFF_MAX / 4);
        Ok(self.stream.read_buf(&mut self.prefix).await? > 0)
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() && self.ahead > buf.remaining() {
            ready!(self.poll_ahead(cx))?;
            self.give(buf);
            return Poll::Ready(Ok(()));
        }
        if !self.prefix.is_empty() {
            self.give(buf);
            return Poll::Ready(Ok(()));
        }
        let asked = buf.remaining();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.remaining() == 0 && asked >= AHEAD_FIRST / 4 {
            self.ahead = AHEAD_FIRST;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}
