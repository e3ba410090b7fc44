//! What the proxy was told on its command line and in its environment.
//!
//! [`Arguments`] is what was typed, [`Config`] what it means: valid by construction, nothing is
//! checked again later. A wrong setting ends the process with [`EXIT_CONFIG`] before anything is
//! bound.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use clap::builder::ValueParser;
use nix::unistd::Uid;
use signet_tamper::{SettingsError, TamperArguments};
use thiserror::Error;

use crate::capture::{Exempt, MARK, Way};
use crate::host::{HostConfig, HostError};
use crate::local::config::{LocalArguments, LocalConfig};
use crate::probes::{Probes, ProbesError};
use crate::unix_socket;
use crate::workload_api::config::{WorkloadApiArguments, WorkloadApiConfig};

/// Exit code for a configuration that cannot be used (`EX_USAGE` in sysexits.h).
pub const EXIT_CONFIG: u8 = 64;

/// The most worker threads; more than any edge or cloud node gives to a sidecar.
const WORKERS_MAX: usize = 64;

/// The longest drain; Kubernetes and Compose kill long before.
const DRAIN_MAX: Duration = Duration::from_secs(3600);

/// The sidecar's settings. Every flag can be given as an environment variable.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "signet-proxy",
    version,
    about = "The Signet sidecar: captures a container's TCP, authenticates it with mutual TLS and signs every message",
    after_help = "Example:\n  signet-proxy run --control-plane 10.0.0.2:15012 --token-file /run/secrets/token --state-dir /var/lib/signet"
)]
pub struct Arguments {
    /// Name or address of the control plane's gRPC port.
    #[arg(long, env = "SIGNET_CONTROL_PLANE", value_name = "HOST:PORT")]
    pub control_plane: HostPort,
    /// Join token from `signet token create`; needed once, until a state directory holds an identity.
    #[arg(long, env = "SIGNET_TOKEN", hide_env_values = true, conflicts_with = "token_file")]
    pub token: Option<String>,
    /// File that holds the join token.
    #[arg(long, env = "SIGNET_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// File that holds what an attestor of the control plane checks in place of a token, such as a service-account token
    /// of Kubernetes; read anew for each enrolment.
    #[arg(
        long, env = "SIGNET_ATTESTATION_FILE", value_name = "FILE", conflicts_with_all = ["token", "token_file"],
        requires = "roots_file"
    )]
    pub attestation_file: Option<PathBuf>,
    /// Which attestor checks it.
    #[arg(long, env = "SIGNET_ATTESTOR", default_value = "kubernetes", value_name = "NAME")]
    pub attestor: String,
    /// The mesh's roots in PEM form, with --attestation-file, --spiffe-endpoint-socket and --tpm: the evidence is sent to
    /// nobody but a control plane under one of them.
    #[arg(long, env = "SIGNET_ROOTS_FILE", value_name = "FILE")]
    pub roots_file: Option<PathBuf>,
    /// Unix socket of `signet attest unix`, which gives a join token to a process that it knows; asked for each enrolment.
    #[arg(
        long, env = "SIGNET_TOKEN_SOCKET", value_name = "PATH",
        conflicts_with_all = ["token", "token_file", "attestation_file"]
    )]
    pub token_socket: Option<PathBuf>,
    /// Unix socket of a SPIFFE Workload API, such as SPIRE's agent: its X.509-SVID stands for a token, where the control plane
    /// has rules for it. Needs --roots-file.
    #[arg(
        long, env = "SIGNET_SPIFFE_ENDPOINT_SOCKET", value_name = "unix:PATH",
        conflicts_with_all = ["token", "token_file", "attestation_file", "token_socket"], requires = "roots_file"
    )]
    pub spiffe_endpoint_socket: Option<UnixSocket>,
    /// TPM 2.0 that makes the key of the certificate for channels and keeps it: a device, or unix: and the path of a socket
    /// that speaks as one. With --roots-file and none of the above, the TPM stands for a token too, where the control plane has
    /// rules for it.
    #[arg(long, env = "SIGNET_TPM", value_name = "DEVICE")]
    pub tpm: Option<signet_tpm::Place>,
    /// Directory for keys and the last good policy, so that a restart needs no control plane.
    #[arg(long, env = "SIGNET_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Port that outbound connections are redirected to.
    #[arg(long, env = "SIGNET_OUTBOUND_PORT", default_value_t = 15001, value_parser = port())]
    pub outbound_port: u16,
    /// Port that inbound connections are redirected to.
    #[arg(long, env = "SIGNET_INBOUND_PORT", default_value_t = 15006, value_parser = port())]
    pub inbound_port: u16,
    /// Address of /live, /ready and /metrics.
    #[arg(long, env = "SIGNET_ADMIN_ADDR", default_value = "0.0.0.0:15020", value_name = "IP:PORT")]
    pub admin_addr: SocketAddr,
    /// Unix socket for dumps; only this user and root may connect.
    #[arg(long, env = "SIGNET_ADMIN_SOCKET", value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// Data-plane threads.
    #[arg(long, env = "SIGNET_WORKERS", default_value_t = 1)]
    pub workers: usize,
    /// How the capture rules tell the proxy's own connections.
    #[arg(long, env = "SIGNET_EXEMPT", default_value = "mark", value_parser = ["mark", "uid"])]
    pub exempt: String,
    /// Who installs the capture rules: this process, by netlink where the kernel can (`install`) or by iptables
    /// alone (`iptables`), or somebody else before it (`none`).
    #[arg(
        long, env = "SIGNET_CAPTURE", default_value = "install", value_parser = ["install", "iptables", "none"]
    )]
    pub capture: String,
    /// Inbound ports that are not captured, besides the proxy's own.
    #[arg(long, env = "SIGNET_EXCLUDE_INBOUND", value_delimiter = ',', value_name = "PORT,…")]
    pub exclude_inbound: Vec<u16>,
    /// How long open connections may finish after SIGTERM.
    #[arg(long, env = "SIGNET_DRAIN_SECONDS", default_value_t = 30)]
    pub drain_seconds: u64,
    /// The app's own probes, done for the kubelet at /probe/CONTAINER/KIND of the admin address; JSON that `signet
    /// inject kubernetes` writes.
    #[arg(long, env = "SIGNET_PROBES", value_name = "JSON")]
    pub probes: Option<String>,
    /// Where the application has messages signed and verified.
    #[command(flatten)]
    pub local: LocalArguments,
    /// Where the application finds SPIFFE's Workload API.
    #[command(flatten)]
    pub workload_api: WorkloadApiArguments,
    /// What tells that somebody tampers with the device.
    #[command(flatten)]
    pub tamper: TamperArguments,
    /// Where spans go (OTLP over gRPC); nothing is exported without it.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// File with a number of seconds that this process takes its machine's clock to be off by: for drills.
    #[arg(long, env = "SIGNET_CLOCK_DRILL_FILE", value_name = "FILE")]
    pub clock_drill_file: Option<PathBuf>,
    /// Log lines as JSON.
    #[arg(long, env = "SIGNET_LOG_JSON")]
    pub log_json: bool,
}

