//! Programs in namespaces: chosen capabilities, kept output, no survivors.
//!
//! A program is started through a helper, which is this same binary: it lays down capabilities, asks to be killed with
//! its parent, and then becomes the program. [`helper`] is that step and must be the first call in `main`.
//!
//! "Parent" means the *thread* that started it: for programs the namespace's own thread, which lives as long as a
//! [`Namespace`] handle or a [`Proc`] does. When this process dies, however it dies, its programs are killed.

use std::collections::VecDeque;
use std::env;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, PipeReader, Read, Write, pipe};
use std::os::unix::process::{CommandExt, ExitStatusExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl::{set_no_new_privs, set_pdeathsig};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::{LabError, Namespace, privilege};

const HELPER: &str = "lab-exec";
const THIS_BINARY: &str = "/proc/self/exe";
const KEEP: &str = "keep";
const NONE: &str = "none";
/// Of a program's output this much is kept in memory, the newest; a log file keeps all.
const OUTPUT_BYTES: usize = 1024 * 1024;
/// Of it, this much goes into an error.
const EXCERPT_BYTES: usize = 4096;
/// Exit code 127, as the kernel encodes it.
const LOST_STATUS: i32 = 127 << 8;

/// A program to start with [`Namespace::start`].
#[derive(Clone, Debug)]
pub struct Program {
    executable: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    capabilities: Capabilities,
    log: Option<PathBuf>,
}

/// What a program may do beyond reaching its own files and sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capabilities {
    /// Whatever the lab may.
    Keep,
    /// Nothing, for good: the bounding set is empty too.
    None,
    /// These, at most.
    Only(Vec<Capability>),
}

impl Program {
    /// A program by path, or by name looked up in `PATH`. Starts with the environment and directory of this process
    /// and keeps its capabilities.
    pub fn new(executable: impl AsRef<Path>) -> Self {
        Self {
            executable: executable.as_ref().into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: None,
            capabilities: Capabilities::Keep,
            log: None,
        }
    }

    /// This same binary, for programs with verbs.
    pub fn this() -> Self {
        Self::new(THIS_BINARY)
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().into()));
        self
    }

    /// With another argument in the place of each that is this one.
    pub(crate) fn replacing(mut self, argument: &str, other: &str) -> Self {
        for own in self.arguments.iter_mut().filter(|own| *own == argument) {
            *own = other.into();
        }
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// Starts it in this directory.
    pub fn directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.directory = Some(directory.as_ref().into());
        self
    }

    /// Limits what it may do.
    pub fn capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// Writes all it prints to this file too, standard output and error in the order they come.
    pub fn log(mut self, path: impl AsRef<Path>) -> Self {
        self.log = Some(path.as_ref().into());
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(THIS_BINARY);
        command.args([HELPER, &self.capabilities.encode(), &std::process::id().to_string()]);
        command.arg(&self.executable).args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    fn name(&self) -> String {
        self.executable.file_name().unwrap_or(self.executable.as_os_str()).to_string_lossy().into_owned()
    }
}

impl Capabilities {
    fn encode(&self) -> String {
        match self {
            Self::Keep => KEEP.into(),
            Self::None => NONE.into(),
            Self::Only(list) => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        }
    }

    fn decode(text: &str) -> Result<Self, caps::errors::CapsError> {
        Ok(match text {
            KEEP => Self::Keep,
            NONE => Self::None,
            list => Self::Only(list.split(',').map(str::parse).collect::<Result<_, _>>()?),
        })
    }

    /// Limits the calling thread. The bounding set goes first: root would get everything in it back on exec.
    fn take(&self) -> Result<(), caps::errors::CapsError> {
        let kept: CapsHashSet = match self {
            Self::Keep => return Ok(()),
            Self::None => CapsHashSet::new(),
            Self::Only(list) => list.iter().copied().collect(),
        };
        for capability in caps::all().difference(&kept) {
            // A capability this kernel does not know cannot be asked about and need not be dropped.
            if caps::has_cap(None, CapSet::Bounding, *capability).unwrap_or(false) {
                caps::drop(None, CapSet::Bounding, *capability)?;
            }
        }
        caps::clear(None, CapSet::Ambient)?;
        caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
        caps::set(None, CapSet::Effective, &kept)?;
        caps::set(None, CapSet::Permitted, &kept)
    }
}

/// Call first in `main` of a binary that uses the lab: when this process was started to become a [`Program`], it becomes
/// it and never returns; otherwise nothing happens.
pub fn helper() {
    let mut arguments = env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == HELPER) {
        let failure = become_program(arguments);
        eprintln!("{HELPER}: {failure}");
        std::process::exit(127);
    }
}

