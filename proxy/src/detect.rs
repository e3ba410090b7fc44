//! What is the client speaking? A verdict from the first bytes of a connection, without I/O.
//!
//! The same function serves both directions: outbound it tells HTTP from everything else, inbound
//! it finds the ClientHello that another sidecar sends ([`MESH_ALPN`]).

use rustls::server::Acceptor;

/// ALPN of a connection that carries signed HTTP/1.1 messages.
pub const ALPN_H1: &[u8] = b"mesh-h1/1";
/// ALPN of a connection that carries signed HTTP/2 messages.
pub const ALPN_H2: &[u8] = b"mesh-h2/1";
/// ALPN of a connection that carries one signed record stream.
pub const ALPN_RECORDS: &[u8] = b"mesh-rec/1";
/// Every protocol that only sidecars speak.
pub const MESH_ALPN: [&[u8]; 3] = [ALPN_H2, ALPN_H1, ALPN_RECORDS];

/// The most bytes read before a verdict. A ClientHello with a post-quantum key share is about
/// 1.5 KiB and an HTTP request line may be 8 KiB; what says nothing in 16 KiB is opaque.
pub const SNIFF_MAX: usize = 16 * 1024;

/// The HTTP/2 connection preface (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest method that counts as HTTP; the longest one registered with IANA has 17 letters.
const METHOD_MAX: usize = 24;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// HTTP/1.0 or HTTP/1.1, by a whole request line.
    Http1,
    /// HTTP/2 with prior knowledge (h2c), by its preface.
    Http2,
    /// TLS from another sidecar: the ClientHello offers a mesh ALPN.
    Mesh,
    /// Anything else, MQTT, Redis or a line protocol.
    Opaque,
    /// TLS that belongs to the application.
    Tls,
}

/// The outcome of looking at the bytes so far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sniff {
    /// Enough was seen.
    Is(Protocol),
    /// More bytes could still change the verdict.
    NeedMore,
}

/// Judges the bytes that arrived so far. Deterministic: more bytes never turn one verdict into
/// another.
pub fn sniff(bytes: &[u8]) -> Sniff {
    let Some(&first) = bytes.first() else { return Sniff::NeedMore };
    let verdict = match first {
        0x16 => sniff_tls(bytes),
        b'A'..=b'Z' => sniff_http(bytes),
        _ => Sniff::Is(Protocol::Opaque),
    };
    match verdict {
        Sniff::NeedMore if bytes.len() >= SNIFF_MAX => Sniff::Is(Protocol::Opaque),
        verdict => verdict,
    }
}

fn sniff_tls(bytes: &[u8]) -> Sniff {
    if bytes.get(1).is_some_and(|&major| major != 0x03) {
        return Sniff::Is(Protocol::Opaque);
    }
    // Nothing is parsed before the first record is whole, so that dribbled bytes cost no more than
    // any others.
    let Some(&[high, low]) = bytes.get(3..5).and_then(|length| length.first_chunk()) else {
        return Sniff::NeedMore;
    };
    if bytes.len() < 5 + usize::from(u16::from_be_bytes([high, low])) {
        return Sniff::NeedMore;
    }
    let mut acceptor = Acceptor::default();
    let mut unread = bytes;
    while !unread.is_empty() {
        if acceptor.read_tls(&mut unread).is_err() {
            return Sniff::Is(Protocol::Tls);
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let mesh = hello.alpn().is_some_and(|mut offered| offered.any(|p| MESH_ALPN.contains(&p)));
                return Sniff::Is(if mesh { Protocol::Mesh } else { Protocol::Tls });
            }
            // A hello that rustls refuses (an old version, say) is still somebody's TLS.
            Err(_) => return Sniff::Is(Protocol::Tls),
        }
    }
    Sniff::NeedMore
}

/// The server name in a ClientHello, in lower case; none where there is none or nobody can read it.
pub fn server_name(mut hello: &[u8]) -> Option<String> {
    let mut acceptor = Acceptor::default();
    while !hello.is_empty() {
        acceptor.read_tls(&mut hello).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            return accepted.client_hello().server_name().map(str::to_ascii_lowercase);
        }
    }
    None
}

