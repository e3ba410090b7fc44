//! What the application beside a sidecar gets for itself: an X.509-SVID over a key of its own, and JWT-SVIDs.
//!
//! Both are asked for by the sidecar, with the workload's certificate, and given only where the Workload's `workloadApi` says
//! so. Neither is recorded: no end of the mesh believes them, they live shortly, and whoever is revoked gets no more.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use signet_identity::{Class, IssueError, JwtError, SpiffeId};
use signet_policy::{PolicyModel, WorkloadApi};
use signet_sync::MAX_AUDIENCES;
use thiserror::Error;

use crate::authority::{Authority, AuthorityError, BACKDATE};

/// The longest life of an application's certificate: nobody outside the mesh hears of revocations.
const X509_LIFETIME: Duration = Duration::from_secs(3600);

/// How long a token is good: whoever it is shown to can show it to others of its audience.
pub(crate) const JWT_LIFETIME: Duration = Duration::from_secs(300);

/// What one instance gets at once: a sidecar that starts asks for a certificate and a token for each of its audiences.
pub(crate) const BURST: u32 = 64;

/// And one more every so often.
pub(crate) const REFILL: Duration = Duration::from_secs(1);

/// Why an application gets nothing.
#[derive(Debug, Error)]
pub(crate) enum AppSvidError {
    #[error("{0:?} is not among the audiences that `workloadApi.jwt` of the Workload lists")]
    Audience(String),
    #[error("a token has one to {MAX_AUDIENCES} audiences")]
    AudienceCount,
    #[error("the control plane cannot certify now: {0}")]
    Authority(#[from] AuthorityError),
    #[error("the token cannot be made: {0}")]
    Jwt(#[from] JwtError),
    #[error("the Workload's `workloadApi` does not offer it")]
    NotOffered,
    #[error("the request cannot be certified: {0}")]
    Request(#[from] IssueError),
}

impl AppSvidError {
    /// A stable name for metrics, logs and the proxy's own errors.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Audience(_) => "audience-not-listed",
            Self::AudienceCount | Self::Jwt(_) | Self::Request(_) => "bad-request",
            Self::Authority(_) => "authority-unavailable",
            Self::NotOffered => "workload-api-not-offered",
        }
    }
}

/// The chain of a certificate for the application of `id`, leaf first.
pub(crate) fn certify(
    authority: &Authority,
    model: &PolicyModel,
    id: &SpiffeId,
    csr: &[u8],
    now: SystemTime,
) -> Result<Vec<CertificateDer<'static>>, AppSvidError> {
    if !offered(model, id).is_some_and(|offered| offered.x509) {
        return Err(AppSvidError::NotOffered);
    }
    let not_after = now + X509_LIFETIME.min(model.lifetimes.of(class(id)));
    Ok(authority.issuing()?.app(csr, id, now - BACKDATE, not_after)?)
}

/// A token for the application of `id` to show to these audiences.
pub(crate) fn sign_jwt(
    authority: &Authority,
    model: &PolicyModel,
    id: &SpiffeId,
    audience: &[String],
    now: SystemTime,
) -> Result<String, AppSvidError> {
    let offered = offered(model, id).filter(|offered| offered.jwt.is_some());
    let offered = offered.ok_or(AppSvidError::NotOffered)?;
    if !(1..=MAX_AUDIENCES).contains(&audience.len()) {
        return Err(AppSvidError::AudienceCount);
    }
    if let Some(refused) = offered.refused_audience(audience) {
        return Err(AppSvidError::Audience(refused.chars().take(80).collect()));
    }
    let not_after = now + JWT_LIFETIME.min(model.lifetimes.of(class(id)));
    Ok(authority.issuing()?.jwt(id, audience, now, not_after)?)
}

fn offered<'a>(model: &'a PolicyModel, id: &SpiffeId) -> Option<&'a WorkloadApi> {
    model.workload(id).map(|workload| &workload.workload_api)
}

fn class(id: &SpiffeId) -> Class {
    id.parts().map_or(Class::External, |parts| parts.class)
}

