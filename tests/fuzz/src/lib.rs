//! One function per fuzz target: it takes any bytes and must only ever answer.
//!
//! With the nightly compiler and cargo-fuzz: `cargo +nightly fuzz run --fuzz-dir tests/fuzz record_reader`. Without
//! either, `cargo test --manifest-path tests/fuzz/Cargo.toml` feeds each function its seeds, cut and changed.

use http::{HeaderMap, HeaderValue};
use signet_identity::SpiffeId;
use signet_proxy::detect::{Sniff, sniff as verdict};
use signet_signature::jws::jwt::UnprovenClaims;
use signet_signature::jws::{Rules, Signer, Unproven};
use signet_signature::record::{Direction, Event, RecordReader};
use signet_signature::{ChannelId, MessageView, ReplayWindow, RequestView, VerifiedKey};

/// The public half of RFC 9421's Ed25519 test key (B.1.4). Nothing here has its private half.
const PUBLIC_KEY: [u8; 32] = [
    0x26, 0xb4, 0x0b, 0x8f, 0x93, 0xff, 0xf3, 0xd8, 0x97, 0x11, 0x2f, 0x7e, 0xbc, 0x58, 0x2b, 0x23, 0x2d,
    0xbd, 0x72, 0x51, 0x7d, 0x08, 0x2f, 0xe8, 0x3c, 0xfb, 0x30, 0xdd, 0xce, 0x43, 0xd1, 0xbb,
];

/// A request target: method, target, `:authority` and hosts, one a line.
pub fn check_target(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.split('\n');
    let (method, target) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let authority = lines.next().filter(|line| !line.is_empty());
    let hosts: Vec<&str> = lines.collect();
    if let Ok(accepted) = signet_policy::check_target(method, target, authority, &hosts) {
        assert!(!accepted.path().contains("//") && !accepted.path().contains("/../"), "{target:?}");
        assert!(target.contains(accepted.path()), "{target:?} became {:?}", accepted.path());
    }
}

/// A message that outlived its hop, and an assertion of an identity. Nobody here can sign.
pub fn message(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let signer = Signer {
        spiffe_id: "spiffe://td/a",
        keyid: "spiffe://td/a#b",
        public_key: &PUBLIC_KEY,
        not_before: 0,
        not_after: u64::MAX,
    };
    let rules = Rules { own: None, now: 1, skew: 30 };
    if let Ok(message) = Unproven::parse(text) {
        assert!(message.verify(&signer, rules).is_err(), "a forged message was accepted");
    }
    if let Ok(claims) = UnprovenClaims::parse(text) {
        assert!(claims.verify(&signer, rules).is_err(), "a forged assertion was accepted");
    }
}

/// A file of manifests, from text to the compiled model.
pub fn manifest(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(manifests) = signet_policy::parse_manifests("fuzz.yaml", text) {
        // Both outcomes are answers.
        let _ = signet_policy::compile(&manifests);
    }
}

/// The records of a body, arriving in pieces. Nothing is delivered, because nobody here can sign.
pub fn record_reader(input: &[u8]) {
    let mut reader =
        RecordReader::body(Direction::ClientToServer, b"head", &PUBLIC_KEY).expect("the key is one");
    let (first, second) = input.split_at(input.len() / 2);
    for mut piece in [first, second] {
        while let Ok(Some(event)) = reader.decode(&mut piece) {
            assert!(matches!(event, Event::Alert(_)), "{event:?} was delivered unsigned");
        }
    }
    assert!(reader.finish().is_err(), "an unsigned end was accepted");
}

/// The two signature fields of a request, divided by the first line end.
pub fn signature_input(input: &[u8]) {
    let half = input.iter().position(|&byte| byte == b'\n').unwrap_or(input.len());
    let (received, signature) = input.split_at(half);
    let mut headers = HeaderMap::new();
    for (name, value) in
        [("signature-input", received), ("signature", signature.get(1..).unwrap_or_default())]
    {
        let Ok(value) = HeaderValue::from_bytes(value) else { return };
        headers.append(name, value);
    }
    let view = RequestView {
        method: "GET",
        scheme: "http",
        authority: "example.com",
        path: "/",
        query: Some("a=b"),
        target: "/?a=b",
        headers: &headers,
        trailers: None,
    };
    for signature in signet_signature::parse_signatures(&headers).unwrap_or_default() {
        // Both outcomes are answers.
        let _ = signature.base(&MessageView::Request(view));
    }
    let resolve = |_: &str| Some(VerifiedKey { spiffe_id: "spiffe://td/a".into(), public_key: PUBLIC_KEY });
    let window = &mut ReplayWindow::new();
    let verified = signet_signature::verify_request(
        &view,
        &ChannelId([0; 16]),
        window,
        resolve,
        signet_signature::Rules::new("spiffe://td/a", 0, 30),
    );
    assert!(verified.is_err(), "a forged signature was accepted");
}

