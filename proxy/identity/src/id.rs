//! SPIFFE IDs and trust domains (SPIFFE-ID specification, sections 2.1–2.4), parsed strictly.
//!
//! What is accepted is exactly what is written down: no percent-encoding, no case folding, no normalisation,
//! no port, user, query or fragment. Two IDs are equal when their bytes are.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest SPIFFE ID accepted, in bytes: the most the specification lets an implementation demand.
pub const MAX_SPIFFE_ID_BYTES: usize = 2048;

/// The longest trust domain name accepted, in bytes, by the specification.
const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// The scheme as it must be written: URI schemes fold case elsewhere, a SPIFFE ID's does not.
const SCHEME: &str = "spiffe://";

/// The last segment of the control plane's own identity.
const CONTROL_PLANE: &str = "control-plane";

/// The name of a workload: `spiffe://<trust-domain>/<path>`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    uri: Arc<str>,
}

/// The three parts of an identity of the form that Signet issues:
/// `spiffe://<trust-domain>/<class>/<device>/<workload>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkloadParts<'a> {
    /// What kind of workload it is.
    pub class: Class,
    /// The device it runs on; may be a 128-hex-digit mF2C device id.
    pub device: &'a str,
    /// Its name on that device.
    pub workload: &'a str,
}

impl SpiffeId {
    /// Parses a workload's SPIFFE ID. A trust domain without a path is none: use [`TrustDomain`].
    ///
    /// # Errors
    /// The first rule of the specification that `uri` breaks.
    pub fn parse(uri: &str) -> Result<Self, IdError> {
        if uri.len() > MAX_SPIFFE_ID_BYTES {
            return Err(IdError::TooLong);
        }
        let rest = uri.strip_prefix(SCHEME).ok_or(IdError::Scheme)?;
        let (trust_domain, path) = rest.split_once('/').ok_or(IdError::NoPath)?;
        check_trust_domain(trust_domain)?;
        path.split('/').try_for_each(check_segment)?;
        Ok(Self { uri: uri.into() })
    }

    /// The identity that Signet issues to a workload: `/<class>/<device>/<workload>`.
    ///
    /// # Errors
    /// `device` or `workload` is not one well-formed path segment, or the whole is too long.
    pub fn workload(
        trust_domain: &TrustDomain,
        class: Class,
        device: &str,
        workload: &str,
    ) -> Result<Self, IdError> {
        check_segment(device)?;
        check_segment(workload)?;
        Self::parse(&format!("{SCHEME}{trust_domain}/{class}/{device}/{workload}"))
    }

    /// The identity of the control plane on `device`: the only one that an enrolling proxy gives its token to.
    /// An authority must never issue it to the holder of a token.
    ///
    /// # Errors
    /// As for [`SpiffeId::workload`].
    pub fn control_plane(trust_domain: &TrustDomain, device: &str) -> Result<Self, IdError> {
        Self::workload(trust_domain, Class::Platform, device, CONTROL_PLANE)
    }

    /// Whether this is the identity of a control plane, as [`SpiffeId::control_plane`] makes it.
    pub fn is_control_plane(&self) -> bool {
        self.parts().is_some_and(|parts| parts.class == Class::Platform && parts.workload == CONTROL_PLANE)
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The name of the trust domain, without scheme or path.
    pub fn trust_domain(&self) -> &str {
        self.split().0
    }

    /// The trust domain.
    pub fn domain(&self) -> TrustDomain {
        // Checked when the identity was parsed.
        TrustDomain { name: self.trust_domain().into() }
    }

    /// The path, with its leading `/`.
    pub fn path(&self) -> &str {
        self.split().1
    }

    /// The parts of an identity of our own issued form; `None` for any other path. Means something only within
    /// our own trust domain: a foreign domain's paths are its own business.
    pub fn parts(&self) -> Option<WorkloadParts<'_>> {
        let mut segments = self.path().split('/').skip(1);
        let class = segments.next()?.parse().ok()?;
        let device = segments.next()?;
        let workload = segments.next()?;
        segments.next().is_none().then_some(WorkloadParts { class, device, workload })
    }

