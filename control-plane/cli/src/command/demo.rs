//! `signet demo`: a whole mesh on this machine.

use std::path::PathBuf;

use crate::demo::run;
use crate::output::{Failure, Format, Verdict};

/// Shows a whole mesh on this machine: no root, nothing to install
///
/// Builds two small agents in networks of their own, calls their apps without and with the mesh, attacks it, and
/// tells what held. Exit code 0 only if everything held, 69 where user namespaces are forbidden.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  signet demo\n  signet demo --report demo.json\n  signet demo --stay")]
pub(crate) struct Demo {
    /// Write every check and its figure to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Leave it running at the end, and print what to try
    #[arg(long)]
    stay: bool,
}

impl Demo {
    /// Not asynchronous: the process must still be without threads.
    pub(crate) fn run(self, format: Format) -> Result<Verdict, Failure> {
        run::run(self.report.as_deref(), self.stay, format)
    }
}
