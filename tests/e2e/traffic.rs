//! How requests are sent and how many a workload takes: retries, rests, limits of time, rate and concurrency, balancing.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use signet_cli::lab::Container;
use signet_cli::lab::mesh::Sidecar;
use signet_cli::lab::mesh::intruder::Answer;
use signet_cli::lab::runner::{Test, TestResult};
use signet_tests::manifest::{allow, mesh, policy, traffic_policy, workload};
use signet_tests::plain::get;
use signet_tests::{Ended, Failure, Plain, Recorder, Site, place, wait_for};

pub(crate) const TESTS: &[Test] = &[
    (
        "failed_request_is_sent_again_with_a_fresh_signature",
        failed_request_is_sent_again_with_a_fresh_signature,
    ),
    ("refused_connection_reaches_another_endpoint_once", refused_connection_reaches_another_endpoint_once),
    (
        "what_changes_something_is_never_sent_again_unmarked",
        what_changes_something_is_never_sent_again_unmarked,
    ),
    ("budget_ends_a_storm_of_retries", budget_ends_a_storm_of_retries),
    ("endpoint_that_fails_gets_a_rest_and_is_used_again", endpoint_that_fails_gets_a_rest_and_is_used_again),
    ("endpoint_that_succeeds_too_rarely_gets_a_rest", endpoint_that_succeeds_too_rarely_gets_a_rest),
    (
        "connection_that_nobody_takes_ends_in_time_and_is_tried_again",
        connection_that_nobody_takes_ends_in_time_and_is_tried_again,
    ),
    ("rate_limit_of_one_identity_leaves_another_alone", rate_limit_of_one_identity_leaves_another_alone),
    ("request_without_an_answer_ends_in_time", request_without_an_answer_ends_in_time),
    (
        "requests_beyond_the_limit_of_concurrency_wait_or_are_refused",
        requests_beyond_the_limit_wait_or_are_refused,
    ),
    ("requests_to_a_virtual_address_are_spread_by_load", requests_to_a_virtual_address_are_spread_by_load),
    ("replicas_share_requests_only_where_policy_says_so", replicas_share_requests_only_where_policy_says_so),
    ("same_key_goes_to_the_same_endpoint", same_key_goes_to_the_same_endpoint),
];

const HTTP: u16 = 8201;
/// Where the endpoints together can be dialled; no interface has it.
const VIRTUAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(172, 18, 255, 1)), 80);
/// What an app says of a request that may be sent again.
const MARKER: &str = "Mesh-Retry: idempotent\r\n";

/// A server and two clients, all permitted.
struct One {
    site: Site,
    server: Container,
    client: Container,
    other: Container,
    sidecars: [Sidecar; 3],
}

impl One {
    fn new(settings: &[&str]) -> Result<Self, Failure> {
        let ports = "ports: [{port: 8201, protocol: http}]";
        let everybody = policy("open", "server", &["{from: [{any: authenticated}]}"]);
        let site = Site::new(&[
            mesh(&[]),
            workload("server", &[ports]),
            workload("client", &[]),
            workload("other", &[]),
            everybody,
            traffic_policy("traffic", "server", settings),
        ])?;
        let (server, client) = (site.container("server")?, site.container("client")?);
        let other = site.container("other")?;
        let sidecars = site.sidecars([(&server, "server"), (&client, "client"), (&other, "other")])?;
        for caller in &sidecars[1..] {
            caller.wait_until_known(place(&server, HTTP))?;
        }
        Ok(Self { site, server, client, other, sidecars })
    }

    fn ask(&self, from: &Container, method: &str, path: &str, fields: &str) -> Result<Answer, Failure> {
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: server\r\n{fields}Content-Length: 0\r\n\r\n");
        Plain::ask(from, place(&self.server, HTTP), &request)
    }

    fn client_metric(&self, name: &str) -> Result<f64, Failure> {
        Ok(self.sidecars[1].metrics()?.value(name))
    }
}

