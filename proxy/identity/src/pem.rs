//! Writing PEM (RFC 7468). Reading is `rustls-pki-types`'.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

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

pub(crate) const CERTIFICATE: &str = "CERTIFICATE";
pub(crate) const PRIVATE_KEY: &str = "PRIVATE KEY";
