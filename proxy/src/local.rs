//! What the application may ask of its sidecar: to sign, verify, seal and open messages that outlive the hop.
//!
//! * [`config`] – where it listens, and for whom: off unless asked for.
//! * `messages` – what is done with a message, one function for each; the rest only reads requests.
//! * `http` – the Unix socket, HTTP with JSON. Who connects is asked of the kernel.
//! * `aclib` – mF2C's line protocol on a loopback port, for components that already speak it.
//!
//! Whoever may use it speaks for the workload: it is no boundary within a container. It runs on a thread of its own, so
//! that an application that keeps it busy keeps nothing else waiting.

mod aclib;
pub mod config;
mod http;
mod messages;
mod refused;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::runtime;
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::unix_socket::{self, Access};
use crate::worker::Shared;
use config::LocalConfig;
use messages::Messages;

/// Requests at a time: an application's threads, each waiting for one. What each holds is bounded, see
/// [`LocalConfig::request_bytes`].
const CONNECTIONS_MAX: usize = 32;
/// How long a client may take for its request, and for taking the answer. The work itself takes milliseconds.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept: out of descriptors, trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bound, and not served yet.
pub(crate) struct Listeners {
    unix: Option<std::os::unix::net::UnixListener>,
    aclib: Option<std::net::TcpListener>,
}

impl Listeners {
    /// Binds what the settings ask for. The error names the place.
    pub(crate) fn bind(config: &LocalConfig) -> Result<Self, (String, io::Error)> {
        let unix = match &config.socket {
            Some(path) => {
                let bound = unix_socket::bind(path, Access::Group(config.gid));
                Some(bound.map_err(|error| (path.display().to_string(), error))?)
            }
            None => None,
        };
        let aclib = match config.aclib {
            Some(address) => {
                let bound = std::net::TcpListener::bind(address)
                    .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
                Some(bound.map_err(|error| (address.to_string(), error))?)
            }
            None => None,
        };
        Ok(Self { unix, aclib })
    }
}

/// Serves on a thread of its own until the process ends, or `cut` says that nothing is served any more.
pub(crate) fn start(
    listeners: Listeners,
    shared: Arc<Shared>,
    mut cut: watch::Receiver<bool>,
) -> io::Result<()> {
    if listeners.unix.is_none() && listeners.aclib.is_none() {
        return Ok(());
    }
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let unix = listeners.unix.map(UnixListener::from_std).transpose()?;
    let aclib = listeners.aclib.map(TcpListener::from_std).transpose()?;
    drop(entered);
    std::thread::Builder::new().name("local".to_owned()).spawn(move || {
        LocalSet::new().block_on(&runtime, async move {
            let messages = Rc::new(Messages::new(shared));
            let lines = async {
                match aclib {
                    Some(listener) => aclib::serve(listener, Rc::clone(&messages)).await,
                    None => std::future::pending().await,
                }
            };
            let requests = async {
                match unix {
                    Some(listener) => http::serve(listener, Rc::clone(&messages)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = async { tokio::join!(lines, requests) } => {}
                // The process ends with the sender.
                _ = cut.wait_for(|cut| *cut) => {}
            }
        });
    })?;
    Ok(())
}
