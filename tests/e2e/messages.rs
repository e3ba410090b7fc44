//! Messages that outlive the hop, by the sidecar's local endpoint and by aclib's line protocol.

use serde_json::{Value, json};
use signet_cli::lab::mesh::{Setup, Sidecar};
use signet_cli::lab::runner::{Test, TestResult};
use signet_identity::Fingerprint;
use signet_tests::local::{LocalSocket, line};
use signet_tests::manifest::{mesh, workload};
use signet_tests::{Failure, Site, id, wait_for};

pub(crate) const TESTS: &[Test] = &[
    (
        "message_is_taken_once_by_whom_it_is_for_until_its_sender_is_revoked",
        message_is_taken_once_by_whom_it_is_for_until_its_sender_is_revoked,
    ),
    ("another_user_cannot_use_the_local_socket", another_user_cannot_use_the_local_socket),
    ("requests_that_mean_nothing_are_refused_by_name", requests_that_mean_nothing_are_refused_by_name),
    (
        "aclib_requests_are_answered_and_its_weaknesses_are_gone",
        aclib_requests_are_answered_and_its_weaknesses_are_gone,
    ),
];

/// Where aclib listened.
const ACLIB: u16 = 46080;

fn site() -> Result<Site, Failure> {
    let workloads = ["alice", "bob", "carol"].map(|name| workload(name, &[]));
    Site::new(&[&[mesh(&[])][..], &workloads].concat())
}

/// A sidecar of a workload in a container of its own, and its socket for user 0, which everybody is in the lab.
fn member(site: &Site, name: &str, flags: &[&str]) -> Result<(Sidecar, LocalSocket), Failure> {
    let (socket, mut setup) = LocalSocket::of(&site.mesh, name, "0");
    setup.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
    Ok((site.mesh.begin_sidecar(&site.container(name)?, name, setup)?, socket))
}

/// Waits until a message can be sealed for somebody: its key has to be in the directory.
fn wait_for_key(from: &LocalSocket, to: &str) -> Result<(), Failure> {
    let request = json!({ "audience": id(to).as_str(), "payload": "x" });
    wait_for("the recipient's key", || {
        from.ask("/v1/seal", &request).ok().filter(|(status, _)| *status == 200)
    })?;
    Ok(())
}

fn message_is_taken_once_by_whom_it_is_for_until_its_sender_is_revoked() -> TestResult {
    let site = site()?;
    let (alice, at_alice) = member(&site, "alice", &[])?;
    let (bob, at_bob) = member(&site, "bob", &[])?;
    let (carol, at_carol) = member(&site, "carol", &[])?;
    for sidecar in [&alice, &bob, &carol] {
        sidecar.wait_until_ready()?;
    }
    wait_for_key(&at_alice, "bob")?;

    // Signed, for two.
    let audience = json!([id("bob").as_str(), id("carol").as_str()]);
    let draft = json!({ "audience": audience, "payload": "hello", "content_type": "text/plain" });
    let signed = at_alice.fulfil("/v1/sign", &draft)?;
    for socket in [&at_bob, &at_carol] {
        let taken = socket.fulfil("/v1/verify", &json!({ "message": signed["message"] }))?;
        assert_eq!(taken["sender"], id("alice").as_str());
        assert_eq!((&taken["level"], &taken["payload"]), (&json!("protected"), &json!("hello")));
        for member in ["id", "created", "expires", "audience", "content_type"] {
            assert_eq!(taken[member], signed[member], "{member}");
        }
    }
    let again = json!({ "message": signed["message"] });
    assert_eq!(at_bob.refusal("/v1/verify", &again)?, "message-replay");
    at_bob.fulfil("/v1/verify", &json!({ "message": signed["message"], "replay": "ignore" }))?;
    assert_eq!(at_bob.refusal("/v1/open", &again)?, "message-not-sealed");
    let from = |from: &str| json!({ "message": signed["message"], "replay": "ignore", "from": [from] });
    assert_eq!(
        at_bob.refusal("/v1/verify", &from("spiffe://site.example/app/host/carol"))?,
        "message-sender"
    );
    at_bob.fulfil("/v1/verify", &from("spiffe://site.example/app/*/alice"))?;

    // Sealed, for one; bytes that are no text.
    let draft = json!({ "audience": id("bob").as_str(), "payload_base64": "/wD/" });
    let sealed = at_alice.fulfil("/v1/seal", &draft)?;
    let message = json!({ "message": sealed["message"] });
    assert_eq!(at_bob.refusal("/v1/verify", &message)?, "message-sealed");
    assert_eq!(at_carol.refusal("/v1/open", &message)?, "message-audience");
    assert_eq!(at_alice.refusal("/v1/open", &message)?, "message-audience");
    let opened = at_bob.fulfil("/v1/open", &message)?;
    assert_eq!((&opened["level"], &opened["payload_base64"]), (&json!("private"), &json!("/wD/")));
    assert_eq!(at_bob.refusal("/v1/open", &message)?, "message-replay");
    assert_eq!(bob.metrics()?.sum("signet_local_requests_total", &["open", "message-replay"]), 1.0);

    // Made before, read after its sender was revoked.
    let left = json!({ "message": at_alice.fulfil("/v1/seal", &draft)?["message"], "replay": "ignore" });
    at_bob.fulfil("/v1/open", &left)?;
    let proxies = site.mesh.proxies()?;
    let of_alice = proxies.iter().find(|proxy| proxy.spiffe_id == id("alice").as_str());
    let certificate: Fingerprint = of_alice.ok_or("no proxy of alice")?.instance.parse()?;
    site.mesh.revoke(certificate, "stolen")?;
    wait_for("the revocation", || {
        (at_bob.refusal("/v1/open", &left).ok()? == "message-revoked").then_some(())
    })
}