fn port() -> ValueParser {
    clap::value_parser!(u16).range(1..).into()
}

/// Valid settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name or address of the control plane's gRPC port.
    pub control_plane: HostPort,
    /// Where the join token is, if one was given.
    pub token: Option<TokenSource>,
    /// The TPM that makes and keeps the key of channels, if one does.
    pub tpm: Option<signet_tpm::Place>,
    /// Where keys and the last good policy are kept.
    pub state_dir: Option<PathBuf>,
    /// File that says how far to move the machine's clock, for drills.
    pub clock_drill: Option<PathBuf>,
    /// Port that outbound connections are redirected to.
    pub outbound_port: u16,
    /// Port that inbound connections are redirected to.
    pub inbound_port: u16,
    /// Address of health and metrics.
    pub admin_addr: SocketAddr,
    /// Unix socket for dumps.
    pub admin_socket: Option<PathBuf>,
    /// Number of data-plane threads, at least one.
    pub workers: usize,
    /// How the capture rules know our own connections.
    pub exempt: Exempt,
    /// Which way this process installs the capture rules; `None` where somebody else does.
    pub capture: Option<Way>,
    /// Inbound ports that are never captured.
    pub exclude_inbound: Vec<u16>,
    /// How long a drain may take.
    pub drain: Duration,
    /// The app's own probes, done for the kubelet.
    pub probes: Arc<Probes>,
    /// Where the application has messages signed and verified.
    pub local: LocalConfig,
    /// Where the application finds SPIFFE's Workload API, if it is offered.
    pub workload_api: Option<WorkloadApiConfig>,
    /// What tells that somebody tampers with the device.
    pub tamper: signet_tamper::Settings,
    /// What is captured where others use the network too; `None` in a network of the app's own.
    pub host: Option<HostConfig>,
}

