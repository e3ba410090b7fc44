//! `signet message` as people use it: the real binary, messages on standard input, keys in files.

#![expect(clippy::unwrap_used, reason = "a test that unwraps in vain fails and says where")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use signet_identity::{Authority, Class, KeyRequest, SigningSvid, SpiffeId, TlsSvid, TrustDomain};
use tempfile::TempDir;

/// The request and the response that RFC 9421's appendix B.2 signs.
const B2_REQUEST: &str = "POST /foo?param=Value&Pet=dog HTTP/1.1
Host: example.com
Date: Tue, 20 Apr 2021 02:07:55 GMT
Content-Type: application/json
Content-Digest: sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:
Content-Length: 18

{\"hello\": \"world\"}";
const B2_RESPONSE: &str = "HTTP/1.1 200 OK
Date: Tue, 20 Apr 2021 02:07:56 GMT
Content-Type: application/json
Content-Digest: sha-512=:mEWXIS7MaLRuGgxOBdODa3xqM1XdEvxoYhvlCFJ41QJgJc4GTsPp29l5oGX69wWdXymyU0rjJuahq4l5aGgfLQ==:
Content-Length: 23

{\"message\": \"good dog\"}";
/// After every `created` of the RFC's examples and before every `expires`.
const B2_NOW: &str = "1618884500";

/// A folder of keys and messages, and the binary.
struct Desk {
    folder: TempDir,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|_| panic!("not JSON: {}{}", self.stdout, self.stderr))
    }
}

