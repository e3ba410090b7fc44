//! Where an etcd cluster is, as `--store` tells it: `etcd://HOST:PORT[,HOST:PORT…][/PREFIX]`.

use std::fmt;
use std::net::IpAddr;

use thiserror::Error;

/// Members of one cluster; etcd itself advises against more than seven.
const MEMBERS_MAX: usize = 16;

/// The port that etcd serves clients on, unless it is told otherwise.
const DEFAULT_PORT: u16 = 2379;

/// Bytes of a prefix.
const PREFIX_MAX: usize = 256;

/// A cluster and a place in it. See the module page.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EtcdAddress {
    /// Host and port of each member.
    pub members: Vec<(String, u16)>,
    /// What all keys begin with; ends in `/`.
    pub prefix: String,
}

/// Why an address is none.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum AddressError {
    /// Not what is known.
    #[error("{0:?} is neither redb nor etcd://HOST:PORT[,HOST:PORT…][/PREFIX]")]
    Form(String),
    /// No members, or too many.
    #[error("an etcd cluster has 1 to {MEMBERS_MAX} members")]
    Members,
    /// A port that is none, a host that is empty.
    #[error("{0:?} is not HOST:PORT")]
    Member(String),
    /// The prefix is too long.
    #[error("the prefix is longer than {PREFIX_MAX} bytes")]
    Prefix,
}

impl EtcdAddress {
    /// From what was typed; without a prefix keys begin with `default_prefix`.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn parse(text: &str, default_prefix: &str) -> Result<Self, AddressError> {
        let rest = text.strip_prefix("etcd://").ok_or_else(|| AddressError::Form(text.to_owned()))?;
        let (members, path) = rest.split_once('/').unwrap_or((rest, ""));
        let members: Vec<(String, u16)> = members.split(',').map(member).collect::<Result<_, _>>()?;
        if members.len() > MEMBERS_MAX {
            return Err(AddressError::Members);
        }
        let path = path.trim_matches('/');
        let prefix = if path.is_empty() { default_prefix.trim_matches('/') } else { path };
        if prefix.len() > PREFIX_MAX {
            return Err(AddressError::Prefix);
        }
        Ok(Self { members, prefix: format!("/{prefix}/") })
    }

    /// Whether no byte leaves this machine: only then nothing has to be encrypted.
    pub fn is_loopback(&self) -> bool {
        self.members.iter().all(|(host, _)| host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()))
    }
}

fn member(text: &str) -> Result<(String, u16), AddressError> {
    let wrong = || AddressError::Member(text.to_owned());
    // Addresses of IPv6 stand in brackets where a port may follow.
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(wrong)?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.map_or(Ok(DEFAULT_PORT), |port| port.parse().map_err(|_| wrong()))?;
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || port == 0 || !host.chars().all(is_host) {
        return Err(wrong());
    }
    Ok((host.to_owned(), port))
}

impl fmt::Display for EtcdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let member = |(host, port): &(String, u16)| {
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
        };
        let members: Vec<String> = self.members.iter().map(member).collect();
        write!(f, "etcd://{}{}", members.join(","), self.prefix.trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_prefix_are_read_and_shown_again() {
        let address = EtcdAddress::parse("etcd://a.example:2380,10.0.0.1,[::1]:1/x/y/", "signet/td").unwrap();
        let member = |host: &str, port| (host.to_owned(), port);
        assert_eq!(address.members, [member("a.example", 2380), member("10.0.0.1", 2379), member("::1", 1)]);
        assert_eq!(address.prefix, "/x/y/");
        assert_eq!(address.to_string(), "etcd://a.example:2380,10.0.0.1:2379,[::1]:1/x/y");
        assert_eq!(EtcdAddress::parse("etcd://a", "signet/td").unwrap().prefix, "/signet/td/");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for wrong in [
            "etcd:/a",
            "http://a",
            "etcd://",
            "etcd://a:0",
            "etcd://a:b",
            "etcd://a,,b",
            "etcd://[::1",
            "etcd://a b",
        ] {
            assert!(EtcdAddress::parse(wrong, "x").is_err(), "{wrong}");
        }
        assert!(EtcdAddress::parse(&format!("etcd://{}", ["a"; MEMBERS_MAX + 1].join(",")), "x").is_err());
        assert!(EtcdAddress::parse(&format!("etcd://a/{}", "p".repeat(PREFIX_MAX + 1)), "x").is_err());
    }

    #[test]
    fn only_addresses_of_this_machine_are_loopback() {
        let is_loopback = |text| EtcdAddress::parse(text, "x").unwrap().is_loopback();
        assert!(is_loopback("etcd://127.0.0.1,[::1]:2379"));
        // A name may lead anywhere.
        assert!(!is_loopback("etcd://127.0.0.1,localhost") && !is_loopback("etcd://10.0.0.1"));
    }
}
