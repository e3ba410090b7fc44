//! Routes of one workload that are protected differently, on the same connection.

use signet_cli::lab::mesh::intruder::{Caller, Draft, inside};
use signet_cli::lab::runner::TestResult;
use signet_tests::manifest::protection_policy;
use signet_tests::plain::get;
use signet_tests::{Failure, Plain, Site};

use super::stand::{Front, PROTECTED, Pair, site_with};
use crate::signatures::is_problem;

/// A server of level `protected` with one route of each other level.
fn site() -> Result<Site, Failure> {
    let rules = "rules: [{to: [{methods: [GET], paths: [/open/**]}], level: public}, \
                 {to: [{paths: [/session/**]}], level: private, mode: ed25519}, \
                 {to: [{paths: [/coded/**]}], mode: hmac}]";
    site_with(&[], PROTECTED, protection_policy("routes", "server", &["ports: [8201]", rules]))
}

pub(super) fn routes_of_one_connection_are_protected_each_in_its_way() -> TestResult {
    let pair = Pair::of(site()?)?;
    let mut client = Plain::dial(&pair.client, pair.address)?;
    let count = |name: &str| -> Result<f64, Failure> { Ok(pair.receiver.metrics()?.sum(name, &[])) };
    let counts = || -> Result<[f64; 3], Failure> {
        Ok([
            count("signet_unsigned_messages_total")?,
            count("signet_signatures_total")?,
            count("signet_macs_total")?,
        ])
    };
    // What each adds to the receiver's unsigned requests, and to the signatures and codes it made for answers. The last is
    // what a checkpoint may follow at any time.
    let expected = [
        ("/open/a", [1.0, 0.0, 0.0]),
        ("/session/a", [0.0, 1.0, 0.0]),
        ("/other", [0.0, 1.0, 0.0]),
        ("/open/b", [1.0, 0.0, 0.0]),
        ("/%73ession/b", [0.0, 1.0, 0.0]),
        ("/open%2e/b", [0.0, 1.0, 0.0]),
        ("/coded/a", [0.0, 0.0, 1.0]),
    ];
    for (path, added) in expected {
        let before = counts()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: server\r\nAuthorization: Bearer x\r\n\r\n");
        client.send(request.as_bytes())?;
        let answer = client.answer()?;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let after = counts()?;
        let difference: Vec<f64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        assert_eq!(difference, added, "{path}");
    }
    let seen = pair.app.requests();
    assert_eq!(seen.len(), expected.len(), "{seen:#?}");
    assert!(seen.iter().all(|request| request.contains("Bearer x")), "{seen:#?}");
    // The application may ask for more, at every route.
    client.send(b"GET /open/c HTTP/1.1\r\nHost: server\r\nMesh-Protection: protected\r\n\r\n")?;
    let before = counts()?;
    assert_eq!(client.answer()?.status, 200);
    assert_eq!(counts()?[0], before[0], "signed");
    client.send(b"GET /session/c HTTP/1.1\r\nHost: server\r\nMesh-Protection: public\r\n\r\n")?;
    assert_eq!(client.answer()?.status, 200);
    assert_eq!(counts()?[0], before[0], "and not less");
    Ok(())
}

pub(super) fn receiver_enforces_the_floor_of_each_route() -> TestResult {
    let front = Front::of(site()?)?;
    let (own, address) = (front.own.clone(), front.address);
    let answers = inside(front.stranger.namespace(), move || async move {
        let mut caller = Caller::open(&own, address).await?;
        let mut answers = Vec::new();
        let unsigned = ["/open/a", "/open", "/session/a", "/SESSION/a", "/other", "/Open/a", "/coded/a"];
        for path in unsigned {
            caller.send(get(path, address).as_bytes()).await?;
            answers.push((format!("unsigned {path}"), caller.answer().await?));
        }
        for (method, path) in [
            ("GET", "/open/a"),
            ("GET", "/other"),
            ("GET", "/session/a"),
            ("POST", "/session"),
            ("GET", "/s%65ssion/a"),
        ] {
            let message = caller.sign(&Draft::new(method, path, &address.to_string()))?;
            answers.push((format!("signed {path}"), caller.call(&message).await?));
        }
        Ok(answers)
    })?;
    let expected = [
        "",
        "",
        "signature-missing",
        "signature-missing",
        "signature-missing",
        "signature-missing",
        "signature-missing",
        "",
        "",
        "seal-missing",
        "seal-missing",
        "seal-missing",
    ];
    assert_eq!(answers.len(), expected.len());
    for ((what, answer), code) in answers.iter().zip(expected) {
        if code.is_empty() {
            assert_eq!(answer.status, 200, "{what}: {answer:?}");
        } else {
            is_problem(answer, 400, code).map_err(|found| format!("{what}: {found}"))?;
        }
    }
    let seen = front.app.requests();
    assert_eq!(seen.len(), 4, "{seen:#?}");
    Ok(())
}
