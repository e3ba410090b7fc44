//! Ways round the mesh and its policy, each tried and found closed.

use std::io::ErrorKind;
use std::net::SocketAddr;

use signet_cli::lab::mesh::app_at;
use signet_cli::lab::mesh::intruder::{Caller, Draft, Identity, IntruderError, Stream, inside};
use signet_cli::lab::runner::{Test, TestResult};
use signet_cli::lab::{Container, Tap};
use signet_tests::manifest::{allow, mesh, policy, workload};
use signet_tests::plain::{datagrams, get};
use signet_tests::{Ended, Failure, Plain, Recorder, Site, id, place, wait_for};

pub(crate) const TESTS: &[Test] = &[
    ("layer_seven_port_admits_nothing_but_http", layer_seven_port_admits_nothing_but_http),
    ("loopback_only_service_stays_unreachable", loopback_only_service_stays_unreachable),
    ("ambiguous_requests_are_refused_at_both_sidecars", ambiguous_requests_are_refused_at_both_sidecars),
    ("ports_of_a_sidecar_lead_nowhere", ports_of_a_sidecar_lead_nowhere),
    ("strict_refuses_what_permissive_passes", strict_refuses_what_permissive_passes),
    ("killed_sidecar_lets_nothing_out_in_clear", killed_sidecar_lets_nothing_out_in_clear),
    ("headers_of_the_mesh_cannot_be_spoofed", headers_of_the_mesh_cannot_be_spoofed),
];

const HTTP: u16 = 8201;
const REDIS: u16 = 6379;
const CANARY: &str = "canary-7f3a91";

/// The server's ports, and what `caller` (a thief) and `client` (an honest one) may do there.
fn manifests(rule: &str) -> Vec<String> {
    let advertise = "advertise: [{network: area, address: 10.0.0.1, port: 6379, targetPort: 6379}]";
    let ports = "ports: [{port: 8201, protocol: http}, {port: 8300}, {port: 6379, protocol: opaque}]";
    vec![
        workload("server", &["names: [server]", ports, advertise]),
        workload("client", &[]),
        workload("caller", &[]),
        workload("other", &["names: [other.site]"]),
        policy("access", "server", &[&allow("client", rule), &allow("caller", rule)]),
    ]
}

fn strict_site() -> Result<Site, Failure> {
    Site::new(&[vec![mesh(&[])], manifests("")].concat())
}

fn layer_seven_port_admits_nothing_but_http() -> TestResult {
    let site = strict_site()?;
    // A port nobody declared a protocol for becomes a layer-7 port by one rule for somebody else.
    let rule = allow("other", "{methods: [GET], paths: [/api], ports: [8300]}");
    site.mesh.apply("seven.yaml", &policy("seven", "server", &[&rule]))?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let stranger = site.container("stranger")?;
    let apps = [Recorder::http(&server, HTTP)?, Recorder::http(&server, 8300)?];
    let [receiver, sender] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let thief = site.intruder(&stranger, "caller")?;

    for (app, port) in apps.iter().zip([HTTP, 8300]) {
        let address = place(&server, port);
        sender.wait_until_known(address)?;
        for bytes in
            [&b"\x00\x00\x00\x10opaque bytes"[..], b"\x16\x03\x01\x00\x05hello", b"SSH-2.0-bypass\r\n"]
        {
            let (answer, ended) = Plain::tell(&client, address, bytes)?;
            assert_eq!((answer, ended), (Vec::new(), Ended::Reset), "{port}: {bytes:?}");
        }
        let answer =
            Plain::ask(&client, address, "CONNECT 127.0.0.1:6379 HTTP/1.1\r\nHost: 127.0.0.1:6379\r\n\r\n")?;
        assert_eq!((answer.status, answer.code().as_deref()), (403, Some("connect-refused")), "{port}");

        let thief = thief.clone();
        inside(stranger.namespace(), move || async move {
            for target in [address.to_string(), format!("127.0.0.1:{REDIS}")] {
                let mut caller = Caller::open(&thief, address).await?;
                let signed = caller.sign(&Draft::new("CONNECT", &target, &target))?;
                let answer = caller.call(&signed).await?;
                assert_eq!(
                    (answer.status, answer.code().as_deref()),
                    (403, Some("connect-refused")),
                    "{port}"
                );
            }
            for auto in [false, true] {
                let code = stream_refused(&thief, address, port, auto).await;
                assert_eq!(code.as_deref(), Some("opaque-to-l7-port"), "{port}, auto {auto}");
            }
            Ok(())
        })?;
        assert!(app.text().is_empty(), "the app at {port} has seen {:?}", app.connections());
        let answer = Plain::ask(&client, address, &get("/api", "server"))?;
        assert_eq!(answer.status, 200, "{port} serves HTTP: {answer:?}");
    }
    assert!(receiver.metrics()?.refusals("opaque-to-l7-port") > 0);
    assert!(sender.metrics()?.refusals("opaque-to-l7-port") > 0);
    Ok(())
}