#[cfg(test)]
mod tests {
    use signet_identity::{KeyRequest, TrustDomain, verify_app_chain, verify_jwt, verify_tls_chain};
    use signet_policy::{compile, parse_manifests};

    use super::*;

    const MESH: &str = "apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec: { trustDomain: mesh.example, networks: [{ name: edge }], certificates: { agent: { lifetime: 15m } } }
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: closed }
spec: { class: app, device: edge, network: edge }
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: tokens }
spec: { class: app, device: edge, network: edge, workloadApi: { jwt: { audiences: [vault, db] } } }
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: both }
spec: { class: agent, device: edge, network: edge, workloadApi: { x509: true, jwt: {} } }
";

    struct Stage {
        _directory: tempfile::TempDir,
        authority: Authority,
        model: PolicyModel,
        now: SystemTime,
    }

    fn stage() -> Stage {
        let directory = tempfile::tempdir().unwrap();
        let domain = TrustDomain::parse("mesh.example").unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_419_480);
        let authority = Authority::create(directory.path(), &domain, now).unwrap();
        let model = compile(&parse_manifests("test", MESH).unwrap()).unwrap();
        Stage { _directory: directory, authority, model, now }
    }

    fn id(path: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://mesh.example/{path}")).unwrap()
    }

    fn code<T>(outcome: Result<T, AppSvidError>) -> &'static str {
        outcome.map_or_else(|error| error.code(), |_| "ok")
    }

    #[test]
    fn certificates_are_given_where_policy_says_so_and_are_none_of_the_meshs() {
        let Stage { authority, model, now, .. } = stage();
        let request = KeyRequest::new_tls().unwrap();
        let ask = |path: &str| certify(&authority, &model, &id(path), &request.csr, now);
        for path in ["app/edge/closed", "app/edge/tokens", "app/edge/unknown"] {
            assert_eq!(code(ask(path)), "workload-api-not-offered", "{path}");
        }
        let chain = ask("agent/edge/both").unwrap();
        let bundle = authority.bundle().unwrap();
        assert_eq!(verify_app_chain(&bundle, &chain, now).unwrap(), id("agent/edge/both"));
        assert!(verify_tls_chain(&bundle, &chain, now).is_err());
        // No longer than the class's own certificates.
        let minutes = |minutes: u64| now + Duration::from_secs(60 * minutes);
        assert!(verify_app_chain(&bundle, &chain, minutes(14)).is_ok());
        assert!(verify_app_chain(&bundle, &chain, minutes(16)).is_err());
        assert_eq!(code(certify(&authority, &model, &id("agent/edge/both"), b"", now)), "bad-request");
    }

    #[test]
    fn tokens_are_given_for_listed_audiences_and_end_within_minutes() {
        let Stage { authority, model, now, .. } = stage();
        let ask = |path: &str, audience: &[&str]| {
            let audience: Vec<String> = audience.iter().map(|&one| one.to_owned()).collect();
            sign_jwt(&authority, &model, &id(path), &audience, now)
        };
        let token = ask("app/edge/tokens", &["vault", "db"]).unwrap();
        let keys = authority.jwt_keys().unwrap();
        let verify = |at| verify_jwt(&keys, authority.trust_domain(), &token, "db", at);
        assert_eq!(verify(now).unwrap().id, id("app/edge/tokens"));
        assert_eq!(verify(now + JWT_LIFETIME), Err(JwtError::Expired));
        assert_eq!(code(ask("app/edge/tokens", &["vault", "other"])), "audience-not-listed");
        assert_eq!(code(ask("agent/edge/both", &["vault"])), "audience-not-listed");
        assert_eq!(code(ask("app/edge/closed", &["vault"])), "workload-api-not-offered");
        assert_eq!(code(ask("app/edge/tokens", &[])), "bad-request");
        assert_eq!(code(ask("app/edge/tokens", &["db"; MAX_AUDIENCES + 1])), "bad-request");
    }
}
