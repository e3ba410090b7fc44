//! The command line.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use signet_cli::lab;

use crate::load::choice::{self, Own};
use crate::load::limits::{Limits, MEMORY};
use crate::load::measure::{Measure, Tools};
use crate::load::peer::{self, Programs};
use crate::load::{self, measure, stage};
use crate::results::{LeftOut, Run};
use crate::{fleet, instructions, report};

/// What the back end needs.
const NGINX: &str = "nginx";
/// As sysexits has them.
const EXIT_USAGE: u8 = 64;
const EXIT_UNAVAILABLE: u8 = 69;
/// More rounds than anybody waits for.
const ROUNDS_MAX: u32 = 100;
/// The longest single measurement, seconds.
const SECONDS_MAX: f64 = 600.0;

/// Measures what Signet costs.
#[derive(Debug, Parser)]
#[command(
    name = "signet-benches",
    version,
    arg_required_else_help = true,
    after_help = "Examples:\n  signet-benches load --help\n  signet-benches fleet --help\n  signet-benches instructions"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Fleet(fleet::command::Fleet),
    Instructions(instructions::Instructions),
    Load(Box<Load>),
}

/// Load test beside what operators would pick instead
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
        signet-benches load                                        everything, three rounds: most of an hour\n  \
        signet-benches load --check                                what is missing here\n  \
        signet-benches load --pairs direct,signet-ed25519,haproxy-h2 --measure throughput,latency\n  \
        signet-benches load --redirect --awake --rounds 5 --report target/load/five\n  \
        signet-benches load --peer my-proxy.yaml --program envoy=/opt/envoy\n  \
        signet-benches load report --from target/load/run.json"
)]
struct Load {
    #[command(subcommand)]
    command: Option<LoadCommand>,
    /// What is measured; left out: every pair
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pairs: Vec<String>,
    /// File that describes another pair of proxies; may be repeated
    #[arg(long, value_name = "FILE")]
    peer: Vec<PathBuf>,
    /// What of it; left out: everything
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,…")]
    measure: Vec<Measure>,
    /// How often everything is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=i64::from(ROUNDS_MAX)))]
    rounds: u32,
    /// Length of one measurement
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS", value_parser = seconds)]
    duration: f64,
    /// Put peers behind the same kind of redirection as the sidecars
    #[arg(long)]
    redirect: bool,
    /// Worker threads of the sidecars, one pair for each number
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "N,…")]
    workers: Vec<usize>,
    /// Idle connections with which memory is measured
    #[arg(long, value_delimiter = ',', default_value = "1000", value_name = "N,…")]
    idle: Vec<usize>,
    /// Measure latencies once more with processors that never halt
    #[arg(long)]
    awake: bool,
    /// Limits of the sidecars
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// The signet program to measure, with signet-proxy beside it; left out: built here with profile dist
    #[arg(long, value_name = "PATH")]
    signet: Option<PathBuf>,
    /// Where a program is that is not in PATH; may be repeated
    #[arg(long, value_name = "NAME=PATH", value_parser = program)]
    program: Vec<(String, PathBuf)>,
    /// Processors of the client's host; left out: the first one
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    client_processors: Vec<usize>,
    /// Processors of the server's host; left out: the second one
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    server_processors: Vec<usize>,
    /// Folder for the figures, tables and plots
    #[arg(long, default_value = "target/load", value_name = "DIR")]
    report: PathBuf,
    /// Only tell what is missing
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Subcommand)]
enum LoadCommand {
    Report(report::Again),
}

/// Limits of the sidecars.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
enum Profile {
    /// None
    #[default]
    Full,
    /// One processor and 64 MiB each, in control groups; needs root
    Small,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if (0.1..=SECONDS_MAX).contains(&seconds) {
        Ok(seconds)
    } else {
        Err(format!("use 0.1 to {SECONDS_MAX}"))
    }
}

fn program(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("use NAME=PATH, such as envoy=/opt/envoy")?;
    let path = fs::canonicalize(path).map_err(|error| format!("{path}: {error}"))?;
    Ok((name.to_owned(), path))
}

/// The whole program. Call it before the process starts any thread.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Fleet(fleet) => fleet.run(),
        Command::Instructions(instructions) => instructions.run(),
        Command::Load(load) => match load.command {
            Some(LoadCommand::Report(again)) => again.run(),
            None => load.run(),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {}", failure.text);
            ExitCode::from(failure.code)
        }
    }
}

/// Why the program ends without what was asked for.
#[derive(Debug)]
pub struct Failed {
    text: String,
    code: u8,
}

impl Failed {
    /// Something asked for is wrong.
    pub fn usage(text: impl ToString) -> Self {
        Self { text: text.to_string(), code: EXIT_USAGE }
    }

    /// Something needed is not there.
    pub fn unavailable(text: impl ToString) -> Self {
        Self { text: text.to_string(), code: EXIT_UNAVAILABLE }
    }
}

