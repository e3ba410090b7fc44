//! Without signatures: what the ends see, what the wire sees, and that it is no way round where they are asked for.

use signet_cli::lab::mesh::intruder::{Caller, Draft, IntruderError, Signed, inside};
use signet_cli::lab::runner::TestResult;
use signet_identity::ALPN_H2;
use signet_signature::{Form, sha256_header};
use signet_tests::id;
use signet_tests::plain::get;
use signet_tests::recorder::ANSWER;

use super::stand::{
    Back, Front, PROTECTED, PUBLIC, Pair, fields_of_the_mesh, lines_of_the_mesh, sign, values,
};
use crate::protocols::heads::over_http2;
use crate::signatures::is_problem;

pub(super) fn public_exchange_shows_nothing_of_the_mesh_to_either_end() -> TestResult {
    let pair = Pair::new(&[], PUBLIC)?;
    let caller = format!("X-Forwarded-Client-Cert: By={};URI={}", id("server"), id("client"));
    let spoofed: String = [
        "X-Forwarded-Client-Cert",
        "x-forwarded-client-cert",
        "X_Forwarded_Client_Cert",
        "Client-Cert",
        "Client_Cert_Chain",
        "Mesh-Peer",
        "mesh_peer",
        "Mesh-Request-Id",
        "Mesh-Content-Length",
        "Mesh-Original-Content-Digest",
    ]
    .iter()
    .map(|name| format!("{name}: spoofed\r\n"))
    .collect();
    let bodies = [
        ("GET", String::new(), ""),
        ("GET", "Connection: X-Forwarded-Client-Cert, Host\r\n".into(), ""),
        ("POST", "Content-Type: text/plain\r\nContent-Length: 5\r\n".into(), "hello"),
        (
            "POST",
            "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n".into(),
            "5\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 42\r\nX-Forwarded-Client-Cert: spoofed\r\nmesh-peer: spoofed\r\n\r\n",
        ),
    ];
    for (method, framing, body) in &bodies {
        let what = format!("{method}, {framing:?}");
        let request =
            format!("{method} /api HTTP/1.1\r\nHost: server\r\nX-Own: kept\r\n{spoofed}{framing}\r\n{body}");
        let answer = pair.ask(&request)?;
        assert_eq!((answer.status, &answer.body[..]), (200, ANSWER.as_bytes()), "{what}: {answer:?}");
        assert_eq!(fields_of_the_mesh(&answer), Vec::<String>::new(), "{what}, to the caller");
        let seen = pair.last_seen();
        assert_eq!(lines_of_the_mesh(&seen), Vec::<String>::new(), "{what}, to the app");
        assert!(!seen.contains("spoofed"), "{what}: {seen}");
        assert!(seen.contains("\r\nX-Own: kept\r\n"), "{what}: {seen}");
        let names_the_caller =
            |line: &&str| line.to_ascii_lowercase().starts_with("x-forwarded-client-cert:");
        let named: Vec<&str> = seen.lines().filter(names_the_caller).collect();
        assert_eq!(named, [caller.as_str()], "{what}");
        assert_eq!(seen.contains("hello"), body.contains("hello"), "{what}: {seen}");
        assert_eq!(seen.to_ascii_lowercase().contains("x-sum: 42"), body.contains("X-Sum"), "{what}: {seen}");
    }

    // A digest of the app's own is the app's.
    let digest = sha256_header(b"hello");
    let request = format!(
        "POST /api HTTP/1.1\r\nHost: server\r\nContent-Digest: {digest}\r\nContent-Length: 5\r\n\r\nhello"
    );
    assert_eq!(pair.ask(&request)?.status, 200);
    assert_eq!(lines_of_the_mesh(&pair.last_seen()), [format!("Content-Digest: {digest}")]);

    let calls = bodies.len() as f64 + 1.0;
    for sidecar in [&pair.sender, &pair.receiver] {
        let metrics = sidecar.metrics()?;
        let value = |name: &str| metrics.sum(name, &[]);
        assert_eq!(value("signet_unsigned_messages_total"), calls, "{}", sidecar.workload());
        assert_eq!(value("signet_signatures_total"), 0.0, "{}", sidecar.workload());
        assert_eq!(value("signet_verifications_total"), 0.0, "{}", sidecar.workload());
    }
    Ok(())
}

