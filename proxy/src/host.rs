//! `signet-proxy guard`: a sidecar for one service in a network that others use too, such as the host's.
//!
//! It is the same proxy under other rules ([`crate::capture::host`]): some inbound ports, and what leaves for places of
//! the mesh's directory. Its rules stay when it ends while the service still listens, and go when nobody does: so
//! an upgrade opens nothing, and a service that is taken down leaves nothing behind.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};

use clap::Args;
use thiserror::Error;

use crate::capture::Exempt;
use crate::capture::Way;
use crate::capture::host::{GUARDED_MAX, HostRules, Speakers, USERS_MAX, remove};
use crate::config::Config;

/// The longest name: it is part of a table's name, and people type it.
const NAME_MAX: usize = 63;

/// What a guard is told beside the settings of every proxy.
#[derive(Args, Clone, Debug)]
pub struct HostArguments {
    /// TCP ports of the guarded service: what comes for them from other machines is captured.
    #[arg(long, env = "SIGNET_PORTS", value_delimiter = ',', required = true, value_name = "PORT,…")]
    pub ports: Vec<u16>,
    /// Name of this guard, one for each on a host; left out: its first port.
    #[arg(long = "name", env = "SIGNET_GUARD", value_name = "NAME")]
    pub name: Option<String>,
    /// Users whose connections to the mesh are captured and made under this identity; left out: those of every program
    /// of the host.
    #[arg(long = "user", env = "SIGNET_USERS", value_delimiter = ',', value_name = "UID,…")]
    pub users: Vec<u32>,
    /// Capture no outbound connections: the service only serves.
    #[arg(long, env = "SIGNET_NO_OUTBOUND", conflicts_with = "users")]
    pub no_outbound: bool,
}

/// What a guard captures.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostConfig {
    /// Its name.
    pub name: String,
    /// The ports it guards.
    pub ports: BTreeSet<u16>,
    /// Whom it speaks for.
    pub speakers: Speakers,
}

/// Settings that no guard can have.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum HostError {
    /// A capture or exemption of other kind.
    #[error("{0} is not for a guard: it installs its rules by nf_tables and marks its sockets; leave it out")]
    NotForGuards(&'static str),
    /// A name that is none.
    #[error("--name {0:?}: use up to {NAME_MAX} lower-case letters, digits, `.`, `_` and `-`")]
    Name(String),
    /// A guarded port that cannot be.
    #[error("--ports {0}: it is a port of the guard itself, or none; give the ports of the service")]
    Port(u16),
    /// More ports or users than a guard has.
    #[error(
        "at most {GUARDED_MAX} ports and {USERS_MAX} users are guarded at a time; start another guard for the rest"
    )]
    TooMany,
}

impl HostArguments {
    /// What it means beside the settings of the proxy.
    ///
    /// # Errors
    /// [`HostError`], with what to change.
    pub fn meant(self, config: &Config) -> Result<HostConfig, HostError> {
        let ports: BTreeSet<u16> = self.ports.iter().copied().collect();
        let users: BTreeSet<u32> = self.users.into_iter().collect();
        if ports.len() > GUARDED_MAX || users.len() > USERS_MAX {
            return Err(HostError::TooMany);
        }
        let own = [0, config.outbound_port, config.inbound_port, config.admin_addr.port()];
        if let Some(port) = own.into_iter().find(|port| ports.contains(port)) {
            return Err(HostError::Port(port));
        }
        if !matches!(config.exempt, Exempt::Mark(_)) {
            return Err(HostError::NotForGuards("--exempt uid"));
        }
        if config.capture != Some(Way::Any) {
            return Err(HostError::NotForGuards("--capture"));
        }
        if !config.exclude_inbound.is_empty() {
            return Err(HostError::NotForGuards("--exclude-inbound"));
        }
        let first = self.ports.first().map_or_else(String::new, u16::to_string);
        let name = self.name.unwrap_or(first);
        let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(valid) {
            return Err(HostError::Name(name));
        }
        let speakers = match (self.no_outbound, users.is_empty()) {
            (true, _) => Speakers::Nobody,
            (false, true) => Speakers::Everybody,
            (false, false) => Speakers::Users(users),
        };
        Ok(HostConfig { name, ports, speakers })
    }
}

impl HostConfig {
    /// Its rules, with these places of the mesh.
    pub(crate) fn rules(&self, config: &Config, destinations: BTreeSet<std::net::SocketAddr>) -> HostRules {
        HostRules {
            name: self.name.clone(),
            outbound_port: config.outbound_port,
            inbound_port: config.inbound_port,
            ports: self.ports.clone(),
            speakers: self.speakers.clone(),
            destinations,
        }
    }

