//! `signet attest`: gives identities to what runs on this host, without an operator.

use std::io::Write as _;
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use crate::attestor::Attestor;
use crate::client::ControlPlane;
use crate::files;
use crate::host_attestor::{HostAttestor, Rules, listen};
use crate::output::{Failure, Verdict};

/// Gives identities to processes of this host
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  signet attest unix --rules host.yaml")]
pub(crate) enum Attest {
    Unix(Unix),
}

/// Gives a sidecar of this host its join token at a Unix socket, until it is told to stop
///
/// Who asks is asked of the kernel: systemd unit, user, group, program. What the rules list under that gets a token that is
/// good once and for minutes. Rules about programs need root: the kernel shows a sidecar's to nobody else.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  signet attest unix --listen /run/signet/attest.sock --rules host.yaml\n  \
                  signet-proxy run --token-socket /run/signet/attest.sock --control-plane 10.0.0.2:15012"
)]
pub(crate) struct Unix {
    /// Where sidecars ask. Whoever may enter its folder may ask
    #[arg(
        long,
        env = "SIGNET_ATTEST_LISTEN",
        default_value = "/run/signet/attest.sock",
        value_name = "PATH"
    )]
    listen: PathBuf,
    /// Which processes may be which workload, read when this starts
    #[arg(long, env = "SIGNET_RULES", value_name = "FILE")]
    rules: PathBuf,
    /// Identities that are given in a minute at most
    #[arg(
        long,
        env = "SIGNET_TOKENS_PER_MINUTE",
        default_value_t = 60,
        value_parser = clap::value_parser!(u16).range(1..=1000),
        value_name = "N"
    )]
    tokens_per_minute: u16,
    #[command(flatten)]
    control_plane: ControlPlane,
}

impl Attest {
    pub(crate) async fn run(self) -> Result<Verdict, Failure> {
        let failed = |error| Failure::Internal(format!("signals: {error}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let Self::Unix(unix) = self;
        tokio::select! {
            done = unix.run() => done.map(|()| Verdict::Yes),
            _ = terminate.recv() => Ok(Verdict::Yes),
            _ = interrupt.recv() => Ok(Verdict::Yes),
        }
    }
}

impl Unix {
    async fn run(self) -> Result<(), Failure> {
        let text = files::read(&self.rules)?;
        let rules = Rules::parse(&self.rules.display().to_string(), &text).map_err(Failure::Usage)?;
        let listener = listen(&self.listen)
            .await
            .map_err(|error| Failure::Unavailable(format!("{}: {error}", self.listen.display())))?;
        let attestor = Attestor::new(self.control_plane, self.tokens_per_minute.into());
        tell(format!("listening on {}", self.listen.display()));
        HostAttestor::new(attestor, rules).serve(listener, tell).await;
        Ok(())
    }
}

fn tell(line: String) {
    // Whoever started this may not be listening.
    let _ = writeln!(std::io::stderr(), "signet: {line}");
}
