//! Renewal at half-life over fresh keys. Whatever fails, the certificates in force stay in force to their end.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use signet_identity::{KeyRequest, RequestError, SigningSvid, SvidError, TlsSvid, backoff, renewal_time};
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::identity_client::IdentityClient;
use signet_sync::{MIN_PROTOCOL, PROTOCOL};
use thiserror::Error;

use crate::control::connect::ConnectError;
use crate::control::enrol::{CALL_TIMEOUT, certificates};
use crate::control::{Identity, Node, jitter};

/// The longest sleep until a time of day: a clock that is set, or a machine that slept, is noticed within it.
const LONGEST_SLEEP: Duration = Duration::from_secs(15);

/// Why the certificates were not renewed.
#[derive(Debug, Error)]
pub(super) enum RenewError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the certificates issued are of another identity")]
    OtherIdentity,
    #[error("the control plane refused: {}", .0.message())]
    Refused(Box<tonic::Status>),
    #[error("no keys can be made: {0}")]
    Request(#[from] RequestError),
    #[error("the certificates issued cannot be used: {0}")]
    Svid(#[from] SvidError),
    #[error("no answer within 15 s")]
    Timeout,
    #[error("the certificates issued do not hold under the roots")]
    Unverifiable,
}

/// Renews in time, for as long as the certificates hold; returns when they have ended.
pub(super) async fn until_ended(node: &Node) {
    let mut due = next(node);
    let mut attempt = 0;
    loop {
        tokio::select! {
            () = sleep_until(due) => {}
            () = node.renew_now.notified() => {}
        }
        // An attempt that hangs must not outlive the certificates.
        let end = node.identity.load().not_after();
        let outcome = tokio::select! {
            outcome = renew(node) => outcome,
            () = sleep_until(end) => return,
        };
        match outcome {
            Ok(()) => {
                attempt = 0;
                due = next(node);
            }
            Err(error) => {
                node.origin.failed("renewal", &error);
                due = end.min(SystemTime::now() + backoff(attempt, jitter()));
                attempt = attempt.saturating_add(1);
            }
        }
    }
}

fn next(node: &Node) -> SystemTime {
    renewal_time(SystemTime::now(), node.identity.load().not_after(), jitter())
}

async fn renew(node: &Node) -> Result<(), RenewError> {
    let current = node.identity.load_full();
    let channel = node.origin.plane.as_identity(&current).await?;
    let (tls, signing) = (KeyRequest::new_tls()?, KeyRequest::new_signing()?);
    let request = wire::RenewRequest {
        protocol: PROTOCOL,
        min_protocol: MIN_PROTOCOL,
        tls_csr: tls.csr.clone(),
        signing_csr: signing.csr.clone(),
    };
    let mut client = IdentityClient::new(channel);
    let answer = tokio::time::timeout(CALL_TIMEOUT, client.renew(request))
        .await
        .map_err(|_| RenewError::Timeout)?
        .map_err(|status| RenewError::Refused(Box::new(status)))?
        .into_inner();
    let tls = TlsSvid::new(certificates(answer.tls_chain), tls.key)?;
    let signing = SigningSvid::new(certificates(answer.signing_chain), signing.key)?;
    install(node, tls, signing)
}

fn install(node: &Node, tls: TlsSvid, signing: SigningSvid) -> Result<(), RenewError> {
    // Loaded again: the roots may have changed while the answer was under way.
    let current = node.identity.load_full();
    if tls.id != current.tls.id || signing.id != current.tls.id {
        return Err(RenewError::OtherIdentity);
    }
    let renewed = Identity { tls, signing, ..(*current).clone() };
    if !renewed.holds_at(SystemTime::now()) {
        return Err(RenewError::Unverifiable);
    }
    if let Some(state) = &node.origin.state
        && let Err(error) = state.save_svids(&renewed)
    {
        node.origin.failed("saving the renewed certificates", &error);
    }
    tracing::info!(id = %renewed.tls.id, fingerprint = %renewed.tls.fingerprint, "certificates renewed");
    node.identity.store(Arc::new(renewed));
    node.publish_credentials();
    Ok(())
}

/// Sleeps until a time of day, also when the clock is set meanwhile.
pub(super) async fn sleep_until(due: SystemTime) {
    while let Ok(left) = due.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
    }
}
