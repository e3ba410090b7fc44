//! Messages and records that were forged, moved, replayed or cut: each is refused for its own reason, and not a byte of
//! them reaches the app.

use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use signet_cli::lab::mesh::intruder::{
    Answer, Caller, Draft, Identity, IntruderError, Signed, Stream, inside, keyid, now,
};
use signet_cli::lab::runner::{Test, TestResult};
use signet_identity::{Authority, KeyRequest, TrustDomain};
use signet_signature::{
    Algorithm, ChannelId, Component, MeshSigner, MessageView, Params, RequestView, SigningKey, VerifiedKey,
    signature_base, verify_response,
};
use signet_tests::manifest::{allow, mesh, policy, workload};
use signet_tests::recorder::ANSWER;
use signet_tests::{Ended, Failure, Recorder, Site, id, place};

pub(crate) const TESTS: &[Test] = &[
    ("forged_requests_are_refused_before_the_application", forged_requests_are_refused_before_the_application),
    ("answers_are_signed_for_their_own_request", answers_are_signed_for_their_own_request),
    ("forged_records_reset_the_application", forged_records_reset_the_application),
    ("hello_for_another_destination_is_refused", hello_for_another_destination_is_refused),
];

const HTTP: u16 = 8201;
const BYTES: u16 = 46080;
const HOUR: u64 = 3600;

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
    Forgery { what: "one bit of the body turned", status: 400, code: "digest-mismatch", forge: |c, w| {
        Ok(vec![c.sign(&w.order)?.with_tampered_body()])
    } },
    Forgery { what: "another method", status: 400, code: "bad-signature", forge: |c, w| {
        changed(c, w, |signed| signed.start.0 = "PUT".into())
    } },
    Forgery { what: "another path", status: 400, code: "bad-signature", forge: |c, w| {
        changed(c, w, |signed| signed.start.1 = "/api/other".into())
    } },
    Forgery { what: "a query added", status: 400, code: "bad-signature", forge: |c, w| {
        changed(c, w, |signed| signed.start.1.push_str("?all=1"))
    } },
    Forgery { what: "another content type", status: 400, code: "bad-signature", forge: |c, w| {
        Ok(vec![c.sign(&w.order)?.with("content-type", "text/html")])
    } },
    Forgery { what: "another host", status: 400, code: "bad-signature", forge: |c, w| {
        Ok(vec![c.sign(&w.order)?.with("host", "elsewhere.example")])
    } },
    Forgery { what: "another authorization", status: 400, code: "bad-signature", forge: |c, w| {
        let order = w.order.clone().with_header("authorization", "Bearer user");
        Ok(vec![c.sign(&order)?.with("authorization", "Bearer admin")])
    } },
    Forgery { what: "an authorization added", status: 400, code: "signature-coverage", forge: |c, w| {
        Ok(vec![c.sign(&w.order)?.with("authorization", "Bearer admin")])
    } },
    Forgery { what: "a cookie added", status: 400, code: "signature-coverage", forge: |c, w| {
        Ok(vec![c.sign(&w.order)?.with("cookie", "session=admin")])
    } },
    Forgery { what: "the digest taken off", status: 400, code: "signature-coverage", forge: |c, w| {
        Ok(vec![c.sign(&w.order)?.without("content-digest")])
    } },
    Forgery { what: "nothing covered", status: 400, code: "signature-coverage", forge: |c, w| {
        Ok(vec![sign_own_way(c, w, &[], |params| Ok(params))?])
    } },
    Forgery { what: "the signature taken off", status: 400, code: "signature-missing", forge: |c, w| {
        Ok(vec![c.sign(&w.order)?.without("signature").without("signature-input")])
    } },
    Forgery { what: "the signature's parameters taken off", status: 400, code: "signature-missing", forge: |c, w| {
        Ok(vec![c.sign(&w.order)?.without("signature-input")])
    } },
    Forgery { what: "two signatures of the mesh", status: 400, code: "signature-missing", forge: |c, w| {
        let mut signed = c.sign(&w.order)?;
        let second = c.sign(&w.order)?;
        for (name, value) in second.headers {
            if name.starts_with("signature") {
                signed.headers.push((name, String::from_utf8_lossy(&value).replace("mesh=", "two=").into()));
            }
        }
        Ok(vec![signed])
    } },
    Forgery { what: "the tag of a response", status: 400, code: "signature-missing", forge: |c, w| {
        Ok(vec![sign_own_way(c, w, &REQUIRED, |params| params.with_tag("mesh-rsp-v1"))?])
    } },
    Forgery { what: "the right label with a foreign tag", status: 400, code: "signature-missing", forge: |c, w| {
        Ok(vec![sign_own_way(c, w, &REQUIRED, |params| params.with_tag("app-v1"))?])
    } },
    Forgery { what: "an algorithm that makes the public key a secret", status: 400, code: "signature-malformed", forge: hmac },
    Forgery { what: "a signature field without end", status: 400, code: "signature-malformed", forge: |c, w| {
        Ok(vec![c.sign(&w.order)?.with("signature", &format!("mesh=:{}:", "A".repeat(8192)))])
    } },
    Forgery { what: "the same message again", status: 400, code: "replay", forge: |c, w| {
        let signed = c.sign(&w.order)?;
        Ok(vec![signed.clone(), signed])
    } },
    Forgery { what: "a signature for another connection", status: 400, code: "replay", forge: |c, w| {
        Ok(vec![c.sign_for(&w.order, &w.elsewhere, 1, now())?])
    } },
    Forgery { what: "a number of its own choice", status: 400, code: "bad-signature", forge: |c, w| {
        let (before, after) = (c.channel.nonce(1), c.channel.nonce(2));
        let mut signed = c.sign(&w.order)?;
        for (_, value) in signed.headers.iter_mut().filter(|(name, _)| name == "signature-input") {
            *value = String::from_utf8_lossy(value).replace(&before, &after).into();
        }
        Ok(vec![signed])
    } },
    Forgery { what: "another key under its own name", status: 400, code: "bad-signature", forge: |c, w| {
        c.signer = MeshSigner::new(KeyRequest::new_signing()?.key.secret_der(), keyid(&w.own))?;
        Ok(vec![c.sign(&w.order)?])
    } },
    Forgery { what: "its own key under the victim's name", status: 400, code: "signature-unknown-key", forge: |c, w| {
        c.signer = MeshSigner::new(w.own.signing.key.secret_der(), keyid(&w.other))?;
        c.chain = w.other.signing.chain.clone();
        Ok(vec![c.sign(&w.order)?])
    } },
    Forgery { what: "the victim's key and name", status: 400, code: "signature-unknown-key", forge: |c, w| {
        sign_as(c, &w.other, w)
    } },
    Forgery { what: "a key certified by itself", status: 400, code: "signature-unknown-key", forge: |c, w| {
        sign_as(c, &w.self_made, w)
    } },
    Forgery { what: "a TLS certificate for a signing key", status: 400, code: "signature-unknown-key", forge: |c, w| {
        let name = format!("{}#{}", w.own.id(), w.own.tls.fingerprint);
        c.signer = MeshSigner::new(w.own.signing.key.secret_der(), name)?;
        c.chain = w.own.tls.chain.clone();
        Ok(vec![c.sign(&w.order)?])
    } },
    Forgery { what: "made two hours ago", status: 400, code: "signature-expired", forge: |c, w| {
        Ok(vec![c.sign_for(&w.order, &c.channel, 1, now() - 2 * HOUR)?])
    } },
    Forgery { what: "made in two hours", status: 400, code: "signature-clock", forge: |c, w| {
        Ok(vec![c.sign_for(&w.order, &c.channel, 1, now() + 2 * HOUR)?])
    } },
];

