//! The accept loop: bounded, and unimpressed by a lack of descriptors.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::ring::Direction;
use crate::sockets::{reset_on_close, tune};
use crate::worker::Worker;

/// The pause after an error that will repeat, such as a lack of descriptors: long enough not to
/// burn a core, short enough not to be felt when one comes free.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until `until` is done, and serves each in a task of its own.
pub(crate) async fn accept<F, S>(
    worker: Rc<Worker>,
    direction: Direction,
    listener: TcpListener,
    serve: S,
    until: impl Future<Output = ()>,
) where
    S: Fn(Rc<Worker>, TcpStream) -> F + 'static,
    F: Future<Output = ()> + 'static,
{
    let mut until = std::pin::pin!(until);
    loop {
        let accepted = tokio::select! {
            () = &mut until => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => admit(&worker, direction, stream, &serve),
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                worker.shared.metrics.accept_errors.inc();
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn admit<F: Future<Output = ()> + 'static>(
    worker: &Rc<Worker>,
    direction: Direction,
    stream: TcpStream,
    serve: &impl Fn(Rc<Worker>, TcpStream) -> F,
) {
    let place = worker.connections(direction).enter().filter(|_| tune(&stream).is_ok());
    let Some(place) = place else { return reset_on_close(&stream) };
    let shared = Arc::clone(&worker.shared);
    shared.metrics.open_connections.inc();
    let served = serve(Rc::clone(worker), stream);
    tokio::task::spawn_local(async move {
        served.await;
        drop(place);
        shared.metrics.open_connections.dec();
    });
}

fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