/// Two servers behind one virtual address, and a client.
struct Pair {
    _site: Site,
    servers: [Container; 2],
    client: Container,
    sidecars: [Sidecar; 3],
}

impl Pair {
    fn new(settings: Option<&[&str]>) -> Result<Self, Failure> {
        let ports = "ports: [{port: 8201, protocol: http}]";
        let place_of =
            "virtualAddresses: [{network: lan, address: 172.18.255.1, port: 80, targetPort: 8201}]";
        let mut manifests = vec![
            mesh(&[]),
            workload("one", &[ports, place_of]),
            workload("two", &[ports, place_of]),
            workload("client", &[]),
            policy("open-one", "one", &[&allow("client", "")]),
            policy("open-two", "two", &[&allow("client", "")]),
        ];
        manifests.extend(settings.map(|settings| traffic_policy("traffic", "one", settings)));
        let site = Site::new(&manifests)?;
        let servers = [site.container("one")?, site.container("two")?];
        let client = site.container("client")?;
        let sidecars = site.sidecars([(&servers[0], "one"), (&servers[1], "two"), (&client, "client")])?;
        for server in &servers {
            sidecars[2].wait_until_known(place(server, HTTP))?;
        }
        Ok(Self { _site: site, servers, client, sidecars })
    }

    fn ask(&self, path: &str, fields: &str) -> Result<Answer, Failure> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: service\r\n{fields}\r\n");
        Plain::ask(&self.client, VIRTUAL, &request)
    }
}

/// How often an app was asked for a path.
fn asked(app: &Recorder, path: &str) -> usize {
    app.requests().iter().filter(|request| request.split(' ').nth(1) == Some(path)).count()
}

fn failed_request_is_sent_again_with_a_fresh_signature() -> TestResult {
    let one = One::new(&["retries: {attempts: 2, on: [gateway-error], budget: {minPerSecond: 100}}"])?;
    let failures = Arc::new(AtomicU16::new(2));
    let left = Arc::clone(&failures);
    let app = Recorder::answering(&one.server, HTTP, move |_| {
        let fails = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        Some(if fails { 503 } else { 200 })
    })?;
    // Each try is verified by the server's sidecar: a nonce that came twice would be refused as a replay.
    assert_eq!(one.ask(&one.client, "GET", "/flaky", "")?.status, 200);
    assert_eq!(asked(&app, "/flaky"), 3);
    assert_eq!(one.client_metric("signet_policy_retries_total")?, 2.0);
    assert_eq!(one.sidecars[0].metrics()?.refusals("replay"), 0);

    failures.store(9, Ordering::SeqCst);
    assert_eq!(one.ask(&one.client, "GET", "/down", "")?.status, 503, "the app's own answer to the last try");
    assert_eq!(asked(&app, "/down"), 3);
    // The body of an upload that fits is here, so it can be sent again; a longer one cannot.
    for (length, tries) in [(1_000, 3), (100_000, 1)] {
        failures.store(9, Ordering::SeqCst);
        let path = format!("/upload/{length}");
        let head = format!("GET {path} HTTP/1.1\r\nHost: server\r\nContent-Length: {length}\r\n\r\n");
        let request = head + &"x".repeat(length);
        assert_eq!(Plain::ask(&one.client, place(&one.server, HTTP), &request)?.status, 503);
        assert_eq!(asked(&app, &path), tries, "{path}");
    }
    Ok(())
}

fn refused_connection_reaches_another_endpoint_once() -> TestResult {
    let settings: &[&str] =
        &["retries: {attempts: 2, on: [connect-failure], budget: {percent: 100, minPerSecond: 100}}"];
    let mut pair = Pair::new(Some(settings))?;
    let app = Recorder::http(&pair.servers[1], HTTP)?;
    // Its capture stays, so its port refuses; the directory still has it.
    pair.sidecars[0].kill();
    for number in 0..10 {
        let path = format!("/{number}");
        assert_eq!(pair.ask(&path, "")?.status, 200, "{path}");
        assert_eq!(asked(&app, &path), 1, "{path}");
    }
    let metrics = pair.sidecars[2].metrics()?;
    assert!(metrics.value("signet_policy_retries_total") >= 1.0, "no request went to the one that is away");
    Ok(())
}

