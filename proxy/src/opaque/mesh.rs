//! The mesh connection of a stream, shared by the two directions of one task.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Poll, ready};

use bytes::BytesMut;
use signet_signature::record::{Event, RecordReader};
use tokio::io::{AsyncBufRead, AsyncWrite};

use super::Broken;
use crate::tls::MeshStream;

/// Both directions in one task, so that a borrow never lasts beyond one poll.
pub(super) struct Mesh(RefCell<MeshStream>);

impl Mesh {
    pub(super) fn new(stream: MeshStream) -> Self {
        Self(RefCell::new(stream))
    }

    pub(super) fn into_inner(self) -> MeshStream {
        self.0.into_inner()
    }

    /// The peer's next record or delivery, decoded where TLS left the bytes. `input` was read before and comes
    /// first.
    pub(super) async fn event(
        &self,
        reader: &mut RecordReader,
        input: &mut BytesMut,
    ) -> Result<Event, Broken> {
        if let Some(event) = reader.decode(input)? {
            return Ok(event);
        }
        // All of it was taken; what it needs is not needed again.
        *input = BytesMut::new();
        poll_fn(|cx| {
            let mut mesh = self.0.borrow_mut();
            loop {
                let chunk = ready!(Pin::new(&mut *mesh).poll_fill_buf(cx)).map_err(Broken::Mesh)?;
                if chunk.is_empty() {
                    return Poll::Ready(Err(reader.finish().err().map_or(Broken::Release, Broken::Record)));
                }
                let mut rest = chunk;
                let event = reader.decode(&mut rest)?;
                let taken = chunk.len() - rest.len();
                Pin::new(&mut *mesh).consume(taken);
                if let Some(event) = event {
                    return Poll::Ready(Ok(event));
                }
            }
        })
        .await
    }

    /// Appends what has arrived up to a length of `size`; waits only if nothing has. False at the peer's
    /// authenticated end; a connection that only breaks off is an error.
    pub(super) async fn read(&self, buffer: &mut BytesMut, size: usize) -> io::Result<bool> {
        poll_fn(|cx| {
            let mut mesh = self.0.borrow_mut();
            loop {
                let room = size.saturating_sub(buffer.len());
                if room == 0 {
                    return Poll::Ready(Ok(true));
                }
                let chunk = match Pin::new(&mut *mesh).poll_fill_buf(cx) {
                    Poll::Ready(Ok([])) => return Poll::Ready(Ok(false)),
                    Poll::Ready(Ok(chunk)) => chunk,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending if buffer.is_empty() => {
                        *buffer = BytesMut::new();
                        return Poll::Pending;
                    }
                    Poll::Pending => return Poll::Ready(Ok(true)),
                };
                let taken = chunk.len().min(room);
                if buffer.capacity() == 0 {
                    buffer.reserve(size);
                }
                buffer.extend_from_slice(&chunk[..taken]);
                Pin::new(&mut *mesh).consume(taken);
            }
        })
        .await
    }

    /// Sends all the pieces, in order, and sees them off.
    pub(super) async fn send(&self, mut pieces: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut pieces, 0);
        poll_fn(|cx| {
            let mut mesh = self.0.borrow_mut();
            while !pieces.is_empty() {
                let written = ready!(Pin::new(&mut *mesh).poll_write_vectored(cx, pieces))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                IoSlice::advance_slices(&mut pieces, written);
            }
            Pin::new(&mut *mesh).poll_flush(cx)
        })
        .await
    }

    /// Ends our direction with `close_notify`.
    pub(super) async fn shutdown(&self) -> io::Result<()> {
        poll_fn(|cx| Pin::new(&mut *self.0.borrow_mut()).poll_shutdown(cx)).await
    }
}
