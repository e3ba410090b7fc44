//! What policy allows, what it refuses, how fast a change bites, and that a wrong one changes nothing.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use signet_cli::lab::mesh::{Sidecar, app, program};
use signet_cli::lab::runner::{Test, TestResult};
use signet_identity::TlsSvid;
use signet_tests::manifest::{allow, deny, mesh, policy, role_appointer, role_grant, workload};
use signet_tests::plain::get;
use signet_tests::{Ended, Failure, LIMIT, Plain, Recorder, Site, id, place, wait_for};

pub(crate) const TESTS: &[Test] = &[
    ("nothing_is_allowed_until_a_rule_says_so", nothing_is_allowed_until_a_rule_says_so),
    ("withdrawn_permission_ends_open_streams", withdrawn_permission_ends_open_streams),
    (
        "invalid_policy_is_refused_with_its_place_and_changes_nothing",
        invalid_policy_is_refused_with_its_place_and_changes_nothing,
    ),
    ("request_id_explains_both_ends", request_id_explains_both_ends),
    ("deny_wins_and_opens_no_way_for_bytes", deny_wins_and_opens_no_way_for_bytes),
    ("header_fields_and_addresses_decide", header_fields_and_addresses_decide),
    (
        "entitled_workload_gives_a_role_until_it_is_no_longer_entitled",
        entitled_workload_gives_a_role_until_it_is_no_longer_entitled,
    ),
    ("role_opens_until_it_ends_also_for_open_streams", role_opens_until_it_ends_also_for_open_streams),
    ("observed_policy_is_enforced_without_a_restart", observed_policy_is_enforced_without_a_restart),
    ("rollback_brings_back_what_was_allowed", rollback_brings_back_what_was_allowed),
    ("bad_input_is_refused_and_changes_nothing", bad_input_is_refused_and_changes_nothing),
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
    assert!(!text.contains("\"disputed\":true") && !text.contains("dropped\":[\""), "{explanation:#}");
    let rule = &explanation["now"]["decision"];
    assert_eq!((&rule["policy"], &rule["rule"]), (&"open".into(), &"rule-1".into()), "{explanation:#}");

    // Refused before it left: only the client's sidecar knows of it.
    let refused =
        Plain::ask(&client, address, "POST / HTTP/1.1\r\nHost: server\r\nContent-Length: 0\r\n\r\n")?;
    assert_eq!(refused.code().as_deref(), Some("access-denied"));
    let (exit, explanation) = explain(&site, &refused.request_id().ok_or("the refusal names the request")?)?;
    assert_eq!(exit, Some(1), "{explanation}");
    assert!(explanation.to_string().contains("access-denied"), "{explanation:#}");
    let reason = &explanation["now"]["rules"][0]["reason"];
    assert_eq!(reason, "it does not allow the method POST", "{explanation:#}");

    let (exit, _) = explain(&site, "00000000-0000-0000-0000-000000000000")?;
    assert!(!matches!(exit, Some(0)), "nobody knows this request");
    Ok(())
}

fn deny_wins_and_opens_no_way_for_bytes() -> TestResult {
    let site = site()?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let app = Recorder::http(&server, LINE)?;
    let [_server, sidecar] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let address = place(&server, LINE);
    sidecar.wait_until_known(address)?;
    let ask = |method: &str, path: &str| -> Option<(u16, String)> {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: server\r\nContent-Length: 0\r\n\r\n");
        let answer = Plain::ask(&client, address, &request).ok()?;
        Some((answer.status, answer.code().unwrap_or_default()))
    };
    let denied = Some((403, "deny-rule".to_owned()));
    let allowed = Some((200, String::new()));

    let rule = "{name: no-admin, from: [{any: anyone}], to: [{paths: [/admin/**]}, {methods: [DELETE]}]}";
    site.mesh.apply("shut.yaml", &deny("shut", "server", &[rule]))?;
    site.mesh.apply("open.yaml", &policy("open", "server", &[&allow("client", "")]))?;
    wait_for("the permission", || ask("GET", "/").filter(|answer| Some(answer.clone()) == allowed))?;
    for (method, path) in
        [("GET", "/admin"), ("GET", "/admin/x"), ("GET", "/ADMIN/"), ("GET", "/%61dmin/x"), ("DELETE", "/")]
    {
        assert_eq!(ask(method, path), denied, "{method} {path}");
    }
    assert_eq!(ask("GET", "/administrator"), allowed);

    // Bytes that are not HTTP could be anything, so the deny of requests keeps them out.
    let (received, ended) = Plain::tell(&client, address, b"DELETE\n")?;
    assert_eq!((received.as_slice(), ended), (&b""[..], Ended::Reset));
    let reached = app.text();
    assert!(!reached.contains("DELETE") && !reached.to_lowercase().contains("dmin/x"), "{reached}");

    // Without it they pass, on a connection of the same client.
    site.mesh.delete("AccessPolicy", "shut")?;
    wait_for("the permission of everything", || {
        ask("DELETE", "/").filter(|answer| Some(answer.clone()) == allowed)
    })?;
    Ok(())
}

