//! Connections without a client certificate: they are for enrolling, and must not crowd out anybody.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use super::sources::{Share, Sources};

/// Connections at once.
const ALL_MAX: usize = 1_024;

/// Of them, from one source: sidecars behind one gateway come back when there is room, each in about a second.
const PER_SOURCE: usize = 16;

/// The longest time without a request.
const SILENCE: Duration = Duration::from_secs(10);

/// The longest connection: one enrolment over a slow link.
const LIFETIME: Duration = Duration::from_secs(30);

/// The room there is.
#[derive(Clone)]
pub(super) struct Lobby {
    all: Arc<Semaphore>,
    sources: Arc<Sources>,
}

/// One connection in it; it leaves when this is dropped.
pub(super) struct Guest {
    deadline: Pin<Box<Sleep>>,
    end: Instant,
    asked: Asked,
    _place: OwnedSemaphorePermit,
    _share: Share,
}

/// Whether a connection has made a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked(Arc<AtomicBool>);

impl Asked {
    /// A request came.
    pub(crate) fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Lobby {
    pub(super) fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(ALL_MAX)), sources: Sources::new(PER_SOURCE) }
    }

    /// Lets a connection in, if there is room for its source.
    pub(super) fn enter(&self, source: IpAddr, asked: Asked) -> Option<Guest> {
        let share = self.sources.enter(source)?;
        let place = self.all.clone().try_acquire_owned().ok()?;
        let now = Instant::now();
        Some(Guest {
            deadline: Box::pin(tokio::time::sleep_until(now + SILENCE)),
            end: now + LIFETIME,
            asked,
            _place: place,
            _share: share,
        })
    }
}

impl Guest {
    /// Ready when the connection has to end.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.deadline.as_mut().poll(cx).is_ready() {
            let has_time = self.asked.0.load(Ordering::Relaxed) && self.deadline.deadline() < self.end;
            if !has_time {
                return Poll::Ready(());
            }
            self.deadline.as_mut().reset(self.end);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn ip() -> IpAddr {
        "10.0.0.1".parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_ends_early() {
        let (asked, start) = (Asked::default(), Instant::now());
        let mut silent = Lobby::new().enter(ip(), asked).unwrap();
        poll_fn(|cx| silent.poll_end(cx)).await;
        assert_eq!(start.elapsed().as_secs(), SILENCE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_asked_has_time_for_the_answer_and_then_ends_too() {
        let (asked, start) = (Asked::default(), Instant::now());
        let mut guest = Lobby::new().enter(ip(), asked.clone()).unwrap();
        asked.note();
        poll_fn(|cx| guest.poll_end(cx)).await;
        assert_eq!(start.elapsed().as_secs(), LIFETIME.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_has_its_share_for_as_long_as_its_connections_last() {
        let lobby = Lobby::new();
        let mut guests: Vec<_> =
            (0..PER_SOURCE).map(|_| lobby.enter(ip(), Asked::default()).unwrap()).collect();
        assert!(lobby.enter(ip(), Asked::default()).is_none());
        assert!(lobby.enter("10.0.0.2".parse().unwrap(), Asked::default()).is_some());
        guests.pop();
        assert!(lobby.enter(ip(), Asked::default()).is_some());
    }
}
