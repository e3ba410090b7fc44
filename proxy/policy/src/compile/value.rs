//! Single values of manifests. Each function returns the value or reports the fault at its place.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_saphyr::Spanned;
use signet_identity::Class;

use crate::compile::{MAX_LIST_ENTRIES, Scope};
use crate::diagnostic::{Place, quoted, suggestion};
use crate::manifest::{List, MtlsSpec, ProtectionSpec};
use crate::model::{MtlsMode, Protection, ProtectionLevel, RecordHash, SignatureMode, Verification};

pub(crate) const CLASSES: &[(&str, Class)] = &[
    ("agent", Class::Agent),
    ("app", Class::App),
    ("external", Class::External),
    ("platform", Class::Platform),
];

pub(crate) const MTLS_MODES: &[(&str, MtlsMode)] =
    &[("permissive", MtlsMode::Permissive), ("strict", MtlsMode::Strict)];

pub(crate) const LEVELS: &[(&str, ProtectionLevel)] = &[
    ("private", ProtectionLevel::Private),
    ("protected", ProtectionLevel::Protected),
    ("public", ProtectionLevel::Public),
];

pub(crate) const SIGNATURE_MODES: &[(&str, SignatureMode)] = &[
    ("ed25519", SignatureMode::Ed25519),
    ("ed25519-batch", SignatureMode::Ed25519Batch),
    ("hmac", SignatureMode::Hmac),
];

pub(crate) const VERIFICATIONS: &[(&str, Verification)] =
    &[("async", Verification::Async), ("gate", Verification::Gate)];

pub(crate) const RECORD_HASHES: &[(&str, RecordHash)] =
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
    if let Some(text) = &spec.level {
        read.level = level(scope, text).unwrap_or(inherited.level);
    }
    if let Some(text) = &spec.mode {
        read.mode = signature_mode(scope, text).unwrap_or(inherited.mode);
    }
    if let Some(text) = &spec.record_hash {
        read.record_hash = record_hash(scope, text).unwrap_or(inherited.record_hash);
    }
    if let Some(text) = &spec.verify {
        read.verify = verification(scope, text).unwrap_or(inherited.verify);
    }
    read
}

pub(super) fn level(scope: &mut Scope<'_>, text: &Spanned<String>) -> Option<ProtectionLevel> {
    word(scope, text, "protection level", LEVELS)
}

pub(super) fn signature_mode(scope: &mut Scope<'_>, text: &Spanned<String>) -> Option<SignatureMode> {
    word(scope, text, "signature mode", SIGNATURE_MODES)
}

pub(super) fn record_hash(scope: &mut Scope<'_>, text: &Spanned<String>) -> Option<RecordHash> {
    word(scope, text, "record hash", RECORD_HASHES)
}