fn header_fields_and_addresses_decide() -> TestResult {
    let site = site()?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let app = Recorder::http(&server, HTTP)?;
    let [callee, sidecar] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let address = place(&server, HTTP);
    sidecar.wait_until_known(address)?;
    let ask = |fields: &str| -> Option<(u16, String)> {
        let request = format!("GET / HTTP/1.1\r\nHost: server\r\n{fields}\r\n");
        let answer = Plain::ask(&client, address, &request).ok()?;
        Some((answer.status, answer.code().unwrap_or_default()))
    };
    let refused = Some((403, "access-denied".to_owned()));
    let allowed = Some((200, String::new()));

    let tenant = "{headers: [{name: x-tenant, exact: blue}, {name: x-debug, absent: true}]}";
    site.mesh.apply("blue.yaml", &policy("open", "server", &[&allow("client", tenant)]))?;
    wait_for("the permission", || {
        ask("X-Tenant: blue\r\n").filter(|answer| Some(answer.clone()) == allowed)
    })?;
    for fields in [
        "",
        "X-Tenant: red\r\n",
        "X-Tenant: blue\r\nX-Tenant: red\r\n",
        "X-Tenant: blue\r\nX_Tenant: red\r\n",
        "X-Tenant: blue\r\nX-Debug: 1\r\n",
    ] {
        assert_eq!(ask(fields), refused, "{fields}");
    }
    assert!(app.requests().iter().all(|request| !request.contains("red") && !request.contains("Debug")));

    // Where the caller is, its own sidecar cannot know; the callee's sees it.
    let near = |range: &str| {
        let from = format!("from: [{{identity: '{}'}}]", id("client"));
        policy("open", "server", &[&format!("{{{from}, when: {{sourceAddresses: [{range}]}}}}")])
    };
    site.mesh.apply("near.yaml", &near(&format!("{}/32", client.ipv4())))?;
    wait_for("the permission by address", || ask("").filter(|answer| Some(answer.clone()) == allowed))?;
    site.mesh.apply("far.yaml", &near("192.0.2.0/24"))?;
    wait_for("the refusal by address", || ask("").filter(|answer| Some(answer.clone()) == refused))?;
    assert!(callee.metrics()?.refusals("access-denied") > 0, "the callee's sidecar refuses");
    Ok(())
}

fn role_opens_until_it_ends_also_for_open_streams() -> TestResult {
    let site = site()?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let _events = app(&server, &["sse"], &[EVENTS])?;
    let [_server, sidecar] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let address = place(&server, EVENTS);
    sidecar.wait_until_known(address)?;
    let status = || Plain::ask(&client, address, &get("/nothing", "server")).ok().map(|answer| answer.status);

    site.mesh.apply("leaders.yaml", &policy("leaders", "server", &["{from: [{role: leader}]}"]))?;
    wait_for("the policy", || (status()? == 403).then_some(()))?;
    // Of another, and over long ago.
    site.mesh.apply("other.yaml", &role_grant("other-leads", "other", "leader", "2100-01-01T00:00:00Z"))?;
    site.mesh.apply("past.yaml", &role_grant("client-leads", "client", "leader", "2020-01-01T00:00:00Z"))?;
    assert_eq!(status(), Some(403));

    // Ends are whole seconds.
    let ends = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 8;
    site.mesh
        .apply("now.yaml", &role_grant("client-leads", "client", "leader", &signet_policy::rfc3339(ends)))?;
    wait_for("the role", || (status()? == 404).then_some(()))?;
    let mut events = Plain::dial(&client, address)?;
    events.send(get("/events?n=100000&every=50", "server").as_bytes())?;
    events.read_until("id: 3\n")?;
    let (received, ended) = events.rest();
    assert_ne!(ended, Ended::Open, "events still come");
    assert!(!received.ends_with(b"0\r\n\r\n"), "the stream pretends to be complete");
    assert!(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() >= ends, "it ended before its time");
    assert_eq!(status(), Some(403), "and nothing new begins");

    site.mesh.apply("again.yaml", &role_grant("client-leads", "client", "leader", "2100-01-01T00:00:00Z"))?;
    wait_for("the role again", || (status()? == 404).then_some(()))?;
    site.mesh.delete("RoleGrant", "client-leads")?;
    wait_for("the role taken away", || (status()? == 403).then_some(()))?;
    Ok(())
}

