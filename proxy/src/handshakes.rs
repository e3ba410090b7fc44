//! Where handshakes are made. A key in memory signs in microseconds, on the worker; a TPM takes tenths of a second, in which a
//! worker would serve nobody, so those handshakes have a thread of their own and wait for each other there.

use std::future::Future;
use std::io;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

/// On the worker without a runtime.
#[derive(Debug, Default)]
pub struct Handshakes(Option<Runtime>);

impl Handshakes {
    /// A thread for them.
    ///
    /// # Errors
    /// The machine starts none.
    pub fn apart() -> io::Result<Self> {
        let mut runtime = Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).thread_name("handshakes").enable_time().build()?;
        Ok(Self(Some(runtime)))
    }

    /// Makes one. Dropping the future gives it up.
    pub(crate) async fn make<T: Send + 'static>(
        &self,
        handshake: impl Future<Output = io::Result<T>> + Send + 'static,
    ) -> io::Result<T> {
        let Some(runtime) = &self.0 else { return handshake.await };
        let mut made = JoinSet::new();
        // Its socket stays with the worker's driver, which wakes whoever waits for it.
        made.spawn_on(handshake, runtime.handle());
        made.join_next().await.and_then(Result::ok).unwrap_or_else(|| Err(io::ErrorKind::Interrupted.into()))
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        // The last to hold it may be a task, which must not wait.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn one_that_blocks_its_thread_holds_up_nobody_else() {
        let handshakes = Handshakes::apart().unwrap();
        let (free, blocked) = std::sync::mpsc::sync_channel::<()>(0);
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let slow = handshakes.make(async move {
            let first = there.read_u8().await?;
            let _ = blocked.recv();
            Ok((there, first))
        });
        let others = async {
            here.write_u8(7).await.unwrap();
            // Long enough for it to block; this thread goes on meanwhile.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            drop(free);
        };
        let (made, ()) = tokio::join!(slow, others);
        let (mut there, first) = made.unwrap();
        assert_eq!(first, 7);
        // What it made is used here.
        there.write_u8(8).await.unwrap();
        assert_eq!(here.read_u8().await.unwrap(), 8);
    }

    #[tokio::test]
    async fn one_that_is_given_up_ends() {
        let handshakes = Handshakes::apart().unwrap();
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let waiting = handshakes.make(async move { there.read_u8().await });
        assert!(tokio::time::timeout(Duration::from_millis(1), waiting).await.is_err());
        assert_eq!(here.read(&mut [0]).await.unwrap(), 0);
    }
}
