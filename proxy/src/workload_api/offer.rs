//! What the application gets now. Pure, but for [`Offer::of`], which reads what is in force.

use std::collections::HashMap;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use signet_identity::{AppSvid, JwtKey, SpiffeId, TrustBundle, bundle_document};
use signet_policy::WorkloadApi;
use tonic::Status;

use crate::worker::Shared;
use crate::workload_api::proto;

/// Everything that an answer is made of.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    /// The workload; none before there is an identity that holds.
    pub(super) id: Option<SpiffeId>,
    pub(super) bundle: Arc<TrustBundle>,
    pub(super) jwt_keys: Arc<[JwtKey]>,
    /// What policy offers; none before there is a policy.
    pub(super) policy: Option<WorkloadApi>,
    pub(super) x509: X509,
}

/// How it is with the application's certificate.
#[derive(Clone, Debug, Default)]
pub(super) enum X509 {
    /// It is being asked for.
    #[default]
    Asking,
    /// It could not be had, and is asked for again.
    Failed(String),
    /// It is there.
    Ready(Arc<AppSvid>),
}

impl Offer {
    /// As things stand, with no certificate yet. To a workload that was revoked nothing is offered.
    pub(super) fn of(shared: &Shared) -> Self {
        let (snapshot, credentials) = (shared.snapshot(), shared.credentials());
        let id = credentials.as_ref().map(|credentials| credentials.id().clone());
        let workload = snapshot.policy.as_ref().map(|policy| id.as_ref().and_then(|id| policy.workload(id)));
        let is_revoked =
            credentials.as_ref().is_some_and(|own| snapshot.revoked(own.id(), &own.tls.fingerprint));
        let offered = |workload: Option<&signet_policy::WorkloadModel>| {
            let offered = workload.map(|workload| workload.workload_api.clone()).unwrap_or_default();
            if is_revoked { WorkloadApi::default() } else { offered }
        };
        Self {
            id,
            bundle: Arc::clone(&snapshot.bundle),
            jwt_keys: Arc::clone(&snapshot.jwt_keys),
            policy: workload.map(offered),
            x509: X509::Asking,
        }
    }

    /// Whose SVIDs may be given, and what policy offers of them.
    pub(super) fn granted(&self) -> Result<(&SpiffeId, &WorkloadApi), Status> {
        let policy =
            self.policy.as_ref().ok_or_else(|| Status::unavailable("the sidecar has no policy yet"))?;
        if policy.is_empty() {
            return Err(none_offered("anything"));
        }
        let id = self.id.as_ref().ok_or_else(|| Status::unavailable("the sidecar has no identity now"))?;
        Ok((id, policy))
    }

    /// The answer to `FetchX509SVID`; none while it is being asked for.
    pub(super) fn x509_svids(&self) -> Result<Option<proto::X509svidResponse>, Status> {
        let (_, policy) = self.granted()?;
        if !policy.x509 {
            return Err(none_offered("an X.509-SVID"));
        }
        match &self.x509 {
            X509::Asking => Ok(None),
            X509::Failed(reason) => Err(Status::unavailable(reason.clone())),
            X509::Ready(svid) => {
                let svid = proto::X509svid {
                    spiffe_id: svid.id.to_string(),
                    x509_svid: joined(&svid.chain),
                    x509_svid_key: svid.key.secret_der().to_vec(),
                    bundle: joined(self.bundle.roots()),
                    hint: String::new(),
                };
                Ok(Some(proto::X509svidResponse { svids: vec![svid], ..Default::default() }))
            }
        }
    }

    /// The answer to `FetchX509Bundles`.
    pub(super) fn x509_bundles(&self) -> Result<Option<proto::X509BundlesResponse>, Status> {
        let (_, policy) = self.granted()?;
        if !policy.x509 {
            return Err(none_offered("X.509 bundles"));
        }
        let bundles = HashMap::from([(self.trust_domain(), joined(self.bundle.roots()))]);
        Ok(Some(proto::X509BundlesResponse { crl: Vec::new(), bundles }))
    }

    /// The answer to `FetchJWTBundles`.
    pub(super) fn jwt_bundles(&self) -> Result<Option<proto::JwtBundlesResponse>, Status> {
        let (_, policy) = self.granted()?;
        if policy.jwt.is_none() {
            return Err(none_offered("JWT bundles"));
        }
        let keys = bundle_document(&[], &self.jwt_keys, None);
        Ok(Some(proto::JwtBundlesResponse { bundles: HashMap::from([(self.trust_domain(), keys)]) }))
    }

