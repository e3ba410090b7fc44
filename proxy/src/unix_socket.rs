//! Unix sockets of the sidecar's own: who may reach them, and who is at the other end.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

/// Who may connect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Access {
    /// This user.
    Owner,
    /// This user and a group: this one, or the process's own.
    Group(Option<u32>),
}

/// Binds a socket, replacing one that an earlier process left behind.
pub(crate) fn bind(path: &Path, access: Access) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    open_to(path, access)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Sets group and mode of what stands at the socket's place, and of nothing else: whoever may write to its folder, which an
/// application often shares, could have put a link to another file there.
fn open_to(path: &Path, access: Access) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    let place = std::fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let found = place.metadata()?;
    if !found.file_type().is_socket() || found.uid() != geteuid().as_raw() {
        return Err(io::Error::other("something else stands at the socket's place"));
    }
    // What is open, whatever the path leads to by now.
    let opened = format!("/proc/self/fd/{}", place.as_raw_fd());
    let mode = match access {
        Access::Owner => 0o600,
        Access::Group(group) => {
            if group.is_some() {
                chown(&opened, None, group)?;
            }
            0o660
        }
    };
    std::fs::set_permissions(&opened, PermissionsExt::from_mode(mode))
}

/// The number that every user has whom this process's user namespace does not map: naming it would name all of them. `None` where
/// all are mapped.
pub(crate) fn nobodys_uid() -> Option<u32> {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
    if maps_all(&map) { None } else { overflow?.trim().parse().ok() }
}

/// A line has the first number inside, the first outside, and how many.
fn maps_all(map: &str) -> bool {
    let counts = map.lines().filter_map(|line| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok());
    counts.sum::<u64>() >= u64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_socket_is_open_to_whom_it_is_for_and_replaces_a_stale_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        for (access, expected) in [(Access::Owner, 0o600), (Access::Group(None), 0o660)] {
            let _listener = bind(&path, access).unwrap();
            assert_eq!(mode(&path), expected);
        }
    }

    #[test]
    fn what_an_application_puts_in_the_sockets_place_is_not_opened_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let (link, secret) = (folder.path().join("s"), folder.path().join("secret"));
        std::fs::write(&secret, "key").unwrap();
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&secret, &link).unwrap();
        for place in [&link, &secret] {
            assert!(open_to(place, Access::Group(None)).is_err());
            assert_eq!(mode(&secret), 0o600);
        }
    }

    #[test]
    fn a_namespace_that_maps_some_users_is_told_from_one_that_maps_all() {
        assert!(maps_all("         0          0 4294967295\n"));
        assert!(!maps_all("         0       1000          1\n         1     100000      65536\n"));
        assert!(!maps_all(""));
    }
}
