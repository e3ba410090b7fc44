//! nginx, unmodified and not of the mesh, between two sidecars: a prefix taken off, headers added.

use std::fs;

use serde_json::Value;
use signet_cli::lab::runner::TestResult;
use signet_cli::lab::{Capabilities, Container, Proc, Program, Tap};

use crate::pair::{Failure, Meshed, Pair, run};
use crate::programs::{app, python, script};

const PORT: u16 = 8000;
const NGINX: u16 = 8080;
const SECRET: &str = "canary-4b1d9a";
/// More than travels whole: records.
const LONG: usize = 3 * 1024 * 1024;

/// What a request needs beside its place.
struct Stage {
    pair: Pair,
    nginx: Container,
    mesh: Meshed,
    _app: Proc,
    _proxy: Proc,
}

impl Stage {
    /// A server with this `protection`, behind nginx at `/app`.
    fn new(protection: &str) -> Result<Self, Failure> {
        Self::with(protection, "")
    }

    /// The same with `further` manifests.
    fn with(protection: &str, further: &str) -> Result<Self, Failure> {
        let pair = Pair::new()?;
        let nginx = pair.stranger()?;
        let server = Program::new(python()?)
            .capabilities(Capabilities::None)
            .args([script("http_server.py")])
            .args([PORT.to_string()]);
        let running = pair.serve(server, PORT)?;
        fs::write(pair.path("nginx.conf"), configuration(&pair))?;
        let proxy = app("nginx")?.args(["-c", &pair.path("nginx.conf"), "-p", &pair.path("")]);
        let proxy = pair.serve_at(&nginx, proxy, NGINX)?;
        let settings = format!(
            "  protection: {{{protection}}}
  intermediaries:
  - name: edge
    addresses: [{}]
    ports: [{NGINX}]
    routes:
    - {{to: server, port: {PORT}, path: /app, replacePrefix: /, host: '{}', mayChange: [location]}}
",
            nginx.ipv4(),
            pair.place(PORT),
        );
        let rule = format!("to: [{{methods: [GET, POST], paths: ['/**']}}]\n{further}");
        let mesh = pair.mesh_with(PORT, &rule, &settings)?;
        Ok(Self { pair, nginx, mesh, _app: running, _proxy: proxy })
    }

    /// What curl gets for a path at nginx: the status, and the body as JSON.
    fn call(&self, path: &str, arguments: &[&str]) -> Result<(String, Value), Failure> {
        self.call_from(&self.pair.client, &format!("http://{}:{NGINX}{path}", self.nginx.ipv4()), arguments)
    }

    fn call_from(
        &self,
        from: &Container,
        place: &str,
        arguments: &[&str],
    ) -> Result<(String, Value), Failure> {
        let curl = app("curl")?
            .args(["-sS", "--max-time", "55", "-w", "\n%{http_code}"])
            .args(arguments)
            .args([place])
            .directory(self.pair.folder.path());
        let output = run(from, curl)?;
        let (body, status) = output.trim_end().rsplit_once('\n').ok_or("curl said nothing")?;
        Ok((status.to_owned(), serde_json::from_str(body).unwrap_or_else(|_| body.into())))
    }

    fn access_log(&self) -> Result<String, Failure> {
        Ok(fs::read_to_string(self.pair.path("access.log"))?)
    }
}