/// Asks a sidecar to give a role to a workload, or to take it back; the status and what it says.
fn appoint(sidecar: &Sidecar, method: &str, wish: &Value) -> Result<(u16, Value), Failure> {
    let mut socket = UnixStream::connect(sidecar.folder().join("admin.sock"))?;
    socket.set_read_timeout(Some(LIMIT))?;
    let body = wish.to_string();
    let length = body.len();
    write!(
        socket,
        "{method} /appointments HTTP/1.1\r\nHost: sidecar\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    Ok((head.split(' ').nth(1).ok_or("no status")?.parse()?, serde_json::from_str(body)?))
}

fn entitled_workload_gives_a_role_until_it_is_no_longer_entitled() -> TestResult {
    let site = site()?;
    let (server, client, other) =
        (site.container("server")?, site.container("client")?, site.container("other")?);
    let _app = Recorder::http(&server, HTTP)?;
    let [_server, sidecar, leader] =
        site.sidecars([(&server, "server"), (&client, "client"), (&other, "other")])?;
    let address = place(&server, HTTP);
    sidecar.wait_until_known(address)?;
    let status = || Plain::ask(&client, address, &get("/", "server")).ok().map(|answer| answer.status);
    let becomes = |what: &str, expected: u16| {
        let since = Instant::now();
        let seen = wait_for(what, || (status()? == expected).then_some(()));
        println!("{what}: {:?}", since.elapsed());
        seen
    };
    let leads = role_grant("other-leads", "other", "leader", "2100-01-01T00:00:00Z");
    let leaders = role_appointer("backups", "backup", "{role: leader}", "{class: app}", "1h");
    site.mesh.apply(
        "rules.yaml",
        &[policy("backups", "server", &["{from: [{role: backup}]}"]), leaders].concat(),
    )?;
    becomes("the policy", 403)?;

    let wish = |until: Option<&str>| {
        let mut wish = serde_json::json!({ "role": "backup", "identity": id("client").as_str() });
        wish.as_object_mut().into_iter().for_each(|wish| {
            wish.extend(until.map(|until| ("notAfter".to_owned(), until.into())));
        });
        wish
    };
    let far = wish(Some("2100-01-01T00:00:00Z"));
    // Nobody is a leader yet; nor would the client be one for itself.
    for asked in [&leader, &sidecar] {
        let (status, answer) = appoint(asked, "POST", &far)?;
        assert_eq!((status, &answer["code"]), (403, &"not-entitled".into()), "{answer}");
    }
    site.mesh.apply("leads.yaml", &leads)?;
    let (answered, answer) = appoint(&leader, "POST", &far)?;
    assert_eq!(answered, 200, "{answer}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let until = answer["notAfter"].as_u64().ok_or("no end")?;
    assert!((now + 3_500..=now + 3_600).contains(&until), "an hour at most, not {until} at {now}");
    becomes("the role", 200)?;
    let mut leader_role = wish(Some("2100-01-01T00:00:00Z"));
    leader_role["role"] = "leader".into();
    assert_eq!(appoint(&leader, "POST", &leader_role)?.0, 403, "a role that nobody may give");

    assert_eq!(appoint(&leader, "DELETE", &wish(None))?, (200, serde_json::json!({ "notAfter": 0 })));
    becomes("the role taken back", 403)?;
    assert_eq!(appoint(&leader, "POST", &far)?.0, 200);
    becomes("the role again", 200)?;
    site.mesh.delete("RoleGrant", "other-leads")?;
    becomes("the end of who was entitled", 403)?;
    // What has died stays dead when its appointer is entitled again.
    let probe = policy("probe", "server", &["{from: [{class: app}], to: [{paths: [/probe]}]}"]);
    site.mesh.apply("leads.yaml", &[leads, probe].concat())?;
    wait_for("who is entitled again", || {
        let answer = Plain::ask(&client, address, &get("/probe", "server")).ok()?;
        (answer.status == 200).then_some(())
    })?;
    assert_eq!(status(), Some(403));
    assert_eq!(appoint(&leader, "POST", &far)?.0, 200);
    becomes("the role given anew", 200)?;
    let certificate = TlsSvid::from_pem(&fs::read(leader.folder().join("state/tls.pem"))?)?.fingerprint;
    site.mesh.revoke(certificate, "lost")?;
    becomes("the end of who was revoked", 403)?;
    Ok(())
}

fn observed_policy_is_enforced_without_a_restart() -> TestResult {
    let site = site()?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let _app = Recorder::http(&server, HTTP)?;
    let [callee, sidecar] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let address = place(&server, HTTP);
    sidecar.wait_until_known(address)?;
    let mut kept = Plain::dial(&client, address)?;
    let mut status = move |path: &str| -> Option<u16> {
        kept.send(get(path, "server").as_bytes()).ok()?;
        Some(kept.answer().ok()?.status)
    };
    let rules = ["{from: [{any: authenticated}], to: [{paths: [/admin/**]}]}"];
    let enforced = deny("no-admin", "server", &rules);
    let observed = enforced.replace("action: deny", "action: deny\n  mode: observe");
    let open = policy("open", "server", &[&allow("client", "")]);
    site.mesh.apply("observed.yaml", &format!("{open}{observed}"))?;
    wait_for("the permission", || (status("/")? == 200).then_some(()))?;

    let would = || callee.metrics().map(|metrics| metrics.value("signet_observed_refusals_total"));
    let before = would()?;
    assert_eq!(status("/admin/x"), Some(200), "what is only observed passes");
    assert_eq!(status("/"), Some(200));
    assert_eq!(would()? - before, 1.0, "one would have been refused");
    wait_for("the report of it", || {
        let (exit, coverage) = signet(&site, &["coverage", "-o", "json"]).ok()?;
        let is_server = |proxy: &&Value| proxy["spiffeId"] == id("server").as_str();
        let server = coverage["unprotected"].as_array()?.iter().find(is_server)?;
        (exit == Some(1) && server["observedRefusals"].as_u64()? > 0).then_some(())
    })?;

    site.mesh.apply("enforced.yaml", &enforced)?;
    wait_for("the refusal on a connection that was served", || (status("/admin/x")? == 403).then_some(()))?;
    assert_eq!(status("/"), Some(200));
    Ok(())
}

fn rollback_brings_back_what_was_allowed() -> TestResult {
    let site = site()?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let _app = Recorder::http(&server, HTTP)?;
    let [_server, sidecar] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let address = place(&server, HTTP);
    sidecar.wait_until_known(address)?;
    let status = || Plain::ask(&client, address, &get("/", "server")).ok().map(|answer| answer.status);
    site.mesh.apply("open.yaml", &policy("open", "server", &[&allow("client", "")]))?;
    wait_for("the permission", || (status()? == 200).then_some(()))?;
    site.mesh.apply("shut.yaml", &policy("open", "server", &[]))?;
    wait_for("the refusal", || (status()? == 403).then_some(()))?;

    let (exit, would) = signet(&site, &["rollback", "--dry-run", "-o", "json"])?;
    assert_eq!((exit, &would["stored"]), (Some(0), &Value::Bool(false)), "{would:#}");
    let diff = would["changes"][0]["diff"].as_str().unwrap_or_default();
    assert!(diff.contains("-  rules: []\n") && diff.contains("+  rules: [{from:"), "{would:#}");
    assert_eq!(status(), Some(403), "a dry run changes nothing");

    let (exit, done) = signet(&site, &["rollback", "-o", "json"])?;
    assert_eq!((exit, &done["stored"]), (Some(0), &Value::Bool(true)), "{done:#}");
    wait_for("the permission again", || (status()? == 200).then_some(()))?;
    let (exit, history) = signet(&site, &["history", "-o", "json"])?;
    assert_eq!((exit, history["versions"].as_array().map(Vec::len)), (Some(0), Some(4)), "{history:#}");
    let (exit, _) = signet(&site, &["rollback", "99", "-o", "json"])?;
    assert_eq!(exit, Some(1), "there is no such version");
    Ok(())
}

fn bad_input_is_refused_and_changes_nothing() -> TestResult {
    let site = site()?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let _app = Recorder::http(&server, HTTP)?;
    let [_server, sidecar] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let address = place(&server, HTTP);
    sidecar.wait_until_known(address)?;
    let status = || Plain::ask(&client, address, &get("/", "server")).ok().map(|answer| answer.status);
    let good = policy("open", "server", &[&allow("client", "")]);
    let revision = site.mesh.apply("good.yaml", &good)?;
    wait_for("the permission", || (status()? == 200).then_some(()))?;

    let opening = policy("opening", "server", &["{from: [{any: anyone}]}"]);
    let mut bomb = "---\nx0: &x0 [a, a, a, a, a, a, a, a, a, a]\n".to_owned();
    for level in 1..9 {
        let before = format!("*x{}, ", level - 1).repeat(10);
        bomb += &format!("x{level}: &x{level} [{before}]\n");
    }
    let shut = deny("shut", "server", &["{from: [{any: anyone}]}"]);
    let wrong: [(&str, Vec<u8>, &str); 7] = [
        (
            "unknown-field",
            opening.replace("rules:", "ruels:").into_bytes(),
            "unknown field `ruels`; fix: write `rules`",
        ),
        (
            "duplicate-key",
            opening.replace("spec:\n", "spec:\n  rules: []\n").into_bytes(),
            "`rules` is given twice",
        ),
        (
            "conflict",
            format!("{opening}{shut}").into_bytes(),
            "can never allow anything: shut/rule-1 denies all of it",
        ),
        (
            "empty-selector",
            opening.replace("[server]", "[]").into_bytes(),
            "`workloads` is empty; fix: name some",
        ),
        ("bomb", format!("{opening}{bomb}").into_bytes(), "fix: "),
        ("latin-1", [opening.as_bytes(), b"# caf\xe9\n"].concat(), "it is no text in UTF-8"),
        ("10-mib", [opening.as_bytes(), &vec![b'#'; 10 * 1024 * 1024]].concat(), "longer than 1048576 bytes"),
    ];
    for (name, bytes, word) in wrong {
        let file = site.mesh.folder().join(format!("{name}.yaml"));
        fs::write(&file, bytes)?;
        for command in ["validate", "apply"] {
            let (exit, output) = signet(&site, &[command, "-f", &file.to_string_lossy()])?;
            let output = output.as_str().unwrap_or_default().to_owned();
            // What contradicts the rest is only seen by who has the rest.
            if command == "apply" || name != "conflict" {
                assert_eq!(exit, Some(64), "{command} {name}: {output}");
                assert!(output.contains(word), "{command} {name}: {output}");
            }
        }
    }
    assert_eq!(status(), Some(200), "what was allowed still is");
    assert_eq!(site.mesh.apply("good.yaml", &good)?, revision, "the store is as it was");
    Ok(())
}

/// What `signet explain` tells of a past request.
fn explain(site: &Site, request_id: &str) -> Result<(Option<i32>, Value), Failure> {
    signet(site, &["explain", request_id, "-o", "json"])
}

/// What a command exits with and says, as JSON where it is.
pub(crate) fn signet(site: &Site, arguments: &[&str]) -> Result<(Option<i32>, Value), Failure> {
    let socket = format!("unix:{}", site.mesh.socket().display());
    let of_control_plane = !matches!(arguments.first(), Some(&"validate"));
    let socket: &[&str] = if of_control_plane { &["--control-plane", &socket] } else { &[] };
    let command = site.host.namespace().start(program(&[arguments, socket].concat()))?;
    let code = command.wait(LIMIT)?.code();
    let output = command.output();
    Ok((code, serde_json::from_str(&output).unwrap_or(Value::String(output))))
}
