//! `signet check --pre`: whether a machine can have sidecars, before any are there.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use caps::{CapSet, Capability};
use signet_policy::rfc3339;
use signet_proxy::capture::TABLE;
use signet_proxy::capture::netlink::NetlinkError;
use signet_proxy::capture::nftables::{self, Chain, DESTINATION_PRIORITY, Hook, Kind};

use super::engines;
use super::finding::{Finding, Topic};
use super::trial;

/// No program of this mesh was built before 2026: a clock that says so was never set.
const CLOCK_FLOOR: u64 = 1_767_225_600;

/// What is listened on where no container keeps ports apart.
const PORTS: [(u16, &str); 5] = [
    (15001, "a sidecar's outbound port"),
    (15006, "a sidecar's inbound port"),
    (15012, "the control plane's port for sidecars"),
    (15014, "the control plane's health and metrics"),
    (15020, "a sidecar's health and metrics"),
];

/// Chains and tables by which other meshes redirect connections.
const OTHER_MESHES: [(&str, &str); 4] =
    [("ISTIO_", "Istio"), ("PROXY_INIT_", "Linkerd"), ("CONSUL_", "Consul"), ("KUMA_", "Kuma")];

/// Looks at this machine.
pub(crate) async fn look(docker: &Path) -> Vec<Finding> {
    let mut findings = trial::run().await;
    findings.push(foreign_rules(nftables::base_chains()));
    findings.push(clock(now()));
    findings.push(cgroup(Path::new("/sys/fs/cgroup")));
    findings.push(ports(&taken()));
    let engine = engines::docker(docker).await;
    findings.push(permissions(engine.is_reachable()));
    findings.extend(engine.findings());
    findings.push(engines::compose(engine.is_reachable()).await);
    findings.push(engines::kubectl().await);
    findings
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Whether a clock was ever set.
pub(crate) fn clock(now: u64) -> Finding {
    let message = format!("the clock says {}", rfc3339(now));
    if now >= CLOCK_FLOOR {
        Finding::ok(Topic::MachineClock, message)
    } else {
        Finding::error(
            Topic::MachineClock,
            format!("{message}: it was never set, and no certificate is valid then"),
        )
    }
}

/// Rules of this network namespace that decide before a sidecar's would.
fn foreign_rules(chains: Result<Vec<(String, Chain)>, NetlinkError>) -> Finding {
    let id = Topic::ForeignRules;
    let chains = match chains {
        Ok(chains) => chains,
        Err(error) => {
            return Finding::skipped(id, format!("the rules in force here cannot be read: {error}"));
        }
    };
    if chains.iter().any(|(table, _)| table == TABLE) {
        return Finding::warning(id, "a sidecar's rules are in force in this network namespace already");
    }
    let other_mesh = |(table, chain): &&(String, Chain)| {
        OTHER_MESHES.iter().any(|(prefix, _)| table.starts_with(prefix) || chain.name.starts_with(prefix))
    };
    // At our own priority Docker's and Kubernetes' own chains stand, which publish ports.
    let earlier = |(_, chain): &&(String, Chain)| {
        chain.kind == Kind::Nat
            && matches!(chain.hook, Hook::Output | Hook::Prerouting)
            && chain.priority < DESTINATION_PRIORITY
    };
    let found: Vec<String> = chains
        .iter()
        .filter(|chain| other_mesh(chain) || earlier(chain))
        .map(|(table, chain)| format!("chain {} of table {table}", chain.name))
        .collect();
    if found.is_empty() {
        return Finding::ok(id, "no rules here translate addresses before a sidecar's would");
    }
    Finding::warning(id, format!("rules here come before a sidecar's: {}", found.join(", ")))
}

fn cgroup(mounted: &Path) -> Finding {
    let id = Topic::Cgroup;
    match fs::read_to_string(mounted.join("cgroup.controllers")) {
        Ok(controllers) if controllers.split_whitespace().any(|controller| controller == "memory") => {
            Finding::ok(id, "cgroup v2, with limits of memory")
        }
        Ok(_) => Finding::warning(
            id,
            "cgroup v2 without the memory controller: a sidecar's memory cannot be limited",
        ),
        Err(_) if mounted.join("memory").is_dir() => Finding::ok(id, "cgroup v1, with limits of memory"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Finding::warning(id, "no cgroup with limits of memory: a sidecar's memory cannot be limited")
        }
        Err(error) => Finding::skipped(id, format!("{}: {error}", mounted.display())),
    }
}

/// The ports that somebody has here.
fn taken() -> Vec<(u16, &'static str)> {
    let in_use = |port: u16| {
        let bound = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
        bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    };
    PORTS.into_iter().filter(|(port, _)| in_use(*port)).collect()
}

fn ports(taken: &[(u16, &str)]) -> Finding {
    if taken.is_empty() {
        let ports = PORTS.map(|(port, _)| port.to_string()).join(", ");
        return Finding::ok(Topic::PortsFree, format!("nobody listens on {ports} here"));
    }
    let named: Vec<String> = taken.iter().map(|(port, what)| format!("{port} ({what})")).collect();
    Finding::warning(Topic::PortsFree, format!("somebody listens here on {}", named.join(", ")))
}

fn permissions(engine_reachable: bool) -> Finding {
    let id = Topic::Permissions;
    let may = caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or(false);
    match (may, engine_reachable) {
        (true, _) => Finding::ok(id, "CAP_NET_ADMIN, for sidecars that are started by hand"),
        (false, true) => Finding::ok(id, "an engine that gives containers their capabilities"),
        (false, false) => {
            Finding::warning(id, "neither CAP_NET_ADMIN nor an engine: no sidecar can be started from here")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    fn chains(list: &[(&str, &str, Kind, Hook, i32)]) -> Finding {
        let chain = |(table, name, kind, hook, priority): &(&str, &str, Kind, Hook, i32)| {
            ((*table).to_owned(), Chain::new(name, *kind, *hook, *priority))
        };
        foreign_rules(Ok(list.iter().map(chain).collect()))
    }

    #[test]
    fn rules_of_an_engine_are_no_conflict_and_those_that_decide_earlier_are() {
        let nat = |table, name, hook, priority| chains(&[(table, name, Kind::Nat, hook, priority)]).severity;
        assert_eq!(nat("nat", "PREROUTING", Hook::Prerouting, -100), Severity::Ok);
        assert_eq!(nat("nat", "POSTROUTING", Hook::Postrouting, -300), Severity::Ok);
        assert_eq!(nat("early", "out", Hook::Output, -150), Severity::Warning);
        assert_eq!(nat("nat", "ISTIO_OUTPUT", Hook::Output, -100), Severity::Warning);
        let filter = chains(&[("inet", "input", Kind::Filter, Hook::Output, -300)]);
        assert_eq!(filter.severity, Severity::Ok, "a firewall is no redirection");
        assert!(chains(&[(TABLE, "output", Kind::Nat, Hook::Output, -100)]).message.contains("already"));
        assert_eq!(foreign_rules(Err(NetlinkError::NoAnswer)).severity, Severity::Skipped);
    }

    #[test]
    fn a_clock_that_was_never_set_is_an_error() {
        assert_eq!(clock(0).severity, Severity::Error);
        assert!(clock(0).message.contains("1970-01-01T00:00:00Z"));
        assert_eq!(clock(now()).severity, Severity::Ok);
    }

    #[test]
    fn a_port_that_is_taken_is_named_with_its_use() {
        let finding = ports(&[(15012, "the control plane's port for sidecars")]);
        assert_eq!(finding.severity, Severity::Warning);
        assert!(finding.message.contains("15012 (the control plane's"), "{}", finding.message);
        assert_eq!(ports(&[]).severity, Severity::Ok);
    }

    #[test]
    fn both_kinds_of_cgroup_are_known_and_none_is_told() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(cgroup(folder.path()).severity, Severity::Warning);
        fs::create_dir(folder.path().join("memory")).unwrap();
        assert!(cgroup(folder.path()).message.contains("v1"));
        fs::write(folder.path().join("cgroup.controllers"), "cpu io\n").unwrap();
        assert_eq!(cgroup(folder.path()).severity, Severity::Warning);
        fs::write(folder.path().join("cgroup.controllers"), "cpu memory\n").unwrap();
        assert!(cgroup(folder.path()).message.contains("v2"));
    }
}
