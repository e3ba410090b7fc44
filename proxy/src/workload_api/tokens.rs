//! JWT-SVIDs for the application: asked for once, and kept for half of their life.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use signet_identity::{JwtClaims, JwtError, SpiffeId, verify_jwt};
use thiserror::Error;

use crate::clock;
use crate::workload_api::ask::{AskError, Asker};
use crate::workload_api::offer::Offer;

/// Kept at once; cleared when full, which costs a question each.
const KEPT_MAX: usize = 64;

/// Why there is no token.
#[derive(Debug, Error)]
pub(super) enum TokenError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the token issued is of another identity")]
    OtherIdentity,
    #[error("the token issued does not verify: {0}")]
    Unverifiable(#[from] JwtError),
}

/// Those that are held. The audiences are sorted.
#[derive(Default)]
pub(super) struct Tokens {
    kept: Mutex<HashMap<(SpiffeId, Vec<String>), Kept>>,
}

struct Kept {
    token: String,
    /// Half of its life is over then.
    until: SystemTime,
}

impl Tokens {
    /// A token of `id` for these audiences, with at least half of its life before it. What the trust domain's own keys do not
    /// verify is not handed on.
    pub(super) async fn get(
        &self,
        asker: &Asker,
        offer: &Offer,
        id: &SpiffeId,
        audience: &[String],
    ) -> Result<String, TokenError> {
        let mut audience = audience.to_vec();
        audience.sort_unstable();
        audience.dedup();
        let key = (id.clone(), audience.clone());
        if let Some(token) = self.kept(&key, offer) {
            return Ok(token);
        }
        let token = asker.token(audience.clone()).await?;
        let now = clock::now();
        for audience in &audience {
            let claims = verify(offer, &token, audience, now)?;
            if claims.id != *id {
                return Err(TokenError::OtherIdentity);
            }
            self.keep(key.clone(), &token, now, &claims);
        }
        Ok(token)
    }

    fn kept(&self, key: &(SpiffeId, Vec<String>), offer: &Offer) -> Option<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.get(key).filter(|found| clock::now() < found.until)?;
        // Its key may have been given up since.
        verify(offer, &found.token, key.1.first()?, clock::now()).ok()?;
        Some(found.token.clone())
    }

    fn keep(&self, key: (SpiffeId, Vec<String>), token: &str, now: SystemTime, claims: &JwtClaims) {
        let Some(ends) = claims.all.get("exp").and_then(Value::as_u64) else { return };
        let left = (SystemTime::UNIX_EPOCH + Duration::from_secs(ends)).duration_since(now);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(key, Kept { token: token.to_owned(), until: now + left.unwrap_or_default() / 2 });
    }
}

/// Verifies a token under the keys of the own trust domain.
pub(super) fn verify(
    offer: &Offer,
    token: &str,
    audience: &str,
    now: SystemTime,
) -> Result<JwtClaims, JwtError> {
    verify_jwt(&offer.jwt_keys, offer.bundle.trust_domain(), token, audience, now)
}
