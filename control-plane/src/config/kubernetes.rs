//! What is typed about a cluster.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use signet_inject::kubernetes::{Enrolment, Options, Sidecar, audience, is_name};

use super::ConfigError;

/// Where Kubernetes mounts what a pod needs for the API server.
const CREDENTIALS: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where the API server is, and what proves us to it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ApiServerArguments {
    /// The API server, HOST:PORT; without it what Kubernetes tells every pod
    #[arg(long, env = "SIGNET_KUBERNETES_API", value_name = "HOST:PORT")]
    kubernetes_api: Option<String>,

    /// Directory with token, ca.crt and namespace for the API server
    #[arg(long, env = "SIGNET_KUBERNETES_CREDENTIALS", default_value = CREDENTIALS, value_name = "DIR")]
    kubernetes_credentials: PathBuf,
}

/// The API server, and the namespace this control plane is in.
pub(crate) struct ApiServer {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) credentials: PathBuf,
    pub(crate) namespace: String,
}

impl ApiServerArguments {
    /// As far as it was not told, as Kubernetes tells every pod.
    pub(crate) fn read(&self) -> Result<ApiServer, ConfigError> {
        let wrong = |name, reason: String| ConfigError::Setting { name, reason };
        let api = match self.kubernetes_api.clone() {
            Some(api) => api,
            None => in_cluster().ok_or_else(|| {
                let reason =
                    "not set, and this is no pod of a cluster: KUBERNETES_SERVICE_HOST and _PORT are not set";
                wrong("SIGNET_KUBERNETES_API", reason.to_owned())
            })?,
        };
        let (host, port) = host_port(&api)
            .ok_or_else(|| wrong("SIGNET_KUBERNETES_API", format!("{api:?} is not HOST:PORT")))?;
        let namespace = namespace(&self.kubernetes_credentials)
            .map_err(|reason| wrong("SIGNET_KUBERNETES_CREDENTIALS", reason))?;
        Ok(ApiServer { host, port, credentials: self.kubernetes_credentials.clone(), namespace })
    }
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct KubernetesArguments {
    /// What to do in the cluster this runs in: attest (sidecars enrol by their pod's service-account token), controller
    /// (custom resources are the mesh's manifests), webhook (pods get sidecars when they are made); separated by commas
    #[arg(long, env = "SIGNET_KUBERNETES", value_delimiter = ',', value_parser = ["attest", "controller", "webhook"])]
    kubernetes: Vec<String>,

    /// Name of the cluster's network in the Mesh
    #[arg(long, env = "SIGNET_KUBERNETES_NETWORK", default_value = "cluster", value_name = "NAME")]
    kubernetes_network: String,

    /// Address for the API server's admission reviews (HTTPS); port 0 takes a free one
    #[arg(long, env = "SIGNET_WEBHOOK_LISTEN", default_value = "0.0.0.0:9443", value_name = "IP:PORT")]
    webhook_listen: SocketAddr,

    /// Image of the sidecars that the webhook puts into pods
    #[arg(long, env = "SIGNET_SIDECAR_IMAGE", default_value_t = Options::default().image, value_name = "IMAGE")]
    sidecar_image: String,
}

/// What to do in a cluster.
#[derive(Clone, Debug)]
pub struct KubernetesConfig {
    /// Sidecars enrol by their pod's service-account token.
    pub attest: bool,
    /// Custom resources are the mesh's manifests.
    pub controller: bool,
    /// Where admission reviews are taken, if they are.
    pub webhook: Option<SocketAddr>,
    /// Name or address of the API server.
    pub api_host: String,
    /// Its port.
    pub api_port: u16,
    /// Directory with `token` and `ca.crt`.
    pub credentials: PathBuf,
    /// The namespace of the control plane.
    pub namespace: String,
    /// What is put into pods.
    pub inject: Options,
}

impl KubernetesConfig {
    /// What service-account tokens have to be made for.
    pub(crate) fn audience(&self) -> String {
        match &self.inject.enrolment {
            Enrolment::Secret => String::new(),
            Enrolment::ServiceAccount { trust_domain } => audience(trust_domain),
        }
    }
}

impl KubernetesArguments {
    /// Whether anything is to be done in a cluster.
    pub(super) fn is_set(&self) -> bool {
        !self.kubernetes.is_empty()
    }

    /// `None` where nothing is switched on.
    pub(super) fn read(
        self,
        trust_domain: &str,
        api: &ApiServerArguments,
    ) -> Result<Option<KubernetesConfig>, ConfigError> {
        let has = |part: &str| self.kubernetes.iter().any(|named| named == part);
        if self.kubernetes.is_empty() {
            return Ok(None);
        }
        let wrong = |name, reason: String| ConfigError::Setting { name, reason };
        if !is_name(&self.kubernetes_network) {
            let reason =
                format!("{:?}: use lower-case letters, digits and `-`, at most 63", self.kubernetes_network);
            return Err(wrong("SIGNET_KUBERNETES_NETWORK", reason));
        }
        let api = api.read()?;
        let namespace = api.namespace;
        let inject = Options {
            control_plane: format!("signet-control-plane.{namespace}.svc:15012"),
            enrolment: Enrolment::ServiceAccount { trust_domain: trust_domain.to_owned() },
            image: self.sidecar_image.clone(),
            network: self.kubernetes_network.clone(),
            sidecar: Sidecar::Native,
            ..Options::default()
        };
        Ok(Some(KubernetesConfig {
            attest: has("attest"),
            controller: has("controller"),
            webhook: has("webhook").then_some(self.webhook_listen),
            api_host: api.host,
            api_port: api.port,
            credentials: api.credentials,
            namespace,
            inject,
        }))
    }
}

/// As Kubernetes tells every pod.
fn in_cluster() -> Option<String> {
    let host = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
    let port = std::env::var("KUBERNETES_SERVICE_PORT").ok()?;
    Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

fn host_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.strip_prefix('[').map_or(Some(host), |rest| rest.strip_suffix(']'))?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

fn namespace(credentials: &Path) -> Result<String, String> {
    let path = credentials.join("namespace");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let name = text.trim();
    if is_name(name) {
        Ok(name.to_owned())
    } else {
        Err(format!("{}: it holds no namespace", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_server_has_a_host_and_a_port() {
        assert_eq!(host_port("10.96.0.1:443"), Some(("10.96.0.1".to_owned(), 443)));
        assert_eq!(host_port("[fd00::1]:6443"), Some(("fd00::1".to_owned(), 6443)));
        assert_eq!(host_port("kubernetes.default.svc:443"), Some(("kubernetes.default.svc".to_owned(), 443)));
        for wrong in ["", "host", "host:", ":1", "host:0", "host:65536", "[fd00::1:443"] {
            assert_eq!(host_port(wrong), None, "{wrong}");
        }
    }
}
