//! Where nothing is signed, peers could write what only signatures prove: each such word is refused or removed.

use std::sync::Arc;

use signet_cli::lab::mesh::intruder::{Caller, inside};
use signet_cli::lab::runner::TestResult;
use signet_tests::id;
use signet_tests::plain::get;

use super::stand::{Back, Front, PUBLIC, fields_of_the_mesh, lines_of_the_mesh};

/// Whatever begins so is the mesh's, also what no version knows yet.
const TAGS: [&str; 9] = [
    "mesh-req-v1",
    "mesh-req-b-v1",
    "mesh-req-head-v1",
    "mesh-req-tail-v1",
    "mesh-rsp-v1",
    "mesh-rsp-b-v1",
    "mesh-req-m-v1",
    "mesh-req-v2",
    "mesh-other",
];

pub(super) fn unsigned_request_smuggles_nothing_of_the_mesh() -> TestResult {
    let front = Front::new(&[], PUBLIC)?;
    let (own, address) = (front.own.clone(), front.address);
    let post = |fields: &str| {
        format!("POST /smuggled HTTP/1.1\r\nHost: server\r\n{fields}Content-Length: 5\r\n\r\nhello")
    };
    let mut refused = vec![
        ("records".to_owned(), post("Content-Encoding: mesh-rec\r\n")),
        ("records in other letters".to_owned(), post("Content-Encoding: Mesh-Rec\r\n")),
        ("records over another coding".to_owned(), post("Content-Encoding: gzip, mesh-rec\r\n")),
        ("records in a second field".to_owned(), post("Content-Encoding: gzip\r\nContent-Encoding: mesh-rec\r\n")),
        (
            "records without a body".to_owned(),
            "GET /smuggled HTTP/1.1\r\nHost: server\r\nContent-Encoding: mesh-rec\r\n\r\n".to_owned(),
        ),
        (
            "another transfer coding".to_owned(),
            "POST /smuggled HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
                .to_owned(),
        ),
    ];
    for tag in TAGS {
        let of = |label: &str, tag: &str| {
            format!("Signature-Input: {label}=(\"@method\");created=1;keyid=\"k\";tag=\"{tag}\"\r\n")
        };
        refused.push((
            format!("a signature with tag {tag}"),
            post(&format!("{}Signature: x=:AAAA:\r\n", of("x", tag))),
        ));
        refused.push((
            format!("a second signature with tag {tag}"),
            post(&format!("{}{}Signature: y=:AAAA:, x=:AAAA:\r\n", of("y", "app"), of("x", tag))),
        ));
    }
    refused.push((
        "a label twice, one of them ours".to_owned(),
        post("Signature-Input: x=();tag=\"mesh-req-v1\", x=()\r\nSignature: x=:AAAA:\r\n"),
    ));
    // Nothing but one of these may come of it: refused, or without a word of it.
    let chunked = |trailer: &str| {
        format!(
            "POST /bare HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n{trailer}: smuggled\r\n\r\n"
        )
    };
    let mut bare: Vec<String> = [
        "Mesh-Peer",
        "mesh-anything",
        "mesh_peer",
        "Mesh-Origin",
        "Mesh-Request-Id",
        "Mesh-Content-Length",
        "Client-Cert",
        "Client-Cert-Chain",
        "client_cert",
        "X-Forwarded-Client-Cert",
        "x_forwarded_client_cert",
    ]
    .iter()
    .map(|name| format!("GET /bare HTTP/1.1\r\nHost: server\r\n{name}: smuggled\r\n\r\n"))
    .collect();
    bare.extend(["mesh-peer", "X-Forwarded-Client-Cert", "Client_Cert"].map(chunked));
    bare.push(chunked("Signature-Input: x=();tag=\"mesh-req-tail-v1\"\r\nX-Last"));
    // Who names the field that names the caller does not get rid of it.
    let named = "GET /named HTTP/1.1\r\nHost: server\r\nX-Own: kept\r\nConnection: X-Forwarded-Client-Cert, X-Own\r\n\r\n";

    let (refused, bare, named) = inside(front.stranger.namespace(), move || async move {
        let (mut answers, mut others) = (Vec::new(), Vec::new());
        for (what, request) in refused {
            let mut caller = Caller::open(&own, address).await?;
            caller.send(request.as_bytes()).await?;
            answers.push((what, caller.answer().await?));
        }
        for request in bare {
            let mut caller = Caller::open(&own, address).await?;
            caller.send(request.as_bytes()).await?;
            // One that breaks off has answered nothing.
            others.push((request, caller.answer().await.ok()));
        }
        let mut caller = Caller::open(&own, address).await?;
        caller.send(named.as_bytes()).await?;
        Ok((answers, others, caller.answer().await?))
    })?;
    let mut wrong = Vec::new();
    for (what, answer) in &refused {
        if answer.status != 400 {
            wrong.push(format!("{what}: {answer:?}"));
        }
    }
    for (what, answer) in &bare {
        if answer.as_ref().is_some_and(|answer| !matches!(answer.status, 200 | 400)) {
            wrong.push(format!("{what}: {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(named.status, 200);
    assert!(!front.app.text().contains("smuggled"), "the app has seen {:#?}", front.app.requests());
    assert!(!front.app.text().contains("tag=\"mesh-"), "the app has seen {:#?}", front.app.requests());
    let caller = format!("X-Forwarded-Client-Cert: By={};URI={}", id("server"), id("caller"));
    for request in front.app.requests() {
        assert_eq!(lines_of_the_mesh(&request), Vec::<String>::new(), "{request}");
        assert_eq!(request.matches(caller.as_str()).count(), 1, "{request}");
        assert!(!request.starts_with("GET /named ") || request.contains("X-Own: kept"), "{request}");
    }
    Ok(())
}

/// Empty elements of a list mean nothing (RFC 9110 section 5.6.1): the last coding is still that of records.
pub(super) fn records_before_an_empty_list_element_are_refused_unsigned() -> TestResult {
    let front = Front::new(&[], PUBLIC)?;
    let (own, address) = (front.own.clone(), front.address);
    let answers = inside(front.stranger.namespace(), move || async move {
        let mut answers = Vec::new();
        for coding in ["mesh-rec,", "mesh-rec , ,", "mesh-rec\r\nContent-Encoding:"] {
            let mut caller = Caller::open(&own, address).await?;
            let head = "POST /smuggled HTTP/1.1\r\nHost: server\r\nContent-Length: 5";
            caller.send(format!("{head}\r\nContent-Encoding: {coding}\r\n\r\nhello").as_bytes()).await?;
            answers.push((coding, caller.answer().await?));
        }
        Ok(answers)
    })?;
    let passed: Vec<_> = answers.iter().filter(|(_, answer)| answer.status != 400).collect();
    assert!(passed.is_empty(), "{passed:#?}\nthe app has seen {:#?}", front.app.requests());
    Ok(())
}

/// What an unsigned answer says beside `200 OK`, and its framing and body.
const REFUSED: &[(&str, &str)] = &[
    ("records", "200 OK\r\nContent-Encoding: mesh-rec\r\nContent-Length: 8\r\n\r\nsmuggled"),
    (
        "records over a coding",
        "200 OK\r\nContent-Encoding: gzip, mesh-rec\r\nContent-Length: 8\r\n\r\nsmuggled",
    ),
    (
        "another transfer coding",
        "200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n8\r\nsmuggled\r\n0\r\n\r\n",
    ),
    ("two lengths", "200 OK\r\nContent-Length: 8\r\nContent-Length: 3\r\n\r\nsmuggled"),
    (
        "another protocol",
        "101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: smuggled\r\n\r\nsmuggled",
    ),
];

pub(super) fn unsigned_answer_smuggles_nothing_of_the_mesh() -> TestResult {
    let back = Back::new(PUBLIC)?;
    let _impostor = back.serve(Arc::new(|head, _| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let answer = path.trim_start_matches('/').parse().ok().and_then(|number: usize| REFUSED.get(number));
        let answer = answer.map_or(
            "200 OK\r\nMesh-Peer: smuggled\r\nmesh_peer: smuggled\r\nMesh-Origin: sidecar\r\n\
             X-Own: kept\r\nConnection: X-Own\r\nContent-Length: 4\r\n\r\nbare",
            |(_, answer)| answer,
        );
        format!("HTTP/1.1 {answer}").into_bytes()
    }))?;
    let mut wrong = Vec::new();
    for (number, (what, _)) in REFUSED.iter().enumerate() {
        let answer = back.ask(&get(&format!("/{number}"), "server"))?;
        let smuggled = format!("{answer:?} {}", String::from_utf8_lossy(&answer.body)).contains("smuggled");
        if (answer.status, answer.code().as_deref()) != (502, Some("response-unverified")) || smuggled {
            wrong.push(format!("{what}: {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let answer = back.ask(&get("/bare", "server"))?;
    assert_eq!((answer.status, &answer.body[..]), (200, &b"bare"[..]), "{answer:?}");
    assert_eq!(fields_of_the_mesh(&answer), Vec::<String>::new(), "{answer:?}");
    Ok(())
}

/// What claims a signature of ours where nobody asked for one is refused, or comes without the claim.
pub(super) fn claim_of_a_signature_in_an_unsigned_answer_does_not_arrive() -> TestResult {
    const CLAIMS: &[&str] = &[
        "mesh=();created=1;keyid=\"k\";tag=\"mesh-rsp-v1\"",
        "mesh=();created=1;keyid=\"k\";tag=\"mesh-rsp-b-v1\"",
        "app=();tag=\"app\", mesh=();tag=\"mesh-rsp-v1\"",
        "mesh=();tag=\"app\";tag=\"mesh-rsp-v1\"",
        "mesh=();tag=\"mesh-rsp-v1\", mesh=()",
        "mesh=();tag=\"mesh-rsp-v1\", =unreadable",
    ];
    let back = Back::new(PUBLIC)?;
    let _impostor = back.serve(Arc::new(|head, _| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let claim = path.trim_start_matches('/').parse().ok().and_then(|number: usize| CLAIMS.get(number));
        let claim = claim.copied().unwrap_or_default();
        let fields = format!("Signature-Input: {claim}\r\nSignature: mesh=:AAAA:, app=:AAAA:");
        format!("HTTP/1.1 200 OK\r\n{fields}\r\nContent-Length: 4\r\n\r\nbare").into_bytes()
    }))?;
    let mut wrong = Vec::new();
    for (number, claim) in CLAIMS.iter().enumerate() {
        let answer = back.ask(&get(&format!("/{number}"), "server"))?;
        let refused = (answer.status, answer.code().as_deref()) == (502, Some("response-unverified"));
        let claims = answer.headers.iter().any(|(_, value)| value.contains("mesh-rsp"));
        if claims || !(refused || answer.status == 200) {
            wrong.push(format!("{claim}: {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
