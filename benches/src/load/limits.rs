//! The small profile: each sidecar in a control group with 64 MiB, bound to one processor.
//!
//! Control groups belong to the machine, so they are prepared before the process enters namespaces of its own; only
//! root can. Version 1 and 2 are used, whichever has the memory controller.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

/// What a sidecar may use, page cache included.
pub const MEMORY: u64 = 64 * 1024 * 1024;
/// Makes a group for the process it is and becomes the command: `$1` is the folder, `$2` the limit's file, `$3` the limit.
const SCRIPT: &str = r#"set -e
group="$1/$$"
mkdir "$group"
echo "$3" > "$group/$2"
echo $$ > "$group/cgroup.procs"
shift 3
exec "$@""#;

/// A folder of control groups, removed when dropped.
#[derive(Debug)]
pub struct Limits {
    folder: PathBuf,
    file: &'static str,
    /// Keeps a mount of our own alive.
    _mounted: Option<TempDir>,
}

/// Where the memory controller is.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Place {
    First(PathBuf),
    Second(PathBuf),
}

impl Limits {
    /// Makes the folder.
    ///
    /// # Errors
    /// In words why there is none to be had.
    pub fn prepare() -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        if let Some(limits) = places(&mounts).into_iter().find_map(|place| Self::within(&place, None).ok()) {
            return Ok(limits);
        }
        let own = own_mount().map_err(|error| format!("no control group can be had: {error}"))?;
        let place = Place::Second(own.path().into());
        Self::within(&place, Some(own))
            .map_err(|error| format!("no control group limits memory here: {error}"))
    }

    fn within(place: &Place, mounted: Option<TempDir>) -> io::Result<Self> {
        let (root, file) = match place {
            Place::First(root) => (root, "memory.limit_in_bytes"),
            Place::Second(root) => {
                fs::write(root.join("cgroup.subtree_control"), "+memory")?;
                (root, "memory.max")
            }
        };
        let folder = root.join(format!("signet-load-{}", std::process::id()));
        fs::create_dir(&folder)?;
        let limits = Self { folder, file, _mounted: mounted };
        if matches!(place, Place::Second(_)) {
            fs::write(limits.folder.join("cgroup.subtree_control"), "+memory")?;
        }
        Ok(limits)
    }

    /// Words that, put before a command, let it run within the limits.
    pub fn wrapper(&self) -> Vec<String> {
        let folder = self.folder.display().to_string();
        ["sh", "-c", SCRIPT, "sh", &folder, self.file, &MEMORY.to_string()].map(str::to_owned).to_vec()
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        // Groups are removed as folders are, without their files. One that is still in use stays, and costs nothing.
        for group in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if group.path().is_dir() {
                let _ = fs::remove_dir(group.path());
            }
        }
        let _ = fs::remove_dir(&self.folder);
    }
}

fn places(mounts: &str) -> Vec<Place> {
    let place = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let (root, kind, options) = (PathBuf::from(words.next()?), words.next()?, words.next()?);
        match kind {
            "cgroup" if options.split(',').any(|option| option == "memory") => Some(Place::First(root)),
            "cgroup2" => Some(Place::Second(root)),
            _ => None,
        }
    };
    mounts.lines().filter_map(place).collect()
}

/// In a mount namespace of our own, so that the machine does not see it.
fn own_mount() -> io::Result<TempDir> {
    let folder = tempfile::tempdir()?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&Path>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    mount(Some("cgroup2"), folder.path(), Some("cgroup2"), MsFlags::empty(), none)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_controllers_are_found_in_mounts() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found =
            [Place::First("/sys/fs/cgroup/memory".into()), Place::Second("/sys/fs/cgroup/unified".into())];
        assert_eq!(places(mounts), found);
    }
}
