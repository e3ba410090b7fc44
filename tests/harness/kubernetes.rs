//! An API server of Kubernetes, as far as Signet and kubectl need one: over HTTPS, with discovery and OpenAPI, objects of any
//! kind that is known, list, watch with bookmarks and 410, the status subresource, merge, JSON and apply patches,
//! TokenReview, and access rules that are enforced.
//!
//! It keeps the objects and judges nothing: no controllers, no kubelet, no admission.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use serde_json::Value;
use signet_cli::lab::Namespace;
use signet_identity::crypto_provider;
use tokio::sync::oneshot;

mod access;
mod api;
mod cluster;
mod discovery;
mod schema;
mod serve;

pub use access::{Access, Rules};
pub use cluster::{Cluster, PodToken};

use crate::Failure;

/// Who may do everything: kubectl in tests.
pub const ADMIN_TOKEN: &str = "admin.admin.admin";
/// The service account of the control plane, which may do what the rules say.
pub const CONTROL_PLANE_TOKEN: &str = "control-plane.control-plane.control-plane";
/// Where it listens.
const PORT: u16 = 6443;

/// The server. Dropping it ends it; the cluster stays with whoever holds it.
pub struct ApiServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What proves the server, and where clients find it: the same after the server came back.
pub struct Endpoint {
    /// Its address.
    pub address: SocketAddr,
    config: Arc<ServerConfig>,
    /// The certificate of its authority, PEM.
    authority: String,
}

impl Endpoint {
    /// At an address of the namespace that it will be in.
    ///
    /// # Errors
    /// Keys cannot be made.
    pub fn new(address: std::net::Ipv4Addr) -> Result<Self, Failure> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["kubernetes.default.svc".to_owned()])?;
        params.subject_alt_names.push(SanType::IpAddress(address.into()));
        let leaf = params.signed_by(&key, &issuer)?;
        let mut config = ServerConfig::builder_with_provider(crypto_provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { address: (address, PORT).into(), config: Arc::new(config), authority })
    }

    /// Writes what Kubernetes mounts into the control plane's pod.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn credentials(&self, folder: &Path, namespace: &str) -> io::Result<PathBuf> {
        let folder = folder.join("serviceaccount");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("ca.crt"), &self.authority)?;
        fs::write(folder.join("token"), CONTROL_PLANE_TOKEN)?;
        fs::write(folder.join("namespace"), namespace)?;
        Ok(folder)
    }

    /// Writes a configuration for kubectl.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn kubeconfig(&self, folder: &Path) -> io::Result<PathBuf> {
        fs::write(folder.join("ca.crt"), &self.authority)?;
        let path = folder.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: 'https://{}', certificate-authority: ca.crt}}}}]\n\
             users: [{{name: admin, user: {{token: {ADMIN_TOKEN}}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: admin}}}}]\n",
            self.address
        );
        fs::write(&path, text)?;
        Ok(path)
    }
}

impl ApiServer {
    /// Serves a cluster in a network namespace; it listens when this returns.
    ///
    /// # Errors
    /// It cannot listen.
    pub fn start(namespace: &Namespace, endpoint: &Endpoint, cluster: &Cluster) -> Result<Self, Failure> {
        let (stop, stopped) = oneshot::channel();
        let (ready, listening) = std::sync::mpsc::channel();
        let (address, config, cluster) = (endpoint.address, endpoint.config.clone(), cluster.clone());
        let thread = namespace.thread("api-server", move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let run = |runtime: tokio::runtime::Runtime| {
                runtime.block_on(async {
                    let listener = tokio::net::TcpListener::bind(address).await?;
                    let _ = ready.send(Ok(()));
                    tokio::select! {
                        () = serve::serve(listener, config, cluster) => {}
                        _ = stopped => {}
                    }
                    Ok::<(), io::Error>(())
                })
            };
            if let Err(error) = runtime.and_then(run) {
                let _ = ready.send(Err(error));
            }
        })?;
        listening.recv()??;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A `Status` that says no.
fn refusal(code: u16, reason: &str, message: impl Into<String>) -> (u16, Value) {
    let message: String = message.into();
    let status = serde_json::json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    (code, status)
}
