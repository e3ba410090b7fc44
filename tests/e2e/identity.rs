//! Who is believed: callers and destinations with every kind of wrong certificate, and how one gets a right one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use signet_cli::lab::mesh::intruder::{Caller, Draft, Identity, IntruderError, inside, now};
use signet_cli::lab::mesh::program;
use signet_cli::lab::runner::{Test, TestResult};
use signet_identity::{
    ALPN_CONTROL, ALPN_H1, ALPN_H2, Authority, KeyRequest, SpiffeId, TlsSvid, client_config, crypto_provider,
    dial_name, pinned_client_config, server_config,
};
use signet_signature::{ChannelId, MeshSigner, RequestView, ResponseView, sha256_header};
use signet_sync::proto::sync::EnrolRequest;
use signet_sync::proto::sync::enrolment_client::EnrolmentClient;
use signet_sync::{PROTOCOL, Token};
use signet_tests::claimant::channel;
use signet_tests::impostor::Answering;
use signet_tests::manifest::{TRUST_DOMAIN, allow, mesh, policy, workload};
use signet_tests::plain::get;
use signet_tests::{Claimant, Failure, Impostor, LIMIT, Plain, Recorder, Site, id, place};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Code;

use crate::protocols::heads::over_http2;

pub(crate) const TESTS: &[Test] = &[
    ("callers_with_wrong_certificates_are_not_heard", callers_with_wrong_certificates_are_not_heard),
    ("answers_of_an_impostor_are_not_believed", answers_of_an_impostor_are_not_believed),
    ("join_token_lets_one_instance_in", join_token_lets_one_instance_in),
    ("sidecar_without_a_good_token_says_so", sidecar_without_a_good_token_says_so),
];

const HTTP: u16 = 8201;
const HOUR: Duration = Duration::from_secs(3600);

fn site(ports: &str) -> Result<Site, Failure> {
    let manifests = [
        mesh(&[]),
        workload("server", &[ports]),
        workload("client", &[]),
        workload("caller", &[]),
        workload("other", &[]),
        policy("open", "server", &[&allow("client", ""), &allow("caller", "")]),
    ];
    Site::new(&manifests)
}

fn callers_with_wrong_certificates_are_not_heard() -> TestResult {
    let site = site("ports: [{port: 8201, protocol: http}]")?;
    let (server, stranger) = (site.container("server")?, site.container("stranger")?);
    let app = Recorder::http(&server, HTTP)?;
    let [sidecar] = site.sidecars([(&server, "server")])?;
    let (own, authority) = (site.intruder(&stranger, "caller")?, site.authority()?);
    let address = place(&server, HTTP);
    let now = SystemTime::now();

    let elsewhere = Authority::create("elsewhere.example".parse()?, now, HOUR)?;
    let namesake = Authority::create(TRUST_DOMAIN.parse()?, now, HOUR)?;
    let foreign = SpiffeId::parse("spiffe://elsewhere.example/app/host/caller")?;
    let platform = Authority::create("platform.example".parse()?, now, HOUR)?;
    let controller = SpiffeId::parse("spiffe://platform.example/platform/host/controller")?;
    let tls = |svid: &TlsSvid| client_config(svid, &own.bundle, &[ALPN_H1]);
    let wrong: Vec<(&str, ClientConfig)> = vec![
        ("of another trust domain", tls(&Identity::issue(&elsewhere, &foreign, own.bundle.clone())?.tls)?),
        (
            "of the platform's trust domain",
            tls(&Identity::issue(&platform, &controller, own.bundle.clone())?.tls)?,
        ),
        (
            "of another authority with our name",
            tls(&Identity::issue(&namesake, &id("caller"), own.bundle.clone())?.tls)?,
        ),
        ("that has ended", tls(&issue(&authority, now - 2 * HOUR, now - HOUR)?)?),
        ("that has not begun", tls(&issue(&authority, now + HOUR, now + 2 * HOUR)?)?),
        ("for signing messages", with_signing_certificate(&own)?),
        ("none", anonymous(&own)?),
    ];
    for (what, config) in wrong {
        let before = sidecar.metrics()?.refusals("peer-unverified");
        let answer = inside(stranger.namespace(), move || async move { Ok(attempt(config, address).await) })?;
        assert!(answer.is_empty(), "{what}: {}", String::from_utf8_lossy(&answer));
        sidecar.wait_for("count the refusal", LIMIT, |sidecar| {
            sidecar.metrics().is_ok_and(|metrics| metrics.refusals("peer-unverified") > before)
        })?;
    }
    assert!(app.connections().is_empty(), "the app has seen {:?}", app.requests());

    let answer = inside(stranger.namespace(), move || async move {
        let mut caller = Caller::open(&own, address).await?;
        let signed = caller.sign(&Draft::new("GET", "/api", "server"))?;
        caller.call(&signed).await
    })?;
    assert_eq!(answer.status, 200, "the right certificate: {answer:?}");
    Ok(())
}