    fn split(&self) -> (&str, &str) {
        let rest = self.uri.strip_prefix(SCHEME).unwrap_or_default();
        rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash))
    }
}

/// The name of a trust domain: one root of authority.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain {
    name: Arc<str>,
}

impl TrustDomain {
    /// Parses a bare trust domain name, such as `edge.example`.
    ///
    /// # Errors
    /// [`IdError::TrustDomain`] when it is empty, longer than 255 bytes or has a character outside
    /// `a-z 0-9 . - _`.
    pub fn parse(name: &str) -> Result<Self, IdError> {
        check_trust_domain(name)?;
        Ok(Self { name: name.into() })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The URI that stands in the certificates of this domain's authorities: the ID without a path.
    pub(crate) fn uri(&self) -> String {
        format!("{SCHEME}{}", self.name)
    }

    /// The inverse of [`TrustDomain::uri`].
    pub(crate) fn from_uri(uri: &str) -> Result<Self, IdError> {
        Self::parse(uri.strip_prefix(SCHEME).ok_or(IdError::Scheme)?)
    }
}

/// What kind of workload an identity belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// An agent of the platform on a device.
    Agent,
    /// A component of an application.
    App,
    /// Something outside the mesh that holds an identity of it.
    External,
    /// A component of the platform itself.
    Platform,
}

impl Class {
    /// The lower-case name, as it stands in the path.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::App => "app",
            Self::External => "external",
            Self::Platform => "platform",
        }
    }
}

/// Why a text is not a SPIFFE ID, a trust domain or a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IdError {
    /// Not one of the four classes.
    #[error("the class is none of agent, app, external, platform")]
    Class,
    /// The ID of a trust domain where a workload's is needed.
    #[error("the SPIFFE ID has no path")]
    NoPath,
    /// Does not begin with `spiffe://` in lower case.
    #[error("the URI does not begin with spiffe://")]
    Scheme,
    /// A path segment is empty, `.`, `..`, or has a character outside `A-Z a-z 0-9 . - _`.
    #[error("a path segment of the SPIFFE ID is empty, a dot segment, or has a forbidden character")]
    Segment,
    /// Longer than [`MAX_SPIFFE_ID_BYTES`].
    #[error("the SPIFFE ID is longer than 2048 bytes")]
    TooLong,
    /// The trust domain is empty, too long, or has a forbidden character.
    #[error("the trust domain is empty, longer than 255 bytes, or has a forbidden character")]
    TrustDomain,
}

fn check_trust_domain(name: &str) -> Result<(), IdError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > MAX_TRUST_DOMAIN_BYTES || !name.bytes().all(allowed) {
        return Err(IdError::TrustDomain);
    }
    Ok(())
}

