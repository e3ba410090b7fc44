//! The operator's side: gRPC over a Unix socket that only the server's own user and root may use.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Uid;
use signet_sync::proto::admin::admin_server::AdminServer;
use signet_sync::{MAX_ADMIN_ANSWER_BYTES, MAX_MESSAGE_BYTES};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Status};

mod edges;
mod past;
mod rotate;
mod service;

use self::service::AdminService;
use crate::services::Mesh;
use crate::store::Store;

/// Connections waiting for HTTP/2 to take them; operators are few.
const READY_MAX: usize = 16;

/// Pause after the system refused to accept a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

/// Binds the socket, replacing one that a dead process left behind.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves this socket"));
            }
            std::fs::remove_file(path)?;
        }
        Ok(_) => {
            let reason = "a file that is not a socket is in the way";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, reason));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    // Until here the umask decides who may connect; the peer's uid is checked in any case.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves operators until the mesh drains.
pub(crate) async fn serve(
    listener: UnixListener,
    store: Arc<dyn Store>,
    mesh: Mesh,
) -> Result<(), tonic::transport::Error> {
    let (ready, connections) = mpsc::channel(READY_MAX);
    let draining = mesh.draining.clone();
    let service = AdminServer::new(AdminService::new(store, mesh))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_ADMIN_ANSWER_BYTES);
    let service = InterceptedService::new(service, only_operators);
    let serving = Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), draining.clone().cancelled_owned());
    tokio::pin!(serving);
    tokio::select! {
        result = &mut serving => result,
        () = accept(listener, ready) => serving.await,
        () = draining.cancelled() => serving.await,
    }
}

async fn accept(listener: UnixListener, ready: mpsc::Sender<io::Result<UnixStream>>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if ready.send(Ok(stream)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "connections to the admin socket cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// File permissions can be wrong; who is at the other end cannot.
fn only_operators(request: Request<()>) -> Result<Request<()>, Status> {
    let caller = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    if caller.is_some_and(|caller| is_operator(caller.uid(), Uid::effective().as_raw())) {
        return Ok(request);
    }
    tracing::warn!(uid = caller.map(|caller| caller.uid()), "a call to the admin socket was refused");
    Err(Status::permission_denied("only the control plane's own user and root may use the admin socket"))
}

fn is_operator(caller: u32, own: u32) -> bool {
    caller == 0 || caller == own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_servers_own_user_are_operators() {
        assert!(is_operator(0, 1000));
        assert!(is_operator(1000, 1000));
        assert!(!is_operator(1001, 1000));
        assert!(!is_operator(1000, 0));
    }

    #[test]
    fn a_call_without_a_known_caller_is_refused() {
        assert!(only_operators(Request::new(())).is_err());
    }
}
