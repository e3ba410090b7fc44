//! `signet docker`: what a Docker engine needs beside it.

use std::io::Write as _;
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use crate::docker::Docker as Engine;
use crate::keeper;
use crate::output::{Failure, Verdict};

/// Looks after the containers of a Docker engine
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  signet docker keep")]
pub(crate) enum Docker {
    Keep(Keep),
}

/// Keeps containers together that share a network namespace, until it is told to stop
///
/// Starts those that the engine gave up on because their holder was not up yet, and restarts those that a restarted
/// holder left behind. Containers that were stopped stay stopped, and those that joined a container without the label
/// `signet.mf2c-project.eu/role: holder` are left alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  signet docker keep --docker /var/run/docker.sock")]
pub(crate) struct Keep {
    /// The engine's Unix socket. Whoever may use it is root on its machine
    #[arg(long, env = "SIGNET_DOCKER", default_value = "/var/run/docker.sock", value_name = "PATH")]
    docker: PathBuf,
}

impl Docker {
    pub(crate) async fn run(self) -> Result<Verdict, Failure> {
        let Self::Keep(Keep { docker }) = self;
        let failed = |error| Failure::Internal(format!("signals: {error}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let engine = Engine::at(docker);
        let tell = |line: String| {
            // Whoever started this may not be listening.
            let _ = writeln!(std::io::stderr(), "signet: {line}");
        };
        tokio::select! {
            () = keeper::keep(&engine, tell) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(Verdict::Yes)
    }
}
