//! The same rules through `iptables-restore`, for kernels whose nf_tables cannot be spoken to, and for operators who
//! want them where their own iptables rules are.
//!
//! Weaker than the netlink way, and said so: IPv4 and IPv6 are two transactions each for two tables, so a packet may
//! meet half of an installation, and it needs the programs. The rules live in chains of our own, reached by one jump
//! at the head of the built-in chains. They are written as `iptables-save` prints them, so verifying is comparing.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use ipnet::IpNet;

use super::CaptureError;
use super::rules::{DNS_PORT, Exempt, NEEDED_ICMP, NEEDED_ICMPV6, Other, Rules};

/// Our chain, the built-in chain that jumps to it, and their table.
const CHAINS: [(&str, &str, &str); 3] = [
    ("SIGNET_OUTPUT", "OUTPUT", "nat"),
    ("SIGNET_PREROUTING", "PREROUTING", "nat"),
    ("SIGNET_OTHER", "OUTPUT", "filter"),
];
/// What the names of our chains begin with.
const CHAIN_PREFIX: &str = "SIGNET_";
/// The table whose chains capture TCP.
const REDIRECTS: &str = "nat";
const TABLES: [&str; 2] = [REDIRECTS, "filter"];
const OPENING: &str = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN";
/// Its presence tells that the kernel speaks IPv6.
const IPV6_PRESENT: &str = "/proc/net/if_inet6";
/// Other users of iptables hold its lock for moments; `iptables-restore` waits this many seconds for it.
const LOCK_SECONDS: &str = "5";

/// Why iptables did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// The program cannot be run.
    #[error("cannot run {program}: {source}")]
    NotRun {
        /// Which.
        program: String,
        /// The system's error.
        source: io::Error,
    },
    /// The program refused.
    #[error("{program} failed: {text}")]
    Refused {
        /// Which.
        program: String,
        /// What it said.
        text: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    /// The families this kernel speaks.
    fn present() -> Vec<Self> {
        if Path::new(IPV6_PRESENT).exists() { vec![Self::V4, Self::V6] } else { vec![Self::V4] }
    }

    fn program(self, verb: &str) -> String {
        match self {
            Self::V4 => format!("iptables-{verb}"),
            Self::V6 => format!("ip6tables-{verb}"),
        }
    }

    fn holds(self, network: &IpNet) -> bool {
        (self == Self::V6) == matches!(network.addr(), IpAddr::V6(_))
    }
}

pub(super) fn install(rules: &Rules) -> Result<(), CaptureError> {
    rules.check_bounds()?;
    for family in Family::present() {
        for table in TABLES {
            let saved = save(family, table)?;
            restore(family, &installation(rules, family, table, &saved))?;
        }
    }
    Ok(())
}

/// What differs from an installation of the rules, in words.
pub(super) fn differences(rules: &Rules) -> Result<Vec<String>, IptablesError> {
    differences_in(rules, &TABLES)
}

/// What differs as far as TCP is captured.
pub(super) fn redirect_differences(rules: &Rules) -> Result<Vec<String>, IptablesError> {
    differences_in(rules, &[REDIRECTS])
}

fn differences_in(rules: &Rules, tables: &[&str]) -> Result<Vec<String>, IptablesError> {
    let mut list = Vec::new();
    for family in Family::present() {
        for table in tables.iter().copied() {
            let saved = save(family, table)?;
            let expected = chain_lines(rules, family, table);
            if expected != ours(&saved).collect::<Vec<_>>() {
                list.push(format!("{} table {table} is not as installed", family.program("save")));
            }
            list.extend(missing_jumps(table, &saved));
        }
    }
    Ok(list)
}

/// Whether chains of ours are there. Without iptables there are none; where it only fails there may be.
pub(super) fn is_installed() -> bool {
    let ours = |family, table| match save(family, table) {
        Ok(saved) => saved.contains(CHAIN_PREFIX),
        Err(IptablesError::NotRun { .. }) => false,
        Err(_) => true,
    };
    Family::present().into_iter().any(|family| TABLES.iter().any(|table| ours(family, table)))
}

/// Removes what an earlier [`install`] put in; no error when there is nothing or no iptables.
pub(super) fn remove() -> Result<(), IptablesError> {
    for family in Family::present() {
        for table in TABLES {
            let Ok(saved) = save(family, table) else { continue };
            if saved.contains(CHAIN_PREFIX) {
                restore(family, &removal(table, &saved))?;
            }
        }
    }
    Ok(())
}

fn chains_of(table: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    CHAINS.into_iter().filter(move |(.., of)| *of == table).map(|(chain, builtin, _)| (chain, builtin))
}

fn jump(chain: &str, builtin: &str) -> String {
    format!("{builtin} -j {chain}")
}

