//! The authority of a trust domain: a root that certifies one issuer, and the issuer that certifies workloads.

mod key;

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::bundle::{BundleError, TrustBundle};
use crate::certificate::{Certificate, CertificateError, SIGNING_EKU};
use crate::device;
use crate::fingerprint::sha256;
use crate::grant::AreaGrant;
use crate::id::{SpiffeId, TrustDomain};
use crate::jwt::{JwtAuthority, JwtError};
use crate::key::KeyKind;
use crate::pem;
use crate::request::{RequestError, RequestedKey};
use crate::secret::PrivateKey;
use key::AuthorityKey;

pub(crate) use key::REFERENCE_BYTES_MAX;
pub use key::{HeldKey, KeyModule, KeyModuleError, Keys};

/// How far an authority's own certificates are set back, so that a device whose clock is a day slow can verify
/// them at once.
const AUTHORITY_BACKDATE: Duration = Duration::from_secs(24 * 3600);

/// The last second that X.509 can write, 9999-12-31T23:59:59Z.
const LAST_SECOND: Duration = Duration::from_secs(253_402_300_799);

/// Root and issuer of one trust domain, with their keys.
pub struct Authority {
    trust_domain: TrustDomain,
    bundle: TrustBundle,
    root_key: AuthorityKey,
    root_der: CertificateDer<'static>,
    root_spki_sha256: [u8; 32],
    root_not_before: SystemTime,
    root_not_after: SystemTime,
    pub(crate) issuer: Issuer<'static, AuthorityKey>,
    issuer_spki_sha256: [u8; 32],
    issuer_der: CertificateDer<'static>,
    issuer_not_before: SystemTime,
    issuer_not_after: SystemTime,
    /// What it may certify, where it is an area's.
    grant: Option<AreaGrant>,
    /// None where the issuer's key is in a module, which gives nothing to derive from.
    jwt: Option<JwtAuthority>,
}

