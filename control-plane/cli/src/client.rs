//! The control plane's Unix socket, as the operator's commands use it.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use signet_identity::TrustDomain;
use signet_sync::proto::admin::InfoRequest;
use signet_sync::proto::admin::admin_client::AdminClient;
use signet_sync::{MAX_ADMIN_ANSWER_BYTES, MAX_MESSAGE_BYTES};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::output::Failure;

/// Longest wait for one answer: a control plane of the largest size compiles its policy well within.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Most trust domains named in one sentence: as many as one control plane serves.
const SHOWN_MAX: usize = 32;

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

    /// The trust domain meant: which one where the control plane serves several, and to be sure where it serves one
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<TrustDomain>,
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
        Self { socket: Socket(path), trust_domain: None }
    }

    /// Where the socket is: of several trust domains each has one in a directory of its name.
    pub(crate) fn path(&self) -> PathBuf {
        let Socket(path) = &self.socket;
        let own = match (&self.trust_domain, path.parent(), path.file_name()) {
            (Some(domain), Some(directory), Some(name)) => directory.join(domain.as_str()).join(name),
            _ => return path.clone(),
        };
        if own.exists() { own } else { path.clone() }
    }

    /// The trust domain meant; empty where it was not said.
    pub(crate) fn trust_domain(&self) -> String {
        self.trust_domain.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// What to say when nobody answers at the socket: that a trust domain has to be chosen, if that is all.
    fn unreachable(&self, path: &Path, error: &std::io::Error) -> Failure {
        let served = if self.trust_domain.is_none() { served_below(path) } else { Vec::new() };
        if served.is_empty() {
            return Failure::Unavailable(format!("control plane at {}: {error}", path.display()));
        }
        let served = served.join(", ");
        Failure::Usage(format!(
            "the control plane at {} serves several trust domains: choose one of {served} with --trust-domain",
            path.display()
        ))
    }

    /// Opens the socket.
    pub(crate) async fn connect(&self) -> Result<AdminClient<Channel>, Failure> {
        let path = self.path();
        let shown = path.display().to_string();
        // Tried by hand first: tonic's own error does not say which file is missing.
        UnixStream::connect(&path).await.map_err(|error| self.unreachable(&path, &error))?;
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
        let mut client = AdminClient::new(channel)
            .max_decoding_message_size(MAX_ADMIN_ANSWER_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        if let Some(meant) = &self.trust_domain {
            let served = answered(client.info(InfoRequest {}).await)?.trust_domain;
            if served != meant.as_str() {
                return Err(Failure::Usage(format!(
                    "the control plane at {} serves the trust domain {served}, not {meant}",
                    self.path().display()
                )));
            }
        }
        Ok(client)
    }
}

/// The trust domains that have a socket of this name in a directory of theirs beside it.
fn served_below(path: &Path) -> Vec<String> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Vec::new() };
    let entries = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let serving = entries.filter(|entry| entry.path().join(name).exists());
    let names = serving.filter_map(|entry| entry.file_name().into_string().ok());
    let mut served: Vec<String> =
        names.filter(|name| TrustDomain::parse(name).is_ok()).take(SHOWN_MAX).collect();
    served.sort();
    served
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

    #[tokio::test]
    async fn of_several_trust_domains_one_has_to_be_chosen_and_its_own_socket_is_used() {
        let folder = tempfile::tempdir().unwrap();
        for domain in ["platform.example", "shop.example"] {
            std::fs::create_dir(folder.path().join(domain)).unwrap();
            std::fs::write(folder.path().join(domain).join("admin.sock"), "").unwrap();
        }
        let all = ControlPlane::at(folder.path().join("admin.sock"));
        let Err(Failure::Usage(text)) = all.connect().await else { panic!("nothing was chosen") };
        assert!(text.contains("choose one of platform.example, shop.example with --trust-domain"), "{text}");
        let chosen = ControlPlane { trust_domain: Some(TrustDomain::parse("shop.example").unwrap()), ..all };
        assert_eq!(chosen.path(), folder.path().join("shop.example/admin.sock"));
        assert!(matches!(chosen.connect().await, Err(Failure::Unavailable(_))), "nobody answers there");
    }

    #[test]
    fn socket_is_a_path_with_or_without_its_scheme() {
        assert_eq!("unix:/run/a.sock".parse(), Ok(Socket("/run/a.sock".into())));
        assert_eq!("/run/a.sock".parse(), Ok(Socket("/run/a.sock".into())));
        for wrong in ["", "unix:", "http://host:1", "tcp:host:1"] {
            assert!(wrong.parse::<Socket>().is_err(), "{wrong}");
        }
    }
}
