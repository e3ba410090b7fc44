//! The load test: pairs of proxies between a client and a back end, measured side by side.
//!
//! In each round every pair is started anew, on two hosts of its own; then each measure is made on one pair after the
//! other, every second round in the opposite order, so that what changes on the machine meanwhile meets all of them.
//! Figures are kept round by round; medians are made of them only when they are reported.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use crate::results::{FORMAT, Failure, Family, LeftOut, PairFacts, Run, Sample};

pub mod certificates;
pub mod choice;
pub mod limits;
pub mod machine;
pub mod measure;
pub mod pair;
pub mod peer;
pub mod redirect;
pub mod service;
pub mod signet;
pub mod stage;
pub mod template;
pub mod usage;
pub mod wait;
pub mod wrk;

use measure::{Figures, Measure, MeasureError, Tools};
use pair::{Kind, Pair, PairError, Running};
use peer::Programs;
use stage::Stage;

/// Everything a run is made of.
#[derive(Debug)]
pub struct Plan {
    /// What is measured.
    pub pairs: Vec<Pair>,
    /// What of it.
    pub measures: Vec<Measure>,
    /// How often.
    pub rounds: u32,
    /// Whether peers are behind a redirect.
    pub redirected: bool,
    /// With what.
    pub tools: Tools,
    /// Programs that were given by path.
    pub programs: Programs,
    /// The back end's nginx.
    pub nginx: PathBuf,
    /// The limit of open files of each process.
    pub open_files: u64,
    /// The client's processors, the server's.
    pub hosts: [Vec<usize>; 2],
    /// What was left out before it began.
    pub left_out: Vec<LeftOut>,
}

/// A run that goes on.
struct Progress<'a> {
    plan: &'a Plan,
    run: Run,
    /// Pairs that cannot be had, by name.
    gone: BTreeSet<String>,
    round: u32,
}

/// Makes every measurement. The process must have entered a lab.
///
/// # Errors
/// A machine whose processors cannot be had. What fails on a pair is part of the result.
pub fn run(plan: &Plan) -> io::Result<Run> {
    let begun = Instant::now();
    let run = Run {
        format: FORMAT,
        begun: machine::now(),
        command: std::env::args().skip(1).collect(),
        machine: machine::facts(stage::processors()?.len(), plan.hosts.clone(), plan.open_files),
        rounds: plan.rounds,
        measurement_seconds: plan.tools.length.as_secs_f64(),
        idle: plan.tools.idle.clone(),
        redirected: plan.redirected,
        pairs: plan.pairs.iter().map(|pair| facts(pair, &plan.programs)).collect(),
        left_out: plan.left_out.clone(),
        ..Run::default()
    };
    let mut progress = Progress { plan, run, gone: BTreeSet::new(), round: 0 };
    for round in 1..=plan.rounds {
        progress.round = round;
        progress.round();
    }
    let mut run = progress.run;
    run.pairs.retain(|pair| !progress.gone.contains(&pair.name));
    run.machine.load_after = machine::load();
    run.seconds = begun.elapsed().as_secs_f64();
    Ok(run)
}

fn facts(pair: &Pair, programs: &Programs) -> PairFacts {
    let (about, family, version) = match &pair.kind {
        Kind::Direct => ("nothing between".to_owned(), Family::Direct, None),
        Kind::Peer(peer) => {
            let family = if peer.parses_http { Family::HttpPeer } else { Family::BytesPeer };
            (peer.about.clone(), family, peer.version(programs))
        }
        Kind::Signet(mode, launch) => {
            let workers =
                if launch.workers == 1 { "one worker".into() } else { format!("{} workers", launch.workers) };
            (format!("{}; {workers}", mode.about), Family::Signet, choice::version(&launch.proxy))
        }
    };
    PairFacts { name: pair.name.clone(), about, family, version }
}

