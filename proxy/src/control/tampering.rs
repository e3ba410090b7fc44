//! The device was tampered with: everything known is withdrawn, the files are destroyed, and the control plane is told with
//! the key that is destroyed right after.

use std::path::Path;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::identity_client::IdentityClient;
use signet_tamper::Tampering;
use thiserror::Error;
use tonic::transport::Channel;

use crate::control::Joined;
use crate::control::state::State;
use crate::snapshot::{Credentials, Snapshot};

/// How long the private key may stay for the report: a new connection and a call over a satellite, some round trips of
/// 600 ms. Over the open connection it is one.
pub(crate) const REPORT_LIMIT: Duration = Duration::from_secs(3);

/// Why the control plane does not know.
#[derive(Debug, Error)]
pub(crate) enum ReportError {
    #[error("{0}")]
    Connect(String),
    #[error("the control plane refused: {}", .0.message())]
    Refused(Box<tonic::Status>),
    #[error("no answer within {} s", REPORT_LIMIT.as_secs())]
    Timeout,
}

/// Destroys what is kept in a state directory; says what could not be.
pub(crate) fn destroy(directory: &Path, why: &Tampering) {
    let surrender = State::give_up(directory, why);
    for (path, error) in &surrender.failed {
        tracing::error!(file = %path.display(), %error, "a file could not be destroyed");
    }
    tracing::error!(files = surrender.destroyed.len(), "keys and saved state are overwritten and removed");
}

impl Joined {
    /// Takes everything out of force: whatever is open is judged again, and nothing stands. What is returned can be asked
    /// whether anybody still holds the keys.
    pub(crate) fn withdraw(&self) -> Weak<Credentials> {
        let node = &self.node;
        let held = node.credentials.swap(None);
        let generation = *node.changes.borrow() + 1;
        let bundle = node.identity.load().bundle.clone();
        node.snapshots
            .store(Snapshot { generation, edition: generation, ..Snapshot::deny_all(bundle) }.into());
        node.changes.send_replace(generation);
        node.origin.link.send_modify(|link| link.enrolled = false);
        held.as_ref().map_or_else(Weak::new, Arc::downgrade)
    }

    /// Tells the control plane, which revokes this instance: over the open connection, or a new one. The keys end with this.
    ///
    /// # Errors
    /// [`ReportError`]; then the marker in the state directory is all that is left to say so.
    pub(crate) async fn report(self, why: &Tampering) -> Result<(), ReportError> {
        let node = &self.node;
        let open = node.channel.lock().unwrap_or_else(PoisonError::into_inner).take();
        let identity = node.identity.load_full();
        let telling = async {
            if let Some(channel) = open {
                match tell(channel, why).await {
                    Ok(()) => return Ok(()),
                    // It may have been dead for a while.
                    Err(error) => {
                        tracing::warn!(%error, "the open connection takes no report; another one is tried")
                    }
                }
            }
            let anew = node.origin.plane.as_identity(&identity).await;
            tell(anew.map_err(|error| ReportError::Connect(error.to_string()))?, why).await
        };
        tokio::time::timeout(REPORT_LIMIT, telling).await.map_err(|_| ReportError::Timeout)?
    }
}

async fn tell(channel: Channel, why: &Tampering) -> Result<(), ReportError> {
    let request = wire::ReportTamperingRequest { code: why.code().to_owned(), detail: why.to_string() };
    let told = IdentityClient::new(channel).report_tampering(request).await;
    told.map(drop).map_err(|status| ReportError::Refused(Box::new(status)))
}