/// Opens a record stream and tells the code it is refused with, at once or with the first thing that comes.
async fn stream_refused(thief: &Identity, address: SocketAddr, port: u16, auto: bool) -> Option<String> {
    let opened = Stream::open(thief, address, (&id("server"), port), auto).await;
    let outcome = match opened {
        Ok(mut stream) => stream.receive().await.map(|_| ()),
        Err(error) => Err(error),
    };
    match outcome {
        Err(IntruderError::Refused(code)) => Some(code),
        _ => None,
    }
}

fn loopback_only_service_stays_unreachable() -> TestResult {
    let site = strict_site()?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let stranger = site.container("stranger")?;
    let secret = SocketAddr::from(([127, 0, 0, 1], REDIS));
    let _app = app_at(&server, &["loopback-only"], &[secret, (std::net::Ipv6Addr::LOCALHOST, REDIS).into()])?;
    let _other = Recorder::http(&server, HTTP)?;
    let published = SocketAddr::from((site.host.ipv4(), REDIS));
    site.host.publish(REDIS, &server, REDIS)?;
    let [receiver, sender] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let thief = site.intruder(&stranger, "caller")?;

    let told = |from: &Container, to: SocketAddr| -> Result<String, Failure> {
        Ok(String::from_utf8_lossy(&Plain::tell(from, to, b"")?.0).into_owned())
    };
    assert!(told(&server, secret)?.contains("secret"), "at home it answers");
    let direct = place(&server, REDIS);
    sender.wait_until_known(direct)?;
    sender.wait_until_known(published)?;
    for to in [direct, published, (server.ipv6(), REDIS).into(), secret] {
        assert_eq!(told(&client, to)?, "", "through the mesh to {to}");
    }
    for to in [direct, published, (server.ipv6(), REDIS).into()] {
        assert_eq!(told(&stranger, to)?, "", "past the mesh to {to}");
    }
    let before = receiver.metrics()?.refusals("upstream-unreachable");
    assert!(before > 0, "the sidecar did not find it where it dialled");

    let web = place(&server, HTTP);
    inside(stranger.namespace(), move || async move {
        for address in [direct, published] {
            for auto in [false, true] {
                let code = stream_refused(&thief, address, REDIS, auto).await;
                assert_eq!(code.as_deref(), Some("upstream-unreachable"), "{address}, auto {auto}");
            }
        }
        // Neither a host nor an absolute target chooses where a request goes.
        let host = format!("127.0.0.1:{REDIS}");
        for target in ["/".to_owned(), format!("http://{host}/")] {
            let mut caller = Caller::open(&thief, web).await?;
            let signed = caller.sign(&Draft::new("GET", &target, &host))?;
            let answer = caller.call(&signed).await?;
            assert!(!String::from_utf8_lossy(&answer.body).contains("secret"), "{target}: {answer:?}");
        }
        Ok(())
    })?;
    Ok(())
}

