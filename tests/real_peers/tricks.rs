//! A storm of variants: forbidden paths, hosts and header fields, written in thousands of ways, against applications that
//! read requests in different ways. Nothing forbidden is reached, whatever exceptions policy makes.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;

use signet_cli::lab::runner::TestResult;
use signet_cli::lab::{Capabilities, Container, Proc, Program};
use signet_tests::manifest::{deny, mesh, normalization_policy, policy, workload};
use signet_tests::{Plain, Recorder, Site, place, wait_for};
use tempfile::TempDir;

use crate::pair::{Failure, wait_for_port};
use crate::programs::{app, python, script};

const NGINX: u16 = 8080;
const FILES: u16 = 8081;
const WSGI: u16 = 8082;
const RECORDER: u16 = 8083;
/// What only a forbidden request is answered with.
const CANARY: &str = "canary-3f9c";
const HARMLESS: &str = "harmless-77ab";
/// Variants for each application under each policy, sent without a sidecar in between.
const VARIANTS: usize = 4_000;
/// The same through a pair of sidecars, signed.
const SIGNED: usize = 1_000;

const ALL_FORMS: &str = "rules: [{to: [{paths: ['/**']}], \
    path: [backslash, dot-segments, escaped-slash, escapes, parameters, slashes], \
    host: [case, default-port, trailing-dot], headers: [duplicates, underscores]}]";

/// Policies for the server: whether everything is allowed, whether what is forbidden is denied, the exceptions.
struct Rules {
    name: &'static str,
    allow: &'static str,
    deny: bool,
    normal: bool,
}

const PHASES: [Rules; 4] = [
    Rules { name: "denied, no exceptions", allow: "/**", deny: true, normal: false },
    Rules { name: "denied, all exceptions", allow: "/**", deny: true, normal: true },
    Rules { name: "allowed by name, all exceptions", allow: "/public/**", deny: false, normal: true },
    Rules { name: "allowed by name, no exceptions", allow: "/public/**", deny: false, normal: false },
];

pub(crate) fn storm_of_variants_reaches_nothing_forbidden() -> TestResult {
    let folder = tempfile::Builder::new().prefix("tricks-").tempdir()?;
    for (name, content) in [("public/file.txt", HARMLESS), ("secret/flag.txt", CANARY)] {
        let file = folder.path().join("www").join(name);
        fs::create_dir_all(file.parent().ok_or("no folder")?)?;
        fs::write(file, content)?;
    }
    let site = Site::new(&manifests(&Rules { name: "open", allow: "/**", deny: false, normal: false }))?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let stranger = site.container("stranger")?;
    let _servers = serve(&server, &folder)?;
    let recorder = Recorder::http(&server, RECORDER)?;
    let [_receiver, sender] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let ports = [NGINX, FILES, WSGI, RECORDER];
    for port in ports {
        sender.wait_until_known(place(&server, port))?;
    }
    // Each application serves what is forbidden to whoever reaches it.
    for port in [NGINX, FILES, WSGI] {
        let mut storm = Storm::new(&stranger, place(&server, port));
        assert!(storm.ask("/secret/flag.txt", "server", "")?.contains(CANARY), "{port}");
    }
    assert!(
        Storm::new(&stranger, place(&server, WSGI)).ask("/", "server", "X_Debug: 1\r\n")?.contains(CANARY)
    );

    for (number, rules) in PHASES.iter().enumerate() {
        site.mesh.apply("rules.yaml", &manifests(rules).concat())?;
        if !rules.normal && number > 0 {
            site.mesh.delete("NormalizationPolicy", "forms")?;
        }
        if !rules.deny && number > 0 && PHASES[number - 1].deny {
            site.mesh.delete("AccessPolicy", "shut")?;
        }
        for (from, what) in [(&stranger, "plain"), (&client, "signed")] {
            in_force(from, place(&server, NGINX), rules)
                .map_err(|found| format!("{}, {what}: {found}", rules.name))?;
        }
        for port in ports {
            storm(&stranger, place(&server, port), rules, VARIANTS, u64::from(port))?;
        }
        storm(&client, place(&server, WSGI), rules, SIGNED, 7)?;
        storm(&client, place(&server, NGINX), rules, SIGNED, 11)?;
        lenient_client_is_served(&stranger, &client, place(&server, NGINX), rules.normal)?;
    }
    let mut targets = BTreeSet::new();
    for request in recorder.requests() {
        let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
        targets.insert(target);
    }
    assert!(targets.len() > 100, "{} different targets reached the recorder", targets.len());
    for target in &targets {
        let forbidden = readings(target).into_iter().find(|path| path.starts_with("/secret"));
        assert_eq!(forbidden, None, "{target} can be read as something forbidden");
    }
    Ok(())
}

