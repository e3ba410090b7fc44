//! What can be found, how bad it is, and what to do about it.

use clap::ValueEnum;
use serde::{Serialize, Serializer};

/// Where each topic has a heading of its name.
pub(crate) const DOCS: &str = "docs/troubleshooting.md";

/// One thing that is looked at. Its name in kebab-case is the stable id of its findings.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Topic {
    CaptureRules,
    Cgroup,
    ContainerEngine,
    ControlPlaneReachable,
    ControlPlaneVersion,
    DockerCompose,
    ForeignRules,
    IssuerExpiry,
    KernelCapture,
    KernelIpv6,
    KernelMarks,
    KernelNamespaces,
    Kubernetes,
    LeakCanary,
    MachineClock,
    Permissions,
    PolicyRefused,
    PolicyStored,
    PolicyVersion,
    PortsFree,
    ProxyClock,
    ProxyConnected,
    ProxyEnrolled,
    ProxyRefusals,
    ProxyReport,
    ProxySuperseded,
    ProxyTampered,
    ProxyVersion,
    RootExpiry,
    SidecarMissing,
    SigningCertificate,
    TlsCertificate,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// It does not work, or does not protect: exit code 1.
    Error,
    /// As it should be.
    Ok,
    /// It was not looked at; the message says why.
    Skipped,
    /// It works and will not for long, or may be meant: exit code 1 with `--strict` alone.
    Warning,
}

/// What came of looking at one thing.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Finding {
    pub(crate) id: Topic,
    pub(crate) severity: Severity,
    /// What was seen, with the figure.
    pub(crate) message: String,
    /// What to type. None where nothing is to be done.
    pub(crate) hint: Option<String>,
    /// File and heading.
    pub(crate) docs: String,
}

impl Topic {
    /// The stable id.
    pub(crate) fn id(self) -> String {
        // No variant is skipped, so each has a name.
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// What to type when it is not as it should be.
    fn hint(self) -> &'static str {
        match self {
            Self::CaptureRules => {
                "look at the sidecar's log; `signet-proxy capture verify` in its namespace names the differences"
            }
            Self::Cgroup => {
                "mount cgroup v2 at /sys/fs/cgroup, or start the engine with its default settings"
            }
            Self::ContainerEngine => "start the engine, or run this as a user that may use its socket",
            Self::ControlPlaneReachable => {
                "run this where the socket is: `docker-compose run --rm signet check`, or `kubectl exec` into the control \
                 plane's pod, or name it with --control-plane unix:/PATH"
            }
            Self::ControlPlaneVersion => {
                "use the `signet` of the control plane's release, or upgrade the control plane"
            }
            Self::DockerCompose => "install Compose v2, or docker-compose 1.29",
            Self::ForeignRules => {
                "`nft list ruleset` shows them; take the other mesh off these containers before this one goes in"
            }
            Self::IssuerExpiry | Self::RootExpiry => {
                "plan its renewal now: no certificate is issued beyond it"
            }
            Self::KernelCapture => {
                "load nf_tables and nft_redir (`modprobe nf_tables nft_chain_nat nft_redir`), or install iptables"
            }
            Self::KernelIpv6 => {
                "nothing where no container has IPv6; else unset /proc/sys/net/ipv6/conf/all/disable_ipv6 on this machine"
            }
            Self::KernelMarks => "use --exempt uid for sidecars on this machine",
            Self::KernelNamespaces => {
                "run it again as root, or allow user namespaces; containers do not need them"
            }
            Self::Kubernetes => "use a cluster of Kubernetes 1.29 or later: the sidecar is a native one",
            Self::LeakCanary => {
                "treat what this sidecar's app sends as unprotected, and restart the sidecar; its log says where the canary went"
            }
            Self::MachineClock => "set the clock and keep it set: `timedatectl set-ntp true`, or chrony",
            Self::Permissions => "run this as root, or as a user that may use the engine's socket",
            Self::PolicyRefused => "correct what it names, and `signet apply` again; or `signet rollback`",
            Self::PolicyStored => "`signet apply -f mesh.yaml`; without a policy everything is refused",
            Self::PolicyVersion => "wait some seconds and check again; if it stays, restart that sidecar",
            Self::PortsFree => {
                "`ss -ltnp` shows whose it is; a program in a container of its own does not mind"
            }
            Self::ProxyClock => {
                "set the clock of that sidecar's machine and keep it set: `timedatectl set-ntp true`, or chrony"
            }
            Self::ProxyConnected => {
                "look at its log, and whether it reaches the control plane's port 15012; a workload that is gone for good goes \
                 with `signet delete Workload NAME`"
            }
            Self::ProxyEnrolled => "`signet token create WORKLOAD`, and start its sidecar with the token",
            Self::ProxyRefusals => {
                "`signet explain REQUEST_ID` with the id in such an answer, or the sidecar's log; the codes are in docs/policy.md"
            }
            Self::ProxyReport => {
                "look at its log; a sidecar that reports nothing for a minute hangs or has no processor time"
            }
            Self::ProxySuperseded => {
                "nothing, if its volume was lost; else `signet revoke --certificate` with its fingerprint"
            }
            Self::ProxyTampered => {
                "look at the device before it gets a new token; `signet revoke --list` shows what was revoked"
            }
            Self::ProxyVersion => {
                "upgrade control plane and sidecars to neighbouring releases, the control plane first"
            }
            Self::SidecarMissing => {
                "start its sidecar, inject the service, or take it out of the mesh: `signet delete Workload NAME`"
            }
            Self::SigningCertificate | Self::TlsCertificate => {
                "look at the sidecar's log for `renew`; one whose certificate has ended needs a new token"
            }
        }
    }
}

