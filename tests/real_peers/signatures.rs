//! `http-message-signatures`, an implementation of RFC 9421 by others: it verifies what we sign, we verify what it
//! signs, and neither accepts what was changed on the way.

use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use signet_cli::lab::runner::TestResult;
use signet_signature::{ChannelId, MeshSigner, RequestView, ResponseView, SignedHead, sha256_header};
use tempfile::TempDir;

use crate::programs::{python, script};

type Failure = Box<dyn Error>;

const BODY: &str = "{\"hello\": \"world\"}";
const REQUEST: &str = "POST /foo?param=Value&Pet=dog HTTP/1.1\r\nHost: www.example.com\r\n\
    Content-Type: application/json\r\nX-Twice: one\r\nX-Twice:  two \r\nContent-Length: 18\r\n\r\n{\"hello\": \"world\"}";
const RESPONSE: &str = "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n{\"hello\": \"world\"}";
const OF_REQUEST: &[&str] =
    &["@method", "@authority", "@path", "@query", "@target-uri", "content-type", "x-twice", "content-digest"];
const OF_RESPONSE: &[&str] =
    &["@status", "content-type", "content-digest", "\"@method\";req", "\"@path\";req"];
const TAG: &str = "real-peers";

/// A way to sign: the algorithm's name and what `openssl` needs to make a key for it.
struct Kind {
    algorithm: &'static str,
    key: &'static [&'static str],
}

