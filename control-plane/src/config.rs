//! Configuration: flags and `SIGNET_*` variables in, a valid [`Config`] or one clear error out.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;
use signet_identity::{AreaGrant, TrustDomain};
use signet_tamper::TamperArguments;
use thiserror::Error;

mod domains;
mod kubernetes;

use self::domains::Domain;
pub(crate) use self::kubernetes::ApiServerArguments;
use self::kubernetes::KubernetesArguments;
pub use self::kubernetes::KubernetesConfig;
use crate::area;
use crate::location::{StoreArguments, StoreLocation};
use crate::pkcs11;
use crate::spiffe::Rules as SpiffeRules;
use crate::tpm::Rules as TpmRules;

/// The longest path a Unix socket address holds on Linux, without its terminating NUL.
const SOCKET_PATH_MAX: usize = 107;

/// The longest drain: nobody waits longer for a control plane whose proxies reconnect by themselves.
const DRAIN_MAX_SECONDS: u64 = 3600;

/// What was typed.
#[derive(Debug, Parser)]
#[command(
    name = "signet-control-plane",
    version,
    about = "The Signet control plane: authority, policy, directory, push",
    after_help = "Examples:\n  signet-control-plane --trust-domain mesh.example --state-dir /var/lib/signet\n  \
                  signet-control-plane --trust-domain platform.example,shop.example \\\n    \
                  --listen 0.0.0.0:15012,0.0.0.0:15112 --admin-listen 0.0.0.0:15014,0.0.0.0:15114\n  \
                  signet-control-plane ready    (is the one beside this ready: exit code 0 or 1)\n  \
                  signet-control-plane backup --output mesh.backup\n  \
                  signet-control-plane restore --from mesh.backup\n\n\
                  Exit codes: 0 drained, 64 bad configuration, 70 refused or failed."
)]
struct Arguments {
    /// Directory for keys and store; no other container mounts it
    #[arg(long, env = "SIGNET_STATE_DIR", default_value = "/var/lib/signet")]
    state_dir: PathBuf,

    /// Address for proxies (gRPC over TLS 1.3), one for each trust domain; port 0 takes a free one
    #[arg(
        long,
        env = "SIGNET_LISTEN",
        default_value = "0.0.0.0:15012",
        value_delimiter = ',',
        value_name = "IP:PORT"
    )]
    listen: Vec<SocketAddr>,

    /// Address for /live, /ready, /metrics, /roots.pem and /bundle.json, one for each trust domain
    #[arg(
        long,
        env = "SIGNET_ADMIN_LISTEN",
        default_value = "0.0.0.0:15014",
        value_delimiter = ',',
        value_name = "IP:PORT"
    )]
    admin_listen: Vec<SocketAddr>,

    /// Unix socket for operators; STATE_DIR/admin.sock when not set, STATE_DIR/DOMAIN/admin.sock of several trust domains
    #[arg(long, env = "SIGNET_ADMIN_SOCKET")]
    admin_socket: Option<PathBuf>,

    /// Directory with authority, tokens and manifests to start with, as `signet inject` writes it; of several trust domains
    /// each has a directory of its name in it
    #[arg(long, env = "SIGNET_BOOTSTRAP_DIR", value_name = "DIR")]
    bootstrap_dir: Option<PathBuf>,

    /// Trust domain of every identity issued here; several, separated by commas, have nothing in common
    #[arg(long, env = "SIGNET_TRUST_DOMAIN", value_delimiter = ',', required = true, value_name = "DOMAIN")]
    trust_domain: Vec<String>,

    /// Issuers made from now on may vouch for their trust domain alone, by their own certificates (X.509 name constraints);
    /// sidecars older than this version refuse their chains
    #[arg(long, env = "SIGNET_NAME_CONSTRAINTS")]
    name_constraints: bool,

    /// Where the keys of root and issuer are made and held: a PKCS#11 URI with module-path and pin-source; in STATE_DIR without
    #[arg(long, env = "SIGNET_AUTHORITY_KEY", value_name = "pkcs11:…")]
    authority_key: Option<String>,

    /// Runs as the area of this name under a parent: `signet area add` there says what it may do
    #[arg(long, env = "SIGNET_AREA", value_name = "NAME", requires = "parent")]
    area: Option<String>,

    /// Control port of the area's parent
    #[arg(long, env = "SIGNET_PARENT", value_name = "HOST:PORT", requires = "area")]
    parent: Option<String>,

    /// File with the token of `signet area add`, needed until the area has joined
    #[arg(long, env = "SIGNET_AREA_TOKEN_FILE", value_name = "FILE", requires = "area")]
    token_file: Option<PathBuf>,

    #[command(flatten)]
    store: StoreArguments,

    /// Seconds that open calls get to end after SIGTERM
    #[arg(long, env = "SIGNET_DRAIN_SECONDS", default_value_t = 5)]
    drain_seconds: u64,

    /// Believe the machine's clock at this start, however long after the last certificate it is
    #[arg(long, env = "SIGNET_CLOCK_IS_RIGHT")]
    clock_is_right: bool,

    /// File with a number of seconds that this process takes its machine's clock to be off by: for drills
    #[arg(long, env = "SIGNET_CLOCK_DRILL_FILE", value_name = "FILE")]
    clock_drill_file: Option<PathBuf>,

    #[command(flatten)]
    tamper: TamperArguments,

    /// Log filter, as of the `tracing` crates
    #[arg(long, env = "SIGNET_LOG", default_value = "info")]
    log: String,

    /// Log format: text or json
    #[arg(long, env = "SIGNET_LOG_FORMAT", default_value = "text")]
    log_format: String,

    /// Which SVIDs of other trust domains, such as SPIRE's, enrol as which Workload
    #[arg(long, env = "SIGNET_ATTEST_SPIFFE", value_name = "FILE")]
    attest_spiffe: Option<PathBuf>,

    /// Which devices, by their TPM, enrol as which Workload
    #[arg(long, env = "SIGNET_ATTEST_TPM", value_name = "FILE")]
    attest_tpm: Option<PathBuf>,

    #[command(flatten)]
    api_server: ApiServerArguments,

    #[command(flatten)]
    kubernetes: KubernetesArguments,
}