fn become_program(mut arguments: impl Iterator<Item = OsString>) -> String {
    match prepare(&mut arguments) {
        Ok(executable) => {
            let failure = Command::new(&executable).args(arguments).exec();
            format!("cannot run {}: {failure}", executable.display())
        }
        Err(failure) => failure.to_string(),
    }
}

fn prepare(arguments: &mut impl Iterator<Item = OsString>) -> Result<OsString, Box<dyn Error>> {
    if privilege::is_gained() {
        return Err(LabError::Privileged.into());
    }
    let mut next = || arguments.next().ok_or("arguments are missing");
    let (capabilities, parent, executable) = (next()?, next()?, next()?);
    Capabilities::decode(&capabilities.to_string_lossy())?.take()?;
    set_no_new_privs()?;
    set_pdeathsig(Signal::SIGKILL)?;
    // A parent that died before that line does not kill us.
    if parent.to_string_lossy() != parent_id().to_string() {
        return Err("the parent is gone".into());
    }
    Ok(executable)
}

impl Namespace {
    /// Starts a program, born in this namespace, without standard input.
    ///
    /// # Errors
    /// [`LabError::System`]; an executable that does not exist shows as exit code 127 with a line of output.
    pub fn start(&self, program: Program) -> Result<Proc, LabError> {
        let name = program.name();
        let log = match &program.log {
            Some(path) => {
                let created = File::create(path);
                Some(created.map_err(|error| LabError::system(format!("create {}", path.display()), error))?)
            }
            None => None,
        };
        let mut started = Proc::start(&name, log, program.command(), |command| self.spawn(command))?;
        started.namespace = Some(self.clone());
        Ok(started)
    }
}

/// A running program. Dropping it kills it and waits for its end.
pub struct Proc {
    name: String,
    pid: Pid,
    shared: Arc<Shared>,
    /// Its parent is the namespace's thread, which must not end before it.
    namespace: Option<Namespace>,
}

