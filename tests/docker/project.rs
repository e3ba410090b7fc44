//! The project in its folder, as an operator has it.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output};
use std::time::Duration;

use serde_json::Value;
use signet_cli::lab::mesh::wait_until;
use tempfile::TempDir;

use crate::engine::{Engine, succeeded};

/// Pulling up a project of two dozen containers on a busy machine of two processors.
pub(crate) const SETTLE_LIMIT: Duration = Duration::from_secs(120);

const NAME: &str = "agent";

pub(crate) struct Project<'e> {
    pub(crate) engine: &'e mut Engine,
    folder: TempDir,
}

impl<'e> Project<'e> {
    /// Writes the Compose file down and injects it, strict: in permissive mode what is called before it is known to be of
    /// the mesh goes in clear.
    pub(crate) fn inject(engine: &'e mut Engine) -> Self {
        let project = Self { engine, folder: TempDir::new().unwrap() };
        fs::write(project.file(), include_str!("project/docker-compose.yml")).unwrap();
        let socket = project.engine.socket().display().to_string();
        let inject = [
            "inject",
            "compose",
            "--in-place",
            "--strict",
            "--project-name",
            NAME,
            "--docker-socket",
            &socket,
        ];
        project.signet(&inject);
        project
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("docker-compose.yml")
    }

    /// The operator's tool of this build, about this project's file.
    pub(crate) fn signet(&self, arguments: &[&str]) {
        let line = ["signet"].iter().chain(arguments).map(OsString::from).chain([self.file().into()]);
        assert_eq!(signet_cli::cli::run(line), ExitCode::SUCCESS, "signet {}", arguments.join(" "));
    }

    pub(crate) fn compose_output(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("docker-compose");
        command.args(["-p", NAME]).args(arguments).current_dir(self.folder.path());
        self.engine.run(command)
    }

    /// `docker-compose`, which must succeed.
    pub(crate) fn compose(&self, arguments: &[&str]) -> String {
        succeeded(&self.compose_output(arguments), &format!("docker-compose {}", arguments.join(" ")))
    }

    /// The client in `policies`: what it saw, and whether all went well.
    pub(crate) fn call(&self, arguments: &[&str]) -> Result<Value, String> {
        let call = ["exec", "-T", "policies", "/signet", "app", "call"];
        let output = self.compose_output(&[&call, arguments].concat());
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            serde_json::from_str(&shown).map_err(|error| error.to_string())
        } else {
            Err(format!("{shown}{}", String::from_utf8_lossy(&output.stderr)))
        }
    }

    /// Waits until the client's call succeeds, and says what it last saw when it does not.
    pub(crate) fn call_succeeds(&self, arguments: &[&str]) {
        let mut last = String::new();
        let call = || match self.call(arguments) {
            Ok(_) => Some(()),
            Err(shown) => {
                last = shown;
                None
            }
        };
        assert!(wait_until(SETTLE_LIMIT, call).is_some(), "{arguments:?}: {last}\n{}", self.state());
    }

    /// Every app answers its kind of client.
    pub(crate) fn every_app_answers(&self) {
        for call in [
            ["rest", "--to", "cimi:8201"],
            ["get-with-body", "--to", "dcproxy:6472"],
            ["grpc", "--to", "logicmodule:1034"],
            ["line", "--to", "tokens:46080"],
            ["greeter", "--to", "broker:1883"],
            ["sse", "--to", "events:8000"],
        ] {
            self.call_succeeds(&call);
        }
    }

    /// The operator's `signet check`, from within the mesh.
    pub(crate) fn check(&self) -> Value {
        let output = self.compose_output(&["run", "--rm", "-T", "signet", "check", "-o", "json"]);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("signet check: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Waits until `signet check` finds nothing wrong.
    pub(crate) fn check_finds_nothing(&self) {
        let mut last = Value::Null;
        let look = || {
            last = self.check();
            (last["ok"] == true).then_some(())
        };
        assert!(wait_until(SETTLE_LIMIT, look).is_some(), "{last:#}\n{}", self.state());
    }

    /// Id of a service's container.
    pub(crate) fn container(&self, service: &str) -> String {
        self.compose(&["ps", "-q", service]).trim().to_owned()
    }

    /// One value of `docker inspect`.
    pub(crate) fn inspect(&self, service: &str, format: &str) -> String {
        self.engine.docker(&["inspect", "-f", format, &self.container(service)]).trim().to_owned()
    }

    /// For a failure's message: every container, and the last words of those that are not well.
    pub(crate) fn state(&self) -> String {
        let containers = self.engine.docker(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]);
        let sick = containers.lines().filter(|line| !line.contains("Up") || line.contains("unhealthy"));
        let words = sick.filter_map(|line| line.split(' ').next()).map(|name| {
            let mut command = Command::new("docker");
            command.args(["logs", "--tail", "5", name]);
            let output = self.engine.run(command);
            format!(
                "{name}: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )
        });
        let words: Vec<String> = words.collect();
        format!("{containers}{}", words.concat())
    }
}

impl Drop for Project<'_> {
    fn drop(&mut self) {
        self.compose_output(&["down", "-v", "-t", "1"]);
    }
}
