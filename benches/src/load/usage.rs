//! What processes use: processor time and memory, of a process and everything it started.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

/// Processes of one proxy; more means that something forks without end.
const PROCESSES_MAX: usize = 64;

/// The process and everything that descends from it.
///
/// # Errors
/// No `/proc`.
pub fn family(root: u32) -> io::Result<Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has ended meanwhile has no parent any more.
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        if let Some(parent) = parent(&stat) {
            children.entry(parent).or_default().push(id);
        }
    }
    let (mut family, mut next) = (vec![root], 0);
    while let Some(id) = family.get(next).copied() {
        family.extend(children.remove(&id).unwrap_or_default());
        next += 1;
        if family.len() > PROCESSES_MAX {
            return Err(io::Error::other(format!("process {root} started more than {PROCESSES_MAX}")));
        }
    }
    Ok(family)
}

/// Processor time so far, threads that have ended included, to the nanosecond: the clock that the kernel keeps for each
/// process. `utime` and `stime` of `/proc` are the same figure in ticks of 10 ms.
///
/// # Errors
/// A process that has ended.
pub fn processor_time(family: &[u32]) -> io::Result<Duration> {
    family.iter().try_fold(Duration::ZERO, |sum, &id| {
        let clock: ClockId = clock_getcpuclockid(Pid::from_raw(id.cast_signed()))?;
        Ok(sum + Duration::from(clock.now()?))
    })
}

/// Resident memory now, in KiB.
///
/// # Errors
/// A process that has ended.
pub fn resident_kib(family: &[u32]) -> io::Result<u64> {
    sum(family, "VmRSS:")
}

/// The part of [`resident_kib`] that is not mapped from files.
///
/// # Errors
/// A process that has ended.
pub fn anonymous_kib(family: &[u32]) -> io::Result<u64> {
    sum(family, "RssAnon:")
}

fn sum(family: &[u32], field: &str) -> io::Result<u64> {
    family.iter().try_fold(0, |sum, id| {
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let missing = || io::Error::other(format!("process {id} has no memory any more"));
        Ok(sum + kib(&status, field).ok_or_else(missing)?)
    })
}

/// The parent's id in a line of `/proc/ID/stat`. The name before it may contain anything, also `)`.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn kib(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_is_found_behind_any_name() {
        assert_eq!(parent("42 (a) b (c)) S 17 42 42 0 -1"), Some(17));
        assert_eq!(parent(""), None);
    }

    #[test]
    fn resident_memory_is_found() {
        assert_eq!(kib("Name:\tx\nVmPeak:\t 9 kB\nVmRSS:\t   1234 kB\n", "VmRSS:"), Some(1234));
        assert_eq!(kib("Name:\tzombie\n", "VmRSS:"), None);
    }

    #[test]
    fn this_process_uses_time_and_memory() {
        let family = family(std::process::id()).unwrap();
        assert!(processor_time(&family[..1]).unwrap() > Duration::ZERO);
        assert!(resident_kib(&family[..1]).unwrap() > 100);
    }
}