/// A configuration that can be started: that of one trust domain.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory for keys and store.
    pub state_dir: PathBuf,
    /// Address for proxies.
    pub listen: SocketAddr,
    /// Address for health and metrics.
    pub admin_listen: SocketAddr,
    /// Unix socket for operators.
    pub admin_socket: PathBuf,
    /// Directory with what to start with.
    pub bootstrap_dir: Option<PathBuf>,
    /// Trust domain of every identity issued here.
    pub trust_domain: TrustDomain,
    /// Whether issuers that are made are name-constrained.
    pub name_constraints: bool,
    /// Where the keys of root and issuer are held; in files of the state directory without.
    pub authority_key: Option<pkcs11::Place>,
    /// The parent under which this is an area, if it is one.
    pub area: Option<area::Settings>,
    /// Where the state is.
    pub store: StoreLocation,
    /// How long open calls get to end.
    pub drain: Duration,
    /// The machine's clock is believed at this start, however long after the last certificate it is.
    pub clock_is_right: bool,
    /// File that says how far to move the machine's clock, for drills.
    pub clock_drill: Option<PathBuf>,
    /// What tells that somebody tampers with this machine.
    pub tamper: signet_tamper::Settings,
    /// How and what to log.
    pub log: LogConfig,
    /// What to do in a cluster, if anything.
    pub kubernetes: Option<KubernetesConfig>,
    /// Which SVIDs of other trust domains enrol as which Workload.
    pub spiffe: Option<SpiffeRules>,
    /// Which devices, by their TPM, enrol as which Workload.
    pub tpm: Option<TpmRules>,
}

/// How and what to log.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// A `tracing` filter.
    pub filter: String,
    /// Whether each line is a JSON object.
    pub json: bool,
}

impl Config {
    /// Reads flags (the first argument is the program's name) and environment: a configuration for each trust domain that
    /// this process serves.
    ///
    /// # Errors
    /// [`ConfigError`]: [`ConfigError::Shown`] for `--help` and `--version`, everything else is a mistake to tell.
    pub fn parse_from(arguments: impl IntoIterator<Item = OsString>) -> Result<Vec<Self>, ConfigError> {
        Arguments::try_parse_from(arguments)?.read()
    }
}

impl Arguments {
    fn read(self) -> Result<Vec<Config>, ConfigError> {
        let domains = domains::read(&self)?;
        let shared = Shared::read(&self)?;
        domains.into_iter().map(|domain| self.of(domain, &shared)).collect()
    }

