//! A mesh prepared before its first start: authority, join tokens and manifests in one directory.
//!
//! `signet inject` writes it beside the Compose file ([`prepare`]), the control plane reads it whenever it starts:
//!
//! | file | what | when it counts |
//! |---|---|---|
//! | `authority.pem` | root, issuer and section keys | on the first start; copied into the state directory |
//! | `tokens.json` | digests of join tokens, never the tokens | those the store has not seen and that have not expired |
//! | `*.yaml` | manifests | while the store has never had any |
//!
//! So nothing that an operator did later is undone by a restart: a token that was used up or withdrawn stays so, and
//! manifests that were all deleted stay deleted.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use signet_identity::{SpiffeId, TrustDomain};
use thiserror::Error;

use crate::authority::{Authority, AuthorityError, Keyring, name};
use crate::files;
use crate::manifests::Manifests;
use crate::records::{self, Token, token_key, unix_seconds};
use crate::store::{Expect, Store, StoreError};
use crate::token::{self, Grant};

pub use crate::token::{TTL_MAX, USES_MAX};

const TOKENS: &str = "tokens.json";
const VERSION: u32 = 1;

/// Tokens in one directory: more containers than one machine runs.
const TOKENS_MAX: usize = 10_000;
/// Far above that many records of 300 bytes.
const TOKENS_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// As much as one `signet apply` takes.
const MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Files of manifests in one directory.
const MANIFESTS_MAX: usize = 100;

/// A join token to prepare.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The identity it gives.
    pub id: SpiffeId,
    /// The network that its holder's addresses lie in; one of the Mesh.
    pub network: String,
    /// How often it may be used, at most [`USES_MAX`].
    pub uses: u32,
    /// How many of its holders may have unexpired certificates at once, at most [`USES_MAX`].
    pub instances: u32,
    /// How long it is good for, at most [`TTL_MAX`].
    pub ttl: std::time::Duration,
}

/// What is wrong with a prepared mesh, or in the way of preparing one.
#[derive(Debug, Error)]
pub enum BootstrapError {
    /// The authority's file is unusable.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The manifests are refused: all that is wrong with them, a line each.
    #[error("the manifests in the bootstrap directory are refused:\n{0}")]
    Manifests(String),
    /// The directory was prepared with another authority than the one that this control plane has.
    #[error(
        "{} belongs to another authority than the state directory; its tokens would be refused. Remove the state \
         directory's volume to start this mesh anew, or the bootstrap directory to go on with the old one",
        path.display()
    )]
    OtherAuthority {
        /// The bootstrap directory.
        path: PathBuf,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// `tokens.json` is not what [`prepare`] writes.
    #[error("{}: {reason}", path.display())]
    Tokens {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A wish for a token is out of its bounds.
    #[error("a token lives at most {} seconds and has 1 to {USES_MAX} uses and instances", TTL_MAX.as_secs())]
    Wanted,
}

/// The file of digests.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct TokenFile {
    version: u32,
    /// By the token's id.
    tokens: BTreeMap<String, Token>,
}

/// Makes the directory's authority, unless there is one, and a token for each wish; earlier tokens stay good. Returns
/// the tokens' texts in the order of the wishes: they are secrets, and kept nowhere else.
///
/// # Errors
/// [`BootstrapError`]; `tokens.json` is then as it was.
pub fn prepare(
    directory: &Path,
    trust_domain: &TrustDomain,
    wanted: &[Wanted],
    now: SystemTime,
) -> Result<Vec<String>, BootstrapError> {
    let in_bounds = |wanted: &Wanted| {
        let counts = 1..=USES_MAX;
        counts.contains(&wanted.uses) && counts.contains(&wanted.instances) && wanted.ttl <= TTL_MAX
    };
    if !wanted.iter().all(in_bounds) {
        return Err(BootstrapError::Wanted);
    }
    files::private_directory(directory)
        .map_err(|error| BootstrapError::Io { path: directory.to_owned(), error })?;
    let mut file = read_tokens(directory)?;
    // A directory lives as long as its project: what expired is of no use to anybody.
    file.tokens.retain(|_, token| token.expires > unix_seconds(now));
    if file.tokens.len() + wanted.len() > TOKENS_MAX {
        let reason = format!("more than {TOKENS_MAX} tokens");
        return Err(BootstrapError::Tokens { path: directory.join(TOKENS), reason });
    }
    let keyring = match Keyring::load(directory, trust_domain)? {
        Some(keyring) => keyring,
        None => Keyring::create(directory, trust_domain, now)?,
    };
    let pin = keyring.pin()?;
    let mut texts = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        let Wanted { id, network, uses, instances, ttl } = wanted.clone();
        let grant = Grant { id, network, uses, instances, ttl };
        let (token, record) = token::mint(grant, pin, now)?;
        texts.push(token.reveal());
        file.tokens.insert(token.id().to_owned(), record);
    }
    let path = directory.join(TOKENS);
    let text = serde_json::to_string_pretty(&file).map_err(|error| io::Error::other(error.to_string()));
    text.and_then(|text| files::replace(&path, text.as_bytes()))
        .map_err(|error| BootstrapError::Io { path, error })?;
    Ok(texts)
}

