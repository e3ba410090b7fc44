//! Which key plays which part: a record in the store, so that it changes in one commit with all that depends on it.
//!
//! Everything is named by the SHA-256 of its public key, base64url; the keys themselves are in the
//! [`Keyring`].

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use signet_identity::JwtKey;

use super::keyring::{Keyring, name};

/// The parts that the keys of a trust domain play.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Slots {
    /// The root in force: what new tokens pin.
    pub(crate) root: String,
    /// The issuer in force.
    pub(crate) issuer: String,
    /// The change of them that is under way.
    #[serde(default)]
    pub(crate) rotation: Option<Rotation>,
    /// Roots that were in force, the last one first.
    #[serde(default)]
    pub(crate) retired: Vec<RetiredRoot>,
    /// Issuers that are no longer believed though their root may be.
    #[serde(default)]
    pub(crate) issuers: Vec<RetiredIssuer>,
    /// Every root that was ever in force, the last one first: what a prepared directory may belong to.
    #[serde(default)]
    pub(crate) past: Vec<String>,
    /// Those of them that were given up in an emergency: no token that pins one is taken.
    #[serde(default)]
    pub(crate) distrusted: Vec<String>,
    /// How many changes were begun: the number of the last one.
    #[serde(default)]
    pub(crate) number: u64,
    /// How the last one that is over ended.
    #[serde(default)]
    pub(crate) last: Option<Ended>,
    /// Keys of issuers that went in good order, whose JWT-SVIDs have not ended; the last one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) former_jwt_keys: Vec<FormerJwtKey>,
}

/// How many such keys are kept: a rotation takes longer than a token lives.
pub(crate) const FORMER_JWT_KEYS_MAX: usize = 4;

/// A key that signs no more JWT-SVIDs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct FormerJwtKey {
    /// The point, base64url.
    point: String,
    /// Unix seconds: then the last token has ended.
    pub(crate) until: u64,
}

impl FormerJwtKey {
    pub(crate) fn new(key: JwtKey, until: u64) -> Self {
        Self { point: URL_SAFE_NO_PAD.encode(key.point()), until }
    }

    /// The key; none where the record was altered.
    pub(crate) fn key(&self) -> Option<JwtKey> {
        JwtKey::from_point(&URL_SAFE_NO_PAD.decode(&self.point).ok()?)
    }
}

/// A change from one pair of root and issuer to another.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Rotation {
    pub(crate) what: What,
    /// What comes next. For an issuer the root is the one in force.
    pub(crate) root: String,
    pub(crate) issuer: String,
    pub(crate) phase: Phase,
    /// Unix seconds.
    pub(crate) began: u64,
    /// Seconds over which renewals are spread.
    pub(crate) renew_within: u32,
}

/// What is replaced.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    Issuer,
    Root,
}

/// How far a change is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Everybody learns of the next root; the old issuer certifies.
    Distributing,
    /// The next issuer certifies; everybody gets certificates of it.
    Reissuing,
    /// Called off: the old issuer certifies again; everybody gets certificates of it.
    Returning,
}

/// A root that was replaced.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct RetiredRoot {
    pub(crate) root: String,
    /// Unix seconds: until then the control plane knows those who missed the change.
    pub(crate) until: u64,
    pub(crate) why: Why,
}

/// An issuer that was replaced.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct RetiredIssuer {
    pub(crate) issuer: String,
    pub(crate) root: String,
    pub(crate) why: Why,
}

/// Why a root or an issuer is no longer in force.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Why {
    /// Its time was over: what is open goes on, and it vouches for what came after it.
    Planned,
    /// Somebody else may have its key: nothing goes on.
    Emergency,
    /// It was the next one when the change was called off.
    Returned,
}

/// A change that is over.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Ended {
    pub(crate) number: u64,
    pub(crate) what: What,
    pub(crate) outcome: Outcome,
    /// Unix seconds.
    pub(crate) at: u64,
}

/// How a change ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Completed,
    Emergency,
    Reversed,
}

impl Slots {
    /// Before anything was ever rotated: the first pair is in force.
    pub(crate) fn first(keyring: &Keyring) -> Result<Self, super::AuthorityError> {
        let pair = keyring.first()?;
        Ok(Self {
            root: name(pair.root_spki_sha256()),
            issuer: name(pair.issuer_spki_sha256()),
            rotation: None,
            retired: Vec::new(),
            issuers: Vec::new(),
            past: Vec::new(),
            distrusted: Vec::new(),
            number: 0,
            last: None,
            former_jwt_keys: Vec::new(),
        })
    }

    /// Root and issuer that certify now.
    pub(crate) fn certifying(&self) -> (&str, &str) {
        match &self.rotation {
            Some(Rotation { root, issuer, phase: Phase::Reissuing, .. }) => (root, issuer),
            _ => (&self.root, &self.issuer),
        }
    }

    /// The pairs whose keys are needed: the one in force, then the next.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let next = self.rotation.iter().map(|next| (&*next.root, &*next.issuer));
        std::iter::once((&*self.root, &*self.issuer)).chain(next)
    }

    /// The roots in force, current and next: what workloads believe.
    pub(crate) fn roots(&self) -> impl Iterator<Item = &str> {
        let next = self.rotation.iter().filter(|next| next.what == What::Root).map(|next| &*next.root);
        std::iter::once(&*self.root).chain(next)
    }

    /// The root whose word for `root` still counts, if there is one: the one before it, in force or retired in good order.
    pub(crate) fn voucher_of(&self, root: &str) -> Option<&str> {
        if self.roots().nth(1) == Some(root) {
            return Some(&self.root);
        }
        let after = if root == self.root { 0 } else { self.past.iter().position(|past| past == root)? + 1 };
        let before = self.past.get(after)?;
        let planned = self.retired.iter().filter(|retired| retired.why == Why::Planned);
        planned.map(|retired| &*retired.root).find(|retired| retired == before)
    }

    /// Whether certificates of this issuer are of a root in force, current or next. None is one from before issuers were
    /// recorded: of the first root.
    pub(crate) fn is_of_root_in_force(&self, issuer: Option<&str>) -> bool {
        let Some(issuer) = issuer else { return self.past.is_empty() };
        let retired = self.issuers.iter().filter(|retired| retired.issuer == issuer);
        self.pairs().any(|(_, own)| own == issuer)
            || retired.map(|retired| &*retired.root).any(|root| self.roots().any(|own| own == root))
    }

    /// Whether nothing that this root vouches for counts any more: it was given up in an emergency, or before one.
    pub(crate) fn distrusts(&self, root: &str) -> bool {
        let last = self.past.iter().position(|past| self.distrusted.contains(past));
        last.is_some_and(|last| self.past.iter().skip(last).any(|past| past == root))
    }

    /// Roots that were, or are, this trust domain's, however they went.
    pub(crate) fn knows_root(&self, root: &str) -> bool {
        self.roots().any(|own| own == root) || self.past.iter().any(|past| past == root)
    }
}
