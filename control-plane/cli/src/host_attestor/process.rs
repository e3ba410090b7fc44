//! What the kernel knows of the process at the other end of a Unix socket.
//!
//! A process id may be another process's by the time it is looked at. With `SO_PEERPIDFD` (Linux 6.5) the kernel says at the
//! end whether the one that connected still lives, and then everything in between was about it. Without, its start time is
//! compared before and after: that leaves the moment between its connecting and the first look, in which all process ids
//! would have to be used up.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use aws_lc_rs::digest::{Context, SHA256};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};
use thiserror::Error;

/// The largest program that is read to its end.
const PROGRAM_BYTES: u64 = 512 * 1024 * 1024;
/// The longest file of the kernel's about a process.
const KERNEL_BYTES: u64 = 64 * 1024;

/// A process that was alive at the end of the look.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The systemd unit of the system manager that it belongs to.
    pub(super) unit: Option<String>,
    /// Its program, as the kernel names it; only where it is asked for.
    pub(super) path: Option<PathBuf>,
    /// SHA-256 of what it runs, whatever stands at the path now; only where it is asked for.
    pub(super) sha256: Option<[u8; 32]>,
}

/// Why nothing certain is known.
#[derive(Debug, Error)]
pub(super) enum LookError {
    #[error("process-gone: who asked has ended")]
    Gone,
    #[error("process-unseen: who asked is in another process namespace; fix: run the attestor in the host's")]
    Namespace,
    #[error(
        "process-unreadable: {what} of process {pid}: {error}; fix: run the attestor as root, or leave `path` and `sha256` out of its rules"
    )]
    Unreadable { what: &'static str, pid: i32, error: io::Error },
    #[error("process-large: the program of process {0} has more than {PROGRAM_BYTES} bytes")]
    Large(i32),
}

impl Process {
    /// Who is at the other end: with its path if that is asked for, and with the digest of its program if that is, for one that is
    /// otherwise as it is. The kernel shows a program to root alone where its process hides itself, as sidecars do.
    pub(super) fn of(
        stream: &UnixStream,
        wants_path: bool,
        wants_digest: impl Fn(&Self) -> bool,
    ) -> Result<Self, LookError> {
        let peer = getsockopt(stream, PeerCredentials).map_err(|_| LookError::Gone)?;
        let pid = peer.pid();
        if pid <= 0 {
            return Err(LookError::Namespace);
        }
        let watch = Watch::begin(stream, pid)?;
        let unreadable = |what| move |error| LookError::Unreadable { what, pid, error };
        let path = || std::fs::read_link(format!("/proc/{pid}/exe")).map_err(unreadable("the program"));
        let path = if wants_path { Some(path()?) } else { None };
        let cgroups = kernel_text(pid, "cgroup").map_err(unreadable("the unit"))?;
        let (uid, gid) = (peer.uid(), peer.gid());
        let mut found = Self { pid, uid, gid, unit: system_unit(&cgroups), path, sha256: None };
        // Last: it is work that anybody could cause.
        if wants_digest(&found) {
            found.sha256 = Some(digest(pid)?);
        }
        watch.still_lives()?;
        Ok(found)
    }
}

/// Tells whether a process is the same all the time.
enum Watch {
    Pidfd(OwnedFd),
    Started { pid: i32, at: String },
}

impl Watch {
    fn begin(stream: &UnixStream, pid: i32) -> Result<Self, LookError> {
        match getsockopt(stream, PeerPidfd) {
            Ok(pidfd) => Ok(Self::Pidfd(pidfd)),
            Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(Self::Started { pid, at: started(pid)? }),
            Err(_) => Err(LookError::Gone),
        }
    }

    fn still_lives(self) -> Result<(), LookError> {
        let lives = match self {
            // It becomes readable when the process ends.
            Self::Pidfd(pidfd) => {
                let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                poll(&mut ended, PollTimeout::ZERO) == Ok(0)
            }
            Self::Started { pid, at } => started(pid)? == at,
        };
        if lives { Ok(()) } else { Err(LookError::Gone) }
    }
}

/// When a process started, in ticks since boot: field 22 of `stat`, behind a name that may hold anything.
fn started(pid: i32) -> Result<String, LookError> {
    let stat = kernel_text(pid, "stat").map_err(|_| LookError::Gone)?;
    let after_name = stat.rsplit_once(") ").ok_or(LookError::Gone)?.1;
    after_name.split(' ').nth(19).map(str::to_owned).ok_or(LookError::Gone)
}

