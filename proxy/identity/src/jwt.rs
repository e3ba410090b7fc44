//! JWT-SVIDs: what an application shows where no TLS reaches from end to end (RFC 7515, RFC 7519; SPIFFE JWT-SVID).
//!
//! One algorithm, ES256. A key of its own, which the issuer's key is the only secret of: it is derived, so it is in no file,
//! every replica of an authority has the same, and it comes and goes with its issuer.

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_lc_rs::agreement::{self, PrivateKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::der::{self, Malformed, Reader};
use crate::fingerprint::sha256;
use crate::id::{SpiffeId, TrustDomain};

/// The longest token read, in bytes: two SPIFFE IDs of the longest kind and some audiences fit.
pub const MAX_JWT_BYTES: usize = 8 * 1024;

/// The longest audience, in bytes: a SPIFFE ID or an address.
pub const MAX_AUDIENCE_BYTES: usize = 2048;

/// An uncompressed point on P-256.
const POINT_BYTES: usize = 65;

/// What the derivation is for; never change it, or every token in use is refused.
const PURPOSE: &[u8] = b"signet jwt-svid es256 1";

/// How often the derivation is tried: a try fails once in four billion.
const TRIES: u8 = 8;

/// Signs JWT-SVIDs. `Debug` shows the public key's name only.
pub struct JwtAuthority {
    pair: EcdsaKeyPair,
    key: JwtKey,
}

/// The public half of a [`JwtAuthority`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct JwtKey([u8; POINT_BYTES]);

/// What a verified token says.
#[derive(Clone, Debug, PartialEq)]
pub struct JwtClaims {
    /// Whose it is.
    pub id: SpiffeId,
    /// Every claim, as signed.
    pub all: Map<String, Value>,
}

/// Why a token proves nothing, or none was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JwtError {
    /// It is for others.
    #[error("the token is not for this audience")]
    Audience,
    /// Its claims are not those of a JWT-SVID.
    #[error("the token's claims are not those of a JWT-SVID")]
    Claims,
    /// It has ended.
    #[error("the token has expired")]
    Expired,
    /// The issuer's key is not as it was written, or no key can be derived from it.
    #[error("no key for tokens can be derived from the issuer's")]
    IssuerKey,
    /// No key of the trust domain has the name it gives.
    #[error("the token is signed by a key that is not of this trust domain")]
    Key,
    /// Not three parts of base64url with JSON in it, or a header that SPIFFE does not allow.
    #[error("the token is malformed")]
    Malformed,
    /// The cryptographic library cannot sign.
    #[error("the token cannot be signed")]
    Sign,
    /// The signature is not that key's.
    #[error("the token's signature does not verify")]
    Signature,
    /// Whose it is is no SPIFFE ID of this trust domain.
    #[error("the token is of no identity of this trust domain")]
    Subject,
    /// Longer than [`MAX_JWT_BYTES`].
    #[error("the token is longer than {MAX_JWT_BYTES} bytes")]
    TooLong,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    kid: String,
    #[serde(default)]
    typ: Option<String>,
}

impl JwtAuthority {
    /// From the issuer's private key, PKCS#8 of P-256.
    pub(crate) fn derive(issuer: &[u8]) -> Result<Self, JwtError> {
        let secret = private_scalar(issuer).map_err(|Malformed| JwtError::IssuerKey)?;
        let root = Salt::new(HKDF_SHA256, &[]).extract(secret);
        let found = (0..TRIES).find_map(|attempt| {
            let info: [&[u8]; 2] = [PURPOSE, &[attempt]];
            let mut scalar = Zeroizing::new([0; 32]);
            root.expand(&info, HKDF_SHA256).and_then(|okm| okm.fill(&mut *scalar)).ok()?;
            let private = PrivateKey::from_private_key(&agreement::ECDH_P256, &*scalar).ok()?;
            let public = private.compute_public_key().ok()?;
            let pair = EcdsaKeyPair::from_private_key_and_public_key(
                &ECDSA_P256_SHA256_FIXED_SIGNING,
                &*scalar,
                public.as_ref(),
            );
            Some(Self { pair: pair.ok()?, key: JwtKey::from_point(public.as_ref())? })
        });
        found.ok_or(JwtError::IssuerKey)
    }

    /// The key that its tokens verify under.
    pub fn key(&self) -> JwtKey {
        self.key
    }