impl Serialize for Topic {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.id())
    }
}

impl Finding {
    pub(crate) fn ok(id: Topic, message: impl Into<String>) -> Self {
        Self::new(id, Severity::Ok, message)
    }

    pub(crate) fn warning(id: Topic, message: impl Into<String>) -> Self {
        Self::new(id, Severity::Warning, message)
    }

    pub(crate) fn error(id: Topic, message: impl Into<String>) -> Self {
        Self::new(id, Severity::Error, message)
    }

    pub(crate) fn skipped(id: Topic, message: impl Into<String>) -> Self {
        Self::new(id, Severity::Skipped, message)
    }

    /// [`Severity::Ok`] when it holds, else [`Severity::Error`].
    pub(crate) fn holds(id: Topic, holds: bool, message: impl Into<String>) -> Self {
        Self::new(id, if holds { Severity::Ok } else { Severity::Error }, message)
    }

    fn new(id: Topic, severity: Severity, message: impl Into<String>) -> Self {
        let to_do = matches!(severity, Severity::Error | Severity::Warning);
        Self {
            id,
            severity,
            message: message.into(),
            hint: to_do.then(|| id.hint().to_owned()),
            docs: format!("{DOCS}#{}", id.id()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::*;

    /// The anchors of a page, as GitHub makes them of its headings.
    fn anchors(page: &str) -> HashSet<String> {
        let heading = |line: &str| {
            let text = line.trim_start_matches('#').trim().to_lowercase();
            let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
        };
        let mut in_code = false;
        let headings = page.lines().filter(|line| {
            in_code ^= line.starts_with("```");
            !in_code && line.starts_with('#')
        });
        headings.map(heading).collect()
    }

    #[test]
    fn the_link_of_every_finding_leads_to_a_heading_of_the_docs() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for topic in Topic::value_variants() {
            let finding = Finding::error(*topic, "");
            let (file, anchor) = finding.docs.split_once('#').unwrap();
            let page = std::fs::read_to_string(root.join(file)).unwrap();
            assert!(anchors(&page).contains(anchor), "{file} has no heading {anchor}");
            assert!(finding.hint.is_some_and(|hint| !hint.is_empty()));
        }
    }

    #[test]
    fn headings_in_examples_are_no_anchors() {
        let found = anchors("# A `b` (c)\n```\n# d\n```\n## e-f\n");
        assert_eq!(found, HashSet::from(["a-b-c".to_owned(), "e-f".to_owned()]));
    }

    #[test]
    fn ids_are_in_kebab_case_and_only_trouble_has_a_hint() {
        let finding = Finding::ok(Topic::KernelIpv6, "fine");
        let value = serde_json::to_value(&finding).unwrap();
        assert_eq!((&value["id"], &value["severity"]), (&"kernel-ipv6".into(), &"ok".into()));
        assert_eq!((finding.hint, Finding::skipped(Topic::Cgroup, "").hint), (None, None));
    }
}