pub(super) fn verification(scope: &mut Scope<'_>, text: &Spanned<String>) -> Option<Verification> {
    word(scope, text, "verification", VERIFICATIONS)
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
        // Addresses are compared as what they stand for, so such a range would never match.
        (Ok(net), _) if net.addr() != net.addr().to_canonical() => {
            "write it as a range of IPv4, such as `10.0.0.0/8`".to_owned()
        }
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
    const UNITS: &[(&str, u64)] = &[("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];
    counted(scope, text, UNITS, least, most)
}

/// The same in milliseconds, for what happens within one exchange.
pub(super) fn milliseconds(
    scope: &mut Scope<'_>,
    text: &Spanned<String>,
    least: u64,
    most: u64,
) -> Option<u64> {
    const UNITS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    counted(scope, text, UNITS, least, most)
}

/// One number and one of these units, as the smallest of them.
fn counted(
    scope: &mut Scope<'_>,
    text: &Spanned<String>,
    units: &[(&str, u64)],
    least: u64,
    most: u64,
) -> Option<u64> {
    let digits = text.value.trim_end_matches(|character: char| !character.is_ascii_digit());
    let unit = text.value.get(digits.len()..).unwrap_or_default();
    let factor = units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    // `parse` would take a sign as well.
    let number =
        if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse::<u64>().ok() } else { None };
    let (Some(number), Some(factor)) = (number, factor) else {
        let fix = match number {
            Some(number) if unit.is_empty() => format!("add the unit: `{number}s`"),
            _ => {
                let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
                let (most, least) = (names.last().unwrap_or(&"s"), names.first().unwrap_or(&"s"));
                let (many, few) = if *least == "s" { (90, 30) } else { (250, 1) };
                format!(
                    "write one number and one unit of {}, such as `{many}{least}` or `{few}{most}`",
                    names.join(", ")
                )
            }
        };
        scope.refuse(Place::of(text), format!("{} is no duration", quoted(&text.value)), fix);
        return None;
    };
    match number.checked_mul(factor) {
        Some(amount) if (least..=most).contains(&amount) => Some(amount),
        _ => {
            let in_words = |amount: u64| match units.iter().rev().find(|(_, factor)| amount >= *factor) {
                Some((name, factor)) => format!("{}{name}", amount / factor),
                None => amount.to_string(),
            };
            scope.refuse(
                Place::of(text),
                format!("{} is out of range", quoted(&text.value)),
                format!("use {} to {}", in_words(least), in_words(most)),
            );
            None
        }
    }
}

/// A moment such as `2026-03-31T18:00:00Z` (RFC 3339, whole seconds), in seconds since 1970.
pub(super) fn instant(scope: &mut Scope<'_>, text: &Spanned<String>) -> Option<u64> {
    let read = unix_seconds(&text.value);
    if read.is_none() {
        let message = format!("{} is no moment", quoted(&text.value));
        scope.refuse(
            Place::of(text),
            message,
            "write it such as `2026-03-31T18:00:00Z` or with `+02:00` for `Z`",
        );
    }
    read
}

/// The seconds since 1970 of a moment in the form of RFC 3339 with whole seconds, such as `2026-03-31T18:00:00Z`.
/// `None` when it is none, or before 1970.
pub fn unix_seconds(text: &str) -> Option<u64> {
    let (date, rest) = text.split_once('T')?;
    let (clock, offset) = match rest.strip_suffix('Z') {
        Some(clock) => (clock, 0),
        None => {
            let (clock, offset) = rest.split_at_checked(rest.len().checked_sub("+00:00".len())?)?;
            let sign = match offset.as_bytes().first()? {
                b'+' => 1,
                b'-' => -1,
                _ => return None,
            };
            let [hours, minutes] = numbers(offset.get(1..)?, ':', [2, 2])?;
            if hours > 23 || minutes > 59 {
                return None;
            }
            (clock, sign * (hours * 60 + minutes) * 60)
        }
    };
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hours, minutes, seconds] = numbers(clock, ':', [2, 2, 2])?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    if !(1..=length).contains(&day) || hours > 23 || minutes > 59 || seconds > 59 {
        return None;
    }
    // Days since 1970 with years that begin in March, so that the leap day is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    u64::try_from(days * 86_400 + hours * 3_600 + minutes * 60 + seconds - offset).ok()
}

/// The moment so many seconds after 1970, in the form that [`unix_seconds`] reads, in UTC. What is past the year 9999 is
/// shown as its last second.
pub fn rfc3339(seconds: u64) -> String {
    const LAST: u64 = 253_402_300_799;
    let seconds = seconds.min(LAST);
    // Years from March on, so that the leap day is the last of one; an era is 400 of them.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Decimal numbers of exactly these many digits.
fn numbers<const N: usize>(text: &str, separator: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; N];
    for (number, length) in numbers.iter_mut().zip(digits) {
        let part = parts.next().filter(|part| part.len() == length)?;
        if !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    if parts.next().is_none() { Some(numbers) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_they_are_read() {
        assert_eq!(rfc3339(951_825_600), "2000-02-29T12:00:00Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59Z");
        // Steps of a prime number of seconds: every month and both kinds of century come up.
        for seconds in (0..=253_402_300_799).step_by(100_000_007) {
            assert_eq!(unix_seconds(&rfc3339(seconds)), Some(seconds));
        }
    }

    #[test]
    fn moments_are_read_to_the_second() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:00:00Z", Some(951_825_600)),
            ("2026-03-02T00:00:00Z", Some(1_772_409_600)),
            ("2026-03-02T02:00:00+02:00", Some(1_772_409_600)),
            ("2026-03-01T19:30:00-04:30", Some(1_772_409_600)),
            ("9999-12-31T23:59:59Z", Some(253_402_300_799)),
            ("1969-12-31T23:59:59Z", None),
            ("2026-02-29T00:00:00Z", None),
            ("2100-02-29T00:00:00Z", None),
            ("2026-13-01T00:00:00Z", None),
            ("2026-00-01T00:00:00Z", None),
            ("2026-01-00T00:00:00Z", None),
            ("2026-01-01T24:00:00Z", None),
            ("2026-01-01T00:60:00Z", None),
            ("2026-01-01T00:00:60Z", None),
            ("2026-01-01T00:00:00", None),
            ("2026-01-01T00:00:00+24:00", None),
            ("2026-01-01T00:00:00.5Z", None),
            ("2026-1-1T00:00:00Z", None),
            ("2026-01-01 00:00:00Z", None),
            ("+026-01-01T00:00:00Z", None),
            ("2026-01-01T00:00:00é", None),
            ("", None),
            ("T", None),
        ] {
            assert_eq!(unix_seconds(text), expected, "{text}");
        }
    }
}