fn what_changes_something_is_never_sent_again_unmarked() -> TestResult {
    let one = One::new(&["retries: {attempts: 1, methods: [DELETE], budget: {minPerSecond: 100}}"])?;
    let app = Recorder::answering(&one.server, HTTP, |_| Some(503))?;
    for (method, fields, tries) in [
        ("POST", "", 1),
        ("PATCH", "", 1),
        ("PUT", "", 1),
        ("DELETE", "", 2),
        ("GET", "", 2),
        ("GET", "Mesh-Retry: never\r\n", 1),
        ("POST", MARKER, 2),
    ] {
        let path = format!("/{}/{}", method.to_lowercase(), fields.len());
        assert_eq!(one.ask(&one.client, method, &path, fields)?.status, 503);
        assert_eq!(asked(&app, &path), tries, "{method} {fields}");
    }
    assert!(!app.text().to_lowercase().contains("mesh-retry"), "{}", app.text());
    let answer = one.ask(&one.client, "POST", "/typo", "Mesh-Retry: idempotant\r\n")?;
    assert_eq!((answer.status, answer.code().as_deref()), (400, Some("malformed-message")));
    assert_eq!(asked(&app, "/typo"), 0);
    Ok(())
}

fn budget_ends_a_storm_of_retries() -> TestResult {
    let one = One::new(&["retries: {attempts: 5, budget: {percent: 20, minPerSecond: 0}}"])?;
    let app = Recorder::answering(&one.server, HTTP, |_| Some(503))?;
    for _ in 0..20 {
        assert_eq!(one.ask(&one.client, "GET", "/storm", "")?.status, 503);
    }
    let tries = asked(&app, "/storm");
    assert!((21..=24).contains(&tries), "20 requests became {tries}");
    assert!(one.client_metric("signet_retries_over_budget_total")? >= 1.0);
    Ok(())
}

fn endpoint_that_fails_gets_a_rest_and_is_used_again() -> TestResult {
    let one = One::new(&["circuitBreaking: {consecutiveFailures: 3, ejectionTime: 4s}"])?;
    let status = Arc::new(AtomicU16::new(500));
    let says = Arc::clone(&status);
    let app = Recorder::answering(&one.server, HTTP, move |_| Some(says.load(Ordering::SeqCst)))?;
    for _ in 0..3 {
        assert_eq!(one.ask(&one.client, "GET", "/fails", "")?.status, 500);
    }
    let answer = one.ask(&one.client, "GET", "/rests", "")?;
    assert_eq!((answer.status, answer.code().as_deref()), (503, Some("circuit-open")));
    assert!(answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("retry-after")), "{answer:?}");
    assert_eq!(asked(&app, "/rests"), 0);
    assert_eq!(one.client_metric("signet_ejections_total")?, 1.0);
    status.store(200, Ordering::SeqCst);
    wait_for("the end of the rest", || {
        (one.ask(&one.client, "GET", "/again", "").ok()?.status == 200).then_some(())
    })?;
    assert_eq!(one.ask(&one.client, "GET", "/again", "")?.status, 200);
    Ok(())
}