const KINDS: [Kind; 6] = [
    Kind { algorithm: "ed25519", key: &["ed25519"] },
    Kind { algorithm: "ecdsa-p256-sha256", key: &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"] },
    Kind { algorithm: "ecdsa-p384-sha384", key: &["EC", "-pkeyopt", "ec_paramgen_curve:P-384"] },
    Kind { algorithm: "rsa-pss-sha512", key: &["RSA", "-pkeyopt", "rsa_keygen_bits:2048"] },
    Kind { algorithm: "rsa-v1_5-sha256", key: &["RSA", "-pkeyopt", "rsa_keygen_bits:2048"] },
    Kind { algorithm: "hmac-sha256", key: &[] },
];

pub(crate) fn peer_verifies_what_message_sign_signed() -> TestResult {
    let desk = Desk::new()?;
    for kind in &KINDS {
        let keys = desk.keys(kind)?;
        let request = desk.file("request", &desk.sign(kind, &keys, REQUEST, None, OF_REQUEST)?)?;
        let covered = desk.peer_verify(kind, &keys, TAG, &[&request], OF_REQUEST)?;
        assert!(
            covered.contains("\"@path\": /foo\n") && covered.contains("\"x-twice\": one, two\n"),
            "{covered}"
        );

        let response = desk.sign(kind, &keys, RESPONSE, Some(&request), OF_RESPONSE)?;
        let response = desk.file("response", &response)?;
        let covered = desk.peer_verify(kind, &keys, TAG, &[&response, &request], OF_RESPONSE)?;
        assert!(
            covered.contains("\"@status\": 201\n") && covered.contains("\"@method\";req: POST\n"),
            "{covered}"
        );
    }
    Ok(())
}

pub(crate) fn message_verify_accepts_what_the_peer_signed() -> TestResult {
    let desk = Desk::new()?;
    for kind in &KINDS {
        let keys = desk.keys(kind)?;
        let plain = desk.file("plain-request", REQUEST)?;
        let request = desk.peer_sign(kind, &keys, &[&plain], OF_REQUEST)?;
        desk.verify(kind, &keys, &request, None, OF_REQUEST)?;

        let request = desk.file("request", &request)?;
        let plain = desk.file("plain-response", RESPONSE)?;
        let response = desk.peer_sign(kind, &keys, &[&plain, &request], OF_RESPONSE)?;
        desk.verify(kind, &keys, &response, Some(&request), OF_RESPONSE)?;
    }
    Ok(())
}

pub(crate) fn changed_message_is_refused_by_both() -> TestResult {
    let desk = Desk::new()?;
    for kind in &KINDS {
        let keys = desk.keys(kind)?;
        let signed = desk.sign(kind, &keys, REQUEST, None, OF_REQUEST)?;
        for (from, to) in [("Pet=dog", "Pet=cat"), ("hello", "jello"), ("X-Twice: one", "X-Twice: 1")] {
            assert!(signed.contains(from));
            let changed = signed.replacen(from, to, 1);
            let path = desk.file("changed", &changed)?;
            let peers = desk.peer_verify(kind, &keys, TAG, &[&path], OF_REQUEST);
            let ours = desk.verify(kind, &keys, &changed, None, OF_REQUEST);
            let reasons = [peers.err(), ours.err()]
                .map(|error| error.map(|error| error.to_string()).unwrap_or_default());
            assert!(reasons[0].contains("InvalidSignature"), "{}: {reasons:?}", kind.algorithm);
            assert!(reasons[1].starts_with("invalid: "), "{}: {reasons:?}", kind.algorithm);
        }
    }
    Ok(())
}

/// Messages as they go from sidecar to sidecar, made by the code that makes them there.
pub(crate) fn peer_verifies_messages_of_the_mesh() -> TestResult {
    let desk = Desk::new()?;
    let kind = &KINDS[0];
    let keys = desk.keys(kind)?;
    let key = PrivatePkcs8KeyDer::from_pem_file(&keys.private)?;
    let signer = MeshSigner::new(key.secret_pkcs8_der(), "spiffe://mesh.example/app/edge/cimi#c2lnbmV0")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();

    let headers = mesh_headers();
    let signed = signer.sign_request(&request_view(&headers), &ChannelId([7; 16]), 1, now)?;
    let sent = with(&headers, &signed);
    let request = desk.file("request", &wire("POST /foo?param=Value&Pet=dog HTTP/1.1", &sent))?;
    let required =
        ["@method", "@authority", "@path", "@query", "content-digest", "content-type", "mesh-request-id"];
    desk.peer_verify(kind, &keys, "mesh-req-v1", &[&request], &required)?;

    let response =
        ResponseView { status: 201, headers: &headers, trailers: None, request: Some(request_view(&sent)) };
    let answered = with(&headers, &signer.sign_response(&response, &signed.nonce, now)?);
    let response = desk.file("response", &wire("HTTP/1.1 201 Created", &answered))?;
    let required = ["@status", "content-digest", "\"@method\";req", "\"@path\";req"];
    let covered = desk.peer_verify(kind, &keys, "mesh-rsp-v1", &[&response, &request], &required)?;
    assert!(covered.contains("\"@status\": 201\n"), "{covered}");
    Ok(())
}

fn mesh_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "www.example.com"),
        ("content-type", "application/json"),
        ("content-digest", &sha256_header(BODY.as_bytes())),
        ("content-length", "18"),
        ("mesh-request-id", "018f2a3c-7d4e-7b1a-9c3d-5e6f7a8b9c0d"),
    ] {
        headers.append(
            HeaderName::from_static(name),
            HeaderValue::from_str(value).expect("the list is printable"),
        );
    }
    headers
}

fn request_view(headers: &HeaderMap) -> RequestView<'_> {
    RequestView {
        method: "POST",
        scheme: "http",
        authority: "www.example.com",
        path: "/foo",
        query: Some("param=Value&Pet=dog"),
        target: "/foo?param=Value&Pet=dog",
        headers,
        trailers: None,
    }
}

fn with(headers: &HeaderMap, signed: &SignedHead) -> HeaderMap {
    let mut headers = headers.clone();
    signed.append_to(&mut headers);
    headers
}

fn wire(start: &str, headers: &HeaderMap) -> String {
    let mut text = format!("{start}\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()));
    }
    text + "\r\n" + BODY
}

