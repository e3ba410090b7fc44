//! Keeps the application's certificate in time: over a fresh key, at half of its life, and whenever another issuer certifies.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use signet_identity::{
    AppSvid, Fingerprint, KeyRequest, RequestError, SpiffeId, SvidError, TrustBundle, VerifyError, backoff,
    renewal_time, verify_app_chain,
};
use thiserror::Error;
use tokio::sync::watch;

use crate::clock;
use crate::control::jitter;
use crate::worker::Shared;
use crate::workload_api::ask::{AskError, Asker};
use crate::workload_api::offer::{Offer, X509};

/// The longest sleep until a time of day: a clock that is set, or a machine that slept, is noticed within it.
const LONGEST_SLEEP: Duration = Duration::from_secs(15);

/// Why there is no new certificate.
#[derive(Debug, Error)]
enum KeepError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the certificate issued is of another identity")]
    OtherIdentity,
    #[error("no key can be made: {0}")]
    Request(#[from] RequestError),
    #[error("the certificate issued cannot be used: {0}")]
    Svid(#[from] SvidError),
    #[error("the certificate issued does not hold: {0}")]
    Unverifiable(#[from] VerifyError),
}

/// A certificate of the application, and beside which one of the workload's it was asked for.
struct Held {
    svid: Arc<AppSvid>,
    beside: Fingerprint,
    due: SystemTime,
}

/// A question under way.
type Asking = Pin<Box<dyn Future<Output = Result<Held, KeepError>> + Send>>;

/// Tells of every change of what is offered, and asks for what has to be asked for; never returns. Who waits for an answer is
/// told of changes meanwhile: what is no longer believed must not be offered until then.
pub(super) async fn keep(shared: Arc<Shared>, asker: Asker, offers: watch::Sender<Offer>) {
    let mut changes = shared.changes.clone();
    let mut held: Option<Held> = None;
    let mut asking: Option<Asking> = None;
    let mut failed: Option<String> = None;
    let (mut attempt, mut due) = (0, clock::now());
    loop {
        changes.borrow_and_update();
        let offer = Offer::of(&shared);
        let wanted = offer.granted().ok().filter(|(_, policy)| policy.x509).map(|(id, _)| id.clone());
        let now = clock::now();
        held = held.filter(|held| wanted.as_ref().is_some_and(|id| holds(held, id, &offer.bundle, now)));
        publish(&offers, &offer, held.as_ref(), failed.as_ref());
        let Some(id) = wanted else {
            (asking, failed, attempt, due) = (None, None, 0, now);
            // The sender lives as long as the process.
            let _ = changes.changed().await;
            continue;
        };
        let when = held.as_ref().map_or(due, |held| if is_outdated(held, &shared) { due } else { held.due });
        let left = when.duration_since(now).unwrap_or_default();
        if left.is_zero() && asking.is_none() {
            asking = Some(Box::pin(renew(Arc::clone(&shared), asker.clone(), id.clone())));
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(left.min(LONGEST_SLEEP)), if asking.is_none() => {}
            outcome = answer(&mut asking) => {
                asking = None;
                match outcome {
                    Ok(renewed) => {
                        tracing::info!(%id, fingerprint = %renewed.svid.fingerprint, "the application has a new certificate");
                        held = Some(renewed);
                        (failed, attempt, due) = (None, 0, clock::now());
                    }
                    Err(error) => {
                        tracing::warn!(%error, "no certificate for the application");
                        due = clock::now() + backoff(attempt, jitter());
                        attempt = attempt.saturating_add(1);
                        if let Some(held) = &mut held {
                            held.due = due;
                        }
                        failed = Some(error.to_string());
                    }
                }
            }
        }
    }
}

/// The answer to the question under way; without one there is none.
async fn answer(asking: &mut Option<Asking>) -> Result<Held, KeepError> {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

/// Whether others would believe it now.
fn holds(held: &Held, id: &SpiffeId, bundle: &TrustBundle, now: SystemTime) -> bool {
    verify_app_chain(bundle, &held.svid.chain, now).is_ok_and(|found| found == *id)
}

/// Whether another issuer has certified the workload since: then this one is to go.
fn is_outdated(held: &Held, shared: &Shared) -> bool {
    shared.credentials().is_some_and(|own| {
        own.tls.fingerprint != held.beside && own.tls.chain.get(1) != held.svid.chain.get(1)
    })
}

fn publish(offers: &watch::Sender<Offer>, offer: &Offer, held: Option<&Held>, failed: Option<&String>) {
    let x509 = match (held, failed) {
        (Some(held), _) => X509::Ready(Arc::clone(&held.svid)),
        (None, Some(reason)) => X509::Failed(reason.clone()),
        (None, None) => X509::Asking,
    };
    offers.send_replace(Offer { x509, ..offer.clone() });
}

async fn renew(shared: Arc<Shared>, asker: Asker, id: SpiffeId) -> Result<Held, KeepError> {
    let beside = shared.credentials().map(|own| own.tls.fingerprint);
    let request = KeyRequest::new_tls()?;
    let chain = asker.certificate(request.csr).await?;
    let svid = AppSvid::new(chain, request.key)?;
    let now = clock::now();
    if verify_app_chain(&shared.snapshot().bundle, &svid.chain, now)? != id {
        return Err(KeepError::OtherIdentity);
    }
    let due = renewal_time(now, svid.not_after, jitter());
    Ok(Held { due, beside: beside.unwrap_or(svid.fingerprint), svid: Arc::new(svid) })
}
