//! Calls again and again for a while, over kept and over new connections, and counts what failed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::To;
use super::http1::{Connection, Request};

/// Most workers of either kind: as many as the apps take connections.
const WORKERS_MAX: i64 = 500;
/// Latencies kept by one worker for the percentiles; later ones are left out and counted.
const LATENCIES_MAX: usize = 1_000_000;
/// Pause after a failed call of a closed loop, so that a refused port is not hammered.
const FAILURE_PAUSE: Duration = Duration::from_millis(20);

/// What to call, and how hard.
#[derive(Debug, Clone, clap::Args)]
pub struct Load {
    #[command(flatten)]
    to: To,
    /// Request target
    #[arg(long, default_value = "/")]
    path: String,
    /// How long; SIGTERM or SIGINT ends it sooner, with a report
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    seconds: f64,
    /// Calls per second over all workers; without it each calls again as soon as it has an answer
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Workers that keep their connection
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(..=WORKERS_MAX), value_name = "N")]
    kept: u32,
    /// Workers that open a connection for each call
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=WORKERS_MAX), value_name = "N")]
    fresh: u32,
}

/// What the load client saw.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Calls answered with a 2xx status.
    pub ok: u64,
    /// All other calls; none is tried again.
    pub failed: u64,
    /// Failed calls by reason.
    pub failures: BTreeMap<String, u64>,
    /// How long it ran.
    pub seconds: f64,
    /// Answered calls per second.
    pub rate: f64,
    /// Connections opened.
    pub connections: u64,
    /// Latency of answered calls, milliseconds.
    pub p50_ms: f64,
    /// As above, 99th percentile.
    pub p99_ms: f64,
    /// As above, the slowest.
    pub max_ms: f64,
}

/// One worker's count.
#[derive(Default)]
struct Tally {
    ok: u64,
    failures: BTreeMap<String, u64>,
    latencies: Vec<Duration>,
    slowest: Duration,
    connections: u64,
}

impl Load {
    /// Runs to the end and reports.
    pub async fn run(self) -> LoadReport {
        let (stop, stopped) = watch::channel(false);
        let start = Instant::now();
        let mut workers = JoinSet::new();
        let count = (self.kept + self.fresh).max(1);
        // Each worker keeps its own pace: together they make the rate asked for.
        let pace = self
            .rate
            .filter(|rate| *rate > 0.0)
            .map(|rate| Duration::from_secs_f64((f64::from(count) / rate).clamp(1e-6, 3600.0)));
        for number in 0..count {
            workers.spawn(self.clone().work(number < self.kept, pace, stopped.clone()));
        }
        self.wait().await;
        // Receivers live in the workers; if all of them have ended there is nothing to stop.
        let _ = stop.send(true);
        let tallies = workers.join_all().await;
        report(tallies, start.elapsed())
    }

    async fn wait(&self) {
        let asked = async {
            match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
                (Ok(mut terminate), Ok(mut interrupt)) => {
                    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                }
                _ => std::future::pending().await,
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs_f64(self.seconds.clamp(0.0, 86_400.0)), asked).await;
    }

    async fn work(self, kept: bool, pace: Option<Duration>, mut stopped: watch::Receiver<bool>) -> Tally {
        let mut ticks = pace.map(tokio::time::interval);
        if let Some(ticks) = &mut ticks {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        }
        let request = Request::new("GET", &self.path);
        let mut connection = Connection::new(&self.to);
        let mut tally = Tally::default();
        while !*stopped.borrow() {
            if let Some(ticks) = &mut ticks {
                tokio::select! { _ = ticks.tick() => {}, _ = stopped.changed() => break }
            }
            if !kept {
                connection.close();
            }
            tally.connections += u64::from(!connection.is_open());
            // A call that has begun is awaited: an end in the middle would count as a failure that was none.
            let start = Instant::now();
            match connection.call(&request, |_| ()).await {
                Ok(answer) if (200..300).contains(&answer.status) => tally.succeeded(start.elapsed()),
                Ok(answer) => tally.failed(format!("status {}", answer.status)),
                Err(error) => {
                    tally.failed(error.kind().to_string());
                    tokio::time::sleep(FAILURE_PAUSE).await;
                }
            }
        }
        tally
    }
}

impl Tally {
    fn succeeded(&mut self, latency: Duration) {
        self.ok += 1;
        self.slowest = self.slowest.max(latency);
        if self.latencies.len() < LATENCIES_MAX {
            self.latencies.push(latency);
        }
    }

    fn failed(&mut self, reason: String) {
        *self.failures.entry(reason).or_default() += 1;
    }
}

fn report(tallies: Vec<Tally>, elapsed: Duration) -> LoadReport {
    let mut report = LoadReport { seconds: elapsed.as_secs_f64(), ..LoadReport::default() };
    let mut latencies = Vec::new();
    let mut slowest = Duration::ZERO;
    for tally in tallies {
        report.ok += tally.ok;
        report.connections += tally.connections;
        for (reason, count) in tally.failures {
            report.failed += count;
            *report.failures.entry(reason).or_default() += count;
        }
        slowest = slowest.max(tally.slowest);
        latencies.extend(tally.latencies);
    }
    latencies.sort_unstable();
    let percentile = |share: usize| {
        latencies.get((latencies.len() * share / 100).min(latencies.len().saturating_sub(1))).map_or(0.0, ms)
    };
    report.p50_ms = percentile(50);
    report.p99_ms = percentile(99);
    report.max_ms = ms(&slowest);
    report.rate = report.ok as f64 / report.seconds.max(1e-9);
    report
}

fn ms(duration: &Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