pub(super) fn public_exchange_crosses_the_wire_unsigned() -> TestResult {
    let back = Back::new(PUBLIC)?;
    let impostor = back.serve(std::sync::Arc::new(|_, _| {
        b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nunsigned".to_vec()
    }))?;
    let empty = "POST /api HTTP/1.1\r\nHost: server\r\nContent-Length: 0\r\n\r\n";
    for request in [&get("/api", "server"), empty] {
        let answer = back.ask(request)?;
        assert_eq!((answer.status, &answer.body[..]), (200, &b"unsigned"[..]), "{answer:?}");
    }
    let heads = impostor.requests();
    assert_eq!(heads.len(), 2, "{heads:#?}");
    for head in heads {
        let lines = lines_of_the_mesh(&head);
        let only_names = |line: &String| {
            let line = line.to_ascii_lowercase();
            line.starts_with("mesh-request-id:") || line.starts_with("mesh-cert:")
        };
        assert!(lines.iter().all(only_names), "signed, digested or cut: {lines:?}");
    }
    Ok(())
}

pub(super) fn protected_workload_takes_no_unsigned_request() -> TestResult {
    let front = Front::new(&[], PROTECTED)?;
    let (own, address) = (front.own.clone(), front.address);
    let of_the_app = "Signature-Input: mesh=(\"@method\");created=1;keyid=\"k\";tag=\"app-v1\"\r\nSignature: mesh=:AAAA:\r\n";
    let requests = [
        ("GET", get("/api", "server")),
        ("POST", "POST /api HTTP/1.1\r\nHost: server\r\nContent-Length: 5\r\n\r\nhello".to_owned()),
        (
            "POST in chunks",
            "POST /api HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".into(),
        ),
        (
            "POST with a digest",
            format!(
                "POST /api HTTP/1.1\r\nHost: server\r\nContent-Digest: {}\r\nContent-Length: 5\r\n\r\nhello",
                sha256_header(b"hello")
            ),
        ),
        ("a signature of the app", format!("GET /api HTTP/1.1\r\nHost: server\r\n{of_the_app}\r\n")),
        (
            "records",
            "POST /api HTTP/1.1\r\nHost: server\r\nContent-Encoding: mesh-rec\r\nTransfer-Encoding: chunked\r\n\r\n\
             5\r\nhello\r\n0\r\n\r\n"
                .into(),
        ),
    ];
    let (answers, over_http2) = inside(front.stranger.namespace(), move || async move {
        let mut answers = Vec::new();
        for (what, request) in requests {
            let mut caller = Caller::open(&own, address).await?;
            caller.send(request.as_bytes()).await?;
            answers.push((what, caller.answer().await?));
        }
        let stream = own.connect(address, ALPN_H2).await?;
        Ok((answers, over_http2(stream, 1).await?))
    })?;
    for (what, answer) in &answers {
        is_problem(answer, 400, "signature-missing").map_err(|found| format!("{what}: {found}"))?;
    }
    assert_eq!((over_http2.0.as_u16(), over_http2.1.as_deref()), (400, Some("signature-missing")));
    assert!(front.app.connections().is_empty(), "the app has seen {:?}", front.app.connections());
    let metrics = front.receiver.metrics()?;
    assert_eq!(metrics.refusals("signature-missing"), answers.len() as u64 + 1);
    assert_eq!(metrics.sum("signet_unsigned_messages_total", &[]), 0.0);
    Ok(())
}

/// What is done to a signed request, and what is said of the last message.
type Breach =
    (&'static str, fn(&mut Caller, &Draft, Form) -> Result<Vec<Signed>, IntruderError>, &'static str);

