//! What runs of the fleet gave, and the tables of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::report::table::{markdown, number};
use crate::results::Machine;

/// Version of the file of figures.
pub const FORMAT: u32 = 1;

/// A run with fleets of several sizes.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Run {
    /// [`FORMAT`].
    pub format: u32,
    /// When it began, UTC.
    pub begun: String,
    /// On what.
    pub machine: Machine,
    /// What was measured, as it says of itself.
    pub program: String,
    /// One for each size.
    pub fleets: Vec<Figures>,
}

/// Figures of one fleet. Times are seconds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Figures {
    /// How many proxies.
    pub proxies: usize,
    /// How many networks.
    pub sites: usize,
    /// Size of the policy that was pushed.
    pub policy_bytes: usize,
    /// Until everybody was enrolled and connected, and the control plane's processor time for it.
    pub join_seconds: f64,
    /// See `join_seconds`.
    pub join_processor_seconds: f64,
    /// Attempts at a stream that failed meanwhile.
    pub join_failed: BTreeMap<String, u64>,
    /// Memory before the first proxy.
    pub memory_empty_kib: u64,
    /// Memory at rest, with all connected.
    pub memory_rest_kib: u64,
    /// Processors used at rest.
    pub rest_processors: f64,
    /// Policies pushed.
    pub pushes: Vec<Push>,
    /// Restarts of the control plane.
    pub storms: Vec<Storm>,
}

/// One policy, from the moment the operator asks.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Push {
    /// Until the operator had the answer.
    pub applied: f64,
    /// Until each proxy had answered.
    pub taken: Vec<f64>,
    /// Until the control plane had counted the last answer.
    pub counted: f64,
    /// Of the control plane.
    pub processor_seconds: f64,
    /// The most memory seen.
    pub peak_kib: u64,
}

/// Everybody coming back after a restart, from the moment it was killed or asked to stop.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Storm {
    /// `killed` or `drained`.
    pub kind: String,
    /// Until it listened again.
    pub away_seconds: f64,
    /// Until half of them were connected and their claims accepted.
    pub half_seconds: f64,
    /// Until all were.
    pub all_seconds: f64,
    /// Of the new control plane, its start included.
    pub processor_seconds: f64,
    /// The most memory seen.
    pub peak_kib: u64,
    /// Attempts that failed while nobody listened.
    pub failed_away: BTreeMap<String, u64>,
    /// Attempts that failed after that.
    pub failed: BTreeMap<String, u64>,
}

impl Push {
    /// The time within which a part of the proxies had answered.
    pub fn quantile(&self, part: f64) -> f64 {
        let mut taken = self.taken.clone();
        taken.sort_by(f64::total_cmp);
        let rank = (part * taken.len() as f64).ceil() as usize;
        taken.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// The tables of a run.
pub fn text(run: &Run) -> String {
    let machine = &run.machine;
    let (control, others) = (&machine.hosts[0], &machine.hosts[1]);
    let mut text = format!(
        "{} UTC, {}; a {}machine with {} processors {}, {} MiB, Linux {}, at most {} open files. The control plane on \
         processor {control:?}, the proxies on {others:?}. Load average before {:.2}, after {:.2}.\n\n",
        run.begun,
        run.program,
        if machine.is_virtual { "virtual " } else { "" },
        machine.processors,
        machine.processor,
        machine.memory_mib,
        machine.kernel,
        machine.open_files,
        machine.load_before[0],
        machine.load_after[0],
    );
    text += &markdown(titles(&FLEET), run.fleets.iter().map(fleet).collect());
    text.push('\n');
    text += &markdown(titles(&STORM), run.fleets.iter().flat_map(storms).collect());
    text
}

const FLEET: [&str; 9] = [
    "proxies",
    "sites",
    "memory at rest MiB",
    "KiB per proxy",
    "processor at rest %",
    "per 1,000 proxies %",
    "policy KiB",
    "push p50 / p99 / last s",
    "processor s per push",
];

const STORM: [&str; 8] = [
    "proxies",
    "restart",
    "listening again s",
    "half back s",
    "all back s",
    "failed attempts",
    "processor s",
    "peak memory MiB",
];

fn titles(titles: &[&str]) -> Vec<String> {
    titles.iter().map(|title| (*title).to_owned()).collect()
}

fn fleet(figures: &Figures) -> Vec<String> {
    let (count, thousands) = (figures.proxies as f64, figures.proxies as f64 / 1_000.0);
    let added = figures.memory_rest_kib.saturating_sub(figures.memory_empty_kib);
    let middle = |value: &dyn Fn(&Push) -> f64| median(figures.pushes.iter().map(value).collect());
    vec![
        number(count, 0),
        number(figures.sites as f64, 0),
        number(mib(figures.memory_rest_kib), 1),
        number(added as f64 / count, 0),
        number(100.0 * figures.rest_processors, 1),
        number(100.0 * figures.rest_processors / thousands, 1),
        number(figures.policy_bytes as f64 / 1024.0, 1),
        format!(
            "{} / {} / {}",
            number(middle(&|push| push.quantile(0.5)), 2),
            number(middle(&|push| push.quantile(0.99)), 2),
            number(middle(&|push| push.counted), 2)
        ),
        number(middle(&|push| push.processor_seconds), 2),
    ]
}

fn storms(figures: &Figures) -> Vec<Vec<String>> {
    let row = |storm: &Storm| {
        vec![
            number(figures.proxies as f64, 0),
            storm.kind.clone(),
            number(storm.away_seconds, 1),
            number(storm.half_seconds, 1),
            number(storm.all_seconds, 1),
            attempts(&storm.failed),
            number(storm.processor_seconds, 1),
            number(mib(storm.peak_kib), 1),
        ]
    };
    figures.storms.iter().map(row).collect()
}

/// Those that failed although somebody listened, by kind.
fn attempts(failed: &BTreeMap<String, u64>) -> String {
    let kinds: Vec<String> =
        failed.iter().map(|(kind, count)| format!("{} {kind}", number(*count as f64, 0))).collect();
    if kinds.is_empty() { "0".into() } else { kinds.join(", ") }
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_within_which_that_many_had_answered() {
        let push = Push { taken: (1..=100).rev().map(f64::from).collect(), ..Push::default() };
        assert_eq!((push.quantile(0.5), push.quantile(0.99), push.quantile(1.0)), (50.0, 99.0, 100.0));
        assert_eq!(Push::default().quantile(0.5), 0.0);
    }

    #[test]
    fn each_fleet_is_a_row_and_each_storm_too() {
        let storm =
            Storm { kind: "killed".into(), failed: [("goaway".into(), 1_200)].into(), ..Storm::default() };
        let fleet =
            Figures { proxies: 2_000, rest_processors: 0.5, storms: vec![storm], ..Figures::default() };
        let text = text(&Run { fleets: vec![fleet], ..Run::default() });
        assert!(text.contains("| 2,000 | 0 | 0.0 | 0 | 50.0 | 25.0 |"), "{text}");
        assert!(text.contains("| killed | 0.0 | 0.0 | 0.0 | 1,200 goaway |"), "{text}");
    }
}
