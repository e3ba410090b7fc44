//! A Docker engine of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signet_cli::lab::mesh::wait_until;
use signet_cli::lab::namespace::Namespace;
use tempfile::TempDir;

/// An engine is up within seconds, on a busy machine too.
const START_LIMIT: Duration = Duration::from_secs(60);
/// It stops its containers first, each with ten seconds to end.
const STOP_LIMIT: Duration = Duration::from_secs(120);

/// A running engine. Dropping it stops it and removes what it had.
pub(crate) struct Engine {
    namespace: Namespace,
    directory: TempDir,
    daemon: Option<Child>,
}

impl Engine {
    /// Starts one with the images of `SIGNET_IMAGES`.
    pub(crate) fn start() -> Self {
        let namespace = Namespace::new("engine").expect("a network namespace; this test needs root");
        namespace
            .run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1"))
            .expect("the namespace's thread")
            .expect("forwarding");
        let directory = TempDir::new().unwrap();
        let mut engine = Self { namespace, directory, daemon: None };
        engine.up();
        let images =
            std::env::var("SIGNET_IMAGES").expect("SIGNET_IMAGES: the folder with the images' archives");
        let version = env!("CARGO_PKG_VERSION");
        for image in ["signet-proxy", "signet-control-plane", "signet"] {
            let archive = Path::new(&images).join(format!("{image}-{version}-amd64.tar.gz"));
            engine.docker(&["load", "-i", &archive.display().to_string()]);
        }
        engine
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("engine.sock")
    }

    /// Runs `docker` and returns what it printed; it must succeed.
    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("docker");
        command.args(arguments);
        succeeded(&self.run(command), &format!("docker {}", arguments.join(" ")))
    }

    /// Runs a command that talks to this engine.
    pub(crate) fn run(&self, command: Command) -> Output {
        run_at(&self.socket(), command)
    }

    /// A folder for what a test mounts.
    pub(crate) fn folder(&self) -> &Path {
        self.directory.path()
    }

    /// Runs a command in the engine's network.
    pub(crate) fn within(&self, line: &[&str]) -> ExitStatus {
        let mut command = Command::new(line[0]);
        command.args(&line[1..]);
        self.namespace.spawn(command).expect("a command").wait().unwrap()
    }

    /// As `systemctl restart docker` does.
    pub(crate) fn restart(&mut self) {
        self.down();
        self.up();
    }

    fn up(&mut self) {
        let at = |name: &str| self.directory.path().join(name);
        let log = fs::File::options().create(true).append(true).open(at("engine.log")).unwrap();
        let mut command = Command::new("dockerd");
        command
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()))
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("run"))
            .arg("--pidfile")
            .arg(at("engine.pid"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.daemon = Some(self.namespace.spawn(command).expect("dockerd starts"));
        let answers = || {
            let mut command = Command::new("docker");
            command.args(["version"]);
            self.run(command).status.success().then_some(())
        };
        if wait_until(START_LIMIT, answers).is_none() {
            let log = fs::read_to_string(at("engine.log")).unwrap_or_default();
            panic!("the engine does not answer: {log}");
        }
    }

    fn down(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let id = Pid::from_raw(daemon.id().try_into().unwrap());
        // One that has ended already has nothing to be told.
        let _ = kill(id, Signal::SIGTERM);
        if wait_until(STOP_LIMIT, || daemon.try_wait().ok().flatten()).is_none() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let mut command = Command::new("sh");
        command.args(["-c", "docker ps -aq | xargs -r docker rm -f >/dev/null 2>&1"]);
        if self.daemon.is_some() {
            self.run(command);
        }
        self.down();
    }
}

/// Runs a command that talks to the Docker API at a socket.
pub(crate) fn run_at(socket: &Path, mut command: Command) -> Output {
    command.env("DOCKER_HOST", format!("unix://{}", socket.display())).stdin(Stdio::null());
    let program = command.get_program().to_owned();
    command.output().unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

/// Standard output of a command that must have succeeded.
pub(crate) fn succeeded(output: &Output, what: &str) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}
