//! What `signet` asks a Docker engine: over its Unix socket, HTTP/1.1 and JSON, in the version the engine prefers.
//!
//! Whoever may use that socket is root on its machine, so this does the few things that are needed and nothing else.

pub(crate) mod operations;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use signet_inject::compose::{ROLE_GUARD, ROLE_HOLDER, ROLE_LABEL};
use thiserror::Error;
use tokio::net::UnixStream;

/// One answer: thousands of containers with all their labels.
const ANSWER_MAX: usize = 64 * 1024 * 1024;
/// One event: a container with all its labels.
const EVENT_MAX: usize = 1024 * 1024;
/// The engine takes seconds to stop a container that does not want to end, and waits ten by default.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The engine's word for a container whose namespace is another's.
const JOINED: &str = "container:";

/// Why the engine gave no answer.
#[derive(Debug, Error)]
pub(crate) enum DockerError {
    /// It is no engine that we know.
    #[error("the engine's answer is not understood: {0}")]
    Answer(#[from] serde_json::Error),
    /// The connection failed.
    #[error("the engine's connection: {0}")]
    Connection(#[from] hyper::Error),
    /// The engine went away.
    #[error("the engine ended its stream of events")]
    Ended,
    /// What was to be sent is no request.
    #[error("no request can be made of that: {0}")]
    Http(#[from] http::Error),
    /// No connection.
    #[error("{}: {error}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// More than an answer may have.
    #[error("the engine's answer is too long or broken off")]
    Length,
    /// The engine refused.
    #[error("the engine refused with {status}: {message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// Its words.
        message: String,
    },
    /// It took too long.
    #[error("the engine did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
}

/// An engine, by its socket.
#[derive(Clone, Debug)]
pub(crate) struct Docker {
    socket: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    version: String,
}

/// A container, as in the list of all.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    host_config: ListedHostConfig,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ListedHostConfig {
    pub(crate) network_mode: String,
}

/// A container.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Container {
    /// 64 hexadecimal digits.
    pub(crate) id: String,
    /// With a slash before it.
    pub(crate) name: String,
    /// Of the image, `sha256:…`.
    #[serde(default)]
    pub(crate) image: String,
    pub(crate) state: State,
    pub(crate) host_config: HostConfig,
    pub(crate) config: Config,
    #[serde(default)]
    pub(crate) network_settings: NetworkSettings,
    /// Engines write `null` where there are none.
    #[serde(default)]
    pub(crate) mounts: Option<Vec<Mount>>,
}

/// What a container mounts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Mount {
    /// Of a volume.
    pub(crate) name: String,
    /// On the host.
    pub(crate) source: String,
    /// `bind`, `volume`, `tmpfs`, …
    #[serde(rename = "Type")]
    pub(crate) kind: String,
}

/// Where it is reached.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NetworkSettings {
    pub(crate) networks: Option<BTreeMap<String, Endpoint>>,
}

/// Its place in one network; addresses are empty while it does not run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Endpoint {
    #[serde(rename = "NetworkID")]
    pub(crate) network_id: String,
    #[serde(rename = "IPAddress")]
    pub(crate) address: String,
    #[serde(rename = "GlobalIPv6Address")]
    pub(crate) address_v6: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Config {
    /// As it was asked for.
    #[serde(default)]
    pub(crate) image: String,
    /// Engines write `null` where there are none.
    pub(crate) labels: Option<BTreeMap<String, String>>,
}

/// What it is doing.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct State {
    pub(crate) running: bool,
    pub(crate) restarting: bool,
    #[serde(default)]
    pub(crate) paused: bool,
    /// Why it could not be started, if it could not.
    pub(crate) error: String,
    pub(crate) started_at: Moment,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct HostConfig {
    pub(crate) network_mode: String,
    #[serde(default)]
    pub(crate) restart_policy: RestartPolicy,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RestartPolicy {
    pub(crate) name: String,
}

/// A time as the engine writes it (RFC 3339, UTC), which can be compared: its fraction has nine digits.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Moment(String);

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::of(&text))
    }
}

