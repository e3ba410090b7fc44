//! Sealed for the destination: what the ends see, what somebody between them sees, and what is refused.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::HeaderMap;
use signet_cli::lab::mesh::intruder::{Caller, Draft, Identity, IntruderError, inside, keyid};
use signet_cli::lab::runner::TestResult;
use signet_signature::RequestView;
use signet_signature::seal::{Place, Recipient, SealedSecret, SealingKey};
use signet_tests::id;
use signet_tests::plain::get;
use signet_tests::recorder::ANSWER;

use super::stand::{Back, Front, PRIVATE, PROTECTED, PUBLIC, Pair, fields_of_the_mesh, lines_of_the_mesh};
use crate::signatures::is_problem;

const SECRET: &str = "canary-7f3a";

fn request(framing: &str, body: &str) -> String {
    format!(
        "POST /api?q=1 HTTP/1.1\r\nHost: server\r\nAuthorization: Bearer {SECRET}\r\nCookie: a={SECRET}\r\n\
         X-Own: kept\r\n{framing}\r\n{body}"
    )
}

pub(super) fn private_exchange_reaches_both_ends_as_it_was_sent() -> TestResult {
    let pair = Pair::new(&[], PRIVATE)?;
    let long = "0123456789".repeat(10_000);
    let messages = [
        (String::new(), String::new()),
        ("Content-Length: 5\r\n".to_owned(), "hello".to_owned()),
        ("Transfer-Encoding: chunked\r\n".into(), "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n".into()),
        // At the bounds of what is held whole, sealed or not.
        (format!("Content-Length: {}\r\n", 64 * 1024), long[..64 * 1024].to_owned()),
        (format!("Content-Length: {}\r\n", 64 * 1024 - 100), long[..64 * 1024 - 100].to_owned()),
        (format!("Content-Length: {}\r\nContent-Encoding: gzip\r\n", long.len()), long.clone()),
    ];
    for (framing, body) in &messages {
        let answer = pair.ask(&request(framing, body))?;
        assert_eq!((answer.status, &answer.body[..]), (200, ANSWER.as_bytes()), "{framing}: {answer:?}");
        assert_eq!(fields_of_the_mesh(&answer), Vec::<String>::new(), "{framing}, to the caller");
        let seen = pair.last_seen();
        assert_eq!(lines_of_the_mesh(&seen), Vec::<String>::new(), "{framing}, to the app");
        for line in [format!("Bearer {SECRET}"), format!("a={SECRET}"), "kept".to_owned()] {
            let ends = |seen: &&str| seen.ends_with(&line);
            assert_eq!(seen.lines().filter(ends).count(), 1, "{line}: {seen}");
        }
        assert!(!seen.contains("mesh-hpke"), "{seen}");
        assert_eq!(seen.contains("gzip"), framing.contains("gzip"), "{seen}");
        if framing.starts_with("Content-Length") {
            assert!(seen.ends_with(body), "{} bytes of {}", seen.len(), body.len());
        }
    }
    let metrics = pair.receiver.metrics()?;
    assert_eq!(metrics.sum("signet_verifications_total", &[]), messages.len() as f64);
    Ok(())
}

/// The key that belongs to a hand-made identity.
fn sealing_key(identity: &Identity) -> Vec<u8> {
    SealingKey::derive(identity.signing.key.secret_der()).map(|key| key.public().to_vec()).unwrap_or_default()
}

pub(super) fn what_is_sealed_cannot_be_read_where_tls_ends() -> TestResult {
    let back = Back::with_key(PRIVATE, sealing_key)?;
    let impostor = back.serve(std::sync::Arc::new(|_, _| {
        b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nunsigned".to_vec()
    }))?;
    let body = format!("body {SECRET}");
    let answer = back.ask(&request(&format!("Content-Length: {}\r\n", body.len()), &body))?;
    is_problem(&answer, 502, "response-unverified")?;
    let answer = back.ask(
        &get(&format!("/api?{SECRET}"), "server")
            .replace("\r\n\r\n", &format!("\r\nAuthorization: {SECRET}\r\n\r\n")),
    )?;
    is_problem(&answer, 502, "response-unverified")?;
    let heads = impostor.requests();
    assert!(heads[0].starts_with("POST /api?q=1 HTTP/1.1\r\n"), "{heads:#?}");
    assert!(
        heads[0].contains("mesh-hpke") && heads[0].to_lowercase().contains("\r\nmesh-seal: :"),
        "{heads:#?}"
    );
    assert!(heads[0].contains("X-Own: kept"), "what is not listed stays readable: {heads:#?}");
    for head in &heads {
        let without_target = head.split_once("\r\n").map_or("", |(_, rest)| rest);
        assert!(!without_target.contains(SECRET), "in clear where TLS ends: {head}");
    }
    Ok(())
}

pub(super) fn private_workload_takes_nothing_that_is_not_sealed() -> TestResult {
    let front = Front::new(&[], PRIVATE)?;
    let (own, address) = (front.own.clone(), front.address);
    let (signed, unsigned) = inside(front.stranger.namespace(), move || async move {
        let draft = Draft::new("POST", "/api", &address.to_string()).with_body("text/plain", b"forged");
        let mut caller = Caller::open(&own, address).await?;
        let message = caller.sign(&draft)?;
        let signed = caller.call(&message).await?;
        let mut caller = Caller::open(&own, address).await?;
        caller.send(get("/api", address).as_bytes()).await?;
        Ok((signed, caller.answer().await?))
    })?;
    is_problem(&signed, 400, "seal-missing")?;
    is_problem(&unsigned, 400, "signature-missing")?;
    assert!(front.app.connections().is_empty(), "the app has seen {:?}", front.app.text());
    Ok(())
}

