//! SVIDs of other trust domains as evidence: a node that SPIRE has attested enrols without a token.
//!
//! The SVID is not taken for an identity of the mesh. It proves who asks, once: certificates, their renewal and their revocation
//! are the mesh's own from then on. [`Rules`] say which SPIFFE ID may be which Workload, and by whose roots.

mod rules;

use std::time::SystemTime;

use futures_util::future::BoxFuture;
use prost::Message;
use rustls_pki_types::CertificateDer;
use signet_identity::{
    AttestedSvid, Enrolling, Fingerprint, MAX_CHAIN, claimed_trust_domain, verify_attestation,
};
use signet_policy::PolicyModel;
use signet_sync::MAX_ATTESTATION_BYTES;
use signet_sync::proto::sync as wire;

pub use self::rules::{Rules, RulesError};
use crate::attest::{AttestError, Attested, Attestor, Shown};

/// The attestor `spiffe`.
pub(crate) struct SvidAttestor {
    rules: Rules,
}

impl SvidAttestor {
    pub(crate) fn new(rules: Rules) -> Self {
        Self { rules }
    }

    fn judge(&self, shown: Shown<'_>, model: &PolicyModel, now: SystemTime) -> Result<Attested, AttestError> {
        let svid = self.verify(shown, now)?;
        let workload = self.rules.workload_of(&svid.id).ok_or_else(|| {
            AttestError::NoWorkload(format!("{}: the rules of the attestor `spiffe` do not name it", svid.id))
        })?;
        let declared = model.workload_named(workload).ok_or_else(|| {
            AttestError::NoWorkload(format!("{}: its rule names {workload}, which is not declared", svid.id))
        })?;
        tracing::info!(svid = %svid.id, id = %declared.id, "attested");
        Ok(Attested {
            id: declared.id.clone(),
            network: declared.network.clone(),
            // Replicas share an identity there, and each has a key of its own.
            holder: format!("spiffe/{}", Fingerprint(svid.key_sha256)),
            device: None,
        })
    }

    fn verify(&self, shown: Shown<'_>, now: SystemTime) -> Result<AttestedSvid, AttestError> {
        if shown.evidence.len() > MAX_ATTESTATION_BYTES {
            return Err(AttestError::Malformed);
        }
        let evidence = wire::SvidEvidence::decode(shown.evidence).map_err(|_| AttestError::Malformed)?;
        let scheme = u16::try_from(evidence.scheme).map_err(|_| AttestError::Malformed)?;
        if evidence.chain.is_empty() || evidence.chain.len() > MAX_CHAIN {
            return Err(AttestError::Malformed);
        }
        let chain: Vec<CertificateDer<'_>> =
            evidence.chain.iter().map(|der| CertificateDer::from(&**der)).collect();
        let enrolling = Enrolling { binding: shown.binding, requests: shown.requests };
        // One file is read, that of the domain which the leaf names; whether it is of that domain is verified after.
        let claimed = claimed_trust_domain(&chain).map_err(|_| AttestError::Refused)?;
        let domain = self.rules.trust_domains().find(|domain| domain.as_str() == claimed);
        let bundle = self.rules.bundle(domain.ok_or(AttestError::Refused)?).map_err(|error| {
            tracing::error!(%error, "SVIDs of another trust domain cannot be judged");
            AttestError::Unavailable
        })?;
        let verified = verify_attestation(&bundle, &chain, (scheme, &evidence.signature), enrolling, now);
        verified.map_err(|error| {
            tracing::warn!(%error, "an SVID of another trust domain is not believed");
            AttestError::Refused
        })
    }
}

impl Attestor for SvidAttestor {
    fn name(&self) -> &'static str {
        "spiffe"
    }

    fn attest<'a>(
        &'a self,
        shown: Shown<'a>,
        model: &'a PolicyModel,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Attested, AttestError>> {
        Box::pin(std::future::ready(self.judge(shown, model, now)))
    }
}

#[cfg(test)]
mod tests;
