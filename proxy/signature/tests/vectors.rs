//! The test vectors of RFC 9421: every base must come out byte for byte, every signature must be
//! accepted or refused as expected, and deterministic algorithms must reproduce it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use signet_signature::sign::sign;
use signet_signature::verify::{VerifyError, verify};
use signet_signature::{
    Algorithm, Component, LabelledSignature, MessageView, RequestView, ResponseView, SigningKey,
    VerifyingKey, parse_signatures,
};

/// Appendix B.2: the messages that its signatures are made over.
const TEST_REQUEST: &str = "POST /foo?param=Value&Pet=dog HTTP/1.1
Host: example.com
Date: Tue, 20 Apr 2021 02:07:55 GMT
Content-Type: application/json
Content-Digest: sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:
Content-Length: 18";

const TEST_RESPONSE: &str = "HTTP/1.1 200 OK
Date: Tue, 20 Apr 2021 02:07:56 GMT
Content-Type: application/json
Content-Digest: sha-512=:mEWXIS7MaLRuGgxOBdODa3xqM1XdEvxoYhvlCFJ41QJgJc4GTsPp29l5oGX69wWdXymyU0rjJuahq4l5aGgfLQ==:
Content-Length: 23";

const ED25519_PRIVATE: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF
-----END PRIVATE KEY-----";

/// A message as printed in the RFC.
struct Message {
    start: Vec<String>,
    headers: HeaderMap,
}

impl Message {
    fn parse(text: &str) -> Self {
        let head = text.split("\n\n").next().unwrap();
        let mut lines = head.lines().peekable();
        let is_field = lines.peek().unwrap().starts_with("Signature-Input:");
        let start =
            if is_field { Vec::new() } else { lines.next().unwrap().split(' ').map(str::to_owned).collect() };
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(':').unwrap();
            let name = HeaderName::try_from(name).unwrap();
            headers.append(name, HeaderValue::from_str(value.trim()).unwrap());
        }
        Self { start, headers }
    }

    fn of_vector(vectors: &Value, vector: &Value) -> Self {
        if text(vector, "section") == "appendix.b.4" {
            // The section prints six messages. The file keeps the last one here, which is refused, while
            // the signature and base are those of the first.
            return Self::parse(vectors["b4_messages"][0].as_str().unwrap());
        }
        let mut message = Self::parse(text(vector, "message"));
        if message.start.is_empty() {
            // Appendix B.2 prints the signature fields only.
            let covers_status = text(vector, "signature_input").contains("@status");
            let mut whole = Self::parse(if covers_status { TEST_RESPONSE } else { TEST_REQUEST });
            whole.headers.extend(message.headers);
            message = whole;
        }
        message
    }

    fn is_response(&self) -> bool {
        self.start[0].starts_with("HTTP/")
    }

    fn request(&self) -> RequestView<'_> {
        let target = &self.start[1];
        let (path, query) =
            target.split_once('?').map_or((target.as_str(), None), |(path, query)| (path, Some(query)));
        RequestView {
            method: &self.start[0],
            scheme: "https",
            authority: self.headers["host"].to_str().unwrap(),
            path,
            query,
            target,
            headers: &self.headers,
            trailers: None,
        }
    }

    fn view<'a>(&'a self, request: &'a Self) -> MessageView<'a> {
        if self.is_response() {
            MessageView::Response(ResponseView {
                status: self.start[1].parse().unwrap(),
                headers: &self.headers,
                trailers: None,
                request: Some(request.request()),
            })
        } else {
            MessageView::Request(self.request())
        }
    }
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("rfc9421-vectors.json")).unwrap()
}

fn text<'a>(vector: &'a Value, name: &str) -> &'a str {
    vector[name].as_str().unwrap()
}

fn verifying_key(vectors: &Value, keyid: &str) -> VerifyingKey {
    let pem = |section: &str| VerifyingKey::from_pem(text(&vectors["keys"], section).as_bytes()).unwrap();
    match keyid {
        "test-key-rsa" => pem("section-appendix.b.1.1").with_algorithm(Algorithm::RsaV15Sha256).unwrap(),
        "test-key-rsa-pss" => pem("section-appendix.b.1.2"),
        "test-key-ecc-p256" => pem("section-appendix.b.1.3"),
        "test-key-ed25519" => pem("section-appendix.b.1.4"),
        "test-shared-secret" => VerifyingKey::from_hmac_secret(&secret(vectors)).unwrap(),
        _ => panic!("unknown key {keyid}"),
    }
}

