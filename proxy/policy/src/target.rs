//! Request targets and hosts that can be read in only one way.
//!
//! A policy on paths is worth nothing when the sidecar and the application read the same bytes differently. So nothing
//! is normalised here: a target that some server somewhere would normalise is refused, and what passes is decided on,
//! signed and forwarded byte for byte.

use thiserror::Error;

use crate::refusal::Refusal;

/// Longest host and port: 253 bytes of DNS name, a trailing dot, a colon and five digits.
const MAX_AUTHORITY_BYTES: usize = 253 + 1 + 6;

/// The parts of a request target that has exactly one reading. Only [`check_target`] makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestTarget<'a> {
    path: &'a str,
    query: Option<&'a str>,
    authority: &'a str,
}

impl<'a> RequestTarget<'a> {
    /// The raw path, without the query. It starts with `/`, except for the `*` of `OPTIONS *`.
    pub fn path(&self) -> &'a str {
        self.path
    }

    /// The raw query after the first `?`, without it.
    pub fn query(&self) -> Option<&'a str> {
        self.query
    }

    /// Host and optional port as the client wrote them.
    pub fn authority(&self) -> &'a str {
        self.authority
    }
}

/// What exactly makes a target or host ambiguous. Callers see one refusal for all; operators see this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Ambiguity {
    #[error("the path does not start with `/`")]
    NoLeadingSlash,
    #[error("the path holds a space, a control character or a byte outside ASCII")]
    ForbiddenByte,
    #[error("the path holds `;`, `\\`, `#` or `?`, which servers read differently")]
    Delimiter,
    #[error("the path holds an empty segment (`//`)")]
    EmptySegment,
    #[error("the path holds a `.` or `..` segment")]
    DotSegment,
    #[error("a `%` is not followed by two hexadecimal digits")]
    BrokenEscape,
    #[error("the path escapes a slash, a backslash, a control character or an overlong byte sequence")]
    EscapedDelimiter,
    #[error("the path is escaped twice")]
    DoubleEscape,
    #[error("the query holds a space, a control character, `#` or a byte outside ASCII")]
    Query,
    #[error("this form of request target is not accepted here")]
    Form,
    #[error("the request names no host, or different ones")]
    Hosts,
    #[error("the host is not a plain name or address with an optional port")]
    HostSyntax,
}

/// Checks a request as it was received and splits its target.
///
/// `authority` is HTTP/2's `:authority`; `hosts` are the values of all `Host` fields. All hosts that are named, also
/// by a target in absolute form, must be the same bytes.
///
/// # Errors
/// [`Refusal::ConnectRefused`] for CONNECT, [`Refusal::AmbiguousTarget`] for whatever two programs could read
/// differently.
pub fn check_target<'a>(
    method: &str,
    target: &'a str,
    authority: Option<&'a str>,
    hosts: &[&'a str],
) -> Result<RequestTarget<'a>, Refusal> {
    if method.eq_ignore_ascii_case("CONNECT") {
        return Err(Refusal::ConnectRefused);
    }
    split(method, target, authority, hosts).map_err(|_| Refusal::AmbiguousTarget)
}

fn split<'a>(
    method: &str,
    target: &'a str,
    authority: Option<&'a str>,
    hosts: &[&'a str],
) -> Result<RequestTarget<'a>, Ambiguity> {
    if target == "*" && method == "OPTIONS" {
        let authority = agreed_host(None, authority, hosts)?;
        return Ok(RequestTarget { path: target, query: None, authority });
    }
    let (own, path, query) = split_target(target)?;
    let authority = agreed_host(own, authority, hosts)?;
    check_path(path)?;
    Ok(RequestTarget { path, query, authority })
}

/// The authority of a target in absolute form, its path and its query; the path is not looked at.
pub(crate) fn split_target(target: &str) -> Result<(Option<&str>, &str, Option<&str>), Ambiguity> {
    let (own, rest) = match strip_scheme(target) {
        Some(absolute) => {
            let end = absolute.find(['/', '?', '#']).unwrap_or(absolute.len());
            let (own, rest) = absolute.split_at(end);
            // RFC 9110 section 4.2.3: an empty path is the root.
            (Some(own), if rest.is_empty() { "/" } else { rest })
        }
        None => (None, target),
    };
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    if !path.starts_with('/') {
        return Err(Ambiguity::Form);
    }
    if query.is_some_and(|query| query.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'#')) {
        return Err(Ambiguity::Query);
    }
    Ok((own, path, query))
}

/// Captured traffic in the clear has the scheme `http`; another one in absolute form is not for us to serve.
fn strip_scheme(target: &str) -> Option<&str> {
    const SCHEME: &str = "http://";
    let scheme = target.get(..SCHEME.len())?;
    if scheme.eq_ignore_ascii_case(SCHEME) { target.get(SCHEME.len()..) } else { None }
}

