//! Which SPIFFE ID of which other trust domain may be which Workload: a file of the operator's.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::Value;
use signet_identity::{BundleError, SpiffeId, TrustBundle, TrustDomain};
use thiserror::Error;

use crate::files;

/// The longest file of rules, and of roots.
const FILE_BYTES: u64 = 1024 * 1024;
/// Trust domains whose SVIDs are believed: each is tried for each enrolment.
const DOMAINS_MAX: usize = 16;
/// Identities in one file: as many as there are workloads.
const WORKLOADS_MAX: usize = 10_000;

/// The file, read when the control plane starts. Roots are read anew for each enrolment: their trust domain replaces them.
#[derive(Clone, Debug)]
pub struct Rules {
    domains: Vec<(TrustDomain, PathBuf)>,
    workloads: Vec<(SpiffeId, String)>,
}

/// Why rules, or a trust domain's roots, cannot be used.
#[derive(Debug, Error)]
pub enum RulesError {
    /// Its roots make no bundle.
    #[error("{}: {error}", path.display())]
    Bundle {
        /// The file with roots.
        path: PathBuf,
        /// Why.
        error: BundleError,
    },
    /// A file cannot be read.
    #[error("{} cannot be read: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It holds no root.
    #[error("{} holds neither roots in PEM form nor a SPIFFE bundle with keys for x509-svid", .0.display())]
    NoRoots(PathBuf),
    /// The rules say something wrong.
    #[error("{0}")]
    Wrong(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    trust_domains: Vec<DomainSpec>,
    workloads: Vec<WorkloadSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DomainSpec {
    name: String,
    bundle: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WorkloadSpec {
    spiffe_id: String,
    workload: String,
}

impl Rules {
    /// Reads the file, and each trust domain's roots once, so that a mistake shows at the start.
    ///
    /// # Errors
    /// [`RulesError`], with the file.
    pub fn load(path: &Path, own: &TrustDomain) -> Result<Self, RulesError> {
        let text = files::read(path, FILE_BYTES)
            .map_err(|error| RulesError::File { path: path.to_owned(), error })?;
        let rules = Self::parse(&text, own)
            .map_err(|reason| RulesError::Wrong(format!("{}: {reason}", path.display())))?;
        rules.trust_domains().try_for_each(|domain| rules.bundle(domain).map(drop))?;
        Ok(rules)
    }

    fn parse(text: &str, own: &TrustDomain) -> Result<Self, String> {
        let document: Document = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if document.trust_domains.len() > DOMAINS_MAX || document.workloads.len() > WORKLOADS_MAX {
            return Err(format!("more than {DOMAINS_MAX} trust domains or {WORKLOADS_MAX} workloads"));
        }
        let mut domains: Vec<(TrustDomain, PathBuf)> = Vec::new();
        for DomainSpec { name, bundle } in document.trust_domains {
            let domain =
                TrustDomain::parse(&name).map_err(|error| format!("trust domain {name:?}: {error}"))?;
            if domain == *own {
                return Err(format!(
                    "{domain} is the mesh's own trust domain: whoever has an SVID of it is enrolled, or is an application"
                ));
            }
            if domains.iter().any(|(known, _)| *known == domain) {
                return Err(format!("trust domain {domain} stands there twice"));
            }
            domains.push((domain, bundle));
        }
        let mut workloads: Vec<(SpiffeId, String)> = Vec::new();
        for WorkloadSpec { spiffe_id, workload } in document.workloads {
            let id = SpiffeId::parse(&spiffe_id).map_err(|error| format!("{spiffe_id:?}: {error}"))?;
            if !domains.iter().any(|(domain, _)| domain.as_str() == id.trust_domain()) {
                return Err(format!("{id} is of no trust domain that is listed under `trustDomains`"));
            }
            if workloads.iter().any(|(known, _)| *known == id) {
                return Err(format!("{id} stands there twice: it may be one workload"));
            }
            workloads.push((id, workload));
        }
        Ok(Self { domains, workloads })
    }

    /// The trust domains whose SVIDs are believed.
    pub(super) fn trust_domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.domains.iter().map(|(domain, _)| domain)
    }

    /// The roots of one of them, as its file has them now.
    pub(super) fn bundle(&self, domain: &TrustDomain) -> Result<TrustBundle, RulesError> {
        let path = self.domains.iter().find(|(known, _)| known == domain).map(|(_, path)| path);
        let path = path.ok_or_else(|| RulesError::Wrong(format!("{domain} is not listed")))?;
        let text =
            files::read(path, FILE_BYTES).map_err(|error| RulesError::File { path: path.clone(), error })?;
        let roots = roots(&text).ok_or_else(|| RulesError::NoRoots(path.clone()))?;
        TrustBundle::new(domain.clone(), roots)
            .map_err(|error| RulesError::Bundle { path: path.clone(), error })
    }

    /// Which Workload an identity may be, by the name of its manifest.
    pub(super) fn workload_of(&self, id: &SpiffeId) -> Option<&str> {
        self.workloads.iter().find(|(known, _)| known == id).map(|(_, workload)| workload.as_str())
    }
}

/// The roots in a SPIFFE bundle or in PEM.
fn roots(text: &str) -> Option<Vec<CertificateDer<'static>>> {
    let found = if text.trim_start().starts_with('{') {
        let document: Value = serde_json::from_str(text).ok()?;
        let keys = document["keys"].as_array()?.iter().filter(|key| key["use"] == "x509-svid");
        let root = |key: &Value| Some(CertificateDer::from(STANDARD.decode(key["x5c"][0].as_str()?).ok()?));
        keys.map(root).collect::<Option<Vec<_>>>()?
    } else {
        CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>().ok()?
    };
    (!found.is_empty()).then_some(found)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use signet_identity::{Authority, bundle_document};

    use super::*;

    fn own() -> TrustDomain {
        TrustDomain::parse("mesh.example").unwrap()
    }

    #[test]
    fn roots_are_read_in_both_forms() {
        let domain = TrustDomain::parse("spire.example").unwrap();
        let authority = Authority::create(domain, SystemTime::now(), Duration::from_secs(3600)).unwrap();
        let root = std::slice::from_ref(authority.root_der());
        let document =
            String::from_utf8(bundle_document(root, &[authority.jwt().unwrap().key()], Some(1))).unwrap();
        assert_eq!(roots(&document).unwrap(), root);
        let pem = crate::authority::root_pem(authority.root_der());
        assert_eq!(roots(&pem).unwrap(), root);
        for none in ["", "{}", "{\"keys\":[]}", "{\"keys\":[{\"use\":\"x509-svid\"}]}", "no PEM"] {
            assert_eq!(roots(none), None, "{none}");
        }
    }

    #[test]
    fn wrong_rules_are_refused_with_their_reason() {
        let domain = "trustDomains: [{name: spire.example, bundle: /b}]";
        let good =
            format!("{domain}\nworkloads: [{{spiffeId: 'spiffe://spire.example/api', workload: api}}]");
        let rules = Rules::parse(&good, &own()).unwrap();
        let id = SpiffeId::parse("spiffe://spire.example/api").unwrap();
        assert_eq!(rules.workload_of(&id), Some("api"));
        assert_eq!(rules.workload_of(&SpiffeId::parse("spiffe://spire.example/api/x").unwrap()), None);
        for (text, reason) in [
            (
                "trustDomains: [{name: mesh.example, bundle: /b}]\nworkloads: []".to_owned(),
                "own trust domain",
            ),
            (
                format!("{domain}\nworkloads: [{{spiffeId: 'spiffe://other.example/a', workload: a}}]"),
                "of no trust domain",
            ),
            (format!("{domain}\nworkloads: [{{spiffeId: api, workload: a}}]"), "\"api\""),
            (format!("{good}\nroles: []"), "roles"),
            ("trustDomains: [{name: A B, bundle: /b}]\nworkloads: []".to_owned(), "A B"),
            (
                format!("{good}\n").replace(
                    "workloads: [",
                    "workloads: [{spiffeId: 'spiffe://spire.example/api', workload: b}, ",
                ),
                "twice",
            ),
        ] {
            let refused = Rules::parse(&text, &own()).unwrap_err();
            assert!(refused.contains(reason), "{text}: {refused}");
        }
    }
}