impl Desk {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    fn run(&self, arguments: &[&str], input: impl AsRef<[u8]>) -> Ran {
        let mut child = Command::new(env!("CARGO_BIN_EXE_signet"))
            .arg("message")
            .args(arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The program may refuse its arguments before it reads: then nobody takes the message.
        let _ = child.stdin.take().unwrap().write_all(input.as_ref());
        let output = child.wait_with_output().unwrap();
        Ran {
            code: output.status.code().expect("ended by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// A new key pair: files NAME.key and NAME.pub.
    fn key_pair(&self, name: &str, kind: Kind) {
        let (private, public) = kind.generate();
        self.file(&format!("{name}.key"), pem("PRIVATE KEY", &private));
        self.file(&format!("{name}.pub"), pem("PUBLIC KEY", &public));
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Ed25519,
    P256,
    P384,
    Rsa,
}

impl Kind {
    /// PKCS#8 and SPKI.
    fn generate(self) -> (Vec<u8>, Vec<u8>) {
        fn ecdsa(algorithm: &'static EcdsaSigningAlgorithm) -> (Vec<u8>, Vec<u8>) {
            let key = EcdsaKeyPair::generate(algorithm).unwrap();
            (key.to_pkcs8v1().unwrap().as_ref().to_vec(), spki(key.public_key()))
        }
        match self {
            Self::Ed25519 => {
                let key = Ed25519KeyPair::generate().unwrap();
                (key.to_pkcs8v1().unwrap().as_ref().to_vec(), spki(key.public_key()))
            }
            Self::P256 => ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING),
            Self::P384 => ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING),
            Self::Rsa => {
                let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
                let private = AsDer::<Pkcs8V1Der<'static>>::as_der(&key).unwrap();
                (private.as_ref().to_vec(), spki(key.public_key()))
            }
        }
    }
}

fn spki(key: &impl AsDer<PublicKeyX509Der<'static>>) -> Vec<u8> {
    key.as_der().unwrap().as_ref().to_vec()
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn vectors() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proxy/signature/tests/rfc9421-vectors.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The vectors of appendix B.2 are two fields alone: they go into the message they were made for. Appendix B.4
/// signs its first message, where the file records the last.
fn complete(vectors: &Value, vector: &Value) -> String {
    let message = match vector["section"].as_str() {
        Some("appendix.b.4") => vectors["b4_messages"][0].as_str().unwrap(),
        _ => vector["message"].as_str().unwrap(),
    };
    if !message.starts_with("Signature-Input:") {
        return message.to_owned();
    }
    let covers_status = vector["signature_input"].as_str().unwrap().contains("@status");
    let (head, body) = if covers_status { B2_RESPONSE } else { B2_REQUEST }.split_once("\n\n").unwrap();
    format!("{head}\n{message}\n\n{body}")
}

#[test]
fn every_vector_of_the_rfc_is_judged_right() {
    let desk = Desk::new();
    let vectors = vectors();
    let key = |name: &str| vectors["keys"][name].as_str().unwrap();
    let rsa = desk.file("rsa.pub", key("section-appendix.b.1.1"));
    let pss = desk.file("pss.pub", key("section-appendix.b.1.2"));
    let p256 = desk.file("p256.pub", key("section-appendix.b.1.3"));
    let ed25519 = desk.file("ed25519.pub", key("section-appendix.b.1.4"));
    let secret = desk.file("secret", vectors["shared_secret"].as_str().unwrap());
    let request = desk.file("request.http", B2_REQUEST);

    assert_eq!(vectors["vectors"].as_array().unwrap().len(), 21);
    for vector in vectors["vectors"].as_array().unwrap() {
        let text = |field: &str| vector[field].as_str().unwrap();
        let key = match text("keyid") {
            "test-key-rsa" => &rsa,
            "test-key-rsa-pss" => &pss,
            "test-key-ecc-p256" => &p256,
            "test-key-ed25519" => &ed25519,
            "test-shared-secret" => &secret,
            other => panic!("unknown key {other}"),
        };
        let message = complete(&vectors, vector);
        let mut arguments =
            vec!["verify", "--key", key, "--label", text("label"), "--now", B2_NOW, "-o", "json"];
        if message.starts_with("HTTP/") && text("signature_input").contains(";req") {
            arguments.extend(["--request", &request]);
        }
        let ran = desk.run(&arguments, &message);
        let about = format!("{} {}\n{message}\n{}{}", text("section"), text("label"), ran.stdout, ran.stderr);
        let expected = vector["expect_valid"].as_bool().unwrap();
        assert_eq!(ran.code, i32::from(!expected), "{about}");
        assert_eq!(ran.json()["valid"], expected, "{about}");
        if expected {
            assert_eq!(ran.json()["signature_base"], text("signature_base"), "{about}");
        }
    }
}

/// Name, key, `--alg`, the algorithm expected.
const ALGORITHMS: [(&str, Kind, Option<&str>, &str); 5] = [
    ("ed25519", Kind::Ed25519, None, "ed25519"),
    ("p256", Kind::P256, None, "ecdsa-p256-sha256"),
    ("p384", Kind::P384, None, "ecdsa-p384-sha384"),
    ("pss", Kind::Rsa, None, "rsa-pss-sha512"),
    ("v15", Kind::Rsa, Some("rsa-v1_5-sha256"), "rsa-v1_5-sha256"),
];

#[test]
fn what_is_signed_verifies_with_every_algorithm() {
    let desk = Desk::new();
    for (name, kind, alg, expected) in ALGORITHMS {
        desk.key_pair(name, kind);
        let (key, public) = (format!("{name}.key"), format!("{name}.pub"));
        round_trip(&desk, &key, &public, alg, expected);
    }
    desk.file(
        "secret",
        "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==\n",
    );
    round_trip(&desk, "secret", "secret", None, "hmac-sha256");
    round_trip(&desk, "secret", "secret", Some("hmac-sha256"), "hmac-sha256");
}

fn round_trip(desk: &Desk, key: &str, public: &str, alg: Option<&str>, expected: &str) {
    let mut sign =
        vec!["sign", "--key", key, "--keyid", "k", "--expires", "+60", "--nonce", "n", "--tag", "t"];
    sign.extend(alg.iter().flat_map(|alg| ["--alg", alg]));
    let signed = desk.run(&sign, B2_REQUEST);
    assert_eq!((signed.code, signed.stderr.as_str()), (0, ""), "{key}");
    assert!(signed.stdout.starts_with("POST /foo?param=Value&Pet=dog HTTP/1.1\nHost: example.com\n"));
    assert!(signed.stdout.ends_with("\n\n{\"hello\": \"world\"}"));

    let require = ["--require", "@method", "--require", "@query", "--require", "content-digest"];
    let verify = [&["verify", "--key", public, "--tag", "t", "-o", "json"], require.as_slice()].concat();
    let ran = desk.run(&verify, &signed.stdout);
    assert_eq!(ran.code, 0, "{key}: {}{}", ran.stdout, ran.stderr);
    assert_eq!(ran.json()["alg"], expected);
    assert_eq!(ran.json()["content_digest"], "matches the body");
    assert_eq!(ran.json()["params"]["alg"], alg.map_or(Value::Null, Value::from));

    let tampered = signed.stdout.replace("Pet=dog", "Pet=cat");
    let ran = desk.run(&verify, tampered);
    assert_eq!((ran.code, &ran.json()["code"]), (1, &Value::from("bad-signature")), "{key}");
    assert!(ran.json()["signature_base"].as_str().unwrap().contains("Pet=cat"));
}

#[test]
fn deterministic_signature_equals_the_rfc_s() {
    // B.2.6: the private half of test-key-ed25519 as the RFC prints it.
    let desk = Desk::new();
    desk.file("key", "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF\n-----END PRIVATE KEY-----\n");
    let fields = ["date", "@method", "@path", "@authority", "content-type", "content-length"];
    let mut arguments = vec![
        "sign",
        "--key",
        "key",
        "--keyid",
        "test-key-ed25519",
        "--label",
        "sig-b26",
        "--created",
        "1618884473",
    ];
    arguments.extend(fields.iter().flat_map(|field| ["--component", field]));
    let ran = desk.run(&arguments, B2_REQUEST);
    assert!(ran.stdout.contains("\nSignature: sig-b26=:wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==:\n"), "{}{}", ran.stdout, ran.stderr);
}

/// A desk with an Ed25519 pair and B.2's request signed by it.
fn signed_desk(extra: &[&str]) -> (Desk, String) {
    let desk = Desk::new();
    desk.key_pair("k", Kind::Ed25519);
    let ran = desk.run(&[&["sign", "--key", "k.key", "--keyid", "k"], extra].concat(), B2_REQUEST);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    (desk, ran.stdout)
}

#[test]
fn response_is_bound_to_its_request() {
    let (desk, _) = signed_desk(&[]);
    desk.file("request.http", B2_REQUEST);
    desk.file("other.http", B2_REQUEST.replace("Pet=dog", "Pet=cat"));
    let sign = [
        "sign",
        "--key",
        "k.key",
        "--keyid",
        "k",
        "--component",
        "@status",
        "--component",
        "@query;req",
        "--component",
        "content-digest;req",
    ];
    assert_eq!(desk.run(&sign, B2_RESPONSE).code, 64);
    let signed = desk.run(&[sign.as_slice(), &["--request", "request.http"]].concat(), B2_RESPONSE);
    assert_eq!(signed.code, 0, "{}", signed.stderr);
    let verify = |request: &[&str]| {
        desk.run(&[&["verify", "--key", "k.pub", "-o", "json"], request].concat(), &signed.stdout)
    };
    assert_eq!(verify(&["--request", "request.http"]).code, 0);
    assert_eq!(verify(&["--request", "request.http"]).json()["content_digest"], "matches the body");
    assert_eq!(verify(&["--request", "other.http"]).json()["code"], "bad-signature");
    assert_eq!(verify(&[]).json()["code"], "coverage");
}

#[test]
fn digest_is_added_only_when_asked_and_checked_when_covered() {
    let desk = Desk::new();
    desk.key_pair("k", Kind::Ed25519);
    let bare = "PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    let sign = |extra: &[&str]| {
        desk.run(&[&["sign", "--key", "k.key", "--keyid", "k"], extra].concat(), bare).stdout
    };
    assert!(!sign(&[]).contains("Digest"));
    let signed = sign(&["--component", "content-digest"]);
    assert!(
        signed.contains("\r\nContent-Digest: sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:\r\n"),
        "{signed}"
    );

    let verify = |message: &str| desk.run(&["verify", "--key", "k.pub", "-o", "json"], message);
    assert_eq!(verify(&signed).code, 0);
    assert_eq!(verify(&sign(&[])).json()["content_digest"], "not covered");
    let ran = verify(&signed.replace("hello", "jello"));
    assert_eq!((ran.code, &ran.json()["code"]), (1, &Value::from("digest")));
    let ran = verify(signed.strip_suffix("hello").unwrap());
    assert!(ran.code == 1 && ran.stdout.contains("no body was given"), "{}", ran.stdout);
}

#[test]
fn trailers_of_a_chunked_message_can_be_covered() {
    let desk = Desk::new();
    desk.key_pair("k", Kind::Ed25519);
    let chunked = "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n5\nhello\n0\nExpires: never\n\n";
    let signed =
        desk.run(&["sign", "--key", "k.key", "--keyid", "k", "--component", "expires;tr"], chunked).stdout;
    let verify = ["verify", "--key", "k.pub"];
    assert_eq!(desk.run(&verify, &signed).code, 0);
    assert_eq!(desk.run(&verify, signed.replace("never", "often")).code, 1);
}

#[test]
fn time_is_checked_as_of_now_with_the_skew_allowed() {
    let (desk, signed) = signed_desk(&["--created", "1000", "--expires", "+60"]);
    let verify = |extra: &[&str]| {
        let ran = desk.run(&[&["verify", "--key", "k.pub", "-o", "json"], extra].concat(), &signed);
        (ran.code, ran.json()["code"].as_str().unwrap_or_default().to_owned())
    };
    let (valid, clock, expired) = ((0, String::new()), (1, "clock".to_owned()), (1, "expired".to_owned()));
    assert_eq!(verify(&["--now", "1000"]), valid);
    assert_eq!(verify(&["--now", "999"]), clock);
    assert_eq!(verify(&["--now", "990", "--skew", "10"]), valid);
    assert_eq!(verify(&["--now", "1059"]), valid);
    assert_eq!(verify(&["--now", "1060"]), expired);
    assert_eq!(verify(&["--now", "1065", "--skew", "10"]), valid);
    assert_eq!(verify(&[]), expired);
    let (desk, signed) = signed_desk(&["--created", "none"]);
    assert!(!signed.contains("created"));
    assert_eq!(desk.run(&["verify", "--key", "k.pub", "--now", "0"], signed).code, 0);
}

#[test]
fn signature_is_chosen_by_label_or_tag() {
    let (desk, once) = signed_desk(&["--tag", "one"]);
    let again =
        desk.run(&["sign", "--key", "k.key", "--keyid", "k", "--label", "sig2", "--tag", "two"], &once);
    assert_eq!(again.code, 0, "{}", again.stderr);
    let verify = |extra: &[&str]| {
        let ran = desk.run(&[&["verify", "--key", "k.pub", "-o", "json"], extra].concat(), &again.stdout);
        ran.json()["code"].as_str().unwrap_or("valid").to_owned()
    };
    assert_eq!(verify(&["--label", "sig1"]), "valid");
    assert_eq!(verify(&["--tag", "two"]), "valid");
    assert_eq!(verify(&["--label", "sig3"]), "missing");
    assert_eq!(verify(&["--tag", "three"]), "missing");
    assert_eq!(verify(&[]), "ambiguous");
    assert_eq!(desk.run(&["sign", "--key", "k.key", "--keyid", "k"], &once).code, 64, "the label is taken");
}

#[test]
fn invalid_messages_are_told_apart_by_code() {
    let (desk, signed) = signed_desk(&[]);
    desk.key_pair("other", Kind::Ed25519);
    desk.key_pair("p256", Kind::P256);
    let verify = |key: &str, extra: &[&str], message: &str| {
        let ran = desk.run(&[&["verify", "--key", key, "-o", "json"], extra].concat(), message);
        assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
        ran.json()["code"].as_str().unwrap().to_owned()
    };
    assert_eq!(verify("k.pub", &[], B2_REQUEST), "missing");
    assert_eq!(verify("other.pub", &[], &signed), "bad-signature");
    assert_eq!(verify("k.pub", &["--require", "date"], &signed), "coverage");
    assert_eq!(verify("k.pub", &["--require", "@path;req"], &signed), "coverage");
    assert_eq!(verify("k.pub", &[], &signed.replace("Content-Type: application/json\n", "")), "coverage");
    assert_eq!(verify("k.pub", &[], &signed.replace(";keyid", ";alg=\"rsa-pss-sha512\";keyid")), "algorithm");
    assert_eq!(verify("k.pub", &[], &signed.replace(";keyid", ";alg=\"none\";keyid")), "algorithm");
    assert_eq!(verify("p256.pub", &[], &signed), "bad-signature");
    assert_eq!(verify("k.pub", &[], &signed.replace("Signature: sig1=:", "Signature: sig1=")), "malformed");
    assert_eq!(verify("k.pub", &[], &signed.replace("Signature: sig1", "Signature: sig2")), "malformed");
}

#[test]
fn wrong_arguments_and_unreadable_input_exit_64() {
    let (desk, signed) = signed_desk(&[]);
    desk.file("empty", "");
    desk.file("long", vec![b'x'; 100_000]);
    desk.file("short-secret", "c2VjcmV0");
    desk.file("request.http", B2_REQUEST);
    desk.file("response.http", B2_RESPONSE);
    desk.file("broken.pem", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n");
    let verify: [&[&str]; 15] = [
        &[],
        &["--key", "missing.pub"],
        &["--key", "empty"],
        &["--key", "long"],
        &["--key", "short-secret"],
        &["--key", "broken.pem"],
        &["--key", "k.key"],
        &["--key", "k.pub", "--alg", "none"],
        &["--key", "k.pub", "--alg", "rsa-pss-sha512"],
        &["--key", "k.pub", "--label", "a", "--tag", "b"],
        &["--key", "k.pub", "--require", "@nothing"],
        &["--key", "k.pub", "--now", "soon"],
        &["--key", "k.pub", "--request", "request.http"],
        &["--cert", "k.pub"],
        &["--key", "k.pub", "-o", "yaml"],
    ];
    for arguments in verify {
        let ran = desk.run(&[&["verify"], arguments].concat(), &signed);
        assert_eq!(ran.code, 64, "{arguments:?}: {}{}", ran.stdout, ran.stderr);
        assert!(!ran.stderr.is_empty(), "{arguments:?} gives no reason");
    }
    let sign: [&[&str]; 6] = [
        &["--key", "k.key"],
        &["--key", "k.pub", "--keyid", "k"],
        &["--key", "k.key", "--keyid", "é"],
        &["--key", "k.key", "--keyid", "k", "--label", "Upper"],
        &["--key", "k.key", "--keyid", "k", "--component", "x-missing"],
        &["--key", "k.key", "--keyid", "k", "--expires", "soon"],
    ];
    for arguments in sign {
        assert_eq!(desk.run(&[&["sign"], arguments].concat(), B2_REQUEST).code, 64, "{arguments:?}");
    }
    for message in [
        "",
        "hello",
        "GET / HTTP/1.1\n\n",
        "GET / HTTP/1.1\nHost: a\n b\n\n",
        "GET / HTTP/1.1\nHost: a\nHost: a\n\n",
    ] {
        let ran = desk.run(&["verify", "--key", "k.pub", "-o", "json"], message);
        assert_eq!((ran.code, &ran.json()["exit_code"]), (64, &Value::from(64)), "{message:?}");
    }
    let long = format!("{signed}{}", "x".repeat(1024 * 1024));
    assert_eq!(desk.run(&["verify", "--key", "k.pub"], long).code, 64);
    let ran = desk.run(&["verify", "--key", "k.pub", "--request", "response.http"], B2_RESPONSE);
    assert!(ran.code == 64 && ran.stderr.contains("not a request"), "{}", ran.stderr);
}

/// A trust domain, a workload with both SVIDs, and their files.
struct Workload {
    signing: SigningSvid,
    now: u64,
}

fn workload(desk: &Desk) -> Workload {
    let domain = TrustDomain::parse("mesh.example").unwrap();
    let now = SystemTime::now();
    let end = now + Duration::from_secs(600);
    let authority = Authority::create(domain.clone(), now, Duration::from_secs(3600)).unwrap();
    let other = Authority::create(domain.clone(), now, Duration::from_secs(3600)).unwrap();
    let id = SpiffeId::workload(&domain, Class::App, "device-1", "store").unwrap();

    let request = KeyRequest::new_signing().unwrap();
    let signing =
        SigningSvid::new(authority.issue_signing(&request.csr, &id, now, end).unwrap(), request.key).unwrap();
    let request = KeyRequest::new_tls().unwrap();
    let tls = TlsSvid::new(authority.issue_tls(&request.csr, &id, now, end).unwrap(), request.key).unwrap();

    let both = signing.to_pem();
    let (chain, key) = split_pem(&both);
    desk.file("signing.pem", chain);
    desk.file("signing.key", key);
    desk.file("tls.pem", split_pem(&tls.to_pem()).0);
    for (name, authority) in [("roots.pem", &authority), ("other-roots.pem", &other)] {
        desk.file(name, pem("CERTIFICATE", authority.root_der()));
    }
    Workload { signing, now: now.duration_since(UNIX_EPOCH).unwrap().as_secs() }
}

/// The certificates and the key of one PEM text.
fn split_pem(pem: &str) -> (&str, &str) {
    pem.split_at(pem.find("-----BEGIN PRIVATE KEY-----").unwrap())
}

#[test]
fn signature_of_a_workload_is_verified_through_its_chain() {
    let desk = Desk::new();
    let workload = workload(&desk);
    let keyid = workload.signing.keyid();
    let sign = |keyid: &str| desk.run(&["sign", "--key", "signing.key", "--keyid", keyid], B2_REQUEST).stdout;
    let verify = |cert: &str, roots: &str, now: u64, message: &str| {
        let now = now.to_string();
        let arguments =
            ["verify", "--cert", cert, "--roots", roots, "--now", &now, "--skew", "5", "-o", "json"];
        desk.run(&arguments, message)
    };
    let signed = sign(&keyid);
    let soon = workload.now + 1;
    let ran = verify("signing.pem", "roots.pem", soon, &signed);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert_eq!(ran.json()["signer"], "spiffe://mesh.example/app/device-1/store");
    assert_eq!(verify("signing.pem", "roots.pem", soon, &sign("my-own-name")).code, 0);

    let refused = |ran: Ran, code: &str, says: &str| {
        let reason = ran.json()["reason"].as_str().unwrap().to_owned();
        assert_eq!((ran.code, &ran.json()["code"]), (1, &Value::from(code)), "{reason}");
        assert!(reason.contains(says), "{reason}");
    };
    refused(verify("signing.pem", "other-roots.pem", soon, &signed), "certificate", "");
    refused(verify("signing.pem", "roots.pem", soon + 3600, &signed), "certificate", "expired");
    refused(
        verify("tls.pem", "roots.pem", soon, &signed),
        "certificate",
        "for TLS servers and TLS clients, not for signing",
    );
    refused(verify("roots.pem", "roots.pem", soon, &signed), "certificate", "");
    refused(
        verify("signing.pem", "roots.pem", soon, &sign("spiffe://mesh.example/app/device-1/store#other")),
        "unknown-key",
        &keyid,
    );
    assert_eq!(verify("signing.key", "roots.pem", soon, &signed).code, 64);
}

#[test]
fn message_that_outlived_its_hop_is_verified_with_the_roots_alone() {
    use signet_signature::MeshSigner;
    use signet_signature::jws::{Audience, Head, MessageId, sign};

    let desk = Desk::new();
    let Workload { signing, now } = workload(&desk);
    let signer = MeshSigner::new(signing.key.secret_der(), signing.keyid()).unwrap();
    let store = "spiffe://mesh.example/app/device-2/store";
    let head = Head {
        id: MessageId::random().unwrap(),
        created: now,
        expires: now + 60,
        audience: Audience::new(vec![store.to_owned()]).unwrap(),
        content_type: None,
    };
    let message = sign(&signer, &signing.chain, &head, b"hello").unwrap();
    let run = |roots: &str, further: &[&str], message: &str| {
        let base = ["verify-jws", "--roots", roots, "-o", "json"];
        desk.run(&[&base[..], further].concat(), message)
    };
    let soon = (now + 1).to_string();
    let ran = run("roots.pem", &["--now", &soon], &format!("{message}\n"));
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let found = ran.json();
    assert_eq!(found["sender"], "spiffe://mesh.example/app/device-1/store");
    assert_eq!(found["level"], "protected");
    assert_eq!(found["audience"], Value::from(vec![store]));
    assert_eq!(found["payload_base64"], STANDARD.encode("hello"));
    assert_eq!(run("roots.pem", &["--now", &soon, "--for", store], &message).code, 0);

    let refused = |ran: Ran, code: &str| {
        assert_eq!((ran.code, &ran.json()["code"]), (1, &Value::from(code)), "{}", ran.stdout);
        assert_eq!(ran.json()["payload_base64"], Value::Null);
    };
    refused(run("other-roots.pem", &["--now", &soon], &message), "certificate");
    refused(run("roots.pem", &["--now", &(now + 60).to_string()], &message), "message-expired");
    refused(run("roots.pem", &["--now", &(now + 3600).to_string()], &message), "certificate");
    refused(
        run("roots.pem", &["--now", &soon, "--for", "spiffe://mesh.example/app/a/b"], &message),
        "message-audience",
    );
    refused(run("roots.pem", &["--now", &soon], &message[..message.len() - 4]), "message-malformed");
    let (signed, signature) = message.rsplit_once('.').unwrap();
    let (header, _) = signed.split_once('.').unwrap();
    let altered = format!("{header}.SGVsbG8.{signature}");
    refused(run("roots.pem", &["--now", &soon], &altered), "message-bad-signature");
    assert_eq!(run("nowhere.pem", &[], &message).code, 64);
}

#[test]
fn certificate_of_the_public_web_is_told_to_be_one() {
    let desk = Desk::new();
    workload(&desk);
    let (_, signed) = signed_desk(&[]);
    let web = rcgen::generate_simple_self_signed(["web.example".to_owned()]).unwrap();
    desk.file("web.pem", web.cert.pem());
    let ran = desk.run(&["verify", "--cert", "web.pem", "--roots", "roots.pem"], signed);
    assert!(ran.code == 1 && ran.stdout.contains("no SPIFFE ID"), "{}{}", ran.stdout, ran.stderr);
}
