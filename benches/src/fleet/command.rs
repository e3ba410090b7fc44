//! `signet-benches fleet`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};

use super::figures::{self, FORMAT, Run};
use super::mesh::{Mesh, PROXIES_MAX};
use super::plane::{self, Launch};
use super::{Plan, run};
use crate::cli::Failed;
use crate::load::{choice, machine, measure, stage};
use crate::report::section;

const FIGURES: &str = "fleet.json";
const MARKDOWN: &str = "fleet.md";
/// Rest between two pushes: everybody's claims are judged anew after one, and directories follow.
const BETWEEN: Duration = Duration::from_secs(3);
/// The page that shows a run, from the root of the checkout.
const PAGE: &str = "docs/performance.md";

/// Thousands of proxies against one control plane on one processor
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
        signet-benches fleet --proxies 100,1000,10000\n  \
        signet-benches fleet --proxies 2000 --per-site 500 --pushes 9 --signet target/release/signet\n  \
        signet-benches fleet report --from target/fleet/fleet.json"
)]
pub struct Fleet {
    #[command(subcommand)]
    command: Option<FleetCommand>,
    /// Sizes of the fleets, one run after the other
    #[arg(long, value_delimiter = ',', default_value = "10000", value_name = "N,…")]
    proxies: Vec<usize>,
    /// Proxies of one site: they share a network, and so a directory
    #[arg(long, default_value_t = 100, value_name = "N")]
    per_site: usize,
    /// Services of one site; its proxies are their instances
    #[arg(long, default_value_t = 2, value_name = "N")]
    services: usize,
    /// Policies pushed to everybody
    #[arg(long, default_value_t = 5, value_name = "N")]
    pushes: usize,
    /// Length of the rest in which processor time is taken
    #[arg(long, default_value_t = 20, value_name = "SECONDS")]
    rest: u64,
    /// The signet or signet-control-plane program to measure; left out: built here with profile dist
    #[arg(long, value_name = "PATH")]
    signet: Option<PathBuf>,
    /// The control plane's processor; left out: the first one. The proxies get the others
    #[arg(long, value_name = "N")]
    processor: Option<usize>,
    /// Folder for the figures, and for the state while it runs
    #[arg(long, default_value = "target/fleet", value_name = "DIR")]
    report: PathBuf,
}

#[derive(Debug, Subcommand)]
enum FleetCommand {
    Report(Again),
}

/// Show the figures of a run in the page of this checkout
#[derive(Args, Debug)]
struct Again {
    /// The figures of a run
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Root of the checkout
    #[arg(long, default_value = ".", value_name = "DIR")]
    root: PathBuf,
}

impl Fleet {
    pub(crate) fn run(&self) -> Result<(), Failed> {
        if let Some(FleetCommand::Report(again)) = &self.command {
            return again.run();
        }
        self.check()?;
        let open_files = measure::raise_open_files().map_err(Failed::unavailable)?;
        let signet = match &self.signet {
            Some(path) => fs::canonicalize(path)
                .map_err(|error| Failed::usage(format!("{}: {error}", path.display())))?,
            None => choice::build().map_err(Failed::unavailable)?,
        };
        let hosts = self.processors()?;
        let mut run = Run {
            format: FORMAT,
            begun: machine::now(),
            program: choice::version(&signet).unwrap_or_default(),
            machine: machine::facts(hosts.iter().flatten().count(), hosts.clone(), open_files),
            fleets: Vec::new(),
        };
        plane::bind(&hosts[1]).map_err(Failed::unavailable)?;
        for &proxies in &self.proxies {
            eprintln!("{proxies} proxies");
            let mesh = Mesh { proxies, per_site: self.per_site, services: self.services };
            run.fleets.push(self.fleet(mesh, &signet, &hosts).map_err(Failed::unavailable)?);
        }
        run.machine.load_after = machine::load();
        let markdown = figures::text(&run);
        write(&run, &markdown, &self.report).map_err(Failed::unavailable)?;
        println!("{markdown}");
        Ok(())
    }

    fn fleet(&self, mesh: Mesh, signet: &Path, hosts: &[Vec<usize>; 2]) -> Result<figures::Figures, String> {
        fs::create_dir_all(&self.report).map_err(|error| error.to_string())?;
        // On the disk that the report is on, not in memory: what is acknowledged is on it.
        let folder = tempfile::tempdir_in(&self.report).map_err(|error| error.to_string())?;
        // The operator's tool holds the control plane too.
        let is_tool = signet.file_name().is_none_or(|name| name != "signet-control-plane");
        let words = is_tool.then(|| "control-plane".into());
        let plan = Plan {
            mesh,
            pushes: self.pushes,
            rest: Duration::from_secs(self.rest),
            between: BETWEEN,
            launch: Launch {
                command: std::iter::once(signet.to_owned()).chain(words).collect(),
                processors: hosts[0].clone(),
                folder: folder.path().to_owned(),
            },
        };
        let workers = hosts[1].len().max(1);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
        let outcome = runtime.map_err(|error| error.to_string())?.block_on(run(&plan));
        outcome.map_err(|error| format!("{error}\n{}", plan.launch.last_words()))
    }

    fn check(&self) -> Result<(), Failed> {
        let range = 1..=PROXIES_MAX;
        if let Some(wrong) = self.proxies.iter().find(|count| !range.contains(count)) {
            return Err(Failed::usage(format!("--proxies {wrong}: use 1 to {PROXIES_MAX}")));
        }
        if self.per_site == 0 || self.services == 0 || self.services > self.per_site {
            return Err(Failed::usage("use at least one service for a site, and one proxy for each"));
        }
        Ok(())
    }

    /// The control plane's processor, and the others; the same one where there is no other.
    fn processors(&self) -> Result<[Vec<usize>; 2], Failed> {
        let known = stage::processors().map_err(Failed::unavailable)?;
        let own = self.processor.unwrap_or_else(|| known.first().copied().unwrap_or_default());
        if !known.contains(&own) {
            return Err(Failed::usage(format!("processor {own} is none of {known:?}")));
        }
        let others: Vec<usize> = known.iter().copied().filter(|number| *number != own).collect();
        Ok([vec![own], if others.is_empty() { vec![own] } else { others }])
    }
}

fn write(run: &Run, markdown: &str, folder: &Path) -> std::io::Result<()> {
    let mut figures = serde_json::to_string(run)?;
    figures.push('\n');
    fs::write(folder.join(FIGURES), figures)?;
    fs::write(folder.join(MARKDOWN), markdown)
}

impl Again {
    fn run(&self) -> Result<(), Failed> {
        let failed = |path: &Path, error: &dyn std::fmt::Display| {
            Failed::unavailable(format!("{}: {error}", path.display()))
        };
        let text = fs::read_to_string(&self.from).map_err(|error| failed(&self.from, &error))?;
        let run: Run = serde_json::from_str(&text).map_err(|error| failed(&self.from, &error))?;
        if run.format != FORMAT {
            return Err(failed(&self.from, &format!("is of format {}, not {FORMAT}", run.format)));
        }
        let path = self.root.join(PAGE);
        let old = fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
        let new = section::replace(&old, &[("fleet", figures::text(&run))]);
        fs::write(&path, new.map_err(|error| failed(&path, &error))?)
            .map_err(|error| failed(&path, &error))?;
        println!("{}", path.display());
        Ok(())
    }
}
