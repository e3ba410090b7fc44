//! What the pure parts of the hot path work on: for the criterion benches, and for counting instructions.

use std::fmt::Write as _;
use std::hint::black_box;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use signet_identity::SpiffeId;
use signet_policy::{Facts, Layer, Origin, PolicyIndex, compile, decide, parse_manifests};
use signet_signature::{
    ChannelId, MeshSigner, ReplayWindow, RequestView, ResponseView, Rules, SignedHead, VerifiedKey,
    sha256_header, verify_request,
};

/// The Ed25519 test key of RFC 9421 B.1.4: time must not depend on the key, but a figure should be repeatable.
const PKCS8: &str = "MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF";
const FINGERPRINT: &str = "uFZbQsHgZ2a7APiVmdRU_2dc_or3muLvLX1bB_oa00s";
/// Who calls.
pub const CALLER: &str = "spiffe://mesh.example/agent/edge/lifecycle";
/// Who is called.
pub const CALLEE: &str = "spiffe://mesh.example/agent/edge/cimi";
/// The channel between them.
pub const CHANNEL: ChannelId = ChannelId([0x5a; 16]);
/// When it happens, Unix seconds.
pub const NOW: u64 = 1_790_000_000;
/// How far clocks may differ, seconds.
pub const SKEW: u64 = 30;
/// A CIMI call of ordinary size: 1 KiB each way.
pub const BODY: [u8; 1024] = [b'x'; 1024];

/// The test key, PKCS #8.
///
/// # Panics
/// Never: the constant is base64.
pub fn pkcs8() -> Vec<u8> {
    STANDARD.decode(PKCS8).expect("the constant is base64")
}

/// Signs as this identity.
///
/// # Panics
/// Never: the constant is a key.
pub fn signer(id: &str) -> MeshSigner {
    MeshSigner::new(&pkcs8(), format!("{id}#{FINGERPRINT}")).expect("the constant is a key")
}

/// The key of this identity.
pub fn key_of(id: &str) -> VerifiedKey {
    VerifiedKey { spiffe_id: id.into(), public_key: *signer(id).public_key() }
}

/// The fields of a message before it is signed.
///
/// # Panics
/// Never: the list is printable.
pub fn message_headers() -> HeaderMap {
    let digest = sha256_header(&BODY);
    let field = |(name, value): (&'static str, &str)| {
        (HeaderName::from_static(name), HeaderValue::from_str(value).expect("the list is printable"))
    };
    [
        ("accept", "*/*"),
        ("authorization", "Bearer 0123456789abcdef0123456789abcdef"),
        ("content-digest", digest.as_str()),
        ("content-length", "1024"),
        ("content-type", "application/json"),
        ("mesh-request-id", "018f2a3c-7d4e-7b1a-9c3d-5e6f7a8b9c0d"),
        ("user-agent", "python-requests/2.32"),
    ]
    .map(field)
    .into_iter()
    .collect()
}

/// A request with these fields.
pub fn request(headers: &HeaderMap) -> RequestView<'_> {
    RequestView {
        method: "POST",
        scheme: "http",
        authority: "cimi.edge:8201",
        path: "/api/service-instance",
        query: Some("$filter=status"),
        target: "/api/service-instance?$filter=status",
        headers,
        trailers: None,
    }
}

/// The response to it.
pub fn response<'a>(headers: &'a HeaderMap, request: &RequestView<'a>) -> ResponseView<'a> {
    ResponseView { status: 201, headers, trailers: None, request: Some(*request) }
}

/// Fields with a signature.
pub fn with(mut headers: HeaderMap, signed: &SignedHead) -> HeaderMap {
    signed.append_to(&mut headers);
    headers
}

/// A mesh: workload `s0`, `s1` … each listen on port 80; policy `pN` is for workload `N % workloads` and lets caller
/// `cN` do GET on `/pN/**`.
#[derive(Clone, Copy, Debug)]
pub struct Mesh {
    /// How many policies.
    pub policies: usize,
    /// How many workloads.
    pub workloads: usize,
}

