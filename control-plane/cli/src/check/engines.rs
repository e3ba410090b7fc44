//! Docker, Compose and kubectl: whether they are here, and new enough.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::finding::{Finding, Topic};
use super::version::Release;
use crate::docker::{Docker, DockerError};

/// The oldest engine that injected projects were run under.
const ENGINE_MIN: Release = Release { major: 20, minor: 10 };
/// The oldest `docker-compose` whose output of `signet inject compose` was run.
const COMPOSE_MIN: Release = Release { major: 1, minor: 29 };
/// Native sidecars are on by default from here on.
const KUBERNETES_MIN: Release = Release { major: 1, minor: 29 };

/// A program that tells its version takes less, and so does an engine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Versions are a few hundred bytes.
const ANSWER_MAX: u64 = 64 * 1024;

/// What became of asking the engine for its version.
#[derive(Debug)]
pub(crate) struct Engine(Result<String, EngineError>);

#[derive(Debug)]
enum EngineError {
    /// There is none at the usual place.
    Absent(String),
    /// It is there and does not answer us.
    Silent(String),
}

/// Asks the engine behind a socket.
pub(crate) async fn docker(socket: &Path) -> Engine {
    let engine = Docker::at(socket.to_owned());
    let asked = tokio::time::timeout(ANSWER_TIMEOUT, engine.version()).await;
    Engine(match asked {
        Ok(Ok(version)) => Ok(version),
        Ok(Err(DockerError::Io { path, error })) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(EngineError::Absent(path.display().to_string()))
        }
        Ok(Err(error)) => Err(EngineError::Silent(error.to_string())),
        Err(_) => Err(EngineError::Silent(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))),
    })
}

impl Engine {
    pub(crate) fn is_reachable(&self) -> bool {
        self.0.is_ok()
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        let id = Topic::ContainerEngine;
        vec![match &self.0 {
            Ok(version) if Release::parse(version).is_some_and(|release| release >= ENGINE_MIN) => {
                Finding::ok(id, format!("Docker engine {version}"))
            }
            Ok(version) => Finding::warning(
                id,
                format!(
                    "Docker engine {version}; {}.{} is the oldest that was tried",
                    ENGINE_MIN.major, ENGINE_MIN.minor
                ),
            ),
            Err(EngineError::Absent(path)) => Finding::skipped(id, format!("no Docker engine at {path}")),
            Err(EngineError::Silent(error)) => Finding::warning(id, format!("the Docker engine: {error}")),
        }]
    }
}

/// Asks Compose, as a program of its own and as a plug-in.
pub(crate) async fn compose(has_engine: bool) -> Finding {
    let own = answer("docker-compose", &["version", "--short"]).await;
    let plugin = answer("docker", &["compose", "version", "--short"]).await;
    judge_compose(own.as_deref(), plugin.as_deref(), has_engine)
}

fn judge_compose(own: Option<&str>, plugin: Option<&str>, has_engine: bool) -> Finding {
    let id = Topic::DockerCompose;
    let found = [("docker compose", plugin), ("docker-compose", own)];
    let read = found.iter().filter_map(|(name, text)| {
        let text = text.as_ref()?.trim();
        Some((*name, text, Release::parse(text)?))
    });
    let newest = read.max_by_key(|(_, _, release)| *release);
    match newest {
        Some((name, text, release)) if release >= COMPOSE_MIN => Finding::ok(id, format!("{name} {text}")),
        Some((name, text, _)) => Finding::error(id, format!("{name} {text} is older than 1.29")),
        None if has_engine => Finding::warning(id, "no Compose beside the engine"),
        None => Finding::skipped(id, "no Compose"),
    }
}

/// Asks kubectl for itself and for the cluster it is set up for.
pub(crate) async fn kubectl() -> Finding {
    let text = answer("kubectl", &["version", "-o", "json", "--request-timeout=5s"]).await;
    judge_kubectl(text.as_deref())
}

fn judge_kubectl(text: Option<&str>) -> Finding {
    let id = Topic::Kubernetes;
    let Some(versions) = text.and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
        return Finding::skipped(id, "no kubectl");
    };
    let version = |of: &str| versions.pointer(&format!("/{of}/gitVersion")).and_then(Value::as_str);
    let client = version("clientVersion").unwrap_or("of unknown version");
    let Some(server) = version("serverVersion") else {
        return Finding::skipped(id, format!("kubectl {client}, and no cluster answers it"));
    };
    let message = format!("kubectl {client}, cluster {server}");
    if Release::parse(server).is_some_and(|release| release >= KUBERNETES_MIN) {
        Finding::ok(id, message)
    } else {
        Finding::error(id, format!("{message}, which has no native sidecars"))
    }
}

/// What a program prints. `None` where there is none; its exit code does not count, because kubectl tells its own version
/// and fails for the cluster's.
async fn answer(program: &str, arguments: &[&str]) -> Option<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    let mut printed = String::new();
    let read = child.stdout.take()?;
    let reading = async { read.take(ANSWER_MAX).read_to_string(&mut printed).await };
    tokio::time::timeout(ANSWER_TIMEOUT, reading).await.ok()?.ok()?;
    Some(printed)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    #[test]
    fn the_newer_compose_counts() {
        let severity = |own, plugin, engine| judge_compose(own, plugin, engine).severity;
        assert_eq!(severity(Some("1.29.2\n"), None, true), Severity::Ok);
        assert_eq!(severity(Some("1.25.0"), None, true), Severity::Error);
        assert_eq!(severity(Some("1.25.0"), Some("v2.24.5"), true), Severity::Ok);
        assert_eq!(severity(None, None, true), Severity::Warning);
        assert_eq!(severity(None, Some("unknown command"), false), Severity::Skipped);
    }

    #[test]
    fn a_cluster_without_native_sidecars_is_an_error_and_none_is_skipped() {
        let cluster = |server: &str| {
            let text = format!(r#"{{"clientVersion":{{"gitVersion":"v1.35.0"}}{server}}}"#);
            judge_kubectl(Some(&text)).severity
        };
        assert_eq!(cluster(r#","serverVersion":{"gitVersion":"v1.29.0-eks"}"#), Severity::Ok);
        assert_eq!(cluster(r#","serverVersion":{"gitVersion":"v1.28.9"}"#), Severity::Error);
        assert_eq!(cluster(""), Severity::Skipped);
        assert_eq!(judge_kubectl(None).severity, Severity::Skipped);
    }

    #[test]
    fn an_old_engine_and_one_that_does_not_answer_are_warnings() {
        let severity = |engine| Engine(engine).findings()[0].severity;
        assert_eq!(severity(Ok("29.1.0".to_owned())), Severity::Ok);
        assert_eq!(severity(Ok("19.03.5".to_owned())), Severity::Warning);
        assert_eq!(severity(Err(EngineError::Silent("denied".to_owned()))), Severity::Warning);
        assert_eq!(severity(Err(EngineError::Absent("/x".to_owned()))), Severity::Skipped);
    }

    #[tokio::test]
    async fn a_program_is_asked_and_one_that_is_missing_says_nothing() {
        assert_eq!(answer("echo", &["1.29.2"]).await.as_deref(), Some("1.29.2\n"));
        assert_eq!(answer("no-such-program-of-ours", &[]).await, None);
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there_is_absent() {
        let folder = tempfile::tempdir().unwrap();
        let engine = docker(&folder.path().join("docker.sock")).await;
        assert!(matches!(engine.0, Err(EngineError::Absent(_))), "{engine:?}");
    }
}