impl Load {
    fn run(&self) -> Result<(), Failed> {
        let open_files = measure::raise_open_files().map_err(Failed::unavailable)?;
        let limits = match self.profile {
            Profile::Full => None,
            Profile::Small => Some(Limits::prepare().map_err(Failed::unavailable)?),
        };
        let plan = self.plan(limits.as_ref(), open_files)?;
        for left_out in &plan.left_out {
            eprintln!("left out: {}: {}", left_out.what, left_out.why);
        }
        let names: Vec<&str> = plan.pairs.iter().map(|pair| pair.name.as_str()).collect();
        eprintln!("to be measured: {}", names.join(", "));
        if self.check {
            return Ok(());
        }
        // Found out now, not after an hour.
        fs::create_dir_all(&self.report).map_err(|error| {
            Failed::usage(format!("the report cannot be written to {}: {error}", self.report.display()))
        })?;
        lab::enter().map_err(Failed::unavailable)?;
        let mut run = load::run(&plan).map_err(Failed::unavailable)?;
        drop(plan);
        run.profile = limits.map(|_| format!("one processor and {} MiB for each sidecar", MEMORY >> 20));
        self.write(&run)
    }

    fn write(&self, run: &Run) -> Result<(), Failed> {
        let markdown = report::write(run, &self.report).map_err(Failed::unavailable)?;
        println!("{markdown}");
        eprintln!("figures, tables and plots are in {}", self.report.display());
        Ok(())
    }

    fn plan(&self, limits: Option<&Limits>, open_files: u64) -> Result<load::Plan, Failed> {
        let programs: Programs = self.program.iter().cloned().collect();
        let names = if self.pairs.is_empty() { choice::names() } else { self.pairs.clone() };
        let own = self.own(&names, limits)?;
        let (pairs, mut left_out) =
            choice::pairs(&names, &self.peer, &own, &programs).map_err(Failed::usage)?;
        let nginx = peer::find(NGINX, &programs).ok_or_else(|| {
            Failed::unavailable("the back end needs the program nginx: install nginx from Debian")
        })?;
        let mut measures = self.measure.clone();
        if measures.is_empty() {
            measures = Measure::value_variants().to_vec();
        }
        let mut tool = |wanted: bool, program: &str, package: &str, what: &str| {
            let found = peer::find(program, &programs);
            if wanted && found.is_none() {
                let why = format!("the program {program} is missing: install {package} from Debian");
                left_out.push(LeftOut { what: what.into(), why });
            }
            found.filter(|_| wanted)
        };
        let tools = Tools {
            wrk: tool(measures.contains(&Measure::Throughput), "wrk", "wrk", "throughput"),
            chrt: tool(self.awake, "chrt", "util-linux", "latency without halting"),
            length: Duration::from_secs_f64(self.duration),
            idle: self.idle.clone(),
        };
        let (rounds, redirected, hosts) = (self.rounds, self.redirect, self.hosts()?);
        Ok(load::Plan {
            pairs,
            measures,
            rounds,
            redirected,
            tools,
            programs,
            nginx,
            open_files,
            hosts,
            left_out,
        })
    }

    fn own(&self, names: &[String], limits: Option<&Limits>) -> Result<Own, Failed> {
        let signet = match &self.signet {
            Some(path) => Some(choice::given(path).map_err(Failed::usage)?),
            None if self.check || !names.iter().any(|name| choice::is_own(name)) => Some("signet".into()),
            None => Some(choice::build().map_err(Failed::unavailable)?),
        };
        let wrapper = limits.map(Limits::wrapper).unwrap_or_default();
        Ok(Own { signet, wrapper, workers: self.workers.clone() })
    }

    /// One processor for each host; both on the only one where there is no other.
    fn hosts(&self) -> Result<[Vec<usize>; 2], Failed> {
        let known = stage::processors().map_err(Failed::unavailable)?;
        let first = known.first().copied().unwrap_or_default();
        let second = known.get(1).copied().unwrap_or(first);
        let choose = |asked: &Vec<usize>, default| match asked.iter().find(|number| !known.contains(number)) {
            Some(number) => Err(Failed::usage(format!("processor {number} is none of {known:?}"))),
            None if asked.is_empty() => Ok(vec![default]),
            None => Ok(asked.clone()),
        };
        Ok([choose(&self.client_processors, first)?, choose(&self.server_processors, second)?])
    }
}

/// Programs are started from folders of their own.
#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lists_are_split_and_bounds_are_kept() {
        let parse =
            |line: &str| Cli::try_parse_from(["x", "load"].into_iter().chain(line.split_whitespace()));
        let Command::Load(load) = parse("--measure latency,grpc --idle 1000,10000").unwrap().command else {
            panic!("another command")
        };
        assert_eq!((load.measure, load.idle), (vec![Measure::Latency, Measure::Grpc], vec![1_000, 10_000]));
        for wrong in ["--rounds 0", "--duration 0", "--measure colour", "--program envoy"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