/// The first bytes of a connection: more of them never turn one verdict into another.
pub fn sniff(input: &[u8]) {
    let mut last = Sniff::NeedMore;
    for length in 0..=input.len().min(512) {
        let now = verdict(&input[..length]);
        assert!(last == Sniff::NeedMore || now == last, "{last:?} became {now:?}");
        last = now;
    }
    verdict(input);
}

/// An identity: what is accepted is written as it was read.
pub fn spiffe_id(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(id) = SpiffeId::parse(text) {
        assert_eq!(id.to_string(), text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Well-formed: `hello` for spiffe://td/b. Its signature is not one.
    const MESSAGE: &[u8] =
    b"eyJhbGciOiJFZERTQSIsInR5cCI6Im1lc2gtbXNnLXYxK2p3cyIsImNyaXQiOlsibWVzaCJdLCJ4NWMiOlsiQUFBQSJdLCJtZXNo\
        Ijp7ImlkIjoiQndjSEJ3Y0hCd2NIQndjSEJ3Y0hCdyIsImNyZWF0ZWQiOjEsImV4cGlyZXMiOjksImF1ZGllbmNlIjpbInNwaWZm\
        ZTovL3RkL2IiXSwibGV2ZWwiOiJwcm90ZWN0ZWQifX0.aGVsbG8.AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB\
        AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ";
    /// The same of an assertion.
    const ASSERTION: &[u8] =
    b"eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCIsIng1YyI6WyJBQUFBIl19.eyJpc3MiOiJzcGlmZmU6Ly90ZC9hIiwiYXVkIjpbInN\
        waWZmZTovL3RkL2IiXSwiZXhwIjo5LCJuYmYiOjEsImlhdCI6MSwianRpIjoiYSJ9.AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ\
        EBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ";

    /// Every cut of a seed, and every byte of it changed in a few ways.
    fn feed(target: fn(&[u8]), seeds: &[&[u8]]) {
        for seed in seeds {
            (0..=seed.len()).for_each(|length| target(&seed[..length]));
            for at in 0..seed.len() {
                for byte in [0, b'\n', b'"', b'/', b'%', 0x7f, 0xff, seed[at] ^ 1, seed[at] ^ 0x80] {
                    let mut changed = seed.to_vec();
                    changed[at] = byte;
                    target(&changed);
                }
            }
        }
    }

    #[test]
    fn seeds_of_messages_are_well_formed() {
        assert!(Unproven::parse(std::str::from_utf8(MESSAGE).unwrap()).is_ok());
        assert!(UnprovenClaims::parse(std::str::from_utf8(ASSERTION).unwrap()).is_ok());
    }

    #[test]
    fn every_target_survives_its_seeds() {
        feed(
            check_target,
            &[b"GET\n/api/a%20b?c=d\n\nexample.com:80", b"OPTIONS\n*\nh\nh", b"GET\nhttp://[::1]/x\n\n[::1]"],
        );
        let manifests: [&[u8]; 2] = [
            include_bytes!("../../../manifests/examples/mesh.yaml"),
            include_bytes!("../../../manifests/examples/callers.yaml"),
        ];
        feed(manifest, &manifests);
        feed(
            record_reader,
            &[
                b"\x01\x00\x00\x03abc\x03\x00\x00\x00\x02\x00\x00\x50",
                b"\x04\x00\x00\x06replay",
                b"\x07\x00\x00\x04\x00\x01a\x00\x01\xff\xff\xff",
            ],
        );
        feed(signature_input, &[
            b"sig1=(\"@method\" \"@query-param\";name=\"a\" \"x\";bs);created=1;keyid=\"k\";tag=\"t\"\nsig1=:AAAA:",
            b"mesh=(\"@method\" \"@authority\" \"@path\" \"@query\");created=1;expires=61;nonce=\"AAAAAAAAAAAAAAAAAAAAAA.1\";keyid=\"spiffe://td/a#b\";tag=\"mesh-req-v1\"\nmesh=:AAAA:",
        ]);
        feed(message, &[MESSAGE, ASSERTION]);
        feed(
            sniff,
            &[
                b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
            ],
        );
        feed(spiffe_id, &[b"spiffe://mesh.example/app/device-1/cimi_x.y"]);
    }
}
