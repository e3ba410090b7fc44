//! Two workloads with the Ed25519 test key of RFC 9421 B.1.4, and the messages they exchange.

mod batches;
mod bodies;
mod coverage;
mod examples;
mod hostile;
mod labels;
mod macs;
mod origin;
mod refusals;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    ChannelId, Form, MeshSigner, Rules, SignatureError, VerifiedHead, VerifiedKey, verify_request,
    verify_response,
};
use crate::digest::sha256_header;
use crate::message::{RequestView, ResponseView};
use crate::replay::ReplayWindow;

const NOW: u64 = 1_790_000_000;
const SKEW: u64 = 30;
const GATEWAY: &str = "spiffe://edge.example/ns/iot/sa/gw";
const STORE: &str = "spiffe://edge.example/ns/iot/sa/store";
const FINGERPRINT: &str = "uFZbQsHgZ2a7APiVmdRU_2dc_or3muLvLX1bB_oa00s";
const BODY: &[u8] = b"{\"hello\": \"world\"}";
const PKCS8: &str = "MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF";

/// The first half of the SHA-256 of the text `exporter`.
const CHANNEL: ChannelId = ChannelId([
    0x29, 0xb2, 0x20, 0xd4, 0x9c, 0xd6, 0xa1, 0xed, 0x83, 0x96, 0x17, 0x2f, 0x46, 0xfc, 0xe4, 0x21,
]);

fn signer(id: &str) -> MeshSigner {
    MeshSigner::new(&STANDARD.decode(PKCS8).unwrap(), format!("{id}#{FINGERPRINT}")).unwrap()
}

/// Knows the two workloads and no one else.
fn resolve(keyid: &str) -> Option<VerifiedKey> {
    let (id, fingerprint) = keyid.split_once('#')?;
    let known = [GATEWAY, STORE].contains(&id) && fingerprint == FINGERPRINT;
    known.then(|| VerifiedKey { spiffe_id: id.into(), public_key: *signer(id).public_key() })
}

fn fields(list: &[(&str, &str)]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in list {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        fields.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    fields
}

fn request<'a>(method: &'a str, path: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
    RequestView {
        method,
        scheme: "http",
        authority: "store.iot.svc",
        path,
        query: None,
        target: path,
        headers,
        trailers: None,
    }
}

/// A request as its receiver sees it, to be tampered with.
#[derive(Clone)]
struct Request {
    method: &'static str,
    scheme: &'static str,
    authority: &'static str,
    path: &'static str,
    query: Option<&'static str>,
    headers: HeaderMap,
}

impl Request {
    fn new(list: &[(&str, &str)]) -> Self {
        let mut headers =
            fields(&[("content-type", "application/json"), ("content-digest", &sha256_header(BODY))]);
        headers.extend(fields(list));
        Self {
            method: "POST",
            scheme: "http",
            authority: "store.iot.svc",
            path: "/v1/items",
            query: Some("dev=42"),
            headers,
        }
    }

    fn view(&self) -> RequestView<'_> {
        RequestView {
            method: self.method,
            scheme: self.scheme,
            authority: self.authority,
            path: self.path,
            query: self.query,
            target: self.path,
            headers: &self.headers,
            trailers: None,
        }
    }

    fn signed(mut self, seq: u64) -> Self {
        signer(GATEWAY).sign_request(&self.view(), &CHANNEL, seq, NOW).unwrap().append_to(&mut self.headers);
        self
    }

    fn verify(&self) -> Result<VerifiedHead, SignatureError> {
        self.verify_at(NOW)
    }

    fn verify_at(&self, now: u64) -> Result<VerifiedHead, SignatureError> {
        verify_request(
            &self.view(),
            &CHANNEL,
            &mut ReplayWindow::new(),
            resolve,
            Rules::new(GATEWAY, now, SKEW),
        )
    }

    /// The refusal of this message after `change`; unchanged it must be accepted.
    fn refusal(&self, change: impl FnOnce(&mut Self)) -> SignatureError {
        self.verify().unwrap();
        let mut changed = self.clone();
        change(&mut changed);
        changed.verify().unwrap_err()
    }

    /// Replaces text in a field.
    fn edit(&mut self, name: &'static str, from: &str, to: &str) {
        let value = self.headers[name].to_str().unwrap();
        assert!(value.contains(from), "{from} is not in {value}");
        let value = HeaderValue::try_from(value.replacen(from, to, 1)).unwrap();
        self.headers.insert(name, value);
    }
}

/// A signed request: without further fields.
fn signed_request() -> Request {
    Request::new(&[]).signed(1)
}

/// A response to a request.
#[derive(Clone)]
struct Response {
    status: u16,
    headers: HeaderMap,
}

impl Response {
    fn new(list: &[(&str, &str)]) -> Self {
        Self { status: 200, headers: Request::new(list).headers }
    }

    fn view<'a>(&'a self, request: &'a Request) -> ResponseView<'a> {
        ResponseView {
            status: self.status,
            headers: &self.headers,
            trailers: None,
            request: Some(request.view()),
        }
    }

    fn signed(mut self, request: &Request, seq: u64) -> Self {
        let nonce = CHANNEL.nonce(seq);
        let signed = signer(STORE).sign_response(&self.view(request), &nonce, NOW).unwrap();
        signed.append_to(&mut self.headers);
        self
    }

    fn verify(&self, request: &Request, seq: u64) -> Result<VerifiedHead, SignatureError> {
        verify_response(&self.view(request), &CHANNEL.nonce(seq), resolve, Rules::new(STORE, NOW, SKEW))
    }
}

fn uncovered(name: &str) -> SignatureError {
    SignatureError::Coverage(name.to_owned())
}
