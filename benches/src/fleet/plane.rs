//! The control plane that is measured: a real process on processors of its own, driven like an operator does.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signet_sync::MAX_ADMIN_ANSWER_BYTES;
use signet_sync::Token;
use signet_sync::proto::admin::admin_client::AdminClient;
use signet_sync::proto::admin::{ApplyRequest, CreateTokenRequest, ManifestFile};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::mesh::TRUST_DOMAIN;
use crate::load::usage;

/// How it is started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The program and the words that make it a control plane.
    pub command: Vec<PathBuf>,
    /// The processors it is bound to.
    pub processors: Vec<usize>,
    /// Where its state is, and what it logs.
    pub folder: PathBuf,
}

/// A running control plane; killed when dropped.
#[derive(Debug)]
pub struct Plane {
    child: Child,
    /// Where proxies connect.
    pub control: SocketAddr,
    health: SocketAddr,
    socket: PathBuf,
}

impl Launch {
    /// Starts it and waits until it listens; `again` at the addresses of the last one.
    ///
    /// # Errors
    /// In words why it does not.
    pub fn start(&self, again: Option<(SocketAddr, SocketAddr)>) -> Result<Plane, String> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (control, health) = again.unwrap_or((any, any));
        let (program, words) = self.command.split_first().ok_or("no program to start")?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log"));
        let mut command = Command::new(program);
        command
            .args(words)
            .args(["--trust-domain", TRUST_DOMAIN, "--listen", &control.to_string()])
            .args(["--admin-listen", &health.to_string(), "--state-dir"])
            .arg(self.folder.join("state"))
            // One line for each proxy and stream is not what is measured.
            .env("SIGNET_LOG", "warn")
            .stdout(Stdio::piped())
            .stderr(log.map_err(|error| format!("its log cannot be written: {error}"))?);
        let mut child = bound(command, &self.processors).map_err(|error| error.to_string())?;
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("it has no output")?;
        BufReader::new(stdout).read_line(&mut line).map_err(|error| error.to_string())?;
        let value = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
        let address = |name: &str| value(name).and_then(|text| text.parse().ok());
        match (address("control="), address("admin="), value("socket=")) {
            (Some(control), Some(health), Some(socket)) => {
                Ok(Plane { child, control, health, socket: socket.into() })
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                Err(format!("the control plane did not start: {}", self.last_words()))
            }
        }
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

/// A child is born with the binding of the thread that starts it.
fn bound(mut command: Command, processors: &[usize]) -> io::Result<Child> {
    let processors = processors.to_vec();
    let starting = std::thread::spawn(move || {
        bind(&processors)?;
        command.spawn()
    });
    starting.join().unwrap_or_else(|_| Err(io::Error::other("the starting thread failed")))
}

/// Binds this thread to processors.
///
/// # Errors
/// Processors that are not there.
pub fn bind(processors: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &processor in processors {
        set.set(processor)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

impl Plane {
    /// Where it listens, to be started again there.
    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (self.control, self.health)
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits until it has drained.
    pub fn terminate(mut self) {
        if let Ok(id) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }

    /// Its processor time so far.
    ///
    /// # Errors
    /// It has ended.
    pub fn processor_time(&self) -> io::Result<Duration> {
        usage::processor_time(&[self.child.id()])
    }

    /// Its resident memory now, KiB.
    ///
    /// # Errors
    /// It has ended.
    pub fn resident_kib(&self) -> io::Result<u64> {
        usage::resident_kib(&[self.child.id()])
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Stores manifests.
    ///
    /// # Errors
    /// In words what is wrong with them.
    pub async fn apply(&self, texts: &[String]) -> Result<(), String> {
        let files = texts.iter().enumerate();
        let files = files.map(|(at, text)| ManifestFile { name: format!("{at}.yaml"), text: text.clone() });
        let request = ApplyRequest { files: files.collect(), dry_run: false };
        let answer = self.operator().await?.apply(request).await.map_err(|status| status.to_string())?;
        match answer.into_inner().diagnostics.first() {
            Some(first) => Err(format!("manifests refused: {first:?}")),
            None => Ok(()),
        }
    }

    /// A join token for as many instances of a service.
    ///
    /// # Errors
    /// In words why there is none.
    pub async fn token(&self, service: &str, instances: usize) -> Result<Token, String> {
        let count = u32::try_from(instances).map_err(|error| error.to_string())?;
        let workload = service.to_owned();
        let request = CreateTokenRequest { workload, uses: count, instances: count, ..Default::default() };
        let answer =
            self.operator().await?.create_token(request).await.map_err(|status| status.to_string())?;
        Token::parse(&answer.into_inner().token).map_err(|error| error.to_string())
    }

    /// The value of a counter that has no labels.
    ///
    /// # Errors
    /// It does not answer, or has no such counter.
    pub async fn counter(&self, name: &str) -> Result<u64, String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let failed = |error: io::Error| format!("its metrics cannot be read: {error}");
        let mut stream = tokio::net::TcpStream::connect(self.health).await.map_err(failed)?;
        let request = b"GET /metrics HTTP/1.1\r\nHost: fleet\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.map_err(failed)?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.map_err(failed)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.ok_or_else(|| format!("there is no counter {name}"))
    }

    async fn operator(&self) -> Result<AdminClient<Channel>, String> {
        let socket: std::sync::Arc<Path> = self.socket.as_path().into();
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(&*socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://control-plane.invalid");
        let channel = endpoint.connect_with_connector(connect).await;
        let channel = channel.map_err(|error| format!("its socket does not answer: {error}"))?;
        Ok(AdminClient::new(channel).max_decoding_message_size(MAX_ADMIN_ANSWER_BYTES))
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