impl Progress<'_> {
    fn round(&mut self) {
        eprintln!("round {} of {}", self.round, self.plan.rounds);
        let mut running = self.start_all();
        for measure in Measure::TRAFFIC.into_iter().filter(|measure| self.plan.measures.contains(measure)) {
            for (name, running) in &mut running {
                eprintln!("  {}: {name}", measure.name());
                let outcome = measure::traffic(measure, running, &self.plan.tools);
                self.keep(name, &measure.name(), running, outcome);
            }
        }
        if self.plan.measures.contains(&Measure::Memory) {
            for (name, running) in &running {
                let outcome = measure::after_load(running);
                self.keep(name, "memory after load", running, outcome);
            }
        }
    }

    /// Starts every pair twice: once to look at it fresh, once for the traffic.
    fn start_all(&mut self) -> Vec<(String, Running)> {
        let mut order: Vec<&Pair> = self.plan.pairs.iter().collect();
        if self.round.is_multiple_of(2) {
            order.reverse();
        }
        let mut all = Vec::new();
        for pair in order {
            if self.gone.contains(&pair.name) {
                continue;
            }
            eprintln!("  start: {}", pair.name);
            if self.looks_fresh()
                && let Some(mut running) = self.start(pair)
            {
                self.look(&pair.name, &mut running);
            }
            if self.sends_traffic()
                && let Some(running) = self.start(pair)
            {
                let warm = measure::warm_up(&running).map(|()| Figures::new());
                let is_warm = warm.is_ok();
                self.keep(&pair.name, "warm-up", &running, warm);
                if is_warm {
                    all.push((pair.name.clone(), running));
                }
            }
        }
        all
    }

    /// What a pair shows that was just started.
    fn look(&mut self, pair: &str, running: &mut Running) {
        if self.plan.measures.contains(&Measure::Memory) {
            for (what, outcome) in measure::fresh_memory(running, &self.plan.tools) {
                self.keep(pair, &what, running, outcome);
            }
        }
        if self.plan.measures.contains(&Measure::Start) {
            let outcome = measure::start(running);
            self.keep(pair, "start", running, outcome);
        }
    }

    fn looks_fresh(&self) -> bool {
        [Measure::Memory, Measure::Start].iter().any(|measure| self.plan.measures.contains(measure))
    }

    fn sends_traffic(&self) -> bool {
        Measure::TRAFFIC.iter().any(|measure| self.plan.measures.contains(measure))
    }

    fn start(&mut self, pair: &Pair) -> Option<Running> {
        if self.gone.contains(&pair.name) {
            return None;
        }
        let [client, server] = &self.plan.hosts;
        let stage = Stage::build([client, server], &self.plan.nginx).map_err(PairError::from);
        let started = stage.and_then(|stage| pair.start(stage, self.plan.redirected, &self.plan.programs));
        match started {
            Ok(running) => Some(running),
            Err(error) => {
                eprintln!("  {}: {error}", pair.name);
                // What this build refuses, it refuses in every round.
                if matches!(error, PairError::NotOffered(_)) {
                    self.run.left_out.push(LeftOut { what: pair.name.clone(), why: error.to_string() });
                    self.gone.insert(pair.name.clone());
                } else {
                    self.fail(&pair.name, "start", error.to_string());
                }
                None
            }
        }
    }

    fn keep(&mut self, pair: &str, measure: &str, running: &Running, outcome: Result<Figures, MeasureError>) {
        match outcome {
            Ok(figures) => {
                let (pair, round) = (pair.to_owned(), self.round);
                let sample = |(figure, value)| Sample { pair: pair.clone(), figure, round, value };
                self.run.samples.extend(figures.into_iter().map(sample));
            }
            Err(error) => {
                let error = format!("{error}{}", running.ended());
                eprintln!("  {pair}, {measure}: {error}\n{}", running.logs());
                self.fail(pair, measure, error);
            }
        }
    }

    fn fail(&mut self, pair: &str, measure: &str, error: String) {
        let (pair, measure) = (pair.to_owned(), measure.to_owned());
        self.run.failures.push(Failure { pair, measure, round: self.round, error });
    }
}
