//! The report in words and tables.

use std::fmt::Write as _;

use super::plot::{self, Bar, Row};
use super::table::{self, Column};
use super::targets;
use crate::load::measure::RATES;
use crate::results::{Family, Figures, Run};

/// Above this load average before the run, the machine was not idle.
const IDLE_LOAD: f64 = 0.5;

/// The figures that one looks at first.
const OVERVIEW: [Column<'_>; 7] = [
    ("requests/s", "small.per_second", 0, true),
    ("CPU ms per 1,000 requests, both proxies", "small.cpu_ms", 0, true),
    ("p50 µs at 1 connection", "one.p50_us", 0, true),
    ("download Gbit/s", "download.gbit_per_second", 1, true),
    ("plain bytes Gbit/s", "bytes.gbit_per_second", 1, true),
    ("new connections/s", "connections.per_second", 0, true),
    ("RSS MiB after load, each", "memory.loaded_mib", 1, true),
];
const COST: [Column<'_>; 8] = [
    ("GET 1 KiB: client side ms", "small.cpu_client_ms", 0, false),
    ("server side ms", "small.cpu_server_ms", 0, false),
    ("POST 16 KiB/s", "post.per_second", 0, true),
    ("ms per 1,000", "post.cpu_ms", 0, false),
    ("gRPC/s", "grpc.per_second", 0, true),
    ("ms per 1,000 calls", "grpc.cpu_ms", 0, false),
    ("CPU s per GiB, download", "download.cpu_s_per_gib", 2, false),
    ("CPU s per GiB, plain bytes", "bytes.cpu_s_per_gib", 2, false),
];
const LATENCY: [Column<'_>; 5] = [
    ("32 connections: p50 µs", "small.p50_us", 0, true),
    ("p99 µs", "small.p99_us", 0, true),
    ("1 connection: p50 µs", "one.p50_us", 0, true),
    ("above direct", "added.one.p50_us", 0, true),
    ("p99 µs", "one.p99_us", 0, true),
];
const LATENCY_AWAKE: [Column<'_>; 2] =
    [("1 connection: p50 µs", "awake.one.p50_us", 0, true), ("p99 µs", "awake.one.p99_us", 0, true)];
const AT_RATES: [Column<'_>; 6] = [
    ("100/s: p50 µs", "rate_100.p50_us", 0, true),
    ("p99 µs", "rate_100.p99_us", 0, true),
    ("1,000/s: p50 µs", "rate_1000.p50_us", 0, true),
    ("p99 µs", "rate_1000.p99_us", 0, true),
    ("3,200/s: p50 µs", "rate_3200.p50_us", 0, true),
    ("p99 µs", "rate_3200.p99_us", 0, true),
];
const AT_RATES_AWAKE: [Column<'_>; 6] = [
    ("100/s: p50 µs", "awake.rate_100.p50_us", 0, true),
    ("p99 µs", "awake.rate_100.p99_us", 0, true),
    ("1,000/s: p50 µs", "awake.rate_1000.p50_us", 0, true),
    ("p99 µs", "awake.rate_1000.p99_us", 0, true),
    ("3,200/s: p50 µs", "awake.rate_3200.p50_us", 0, true),
    ("p99 µs", "awake.rate_3200.p99_us", 0, true),
];
const MEMORY: [Column<'_>; 3] = [
    ("idle MiB", "memory.idle_mib", 1, true),
    ("of it not mapped from files", "memory.idle_own_mib", 1, true),
    ("after load MiB", "memory.loaded_mib", 1, true),
];
const START: [Column<'_>; 2] = [
    ("start to ready ms", "start.ready_ms", 0, true),
    ("with cached identity ms", "start.cached_ms", 0, true),
];
const OWN: [Column<'_>; 3] = [
    ("connections between the sidecars", "signet.connections", 0, false),
    ("signatures per batch", "signet.batch", 1, false),
    ("root cache hits", "signet.cache_hit", 3, false),
];
/// What is compared with each other pair, and how to read it.
const RATIOS: [(&str, &str); 9] = [
    ("small.per_second", "Requests per second: more is better"),
    ("small.cpu_ms", "CPU per request: less is better"),
    ("added.one.p50_us", "p50 at one connection, what is added to direct: less is better"),
    ("added.awake.one.p50_us", "The same without halting processors: less is better"),
    ("added.rate_3200.p99_us", "p99 at 3,200 requests/s, what is added to direct: less is better"),
    ("added.awake.rate_3200.p99_us", "The same without halting processors: less is better"),
    ("download.gbit_per_second", "Download: more is better"),
    ("bytes.gbit_per_second", "Plain bytes: more is better"),
    ("connections.per_second", "New connections per second: more is better"),
];

/// The first table with what it was made on.
pub fn overview(run: &Run) -> String {
    let figures = Figures::of(run);
    let mut text = machine(run, &figures);
    add(&mut text, None, table::by_pair(run, &figures, &OVERVIEW));
    text
}

/// Everything. `plots` is what stands before the plots' names.
pub fn full(run: &Run, plots: &str) -> String {
    let figures = Figures::of(run);
    let mut text = overview(run);
    for (name, _) in self::plots(run, &figures) {
        let alt = name.trim_end_matches(".svg");
        let _ = writeln!(text, "![{alt}]({plots}{name})\n");
    }
    for (title, columns) in [
        ("Processor time and other traffic", &COST[..]),
        ("Latency of the closed loops", &LATENCY),
        ("Latency at fixed rates, a back end that takes 2 ms", &AT_RATES),
        ("Latency without halting processors", &LATENCY_AWAKE),
        ("Latency at fixed rates, without halting processors", &AT_RATES_AWAKE),
        ("Start", &START),
        ("What the sidecars counted", &OWN),
    ] {
        add(&mut text, Some(title), table::by_pair(run, &figures, columns));
    }
    add(&mut text, Some("Resident memory of each proxy"), memory(run, &figures));
    let own: Vec<&str> = of(run, Family::Signet);
    for (figure, title) in RATIOS {
        let title = format!("Ratios. {title}");
        add(&mut text, Some(&title), table::ratios(run, &figures, &own, figure));
    }
    add(&mut text, Some("Targets"), targets::table(run, &figures));
    text += &remarks(run);
    text
}

/// The plots with their names.
pub fn plots(run: &Run, figures: &Figures) -> Vec<(&'static str, String)> {
    let bars = |figure: &str| -> Vec<Bar> {
        let bar = |pair: &crate::results::PairFacts| {
            let summary = figures.of_pair(&pair.name, figure)?;
            Some(Bar { name: pair.name.clone(), family: pair.family, summary })
        };
        run.pairs.iter().filter_map(bar).collect()
    };
    let mut plots = Vec::new();
    for (name, figure, title, unit) in [
        ("throughput.svg", "small.per_second", "Requests per second, 1 KiB, 32 connections", "requests/s"),
        ("cpu.svg", "small.cpu_ms", "Processor time per 1,000 requests, both proxies", "ms"),
    ] {
        let bars = bars(figure);
        if !bars.is_empty() {
            plots.push((name, plot::bars(title, unit, 0, &bars)));
        }
    }
    let [_, _, rate] = RATES;
    let rows: Vec<Row> = run
        .pairs
        .iter()
        .filter_map(|pair| {
            let value = |percentile: &str| {
                let figure = format!("rate_{rate}.{percentile}_us");
                Some(figures.of_pair(&pair.name, &figure)?.median)
            };
            let values = vec![value("p50")?, value("p90")?, value("p99")?, value("p999")?];
            Some(Row { name: pair.name.clone(), values })
        })
        .collect();
    if !rows.is_empty() {
        let title =
            format!("Latency at {} requests/s, a back end that takes 2 ms", table::number(rate.into(), 0));
        let names = ["p50", "p90", "p99", "p99.9"];
        plots.push(("latency.svg", plot::percentiles(&title, "µs, logarithmic", &names, &rows)));
    }
    plots
}

/// With as many columns as there were numbers of idle connections.
fn memory(run: &Run, figures: &Figures) -> Option<String> {
    let columns: Vec<[(String, String); 2]> = run
        .idle
        .iter()
        .map(|&count| {
            let words = table::number(count as f64, 0);
            let with = (format!("{words} idle connections MiB"), format!("memory.with_{count}_mib"));
            [
                with,
                ("KiB per connection, fuller side".into(), format!("memory.per_connection_of_{count}_kib")),
            ]
        })
        .collect();
    let more = columns.iter().flatten().map(|(title, figure)| (title.as_str(), figure.as_str(), 1, true));
    let columns: Vec<Column<'_>> = MEMORY.into_iter().chain(more).collect();
    table::by_pair(run, figures, &columns)
}

fn of(run: &Run, family: Family) -> Vec<&str> {
    run.pairs.iter().filter(|pair| pair.family == family).map(|pair| pair.name.as_str()).collect()
}

fn machine(run: &Run, figures: &Figures) -> String {
    let machine = &run.machine;
    let kind = if machine.is_virtual { "a virtual machine with " } else { "" };
    let places =
        if run.redirected { "behind a redirection like the sidecars'" } else { "addressed by their ports" };
    let mut text = format!(
        "Medians of {} rounds (least–greatest), {} UTC, {kind}{} processors {}, {} MiB, Linux {}, at most {} open files. Each host is bound \
         to its processors: the client's to {:?}, the server's to {:?}. Measurements of {} s; peers are {places}. Load \
         average before {:.2}, after {:.2}.",
        run.rounds,
        run.begun,
        machine.processors,
        machine.processor,
        machine.memory_mib,
        machine.kernel,
        machine.open_files,
        machine.hosts[0],
        machine.hosts[1],
        run.measurement_seconds,
        machine.load_before[0],
        machine.load_after[0],
    );
    if let Some(direct) = figures.of_pair("direct", "small.per_second") {
        let _ = write!(text, " Noise: the rounds of `direct` were {:.0} % apart.", direct.spread() * 100.0);
    }
    if machine.load_before[0] > IDLE_LOAD {
        text += " **Other work was running on these processors**: times and rates are sizes, not figures to quote; processor \
                 time per request suffers least.";
    }
    if let Some(profile) = &run.profile {
        let _ = write!(text, " Small profile: {profile}.");
    }
    text + "\n\n"
}

fn add(text: &mut String, title: Option<&str>, table: Option<String>) {
    let Some(table) = table else { return };
    if let Some(title) = title {
        let _ = writeln!(text, "### {title}\n");
    }
    *text += &table;
    text.push('\n');
}

fn remarks(run: &Run) -> String {
    let mut text = String::from("### What was measured\n\n");
    for pair in &run.pairs {
        let version = pair.version.as_deref().map(|version| format!(" ({version})")).unwrap_or_default();
        let _ = writeln!(text, "- `{}`: {}{version}", pair.name, pair.about);
    }
    list(&mut text, "Left out", left_out(run));
    let failures = run.failures.iter().map(|failure| {
        format!(
            "- `{}`, {}, round {}: {}",
            failure.pair,
            failure.measure,
            failure.round,
            one_line(&failure.error)
        )
    });
    list(&mut text, "Failed", failures.collect());
    text
}

/// What was left out for the same reason stands together.
fn left_out(run: &Run) -> Vec<String> {
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for left_out in &run.left_out {
        let what = format!("`{}`", left_out.what);
        match reasons.iter_mut().find(|(why, _)| *why == left_out.why) {
            Some((_, known)) => known.push(what),
            None => reasons.push((&left_out.why, vec![what])),
        }
    }
    reasons.into_iter().map(|(why, what)| format!("- {}: {why}", what.join(", "))).collect()
}

fn list(text: &mut String, title: &str, lines: Vec<String>) {
    if !lines.is_empty() {
        let _ = writeln!(text, "\n### {title}\n\n{}", lines.join("\n"));
    }
}

/// Of an error that goes on for pages, the beginning.
fn one_line(text: &str) -> String {
    const SHOWN: usize = 200;
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Failure, LeftOut, PairFacts, Sample};

    #[test]
    fn report_says_what_was_measured_left_out_and_failed() {
        let pair = |name: &str, family| PairFacts {
            name: name.into(),
            about: "about".into(),
            family,
            version: Some("1.0".into()),
        };
        let sample = |pair: &str, figure: &str, value| Sample {
            pair: pair.into(),
            figure: figure.into(),
            round: 1,
            value,
        };
        let run = Run {
            pairs: vec![pair("direct", Family::Direct), pair("signet-public", Family::Signet)],
            samples: vec![
                sample("direct", "small.per_second", 70_000.0),
                sample("signet-public", "small.per_second", 14_000.0),
                sample("signet-public", "small.cpu_ms", 50.0),
            ],
            left_out: vec![LeftOut { what: "nginx".into(), why: "missing".into() }],
            failures: vec![Failure {
                pair: "direct".into(),
                measure: "grpc".into(),
                round: 1,
                error: "a\nb".into(),
            }],
            ..Run::default()
        };
        let text = full(&run, "plots/");
        for expected in [
            "| signet-public | 14,000 | 50 |",
            "| signet-public | 0.20 |",
            "- `nginx`: missing",
            "- `direct`, grpc, round 1: a b",
            "](plots/throughput.svg)",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        assert_eq!(plots(&run, &Figures::of(&run)).len(), 2);
    }
}