fn issue(authority: &Authority, not_before: SystemTime, not_after: SystemTime) -> Result<TlsSvid, Failure> {
    let request = KeyRequest::new_tls()?;
    Ok(TlsSvid::new(authority.issue_tls(&request.csr, &id("caller"), not_before, not_after)?, request.key)?)
}

fn with_signing_certificate(own: &Identity) -> Result<ClientConfig, Failure> {
    let key = crypto_provider().key_provider.load_private_key(own.signing.key.clone_key())?;
    let mut config = client_config(&own.tls, &own.bundle, &[ALPN_H1])?;
    let certified = CertifiedKey::new(own.signing.chain.clone(), key);
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
    Ok(config)
}

fn anonymous(own: &Identity) -> Result<ClientConfig, Failure> {
    struct Nobody;
    impl std::fmt::Debug for Nobody {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Nobody")
        }
    }
    impl rustls::client::ResolvesClientCert for Nobody {
        fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            None
        }
        fn has_certs(&self) -> bool {
            false
        }
    }
    let mut config = client_config(&own.tls, &own.bundle, &[ALPN_H1])?;
    config.client_auth_cert_resolver = Arc::new(Nobody);
    Ok(config)
}

/// What is answered to a request over this TLS; a connection that breaks answers nothing.
pub(crate) async fn attempt(config: ClientConfig, address: SocketAddr) -> Vec<u8> {
    let mut answer = Vec::new();
    let talk = async {
        let tcp = TcpStream::connect(address).await?;
        let mut stream = TlsConnector::from(Arc::new(config)).connect(dial_name(), tcp).await?;
        stream.write_all(get("/api", "server").as_bytes()).await?;
        stream.read_to_end(&mut answer).await
    };
    // Only what was read counts.
    let _ = tokio::time::timeout(LIMIT, talk).await;
    answer
}

