//! The trust domain's keys: root, issuer, and the keys that sign pushed sections.
//!
//! They are made on the first start and kept in one file, `authority.pem`, mode 0600 and unencrypted: the state
//! directory is the secret. Its first line carries a digest of the rest, so that a damaged file is refused by name
//! instead of becoming a key nobody trusts.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{PemObject, SectionKind};
use signet_identity::{
    IssueError, KeyRequest, RequestError, SpiffeId, SvidError, TlsError, TlsSvid, TrustBundle, TrustDomain,
};
use signet_sync::{KeyError, SectionKey};
use thiserror::Error;

use crate::files;

const FILE: &str = "authority.pem";
const HEADER: &str = "signet-authority 1 sha256 ";

/// Far above two certificates and four keys.
const FILE_MAX: u64 = 64 * 1024;

/// How long root and issuer live. There is one slot until roots rotate, so it must outlast a deployment.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How long the control plane's own certificate lives; it is made anew at half of that.
const SERVER_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Certificates start this much earlier than now, for peers whose clock is behind.
pub(crate) const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// The device name in the control plane's own SPIFFE ID.
const DEVICE: &str = "control-plane";

/// The keys of a trust domain. `Debug` shows none of them.
pub(crate) struct Authority {
    issuing: signet_identity::Authority,
    policy_key: SectionKey,
    directory_key: SectionKey,
    id: SpiffeId,
}

impl Authority {
    /// Loads the authority of `directory`; `None` when none was made there yet.
    pub(crate) fn load(directory: &Path, trust_domain: &TrustDomain) -> Result<Option<Self>, AuthorityError> {
        let text = match files::read(&directory.join(FILE), FILE_MAX) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == ErrorKind::InvalidData => return Err(AuthorityError::Corrupted),
            Err(error) => return Err(AuthorityError::Io(error)),
        };
        let authority = Self::decode(&text)?;
        if authority.issuing.trust_domain() != trust_domain {
            return Err(AuthorityError::OtherTrustDomain {
                stored: authority.issuing.trust_domain().to_string(),
                configured: trust_domain.to_string(),
            });
        }
        Ok(Some(authority))
    }

    /// Makes new keys and stores them in `directory`.
    pub(crate) fn create(
        directory: &Path,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let issuing =
            signet_identity::Authority::create(trust_domain.clone(), now - BACKDATE, AUTHORITY_LIFETIME)?;
        let id = SpiffeId::control_plane(trust_domain, DEVICE).map_err(|_| AuthorityError::Corrupted)?;
        Self { issuing, policy_key: SectionKey::generate()?, directory_key: SectionKey::generate()?, id }
            .store(directory)
    }

    /// Keeps the keys in `directory` from now on.
    pub(crate) fn store(self, directory: &Path) -> Result<Self, AuthorityError> {
        files::replace(&directory.join(FILE), self.encode()?.as_bytes()).map_err(AuthorityError::Io)?;
        Ok(self)
    }

    /// Certificates and keys for workloads.
    pub(crate) fn issuing(&self) -> &signet_identity::Authority {
        &self.issuing
    }

    /// Signs policy, anchors and revocations.
    pub(crate) fn policy_key(&self) -> &SectionKey {
        &self.policy_key
    }

    /// Signs this area's directories.
    pub(crate) fn directory_key(&self) -> &SectionKey {
        &self.directory_key
    }

    /// The control plane's own identity.
    pub(crate) fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The roots that peers are verified against.
    pub(crate) fn bundle(&self) -> TrustBundle {
        self.issuing.bundle()
    }

    /// What a token pins: the SHA-256 of the root's public key.
    pub(crate) fn pin(&self) -> [u8; 32] {
        self.issuing.root_spki_sha256()
    }

    /// The pin as text: it tells which authority a store belongs to.
    pub(crate) fn name(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.pin())
    }

    /// The roots as PEM, for people and tools.
    pub(crate) fn roots_pem(&self) -> String {
        pem("CERTIFICATE", self.issuing.root_der())
    }

    /// A fresh certificate for the control plane itself, over a fresh key.
    pub(crate) fn server_svid(&self, now: SystemTime) -> Result<TlsSvid, AuthorityError> {
        let request = KeyRequest::new_tls()?;
        let chain: Vec<CertificateDer<'static>> =
            self.issuing.issue_tls(&request.csr, &self.id, now - BACKDATE, now + SERVER_LIFETIME)?;
        Ok(TlsSvid::new(chain, request.key)?)
    }

    fn encode(&self) -> Result<String, AuthorityError> {
        let body = format!(
            "{}{}{}",
            self.issuing.to_pem(),
            pem("PRIVATE KEY", &self.policy_key.to_pkcs8()?),
            pem("PRIVATE KEY", &self.directory_key.to_pkcs8()?),
        );
        Ok(format!("{HEADER}{}\n{body}", checksum(&body)))
    }

    fn decode(text: &str) -> Result<Self, AuthorityError> {
        let (head, body) = text.split_once('\n').ok_or(AuthorityError::Corrupted)?;
        if head.strip_prefix(HEADER) != Some(checksum(body).as_str()) {
            return Err(AuthorityError::Corrupted);
        }
        let mut blocks = <(SectionKind, Vec<u8>)>::pem_slice_iter(body.as_bytes());
        // The two section keys stand behind the four blocks of the issuing part, and in this order.
        let policy =
            blocks.nth(4).ok_or(AuthorityError::Corrupted)?.map_err(|_| AuthorityError::Corrupted)?;
        let directory =
            blocks.next().ok_or(AuthorityError::Corrupted)?.map_err(|_| AuthorityError::Corrupted)?;
        let issuing = signet_identity::Authority::from_pem(&issuing_part(body)?)?;
        let id =
            SpiffeId::control_plane(issuing.trust_domain(), DEVICE).map_err(|_| AuthorityError::Corrupted)?;
        Ok(Self {
            issuing,
            policy_key: SectionKey::from_pkcs8(&policy.1)?,
            directory_key: SectionKey::from_pkcs8(&directory.1)?,
            id,
        })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The first four PEM blocks of the file.
fn issuing_part(body: &str) -> Result<String, AuthorityError> {
    let mut blocks = body.match_indices("-----BEGIN ").map(|(at, _)| at);
    let end = blocks.nth(4).ok_or(AuthorityError::Corrupted)?;
    body.get(..end).map(str::to_owned).ok_or(AuthorityError::Corrupted)
}

fn checksum(body: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, body.as_bytes()))
}

fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let encoded = STANDARD.encode(der);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, remaining) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = remaining;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// Why there is no authority to start with.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// The clock was never set.
    #[error(
        "this machine's clock stands before 2025 and no authority can be made by it; set the clock and start again"
    )]
    ClockUnset,
    /// The file is not what was written.
    #[error("authority.pem is corrupted: its checksum does not match")]
    Corrupted,
    /// The operating system refused a read or a write.
    #[error("authority.pem cannot be read or written")]
    Io(#[source] std::io::Error),
    /// Keys or certificates could not be made or read.
    #[error("the authority's certificates are unusable")]
    Issue(#[from] IssueError),
    /// There is a store but no authority: making a new one would orphan every enrolled workload.
    #[error("authority.pem is missing although the store belongs to one; restore it from a backup")]
    Missing,
    /// The store was made with other keys.
    #[error("authority.pem and the store do not belong together; restore both from the same backup")]
    OtherStore,
    /// The directory belongs to another trust domain.
    #[error("the state directory belongs to trust domain {stored}, not {configured}")]
    OtherTrustDomain {
        /// The trust domain of the stored keys.
        stored: String,
        /// The trust domain of the configuration.
        configured: String,
    },
    /// There is no randomness for a key of our own.
    #[error("no key can be made")]
    Request(#[from] RequestError),
    /// A section key is unusable.
    #[error("a section key is unusable")]
    SectionKey(#[from] KeyError),
    /// The control plane's own certificate is unusable.
    #[error("the control plane's own certificate is unusable")]
    Svid(#[from] SvidError),
    /// TLS cannot be set up with it.
    #[error("TLS cannot be set up")]
    Tls(#[from] TlsError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_authority_is_the_same_after_loading() {
        let directory = tempfile::tempdir().unwrap();
        let trust_domain = TrustDomain::parse("mesh.example").unwrap();
        assert!(Authority::load(directory.path(), &trust_domain).unwrap().is_none());
        let made = Authority::create(directory.path(), &trust_domain, SystemTime::now()).unwrap();
        let loaded = Authority::load(directory.path(), &trust_domain).unwrap().unwrap();
        assert_eq!(loaded.encode().unwrap(), made.encode().unwrap());
        assert_eq!(loaded.pin(), made.pin());
        assert_eq!(loaded.id().as_str(), "spiffe://mesh.example/platform/control-plane/control-plane");
    }

    #[test]
    fn a_flipped_bit_anywhere_in_the_file_is_refused() {
        let trust_domain = TrustDomain::parse("mesh.example").unwrap();
        let directory = tempfile::tempdir().unwrap();
        Authority::create(directory.path(), &trust_domain, SystemTime::now()).unwrap();
        let path = directory.path().join(FILE);
        let intact = std::fs::read(&path).unwrap();
        for at in (0..intact.len()).step_by(97) {
            let mut bytes = intact.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let refused = Authority::load(directory.path(), &trust_domain).unwrap_err();
            assert!(matches!(refused, AuthorityError::Corrupted), "{at}: {refused}");
        }
    }

    #[test]
    fn another_trust_domain_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let trust_domain = TrustDomain::parse("mesh.example").unwrap();
        Authority::create(directory.path(), &trust_domain, SystemTime::now()).unwrap();
        let other = TrustDomain::parse("other.example").unwrap();
        let refused = Authority::load(directory.path(), &other).unwrap_err();
        assert!(matches!(refused, AuthorityError::OtherTrustDomain { .. }));
    }

    #[test]
    fn the_file_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let trust_domain = TrustDomain::parse("mesh.example").unwrap();
        Authority::create(directory.path(), &trust_domain, SystemTime::now()).unwrap();
        let mode = std::fs::metadata(directory.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
