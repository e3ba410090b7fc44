//! One normal form of a request, for routes whose clients send what is otherwise refused as ambiguous.
//!
//! Nothing is normalised unless policy lists the form for the route that the request has in its normal form. Then policy
//! decides on that form and the application gets it; what was received is what was signed. What is left is always a
//! target that [`crate::check_target`] takes, so an exception never lets two readings through: it says which one counts.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::model::{Target, covers};
use crate::refusal::Refusal;
use crate::route::Route;
use crate::target::{
    Ambiguity, check_authority_syntax, check_escape, check_path, check_target, escaped_byte, named_hosts,
    split_port, split_target,
};

/// A way to write a request that two programs may read differently, or that compares unequal for no reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// `\` and `%5C` in a path: a slash.
    Backslash,
    /// `.` and `..` segments, escaped ones as well: resolved (RFC 3986 section 5.2.4).
    DotSegments,
    /// `%2F` in a path: a slash.
    EscapedSlash,
    /// Escapes of characters that need none, and lower-case digits in others (RFC 3986 section 6.2.2).
    Escapes,
    /// Several lines of one header field: one line (RFC 9110 section 5.3).
    HeaderDuplicates,
    /// `_` in the name of a header field: `-`.
    HeaderUnderscores,
    /// Letter case of the host: lower.
    HostCase,
    /// `:80` behind the host: left out.
    HostDefaultPort,
    /// A dot at the end of the host: left out.
    HostTrailingDot,
    /// `;` and what follows it in a path segment: left out.
    Parameters,
    /// Several slashes in a row: one.
    Slashes,
}

impl Form {
    /// All forms.
    pub const ALL: [Self; 11] = [
        Self::Backslash,
        Self::DotSegments,
        Self::EscapedSlash,
        Self::Escapes,
        Self::HeaderDuplicates,
        Self::HeaderUnderscores,
        Self::HostCase,
        Self::HostDefaultPort,
        Self::HostTrailingDot,
        Self::Parameters,
        Self::Slashes,
    ];
}

/// Exceptions from the refusal of ambiguous requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NormalizationPolicyModel {
    /// The manifest's name.
    pub name: String,
    /// The workloads whose requests it is about.
    pub target: Target,
    /// Their ports; empty means all.
    pub ports: Vec<u16>,
    /// The exceptions. Those of all rules that match are in force together.
    pub rules: Vec<NormalizationRuleModel>,
}

impl NormalizationPolicyModel {
    /// Whether the policy selects this port, leaving aside of which workload.
    pub fn selects_port(&self, port: u16) -> bool {
        covers(&self.ports, port)
    }
}

/// Exceptions for some routes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NormalizationRuleModel {
    /// The routes, of requests in their normal form; never empty.
    pub to: Vec<Route>,
    /// What is taken there and made normal.
    pub forms: BTreeSet<Form>,
}

/// A request's target and hosts as they were received.
#[derive(Clone, Copy, Debug)]
pub struct ReceivedTarget<'a> {
    /// The method.
    pub method: &'a str,
    /// The request target.
    pub target: &'a str,
    /// HTTP/2's `:authority`, or the authority of a target in absolute form.
    pub authority: Option<&'a str>,
    /// The values of all `Host` fields.
    pub hosts: &'a [&'a str],
}

/// What a request asks for, in the one form that is decided on and handed to the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormalTarget<'a> {
    /// The path, without the query.
    pub path: Cow<'a, str>,
    /// Host and optional port.
    pub authority: Cow<'a, str>,
    /// Whether several lines of a header field become one.
    pub merges_fields: bool,
    /// Whether `_` in names of header fields becomes `-`.
    pub hyphenates_fields: bool,
}