pub(crate) fn private_message_through_nginx_is_read_by_nobody_and_arrives() -> TestResult {
    let stage = Stage::new("level: private")?;
    let tap = Tap::start(stage.nginx.namespace(), "eth0", &[SECRET.as_bytes()], None)?;
    let long = SECRET.repeat(LONG / SECRET.len());
    fs::write(stage.pair.path("long"), &long)?;
    let short = format!("{{\"password\":\"{SECRET}\"}}");
    let cookie = format!("Cookie: session={SECRET}");
    for (arguments, length) in [
        (&["-d", &short, "-H", "Content-Type: application/json", "-H", &cookie][..], short.len()),
        (&["-H", &cookie], 0),
        (&["--data-binary", "@long", "-H", &cookie], long.len()),
        (&["--data-binary", "@long", "-H", "Transfer-Encoding: chunked", "-H", &cookie], long.len()),
    ] {
        let (status, seen) = stage.call("/app/api/device?x=1", arguments)?;
        assert_eq!((&*status, &seen["target"]), ("200", &"/api/device?x=1".into()), "{arguments:?}: {seen}");
        assert_eq!(seen["length"], length, "{seen}");
        let field = |name: &str| {
            let fields = seen["headers"].as_array().into_iter().flatten();
            fields
                .clone()
                .find(|field| field[0] == name)
                .map(|field| field[1].as_str().unwrap_or_default().to_owned())
        };
        assert_eq!(field("Cookie").as_deref(), Some(&*format!("session={SECRET}")), "{seen}");
        assert_eq!(field("X-Added").as_deref(), Some("by nginx"), "{seen}");
        let caller = field("X-Forwarded-Client-Cert").unwrap_or_default();
        assert!(caller.ends_with(";URI=spiffe://mesh.example/app/host/client"), "{caller}");
        assert!(!seen.to_string().to_lowercase().contains("mesh-"), "to the app: {seen}");
    }
    // nginx writes a line after it has sent the last byte.
    let complete = || stage.access_log().ok().filter(|log| log.lines().count() == 4);
    let log = signet_cli::lab::mesh::wait_until(crate::pair::LIMIT, complete);
    let log = log.ok_or("nginx has not handed on four requests")?;
    assert!(!log.contains(SECRET), "nginx has read it");
    let report = tap.report()?;
    assert_eq!(report.lost, 0, "the tap was too slow");
    assert!(report.sightings.is_empty(), "on the wire: {:?}", report.sightings);
    Ok(())
}

pub(crate) fn what_nginx_changes_repeats_or_makes_up_reaches_nobody() -> TestResult {
    let stage = Stage::new("level: protected")?;
    let (status, seen) = stage.call("/app/fine", &["-d", "a=1"])?;
    assert_eq!((&*status, &seen["target"]), ("200", &"/fine".into()), "{seen}");
    let refusals = |code: &str| Ok::<_, Failure>(stage.mesh.server.metrics()?.refusals(code));
    // What each location of the configuration does, and what the server's sidecar says to it.
    for (path, code) in [
        ("/app/altered/type", "bad-signature"),
        ("/app/altered/body", "digest-mismatch"),
        ("/app/moved/x", "intermediary-rewrite"),
        ("/app/query/x", "intermediary-rewrite"),
        ("/app/host/x", "intermediary-rewrite"),
        ("/app/cookie/x", "signature-coverage"),
        ("/app/unsigned/x", "signature-missing"),
    ] {
        let before = refusals(code)?;
        let (status, problem) = stage.call(path, &["-d", "a=1"])?;
        assert_eq!((&*status, &problem["code"]), ("502", &"response-unverified".into()), "{path}: {problem}");
        assert_eq!(refusals(code)?, before + 1, "{path}: {code}");
    }
    // nginx sends this one twice; the application sees it once.
    let before = stage.mesh.server.metrics()?.sum("signet_requests_total", &["inbound"]);
    let (status, _) = stage.call("/app/twice/x", &["-d", "a=1"])?;
    assert_eq!(status, "200");
    signet_cli::lab::mesh::wait_until(crate::pair::LIMIT, || {
        refusals("replay").is_ok_and(|count| count == 1).then_some(())
    })
    .ok_or("the repeated request was not refused")?;
    assert_eq!(stage.mesh.server.metrics()?.sum("signet_requests_total", &["inbound"]), before + 1.0);
    // What nginx answers by itself is nobody's answer.
    let (status, problem) = stage.call("/app/made-up/x", &[])?;
    assert_eq!((&*status, &problem["code"]), ("502", &"response-unverified".into()), "{problem}");
    // Behind no route is nobody that it could be signed for.
    let (status, problem) = stage.call("/elsewhere", &[])?;
    assert_eq!((&*status, &problem["code"]), ("403", &"intermediary-route".into()), "{problem}");
    // From nginx's own place nothing gets in that nobody of the mesh has signed.
    let place = format!("http://{}/fine", stage.pair.place(PORT));
    let (status, problem) = stage.call_from(&stage.nginx, &place, &[])?;
    assert_eq!((&*status, &problem["code"]), ("400", &"signature-missing".into()), "{problem}");
    Ok(())
}

