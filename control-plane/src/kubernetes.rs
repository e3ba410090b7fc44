//! What the control plane does in a Kubernetes cluster, each part by itself and only where it is switched on.
//!
//! - `attest`: sidecars enrol by their pod's service-account token, which the API server reviews.
//! - `controller`: custom resources are the mesh's manifests, and are told how they stand.
//! - `webhook`: pods get their sidecar when they are made.
//!
//! `client` is the API server as we call it, `follow` how a collection is listed and watched, `roots` what the cluster has to
//! know of our authority.

mod attest;
pub(crate) mod client;
mod controller;
pub(crate) mod follow;
mod resource;
mod roots;
mod status;
mod webhook;

use std::sync::Arc;
use std::time::SystemTime;

use tokio::net::TcpListener;

use self::attest::Reviewer;
use self::client::Client;
use self::controller::Controller;
use self::roots::Roots;
use self::webhook::Webhook;
use crate::attest::Attestor;
use crate::authority::{Authority, AuthorityError};
use crate::config::KubernetesConfig;
use crate::metrics::Metrics;
use crate::services::Mesh;

/// The Service of the control plane, in its namespace.
const SERVICE: &str = "signet-control-plane";
/// The MutatingWebhookConfiguration whose `caBundle` is kept right.
const WEBHOOK_NAME: &str = "signet-control-plane";

/// The parts that are switched on.
pub(crate) struct Kubernetes {
    config: KubernetesConfig,
    client: Arc<Client>,
    webhook: Option<(Arc<Webhook>, TcpListener)>,
}

impl Kubernetes {
    /// Makes what has to be there before anything is served. `webhook` is where the webhook listens, if it does.
    pub(crate) fn new(
        config: KubernetesConfig,
        webhook: Option<TcpListener>,
        authority: &Arc<Authority>,
        metrics: &Arc<Metrics>,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let client =
            Arc::new(Client::new(config.api_host.clone(), config.api_port, config.credentials.clone()));
        let webhook = match webhook {
            Some(listener) => {
                let (authority, metrics) = (authority.clone(), metrics.clone());
                let webhook =
                    Webhook::new(authority, metrics, &config.namespace, config.inject.clone(), now)?;
                Some((Arc::new(webhook), listener))
            }
            None => None,
        };
        Ok(Self { config, client, webhook })
    }

    /// Who vouches for pods.
    pub(crate) fn attestor(&self) -> Option<Arc<dyn Attestor>> {
        let config = &self.config;
        let reviewer = || -> Arc<dyn Attestor> {
            Arc::new(Reviewer::new(self.client.clone(), config.audience(), config.inject.network.clone()))
        };
        config.attest.then(reviewer)
    }

    /// Whether the mesh's manifests are those of the cluster.
    pub(crate) fn is_followed(&self) -> bool {
        self.config.controller
    }

    /// Does it, and never returns.
    pub(crate) async fn run(self, mesh: Mesh) {
        let Self { config, client, webhook } = self;
        let has_webhook = webhook.is_some();
        let roots = Roots::new(client.clone(), mesh.authority.clone(), has_webhook);
        let controller = Controller::new(client, mesh);
        let webhook = async move {
            match webhook {
                Some((webhook, listener)) => webhook.run(listener).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = roots.run(), if config.attest || has_webhook => {}
            () = controller.run(), if config.controller => {}
            () = webhook => {}
        }
    }
}

/// Random, 0 to 1: so that several who wait for the same server do not come back at once.
pub(crate) fn jitter() -> f64 {
    let mut byte = [128_u8];
    // Without randomness it is one half.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}