fn manifests(rules: &Rules) -> Vec<String> {
    let ports = "ports: [{port: 8080, protocol: http}, {port: 8081, protocol: http}, {port: 8082, protocol: http}, \
                 {port: 8083, protocol: http}]";
    let mut manifests = vec![
        mesh(&[]),
        workload("server", &["names: [server]", "mtls: {mode: permissive}", ports]),
        workload("client", &[]),
        // Its names are not the server's to answer for.
        workload("other", &["names: [forbidden]"]),
        policy(
            "open",
            "server",
            &[&format!("{{from: [{{any: anyone}}], to: [{{methods: [GET], paths: ['{}']}}]}}", rules.allow)],
        ),
    ];
    if rules.deny {
        let everybody = "from: [{any: anyone}]";
        manifests.push(deny(
            "shut",
            "server",
            &[
                &format!("{{{everybody}, to: [{{paths: ['/secret/**']}}]}}"),
                &format!("{{{everybody}, to: [{{headers: [{{name: x-debug, present: true}}]}}]}}"),
            ],
        ));
    }
    if rules.normal {
        manifests.push(normalization_policy("forms", "server", &[ALL_FORMS]));
    }
    manifests
}

fn serve(server: &Container, folder: &TempDir) -> Result<Vec<Proc>, Failure> {
    let www = folder.path().join("www").to_string_lossy().into_owned();
    let run = |name: &str, port: u16| -> Result<Program, Failure> {
        Ok(Program::new(python()?)
            .capabilities(Capabilities::None)
            .args([script(name)])
            .args([port.to_string(), www.clone()]))
    };
    let programs = [
        (nginx(folder)?, NGINX),
        (run("files_server.py", FILES)?, FILES),
        (run("tricks_server.py", WSGI)?, WSGI),
    ];
    let mut running = Vec::new();
    for (program, port) in programs {
        let program = server.namespace().start(program)?;
        wait_for_port(port, &program)?;
        running.push(program);
    }
    Ok(running)
}

fn nginx(folder: &TempDir) -> Result<Program, Failure> {
    let path = folder.path().display();
    let configuration = format!(
        "daemon off;
user root root;
master_process off;
pid {path}/nginx.pid;
error_log /dev/null;
events {{}}
http {{
  access_log off;
  client_body_temp_path {path}/body-temp;
  proxy_temp_path {path}/proxy-temp;
  fastcgi_temp_path {path}/fastcgi-temp;
  uwsgi_temp_path {path}/uwsgi-temp;
  scgi_temp_path {path}/scgi-temp;
  keepalive_requests 1000000;
  server {{ listen {NGINX}; root {path}/www; }}
  server {{ listen {NGINX}; server_name forbidden; location / {{ return 200 {CANARY}; }} }}
}}
"
    );
    fs::write(folder.path().join("nginx.conf"), configuration)?;
    let [file, prefix] =
        ["nginx.conf", ""].map(|name| folder.path().join(name).to_string_lossy().into_owned());
    Ok(app("nginx")?.args(["-c", &file, "-p", &prefix]))
}

/// Connections of one client, each kept for as long as it lasts.
struct Storm<'a> {
    from: &'a Container,
    to: SocketAddr,
    kept: Option<Plain>,
}

impl<'a> Storm<'a> {
    fn new(from: &'a Container, to: SocketAddr) -> Self {
        Self { from, to, kept: None }
    }

    /// The status and body of the answer; nothing when the connection was closed without one.
    fn ask(&mut self, target: &str, host: &str, fields: &str) -> Result<String, Failure> {
        let mut plain = match self.kept.take() {
            Some(kept) => kept,
            None => Plain::dial(self.from, self.to)?,
        };
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
        if plain.send(request.as_bytes()).is_err() {
            return Ok(String::new());
        }
        let Ok(answer) = plain.answer() else { return Ok(String::new()) };
        let closes = answer.headers.iter().any(|(name, value)| {
            name.as_str().eq_ignore_ascii_case("connection")
                && value.as_bytes().eq_ignore_ascii_case(b"close")
        });
        // What the HTTP library cannot read it answers, and closes.
        if !closes && answer.status != 400 {
            self.kept = Some(plain);
        }
        Ok(format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)))
    }
}

