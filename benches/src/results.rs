//! The figures of a run: every sample, and what is made of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The pair without proxies.
pub const DIRECT: &str = "direct";
/// The version of this format.
pub const FORMAT: u32 = 1;

/// One run: what was measured, on what, and every figure.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Run {
    /// Version of this format, [`FORMAT`].
    pub format: u32,
    /// When it began, UTC.
    pub begun: String,
    /// How long it took, seconds.
    pub seconds: f64,
    /// The command line.
    pub command: Vec<String>,
    /// On what.
    pub machine: Machine,
    /// Rounds that were asked for.
    pub rounds: u32,
    /// Length of one measurement, seconds.
    pub measurement_seconds: f64,
    /// Numbers of idle connections that memory was measured with.
    #[serde(default)]
    pub idle: Vec<usize>,
    /// Whether peers were behind a redirect like the sidecar's.
    pub redirected: bool,
    /// The profile's limits in words, if there were any.
    pub profile: Option<String>,
    /// What was measured, in the order of the report.
    pub pairs: Vec<PairFacts>,
    /// Pairs and measures that were left out, and why.
    pub left_out: Vec<LeftOut>,
    /// Measures that failed.
    pub failures: Vec<Failure>,
    /// Every figure.
    pub samples: Vec<Sample>,
}

/// The machine, before anything was measured.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Processors this run might use.
    pub processors: usize,
    /// Those of the client's host and of the server's.
    pub hosts: [Vec<usize>; 2],
    /// Whether it is a virtual machine.
    pub is_virtual: bool,
    /// Kernel.
    pub kernel: String,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// The limit of open files of each process.
    #[serde(default)]
    pub open_files: u64,
    /// Load averages of 1, 5 and 15 minutes before.
    pub load_before: [f64; 3],
    /// The same of 1 minute after.
    pub load_after: [f64; 3],
}

/// A pair.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct PairFacts {
    /// Its name.
    pub name: String,
    /// What it is.
    pub about: String,
    /// What it is to the report.
    pub family: Family,
    /// Its version, as it tells it.
    pub version: Option<String>,
}

/// What a pair is to the report.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// A peer that carries bytes.
    BytesPeer,
    /// Nothing between.
    #[default]
    Direct,
    /// A peer that parses HTTP.
    HttpPeer,
    /// Signet.
    Signet,
}

/// Something that was not measured.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LeftOut {
    /// A pair or a measure.
    pub what: String,
    /// Why.
    pub why: String,
}

/// A measure that failed in one round.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Failure {
    /// Which pair.
    pub pair: String,
    /// Which measure.
    pub measure: String,
    /// From 1.
    pub round: u32,
    /// Why.
    pub error: String,
}

/// One figure of one round.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Sample {
    /// Which pair.
    pub pair: String,
    /// Which figure, such as `small.per_second`.
    pub figure: String,
    /// From 1.
    pub round: u32,
    /// The value, in the unit that the figure's name tells.
    pub value: f64,
}

/// What the rounds say together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The median.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
}

impl Summary {
    /// Of at least one value.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, greatest) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let median = match values.get(middle.wrapping_sub(1)) {
            Some(lower) if values.len().is_multiple_of(2) => f64::midpoint(*lower, upper),
            _ => upper,
        };
        Some(Self { median, least, greatest })
    }

    /// How far the rounds were apart, as a part of the median.
    pub fn spread(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.greatest - self.least) / self.median }
    }
}

/// The summaries of a run, by pair and figure.
#[derive(Clone, Debug, Default)]
pub struct Figures(BTreeMap<(String, String), Summary>);

/// Latencies that are also told as what they are above the pair without proxies in the same round, named `added.…`.
const ADDED: [&str; 5] =
    ["one.p50_us", "awake.one.p50_us", "rate_1000.p99_us", "rate_3200.p99_us", "awake.rate_3200.p99_us"];

impl Figures {
    /// Of a run.
    pub fn of(run: &Run) -> Self {
        let mut values: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
        let mut direct: BTreeMap<(&str, u32), f64> = BTreeMap::new();
        for sample in &run.samples {
            values.entry((sample.pair.clone(), sample.figure.clone())).or_default().push(sample.value);
            if sample.pair == DIRECT {
                direct.insert((&sample.figure, sample.round), sample.value);
            }
        }
        for sample in run.samples.iter().filter(|sample| ADDED.contains(&sample.figure.as_str())) {
            if let Some(base) = direct.get(&(&sample.figure, sample.round)).filter(|_| sample.pair != DIRECT)
            {
                let figure = format!("added.{}", sample.figure);
                values.entry((sample.pair.clone(), figure)).or_default().push(sample.value - base);
            }
        }
        Self(values.into_iter().filter_map(|(key, values)| Some((key, Summary::of(values)?))).collect())
    }

    /// One of them, where it was measured.
    pub fn of_pair(&self, pair: &str, figure: &str) -> Option<Summary> {
        self.0.get(&(pair.to_owned(), figure.to_owned())).copied()
    }

    /// Whether any pair has it.
    pub fn has(&self, figure: &str) -> bool {
        self.0.keys().any(|(_, known)| known == figure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_even_and_odd_numbers_of_rounds() {
        let summary = |values: &[f64]| Summary::of(values.to_vec());
        assert_eq!(summary(&[]), None);
        assert_eq!(summary(&[3.0, 1.0, 2.0]), Some(Summary { median: 2.0, least: 1.0, greatest: 3.0 }));
        assert_eq!(summary(&[4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(summary(&[5.0]).unwrap().spread(), 0.0);
        assert_eq!(summary(&[1.0, 2.0, 3.0]).unwrap().spread(), 1.0);
    }

    #[test]
    fn added_latency_is_that_above_direct_in_the_same_round() {
        let sample = |pair: &str, round, value| Sample {
            pair: pair.into(),
            figure: "one.p50_us".into(),
            round,
            value,
        };
        let samples = vec![sample("a", 1, 150.0), sample("direct", 1, 50.0), sample("a", 2, 300.0)];
        let figures = Figures::of(&Run { samples, ..Run::default() });
        let added = figures.of_pair("a", "added.one.p50_us").unwrap();
        assert_eq!((added.median, added.greatest), (100.0, 100.0));
        assert_eq!(figures.of_pair("direct", "added.one.p50_us"), None);
    }

    #[test]
    fn samples_are_gathered_by_pair_and_figure() {
        let sample =
            |pair: &str, round, value| Sample { pair: pair.into(), figure: "f".into(), round, value };
        let samples = vec![sample("a", 1, 1.0), sample("b", 1, 9.0), sample("a", 2, 3.0)];
        let figures = Figures::of(&Run { samples, ..Run::default() });
        assert_eq!(figures.of_pair("a", "f").unwrap().median, 2.0);
        assert_eq!(figures.of_pair("c", "f"), None);
        assert!(figures.has("f") && !figures.has("g"));
    }
}
