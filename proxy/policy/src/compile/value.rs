//! Single values of manifests. Each function returns the value or reports the fault at its place.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_saphyr::Spanned;
use signet_identity::Class;

use crate::compile::{MAX_LIST_ENTRIES, Scope};
use crate::diagnostic::{Place, quoted, suggestion};
use crate::manifest::{List, MtlsSpec, ProtectionSpec};
use crate::model::{MtlsMode, Protection, ProtectionLevel, RecordHash, SignatureMode, Verification};

const CLASSES: &[(&str, Class)] = &[
    ("agent", Class::Agent),
    ("app", Class::App),
    ("external", Class::External),
    ("platform", Class::Platform),
];

const MTLS_MODES: &[(&str, MtlsMode)] = &[("permissive", MtlsMode::Permissive), ("strict", MtlsMode::Strict)];

const LEVELS: &[(&str, ProtectionLevel)] = &[
    ("private", ProtectionLevel::Private),
    ("protected", ProtectionLevel::Protected),
    ("public", ProtectionLevel::Public),
];

const SIGNATURE_MODES: &[(&str, SignatureMode)] = &[
    ("ed25519", SignatureMode::Ed25519),
    ("ed25519-batch", SignatureMode::Ed25519Batch),
    ("hmac", SignatureMode::Hmac),
];

const VERIFICATIONS: &[(&str, Verification)] =
    &[("async", Verification::Async), ("gate", Verification::Gate)];

const RECORD_HASHES: &[(&str, RecordHash)] =
    &[("blake3", RecordHash::Blake3), ("sha-256", RecordHash::Sha256)];

/// What proxies read on a message's way, or what frames it there.
const NEEDED_ON_THE_WAY: [&str; 12] = [
    "connection",
    "content-encoding",
    "expect",
    "host",
    "keep-alive",
    "signature",
    "signature-input",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// Longest manifest name, as in Kubernetes.
const MAX_NAME_BYTES: usize = 253;

/// The entries of a list that is there: at least one, at most [`MAX_LIST_ENTRIES`]. A list that is left out has none;
/// `left_out` says what that means, because an empty one must not mean the same by accident.
pub(super) fn entries<'a, T>(
    scope: &mut Scope<'_>,
    list: Option<&'a List<T>>,
    what: &str,
    left_out: &str,
) -> &'a [Spanned<T>] {
    let Some(List(list)) = list else { return &[] };
    if list.value.is_empty() {
        scope.refuse(Place::of(list), format!("`{what}` is empty"), format!("leave it out {left_out}"));
    }
    within_bounds(scope, list, what)
}

/// The entries of a list that may be empty.
pub(super) fn within_bounds<'a, T>(
    scope: &mut Scope<'_>,
    list: &'a Spanned<Vec<Spanned<T>>>,
    what: &str,
) -> &'a [Spanned<T>] {
    if list.value.len() > MAX_LIST_ENTRIES {
        let message =
            format!("`{what}` has {} entries, and {MAX_LIST_ENTRIES} are accepted", list.value.len());
        scope.refuse(Place::of(list), message, "use a wildcard or a class, or split the manifest");
        return &[];
    }
    &list.value
}

/// One of a set of words.
pub(super) fn word<T: Copy>(
    scope: &mut Scope<'_>,
    text: &Spanned<String>,
    what: &str,
    table: &[(&str, T)],
) -> Option<T> {
    let found = table.iter().find(|(word, _)| *word == text.value).map(|(_, value)| *value);
    if found.is_none() {
        let fix = suggestion(&text.value, table.iter().map(|(word, _)| *word));
        scope.refuse(Place::of(text), format!("{} is no {what}", quoted(&text.value)), fix);
    }
    found
}

pub(super) fn class(scope: &mut Scope<'_>, text: &Spanned<String>) -> Option<Class> {
    word(scope, text, "class", CLASSES)
}

pub(super) fn mtls_mode(scope: &mut Scope<'_>, spec: &MtlsSpec) -> Option<MtlsMode> {
    word(scope, &spec.mode, "mTLS mode", MTLS_MODES)
}

/// What is given, on top of `inherited`.
pub(super) fn protection(scope: &mut Scope<'_>, spec: &ProtectionSpec, inherited: Protection) -> Protection {
    let mut read = inherited;
    if let Some(level) = &spec.level {
        read.level = word(scope, level, "protection level", LEVELS).unwrap_or(inherited.level);
    }
    if let Some(mode) = &spec.mode {
        read.mode = word(scope, mode, "signature mode", SIGNATURE_MODES).unwrap_or(inherited.mode);
    }
    if let Some(hash) = &spec.record_hash {
        read.record_hash = word(scope, hash, "record hash", RECORD_HASHES).unwrap_or(inherited.record_hash);
    }
    if let Some(verify) = &spec.verify {
        read.verify = word(scope, verify, "verification", VERIFICATIONS).unwrap_or(inherited.verify);
    }
    read
}