fn kernel_text(pid: i32, name: &str) -> io::Result<String> {
    let mut text = String::new();
    File::open(format!("/proc/{pid}/{name}"))?.take(KERNEL_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Of the file that runs: the link leads to it even when another stands at its path.
fn digest(pid: i32) -> Result<[u8; 32], LookError> {
    let unreadable = |error| LookError::Unreadable { what: "the program", pid, error };
    let mut file = File::open(format!("/proc/{pid}/exe")).map_err(unreadable)?.take(PROGRAM_BYTES + 1);
    let (mut context, mut total) = (Context::new(&SHA256), 0);
    let mut part = vec![0; 64 * 1024];
    loop {
        let read = file.read(&mut part).map_err(unreadable)?;
        if read == 0 {
            break;
        }
        total += read as u64;
        context.update(part.get(..read).unwrap_or_default());
    }
    if total > PROGRAM_BYTES {
        return Err(LookError::Large(pid));
    }
    let mut sha256 = [0; 32];
    // SHA-256 is 32 bytes long by definition, so the lengths agree.
    sha256.copy_from_slice(context.finish().as_ref());
    Ok(sha256)
}

/// The service of the system manager: `0::/system.slice/web.service`, slices before it and whatever the service made below
/// it. What stands below `user.slice` is for its user to name, and counts for nothing.
fn system_unit(cgroups: &str) -> Option<String> {
    let path = cgroups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        matches!(controllers, "" | "name=systemd").then_some(path)
    })?;
    let mut parts = path.strip_prefix('/')?.split('/').skip_while(|part| part.ends_with(".slice"));
    let unit = parts.next()?;
    let is_users = path.starts_with("/user.slice/");
    (unit.ends_with(".service") && !is_users).then(|| unit.to_owned())
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = self.unit.as_deref().unwrap_or("no unit");
        let (pid, uid, gid) = (self.pid, self.uid, self.gid);
        write!(f, "process {pid} (user {uid}, group {gid}, {unit}")?;
        self.path.as_ref().map_or(Ok(()), |path| write!(f, ", {}", path.display()))?;
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_user_program_and_digest() {
        let (near, _far) = UnixStream::pair().unwrap();
        let found = Process::of(&near, true, |_| true).unwrap();
        assert_eq!(found.pid, i32::try_from(std::process::id()).unwrap());
        assert_eq!(found.uid, nix::unistd::geteuid().as_raw());
        let program = std::env::current_exe().unwrap();
        assert_eq!(found.path.as_ref(), Some(&program));
        let digest = aws_lc_rs::digest::digest(&SHA256, &std::fs::read(program).unwrap());
        assert_eq!(found.sha256.unwrap(), digest.as_ref());
        let less = Process::of(&near, false, |_| false).unwrap();
        assert_eq!((less.path, less.sha256), (None, None));
    }

    #[test]
    fn who_has_ended_is_nobody_whoever_has_its_number_now() {
        // The one that connects and ends is this test itself, started once more.
        if let Some(path) = std::env::var_os("SIGNET_TEST_SOCKET") {
            UnixStream::connect(path).unwrap();
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let name = "host_attestor::process::tests::who_has_ended_is_nobody_whoever_has_its_number_now";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env("SIGNET_TEST_SOCKET", &path)
            .output();
        assert!(child.unwrap().status.success());
        let (stream, _) = listener.accept().unwrap();
        assert!(Process::of(&stream, false, |_| false).is_err());
    }

    #[test]
    fn a_start_time_is_read_behind_any_name() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(started(own).unwrap(), started(own).unwrap());
        assert!(started(own).unwrap().parse::<u64>().unwrap() > 0);
    }

    #[test]
    fn only_services_of_the_system_manager_are_units() {
        for (cgroups, unit) in [
            ("0::/system.slice/web.service\n", Some("web.service")),
            ("0::/system.slice/system-proxy.slice/proxy@web.service/child\n", Some("proxy@web.service")),
            ("4:memory:/x\n1:name=systemd:/system.slice/web.service\n0::/\n", Some("web.service")),
            ("0::/web.service\n", Some("web.service")),
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/web.service\n", None),
            ("0::/user.slice/user-1000.slice/session-2.scope\n", None),
            ("0::/system.slice/docker-0a.scope/web.service\n", None),
            ("0::/../web.service\n", None),
            ("0::/\n", None),
            ("", None),
            ("junk", None),
        ] {
            assert_eq!(system_unit(cgroups).as_deref(), unit, "{cgroups}");
        }
    }
}
