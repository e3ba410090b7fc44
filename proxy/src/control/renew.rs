//! Renewal at half-life, over fresh keys where they are in memory. Whatever fails, the certificates in force stay in force to their end.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use signet_identity::{KeyRequest, RequestError, SigningSvid, SvidError, TlsSvid, backoff, renewal_time};
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::identity_client::IdentityClient;
use signet_sync::{MIN_PROTOCOL, PROTOCOL};
use thiserror::Error;

use crate::clock::{self, Told};
use crate::control::connect::{ConnectError, ControlPlane};
use crate::control::enrol::{CALL_TIMEOUT, certificates};
use crate::control::{Identity, Node, Origin, custody, jitter};

/// The longest sleep until a time of day: a clock that is set, or a machine that slept, is noticed within it.
const LONGEST_SLEEP: Duration = Duration::from_secs(15);

/// The least time from one renewal to the next that is made because another issuer certifies: what certifies and what
/// proxies were told of it may differ for a moment.
const ISSUER_PAUSE: Duration = Duration::from_secs(5);

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
    #[error("the certificates issued do not hold under the roots now, {0}")]
    Unverifiable(Told),
}

/// Renews in time, for as long as the certificates hold; returns when they have ended.
pub(super) async fn until_ended(node: &Node) {
    let mut due = next(node);
    let mut attempt = 0;
    let mut certifying = node.certifying.subscribe();
    loop {
        tokio::select! {
            () = wait_for(due) => {}
            () = node.renew_now.notified() => {}
            Ok(()) = certifying.changed() => {
                due = due.min(due_for_another_issuer(node).unwrap_or(due));
                continue;
            }
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
                // The issuer may have changed while the answer was under way, here or there.
                if let Some(again) = due_for_another_issuer(node) {
                    due = due.min(again.max(clock::now() + ISSUER_PAUSE));
                }
            }
            Err(error) => {
                node.origin.failed("renewal", &error);
                due = end.min(clock::now() + backoff(attempt, jitter()));
                attempt = attempt.saturating_add(1);
            }
        }
    }
}

/// When to renew because another issuer certifies now; none when it is the one of the certificates in force. Each proxy has
/// a moment of its own: all of the mesh were told at once. An area's issuer is another one for good.
fn due_for_another_issuer(node: &Node) -> Option<SystemTime> {
    let (issuer, within) = (*node.certifying.borrow())?;
    let identity = node.identity.load();
    let is_another = !identity.is_of_area() && !identity.is_issued_by(issuer);
    is_another.then(|| clock::now() + within.mul_f64(jitter()))
}

fn next(node: &Node) -> SystemTime {
    renewal_time(clock::now(), node.identity.load().not_after(), jitter())
}

async fn renew(node: &Node) -> Result<(), RenewError> {
    let current = node.identity.load_full();
    let (tls, signing) = ask(&node.origin.plane, &current).await?;
    install(node, tls, signing)
}

/// New certificates for an identity whose own have ended: policy may let their holder back in for a while, for it still
/// has the keys and was not revoked.
pub(super) async fn rejoin(origin: &Origin, ended: &Identity) -> Result<Identity, RenewError> {
    let (tls, signing) = ask(&origin.plane, ended).await?;
    if tls.id != ended.tls.id || signing.id != ended.tls.id {
        return Err(RenewError::OtherIdentity);
    }
    let renewed = Identity { tls, signing, ..ended.clone() };
    renewed.has_begun();
    if !renewed.holds_at(clock::now()) {
        return Err(RenewError::Unverifiable(clock::told()));
    }
    Ok(renewed)
}

/// Asks for certificates over fresh keys, as far as they are in memory, by those of `current`.
async fn ask(plane: &ControlPlane, current: &Identity) -> Result<(TlsSvid, SigningSvid), RenewError> {
    let channel = plane.as_identity(current).await?;
    let (tls, signing) = (custody::request_after(&current.tls.key).await?, KeyRequest::new_signing()?);
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
    let tls = custody::svid(certificates(answer.tls_chain), tls.key).await?;
    let signing = SigningSvid::new(certificates(answer.signing_chain), signing.key)?;
    Ok((tls, signing))
}

fn install(node: &Node, tls: TlsSvid, signing: SigningSvid) -> Result<(), RenewError> {
    // Loaded again: the roots may have changed while the answer was under way.
    let current = node.identity.load_full();
    if tls.id != current.tls.id || signing.id != current.tls.id {
        return Err(RenewError::OtherIdentity);
    }
    let renewed = Identity { tls, signing, ..(*current).clone() };
    renewed.has_begun();
    if !renewed.holds_at(clock::now()) {
        return Err(RenewError::Unverifiable(clock::told()));
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

/// Waits for a time of day, or for as long as it was away when the wait began, whichever comes first: a clock that is set
/// back does not put a renewal off.
async fn wait_for(due: SystemTime) {
    let away = due.duration_since(clock::now()).unwrap_or_default();
    let end = clock::since_boot() + away;
    while clock::now() < due {
        let left = end.saturating_sub(clock::since_boot());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
    }
}

/// Sleeps until a time of day, also when the clock is set meanwhile.
pub(super) async fn sleep_until(due: SystemTime) {
    while let Ok(left) = due.duration_since(clock::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
    }
}
