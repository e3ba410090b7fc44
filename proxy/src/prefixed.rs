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

/// A stream that first gives back what was read to detect its protocol.
#[derive(Debug)]
pub struct Prefixed {
    stream: TcpStream,
    prefix: BytesMut,
}

impl Prefixed {
    /// A stream of which nothing was read.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, prefix: BytesMut::new() }
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
        if !self.prefix.is_empty() {
            let given = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix[..given]);
            self.prefix.advance(given);
            if self.prefix.is_empty() {
                // The allocation is not needed again; connections live long.
                self.prefix = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
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