fn endpoint_that_succeeds_too_rarely_gets_a_rest() -> TestResult {
    let one = One::new(&["circuitBreaking: {successRate: {minimum: 50, volume: 4}, ejectionTime: 5m}"])?;
    let app = Recorder::answering(&one.server, HTTP, |request| {
        Some(if request.starts_with("GET /fails ") { 500 } else { 200 })
    })?;
    let call = |path: &str| one.ask(&one.client, "GET", path, "");
    for (path, status) in [("/works", 200), ("/works", 200), ("/works", 200), ("/fails", 500)] {
        assert_eq!(call(path)?.status, status, "three of four are enough");
    }
    assert_eq!(one.client_metric("signet_ejections_total")?, 0.0);
    // Never more than two failures in a row: it is the rate that tells. Where the requests take so long that the ten
    // seconds are over, it is told a little later.
    let mut calls = ["/fails", "/fails", "/works"].iter().cycle();
    let answer = wait_for("the rest", || {
        let answer = call(calls.next()?).ok()?;
        (answer.code().as_deref() == Some("circuit-open")).then_some(answer)
    })?;
    assert_eq!(answer.status, 503);
    assert!(answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("retry-after")), "{answer:?}");
    // Of four or more that count together, more than half.
    let (failed, seen) = (asked(&app, "/fails"), app.requests().len());
    assert!(failed >= 3, "{failed} of {seen} failed");
    assert_eq!(one.client_metric("signet_ejections_total")?, 1.0);
    assert_eq!(call("/works")?.code().as_deref(), Some("circuit-open"), "good or bad, nothing is sent");
    assert_eq!(app.requests().len(), seen);
    Ok(())
}

/// A listener whose queue of connections is full: the kernel drops every further SYN and says nothing.
fn deaf(container: &Container, port: u16) -> Result<(TcpListener, Vec<TcpStream>), Failure> {
    let at = place(container, port);
    let fill = move || -> std::io::Result<_> {
        let listener =
            tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
                let socket = tokio::net::TcpSocket::new_v4()?;
                socket.bind(at)?;
                socket.listen(0)?.into_std()
            })?;
        // Within a namespace a connection is there at once, or its SYN was dropped.
        let mut waiting = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&at, Duration::from_millis(200)) {
            waiting.push(stream);
        }
        Ok((listener, waiting))
    };
    Ok(container.namespace().run(fill)??)
}

fn connection_that_nobody_takes_ends_in_time_and_is_tried_again() -> TestResult {
    let site = Site::new(&[mesh(&[]), workload("client", &[])])?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let to = place(&server, HTTP);
    // The operator says that the server is there, so the client's sidecar dials.
    let listed =
        format!("advertise: [{{network: lan, address: {}, port: {HTTP}, targetPort: {HTTP}}}]", to.ip());
    let settings = [
        "timeouts: {connect: 50ms}",
        "retries: {attempts: 1, on: [connect-failure], budget: {minPerSecond: 100}}",
    ];
    site.mesh.apply(
        "server.yaml",
        &[
            workload("server", &[&format!("ports: [{{port: {HTTP}, protocol: http}}]"), &listed]),
            policy("open", "server", &[&allow("client", "")]),
            traffic_policy("traffic", "server", &settings),
        ]
        .concat(),
    )?;
    let _full = deaf(&server, HTTP)?;
    let [sidecar] = site.sidecars([(&client, "client")])?;
    sidecar.wait_until_known(to)?;
    // Without the policy it were `upstream-unreachable`, after the five seconds that any connection has.
    let answer = Plain::ask(&client, to, &get("/", "server"))?;
    assert_eq!((answer.status, answer.code().as_deref()), (504, Some("upstream-timeout")));
    assert_eq!(sidecar.metrics()?.value("signet_policy_retries_total"), 1.0, "a connection that failed");
    Ok(())
}