fn agreed_host<'a>(
    own: Option<&'a str>,
    authority: Option<&'a str>,
    hosts: &[&'a str],
) -> Result<&'a str, Ambiguity> {
    let mut named = named_hosts(own, authority, hosts)?;
    let first = named.next().ok_or(Ambiguity::Hosts)?;
    if named.any(|other| other != first) {
        return Err(Ambiguity::Hosts);
    }
    check_authority_syntax(first)?;
    Ok(first)
}

/// All hosts that a request names.
pub(crate) fn named_hosts<'a>(
    own: Option<&'a str>,
    authority: Option<&'a str>,
    hosts: &[&'a str],
) -> Result<impl Iterator<Item = &'a str> + use<'a>, Ambiguity> {
    let field = match hosts {
        [] => None,
        [host] => Some(*host),
        // Two fields of the same value are refused as well: which one an application reads is its own affair.
        _ => return Err(Ambiguity::Hosts),
    };
    Ok([own, authority, field].into_iter().flatten())
}

/// Host names, IPv4 addresses and bracketed IPv6 addresses, with an optional port. No user, no escape, no IDN in
/// Unicode form (its `xn--` form is plain ASCII and passes).
pub(crate) fn check_authority_syntax(authority: &str) -> Result<(), Ambiguity> {
    if authority.len() > MAX_AUTHORITY_BYTES {
        return Err(Ambiguity::HostSyntax);
    }
    let (host, port) = split_port(authority);
    let host_is_plain = match host.strip_prefix('[') {
        Some(bracketed) => {
            bracketed.strip_suffix(']').is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
        }
        None => {
            let name = host.strip_suffix('.').unwrap_or(host).as_bytes();
            let in_label = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            let inner = |at: usize| name[at] == b'.' && name.get(at + 1).is_some_and(in_label);
            name.first().is_some_and(in_label) && (0..name.len()).all(|at| in_label(&name[at]) || inner(at))
        }
    };
    let port_is_plain = port.is_none_or(|port| {
        port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
    });
    if host_is_plain && port_is_plain { Ok(()) } else { Err(Ambiguity::HostSyntax) }
}

pub(crate) fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        // Inside the brackets of an IPv6 address a colon is no port separator.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

/// The host of an authority as names are compared: without port and trailing dot. Letter case is left to the caller.
pub(crate) fn host_of(authority: &str) -> &str {
    let (host, _) = split_port(authority);
    host.strip_suffix('.').unwrap_or(host)
}

/// Whether every server reads this raw path the same way.
pub(crate) fn check_path(path: &str) -> Result<(), Ambiguity> {
    let rest = path.strip_prefix('/').ok_or(Ambiguity::NoLeadingSlash)?;
    for byte in rest.bytes() {
        match byte {
            b';' | b'\\' | b'#' | b'?' => return Err(Ambiguity::Delimiter),
            0x21..=0x7e => {}
            _ => return Err(Ambiguity::ForbiddenByte),
        }
    }
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_some() {
            return Err(Ambiguity::EmptySegment);
        }
        check_segment(segment)?;
    }
    Ok(())
}

fn check_segment(segment: &str) -> Result<(), Ambiguity> {
    let mut rest = segment.as_bytes();
    let mut only_dots = !segment.is_empty();
    let mut length = 0_usize;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        length += 1;
        if first != b'%' {
            only_dots &= first == b'.';
            continue;
        }
        let byte = escaped_byte(tail).ok_or(Ambiguity::BrokenEscape)?;
        rest = tail.get(2..).unwrap_or_default();
        only_dots &= byte == b'.';
        check_escape(byte, rest)?;
    }
    if only_dots && length <= 2 { Err(Ambiguity::DotSegment) } else { Ok(()) }
}

