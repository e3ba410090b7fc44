//! Header fields by which applications tell who calls: what a header policy makes of them.
//!
//! What is decided and signed is the request as it was received; this comes after, on what the application gets.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::condition::same_field;
use crate::model::{Caller, HeaderPolicyModel, IdentityFields, SourceMatch};

/// Fields that nobody may send where no header policy says otherwise: mF2C's applications believe the first blindly, and
/// nothing but mF2C knows it. The sidecar itself writes the verified caller into the second.
///
/// The fields that reverse proxies set are not among them: whoever is behind one in the mesh needs them, and what they
/// say was never proven.
pub const ALWAYS_STRIPPED: [&str; 2] = ["slipstream-authn-info", "x-forwarded-client-cert"];

/// Fields a header policy is about unless it says otherwise.
pub const IDENTITY_FIELDS: [&str; 4] = ["slipstream-authn-info", "x-forwarded-*", "x-real-ip", "forwarded"];

/// Longest name of a header field.
const MAX_FIELD_BYTES: usize = 128;

/// Fields that frame, route or protect the message: the mesh's own, and not a policy's. Kept in order.
const UNMANAGED: [&str; 22] = [
    "client-cert",
    "client-cert-chain",
    "connection",
    "content-digest",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "set-cookie",
    "signature",
    "signature-input",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "www-authenticate",
    "x-forwarded-client-cert",
];

/// Why a name of a header field is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FieldNameError {
    /// It would be all fields.
    #[error("it would be every field")]
    Everything,
    /// It holds what no name holds, or is too long.
    #[error("a name is made of letters, digits, `-` and `_`, and has at most 128 bytes")]
    NoName,
    /// `*` stands elsewhere than at the end.
    #[error("`*` stands for the rest of a name and only at its end")]
    StarInside,
    /// The mesh itself sets, moves or removes it.
    #[error("it frames or protects the message, and is not for policies")]
    Unmanaged,
}

/// The name of a header field a policy may speak of, in lower case.
///
/// # Errors
/// [`FieldNameError`], never [`FieldNameError::StarInside`].
pub(crate) fn field_name(text: &str) -> Result<String, FieldNameError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if text.is_empty() || text.len() > MAX_FIELD_BYTES || !text.bytes().all(is_plain) {
        return Err(FieldNameError::NoName);
    }
    let name = text.to_ascii_lowercase();
    let plain = name.replace('_', "-");
    if plain.starts_with("mesh-") || UNMANAGED.contains(&plain.as_str()) {
        return Err(FieldNameError::Unmanaged);
    }
    Ok(name)
}

/// A name of a header field, or with a final `*` the beginning of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FieldPattern {
    /// In lower case.
    text: String,
}

impl FieldPattern {
    /// Parses a name such as `x-user` or `x-admin-*`; letter case makes no difference.
    ///
    /// # Errors
    /// [`FieldNameError`] names what is wrong.
    pub fn parse(text: &str) -> Result<Self, FieldNameError> {
        let (start, star) = match text.strip_suffix('*') {
            Some(start) => (start, "*"),
            None => (text, ""),
        };
        if start.contains('*') {
            return Err(FieldNameError::StarInside);
        }
        if start.is_empty() && !star.is_empty() {
            return Err(FieldNameError::Everything);
        }
        Ok(Self { text: field_name(start)? + star })
    }

    /// The field with this name, in lower case.
    pub(crate) fn named(name: &str) -> Self {
        Self { text: name.to_owned() }
    }

    /// Whether a field is meant, however it spells `-`. Names of fields are in lower case.
    pub fn matches(&self, name: &str) -> bool {
        match self.text.strip_suffix('*') {
            Some(start) => name.get(..start.len()).is_some_and(|begin| same_field(begin, start)),
            None => same_field(&self.text, name),
        }
    }

