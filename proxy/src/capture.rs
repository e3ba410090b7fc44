//! Capture: the kernel rules that bring an app's connections to the proxy.
//!
//! One nf_tables table, `inet signet`, put in force by one atomic netlink transaction for IPv4 and IPv6; no `nft` or
//! `iptables` program is needed. Where the kernel cannot do that, `iptables-restore` is tried and the caller is
//! told; an operator may also choose that way ([`Way`]). The rules stay in force when the proxy dies: traffic is then
//! refused, never sent in clear.
//!
//! - TCP that leaves is redirected to the outbound port, TCP that arrives to the inbound port. The accepted socket
//!   tells the original destination ([`socket2::Socket::original_dst_v4`] and its IPv6 sister); when that is the
//!   listener's own address, the connection was not redirected. The inbound port must be bound to the wildcard.
//! - Left alone: loopback, the proxy's own sockets ([`Exempt`]), port 53, the proxy's own ports and what
//!   [`Rules`] excludes.
//! - Connections opened before the rules are left alone, so install before the app starts.
//! - `lo` must be up, with `::1`: redirected connections arrive there. Until then they time out.
//!
//! In a network that others use too, [`host`] captures some ports and places instead.
//!
//! All calls act on the network namespace of the calling thread, block for a few milliseconds and need
//! `CAP_NET_ADMIN`, reading included: verify before privileges are dropped.

use std::fmt;

use clap::ValueEnum;
use nix::errno::Errno;

pub mod command;
pub mod expression;
pub mod host;
mod iptables;
pub mod netlink;
pub mod nftables;
mod rules;
pub mod sets;
mod verify;

pub use iptables::IptablesError;
pub use rules::{
    DNS_PORT, Egress, EgressError, Exempt, MARK, MAX_EXCEPTIONS, Other, PROXY_UID, Rules, TABLE,
};

use host::DESTINATIONS_MAX;
use netlink::NetlinkError;

/// How the rules were given to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// `iptables-restore` and `ip6tables-restore`: not atomic across IP versions.
    IpTables,
    /// Our own netlink transaction.
    NfTables,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IpTables => "iptables",
            Self::NfTables => "nf_tables",
        })
    }
}

/// Which way the rules may take to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// Netlink, or iptables where the kernel cannot do that
    #[default]
    Any,
    /// iptables alone
    #[value(name = "iptables")]
    IpTables,
}

/// Why capture is not as asked.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// What is in force is not what was asked for.
    #[error("capture is not as installed: {}", differences.join("; "))]
    Differs {
        /// Each difference in words, at most 16.
        differences: Vec<String>,
    },
    /// `iptables` failed when it was asked for.
    #[error(transparent)]
    Iptables(#[from] IptablesError),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// iptables has no state between capturing and not.
    #[error("rules that iptables holds cannot be drained, only removed, which breaks redirected connections")]
    NoDrain,
    /// Neither way works.
    #[error("nf_tables is not available ({netlink}), and iptables neither ({iptables})")]
    NoBackend {
        /// Why not nf_tables.
        netlink: NetlinkError,
        /// Why not iptables.
        iptables: Box<Self>,
    },
    /// Another table captures the same already.
    #[error("{what}: table `{table}` captures that already; fix: stop who keeps it, then `{fix}`")]
    Taken {
        /// What both want.
        what: String,
        /// Whose it is.
        table: String,
        /// The command that removes it.
        fix: String,
    },
    /// More exclusions and egress rules than fit one transaction.
    #[error("{found} exclusions and egress rules are more than {MAX_EXCEPTIONS}")]
    TooManyExceptions {
        /// How many there were.
        found: usize,
    },
    /// More places of the mesh than fit one transaction.
    #[error(
        "{found} places in the mesh's directory are more than the {DESTINATIONS_MAX} that a guard can capture"
    )]
    TooManyPlaces {
        /// How many there were.
        found: usize,
    },
}

/// Puts the rules in force, in place of earlier ones. Idempotent; atomic with [`Backend::NfTables`].
///
/// # Errors
/// With [`CaptureError::Netlink`] nothing has changed.
pub fn install(rules: &Rules, way: Way) -> Result<Backend, CaptureError> {
    let table = rules.table()?;
    match way {
        Way::Any => apply(&table, rules),
        Way::IpTables => {
            iptables::install(rules)?;
            // Only now, so that there is no moment without rules.
            remove_table()?;
            Ok(Backend::IpTables)
        }
    }
}