/// Hosts, each by name or address, and their ports: replicas of one service. Names are looked up at every connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostPort {
    /// At least one.
    places: Vec<(String, u16)>,
}

/// Text that is no host and port.
#[derive(Clone, Copy, Debug, Error, Eq, PartialEq)]
#[error(
    "use HOST:PORT, for example control-plane:15012, 10.0.0.2:15012 or [fd00::2]:15012; several with commas between"
)]
pub struct HostPortError;

/// Addresses tried per name: both families of a few replicas.
const ADDRESSES_MAX: usize = 8;
/// Hosts that are given: replicas of a control plane.
const PLACES_MAX: usize = 8;
/// The longest name in DNS.
const HOST_MAX: usize = 253;

impl HostPort {
    /// The address of the first, where it is given as one.
    pub fn address(&self) -> Option<SocketAddr> {
        let (host, port) = self.places.first()?;
        Some(SocketAddr::new(host.parse().ok()?, *port))
    }

    /// Their addresses now, at least one. What cannot be resolved is left out while another can.
    ///
    /// # Errors
    /// When none can be resolved.
    pub async fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        let mut found = Vec::new();
        let mut failed = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
        for (host, port) in &self.places {
            match tokio::net::lookup_host((host.as_str(), *port)).await {
                Ok(addresses) => found.extend(addresses.take(ADDRESSES_MAX)),
                Err(error) => failed = error,
            }
        }
        if found.is_empty() { Err(failed) } else { Ok(found) }
    }
}

/// One host and its port.
fn place(text: &str) -> Result<(String, u16), HostPortError> {
    let (host, port) = text.rsplit_once(':').ok_or(HostPortError)?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or(HostPortError)?;
    let host = match host.strip_prefix('[') {
        Some(rest) => {
            let v6 = rest.strip_suffix(']').ok_or(HostPortError)?;
            v6.parse::<std::net::Ipv6Addr>().map_err(|_| HostPortError)?;
            v6
        }
        None => host,
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_v6 = host.contains(':') && text.starts_with('[');
    if host.is_empty() || host.len() > HOST_MAX || !(is_v6 || host.chars().all(is_name)) {
        return Err(HostPortError);
    }
    Ok((host.to_owned(), port))
}

impl std::str::FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        let places: Vec<_> = text.split(',').map(place).collect::<Result<_, _>>()?;
        if places.len() > PLACES_MAX { Err(HostPortError) } else { Ok(Self { places }) }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { places: vec![(address.ip().to_string(), address.port())] }
    }
}

/// Where the join token comes from, or what stands for it. Its text is a secret and is not part of the configuration's
/// `Debug` form.
#[derive(Clone)]
pub enum TokenSource {
    /// No token: an attestor of the control plane checks evidence.
    Attested {
        /// Its name.
        attestor: String,
        /// The file with the evidence, read when needed.
        evidence: PathBuf,
        /// The file with the mesh's roots, PEM.
        roots: PathBuf,
    },
    /// A file, read when needed.
    File(PathBuf),
    /// The Unix socket of an attestor of this host, which gives a token.
    Socket(PathBuf),
    /// No token: an SVID of another trust domain is the evidence.
    Svid {
        /// The Unix socket of a SPIFFE Workload API.
        socket: PathBuf,
        /// The file with the mesh's roots, PEM.
        roots: PathBuf,
    },
    /// The token itself.
    Text(String),
    /// No token: the TPM of this device proves which device it is.
    Tpm {
        /// The file with the mesh's roots, PEM.
        roots: PathBuf,
    },
}

