//! Making and taking messages in the workload's name. One function for each, whatever asked for it.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use signet_identity::{SigningIdentity, SpiffeId, verify_signing_chain};
use signet_policy::IdentityPattern;
use signet_signature::jws::jwt::{self, Claims, UnprovenClaims};
use signet_signature::jws::{
    self, Audience, DEFAULT_LIFETIME, Head, JwsError, Level, MAX_AUDIENCE, MessageId, Rules, SeenMessages,
    Signer, Unproven,
};
use signet_signature::seal::Recipient;

use crate::clock;
use crate::local::config::LocalConfig;
use crate::local::refused::Refused;
use crate::snapshot::{Credentials, Snapshot};
use crate::worker::Shared;

/// Length of an mF2C device identifier.
const DEVICE_ID_LEN: usize = 128;

/// What messages are made with and judged by.
pub(crate) struct Messages {
    shared: Arc<Shared>,
    seen: RefCell<SeenMessages>,
}

/// What is to become a message.
pub(crate) struct Draft {
    /// SPIFFE IDs, or names that the directory knows, or the word `any`.
    pub(crate) audience: Vec<String>,
    pub(crate) content_type: Option<String>,
    /// Seconds; [`DEFAULT_LIFETIME`] or the rest of the certificate's life without.
    pub(crate) lifetime: Option<u64>,
    pub(crate) level: Level,
}

/// A message made.
pub(crate) struct Made {
    pub(crate) message: String,
    pub(crate) head: Head,
}

/// What a message must be to be taken.
#[derive(Clone, Copy)]
pub(crate) struct Demand<'a> {
    pub(crate) level: Level,
    /// Whether it is taken once only.
    pub(crate) once: bool,
    /// Who may have sent it; anybody who can be verified, without any.
    pub(crate) from: &'a [IdentityPattern],
}

/// A message taken.
pub(crate) struct Taken {
    pub(crate) sender: String,
    pub(crate) head: Head,
    pub(crate) payload: Vec<u8>,
}

/// The state that one request is judged by.
struct Now {
    credentials: Arc<Credentials>,
    snapshot: Arc<Snapshot>,
    at: SystemTime,
    unix: u64,
}

impl Now {
    fn rules(&self) -> Rules<'_> {
        Rules { own: Some(self.credentials.id().as_str()), now: self.unix, skew: self.snapshot.clock_skew_s }
    }

    /// Seconds for which our certificate still vouches.
    fn left(&self) -> u64 {
        unix(self.credentials.signing.not_after).saturating_sub(self.unix)
    }

    /// Until when a message that is made now is believed.
    fn expires(&self, lifetime: Option<u64>) -> Result<u64, Refused> {
        let left = self.left();
        match lifetime {
            _ if left == 0 => Err(Refused::NotReady),
            Some(asked) if asked > left => Err(Refused::CertificateEnds(left)),
            Some(asked) => Ok(self.unix + asked),
            None => Ok(self.unix + left.min(DEFAULT_LIFETIME)),
        }
    }
}

impl Messages {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, seen: RefCell::default() }
    }

    pub(crate) fn config(&self) -> &LocalConfig {
        &self.shared.config.local
    }

    /// Counts what became of a request.
    pub(crate) fn count(&self, operation: &'static str, code: &'static str) {
        self.shared.metrics.local_request(operation, code);
    }

    /// Who we are.
    pub(crate) fn identity(&self) -> Result<SpiffeId, Refused> {
        Ok(self.now()?.credentials.id().clone())
    }

    /// Signs a payload, sealed before if the draft is private.
    pub(crate) fn make(&self, draft: Draft, payload: &[u8]) -> Result<Made, Refused> {
        self.check_size(payload.len())?;
        let now = self.now()?;
        let audience = audience(&now.snapshot, draft.audience)?;
        let head = Head {
            id: MessageId::random()?,
            created: now.unix,
            expires: now.expires(draft.lifetime)?,
            audience,
            content_type: draft.content_type,
        };
        let (signer, chain) = (&now.credentials.signer, &now.credentials.signing.chain);
        let message = match draft.level {
            Level::Protected => jws::sign(signer, chain, &head, payload)?,
            Level::Private => {
                let keys = keys(&now.snapshot, &head.audience)?;
                let to: Vec<_> = keys.iter().map(|(id, key)| Recipient { spiffe_id: id, key }).collect();
                jws::seal(signer, chain, &head, &to, payload)?
            }
        };
        Ok(Made { message, head })
    }

    /// Verifies a message, and opens it if it has to be private.
    pub(crate) fn take(&self, message: &str, demand: Demand<'_>) -> Result<Taken, Refused> {
        let now = self.now()?;
        let unproven = Unproven::parse(message)?;
        let signer = self.signer(&now, unproven.chain())?;
        let verified = unproven.verify(&signer.as_signer(), now.rules())?;
        if !demand.from.is_empty() && !demand.from.iter().any(|from| from.matches(signer.identity.id())) {
            return Err(Refused::Sender);
        }
        let payload = match demand.level {
            Level::Protected => verified.payload()?.to_vec(),
            Level::Private => {
                let credentials = &now.credentials;
                verified.open(credentials.id().as_str(), &credentials.sealing_keys())?
            }
        };
        self.check_size(payload.len())?;
        // Last: what is refused for anything else is not used up.
        if demand.once {
            self.once(&now, verified.sender(), verified.head().id, verified.head().expires)?;
        }
        Ok(Taken { sender: verified.sender().to_owned(), head: verified.head().clone(), payload })
    }

    /// Asserts our identity to an audience.
    pub(crate) fn assert(&self, recipients: Vec<String>) -> Result<String, Refused> {
        let now = self.now()?;
        let audience = audience(&now.snapshot, recipients)?;
        let (signer, chain) = (&now.credentials.signer, &now.credentials.signing.chain);
        Ok(jwt::sign(signer, chain, &audience, now.unix, now.expires(None)?)?)
    }

    /// Verifies an assertion. It may be shown more than once while it lasts, as assertions are.
    pub(crate) fn check_assertion(&self, token: &str) -> Result<Claims, Refused> {
        let now = self.now()?;
        let unproven = UnprovenClaims::parse(token)?;
        let signer = self.signer(&now, unproven.chain())?;
        Ok(unproven.verify(&signer.as_signer(), now.rules())?)
    }

    /// Without roots, revocations or a certificate of our own nothing can be judged.
    fn now(&self) -> Result<Now, Refused> {
        let snapshot = self.shared.snapshots.load_full();
        let credentials = self.shared.credentials().filter(|_| snapshot.ready).ok_or(Refused::NotReady)?;
        let at = clock::now();
        Ok(Now { credentials, snapshot, at, unix: unix(at) })
    }

    fn check_size(&self, length: usize) -> Result<(), Refused> {
        if length > self.config().payload_bytes { Err(Refused::TooLarge) } else { Ok(()) }
    }

    fn signer(&self, now: &Now, chain: &[rustls_pki_types::CertificateDer<'_>]) -> Result<Verified, Refused> {
        // A federation says who may call whom; of messages that outlive the hop it says nothing.
        let identity =
            verify_signing_chain(&now.snapshot.bundle.alone(), chain, now.at).map_err(|error| {
                tracing::info!(%error, "the certificate of a message is refused");
                Refused::UnknownSigner
            })?;
        if now.snapshot.revoked(identity.id(), &identity.fingerprint()) {
            tracing::info!(sender = %identity.id(), "a message of a revoked sender is refused");
            return Err(Refused::Revoked);
        }
        Ok(Verified { keyid: identity.keyid(), identity })
    }

    fn once(&self, now: &Now, sender: &str, id: MessageId, expires: u64) -> Result<(), Refused> {
        let until = expires.saturating_add(now.snapshot.clock_skew_s);
        Ok(self.seen.borrow_mut().take(sender, id, until, now.unix)?)
    }
}

