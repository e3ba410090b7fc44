//! The two pattern languages of a rule: SPIFFE IDs and request paths. Both match whole segments, never parts of one.

use std::fmt;

use serde::{Deserialize, Serialize};
use signet_identity::{SpiffeId, TrustDomain};
use thiserror::Error;

use crate::target::{Ambiguity, check_path, escaped_byte};

/// Longest pattern in bytes: as long as the longest SPIFFE ID.
const MAX_PATTERN_BYTES: usize = 2_048;

/// Why a pattern is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PatternError {
    /// The path part could be read in two ways, so no request that passes would ever match it.
    #[error("no request can match it: {0}")]
    Ambiguous(String),
    /// A segment of a SPIFFE ID is empty, `.`, `..` or holds other than letters, digits, `.`, `-` and `_`.
    #[error("`{0}` is no segment of a SPIFFE ID")]
    BadSegment(String),
    /// The trust domain of an identity pattern is not a valid one; it cannot hold a wildcard.
    #[error("`{0}` is no trust domain")]
    BadTrustDomain(String),
    /// `**` stands elsewhere than at the end.
    #[error("`**` stands for the rest and can only be the last segment")]
    DoubleStarInside,
    /// The pattern is longer than a SPIFFE ID may be.
    #[error("it is longer than 2048 bytes")]
    TooLong,
    /// A wildcard shares a segment with other characters.
    #[error("`{0}`: a wildcard stands for a whole segment")]
    PartialWildcard(String),
    /// A path pattern does not start with `/`.
    #[error("a path starts with `/`")]
    NotAPath,
    /// An identity pattern does not start with `spiffe://` or has no path.
    #[error("an identity is written spiffe://<trust domain>/<class>/<device>/<workload>")]
    NotAnIdentity,
}

impl PatternError {
    /// What to write instead.
    pub(crate) fn fix(&self) -> String {
        match self {
            Self::Ambiguous(_) => {
                "write the path as it is sent, without query, escapes of `/` and dot segments"
            }
            Self::BadSegment(_) => "use letters, digits, `.`, `-`, `_`, or `*` for any one segment",
            Self::BadTrustDomain(_) => "write the trust domain out; it takes no wildcard",
            Self::DoubleStarInside => "use `*` for single segments inside",
            Self::TooLong => "shorten it with wildcards",
            Self::PartialWildcard(_) => "use `*` alone between slashes, or list the values",
            Self::NotAPath => "write `/**` for every path",
            Self::NotAnIdentity => "write `spiffe://<trust domain>/**` for a whole trust domain",
        }
        .to_owned()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Segment {
    Any,
    Exactly(Box<str>),
}

impl Segment {
    /// `None` for the `**` that may close a pattern.
    fn parse(text: &str) -> Result<Option<Self>, PatternError> {
        match text {
            "*" => Ok(Some(Self::Any)),
            "**" => Ok(None),
            _ if text.contains('*') => Err(PatternError::PartialWildcard(text.to_owned())),
            _ => Ok(Some(Self::Exactly(text.into()))),
        }
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => !text.is_empty(),
            Self::Exactly(expected) => **expected == *text,
        }
    }

    /// Whether the segment is this one for some server: with any letter case, and escaped up to twice.
    fn matches_any_spelling(&self, text: &str) -> bool {
        match self {
            Self::Any => !text.is_empty(),
            Self::Exactly(expected) => {
                let (expected, text) = (expected.as_bytes(), text.as_bytes());
                let spelt = |depth| unescaped(expected, depth).eq(unescaped(text, depth));
                spelt(0) || spelt(1) || spelt(2)
            }
        }
    }
}

/// The bytes behind escapes, in lower case. What is escaped more often than twice is refused before any rule is asked.
fn unescaped(text: &[u8], depth: usize) -> impl Iterator<Item = u8> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (mut byte, mut used) = (*rest.first()?, 1);
        for _ in 0..depth {
            let digits = rest.get(used..).and_then(escaped_byte);
            match digits {
                Some(escaped) if byte == b'%' => (byte, used) = (escaped, used + 2),
                _ => break,
            }
        }
        rest = rest.get(used..).unwrap_or_default();
        Some(byte.to_ascii_lowercase())
    })
}

/// The segments of a pattern and whether `**` closes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Segments {
    fixed: Vec<Segment>,
    open: bool,
}

impl Segments {
    fn parse(text: &str) -> Result<Self, PatternError> {
        let mut fixed = Vec::new();
        let mut open = false;
        for part in text.split('/') {
            if open {
                return Err(PatternError::DoubleStarInside);
            }
            match Segment::parse(part)? {
                Some(segment) => fixed.push(segment),
                None => open = true,
            }
        }
        Ok(Self { fixed, open })
    }

    /// Whether the fixed segments match, and then what is left of `text`.
    fn match_fixed<'a>(&self, text: &'a str) -> Option<std::str::Split<'a, char>> {
        let mut parts = text.split('/');
        for segment in &self.fixed {
            if !segment.matches(parts.next()?) {
                return None;
            }
        }
        Some(parts)
    }

    fn is_exact(&self) -> bool {
        !self.open && self.fixed.iter().all(|segment| matches!(segment, Segment::Exactly(_)))
    }
}