impl Authority {
    /// Makes a new root and a new issuer, both valid until `lifetime` after `now`, with keys in memory.
    ///
    /// # Errors
    /// [`IssueError::Validity`] for a lifetime of nothing or beyond the year 9999, [`IssueError::Encoding`]
    /// when the cryptographic library fails.
    pub fn create(
        trust_domain: TrustDomain,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Self, IssueError> {
        Self::create_in(&Keys::Memory, trust_domain, now, lifetime)
    }

    /// The same, with keys that are made there.
    ///
    /// # Errors
    /// As for [`Authority::create`]; [`IssueError::Module`] when the module cannot.
    pub fn create_in(
        keys: &Keys,
        trust_domain: TrustDomain,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Self, IssueError> {
        let not_before = now.checked_sub(AUTHORITY_BACKDATE).unwrap_or(SystemTime::UNIX_EPOCH);
        let not_after = now.checked_add(lifetime).ok_or(IssueError::Validity)?;
        check_validity(now, not_after)?;

        let root_key = AuthorityKey::generate(keys)?;
        let root_params = authority_params(&trust_domain, "root", &root_key, 1, not_before, not_after)?;
        let root = root_params.self_signed(&root_key)?;

        let issuer_key = AuthorityKey::generate(keys)?;
        let issuer_params = authority_params(&trust_domain, "issuer", &issuer_key, 0, not_before, not_after)?;
        let issuer = issuer_params.signed_by(&issuer_key, &Issuer::from_params(&root_params, &root_key))?;
        Self::assemble(root.into(), root_key, issuer.into(), issuer_key)
    }

    /// The same root with a new issuer, valid until `lifetime` after `now` but no longer than the root. It is name-constrained
    /// if this one is.
    ///
    /// # Errors
    /// As for [`Authority::create`]; [`IssueError::Validity`] also when the root has ended.
    pub fn with_new_issuer(&self, now: SystemTime, lifetime: Duration) -> Result<Self, IssueError> {
        self.with_new_issuer_in(&Keys::Memory, now, lifetime)
    }

    /// The same, with a key that is made there.
    ///
    /// # Errors
    /// As for [`Authority::with_new_issuer`]; [`IssueError::Module`] when the module cannot.
    pub fn with_new_issuer_in(
        &self,
        keys: &Keys,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Self, IssueError> {
        if self.is_constrained() {
            self.with_constrained_issuer(keys, now, lifetime)
        } else {
            self.reissued(keys, now, lifetime, None)
        }
    }

    /// The same, with an issuer whose certificate says that it may vouch for URIs of this trust domain alone (X.509 name
    /// constraints, RFC 5280 section 4.2.1.10; critical). Verifiers of this crate before 0.1.0's protocol 4 refuse its chains.
    ///
    /// # Errors
    /// As for [`Authority::with_new_issuer_in`].
    pub fn with_constrained_issuer(
        &self,
        keys: &Keys,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Self, IssueError> {
        self.reissued(keys, now, lifetime, Some(name_constraints(&self.trust_domain)?))
    }

    /// An issuer with constraints that no authority of ours has, DER.
    #[cfg(test)]
    pub(crate) fn with_constraints(
        &self,
        now: SystemTime,
        lifetime: Duration,
        constraints: Vec<u8>,
    ) -> Result<Self, IssueError> {
        self.reissued(&Keys::Memory, now, lifetime, Some(critical(constraints)))
    }

    /// Whether the issuer may vouch for its trust domain alone, by its own certificate.
    pub fn is_constrained(&self) -> bool {
        Certificate::parse(&self.issuer_der).is_ok_and(|issuer| issuer.is_constrained())
    }

    fn reissued(
        &self,
        keys: &Keys,
        now: SystemTime,
        lifetime: Duration,
        constraints: Option<CustomExtension>,
    ) -> Result<Self, IssueError> {
        let not_before = now.checked_sub(AUTHORITY_BACKDATE).unwrap_or(SystemTime::UNIX_EPOCH);
        let not_after = now.checked_add(lifetime).ok_or(IssueError::Validity)?.min(self.root_not_after);
        check_validity(now, not_after)?;
        let root = Issuer::from_ca_cert_der(&self.root_der, self.root_key.same()?)?;
        let issuer_key = AuthorityKey::generate(keys)?;
        let mut params = authority_params(
            &self.trust_domain,
            "issuer",
            &issuer_key,
            0,
            not_before.max(self.root_not_before),
            not_after,
        )?;
        params.custom_extensions.extend(constraints);
        let issuer = params.signed_by(&issuer_key, &root)?;
        Self::assemble(self.root_der.clone(), self.root_key.same()?, issuer.into(), issuer_key)
    }

    /// This root's word for `next`'s root: a certificate over that root's name and key, until `not_after` but no longer
    /// than either root. With it behind a chain of `next`, those who believe this root alone find a path.
    ///
    /// # Errors
    /// [`IssueError::TrustDomain`] for a root of another trust domain, [`IssueError::Validity`] when nothing is left.
    pub fn vouch_for(
        &self,
        next: &Self,
        now: SystemTime,
        not_after: SystemTime,
    ) -> Result<CertificateDer<'static>, IssueError> {
        if next.trust_domain != self.trust_domain {
            return Err(IssueError::TrustDomain);
        }
        let not_before = now.checked_sub(AUTHORITY_BACKDATE).unwrap_or(SystemTime::UNIX_EPOCH);
        let not_before = not_before.max(self.root_not_before).max(next.root_not_before);
        let not_after = not_after.min(self.root_not_after).min(next.root_not_after);
        check_validity(now, not_after)?;
        // Below it may stand the issuer and one more such certificate: of the root after that one.
        let params = authority_params(&self.trust_domain, "root", &next.root_key, 2, not_before, not_after)?;
        let root = Issuer::from_ca_cert_der(&self.root_der, self.root_key.same()?)?;
        // By SubjectPublicKeyInfo: the private half of the next root has no part in it.
        Ok(params.signed_by(&next.root_key, &root)?.into())
    }

    /// Certifies the issuer of an area over the key of its request, by the root: it may vouch for this trust domain alone, by
    /// name constraints, and there for what `grant` says. No longer than the root.
    ///
    /// # Errors
    /// The request is bad, or nothing is left of the validity.
    pub fn delegate(
        &self,
        csr: &[u8],
        grant: &AreaGrant,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<CertificateDer<'static>, IssueError> {
        let key = RequestedKey::verify(csr, KeyKind::P256)?;
        let not_before = not_before.max(self.root_not_before);
        let not_after = not_after.min(self.root_not_after);
        let mut params = authority_params(&self.trust_domain, "area", &key, 0, not_before, not_after)?;
        params.custom_extensions = vec![name_constraints(&self.trust_domain)?, grant.extension()];
        let root = Issuer::from_ca_cert_der(&self.root_der, self.root_key.same()?)?;
        Ok(params.signed_by(&key, &root)?.into())
    }

    /// Certifies the end of an area's control plane, by the root: no grant permits an area to do that, and no change of issuers
    /// touches it.
    ///
    /// # Errors
    /// As for [`Authority::delegate`]; [`IssueError::TrustDomain`] for what is no control plane of this trust domain.
    pub fn certify_control_plane(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<CertificateDer<'static>, IssueError> {
        if !id.is_control_plane() || id.trust_domain() != self.trust_domain.as_str() {
            return Err(IssueError::TrustDomain);
        }
        let key = RequestedKey::verify(csr, KeyKind::P256)?;
        let not_before = not_before.max(self.root_not_before);
        let mut params = params(id.as_str(), not_before, not_after.min(self.root_not_after))?;
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let root = Issuer::from_ca_cert_der(&self.root_der, self.root_key.same()?)?;
        Ok(params.signed_by(&key, &root)?.into())
    }

    /// An area's side of [`Authority::delegate`]: it certifies with the issuer's key, PKCS#8, and has none of the root.
    ///
    /// # Errors
    /// [`IssueError::Mismatch`] when they do not belong together, or the issuer is no area's.
    pub fn delegated(
        root: CertificateDer<'static>,
        issuer: CertificateDer<'static>,
        key: &PrivateKey,
    ) -> Result<Self, IssueError> {
        let spki = Certificate::parse(&root)?.spki;
        let point = KeyKind::P256.public_key(spki).ok_or(IssueError::Mismatch)?.to_vec();
        // Without a module nothing can be signed with it.
        let root_key = AuthorityKey::Held(HeldKey { reference: "parent".to_owned(), point }, None);
        let issuer_key = AuthorityKey::from_pkcs8(key.secret_der())?;
        let delegated = Self::assemble(root, root_key, issuer, issuer_key)?;
        if delegated.grant.is_some() { Ok(delegated) } else { Err(IssueError::Mismatch) }
    }

    /// What it may certify, where it is an area's.
    pub fn grant(&self) -> Option<&AreaGrant> {
        self.grant.as_ref()
    }

    /// Reads what [`Authority::to_pem`] wrote, in its order, and checks that the parts belong together.
    ///
    /// # Errors
    /// A part is missing, is not what it must be, or belongs to another.
    pub fn from_pem(text: &str) -> Result<Self, IssueError> {
        Self::from_pem_in(&Keys::Memory, text)
    }

    /// The same, where keys that are named only are used by the module that holds them. Without one they can be named again,
    /// by [`Authority::to_pem`], and nothing can be issued.
    ///
    /// # Errors
    /// As for [`Authority::from_pem`].
    pub fn from_pem_in(keys: &Keys, text: &str) -> Result<Self, IssueError> {
        // Section by section: the reader of certificates would make copies of the keys.
        let sections: Vec<&str> = pem::sections(text).collect();
        let [root, root_key, issuer, issuer_key] = &*sections else { return Err(IssueError::Pem) };
        let certificate =
            |section: &str| CertificateDer::from_pem_slice(section.as_bytes()).map_err(|_| IssueError::Pem);
        let (root, issuer) = (certificate(root)?, certificate(issuer)?);
        let key = |section: &str, certificate: &CertificateDer<'_>| {
            AuthorityKey::read(section, Certificate::parse(certificate)?.spki, keys)
        };
        let (root_key, issuer_key) = (key(root_key, &root)?, key(issuer_key, &issuer)?);
        Self::assemble(root, root_key, issuer, issuer_key)
    }

    /// What a module knows the keys of root and issuer by; none of those in memory.
    pub fn held_keys(&self) -> impl Iterator<Item = &str> {
        [self.root_key.held(), self.issuer.key().held()].into_iter().flatten()
    }

    /// Whether both keys are there and can be used: signs with each and verifies the signature.
    ///
    /// # Errors
    /// [`IssueError::Mismatch`] when one is another than its certificate's, [`IssueError::Encoding`] when one cannot be used.
    pub fn prove_keys(&self) -> Result<(), IssueError> {
        const CHALLENGE: &[u8] = b"signet authority key";
        let pairs = [(&self.root_key, &self.root_der), (self.issuer.key(), &self.issuer_der)];
        for (key, certificate) in pairs {
            let signature = rcgen::SigningKey::sign(key, CHALLENGE)?;
            if !KeyKind::P256.signed(Certificate::parse(certificate)?.spki, CHALLENGE, &signature) {
                return Err(IssueError::Mismatch);
            }
        }
        Ok(())
    }

    /// Root certificate, root key, issuer certificate, issuer key. The text is the whole power of the trust
    /// domain: keep it 0600, or in memory only.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let sections = [
            (pem::CERTIFICATE, &*self.root_der),
            self.root_key.section(),
            (pem::CERTIFICATE, &*self.issuer_der),
            self.issuer.key().section(),
        ];
        pem::secret(&sections)
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root certificate.
    pub fn root_der(&self) -> &CertificateDer<'static> {
        &self.root_der
    }

