//! What Signet wants to reach, as ratios within one run.

use super::table::{markdown, number};
use crate::results::{Family, Figures, Run};

/// What signing and verifying a request and a response cost a sidecar with plain Ed25519, seconds: the floor below
/// which no implementation comes.
const ED25519_FLOOR: f64 = 52e-6;

const UNSIGNED: &str = "signet-public";
const BATCH: &str = "signet-batch";
const ASYNC: &str = "signet-batch-async";
const PLAIN: &str = "signet-ed25519";

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}
use Bound::{AtLeast, AtMost};

/// The targets for which this run has the figures; nothing without any.
pub fn table(run: &Run, figures: &Figures) -> Option<String> {
    let look = Look { run, figures };
    let rows =
        [throughput_and_cost(&look), latency(&look), bulk_and_connections(&look), memory_and_start(&look)]
            .concat();
    let rows: Vec<Vec<String>> = rows.into_iter().filter_map(row).collect();
    let titles = ["what", "measured", "target", ""].map(str::to_owned).to_vec();
    (!rows.is_empty()).then(|| markdown(titles, rows))
}

type Target = (&'static str, Option<f64>, Bound);

struct Look<'a> {
    run: &'a Run,
    figures: &'a Figures,
}

impl Look<'_> {
    fn of(&self, pair: &str, figure: &str) -> Option<f64> {
        self.figures.of_pair(pair, figure).map(|summary| summary.median)
    }

    fn ratio(&self, pair: &str, other: &str, figure: &str) -> Option<f64> {
        self.over(pair, figure, self.of(other, figure))
    }

    /// Of what is above zero: an added latency below it is noise, and its quotients say nothing.
    fn over(&self, pair: &str, figure: &str, other: Option<f64>) -> Option<f64> {
        let positive = |value: &f64| *value > 0.0;
        Some(self.of(pair, figure).filter(positive)? / other.filter(positive)?)
    }

    fn above(&self, pair: &str, other: &str, figure: &str) -> Option<f64> {
        Some(self.of(pair, figure)? - self.of(other, figure)?)
    }

    fn least(&self, figure: &str, chosen: impl Fn(&str, Family) -> bool) -> Option<f64> {
        self.values(figure, chosen).min_by(f64::total_cmp)
    }

    fn most(&self, figure: &str, chosen: impl Fn(&str, Family) -> bool) -> Option<f64> {
        self.values(figure, chosen).max_by(f64::total_cmp)
    }

    fn values(&self, figure: &str, chosen: impl Fn(&str, Family) -> bool) -> impl Iterator<Item = f64> {
        let chosen = self.run.pairs.iter().filter(move |pair| chosen(&pair.name, pair.family));
        chosen.filter_map(move |pair| self.of(&pair.name, figure))
    }
}

fn is_envoy(name: &str, _: Family) -> bool {
    name.starts_with("envoy-")
}

fn parses_http(_: &str, family: Family) -> bool {
    family == Family::HttpPeer
}

fn is_peer(_: &str, family: Family) -> bool {
    matches!(family, Family::HttpPeer | Family::BytesPeer)
}

fn throughput_and_cost(look: &Look<'_>) -> Vec<Target> {
    let (rate, cost) = ("small.per_second", "small.cpu_ms");
    let predicted = look.of(UNSIGNED, rate).map(|rate| 1.0 / (1.0 / rate + ED25519_FLOOR));
    vec![
        ("CPU, nothing signed / HAProxy HTTP/2", look.ratio(UNSIGNED, "haproxy-h2", cost), AtMost(0.85)),
        ("CPU, signed in batches / HAProxy HTTP/1.1", look.ratio(BATCH, "haproxy-h1", cost), AtMost(1.0)),
        (
            "CPU, signed in batches / better Envoy",
            look.over(BATCH, cost, look.least(cost, is_envoy)),
            AtMost(0.35),
        ),
        (
            "requests/s, signed in batches / HAProxy HTTP/1.1",
            look.ratio(BATCH, "haproxy-h1", rate),
            AtLeast(1.0),
        ),
        (
            "requests/s, signed in batches / better Envoy",
            look.over(BATCH, rate, look.most(rate, is_envoy)),
            AtLeast(2.5),
        ),
        ("requests/s, signed in batches / own unsigned", look.ratio(BATCH, UNSIGNED, rate), AtLeast(0.8)),
        (
            "requests/s, plain Ed25519 / what its floor allows",
            look.over(PLAIN, rate, predicted),
            AtLeast(0.9),
        ),
    ]
}