    /// Ends it: without a service there is nothing to guard, and rules that stay would refuse whoever listens next.
    pub(crate) fn leave(&self) {
        let command = format!("signet-proxy capture remove --guard {}", self.name);
        match listened(&self.ports) {
            Ok(open) if open.is_empty() => match remove(&self.name) {
                Ok(()) => tracing::info!("nobody listens at the guarded ports: capture is removed"),
                Err(error) => tracing::error!(%error, "capture could not be removed; `{command}` does"),
            },
            Ok(open) => tracing::warn!(
                ?open,
                "the service still listens, so capture stays and refuses; `{command}` removes it"
            ),
            Err(error) => {
                tracing::error!(%error, "who listens is not known, so capture stays; `{command}` removes it")
            }
        }
    }
}

/// Which of the ports somebody listens at in this network, at whatever address.
fn listened(ports: &BTreeSet<u16>) -> io::Result<BTreeSet<u16>> {
    let mut found = BTreeSet::new();
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match File::open(path) {
            Ok(file) => found.extend(listening(BufReader::new(file), ports)?),
            // A kernel without IPv6 has no such list.
            Err(error) if path.ends_with('6') && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Reads the kernel's list of sockets: place in the list, own address, other address, state.
fn listening(list: impl BufRead, ports: &BTreeSet<u16>) -> io::Result<BTreeSet<u16>> {
    const LISTEN: &str = "0A";
    let mut found = BTreeSet::new();
    for line in list.lines() {
        let line = line?;
        let mut fields = line.split_ascii_whitespace();
        let (own, state) = (fields.nth(1), fields.nth(1));
        let port = own.and_then(|own| u16::from_str_radix(own.rsplit_once(':')?.1, 16).ok());
        found.extend(port.filter(|port| state == Some(LISTEN) && ports.contains(port)));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Arguments;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        proxy: Arguments,
        #[command(flatten)]
        host: HostArguments,
    }

    fn parse(arguments: &[&str]) -> Result<HostConfig, HostError> {
        let base = ["guard", "--control-plane", "10.0.0.1:15012", "--token", "t"];
        let line = Line::try_parse_from(base.iter().chain(arguments)).unwrap();
        line.host.meant(&line.proxy.try_into().unwrap())
    }

    #[test]
    fn ports_alone_are_enough() {
        let found = parse(&["--ports", "8080,9090"]).unwrap();
        let expected =
            HostConfig { name: "8080".into(), ports: [8080, 9090].into(), speakers: Speakers::Everybody };
        assert_eq!(found, expected);
        assert_eq!(
            parse(&["--ports", "1", "--user", "7,8"]).unwrap().speakers,
            Speakers::Users([7, 8].into())
        );
        assert_eq!(parse(&["--ports", "1", "--no-outbound"]).unwrap().speakers, Speakers::Nobody);
        let base = ["guard", "--control-plane", "10.0.0.1:15012", "--token", "t"];
        assert!(Line::try_parse_from(base).is_err(), "a guard without ports guards nothing");
    }

    #[test]
    fn what_no_guard_can_have_is_refused() {
        for own in [0, 15001, 15006, 15020] {
            assert_eq!(parse(&["--ports", &own.to_string()]), Err(HostError::Port(own)));
        }
        let more = (1..=65).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
        assert_eq!(parse(&["--ports", &more]), Err(HostError::TooMany));
        for name in ["", "A", "a/b", "a b", &"a".repeat(64)] {
            assert_eq!(parse(&["--ports", "1", "--name", name]), Err(HostError::Name(name.into())));
        }
        for (flag, value) in [("--capture", "none"), ("--capture", "iptables"), ("--exclude-inbound", "22")] {
            let found = parse(&["--ports", "1", flag, value]);
            assert_eq!(found, Err(HostError::NotForGuards(flag)), "{value}");
        }
    }

    #[test]
    fn only_listeners_at_the_ports_count() {
        let list = "  sl  local_address rem_address   st tx_queue rx_queue\n\
                    0: 00000000:1F90 00000000:0000 0A 00000000:00000000\n\
                    1: 0100007F:1F91 0100007F:1F90 01 00000000:00000000\n\
                    2: 00000000000000000000000000000000:2382 00000000000000000000000000000000:0000 0A 0\n\
                    3: garbage\n\n";
        let found = listening(list.as_bytes(), &[8080, 8081, 9090, 9091].into()).unwrap();
        assert_eq!(found, [8080, 9090].into());
    }

    #[test]
    fn own_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(listened(&[port].into()).unwrap(), [port].into());
        drop(listener);
        assert!(listened(&[port].into()).unwrap().is_empty());
    }
}