fn another_user_cannot_use_the_local_socket() -> TestResult {
    let site = site()?;
    // The application is to be user 4711; whoever connects here is user 0.
    let (socket, setup) = LocalSocket::of(&site.mesh, "alice", "4711");
    let alice = site.mesh.sidecar(&site.container("alice")?, "alice", setup)?;
    let draft = json!({ "audience": "any", "payload": "x" });
    for resource in ["/v1/sign", "/v1/open"] {
        assert_eq!(socket.ask(resource, &draft)?.0, 403);
        assert_eq!(socket.refusal(resource, &draft)?, "local-forbidden");
    }
    assert_eq!(alice.metrics()?.sum("signet_local_requests_total", &["connect", "local-forbidden"]), 4.0);
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(socket.path())?);
    assert_eq!(mode & 0o777, 0o660);
    Ok(())
}

fn requests_that_mean_nothing_are_refused_by_name() -> TestResult {
    let site = site()?;
    let (socket, setup) = LocalSocket::of(&site.mesh, "alice", "0");
    let _alice = site.mesh.sidecar(&site.container("alice")?, "alice", setup)?;
    let any = |payload: &str| json!({ "audience": "any", "payload": payload });
    let cases: [(&str, Value, &str); 12] = [
        ("/v1/sign", json!({ "payload": "x" }), "local-request"),
        ("/v1/sign", json!({ "audience": [], "payload": "x" }), "message-recipients"),
        ("/v1/sign", json!({ "audience": "nobody", "payload": "x" }), "recipient-unknown"),
        ("/v1/sign", json!({ "audience": "any", "payload": "x", "expires_in": 0 }), "message-lifetime"),
        (
            "/v1/sign",
            json!({ "audience": "any", "payload": "x", "expires_in": 99_999_999 }),
            "message-certificate",
        ),
        ("/v1/sign", json!({ "audience": "any", "payload": "x", "payload_base64": "eA==" }), "local-request"),
        ("/v1/sign", any(&"x".repeat(64 * 1024 + 1)), "local-too-large"),
        ("/v1/sign", any(&"x".repeat(1024 * 1024)), "local-too-large"),
        ("/v1/seal", any("x"), "message-recipients"),
        (
            "/v1/seal",
            json!({ "audience": "spiffe://site.example/app/host/dave", "payload": "x" }),
            "recipient-without-key",
        ),
        ("/v1/open", json!({ "message": "x" }), "message-malformed"),
        ("/v1/decrypt", json!({}), "local-not-found"),
    ];
    for (resource, request, code) in cases {
        assert_eq!(socket.refusal(resource, &request)?, code, "{resource}");
    }
    socket.fulfil("/v1/sign", &any(&"x".repeat(64 * 1024)))?;
    Ok(())
}