/// The path of a Unix socket, `unix:` or `unix://` before it or not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UnixSocket(pub PathBuf);

/// Text that is no Unix socket.
#[derive(Clone, Copy, Debug, Error, Eq, PartialEq)]
#[error("use the absolute path of a Unix socket, such as unix:///run/spire/agent.sock")]
pub struct UnixSocketError;

impl std::str::FromStr for UnixSocket {
    type Err = UnixSocketError;

    fn from_str(text: &str) -> Result<Self, UnixSocketError> {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.starts_with('/') { Ok(Self(path.into())) } else { Err(UnixSocketError) }
    }
}

impl std::fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Attested { attestor, evidence, .. } => {
                f.debug_tuple("Attested").field(attestor).field(evidence).finish()
            }
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Socket(path) => f.debug_tuple("Socket").field(path).finish(),
            Self::Svid { socket, .. } => f.debug_tuple("Svid").field(socket).finish(),
            Self::Text(_) => f.write_str("Text(redacted)"),
            Self::Tpm { .. } => f.write_str("Tpm"),
        }
    }
}

/// A setting that cannot be used.
#[derive(Debug, Error, Eq, PartialEq)]
pub enum ConfigError {
    /// Not SPIFFE IDs, nor the word `any` alone.
    #[error("--aclib-audience takes SPIFFE IDs, at most 64 and each once, or the word any alone")]
    AclibAudience,
    /// An address that others can reach.
    #[error(
        "--aclib-listen {0} can be reached from outside; use a loopback address, for example 127.0.0.1:46080"
    )]
    AclibNotLoopback(SocketAddr),
    /// The drain is longer than an hour.
    #[error("--drain-seconds {0} is too long; at most {max} is allowed", max = DRAIN_MAX.as_secs())]
    Drain(u64),
    /// Exempting root would let everything that runs as root out of the mesh.
    #[error(
        "--exempt uid exempts every program of this user, and this user is root; run the proxy as a user of its own (1337)"
    )]
    ExemptRoot,
    /// Not 1 to 1,048,576 bytes.
    #[error("--local-payload-bytes {0} is out of range; use 1 to 1048576")]
    LocalPayload(usize),
    /// Settings that no guard can have.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Neither a token nor a place where an earlier enrolment is kept.
    #[error(
        "no identity can be had: give --token-file (or --token), --token-socket, --attestation-file, --spiffe-endpoint-socket or --tpm \
         with --roots-file, or --state-dir of an earlier enrolment"
    )]
    NoIdentity,
    /// A number that many users have.
    #[error(
        "{flag} {uid} names every user whom this user namespace does not map; run the application as a user that it maps"
    )]
    NobodysUid {
        /// Where it was given.
        flag: &'static str,
        /// The number.
        uid: u32,
    },
    /// Two of the proxy's own ports are the same.
    #[error("port {0} is used twice; outbound, inbound and admin ports must differ")]
    PortTwice(u16),
    /// Probes that cannot be done.
    #[error("--probes: {0}; fix: have `signet inject kubernetes` write them")]
    Probes(#[from] ProbesError),
    /// Nothing that can tell of tampering.
    #[error(transparent)]
    Tamper(#[from] SettingsError),
    /// Not 1 to 64 workers.
    #[error("--workers {0} is out of range; use 1 to {WORKERS_MAX}")]
    Workers(usize),
}

impl TryFrom<Arguments> for Config {
    type Error = ConfigError;

    fn try_from(raw: Arguments) -> Result<Self, ConfigError> {
        if !(1..=WORKERS_MAX).contains(&raw.workers) {
            return Err(ConfigError::Workers(raw.workers));
        }
        if raw.outbound_port == raw.inbound_port || raw.outbound_port == raw.admin_addr.port() {
            return Err(ConfigError::PortTwice(raw.outbound_port));
        }
        if raw.inbound_port == raw.admin_addr.port() {
            return Err(ConfigError::PortTwice(raw.inbound_port));
        }
        let drain = Duration::from_secs(raw.drain_seconds);
        if drain > DRAIN_MAX {
            return Err(ConfigError::Drain(raw.drain_seconds));
        }
        if raw.exempt == "uid" && Uid::current().is_root() {
            return Err(ConfigError::ExemptRoot);
        }
        if let Some(uid) = unix_socket::nobodys_uid() {
            let named = [
                ("--local-uid", &raw.local.local_uid),
                ("--workload-api-uid", &raw.workload_api.workload_api_uid),
            ];
            if let Some((flag, _)) = named.into_iter().find(|(_, uids)| uids.contains(&uid)) {
                return Err(ConfigError::NobodysUid { flag, uid });
            }
        }
        // At most one of them is there.
        let token = raw.token.map(TokenSource::Text);
        let token = token.or_else(|| raw.token_file.map(TokenSource::File));
        let token = token.or_else(|| raw.token_socket.map(TokenSource::Socket));
        let attested = |(evidence, roots)| TokenSource::Attested { attestor: raw.attestor, evidence, roots };
        let token = token.or_else(|| raw.attestation_file.zip(raw.roots_file.clone()).map(attested));
        let svid = |(UnixSocket(socket), roots)| TokenSource::Svid { socket, roots };
        let token = token.or_else(|| raw.spiffe_endpoint_socket.zip(raw.roots_file.clone()).map(svid));
        let tpm = |(_, roots)| TokenSource::Tpm { roots };
        let token = token.or_else(|| raw.tpm.as_ref().zip(raw.roots_file).map(tpm));
        if token.is_none() && raw.state_dir.is_none() {
            return Err(ConfigError::NoIdentity);
        }
        Ok(Self {
            control_plane: raw.control_plane,
            token,
            tpm: raw.tpm,
            state_dir: raw.state_dir,
            clock_drill: raw.clock_drill_file,
            outbound_port: raw.outbound_port,
            inbound_port: raw.inbound_port,
            admin_addr: raw.admin_addr,
            admin_socket: raw.admin_socket,
            workers: raw.workers,
            exempt: if raw.exempt == "uid" {
                Exempt::Uid(Uid::current().as_raw())
            } else {
                Exempt::Mark(MARK)
            },
            capture: match raw.capture.as_str() {
                "install" => Some(Way::Any),
                "iptables" => Some(Way::IpTables),
                _ => None,
            },
            exclude_inbound: raw.exclude_inbound,
            drain,
            probes: Arc::new(raw.probes.as_deref().map(str::parse).transpose()?.unwrap_or_default()),
            local: raw.local.try_into()?,
            workload_api: raw.workload_api.read(),
            tamper: raw.tamper.try_into()?,
            host: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Config, ConfigError> {
        let base = ["signet-proxy", "--control-plane", "10.0.0.1:15012"];
        Config::try_from(Arguments::try_parse_from(base.iter().chain(arguments)).unwrap())
    }

    #[test]
    fn a_proxy_without_token_or_state_is_refused() {
        assert_eq!(parse(&[]).unwrap_err(), ConfigError::NoIdentity);
        assert!(parse(&["--state-dir", "/var/lib/signet"]).is_ok());
    }

    #[test]
    fn evidence_stands_for_a_token_and_comes_with_roots() {
        let config = parse(&["--attestation-file", "/t", "--roots-file", "/r"]).unwrap();
        let Some(TokenSource::Attested { attestor, evidence, roots }) = config.token else {
            panic!("a token")
        };
        assert_eq!((attestor.as_str(), evidence, roots), ("kubernetes", "/t".into(), "/r".into()));
        let arguments = ["signet-proxy", "--control-plane", "10.0.0.1:15012", "--attestation-file", "/t"];
        assert!(Arguments::try_parse_from(arguments).is_err());
        assert!(
            Arguments::try_parse_from([&arguments[..], &["--roots-file", "/r", "--token", "t"]].concat())
                .is_err()
        );
    }

    #[test]
    fn a_socket_stands_for_a_token_in_two_ways() {
        let token = |arguments: &[&str]| parse(arguments).unwrap().token.unwrap();
        assert!(
            matches!(token(&["--token-socket", "/run/a"]), TokenSource::Socket(path) if path == *"/run/a")
        );
        for socket in ["unix:///run/s", "unix:/run/s", "/run/s"] {
            let flags = ["--spiffe-endpoint-socket", socket, "--roots-file", "/r"];
            let TokenSource::Svid { socket, roots } = token(&flags) else { panic!("no SVID") };
            assert_eq!((socket, roots), ("/run/s".into(), "/r".into()));
        }
        let base = ["signet-proxy", "--control-plane", "10.0.0.1:15012"];
        for wrong in [
            &["--spiffe-endpoint-socket", "unix:/run/s"][..],
            &["--spiffe-endpoint-socket", "tcp://127.0.0.1:1", "--roots-file", "/r"],
            &["--spiffe-endpoint-socket", "/run/s", "--roots-file", "/r", "--token", "t"],
            &["--token-socket", "/run/a", "--token", "t"],
        ] {
            assert!(Arguments::try_parse_from(base.iter().chain(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn equal_ports_are_refused() {
        assert_eq!(
            parse(&["--token", "t", "--inbound-port", "15001"]).unwrap_err(),
            ConfigError::PortTwice(15001)
        );
        assert_eq!(
            parse(&["--token", "t", "--inbound-port", "15020"]).unwrap_err(),
            ConfigError::PortTwice(15020)
        );
    }

    #[test]
    fn worker_count_and_drain_have_bounds() {
        assert_eq!(parse(&["--token", "t", "--workers", "0"]).unwrap_err(), ConfigError::Workers(0));
        assert_eq!(
            parse(&["--token", "t", "--drain-seconds", "3601"]).unwrap_err(),
            ConfigError::Drain(3601)
        );
    }

    #[test]
    fn capture_is_ours_by_either_way_or_somebody_elses() {
        let capture = |value: &str| parse(&["--token", "t", "--capture", value]).unwrap().capture;
        assert_eq!(parse(&["--token", "t"]).unwrap().capture, Some(Way::Any));
        assert_eq!(capture("install"), Some(Way::Any));
        assert_eq!(capture("iptables"), Some(Way::IpTables));
        assert_eq!(capture("none"), None);
    }

    #[test]
    fn the_control_plane_is_a_name_or_an_address() {
        for good in [
            "control-plane:15012",
            "10.0.0.2:15012",
            "[fd00::2]:15012",
            "cp.site-a.example.:1",
            "one:15012,10.0.0.2:15012,[fd00::2]:1",
        ] {
            assert!(good.parse::<HostPort>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "control-plane",
            ":15012",
            "fd00::2:15012",
            "[fd00::2:15012",
            "a b:1",
            "a:0",
            "a:70000",
            "http://a:1",
            "a:1,",
            "a:1,,b:1",
            "a:1, b:1",
            &["a:1"; PLACES_MAX + 1].join(","),
        ] {
            assert_eq!(bad.parse::<HostPort>(), Err(HostPortError), "{bad}");
        }
        assert_eq!(
            "[fd00::2]:1".parse::<HostPort>().unwrap().address(),
            Some("[fd00::2]:1".parse().unwrap())
        );
    }

    #[test]
    fn the_workload_api_is_offered_to_users_that_are_named() {
        assert!(parse(&["--token", "t"]).unwrap().workload_api.is_none());
        let flags = ["--token", "t", "--workload-api-socket", "/run/w", "--workload-api-uid", "1000,1001"];
        let offered = parse(&flags).unwrap().workload_api.unwrap();
        assert_eq!((offered.socket, offered.uids, offered.gid), ("/run/w".into(), vec![1000, 1001], None));
        let base = ["signet-proxy", "--control-plane", "10.0.0.1:15012"];
        assert!(Arguments::try_parse_from(base.iter().chain(&flags[..4])).is_err(), "nobody is named");
    }

    #[test]
    fn the_token_is_not_in_the_debug_form() {
        let config = parse(&["--token", "id.secret.pin"]).unwrap();
        assert!(!format!("{config:?}").contains("secret"));
    }
}