/// Declaring a chain creates it or empties it; the jump is taken out as often as it stands and put first again.
fn installation(rules: &Rules, family: Family, table: &str, saved: &str) -> String {
    let declared = chains_of(table).map(|(chain, _)| format!(":{chain} - [0:0]"));
    let first = chains_of(table).map(|(chain, builtin)| format!("-I {builtin} 1 -j {chain}"));
    let lines = declared.chain(chain_lines(rules, family, table)).chain(old_jumps(table, saved)).chain(first);
    transaction(table, lines)
}

fn removal(table: &str, saved: &str) -> String {
    let emptied = chains_of(table).map(|(chain, _)| format!(":{chain} - [0:0]"));
    let deleted = chains_of(table).map(|(chain, _)| format!("-X {chain}"));
    transaction(table, emptied.chain(old_jumps(table, saved)).chain(deleted))
}

fn transaction(table: &str, lines: impl Iterator<Item = String>) -> String {
    let lines: String = lines.map(|line| line + "\n").collect();
    format!("*{table}\n{lines}COMMIT\n")
}

fn old_jumps(table: &str, saved: &str) -> Vec<String> {
    let deletion = |line: &str| {
        let line = line.strip_prefix("-A ")?;
        chains_of(table).any(|(chain, builtin)| line == jump(chain, builtin)).then(|| format!("-D {line}"))
    };
    saved.lines().filter_map(deletion).collect()
}

fn missing_jumps(table: &str, saved: &str) -> Vec<String> {
    let first_of = |builtin: &str| {
        let start = format!("-A {builtin} ");
        saved.lines().find(|line| line.starts_with(&start)).map(str::to_owned)
    };
    chains_of(table)
        .filter(|(chain, builtin)| first_of(builtin) != Some(format!("-A {}", jump(chain, builtin))))
        .map(|(chain, builtin)| format!("the first rule of {builtin} does not jump to {chain}"))
        .collect()
}

fn ours(saved: &str) -> impl Iterator<Item = &str> {
    saved.lines().filter(|line| line.starts_with("-A SIGNET_"))
}

/// The rules of our chains in one table, in the order `iptables-save` prints chains: by name.
fn chain_lines(rules: &Rules, family: Family, table: &str) -> Vec<String> {
    match table {
        "nat" => [output(rules, family), prerouting(rules)].concat(),
        _ => others(rules, family),
    }
}

fn output(rules: &Rules, family: Family) -> Vec<String> {
    let mut lines = vec!["-o lo -j RETURN".to_owned(), exempt(rules.exempt)];
    lines.extend([DNS_PORT].iter().chain(&rules.excluded_outbound_ports).map(excluded_port));
    let networks = rules.excluded_outbound_networks.iter().filter(|network| family.holds(network));
    lines.extend(networks.map(|network| format!("{}-j RETURN", to(network))));
    lines.push(format!("{OPENING} -j REDIRECT --to-ports {}", rules.outbound_port));
    in_chain("SIGNET_OUTPUT", lines)
}

fn prerouting(rules: &Rules) -> Vec<String> {
    let mut lines = vec!["-i lo -j RETURN".to_owned()];
    lines.extend(rules.direct_ports().map(|port| excluded_port(&port)));
    lines.push(format!("{OPENING} -j REDIRECT --to-ports {}", rules.inbound_port));
    in_chain("SIGNET_PREROUTING", lines)
}

fn others(rules: &Rules, family: Family) -> Vec<String> {
    let Other::Refuse { egress } = &rules.other else { return Vec::new() };
    let mut lines = vec!["-p tcp -j RETURN".to_owned(), "-o lo -j RETURN".to_owned(), exempt(rules.exempt)];
    lines.push(format!("-p udp -m udp --dport {DNS_PORT} -j RETURN"));
    let (types, matched) = match family {
        Family::V4 => (NEEDED_ICMP, "-p icmp -m icmp --icmp-type"),
        Family::V6 => (NEEDED_ICMPV6, "-p ipv6-icmp -m icmp6 --icmpv6-type"),
    };
    let each = types.iter().flat_map(|(first, last)| *first..=*last);
    lines.extend(each.map(|kind| format!("{matched} {kind} -j RETURN")));
    for rule in egress.iter().filter(|rule| family.holds(&rule.network)) {
        let port = rule.port.map(|port| format!("-m udp --dport {port} ")).unwrap_or_default();
        lines.push(format!("{}-p udp {port}-j RETURN", to(&rule.network)));
    }
    lines.push("-j DROP".into());
    in_chain("SIGNET_OTHER", lines)
}

fn in_chain(chain: &str, lines: Vec<String>) -> Vec<String> {
    lines.into_iter().map(|line| format!("-A {chain} {line}")).collect()
}

fn exempt(exempt: Exempt) -> String {
    match exempt {
        Exempt::Mark(mark) => format!("-m mark --mark {mark:#x} -j RETURN"),
        Exempt::Uid(uid) => format!("-m owner --uid-owner {uid} -j RETURN"),
    }
}

fn excluded_port(port: &u16) -> String {
    format!("-p tcp -m tcp --dport {port} -j RETURN")
}

fn to(network: &IpNet) -> String {
    if network.prefix_len() == 0 { String::new() } else { format!("-d {} ", network.trunc()) }
}