/// HTTP/1 needs the whole request line: `USER anna` and `CONNECT {…}` are line protocols.
fn sniff_http(bytes: &[u8]) -> Sniff {
    let compared = bytes.len().min(HTTP2_PREFACE.len());
    if bytes[..compared] == HTTP2_PREFACE[..compared] {
        return if compared == HTTP2_PREFACE.len() { Sniff::Is(Protocol::Http2) } else { Sniff::NeedMore };
    }
    let method = bytes.iter().take_while(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_')).count();
    if method > METHOD_MAX {
        return Sniff::Is(Protocol::Opaque);
    }
    match bytes.get(method) {
        None => return Sniff::NeedMore,
        Some(b' ') => {}
        Some(_) => return Sniff::Is(Protocol::Opaque),
    }
    let Some(end) = bytes.iter().position(|&b| b == b'\n') else {
        // A path longer than the window is for the HTTP parser to refuse, with an answer.
        let is_path = bytes.len() >= SNIFF_MAX && bytes.get(method + 1) == Some(&b'/');
        return if is_path { Sniff::Is(Protocol::Http1) } else { Sniff::NeedMore };
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    let version = line.rsplit(|&b| b == b' ').next().unwrap_or_default();
    let http = matches!(version, b"HTTP/1.1" | b"HTTP/1.0");
    Sniff::Is(if http { Protocol::Http1 } else { Protocol::Opaque })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_lines_are_http1_and_their_prefixes_need_more() {
        let line = b"GET /api/items?x=1 HTTP/1.1\r\n";
        assert_eq!(sniff(line), Sniff::Is(Protocol::Http1));
        for end in 0..line.len() - 2 {
            assert_eq!(sniff(&line[..end]), Sniff::NeedMore, "{end}");
        }
        assert_eq!(sniff(b"M-SEARCH * HTTP/1.1\r\n"), Sniff::Is(Protocol::Http1));
    }

    #[test]
    fn line_protocols_that_look_like_methods_are_opaque() {
        for bytes in [
            &b"PING\r\n"[..],
            b"USER anna\r\n",
            b"CONNECT {\"verbose\":false}\r\n",
            b"EHLO host\r\n",
            b"*1\r\n$4\r\n",
            b"{\"typ\":1}\n",
            b"\x10\x1a\x00\x04MQTT",
        ] {
            assert_eq!(sniff(bytes), Sniff::Is(Protocol::Opaque), "{bytes:?}");
        }
    }

    #[test]
    fn the_http2_preface_is_recognised_only_when_whole() {
        assert_eq!(sniff(HTTP2_PREFACE), Sniff::Is(Protocol::Http2));
        assert_eq!(sniff(&HTTP2_PREFACE[..10]), Sniff::NeedMore);
        assert_eq!(sniff(b"PRIVMSG #a\r\n"), Sniff::Is(Protocol::Opaque));
    }

    #[test]
    fn an_endless_first_line_is_opaque_unless_it_is_a_path() {
        let mut bytes = b"EHLO ".to_vec();
        bytes.resize(SNIFF_MAX, b'a');
        assert_eq!(sniff(&bytes), Sniff::Is(Protocol::Opaque));
        let mut bytes = b"GET /".to_vec();
        bytes.resize(SNIFF_MAX, b'a');
        assert_eq!(sniff(&bytes), Sniff::Is(Protocol::Http1));
    }

    #[test]
    fn tls_is_told_from_mesh_tls_by_alpn() {
        assert_eq!(sniff(&client_hello(&[b"h2"])), Sniff::Is(Protocol::Tls));
        let hello = client_hello(&[ALPN_H1]);
        assert_eq!(sniff(&hello), Sniff::Is(Protocol::Mesh));
        assert_eq!(sniff(&hello[..hello.len() - 1]), Sniff::NeedMore);
        assert_eq!(sniff(&[0x16, 0x02]), Sniff::Is(Protocol::Opaque));
    }

    fn client_hello(alpn: &[&[u8]]) -> Vec<u8> {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        let name = rustls_pki_types::ServerName::try_from("mesh.invalid").unwrap();
        let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut out = Vec::new();
        client.write_tls(&mut out).unwrap();
        out
    }
}