const BREACHES: &[Breach] = &[
    ("another body", |c, d, f| Ok(vec![sign(c, d, f)?.with_tampered_body()]), "digest-mismatch"),
    (
        "another path",
        |c, d, f| {
            let mut signed = sign(c, d, f)?;
            signed.start.1 = "/api/forged".into();
            Ok(vec![signed])
        },
        "bad-signature",
    ),
    (
        "the same message again",
        |c, d, f| {
            let signed = sign(c, d, f)?;
            Ok(vec![signed.clone(), signed])
        },
        "replay",
    ),
    (
        "an authorization added",
        |c, d, f| Ok(vec![sign(c, d, f)?.with("authorization", "forged")]),
        "signature-coverage",
    ),
    (
        "a mesh field added",
        |c, d, f| Ok(vec![sign(c, d, f)?.with("mesh-peer", "forged")]),
        "signature-coverage",
    ),
    (
        "the digest taken off",
        |c, d, f| Ok(vec![sign(c, d, f)?.without("content-digest")]),
        "signature-coverage",
    ),
    (
        "the digest taken off for records",
        |c, d, f| Ok(vec![sign(c, d, f)?.without("content-digest").with("content-encoding", "mesh-rec")]),
        "signature-coverage",
    ),
    (
        "the signature itself taken off",
        |c, d, f| Ok(vec![sign(c, d, f)?.without("signature")]),
        "signature-missing",
    ),
    (
        "the signature of another message",
        |c, d, f| {
            let (one, two) = (sign(c, d, f)?, sign(c, d, f)?);
            let value = one.headers.iter().find(|(name, _)| name == "signature");
            let value = String::from_utf8_lossy(&value.ok_or_else(missing)?.1).into_owned();
            Ok(vec![two.with("signature", &value)])
        },
        "bad-signature",
    ),
    (
        "another label in one of the fields",
        |c, d, f| {
            let mut signed = sign(c, d, f)?;
            for (_, value) in signed.headers.iter_mut().filter(|(name, _)| name == "signature") {
                *value = String::from_utf8_lossy(value).replacen("mesh=", "other=", 1).into();
            }
            Ok(vec![signed])
        },
        "signature-missing",
    ),
];

fn missing() -> IntruderError {
    IntruderError::Message("no signature".into())
}

pub(super) fn signature_to_a_public_workload_is_verified() -> TestResult {
    let front = Front::new(&[], PUBLIC)?;
    let (own, address) = (front.own.clone(), front.address);
    let (broken, valid, unsigned) = inside(front.stranger.namespace(), move || async move {
        let draft = Draft::new("POST", "/api", &address.to_string()).with_body("text/plain", b"forged 1");
        let honest = Draft { body: b"honest 1".into(), ..draft.clone() };
        let (mut broken, mut valid) = (Vec::new(), Vec::new());
        for form in [Form::Batch, Form::Single] {
            for (what, breach, code) in BREACHES {
                let mut caller = Caller::open(&own, address).await?;
                let draft = if *code == "replay" { &honest } else { &draft };
                let mut answer = None;
                for message in breach(&mut caller, draft, form)? {
                    answer = Some(caller.call(&message).await?);
                }
                broken.push((*what, form, *code, answer.ok_or_else(missing)?));
            }
            let mut caller = Caller::open(&own, address).await?;
            let signed = sign(&mut caller, &honest, form)?;
            valid.push((form, caller.call(&signed).await?));
        }
        let mut caller = Caller::open(&own, address).await?;
        caller.send(get("/api/unsigned", address).as_bytes()).await?;
        Ok((broken, valid, caller.answer().await?))
    })?;
    let mut wrong = Vec::new();
    for (what, form, code, answer) in &broken {
        wrong.extend(is_problem(answer, 400, code).err().map(|found| format!("{what}, {form:?}: {found}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (form, answer) in &valid {
        assert_eq!(answer.status, 200, "{form:?}: {answer:?}");
        let tag = if *form == Form::Batch { "mesh-rsp-b-v1" } else { "mesh-rsp-v1" };
        let inputs = values(answer, "signature-input");
        assert!(
            inputs.len() == 1 && inputs[0].contains(tag),
            "who signs is answered with a signature: {answer:?}"
        );
    }
    assert_eq!(unsigned.status, 200, "{unsigned:?}");
    assert_eq!(values(&unsigned, "signature-input"), Vec::<String>::new(), "{unsigned:?}");
    assert!(!front.app.text().contains("forged"), "{}", front.app.text());
    Ok(())
}
