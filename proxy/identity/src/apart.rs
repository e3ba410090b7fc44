//! Something that one thread alone may use and that may hang, such as a chip or somebody else's library: it gets a thread of
//! its own, and nobody waits for it for ever.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// A subject on a thread of its own, which ends, and drops the subject, when this is dropped and all that was asked is done.
pub struct Apart<S> {
    jobs: SyncSender<Job<S>>,
    patience: Duration,
    /// How much was ever asked; locked while something is, so that the numbers are those of the queue.
    asked: Mutex<u64>,
    /// How much of that is done.
    done: Arc<AtomicU64>,
    /// The last that somebody waited for in vain.
    overdue: AtomicU64,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Unanswered {
    /// As much waits as may.
    #[error("it has too much to do")]
    Busy,
    /// Not in time, and nothing since; or its thread panicked.
    #[error("it does not answer")]
    Silent,
}

impl<S: Send + 'static> Apart<S> {
    /// Starts the thread. At most `waiting` questions wait, each for `patience` at most; whoever asked in vain was the last to
    /// wait until an answer comes after all.
    ///
    /// # Errors
    /// The machine starts no thread.
    pub fn new(name: &str, subject: S, waiting: usize, patience: Duration) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(waiting);
        let done = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&done);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || serve(subject, &queue, &counter))?;
        Ok(Self { jobs, patience, asked: Mutex::new(0), done, overdue: AtomicU64::new(0) })
    }

    /// Does something with the subject, on its thread. Blocks.
    ///
    /// # Errors
    /// [`Unanswered`]. What was asked may be done later all the same.
    pub fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<T, Unanswered> {
        if self.overdue.load(Ordering::Relaxed) > self.done.load(Ordering::Relaxed) {
            return Err(Unanswered::Silent);
        }
        let (answer, answered) = sync_channel(1);
        let job = Box::new(move |subject: &mut S| {
            // Whoever asked may have given up.
            let _ = answer.send(act(subject));
        });
        let number = {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            self.jobs.try_send(job).map_err(|error| match error {
                TrySendError::Full(_) => Unanswered::Busy,
                TrySendError::Disconnected(_) => Unanswered::Silent,
            })?;
            *asked += 1;
            *asked
        };
        answered.recv_timeout(self.patience).map_err(|_| {
            self.overdue.fetch_max(number, Ordering::Relaxed);
            Unanswered::Silent
        })
    }
}

fn serve<S>(mut subject: S, jobs: &Receiver<Job<S>>, done: &AtomicU64) {
    while let Ok(job) = jobs.recv() {
        job(&mut subject);
        done.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_in_vain_is_the_last_to_wait_until_an_answer_comes() {
        let apart = Apart::new("test", 0_u32, 2, Duration::from_millis(50)).unwrap();
        assert_eq!(apart.ask(|count| *count), Ok(0));
        let (free, hangs) = sync_channel::<()>(0);
        let first = apart.ask(move |count| {
            let _ = hangs.recv();
            *count += 1;
        });
        assert_eq!(first, Err(Unanswered::Silent));
        // At once, however often.
        for _ in 0..100 {
            assert_eq!(apart.ask(|count| *count), Err(Unanswered::Silent));
        }
        drop(free);
        while apart.ask(|count| *count) != Ok(1) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn no_more_wait_than_may() {
        let apart = Arc::new(Apart::new("test", (), 1, Duration::from_secs(60)).unwrap());
        let (begun, has_begun) = sync_channel::<()>(0);
        let (free, hangs) = sync_channel::<()>(0);
        let asking = |apart: &Arc<Apart<()>>, act: Box<dyn FnOnce() + Send>| {
            let apart = Arc::clone(apart);
            std::thread::spawn(move || apart.ask(move |()| act()))
        };
        let first = asking(
            &apart,
            Box::new(move || {
                let _ = begun.send(());
                let _ = hangs.recv();
            }),
        );
        has_begun.recv().unwrap();
        let second = asking(&apart, Box::new(|| ()));
        while *apart.asked.lock().unwrap() < 2 {
            std::thread::yield_now();
        }
        assert_eq!(apart.ask(|()| ()), Err(Unanswered::Busy));
        drop(free);
        assert_eq!((first.join().unwrap(), second.join().unwrap()), (Ok(()), Ok(())));
    }

    #[test]
    fn a_subject_that_panics_is_silent_and_one_that_is_let_go_is_dropped() {
        let apart = Apart::new("test", (), 1, Duration::from_secs(60)).unwrap();
        assert_eq!(apart.ask(|()| panic!("of the test")), Err::<(), _>(Unanswered::Silent));
        assert_eq!(apart.ask(|()| ()), Err(Unanswered::Silent));

        struct Told(SyncSender<()>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        let (tell, told) = sync_channel(1);
        drop(Apart::new("test", Told(tell), 1, Duration::from_secs(60)).unwrap());
        told.recv().unwrap();
    }
}