impl fmt::Debug for Proc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.namespace.as_ref().map_or("", Namespace::name);
        write!(f, "Proc({}, {}, {place})", self.name, self.pid)
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    output: VecDeque<u8>,
    /// All of the output has been read: the program and whoever inherited its output have ended.
    closed: bool,
    status: Option<ExitStatus>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proc {
    /// Starts a command with no input and its standard output and error in one pipe. `spawn` must drop the command,
    /// which holds the pipe open.
    pub(super) fn start(
        name: &str,
        log: Option<File>,
        mut command: Command,
        spawn: impl FnOnce(Command) -> Result<Child, LabError>,
    ) -> Result<Self, LabError> {
        let watching = |error| LabError::system(format!("watch {name}"), error);
        let (reader, writer) = pipe().map_err(watching)?;
        command.stdin(Stdio::null()).stdout(writer.try_clone().map_err(watching)?).stderr(writer);
        let child = spawn(command)?;
        // A process id is a positive number.
        let pid = Pid::from_raw(child.id().cast_signed());
        let shared = Arc::new(Shared::default());
        let program = Self { name: name.into(), pid, shared: Arc::clone(&shared), namespace: None };
        let for_reader = Arc::clone(&shared);
        let thread = |name: &str| thread::Builder::new().name(name.into());
        thread("wait").spawn(move || keep_status(child, pid, &shared)).map_err(watching)?;
        thread("output").spawn(move || keep_output(reader, log, &for_reader)).map_err(watching)?;
        Ok(program)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// Sends a signal; no error when it has ended.
    ///
    /// # Errors
    /// [`LabError::System`].
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let state = self.shared.lock();
        // While the lock is held the child is not reaped, so the number cannot be another process's.
        if state.status.is_some() {
            return Ok(());
        }
        kill(self.pid, signal).map_err(|error| LabError::system(format!("signal {}", self.name), error))
    }

    /// Asks it to end: `SIGTERM`.
    ///
    /// # Errors
    /// As [`Self::signal`].
    pub fn terminate(&self) -> Result<(), LabError> {
        self.signal(Signal::SIGTERM)
    }

    /// Waits for its end; all it printed is in [`Self::output`] then.
    ///
    /// # Errors
    /// [`LabError::Overdue`]; the program runs on.
    pub fn wait(&self, limit: Duration) -> Result<ExitStatus, LabError> {
        self.wait_for("end", limit, |state| state.status.filter(|_| state.closed))
    }

    /// Its exit status, if it has ended.
    pub fn status(&self) -> Option<ExitStatus> {
        self.shared.lock().status
    }

    /// Waits until a printed line contains the text and returns that line. Lines printed before count too.
    ///
    /// # Errors
    /// [`LabError::Overdue`], at once when the program has ended without it.
    pub fn wait_for_line(&self, text: &str, limit: Duration) -> Result<String, LabError> {
        let what = format!("print {text:?}");
        let found = self.wait_for(&what, limit, |state| {
            let line = complete_lines(state).into_iter().find(|line| line.contains(text));
            if line.is_none() && state.closed { Some(None) } else { line.map(Some) }
        })?;
        found.ok_or_else(|| self.overdue(&what, limit, &self.shared.lock()))
    }

    /// What it has printed, standard output and error together; the newest MiB.
    pub fn output(&self) -> String {
        text(&self.shared.lock(), OUTPUT_BYTES)
    }

    fn wait_for<R>(
        &self,
        what: &str,
        limit: Duration,
        look: impl Fn(&State) -> Option<R>,
    ) -> Result<R, LabError> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            if let Some(found) = look(&state) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.overdue(what, limit, &state));
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn overdue(&self, what: &str, limit: Duration, state: &State) -> LabError {
        let output = text(state, EXCERPT_BYTES);
        LabError::Overdue { program: self.name.clone(), what: what.into(), limit, output }
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        // An error can only mean that it has ended.
        let _ = self.signal(Signal::SIGKILL);
        let mut state = self.shared.lock();
        while state.status.is_none() {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn complete_lines(state: &State) -> Vec<String> {
    let output = text(state, OUTPUT_BYTES);
    let end = if state.closed { output.len() } else { output.rfind('\n').map_or(0, |end| end + 1) };
    output.get(..end).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn text(state: &State, limit: usize) -> String {
    let skipped = state.output.len().saturating_sub(limit);
    let bytes: Vec<u8> = state.output.iter().skip(skipped).copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn keep_output(mut reader: PipeReader, mut log: Option<File>, shared: &Shared) {
    let mut buffer = [0; 8192];
    loop {
        let read = match reader.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => break,
            Ok(read) => buffer.get(..read).unwrap_or_default(),
        };
        if let Some(file) = &mut log {
            // A full disk must not stop the program; its output stays in memory.
            let _ = file.write_all(read);
        }
        let mut state = shared.lock();
        state.output.extend(read);
        let surplus = state.output.len().saturating_sub(OUTPUT_BYTES);
        state.output.drain(..surplus);
        shared.changed.notify_all();
    }
    shared.lock().closed = true;
    shared.changed.notify_all();
}

fn keep_status(mut child: Child, pid: Pid, shared: &Shared) {
    // Waits without reaping: until the lock is held, the process id stays taken.
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::errno::Errno::EINTR) {
    }
    let mut state = shared.lock();
    // Only a child that somebody else reaped has no status; it must not look like success.
    state.status = Some(child.wait().unwrap_or_else(|_| ExitStatus::from_raw(LOST_STATUS)));
    shared.changed.notify_all();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_survive_the_command_line() {
        let only = Capabilities::Only(vec![Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW]);
        for capabilities in [Capabilities::Keep, Capabilities::None, only] {
            assert_eq!(Capabilities::decode(&capabilities.encode()).unwrap(), capabilities);
        }
        assert!(Capabilities::decode("CAP_EVERYTHING").is_err());
    }

    fn shell(script: &str) -> Proc {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Proc::start("sh", None, command, |mut command| Ok(command.spawn().unwrap())).unwrap()
    }

    #[test]
    fn output_and_status_are_kept() {
        let program = shell("echo one; echo two >&2; exit 3");
        let limit = Duration::from_secs(30);
        assert_eq!(program.wait(limit).unwrap().code(), Some(3));
        assert_eq!(program.output(), "one\ntwo\n");
        assert_eq!(program.wait_for_line("wo", limit).unwrap(), "two");
        let missing = program.wait_for_line("three", limit).unwrap_err().to_string();
        assert!(missing.ends_with("its output:\none\ntwo\n"), "{missing}");
        program.terminate().unwrap();
    }

    #[test]
    fn dropped_program_is_killed_and_reaped() {
        let program = shell("echo ready; exec sleep 1000");
        program.wait_for_line("ready", Duration::from_secs(30)).unwrap();
        let pid = program.pid;
        drop(program);
        assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH));
    }

    #[test]
    fn unfinished_line_is_not_matched() {
        let program = shell("printf half; exec sleep 1000");
        let overdue = program.wait_for_line("half", Duration::from_millis(100));
        assert!(matches!(overdue, Err(LabError::Overdue { .. })));
    }
}
