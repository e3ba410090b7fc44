//! The network lab: several machines with containers, in one process, without root and without external programs.
//!
//! [`enter`] moves the process into user, network, mount and host-name namespaces of its own; inside, it is root over
//! networks that exist for it alone. [`Lab`] builds a topology; the pieces can be used by themselves:
//!
//! - [`Namespace`]: one network stack, held by a thread. Closures run in it, processes are born in it, and it makes
//!   links, addresses and routes ([`link`]).
//! - [`Host`]: a namespace with a bridge for containers, masquerading and published ports ([`nat`]), like a machine
//!   with Docker. Every host may use the same container subnet.
//! - [`Program`], [`Proc`]: a process in a namespace, with chosen capabilities, that cannot outlive its `Proc`.
//! - [`Tap`]: watches an interface: frames, TLS handshakes, and byte strings that must not appear.
//! - [`runner`]: a test harness whose tests run in labs.
//!
//! ```no_run
//! use signet_cli::lab::{self, Capabilities, HostPlan, Lab, Program};
//! use std::time::Duration;
//!
//! fn main() -> Result<(), lab::LabError> {
//!     lab::helper(); // first: a started program passes through here
//!     lab::enter()?; // second, before any thread
//!     let lab = Lab::new()?;
//!     let (cloud, fog) = (lab.host("cloud", HostPlan::numbered(1))?, lab.host("fog", HostPlan::numbered(2))?);
//!     let server = cloud.container("server")?;
//!     let client = fog.container("client")?;
//!     cloud.publish(8080, &server, 80)?;
//!     let tap = lab.tap("cloud", &[b"secret"], None)?;
//!     let program = Program::new("curl").args(["http://10.0.0.1:8080/"]).capabilities(Capabilities::None);
//!     let curl = client.namespace().start(program)?;
//!     curl.wait(Duration::from_secs(10))?;
//!     assert!(tap.report()?.sightings.is_empty());
//!     Ok(())
//! }
//! ```
//!
//! The process that entered has left the machine's own network for good. Everything ends with it: namespaces are
//! held by its threads only, and programs are killed when the thread that started them ends.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};
use signet_proxy::capture::netlink::NetlinkError;

pub mod host;
pub mod link;
pub mod mesh;
pub mod namespace;
pub mod nat;
mod privilege;
pub mod process;
pub mod runner;
pub mod tap;

pub use caps::Capability;
pub use host::{Container, Host, HostPlan, Lab};
pub use namespace::Namespace;
pub use process::{Capabilities, Proc, Program, helper};
pub use tap::{ClientHello, Flow, Opening, Sighting, Tap, TapReport};

/// Settings that can forbid user namespaces, and the values with which they do.
const SETTINGS: [(&str, &str); 3] = [
    ("/proc/sys/user/max_user_namespaces", "0"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
];

/// Why the lab could not do something.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The container subnet of a host is used up.
    #[error("no address is left for containers in {0}")]
    AddressesUsedUp(String),
    /// The system does not let this process have namespaces of its own.
    #[error("this system forbids user namespaces ({errno}){settings}")]
    Forbidden {
        /// What `unshare` answered.
        errno: Errno,
        /// The settings that forbid it, in words, or nothing.
        settings: String,
    },
    /// The lab was entered too late.
    #[error("lab::enter must be called before the process starts its first thread")]
    HasThreads,
    /// The namespace's thread has ended.
    #[error("namespace {0} is gone")]
    NamespaceGone(String),
    /// The kernel refused a link, an address, a route or a table.
    #[error("in namespace {namespace}: {source}")]
    Netlink {
        /// Where.
        namespace: String,
        /// The kernel's answer.
        source: NetlinkError,
    },
    /// A program did not do in time what was waited for.
    #[error("{program} did not {what} within {limit:?}; its output:\n{output}")]
    Overdue {
        /// Which.
        program: String,
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// The end of what it printed.
        output: String,
    },
    /// The program was given capabilities, or is set-uid.
    #[error(
        "a program that gains privileges by being started runs no lab; give capabilities to signet-proxy only"
    )]
    Privileged,
    /// The system failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The system's error.
        source: io::Error,
    },
}

impl LabError {
    fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { what: what.into(), source: source.into() }
    }
}

/// Moves the process into namespaces of its own in which it is root. Call it first in `main`, after [`helper`]:
/// the kernel refuses once there are threads.
///
/// Works unprivileged, with this one user mapped to root, and as root; where root may not make user namespaces, it
/// does without.
///
/// # Errors
/// [`LabError::Forbidden`] names the settings that forbid it; [`LabError::Privileged`] when this binary has file
/// capabilities or is set-uid.
pub fn enter() -> Result<(), LabError> {
    if privilege::is_gained() {
        return Err(LabError::Privileged);
    }
    let (user, group) = (Uid::effective(), Gid::effective());
    let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
    match unshare(own | CloneFlags::CLONE_NEWUSER) {
        Ok(()) => {
            write(Path::new("/proc/self/setgroups"), "deny")?;
            write(Path::new("/proc/self/uid_map"), &format!("0 {user} 1"))?;
            write(Path::new("/proc/self/gid_map"), &format!("0 {group} 1"))?;
        }
        Err(Errno::EINVAL) => return Err(LabError::HasThreads),
        Err(errno) if !user.is_root() => return Err(forbidden(errno)),
        Err(errno) => unshare(own).map_err(|_| forbidden(errno))?,
    }
    // Mounts made here must not reach the machine, nor the machine's reach us.
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).map_err(forbidden)?;
    link::prepare("main")
}

fn forbidden(errno: Errno) -> LabError {
    let read = |(path, value): (&str, &str)| {
        let found = fs::read_to_string(path).ok()?;
        (found.trim() == value).then(|| format!("; {path} is {value}"))
    };
    LabError::Forbidden { errno, settings: SETTINGS.into_iter().filter_map(read).collect() }
}

fn write(path: &Path, text: &str) -> Result<(), LabError> {
    fs::write(path, text)
        .map_err(|error| LabError::system(format!("write {text:?} to {}", path.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entering_after_a_thread_was_started_is_refused() {
        assert!(matches!(enter(), Err(LabError::HasThreads)), "tests run on threads");
    }
}