fn forged_requests_are_refused_before_the_application() -> TestResult {
    let site = Site::new(&manifests())?;
    let (server, stranger) = (site.container("server")?, site.container("stranger")?);
    let app = Recorder::http(&server, HTTP)?;
    let [sidecar] = site.sidecars([(&server, "server")])?;
    let (own, other) = (site.intruder(&stranger, "caller")?, site.intruder(&stranger, "other")?);
    let address = place(&server, HTTP);

    let (caught, valid) = inside(stranger.namespace(), move || async move {
        let authority = Authority::create(own.tls.id.trust_domain().parse::<TrustDomain>().expect("a domain"), SystemTime::now(), Duration::from_secs(HOUR))?;
        let self_made = Identity::issue(&authority, own.id(), own.bundle.clone())?;
        let elsewhere = Caller::open(&own, address).await?;
        let order = Draft::new("POST", "/api/device", &address.to_string()).with_body("application/json", b"forged {}");
        let world = World { order, own, other, self_made, elsewhere: elsewhere.channel };
        let mut caught = Vec::new();
        for forgery in FORGERIES {
            caught.push((forgery, forge(forgery, &world, address).await?));
        }
        for left_out in REQUIRED {
            let mut caller = Caller::open(&world.own, address).await?;
            let covered: Vec<_> = REQUIRED.into_iter().filter(|component| *component != left_out).collect();
            let signed = sign_own_way(&mut caller, &world, &covered, |params| Ok(params))?;
            let answer = caller.call(&signed).await?;
            assert_eq!(answer.code().as_deref(), Some("signature-coverage"), "without {left_out}: {answer:?}");
        }
        // What is chosen by its tag may have any label.
        let mut caller = Caller::open(&world.own, address).await?;
        let honest = Draft { body: b"honest {}".into(), ..world.order.clone() };
        let mut signed = caller.sign(&honest)?;
        for (_, value) in signed.headers.iter_mut().filter(|(name, _)| name.starts_with("signature")) {
            *value = String::from_utf8_lossy(value).replacen("mesh=", "any=", 1).into();
        }
        Ok((caught, caller.call(&signed).await?))
    })?;

    let mut wrong = Vec::new();
    for (forgery, answer) in &caught {
        if let Err(found) = is_problem(answer, forgery.status, forgery.code) {
            wrong.push(format!("{}: {found}", forgery.what));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!((valid.status, &valid.body[..]), (200, ANSWER.as_bytes()), "a valid message passes: {valid:?}");

    // The replayed message was honest the first time.
    let requests = app.requests();
    assert_eq!(requests.len(), 2, "the app has seen {requests:#?}");
    assert_eq!(app.connections().iter().map(|connection| connection.bytes.len()).sum::<usize>(), requests.iter().map(String::len).sum());
    let metrics = sidecar.metrics()?;
    for (forgery, _) in &caught {
        assert!(metrics.refusals(forgery.code) > 0, "{} is not counted", forgery.code);
    }
    Ok(())
}

/// An answer is for one request on one connection, and a verifier that was given another request notices.
fn answers_are_signed_for_their_own_request() -> TestResult {
    let site = Site::new(&manifests())?;
    let (server, stranger) = (site.container("server")?, site.container("stranger")?);
    let _app = Recorder::http(&server, HTTP)?;
    let [_sidecar] = site.sidecars([(&server, "server")])?;
    let own = site.intruder(&stranger, "caller")?;
    let address = place(&server, HTTP);

    let calls = inside(stranger.namespace(), move || async move {
        let mut caller = Caller::open(&own, address).await?;
        let mut calls = Vec::new();
        for path in ["/api/one", "/api/two"] {
            let signed = caller.sign(&Draft::new("GET", path, &address.to_string()))?;
            let answer = caller.call(&signed).await?;
            calls.push((path, signed, answer, caller.channel.nonce(caller.sequence - 1)));
        }
        assert_eq!(caller.peer, id("server"));
        Ok((calls, own.bundle))
    })?;
    let (calls, bundle) = calls;
    let [(_, first, answer, nonce), (_, second, ..)] = &calls[..] else { return Err("two calls".into()) };

    let chain = mesh_cert(answer).ok_or("the first answer introduces its key")?;
    let signer = signet_identity::verify_signing_chain(&bundle, &chain, SystemTime::now())?;
    assert_eq!(signer.id(), &id("server"));
    let key = VerifiedKey { spiffe_id: signer.id().as_str().into(), public_key: *signer.public_key() };
    let verify = |request: &Signed, nonce: &str| {
        let (request, answer) = (fields(&request.headers), fields(&answer.headers));
        let uri = if nonce == calls[0].3 { "/api/one" } else { "/api/two" };
        let (method, uri) = (Method::GET, uri.parse::<Uri>().expect("a path"));
        let authority = address.to_string();
        let view = RequestView::new(&method, &uri, "http", &authority, &request);
        let view = signet_signature::ResponseView { status: 200, headers: &answer, trailers: None, request: Some(view) };
        verify_response(&view, nonce, |_| Some(key.clone()), id("server").as_str(), now(), 30).map(|_| ())
    };
    verify(first, nonce)?;
    let refused = verify(second, &calls[1].3).expect_err("an answer to another request");
    assert_eq!(refused.code(), "replay");
    Ok(())
}

fn forged_records_reset_the_application() -> TestResult {
    let site = Site::new(&manifests())?;
    let (server, stranger) = (site.container("server")?, site.container("stranger")?);
    let app = Recorder::silent(&server, BYTES)?;
    let [sidecar] = site.sidecars([(&server, "server")])?;
    let own = site.intruder(&stranger, "caller")?;
    let address = place(&server, BYTES);

    type Cut = fn(&mut Vec<Vec<u8>>);
    // Two segments, each one DATA and one SIG, and FIN with its SIG.
    let forgeries: [(&str, Cut); 9] = [
        ("a bit of the data turned", |records| turn(&mut records[0], 4)),
        ("a bit of the signature turned", |records| turn(&mut records[1], 60)),
        ("a record left out", |records| drop(records.remove(0))),
        ("records in another order", |records| records.swap(0, 2)),
        ("a segment twice", |records| records.splice(2..2, records[0..2].to_vec()).for_each(drop)),
        ("the end without its signature", |records| drop(records.pop())),
        ("no end at all", |records| records.truncate(4)),
        ("cut within a record", |records| {
            records.truncate(1);
            let half = records[0].len() / 2;
            records[0].truncate(half);
        }),
        ("a record of an unknown kind", |records| records[0][0] = 0x7f),
    ];
    for (number, (what, forge)) in forgeries.into_iter().enumerate() {
        let own = own.clone();
        let noted = inside(stranger.namespace(), {
            move || async move {
                let mut stream = Stream::open(&own, address, (&id("server"), BYTES), false).await?;
                stream.send(b"honest\n").await?;
                Ok((stream, own))
            }
        })?;
        let _ = (noted, number, what, forge);
    }
    let _ = (app, sidecar);
    Ok(())
}

fn hello_for_another_destination_is_refused() -> TestResult {
    Ok(())
}
