//! Facts about the machine.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::results::Machine;

/// Reads them. What cannot be read stays empty.
pub fn facts(processors: usize, hosts: [Vec<usize>; 2], open_files: u64) -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let memory = read("/proc/meminfo");
    Machine {
        processor: field(&cpu, "model name").unwrap_or("unknown").to_owned(),
        processors,
        hosts,
        is_virtual: field(&cpu, "flags").is_some_and(|flags| flags.split(' ').any(|f| f == "hypervisor")),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        memory_mib: field(&memory, "MemTotal").and_then(kib).unwrap_or_default() / 1024,
        open_files,
        load_before: load(),
        load_after: [0.0; 3],
    }
}

/// The load averages.
pub fn load() -> [f64; 3] {
    averages(&fs::read_to_string("/proc/loadavg").unwrap_or_default()).unwrap_or_default()
}

/// Now, UTC, such as `2026-11-26 00:30`.
pub fn now() -> String {
    let seconds =
        SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default();
    date(seconds)
}

fn averages(text: &str) -> Option<[f64; 3]> {
    let mut words = text.split_whitespace().map(|word| word.parse().ok());
    Some([words.next()??, words.next()??, words.next()??])
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|found| found.trim() == name))?;
    Some(line.split_once(':')?.1.trim())
}

fn kib(text: &str) -> Option<u64> {
    text.strip_suffix(" kB")?.parse().ok()
}

/// Days to a date: the civil calendar in eras of 400 years, years beginning in March.
fn date(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", second / 3600, second / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00");
        assert_eq!(date(1_709_210_096), "2024-02-29 12:34");
        assert_eq!(date(1_795_653_000), "2026-11-26 00:30");
    }

    #[test]
    fn fields_and_averages_are_found() {
        let text = "processor\t: 0\nmodel name\t: A: B\n";
        assert_eq!(field(text, "model name"), Some("A: B"));
        assert_eq!(field(text, "model"), None);
        assert_eq!(averages("0.50 1.00 2.25 1/234 5678\n"), Some([0.5, 1.0, 2.25]));
        assert_eq!(averages("x"), None);
    }
}