impl Moment {
    pub(crate) fn of(text: &str) -> Self {
        let text = text.strip_suffix('Z').unwrap_or(text);
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        Self(format!("{seconds}.{fraction:0<9}"))
    }
}

impl NetworkSettings {
    pub(crate) fn addresses(&self) -> BTreeSet<IpAddr> {
        let endpoints = self.networks.iter().flatten();
        endpoints
            .flat_map(|(_, endpoint)| [&endpoint.address, &endpoint.address_v6])
            .filter_map(|text| text.parse().ok())
            .collect()
    }
}

impl Container {
    /// The container whose network namespace it lives in.
    pub(crate) fn joined(&self) -> Option<&str> {
        self.host_config.network_mode.strip_prefix(JOINED)
    }

    /// What a label says.
    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.config.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// The addresses by which others reach it.
    pub(crate) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.network_settings.addresses()
    }

    /// Whether `signet inject compose` made it to hold a network namespace for others.
    pub(crate) fn is_holder(&self) -> bool {
        self.label(ROLE_LABEL) == Some(ROLE_HOLDER)
    }

    /// Whether `signet inject compose` made it to guard services of the host's network.
    pub(crate) fn is_guard(&self) -> bool {
        let labels = self.config.labels.as_ref();
        labels.and_then(|labels| labels.get(ROLE_LABEL)).is_some_and(|role| role == ROLE_GUARD)
    }

    /// Whether the engine starts it after its own restart.
    pub(crate) fn comes_back(&self) -> bool {
        matches!(self.host_config.restart_policy.name.as_str(), "always" | "unless-stopped")
    }
}

impl Docker {
    pub(crate) const fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The engine's version, as it calls it.
    pub(crate) async fn version(&self) -> Result<String, DockerError> {
        let Version { version } = self.ask(Method::GET, "/version").await?;
        Ok(version)
    }

    /// Every container that lives in another's network namespace, running or not.
    pub(crate) async fn joined(&self) -> Result<Vec<Container>, DockerError> {
        let listed: Vec<Listed> = self.ask(Method::GET, "/containers/json?all=1").await?;
        let mut containers = Vec::new();
        for listed in listed {
            if listed.host_config.network_mode.starts_with(JOINED) {
                containers.extend(self.container(&listed.id).await?);
            }
        }
        Ok(containers)
    }