fn secret(vectors: &Value) -> Vec<u8> {
    STANDARD.decode(text(vectors, "shared_secret")).unwrap()
}

fn signature_of(message: &Message, label: &str) -> LabelledSignature {
    let signatures = parse_signatures(&message.headers).unwrap();
    signatures.into_iter().find(|signature| signature.label() == label).unwrap()
}

#[test]
fn every_vector_is_accepted_or_refused_as_expected() {
    let vectors = vectors();
    let list = vectors["vectors"].as_array().unwrap();
    assert_eq!(list.len(), 21);
    let request = Message::parse(TEST_REQUEST);
    let mut refused = 0;
    for (number, vector) in list.iter().enumerate() {
        let message = Message::of_vector(&vectors, vector);
        let signature = signature_of(&message, text(vector, "label"));
        let view = message.view(&request);
        assert_eq!(signature.received(), text(vector, "signature_input"), "vector {number}");
        assert_eq!(signature.base(&view).unwrap(), text(vector, "signature_base"), "vector {number}");
        let key = verifying_key(&vectors, text(vector, "keyid"));
        let created = signature.params().created().unwrap();
        let verdict = verify(&view, &signature, &key, created, 0);
        if vector["expect_valid"].as_bool().unwrap() {
            assert_eq!(verdict.as_deref(), Ok(text(vector, "signature_base")), "vector {number}");
        } else {
            refused += 1;
            assert!(matches!(verdict, Err(VerifyError::Signature(_))), "vector {number}");
        }
    }
    assert_eq!(refused, 3);
}

#[test]
fn every_vector_is_refused_under_every_other_key() {
    let vectors = vectors();
    let request = Message::parse(TEST_REQUEST);
    let keys =
        ["test-key-rsa", "test-key-rsa-pss", "test-key-ecc-p256", "test-key-ed25519", "test-shared-secret"];
    for vector in vectors["vectors"].as_array().unwrap() {
        let message = Message::of_vector(&vectors, vector);
        let signature = signature_of(&message, text(vector, "label"));
        let created = signature.params().created().unwrap();
        for keyid in keys.into_iter().filter(|keyid| *keyid != text(vector, "keyid")) {
            let key = verifying_key(&vectors, keyid);
            assert!(verify(&message.view(&request), &signature, &key, created, 0).is_err(), "{keyid}");
        }
    }
}

#[test]
fn the_mutated_messages_of_appendix_b4_are_judged_as_printed() {
    let vectors = vectors();
    let key = verifying_key(&vectors, "test-key-ed25519");
    let messages = vectors["b4_messages"].as_array().unwrap();
    let verdicts: Vec<bool> = messages
        .iter()
        .map(|message| {
            let message = Message::parse(message.as_str().unwrap());
            let signature = signature_of(&message, "transform");
            verify(&message.view(&message), &signature, &key, 1_618_884_473, 0).is_ok()
        })
        .collect();
    assert_eq!(verdicts, [true, true, true, true, false, false]);
}

#[test]
fn deterministic_signatures_are_reproduced() {
    let vectors = vectors();
    let request = Message::parse(TEST_REQUEST);
    let mut reproduced = 0;
    for vector in vectors["vectors"].as_array().unwrap() {
        let key = match text(vector, "keyid") {
            "test-key-ed25519" => SigningKey::from_pem(ED25519_PRIVATE.as_bytes()).unwrap(),
            "test-shared-secret" => SigningKey::from_hmac_secret(&secret(&vectors)).unwrap(),
            _ => continue,
        };
        if !vector["expect_valid"].as_bool().unwrap() {
            continue;
        }
        let message = Message::of_vector(&vectors, vector);
        let received = signature_of(&message, text(vector, "label"));
        let components: Vec<Component> = received.components().to_vec();
        let made =
            sign(&message.view(&request), &components, received.params(), received.label(), &key).unwrap();
        let (label, input) = (received.label(), text(vector, "signature_input"));
        assert_eq!(made.base, text(vector, "signature_base"));
        assert_eq!(made.signature_input, format!("{label}={input}"));
        assert_eq!(made.signature, format!("{label}=:{}:", text(vector, "signature")));
        reproduced += 1;
    }
    assert_eq!(reproduced, 7);
}
