//! From certificates to proof.
//!
//! [`Peer`] and [`SigningIdentity`] can only come from here. Every check of [the crate page](crate) is made in
//! two steps: `webpki` finds a path from the leaf to a root of the bundle (signatures, dates, path lengths, no
//! unknown critical extension), then the leaf is read as an SVID's and its trust domain compared.

mod constrained;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError as TlsCertificateError, CommonState, DigitallySignedStruct, DistinguishedName,
    OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use thiserror::Error;
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, KeyUsage, VerifiedPath,
};

use crate::bundle::{MAX_ROOTS, TrustBundle};
use crate::certificate::{
    CLIENT_AUTH_EKU, Certificate, CertificateError, Leaf, SERVER_AUTH_EKU, SIGNING_EKU,
};
use crate::fingerprint::{Fingerprint, sha256};
use crate::id::SpiffeId;
use crate::svid::keyid;
use crate::tls::crypto_provider;

/// The most certificates in a chain: a leaf, its issuer, and two more for authorities under another's.
pub const MAX_CHAIN: usize = 4;

/// The most certificates a control plane may show: a chain, then every root that somebody's token may pin.
pub(crate) const MAX_CONTROL_CHAIN: usize = MAX_CHAIN + MAX_ROOTS;

/// The other end of a mesh channel: proof that it holds the key of a verified TLS SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    leaf: Leaf,
}

impl Peer {
    /// Who it is.
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// Which of the identity's instances: the fingerprint of its TLS leaf.
    pub fn fingerprint(&self) -> Fingerprint {
        self.leaf.fingerprint
    }

    /// When its leaf began to be valid.
    pub fn not_before(&self) -> SystemTime {
        self.leaf.not_before
    }

    /// When its leaf ends, and with it every connection made with it.
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }
}

/// The signer of messages: proof that a key is the one of a verified signing SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningIdentity {
    leaf: Leaf,
    public_key: [u8; 32],
}

impl SigningIdentity {
    /// Who signs.
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// The Ed25519 key; never one of small order.
    pub fn public_key(&self) -> &[u8; 32] {
        &self.public_key
    }

    /// The fingerprint of the signing leaf.
    pub fn fingerprint(&self) -> Fingerprint {
        self.leaf.fingerprint
    }

    /// When the leaf began to be valid.
    pub fn not_before(&self) -> SystemTime {
        self.leaf.not_before
    }

    /// When the leaf ends.
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// What signatures name the key by: `<spiffe-id>#<fingerprint>`.
    pub fn keyid(&self) -> String {
        keyid(&self.leaf.id, self.leaf.fingerprint)
    }
}

