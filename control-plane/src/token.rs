//! Join tokens: `id.secret.pin`.
//!
//! The id finds the record, the secret proves that the token is known, the pin tells the proxy which authority may
//! see the secret. Only a digest of the secret is kept, so the store gives no token away.

use std::time::{Duration, SystemTime};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use signet_identity::SpiffeId;
use signet_sync::SECRET_BYTES;

use crate::records::{self, Found, Token, token_key, unix_seconds};
use crate::store::{Expect, Store, StoreError};

/// How long a token is good when nobody says otherwise: long enough to start a machine with it.
pub(crate) const DEFAULT_TTL: Duration = Duration::from_secs(3600);

/// The longest life of a token: one left in a compose file must not outlive the project.
pub const TTL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// The most uses and instances of one token: a large deployment of one service.
pub const USES_MAX: u32 = 10_000;

/// Random bytes of the id; a collision is refused by the store.
const ID_BYTES: usize = 9;

/// What a new token allows.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) id: SpiffeId,
    pub(crate) network: String,
    pub(crate) uses: u32,
    pub(crate) instances: u32,
    pub(crate) ttl: Duration,
}

/// A new token. It is shown once.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) token: signet_sync::Token,
    /// Unix seconds.
    pub(crate) expires: u64,
}

/// Makes a token and stores its record.
pub(crate) async fn create(
    store: &dyn Store,
    grant: Grant,
    pin: [u8; 32],
    now: SystemTime,
) -> Result<Created, StoreError> {
    let (token, record) = mint(grant, pin, now)?;
    store.commit(vec![records::put(token_key(token.id()), Expect::Absent, &record)?]).await?;
    Ok(Created { token, expires: record.expires })
}

/// A new token and the record to keep of it.
pub(crate) fn mint(
    grant: Grant,
    pin: [u8; 32],
    now: SystemTime,
) -> Result<(signet_sync::Token, Token), StoreError> {
    let (token, _, secret_sha256) = fresh(pin)?;
    let record = Token {
        secret_sha256,
        id: grant.id,
        network: grant.network,
        uses: grant.uses,
        instances: grant.instances,
        expires: unix_seconds(now).saturating_add(grant.ttl.as_secs()),
        withdrawn: false,
    };
    Ok((token, record))
}

/// A new token, its id, and the digest of its secret to keep.
pub(crate) fn fresh(pin: [u8; 32]) -> Result<(signet_sync::Token, String, String), StoreError> {
    let id = URL_SAFE_NO_PAD.encode(random::<ID_BYTES>()?);
    let secret = random::<SECRET_BYTES>()?;
    let digest = secret_digest(&secret);
    let token = signet_sync::Token::new(id.clone(), secret, pin)
        .map_err(|error| StoreError::Io(std::io::Error::other(error)))?;
    Ok((token, id, digest))
}

/// Finds the token that `id` and `secret` belong to. It may be used up or expired: see [`usable`].
///
/// An unknown id and a wrong secret are told apart neither by the answer nor by the comparison's time.
pub(crate) async fn find(
    store: &dyn Store,
    id: &str,
    secret: &[u8],
) -> Result<Option<Found<Token>>, StoreError> {
    let found = records::read::<Token>(store, &token_key(id)).await?;
    let presented = secret_digest(secret);
    let expected = found.as_ref().map_or("", |found| found.record.secret_sha256.as_str());
    let equal = verify_slices_are_equal(presented.as_bytes(), expected.as_bytes()).is_ok();
    Ok(found.filter(|_| equal))
}

/// Why a token whose secret is right is still refused, if it is.
pub(crate) fn usable(token: &Token, now: SystemTime) -> Result<(), &'static str> {
    if unix_seconds(now) >= token.expires {
        return Err("the token has expired");
    }
    if token.withdrawn {
        return Err("the token was withdrawn");
    }
    if token.uses == 0 {
        return Err("the token was already used as often as it may be");
    }
    Ok(())
}

/// The tokens that have not expired and were not withdrawn, with their ids.
pub(crate) async fn list(store: &dyn Store, now: SystemTime) -> Result<Vec<(String, Token)>, StoreError> {
    let mut tokens = Vec::new();
    for entry in store.list(records::TOKENS).await?.entries {
        let token = records::decode::<Token>(&entry)?.record;
        let id = entry.key.strip_prefix(records::TOKENS).unwrap_or(&entry.key).to_owned();
        if !token.withdrawn && token.expires > unix_seconds(now) {
            tokens.push((id, token));
        }
    }
    Ok(tokens)
}

