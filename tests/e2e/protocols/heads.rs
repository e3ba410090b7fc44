//! Heads that are too large: each is refused with a code, wherever it comes from.

use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use signet_cli::lab::Container;
use signet_cli::lab::mesh::intruder::{Caller as Intruder, Draft, Identity, IntruderError, inside};
use signet_cli::lab::runner::TestResult;
use signet_identity::ALPN_H2;
use tokio::io::{AsyncRead, AsyncWrite};

use super::http::{Caller, Message, read_request};
use super::server::serve;
use super::stage::{CLIENT_MAY_ALL, Failure, Stage, manifests};

const PORT: u16 = 8201;
/// What a sidecar takes from an app, and what it takes from another sidecar in addition.
const BYTES: usize = 64 * 1024;
const FIELDS: usize = 80;
const OF_THE_MESH: usize = 32 * 1024;

/// Answers with as large a head as the target asks for, and counts what it is asked.
fn answer(stream: TcpStream, asked: &AtomicUsize) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream)? {
        asked.fetch_add(1, Ordering::Relaxed);
        let target = request.start.split(' ').nth(1).unwrap_or_default();
        let (bytes, fields) = target.trim_start_matches('/').split_once('/').unwrap_or_default();
        let long = "v".repeat(bytes.parse().unwrap_or(0));
        let many = "X-Many: v\r\n".repeat(fields.parse().unwrap_or(0));
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Long: {long}\r\n{many}\r\nok");
        stream.get_mut().write_all(head.as_bytes())?;
    }
    Ok(())
}

fn ask(from: &Container, to: SocketAddr, target: &str, fields: &str) -> Result<Message, Failure> {
    let mut caller = Caller::open(from.namespace(), to)?;
    // The sidecar may answer, and close, before it has read all of it.
    let _ = caller.send(format!("GET {target} HTTP/1.1\r\nHost: server\r\n{fields}\r\n"));
    Ok(caller.answer()?)
}

fn long(length: usize) -> String {
    format!("X-Long: {}\r\n", "v".repeat(length))
}

fn many(fields: usize) -> String {
    "X-Many: v\r\n".repeat(fields)
}

/// What `ask` has besides the value of a long field.
const REST: usize = "GET".len() + "/".len() + "host".len() + "server".len() + "x-long".len();

