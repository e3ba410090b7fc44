//! `signet-proxy hold`: a process that owns a network namespace, so that neither the app's restart nor the sidecar's
//! ends it.
//!
//! It puts the strictest rules in force before anything else lives there, then sleeps until it is told to stop.
//! Without a sidecar TCP goes to ports where nobody listens and everything else is refused: the namespace never
//! exists without capture. The sidecar puts its policy's rules in place of these.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use nix::sys::signal::{SigSet, Signal};

use crate::capture::{self, CaptureError, Exempt, MARK, Other, PROXY_UID, Rules, Way};
use crate::command::EXIT_UNAVAILABLE;

/// The settings of the sidecar to come, as far as they shape its rules: same names, same defaults.
#[derive(Args, Clone, Debug)]
pub(crate) struct Hold {
    /// Do not hold: tell by the exit code whether TCP is captured here, for a health check
    #[arg(long)]
    check: bool,
    /// Port that outbound connections are sent to
    #[arg(long, env = "SIGNET_OUTBOUND_PORT", default_value_t = 15001)]
    outbound_port: u16,
    /// Port that inbound connections are sent to
    #[arg(long, env = "SIGNET_INBOUND_PORT", default_value_t = 15006)]
    inbound_port: u16,
    /// Address of the sidecar's health and metrics; its port is left alone
    #[arg(long, env = "SIGNET_ADMIN_ADDR", default_value = "0.0.0.0:15020", value_name = "IP:PORT")]
    admin_addr: SocketAddr,
    /// How the sidecar's own connections are told from the app's
    #[arg(long, env = "SIGNET_EXEMPT", value_enum, default_value_t = By::Mark)]
    exempt: By,
    /// User the sidecar runs as, with `--exempt uid`
    #[arg(long, default_value_t = PROXY_UID)]
    uid: u32,
    /// Inbound ports that are not captured
    #[arg(long, env = "SIGNET_EXCLUDE_INBOUND", value_delimiter = ',', value_name = "PORT,…")]
    exclude_inbound: Vec<u16>,
    /// Which way the rules take to the kernel
    #[arg(long, value_enum, default_value_t = Way::Any)]
    way: Way,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    Mark,
    Uid,
}

impl Hold {
    /// Holds until SIGTERM or SIGINT. The rules end with the namespace, not with this process.
    pub(crate) fn run(&self) -> ExitCode {
        let rules = self.rules();
        let done = if self.check {
            capture::verify_redirects(&rules, self.way).map(drop)
        } else {
            hold(&rules, self.way)
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("signet-proxy: {error}");
                if self.check { ExitCode::FAILURE } else { ExitCode::from(EXIT_UNAVAILABLE) }
            }
        }
    }

    /// The sidecar's rules before its first policy: the strictest.
    fn rules(&self) -> Rules {
        let mut excluded_inbound_ports = self.exclude_inbound.clone();
        excluded_inbound_ports.push(self.admin_addr.port());
        Rules {
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            exempt: match self.exempt {
                By::Mark => Exempt::Mark(MARK),
                By::Uid => Exempt::Uid(self.uid),
            },
            excluded_inbound_ports,
            other: Other::Refuse { egress: Vec::new() },
            ..Rules::default()
        }
    }
}

fn hold(rules: &Rules, way: Way) -> Result<(), CaptureError> {
    // Blocked before the rules, so that a signal during their installation is not lost: as the first process of a
    // container nobody else would handle it.
    let stop: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    if let Err(error) = stop.thread_block() {
        eprintln!("signet-proxy: signals cannot be blocked: {error}");
    }
    capture::install(rules, way)?;
    let backend = capture::verify(rules, way)?;
    // Whoever started this may not be listening.
    let _ = io::Write::write_fmt(
        &mut io::stdout(),
        format_args!("capture is in force ({backend}); holding the network namespace\n"),
    );
    while stop.wait().is_err() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        hold: Hold,
    }

    #[test]
    fn the_rules_are_those_of_a_sidecar_before_its_first_policy() {
        let arguments = ["hold", "--exclude-inbound", "22", "--admin-addr", "0.0.0.0:9000"];
        let rules = Line::try_parse_from(arguments).unwrap().hold.rules();
        let base = ["signet-proxy", "--control-plane", "cp:1", "--token", "t"];
        let sidecar = base.iter().chain(&arguments[1..]);
        let config = crate::config::Arguments::try_parse_from(sidecar).unwrap().try_into().unwrap();
        assert_eq!(rules, crate::guard::initial_rules(&config));
    }
}
