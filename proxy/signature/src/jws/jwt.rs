//! An assertion of the signer's identity: a JWT (RFC 7519) with the registered claims and no others.
//!
//! It is no message and passes for none: its `typ` is another one.

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::header::{ALGORITHM, decode_chain, encode_chain, to_json};
use super::{Audience, JwsError, MAX_HEADER, MAX_LIFETIME, MessageId, Rules, Signer, check_times, compact};
use crate::profile::MeshSigner;

const TYPE: &str = "JWT";

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
    x5c: Vec<String>,
}

/// The claims (RFC 7519 section 4.1).
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// Who asserts: the SPIFFE ID of the certificate.
    pub iss: String,
    /// To whom: SPIFFE IDs.
    pub aud: Vec<String>,
    /// Until when, Unix seconds.
    pub exp: u64,
    /// From when on, Unix seconds.
    pub nbf: u64,
    /// When it was made, Unix seconds.
    pub iat: u64,
    /// What tells it from others.
    pub jti: String,
}

/// Asserts to an audience who the signer is, from now on until `expires`.
///
/// # Errors
/// [`JwsError::Recipients`] for everybody, [`JwsError::Lifetime`], [`JwsError::TooLarge`], [`JwsError::NotSigned`].
pub fn sign(
    signer: &MeshSigner,
    chain: &[CertificateDer<'_>],
    audience: &Audience,
    now: u64,
    expires: u64,
) -> Result<String, JwsError> {
    let Audience::Only(audience) = audience else { return Err(JwsError::Recipients) };
    check_life(now, expires)?;
    // A key identifier is `<spiffe id>#<fingerprint>`; a SPIFFE ID has no fragment.
    let iss = signer.keyid().split('#').next().unwrap_or_default().to_owned();
    let jti = MessageId::random()?.to_string();
    let claims = Claims { iss, aud: audience.clone(), exp: expires, nbf: now, iat: now, jti };
    let header = Header { alg: ALGORITHM.to_owned(), typ: TYPE.to_owned(), x5c: encode_chain(chain) };
    compact::sign(signer, &to_json(&header)?, &to_json(&claims)?)
}

fn check_life(created: u64, expires: u64) -> Result<(), JwsError> {
    match expires.checked_sub(created) {
        Some(1..=MAX_LIFETIME) => Ok(()),
        _ => Err(JwsError::Lifetime),
    }
}

/// An assertion as received.
#[derive(Debug)]
pub struct UnprovenClaims<'a> {
    parts: compact::Parts<'a>,
    chain: Vec<CertificateDer<'static>>,
    claims: Claims,
}

impl<'a> UnprovenClaims<'a> {
    /// Reads an assertion.
    ///
    /// # Errors
    /// As [`Unproven::parse`](super::Unproven::parse).
    pub fn parse(token: &'a str) -> Result<Self, JwsError> {
        let parts = compact::Parts::split(token)?;
        if parts.payload.len() > MAX_HEADER {
            return Err(JwsError::TooLarge);
        }
        let header: Header = serde_json::from_slice(&parts.header).map_err(|_| JwsError::Malformed)?;
        if header.typ != TYPE {
            return Err(JwsError::Type);
        }
        if header.alg != ALGORITHM {
            return Err(JwsError::Algorithm);
        }
        let claims: Claims = serde_json::from_slice(&parts.payload).map_err(|_| JwsError::Malformed)?;
        if claims.nbf > claims.iat {
            return Err(JwsError::Malformed);
        }
        check_life(claims.iat, claims.exp)?;
        Ok(Self { parts, chain: decode_chain(header.x5c)?, claims })
    }

    /// The chain that came with it, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Verifies the assertion under the key that the caller found in its verified chain, and that it asserts who that is.
    ///
    /// # Errors
    /// As [`Unproven::verify`](super::Unproven::verify); [`JwsError::Certificate`] when it asserts somebody else.
    pub fn verify(self, signer: &Signer<'_>, rules: Rules<'_>) -> Result<Claims, JwsError> {
        self.parts.verify(signer.public_key)?;
        check_times(self.claims.iat, self.claims.exp, signer, rules)?;
        if self.claims.iss != signer.spiffe_id {
            return Err(JwsError::Certificate);
        }
        let audience = Audience::new(self.claims.aud.clone()).map_err(|_| JwsError::Malformed)?;
        if audience == Audience::Any || rules.own.is_some_and(|own| !audience.includes(own)) {
            return Err(JwsError::Audience);
        }
        Ok(self.claims)
    }
}
