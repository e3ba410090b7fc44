//! The host's attestor: an identity for a process without an operator, on the kernel's word about it.
//!
//! * [`process`] – who asks: unit, user, group and program, of a process that lives to the end of the look.
//! * [`rules`] – which process may be which workload.
//!
//! The answer is one line: `token TOKEN`, or `refused CODE: why`. Nothing is read from who asks: what counts is what it is.

mod process;
mod rules;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use self::process::{LookError, Process};
use self::rules::Refusal;
pub(crate) use self::rules::Rules;
use crate::attestor::{Attestor, AttestorError};

/// Those that ask at once: a host's sidecars, all started together, wait for each other.
const ASKING_MAX: usize = 16;
/// How long one may take: its program is read, and the control plane asked.
const ASKING_TIME: Duration = Duration::from_secs(45);
/// Pause after a failed accept: out of files, some will be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Gives tokens to those that the rules know.
pub(crate) struct HostAttestor {
    attestor: Attestor,
    rules: Arc<Rules>,
}

/// Why somebody got no token.
#[derive(Debug, Error)]
enum Denied {
    #[error("attestor: {0}")]
    Attestor(#[from] AttestorError),
    #[error(transparent)]
    Look(#[from] LookError),
    #[error(transparent)]
    Rules(#[from] Refusal),
}

impl HostAttestor {
    pub(crate) fn new(attestor: Attestor, rules: Rules) -> Self {
        Self { attestor, rules: Arc::new(rules) }
    }

    /// Serves for ever. What it gave or refused is told to `tell`, a line each.
    pub(crate) async fn serve(self, listener: UnixListener, tell: fn(String)) {
        let (own, places) = (Arc::new(self), Arc::new(Semaphore::new(ASKING_MAX)));
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            // One place waits for those that are served: who asks waits with it, in the kernel.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let own = Arc::clone(&own);
            tokio::spawn(async move {
                let _ = tokio::time::timeout(ASKING_TIME, own.answer(stream, tell)).await;
                drop(place);
            });
        }
    }

    async fn answer(&self, stream: UnixStream, tell: fn(String)) {
        let Ok(stream) = stream.into_std() else { return };
        let rules = Arc::clone(&self.rules);
        // Reading a program takes its time.
        let looked = tokio::task::spawn_blocking(move || {
            let looked = Process::of(&stream, rules.wants_path(), |process| rules.wants_digest(process));
            (looked, stream)
        })
        .await;
        let Ok((looked, stream)) = looked else { return };
        let Ok(mut stream) = UnixStream::from_std(stream) else { return };
        let line = match self.judge(looked).await {
            Ok((process, workload, token)) => {
                tell(format!("{workload} was given to {process}"));
                format!("token {token}\n")
            }
            Err(denied) => {
                tell(format!("refused: {denied}"));
                format!("refused {denied}\n")
            }
        };
        // Who has gone goes without; the token ends by itself.
        let _ = stream.write_all(line.as_bytes()).await;
    }

    async fn judge(&self, looked: Result<Process, LookError>) -> Result<(Process, &str, String), Denied> {
        let process = looked?;
        let workload = self.rules.workload_of(&process)?;
        let token = self.attestor.token(workload).await?;
        Ok((process, workload, token))
    }
}

/// A socket that everybody may use who reaches it. One that was left behind gives way.
pub(crate) async fn listen(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens there already"));
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&beside)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o666))?;
    std::fs::rename(&beside, path)?;
    Ok(listener)
}