/// Checks that what is in force is what [`install`] puts there, to the byte.
///
/// Only our own table, or our own chains, are looked at: rules of others at an earlier priority can still divert
/// packets.
///
/// # Errors
/// [`CaptureError::Differs`] tells the differences in words.
pub fn verify(rules: &Rules, way: Way) -> Result<Backend, CaptureError> {
    if way == Way::IpTables {
        let differences = iptables::differences(rules)?;
        return if differences.is_empty() {
            Ok(Backend::IpTables)
        } else {
            Err(CaptureError::Differs { differences })
        };
    }
    let expected = rules.table()?;
    let found = match nftables::read(TABLE) {
        Err(error) if !unavailable(&error) => return Err(error.into()),
        found => found.ok().flatten(),
    };
    // Without our table the rules may have gone in through iptables.
    if found.is_none() && iptables::differences(rules).is_ok_and(|list| list.is_empty()) {
        return Ok(Backend::IpTables);
    }
    let differences = verify::differences(&expected, found.as_ref());
    if differences.is_empty() { Ok(Backend::NfTables) } else { Err(CaptureError::Differs { differences }) }
}

/// Checks that TCP is captured as [`install`] captures it. What becomes of other packets is not looked at: it
/// follows the policy, so whoever installed the first rules cannot know it.
///
/// # Errors
/// [`CaptureError::Differs`] tells the differences in words.
pub fn verify_redirects(rules: &Rules, way: Way) -> Result<Backend, CaptureError> {
    let expected = Rules { other: Other::Pass, ..rules.clone() }.table()?;
    let found = match way {
        Way::Any => nftables::read(TABLE),
        Way::IpTables => Ok(None),
    };
    let found = match found {
        Err(error) if !unavailable(&error) => return Err(error.into()),
        found => found.ok().flatten(),
    };
    if let Some(redirects) = found.map(rules::redirects) {
        let differences = verify::differences(&expected, Some(&redirects));
        return if differences.is_empty() {
            Ok(Backend::NfTables)
        } else {
            Err(CaptureError::Differs { differences })
        };
    }
    let differences = iptables::redirect_differences(rules)?;
    if differences.is_empty() { Ok(Backend::IpTables) } else { Err(CaptureError::Differs { differences }) }
}

/// Stops capturing without breaking the connections that are redirected: new ones leave and arrive **in clear**.
/// For taking a running app out of the mesh; call [`remove`] when the old connections have ended.
///
/// # Errors
/// As [`install`]; [`CaptureError::NoDrain`] where iptables holds the rules.
pub fn drain() -> Result<Backend, CaptureError> {
    // Beside chains that go on redirecting, a drained table would say what is not so.
    if iptables::is_installed() {
        return Err(CaptureError::NoDrain);
    }
    nftables::apply(&rules::drained())?;
    Ok(Backend::NfTables)
}

/// Removes the rules wholly; no error when there are none. New connections leave and arrive **in clear**, and
/// connections that are redirected break, because the kernel stops translating them with the last redirect rule:
/// [`drain`] first where that matters.
///
/// # Errors
/// As [`install`].
pub fn remove() -> Result<(), CaptureError> {
    remove_table()?;
    Ok(iptables::remove()?)
}

/// Removes our table; none is there where the kernel lacks nf_tables.
fn remove_table() -> Result<(), CaptureError> {
    match nftables::delete(TABLE) {
        Err(error) if !unavailable(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

fn apply(table: &nftables::Ruleset, rules: &Rules) -> Result<Backend, CaptureError> {
    match nftables::apply(table) {
        Ok(()) => Ok(Backend::NfTables),
        Err(netlink) if unavailable(&netlink) => match iptables::install(rules) {
            Ok(()) => Ok(Backend::IpTables),
            Err(iptables) => Err(CaptureError::NoBackend { netlink, iptables: Box::new(iptables) }),
        },
        Err(error) => Err(error.into()),
    }
}

/// Whether the kernel lacks nf_tables or a part of it, so that the other way is worth trying.
fn unavailable(error: &NetlinkError) -> bool {
    // ENOENT can only mean a missing kernel part: everything else a transaction names, it creates first.
    let lacking = [Errno::EAFNOSUPPORT, Errno::ENOENT, Errno::EOPNOTSUPP, Errno::EPROTONOSUPPORT];
    error.errno().is_some_and(|errno| lacking.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: Errno) -> NetlinkError {
        let (purpose, text) = (String::new(), String::new());
        NetlinkError::Refused { sequence: 1, purpose, errno, text, hint: "" }
    }

    #[test]
    fn only_a_lacking_kernel_falls_back() {
        assert!(unavailable(&refused(Errno::EOPNOTSUPP)));
        assert!(unavailable(&refused(Errno::ENOENT)));
        assert!(!unavailable(&refused(Errno::EPERM)));
        assert!(!unavailable(&refused(Errno::EINVAL)));
    }
}