pub(super) fn oversized_head_is_refused_by_name() -> TestResult {
    let stage = Stage::new()?;
    let asked = Arc::new(AtomicUsize::new(0));
    serve(&stage.server, PORT, Arc::clone(&asked), answer)?;
    let server = format!("mtls: {{mode: permissive}}, ports: [{{port: {PORT}, protocol: http}}]");
    let rules = format!("{CLIENT_MAY_ALL}\n    - from: [{{any: anyone}}]");
    let meshed = stage.mesh(&manifests("", &server, &rules), &[PORT])?;
    let stranger = stage.host.container("stranger")?;
    let place = stage.place(PORT);

    // From an app to its own sidecar, and from a caller without one.
    for (who, from) in [("app", &stage.client), ("stranger", &stranger)] {
        for (what, fields) in
            [("longest", long(BYTES - REST)), ("most fields", many(FIELDS - 1)), ("nothing more", "".into())]
        {
            let passed = ask(from, place, "/", &fields).map_err(|error| format!("{who}, {what}: {error}"))?;
            assert_eq!((passed.status(), passed.body.as_slice()), (200, &b"ok"[..]), "{who}, {what}");
        }
        let before = asked.load(Ordering::Relaxed);
        for (what, fields) in [
            ("a byte too long", long(BYTES - REST + 1)),
            ("a field too many", many(FIELDS)),
            ("100 KiB", long(100 * 1024)),
        ] {
            let refused =
                ask(from, place, "/", &fields).map_err(|error| format!("{who}, {what}: {error}"))?;
            let found = (refused.status(), refused.code(), refused.header("content-type"));
            let expected = (431, Some("header-too-large".to_owned()), Some("application/problem+json"));
            assert_eq!(found, expected, "{who}, {what}");
        }
        // Far beyond, the library answers by itself: without a document, but not without a word.
        for fields in [long(3 * BYTES), many(2 * FIELDS)] {
            let bare = ask(from, place, "/", &fields)?;
            assert_eq!((bare.status(), bare.code()), (431, None), "{who}, far beyond");
        }
        assert_eq!(asked.load(Ordering::Relaxed), before, "{who}: the app saw a head that was refused");
    }
    assert_eq!(meshed.client.metrics()?.sum("signet_refusals_total", &["outbound", "header-too-large"]), 3.0);
    assert_eq!(meshed.server.metrics()?.sum("signet_refusals_total", &["inbound", "header-too-large"]), 3.0);

    // The app's own answers.
    for target in [format!("/{}/0", BYTES + 1), format!("/0/{FIELDS}"), format!("/{}/0", 3 * BYTES)] {
        for (who, from) in [("app", &stage.client), ("stranger", &stranger)] {
            let refused = ask(from, place, &target, "")?;
            let found = (refused.status(), refused.code());
            assert_eq!(found, (503, Some("upstream-unreachable".to_owned())), "{who}, {target}");
        }
    }
    let passed = ask(&stage.client, place, &format!("/{}/0", BYTES - 1024), "")?;
    assert_eq!(passed.header("x-long").map(str::len), Some(BYTES - 1024));

    // From another sidecar, which may add what the mesh needs and no more: the refusal is signed.
    let identity =
        Identity::enrol(stranger.namespace(), meshed.mesh.address(), meshed.mesh.token("client")?)?;
    let before = asked.load(Ordering::Relaxed);
    let answers = inside(stranger.namespace(), move || async move {
        let mut answers = Vec::new();
        for length in [BYTES + OF_THE_MESH, BYTES] {
            let mut caller = Intruder::open(&identity, place).await?;
            let draft = Draft::new("GET", "/", "server").with_header("x-long", &"v".repeat(length));
            let signed = caller.sign(&draft)?;
            answers.push(caller.call(&signed).await?);
        }
        let stream = identity.connect(place, ALPN_H2).await?;
        let unsigned = over_http2(stream, BYTES + OF_THE_MESH).await?;
        Ok((answers, unsigned))
    })?;
    let (refused, passed) = (&answers.0[0], &answers.0[1]);
    assert_eq!((refused.status, refused.code().as_deref()), (431, Some("header-too-large")));
    let has = |name: &str| refused.headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    assert!(has("signature") && has("signature-input") && has("mesh-origin"), "{:?}", refused.headers);
    assert_eq!(passed.status, 200);
    assert_eq!(answers.1, (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Some("header-too-large".into())));
    assert_eq!(asked.load(Ordering::Relaxed), before + 1);
    Ok(())
}

pub(super) fn oversized_head_is_refused_by_name_in_http2_too() -> TestResult {
    let stage = Stage::new()?;
    let server = format!("mtls: {{mode: permissive}}, ports: [{{port: {PORT}, protocol: http}}]");
    let rules = format!("{CLIENT_MAY_ALL}\n    - from: [{{any: anyone}}]");
    let _app = signet_cli::lab::mesh::app(&stage.server, &["grpc"], &[PORT])?;
    let _meshed = stage.mesh(&manifests("", &server, &rules), &[PORT])?;
    let stranger = stage.host.container("stranger")?;
    let place = stage.place(PORT);
    let too_large = Some("header-too-large".to_owned());
    for (who, from) in [("app", &stage.client), ("stranger", &stranger)] {
        let answers = inside(from.namespace(), move || async move {
            let mut answers = Vec::new();
            // The app itself takes 16 KiB.
            for length in [8 * 1024, BYTES, 3 * BYTES] {
                let stream = tokio::net::TcpStream::connect(place).await?;
                answers.push(over_http2(stream, length).await?);
            }
            Ok(answers)
        })?;
        let expected = [
            (StatusCode::OK, None),
            (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, too_large.clone()),
            (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, None),
        ];
        assert_eq!(answers, expected, "{who}");
    }
    Ok(())
}

/// One HTTP/2 request with a field of this length; its status, and its code if it is refused.
pub(crate) async fn over_http2<S>(
    stream: S,
    length: usize,
) -> Result<(StatusCode, Option<String>), IntruderError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let told = |error: &dyn std::fmt::Display| IntruderError::Answer(error.to_string());
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| told(&error))?;
    tokio::spawn(connection);
    let request = Request::post("http://server/signet.Nothing/Nowhere")
        .header("content-type", "application/grpc")
        .header("x-long", "v".repeat(length))
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|error| told(&error))?;
    let response = sender.send_request(request).await.map_err(|error| told(&error))?;
    let status = response.status();
    let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let problem: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let code = problem.and_then(|problem| Some(problem.get("code")?.as_str()?.to_owned()));
    Ok((status, code))
}
