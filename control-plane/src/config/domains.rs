//! Which trust domains a process serves, and what each of them has for itself.

use std::net::SocketAddr;
use std::path::PathBuf;

use signet_identity::TrustDomain;

use super::{Arguments, ConfigError};

/// Most trust domains of one process: a platform and its applications. Each has a store, sockets and keys in memory.
const DOMAINS_MAX: usize = 32;

/// A trust domain and what is its own.
pub(super) struct Domain {
    pub(super) trust_domain: TrustDomain,
    pub(super) state_dir: PathBuf,
    pub(super) bootstrap_dir: Option<PathBuf>,
    pub(super) listen: SocketAddr,
    pub(super) admin_listen: SocketAddr,
}

/// One alone has the directories as they are given. Several have each a directory of its name in them, and an address of its
/// own in each list: an application is let in at its own port, and none of it leads to another's.
pub(super) fn read(arguments: &Arguments) -> Result<Vec<Domain>, ConfigError> {
    let names = &arguments.trust_domain;
    if names.len() > DOMAINS_MAX {
        return Err(wrong("SIGNET_TRUST_DOMAIN", format!("more than {DOMAINS_MAX} trust domains")));
    }
    let several = names.len() > 1;
    if several {
        refuse_for_several(arguments)?;
    }
    let mut domains: Vec<Domain> = Vec::with_capacity(names.len());
    let listen = addresses(&arguments.listen, names.len(), "SIGNET_LISTEN")?;
    let admin_listen = addresses(&arguments.admin_listen, names.len(), "SIGNET_ADMIN_LISTEN")?;
    for ((name, &listen), &admin_listen) in names.iter().zip(listen).zip(admin_listen) {
        let trust_domain =
            TrustDomain::parse(name).map_err(|error| wrong("SIGNET_TRUST_DOMAIN", error.to_string()))?;
        if domains.iter().any(|known| known.trust_domain == trust_domain) {
            return Err(wrong("SIGNET_TRUST_DOMAIN", format!("{name} is there twice")));
        }
        // Such a name would be another directory than one of its own.
        if several && name.starts_with('.') {
            return Err(wrong("SIGNET_TRUST_DOMAIN", format!("{name} cannot be the name of a directory")));
        }
        let within = |directory: &PathBuf| if several { directory.join(name) } else { directory.clone() };
        domains.push(Domain {
            state_dir: within(&arguments.state_dir),
            bootstrap_dir: arguments.bootstrap_dir.as_ref().map(within),
            trust_domain,
            listen,
            admin_listen,
        });
    }
    Ok(domains)
}

fn refuse_for_several(arguments: &Arguments) -> Result<(), ConfigError> {
    if arguments.admin_socket.is_some() {
        let reason = "each of several trust domains has its own, STATE_DIR/DOMAIN/admin.sock: leave it out";
        return Err(wrong("SIGNET_ADMIN_SOCKET", reason.to_owned()));
    }
    if arguments.kubernetes.is_set() {
        let reason = "a cluster is one trust domain: start a control plane for it alone";
        return Err(wrong("SIGNET_KUBERNETES", reason.to_owned()));
    }
    if arguments.attest_spiffe.is_some() {
        let reason = "its rules are of one trust domain: start a control plane for it alone";
        return Err(wrong("SIGNET_ATTEST_SPIFFE", reason.to_owned()));
    }
    if arguments.attest_tpm.is_some() {
        let reason = "its rules are of one trust domain: start a control plane for it alone";
        return Err(wrong("SIGNET_ATTEST_TPM", reason.to_owned()));
    }
    if arguments.store.is_shared() {
        let reason =
            "several trust domains are kept in the state directory: use redb, or one process for each";
        return Err(wrong("SIGNET_STORE", reason.to_owned()));
    }
    Ok(())
}

fn addresses<'a>(
    given: &'a [SocketAddr],
    domains: usize,
    name: &'static str,
) -> Result<&'a [SocketAddr], ConfigError> {
    if given.len() == domains {
        return Ok(given);
    }
    let reason = format!(
        "{} addresses for {domains} trust domains: give one for each, in the same order, separated by commas",
        given.len()
    );
    Err(wrong(name, reason))
}

fn wrong(name: &'static str, reason: String) -> ConfigError {
    ConfigError::Setting { name, reason }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::config::Config;

    fn parse(arguments: &[&str]) -> Result<Vec<Config>, ConfigError> {
        let program = ["signet-control-plane", "--state-dir", "/state"];
        Config::parse_from(program.iter().chain(arguments).map(OsString::from))
    }

    const TWO: [&str; 6] = [
        "--trust-domain",
        "a.example,b.example",
        "--listen",
        "127.0.0.1:1,127.0.0.1:2",
        "--admin-listen",
        "127.0.0.1:3,127.0.0.1:4",
    ];

    #[test]
    fn each_of_several_trust_domains_has_directories_sockets_and_addresses_of_its_own() {
        let configs = parse(&[&TWO[..], &["--bootstrap-dir", "/boot"]].concat()).unwrap();
        let shown: Vec<_> = configs
            .iter()
            .map(|config| {
                let paths = [&config.state_dir, &config.admin_socket, config.bootstrap_dir.as_ref().unwrap()];
                (
                    paths.map(|path| path.display().to_string()),
                    config.listen.port(),
                    config.admin_listen.port(),
                )
            })
            .collect();
        let paths = |domain: &str| {
            [format!("/state/{domain}"), format!("/state/{domain}/admin.sock"), format!("/boot/{domain}")]
        };
        assert_eq!(shown, [(paths("a.example"), 1, 3), (paths("b.example"), 2, 4)]);
    }

    #[test]
    fn what_several_trust_domains_cannot_share_is_refused_by_name() {
        for (more, name) in [
            (&["--admin-socket", "/run/s"][..], "SIGNET_ADMIN_SOCKET"),
            (&["--kubernetes", "attest", "--kubernetes-api", "a:1"], "SIGNET_KUBERNETES"),
            (&["--store", "etcd://127.0.0.1"], "SIGNET_STORE"),
            (&["--listen", "127.0.0.1:5"], "SIGNET_LISTEN"),
            (&["--admin-listen", "127.0.0.1:5"], "SIGNET_ADMIN_LISTEN"),
            (&["--trust-domain", "a.example"], "SIGNET_TRUST_DOMAIN"),
            (&["--trust-domain", ".."], "SIGNET_TRUST_DOMAIN"),
        ] {
            let third = if name == "SIGNET_TRUST_DOMAIN" {
                &["--listen", "127.0.0.1:6", "--admin-listen", "127.0.0.1:7"][..]
            } else {
                &[]
            };
            let error = parse(&[&TWO[..], more, third].concat()).unwrap_err().to_string();
            assert!(error.contains(name), "{more:?}: {error}");
        }
        let error = parse(&["--trust-domain", "a.example,b.example"]).unwrap_err().to_string();
        assert!(error.contains("SIGNET_LISTEN: 1 addresses for 2 trust domains"), "{error}");
    }
}
