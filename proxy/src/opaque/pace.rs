//! How much is read at a time.

use std::io;

use bytes::BytesMut;
use tokio::net::tcp::ReadHalf;

/// What a stream begins with, and what it falls back to.
const FIRST: usize = 16 * 1024;

/// Grows while the source fills what it is offered, shrinks while it does not, so that bulk shares system calls and
/// signatures and a chat holds little. While nothing comes nothing is held at all.
pub(super) struct Pace {
    size: usize,
    most: usize,
}

impl Pace {
    pub(super) fn up_to(most: usize) -> Self {
        Self { size: FIRST.min(most), most }
    }

    /// What to read at most.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Takes note of how much came.
    pub(super) fn took(&mut self, bytes: usize) {
        if bytes >= self.size {
            self.size = (2 * self.size).min(self.most);
        } else if bytes < self.size / 4 {
            self.size = (self.size / 2).max(FIRST.min(self.most));
        }
    }

    /// Reads what the application has ready, and waits only if that is nothing; false at its end.
    pub(super) async fn read(&mut self, app: &mut ReadHalf<'_>, buffer: &mut BytesMut) -> io::Result<bool> {
        let more = loop {
            if buffer.len() >= self.size {
                break true;
            }
            buffer.reserve(self.size - buffer.len());
            match app.try_read_buf(buffer) {
                Ok(0) => break false,
                Ok(_) => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) if buffer.is_empty() => {
                    *buffer = BytesMut::new();
                    app.readable().await?;
                }
                Err(_) => break true,
            }
        };
        self.took(buffer.len());
        Ok(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heavy_traffic_is_taken_in_large_pieces_and_light_traffic_in_small_ones() {
        let mut pace = Pace::up_to(100_000);
        for _ in 0..5 {
            pace.took(pace.size());
        }
        assert_eq!(pace.size(), 100_000);
        pace.took(30_000);
        assert_eq!(pace.size(), 100_000, "a piece that is not full says little");
        for _ in 0..5 {
            pace.took(1);
        }
        assert_eq!(pace.size(), FIRST);
    }
}
