//! Paths through issuers that carry X.509 name constraints (RFC 5280 section 4.2.1.10) for URIs.
//!
//! `webpki` refuses every chain in which a URI meets a URI constraint. So the authorities of such a chain are checked here,
//! one after the other, and `webpki` judges the leaf alone, below the issuer that was found good. So are the issuers of areas,
//! whose critical extension nobody else knows ([`AreaGrant`]). Only what our own authorities write is taken: anything else in a constrained path refuses the chain.

use rustls_pki_types::{CertificateDer, Der, TrustAnchor, UnixTime};

use super::{VerifyError, unix_time};
use crate::bundle::TrustBundle;
use crate::certificate::{Certificate, CertificateError};
use crate::der::{self, Malformed, Reader};
use crate::fingerprint::sha256;
use crate::grant::AreaGrant;

/// Whether an authority of this chain says for which names it may vouch.
pub(super) fn is_constrained(authorities: &[CertificateDer<'_>]) -> bool {
    // One that cannot be read is for the other way to refuse.
    let says = |authority: Certificate<'_>| authority.is_constrained() || authority.is_area();
    authorities.iter().any(|der| Certificate::parse(der).is_ok_and(says))
}

/// The issuer of a leaf, as the one anchor to judge that by: the first of these authorities, from which a path leads to a root
/// of the bundle, each certified by the next. All of them have to permit the bundle's trust domain. And what that issuer was
/// granted, if it is an area's: the leaf has to be of it.
///
/// # Errors
/// [`VerifyError::UnknownIssuer`] when no root vouches for the last, [`VerifyError::Expired`] and
/// [`VerifyError::NotYetValid`], [`VerifyError::Constraints`], [`VerifyError::Leaf`] for what is no authority.
pub(super) fn issuer(
    bundle: &TrustBundle,
    authorities: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(TrustAnchor<'static>, Option<AreaGrant>), VerifyError> {
    let roots = bundle.roots().iter().map(|root| Certificate::parse(root)).collect::<Result<Vec<_>, _>>()?;
    let mut below: Option<Certificate<'_>> = None;
    for (depth, der) in authorities.iter().enumerate() {
        let authority = Certificate::parse(der)?;
        check(&authority, depth, bundle, now)?;
        if below.as_ref().is_some_and(|below| !is_certified(below, &authority)) {
            return Err(VerifyError::UnknownIssuer);
        }
        if roots.iter().any(|root| is_certified(&authority, root)) {
            let first = Certificate::parse(authorities.first().ok_or(VerifyError::ChainLength)?)?;
            return Ok((anchor(&first)?, first.grant().map_err(CertificateError::from)?));
        }
        below = Some(authority);
    }
    Err(VerifyError::UnknownIssuer)
}

/// What constraints and grant say was checked here; `webpki` would refuse both.
fn anchor(issuer: &Certificate<'_>) -> Result<TrustAnchor<'static>, VerifyError> {
    let key = Reader::new(issuer.spki).value(der::SEQUENCE).map_err(CertificateError::from)?;
    Ok(TrustAnchor {
        subject: Der::from(issuer.subject.to_vec()),
        subject_public_key_info: Der::from(key.to_vec()),
        name_constraints: None,
    })
}

/// By name and by signature.
fn is_certified(below: &Certificate<'_>, above: &Certificate<'_>) -> bool {
    below.issuer == above.subject && below.is_signed_by(above.spki)
}

fn check(
    authority: &Certificate<'_>,
    depth: usize,
    bundle: &TrustBundle,
    now: UnixTime,
) -> Result<(), VerifyError> {
    authority.check_authority(depth)?;
    if unix_time(authority.not_after).as_secs() < now.as_secs() {
        return Err(VerifyError::Expired);
    }
    if unix_time(authority.not_before).as_secs() > now.as_secs() {
        return Err(VerifyError::NotYetValid);
    }
    if bundle.refused_issuers().contains(&sha256(authority.spki)) {
        return Err(VerifyError::UnknownIssuer);
    }
    // An area certifies leaves alone, and says itself for which trust domain.
    if authority.is_area() && (depth > 0 || !authority.is_constrained()) {
        return Err(VerifyError::Constraints);
    }
    match authority.permits(bundle.trust_domain().as_str()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(VerifyError::Constraints),
        Err(Malformed) => Err(CertificateError::Malformed.into()),
    }
}