/// Reads a target under the policies that select its workload and port.
///
/// # Errors
/// As [`check_target`], for what no policy excepts.
pub(crate) fn read_target<'a, 'p>(
    policies: impl Iterator<Item = &'p NormalizationPolicyModel> + Clone,
    received: &ReceivedTarget<'a>,
) -> Result<NormalTarget<'a>, Refusal> {
    let ReceivedTarget { method, target, authority, hosts } = *received;
    if policies.clone().next().is_none() || method.eq_ignore_ascii_case("CONNECT") || target == "*" {
        let checked = check_target(method, target, authority, hosts)?;
        return Ok(NormalTarget {
            path: Cow::Borrowed(checked.path()),
            authority: Cow::Borrowed(checked.authority()),
            merges_fields: false,
            hyphenates_fields: false,
        });
    }
    normal(policies, received).map_err(|_| Refusal::AmbiguousTarget)
}

fn normal<'a, 'p>(
    policies: impl Iterator<Item = &'p NormalizationPolicyModel>,
    received: &ReceivedTarget<'a>,
) -> Result<NormalTarget<'a>, Ambiguity> {
    let (own, path, _query) = split_target(received.target)?;
    let read = NormalPath::of(path)?;
    let route = |route: &Route| route.matches(received.method, &read.full);
    let forms: BTreeSet<Form> = policies
        .flat_map(|policy| &policy.rules)
        .filter(|rule| rule.to.iter().any(route))
        .flat_map(|rule| rule.forms.iter().copied())
        .collect();
    if let Some((_, why)) = read.needs.iter().find(|(form, _)| !forms.contains(form)) {
        return Err(*why);
    }
    let path = if forms.contains(&Form::Escapes) && read.full != path {
        Cow::Owned(read.full)
    } else if read.needs.is_empty() {
        Cow::Borrowed(path)
    } else {
        Cow::Owned(read.as_escaped)
    };
    // Whatever was made of it: nothing ambiguous goes on from here.
    check_path(&path)?;
    let mut authority: Option<Cow<'a, str>> = None;
    for host in named_hosts(own, received.authority, received.hosts)? {
        check_authority_syntax(host)?;
        let host = normal_host(host, &forms);
        if authority.as_ref().is_some_and(|first| *first != host) {
            return Err(Ambiguity::Hosts);
        }
        authority = Some(host);
    }
    Ok(NormalTarget {
        path,
        authority: authority.ok_or(Ambiguity::Hosts)?,
        merges_fields: forms.contains(&Form::HeaderDuplicates),
        hyphenates_fields: forms.contains(&Form::HeaderUnderscores),
    })
}

fn normal_host<'a>(host: &'a str, forms: &BTreeSet<Form>) -> Cow<'a, str> {
    let (mut name, mut port) = split_port(host);
    if forms.contains(&Form::HostDefaultPort) && port == Some("80") {
        port = None;
    }
    if forms.contains(&Form::HostTrailingDot) {
        name = name.strip_suffix('.').unwrap_or(name);
    }
    let lower = forms.contains(&Form::HostCase) && host.bytes().any(|byte| byte.is_ascii_uppercase());
    let port_length = port.map_or(0, |port| port.len() + 1);
    if !lower && name.len() + port_length == host.len() {
        return Cow::Borrowed(host);
    }
    let mut normal = if lower { name.to_ascii_lowercase() } else { name.to_owned() };
    if let Some(port) = port {
        normal.push(':');
        normal.push_str(port);
    }
    Cow::Owned(normal)
}

/// A path in its normal form, and what had to be done for it.
struct NormalPath {
    /// With escapes made normal too.
    full: String,
    /// With the escapes that were received.
    as_escaped: String,
    /// The forms that are refused without an exception, and the reason each would be refused for.
    needs: Vec<(Form, Ambiguity)>,
}

/// One path segment: with normal escapes, and as it was escaped.
#[derive(Default)]
struct Segment {
    full: String,
    as_escaped: String,
}