    fn of(&self, domain: Domain, shared: &Shared) -> Result<Config, ConfigError> {
        let Domain { trust_domain, state_dir, bootstrap_dir, listen, admin_listen } = domain;
        let admin_socket = self.admin_socket.clone().unwrap_or_else(|| state_dir.join("admin.sock"));
        if admin_socket.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(ConfigError::Setting {
                name: "SIGNET_ADMIN_SOCKET",
                reason: format!("{} is longer than {SOCKET_PATH_MAX} bytes", admin_socket.display()),
            });
        }
        let spiffe =
            self.attest_spiffe.as_ref().map(|path| SpiffeRules::load(path, &trust_domain)).transpose();
        let spiffe = spiffe.map_err(|error| ConfigError::Setting {
            name: "SIGNET_ATTEST_SPIFFE",
            reason: error.to_string(),
        })?;
        let tpm = self.attest_tpm.as_ref().map(|path| TpmRules::load(path)).transpose();
        let tpm = tpm
            .map_err(|error| ConfigError::Setting { name: "SIGNET_ATTEST_TPM", reason: error.to_string() })?;
        Ok(Config {
            spiffe,
            tpm,
            kubernetes: self.kubernetes.clone().read(trust_domain.as_str(), &self.api_server)?,
            state_dir,
            listen,
            admin_listen,
            admin_socket,
            bootstrap_dir,
            name_constraints: self.name_constraints,
            area: shared.area.clone(),
            store: self.store.clone().location(&trust_domain, &self.api_server)?,
            trust_domain,
            drain: shared.drain,
            clock_is_right: self.clock_is_right,
            clock_drill: self.clock_drill_file.clone(),
            log: shared.log.clone(),
            tamper: shared.tamper.clone(),
            authority_key: shared.authority_key.clone(),
        })
    }
}

/// What all trust domains of a process have in common.
struct Shared {
    drain: Duration,
    log: LogConfig,
    tamper: signet_tamper::Settings,
    authority_key: Option<pkcs11::Place>,
    area: Option<area::Settings>,
}

impl Shared {
    fn read(arguments: &Arguments) -> Result<Self, ConfigError> {
        if arguments.drain_seconds > DRAIN_MAX_SECONDS {
            return Err(ConfigError::Setting {
                name: "SIGNET_DRAIN_SECONDS",
                reason: format!("more than {DRAIN_MAX_SECONDS} seconds"),
            });
        }
        let json = match arguments.log_format.as_str() {
            "json" => true,
            "text" => false,
            other => {
                let reason = format!("{other:?} is neither text nor json");
                return Err(ConfigError::Setting { name: "SIGNET_LOG_FORMAT", reason });
            }
        };
        if let Err(error) = arguments.log.parse::<tracing_subscriber::EnvFilter>() {
            return Err(ConfigError::Setting { name: "SIGNET_LOG", reason: error.to_string() });
        }
        let tamper = signet_tamper::Settings::try_from(arguments.tamper.clone()).map_err(|error| {
            ConfigError::Setting { name: "SIGNET_TAMPER_COMMAND", reason: error.to_string() }
        })?;
        let authority_key = arguments.authority_key.as_deref().map(pkcs11::Place::parse).transpose();
        let authority_key = authority_key.map_err(|error| ConfigError::Setting {
            name: "SIGNET_AUTHORITY_KEY",
            reason: error.to_string(),
        })?;
        Ok(Self {
            tamper,
            authority_key,
            area: area(arguments)?,
            drain: Duration::from_secs(arguments.drain_seconds),
            log: LogConfig { filter: arguments.log.clone(), json },
        })
    }
}

/// An area has its keys and manifests from its parent: what makes others is refused by name.
fn area(arguments: &Arguments) -> Result<Option<area::Settings>, ConfigError> {
    let (Some(name), Some(parent)) = (&arguments.area, &arguments.parent) else { return Ok(None) };
    let wrong = |name, reason: String| Err(ConfigError::Setting { name, reason });
    if let Err(error) = AreaGrant::new(name, vec!["*/*/*".to_owned()]) {
        return wrong("SIGNET_AREA", error.to_string());
    }
    let is_address = parent
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    if !is_address {
        return wrong("SIGNET_PARENT", format!("{} is not HOST:PORT", parent.escape_debug()));
    }
    let reason = "an area has that from its parent: leave it out";
    for (name, is_given) in [
        ("SIGNET_TRUST_DOMAIN", arguments.trust_domain.len() > 1),
        ("SIGNET_BOOTSTRAP_DIR", arguments.bootstrap_dir.is_some()),
        ("SIGNET_NAME_CONSTRAINTS", arguments.name_constraints),
        ("SIGNET_AUTHORITY_KEY", arguments.authority_key.is_some()),
        ("SIGNET_KUBERNETES", arguments.kubernetes.is_set()),
        ("SIGNET_ATTEST_SPIFFE", arguments.attest_spiffe.is_some()),
        ("SIGNET_ATTEST_TPM", arguments.attest_tpm.is_some()),
        ("SIGNET_STORE", arguments.store.is_shared()),
    ] {
        if is_given {
            return wrong(name, reason.to_owned());
        }
    }
    Ok(Some(area::Settings {
        name: name.clone(),
        parent: parent.clone(),
        token_file: arguments.token_file.clone(),
    }))
}

