//! A delay of an exact length: a back end that rounds its delay to milliseconds would hide what is measured.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{Notify, oneshot};

/// Requests that may wait at a time; more than any measure sends.
const WAITING_MAX: usize = 100_000;

/// Those who wait: until when, and how to wake them. First come, first served.
type Waiting = VecDeque<(Instant, oneshot::Sender<()>)>;

/// Lets everybody wait equally long.
#[derive(Clone, Debug, Default)]
pub struct Pacer {
    waiting: Arc<Mutex<Waiting>>,
    came: Arc<Notify>,
}

impl Pacer {
    /// Waits for this long, which must be the same in every call: first come, first served.
    pub async fn wait(&self, delay: Duration) {
        let (wake, woken) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() < WAITING_MAX {
                waiting.push_back((Instant::now() + delay, wake));
            }
        }
        self.came.notify_one();
        // It is dropped without a word when there is no place: no delay then.
        let _ = woken.await;
    }

    /// Wakes those who wait, one after the other, until it is dropped.
    ///
    /// # Errors
    /// A system without timers.
    pub async fn run(self) -> io::Result<()> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        // To the runtime it is as good as a pipe: it becomes readable, and then eight bytes are read.
        let mut expired = Receiver::from_owned_fd_unchecked(timer.as_fd().try_clone_to_owned()?)?;
        loop {
            let next = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((until, wake)) = next else {
                self.came.notified().await;
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                timer.set(Expiration::OneShot(left.into()), TimerSetTimeFlags::empty())?;
                // How often it expired, which is once.
                expired.read_exact(&mut [0; 8]).await?;
            }
            // A client that went away needs no waking.
            let _ = wake.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_waits_shorter_and_all_are_woken() {
        let pacer = Pacer::default();
        let running = tokio::spawn(pacer.clone().run());
        let delay = Duration::from_millis(2);
        let begun = Instant::now();
        for _ in 0..3 {
            let both = (pacer.wait(delay), pacer.wait(delay));
            tokio::join!(both.0, both.1);
        }
        assert!(begun.elapsed() >= delay * 3);
        running.abort();
    }
}