/// A signer whose chain was verified and is not revoked.
struct Verified {
    identity: SigningIdentity,
    keyid: String,
}

impl Verified {
    fn as_signer(&self) -> Signer<'_> {
        Signer {
            spiffe_id: self.identity.id().as_str(),
            keyid: &self.keyid,
            public_key: self.identity.public_key(),
            not_before: unix(self.identity.not_before()),
            not_after: unix(self.identity.not_after()),
        }
    }
}

/// Whom the names mean: a SPIFFE ID itself, or every workload of that name, host name or device.
fn audience(snapshot: &Snapshot, names: Vec<String>) -> Result<Audience, Refused> {
    if names.is_empty() || names.len() > MAX_AUDIENCE {
        return Err(JwsError::Recipients.into());
    }
    if names.len() == 1 && names.first().is_some_and(|name| name == "any") {
        return Ok(Audience::Any);
    }
    let mut found: Vec<String> = Vec::new();
    for name in names {
        let meant = if name.starts_with("spiffe://") {
            let id = SpiffeId::parse(&name).map_err(|_| Refused::RecipientUnknown)?;
            vec![id.as_str().to_owned()]
        } else {
            named(snapshot, &name)
        };
        if meant.is_empty() {
            return Err(Refused::RecipientUnknown);
        }
        for id in meant {
            if !found.contains(&id) {
                found.push(id);
            }
        }
    }
    Ok(Audience::new(found)?)
}

fn named(snapshot: &Snapshot, name: &str) -> Vec<String> {
    let is_device = name.len() == DEVICE_ID_LEN;
    let entries = snapshot.directories.iter().flat_map(|directory| directory.entries());
    let mut found = Vec::new();
    for entry in entries {
        let by_name = entry.workload == name || entry.names.iter().any(|one| one == name);
        // Names and devices are those of the own trust domain: another one's paths say nothing here.
        let own = snapshot.bundle.trust_domain().as_str();
        for id in entry.identities.iter().filter(|id| id.trust_domain() == own) {
            let by_device = is_device && id.parts().is_some_and(|parts| parts.device == name);
            if (by_name || by_device) && !found.iter().any(|known| known == id.as_str()) {
                found.push(id.as_str().to_owned());
            }
        }
    }
    found
}

/// The keys of everybody in an audience, as the directory has them now.
fn keys(snapshot: &Snapshot, audience: &Audience) -> Result<Vec<(String, [u8; 32])>, Refused> {
    let Audience::Only(identities) = audience else { return Err(JwsError::Recipients.into()) };
    let mut keys: Vec<(String, [u8; 32])> = Vec::new();
    for text in identities {
        let id = SpiffeId::parse(text).map_err(|_| Refused::RecipientUnknown)?;
        let before = keys.len();
        for entry in snapshot.directories.iter().flat_map(|directory| directory.of(&id)) {
            for key in &entry.sealing_keys {
                if !keys.iter().any(|(known, one)| known == text && one == key) {
                    keys.push((text.clone(), *key));
                }
            }
        }
        if keys.len() == before {
            return Err(Refused::RecipientWithoutKey);
        }
    }
    Ok(keys)
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
