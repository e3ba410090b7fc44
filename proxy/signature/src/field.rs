//! Values of fields as they stand in a signature base (RFC 9421 section 2.1).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AsHeaderName;
use http::{HeaderMap, HeaderValue};

use crate::base::BaseError;

/// Appends the combined value of a field: each line trimmed, the lines joined by a comma and a space.
/// Answers whether the field is present at all.
pub(crate) fn push_combined(
    out: &mut String,
    fields: &HeaderMap,
    name: impl AsHeaderName + AsRef<str>,
) -> Result<bool, BaseError> {
    // HTTP/2 may split the cookie field into crumbs; joined like this they are again what HTTP/1.1 and
    // the application see (RFC 9113 section 8.2.3).
    let separator = if name.as_ref() == "cookie" { "; " } else { ", " };
    let mut present = false;
    for value in fields.get_all(name) {
        if present {
            out.push_str(separator);
        }
        push_text(out, trimmed(value))?;
        present = true;
    }
    Ok(present)
}

/// Appends the field with every line wrapped as a byte sequence (RFC 9421 section 2.1.3, `;bs`).
/// Answers whether the field is present at all.
pub(crate) fn push_wrapped(out: &mut String, fields: &HeaderMap, name: &str) -> Result<bool, BaseError> {
    let mut present = false;
    for value in fields.get_all(name) {
        if present {
            out.push_str(", ");
        }
        let line = trimmed(value);
        // What cannot be a field value was smuggled in by a parser that unfolds lines.
        if line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            return Err(BaseError::NotText);
        }
        out.push(':');
        STANDARD.encode_string(line, out);
        out.push(':');
        present = true;
    }
    Ok(present)
}

/// Appends a component value that must be one line of visible ASCII, spaces and tabs. Everything else
/// is refused: a line break would let a value pose as further components, and bytes above ASCII are
/// read differently by different receivers (RFC 9421 sections 2.1 and 7.5.6).
pub(crate) fn push_text(out: &mut String, value: &[u8]) -> Result<(), BaseError> {
    out.push_str(as_text(value).ok_or(BaseError::NotText)?);
    Ok(())
}

/// The value, if it is visible ASCII, spaces and tabs and nothing else.
pub(crate) fn as_text(value: &[u8]) -> Option<&str> {
    // Every byte is looked at, whatever the first of them are: the processor takes sixteen at a time then.
    let foreign = value.iter().fold(false, |found, byte| found | !matches!(byte, b'\t' | b' '..=b'~'));
    if foreign { None } else { std::str::from_utf8(value).ok() }
}

/// The combined value as text, for fields that are parsed further.
pub(crate) fn combined(fields: &HeaderMap, name: &str) -> Result<Option<String>, BaseError> {
    let mut value = String::new();
    Ok(push_combined(&mut value, fields, name)?.then_some(value))
}

fn trimmed(value: &HeaderValue) -> &[u8] {
    let mut bytes = value.as_bytes();
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}
