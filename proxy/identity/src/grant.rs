//! What an area may certify: its name and the identities it was granted, as they stand in the certificate of its issuer.
//!
//! ```text
//! 2.25.4068359310187260413, critical: SEQUENCE { area UTF8String, identities SEQUENCE OF UTF8String }
//! ```
//!
//! An identity is granted by class, device and workload, each written out or `*` for any: `agent/*/*`. Whoever does not know the
//! extension refuses the chain, for it is critical: URI constraints end at the host and cannot say this.

use std::fmt;

use rcgen::CustomExtension;
use thiserror::Error;

use crate::der::{self, Malformed, Reader};
use crate::id::{Class, SpiffeId};

/// The extension, in arcs and as it is written.
const GRANT_ARCS: &[u64] = &[2, 25, 4_068_359_310_187_260_413];
pub(crate) const GRANT_OID: &[u8] = &[0x69, 0xb8, 0xba, 0xed, 0xe7, 0xcc, 0xf2, 0xf5, 0xd3, 0x7d];

const UTF8_STRING: u8 = 0x0c;

/// Patterns of one grant: an area has some classes and devices of its own. The certificate travels with each handshake.
pub const MAX_GRANT_PATTERNS: usize = 16;

/// Bytes of an area's name; it is a DNS label, as names of networks are.
pub const MAX_AREA_BYTES: usize = 63;

/// Bytes of one pattern.
const PATTERN_BYTES_MAX: usize = 255;

/// An area and the identities that it may certify. Never a control plane's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AreaGrant {
    area: String,
    identities: Vec<String>,
}

/// Why this is no grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GrantError {
    /// The name is no DNS label.
    #[error("an area's name has 1 to 63 lower-case letters, digits and hyphens, and no hyphen at its ends")]
    Area,
    /// No pattern, or too many.
    #[error("a grant has 1 to 16 patterns of identities")]
    Count,
    /// A pattern is not of the form.
    #[error(
        "a pattern of identities is CLASS/DEVICE/WORKLOAD, each part written out or `*`, such as agent/*/*"
    )]
    Pattern,
}

impl AreaGrant {
    /// A grant of these patterns to an area.
    ///
    /// # Errors
    /// [`GrantError`] says what is wrong.
    pub fn new(area: &str, identities: Vec<String>) -> Result<Self, GrantError> {
        let letters =
            area.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        let ends = area.starts_with('-') || area.ends_with('-');
        if area.is_empty() || area.len() > MAX_AREA_BYTES || !letters || ends {
            return Err(GrantError::Area);
        }
        if identities.is_empty() || identities.len() > MAX_GRANT_PATTERNS {
            return Err(GrantError::Count);
        }
        if !identities.iter().all(|pattern| is_pattern(pattern)) {
            return Err(GrantError::Pattern);
        }
        Ok(Self { area: area.to_owned(), identities })
    }

    /// The area's name.
    pub fn area(&self) -> &str {
        &self.area
    }

    /// The patterns.
    pub fn identities(&self) -> &[String] {
        &self.identities
    }

    /// Whether the area may certify this identity of its trust domain.
    pub fn permits(&self, id: &SpiffeId) -> bool {
        let Some(parts) = id.parts().filter(|_| !id.is_control_plane()) else { return false };
        let own = [parts.class.as_str(), parts.device, parts.workload];
        self.identities.iter().any(|pattern| {
            let mut pattern = pattern.split('/');
            own.iter().all(|own| pattern.next().is_some_and(|part| part == "*" || part == *own))
        })
    }

    pub(crate) fn read(extension: &[u8]) -> Result<Self, Malformed> {
        let text = |bytes| str::from_utf8(bytes).map_err(|_| Malformed);
        let mut grant = Reader::open(extension, der::SEQUENCE)?;
        let area = text(grant.value(UTF8_STRING)?)?;
        let mut list = grant.nested(der::SEQUENCE)?;
        grant.finish()?;
        let mut identities = Vec::new();
        while !list.is_empty() {
            if identities.len() >= MAX_GRANT_PATTERNS {
                return Err(Malformed);
            }
            identities.push(text(list.value(UTF8_STRING)?)?.to_owned());
        }
        Self::new(area, identities).map_err(|_| Malformed)
    }