impl NormalPath {
    /// # Errors
    /// What no exception makes readable: control bytes, broken, overlong and double escapes, more `..` than segments.
    fn of(path: &str) -> Result<Self, Ambiguity> {
        let rest = path.strip_prefix('/').ok_or(Ambiguity::NoLeadingSlash)?;
        let mut needs = Vec::new();
        let segments = segments(rest, &mut needs)?;
        let mut kept: Vec<&Segment> = Vec::with_capacity(segments.len());
        let mut open_end = false;
        for (number, segment) in segments.iter().enumerate() {
            let is_last = number + 1 == segments.len();
            open_end = is_last && matches!(segment.full.as_str(), "" | "." | "..");
            match segment.full.as_str() {
                "" if is_last => {}
                "" => need(&mut needs, Form::Slashes, Ambiguity::EmptySegment),
                "." => need(&mut needs, Form::DotSegments, Ambiguity::DotSegment),
                ".." => {
                    need(&mut needs, Form::DotSegments, Ambiguity::DotSegment);
                    // Some programs stay at the root, some refuse, some leave it: nobody needs this.
                    kept.pop().ok_or(Ambiguity::DotSegment)?;
                }
                _ => kept.push(segment),
            }
        }
        let joined = |text: fn(&Segment) -> &str| {
            let mut path = String::with_capacity(rest.len() + 1);
            for segment in &kept {
                path.push('/');
                path.push_str(text(segment));
            }
            if open_end || kept.is_empty() {
                path.push('/');
            }
            path
        };
        let (full, as_escaped) = (joined(|segment| &segment.full), joined(|segment| &segment.as_escaped));
        Ok(Self { full, as_escaped, needs })
    }
}

fn need(needs: &mut Vec<(Form, Ambiguity)>, form: Form, why: Ambiguity) {
    if needs.iter().all(|(known, _)| *known != form) {
        needs.push((form, why));
    }
}

/// The segments of what follows the first slash, however slashes are written, without parameters.
fn segments(rest: &str, needs: &mut Vec<(Form, Ambiguity)>) -> Result<Vec<Segment>, Ambiguity> {
    let mut segments = vec![Segment::default()];
    let mut bytes = rest.as_bytes();
    let mut in_parameters = false;
    while let Some((&first, tail)) = bytes.split_first() {
        bytes = tail;
        let mut escaped = None;
        let slash = match first {
            b'/' => true,
            b'\\' => {
                need(needs, Form::Backslash, Ambiguity::Delimiter);
                true
            }
            b'%' => {
                let byte = escaped_byte(tail).ok_or(Ambiguity::BrokenEscape)?;
                bytes = tail.get(2..).unwrap_or_default();
                match byte {
                    b'/' => need(needs, Form::EscapedSlash, Ambiguity::EscapedDelimiter),
                    b'\\' => need(needs, Form::Backslash, Ambiguity::EscapedDelimiter),
                    _ => check_escape(byte, bytes)?,
                }
                escaped = Some((byte, tail));
                matches!(byte, b'/' | b'\\')
            }
            b';' => {
                need(needs, Form::Parameters, Ambiguity::Delimiter);
                in_parameters = true;
                false
            }
            b'#' | b'?' => return Err(Ambiguity::Delimiter),
            0x21..=0x7e => false,
            _ => return Err(Ambiguity::ForbiddenByte),
        };
        if slash {
            segments.push(Segment::default());
            in_parameters = false;
        } else if !in_parameters && let Some(segment) = segments.last_mut() {
            match escaped {
                Some((byte, digits)) => {
                    let digits = digits.get(..2).unwrap_or_default();
                    segment.as_escaped.push('%');
                    segment.as_escaped.extend(digits.iter().copied().map(char::from));
                    if is_unreserved(byte) {
                        segment.full.push(char::from(byte));
                    } else {
                        segment.full.push('%');
                        let upper = digits.iter().map(u8::to_ascii_uppercase);
                        segment.full.extend(upper.map(char::from));
                    }
                }
                None => {
                    segment.full.push(char::from(first));
                    segment.as_escaped.push(char::from(first));
                }
            }
        }
    }
    Ok(segments)
}

/// Characters that mean the same escaped or not (RFC 3986 section 2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests;
