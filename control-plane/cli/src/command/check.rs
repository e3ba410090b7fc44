//! `signet check`: whether a mesh protects what it should, and whether a machine can have one.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use signet_sync::proto::admin::{GetRequest, InfoRequest, ListProxiesRequest, ListRevocationsRequest};

use super::coverage;
use crate::check::finding::{Finding, Topic};
use crate::check::mesh::{Answers, look_at_mesh, look_at_proxies};
use crate::check::report::Report;
use crate::check::{machine, trial};
use crate::client::{ControlPlane, answered};
use crate::output::{Failure, Format, Verdict, print_json, text_or_json};

/// Looks at control plane, certificates, clocks, versions, policy and every sidecar; with --pre at this machine, before
/// anything is installed
///
/// Each finding has an id, says what to type, and where docs/troubleshooting.md tells more. Exit code 0: no errors; 1: some,
/// or warnings with --strict; 69: the control plane does not answer.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  signet check --pre\n  signet check\n  signet check --strict --max-skew 5 -o json"
)]
pub(crate) struct Check {
    /// Look at this machine instead: kernel, permissions, ports, clock, Docker, Compose, kubectl
    #[arg(long, conflicts_with_all = ["max_skew"])]
    pre: bool,
    /// Warnings count as errors
    #[arg(long)]
    strict: bool,
    /// Show what is well of each sidecar too
    #[arg(long)]
    verbose: bool,
    /// Most seconds that a clock may be off
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    max_skew: u64,
    /// The Docker engine's Unix socket, with --pre
    #[arg(long, env = "SIGNET_DOCKER", default_value = "/var/run/docker.sock", value_name = "PATH")]
    docker: PathBuf,
    #[command(flatten)]
    control_plane: ControlPlane,
}

impl Check {
    pub(crate) async fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        let report = if self.pre {
            Report { checks: machine::look(&self.docker).await, ..Report::default() }
        } else {
            match self.ask().await {
                Ok(answers) => self.judge(&answers),
                Err(Failure::Unavailable(reason)) => unavailable(&reason),
                Err(failure) => return Err(failure),
            }
        };
        report.print(format, self.strict, self.verbose)
    }

    async fn ask(&self) -> Result<Answers, Failure> {
        let mut client = self.control_plane.connect().await?;
        let proxies = answered(client.list_proxies(ListProxiesRequest {}).await)?.proxies;
        let items = answered(client.get(GetRequest::default()).await)?.items;
        let model =
            (!items.is_empty()).then(|| coverage::compiled(items).map_err(|failure| failure.to_string()));
        let mut tampered = answered(client.list_revocations(ListRevocationsRequest {}).await)?.revocations;
        tampered.retain(|revocation| !revocation.tampered.is_empty());
        // Last, so that the clocks are compared at the end of an answer.
        let info = answered(client.info(InfoRequest {}).await)?;
        Ok(Answers { info, proxies, model, tampered })
    }

    fn judge(&self, answers: &Answers) -> Report {
        let own = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let own_ms = u64::try_from(own).unwrap_or(u64::MAX);
        let skew_max_ms = self.max_skew.saturating_mul(1_000);
        Report {
            trust_domain: Some(answers.info.trust_domain.clone()),
            revision: Some(answers.info.revision),
            checks: look_at_mesh(answers, own_ms, skew_max_ms, env!("CARGO_PKG_VERSION")),
            proxies: look_at_proxies(answers, skew_max_ms),
            is_unavailable: false,
        }
    }
}

fn unavailable(reason: &str) -> Report {
    // Where standard output goes to a file or a program, the reason is still seen.
    eprintln!("signet: {reason}");
    Report {
        checks: vec![Finding::error(Topic::ControlPlaneReachable, reason)],
        is_unavailable: true,
        ..Report::default()
    }
}

/// The hidden command by which `--pre` tries capture in a process of its own. Not asynchronous: the process must still be
/// without threads.
pub(crate) fn try_capture() -> Result<Verdict, Failure> {
    print_json(&trial::here())?;
    Ok(Verdict::Yes)
}