/// Waits until a set of rules is in force, seen by what it does to three requests.
fn in_force(from: &Container, to: SocketAddr, rules: &Rules) -> Result<(), Failure> {
    let mut storm = Storm::new(from, to);
    wait_for(rules.name, || {
        let mut passes = |target: &str| {
            storm
                .ask(target, "server", "")
                .ok()
                .map(|answer| answer.contains(HARMLESS) || answer.starts_with("404"))
        };
        let other = passes("/elsewhere")?;
        let lenient = passes("/public//file.txt")?;
        let secret = passes("/secret/none")?;
        (other == (rules.allow == "/**") && lenient == rules.normal && !secret).then_some(())
    })
}

/// Sends many variants of what is forbidden.
fn storm(from: &Container, to: SocketAddr, rules: &Rules, count: usize, seed: u64) -> Result<(), Failure> {
    let mut random = Random(seed);
    let mut storm = Storm::new(from, to);
    let (mut answered, mut served) = (0, 0);
    for _ in 0..count {
        let path = forbidden_path(&mut random);
        let (target, host, fields) = match random.below(8) {
            0 => ("/public/file.txt".to_owned(), forbidden_host(&mut random), String::new()),
            1 if rules.deny => {
                ("/public/file.txt".to_owned(), "server".to_owned(), forbidden_field(&mut random))
            }
            2 => (
                format!("http://{}{path}", ["server", "SERVER", "server:80"][random.below(3)]),
                "server".to_owned(),
                String::new(),
            ),
            _ => (
                path,
                ["server", "Server", "server.", "server:80"][random.below(4)].to_owned(),
                String::new(),
            ),
        };
        let answer = storm.ask(&target, &host, &fields)?;
        assert!(
            !answer.contains(CANARY),
            "{}: GET {target} for {host} with {fields:?} reached what is forbidden at {to}",
            rules.name
        );
        answered += usize::from(!answer.is_empty());
        served += usize::from(answer.starts_with("200") || answer.starts_with("404"));
    }
    assert!(answered * 2 > count, "{}: {answered} of {count} answered", rules.name);
    // A storm of which nothing passes would show little of what the applications make of it.
    assert!(
        !rules.normal || !rules.deny || served * 50 > count,
        "{}: {served} of {count} served at {to}",
        rules.name
    );
    Ok(())
}

/// Numbers that are the same in every run (a linear congruential generator, Knuth's constants).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or_default() % bound.max(1)
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

fn forbidden_path(random: &mut Random) -> String {
    const BEFORE: &[&str] = &[
        "",
        "",
        "",
        "/public/..",
        "/public/x/../..",
        "/.",
        "/",
        "//",
        "/%2e",
        "/public/%2e%2e",
        "/public/.%2E",
        "/public/..;",
        "/public/..;a=b",
        "/public%2f..",
        "/public%2F%2e%2e",
        "/public\\..",
        "/public%5c..",
        "/;x",
        "/%2f",
        "/%5C",
        "/public/%252e%252e",
        "/public/..%00",
        "/public/%c0%ae%c0%ae",
        "/x/y/../..",
        "/..",
        "/../..",
        "/public/...",
        "/public/.. ",
        "/public/file.txt/../..",
        "/public/%2e%2e;x",
        "/public//..",
        "/public/./..",
    ];
    const BETWEEN: &[&str] = &[
        "/",
        "/",
        "/",
        "//",
        "/./",
        "%2f",
        "%2F",
        "%5c",
        "%5C",
        "\\",
        "/;/",
        ";/",
        ";a=b/",
        "/x/../",
        "/%2e/",
        "/x/%2e%2e/",
        "/x/..;/",
        "%252f",
        "%c0%af",
        "/\u{0}",
        "/%20/../",
        "///",
        "/.;/",
        "\\.\\",
    ];
    const AFTER: &[&str] = &[
        "",
        "",
        "",
        "",
        "/",
        ";x",
        "?x=/../",
        "?",
        "%00",
        "%20",
        ".",
        "/.",
        "/..;/flag.txt",
        "%23",
        "#x",
        "%3f",
        ";/",
        "//",
        "/../flag.txt",
        "/x/..",
        "%0a",
        "\\",
    ];
    let (before, first) =
        (random.of(BEFORE), random.of(&["/", "/", "/", "/", "//", "/./", "\\", "%2f", "/;/"]));
    let (secret, between) = (spelt("secret", random), random.of(BETWEEN));
    let (flag, after) = (spelt("flag.txt", random), random.of(AFTER));
    let path = format!("{before}{first}{secret}{between}{flag}{after}");
    if path.starts_with('/') { path } else { format!("/{path}") }
}