/// Targets that can be read in two ways.
const TARGETS: &[&str] = &[
    "//admin",
    "/api//admin",
    "/./admin",
    "/api/../admin",
    "/api/..",
    "/api/%2e%2e/admin",
    "/api/%2E./admin",
    "/api%2Fadmin",
    "/api%2fadmin",
    "/api%5Cadmin",
    "/api%5cadmin",
    "/api\\admin",
    "/api%00",
    "/api%0d%0aadmin",
    "/api;x=1",
    "/api/..;/admin",
    "/api%252e%252e/admin",
    "/api%c0%afadmin",
    "/api%zz",
    "/api%2",
    "/caf\u{e9}",
    "/api?q=\u{e9}",
    "api",
    "*",
    "ftp://server/api",
];

/// Heads that can be read in two ways, and what is refused with which code; none where the parser itself refuses.
const HEADS: &[(&str, Option<&str>)] = &[
    ("GET /api HTTP/1.1\r\nHost: server\r\nHost: server\r\n\r\n", Some("ambiguous-target")),
    ("GET /api HTTP/1.1\r\nHost: server\r\nHost: other.site\r\n\r\n", Some("ambiguous-target")),
    ("GET /api HTTP/1.1\r\nHost: other.site\r\n\r\n", Some("authority-mismatch")),
    ("GET /api HTTP/1.1\r\nHost: OTHER.SITE.:8201\r\n\r\n", Some("authority-mismatch")),
    ("GET http://other.site/api HTTP/1.1\r\nHost: other.site\r\n\r\n", Some("authority-mismatch")),
    ("GET http://other.site/api HTTP/1.1\r\nHost: server\r\n\r\n", Some("ambiguous-target")),
    ("GET http://server/api HTTP/1.1\r\nHost: other.site\r\n\r\n", Some("ambiguous-target")),
    ("GET /api HTTP/1.1\r\nHost: server/other\r\n\r\n", Some("ambiguous-target")),
    ("GET /api HTTP/1.1\r\nHost: user@server\r\n\r\n", Some("ambiguous-target")),
    ("GET /api HTTP/1.1\r\nHost: \r\n\r\n", Some("ambiguous-target")),
    ("GET /api HTTP/1.1\r\n\r\n", Some("ambiguous-target")),
    ("GET /api HTTP/1.1\r\nHost: server\r\nX-Folded: a\r\n b\r\n\r\n", None),
    ("GET /api HTTP/1.1\r\nHost : server\r\n\r\n", None),
    ("GET /api HTTP/1.1\r\nHost: server\r\nX-Nul: a\0b\r\n\r\n", None),
    ("POST /api HTTP/1.1\r\nHost: server\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", None),
    ("POST /api HTTP/1.1\r\nHost: server\r\nContent-Length: +3\r\n\r\nabc", None),
    ("POST /api HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", None),
    ("POST /api HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", None),
    ("GET /api HTTP/1.1\r\nHost: server\r\nContent-Length: 3\r\nContent-Length: 0\r\n\r\nabc", None),
];