/// A pattern for SPIFFE IDs: exact, with `*` for exactly one path segment, and a final `/**` for one or more.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdentityPattern {
    text: String,
    trust_domain: TrustDomain,
    segments: Segments,
}

impl IdentityPattern {
    /// Parses a pattern such as `spiffe://mf2c.example/agent/*/cimi`.
    ///
    /// # Errors
    /// [`PatternError`] names what is wrong.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.len() > MAX_PATTERN_BYTES {
            return Err(PatternError::TooLong);
        }
        let rest = text.strip_prefix("spiffe://").ok_or(PatternError::NotAnIdentity)?;
        let (domain, path) = rest.split_once('/').ok_or(PatternError::NotAnIdentity)?;
        let trust_domain =
            TrustDomain::parse(domain).map_err(|_| PatternError::BadTrustDomain(domain.to_owned()))?;
        let segments = Segments::parse(path)?;
        for segment in &segments.fixed {
            if let Segment::Exactly(part) = segment
                && !is_identity_segment(part)
            {
                return Err(PatternError::BadSegment(part.to_string()));
            }
        }
        Ok(Self { text: text.to_owned(), trust_domain, segments })
    }

    /// The pattern that one identity matches and no other.
    pub(crate) fn of(id: &SpiffeId) -> Self {
        let path = id.path();
        let parts = path.strip_prefix('/').unwrap_or(path).split('/');
        Self {
            text: id.as_str().to_owned(),
            trust_domain: id.domain(),
            segments: Segments {
                fixed: parts.map(|part| Segment::Exactly(part.into())).collect(),
                open: false,
            },
        }
    }

    /// Whether an identity matches.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        if id.trust_domain() != self.trust_domain.as_str() {
            return false;
        }
        let path = id.path();
        let path = path.strip_prefix('/').unwrap_or(path);
        match self.segments.match_fixed(path) {
            Some(mut rest) => rest.next().is_some() == self.segments.open,
            None => false,
        }
    }

    /// The trust domain of all identities that match.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The one identity that matches, if the pattern has no wildcard.
    pub fn exact(&self) -> Option<SpiffeId> {
        if self.segments.is_exact() { SpiffeId::parse(&self.text).ok() } else { None }
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// A pattern for raw request paths: exact, with `*` for one non-empty segment, and a final `/**` for any depth,
/// the part before it included.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPattern {
    text: String,
    segments: Segments,
}

impl PathPattern {
    /// Parses a pattern such as `/api/*/status` or `/api/**`.
    ///
    /// # Errors
    /// [`PatternError`] names what is wrong.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.len() > MAX_PATTERN_BYTES {
            return Err(PatternError::TooLong);
        }
        let rest = text.strip_prefix('/').ok_or(PatternError::NotAPath)?;
        check_path(text).map_err(|ambiguity: Ambiguity| PatternError::Ambiguous(ambiguity.to_string()))?;
        Ok(Self { text: text.to_owned(), segments: Segments::parse(rest)? })
    }

    /// Whether a raw path, without its query, matches.
    pub fn matches(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix('/') else { return false };
        match self.segments.match_fixed(rest) {
            Some(mut rest) => self.segments.open || rest.next().is_none(),
            None => false,
        }
    }

    /// Whether only the path as written matches.
    pub(crate) fn is_exact(&self) -> bool {
        self.segments.is_exact()
    }

    /// Whether some server might take a raw path for one that matches: letter case, escapes and a trailing slash make
    /// no difference. For rules that deny.
    pub fn matches_any_spelling(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix('/') else { return false };
        let fixed = match self.segments.fixed.split_last() {
            Some((Segment::Exactly(last), before)) if last.is_empty() && !self.segments.open => before,
            _ => &self.segments.fixed,
        };
        let mut parts = rest.split('/').filter(|part| !part.is_empty());
        fixed.iter().all(|segment| parts.next().is_some_and(|part| segment.matches_any_spelling(part)))
            && (self.segments.open || parts.next().is_none())
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Path characters of the SPIFFE ID standard, section 2.2.
pub(crate) fn is_identity_segment(text: &str) -> bool {
    !matches!(text, "" | "." | "..")
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

macro_rules! as_text {
    ($($pattern:ident)+) => {$(
        impl TryFrom<String> for $pattern {
            type Error = PatternError;

            fn try_from(text: String) -> Result<Self, PatternError> {
                Self::parse(&text)
            }
        }

        impl From<$pattern> for String {
            fn from(pattern: $pattern) -> Self {
                pattern.text
            }
        }

        impl fmt::Display for $pattern {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.text)
            }
        }
    )+};
}

