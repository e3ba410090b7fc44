//! curl and nginx: what curl gets and what nginx sees is the same with and without the mesh.

use std::fs;

use signet_cli::lab::Program;
use signet_cli::lab::runner::TestResult;

use crate::pair::{Failure, Pair};
use crate::programs::app;

const PORT: u16 = 8080;
const LARGE: usize = 5 * 1024 * 1024;
const UPLOAD: usize = 2 * 1024 * 1024;
/// Methods and paths make it a layer-7 port.
const TO: &str = "to: [{methods: [GET, HEAD, POST, PUT], paths: ['/**']}]";

/// One curl call: its name, its arguments, and the path.
const CALLS: [(&str, &[&str], &str); 9] = [
    ("1 KiB", &[], "small"),
    ("5 MiB", &[], "large"),
    ("POST", &["-d", "a=1&b=2"], "seen"),
    ("header case", &["-H", "X-MiXeD-cAsE: kept", "-H", "accept:"], "seen"),
    ("HTTP/1.0", &["--http1.0"], "small"),
    (
        "expect",
        &["-X", "POST", "-H", "Expect: 100-continue", "--expect100-timeout", "50", "-T", "upload"],
        "seen",
    ),
    ("HEAD", &["-I", "-o", "/dev/null"], "large"),
    ("not found", &[], "nothing-is-here"),
    ("PUT", &["-T", "upload"], "stored/put"),
];

pub(crate) fn curl_and_nginx_see_no_difference() -> TestResult {
    let pair = Pair::new()?;
    fs::create_dir_all(pair.path("www/stored"))?;
    fs::write(pair.path("www/small"), noise(1024))?;
    fs::write(pair.path("www/large"), noise(LARGE))?;
    fs::write(pair.path("upload"), noise(UPLOAD))?;
    let _nginx = pair.serve(nginx(&pair)?, PORT)?;

    let direct = CALLS.iter().map(|call| curl(&pair, call)).collect::<Result<Vec<_>, _>>()?;
    let mesh = pair.mesh(PORT, TO)?;
    for (call, direct) in CALLS.iter().zip(direct) {
        let meshed = curl(&pair, call)?;
        assert_eq!(meshed.head, direct.head, "{}", call.0);
        assert!(
            meshed.body == direct.body,
            "{}: {} and {} bytes",
            call.0,
            meshed.body.len(),
            direct.body.len()
        );
    }
    assert!(fs::read(pair.path("www/stored/put"))? == noise(UPLOAD));
    mesh.check("signet_requests_total", 9)
}

/// What nginx is allowed to be asked is said by method and path, and nothing else reaches it.
pub(crate) fn curl_is_refused_what_no_rule_allows() -> TestResult {
    let pair = Pair::new()?;
    fs::create_dir(pair.path("www"))?;
    fs::write(pair.path("www/small"), noise(1024))?;
    let _nginx = pair.serve(nginx(&pair)?, PORT)?;
    let mesh = pair.mesh(PORT, "to: [{methods: [GET], paths: [/small]}]")?;

    assert_eq!(curl(&pair, &("allowed", &[], "small"))?.body, noise(1024));
    for (arguments, path) in
        [(&["-d", "x"][..], "small"), (&[], "smaller"), (&["--path-as-is"], "x/../small")]
    {
        let refused = curl(&pair, &("refused", arguments, path))?;
        let problem: serde_json::Value = serde_json::from_slice(&refused.body)?;
        let code = if path.contains("..") { "ambiguous-target" } else { "access-denied" };
        assert_eq!(problem["code"], code, "{path}: {problem}");
    }
    assert_eq!(fs::read_to_string(pair.path("access.log"))?.lines().count(), 1);
    mesh.check("signet_requests_total", 1)
}

struct Answer {
    /// Status and header fields, sorted: their order means nothing. Without the date, and without version and
    /// `Connection`, which each connection has of its own: nginx answers an HTTP/1.0 request with HTTP/1.1.
    head: Vec<String>,
    body: Vec<u8>,
}

fn curl(pair: &Pair, &(name, arguments, path): &(&str, &[&str], &str)) -> Result<Answer, Failure> {
    let (head, body) = (pair.path("head"), pair.path("body"));
    fs::write(&body, "")?;
    // So that every PUT makes it.
    let _ = fs::remove_file(pair.path("www/stored/put"));
    let curl = app("curl")?
        .args(arguments)
        .args(["-sS", "--max-time", "55", "-D", &head, "-o", &body])
        .args([format!("http://{}/{path}", pair.place(PORT))])
        .directory(pair.folder.path());
    pair.call(curl).map_err(|error| format!("{name}: {error}"))?;
    let head = fs::read_to_string(head)?;
    let steady = |line: &&str| !["Date:", "Connection:"].iter().any(|name| line.starts_with(name));
    let versionless = |line: &str| line.replace("HTTP/1.0", "HTTP").replace("HTTP/1.1", "HTTP");
    let mut head: Vec<String> = head.lines().filter(steady).map(versionless).collect();
    head.sort();
    Ok(Answer { head, body: fs::read(body)? })
}

/// nginx as Debian ships it; `/seen` answers with what it saw of the request, read and passed on to itself.
fn nginx(pair: &Pair) -> Result<Program, Failure> {
    let folder = pair.folder.path().display();
    let configuration = format!(
        "daemon off;
user root root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/body-temp;
  proxy_temp_path {folder}/proxy-temp;
  fastcgi_temp_path {folder}/fastcgi-temp;
  uwsgi_temp_path {folder}/uwsgi-temp;
  scgi_temp_path {folder}/scgi-temp;
  client_max_body_size 10m;
  underscores_in_headers on;
  server {{
    listen {PORT};
    root {folder}/www;
    add_header X-nGiNx-CaSe kept;
    location /stored {{ dav_methods PUT; }}
    location /seen {{
      proxy_pass http://unix:{folder}/seen.sock;
      proxy_pass_request_headers on;
      proxy_set_header X-Saw \"$request_method $server_protocol $content_length\";
    }}
  }}
  server {{
    listen unix:{folder}/seen.sock;
    access_log off;
    location / {{ return 200 \"$http_x_saw\\n$http_x_mixed_case\\n$content_type\\n\"; }}
  }}
}}
"
    );
    fs::write(pair.path("nginx.conf"), configuration)?;
    Ok(app("nginx")?.args(["-c", &pair.path("nginx.conf"), "-p", &pair.path("")]))
}

/// Bytes without a pattern that compression or repetition could hide.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}