fn ambiguous_requests_are_refused_at_both_sidecars() -> TestResult {
    let site = Site::new(
        &[vec![mesh(&[])], manifests("{methods: [GET, POST], paths: [/**], ports: [8201]}")].concat(),
    )?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let stranger = site.container("stranger")?;
    let app = Recorder::http(&server, HTTP)?;
    let [_receiver, sender] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let thief = site.intruder(&stranger, "caller")?;
    let address = place(&server, HTTP);
    sender.wait_until_known(address)?;

    let mut wrong = Vec::new();
    for target in TARGETS {
        let answer = Plain::ask(&client, address, &get(target, "server"));
        let found = answer.map(|answer| (answer.status, answer.code().unwrap_or_default()));
        // What is no request line at all the parser refuses without a word about it.
        match found {
            Ok((400, code))
                if code == "ambiguous-target" || code.is_empty() || code == "malformed-message" => {}
            other => wrong.push(format!("from the app: {target}: {other:?}")),
        }
    }
    for (head, code) in HEADS {
        let mut plain = Plain::dial(&client, address)?;
        plain.send(head.as_bytes())?;
        match plain.answer() {
            Ok(answer) if code.is_some() && answer.code().as_deref() == *code => {}
            Ok(answer) if code.is_none() && matches!(answer.status, 400 | 501) => {}
            Err(_) if code.is_none() => {}
            other => wrong.push(format!("from the app: {head:?}: {other:?}, not {code:?}")),
        }
    }

    let found = inside(stranger.namespace(), move || async move {
        let mut wrong = Vec::new();
        for target in TARGETS {
            let mut caller = Caller::open(&thief, address).await?;
            // What our own library cannot sign, the thief writes over a signature for something else.
            let signed = match caller.sign(&Draft::new("GET", target, "server")) {
                Ok(signed) => signed,
                Err(_) => caller.sign(&Draft::new("GET", "/api", "server"))?,
            };
            let mut signed = signed;
            signed.start.1 = (*target).to_owned();
            match caller.call(&signed).await {
                Ok(answer) if answer.status == 400 => {}
                Err(error) if error.is_cut() => {}
                other => {
                    wrong.push(format!("from a peer: {target}: {:?}", other.map(|answer| answer.status)))
                }
            }
        }
        for host in ["other.site", "OTHER.SITE.:8201"] {
            let mut caller = Caller::open(&thief, address).await?;
            let signed = caller.sign(&Draft::new("GET", "/api", host))?;
            let answer = caller.call(&signed).await?;
            if (answer.status, answer.code().as_deref()) != (403, Some("authority-mismatch")) {
                wrong.push(format!("from a peer: {host}: {answer:?}"));
            }
        }
        let twice = |mut signed: signet_cli::lab::mesh::intruder::Signed| {
            signed.headers.push(("host".into(), b"other.site".to_vec()));
            signed
        };
        let folded = |signed: signet_cli::lab::mesh::intruder::Signed| signed.with("x-folded", "a\r\n b");
        for spoil in [&twice as &dyn Fn(_) -> _, &folded] {
            let mut caller = Caller::open(&thief, address).await?;
            let signed = spoil(caller.sign(&Draft::new("GET", "/api", "server"))?);
            match caller.call(&signed).await {
                Ok(answer) if answer.status == 400 => {}
                Err(error) if error.is_cut() => {}
                other => wrong.push(format!("from a peer: {:?}: {other:?}", signed.headers.last())),
            }
        }
        Ok(wrong)
    })?;
    wrong.extend(found);
    assert!(wrong.is_empty(), "{}\nthe app has seen {:#?}", wrong.join("\n"), app.requests());
    assert!(app.text().is_empty(), "the app has seen {:#?}", app.requests());
    assert_eq!(
        Plain::ask(&client, address, &get("/api/user?of=me&x=1%20a", "server"))?.status,
        200,
        "a clear request"
    );

    // A fragment is no part of a target (RFC 9112 section 3.2): the application never sees one.
    let fragment = Plain::ask(&client, address, &get("/api/user#/../../admin", "server"))?;
    assert_eq!(fragment.status, 200);
    let last = app.requests().pop().unwrap_or_default();
    assert!(last.starts_with("GET /api/user HTTP/1.1\r\n"), "{last}");

    // With two lengths the chunks count (RFC 9112 section 6.3), and what follows them is no second request.
    let two_lengths = "POST /api HTTP/1.1\r\nHost: server\r\nContent-Length: 46\r\nTransfer-Encoding: chunked\r\n\r\n\
                       0\r\n\r\nGET /admin HTTP/1.1\r\nHost: server\r\n\r\n";
    let (_, ended) = Plain::tell(&client, address, two_lengths.as_bytes())?;
    assert_ne!(ended, Ended::Open, "the connection can no longer be trusted");
    assert!(!app.text().contains("/admin"), "the app has seen {:#?}", app.requests());
    Ok(())
}