/// Takes a token back: nobody enrols with it from now on. What enrolled with it stays. Returns what it was for, or `None`
/// where there is no such token that could still be used.
pub(crate) async fn withdraw(
    store: &dyn Store,
    id: &str,
    now: SystemTime,
) -> Result<Option<Token>, StoreError> {
    loop {
        let Some(found) = records::read::<Token>(store, &token_key(id)).await? else { return Ok(None) };
        if found.record.withdrawn || found.record.expires <= unix_seconds(now) {
            return Ok(None);
        }
        let withdrawn = Token { withdrawn: true, ..found.record.clone() };
        let write = records::put(token_key(id), records::unchanged(Some(&found)), &withdrawn)?;
        match store.commit(vec![write]).await {
            Ok(_) => return Ok(Some(withdrawn)),
            // Somebody enrolled with it in between: that uses it up some day, so this ends.
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Removes tokens that expired.
pub(crate) async fn sweep(store: &dyn Store, now: SystemTime) -> Result<(), StoreError> {
    let now = unix_seconds(now);
    for entry in store.list(records::TOKENS).await?.entries {
        let token: Found<Token> = records::decode(&entry)?;
        if token.record.expires <= now {
            let gone = crate::store::Write::delete(entry.key, Expect::At(token.revision));
            match store.commit(vec![gone]).await {
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

pub(crate) fn secret_digest(secret: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, secret))
}

fn random<const LENGTH: usize>() -> Result<[u8; LENGTH], StoreError> {
    let mut bytes = [0; LENGTH];
    rand::fill(&mut bytes).map_err(|_| StoreError::Io(std::io::Error::other("no randomness")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    fn grant() -> Grant {
        Grant {
            id: SpiffeId::parse("spiffe://mesh.example/app/edge/api").unwrap(),
            network: "edge".to_owned(),
            uses: 1,
            instances: 1,
            ttl: DEFAULT_TTL,
        }
    }

    #[tokio::test]
    async fn a_token_is_found_by_its_secret_and_the_store_holds_only_a_digest() {
        let store = MemoryStore::new();
        let now = SystemTime::now();
        let token = create(&store, grant(), [7; 32], now).await.unwrap().token;
        let secret = token.secret();
        let found = find(&store, token.id(), secret).await.unwrap().unwrap();
        assert_eq!(found.record.uses, 1);
        assert!(usable(&found.record, now).is_ok());
        let stored = store.list("").await.unwrap().entries.remove(0).value;
        let text = URL_SAFE_NO_PAD.encode(secret);
        assert!(!String::from_utf8(stored).unwrap().contains(&text));
    }

    #[tokio::test]
    async fn a_wrong_secret_and_an_unknown_id_find_nothing() {
        let store = MemoryStore::new();
        let token = create(&store, grant(), [7; 32], SystemTime::now()).await.unwrap().token;
        let mut secret = *token.secret();
        secret[31] ^= 1;
        assert!(find(&store, token.id(), &secret).await.unwrap().is_none());
        assert!(find(&store, "unknown", token.secret()).await.unwrap().is_none());
        assert!(find(&store, token.id(), b"").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_withdrawn_token_is_refused_unlisted_and_cannot_be_withdrawn_twice() {
        let store = MemoryStore::new();
        let now = SystemTime::now();
        let (kept, gone) = (create(&store, grant(), [7; 32], now), create(&store, grant(), [7; 32], now));
        let (kept, gone) = (kept.await.unwrap().token, gone.await.unwrap().token);
        assert_eq!(withdraw(&store, gone.id(), now).await.unwrap().unwrap().id, grant().id);
        let found = find(&store, gone.id(), gone.secret()).await.unwrap().unwrap();
        assert_eq!(usable(&found.record, now), Err("the token was withdrawn"));
        let listed = list(&store, now).await.unwrap();
        assert_eq!(listed.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), [kept.id()]);
        for id in [gone.id(), "unknown"] {
            assert!(withdraw(&store, id, now).await.unwrap().is_none());
        }
        assert!(list(&store, now + DEFAULT_TTL).await.unwrap().is_empty(), "what expired is not listed");
        assert!(withdraw(&store, kept.id(), now + DEFAULT_TTL).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_expired_token_is_refused_and_swept() {
        let store = MemoryStore::new();
        let now = SystemTime::now();
        let token = create(&store, grant(), [7; 32], now).await.unwrap().token;
        let late = now + DEFAULT_TTL;
        let found = find(&store, token.id(), token.secret()).await.unwrap().unwrap();
        assert!(usable(&found.record, late).is_err());
        sweep(&store, now).await.unwrap();
        assert_eq!(store.list("").await.unwrap().entries.len(), 1);
        sweep(&store, late).await.unwrap();
        assert!(store.list("").await.unwrap().entries.is_empty());
    }
}
