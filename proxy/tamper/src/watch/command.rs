//! The program: started once, and listened to.

use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc::Sender;

use super::{STOP_GRACE, Tampering, WatchError, clipped};

/// Bytes of what it says that are kept.
const BYTES_MAX: usize = 256;

/// Starts it with nothing of our environment but the search path: what is set there is not its business.
pub(super) fn watch(
    words: &[String],
    told: Sender<Tampering>,
    stopping: Arc<AtomicBool>,
) -> Result<Child, WatchError> {
    let (program, arguments) = words.split_first().map_or(("", &[][..]), |(program, rest)| (program, rest));
    let failed = |source| WatchError::Command { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped());
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    let mut child = command.spawn().map_err(failed)?;
    let Some(output) = child.stdout.take() else {
        return Err(failed(io::Error::from(io::ErrorKind::BrokenPipe)));
    };
    let listening = move || {
        let tampering = listen(output);
        if tampering == Tampering::CommandEnded {
            hold_back();
            if stopping.load(Ordering::Acquire) {
                return;
            }
        }
        // Nobody listens, or as much as matters is told already.
        let _ = told.try_send(tampering);
    };
    let started = std::thread::Builder::new().name("tamper-command".into()).spawn(listening);
    match started {
        Ok(_) => Ok(child),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(WatchError::Thread(error))
        }
    }
}

/// Whether we are told to stop is known by then, or not at all.
#[expect(clippy::disallowed_methods, reason = "that something does not happen is told by time alone")]
fn hold_back() {
    std::thread::sleep(STOP_GRACE);
}

/// Waits for the first it says, or for the end of its output.
fn listen(mut output: impl Read) -> Tampering {
    let mut bytes = [0; BYTES_MAX];
    loop {
        match output.read(&mut bytes) {
            Ok(0) => return Tampering::CommandEnded,
            Ok(length) => {
                return Tampering::CommandSaid(clipped(bytes.get(..length).unwrap_or_default()));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Tampering::CommandEnded,
        }
    }
}