fn ports_of_a_sidecar_lead_nowhere() -> TestResult {
    let site = strict_site()?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let stranger = site.container("stranger")?;
    let app = Recorder::http(&server, HTTP)?;
    let [receiver, sender] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let thief = site.intruder(&stranger, "caller")?;
    sender.wait_until_known(place(&server, HTTP))?;

    let at_home = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    for port in [15001, 15006] {
        let attempts = [
            (&stranger, place(&server, port)),
            (&client, place(&server, port)),
            (&server, place(&server, port)),
            (&server, at_home(port)),
            (&client, at_home(port)),
        ];
        for (from, to) in attempts {
            let request = "GET /api HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n";
            let (answer, ended) = Plain::tell(from, to, request.as_bytes())?;
            assert_ne!(ended, Ended::Open, "{to} keeps {} waiting", from.ipv4());
            let text = String::from_utf8_lossy(&answer).into_owned();
            assert!(!text.starts_with("HTTP/1.1 2"), "{to} answers {text}");
        }
        let (thief, to) = (thief.clone(), place(&server, port));
        inside(stranger.namespace(), move || async move {
            if let Ok(mut caller) = Caller::open(&thief, to).await {
                let signed = caller.sign(&Draft::new("GET", "/api", "server"))?;
                let answer = caller.call(&signed).await;
                assert!(!matches!(&answer, Ok(answer) if answer.status < 400), "{to} answers {answer:?}");
            }
            if let Ok(mut stream) = Stream::open(&thief, to, (&id("server"), port), false).await {
                let event = stream.receive().await;
                assert!(event.is_err(), "{to} answers {event:?}");
            }
            Ok(())
        })?;
    }

    // Health and metrics are for everybody; nothing else is at that port.
    let admin = place(&server, 15020);
    assert_eq!(Plain::ask(&stranger, admin, &get("/live", admin))?.status, 200);
    for target in
        ["/state", "/directory", "/requests/1", "/config_dump", "/debug/pprof/", "/admin", "/quitquitquit"]
    {
        for method in ["GET", "POST"] {
            let request = format!("{method} {target} HTTP/1.1\r\nHost: server\r\nContent-Length: 0\r\n\r\n");
            let answer = Plain::ask(&stranger, admin, &request)?;
            assert!(matches!(answer.status, 404 | 405), "{method} {target}: {answer:?}");
        }
    }
    let metrics = Plain::ask(&stranger, admin, &get("/metrics", admin))?;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(!metrics.contains("PRIVATE") && !metrics.contains("/api"), "{metrics}");

    assert!(app.text().is_empty(), "the app has seen {:?}", app.requests());
    for sidecar in [&receiver, &sender] {
        assert_eq!(sidecar.state()?["ready"], true, "{}", sidecar.log_tail());
    }
    assert_eq!(Plain::ask(&client, place(&server, HTTP), &get("/api", "server"))?.status, 200);
    Ok(())
}

