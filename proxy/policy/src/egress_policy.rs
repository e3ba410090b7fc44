//! What a workload may reach outside the mesh: by address, by name, and with TLS that its sidecar opens.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::model::{Target, Transport, covers};

/// Most entries of one egress policy: each new connection outside the mesh is compared with them.
pub const MAX_EGRESS_ENTRIES: usize = 256;

/// Longest host name (RFC 1035 section 2.3.4).
const MAX_NAME_BYTES: usize = 253;

/// One egress policy. A workload that one selects reaches nothing outside the mesh but what is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressPolicyModel {
    /// The manifest's name.
    pub name: String,
    /// The workloads that may.
    pub target: Target,
    /// What; nothing when empty.
    pub to: Vec<EgressEntry>,
}

/// Destinations: what is given must all match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressEntry {
    /// Names, one of which the application has to call; empty means that none is asked for.
    pub names: Vec<NamePattern>,
    /// Addresses; empty means all.
    pub cidrs: Vec<IpNet>,
    /// Ports; empty means all.
    pub ports: Vec<u16>,
    /// The transport protocol.
    pub protocol: Transport,
    /// TLS that the sidecar opens for an application that speaks plain HTTP.
    pub tls: Option<Origination>,
}

impl EgressEntry {
    /// Whether address and port are among those listed, leaving names aside.
    pub fn covers(&self, address: std::net::IpAddr, port: u16, transport: Transport) -> bool {
        let address = address.to_canonical();
        self.protocol == transport
            && covers(&self.ports, port)
            && (self.cidrs.is_empty() || self.cidrs.iter().any(|range| range.contains(&address)))
    }

    /// Whether one of the names matches a host in lower case.
    pub fn matches_name(&self, host: &str) -> bool {
        self.names.iter().any(|pattern| pattern.matches(host))
    }
}

/// How TLS is opened towards a server outside the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Origination {
    /// The name that the server has to prove; the one that the application called when not given.
    pub server_name: Option<String>,
    /// The port that is dialled instead.
    pub port: u16,
    /// Certificates of the authorities that may vouch for it, in PEM form.
    pub ca_certificates: Option<String>,
    /// Whether those that the sidecar's system trusts may as well.
    pub system_roots: bool,
}

/// A host name, or with `*.` before it all names below it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NamePattern {
    /// In lower case, without the wildcard.
    name: String,
    below: bool,
}

/// The text is no host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("it is no host name, nor `*.` and one")]
pub struct NameError;

impl NamePattern {
    /// Reads a pattern, in any letter case.
    ///
    /// # Errors
    /// [`NameError`], also for an address and for a single label after `*.`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let (name, below) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let is_label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        let is_name = name.len() <= MAX_NAME_BYTES && name.split('.').all(is_label);
        // The last label of an IPv4 address is a number; no top-level domain is.
        let is_address = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        if !is_name || is_address || (below && !name.contains('.')) {
            return Err(NameError);
        }
        Ok(Self { name: name.to_ascii_lowercase(), below })
    }

    /// Whether a host in lower case, without port and trailing dot, is meant.
    pub fn matches(&self, host: &str) -> bool {
        if !self.below {
            return host == self.name;
        }
        let before = host.strip_suffix(self.name.as_str()).and_then(|rest| rest.strip_suffix('.'));
        before.is_some_and(|labels| !labels.is_empty() && !labels.starts_with('.'))
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.name)
    }
}

impl Serialize for NamePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NamePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole_names_or_what_is_below_one() {
        let matches = |pattern: &str, host: &str| NamePattern::parse(pattern).unwrap().matches(host);
        assert!(matches("Api.Example.com", "api.example.com"));
        assert!(!matches("api.example.com", "example.com") && !matches("example.com", "api.example.com"));
        assert!(matches("*.example.com", "api.example.com") && matches("*.example.com", "a.b.example.com"));
        for host in
            ["example.com", ".example.com", "badexample.com", "example.com.evil", "", "a.example.com."]
        {
            assert!(!matches("*.example.com", host), "{host}");
        }
        for text in
            ["", "*", "*.com", "a..b", ".a", "a.", "a b", "caf\u{e9}", "192.0.2.1", "a.*.b", "::1", "a:80"]
        {
            assert_eq!(NamePattern::parse(text), Err(NameError), "{text}");
        }
        let pattern = NamePattern::parse("*.Example.com").unwrap();
        assert_eq!(serde_json::to_string(&pattern).unwrap(), "\"*.example.com\"");
        assert!(serde_json::from_str::<NamePattern>("\"*\"").is_err());
    }
}
