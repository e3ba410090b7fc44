//! What policy allows, what it refuses, how fast a change bites, and that a wrong one changes nothing.

use std::fs;

use serde_json::Value;
use signet_cli::lab::mesh::{app, program};
use signet_cli::lab::runner::{Test, TestResult};
use signet_tests::manifest::{allow, mesh, policy, workload};
use signet_tests::plain::get;
use signet_tests::{Ended, Failure, LIMIT, Plain, Recorder, Site, place, wait_for};

pub(crate) const TESTS: &[Test] = &[
    ("nothing_is_allowed_until_a_rule_says_so", nothing_is_allowed_until_a_rule_says_so),
    ("withdrawn_permission_ends_open_streams", withdrawn_permission_ends_open_streams),
    (
        "invalid_policy_is_refused_with_its_place_and_changes_nothing",
        invalid_policy_is_refused_with_its_place_and_changes_nothing,
    ),
    ("request_id_explains_both_ends", request_id_explains_both_ends),
];

const HTTP: u16 = 8201;
const EVENTS: u16 = 8000;
const LINE: u16 = 46080;

fn site() -> Result<Site, Failure> {
    let ports = "ports: [{port: 8201, protocol: http}, {port: 8000, protocol: http}, {port: 46080}]";
    let manifests = [
        mesh(&[]),
        workload("server", &["names: [server, store.site]", ports]),
        workload("client", &[]),
        workload("other", &["names: [other.site]"]),
    ];
    Site::new(&manifests)
}