/// The header fields that are sealed: lower-case names, each once, none that a message needs on its way.
pub(super) fn sealed_headers(scope: &mut Scope<'_>, spec: &ProtectionSpec) -> Option<Vec<String>> {
    let list = spec.sealed_headers.as_ref()?;
    let mut names = Vec::new();
    for text in entries(scope, Some(list), "sealedHeaders", "to seal the usual ones") {
        let name = text.value.to_ascii_lowercase();
        if !is_token(&name) {
            let message = format!("{} is no header name", quoted(&text.value));
            scope.refuse(Place::of(text), message, "write the name alone, without colon or value");
        } else if NEEDED_ON_THE_WAY.contains(&&*name) || name.starts_with("mesh-") {
            let message = format!("{} cannot be sealed", quoted(&text.value));
            scope.refuse(Place::of(text), message, "remove it: it is needed to carry the message");
        } else {
            names.push(name);
        }
    }
    names.sort_unstable();
    names.dedup();
    Some(names)
}

/// A token (RFC 9110 section 5.6.2), as header names are.
fn is_token(text: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.len() <= MAX_NAME_BYTES && text.bytes().all(is_tchar)
}

/// A manifest, rule, port or network name: what Kubernetes accepts for objects.
pub(super) fn name(scope: &mut Scope<'_>, text: &Spanned<String>, what: &str) -> Option<String> {
    let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.value.as_bytes();
    let is_plain = bytes.len() <= MAX_NAME_BYTES
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|byte| edge(byte) || matches!(byte, b'-' | b'.'));
    if is_plain {
        return Some(text.value.clone());
    }
    scope.refuse(
        Place::of(text),
        format!("{} is no name for a {what}", quoted(&text.value)),
        "use lower-case letters, digits, `-` and `.`, with a letter or digit at both ends",
    );
    None
}

/// A host name, in lower case and without the trailing dot.
pub(super) fn host_name(scope: &mut Scope<'_>, text: &Spanned<String>) -> Option<String> {
    let host = text.value.strip_suffix('.').unwrap_or(&text.value);
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if host.len() <= MAX_NAME_BYTES && host.split('.').all(is_label) {
        return Some(host.to_ascii_lowercase());
    }
    scope.refuse(
        Place::of(text),
        format!("{} is no host name", quoted(&text.value)),
        "write the name alone, without scheme, port or wildcard",
    );
    None
}

pub(super) fn port(scope: &mut Scope<'_>, number: &Spanned<u32>) -> Option<u16> {
    match u16::try_from(number.value) {
        Ok(port) if port > 0 => Some(port),
        _ => {
            scope.refuse(
                Place::of(number),
                format!("`{}` is no port", number.value),
                "use a number from 1 to 65535",
            );
            None
        }
    }
}

/// Distinct ports.
pub(super) fn ports(scope: &mut Scope<'_>, list: &[Spanned<u32>]) -> Vec<u16> {
    let mut ports = Vec::with_capacity(list.len());
    for entry in list {
        if let Some(port) = port(scope, entry) {
            if ports.contains(&port) {
                scope.refuse(
                    Place::of(entry),
                    format!("port {port} is listed twice"),
                    "remove one of the two",
                );
            } else {
                ports.push(port);
            }
        }
    }
    ports
}

pub(super) fn address(scope: &mut Scope<'_>, text: &Spanned<String>) -> Option<IpAddr> {
    let parsed: Option<IpAddr> = text.value.parse().ok();
    if parsed.is_none() {
        scope.refuse(
            Place::of(text),
            format!("{} is no IP address", quoted(&text.value)),
            "write an IPv4 or IPv6 address without port or prefix",
        );
    }
    parsed.map(|address| address.to_canonical())
}

pub(super) fn cidr(scope: &mut Scope<'_>, text: &Spanned<String>) -> Option<IpNet> {
    let fix = match (text.value.parse::<IpNet>(), text.value.parse::<IpAddr>()) {
        (Ok(net), _) if net.trunc() == net => return Some(net),
        (Ok(net), _) => format!("write `{}`, or a longer prefix", net.trunc()),
        (Err(_), Ok(address)) => format!("write `{}` for this one address", IpNet::from(address)),
        (Err(_), Err(_)) => {
            "write an address and a prefix length, such as `10.0.0.0/8` or `fd00::/8`".to_owned()
        }
    };
    scope.refuse(Place::of(text), format!("{} is no address range", quoted(&text.value)), fix);
    None
}

/// A duration of one number and one unit, in seconds and within bounds (both included).
pub(super) fn duration(scope: &mut Scope<'_>, text: &Spanned<String>, least: u64, most: u64) -> Option<u64> {
    let digits = text.value.trim_end_matches(|character: char| !character.is_ascii_digit());
    let unit = text.value.get(digits.len()..).unwrap_or_default();
    let factor = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3_600),
        "d" => Some(86_400),
        _ => None,
    };
    // `parse` would take a sign as well.
    let number =
        if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse::<u64>().ok() } else { None };
    let (Some(number), Some(factor)) = (number, factor) else {
        let fix = match number {
            Some(number) if unit.is_empty() => format!("add the unit: `{number}s`"),
            _ => "write one number and one unit of s, m, h, d, such as `90s` or `30d`".to_owned(),
        };
        scope.refuse(Place::of(text), format!("{} is no duration", quoted(&text.value)), fix);
        return None;
    };
    match number.checked_mul(factor) {
        Some(seconds) if (least..=most).contains(&seconds) => Some(seconds),
        _ => {
            scope.refuse(
                Place::of(text),
                format!("{} is out of range", quoted(&text.value)),
                format!("use {} to {}", in_words(least), in_words(most)),
            );
            None
        }
    }
}

fn in_words(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..86_400 => format!("{}m", seconds / 60),
        _ => format!("{}d", seconds / 86_400),
    }
}
