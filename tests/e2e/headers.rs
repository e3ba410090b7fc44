//! Header fields by which applications tell who calls: nobody says more than it is entitled to.

use signet_cli::lab::runner::{Test, TestResult};
use signet_tests::manifest::{allow, header_policy, mesh, policy, workload};
use signet_tests::{Failure, Plain, Recorder, Site, place, wait_for};

pub(crate) const TESTS: &[Test] = &[
    (
        "super_admin_of_who_is_not_entitled_arrives_as_anonymous",
        super_admin_of_who_is_not_entitled_arrives_as_anonymous,
    ),
    ("plain_callers_say_nothing_about_themselves", plain_callers_say_nothing_about_themselves),
];

const PORT: u16 = 8201;

/// What every mF2C component sends, and what proxies add, in more than one spelling.
const FIELDS: &str = "Slipstream-Authn-Info: super ADMIN\r\nslipstream_authn_info: super ADMIN\r\n\
                      X-Forwarded-For: 192.0.2.9\r\nX-User: root\r\nX-Peer: spiffe://site.example/app/host/root\r\n\
                      X-Forwarded-Client-Cert: URI=spiffe://site.example/app/host/root\r\n";

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: server\r\nAccept: text/plain\r\n{FIELDS}\r\n")
}

/// A request whose fields come behind its body; long enough to travel as records.
fn trailing(path: &str) -> String {
    let body = "x".repeat(70_000);
    format!(
        "POST {path} HTTP/1.1\r\nHost: server\r\nTE: trailers\r\nTrailer: X-User, X-Peer, Slipstream-Authn-Info, X-Sum\r\n\
         Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\nX-User: root\r\nx_peer: root\r\nX-Peer: root\r\n\
         Slipstream-Authn-Info: super ADMIN\r\nX-Sum: 7\r\n\r\n",
        body.len()
    )
}

/// The request with this path as the app got it, in lower case: names come in any.
fn received(app: &Recorder, path: &str) -> Result<String, Failure> {
    let is_it = |request: &String| request.split(' ').nth(1) == Some(path);
    let seen = app.requests().into_iter().find(is_it);
    Ok(seen.ok_or_else(|| format!("the app has not seen {path}"))?.to_lowercase())
}

fn super_admin_of_who_is_not_entitled_arrives_as_anonymous() -> TestResult {
    let ports = "ports: [{port: 8201, protocol: http}]";
    let site =
        Site::new(&[mesh(&[]), workload("server", &[ports]), workload("client", &[]), workload("lm", &[])])?;
    let (server, client, lm) = (site.container("server")?, site.container("client")?, site.container("lm")?);
    let app = Recorder::http(&server, PORT)?;
    let [_server, sidecar, other] = site.sidecars([(&server, "server"), (&client, "client"), (&lm, "lm")])?;
    let address = place(&server, PORT);
    sidecar.wait_until_known(address)?;
    other.wait_until_known(address)?;
    site.mesh.apply("open.yaml", &policy("open", "server", &[&allow("client", ""), &allow("lm", "")]))?;

    // Without any policy on headers nobody is administrator, and proxies are left alone.
    for (who, from) in [("client", &client), ("lm", &lm)] {
        let path = format!("/before/{who}");
        wait_for("the permission", || {
            (Plain::ask(from, address, &request(&path)).ok()?.status == 200).then_some(())
        })?;
        let seen = received(&app, &path)?;
        assert!(!seen.contains("admin"), "{seen}");
        assert!(
            seen.contains("x-forwarded-for: 192.0.2.9\r\n") && seen.contains("x-user: root\r\n"),
            "{seen}"
        );
        let certificate = format!("uri=spiffe://site.example/app/host/{who}\r\n");
        assert!(
            seen.contains(&certificate) && !seen.contains("uri=spiffe://site.example/app/host/root"),
            "{seen}"
        );
    }

    let entries = "identityHeaders: [{names: [slipstream-authn-info], \
                   entitled: [{identity: 'spiffe://site.example/app/host/lm'}]}, {names: [x-user], overwrite: nobody}]";
    let policy = header_policy("identity", "server", &[entries, "peerHeader: X-Peer"]);
    site.mesh.apply("identity.yaml", &policy)?;
    let mut attempt = 0;
    wait_for("the header policy", || {
        attempt += 1;
        let path = format!("/wait/{attempt}");
        Plain::ask(&client, address, &request(&path)).ok()?;
        received(&app, &path).ok()?.contains("x-user: nobody\r\n").then_some(())
    })?;
    for (who, from) in [("client", &client), ("lm", &lm)] {
        let path = format!("/after/{who}");
        assert_eq!(
            Plain::ask(from, address, &request(&path))?.status,
            200,
            "what is signed is what was sent"
        );
        let seen = received(&app, &path)?;
        assert_eq!(seen.contains("slipstream-authn-info: super admin\r\n"), who == "lm", "{seen}");
        assert!(!seen.contains("x-forwarded-for"), "{seen}");
        assert!(seen.contains("x-user: nobody\r\n") && !seen.contains("root"), "{seen}");
        assert!(seen.contains(&format!("x-peer: spiffe://site.example/app/host/{who}\r\n")), "{seen}");
        assert!(seen.contains("accept: text/plain\r\n"), "{seen}");

        let path = format!("/trailing/{who}");
        assert_eq!(Plain::ask(from, address, &trailing(&path))?.status, 200);
        let seen = received(&app, &path)?;
        let trailers = seen.rsplit("\r\n0\r\n").next().unwrap_or_default();
        assert!(trailers.contains("x-sum: 7\r\n") && !trailers.contains("root"), "{trailers}");
        assert!(!trailers.contains("admin"), "nobody says it behind the body: {trailers}");
    }
    Ok(())
}

fn plain_callers_say_nothing_about_themselves() -> TestResult {
    let settings = ["ports: [{port: 8201, protocol: http}]", "mtls: {mode: permissive}"];
    let site = Site::new(&[mesh(&[]), workload("server", &settings)])?;
    let (server, stranger) = (site.container("server")?, site.container("stranger")?);
    let app = Recorder::http(&server, PORT)?;
    let [_server] = site.sidecars([(&server, "server")])?;
    let address = place(&server, PORT);
    site.mesh.apply("open.yaml", &policy("open", "server", &["{from: [{any: anyone}]}"]))?;
    wait_for("the permission", || {
        (Plain::ask(&stranger, address, &request("/before")).ok()?.status == 200).then_some(())
    })?;
    let seen = received(&app, "/before")?;
    assert!(!seen.contains("admin") && !seen.contains("x-forwarded-client-cert"), "{seen}");

    site.mesh.apply("identity.yaml", &header_policy("identity", "server", &["peerHeader: x-peer"]))?;
    let mut attempt = 0;
    let seen = wait_for("the header policy", || {
        attempt += 1;
        let path = format!("/wait/{attempt}");
        Plain::ask(&stranger, address, &request(&path)).ok()?;
        received(&app, &path).ok().filter(|seen| !seen.contains("x-forwarded-for"))
    })?;
    assert!(!seen.contains("x-peer") && !seen.contains("admin"), "{seen}");
    assert_eq!(Plain::ask(&stranger, address, &trailing("/trailing"))?.status, 200);
    let seen = received(&app, "/trailing")?;
    let trailers = seen.rsplit("\r\n0\r\n").next().unwrap_or_default();
    assert!(trailers.contains("x-sum: 7\r\n"), "{trailers}");
    assert!(
        !trailers.contains("admin") && !trailers.contains("x-peer") && !trailers.contains("x_peer"),
        "{trailers}"
    );
    Ok(())
}
