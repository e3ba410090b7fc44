//! Writing PEM (RFC 7468). Certificates are read by `rustls-pki-types`, keys by [`crate::PrivateKey`].

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Appends one section to `out`. `out` may come to hold a private key: the caller keeps it so.
pub(crate) fn push(out: &mut String, label: &str, der: &[u8]) {
    out.push_str("-----BEGIN ");
    out.push_str(label);
    out.push_str("-----\n");
    // 48 bytes make a line of 64 characters.
    for line in der.chunks(48) {
        STANDARD.encode_string(line, out);
        out.push('\n');
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
}

/// Sections with a private key among them, as a text that is overwritten when it is let go. It has its size at once: a text
/// that grows leaves copies behind.
pub(crate) fn secret(sections: &[(&str, &[u8])]) -> Zeroizing<String> {
    // Four characters for three bytes, a line end for 48, a label twice.
    let room = sections.iter().map(|(label, der)| der.len() * 3 / 2 + 2 * label.len() + 64).sum();
    let mut out = Zeroizing::new(String::with_capacity(room));
    for (label, der) in sections {
        push(&mut out, label, der);
    }
    out
}

/// The content of a section of this label that holds nothing secret.
pub(crate) fn read(section: &str, label: &str) -> Option<Vec<u8>> {
    let body = section.trim().strip_prefix(&format!("-----BEGIN {label}-----"))?;
    let body = body.strip_suffix(&format!("-----END {label}-----"))?;
    STANDARD.decode(body.split_ascii_whitespace().collect::<String>()).ok()
}

/// The sections of a text, one by one.
pub(crate) fn sections(text: &str) -> impl Iterator<Item = &str> {
    const BEGIN: &str = "-----BEGIN ";
    let starts = text.match_indices(BEGIN).map(|(at, _)| at);
    let end = |start: usize| {
        let next = text.get(start + BEGIN.len()..).and_then(|rest| rest.find(BEGIN));
        next.map_or(text.len(), |next| start + BEGIN.len() + next)
    };
    starts.filter_map(move |start| text.get(start..end(start)))
}

pub(crate) const CERTIFICATE: &str = "CERTIFICATE";
pub(crate) const PRIVATE_KEY: &str = "PRIVATE KEY";
/// What a module knows a key by, in the place of the key.
pub(crate) const HELD_KEY: &str = "SIGNET HELD KEY";