fn check_segment(segment: &str) -> Result<(), IdError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if segment.is_empty() || segment == "." || segment == ".." || !segment.bytes().all(allowed) {
        return Err(IdError::Segment);
    }
    Ok(())
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(uri: &str) -> Result<Self, IdError> {
        Self::parse(uri)
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = IdError;

    fn try_from(uri: String) -> Result<Self, IdError> {
        Self::parse(&uri)
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.as_str().into()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;

    fn from_str(name: &str) -> Result<Self, IdError> {
        Self::parse(name)
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = IdError;

    fn try_from(name: String) -> Result<Self, IdError> {
        Self::parse(&name)
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.as_str().into()
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Class {
    type Err = IdError;

    fn from_str(name: &str) -> Result<Self, IdError> {
        [Self::Agent, Self::App, Self::External, Self::Platform]
            .into_iter()
            .find(|class| class.as_str() == name)
            .ok_or(IdError::Class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> TrustDomain {
        TrustDomain::parse("edge.example").unwrap()
    }

    #[test]
    fn workload_id_with_a_128_hex_device_round_trips() {
        let device = "0123456789abcdef".repeat(8);
        let id = SpiffeId::workload(&domain(), Class::Agent, &device, "cimi").unwrap();
        assert_eq!(id.as_str(), format!("spiffe://edge.example/agent/{device}/cimi"));
        assert_eq!(id.trust_domain(), "edge.example");
        assert_eq!(id.path(), format!("/agent/{device}/cimi"));
        let parts = id.parts().unwrap();
        assert_eq!((parts.class, parts.device, parts.workload), (Class::Agent, device.as_str(), "cimi"));
        assert_eq!(id.as_str().parse::<SpiffeId>().unwrap(), id);
    }

    #[test]
    fn foreign_path_is_accepted_and_has_no_parts() {
        for path in ["/ns/iot/sa/gw", "/a", "/app/x", "/app/x/y/z", "/robot/x/y", "/App/x/y"] {
            let id = SpiffeId::parse(&format!("spiffe://other.example{path}")).unwrap();
            assert_eq!((id.path(), id.parts()), (path, None));
        }
    }

    #[test]
    fn every_malformed_id_is_refused_by_name() {
        let cases: &[(&str, IdError)] = &[
            ("", IdError::Scheme),
            ("https://edge.example/a", IdError::Scheme),
            ("SPIFFE://edge.example/a", IdError::Scheme),
            ("Spiffe://edge.example/a", IdError::Scheme),
            ("spiffe:/edge.example/a", IdError::Scheme),
            (" spiffe://edge.example/a", IdError::Scheme),
            ("spiffe://edge.example", IdError::NoPath),
            ("spiffe:///a", IdError::TrustDomain),
            ("spiffe://Edge.example/a", IdError::TrustDomain),
            ("spiffe://edge.example:443/a", IdError::TrustDomain),
            ("spiffe://user@edge.example/a", IdError::TrustDomain),
            ("spiffe://edge%2eexample/a", IdError::TrustDomain),
            ("spiffe://[::1]/a", IdError::TrustDomain),
            ("spiffe://edge.example/", IdError::Segment),
            ("spiffe://edge.example/a/", IdError::Segment),
            ("spiffe://edge.example//a", IdError::Segment),
            ("spiffe://edge.example/a//b", IdError::Segment),
            ("spiffe://edge.example/a/./b", IdError::Segment),
            ("spiffe://edge.example/a/../b", IdError::Segment),
            ("spiffe://edge.example/a%2eb", IdError::Segment),
            ("spiffe://edge.example/a?b=c", IdError::Segment),
            ("spiffe://edge.example/a#b", IdError::Segment),
            ("spiffe://edge.example/a\0", IdError::Segment),
            ("spiffe://edge.example/a b", IdError::Segment),
            ("spiffe://edge.example/a\r\nX-Admin: 1", IdError::Segment),
            ("spiffe://edge.example/a\"", IdError::Segment),
            ("spiffe://edge.example/ä", IdError::Segment),
        ];
        for (uri, error) in cases {
            assert_eq!(SpiffeId::parse(uri), Err(*error), "{uri:?}");
        }
    }

    #[test]
    fn id_of_2048_bytes_is_accepted_and_of_2049_refused() {
        let prefix = "spiffe://edge.example/";
        let longest = format!("{prefix}{}", "a".repeat(MAX_SPIFFE_ID_BYTES - prefix.len()));
        assert!(SpiffeId::parse(&longest).is_ok());
        assert_eq!(SpiffeId::parse(&format!("{longest}a")), Err(IdError::TooLong));
    }

    #[test]
    fn trust_domain_of_256_bytes_is_refused() {
        assert!(TrustDomain::parse(&"a".repeat(255)).is_ok());
        assert_eq!(TrustDomain::parse(&"a".repeat(256)), Err(IdError::TrustDomain));
    }

    #[test]
    fn workload_name_cannot_smuggle_a_segment() {
        for name in ["a/b", "../platform/x/y", "", ".", "a b"] {
            assert_eq!(SpiffeId::workload(&domain(), Class::App, "device", name), Err(IdError::Segment));
            assert_eq!(SpiffeId::workload(&domain(), Class::App, name, "cimi"), Err(IdError::Segment));
        }
    }

    #[test]
    fn only_the_platform_class_can_be_the_control_plane() {
        assert!(SpiffeId::control_plane(&domain(), "d1").unwrap().is_control_plane());
        let app = SpiffeId::workload(&domain(), Class::App, "d1", CONTROL_PLANE).unwrap();
        assert!(!app.is_control_plane());
    }
}