/// How an impostor answers at a port, and what the client is told.
struct Imposture {
    what: &'static str,
    certificate: fn(&Cast) -> Result<Identity, Failure>,
    answering: fn(&Cast) -> Answering,
    expected: (u16, Option<&'static str>),
}

/// Who is who.
struct Cast {
    server: Identity,
    other: Identity,
    authority: Authority,
}

const IMPOSTURES: &[Imposture] = &[
    Imposture {
        what: "nothing wrong",
        certificate: |cast| Ok(cast.server.clone()),
        answering: |cast| signing(&cast.server, |_| {}),
        expected: (200, None),
    },
    Imposture {
        what: "another workload",
        certificate: |cast| Ok(cast.other.clone()),
        answering: |cast| signing(&cast.other, |_| {}),
        expected: (502, Some("peer-identity-mismatch")),
    },
    Imposture {
        what: "another trust domain",
        certificate: |cast| {
            let authority = Authority::create("elsewhere.example".parse()?, SystemTime::now(), HOUR)?;
            let id = SpiffeId::parse("spiffe://elsewhere.example/app/host/server")?;
            Ok(Identity::issue(&authority, &id, cast.server.bundle.clone())?)
        },
        answering: |cast| signing(&cast.server, |_| {}),
        expected: (502, Some("peer-unverified")),
    },
    Imposture {
        what: "a certificate that has ended",
        certificate: |cast| {
            let (now, request) = (SystemTime::now(), KeyRequest::new_tls()?);
            let chain = cast.authority.issue_tls(&request.csr, &id("server"), now - 2 * HOUR, now - HOUR)?;
            Ok(Identity { tls: TlsSvid::new(chain, request.key)?, ..cast.server.clone() })
        },
        answering: |cast| signing(&cast.server, |_| {}),
        expected: (502, Some("peer-unverified")),
    },
    Imposture {
        what: "no signature",
        certificate: |cast| Ok(cast.server.clone()),
        answering: |_| Arc::new(|_, _| b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nunsigned".to_vec()),
        expected: (502, Some("response-unverified")),
    },
    Imposture {
        what: "another body",
        certificate: |cast| Ok(cast.server.clone()),
        answering: |cast| {
            signing(&cast.server, |answer| {
                if let Some(last) = answer.last_mut() {
                    *last ^= 1;
                }
            })
        },
        expected: (502, Some("response-unverified")),
    },
    Imposture {
        what: "another status",
        certificate: |cast| Ok(cast.server.clone()),
        answering: |cast| signing(&cast.server, |answer| answer[9..12].copy_from_slice(b"204")),
        expected: (502, Some("response-unverified")),
    },
    Imposture {
        what: "another workload's signature",
        certificate: |cast| Ok(cast.server.clone()),
        answering: |cast| signing(&cast.other, |_| {}),
        expected: (502, Some("response-unverified")),
    },
    Imposture {
        what: "a head that is larger than a sidecar makes it",
        certificate: |cast| Ok(cast.server.clone()),
        answering: |cast| signing(&cast.server, |answer| lengthen(answer, 100 * 1024)),
        expected: (502, Some("response-unverified")),
    },
    Imposture {
        what: "a head that is larger than what is read",
        certificate: |cast| Ok(cast.server.clone()),
        answering: |cast| signing(&cast.server, |answer| lengthen(answer, 200 * 1024)),
        expected: (502, Some("response-unverified")),
    },
];

/// Adds a long field, which no signature covers.
fn lengthen(answer: &mut Vec<u8>, length: usize) {
    let line_end = answer.windows(2).position(|window| window == b"\r\n").unwrap_or_default();
    let field = format!("\r\nX-Long: {}", "v".repeat(length));
    answer.splice(line_end..line_end, field.into_bytes());
}

fn answers_of_an_impostor_are_not_believed() -> TestResult {
    // One port for each, one that answers twice the same, one where nobody speaks TLS, and two for HTTP/2.
    let first: u16 = 8300;
    let (twice, clear, long, endless) = (8400, 8401, 8402, 8403);
    let ports: Vec<u16> = (first..).take(IMPOSTURES.len()).chain([twice, clear, long, endless]).collect();
    let declared: Vec<String> =
        ports.iter().map(|port| format!("{{port: {port}, protocol: http}}")).collect();
    let site = site(&format!("ports: [{}]", declared.join(", ")))?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let [sidecar] = site.sidecars([(&client, "client")])?;
    let cast = Cast {
        server: site.intruder(&server, "server")?,
        other: site.intruder(&server, "other")?,
        authority: site.authority()?,
    };
    let places: Vec<SocketAddr> = ports.iter().map(|port| place(&server, *port)).collect();
    let claims = Claimant::start(&server, &cast.server, site.mesh.address(), &places)?;
    for place in &places {
        assert_eq!(claims.verdict(*place)?, Ok(()));
        sidecar.wait_until_known(*place)?;
    }

    let serve = |port: u16, identity: &Identity, answering: Answering| {
        let config = server_config(&identity.tls, &identity.bundle, &[ALPN_H1])?;
        Impostor::start(&server, port, config, answering)
    };
    let mut wrong = Vec::new();
    for (imposture, port) in IMPOSTURES.iter().zip(first..) {
        let impostor = serve(port, &(imposture.certificate)(&cast)?, (imposture.answering)(&cast))?;
        let answer = Plain::ask(&client, place(&server, port), &get("/api", "server"))?;
        let found = (answer.status, answer.code());
        if (found.0, found.1.as_deref()) != imposture.expected {
            wrong.push(format!("{}: {found:?}, not {:?}", imposture.what, imposture.expected));
        }
        let is_heard = !matches!(imposture.expected.1, Some("peer-identity-mismatch" | "peer-unverified"));
        assert_eq!(
            impostor.requests().len(),
            usize::from(is_heard),
            "{}: {:?}",
            imposture.what,
            impostor.requests()
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // The answer to the first request again for the second.
    let kept = Arc::new(Mutex::new(None));
    let honest = signing(&cast.server, |_| {});
    let _repeating = serve(
        twice,
        &cast.server,
        Arc::new(move |head, channel| {
            let mut kept = kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            kept.get_or_insert_with(|| honest(head, channel)).clone()
        }),
    )?;
    let mut plain = Plain::dial(&client, place(&server, twice))?;
    let mut statuses = Vec::new();
    for _ in 0..2 {
        plain.send(get("/api", "server").as_bytes())?;
        let answer = plain.answer()?;
        statuses.push((answer.status, answer.code()));
    }
    assert_eq!(statuses, [(200, None), (502, Some("response-unverified".to_owned()))]);

    // In HTTP/2 a head that cannot be read and a connection that breaks off look alike.
    for (port, length, expected) in [
        (long, 100 * 1024, (502, "response-unverified")),
        (endless, 200 * 1024, (503, "upstream-unreachable")),
    ] {
        let config = server_config(&cast.server.tls, &cast.server.bundle, &[ALPN_H2])?;
        Impostor::long_winded(&server, port, config, length)?;
        let to = place(&server, port);
        let (status, code) =
            inside(
                client.namespace(),
                move || async move { over_http2(TcpStream::connect(to).await?, 1).await },
            )?;
        assert_eq!((status.as_u16(), code.as_deref()), (expected.0, Some(expected.1)), "{length} bytes");
    }

    let in_clear = Recorder::http(&server, clear)?;
    let answer = Plain::ask(&client, place(&server, clear), &get("/api", "server"))?;
    // It waits for the end of a request head, and so never answers the ClientHello.
    assert_eq!((answer.status, answer.code().as_deref()), (504, Some("upstream-timeout")), "plaintext");
    assert!(!in_clear.text().contains("GET"), "sent in clear: {}", in_clear.text());
    Ok(())
}

/// Answers every request with a properly signed 200, which is then spoiled.
pub(crate) fn signing(identity: &Identity, spoil: fn(&mut Vec<u8>)) -> Answering {
    let identity = identity.clone();
    Arc::new(move |head, channel| {
        let mut answer =
            signed_answer(&identity, head, channel).unwrap_or_else(|| panic!("cannot answer {head}"));
        spoil(&mut answer);
        answer
    })
}

fn signed_answer(identity: &Identity, head: &str, channel: &ChannelId) -> Option<Vec<u8>> {
    let mut lines = head.trim_end().split("\r\n");
    let mut start = lines.next()?.split(' ');
    let (method, target) = (start.next()?, start.next()?);
    let field = |line: &str| -> Option<(HeaderName, HeaderValue)> {
        let (name, value) = line.split_once(':')?;
        Some((name.parse().ok()?, value.trim().parse().ok()?))
    };
    let asked: HeaderMap = lines.filter_map(field).collect();
    let input = asked.get("signature-input")?.to_str().ok()?;
    let nonce = input.split("nonce=\"").nth(1)?.split('"').next()?;
    assert!(nonce.starts_with(&channel.to_string()), "{nonce} is not of this channel");
    let request = RequestView {
        method,
        scheme: "http",
        authority: asked.get("host")?.to_str().ok()?,
        path: target,
        query: None,
        target,
        headers: &asked,
        trailers: None,
    };
    let body = b"answered";
    let mut fields = HeaderMap::new();
    fields.append("content-type", HeaderValue::from_static("text/plain"));
    fields.append("content-digest", sha256_header(body).parse().ok()?);
    let signer = MeshSigner::new(identity.signing.key.secret_der(), identity.signing.keyid()).ok()?;
    let view = ResponseView { status: 200, headers: &fields, trailers: None, request: Some(request) };
    signer.sign_response(&view, nonce, now()).ok()?.append_to(&mut fields);
    fields.append("mesh-cert", introduction(&identity.signing.chain).parse().ok()?);
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", body.len()).into_bytes();
    for (name, value) in &fields {
        answer.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    answer.extend_from_slice(b"\r\n");
    answer.extend_from_slice(body);
    Some(answer)
}

fn introduction(chain: &[CertificateDer<'_>]) -> String {
    let items: Vec<String> = chain.iter().map(|der| format!(":{}:", BASE64_STANDARD.encode(der))).collect();
    items.join(", ")
}

fn join_token_lets_one_instance_in() -> TestResult {
    let site = site("ports: [{port: 8201, protocol: http}]")?;
    let stranger = site.container("stranger")?;
    let socket = format!("unix:{}", site.mesh.socket().display());
    let create =
        site.host.namespace().start(program(&["token", "create", "caller", "--control-plane", &socket]))?;
    assert!(create.wait(LIMIT)?.success(), "{}", create.output());
    let text = create.output().trim().to_owned();
    let token = Token::parse(&text)?;
    let control_plane = site.mesh.address();

    inside(stranger.namespace(), move || async move {
        // The secret goes to nobody but the one the token names.
        let other_pin = pinned_client_config([7; 32], None, &[ALPN_CONTROL])?;
        assert!(channel(other_pin, control_plane).await.is_err(), "a server of another pin is believed");

        let wrong = enrol(&token, [7; 32], control_plane).await?;
        assert_eq!(wrong.err().map(|status| status.code()), Some(Code::PermissionDenied), "a wrong secret");

        let thieves: Vec<_> = (0..10)
            .map(|_| {
                let token = Token::new(token.id().to_owned(), *token.secret(), token.pin());
                tokio::spawn(async move {
                    let token = token.map_err(|error| IntruderError::Message(error.to_string()))?;
                    enrol(&token, *token.secret(), control_plane).await
                })
            })
            .collect();
        let mut accepted = 0;
        for thief in thieves {
            match thief.await.map_err(|error| IntruderError::Message(error.to_string()))?? {
                Ok(identity) => {
                    assert_eq!(identity, id("caller").to_string());
                    accepted += 1;
                }
                Err(status) => {
                    let codes = [Code::PermissionDenied, Code::ResourceExhausted];
                    assert!(codes.contains(&status.code()), "{status:?}");
                    let secret = BASE64_STANDARD.encode(token.secret());
                    assert!(!status.message().contains(&secret[..16]), "the secret is told: {status:?}");
                }
            }
        }
        assert_eq!(accepted, 1, "of ten at the same time");
        let late = enrol(&token, *token.secret(), control_plane).await?;
        assert_eq!(
            late.err().map(|status| status.code()),
            Some(Code::PermissionDenied),
            "a token that was used"
        );
        Ok(())
    })?;
    Ok(())
}

/// Enrols by hand; the identity that was given.
pub(crate) async fn enrol(
    token: &Token,
    secret: [u8; 32],
    control_plane: SocketAddr,
) -> Result<Result<String, tonic::Status>, IntruderError> {
    let config = pinned_client_config(token.pin(), None, &[ALPN_CONTROL])?;
    let channel =
        channel(config, control_plane).await.map_err(|error| IntruderError::Message(format!("{error:?}")))?;
    let request = EnrolRequest {
        protocol: PROTOCOL,
        min_protocol: PROTOCOL,
        token_id: token.id().to_owned(),
        secret: secret.to_vec(),
        tls_csr: KeyRequest::new_tls()?.csr,
        signing_csr: KeyRequest::new_signing()?.csr,
        version: "by hand".to_owned(),
        ..EnrolRequest::default()
    };
    let answer = EnrolmentClient::new(channel).enrol(request).await;
    Ok(answer.map(|answer| answer.into_inner().spiffe_id))
}

fn sidecar_without_a_good_token_says_so() -> TestResult {
    let site = site("ports: [{port: 8201, protocol: http}]")?;
    let container = site.container("server")?;
    let control_plane = site.mesh.address().to_string();
    let start = |token: &str, number: u8| {
        let socket = site.mesh.folder().join(format!("sidecar-{number}.sock"));
        let arguments =
            ["proxy", "run", "--control-plane", &control_plane, "--admin-socket", &socket.to_string_lossy()];
        container.namespace().start(program(&arguments).env("SIGNET_TOKEN", token))
    };
    let good = Token::parse(&site.mesh.token("server")?)?;
    let malformed = ["garbage", "a.b.c", &good.reveal().replace('.', " "), &good.reveal()[..40]];
    for (token, number) in malformed.into_iter().zip(0..) {
        let sidecar = start(token, number)?;
        assert_eq!(sidecar.wait(LIMIT)?.code(), Some(64), "{}", sidecar.output());
        let output = sidecar.output();
        assert!(output.contains("token"), "{output}");
        assert!(!output.contains(token) || token == "garbage", "the token is in the log: {output}");
    }

    // One that the control plane does not know, and one for another control plane, may be right tomorrow.
    let unknown = Token::new(good.id().to_owned(), [7; 32], good.pin())?.reveal();
    let sidecar = start(&unknown, 10)?;
    sidecar.wait_for_line("token-refused", LIMIT)?;
    drop(sidecar);
    let elsewhere = Token::new(good.id().to_owned(), *good.secret(), [7; 32])?.reveal();
    let sidecar = start(&elsewhere, 11)?;
    let line = sidecar.wait_for_line("enrolment", LIMIT)?;
    assert!(line.contains("pin") && !line.contains("OtherError"), "not for people: {line}");
    assert!(sidecar.status().is_none(), "{}", sidecar.output());
    Ok(())
}
