//! The control plane's Unix socket, as the operator's commands use it.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use signet_sync::proto::admin::admin_client::AdminClient;
use signet_sync::{MAX_ADMIN_ANSWER_BYTES, MAX_MESSAGE_BYTES};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::output::Failure;

/// Longest wait for one answer: a control plane of the largest size compiles its policy well within.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the control plane listens for operators.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ControlPlane {
    /// The control plane's socket, unix:/path
    #[arg(
        long = "control-plane",
        env = "SIGNET_ADMIN_SOCKET",
        default_value = "unix:/var/lib/signet/admin.sock",
        value_name = "SOCKET"
    )]
    socket: Socket,
}

/// A Unix socket's path, `unix:` before it or not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Socket(PathBuf);

impl FromStr for Socket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        if path.is_empty() || path.contains("://") || path.starts_with("tcp:") {
            return Err("the control plane is administered over a Unix socket: unix:/path".to_owned());
        }
        Ok(Self(PathBuf::from(path)))
    }
}

impl ControlPlane {
    /// The control plane behind this socket.
    pub(crate) const fn at(path: PathBuf) -> Self {
        Self { socket: Socket(path) }
    }

    /// Where the socket is.
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.socket.0
    }

    /// Opens the socket.
    pub(crate) async fn connect(&self) -> Result<AdminClient<Channel>, Failure> {
        let path = self.socket.0.clone();
        let shown = path.display().to_string();
        // Tried by hand first: tonic's own error does not say which file is missing.
        UnixStream::connect(&path)
            .await
            .map_err(|error| Failure::Unavailable(format!("control plane at {shown}: {error}")))?;
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The name is never resolved: the connector knows where to go.
        let channel = Endpoint::from_static("http://signet.invalid")
            .timeout(ANSWER_TIMEOUT)
            .connect_with_connector(connector)
            .await
            .map_err(|error| Failure::Unavailable(format!("control plane at {shown}: {error}")))?;
        Ok(AdminClient::new(channel)
            .max_decoding_message_size(MAX_ADMIN_ANSWER_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }
}

/// What the control plane answered, or that it has no such thing.
pub(crate) fn found<T>(answer: Result<tonic::Response<T>, Status>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(response) => Ok(Some(response.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(failure(&status)),
    }
}

/// What the control plane answered.
pub(crate) fn answered<T>(answer: Result<tonic::Response<T>, Status>) -> Result<T, Failure> {
    answer.map(tonic::Response::into_inner).map_err(|status| failure(&status))
}

fn failure(status: &Status) -> Failure {
    let text = format!("control plane: {}", status.message());
    match status.code() {
        Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::NotFound
        | Code::OutOfRange => Failure::Usage(text),
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::Unauthenticated
        | Code::Unavailable => Failure::Unavailable(text),
        _ => Failure::Internal(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_is_a_path_with_or_without_its_scheme() {
        assert_eq!("unix:/run/a.sock".parse(), Ok(Socket("/run/a.sock".into())));
        assert_eq!("/run/a.sock".parse(), Ok(Socket("/run/a.sock".into())));
        for wrong in ["", "unix:", "http://host:1", "tcp:host:1"] {
            assert!(wrong.parse::<Socket>().is_err(), "{wrong}");
        }
    }
}