    /// SHA-256 of the root's SubjectPublicKeyInfo: what join tokens pin.
    pub fn root_spki_sha256(&self) -> [u8; 32] {
        self.root_spki_sha256
    }

    /// SHA-256 of the issuer's SubjectPublicKeyInfo: what tells issuers apart.
    pub fn issuer_spki_sha256(&self) -> [u8; 32] {
        self.issuer_spki_sha256
    }

    /// The issuer's certificate.
    pub fn issuer_der(&self) -> &CertificateDer<'static> {
        &self.issuer_der
    }

    /// Signs JWT-SVIDs under this issuer; none where a module holds its key, which gives nothing to derive from.
    pub fn jwt(&self) -> Option<&JwtAuthority> {
        self.jwt.as_ref()
    }

    /// The bundle with this root alone.
    pub fn bundle(&self) -> TrustBundle {
        self.bundle.clone()
    }

    /// When the issuer ends; no leaf is issued beyond.
    pub fn not_after(&self) -> SystemTime {
        self.issuer_not_after
    }

    /// Issues a TLS SVID: the chain, leaf first. From the request only the P-256 key is taken. The validity is
    /// cut to the issuer's; set `not_before` back by the clock error you want to bear.
    ///
    /// # Errors
    /// The request is bad, the identity is of another trust domain, or nothing is left of the validity.
    pub fn issue_tls(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        self.issue_tls_in(csr, id, not_before, not_after, None)
    }

    /// The same for a key that lies in a device: the certificate names it by the SHA-256 of its endorsement key, see
    /// [`device_of`](crate::device_of). That it does is for the caller to know.
    ///
    /// # Errors
    /// As for [`Authority::issue_tls`].
    pub fn issue_tls_in(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        not_before: SystemTime,
        not_after: SystemTime,
        device: Option<&[u8; 32]>,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let key = RequestedKey::verify(csr, KeyKind::P256)?;
        let mut params = self.leaf_params(id, not_before, not_after)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.custom_extensions = device.map(device::extension).into_iter().collect();
        self.chain(&params, &key)
    }

    /// Issues a signing SVID: like [`Authority::issue_tls`], over an Ed25519 key.
    ///
    /// # Errors
    /// As for [`Authority::issue_tls`].
    pub fn issue_signing(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let key = RequestedKey::verify(csr, KeyKind::Ed25519)?;
        let mut params = self.leaf_params(id, not_before, not_after)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::ContentCommitment];
        params.custom_extensions = vec![signing_purpose()];
        self.chain(&params, &key)
    }

    /// Issues an X.509-SVID for the application beside a workload's sidecar: like [`Authority::issue_tls`], but without any
    /// purpose. To outsiders that means every purpose; in the mesh it means none, see [`AppSvid`](crate::AppSvid).
    ///
    /// # Errors
    /// As for [`Authority::issue_tls`].
    pub fn issue_app(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let key = RequestedKey::verify(csr, KeyKind::P256)?;
        let mut params = self.leaf_params(id, not_before, not_after)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        self.chain(&params, &key)
    }

    /// Issues a certificate for a server that outsiders know by a DNS name, such as a cluster that asks a webhook: the
    /// chain. It names no identity, so no peer of the mesh takes it for anybody.
    ///
    /// # Errors
    /// As for [`Authority::issue_tls`]; [`IssueError::Encoding`] also for what is no name.
    pub fn issue_dns(
        &self,
        csr: &[u8],
        name: &str,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let key = RequestedKey::verify(csr, KeyKind::P256)?;
        let not_before = not_before.max(self.issuer_not_before);
        let not_after = not_after.min(self.issuer_not_after);
        let mut params = params(&self.trust_domain.uri(), not_before, not_after)?;
        params.subject_alt_names = vec![SanType::DnsName(Ia5String::try_from(name)?)];
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.chain(&params, &key)
    }

    fn chain(
        &self,
        params: &CertificateParams,
        key: &RequestedKey,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let leaf = params.signed_by(key, &self.issuer)?;
        Ok(vec![leaf.into(), self.issuer_der.clone()])
    }

    /// What both kinds of leaf have in common. The subject is empty, so the name stands in one place only.
    fn leaf_params(
        &self,
        id: &SpiffeId,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<CertificateParams, IssueError> {
        if id.trust_domain() != self.trust_domain.as_str() {
            return Err(IssueError::TrustDomain);
        }
        // Every peer would refuse it.
        if self.grant.as_ref().is_some_and(|grant| !grant.permits(id)) {
            return Err(IssueError::Grant);
        }
        let not_before = not_before.max(self.issuer_not_before);
        let not_after = not_after.min(self.issuer_not_after);
        let mut params = params(id.as_str(), not_before, not_after)?;
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        Ok(params)
    }

    fn assemble(
        root_der: CertificateDer<'static>,
        root_key: AuthorityKey,
        issuer_der: CertificateDer<'static>,
        issuer_key: AuthorityKey,
    ) -> Result<Self, IssueError> {
        let root = Certificate::parse(&root_der)?;
        let issuer = Certificate::parse(&issuer_der)?;
        let belong_together = root.is_authority
            && issuer.is_authority
            && root.spki == root_key.subject_public_key_info()
            && issuer.spki == issuer_key.subject_public_key_info()
            && root.is_signed_by(root.spki)
            && issuer.is_signed_by(root.spki)
            && root.only_uri()? == if issuer.is_area() { issuer.own_uri()? } else { issuer.only_uri()? };
        if !belong_together {
            return Err(IssueError::Mismatch);
        }
        let trust_domain = TrustDomain::from_uri(root.only_uri()?).map_err(|_| IssueError::Mismatch)?;
        Ok(Self {
            bundle: TrustBundle::new(trust_domain.clone(), vec![root_der.clone()])?,
            trust_domain,
            root_spki_sha256: sha256(root.spki),
            root_not_before: root.not_before,
            root_not_after: root.not_after,
            issuer_spki_sha256: sha256(issuer.spki),
            issuer_not_before: issuer.not_before.max(root.not_before),
            issuer_not_after: issuer.not_after.min(root.not_after),
            grant: issuer.grant().map_err(CertificateError::from)?,
            jwt: issuer_key.in_memory().map(JwtAuthority::derive).transpose()?,
            issuer: Issuer::from_ca_cert_der(&issuer_der, issuer_key)?,
            root_key,
            root_der,
            issuer_der,
        })
    }
}