    /// A token for `id`, good for these audiences until `not_after`.
    ///
    /// # Errors
    /// [`JwtError::Audience`] without an audience, [`JwtError::Claims`] for times before 1970, [`JwtError::Sign`] when the
    /// cryptographic library fails, [`JwtError::TooLong`] when nobody would read it.
    pub fn sign(
        &self,
        id: &SpiffeId,
        audience: &[String],
        now: SystemTime,
        not_after: SystemTime,
    ) -> Result<String, JwtError> {
        if audience.is_empty() {
            return Err(JwtError::Audience);
        }
        let header = Header { alg: "ES256".to_owned(), kid: self.key.id(), typ: Some("JWT".to_owned()) };
        let claims = serde_json::json!({
            "aud": audience,
            "exp": unix_seconds(not_after).ok_or(JwtError::Claims)?,
            "iat": unix_seconds(now).ok_or(JwtError::Claims)?,
            "sub": id.as_str(),
        });
        let header = serde_json::to_vec(&header).map_err(|_| JwtError::Sign)?;
        let mut token = URL_SAFE_NO_PAD.encode(header);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut token);
        let signature = self.pair.sign(&SystemRandom::new(), token.as_bytes()).map_err(|_| JwtError::Sign)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        if token.len() > MAX_JWT_BYTES { Err(JwtError::TooLong) } else { Ok(token) }
    }
}

impl JwtKey {
    /// From an uncompressed point. Whether it lies on the curve is for the first verification to say.
    pub fn from_point(point: &[u8]) -> Option<Self> {
        let point: [u8; POINT_BYTES] = point.try_into().ok()?;
        (point[0] == 4).then_some(Self(point))
    }

    /// The point.
    pub fn point(&self) -> &[u8; POINT_BYTES] {
        &self.0
    }

    /// What tokens name it by: its JWK thumbprint (RFC 7638).
    pub fn id(&self) -> String {
        let [x, y] = self.coordinates();
        let thumbprint = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        URL_SAFE_NO_PAD.encode(sha256(thumbprint.as_bytes()))
    }

    /// x and y as in a JWK.
    pub(crate) fn coordinates(&self) -> [String; 2] {
        let (x, y) = self.0[1..].split_at(32);
        [x, y].map(|coordinate| URL_SAFE_NO_PAD.encode(coordinate))
    }
}

/// Verifies a JWT-SVID of this trust domain for `audience`.
///
/// # Errors
/// The first check that fails.
pub fn verify_jwt(
    keys: &[JwtKey],
    trust_domain: &TrustDomain,
    token: &str,
    audience: &str,
    now: SystemTime,
) -> Result<JwtClaims, JwtError> {
    if token.len() > MAX_JWT_BYTES {
        return Err(JwtError::TooLong);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(JwtError::Malformed)?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtError::Malformed);
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| JwtError::Malformed)?;
    let is_type = header.typ.as_deref().is_none_or(|typ| matches!(typ, "JWT" | "JOSE"));
    if header.alg != "ES256" || !is_type {
        return Err(JwtError::Malformed);
    }
    let key = keys.iter().find(|key| key.id() == header.kid).ok_or(JwtError::Key)?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.point())
        .verify(signed.as_bytes(), &decode(signature)?)
        .map_err(|_| JwtError::Signature)?;
    let all: Map<String, Value> =
        serde_json::from_slice(&decode(claims)?).map_err(|_| JwtError::Malformed)?;
    let expires = all.get("exp").and_then(Value::as_u64).ok_or(JwtError::Claims)?;
    if SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(expires)).is_none_or(|end| end <= now) {
        return Err(JwtError::Expired);
    }
    let is_for = match all.get("aud") {
        Some(Value::Array(several)) => several.iter().any(|one| one.as_str() == Some(audience)),
        Some(Value::String(one)) => one == audience,
        _ => return Err(JwtError::Claims),
    };
    if !is_for {
        return Err(JwtError::Audience);
    }
    let subject = all.get("sub").and_then(Value::as_str).ok_or(JwtError::Claims)?;
    let id = SpiffeId::parse(subject).map_err(|_| JwtError::Subject)?;
    if id.trust_domain() != trust_domain.as_str() {
        return Err(JwtError::Subject);
    }
    Ok(JwtClaims { id, all })
}

/// The private scalar in `PrivateKeyInfo` (RFC 5208) around `ECPrivateKey` (RFC 5915).
fn private_scalar(pkcs8: &[u8]) -> Result<&[u8], Malformed> {
    let mut info = Reader::open(pkcs8, der::SEQUENCE)?;
    info.value(der::INTEGER)?;
    info.value(der::SEQUENCE)?;
    let mut key = Reader::open(info.value(der::OCTET_STRING)?, der::SEQUENCE)?;
    key.value(der::INTEGER)?;
    let scalar = key.value(der::OCTET_STRING)?;
    if scalar.len() == 32 { Ok(scalar) } else { Err(Malformed) }
}

fn unix_seconds(time: SystemTime) -> Option<u64> {
    time.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs())
}

impl fmt::Debug for JwtAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtAuthority").field("key", &self.key).finish_non_exhaustive()
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id())
    }
}

#[cfg(test)]
mod tests;