/// Why there is no configuration to start with.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A flag or variable has a value that does not work.
    #[error("{name}: {reason}")]
    Setting {
        /// The variable's name.
        name: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// Help or version was asked for: the text to show.
    #[error("{0}")]
    Shown(String),
    /// The command line is not understood.
    #[error("{0}")]
    Usage(String),
}

impl From<clap::Error> for ConfigError {
    fn from(error: clap::Error) -> Self {
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Self::Shown(error.to_string()),
            _ => Self::Usage(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Config, ConfigError> {
        let program = ["signet-control-plane", "--trust-domain", "mesh.example"];
        let mut configs = Config::parse_from(program.iter().chain(arguments).map(OsString::from))?;
        assert_eq!(configs.len(), 1);
        Ok(configs.remove(0))
    }

    #[test]
    fn the_admin_socket_lies_in_the_state_directory_unless_it_is_set() {
        let config = parse(&["--state-dir", "/state"]).unwrap();
        assert_eq!(config.admin_socket, PathBuf::from("/state/admin.sock"));
        let config = parse(&["--state-dir", "/state", "--admin-socket", "/run/s"]).unwrap();
        assert_eq!(config.admin_socket, PathBuf::from("/run/s"));
    }

    #[test]
    fn mistakes_are_named() {
        for (arguments, name) in [
            (&["--listen", "nowhere"][..], "--listen"),
            (&["--unknown"], "--unknown"),
            (&["--log", "signet=loud"], "SIGNET_LOG"),
            (&["--log-format", "xml"], "SIGNET_LOG_FORMAT"),
            (&["--drain-seconds", "99999"], "SIGNET_DRAIN_SECONDS"),
            (&["--tamper-command", " "], "SIGNET_TAMPER_COMMAND"),
            (&["--admin-socket", &"/long".repeat(30)], "SIGNET_ADMIN_SOCKET"),
            (&["--kubernetes", "attest,nothing"], "--kubernetes"),
            (&["--kubernetes", "attest", "--kubernetes-api", "here"], "SIGNET_KUBERNETES_API"),
            (
                &["--kubernetes", "attest", "--kubernetes-api", "a:1", "--kubernetes-network", "A"],
                "SIGNET_KUBERNETES_NETWORK",
            ),
            (
                &[
                    "--kubernetes",
                    "webhook",
                    "--kubernetes-api",
                    "a:1",
                    "--kubernetes-credentials",
                    "/nowhere",
                ],
                "SIGNET_KUBERNETES_CREDENTIALS",
            ),
            (&["--attest-spiffe", "/nowhere"], "SIGNET_ATTEST_SPIFFE"),
            (&["--attest-tpm", "/nowhere"], "SIGNET_ATTEST_TPM"),
            (&["--area", "fog"], "--parent"),
            (&["--parent", "a:1"], "--area"),
            (&["--area", "Fog", "--parent", "a:1"], "SIGNET_AREA"),
            (&["--area", "fog", "--parent", "a"], "SIGNET_PARENT"),
            (&["--area", "fog", "--parent", "a:1", "--name-constraints"], "SIGNET_NAME_CONSTRAINTS"),
            (&["--area", "fog", "--parent", "a:1", "--bootstrap-dir", "/boot"], "SIGNET_BOOTSTRAP_DIR"),
            (&["--store", "etcd//a"], "SIGNET_STORE"),
            (&["--store", "kubernetes/A"], "SIGNET_STORE"),
            (&["--store", "kubernetes/a", "--kubernetes-api", "here"], "SIGNET_KUBERNETES_API"),
            (&["--store", "etcd://10.0.0.1"], "SIGNET_ETCD_CA"),
            (&["--store", "redb", "--etcd-ca", "ca.pem"], "SIGNET_ETCD_CA"),
            (&["--store", "etcd://127.0.0.1", "--etcd-key", "key.pem"], "SIGNET_ETCD_CA"),
        ] {
            let error = parse(arguments).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        let program = ["signet-control-plane", "--trust-domain", "Mesh Example"];
        let error = Config::parse_from(program.iter().map(OsString::from)).unwrap_err().to_string();
        assert!(error.contains("SIGNET_TRUST_DOMAIN"), "{error}");
    }

    #[test]
    fn help_is_not_a_mistake() {
        assert!(matches!(parse(&["--help"]), Err(ConfigError::Shown(_))));
    }
}