fn strict_refuses_what_permissive_passes() -> TestResult {
    let stranger_at = "172.18.0.4/32";
    let egress = format!(
        "egress: [{{cidr: {stranger_at}, protocol: tcp, ports: [9001]}}, {{cidr: {stranger_at}, protocol: udp, ports: [9002]}}]"
    );
    let site = Site::new(&[vec![mesh(&[&egress])], manifests("")].concat())?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let stranger = site.container("stranger")?;
    assert_eq!(format!("{}/32", stranger.ipv4()), stranger_at);
    let (app, undeclared) = (Recorder::http(&server, HTTP)?, Recorder::http(&server, 9999)?);
    let (unlisted, listed) = (Recorder::http(&stranger, 9000)?, Recorder::http(&stranger, 9001)?);
    let [receiver, sender] = site.sidecars([(&server, "server"), (&client, "client")])?;

    for to in [place(&server, HTTP), (server.ipv6(), HTTP).into(), place(&server, 9999)] {
        for bytes in [get("/api", "server").as_bytes(), b"\x00opaque"] {
            let (answer, ended) = Plain::tell(&stranger, to, bytes)?;
            assert_eq!((answer, ended), (Vec::new(), Ended::Reset), "plaintext to {to}");
        }
    }
    assert!(receiver.metrics()?.refusals("plaintext-refused") >= 6);
    assert!(app.text().is_empty() && undeclared.text().is_empty());

    let refused = Plain::ask(&client, place(&stranger, 9000), &get("/", "stranger"));
    let (_, ended) = Plain::tell(&client, place(&stranger, 9000), b"\x00opaque")?;
    assert_eq!(ended, Ended::Reset);
    assert!(unlisted.connections().is_empty(), "{:?}", unlisted.connections());
    assert_eq!(Plain::ask(&client, place(&stranger, 9001), &get("/", "stranger"))?.status, 200);
    assert_eq!(listed.requests().len(), 1);

    let (listed, unlisted, dns) =
        (datagrams(&stranger, 9002)?, datagrams(&stranger, 9003)?, datagrams(&stranger, 53)?);
    let sender_socket = datagrams(&client, 0)?;
    let mut block = [0; 64];
    // Datagrams keep their order here: when the last has come, one that was let through before it has come too.
    let _ = sender_socket.send_to(CANARY.as_bytes(), place(&stranger, 9003));
    for (socket, port) in [(&listed, 9002), (&dns, 53)] {
        sender_socket.send_to(b"listed", place(&stranger, port))?;
        let received = socket.recv(&mut block)?;
        assert_eq!(&block[..received], b"listed");
    }
    unlisted.set_nonblocking(true)?;
    assert_eq!(
        unlisted.recv(&mut block).map_err(|error| error.kind()),
        Err(ErrorKind::WouldBlock),
        "UDP in strict"
    );

    let anyone = policy("anyone", "server", &["{from: [{any: anyone}]}"]);
    site.mesh.apply("permissive.yaml", &(mesh(&["mtls: {mode: permissive}", &egress]) + &anyone))?;
    wait_for("an unmeshed destination to pass", || {
        let answer = Plain::ask(&client, place(&stranger, 9000), &get("/", "stranger")).ok()?;
        (answer.status == 200).then_some(())
    })?;
    wait_for("plaintext to be accepted", || {
        let answer = Plain::ask(&stranger, place(&server, HTTP), &get("/api", "server")).ok()?;
        (answer.status == 200).then_some(())
    })?;
    wait_for("UDP to pass", || {
        let _ = sender_socket.send_to(b"now", place(&stranger, 9003));
        unlisted.recv(&mut block).ok()
    })?;
    assert!(
        sender.metrics()?.sum("signet_plaintext_connections_total", &["outbound"]) > 0.0,
        "it is counted"
    );
    let refused = refused?;
    assert_eq!(
        (refused.status, refused.code().as_deref()),
        (403, Some("unmeshed-destination")),
        "HTTP is told why"
    );
    Ok(())
}

