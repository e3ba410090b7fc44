//! What is measured on a running pair, and how.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::de::DeserializeOwned;
use signet_cli::lab::mesh::{MeshError, Metrics};
use signet_cli::lab::{LabError, Proc, Program};

use super::pair::Running;
use super::service::Service;
use super::wait::pause;
use super::{usage, wrk};
use crate::traffic::{Part, bulk, generator, grpc, hold};

/// Connections of the closed loops.
pub const CONNECTIONS: usize = 32;
/// Rates of the open loops, requests per second.
pub const RATES: [u32; 3] = [100, 1_000, 3_200];
/// Connections of the open loops: ten times what they keep busy when nothing stalls.
const OPEN_LOOP_CONNECTIONS: usize = 64;
/// Bytes of a posted body.
pub const POST: usize = 16 * 1024;
/// How long a client may take beyond its measurement.
const CLIENT_LIMIT: Duration = Duration::from_secs(60);
/// How long idle connections may take to open: at a few hundred per second for the slowest peer.
const HOLD_LIMIT: Duration = Duration::from_secs(120);
/// How long idle connections rest before memory is looked at: what proxies give up for an idle connection, they do not give up
/// at once. A sidecar does after five to ten seconds.
const REST: Duration = Duration::from_secs(12);
/// How long memory has to settle before it is looked at.
const SETTLE: Duration = Duration::from_millis(300);
/// Requests of a warm-up: enough for every connection to have been used.
const WARM_UP: u64 = 2_000;
/// How long a warm-up may take on a busy machine.
const WARM_UP_LIMIT: Duration = Duration::from_secs(10);
const GIB: f64 = (1_u64 << 30) as f64;
const KIB_PER_MIB: f64 = 1024.0;

/// What can be measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Measure {
    /// Plain bytes over one connection, and processor time for them
    Bytes,
    /// New connections per second: one request each
    Connections,
    /// A download over HTTP, and processor time for it
    Download,
    /// gRPC unary calls per second
    Grpc,
    /// Latency at one connection
    Latency,
    /// Resident memory: idle, with idle connections, after load
    Memory,
    /// Requests with a body of 16 KiB per second
    Post,
    /// Latency at fixed rates, of a back end that takes 2 ms
    Rates,
    /// Time from start to ready
    Start,
    /// Requests for 1 KiB per second over 32 connections, and processor time for them
    Throughput,
}

impl Measure {
    /// Those that send traffic, in the order in which they are made.
    pub const TRAFFIC: [Self; 8] = [
        Self::Throughput,
        Self::Latency,
        Self::Rates,
        Self::Post,
        Self::Download,
        Self::Bytes,
        Self::Connections,
        Self::Grpc,
    ];