/// A word with some letters written otherwise.
fn spelt(word: &str, random: &mut Random) -> String {
    let tricks = random.below(3) == 0;
    let mut spelt = String::new();
    for letter in word.bytes() {
        match random.below(if tricks { 6 } else { 40 }) {
            0 => spelt.push_str(&format!("%{letter:02x}")),
            1 => spelt.push_str(&format!("%{letter:02X}")),
            2 => spelt.push(char::from(letter.to_ascii_uppercase())),
            3 if tricks && random.below(4) == 0 => spelt.push_str(&format!("%25{letter:02x}")),
            _ => spelt.push(char::from(letter)),
        }
    }
    spelt
}

fn forbidden_host(random: &mut Random) -> String {
    const HOSTS: &[&str] = &[
        "forbidden",
        "FORBIDDEN",
        "Forbidden.",
        "forbidden:80",
        "forbidden.:80",
        "forbidden:8080",
        "fOrBiDdEn.:8080",
        "forbidden..",
        "forbidden:",
        "forbidden:080",
        "server@forbidden",
        "forbidden%2e",
        "forbidden\r\nHost: server",
        "server\r\nHost: forbidden",
        "forbidden, server",
        "forbidden/",
        "forbidden#",
        "forbidden\\",
        " forbidden",
        "forbidden;",
    ];
    random.of(HOSTS).to_owned()
}

fn forbidden_field(random: &mut Random) -> String {
    const NAMES: &[&str] = &[
        "X-Debug",
        "x-debug",
        "X_Debug",
        "x_debug",
        "X-DEBUG",
        "x_Debug",
        "Slipstream-Authn-Info",
        "slipstream_authn_info",
        "SLIPSTREAM_authn-info",
    ];
    const VALUES: &[&str] = &["1", "", "super ADMIN", "0", "a, b"];
    let lines = 1 + random.below(3);
    (0..lines).map(|_| format!("{}: {}\r\n", random.of(NAMES), random.of(VALUES))).collect()
}

/// Requests that are only written unusually: served with exceptions, refused without, through sidecars and without one.
fn lenient_client_is_served(
    stranger: &Container,
    client: &Container,
    to: SocketAddr,
    normal: bool,
) -> Result<(), Failure> {
    for from in [stranger, client] {
        for path in [
            "/public//file.txt",
            "/public/./file.txt",
            "/x/../public/file.txt",
            "/public%2Ffile.txt",
            "/public%5Cfile.txt",
            "/public\\file.txt",
            "/public;v=1/file.txt;w=2",
            "/public/%2e/file.txt?q=//",
            "//public/x/..;y/%66ile.txt",
        ] {
            let answer = Storm::new(from, to).ask(path, "server", "")?;
            if normal {
                assert!(answer.ends_with(HARMLESS), "{path}: {answer}");
            } else {
                assert!(answer.starts_with("400") && answer.contains("ambiguous-target"), "{path}: {answer}");
            }
        }
        let answer = Storm::new(from, to).ask("http://SERVER.:80/public/file.txt", "server", "")?;
        assert_eq!(answer.ends_with(HARMLESS), normal, "{answer}");
    }
    Ok(())
}

/// Everything that some application might take a target for.
fn readings(target: &str) -> BTreeSet<String> {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let mut texts = BTreeSet::from([path.to_owned()]);
    for _ in 0..3 {
        let decoded: Vec<String> = texts.iter().map(|text| unescaped(text)).collect();
        texts.extend(decoded);
    }
    for change in [|text: &str| text.replace('\\', "/"), without_parameters] {
        let changed: Vec<String> = texts.iter().map(|text| change(text)).collect();
        texts.extend(changed);
    }
    texts.iter().flat_map(|text| [resolved(text, true), resolved(text, false)]).collect()
}

fn unescaped(text: &str) -> String {
    let mut bytes = text.as_bytes();
    let mut out = Vec::new();
    while let Some((&first, rest)) = bytes.split_first() {
        let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if first == b'%' => {
                out.push(byte);
                bytes = &rest[2..];
            }
            _ => {
                out.push(first);
                bytes = rest;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn without_parameters(text: &str) -> String {
    text.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect::<Vec<_>>().join("/")
}

fn resolved(text: &str, merge: bool) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in text.trim_start_matches('/').split('/') {
        match segment {
            "." => {}
            "" if merge => {}
            ".." => {
                kept.pop();
            }
            _ => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/")).to_lowercase()
}