    pub(crate) fn extension(&self) -> CustomExtension {
        let patterns: Vec<u8> =
            self.identities.iter().flat_map(|pattern| element(UTF8_STRING, pattern.as_bytes())).collect();
        let content =
            [element(UTF8_STRING, self.area.as_bytes()), element(der::SEQUENCE, &patterns)].concat();
        let mut extension = CustomExtension::from_oid_content(GRANT_ARCS, element(der::SEQUENCE, &content));
        extension.set_criticality(true);
        extension
    }
}

impl fmt::Display for AreaGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.area, self.identities.join(", "))
    }
}

fn is_pattern(pattern: &str) -> bool {
    let parts: Vec<&str> = pattern.split('/').collect();
    let [class, device, workload] = parts[..] else { return false };
    let letters = |part: &str| {
        part == "*"
            || (!part.is_empty()
                && part != "."
                && part != ".."
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)))
    };
    pattern.len() <= PATTERN_BYTES_MAX
        && (class == "*" || class.parse::<Class>().is_ok())
        && letters(device)
        && letters(workload)
}

/// One DER element; sixteen patterns of 255 bytes need two bytes of length.
fn element(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len();
    let [.., high, low] = length.to_be_bytes();
    let head = match length {
        0..=0x7f => vec![tag, low],
        0x80..=0xff => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [&*head, value].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(patterns: &[&str]) -> Result<AreaGrant, GrantError> {
        AreaGrant::new("fog-1", patterns.iter().map(|&pattern| pattern.to_owned()).collect())
    }

    fn permits(pattern: &str, path: &str) -> bool {
        grant(&[pattern]).unwrap().permits(&SpiffeId::parse(&format!("spiffe://a.example/{path}")).unwrap())
    }

    #[test]
    fn a_grant_permits_what_a_pattern_names_part_by_part() {
        assert!(permits("agent/*/*", "agent/d1/lm"));
        assert!(permits("app/d1/*", "app/d1/cimi"));
        assert!(!permits("agent/*/*", "app/d1/cimi"));
        assert!(!permits("app/d1/*", "app/d2/cimi"));
        assert!(!permits("app/d1/cimi", "app/d1/cimi2"));
        assert!(!permits("*/*/*", "app/d1"));
        assert!(!permits("*/*/*", "app/d1/cimi/more"));
    }

    #[test]
    fn no_grant_permits_a_control_plane() {
        assert!(permits("*/*/*", "platform/d1/other"));
        assert!(!permits("*/*/*", "platform/d1/control-plane"));
        assert!(!permits("platform/d1/control-plane", "platform/d1/control-plane"));
    }

    #[test]
    fn what_is_no_grant_is_refused() {
        assert_eq!(grant(&[]), Err(GrantError::Count));
        assert_eq!(grant(&["app/*/*"; MAX_GRANT_PATTERNS + 1]), Err(GrantError::Count));
        for pattern in ["", "app", "app/*", "app/*/*/*", "none/*/*", "app//x", "app/d*/x", "app/../x"] {
            assert_eq!(grant(&[pattern]), Err(GrantError::Pattern), "{pattern}");
        }
        for area in ["", "-a", "a-", "A", "a.b", &"a".repeat(64)] {
            assert_eq!(AreaGrant::new(area, vec!["app/*/*".into()]), Err(GrantError::Area), "{area}");
        }
    }

    #[test]
    fn an_extension_reads_back_as_its_grant_and_no_part_of_it_does() {
        let grant = grant(&["app/*/*"; MAX_GRANT_PATTERNS]).unwrap();
        let extension = grant.extension();
        let content = extension.content();
        assert_eq!(AreaGrant::read(content).unwrap(), grant);
        for end in 0..content.len() {
            assert!(AreaGrant::read(&content[..end]).is_err(), "{end}");
        }
    }
}
