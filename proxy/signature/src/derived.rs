//! Values of derived components (RFC 9421 section 2.2).

use crate::base::BaseError;
use crate::field::push_text;
use crate::message::RequestView;

/// Appends the authority in normal form: lower case, without the default port of the scheme.
pub(crate) fn push_authority(out: &mut String, request: &RequestView<'_>) -> Result<(), BaseError> {
    let start = out.len();
    push_text(out, without_default_port(request).as_bytes())?;
    if let Some(authority) = out.get_mut(start..) {
        authority.make_ascii_lowercase();
    }
    Ok(())
}

/// Appends the scheme in lower case.
pub(crate) fn push_scheme(out: &mut String, request: &RequestView<'_>) -> Result<(), BaseError> {
    push_text(out, request.scheme.to_ascii_lowercase().as_bytes())
}

/// Appends the raw path; an empty one is `/`.
pub(crate) fn push_path(out: &mut String, request: &RequestView<'_>) -> Result<(), BaseError> {
    if request.has_no_path() {
        return Err(BaseError::NotApplicable("@path"));
    }
    push_text(out, if request.path.is_empty() { b"/" } else { request.path.as_bytes() })
}

/// Appends the raw query with its `?`, which also stands for an absent query.
pub(crate) fn push_query(out: &mut String, request: &RequestView<'_>) -> Result<(), BaseError> {
    out.push('?');
    push_text(out, request.query.unwrap_or_default().as_bytes())
}

/// Appends the target URI, put together from its parts (RFC 9110 section 7.1).
pub(crate) fn push_target_uri(out: &mut String, request: &RequestView<'_>) -> Result<(), BaseError> {
    if request.path.is_empty() && request.has_no_path() {
        return push_text(out, request.target.as_bytes());
    }
    push_scheme(out, request)?;
    out.push_str("://");
    push_authority(out, request)?;
    if request.path != "*" {
        push_path(out, request)?;
    }
    if request.query.is_some() {
        push_query(out, request)?;
    }
    Ok(())
}

/// Appends a status code.
pub(crate) fn push_status(out: &mut String, status: u16) -> Result<(), BaseError> {
    if !(100..=999).contains(&status) {
        return Err(BaseError::NotApplicable("@status"));
    }
    out.push_str(&status.to_string());
    Ok(())
}

/// Appends the value of one query parameter, decoded as a form and encoded again, so that `+` and `%20`
/// are the same (RFC 9421 section 2.2.8). `name` is compared in its encoded form. A name that occurs
/// more than once is refused, because an application may read either.
pub(crate) fn push_query_parameter(
    out: &mut String,
    request: &RequestView<'_>,
    name: &str,
) -> Result<(), BaseError> {
    let mut found = None;
    for pair in request.query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if form_normalised(key) == name && found.replace(value).is_some() {
            return Err(BaseError::RepeatedQueryParameter);
        }
    }
    let value =
        found.ok_or_else(|| BaseError::ComponentMissing(format!("\"@query-param\";name=\"{name}\"")))?;
    push_text(out, form_normalised(value).as_bytes())
}

fn without_default_port<'a>(request: &RequestView<'a>) -> &'a str {
    let default = match request.scheme {
        scheme if scheme.eq_ignore_ascii_case("http") => ":80",
        scheme if scheme.eq_ignore_ascii_case("https") => ":443",
        _ => ":",
    };
    let authority = request.authority;
    authority.strip_suffix(default).or_else(|| authority.strip_suffix(':')).unwrap_or(authority)
}

/// Form-decodes and percent-encodes with the `application/x-www-form-urlencoded` set of the URL
/// standard, a space becoming `%20`.
fn form_normalised(text: &str) -> String {
    let decoded = String::from_utf8_lossy(&form_decoded(text)).into_owned();
    let mut encoded = String::with_capacity(decoded.len());
    for byte in decoded.bytes() {
        if byte.is_ascii_alphanumeric() || b"*-._".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push(hex_digit(byte >> 4));
            encoded.push(hex_digit(byte & 15));
        }
    }
    encoded
}

/// Decodes `+` and percent sequences; a malformed sequence stays as it is.
fn form_decoded(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                decoded.push(hex_value(*high) << 4 | hex_value(*low));
                rest = after;
            }
            (b'+', _) => decoded.push(b' '),
            _ => decoded.push(*first),
        }
    }
    decoded
}

fn hex_digit(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).unwrap_or('0').to_ascii_uppercase()
}

fn hex_value(digit: u8) -> u8 {
    // The caller has seen a hexadecimal digit, so the fallback is never taken.
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok()).unwrap_or(0)
}
