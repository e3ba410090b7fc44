//! `signet-proxy capture install|verify|drain|remove`: the rules as a step of its own, for an init container or a
//! unit that holds the capability the proxy then need not have.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;

use super::{
    CaptureError, Egress, Exempt, MARK, Other, PROXY_UID, Rules, Way, drain, host, install, remove, verify,
};

/// Arguments of `signet-proxy capture`.
#[derive(Args, Clone, Debug)]
pub struct CaptureArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Stop capturing, keep the connections that are redirected; new ones go in clear
    Drain,
    /// Put the rules in force, in place of earlier ones
    Install(RuleArgs),
    /// Remove the rules; connections that are redirected break, new ones go in clear
    Remove {
        /// Those of a guard, and only those
        #[arg(long, value_name = "NAME")]
        guard: Option<String>,
    },
    /// Check that what is in force is what `install` with the same options puts there
    Verify(RuleArgs),
}

/// The options that make up the rules.
#[derive(Args, Clone, Debug)]
struct RuleArgs {
    /// Port that outbound connections are sent to
    #[arg(long, env = "SIGNET_OUTBOUND_PORT", default_value_t = 15001)]
    outbound_port: u16,
    /// Port that inbound connections are sent to
    #[arg(long, env = "SIGNET_INBOUND_PORT", default_value_t = 15006)]
    inbound_port: u16,
    /// How the proxy's own connections are told from the app's
    #[arg(long, env = "SIGNET_EXEMPT", value_enum, default_value_t = ExemptBy::Mark)]
    exempt: ExemptBy,
    /// User the proxy runs as, with `--exempt uid`
    #[arg(long, default_value_t = PROXY_UID)]
    uid: u32,
    /// Inbound ports left alone
    #[arg(long, value_delimiter = ',', default_value = "15020")]
    exclude_inbound_port: Vec<u16>,
    /// Destination ports left alone
    #[arg(long, value_delimiter = ',')]
    exclude_outbound_port: Vec<u16>,
    /// Destination networks left alone
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    exclude_outbound_network: Vec<IpNet>,
    /// Which way the rules take to the kernel
    #[arg(long, value_enum, default_value_t = Way::Any)]
    way: Way,
    /// What becomes of outbound packets that are not TCP
    #[arg(long, value_enum, default_value_t = OtherTraffic::Pass)]
    other: OtherTraffic,
    /// Where packets that are not TCP may go with `--other refuse`; without a port to every port, else UDP
    #[arg(long, value_delimiter = ',', value_name = "CIDR[:PORT]")]
    egress: Vec<Egress>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ExemptBy {
    /// By socket mark: needs CAP_NET_ADMIN in the proxy, and apps without it and without CAP_NET_RAW
    Mark,
    /// By user
    Uid,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OtherTraffic {
    /// They pass
    Pass,
    /// They are refused, save DNS, needed ICMP, loopback and `--egress`
    Refuse,
}

impl From<&RuleArgs> for Rules {
    fn from(arguments: &RuleArgs) -> Self {
        Self {
            outbound_port: arguments.outbound_port,
            inbound_port: arguments.inbound_port,
            exempt: match arguments.exempt {
                ExemptBy::Mark => Exempt::Mark(MARK),
                ExemptBy::Uid => Exempt::Uid(arguments.uid),
            },
            excluded_inbound_ports: arguments.exclude_inbound_port.clone(),
            excluded_outbound_ports: arguments.exclude_outbound_port.clone(),
            excluded_outbound_networks: arguments.exclude_outbound_network.clone(),
            other: match arguments.other {
                OtherTraffic::Pass => Other::Pass,
                OtherTraffic::Refuse => Other::Refuse { egress: arguments.egress.clone() },
            },
        }
    }
}

impl CaptureArgs {
    /// Does it and tells the outcome: one line on standard output, or the reason on standard error and exit code 1.
    pub fn run(&self) -> ExitCode {
        match self.act() {
            Ok(outcome) => {
                println!("{outcome}");
                ExitCode::SUCCESS
            }
            Err(CaptureError::Differs { differences }) => {
                eprintln!("capture is not as installed:");
                differences.iter().for_each(|difference| eprintln!("  {difference}"));
                ExitCode::FAILURE
            }
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        }
    }

    fn act(&self) -> Result<String, CaptureError> {
        Ok(match &self.action {
            Action::Drain => format!("capture drains ({}): new connections go in clear", drain()?),
            Action::Install(rules) => format!("capture is in force ({})", install(&rules.into(), rules.way)?),
            Action::Remove { guard: Some(guard) } => {
                host::remove(guard)?;
                format!("capture of guard {guard} is removed: connections go in clear")
            }
            Action::Remove { guard: None } => {
                remove()?;
                "capture is removed: connections go in clear".into()
            }
            Action::Verify(rules) => {
                format!("capture is as installed ({})", verify(&rules.into(), rules.way)?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        capture: CaptureArgs,
    }

    fn rules(arguments: &[&str]) -> Rules {
        let line = ["capture", "install"].iter().chain(arguments);
        match Command::try_parse_from(line).unwrap().capture.action {
            Action::Install(arguments) => (&arguments).into(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_the_default_rules() {
        assert_eq!(rules(&[]), Rules::default());
    }

    #[test]
    fn way_is_chosen_by_its_name() {
        let way = |arguments: &[&str]| {
            let line = ["capture", "verify"].iter().chain(arguments);
            match Command::try_parse_from(line).unwrap().capture.action {
                Action::Verify(arguments) => arguments.way,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(way(&[]), Way::Any);
        assert_eq!(way(&["--way", "iptables"]), Way::IpTables);
    }

    #[test]
    fn options_become_rules() {
        let found = rules(&["--exempt", "uid", "--other", "refuse", "--egress", "10.0.0.0/8:123,fd00::/8"]);
        let egress = ["10.0.0.0/8:123", "fd00::/8"].map(|text| text.parse().unwrap()).to_vec();
        let other = Other::Refuse { egress };
        assert_eq!(found, Rules { exempt: Exempt::Uid(PROXY_UID), other, ..Rules::default() });
    }
}
