//! Open exchanges are judged again whenever policy, trust or revocations change.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;

use crate::authorize::Grant;
use crate::snapshot::Snapshot;
use crate::worker::Worker;

/// Watches for changes on behalf of one open exchange.
pub(crate) struct Recheck {
    worker: Rc<Worker>,
    stands: Box<dyn Fn(&Snapshot) -> bool>,
    changes: WatchStream<u64>,
}

impl Recheck {
    /// Starts to watch over what `grant` allowed.
    pub(crate) fn new(worker: &Rc<Worker>, grant: Grant) -> Self {
        Self::begin(worker, grant, Grant::is_judged, Grant::stands)
    }

    /// The same for an exchange whose messages are signed, or are not.
    pub(crate) fn of(worker: &Rc<Worker>, grant: Grant, signed: bool) -> Self {
        if signed {
            return Self::new(worker, grant);
        }
        // That nothing has to be signed was found before it was permitted, maybe under an older policy.
        let is_judged = |grant: &Grant, snapshot: &Snapshot| {
            grant.is_judged(snapshot) && grant.is_public(&snapshot.index)
        };
        Self::begin(worker, grant, is_judged, Grant::stands_unsigned)
    }

    /// Starts to watch over something else than a grant.
    pub(crate) fn by(worker: &Rc<Worker>, stands: impl Fn(&Snapshot) -> bool + 'static) -> Self {
        let changes = WatchStream::new(worker.shared.changes.clone());
        Self { worker: Rc::clone(worker), stands: Box::new(stands), changes }
    }

    /// Judges at once, unless that was done and nothing has changed since.
    fn begin(
        worker: &Rc<Worker>,
        grant: Grant,
        is_judged: impl Fn(&Grant, &Snapshot) -> bool,
        stands: impl Fn(&Grant, &Snapshot) -> bool + 'static,
    ) -> Self {
        let mut changes = worker.shared.changes.clone();
        let told = *changes.borrow_and_update();
        // A snapshot is in force before its generation is told. So if this is the one that was told, what comes after it will
        // be told yet.
        let snapshot = worker.shared.snapshot();
        let is_judged = snapshot.generation == told && is_judged(&grant, &snapshot);
        drop(snapshot);
        let changes = if is_judged { WatchStream::from_changes(changes) } else { WatchStream::new(changes) };
        let stands = move |snapshot: &Snapshot| stands(&grant, snapshot);
        Self { worker: Rc::clone(worker), stands: Box::new(stands), changes }
    }

    /// Whether it would be permitted at this moment.
    pub(crate) fn stands_now(&self) -> bool {
        (self.stands)(&self.worker.shared.snapshot())
    }

    /// Whether the exchange may go on; wakes the task when that has to be asked again.
    pub(crate) fn poll_permitted(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            match Pin::new(&mut self.changes).poll_next(cx) {
                Poll::Ready(Some(_)) if self.stands_now() => {}
                Poll::Ready(Some(_)) => return false,
                // The control thread ends only with the process.
                Poll::Ready(None) | Poll::Pending => return true,
            }
        }
    }

    /// Waits until the exchange is no longer permitted.
    pub(crate) async fn withdrawn(&mut self) {
        std::future::poll_fn(|cx| if self.poll_permitted(cx) { Poll::Pending } else { Poll::Ready(()) })
            .await;
    }
}
