//! A device's TPM as evidence: whoever has the TPM that the rules name enrols without a token, with a channel key that lies in
//! it.
//!
//! The TPM opens one challenge for one connection, and the device says so for the connection that it sees. Nothing is remembered between challenge and answer: what is hidden is
//! computed again from what both are about.

mod rules;

use std::time::SystemTime;

use aws_lc_rs::hmac;
use futures_util::future::BoxFuture;
use prost::Message;
use signet_identity::{hex, requested_point};
use signet_policy::PolicyModel;
use signet_sync::MAX_ATTESTATION_BYTES;
use signet_sync::proto::sync as wire;
use signet_tpm::{EndorsementKey, SECRET_BYTES, answer, challenge};

pub use self::rules::{Rules, RulesError};
use crate::attest::{AttestError, Attested, Attestor, Shown};

/// What holders begin with that a TPM proved.
const HOLDER: &str = "tpm/";

/// Separates this use of the key from any other.
const CONTEXT: &[u8] = b"signet attestation by tpm, version 1\0";

/// The attestor `tpm`.
pub(crate) struct TpmAttestor {
    rules: Rules,
    /// Of this process: a challenge is answered on its connection.
    key: hmac::Key,
}

impl TpmAttestor {
    pub(crate) fn new(rules: Rules) -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut key = [0; SECRET_BYTES];
        aws_lc_rs::rand::fill(&mut key)?;
        Ok(Self { rules, key: hmac::Key::new(hmac::HMAC_SHA256, &key) })
    }

    /// What a challenge hides: 32 bytes for this connection, these requests and this TPM.
    fn secret(&self, shown: Shown<'_>, endorsement: &EndorsementKey) -> hmac::Tag {
        let mut mac = hmac::Context::with_key(&self.key);
        mac.update(CONTEXT);
        mac.update(shown.binding);
        mac.update(endorsement.point());
        for request in shown.requests {
            mac.update(&(request.len() as u64).to_be_bytes());
            mac.update(request);
        }
        mac.sign()
    }

    fn workload_of(&self, endorsement: &EndorsementKey) -> Result<&str, AttestError> {
        self.rules.workload_of(&endorsement.sha256()).ok_or_else(|| {
            let device = hex(&endorsement.sha256());
            AttestError::NoWorkload(format!(
                "the TPM with endorsement key {device}: the rules of the attestor `tpm` do not name it"
            ))
        })
    }

    fn judge(&self, shown: Shown<'_>, model: &PolicyModel) -> Result<Attested, AttestError> {
        if shown.evidence.len() > MAX_ATTESTATION_BYTES {
            return Err(AttestError::Malformed);
        }
        let evidence = wire::TpmEvidence::decode(shown.evidence).map_err(|_| AttestError::Malformed)?;
        let endorsement =
            EndorsementKey::new(&evidence.endorsement_key).map_err(|_| AttestError::Malformed)?;
        // Compared in the same time wherever they differ.
        let expected = answer(self.secret(shown, &endorsement).as_ref(), shown.binding, shown.requests);
        if aws_lc_rs::constant_time::verify_slices_are_equal(&expected, &evidence.answer).is_err() {
            return Err(AttestError::Refused);
        }
        let workload = self.workload_of(&endorsement)?;
        let device = hex(&endorsement.sha256());
        let declared = model.workload_named(workload).ok_or_else(|| {
            AttestError::NoWorkload(format!(
                "the TPM with endorsement key {device}: its rule names {workload}, which is not declared"
            ))
        })?;
        tracing::info!(tpm = %device, id = %declared.id, "attested");
        Ok(Attested {
            id: declared.id.clone(),
            network: declared.network.clone(),
            holder: holder(&endorsement.sha256()),
            device: Some(endorsement.sha256()),
        })
    }
}

impl Attestor for TpmAttestor {
    fn name(&self) -> &'static str {
        "tpm"
    }

    /// Whoever names a TPM of the rules gets one: it says nothing but to that TPM.
    fn challenge(&self, shown: Shown<'_>) -> Result<Vec<u8>, AttestError> {
        let endorsement = EndorsementKey::new(shown.evidence).map_err(|_| AttestError::Malformed)?;
        // Before anything that takes time.
        self.workload_of(&endorsement)?;
        let [tls, _] = shown.requests;
        let point = requested_point(tls).map_err(|_| AttestError::Malformed)?;
        let secret = self.secret(shown, &endorsement);
        let secret = secret.as_ref().try_into().map_err(|_| AttestError::Malformed)?;
        let made = challenge(&endorsement, &point, &secret).map_err(|_| AttestError::Malformed)?;
        Ok(wire::TpmChallenge { credential: made.credential, secret: made.secret }.encode_to_vec())
    }

    fn attest<'a>(
        &'a self,
        shown: Shown<'a>,
        model: &'a PolicyModel,
        _now: SystemTime,
    ) -> BoxFuture<'a, Result<Attested, AttestError>> {
        Box::pin(std::future::ready(self.judge(shown, model)))
    }
}

/// What a device is called as a holder.
pub(crate) fn holder(device: &[u8; 32]) -> String {
    format!("{HOLDER}{}", hex(device))
}

#[cfg(test)]
mod tests;