fn save(family: Family, table: &str) -> Result<String, IptablesError> {
    let program = family.program("save");
    run(&program, &["-t", table], "")
}

fn restore(family: Family, text: &str) -> Result<(), IptablesError> {
    let program = family.program("restore");
    run(&program, &["--noflush", "-w", LOCK_SECONDS], text).map(drop)
}

fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, IptablesError> {
    let not_run = |source| IptablesError::NotRun { program: program.into(), source };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(not_run)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading says why in its exit status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(not_run)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(IptablesError::Refused { program: program.into(), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installation_declares_fills_and_jumps() {
        let text = installation(&Rules::default(), Family::V4, "nat", "-A OUTPUT -j SIGNET_OUTPUT\n");
        let expected = "\
*nat
:SIGNET_OUTPUT - [0:0]
:SIGNET_PREROUTING - [0:0]
-A SIGNET_OUTPUT -o lo -j RETURN
-A SIGNET_OUTPUT -m mark --mark 0x5167 -j RETURN
-A SIGNET_OUTPUT -p tcp -m tcp --dport 53 -j RETURN
-A SIGNET_OUTPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j REDIRECT --to-ports 15001
-A SIGNET_PREROUTING -i lo -j RETURN
-A SIGNET_PREROUTING -p tcp -m tcp --dport 15006 -j RETURN
-A SIGNET_PREROUTING -p tcp -m tcp --dport 15020 -j RETURN
-A SIGNET_PREROUTING -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j REDIRECT --to-ports 15006
-D OUTPUT -j SIGNET_OUTPUT
-I OUTPUT 1 -j SIGNET_OUTPUT
-I PREROUTING 1 -j SIGNET_PREROUTING
COMMIT
";
        assert_eq!(text, expected);
    }

    #[test]
    fn each_family_gets_its_own_networks() {
        let egress = ["10.1.2.3/8:123", "fd00::/8", "0.0.0.0/0:5"].map(|text| text.parse().unwrap()).to_vec();
        let rules = Rules { other: Other::Refuse { egress }, exempt: Exempt::Uid(1337), ..Rules::default() };
        let v4 = others(&rules, Family::V4);
        let v6 = others(&rules, Family::V6);
        let end = [
            "-d 10.0.0.0/8 -p udp -m udp --dport 123 -j RETURN",
            "-p udp -m udp --dport 5 -j RETURN",
            "-j DROP",
        ];
        assert!(v4.ends_with(&end.map(|line| format!("-A SIGNET_OTHER {line}"))), "{v4:?}");
        assert!(v6.ends_with(
            &["-d fd00::/8 -p udp -j RETURN", "-j DROP"].map(|line| format!("-A SIGNET_OTHER {line}"))
        ));
        assert!(v4.contains(&"-A SIGNET_OTHER -m owner --uid-owner 1337 -j RETURN".to_owned()));
    }

    #[test]
    fn jump_must_stand_first() {
        let first = "-A OUTPUT -j SIGNET_OUTPUT\n-A PREROUTING -j SIGNET_PREROUTING\n-A OUTPUT -j DOCKER\n";
        let second = "-A OUTPUT -j DOCKER\n-A OUTPUT -j SIGNET_OUTPUT\n-A PREROUTING -j SIGNET_PREROUTING\n";
        let none: [String; 0] = [];
        assert_eq!(missing_jumps("nat", first), none);
        assert_eq!(missing_jumps("nat", second), ["the first rule of OUTPUT does not jump to SIGNET_OUTPUT"]);
    }

    #[test]
    fn removal_leaves_no_chain_and_no_jump() {
        let text = removal("filter", "-A OUTPUT -j SIGNET_OTHER\n");
        assert_eq!(
            text,
            "*filter\n:SIGNET_OTHER - [0:0]\n-D OUTPUT -j SIGNET_OTHER\n-X SIGNET_OTHER\nCOMMIT\n"
        );
    }

    /// `unshare --map-root-user --net cargo test -p signet-proxy --features real-peers --lib real_iptables`
    #[cfg(feature = "real-peers")]
    #[test]
    fn real_iptables_prints_what_it_was_given() {
        let egress = ["10.0.0.0/8:123", "fd00::/8", "0.0.0.0/0:5"].map(|text| text.parse().unwrap()).to_vec();
        let refusing = Rules {
            other: Other::Refuse { egress },
            exempt: Exempt::Uid(0),
            excluded_outbound_networks: vec![
                "10.1.0.0/16".parse().unwrap(),
                "2001:db8::/32".parse().unwrap(),
            ],
            ..Rules::default()
        };
        for rules in [Rules::default(), refusing.clone(), refusing, Rules::default()] {
            install(&rules).unwrap();
            assert_eq!(differences(&rules).unwrap(), Vec::<String>::new());
        }
        remove().unwrap();
        remove().unwrap();
        assert!(!differences(&Rules::default()).unwrap().is_empty());
    }
}
