//! How many requests to one destination are under way at once, and how many wait.

use std::cell::Cell;
use std::rc::Rc;

use signet_policy::{Concurrency, Refusal};
use tokio::sync::Notify;

/// The places of one destination.
#[derive(Default)]
pub(crate) struct Slots {
    taken: Cell<usize>,
    waiting: Cell<usize>,
    freed: Notify,
}

/// A place, given back when dropped.
pub(crate) struct Slot(Rc<Slots>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.taken.set(self.0.taken.get() - 1);
        self.0.freed.notify_one();
    }
}

/// One that waits, however it ends.
struct Waiting<'a>(&'a Slots);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

impl Slots {
    /// A place, at once or after some time; refused when as many wait already as may.
    pub(crate) async fn enter(self: &Rc<Self>, limit: Concurrency) -> Result<Slot, Refusal> {
        let most = limit.max_requests as usize;
        // Nobody overtakes those that wait.
        if self.waiting.get() == 0 && self.taken.get() < most {
            return Ok(self.take());
        }
        if self.waiting.get() >= limit.max_pending as usize {
            return Err(Refusal::ConcurrencyLimit);
        }
        self.waiting.set(self.waiting.get() + 1);
        let waiting = Waiting(self);
        loop {
            self.freed.notified().await;
            if self.taken.get() < most {
                break;
            }
        }
        drop(waiting);
        let slot = self.take();
        // A limit that was raised has room for more than the one who was woken.
        if self.waiting.get() > 0 && self.taken.get() < most {
            self.freed.notify_one();
        }
        Ok(slot)
    }

    /// Whether nobody is here.
    pub(crate) fn is_idle(&self) -> bool {
        self.taken.get() == 0 && self.waiting.get() == 0
    }

    fn take(self: &Rc<Self>) -> Slot {
        self.taken.set(self.taken.get() + 1);
        Slot(Rc::clone(self))
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn places_are_given_in_the_order_of_those_who_wait() {
        let slots = Rc::<Slots>::default();
        let limit = Concurrency { max_requests: 1, max_pending: 2 };
        let Poll::Ready(Ok(first)) = poll(pin!(slots.enter(limit))) else { panic!("free") };
        let (mut second, mut third) = (Box::pin(slots.enter(limit)), Box::pin(slots.enter(limit)));
        assert!(poll(second.as_mut()).is_pending() && poll(third.as_mut()).is_pending());
        assert!(matches!(poll(pin!(slots.enter(limit))), Poll::Ready(Err(Refusal::ConcurrencyLimit))));
        drop(first);
        assert!(poll(third.as_mut()).is_pending());
        let Poll::Ready(Ok(second)) = poll(second.as_mut()) else { panic!("its turn") };
        drop(second);
        assert!(matches!(poll(third.as_mut()), Poll::Ready(Ok(_))));
        assert!(slots.is_idle());
    }

    #[test]
    fn one_who_gives_up_waiting_hands_its_turn_on() {
        let slots = Rc::<Slots>::default();
        let limit = Concurrency { max_requests: 1, max_pending: 2 };
        let Poll::Ready(Ok(first)) = poll(pin!(slots.enter(limit))) else { panic!("free") };
        let (mut second, mut third) = (Box::pin(slots.enter(limit)), Box::pin(slots.enter(limit)));
        assert!(poll(second.as_mut()).is_pending() && poll(third.as_mut()).is_pending());
        drop(first);
        drop(second);
        assert!(matches!(poll(third.as_mut()), Poll::Ready(Ok(_))));
        assert!(slots.is_idle());
    }
}
