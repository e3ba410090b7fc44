//! What is asked of an engine to put a sidecar beside a container, and to take it away again.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    ANSWER_MAX, ANSWER_TIMEOUT, Content, Docker, DockerError, EVENT_MAX, ListedHostConfig, Mount,
    NetworkSettings, collect,
};

/// What a program that is run within a container may print: a line or two.
const SAID_MAX: usize = 64 * 1024;

/// A container, as the list has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Listed {
    pub(crate) id: String,
    pub(crate) names: Option<Vec<String>>,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    /// `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
    pub(crate) state: String,
    pub(crate) host_config: ListedHostConfig,
    #[serde(default)]
    pub(crate) network_settings: NetworkSettings,
    #[serde(default)]
    pub(crate) mounts: Option<Vec<Mount>>,
}

/// An image.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Image {
    pub(crate) id: String,
    pub(crate) repo_tags: Option<Vec<String>>,
    pub(crate) repo_digests: Option<Vec<String>>,
    pub(crate) config: Option<ImageConfig>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ImageConfig {
    pub(crate) exposed_ports: Option<BTreeMap<String, Value>>,
    /// A container has them too, unless it has its own of the same name.
    #[serde(default)]
    pub(crate) labels: Option<BTreeMap<String, String>>,
}

/// A volume.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Volume {
    /// What its driver was told, as `device`.
    pub(crate) options: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Info {
    #[serde(rename = "DockerRootDir", default)]
    root: String,
}

/// How a program within a container ended.
#[derive(Clone, Debug)]
pub(crate) struct Ran {
    pub(crate) exit_code: i64,
    /// What it printed.
    pub(crate) said: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Made {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Execution {
    exit_code: Option<i64>,
}

impl Listed {
    /// What a label says.
    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.labels.as_ref()?.get(name).map(String::as_str)
    }
}

impl Image {
    /// One that the engine does not have any more.
    pub(crate) fn gone(id: &str) -> Self {
        Self { id: id.to_owned(), repo_tags: None, repo_digests: None, config: None }
    }

    /// What it says of containers that are made of it.
    pub(crate) fn labels(&self) -> impl Iterator<Item = (&String, &String)> {
        self.config.iter().filter_map(|config| config.labels.as_ref()).flatten()
    }
}

impl Docker {
    /// Every container there is.
    pub(crate) async fn everything(&self) -> Result<Vec<Listed>, DockerError> {
        self.ask(Method::GET, "/containers/json?all=1").await
    }