as_text! { IdentityPattern PathPattern }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_patterns_match_whole_segments() {
        let table = [
            ("spiffe://td/app/d1/x", "spiffe://td/app/d1/x", true),
            ("spiffe://td/app/d1/x", "spiffe://td/app/d1/y", false),
            ("spiffe://td/app/d1/x", "spiffe://td/app/d1/x/y", false),
            ("spiffe://td/app/d1/x", "spiffe://other/app/d1/x", false),
            ("spiffe://td/app/*/x", "spiffe://td/app/d1/x", true),
            ("spiffe://td/app/*/x", "spiffe://td/app/d1/d2/x", false),
            ("spiffe://td/app/*/x", "spiffe://td/app/x", false),
            ("spiffe://td/app/**", "spiffe://td/app/d1/x", true),
            ("spiffe://td/app/**", "spiffe://td/app/d1", true),
            ("spiffe://td/app/**", "spiffe://td/app", false),
            ("spiffe://td/app/**", "spiffe://td/apple/d1", false),
            ("spiffe://td/**", "spiffe://td/app", true),
            ("spiffe://td/*", "spiffe://td/app", true),
            ("spiffe://td/*", "spiffe://td/app/x", false),
            ("spiffe://td/*/**", "spiffe://td/app", false),
        ];
        for (pattern, id, expected) in table {
            let (pattern, id) = (IdentityPattern::parse(pattern).unwrap(), SpiffeId::parse(id).unwrap());
            assert_eq!(pattern.matches(&id), expected, "{pattern} {id}");
        }
    }

    #[test]
    fn only_patterns_without_wildcards_are_exact() {
        let exact = |text| IdentityPattern::parse(text).unwrap().exact().map(|id| id.to_string());
        assert_eq!(exact("spiffe://td/a/b"), Some("spiffe://td/a/b".to_owned()));
        assert_eq!(exact("spiffe://td/a/*"), None);
        assert_eq!(exact("spiffe://td/a/**"), None);
    }

    #[test]
    fn bad_identity_patterns_are_refused() {
        for text in [
            "",
            "*",
            "td/app",
            "spiffe://td",
            "spiffe://td/",
            "spiffe://*/app",
            "spiffe://td/**/x",
            "spiffe://td/a*",
            "spiffe://td/a//b",
            "spiffe://td/a/../b",
            "spiffe://td/a b",
            "spiffe:///a",
            "SPIFFE://td/a",
            "spiffe://td/a/***",
            "spiffe://td/a?b",
            "spiffe://TD/a",
        ] {
            assert!(IdentityPattern::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn path_patterns_match_whole_segments() {
        let table = [
            ("/", "/", true),
            ("/", "/a", false),
            ("/a/b", "/a/b", true),
            ("/a/b", "/a/b/", false),
            ("/a/b", "/A/b", false),
            ("/a/", "/a/", true),
            ("/a/", "/a", false),
            ("/a/*", "/a/b", true),
            ("/a/*", "/a/", false),
            ("/a/*", "/a", false),
            ("/a/*", "/a/b/c", false),
            ("/a/*/c", "/a/b/c", true),
            ("/a/**", "/a", true),
            ("/a/**", "/a/", true),
            ("/a/**", "/a/b/c", true),
            ("/a/**", "/ab", false),
            ("/**", "/", true),
            ("/**", "/a/b", true),
            ("/**", "*", false),
            ("/a/*/**", "/a/b", true),
            ("/a/*/**", "/a", false),
        ];
        for (pattern, path, expected) in table {
            assert_eq!(PathPattern::parse(pattern).unwrap().matches(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_path_that_is_denied_is_denied_in_every_spelling() {
        let table = [
            ("/admin", "/admin", true),
            ("/admin", "/admin/", true),
            ("/admin/", "/admin", true),
            ("/admin", "/ADMIN", true),
            ("/admin", "/%61dmin", true),
            ("/admin", "/%2561dmin", true),
            ("/admin", "/ad%4Din", true),
            ("/admin", "/admin2", false),
            ("/admin", "/admin/x", false),
            ("/admin/**", "/admin", true),
            ("/admin/**", "/%41dmin/x/y", true),
            ("/admin/*", "/admin/x/", true),
            ("/admin/*", "/admin/", false),
            ("/%61", "/a", true),
            ("/", "/", true),
            ("/", "/a", false),
            ("/**", "/", true),
            ("/**", "/a/b", true),
            ("/*", "/", false),
            ("/a%25", "/a%25", true),
        ];
        for (pattern, path, expected) in table {
            let pattern = PathPattern::parse(pattern).unwrap();
            assert_eq!(pattern.matches_any_spelling(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn bad_path_patterns_are_refused() {
        for text in ["", "*", "a", "/a*", "/**/a", "//", "/a/../b", "/a%2fb", "/a;b", "/a?b", "/a b", "/***"]
        {
            assert!(PathPattern::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn patterns_travel_as_text_and_are_checked_on_the_way_in() {
        let pattern = PathPattern::parse("/api/**").unwrap();
        assert_eq!(serde_json::to_string(&pattern).unwrap(), "\"/api/**\"");
        assert_eq!(serde_json::from_str::<PathPattern>("\"/api/**\"").unwrap(), pattern);
        assert!(serde_json::from_str::<PathPattern>("\"/api/**/x\"").is_err());
        assert!(serde_json::from_str::<IdentityPattern>("\"spiffe://td/*x\"").is_err());
    }
}