pub(crate) fn caller_at_its_limit_is_told_through_nginx_when_to_come_again() -> TestResult {
    let limit = "---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: TrafficPolicy
metadata: {name: limit}
spec: {target: {workloads: [server]}, rateLimits: [{requests: 2, per: 1h}]}
";
    let stage = Stage::with("level: protected", limit)?;
    // What the caller did not sign as it arrives uses up nothing of its limit.
    for _ in 0..3 {
        let (_, problem) = stage.call("/app/altered/type", &["-d", "a=1"])?;
        assert_eq!(problem["code"], "response-unverified", "{problem}");
    }
    for _ in 0..2 {
        let (status, seen) = stage.call("/app/fine", &[])?;
        assert_eq!(status, "200", "{seen}");
    }
    // Signed by the server's sidecar, else nobody would believe it.
    let (status, problem) = stage.call("/app/fine", &["-w", "\n%{http_code} %header{retry-after}"])?;
    let (status, seconds) = status.split_once(' ').ok_or("no Retry-After")?;
    assert_eq!((status, &problem["code"]), ("429", &"rate-limited".into()), "{problem}");
    assert!(seconds.parse().is_ok_and(|seconds| (1..=7_200).contains(&seconds)), "{seconds}");
    let metrics = stage.mesh.server.metrics()?;
    assert_eq!((metrics.refusals("bad-signature"), metrics.refusals("rate-limited")), (3, 1));
    Ok(())
}

/// nginx as people write it, and locations that do what an intermediary must not.
fn configuration(pair: &Pair) -> String {
    let (folder, server) = (pair.folder.path().display(), pair.place(PORT));
    format!(
        "daemon off;
master_process off;
user root root;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
  log_format body '$request $http_cookie $request_body $upstream_http_location';
  access_log {folder}/access.log body;
  client_body_temp_path {folder}/body-temp;
  proxy_temp_path {folder}/proxy-temp;
  fastcgi_temp_path {folder}/fastcgi-temp;
  uwsgi_temp_path {folder}/uwsgi-temp;
  scgi_temp_path {folder}/scgi-temp;
  client_max_body_size 10m;
  client_body_buffer_size 10m;
  proxy_set_header X-Added \"by nginx\";
  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
  server {{
    listen {NGINX};
    location /app/ {{ proxy_pass http://{server}/; }}
    location /app/altered/type {{ proxy_set_header Content-Type text/plain; proxy_pass http://{server}/altered/type; }}
    location /app/altered/body {{ proxy_set_body b=2; proxy_pass http://{server}/altered/body; }}
    location /app/moved/ {{ proxy_pass http://{server}/elsewhere/; }}
    location /app/query/ {{ proxy_pass http://{server}/query/x?admin=1; }}
    location /app/host/ {{ proxy_set_header Host other; proxy_pass http://{server}/host/; }}
    location /app/cookie/ {{ proxy_set_header Cookie user=root; proxy_pass http://{server}/cookie/; }}
    location /app/unsigned/ {{ proxy_set_header Signature-Input ''; proxy_pass http://{server}/unsigned/; }}
    location /app/twice/ {{ mirror /mirror; proxy_pass http://{server}/twice/; }}
    location /mirror {{ internal; proxy_pass http://{server}/twice/x; }}
    location /app/made-up/ {{ return 200 made-up; }}
  }}
}}
"
    )
}