/// mF2C's documented calls; then what W6, W7 and W8 of its security review found.
fn aclib_requests_are_answered_and_its_weaknesses_are_gone() -> TestResult {
    let site = site()?;
    let (alice_in, bob_in) = (site.container("alice")?, site.container("bob")?);
    let carol_in = site.container("carol")?;
    let listen = format!("127.0.0.1:{ACLIB}");
    let setup = |further: &[&str]| Setup {
        flags: [&["--aclib-listen", &*listen][..], further]
            .concat()
            .iter()
            .map(|&flag| flag.to_owned())
            .collect(),
        ..Setup::default()
    };
    let sidecars = [
        site.mesh.begin_sidecar(&alice_in, "alice", setup(&["--aclib-audience", id("bob").as_str()]))?,
        site.mesh.begin_sidecar(&bob_in, "bob", setup(&[]))?,
        site.mesh.begin_sidecar(&carol_in, "carol", setup(&[]))?,
    ];
    for sidecar in &sidecars {
        sidecar.wait_until_ready()?;
    }
    let alice = |request: Value| line(alice_in.namespace(), ACLIB, &request);
    let bob = |request: Value| line(bob_in.namespace(), ACLIB, &request);
    let carol = |request: Value| line(carol_in.namespace(), ACLIB, &request);

    let public = alice(json!({ "typ": "plain", "sec": "pub", "comp": "f", "payload": "hello" }))?;
    assert_eq!(bob(json!({ "typ": "plain", "token": public }))?, "hello");
    let signed = alice(json!({ "typ": "jws", "sec": "pro", "comp": "f", "payload": "hello" }))?;
    assert_eq!(carol(json!({ "typ": "jws", "token": signed }))?, "err2", "no audience, once (W7)");
    assert_eq!(bob(json!({ "typ": "jws", "token": signed }))?, "hello");
    assert_eq!(bob(json!({ "typ": "jws", "token": signed }))?, "err1", "replayed (W7)");

    let recipients = json!([id("bob").as_str(), id("carol").as_str()]);
    let private = json!({ "typ": "jwe", "sec": "pri", "comp": "f", "payload": "secret", "recs": recipients });
    let sealed = wait_for("the recipients' keys", || {
        alice(private.clone()).ok().filter(|answer| !answer.starts_with("err"))
    })?;
    assert!(!sealed.contains("secret"));
    assert_eq!(bob(json!({ "typ": "jwe", "token": sealed }))?, "secret");
    assert_eq!(carol(json!({ "typ": "jwe", "token": sealed }))?, "secret");
    assert_eq!(alice(json!({ "typ": "jwe", "token": sealed }))?, "err2", "not a recipient");

    let identity = alice(json!({ "typ": "jwt", "recs": [id("bob").as_str()] }))?;
    assert_eq!(bob(json!({ "typ": "jwt", "token": identity }))?, "OK");
    assert_eq!(carol(json!({ "typ": "jwt", "token": identity }))?, "err1", "shown to somebody else");

    // An unsigned token is a public one and nothing else; levels do not pass for each other.
    for typ in ["jws", "jwe", "jwt"] {
        assert_eq!(bob(json!({ "typ": typ, "token": public }))?, "err1", "{typ}");
    }
    assert_eq!(bob(json!({ "typ": "plain", "token": signed }))?, "err1");
    assert_eq!(bob(json!({ "typ": "jwe", "token": signed }))?, "err3");
    for (at, part) in signed.match_indices('.').map(|(at, _)| at + 1).zip(["payload", "signature"]) {
        let mut altered = signed.clone().into_bytes();
        altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
        assert_eq!(bob(json!({ "typ": "jws", "token": String::from_utf8(altered)? }))?, "err1", "{part}");
    }
    for request in [
        json!({}),
        json!({ "typ": "jws", "sec": "pri", "payload": "x" }),
        json!({ "typ": "jwe", "sec": "pri", "payload": "x" }),
        json!({ "typ": "jwe", "sec": "pri", "payload": "x", "recs": ["nobody"] }),
        json!({ "typ": "jws", "sec": "pro", "comp": "t", "payload": "x" }),
        json!({ "typ": "jwt" }),
    ] {
        assert_eq!(alice(request.clone())?, "err3", "{request}");
    }
    assert_eq!(
        bob(json!({ "typ": "jws", "sec": "pro", "payload": "x" }))?,
        "err3",
        "no audience is no audience"
    );

    // Nobody has to be asked to verify (W8): the control plane is gone.
    let last = alice(json!({ "typ": "jws", "sec": "pro", "payload": "still" }))?;
    let mut site = site;
    site.mesh.kill_control_plane();
    assert_eq!(bob(json!({ "typ": "jws", "token": last }))?, "still");
    Ok(())
}