fn rate_limit_of_one_identity_leaves_another_alone() -> TestResult {
    let one = One::new(&[
        "rateLimits: [{requests: 3, per: 1h}]",
        "routes: [{to: [{paths: [/free/**]}], rateLimits: []}, \
         {to: [{methods: [POST], paths: [/login]}], rateLimits: [{requests: 1, per: 1h, key: workload}]}]",
    ])?;
    let app = Recorder::http(&one.server, HTTP)?;
    let limited = |answer: &Answer| {
        let seconds = answer.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("retry-after"));
        let seconds = seconds.and_then(|(_, value)| value.parse::<u64>().ok());
        assert_eq!(answer.code().as_deref(), Some("rate-limited"), "{answer:?}");
        assert!(seconds.is_some_and(|seconds| (1..=7_200).contains(&seconds)), "{answer:?}");
        answer.status == 429
    };
    for _ in 0..3 {
        assert_eq!(one.ask(&one.client, "GET", "/", "")?.status, 200);
    }
    for _ in 0..3 {
        assert!(limited(&one.ask(&one.client, "GET", "/", "")?));
    }
    assert_eq!(one.ask(&one.other, "GET", "/", "")?.status, 200, "another identity");
    assert_eq!(asked(&app, "/"), 4);
    assert_eq!(one.ask(&one.client, "GET", "/free/x", "")?.status, 200, "a route without a limit");
    assert_eq!(one.ask(&one.client, "POST", "/login", "")?.status, 200, "counted by itself");
    assert!(limited(&one.ask(&one.other, "POST", "/login", "")?), "one for all of them");
    assert_eq!(one.sidecars[0].metrics()?.refusals("rate-limited"), 4);
    // What another change leaves as it is goes on being counted.
    let more = traffic_policy("traffic", "server", &["rateLimits: [{requests: 3, per: 1h}]"]);
    one.site.mesh.apply("more.yaml", &more)?;
    wait_for("the policy without routes", || {
        (one.ask(&one.client, "GET", "/free/x", "").ok()?.status == 429).then_some(())
    })?;
    Ok(())
}

fn request_without_an_answer_ends_in_time() -> TestResult {
    let one = One::new(&[
        "timeouts: {request: 500ms, idle: 1s}",
        "routes: [{to: [{paths: [/patient]}], timeouts: {request: 1h, idle: 1h}}]",
    ])?;
    let stalls = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
    let app = Recorder::raw(&one.server, HTTP, move |request| {
        let path = request.split(' ').nth(1).unwrap_or_default();
        (path == "/stalls").then(|| stalls.as_bytes().to_vec())
    })?;
    let answer = one.ask(&one.client, "GET", "/silent", "")?;
    assert_eq!((answer.status, answer.code().as_deref()), (504, Some("upstream-timeout")));
    assert_eq!(asked(&app, "/silent"), 1);

    let mut patient = Plain::dial(&one.client, place(&one.server, HTTP))?;
    patient.send(get("/patient", "server").as_bytes())?;
    let mut stalled = Plain::dial(&one.client, place(&one.server, HTTP))?;
    stalled.send(get("/stalls", "server").as_bytes())?;
    stalled.read_until("first")?;
    let (rest, ended) = stalled.rest();
    assert_ne!(ended, Ended::Open, "the body that stalls is still waited for");
    assert!(!rest.ends_with(b"0\r\n\r\n"), "it pretends to be complete");
    assert_eq!(one.sidecars[1].metrics()?.refusals("upstream-timeout"), 1, "the patient one waits");
    Ok(())
}

fn requests_beyond_the_limit_wait_or_are_refused() -> TestResult {
    let one = One::new(&["concurrency: {maxRequests: 1, maxPending: 1}"])?;
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let app = Recorder::answering(&one.server, HTTP, move |request| {
        if request.starts_with("GET /hangs ") {
            let wait = released.lock().unwrap_or_else(PoisonError::into_inner);
            // It ends with the test at the latest, which drops the other end.
            let _ = wait.recv();
        }
        Some(200)
    })?;
    let to = place(&one.server, HTTP);
    let mut hangs = Plain::dial(&one.client, to)?;
    hangs.send(get("/hangs", "server").as_bytes())?;
    app.wait_for("the request that hangs", |_| asked(&app, "/hangs") == 1)?;
    let mut waits = Plain::dial(&one.client, to)?;
    waits.send(get("/waits", "server").as_bytes())?;
    // Until the one that waits has its place, another takes it.
    wait_for("the refusal", || {
        let mut third = Plain::dial(&one.client, to).ok()?;
        third.send(get("/refused", "server").as_bytes()).ok()?;
        let answer = third.answer().ok()?;
        (answer.code().as_deref() == Some("concurrency-limit") && answer.status == 503).then_some(())
    })?;
    assert_eq!(asked(&app, "/waits") + asked(&app, "/refused"), 0);
    release.send(())?;
    assert_eq!(hangs.answer()?.status, 200);
    assert_eq!(waits.answer()?.status, 200);
    assert_eq!(one.ask(&one.client, "GET", "/after", "")?.status, 200);
    Ok(())
}

