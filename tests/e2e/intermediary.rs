//! What an intermediary brings, written by a hand that signs and seals as a caller's sidecar would, without asking policy
//! first as that does, and adds what an intermediary may.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use signet_cli::lab::Container;
use signet_cli::lab::mesh::Sidecar;
use signet_cli::lab::mesh::intruder::{Answer, Identity, keyid, now};
use signet_cli::lab::runner::{Test, TestResult};
use signet_signature::seal::{Place, Recipient, SealedSecret};
use signet_signature::{ChannelId, MeshSigner, MessageView, RequestView, sha256_header};
use signet_tests::manifest::{allow, mesh, policy, workload};
use signet_tests::{Failure, Plain, Recorder, Site, id, place, sealing_key};

pub(crate) const TESTS: &[Test] = &[(
    "rule_about_a_sealed_field_is_met_by_what_was_sealed_alone",
    rule_about_a_sealed_field_is_met_by_what_was_sealed_alone,
)];

const HTTP: u16 = 8201;

/// A private workload whose rule is about a field that is sealed, and an intermediary in front of it.
struct Stage {
    server: Container,
    edge: Container,
    sidecar: Sidecar,
    /// The caller that the rule permits.
    caller: Identity,
    key: [u8; 32],
    sent: u64,
    _site: Site,
}

impl Stage {
    fn new() -> Result<Self, Failure> {
        let site = Site::new(&[mesh(&[])])?;
        let (server, edge) = (site.container("server")?, site.container("edge")?);
        let route = format!("{{to: server, port: {HTTP}, path: /app, replacePrefix: /, host: 'server'}}");
        let intermediaries = format!(
            "intermediaries: [{{name: edge, addresses: [{}], ports: [80], routes: [{route}]}}]",
            edge.ipv4()
        );
        let ports = format!("ports: [{{port: {HTTP}, protocol: http}}]");
        let private = "protection: {level: private, sealedHeaders: [x-tenant]}";
        let rule = allow("client", "{headers: [{name: x-tenant, exact: blue}]}");
        site.mesh.apply(
            "stage.yaml",
            &[
                mesh(&[&intermediaries]),
                workload("server", &[&ports, private]),
                workload("client", &[]),
                policy("tenant", "server", &[&rule]),
            ]
            .concat(),
        )?;
        let caller = site.intruder(&edge, "client")?;
        let [sidecar] = site.sidecars([(&server, "server")])?;
        let key = sealing_key(&sidecar)?;
        Ok(Self { server, edge, sidecar, caller, key, sent: 0, _site: site })
    }

    /// Sends a request that has these fields sealed, with others `added` in clear by the intermediary.
    fn ask(&mut self, sealed: &[(&str, &str)], added: &[(&str, &str)]) -> Result<Answer, Failure> {
        self.sent += 1;
        let nonce = ChannelId([7; 16]).nonce(self.sent);
        let (target, server) = (Uri::from_static("/app/x"), id("server"));
        let view = |headers| RequestView::new(&Method::GET, &target, "http", "edge", headers);
        let field = |bytes: &[u8]| HeaderValue::try_from(format!(":{}:", BASE64_STANDARD.encode(bytes)));

        let recipient = Recipient { spiffe_id: server.as_str(), key: &self.key };
        let secret = SealedSecret::new(&keyid(&self.caller), &[recipient])?;
        let nothing = HeaderMap::new();
        let keys = secret.secret.exchange(&Place::of(&view(&nothing), &nonce)?).request;
        let mut headers = HeaderMap::new();
        headers.insert("mesh-target", HeaderValue::from_static("http://edge/app/x"));
        headers.insert("mesh-audience", HeaderValue::from_str(server.as_str())?);
        headers.insert("mesh-seal", field(&secret.envelope)?);
        headers.insert("mesh-commit", field(&keys.commitment)?);
        headers.insert("content-digest", HeaderValue::try_from(sha256_header(b""))?);
        let mut fields = HeaderMap::new();
        for (name, value) in sealed {
            fields.append(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
        }
        if !fields.is_empty() {
            headers.insert("mesh-sealed-fields", field(&keys.seal_fields(&fields)?)?);
        }
        let signer = MeshSigner::new(self.caller.signing.key.secret_der(), keyid(&self.caller))?;
        let signed = signer.sign_origin(&MessageView::Request(view(&headers)), &nonce, now())?;
        signed.append_to(&mut headers);
        let chain = self.caller.signing.chain.iter().map(|der| format!(":{}:", BASE64_STANDARD.encode(der)));
        headers.insert("mesh-cert", HeaderValue::try_from(chain.collect::<Vec<_>>().join(", "))?);

        let mut request = "GET /x HTTP/1.1\r\nHost: server\r\n".to_owned();
        for (name, value) in &headers {
            request += &format!("{name}: {}\r\n", value.to_str()?);
        }
        for (name, value) in added {
            request += &format!("{name}: {value}\r\n");
        }
        Plain::ask(&self.edge, place(&self.server, HTTP), &(request + "\r\n"))
    }
}

fn rule_about_a_sealed_field_is_met_by_what_was_sealed_alone() -> TestResult {
    let mut stage = Stage::new()?;
    let app = Recorder::http(&stage.server, HTTP)?;
    let (blue, red) = (("x-tenant", "blue"), ("x-tenant", "red"));
    let answer = stage.ask(&[blue], &[("x-forwarded-for", "172.18.0.9")])?;
    assert_eq!((answer.status, answer.code()), (200, None), "{answer:?}");
    let seen = app.text();
    assert!(seen.starts_with("GET /x HTTP/1.1\r\n") && seen.contains("\r\nX-Tenant: blue\r\n"), "{seen}");
    assert!(!seen.contains("mesh-"), "{seen}");

    let in_clear = [("X-Tenant", "blue")];
    let alike = [("X_Tenant", "blue")];
    for (sealed, added, status, code) in [
        // What was sealed says something else, or nothing. It can be seen once the request is verified, so the refusal is
        // signed for the caller.
        (&[red][..], &[][..], 403, "access-denied"),
        (&[], &[], 403, "access-denied"),
        (&[red, blue], &[], 403, "access-denied"),
        // What the intermediary adds is no help, and no harm but that the request is refused.
        (&[red], &in_clear, 400, "seal-missing"),
        (&[], &in_clear, 400, "seal-missing"),
        (&[blue], &in_clear, 400, "seal-missing"),
        (&[red], &alike, 403, "access-denied"),
        (&[], &alike, 403, "access-denied"),
    ] {
        let answer = stage.ask(sealed, added)?;
        let told = (answer.status, answer.code());
        assert_eq!(told, (status, Some(code.to_owned())), "sealed {sealed:?}, added {added:?}");
        let is_signed = answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("signature"));
        assert_eq!(is_signed, status == 403, "sealed {sealed:?}, added {added:?}: {answer:?}");
    }
    assert_eq!(app.requests().len(), 1, "{}", app.text());
    let metrics = stage.sidecar.metrics()?;
    assert_eq!((metrics.refusals("access-denied"), metrics.refusals("seal-missing")), (5, 3));
    Ok(())
}