    /// A volume by its name; `None` when the engine does not have it.
    pub(crate) async fn volume(&self, name: &str) -> Result<Option<Volume>, DockerError> {
        match self.ask(Method::GET, &format!("/volumes/{}", encode(name))).await {
            Ok(volume) => Ok(Some(volume)),
            Err(DockerError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where on the host the engine keeps volumes and everything else.
    pub(crate) async fn data_root(&self) -> Result<String, DockerError> {
        let Info { root } = self.ask(Method::GET, "/info").await?;
        Ok(root)
    }

    /// Every container that has a label, running or not.
    pub(crate) async fn labelled(&self, label: &str) -> Result<Vec<Listed>, DockerError> {
        let filters = encode(&json!({ "label": [label] }).to_string());
        self.ask(Method::GET, &format!("/containers/json?all=1&filters={filters}")).await
    }

    /// Every container that runs, paused ones included.
    pub(crate) async fn running(&self) -> Result<Vec<Listed>, DockerError> {
        self.ask(Method::GET, "/containers/json").await
    }

    /// An image by its name or id; `None` when the engine does not have it.
    pub(crate) async fn image(&self, reference: &str) -> Result<Option<Image>, DockerError> {
        match self.ask(Method::GET, &format!("/images/{}/json", encode(reference))).await {
            Ok(image) => Ok(Some(image)),
            Err(DockerError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a container and returns its id.
    ///
    /// `version` is the API's, as `/v1.41`; empty: the engine's newest.
    pub(crate) async fn create(
        &self,
        version: &str,
        name: &str,
        body: &Value,
    ) -> Result<String, DockerError> {
        let path = format!("{version}/containers/create?name={}", encode(name));
        let answer = self.asked(Method::POST, &path, Content::json(body), ANSWER_MAX).await?;
        Ok(serde_json::from_slice::<Made>(&answer)?.id)
    }

    /// Removes a container with its anonymous volumes, running or not; no error when it is gone already.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), DockerError> {
        let path = format!("/containers/{id}?v=1&force=1");
        gone_is_good(self.asked(Method::DELETE, &path, Content::None, EVENT_MAX).await)
    }

    /// Stops a container; no error when it does not run or is gone.
    ///
    /// `within` is far below the engine's own limit for an answer here.
    pub(crate) async fn stop(&self, id: &str, within: Duration) -> Result<(), DockerError> {
        let path = format!("/containers/{id}/stop?t={}", within.as_secs());
        gone_is_good(self.asked(Method::POST, &path, Content::None, EVENT_MAX).await)
    }

    /// Stops its processes where they are.
    pub(crate) async fn pause(&self, id: &str) -> Result<(), DockerError> {
        self.tell(&format!("/containers/{id}/pause")).await
    }

    /// Lets its processes go on.
    pub(crate) async fn unpause(&self, id: &str) -> Result<(), DockerError> {
        self.tell(&format!("/containers/{id}/unpause")).await
    }

    /// Gives it another name.
    pub(crate) async fn rename(&self, id: &str, name: &str) -> Result<(), DockerError> {
        self.tell(&format!("/containers/{id}/rename?name={}", encode(name))).await
    }

    /// Puts it into a network.
    pub(crate) async fn connect(&self, network: &str, id: &str) -> Result<(), DockerError> {
        let path = format!("/networks/{}/connect", encode(network));
        let content = Content::json(&json!({ "Container": id }));
        self.asked(Method::POST, &path, content, EVENT_MAX).await.map(drop)
    }

    /// Unpacks a tar into a folder of a container.
    pub(crate) async fn upload(&self, id: &str, folder: &str, archive: Vec<u8>) -> Result<(), DockerError> {
        let path = format!("/containers/{id}/archive?path={}", encode(folder));
        self.asked(Method::PUT, &path, Content::Archive(archive.into()), EVENT_MAX).await.map(drop)
    }

    /// Runs a program within a running container, and waits until it ends.
    pub(crate) async fn execute(&self, id: &str, command: &[&str]) -> Result<Ran, DockerError> {
        let content = Content::json(&json!({ "Cmd": command, "AttachStdout": true, "AttachStderr": true }));
        let made = self.asked(Method::POST, &format!("/containers/{id}/exec"), content, EVENT_MAX).await?;
        let id = serde_json::from_slice::<Made>(&made)?.id;
        let content = Content::json(&json!({ "Detach": false, "Tty": false }));
        let said = self.asked(Method::POST, &format!("/exec/{id}/start"), content, SAID_MAX).await?;
        let ended: Execution = self.ask(Method::GET, &format!("/exec/{id}/json")).await?;
        Ok(Ran { exit_code: ended.exit_code.unwrap_or(-1), said: unframed(&said) })
    }

    async fn asked(
        &self,
        method: Method,
        path: &str,
        content: Content,
        limit: usize,
    ) -> Result<Bytes, DockerError> {
        let whole = async { collect(self.send(method, path, content).await?.into_body(), limit).await };
        tokio::time::timeout(ANSWER_TIMEOUT, whole).await.map_err(|_| DockerError::Timeout)?
    }
}

impl Content {
    fn json(value: &Value) -> Self {
        Self::Json(value.to_string().into())
    }
}

/// What is to end may have ended already.
fn gone_is_good(done: Result<Bytes, DockerError>) -> Result<(), DockerError> {
    match done {
        Err(DockerError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(()),
        done => done.map(drop),
    }
}

/// The text of a stream in which the engine marks each piece by eight bytes: which output, and how long.
fn unframed(stream: &[u8]) -> String {
    let mut text = Vec::new();
    let mut rest = stream;
    while let Some((head, after)) = rest.split_first_chunk::<8>() {
        let [.., a, b, c, d] = *head;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let (piece, next) = after.split_at(length.min(after.len()));
        text.extend_from_slice(piece);
        rest = next;
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// A text as a part of a path or query (RFC 3986 section 2.1), but for the slashes that an image's name has.
pub(crate) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_no_part_of_a_path_is_encoded() {
        assert_eq!(encode("shop/web:1.2"), "shop/web:1.2");
        assert_eq!(encode("a b?c#d&é"), "a%20b%3Fc%23d%26%C3%A9");
    }

    #[test]
    fn framed_output_is_put_together_and_a_broken_frame_ends_it() {
        assert_eq!(unframed(b"\x01\0\0\0\0\0\0\x03one\x02\0\0\0\0\0\0\x04 two"), "one two");
        assert_eq!(unframed(b"\x01\0\0\0\xff\xff\xff\xffone"), "one");
        assert_eq!(unframed(b"\x01\0\0"), "");
    }
}