fn killed_sidecar_lets_nothing_out_in_clear() -> TestResult {
    let site = strict_site()?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let stranger = site.container("stranger")?;
    let (app, outside) = (Recorder::http(&server, HTTP)?, Recorder::silent(&stranger, 9000)?);
    let [_receiver, mut sender] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let address = place(&server, HTTP);
    sender.wait_until_known(address)?;
    let tap = Tap::start(client.namespace(), "eth0", &[CANARY.as_bytes()], None)?;

    let mut kept = Plain::dial(&client, address)?;
    kept.send(get(&format!("/api/{CANARY}"), "server").as_bytes())?;
    assert_eq!(kept.answer()?.status, 200);
    assert!(app.text().contains(CANARY));

    sender.kill();
    let delivered = app.text().len();
    let request = get(&format!("/api/{CANARY}"), "server");
    let _ = kept.send(request.as_bytes());
    assert_ne!(kept.rest().1, Ended::Open, "the connection ends with the sidecar");
    let datagram = datagrams(&client, 0)?;
    for _ in 0..10 {
        for to in
            [address, (server.ipv6(), HTTP).into(), place(&stranger, 9000), (stranger.ipv6(), 9000).into()]
        {
            let (answer, ended) = Plain::tell(&client, to, request.as_bytes())?;
            assert_eq!((answer, ended), (Vec::new(), Ended::Reset), "{to}");
            let _ = datagram.send_to(CANARY.as_bytes(), to);
        }
    }
    assert_eq!(app.text().len(), delivered, "the app is sent nothing");
    assert!(outside.connections().is_empty(), "{:?}", outside.connections());

    sender.restart()?;
    sender.wait_until_known(address)?;
    assert_eq!(Plain::ask(&client, address, &request)?.status, 200, "and afterwards all is as before");
    let report = tap.report()?;
    assert_eq!(report.lost, 0, "the tap was too slow to prove anything");
    assert!(report.frames > 0 && report.offers("mesh-h1/1"), "the tap watches the right wire");
    assert!(report.sightings.is_empty(), "seen in clear: {:?}", report.sightings);
    Ok(())
}

fn headers_of_the_mesh_cannot_be_spoofed() -> TestResult {
    let site = strict_site()?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let stranger = site.container("stranger")?;
    let app = Recorder::http(&server, HTTP)?;
    let [_receiver, sender] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let thief = site.intruder(&stranger, "caller")?;
    let address = place(&server, HTTP);
    sender.wait_until_known(address)?;

    let spoofed = [
        "mesh-peer",
        "Mesh-Peer",
        "MESH-CERT",
        "mesh-origin",
        "mesh-request-id",
        "Mesh-Content-Length",
        "mesh-anything",
        "X-Forwarded-Client-Cert",
        "x-forwarded-client-cert",
    ];
    let fields: String = spoofed.iter().map(|name| format!("{name}: spoofed\r\n")).collect();
    // A signature of the app's own is the app's business.
    let own =
        "Signature-Input: app=(\"@method\");created=1;keyid=\"k\";tag=\"app\"\r\nSignature: app=:AAAA:\r\n";
    let request = format!("GET /first HTTP/1.1\r\nHost: server\r\nX-Own: kept\r\n{fields}{own}\r\n");
    assert_eq!(Plain::ask(&client, address, &request)?.status, 200);
    let trailer = "POST /second HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\nTrailer: mesh-peer\r\n\r\n\
                   2\r\n{}\r\n0\r\nmesh-peer: spoofed\r\nx-forwarded-client-cert: spoofed\r\n\r\n";
    let answer = Plain::ask(&client, address, trailer)?;
    assert!(matches!(answer.status, 200 | 400), "{answer:?}");

    // One that claims to be the mesh's is not.
    let posing = "GET /third HTTP/1.1\r\nHost: server\r\n\
                  Signature-Input: mesh=(\"@method\");created=1;keyid=\"spoofed\";tag=\"mesh-req-v1\"\r\n\
                  Signature: mesh=:AAAA:\r\n\r\n";
    let answer = Plain::ask(&client, address, posing)?;
    assert!(matches!(answer.status, 200 | 400), "{answer:?}");

    // A thief signs what it spoofs, as any sidecar signs the mesh's headers.
    inside(stranger.namespace(), move || async move {
        let mut caller = Caller::open(&thief, address).await?;
        let draft = Draft::new("GET", "/fourth", "server")
            .with_header("mesh-peer", "spoofed")
            .with_header("x-forwarded-client-cert", "spoofed");
        let signed = caller.sign(&draft)?;
        caller.call(&signed).await
    })?;

    let requests = app.requests();
    assert!(requests.iter().any(|request| request.contains("X-Own: kept") && request.contains("app=:AAAA:")));
    for request in &requests {
        assert!(!request.contains("spoofed"), "{request}");
        assert!(
            !request.contains("mesh-req-v1") && !request.to_lowercase().contains("mesh-cert"),
            "{request}"
        );
    }
    Ok(())
}