    /// As on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// What every measurement needs.
#[derive(Clone, Debug)]
pub struct Tools {
    /// `wrk`, if it is there.
    pub wrk: Option<PathBuf>,
    /// `chrt`, if processors are to be kept awake.
    pub chrt: Option<PathBuf>,
    /// Length of one measurement.
    pub length: Duration,
    /// How many idle connections memory is measured with.
    pub idle: Vec<usize>,
}

/// Figures by name.
pub type Figures = Vec<(String, f64)>;

/// Why something was not measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The client failed.
    #[error("the client failed: {0}")]
    Client(String),
    /// The lab failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A sidecar could not be asked or started.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// The system failed.
    #[error(transparent)]
    System(#[from] io::Error),
}

type Outcome = Result<Figures, MeasureError>;

/// Makes one of [`Measure::TRAFFIC`].
///
/// # Errors
/// As [`MeasureError`] tells; nothing of it counts then.
pub fn traffic(measure: Measure, running: &mut Running, tools: &Tools) -> Outcome {
    match measure {
        Measure::Bytes => download(running, tools, Service::Bytes, None, "bytes"),
        Measure::Connections => connections(running, tools),
        Measure::Download => download(running, tools, Service::Http, Some("/download"), "download"),
        Measure::Grpc => grpc_calls(running, tools),
        Measure::Latency => awake_too(running, tools, latency),
        Measure::Post => post(running, tools),
        Measure::Rates => awake_too(running, tools, rates),
        Measure::Throughput => throughput(running, tools),
        Measure::Memory | Measure::Start => Ok(Figures::new()),
    }
}

/// Opens what is opened once: connections between the proxies, pools, caches.
///
/// # Errors
/// As [`traffic`].
pub fn warm_up(running: &Running) -> Result<(), MeasureError> {
    for (service, request) in [(Service::Small, "GET /small"), (Service::Http, "GET /small")] {
        let Some(to) = running.entry(service) else { continue };
        generate(running, &generator::Plan { requests: Some(WARM_UP), ..plan(to, request, WARM_UP_LIMIT) })?;
    }
    Ok(())
}

/// Memory of a pair that was just started and has done nothing, and with idle connections that were used once each; what
/// one of them adds is told of the proxy to which it adds more.
///
/// # Errors
/// As [`traffic`], for each number of connections by itself.
pub fn fresh_memory(running: &Running, tools: &Tools) -> Vec<(String, Outcome)> {
    let idle = match resident(running) {
        Ok(Some(idle)) => idle,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![("memory".into(), Err(error.into()))],
    };
    let first = ("memory".to_owned(), own_pages(running, idle));
    let with = |&count: &usize| (format!("memory with {count} idle connections"), held(running, count, idle));
    std::iter::once(first).chain(tools.idle.iter().map(with)).collect()
}

/// Resident memory before any load, and of it what no other process shares: the rest is mapped from files.
fn own_pages(running: &Running, idle: [f64; 2]) -> Outcome {
    let Some([client, server]) = running.families()? else { return Ok(Figures::new()) };
    let own = [usage::anonymous_kib(&client)? as f64, usage::anonymous_kib(&server)? as f64];
    Ok(vec![("memory.idle_mib".into(), mean_mib(idle)), ("memory.idle_own_mib".into(), mean_mib(own))])
}

/// Time to ready; of a sidecar, then once more with what it has stored.
///
/// # Errors
/// As [`traffic`].
pub fn start(running: &mut Running) -> Outcome {
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let mut figures = vec![("start.ready_ms".to_owned(), millis(running.ready_after))];
    if let Some(pair) = running.signet() {
        figures.push(("start.cached_ms".into(), millis(pair.restart_client()?)));
    }
    Ok(figures)
}

/// Memory after everything.
///
/// # Errors
/// As [`traffic`].
pub fn after_load(running: &Running) -> Outcome {
    Ok(resident(running)?.map(|both| ("memory.loaded_mib".to_owned(), mean_mib(both))).into_iter().collect())
}

/// Resident memory of both proxies in KiB.
fn resident(running: &Running) -> io::Result<Option<[f64; 2]>> {
    pause(SETTLE);
    let Some([client, server]) = running.families()? else { return Ok(None) };
    Ok(Some([usage::resident_kib(&client)? as f64, usage::resident_kib(&server)? as f64]))
}

fn mean_mib([client, server]: [f64; 2]) -> f64 {
    f64::midpoint(client, server) / KIB_PER_MIB
}

fn held(running: &Running, count: usize, idle: [f64; 2]) -> Outcome {
    let Some(to) = running.entry(Service::Small) else { return Ok(Figures::new()) };
    let part = Part::Hold(hold::Plan { to, path: "/small".into(), connections: count });
    let holding = running.stage.client.start(part.program())?;
    holding.wait_for_line(hold::HOLDING, HOLD_LIMIT)?;
    pause(REST);
    let Some(held) = resident(running)? else { return Ok(Figures::new()) };
    let added = (held[0] - idle[0]).max(held[1] - idle[1]);
    Ok(vec![
        (format!("memory.with_{count}_mib"), mean_mib(held)),
        (format!("memory.per_connection_of_{count}_kib"), added / count as f64),
    ])
}

fn throughput(running: &mut Running, tools: &Tools) -> Outcome {
    let (Some(wrk), Some(to)) = (&tools.wrk, running.entry(Service::Small)) else {
        return Ok(Figures::new());
    };
    let before = counters(running)?;
    let meter = Meter::begin(running)?;
    let program = wrk::program(wrk, to, "/small", CONNECTIONS, tools.length);
    let text = finished(&running.stage.client.start(program)?, tools.length)?;
    let used = meter.end()?;
    let outcome = wrk::parse(&text).ok_or_else(|| MeasureError::Client(text.clone()))?;
    if outcome.errors > 0 {
        return Err(MeasureError::Client(text));
    }
    let mut figures = vec![
        ("small.per_second".to_owned(), outcome.per_second),
        ("small.p50_us".to_owned(), outcome.latency_us[0]),
        ("small.p99_us".to_owned(), outcome.latency_us[1]),
    ];
    figures.extend(cost(used, "small", outcome.requests));
    if let (Some(before), Some(after)) = (before, counters(running)?) {
        figures.extend(own_counters(&before, &after));
    }
    Ok(figures)
}

fn latency(running: &Running, tools: &Tools) -> Outcome {
    let Some(to) = running.entry(Service::Small) else { return Ok(Figures::new()) };
    let plan = generator::Plan { connections: 1, ..plan(to, "GET /small", tools.length) };
    let outcome = generate(running, &plan)?;
    Ok(percentiles("one", &outcome))
}

fn rates(running: &Running, tools: &Tools) -> Outcome {
    let Some(to) = running.entry(Service::Http) else { return Ok(Figures::new()) };
    let mut figures = Figures::new();
    for rate in RATES {
        let plan = generator::Plan {
            rate: Some(rate),
            connections: OPEN_LOOP_CONNECTIONS,
            ..plan(to, "GET /delay", tools.length)
        };
        figures.extend(percentiles(&format!("rate_{rate}"), &generate(running, &plan)?));
    }
    Ok(figures)
}

fn post(running: &Running, tools: &Tools) -> Outcome {
    let Some(to) = running.entry(Service::Http) else { return Ok(Figures::new()) };
    counted(running, "post", &generator::Plan { body: POST, ..plan(to, "POST /sink", tools.length) })
}

fn connections(running: &Running, tools: &Tools) -> Outcome {
    let Some(to) = running.entry(Service::Small) else { return Ok(Figures::new()) };
    counted(
        running,
        "connections",
        &generator::Plan { reconnect: true, ..plan(to, "GET /small", tools.length) },
    )
}

fn counted(running: &Running, name: &str, plan: &generator::Plan) -> Outcome {
    let meter = Meter::begin(running)?;
    let outcome = generate(running, plan)?;
    let used = meter.end()?;
    let mut figures = vec![(format!("{name}.per_second"), outcome.requests as f64 / outcome.seconds)];
    figures.extend(cost(used, name, outcome.requests));
    Ok(figures)
}

fn grpc_calls(running: &Running, tools: &Tools) -> Outcome {
    let Some(to) = running.entry(Service::Grpc) else { return Ok(Figures::new()) };
    let plan = grpc::Plan { to, streams: CONNECTIONS, length: tools.length };
    let meter = Meter::begin(running)?;
    let outcome: grpc::Outcome = client(running, &Part::Grpc(plan), tools.length)?;
    let used = meter.end()?;
    let mut figures = vec![("grpc.per_second".to_owned(), outcome.calls as f64 / outcome.seconds)];
    figures.extend(cost(used, "grpc", outcome.calls));
    Ok(figures)
}

fn download(running: &Running, tools: &Tools, service: Service, path: Option<&str>, name: &str) -> Outcome {
    let Some(to) = running.entry(service) else { return Ok(Figures::new()) };
    let plan = bulk::Plan { to, path: path.map(str::to_owned), length: tools.length };
    let meter = Meter::begin(running)?;
    let outcome: bulk::Outcome = client(running, &Part::Bulk(plan), tools.length)?;
    let used = meter.end()?;
    let gigabits = outcome.bytes as f64 * 8.0 / 1e9;
    let mut figures = vec![(format!("{name}.gbit_per_second"), gigabits / outcome.seconds)];
    if let Some([client, server]) = used {
        let seconds = (client + server).as_secs_f64();
        figures.push((format!("{name}.cpu_s_per_gib"), seconds / (outcome.bytes as f64 / GIB)));
    }
    Ok(figures)
}

/// As it is, and once more with processors that never halt, if that is asked for.
fn awake_too(running: &Running, tools: &Tools, measure: fn(&Running, &Tools) -> Outcome) -> Outcome {
    let mut figures = measure(running, tools)?;
    if let Some(chrt) = &tools.chrt {
        let _spinners = [spinner(&running.stage.client, chrt)?, spinner(&running.stage.server, chrt)?];
        let awake = measure(running, tools)?;
        figures.extend(awake.into_iter().map(|(name, value)| (format!("awake.{name}"), value)));
    }
    Ok(figures)
}

/// Runs whenever nobody else on that host wants to.
fn spinner(host: &super::stage::Host, chrt: &std::path::Path) -> Result<Proc, MeasureError> {
    let own = std::env::current_exe()?;
    let program = Program::new(chrt).args(["--idle", "0"]).args([own]).args(Part::Spin.arguments());
    Ok(host.start(program)?)
}

/// A closed loop over the usual number of connections.
pub fn plan(to: SocketAddr, request: &str, length: Duration) -> generator::Plan {
    generator::Plan {
        to,
        request: request.into(),
        body: 0,
        connections: CONNECTIONS,
        rate: None,
        reconnect: false,
        length,
        requests: None,
    }
}

/// Lets the generator run on the client's host.
///
/// # Errors
/// Any request that failed: then the figures are of something else.
pub fn generate(running: &Running, plan: &generator::Plan) -> Result<generator::Outcome, MeasureError> {
    let outcome: generator::Outcome = client(running, &Part::Generator(plan.clone()), plan.length)?;
    match (outcome.errors, &outcome.first_error) {
        (0, _) if outcome.requests > 0 => Ok(outcome),
        (errors, first) => {
            let first = first.as_deref().unwrap_or("not answered in time");
            let all = outcome.requests + errors;
            Err(MeasureError::Client(format!("{errors} of {all} requests failed, the first: {first}")))
        }
    }
}

fn client<T: DeserializeOwned>(running: &Running, part: &Part, length: Duration) -> Result<T, MeasureError> {
    let text = finished(&running.stage.client.start(part.program())?, length)?;
    serde_json::from_str(&text).map_err(|_| MeasureError::Client(text))
}

fn finished(process: &Proc, length: Duration) -> Result<String, MeasureError> {
    let status = process.wait(length + CLIENT_LIMIT)?;
    let text = process.output();
    if status.success() { Ok(text) } else { Err(MeasureError::Client(text.trim().to_owned())) }
}

fn percentiles(name: &str, outcome: &generator::Outcome) -> Figures {
    let [p50, p90, p99, p999, most] = outcome.latency_us;
    [("p50", p50), ("p90", p90), ("p99", p99), ("p999", p999), ("max", most)]
        .map(|(percentile, value)| (format!("{name}.{percentile}_us"), value))
        .to_vec()
}

/// Processor time per 1,000 requests: of both proxies, and of each.
fn cost(used: Option<[Duration; 2]>, name: &str, requests: u64) -> Figures {
    let Some([client, server]) = used else { return Figures::new() };
    let thousands = requests.max(1) as f64 / 1e3;
    let per = |time: Duration| time.as_secs_f64() * 1e3 / thousands;
    vec![
        (format!("{name}.cpu_ms"), per(client + server)),
        (format!("{name}.cpu_client_ms"), per(client)),
        (format!("{name}.cpu_server_ms"), per(server)),
    ]
}

/// Processor time of both proxies between two moments.
struct Meter {
    families: Option<[Vec<u32>; 2]>,
    before: [Duration; 2],
}

impl Meter {
    fn begin(running: &Running) -> io::Result<Self> {
        let families = running.families()?;
        let before = match &families {
            Some(families) => times(families)?,
            None => [Duration::ZERO; 2],
        };
        Ok(Self { families, before })
    }

