//! Asking what may hang, such as a hardware module, from a task: the others of its thread go on meanwhile.

use signet_identity::{Apart, Unanswered};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

/// Does something with the subject, on its thread.
pub(crate) fn ask<S: Send + 'static, T: Send + 'static>(
    subject: &Apart<S>,
    act: impl FnOnce(&mut S) -> T + Send + 'static,
) -> Result<T, Unanswered> {
    let asking = || subject.ask(act);
    match Handle::try_current() {
        // Whatever else waits on this worker is given to another.
        Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => block_in_place(asking),
        _ => asking(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn while_it_hangs_everything_else_goes_on() {
        let apart = Arc::new(Apart::new("test", (), 64, Duration::from_secs(60)).unwrap());
        let (free, hangs) = std::sync::mpsc::channel::<()>();
        let hangs = Arc::new(std::sync::Mutex::new(hangs));
        // More than there are workers.
        let asked: Vec<_> = (0..8)
            .map(|_| {
                let (apart, hangs) = (Arc::clone(&apart), Arc::clone(&hangs));
                tokio::spawn(async move {
                    ask(&apart, move |()| {
                        let _ = hangs.lock().unwrap().recv();
                    })
                })
            })
            .collect();
        for _ in 0..100 {
            tokio::spawn(tokio::task::yield_now()).await.unwrap();
        }
        assert!(asked.iter().all(|asked| !asked.is_finished()));
        drop(free);
        for asked in asked {
            assert_eq!(asked.await.unwrap(), Ok(()));
        }
    }
}
