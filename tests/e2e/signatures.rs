//! Messages and records that were forged, moved, replayed or cut: each is refused for its own reason, and not a byte of
//! them reaches the app.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;
use signet_cli::lab::mesh::intruder::{
    Answer, Caller, Draft, Identity, IntruderError, Signed, inside, keyid, now,
};
use signet_cli::lab::runner::{Test, TestResult};
use signet_identity::{ALPN_RECORDS, Authority, KeyRequest, channel_id, peer, verify_signing_chain};
use signet_signature::profile::VALIDITY_SECONDS;
use signet_signature::record::{
    Direction, Ed25519Signer, Event, Opening, RecordHash, RecordWriter, StreamParams,
};
use signet_signature::{
    Algorithm, ChannelId, Component, MeshSigner, MessageView, Params, ParseError, RequestView, ResponseView,
    Rules, SigningKey, VerifiedKey, parse_signatures, signature_base, verify_response,
};
use signet_tests::manifest::{allow, mesh, policy, workload};
use signet_tests::recorder::{ANSWER, Connection};
use signet_tests::{Ended, LIMIT, Recorder, Site, id, place, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

pub(crate) const TESTS: &[Test] = &[
    (
        "forged_requests_are_refused_before_the_application",
        forged_requests_are_refused_before_the_application,
    ),
    ("answers_are_signed_for_their_own_request", answers_are_signed_for_their_own_request),
    ("forged_records_reset_the_application", forged_records_reset_the_application),
    ("forged_body_is_never_a_complete_request", forged_body_is_never_a_complete_request),
    ("stream_for_another_place_is_refused", stream_for_another_place_is_refused),
];

const HTTP: u16 = 8201;
const BYTES: u16 = 46080;
const HOUR: u64 = 3600;
/// Of clocks, by default.
const SKEW: u64 = 300;
/// What a test may take between two looks at the clock.
const MARGIN: u64 = 30;

fn manifests() -> [String; 5] {
    [
        mesh(&[]),
        workload("server", &["ports: [{port: 8201, protocol: http}, {port: 46080, protocol: opaque}]"]),
        workload("caller", &[]),
        workload("other", &[]),
        policy("caller-may", "server", &[&allow("caller", "")]),
    ]
}

/// What is done to a request, what comes back for the last message sent, and why.
struct Forgery {
    what: &'static str,
    forge: fn(&mut Caller, &World) -> Result<Vec<Signed>, IntruderError>,
    status: u16,
    code: &'static str,
}

/// What a forger has at hand.
struct World {
    order: Draft,
    own: Identity,
    other: Identity,
    /// Of its own making, with the caller's name in it.
    self_made: Identity,
    /// Of another open connection to the same server.
    elsewhere: ChannelId,
}

const REQUIRED: [&str; 6] = ["@method", "@authority", "@path", "@query", "content-type", "content-digest"];

const FORGERIES: &[Forgery] = &[
    Forgery {
        what: "one bit of the body turned",
        status: 400,
        code: "digest-mismatch",
        forge: |c, w| Ok(vec![c.sign(&w.order)?.with_tampered_body()]),
    },
    Forgery {
        what: "another method",
        status: 400,
        code: "bad-signature",
        forge: |c, w| changed(c, w, |signed| signed.start.0 = "PUT".into()),
    },
    Forgery {
        what: "another path",
        status: 400,
        code: "bad-signature",
        forge: |c, w| changed(c, w, |signed| signed.start.1 = "/api/other".into()),
    },
    Forgery {
        what: "a query added",
        status: 400,
        code: "bad-signature",
        forge: |c, w| changed(c, w, |signed| signed.start.1.push_str("?all=1")),
    },
    Forgery {
        what: "another content type",
        status: 400,
        code: "bad-signature",
        forge: |c, w| Ok(vec![c.sign(&w.order)?.with("content-type", "text/html")]),
    },
    Forgery {
        what: "another host",
        status: 400,
        code: "bad-signature",
        forge: |c, w| Ok(vec![c.sign(&w.order)?.with("host", "elsewhere.example")]),
    },
    Forgery {
        what: "another authorization",
        status: 400,
        code: "bad-signature",
        forge: |c, w| {
            let order = w.order.clone().with_header("authorization", "Bearer user");
            Ok(vec![c.sign(&order)?.with("authorization", "Bearer admin")])
        },
    },
    Forgery {
        what: "an authorization added",
        status: 400,
        code: "signature-coverage",
        forge: |c, w| Ok(vec![c.sign(&w.order)?.with("authorization", "Bearer admin")]),
    },
    Forgery {
        what: "a cookie added",
        status: 400,
        code: "signature-coverage",
        forge: |c, w| Ok(vec![c.sign(&w.order)?.with("cookie", "session=admin")]),
    },
    Forgery {
        what: "the digest taken off",
        status: 400,
        code: "signature-coverage",
        forge: |c, w| Ok(vec![c.sign(&w.order)?.without("content-digest")]),
    },
    Forgery {
        what: "nothing covered",
        status: 400,
        code: "signature-coverage",
        forge: |c, w| Ok(vec![sign_own_way(c, w, &[], Ok)?]),
    },
    Forgery {
        what: "the signature taken off",
        status: 400,
        code: "signature-missing",
        forge: |c, w| Ok(vec![c.sign(&w.order)?.without("signature").without("signature-input")]),
    },
    Forgery {
        what: "the signature's parameters taken off",
        status: 400,
        code: "signature-missing",
        forge: |c, w| Ok(vec![c.sign(&w.order)?.without("signature-input")]),
    },
    Forgery {
        what: "two signatures of the mesh",
        status: 400,
        code: "signature-missing",
        forge: |c, w| {
            let mut signed = c.sign(&w.order)?;
            let second = c.sign(&w.order)?;
            for (name, value) in second.headers {
                if name.starts_with("signature") {
                    signed
                        .headers
                        .push((name, String::from_utf8_lossy(&value).replace("mesh=", "two=").into()));
                }
            }
            Ok(vec![signed])
        },
    },
    Forgery {
        what: "the tag of a response",
        status: 400,
        code: "signature-missing",
        forge: |c, w| Ok(vec![sign_own_way(c, w, &REQUIRED, |params| params.with_tag("mesh-rsp-v1"))?]),
    },
    Forgery {
        what: "the right label with a foreign tag",
        status: 400,
        code: "signature-missing",
        forge: |c, w| Ok(vec![sign_own_way(c, w, &REQUIRED, |params| params.with_tag("app-v1"))?]),
    },
    Forgery {
        what: "an algorithm that makes the public key a secret",
        status: 400,
        code: "signature-malformed",
        forge: hmac,
    },
    Forgery {
        what: "a signature field without end",
        status: 400,
        code: "signature-malformed",
        forge: |c, w| Ok(vec![c.sign(&w.order)?.with("signature", &format!("mesh=:{}:", "A".repeat(8192)))]),
    },
    Forgery {
        what: "the same message again",
        status: 400,
        code: "replay",
        forge: |c, w| {
            let signed = c.sign(&w.order)?;
            Ok(vec![signed.clone(), signed])
        },
    },
    Forgery {
        what: "a signature for another connection",
        status: 400,
        code: "replay",
        forge: |c, w| Ok(vec![c.sign_for(&w.order, &w.elsewhere, 1, now())?]),
    },
    Forgery {
        what: "a number of its own choice",
        status: 400,
        code: "bad-signature",
        forge: |c, w| {
            let (before, after) = (c.channel.nonce(1), c.channel.nonce(2));
            let mut signed = c.sign(&w.order)?;
            for (_, value) in signed.headers.iter_mut().filter(|(name, _)| name == "signature-input") {
                *value = String::from_utf8_lossy(value).replace(&before, &after).into();
            }
            Ok(vec![signed])
        },
    },
    Forgery {
        what: "another key under its own name",
        status: 400,
        code: "bad-signature",
        forge: |c, w| {
            c.signer = MeshSigner::new(KeyRequest::new_signing()?.key.secret_der(), keyid(&w.own))?;
            Ok(vec![c.sign(&w.order)?])
        },
    },
    Forgery {
        what: "its own key under the victim's name",
        status: 400,
        code: "signature-unknown-key",
        forge: |c, w| {
            c.signer = MeshSigner::new(w.own.signing.key.secret_der(), keyid(&w.other))?;
            c.chain = w.other.signing.chain.clone();
            Ok(vec![c.sign(&w.order)?])
        },
    },
    Forgery {
        what: "the victim's key and name",
        status: 400,
        code: "signature-unknown-key",
        forge: |c, w| sign_as(c, &w.other, w),
    },
    Forgery {
        what: "a key certified by itself",
        status: 400,
        code: "signature-unknown-key",
        forge: |c, w| sign_as(c, &w.self_made, w),
    },
    Forgery {
        what: "a TLS certificate for a signing key",
        status: 400,
        code: "signature-unknown-key",
        forge: |c, w| {
            let name = format!("{}#{}", w.own.id(), w.own.tls.fingerprint);
            c.signer = MeshSigner::new(w.own.signing.key.secret_der(), name)?;
            c.chain = w.own.tls.chain.clone();
            Ok(vec![c.sign(&w.order)?])
        },
    },
    Forgery {
        what: "made too long ago",
        status: 400,
        code: "signature-expired",
        forge: |c, w| {
            Ok(vec![c.sign_for(&w.order, &c.channel, 1, now() - VALIDITY_SECONDS - SKEW - MARGIN)?])
        },
    },
    Forgery {
        what: "made too far in the future",
        status: 400,
        code: "signature-clock",
        forge: |c, w| Ok(vec![c.sign_for(&w.order, &c.channel, 1, now() + SKEW + MARGIN)?]),
    },
];

fn forged_requests_are_refused_before_the_application() -> TestResult {
    let site = Site::new(&manifests())?;
    let (server, stranger) = (site.container("server")?, site.container("stranger")?);
    let app = Recorder::http(&server, HTTP)?;
    let [sidecar] = site.sidecars([(&server, "server")])?;
    let (own, other) = (site.intruder(&stranger, "caller")?, site.intruder(&stranger, "other")?);
    let address = place(&server, HTTP);

    let (caught, valid) = inside(stranger.namespace(), move || async move {
        let domain = own.bundle.trust_domain().clone();
        let authority = Authority::create(domain, SystemTime::now(), Duration::from_secs(HOUR))?;
        let self_made = Identity::issue(&authority, own.id(), own.bundle.clone())?;
        let elsewhere = Caller::open(&own, address).await?;
        let order = Draft::new("POST", "/api/device", &address.to_string())
            .with_body("application/json", b"forged {}");
        let world = World { order, own, other, self_made, elsewhere: elsewhere.channel };
        let mut caught = Vec::new();
        for forgery in FORGERIES {
            caught.push((forgery, forge(forgery, &world, address).await?));
        }
        for left_out in REQUIRED {
            let mut caller = Caller::open(&world.own, address).await?;
            let covered: Vec<_> = REQUIRED.into_iter().filter(|component| *component != left_out).collect();
            let signed = sign_own_way(&mut caller, &world, &covered, Ok)?;
            let answer = caller.call(&signed).await?;
            assert_eq!(
                answer.code().as_deref(),
                Some("signature-coverage"),
                "without {left_out}: {answer:?}"
            );
        }
        // What is chosen by its tag may have any label.
        let mut caller = Caller::open(&world.own, address).await?;
        let honest = Draft { body: b"honest {}".into(), ..world.order.clone() };
        let mut signed = caller.sign(&honest)?;
        for (_, value) in signed.headers.iter_mut().filter(|(name, _)| name.starts_with("signature")) {
            *value = String::from_utf8_lossy(value).replacen("mesh=", "any=", 1).into();
        }
        let mut answers = vec![caller.call(&signed).await?];
        // Clocks may differ.
        for created in [now() - VALIDITY_SECONDS - SKEW + MARGIN, now() + SKEW - MARGIN] {
            let mut caller = Caller::open(&world.own, address).await?;
            let signed = caller.sign_for(&honest, &caller.channel, 1, created)?;
            answers.push(caller.call(&signed).await?);
        }
        Ok((caught, answers))
    })?;

    let mut wrong = Vec::new();
    for (forgery, answer) in &caught {
        if let Err(found) = is_problem(answer, forgery.status, forgery.code) {
            wrong.push(format!("{}: {found}", forgery.what));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for answer in valid {
        assert_eq!(
            (answer.status, &answer.body[..]),
            (200, ANSWER.as_bytes()),
            "a valid message passes: {answer:?}"
        );
    }

    // Three that are valid, and the one that was replayed was valid the first time.
    let requests = app.requests();
    assert_eq!(requests.len(), 4, "the app has seen {requests:#?}");
    assert_eq!(app.text(), requests.concat(), "and nothing between them");
    let metrics = sidecar.metrics()?;
    for (forgery, _) in &caught {
        assert!(metrics.refusals(forgery.code) > 0, "{} is not counted", forgery.code);
    }
    Ok(())
}

/// What a caller holds is proof of one answer to one request, and of no other.
fn answers_are_signed_for_their_own_request() -> TestResult {
    let site = Site::new(&manifests())?;
    let (server, stranger) = (site.container("server")?, site.container("stranger")?);
    let _app = Recorder::http(&server, HTTP)?;
    let [_sidecar] = site.sidecars([(&server, "server")])?;
    let own = site.intruder(&stranger, "caller")?;
    let (address, bundle) = (place(&server, HTTP), own.bundle.clone());

    let calls = inside(stranger.namespace(), move || async move {
        let mut caller = Caller::open(&own, address).await?;
        let mut calls = Vec::new();
        for path in ["/api/one", "/api/two"] {
            let nonce = caller.channel.nonce(caller.sequence);
            let draft = Draft::new("GET", path, &address.to_string());
            let signed = caller.sign(&draft)?;
            let answer = caller.call(&signed).await?;
            calls.push((draft, fields(&signed.headers), nonce, answer));
        }
        Ok(calls)
    })?;
    let [(one, headers, nonce, answer), (two, other_headers, other_nonce, _)] = &calls[..] else {
        return Err("two calls, two answers".into());
    };

    let chain = introduced(answer).ok_or("the first answer introduces its key")?;
    let signer = verify_signing_chain(&bundle, &chain, SystemTime::now())?;
    let key = VerifiedKey { spiffe_id: signer.id().as_str().into(), public_key: *signer.public_key() };
    let signed = fields(&answer.headers);
    let verify = |request: RequestView<'_>, nonce: &str| {
        let response = ResponseView { status: 200, headers: &signed, trailers: None, request: Some(request) };
        let verified = verify_response(
            &response,
            nonce,
            |_| Some(key.clone()),
            Rules::new(id("server").as_str(), now(), 30),
        );
        verified.map(|head| head.verify_body(&answer.body)).map_err(|error| error.code())
    };
    assert_eq!(verify(view(one, headers), nonce), Ok(Ok(())));
    assert_eq!(
        verify(view(two, other_headers), other_nonce),
        Err("replay"),
        "as the answer to the second request"
    );
    assert_eq!(verify(view(two, headers), nonce), Err("bad-signature"), "as the answer to another path");
    assert_eq!(answer.body, ANSWER.as_bytes());
    Ok(())
}

/// How a stream of two more segments and the end is changed, and what of it may still be delivered.
struct Cut {
    what: &'static str,
    cut: fn(&mut Vec<Vec<u8>>),
    delivered: &'static [u8],
}

// Of each segment the records are DATA and SIG; the last two are FIN and its SIG.
const CUTS: &[Cut] = &[
    Cut { what: "a bit of the data turned", delivered: b"", cut: |records| turn(&mut records[0]) },
    Cut { what: "a bit of the signature turned", delivered: b"", cut: |records| turn(&mut records[1]) },
    Cut { what: "a record left out", delivered: b"", cut: |records| drop(records.remove(0)) },
    Cut { what: "records in another order", delivered: b"", cut: |records| records.swap(0, 2) },
    Cut {
        what: "a segment twice",
        delivered: b"second\n",
        cut: |records| {
            let again = records[..2].to_vec();
            records.splice(2..2, again);
        },
    },
    Cut { what: "a record of an unknown kind", delivered: b"", cut: |records| records[0][0] = 0x7f },
    Cut { what: "a record that is longer than it says", delivered: b"", cut: |records| records[0].push(0) },
    Cut {
        what: "ended within a record",
        delivered: b"",
        cut: |records| {
            records.truncate(1);
            records[0].truncate(6);
        },
    },
    Cut { what: "ended without FIN", delivered: b"second\nthird\n", cut: |records| records.truncate(4) },
    Cut {
        what: "ended without the signature of FIN",
        delivered: b"second\nthird\n",
        cut: |records| records.truncate(5),
    },
];

fn forged_records_reset_the_application() -> TestResult {
    let site = Site::new(&manifests())?;
    let (server, stranger) = (site.container("server")?, site.container("stranger")?);
    let app = Recorder::silent(&server, BYTES)?;
    let [_sidecar] = site.sidecars([(&server, "server")])?;
    let own = site.intruder(&stranger, "caller")?;
    let address = place(&server, BYTES);
    let honest = Cut { what: "nothing", delivered: b"second\nthird\n", cut: |_| {} };

    for (number, cut) in CUTS.iter().chain([&honest]).enumerate() {
        let (own, seen) = (own.clone(), app.clone());
        let work = cut.cut;
        inside(stranger.namespace(), move || async move {
            let (mut stream, mut writer) = open_stream(&own, &own, address, |_| {}).await?;
            let mut first = BytesMut::new();
            writer.data(b"first\n", now() * 1000, &mut first)?;
            writer.sign(now() * 1000, &mut first);
            stream.write_all(&first).await?;
            let arrived = |all: &[Connection]| all.get(number).is_some_and(|one| one.bytes == b"first\n");
            seen.wait_for("the first segment", arrived)
                .map_err(|error| IntruderError::Message(error.to_string()))?;

            let mut rest = BytesMut::new();
            for payload in [&b"second\n"[..], b"third\n"] {
                writer.data(payload, now() * 1000, &mut rest)?;
                writer.sign(now() * 1000, &mut rest);
            }
            writer.fin(now() * 1000, &mut rest)?;
            let mut records = split(&rest);
            work(&mut records);
            // The other side may hang up on the first wrong byte.
            let _ = stream.write_all(&records.concat()).await;
            // Closed as TLS closes: the record layer itself has to notice what is missing.
            let _ = stream.shutdown().await;
            Ok(())
        })?;
        let over = |all: &[Connection]| all.get(number).is_some_and(|one| one.ended != Ended::Open);
        let connection = app.wait_for(cut.what, over)?.swap_remove(number);
        let expected = if number == CUTS.len() { Ended::Clean } else { Ended::Reset };
        assert_eq!(connection.ended, expected, "{}", cut.what);
        assert_eq!(connection.bytes, [b"first\n", cut.delivered].concat(), "{}", cut.what);
    }
    Ok(())
}

fn forged_body_is_never_a_complete_request() -> TestResult {
    let site = Site::new(&manifests())?;
    let (server, stranger) = (site.container("server")?, site.container("stranger")?);
    let app = Recorder::http(&server, HTTP)?;
    let [_sidecar] = site.sidecars([(&server, "server")])?;
    let own = site.intruder(&stranger, "caller")?;
    let (address, mut wrong) = (place(&server, HTTP), Vec::new());

    for cut in CUTS {
        let (own, seen, before) = (own.clone(), app.clone(), app.text().len());
        let work = cut.cut;
        let answer = inside(stranger.namespace(), move || async move {
            let mut caller = Caller::open(&own, address).await?;
            let mut body = open_body(&mut caller, &own, address).await?;
            let mut first = BytesMut::new();
            body.data(b"first\n", now() * 1000, &mut first)?;
            body.sign(now() * 1000, &mut first);
            caller.send(&chunk(&first)).await?;
            let arrived =
                || seen.text().get(before..).is_some_and(|text| text.contains("first\n")).then_some(());
            wait_for("the first segment", arrived).map_err(malformed)?;

            let mut rest = BytesMut::new();
            for payload in [&b"second\n"[..], b"third\n"] {
                body.data(payload, now() * 1000, &mut rest)?;
                body.sign(now() * 1000, &mut rest);
            }
            body.fin(now() * 1000, &mut rest)?;
            let mut records = split(&rest);
            work(&mut records);
            // For HTTP the body is complete: what is missing, the records tell.
            let end = [chunk(&records.concat()), b"0\r\n\r\n".to_vec()].concat();
            match caller.send(&end).await {
                Ok(()) => Ok(caller.answer().await.ok().map(|answer| (answer.status, answer.code()))),
                Err(_) => Ok(None),
            }
        })?;
        if !matches!(answer, None | Some((400, Some(_)))) {
            wrong.push(format!("{}: {answer:?}", cut.what));
        }
        let over = |all: &[Connection]| all.iter().all(|one| one.ended != Ended::Open);
        app.wait_for(cut.what, over)?;
        assert!(app.requests().is_empty(), "{}: {:?}", cut.what, app.requests());
        let delivered = app.text().split_off(before);
        let is_verified = |payload: &str| String::from_utf8_lossy(cut.delivered).contains(payload);
        for payload in ["second\n", "third\n"] {
            assert!(is_verified(payload) || !delivered.contains(payload), "{}: {delivered:?}", cut.what);
        }
    }
    assert!(wrong.is_empty(), "not told that it is their message:\n{}", wrong.join("\n"));
    Ok(())
}

/// Sends the head of a request whose body travels in records.
async fn open_body(
    caller: &mut Caller,
    own: &Identity,
    address: SocketAddr,
) -> Result<RecordWriter, IntruderError> {
    let order = Draft::new("POST", "/api/upload", &address.to_string());
    let whole =
        caller.sign(&order)?.without("signature").without("signature-input").without("content-digest");
    let whole = whole.with("content-type", "text/plain").with("content-encoding", "mesh-rec");
    let mut headers = fields(&whole.headers);
    let signed =
        caller.signer.sign_request(&view(&order, &headers), &caller.channel, caller.sequence, now())?;
    signed.append_to(&mut headers);
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut message = whole.with("transfer-encoding", "chunked");
    for name in ["signature", "signature-input"] {
        message = message.with(name, &headers.get(name).map(text).unwrap_or_default());
    }
    caller.send(&message.to_bytes()).await?;
    let key = Ed25519Signer::from_pkcs8(own.signing.key.secret_der())?;
    Ok(RecordWriter::body(Arc::new(key), Direction::ClientToServer, &signed.base))
}

pub(crate) fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn stream_for_another_place_is_refused() -> TestResult {
    let site = Site::new(&manifests())?;
    let (server, stranger) = (site.container("server")?, site.container("stranger")?);
    let app = Recorder::silent(&server, BYTES)?;
    let [_sidecar] = site.sidecars([(&server, "server")])?;
    let (own, other) = (site.intruder(&stranger, "caller")?, site.intruder(&stranger, "other")?);
    let address = place(&server, BYTES);

    inside(stranger.namespace(), move || async move {
        type Change = fn(&mut StreamParams);
        let changes: [(&str, Change, &Identity); 5] = [
            ("another workload", |params| params.destination = id("other").to_string(), &own),
            ("another port", |params| params.port = HTTP, &own),
            ("another connection", |params| params.channel = [7; 16], &own),
            ("another server certificate", |params| params.peer_tls = [7; 32], &own),
            ("another signer", |_| {}, &other),
        ];
        for (what, change, signer) in changes {
            let opened = open_stream(&own, signer, address, change).await;
            let mut stream = match opened {
                Err(error) => {
                    assert!(error.is_cut() || matches!(error, IntruderError::Refused(_)), "{what}: {error}");
                    continue;
                }
                Ok((stream, _)) => stream,
            };
            let mut rest = Vec::new();
            // Whether it ends with an alert or a reset: it must end.
            let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await;
            assert!(read.is_ok(), "{what}: the stream stays open");
        }
        Ok(())
    })?;
    assert!(
        app.text().is_empty() && app.connections().is_empty(),
        "the app has seen {:?}",
        app.connections()
    );
    Ok(())
}

/// Opens a record stream with a HELLO that was changed, signed by `signer`.
async fn open_stream(
    own: &Identity,
    signer: &Identity,
    address: SocketAddr,
    change: impl FnOnce(&mut StreamParams),
) -> Result<(TlsStream<TcpStream>, RecordWriter), IntruderError> {
    let mut stream = own.connect(address, ALPN_RECORDS).await?;
    let state = stream.get_ref().1;
    let mut params = StreamParams {
        auto: false,
        hash: RecordHash::Sha256,
        unsigned: false,
        own_tls: own.tls.fingerprint.0,
        peer_tls: peer(state)?.fingerprint().0,
        channel: channel_id(state)?,
        stream: [1; 16],
        unix_ms: now() * 1000,
        destination: id("server").to_string(),
        port: BYTES,
    };
    let honest = Opening::new(Direction::ClientToServer, params.clone(), &signer.signing.chain)?;
    change(&mut params);
    let opening = Opening::new(Direction::ClientToServer, params, &signer.signing.chain)?;
    stream.write_all(&opening.records()).await?;
    let (mut reader, mut input) = (honest.reader(), BytesMut::new());
    loop {
        match reader.decode(&mut input)? {
            Some(Event::Hello(hello)) => {
                let key = Ed25519Signer::from_pkcs8(signer.signing.key.secret_der())?;
                return Ok((stream, opening.writer(Arc::new(key), &hello)));
            }
            Some(Event::Alert(code)) => return Err(IntruderError::Refused(code.as_str().into())),
            Some(event) => return Err(IntruderError::Answer(format!("{event:?}"))),
            None => {}
        }
        if stream.read_buf(&mut input).await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
    }
}

fn turn(record: &mut [u8]) {
    if let Some(last) = record.last_mut() {
        *last ^= 1;
    }
}

/// Records one by one; each begins with its kind and three bytes of length.
fn split(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while let [_, a, b, c, ..] = *bytes {
        let (record, rest) = bytes.split_at(4 + u32::from_be_bytes([0, a, b, c]) as usize);
        records.push(record.to_vec());
        bytes = rest;
    }
    records
}

async fn forge(forgery: &Forgery, world: &World, address: SocketAddr) -> Result<Answer, IntruderError> {
    let mut caller = Caller::open(&world.own, address).await?;
    let mut answer = None;
    for message in (forgery.forge)(&mut caller, world)? {
        answer = Some(caller.call(&message).await?);
    }
    answer.ok_or_else(|| IntruderError::Message("a forgery sends something".into()))
}

fn changed(
    c: &mut Caller,
    w: &World,
    change: impl FnOnce(&mut Signed),
) -> Result<Vec<Signed>, IntruderError> {
    let mut signed = c.sign(&w.order)?;
    change(&mut signed);
    Ok(vec![signed])
}

fn sign_as(c: &mut Caller, whom: &Identity, w: &World) -> Result<Vec<Signed>, IntruderError> {
    c.signer = MeshSigner::new(whom.signing.key.secret_der(), keyid(whom))?;
    c.chain = whom.signing.chain.clone();
    Ok(vec![c.sign(&w.order)?])
}

/// The public key is no secret: an HMAC with it proves nothing.
fn hmac(c: &mut Caller, w: &World) -> Result<Vec<Signed>, IntruderError> {
    let signed = sign_own_way(c, w, &REQUIRED, |params| Ok(params.with_alg(Algorithm::HmacSha256)))?;
    let headers = fields(&signed.headers);
    let view = MessageView::Request(view(&w.order, &headers));
    let [received] = &parse_signatures(&headers).map_err(malformed)?[..] else {
        return Err(malformed("signatures"));
    };
    let mac = SigningKey::from_hmac_secret(c.signer.public_key())?
        .sign(received.base(&view).map_err(malformed)?.as_bytes())?;
    Ok(vec![signed.with("signature", &format!("mesh=:{}:", BASE64_STANDARD.encode(mac)))])
}

/// Signs properly, but these components and with these parameters.
fn sign_own_way(
    c: &mut Caller,
    w: &World,
    components: &[&str],
    change: impl FnOnce(Params) -> Result<Params, ParseError>,
) -> Result<Signed, IntruderError> {
    let nonce = c.channel.nonce(c.sequence);
    let signed = c.sign(&w.order)?.without("signature").without("signature-input");
    let params =
        Params::new().with_created(now()).with_expires(now() + 60).with_nonce(&nonce).map_err(malformed)?;
    let params = params.with_alg(Algorithm::Ed25519).with_keyid(c.signer.keyid()).map_err(malformed)?;
    let params = change(params.with_tag("mesh-req-v1").map_err(malformed)?).map_err(malformed)?;
    let components: Result<Vec<_>, _> =
        components.iter().map(|name| Component::new(*name, Vec::new()).map_err(malformed)).collect();
    let headers = fields(&signed.headers);
    let base = signature_base(&MessageView::Request(view(&w.order, &headers)), &components?, &params);
    let base = base.map_err(malformed)?;
    // The last line of the base is what the field says of the signature.
    let input = base.rsplit("\"@signature-params\": ").next().unwrap_or_default();
    let signature = BASE64_STANDARD.encode(c.signer.sign(base.as_bytes())?);
    Ok(signed
        .with("signature-input", &format!("mesh={input}"))
        .with("signature", &format!("mesh=:{signature}:")))
}

pub(crate) fn view<'a>(order: &'a Draft, headers: &'a HeaderMap) -> RequestView<'a> {
    RequestView {
        method: &order.method,
        scheme: "http",
        authority: &order.authority,
        path: &order.target,
        query: None,
        target: &order.target,
        headers,
        trailers: None,
    }
}

pub(crate) fn fields(headers: &[(String, impl AsRef<[u8]>)]) -> HeaderMap {
    let field = |name: &str, value: &[u8]| {
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(value).ok()?))
    };
    headers.iter().filter_map(|(name, value)| field(name, value.as_ref())).collect()
}

/// The signing chain in an answer.
pub(crate) fn introduced(answer: &Answer) -> Option<Vec<CertificateDer<'static>>> {
    let (_, value) = answer.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("mesh-cert"))?;
    let item = |item: &str| Some(BASE64_STANDARD.decode(item.trim().trim_matches(':')).ok()?.into());
    value.split(',').map(item).collect()
}

/// An answer as RFC 9457 and this mesh want it, or what is wrong with it.
pub(crate) fn is_problem(answer: &Answer, status: u16, code: &str) -> Result<(), String> {
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = |name: &str| problem[name].as_str().unwrap_or_default();
    let is_problem = answer.headers.iter().any(|(name, value)| {
        name.eq_ignore_ascii_case("content-type") && value.starts_with("application/problem+json")
    });
    let whole = is_problem && !text("detail").is_empty() && !text("request_id").is_empty();
    let right = answer.status == status && text("code") == code;
    if whole && right {
        Ok(())
    } else {
        Err(format!("expected {status} {code}, found {} {problem}", answer.status))
    }
}

pub(crate) fn malformed(error: impl std::fmt::Display) -> IntruderError {
    IntruderError::Message(error.to_string())
}