/// Verifies the chain of a TLS SVID: by the bundle of the trust domain that its leaf names, the own or a federated one, and by
/// no other. The handshake does this by itself; call it to look again at an open
/// connection's certificates when the bundle or the time has changed.
///
/// # Errors
/// The first check that fails.
pub fn verify_tls_chain(
    bundle: &TrustBundle,
    chain: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<Peer, VerifyError> {
    let bundle = bundle.of_leaf(chain.first().ok_or(VerifyError::ChainLength)?);
    let der = verify_path(bundle, chain, unix_time(now), TLS_PURPOSES)?;
    let leaf = Leaf::tls(der)?;
    check_trust_domain(&leaf.id, bundle.trust_domain().as_str())?;
    Ok(Peer { leaf })
}

/// Verifies the chain of a signing SVID, likewise.
///
/// # Errors
/// The first check that fails.
pub fn verify_signing_chain(
    bundle: &TrustBundle,
    chain: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<SigningIdentity, VerifyError> {
    let bundle = bundle.of_leaf(chain.first().ok_or(VerifyError::ChainLength)?);
    let der = verify_path(bundle, chain, unix_time(now), SIGNING_PURPOSES)?;
    let (leaf, public_key) = Leaf::signing(der)?;
    check_trust_domain(&leaf.id, bundle.trust_domain().as_str())?;
    Ok(SigningIdentity { leaf, public_key })
}

/// Verifies the chain of an application's X.509-SVID, as others will: who it is. It makes nobody a [`Peer`].
///
/// # Errors
/// The first check that fails.
pub fn verify_app_chain(
    bundle: &TrustBundle,
    chain: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<SpiffeId, VerifyError> {
    let der = verify_path(bundle, chain, unix_time(now), ANY_PURPOSE)?;
    let leaf = Leaf::app(der)?;
    check_trust_domain(&leaf.id, bundle.trust_domain().as_str())?;
    Ok(leaf.id)
}

/// The area whose issuer certified the leaf of this chain; none for the trust domain's own issuers. It means something only of
/// a chain that verified.
pub fn area_of_chain(chain: &[CertificateDer<'_>]) -> Option<String> {
    let grant = Certificate::parse(chain.get(1)?).ok()?.grant().ok()??;
    Some(grant.area().to_owned())
}

/// The other end of a connection made with one of this crate's configurations, after the handshake.
///
/// # Errors
/// [`VerifyError::Handshake`] before the handshake is done, [`VerifyError::Protocol`] when the ends agreed on
/// no application protocol (`rustls` lets pass a peer that offers none), [`VerifyError::NoCertificate`] when an
/// enrolling client has not shown one.
pub fn peer(connection: &CommonState) -> Result<Peer, VerifyError> {
    if connection.is_handshaking() {
        return Err(VerifyError::Handshake);
    }
    if connection.alpn_protocol().is_none() {
        return Err(VerifyError::Protocol);
    }
    let certificates = connection.peer_certificates().unwrap_or_default();
    let der = certificates.first().ok_or(VerifyError::NoCertificate)?;
    Ok(Peer { leaf: Leaf::tls(der)? })
}

/// The peer must be one of the identities that belong at this address.
///
/// # Errors
/// [`VerifyError::Identity`]; an empty list allows nobody.
pub fn expect(peer: &Peer, allowed: &[SpiffeId]) -> Result<(), VerifyError> {
    if allowed.contains(peer.id()) {
        return Ok(());
    }
    Err(VerifyError::Identity { found: peer.id().clone() })
}

/// Why a chain proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VerifyError {
    /// No certificate, or too many.
    #[error("the certificate chain is empty or too long")]
    ChainLength,
    /// The chain, or one of its certificates, has ended.
    #[error("a certificate of the chain has expired")]
    Expired,
    /// An area certified what it was not granted.
    #[error("area {area} was not granted to certify {found}")]
    Grant {
        /// The area's name.
        area: String,
        /// Whom it certified.
        found: SpiffeId,
    },
    /// The handshake is not done yet.
    #[error("the handshake is not complete")]
    Handshake,
    /// The peer is verified, but is not who was expected.
    #[error("the peer is {found}, which is not an identity expected here")]
    Identity {
        /// Who it is.
        found: SpiffeId,
    },
    /// The leaf is not that of an SVID.
    #[error("the leaf is not that of an SVID: {0}")]
    Leaf(#[from] CertificateError),
    /// The peer has shown no certificate.
    #[error("the peer has shown no certificate")]
    NoCertificate,
    /// A certificate of the chain is not valid yet.
    #[error("a certificate of the chain is not valid yet")]
    NotYetValid,
    /// An authority of the chain may not vouch for names of this trust domain.
    #[error("an authority of the chain may not vouch for this trust domain")]
    Constraints,
    /// The path from the leaf to a root is broken.
    #[error("the certificate chain is invalid: {0}")]
    Path(webpki::Error),
    /// No certificate shown is the root that the join token pins.
    #[error(
        "the server has not shown the root that the join token pins, or that was given with other evidence"
    )]
    Pin,
    /// Nothing shows that the certificate's key is held by who shows it.
    #[error("the evidence is not signed by the certificate's key for this enrolment")]
    Possession,
    /// No application protocol was agreed on.
    #[error("no application protocol was agreed on")]
    Protocol,
    /// The leaf is of another trust domain than the root that vouches for it.
    #[error("the identity is of the trust domain {found}, for which this root does not vouch")]
    TrustDomain {
        /// The leaf's trust domain.
        found: String,
    },
    /// No root of the bundle vouches for the leaf.
    #[error("no trusted root vouches for the certificate")]
    UnknownIssuer,
}

/// The purposes a TLS leaf must have.
pub(crate) const TLS_PURPOSES: Purposes = Purposes(&[SERVER_AUTH_EKU, CLIENT_AUTH_EKU]);
const SIGNING_PURPOSES: Purposes = Purposes(&[SIGNING_EKU]);
/// For certificates that others judge, or issued.
pub(crate) const ANY_PURPOSE: Purposes = Purposes(&[]);

/// Extended key usages that every certificate of a path must allow. One without the extension allows all; for
/// the leaf, where it must stand, [`Leaf`] insists on it.
#[derive(Clone, Copy)]
pub(crate) struct Purposes(&'static [&'static [u8]]);

impl ExtendedKeyUsageValidator for Purposes {
    fn validate(&self, present: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let present = present.collect::<Result<Vec<_>, _>>()?;
        let missing = self.0.iter().find(|&&purpose| !present.contains(&KeyPurposeId::new(purpose)));
        match missing {
            Some(purpose) if !present.is_empty() => {
                Err(webpki::Error::RequiredEkuNotFoundContext(webpki::RequiredEkuNotFoundContext {
                    required: KeyUsage::required(purpose),
                    present: Vec::new(),
                }))
            }
            _ => Ok(()),
        }
    }
}

/// Finds a path from the first certificate of `chain` to a root of the bundle, through no issuer that it refuses, and
/// returns that certificate.
pub(crate) fn verify_path<'a>(
    bundle: &TrustBundle,
    chain: &'a [CertificateDer<'_>],
    now: UnixTime,
    purposes: Purposes,
) -> Result<&'a [u8], VerifyError> {
    let [leaf, intermediates @ ..] = chain else { return Err(VerifyError::ChainLength) };
    if chain.len() > MAX_CHAIN {
        return Err(VerifyError::ChainLength);
    }
    let algorithms = crypto_provider().signature_verification_algorithms.all;
    if constrained::is_constrained(intermediates) {
        let (issuer, grant) = constrained::issuer(bundle, intermediates, now)?;
        EndEntityCert::try_from(leaf)
            .and_then(|certificate| {
                let anchors = std::slice::from_ref(&issuer);
                certificate
                    .verify_for_usage(algorithms, anchors, &[], now, purposes, None, None)
                    .map(|_path| ())
            })
            .map_err(path_error)?;
        if let Some(grant) = grant {
            let id = SpiffeId::parse(Certificate::parse(leaf)?.only_uri()?).map_err(CertificateError::Id)?;
            if !grant.permits(&id) {
                return Err(VerifyError::Grant { area: grant.area().to_owned(), found: id });
            }
        }
        return Ok(leaf);
    }
    let refused = bundle.refused_issuers();
    let allowed = |path: &VerifiedPath<'_>| {
        let is_refused =
            |issuer: &webpki::Cert<'_>| refused.contains(&sha256(&issuer.subject_public_key_info()));
        let mut issuers = path.intermediate_certificates();
        // Nothing is hashed where nothing is refused, which is nearly always.
        if !refused.is_empty() && issuers.any(is_refused) {
            Err(webpki::Error::UnknownIssuer)
        } else {
            Ok(())
        }
    };
    EndEntityCert::try_from(leaf)
        .and_then(|certificate| {
            certificate
                .verify_for_usage(
                    algorithms,
                    bundle.anchors(),
                    intermediates,
                    now,
                    purposes,
                    None,
                    Some(&allowed),
                )
                .map(|_path| ())
        })
        .map_err(path_error)?;
    Ok(leaf)
}

