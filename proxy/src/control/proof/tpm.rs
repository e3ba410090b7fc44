//! The TPM of this device as evidence: it opens what the control plane hid for it and the key that is to be certified.

use prost::Message;
use signet_identity::{ChannelKey, hex};
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::enrolment_client::EnrolmentClient;
use signet_tpm::{Challenge, EndorsementKey, Tpm, TpmError, answer};
use thiserror::Error;
use tonic::transport::Channel;

use crate::control::enrol::CALL_TIMEOUT;

/// What the control plane calls its attestor.
pub(in crate::control) const ATTESTOR: &str = "tpm";

/// Why the TPM proved nothing.
#[derive(Debug, Error)]
pub(in crate::control) enum TpmProofError {
    #[error("the control plane's challenge cannot be read")]
    Challenge,
    #[error("the control plane gives no challenge: {}", .0.message())]
    Refused(Box<tonic::Status>),
    #[error("the thread that asked the TPM has ended")]
    Thread,
    #[error("no challenge within 15 s")]
    Timeout,
    #[error(transparent)]
    Tpm(#[from] TpmError),
    #[error("the key that is to be certified is not in the TPM")]
    Outside,
}

/// The TPM of this device and the key in it that is to be certified. It is looked at before there is a connection, on which the
/// control plane does not wait for ever.
pub(in crate::control) struct Device {
    tpm: Tpm,
    reference: String,
    endorsement: EndorsementKey,
}

impl Device {
    pub(in crate::control) async fn of(tpm: Option<&Tpm>, key: &ChannelKey) -> Result<Self, TpmProofError> {
        let (Some(tpm), ChannelKey::Held(key, _)) = (tpm, key) else { return Err(TpmProofError::Outside) };
        let asked = tpm.clone();
        let endorsement = blocking(move || asked.endorsement_key()).await?;
        // What the operator's rules name.
        tracing::info!(endorsement_key = hex(&endorsement.sha256()), "enrolling by the TPM");
        Ok(Self { tpm: tpm.clone(), reference: key.reference.clone(), endorsement })
    }

    /// Asks for a challenge on the connection that the enrolment follows on, and has the TPM open it.
    pub(in crate::control) async fn evidence(
        self,
        client: &mut EnrolmentClient<Channel>,
        request: &wire::EnrolRequest,
        binding: &[u8; 32],
    ) -> Result<Vec<u8>, TpmProofError> {
        let Self { tpm, reference, endorsement } = self;
        let question = wire::ChallengeRequest {
            attestor: ATTESTOR.to_owned(),
            about: endorsement.point().to_vec(),
            tls_csr: request.tls_csr.clone(),
            signing_csr: request.signing_csr.clone(),
        };
        let given = tokio::time::timeout(CALL_TIMEOUT, client.challenge(question)).await;
        let given = given.map_err(|_| TpmProofError::Timeout)?;
        let given = given.map_err(|status| TpmProofError::Refused(Box::new(status)))?.into_inner();
        let wire::TpmChallenge { credential, secret } =
            wire::TpmChallenge::decode(given.challenge.as_slice()).map_err(|_| TpmProofError::Challenge)?;
        let opened = blocking(move || tpm.activate(&reference, &Challenge { credential, secret })).await?;
        let answer = answer(&opened, binding, [&request.tls_csr, &request.signing_csr]).to_vec();
        let evidence = wire::TpmEvidence { endorsement_key: endorsement.point().to_vec(), answer };
        Ok(evidence.encode_to_vec())
    }
}

/// A chip takes its time: nobody else of this thread waits for it.
async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, TpmError> + Send + 'static,
) -> Result<T, TpmProofError> {
    Ok(tokio::task::spawn_blocking(ask).await.map_err(|_| TpmProofError::Thread)??)
}