    /// The one name it stands for, if it has no wildcard.
    pub fn exact(&self) -> Option<&str> {
        if self.text.ends_with('*') { None } else { Some(&self.text) }
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl TryFrom<String> for FieldPattern {
    type Error = FieldNameError;

    fn try_from(text: String) -> Result<Self, FieldNameError> {
        Self::parse(&text)
    }
}

impl From<FieldPattern> for String {
    fn from(pattern: FieldPattern) -> Self {
        pattern.text
    }
}

impl fmt::Display for FieldPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What becomes of one header field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate<'a> {
    /// It stays as it is.
    Keep,
    /// It says this instead.
    Overwrite(&'a str),
    /// It goes.
    Remove,
}

/// What becomes of the header fields of one caller's request; see [`crate::PolicyIndex::header_plan`].
#[derive(Clone, Copy, Debug)]
pub struct HeaderPlan<'a> {
    pub(crate) policy: Option<&'a HeaderPolicyModel>,
    pub(crate) caller: Option<Caller<'a>>,
    /// The fields that rules decide by.
    pub(crate) asked: &'a [FieldPattern],
}

impl<'a> HeaderPlan<'a> {
    /// What becomes of the field with this name, given in lower case.
    pub fn fate(&self, name: &str) -> Fate<'a> {
        let Some(policy) = self.policy else {
            let stripped = ALWAYS_STRIPPED.iter().any(|known| same_field(known, name));
            return if stripped { Fate::Remove } else { Fate::Keep };
        };
        let named = |field: &&IdentityFields| {
            field.names.iter().any(|pattern| pattern.matches(name)) && is_managed(name)
        };
        match policy.fields.iter().find(named) {
            // What the sidecar itself says is nobody's to say.
            _ if policy.peer_header.as_ref().is_some_and(|own| same_field(own, name)) => Fate::Remove,
            None => Fate::Keep,
            Some(field) if self.is_entitled(&field.entitled) => Fate::Keep,
            Some(field) => field.overwrite.as_deref().map_or(Fate::Remove, Fate::Overwrite),
        }
    }

    /// The field in which the application is told the caller's verified identity.
    pub fn peer_header(&self) -> Option<&'a str> {
        self.policy?.peer_header.as_deref()
    }

    /// The fields that this caller may not send at all, for where they cannot be overwritten, and those that rules decide by,
    /// for where it is too late for that.
    pub fn withheld(&self) -> Vec<FieldPattern> {
        let Some(policy) = self.policy else { return self.asked.to_vec() };
        let own = policy.peer_header.as_deref().and_then(|name| FieldPattern::parse(name).ok());
        let fields = policy.fields.iter().filter(|field| !self.is_entitled(&field.entitled));
        fields
            .flat_map(|field| field.names.iter().cloned())
            .chain(own)
            .chain(self.asked.iter().cloned())
            .collect()
    }

    fn is_entitled(&self, entitled: &[SourceMatch]) -> bool {
        self.caller.is_some_and(|caller| entitled.iter().any(|source| source.entitles(&caller)))
    }
}

/// A wildcard may cover more than a policy may touch.
fn is_managed(name: &str) -> bool {
    !UNMANAGED.iter().any(|unmanaged| same_field(unmanaged, name))
}

#[cfg(test)]
mod tests {
    use signet_identity::{SpiffeId, TrustDomain};

    use super::*;
    use crate::model::Target;
    use crate::pattern::IdentityPattern;

    fn patterns(names: &[&str]) -> Vec<FieldPattern> {
        names.iter().map(|name| FieldPattern::parse(name).unwrap()).collect()
    }

    #[test]
    fn names_are_plain_and_never_the_meshs_own() {
        for text in ["x-user", "X-User", "x_user", "x-admin-*", "authorization", "slipstream-authn-info"] {
            assert!(FieldPattern::parse(text).is_ok(), "{text}");
        }
        for text in ["", "x user", "x:y", "caf\u{e9}", &"x".repeat(129)] {
            assert_eq!(FieldPattern::parse(text), Err(FieldNameError::NoName), "{text}");
        }
        for text in ["Host", "content_length", "mesh-peer", "MESH_x", "x-forwarded-client-cert", "te"] {
            assert_eq!(FieldPattern::parse(text), Err(FieldNameError::Unmanaged), "{text}");
        }
        assert_eq!(FieldPattern::parse("*"), Err(FieldNameError::Everything));
        assert_eq!(FieldPattern::parse("x-*-y"), Err(FieldNameError::StarInside));
        assert_eq!(serde_json::to_string(&FieldPattern::parse("X-A*").unwrap()).unwrap(), "\"x-a*\"");
        assert!(serde_json::from_str::<FieldPattern>("\"host\"").is_err());
    }