    /// One container; `None` when it is gone.
    pub(crate) async fn container(&self, id: &str) -> Result<Option<Container>, DockerError> {
        match self.ask(Method::GET, &format!("/containers/{id}/json")).await {
            Ok(container) => Ok(Some(container)),
            Err(DockerError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Starts it; no error when it runs already.
    pub(crate) async fn start(&self, id: &str) -> Result<(), DockerError> {
        self.tell(&format!("/containers/{id}/start")).await
    }

    /// Stops it, with its own time to end, and starts it.
    pub(crate) async fn restart(&self, id: &str) -> Result<(), DockerError> {
        self.tell(&format!("/containers/{id}/restart")).await
    }

    /// Tells of every container that starts or ends from now on.
    pub(crate) async fn changes(&self) -> Result<Changes, DockerError> {
        self.events(&["start", "die"]).await
    }

    /// Tells of these events of containers and networks from now on.
    pub(crate) async fn events(&self, wanted: &[&str]) -> Result<Changes, DockerError> {
        let filters = serde_json::json!({ "type": ["container", "network"], "event": wanted }).to_string();
        let path = format!("/events?filters={}", operations::encode(&filters));
        // Its head comes at once; only what follows may take for ever.
        let head = tokio::time::timeout(ANSWER_TIMEOUT, self.send(Method::GET, &path, Content::None)).await;
        let response = head.map_err(|_| DockerError::Timeout)??;
        Ok(Changes { body: response.into_body(), rest: Vec::new() })
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, DockerError> {
        let whole = async {
            let response = self.send(method, path, Content::None).await?;
            Ok(serde_json::from_slice(&collect(response.into_body(), ANSWER_MAX).await?)?)
        };
        tokio::time::timeout(ANSWER_TIMEOUT, whole).await.map_err(|_| DockerError::Timeout)?
    }

    async fn tell(&self, path: &str) -> Result<(), DockerError> {
        let whole = self.send(Method::POST, path, Content::None);
        tokio::time::timeout(ANSWER_TIMEOUT, whole).await.map_err(|_| DockerError::Timeout)?.map(drop)
    }

    /// The answer's head was good.
    async fn send(
        &self,
        method: Method,
        path: &str,
        content: Content,
    ) -> Result<http::Response<Incoming>, DockerError> {
        let stream = connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the answer's body; what goes wrong is told there.
        tokio::spawn(connection);
        let (kind, bytes) = match content {
            Content::Archive(bytes) => (Some("application/x-tar"), bytes),
            Content::Json(bytes) => (Some("application/json"), bytes),
            Content::None => (None, Bytes::new()),
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "docker");
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let request = request.body(Full::new(bytes))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        // 304: it is already as asked.
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let body = collect(response.into_body(), EVENT_MAX).await?;
        let message = serde_json::from_slice::<Message>(&body).map(|message| message.message);
        Err(DockerError::Refused { status, message: message.unwrap_or_default() })
    }
}

/// A request's body.
#[derive(Debug)]
enum Content {
    /// A tar.
    Archive(Bytes),
    Json(Bytes),
    None,
}

#[derive(Deserialize)]
struct Message {
    message: String,
}

async fn connect(path: &Path) -> Result<UnixStream, DockerError> {
    UnixStream::connect(path).await.map_err(|error| DockerError::Io { path: path.to_owned(), error })
}

async fn collect(body: Incoming, limit: usize) -> Result<Bytes, DockerError> {
    Ok(Limited::new(body, limit).collect().await.map_err(|_| DockerError::Length)?.to_bytes())
}

/// What happened to a container.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Event {
    #[serde(rename = "Action")]
    pub(crate) action: String,
    #[serde(rename = "Actor")]
    pub(crate) actor: Actor,
    /// Unix nanoseconds.
    #[serde(rename = "timeNano", default)]
    pub(crate) time_nano: u64,
}

/// Whom it happened to.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Actor {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    /// A container's labels are among them.
    #[serde(rename = "Attributes", default)]
    pub(crate) attributes: BTreeMap<String, String>,
}

/// A stream of changes.
#[derive(Debug)]
pub(crate) struct Changes {
    body: Incoming,
    rest: Vec<u8>,
}

impl Changes {
    /// Waits until something has changed. What, is looked up: an event is only a reason to look.
    pub(crate) async fn next(&mut self) -> Result<(), DockerError> {
        loop {
            if let Some(end) = memchr::memrchr(b'\n', &self.rest) {
                self.rest.drain(..=end);
                return Ok(());
            }
            self.more().await?;
        }
    }

    /// Waits for the next event. May be dropped at any time: what has come is kept.
    pub(crate) async fn event(&mut self) -> Result<Event, DockerError> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.rest) {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Result<(), DockerError> {
        let frame = self.body.frame().await.ok_or(DockerError::Ended)??;
        if let Ok(data) = frame.into_data() {
            self.rest.extend_from_slice(&data);
        }
        if self.rest.len() > EVENT_MAX {
            return Err(DockerError::Length);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_different_precision_are_compared_by_time() {
        let order =
            ["2026-11-26T20:07:31Z", "2026-11-26T20:07:31.5Z", "2026-11-26T20:07:31.51Z"].map(Moment::of);
        assert!(order.is_sorted() && order[0] != order[1]);
        assert_eq!(Moment::of("2026-11-26T20:07:31Z"), Moment::of("2026-11-26T20:07:31.000000000Z"));
    }
}