fn requests_to_a_virtual_address_are_spread_by_load() -> TestResult {
    let pair = Pair::new(None)?;
    let apps = [Recorder::silent(&pair.servers[0], HTTP)?, Recorder::silent(&pair.servers[1], HTTP)?];
    let mut calls = Vec::new();
    for number in 0..8 {
        let mut call = Plain::dial(&pair.client, VIRTUAL)?;
        call.send(get(&format!("/{number}"), "service").as_bytes())?;
        calls.push(call);
    }
    let seen = |app: &Recorder| app.requests().len();
    wait_for("all requests", || (seen(&apps[0]) + seen(&apps[1]) == 8).then_some(()))?;
    assert_eq!([seen(&apps[0]), seen(&apps[1])], [4, 4], "each goes where fewer are under way");
    Ok(())
}

fn replicas_share_requests_only_where_policy_says_so() -> TestResult {
    let site = Site::new(&[
        mesh(&[]),
        workload("server", &["ports: [{port: 8201, protocol: http}]"]),
        workload("client", &[]),
        policy("open", "server", &[&allow("client", "")]),
    ])?;
    let (one, two, client) = (site.container("one")?, site.container("two")?, site.container("client")?);
    let apps = [Recorder::silent(&one, HTTP)?, Recorder::silent(&two, HTTP)?];
    let [_one, _two, sidecar] = site.sidecars([(&one, "server"), (&two, "server"), (&client, "client")])?;
    for replica in [&one, &two] {
        sidecar.wait_until_known(place(replica, HTTP))?;
    }
    let seen = || apps.each_ref().map(|app| app.requests().len());
    let mut calls = Vec::new();
    let mut call = |path: &str| -> Result<(), Failure> {
        let mut call = Plain::dial(&client, place(&one, HTTP))?;
        call.send(get(path, "server").as_bytes())?;
        calls.push(call);
        Ok(())
    };
    for _ in 0..4 {
        call("/meant")?;
    }
    wait_for("the requests to the one that was dialled", || (seen() == [4, 0]).then_some(()))?;

    site.mesh.apply("spread.yaml", &traffic_policy("spread", "server", &["loadBalancing: {policy: p2c}"]))?;
    wait_for("a request to the other one", || {
        call("/spread").ok()?;
        (seen()[1] > 0).then_some(())
    })?;
    Ok(())
}

fn same_key_goes_to_the_same_endpoint() -> TestResult {
    let settings: &[&str] = &["loadBalancing: {policy: consistent-hash, hash: {header: x-user}}"];
    let pair = Pair::new(Some(settings))?;
    let apps = [Recorder::http(&pair.servers[0], HTTP)?, Recorder::http(&pair.servers[1], HTTP)?];
    for user in 0..16 {
        for _ in 0..3 {
            assert_eq!(pair.ask(&format!("/{user}"), &format!("X-User: user-{user}\r\n"))?.status, 200);
        }
    }
    let mut homes = [0, 0];
    for user in 0..16 {
        let path = format!("/{user}");
        match apps.each_ref().map(|app| asked(app, &path)) {
            [3, 0] => homes[0] += 1,
            [0, 3] => homes[1] += 1,
            other => return Err(format!("user {user} was at {other:?}").into()),
        }
    }
    assert!(homes.iter().all(|count| *count > 0), "{homes:?}");
    Ok(())
}