fn path_error(error: webpki::Error) -> VerifyError {
    use webpki::Error;
    match error {
        Error::CaUsedAsEndEntity => CertificateError::Authority.into(),
        Error::CertExpired { .. } => VerifyError::Expired,
        Error::CertNotValidYet { .. } => VerifyError::NotYetValid,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => CertificateError::Purpose.into(),
        Error::UnknownIssuer => VerifyError::UnknownIssuer,
        other => VerifyError::Path(other),
    }
}

pub(crate) fn check_trust_domain(id: &SpiffeId, trust_domain: &str) -> Result<(), VerifyError> {
    if id.trust_domain() == trust_domain {
        return Ok(());
    }
    Err(VerifyError::TrustDomain { found: id.trust_domain().into() })
}

pub(crate) fn unix_time(now: SystemTime) -> UnixTime {
    // A clock before 1970 is no clock; at 0 every certificate is not valid yet.
    UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// Verifies the other end of a TLS 1.3 handshake, as server or as client, against one trust bundle and those federated with it.
///
/// The server name is ignored: workloads have no DNS names here, and who belongs at an address is for
/// [`expect`] to say.
#[derive(Debug)]
pub struct PeerVerifier {
    bundle: Arc<TrustBundle>,
    anonymous_clients: bool,
    dating: Dating,
    grace: Duration,
    /// The most certificates the other end may show.
    shown_max: usize,
}

/// Whose word counts for what time it is, when a control plane shows its certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dating {
    /// The later of the own clock and the beginning of the certificate: for a machine that has no clock, or one that stood
    /// still. The authority signs no certificate before its time, so the beginning has certainly passed.
    AuthoritysWord,
    /// The own clock alone.
    #[default]
    OwnClock,
}