fn nothing_is_allowed_until_a_rule_says_so() -> TestResult {
    let site = site()?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let app = Recorder::http(&server, HTTP)?;
    let [_server, sidecar] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let address = place(&server, HTTP);
    sidecar.wait_until_known(address)?;

    // One connection of one client, kept open for all that follows.
    let mut kept = Plain::dial(&client, address)?;
    let mut ask = |method: &str, path: &str, host: &str| -> Result<(u16, String), Failure> {
        kept.send(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
        let answer = kept.answer()?;
        let code = answer.code().unwrap_or_default();
        Ok((answer.status, code))
    };
    let refused = |code: &str| (403, code.to_owned());
    let allowed = (200, String::new());
    assert_eq!(ask("GET", "/api/user", "store.site")?, refused("no-policy"));
    assert!(app.requests().is_empty(), "before any rule: {:?}", app.requests());

    let read = allow("client", "{methods: [GET], paths: [/api/**]}");
    site.mesh.apply("read.yaml", &policy("server-access", "server", &[&read]))?;
    wait_for("the permission on a connection that was refused", || {
        ask("GET", "/api/user", "store.site").ok().filter(|answer| *answer == allowed)
    })?;
    assert_eq!(ask("POST", "/api/user", "store.site")?, refused("access-denied"), "another method");
    assert_eq!(ask("GET", "/admin", "store.site")?, refused("access-denied"), "another path");
    assert_eq!(ask("GET", "/API/user", "store.site")?, refused("access-denied"), "a path in other letters");
    assert_eq!(
        ask("GET", "/api/user", "OTHER.site.:80")?,
        refused("authority-mismatch"),
        "a name of another workload"
    );
    assert_eq!(ask("GET", "/api/user", "nobody.site")?, allowed, "a name of nobody");

    // The rule is for somebody else now.
    site.mesh.apply("other.yaml", &policy("server-access", "server", &[&allow("other", "")]))?;
    wait_for("the refusal on a connection that was served", || {
        ask("GET", "/api/user", "store.site").ok().filter(|answer| *answer == refused("access-denied"))
    })?;
    let unexpected = |request: &String| !request.starts_with("GET /api/user ");
    assert!(!app.requests().iter().any(unexpected), "the app has seen {:#?}", app.requests());
    Ok(())
}

fn withdrawn_permission_ends_open_streams() -> TestResult {
    let site = site()?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let _events = app(&server, &["sse"], &[EVENTS])?;
    let line = Recorder::silent(&server, LINE)?;
    let [_server, sidecar] = site.sidecars([(&server, "server"), (&client, "client")])?;
    site.mesh.apply("open.yaml", &policy("open", "server", &[&allow("client", "")]))?;
    for port in [EVENTS, LINE] {
        sidecar.wait_until_known(place(&server, port))?;
    }
    wait_for("the permission", || {
        let answer = Plain::ask(&client, place(&server, EVENTS), &get("/nothing", "server")).ok()?;
        (answer.status == 404).then_some(())
    })?;

    let mut events = Plain::dial(&client, place(&server, EVENTS))?;
    events.send(get("/events?n=100000&every=50", "server").as_bytes())?;
    events.read_until("id: 3\n")?;
    let mut bytes = Plain::dial(&client, place(&server, LINE))?;
    bytes.send(b"first line\n")?;
    line.wait_for("the line", |all| all.iter().any(|connection| connection.bytes == b"first line\n"))?;

    site.mesh.delete("AccessPolicy", "open")?;
    let (received, ended) = events.rest();
    assert_ne!(ended, Ended::Open, "events still come");
    assert!(!received.ends_with(b"0\r\n\r\n"), "the stream pretends to be complete");
    let (_, ended) = bytes.rest();
    assert_eq!(ended, Ended::Reset, "for the client");
    let over =
        line.wait_for("the end", |all| all.iter().all(|connection| connection.ended != Ended::Open))?;
    assert!(over.iter().all(|connection| connection.ended == Ended::Reset), "for the app: {over:?}");
    Ok(())
}

fn invalid_policy_is_refused_with_its_place_and_changes_nothing() -> TestResult {
    let site = site()?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let _app = Recorder::http(&server, HTTP)?;
    let [_server, sidecar] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let address = place(&server, HTTP);
    sidecar.wait_until_known(address)?;
    let good = policy("good", "server", &[&allow("client", "{methods: [GET]}")]);
    let revision = site.mesh.apply("good.yaml", &good)?;
    let status = |method: &str| -> Option<u16> {
        let request = format!("{method} / HTTP/1.1\r\nHost: server\r\n\r\n");
        Plain::ask(&client, address, &request).ok().map(|answer| answer.status)
    };
    wait_for("the permission", || (status("GET")? == 200).then_some(()))?;

    // Each file begins with a document that is right and would open the port.
    let opening = policy("opening", "server", &[&allow("client", "")]);
    let line = opening.lines().count();
    let wrong = [
        (policy("other", "sevrer", &[]), line + 6, "no Workload is called `sevrer`"),
        (opening.replace("rules:", "rule:").replace("name: opening", "name: other"), line + 7, "rule"),
        (opening.replace("kind: AccessPolicy", "kind: AccesPolicy"), line + 3, "AccesPolicy"),
        (
            policy("other", "server", &["{from: [{identity: 'spiffe://site.example//client'}]}"]),
            line + 7,
            "spiffe://",
        ),
        ("---\n{".to_owned(), line + 2, ""),
    ];
    for (number, (document, line, word)) in wrong.iter().enumerate() {
        let file = site.mesh.folder().join(format!("wrong-{number}.yaml"));
        fs::write(&file, format!("{opening}{document}"))?;
        let socket = format!("unix:{}", site.mesh.socket().display());
        let arguments = ["apply", "-f", &file.to_string_lossy(), "--control-plane", &socket];
        let apply = site.host.namespace().start(program(&arguments))?;
        let (status, output) = (apply.wait(LIMIT)?, apply.output());
        assert!(matches!(status.code(), Some(1 | 64)), "{status}: {output}");
        let named = format!("wrong-{number}.yaml:{line}:");
        let is_told = |text: &str| text.contains(&named) && text.contains(word);
        assert!(output.lines().any(is_told), "expected {named} and {word:?} in:\n{output}");
    }

    assert_eq!(status("GET"), Some(200), "what was allowed still is");
    assert_eq!(status("POST"), Some(403), "and nothing else");
    assert_eq!(site.mesh.apply("good.yaml", &good)?, revision, "the store is as it was");
    Ok(())
}

fn request_id_explains_both_ends() -> TestResult {
    let site = site()?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let [_server, sidecar] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let address = place(&server, HTTP);
    sidecar.wait_until_known(address)?;
    site.mesh.apply("open.yaml", &policy("open", "server", &[&allow("client", "{methods: [GET]}")]))?;

    // Nothing listens there: both sidecars let the request pass, and the second cannot deliver it.
    let answer = wait_for("the permission", || {
        let answer = Plain::ask(&client, address, &get("/api/user?of=me", "server")).ok()?;
        (answer.code()? == "upstream-unreachable").then_some(answer)
    })?;
    assert_eq!(answer.status, 503);
    let request_id = answer.request_id().ok_or("the refusal names the request")?;
    let (exit, explanation) = explain(&site, &request_id)?;
    assert_eq!(exit, Some(1), "{explanation}");
    let text = explanation.to_string();
    for side in [
        "spiffe://site.example/app/host/client",
        "spiffe://site.example/app/host/server",
        "upstream-unreachable",
    ] {
        assert!(text.contains(side), "{side} is missing in {explanation:#}");
    }
    assert_eq!(explanation["proxies"].as_array().map(Vec::len), Some(2), "{explanation:#}");

    // Refused before it left: only the client's sidecar knows of it.
    let refused =
        Plain::ask(&client, address, "POST / HTTP/1.1\r\nHost: server\r\nContent-Length: 0\r\n\r\n")?;
    assert_eq!(refused.code().as_deref(), Some("access-denied"));
    let (exit, explanation) = explain(&site, &refused.request_id().ok_or("the refusal names the request")?)?;
    assert_eq!(exit, Some(1), "{explanation}");
    assert!(explanation.to_string().contains("access-denied"), "{explanation:#}");

    let (exit, _) = explain(&site, "00000000-0000-0000-0000-000000000000")?;
    assert!(!matches!(exit, Some(0)), "nobody knows this request");
    Ok(())
}

/// What `signet explain` tells of a past request.
fn explain(site: &Site, request_id: &str) -> Result<(Option<i32>, Value), Failure> {
    let socket = format!("unix:{}", site.mesh.socket().display());
    let arguments = ["explain", request_id, "-o", "json", "--control-plane", &socket];
    let explain = site.host.namespace().start(program(&arguments))?;
    let code = explain.wait(LIMIT)?.code();
    let output = explain.output();
    Ok((code, serde_json::from_str(&output).unwrap_or(Value::String(output))))
}