    fn end(self) -> io::Result<Option<[Duration; 2]>> {
        let Some(families) = &self.families else { return Ok(None) };
        let [client, server] = times(families)?;
        Ok(Some([client.saturating_sub(self.before[0]), server.saturating_sub(self.before[1])]))
    }
}

fn times(families: &[Vec<u32>; 2]) -> io::Result<[Duration; 2]> {
    Ok([usage::processor_time(&families[0])?, usage::processor_time(&families[1])?])
}

fn counters(running: &mut Running) -> Result<Option<[Metrics; 2]>, MeasureError> {
    Ok(running.signet().map(|pair| pair.metrics()).transpose()?)
}

/// What the sidecars tell of themselves; what a build does not count is left out.
fn own_counters(before: &[Metrics; 2], after: &[Metrics; 2]) -> Figures {
    let has = |name: &str| {
        let named = |(sample, _): (&str, f64)| sample.split('{').next() == Some(name);
        after.iter().any(|metrics| metrics.samples().any(named))
    };
    let grown = |name: &str| -> f64 {
        before.iter().zip(after).map(|(before, after)| after.sum(name, &[]) - before.sum(name, &[])).sum()
    };
    let mut figures = Figures::new();
    if has("signet_mesh_connections") {
        // Of the client's side: both sides count the same ones.
        figures.push(("signet.connections".into(), after[0].sum("signet_mesh_connections", &[])));
    }
    let batches = grown("signet_signature_batches_total");
    if batches > 0.0 {
        figures.push(("signet.batch".into(), grown("signet_signatures_total") / batches));
    }
    let (hits, misses) = (grown("signet_root_cache_hits_total"), grown("signet_root_cache_misses_total"));
    if hits + misses > 0.0 {
        figures.push(("signet.cache_hit".into(), hits / (hits + misses)));
    }
    figures
}

/// Raises the limit of open files as far as it goes, for this process and all it starts.
///
/// # Errors
/// A kernel that refuses.
pub fn raise_open_files() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Some systems have no limit, and tables of that size are no use either.
    let most = fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let limit = hard.min(most.unwrap_or(hard));
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard)?;
    Ok(limit)
}