    /// The trust domain's own SPIFFE ID, by which bundles are named.
    fn trust_domain(&self) -> String {
        format!("spiffe://{}", self.bundle.trust_domain())
    }
}

/// The answer where policy does not offer it.
pub(super) fn none_offered(what: &str) -> Status {
    let fix = "add it to `workloadApi` of the Workload, and apply";
    Status::permission_denied(format!(
        "workload-api-not-offered: policy offers this workload not {what}; fix: {fix}"
    ))
}

fn joined(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates.iter().flat_map(|der| der.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use signet_identity::{Authority, KeyRequest, TrustDomain};
    use signet_policy::JwtApi;
    use tonic::Code;

    use super::*;
    use crate::clock;

    fn authority() -> Authority {
        let life = std::time::Duration::from_secs(3600);
        Authority::create(TrustDomain::parse("mesh.example").unwrap(), clock::now(), life).unwrap()
    }

    fn offer(authority: &Authority, policy: Option<WorkloadApi>, x509: X509) -> Offer {
        Offer {
            id: Some(SpiffeId::parse("spiffe://mesh.example/app/d/api").unwrap()),
            bundle: Arc::new(authority.bundle()),
            jwt_keys: [authority.jwt().unwrap().key()].into(),
            policy,
            x509,
        }
    }

    fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> Code {
        answer.map_or_else(|status| status.code(), |_| Code::Ok)
    }

    #[test]
    fn nothing_is_given_that_policy_does_not_offer() {
        let authority = authority();
        let (x509, jwt) = (
            WorkloadApi { x509: true, jwt: None },
            WorkloadApi { x509: false, jwt: Some(JwtApi::default()) },
        );
        for (policy, codes) in [
            (None, [Code::Unavailable; 3]),
            (Some(WorkloadApi::default()), [Code::PermissionDenied; 3]),
            (Some(x509), [Code::Ok, Code::Ok, Code::PermissionDenied]),
            (Some(jwt), [Code::PermissionDenied, Code::PermissionDenied, Code::Ok]),
        ] {
            let offer = offer(&authority, policy.clone(), X509::Asking);
            let found = [code(offer.x509_svids()), code(offer.x509_bundles()), code(offer.jwt_bundles())];
            assert_eq!(found, codes, "{policy:?}");
        }
    }

    #[test]
    fn a_certificate_is_waited_for_given_with_its_key_and_roots_or_named_as_missing() {
        let authority = authority();
        let policy = Some(WorkloadApi { x509: true, jwt: None });
        assert!(offer(&authority, policy.clone(), X509::Asking).x509_svids().unwrap().is_none());
        let failed = offer(&authority, policy.clone(), X509::Failed("away".to_owned())).x509_svids();
        assert_eq!(failed.unwrap_err().code(), Code::Unavailable);
        let request = KeyRequest::new_tls().unwrap();
        let (now, id) = (clock::now(), SpiffeId::parse("spiffe://mesh.example/app/d/api").unwrap());
        let hour = std::time::Duration::from_secs(3600);
        let chain = authority.issue_app(&request.csr, &id, now, now + hour).unwrap();
        let svid = Arc::new(AppSvid::new(chain.clone(), request.key.clone()).unwrap());
        let answer = offer(&authority, policy, X509::Ready(svid)).x509_svids().unwrap().unwrap();
        let [given] = &*answer.svids else { panic!("{answer:?}") };
        assert_eq!(given.spiffe_id, id.as_str());
        assert_eq!(given.x509_svid, [&*chain[0], &*chain[1]].concat());
        assert_eq!(given.x509_svid_key, request.key.secret_der());
        assert_eq!(given.bundle, authority.root_der().to_vec());
        // What is shown of it in a log holds no key.
        assert!(!format!("{answer:?}").contains("key"));
    }

    #[test]
    fn without_an_identity_in_force_nothing_is_given() {
        let policy = Some(WorkloadApi { x509: true, jwt: Some(JwtApi::default()) });
        let offer = Offer { id: None, ..offer(&authority(), policy, X509::Asking) };
        assert_eq!(code(offer.jwt_bundles()), Code::Unavailable);
    }
}