/// Judges one escaped byte; `rest` is what follows its two digits.
pub(crate) fn check_escape(byte: u8, rest: &[u8]) -> Result<(), Ambiguity> {
    // The escaped second byte of a UTF-8 sequence, for sequences longer than the character needs.
    let next = || rest.strip_prefix(b"%").and_then(escaped_byte).unwrap_or(0xff);
    match byte {
        b'/' | b'\\' | 0x00..=0x1f | 0x7f => Err(Ambiguity::EscapedDelimiter),
        // No character is encoded with these; lenient decoders make a slash or a dot of them.
        0xc0 | 0xc1 | 0xf5..=0xff => Err(Ambiguity::EscapedDelimiter),
        0xe0 if next() < 0xa0 => Err(Ambiguity::EscapedDelimiter),
        0xf0 if next() < 0x90 => Err(Ambiguity::EscapedDelimiter),
        b'%' => match escaped_byte(rest) {
            Some(b'/' | b'\\' | b'.' | b';' | b'%' | 0x00..=0x1f | 0x7f | 0x80..) => {
                Err(Ambiguity::DoubleEscape)
            }
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

/// The byte that two leading hexadecimal digits stand for.
pub(crate) fn escaped_byte(digits: &[u8]) -> Option<u8> {
    let &[high, low, ..] = digits else { return None };
    let value = |digit: u8| char::from(digit).to_digit(16);
    u8::try_from(value(high)? * 16 + value(low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(target: &str) -> Result<&str, Refusal> {
        check_target("GET", target, None, &["cimi"]).map(|checked| checked.path())
    }

    #[test]
    fn plain_targets_pass_byte_for_byte() {
        for path in [
            "/",
            "/api",
            "/api/",
            "/api/user/alice%20b",
            "/a.b/c..d/...",
            "/%C3%A9",
            "/a:b@c,d=e&f",
            "/x%2Ey",
            "/100%25",
            "/.well-known/x",
            "/a%3Bb",
            "/~x/(y)",
            "/%E9",
            "/..a",
            "/%F0%9F%98%80",
        ] {
            assert_eq!(path_of(path), Ok(path));
        }
        let checked = check_target("GET", "/api?$filter=a%2fb&c=//..;", None, &["cimi:8201"]).unwrap();
        assert_eq!((checked.path(), checked.query()), ("/api", Some("$filter=a%2fb&c=//..;")));
        assert_eq!(checked.authority(), "cimi:8201");
    }

    #[test]
    fn targets_with_tricks_are_refused() {
        for target in [
            "",
            "api",
            "//",
            "//api",
            "/api//x",
            "/api//",
            "/./x",
            "/x/.",
            "/..",
            "/x/../y",
            "/%2e/x",
            "/x/%2E%2e",
            "/x/.%2e",
            "/x%2fy",
            "/x%2Fy",
            "/x%5cy",
            "/x%5Cy",
            "/x%00",
            "/x%0d%0ay",
            "/x%7f",
            "/x;y",
            "/x;/..",
            "/x\\y",
            "/x#y",
            "/x?y#z",
            "/x y",
            "/x\ty",
            "/\u{e9}",
            "/x%",
            "/x%2",
            "/x%zz",
            "/x%u002f",
            "/%c0%af",
            "/%c1%9c",
            "/%e0%80%af",
            "/%f0%80%80%af",
            "/%252e%252e/x",
            "/x%252fy",
            "/x%25252fy",
            "/x%255c",
            "/x?a b",
            "/x?\u{e9}",
            "*",
            "/%fe",
            "x/y",
            "?x",
            "/%25c0%25af",
            "ftp://cimi/x",
            "https://cimi/x",
            "http:/cimi/x",
            "http://cimi?x",
            "http://other/x",
        ] {
            assert_eq!(path_of(target), Err(Refusal::AmbiguousTarget), "{target}");
        }
    }

    #[test]
    fn every_host_that_is_named_must_be_the_same() {
        let check =
            |target, authority, hosts: &[&'static str]| check_target("GET", target, authority, hosts).is_ok();
        assert!(check("/x", None, &["cimi"]));
        assert!(check("/x", Some("cimi"), &[]));
        assert!(check("/x", Some("cimi"), &["cimi"]));
        assert!(check("http://cimi/x", None, &["cimi"]));
        assert!(check("HTTP://cimi", None, &["cimi"]));
        assert!(!check("/x", None, &[]));
        assert!(!check("/x", None, &["cimi", "cimi"]));
        assert!(!check("/x", Some("cimi"), &["lm"]));
        assert!(!check("/x", Some("cimi"), &["cimi:80"]));
        assert!(!check("/x", Some("cimi"), &["CIMI"]));
        assert!(!check("http://cimi:80/x", None, &["cimi"]));
    }

    #[test]
    fn hosts_are_plain_names_or_addresses() {
        for host in [
            "cimi",
            "CIMI.mesh.",
            "cimi:8201",
            "10.0.0.1:80",
            "[::1]",
            "[fd00::1]:80",
            "xn--a-b",
            "my_service",
        ] {
            assert!(check_target("GET", "/", None, &[host]).is_ok(), "{host}");
        }
        let long = "a".repeat(300);
        for host in [
            "",
            ".",
            ":80",
            "cimi:",
            "cimi:http",
            "cimi:99999",
            "cimi:000080",
            "a..b",
            ".a",
            "a@b",
            "a b",
            "a\t",
            "a/b",
            "a%2eb",
            "caf\u{e9}",
            "::1",
            "[::1",
            "::1]",
            "[::g]",
            "[]",
            "cimi,lm",
            "a;b",
            long.as_str(),
        ] {
            assert_eq!(check_target("GET", "/", None, &[host]), Err(Refusal::AmbiguousTarget), "{host}");
        }
    }

    #[test]
    fn connect_is_refused_and_the_asterisk_belongs_to_options() {
        assert_eq!(check_target("CONNECT", "cimi:80", None, &["cimi:80"]), Err(Refusal::ConnectRefused));
        assert_eq!(check_target("connect", "cimi:80", None, &["cimi:80"]), Err(Refusal::ConnectRefused));
        assert_eq!(check_target("OPTIONS", "*", None, &["cimi"]).map(|t| t.path()), Ok("*"));
        assert_eq!(check_target("OPTIONS", "http://cimi*", None, &["cimi*"]), Err(Refusal::AmbiguousTarget));
        assert_eq!(check_target("GET", "cimi:80", None, &["cimi:80"]), Err(Refusal::AmbiguousTarget));
    }
}
