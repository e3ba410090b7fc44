//! Where the state is: in the state directory, or where several control planes share it: in an etcd cluster, or in Secrets of a
//! Kubernetes namespace.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use signet_identity::TrustDomain;

use crate::config::{ApiServerArguments, ConfigError};
use crate::store::{
    EtcdAddress, EtcdStore, KubernetesAddress, KubernetesStore, RedbStore, Store, StoreError,
};

/// The store in the state directory.
const REDB: &str = "redb";
/// The store in Secrets of the namespace that the control plane is in.
const KUBERNETES: &str = "kubernetes";

/// What is said of it on the command line, of the control plane and of `backup` and `restore`.
#[derive(Args, Clone, Debug)]
pub(crate) struct StoreArguments {
    /// Where the state is: redb (in the state directory), etcd://HOST:PORT,HOST:PORT…/PREFIX, or kubernetes or kubernetes/NAME
    /// (in Secrets of the namespace this runs in)
    #[arg(long, env = "SIGNET_STORE", default_value = REDB, value_name = "STORE")]
    store: String,

    /// PEM of the authorities that signed the certificates of etcd's members
    #[arg(long, env = "SIGNET_ETCD_CA", value_name = "FILE")]
    etcd_ca: Option<PathBuf>,

    /// PEM of the certificate that etcd knows this control plane by, with its chain
    #[arg(long, env = "SIGNET_ETCD_CERTIFICATE", value_name = "FILE")]
    etcd_certificate: Option<PathBuf>,

    /// PEM of that certificate's key
    #[arg(long, env = "SIGNET_ETCD_KEY", value_name = "FILE")]
    etcd_key: Option<PathBuf>,
}

/// Where the state is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StoreLocation {
    /// In a file of the state directory.
    Redb,
    /// In an etcd cluster.
    Etcd {
        /// Members and prefix.
        address: EtcdAddress,
        /// By which both sides know each other; none is possible on loopback only.
        files: Option<EtcdFiles>,
    },
    /// In Secrets of a namespace.
    Kubernetes(KubernetesAddress),
}

/// PEM files for mutual TLS with etcd.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EtcdFiles {
    /// Authorities of the members.
    pub ca: PathBuf,
    /// The control plane's certificate and chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl StoreArguments {
    /// Whether several control planes may share it.
    pub(crate) fn is_shared(&self) -> bool {
        self.store != REDB
    }

    pub(crate) fn location(
        self,
        trust_domain: &TrustDomain,
        api_server: &ApiServerArguments,
    ) -> Result<StoreLocation, ConfigError> {
        let files = match (self.etcd_ca, self.etcd_certificate, self.etcd_key) {
            (None, None, None) => None,
            (Some(ca), Some(certificate), Some(key)) => Some(EtcdFiles { ca, certificate, key }),
            _ => {
                return Err(of_files(
                    "the three files of etcd, SIGNET_ETCD_CERTIFICATE and SIGNET_ETCD_KEY beside it, go together",
                ));
            }
        };
        let kind = self.store.split('/').next().unwrap_or_default();
        if self.store == REDB || kind == KUBERNETES {
            return match files {
                None if self.store == REDB => Ok(StoreLocation::Redb),
                None => in_kubernetes(&self.store, trust_domain, api_server),
                Some(_) => Err(of_files("it is of no use without --store etcd://…")),
            };
        }
        let address = EtcdAddress::parse(&self.store, &format!("signet/{trust_domain}"));
        let address = address
            .map_err(|error| ConfigError::Setting { name: "SIGNET_STORE", reason: error.to_string() })?;
        if files.is_none() && !address.is_loopback() {
            // Whoever could change what is read from there would be the operator of this mesh.
            return Err(of_files(
                "needed, with SIGNET_ETCD_CERTIFICATE and SIGNET_ETCD_KEY: etcd is spoken to in clear at loopback addresses only",
            ));
        }
        Ok(StoreLocation::Etcd { address, files })
    }
}

/// `kubernetes`, or `kubernetes/NAME`.
fn in_kubernetes(
    store: &str,
    trust_domain: &TrustDomain,
    api_server: &ApiServerArguments,
) -> Result<StoreLocation, ConfigError> {
    let name = store.split_once('/').map_or(trust_domain.as_str(), |(_, name)| name);
    if !KubernetesAddress::is_name(name) {
        let reason = format!(
            "{name:?} cannot be a part of names in Kubernetes; fix: kubernetes/NAME, of at most 40 lower-case letters, digits and `-`"
        );
        return Err(ConfigError::Setting { name: "SIGNET_STORE", reason });
    }
    let found = api_server.read()?;
    Ok(StoreLocation::Kubernetes(KubernetesAddress {
        host: found.host,
        port: found.port,
        credentials: found.credentials,
        namespace: found.namespace,
        name: name.to_owned(),
    }))
}

fn of_files(reason: &str) -> ConfigError {
    ConfigError::Setting { name: "SIGNET_ETCD_CA", reason: reason.to_owned() }
}

impl StoreLocation {
    /// Whether several control planes may have it at once.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Etcd { .. } | Self::Kubernetes(_))
    }

    /// Opens it; `directory` is the state directory.
    pub(crate) async fn open(&self, directory: &Path) -> Result<Arc<dyn Store>, StoreError> {
        match self {
            Self::Redb => {
                let directory = directory.to_owned();
                let opened = tokio::task::spawn_blocking(move || RedbStore::open(&directory)).await;
                let store = opened.unwrap_or_else(|panic| Err(StoreError::Corrupted(panic.to_string())));
                Ok(Arc::new(store?))
            }
            Self::Etcd { address, files } => {
                let tls = files.as_ref().map(EtcdFiles::tls).transpose()?.map(Arc::new);
                Ok(Arc::new(EtcdStore::open(address, tls, directory).await?))
            }
            Self::Kubernetes(address) => Ok(Arc::new(KubernetesStore::open(address, directory).await?)),
        }
    }
}

impl EtcdFiles {
    fn tls(&self) -> Result<ClientConfig, StoreError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(&self.ca)? {
            roots.add(root).map_err(|error| wrong(&self.ca, &error))?;
        }
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| wrong(&self.key, &error))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| StoreError::Refused(error.to_string()))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key);
        let mut config = config.map_err(|error| wrong(&self.certificate, &error))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let found = CertificateDer::pem_file_iter(path).map_err(|error| wrong(path, &error))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| wrong(path, &error))?;
    if found.is_empty() { Err(wrong(path, &"it holds no certificate")) } else { Ok(found) }
}

/// Says which file it is and never what is in it.
fn wrong(path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    let reason = std::io::Error::other(format!("{}: {error}", path.display()));
    StoreError::Io(reason)
}