fn read_tokens(directory: &Path) -> Result<TokenFile, BootstrapError> {
    let path = directory.join(TOKENS);
    let text = match files::read(&path, TOKENS_BYTES_MAX) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(TokenFile { version: VERSION, tokens: BTreeMap::new() });
        }
        Err(error) => return Err(BootstrapError::Io { path, error }),
    };
    let wrong = |reason| BootstrapError::Tokens { path: path.clone(), reason };
    let file: TokenFile = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if file.version != VERSION {
        return Err(wrong(format!("version {} is not {VERSION}, the only one known", file.version)));
    }
    if file.tokens.len() > TOKENS_MAX {
        return Err(wrong(format!("more than {TOKENS_MAX} tokens")));
    }
    Ok(file)
}

/// The authority of the directory, copied into the state directory of a control plane that has none yet.
pub(crate) fn adopt_authority(
    directory: &Path,
    state: &Path,
    trust_domain: &TrustDomain,
) -> Result<Option<Keyring>, AuthorityError> {
    let Some(keyring) = Keyring::load(directory, trust_domain)? else { return Ok(None) };
    keyring.store(state)?;
    Ok(Some(keyring))
}

/// Takes over tokens and, while the store has never had any, manifests.
pub(crate) async fn adopt(
    directory: &Path,
    store: &dyn Store,
    authority: &Authority,
    now: SystemTime,
) -> Result<(), BootstrapError> {
    let (trust_domain, slots) = (authority.trust_domain(), authority.slots());
    // Without its file any more the directory still says whose it is, by the pin that nobody else can meet.
    let prepared =
        Keyring::load(directory, trust_domain)?.map(|keyring| keyring.pin()).transpose()?.map(name);
    if prepared.as_ref().is_some_and(|prepared| !slots.knows_root(prepared)) {
        return Err(BootstrapError::OtherAuthority { path: directory.to_owned() });
    }
    if prepared.is_some_and(|prepared| slots.distrusts(&prepared)) {
        tracing::warn!(path = %directory.display(), "the tokens prepared here pin a root that was given up in an \
            emergency; none is taken over: prepare a new directory, or make tokens with `signet token create`");
    } else {
        adopt_tokens(directory, store, now).await?;
    }
    adopt_manifests(directory, store, trust_domain).await
}

async fn adopt_tokens(directory: &Path, store: &dyn Store, now: SystemTime) -> Result<(), BootstrapError> {
    let mut taken = 0_usize;
    for (id, token) in read_tokens(directory)?.tokens {
        if token.expires <= unix_seconds(now) {
            // The store forgets what expired, so this is what keeps a used token from coming back.
            continue;
        }
        match store.commit(vec![records::put(token_key(&id), Expect::Absent, &token)?]).await {
            Ok(_) => taken += 1,
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if taken > 0 {
        tracing::info!(tokens = taken, "join tokens taken over from the bootstrap directory");
    }
    Ok(())
}

async fn adopt_manifests(
    directory: &Path,
    store: &dyn Store,
    trust_domain: &TrustDomain,
) -> Result<(), BootstrapError> {
    let manifests = Manifests::load(store, &Manifests::default()).await?;
    let texts = read_manifests(directory)?;
    if manifests.ever_had_any() || texts.is_empty() {
        return Ok(());
    }
    let files: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let outcome = manifests.apply(store, trust_domain, &files, false).await?;
    if !outcome.diagnostics.is_empty() {
        let lines: Vec<String> = outcome.diagnostics.iter().map(ToString::to_string).collect();
        return Err(BootstrapError::Manifests(lines.join("\n")));
    }
    tracing::info!(manifests = outcome.changes.len(), "manifests taken over from the bootstrap directory");
    Ok(())
}

fn read_manifests(directory: &Path) -> Result<Vec<(String, String)>, BootstrapError> {
    let failed = |path: &Path, error| BootstrapError::Io { path: path.to_owned(), error };
    let entries = std::fs::read_dir(directory).map_err(|error| failed(directory, error))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| failed(directory, error))?.path();
        if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            paths.push(path);
        }
    }
    if paths.len() > MANIFESTS_MAX {
        return Err(failed(directory, io::Error::other(format!("more than {MANIFESTS_MAX} manifest files"))));
    }
    paths.sort();
    let read = |path: PathBuf| match files::read(&path, MANIFEST_BYTES_MAX) {
        Ok(text) => Ok((path.display().to_string(), text)),
        Err(error) => Err(failed(&path, error)),
    };
    paths.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests;