impl Dating {
    /// When to judge a chain whose leaf is `der`. What is read of the leaf here counts only if the chain verifies then.
    pub(crate) fn at(self, der: &[u8], now: UnixTime) -> UnixTime {
        let begins = match self {
            Self::AuthoritysWord => Certificate::parse(der).ok().map(|leaf| unix_time(leaf.not_before)),
            Self::OwnClock => None,
        };
        begins.filter(|begins| begins.as_secs() > now.as_secs()).unwrap_or(now)
    }
}

impl PeerVerifier {
    /// A verifier that demands a certificate from clients, too.
    pub fn new(bundle: Arc<TrustBundle>) -> Self {
        Self {
            bundle,
            anonymous_clients: false,
            dating: Dating::OwnClock,
            grace: Duration::ZERO,
            shown_max: MAX_CHAIN,
        }
    }

    /// For the control plane's callers: roots may follow its chain.
    pub(crate) fn dating(bundle: Arc<TrustBundle>, dating: Dating) -> Self {
        Self { dating, shown_max: MAX_CONTROL_CHAIN, ..Self::new(bundle) }
    }

    /// For enrolment: a client may show no certificate, but not a bad one. One that has ended for no longer than `grace`
    /// is not bad here: what its holder may still do with it is for the control plane to say.
    pub(crate) fn of_control_plane(bundle: Arc<TrustBundle>, grace: Duration) -> Self {
        Self { anonymous_clients: true, grace, ..Self::new(bundle) }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let shown = presented(leaf, intermediates, self.shown_max)?;
        // Path building has no use for the roots that follow a chain.
        let chain = shown.get(..shown.len().min(MAX_CHAIN)).unwrap_or_default();
        let now = SystemTime::UNIX_EPOCH + since_epoch(self.dating.at(leaf, now));
        match verify_tls_chain(&self.bundle, chain, now) {
            Err(VerifyError::Expired) if !self.grace.is_zero() => self.verify_ended(chain, now)?,
            verified => drop(verified?),
        }
        Ok(())
    }
}

impl PeerVerifier {
    /// A leaf that ended within the grace, judged at its end. Its issuers have no grace.
    fn verify_ended(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<(), VerifyError> {
        let leaf = Certificate::parse(chain.first().ok_or(VerifyError::ChainLength)?)?;
        if now > leaf.not_after + self.grace {
            return Err(VerifyError::Expired);
        }
        for issuer in chain.iter().skip(1) {
            if now > Certificate::parse(issuer)?.not_after {
                return Err(VerifyError::Expired);
            }
        }
        verify_tls_chain(&self.bundle, chain, now.min(leaf.not_after)).map(drop)
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_handshake(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        handshake_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        !self.anonymous_clients
    }

    /// None: a workload has one certificate, and the names of our roots are nobody's business.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_handshake(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        handshake_schemes()
    }
}

/// The presented chain in one piece; its length is checked before anything is copied.
pub(crate) fn presented<'a>(
    leaf: &CertificateDer<'a>,
    intermediates: &[CertificateDer<'a>],
    limit: usize,
) -> Result<Vec<CertificateDer<'a>>, VerifyError> {
    if intermediates.len() >= limit {
        return Err(VerifyError::ChainLength);
    }
    Ok(std::iter::once(leaf).chain(intermediates).cloned().collect())
}

pub(crate) fn verify_handshake(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = crypto_provider().signature_verification_algorithms;
    rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
}

pub(crate) fn handshake_schemes() -> Vec<SignatureScheme> {
    crypto_provider().signature_verification_algorithms.supported_schemes()
}

/// The configurations offer TLS 1.3 alone, so this is never reached; if it were, it would refuse.
pub(crate) fn no_tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled)
}

fn since_epoch(now: UnixTime) -> std::time::Duration {
    std::time::Duration::from_secs(now.as_secs())
}

impl From<VerifyError> for rustls::Error {
    /// Keeps the alerts that tell the other end what to mend (expired, unknown authority, purpose); everything
    /// else travels inside as a [`VerifyError`].
    fn from(error: VerifyError) -> Self {
        Self::InvalidCertificate(match error {
            VerifyError::Expired => TlsCertificateError::Expired,
            VerifyError::Leaf(CertificateError::Purpose) => TlsCertificateError::InvalidPurpose,
            VerifyError::NotYetValid => TlsCertificateError::NotValidYet,
            VerifyError::UnknownIssuer => TlsCertificateError::UnknownIssuer,
            other => TlsCertificateError::Other(OtherError(Arc::new(other))),
        })
    }
}

#[cfg(test)]
mod tests;