/// Why an authority was not made, or did not issue.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IssueError {
    /// The root cannot stand in a bundle.
    #[error("the root cannot stand in a bundle: {0}")]
    Bundle(#[from] BundleError),
    /// A stored certificate is not an authority's.
    #[error("a stored certificate is not an authority's: {0}")]
    Certificate(#[from] CertificateError),
    /// The cryptographic library cannot make the certificate.
    #[error("cannot make the certificate: {0}")]
    Encoding(#[from] rcgen::Error),
    /// No key for JWT-SVIDs can be derived.
    #[error(transparent)]
    Jwt(#[from] JwtError),
    /// The module that holds the keys refuses.
    #[error(transparent)]
    Module(#[from] KeyModuleError),
    /// The area was not granted to certify this identity.
    #[error("the area was not granted to certify this identity")]
    Grant,
    /// Stored certificates and keys do not belong together.
    #[error("the authority's stored certificates and keys do not belong together")]
    Mismatch,
    /// The text is not two certificates and two private keys.
    #[error("the authority's PEM is not two certificates and two private keys")]
    Pem,
    /// The system has no random bytes.
    #[error("the system has no random bytes")]
    Random,
    /// The request is bad.
    #[error("the request is refused: {0}")]
    Request(#[from] RequestError),
    /// The identity is not of this authority's trust domain.
    #[error("the identity is of another trust domain")]
    TrustDomain,
    /// The certificate would be valid at no time, or at one that X.509 cannot write.
    #[error("nothing is left of the certificate's validity")]
    Validity,
}

/// ExtKeyUsageSyntax with [`SIGNING_EKU`] alone. `rcgen` has purposes of small numbers only, so the extension
/// is written out. Critical, as RFC 5280 allows: whoever does not know it must not use the certificate.
pub(crate) fn signing_purpose() -> CustomExtension {
    const ID_CE_EXT_KEY_USAGE: &[u64] = &[2, 5, 29, 37];
    const LENGTH: u8 = SIGNING_EKU.len() as u8;
    let mut content = vec![0x30, LENGTH + 2, 0x06, LENGTH];
    content.extend_from_slice(SIGNING_EKU);
    let mut extension = CustomExtension::from_oid_content(ID_CE_EXT_KEY_USAGE, content);
    extension.set_criticality(true);
    extension
}

/// NameConstraints with this trust domain as the one host of URIs (RFC 5280 section 4.2.1.10). `rcgen` knows no constraints of
/// URIs, so the extension is written out. Critical, as the RFC demands.
fn name_constraints(trust_domain: &TrustDomain) -> Result<CustomExtension, IssueError> {
    let uri = element(0x86, trust_domain.as_str().as_bytes())?;
    let subtrees = element(0xa0, &element(0x30, &uri)?)?;
    Ok(critical(element(0x30, &subtrees)?))
}

fn critical(constraints: Vec<u8>) -> CustomExtension {
    const ID_CE_NAME_CONSTRAINTS: &[u64] = &[2, 5, 29, 30];
    let mut extension = CustomExtension::from_oid_content(ID_CE_NAME_CONSTRAINTS, constraints);
    extension.set_criticality(true);
    extension
}

/// One DER element. A trust domain has at most 255 bytes, so two bytes of length are enough.
fn element(tag: u8, value: &[u8]) -> Result<Vec<u8>, IssueError> {
    let length = u16::try_from(value.len()).map_err(|_| IssueError::TrustDomain)?;
    let [high, low] = length.to_be_bytes();
    let head = match length {
        0..=0x7f => vec![tag, low],
        0x80..=0xff => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    Ok([&*head, value].concat())
}

/// A root (`path_length` 1) or an issuer (0). Its name carries a part of its key's hash, so that the roots of a
/// rotation are told apart by name as well.
fn authority_params(
    trust_domain: &TrustDomain,
    role: &str,
    key: &impl PublicKeyData,
    path_length: u8,
    not_before: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, IssueError> {
    let mut params = params(&trust_domain.uri(), not_before, not_after)?;
    let [a, b, c, d, ..] = sha256(&key.subject_public_key_info());
    let name = format!("Signet {role} {a:02x}{b:02x}{c:02x}{d:02x}");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn params(uri: &str, not_before: SystemTime, not_after: SystemTime) -> Result<CertificateParams, IssueError> {
    check_validity(not_before, not_after)?;
    let mut params = CertificateParams::default();
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri)?)];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(random_serial()?);
    Ok(params)
}

/// Not empty, from 1970 on, and within what X.509 can write (beyond which conversion would panic).
fn check_validity(not_before: SystemTime, not_after: SystemTime) -> Result<(), IssueError> {
    let writable = not_before >= SystemTime::UNIX_EPOCH && not_after <= SystemTime::UNIX_EPOCH + LAST_SECOND;
    if writable && not_before < not_after { Ok(()) } else { Err(IssueError::Validity) }
}

/// 128 bits, of which 126 are random: the top two say that the number is positive and of this length.
fn random_serial() -> Result<SerialNumber, IssueError> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| IssueError::Random)?;
    serial[0] = (serial[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&serial))
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
