//! Instruction counts under `valgrind --tool=callgrind`: the figure that a busy machine does not move.
//!
//! Everything is run twice, the second time twice as often; what the second run took more is the cost of what was
//! repeated, without start and end. Instructions of the kernel are not counted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use signet_cli::lab::{self, Proc};

use crate::cli::Failed;
use crate::load::choice;
use crate::load::measure::{self, generate};
use crate::load::pair::{Kind, Pair, Running};
use crate::load::peer::{self, Programs};
use crate::load::service::Service;
use crate::load::signet::{Launch, MODES};
use crate::load::stage::{self, Stage};
use crate::micro::Operation;
use crate::traffic::Part;
use crate::traffic::generator;

const VALGRIND: &str = "valgrind";
/// How often an operation is repeated in the first run.
const OPERATIONS: u32 = 500;
/// Instructions are some fifty times slower when they are counted.
const TRAFFIC_LIMIT: Duration = Duration::from_secs(300);
const END_LIMIT: Duration = Duration::from_secs(60);

/// Count instructions of sign, verify, decide and of one proxied request; needs valgrind
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  signet-benches instructions\n  signet-benches instructions --pairs signet-ed25519 --signet target/release/signet"
)]
pub struct Instructions {
    /// Signet's pairs through which requests are sent; left out: all
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pairs: Vec<String>,
    /// Requests of the first run; the second has twice as many
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    requests: u32,
    /// Connections on which they are sent; batches form with more than one
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    connections: u32,
    /// The signet program to measure; left out: built here with profile dist
    #[arg(long, value_name = "PATH")]
    signet: Option<PathBuf>,
    /// Keep what callgrind wrote of the sidecars in this folder: NAME-{once,twice}-{client,server}
    #[arg(long, value_name = "PATH")]
    keep: Option<PathBuf>,
}

impl Instructions {
    pub(crate) fn run(&self) -> Result<(), Failed> {
        let programs = Programs::new();
        let needed = |name: &str| {
            let missing =
                || Failed::unavailable(format!("the program {name} is missing: install {name} from Debian"));
            peer::find(name, &programs).ok_or_else(missing)
        };
        let (valgrind, nginx) = (needed(VALGRIND)?, needed("nginx")?);
        if let Some(unknown) = self.pairs.iter().find(|name| !choice::is_own(name)) {
            return Err(Failed::usage(format!("{unknown:?} is none of Signet's pairs")));
        }
        let signet = match &self.signet {
            Some(path) => choice::given(path).map_err(Failed::usage)?,
            None => choice::build().map_err(Failed::unavailable)?,
        };
        println!("| operation | instructions |\n| --- | ---: |");
        for operation in Operation::ALL {
            let count = operation_cost(&valgrind, operation).map_err(Failed::unavailable)?;
            println!("| {} | {} |", operation.about(), thousands(count));
        }
        lab::enter().map_err(Failed::unavailable)?;
        println!(
            "\n| one request for 1 KiB through | client side | server side | both |\n| --- | ---: | ---: | ---: |"
        );
        for mode in MODES
            .into_iter()
            .filter(|mode| self.pairs.is_empty() || self.pairs.iter().any(|n| n == mode.name))
        {
            let launch = Launch {
                signet: signet.clone(),
                proxy: choice::sidecar(&signet),
                wrapper: Vec::new(),
                workers: 1,
            };
            match self.request_cost(&valgrind, &nginx, mode, launch) {
                Ok([client, server]) => println!(
                    "| {} | {} | {} | {} |",
                    mode.name,
                    thousands(client),
                    thousands(server),
                    thousands(client + server)
                ),
                Err(error) => eprintln!("left out: {}: {error}", mode.name),
            }
        }
        Ok(())
    }