/// A folder with keys and messages, and both programs.
struct Desk {
    folder: TempDir,
}

struct Keys {
    private: PathBuf,
    public: PathBuf,
}

impl Desk {
    fn new() -> Result<Self, Failure> {
        Ok(Self { folder: tempfile::tempdir()? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, content: &str) -> Result<PathBuf, Failure> {
        let path = self.path(name);
        fs::write(&path, content)?;
        Ok(path)
    }

    fn keys(&self, kind: &Kind) -> Result<Keys, Failure> {
        let private = self.path(&format!("{}.key", kind.algorithm));
        let public = self.path(&format!("{}.pub", kind.algorithm));
        if kind.key.is_empty() {
            run(Command::new("openssl").args(["rand", "-base64", "-out"]).arg(&private).arg("48"), "")?;
            return Ok(Keys { public: private.clone(), private });
        }
        run(
            Command::new("openssl").args(["genpkey", "-algorithm"]).args(kind.key).arg("-out").arg(&private),
            "",
        )?;
        run(
            Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(&private).arg("-out").arg(&public),
            "",
        )?;
        Ok(Keys { private, public })
    }

    fn sign(
        &self,
        kind: &Kind,
        keys: &Keys,
        message: &str,
        request: Option<&Path>,
        components: &[&str],
    ) -> Result<String, Failure> {
        let mut command = signet("sign", kind, &keys.private, request);
        command.args(["--keyid", "real-peers-key", "--tag", TAG]);
        command
            .args(components.iter().flat_map(|component| ["--component".to_owned(), as_argument(component)]));
        run(&mut command, message)
    }

    fn verify(
        &self,
        kind: &Kind,
        keys: &Keys,
        message: &str,
        request: Option<&Path>,
        components: &[&str],
    ) -> Result<String, Failure> {
        let mut command = signet("verify", kind, &keys.public, request);
        command.args(["--tag", TAG]);
        command
            .args(components.iter().flat_map(|component| ["--require".to_owned(), as_argument(component)]));
        run(&mut command, message)
    }

    fn peer_sign(
        &self,
        kind: &Kind,
        keys: &Keys,
        paths: &[&Path],
        components: &[&str],
    ) -> Result<String, Failure> {
        let mut command = peer("sign", kind, &keys.private, paths)?;
        run(command.args(["real-peers-key", TAG]).args(components), "")
    }

    fn peer_verify(
        &self,
        kind: &Kind,
        keys: &Keys,
        tag: &str,
        paths: &[&Path],
        components: &[&str],
    ) -> Result<String, Failure> {
        run(peer("verify", kind, &keys.public, paths)?.arg(tag).args(components), "")
    }
}

/// `signet message …`: this binary is `signet` too, see `runner::main`.
fn signet(verb: &str, kind: &Kind, key: &Path, request: Option<&Path>) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["signet", "message", verb, "--scheme", "http", "--alg", kind.algorithm, "--key"]).arg(key);
    if let Some(request) = request {
        command.arg("--request").arg(request);
    }
    command
}

fn peer(verb: &str, kind: &Kind, key: &Path, paths: &[&Path]) -> Result<Command, Failure> {
    let mut command = Command::new(python()?);
    command.arg(script("signatures.py")).args([verb, kind.algorithm]).arg(key).args(paths).arg("--");
    Ok(command)
}

/// The peer wants structured-field quotes where there are parameters, the command line does without.
fn as_argument(component: &str) -> String {
    component.replace('"', "")
}

fn run(command: &mut Command, input: &str) -> Result<String, Failure> {
    let name = format!("{command:?}");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program may refuse its arguments before it reads.
        let _ = stdin.write_all(input.as_bytes());
    }
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    let stdout = String::from_utf8(stdout)?;
    if status.success() {
        return Ok(stdout);
    }
    Err(format!("{stdout}{}\n{name}: {status}", String::from_utf8_lossy(&stderr)).into())
}
