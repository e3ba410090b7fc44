//! Servers inside the test process that tell what reaches them.

use std::io;
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use signet_cli::lab::Container;

use super::stage::{Failure, LIMIT};

/// Serves a port of a container, IPv4 and IPv6, each connection on a thread of its own, for as long as the test runs.
/// What a connection comes to is for the handler to note; its error ends that connection alone.
pub(crate) fn serve<S: Send + Sync + 'static>(
    container: &Container,
    port: u16,
    notes: Arc<S>,
    handler: fn(TcpStream, &S) -> io::Result<()>,
) -> Result<(), Failure> {
    let listener = container.namespace().run(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))??;
    let accept = move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let notes = Arc::clone(&notes);
            thread::spawn(move || {
                let limited = stream.set_read_timeout(Some(LIMIT)).and_then(|()| stream.set_nodelay(true));
                // The other side sees how it ended; the notes say what was seen here.
                let _ = limited.and_then(|()| handler(stream, &notes));
            });
        }
    };
    thread::Builder::new().name(format!("server-{port}")).spawn(accept)?;
    Ok(())
}