    fn request_cost(
        &self,
        valgrind: &Path,
        nginx: &Path,
        mode: crate::load::signet::Mode,
        mut launch: Launch,
    ) -> Result<[f64; 2], String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        launch.wrapper = counting(valgrind, &folder.path().join("%p"));
        let pair = Pair { name: mode.name.into(), kind: Kind::Signet(mode, launch) };
        let run = |name: &str, requests: u32| -> Result<[u64; 2], Box<dyn std::error::Error>> {
            let processors = stage::processors()?;
            let stage = Stage::build([&processors, &processors], nginx)?;
            let mut running = pair.start(stage, false, &Programs::new())?;
            send(&running, requests, self.connections)?;
            let files = end(&mut running, folder.path())?;
            let mut counts = [0; 2];
            for ((count, file), side) in counts.iter_mut().zip(&files).zip(["client", "server"]) {
                *count = total(&fs::read_to_string(file)?).ok_or("callgrind did not tell a total")?;
                if let Some(kept) = &self.keep {
                    fs::copy(file, kept.join(format!("{}-{name}-{side}", mode.name)))?;
                }
            }
            Ok(counts)
        };
        let once = run("once", self.requests).map_err(|error| error.to_string())?;
        let twice = run("twice", self.requests * 2).map_err(|error| error.to_string())?;
        let each = |side: usize| twice[side].saturating_sub(once[side]) as f64 / f64::from(self.requests);
        Ok([each(0), each(1)])
    }
}

fn send(running: &Running, requests: u32, connections: u32) -> Result<(), Box<dyn std::error::Error>> {
    let to = running.entry(Service::Small).ok_or("the pair does not carry HTTP")?;
    let plan = generator::Plan {
        connections: connections as usize,
        requests: Some(requests.into()),
        ..measure::plan(to, "GET /small", TRAFFIC_LIMIT)
    };
    let outcome = generate(running, &plan)?;
    // What is on its way when the last one is answered is so in both runs.
    let all = outcome.requests >= u64::from(requests);
    if all { Ok(()) } else { Err(format!("only {} requests were answered", outcome.requests).into()) }
}

/// Ends both sidecars, which makes their counts known. They are in the files that are returned.
fn end(running: &mut Running, folder: &Path) -> Result<[PathBuf; 2], Box<dyn std::error::Error>> {
    let pair = running.signet().ok_or("not one of Signet's pairs")?;
    let mut files = [PathBuf::new(), PathBuf::new()];
    for (file, sidecar) in files.iter_mut().zip([&mut pair.client, &mut pair.server]) {
        let id = sidecar.process().map(Proc::id).ok_or("a sidecar has ended")?;
        sidecar.terminate(END_LIMIT)?;
        *file = folder.join(id.to_string());
    }
    Ok(files)
}

fn operation_cost(valgrind: &Path, operation: Operation) -> Result<f64, String> {
    let count = |times: u32| -> Result<u64, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let file = folder.path().join("count");
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let words = counting(valgrind, &file);
        let mut command = Command::new(valgrind);
        command.args(words.iter().skip(1)).arg(own).args(Part::Micro(operation, times).arguments());
        let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        let text = fs::read_to_string(&file).unwrap_or_default();
        total(&text).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
    };
    Ok(count(OPERATIONS * 2)?.saturating_sub(count(OPERATIONS)?) as f64 / f64::from(OPERATIONS))
}

/// Words that, put before a command, let its instructions be counted into a file.
fn counting(valgrind: &Path, file: &Path) -> Vec<String> {
    let out = format!("--callgrind-out-file={}", file.display());
    [&valgrind.display().to_string(), "--tool=callgrind", "--vgdb=no", "--quiet", &out]
        .map(str::to_owned)
        .to_vec()
}

/// The sum over all functions in a callgrind file.
fn total(text: &str) -> Option<u64> {
    let line = text.lines().rev().find_map(|line| line.strip_prefix("totals:"))?;
    line.trim().parse().ok()
}

fn thousands(count: f64) -> String {
    crate::report::table::number(count, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_a_callgrind_file_is_found() {
        assert_eq!(total("version: 1\nsummary: 5\nfn=(1)\n1 2\ntotals: 123456\n"), Some(123_456));
        assert_eq!(total("version: 1\n"), None);
    }

    #[test]
    fn the_counter_stands_before_the_command() {
        let words = counting(Path::new("/usr/bin/valgrind"), Path::new("/t/%p"));
        assert_eq!(words.first().map(String::as_str), Some("/usr/bin/valgrind"));
        assert!(words.contains(&"--callgrind-out-file=/t/%p".to_owned()));
    }
}