fn latency(look: &Look<'_>) -> Vec<Target> {
    let (one, tail) = ("added.one.p50_us", "added.awake.rate_3200.p99_us");
    vec![
        (
            "added p50, nothing signed / best peer that parses HTTP",
            look.over(UNSIGNED, one, look.least(one, parses_http)),
            AtMost(1.0),
        ),
        ("added p50, signed in batches − own unsigned, µs", look.above(BATCH, UNSIGNED, one), AtMost(130.0)),
        (
            "added p50, verified while delivered − own unsigned, µs",
            look.above(ASYNC, UNSIGNED, one),
            AtMost(40.0),
        ),
        (
            "added p99 at 3,200/s without halting, nothing signed / best peer that parses HTTP",
            look.over(UNSIGNED, tail, look.least(tail, parses_http)),
            AtMost(0.8),
        ),
    ]
}

fn bulk_and_connections(look: &Look<'_>) -> Vec<Target> {
    let (bytes, connections) = ("bytes.gbit_per_second", "connections.per_second");
    let redirected = |value: Option<f64>| value.filter(|_| look.run.redirected);
    vec![
        ("plain bytes, signed / own unsigned", look.ratio(BATCH, UNSIGNED, bytes), AtLeast(0.8)),
        (
            "plain bytes, unsigned / best peer",
            look.over(UNSIGNED, bytes, look.most(bytes, is_peer)),
            AtLeast(1.0),
        ),
        (
            "new connections/s, signed in batches / nginx behind a redirection",
            redirected(look.ratio(BATCH, "nginx", connections)),
            AtLeast(1.0),
        ),
    ]
}

/// Of whichever of Signet's pairs was measured: the batch mode where there is a choice.
fn memory_and_start(look: &Look<'_>) -> Vec<Target> {
    let own = |figure: &str| [BATCH, PLAIN, UNSIGNED].iter().find_map(|pair| look.of(pair, figure));
    vec![
        ("resident memory idle, MiB", own("memory.idle_mib"), AtMost(8.0)),
        ("resident memory after load, MiB", own("memory.loaded_mib"), AtMost(12.0)),
        ("memory per idle connection, KiB", own("memory.per_connection_of_1000_kib"), AtMost(16.0)),
        ("start to ready with a cached identity, ms", own("start.cached_ms"), AtMost(50.0)),
        ("start to ready with enrolment, ms", own("start.ready_ms"), AtMost(150.0)),
    ]
}

fn row((what, value, bound): Target) -> Option<Vec<String>> {
    let value = value.filter(|value| value.is_finite())?;
    let (target, reached) = match bound {
        AtLeast(bound) => (format!("≥ {bound}"), value >= bound),
        AtMost(bound) => (format!("≤ {bound}"), value <= bound),
    };
    let reached = if reached { "reached" } else { "not reached" };
    Some(vec![what.into(), number(value, 2), target, reached.into()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{PairFacts, Sample};

    #[test]
    fn targets_are_judged_where_their_figures_are_there() {
        let pair = |name: &str, family| PairFacts { name: name.into(), family, ..PairFacts::default() };
        let sample = |pair: &str, figure: &str, value| Sample {
            pair: pair.into(),
            figure: figure.into(),
            round: 1,
            value,
        };
        let run = Run {
            pairs: vec![
                pair(BATCH, Family::Signet),
                pair("haproxy-h1", Family::HttpPeer),
                pair("envoy-h1", Family::HttpPeer),
                pair("envoy-h2", Family::HttpPeer),
            ],
            samples: vec![
                sample(BATCH, "small.cpu_ms", 90.0),
                sample("haproxy-h1", "small.cpu_ms", 100.0),
                sample("envoy-h1", "small.cpu_ms", 300.0),
                sample("envoy-h2", "small.cpu_ms", 200.0),
            ],
            ..Run::default()
        };
        let table = table(&run, &Figures::of(&run)).unwrap();
        assert!(
            table.contains("| CPU, signed in batches / HAProxy HTTP/1.1 | 0.90 | ≤ 1 | reached |"),
            "{table}"
        );
        assert!(
            table.contains("| CPU, signed in batches / better Envoy | 0.45 | ≤ 0.35 | not reached |"),
            "{table}"
        );
        assert!(!table.contains("start"), "{table}");
    }

    #[test]
    fn added_latency_below_zero_is_no_success() {
        let pair = |name: &str, family| PairFacts { name: name.into(), family, ..PairFacts::default() };
        let sample =
            |pair: &str, value| Sample { pair: pair.into(), figure: "one.p50_us".into(), round: 1, value };
        let run = Run {
            pairs: vec![pair(UNSIGNED, Family::Signet), pair("nginx", Family::HttpPeer)],
            samples: vec![sample("direct", 50.0), sample("nginx", 40.0), sample(UNSIGNED, 60.0)],
            ..Run::default()
        };
        assert_eq!(super::table(&run, &Figures::of(&run)), None);
    }
}