pub(super) fn what_was_sealed_by_another_or_for_another_request_is_refused() -> TestResult {
    let front = Front::new(&[], PRIVATE)?;
    let (own, address, key) = (front.own.clone(), front.address, signet_tests::sealing_key(&front.receiver)?);
    let other = front.site.intruder(&front.stranger, "other")?;
    let answers = inside(front.stranger.namespace(), move || async move {
        let mut answers = Vec::new();
        let server = id("server").to_string();
        let cases = [
            ("as it should be", keyid(&own), server.as_str(), "/api", 0, 0xff),
            ("by another", keyid(&other), server.as_str(), "/api", 0, 0xff),
            ("for another workload", keyid(&own), "spiffe://mesh.test/agent/a/other", "/api", 0, 0xff),
            ("for another path", keyid(&own), server.as_str(), "/other", 0, 0xff),
            ("for another place on the channel", keyid(&own), server.as_str(), "/api", 1, 0xff),
            ("altered", keyid(&own), server.as_str(), "/api", 0, 5),
        ];
        for (what, sender, recipient, path, later, altered) in cases {
            let mut caller = Caller::open(&own, address).await?;
            let authority = address.to_string();
            let secret = SealedSecret::new(&sender, &[Recipient { spiffe_id: recipient, key: &key }])
                .map_err(|error| IntruderError::Message(error.to_string()))?;
            let (uri, headers) = (path.parse::<http::Uri>().unwrap_or_default(), HeaderMap::new());
            let view = RequestView::new(&http::Method::POST, &uri, "http", &authority, &headers);
            let place = Place::of(&view, &caller.channel.nonce(caller.sequence + later))
                .map_err(|error| IntruderError::Message(error.to_string()))?;
            let keys = secret.secret.exchange(&place).request;
            let text = |bytes: &[u8]| format!(":{}:", BASE64_STANDARD.encode(bytes));
            let (envelope, commitment) = (text(&secret.envelope), text(&keys.commitment));
            let mut body = Vec::new();
            keys.into_writer().finish(b"sealed by hand", &mut body);
            if let Some(byte) = body.get_mut(altered) {
                *byte ^= 1;
            }
            let draft = Draft::new("POST", "/api", &authority)
                .with_body("text/plain", &body)
                .with_header("content-encoding", "mesh-hpke")
                .with_header("mesh-seal", &envelope)
                .with_header("mesh-commit", &commitment);
            let message = caller.sign(&draft)?;
            answers.push((what, caller.call(&message).await?));
        }
        Ok(answers)
    })?;
    for (number, (what, answer)) in answers.iter().enumerate() {
        if number == 0 {
            assert_eq!(answer.status, 200, "{what}: {answer:?}");
            assert!(
                !String::from_utf8_lossy(&answer.body).contains(ANSWER),
                "the answer is sealed: {answer:?}"
            );
        } else {
            is_problem(answer, 400, "seal-broken").map_err(|found| format!("{what}: {found}"))?;
        }
    }
    let seen = front.app.requests();
    assert_eq!(seen.len(), 1, "{seen:#?}");
    assert!(seen[0].ends_with("sealed by hand"), "{seen:#?}");
    Ok(())
}

pub(super) fn app_may_ask_for_more_protection_never_for_less() -> TestResult {
    let back = Back::with_key(PUBLIC, sealing_key)?;
    let impostor = back.serve(std::sync::Arc::new(|_, _| b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()))?;
    let ask = |wish: &str| back.ask(&format!("GET /api HTTP/1.1\r\nHost: server\r\n{wish}\r\n"));
    assert_eq!(ask("")?.status, 204);
    assert_eq!(ask("Mesh-Protection: public\r\n")?.status, 204);
    // This server signs nothing: an answer to a signed request is not believed.
    is_problem(&ask("Mesh-Protection: protected\r\n")?, 502, "response-unverified")?;
    is_problem(&ask("Mesh-Protection: private\r\n")?, 502, "response-unverified")?;
    is_problem(&ask("Mesh-Protection: secret\r\n")?, 400, "malformed-message")?;
    let heads = impostor.requests();
    let has = |name: &str| heads.iter().map(|head| head.to_lowercase().contains(name)).collect::<Vec<_>>();
    assert_eq!(has("\r\nsignature: "), [false, false, true, true], "{heads:#?}");
    assert_eq!(has("\r\nmesh-seal: "), [false, false, false, true], "{heads:#?}");
    assert_eq!(has("\r\nmesh-protection"), [false; 4], "{heads:#?}");

    let pair = Pair::new(&[], PROTECTED)?;
    let answer = pair.ask("GET /api HTTP/1.1\r\nHost: server\r\nMesh-Protection: public\r\n\r\n")?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let metrics = pair.receiver.metrics()?;
    assert_eq!(metrics.sum("signet_unsigned_messages_total", &[]), 0.0);
    Ok(())
}

pub(super) fn nothing_is_sent_to_a_private_workload_without_a_key() -> TestResult {
    let back = Back::new(PRIVATE)?;
    let impostor = back.serve(std::sync::Arc::new(|_, _| b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()))?;
    is_problem(&back.ask(&get("/api", "server"))?, 503, "recipient-unknown")?;
    assert_eq!(impostor.requests(), Vec::<String>::new());
    Ok(())
}