impl Mesh {
    /// Its manifests.
    pub fn text(&self) -> String {
        let mut text = envelope("Mesh", "bench");
        text += "  trustDomain: mesh.example\n  networks: [{name: lan}]\n";
        for workload in 0..self.workloads {
            text += &envelope("Workload", &format!("s{workload}"));
            text += "  class: app\n  device: edge\n  network: lan\n  ports: [{port: 80}]\n";
        }
        for policy in 0..self.policies {
            text += &envelope("AccessPolicy", &format!("p{policy}"));
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "  target: {{workloads: [s{}]}}
  ports: [80]
  rules:
  - from: [{{identity: 'spiffe://mesh.example/app/edge/c{policy}'}}]
    to: [{{methods: [GET], paths: [/p{policy}/**]}}]",
                policy % self.workloads
            );
        }
        text
    }

    /// What decisions are made by.
    ///
    /// # Panics
    /// Never: the text is a mesh.
    pub fn index(&self) -> PolicyIndex {
        let manifests = parse_manifests("bench.yaml", &self.text()).expect("parses");
        PolicyIndex::new(&compile(&manifests).expect("compiles"))
    }
}

/// What every manifest begins with, up to the fields of its `spec`.
pub fn envelope(kind: &str, name: &str) -> String {
    format!(
        "---\napiVersion: signet.mf2c-project.eu/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n"
    )
}

/// The identity of a workload or caller of that mesh.
///
/// # Panics
/// Never, with a name such as `s0`.
pub fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://mesh.example/app/edge/{name}")).expect("well formed")
}

/// What can be repeated under an instruction counter.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// One decision among a thousand policies.
    Decide,
    /// One request signed.
    Sign,
    /// One request verified, the digest of its body included.
    Verify,
}

impl Operation {
    /// All of them, in the order of the hot path.
    pub const ALL: [Self; 3] = [Self::Sign, Self::Verify, Self::Decide];

    /// What it is, for a table.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Decide => "decide, 1,000 policies for 100 workloads",
            Self::Sign => "sign a request",
            Self::Verify => "verify a request with a body of 1 KiB",
        }
    }

    /// Does it again and again.
    ///
    /// # Panics
    /// When the operation does not succeed: the figure would be of something else.
    pub fn repeat(self, count: u32) {
        match self {
            Self::Decide => decisions(count),
            Self::Sign => {
                let (caller, plain) = (signer(CALLER), message_headers());
                for _ in 0..count {
                    let signed = caller.sign_request(black_box(&request(&plain)), &CHANNEL, 1, NOW);
                    black_box(signed.expect("signs"));
                }
            }
            Self::Verify => verifications(count),
        }
    }
}

fn verifications(count: u32) {
    let plain = message_headers();
    let signed = signer(CALLER).sign_request(&request(&plain), &CHANNEL, 1, NOW).expect("signs");
    let (sent, key) = (with(plain, &signed), key_of(CALLER));
    for _ in 0..count {
        let (mut window, resolve) = (ReplayWindow::new(), |_: &str| Some(key.clone()));
        let view = request(black_box(&sent));
        let head = verify_request(&view, &CHANNEL, &mut window, resolve, Rules::new(CALLER, NOW, SKEW))
            .expect("verifies");
        head.verify_body(&BODY).expect("the digest is right");
    }
}

fn decisions(count: u32) {
    let index = Mesh { policies: 1_000, workloads: 100 }.index();
    let (caller, destination) = (id("c999"), id("s99"));
    let facts = Facts {
        source: Some(&caller),
        origin: Origin::LeftToDestination,
        destination: &destination,
        port: 80,
        layer: Layer::Http { method: "GET", path: "/p999/devices/42", authority: "10.0.0.1", headers: None },
        now: NOW,
    };
    for _ in 0..count {
        assert!(decide(&index, black_box(&facts)).is_ok(), "the caller is allowed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_succeeds() {
        Operation::ALL.into_iter().for_each(|operation| operation.repeat(2));
    }
}
