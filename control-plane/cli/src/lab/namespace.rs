//! One network stack, held by a thread.

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{gettid, sethostname};

use super::{LabError, link};

type Job = Box<dyn FnOnce() + Send>;

/// A network stack of its own, with `lo` up, and a host name of its own. Clones are the same namespace; it ends when the
/// last clone and the last program and thread in it have ended.
#[derive(Clone)]
pub struct Namespace(Arc<Inner>);

struct Inner {
    name: String,
    /// Keeps the namespace alive and names it to the kernel.
    file: File,
    jobs: Sender<Job>,
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Namespace({})", self.0.name)
    }
}

impl Namespace {
    /// Makes a namespace; needs [`super::enter`] before.
    ///
    /// # Errors
    /// [`LabError::System`] with the step that failed.
    pub fn new(name: &str) -> Result<Self, LabError> {
        let (jobs, queue) = channel::<Job>();
        let (ready, made) = channel();
        let own_name = name.to_owned();
        let body = move || {
            let file = unshared(&own_name);
            let works = file.is_ok();
            if ready.send(file).is_ok() && works {
                queue.into_iter().for_each(|job| job());
            }
        };
        let start = thread::Builder::new().name(name.into()).spawn(body);
        start.map_err(|error| LabError::system(format!("start the thread of namespace {name}"), error))?;
        let file = made.recv().map_err(|_| LabError::NamespaceGone(name.into()))??;
        Ok(Self(Arc::new(Inner { name: name.into(), file, jobs })))
    }

    /// Its name, also its host name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Runs a closure on the namespace's thread and returns what it returns; a panic in it goes on in the caller.
    /// One at a time: what blocks for long belongs in [`Self::thread`]. Must not be called from inside a closure of the
    /// same namespace.
    ///
    /// # Errors
    /// [`LabError::NamespaceGone`].
    pub fn run<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> Result<R, LabError> {
        let (reply, answer) = channel::<Result<R, Box<dyn Any + Send>>>();
        let job = move || {
            // The caller waits for the answer; when it is gone, nobody needs it.
            let _ = reply.send(catch_unwind(AssertUnwindSafe(job)));
        };
        let gone = || LabError::NamespaceGone(self.0.name.clone());
        self.0.jobs.send(Box::new(job)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?.or_else(|panic| resume_unwind(panic))
    }

    /// Starts a thread inside the namespace, for servers and everything that blocks. Sockets it opens belong here, so
    /// an asynchronous runtime inside it must be single-threaded or be built inside it.
    ///
    /// # Errors
    /// [`LabError::System`] when the thread cannot start.
    pub fn thread<R: Send + 'static>(
        &self,
        name: &str,
        body: impl FnOnce() -> R + Send + 'static,
    ) -> Result<JoinHandle<R>, LabError> {
        let named = name.to_owned();
        // A thread is born in the namespaces of the thread that starts it.
        let started = self.run(move || thread::Builder::new().name(named).spawn(body))?;
        started.map_err(|error| LabError::system(format!("start thread {name} in {}", self.0.name), error))
    }

    /// Starts a command as it is; it is born in the namespace. Its parent is the namespace's thread. Usually
    /// [`Self::start`](Namespace::start) is wanted, which also ends it.
    ///
    /// # Errors
    /// [`LabError::System`] when it cannot start.
    pub fn spawn(&self, mut command: Command) -> Result<Child, LabError> {
        let what = format!("start {:?} in {}", command.get_program(), self.0.name);
        self.run(move || command.spawn())?.map_err(|error| LabError::system(what, error))
    }

    /// The number by which this process names the namespace to the kernel.
    pub(super) fn descriptor(&self) -> u32 {
        // Open descriptors are never negative.
        self.0.file.as_raw_fd().cast_unsigned()
    }
}

fn unshared(name: &str) -> Result<File, LabError> {
    let step = |what: &str| format!("{what} for namespace {name}");
    let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    unshare(own).map_err(|error| LabError::system(step("unshare"), error))?;
    sethostname(name).map_err(|error| LabError::system(step("set the host name"), error))?;
    link::prepare(name)?;
    let path = format!("/proc/self/task/{}/ns/net", gettid());
    File::open(path).map_err(|error| LabError::system(step("open the network"), error))
}