    #[test]
    fn patterns_match_every_spelling_of_the_hyphen() {
        let [exact, open] = &patterns(&["x-user", "x-admin-*"])[..] else { panic!("two") };
        for (name, is_exact, is_open) in [
            ("x-user", true, false),
            ("x_user", true, false),
            ("x-user-2", false, false),
            ("x-admin-", false, true),
            ("x_admin_level", false, true),
            ("x-admin", false, false),
            ("é", false, false),
        ] {
            assert_eq!((exact.matches(name), open.matches(name)), (is_exact, is_open), "{name}");
        }
    }

    #[test]
    fn only_the_entitled_keep_what_says_who_calls() {
        let own = TrustDomain::parse("td").unwrap();
        let lm = SpiffeId::parse("spiffe://td/agent/d/lm").unwrap();
        let other = SpiffeId::parse("spiffe://td/agent/d/other").unwrap();
        let policy = HeaderPolicyModel {
            name: "h".to_owned(),
            target: Target::Everything,
            ports: Vec::new(),
            fields: vec![
                IdentityFields {
                    names: patterns(&["slipstream-authn-info"]),
                    entitled: vec![SourceMatch::Identity(IdentityPattern::parse(lm.as_str()).unwrap())],
                    overwrite: None,
                },
                IdentityFields {
                    names: patterns(&["x-user"]),
                    entitled: Vec::new(),
                    overwrite: Some("nobody".to_owned()),
                },
                IdentityFields { names: patterns(&["c*"]), entitled: Vec::new(), overwrite: None },
            ],
            peer_header: Some("x-peer".to_owned()),
        };
        let asked = patterns(&["x-method"]);
        let plan = |id| HeaderPlan {
            policy: Some(&policy),
            caller: Some(Caller { id, trust_domain: &own, roles: &[], now: 0 }),
            asked: &asked,
        };
        assert_eq!(plan(Some(&lm)).fate("slipstream-authn-info"), Fate::Keep);
        for caller in [Some(&other), None] {
            assert_eq!(plan(caller).fate("slipstream-authn-info"), Fate::Remove);
            assert_eq!(plan(caller).fate("slipstream_authn_info"), Fate::Remove);
        }
        assert_eq!(plan(Some(&lm)).fate("X_User".to_ascii_lowercase().as_str()), Fate::Overwrite("nobody"));
        assert_eq!(plan(Some(&lm)).fate("x_peer"), Fate::Remove);
        assert_eq!(
            plan(Some(&lm)).fate("content-length"),
            Fate::Keep,
            "a wildcard does not touch the framing"
        );
        assert_eq!(plan(Some(&lm)).fate("cookie"), Fate::Remove);
        assert_eq!(plan(Some(&lm)).fate("accept"), Fate::Keep);
        let withheld = |id| plan(id).withheld().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(withheld(Some(&lm)), ["x-user", "c*", "x-peer", "x-method"]);
        assert_eq!(withheld(None), ["slipstream-authn-info", "x-user", "c*", "x-peer", "x-method"]);
    }

    #[test]
    fn without_a_policy_nobody_is_administrator_and_proxies_are_left_alone() {
        let plan = HeaderPlan { policy: None, caller: None, asked: &[] };
        assert_eq!(plan.fate("slipstream-authn-info"), Fate::Remove);
        assert_eq!(plan.fate("slipstream_authn-info"), Fate::Remove);
        assert_eq!(plan.fate("x-forwarded-client-cert"), Fate::Remove);
        for kept in ["x-forwarded-for", "forwarded", "x-real-ip", "authorization"] {
            assert_eq!(plan.fate(kept), Fate::Keep, "{kept}");
        }
    }
}
