//! The proxy on real sockets, with an engine that notes every byte and answers what a test says.

use std::path::PathBuf;

use serde_json::{Value, json};
use signet_inject::compose::ROLE_LABEL;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::attestor::rules::WORKLOAD_LABEL;
use crate::attestor::{Attestor, Rules};
use crate::client::ControlPlane;
use crate::docker::Docker;
use crate::group::Trust;

/// An image that may be the workload. Tags stand for none here, as nobody resolved them.
const LISTED: &str = "sha256:0b";
const RULES: &str = "workloads: [{name: web, images: ['web:1', 'sha256:0b'], labels: {service: web}}]";

struct Fixture {
    folder: TempDir,
    engine: UnixListener,
}

impl Fixture {
    async fn new(refuse_unnamed: bool) -> Self {
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name);
        let engine = UnixListener::bind(at("engine")).unwrap();
        let docker = Docker::at(at("engine"));
        let trust = Trust { rules: Rules::parse("rules", RULES).unwrap(), image: "sha256:0a".to_owned() };
        let groups = Groups::new(docker, Attestor::new(ControlPlane::at(at("admin")), 1), trust);
        let settings = create::Settings {
            control_plane: "cp:15012".to_owned(),
            image: "signet-proxy".to_owned(),
            reserved: Vec::new(),
        };
        let proxy = ApiProxy::new(groups, at("engine"), settings, None, refuse_unnamed);
        // Who may use it is asked of the engine's socket, which must not be asked for a connection here.
        let listener = listen(&at("api"), &at("engine")).await.unwrap();
        tokio::spawn(serve(listener, Arc::new(proxy), |_| {}));
        Self { folder, engine }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn client(&self) -> UnixStream {
        UnixStream::connect(self.at("api")).await.unwrap()
    }

    /// What a client is answered that sends this and ends.
    async fn answered(&self, request: &[u8]) -> String {
        let mut client = self.client().await;
        client.write_all(request).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// The next connection to the engine, after `expected` has come by it.
    async fn engine_gets(&self, expected: &[u8]) -> UnixStream {
        let (mut stream, _) = self.engine.accept().await.unwrap();
        read(&mut stream, expected).await;
        stream
    }

    /// Answers the engine's next requests: each begins with the first text, and is answered by the second.
    async fn engine_answers(&self, exchanges: &[(&str, Value)]) {
        for (request, answer) in exchanges {
            let (mut stream, _) = self.engine.accept().await.unwrap();
            let mut got = Vec::new();
            while !got.ends_with(b"\r\n\r\n") {
                got.push(stream.read_u8().await.unwrap());
            }
            let got = String::from_utf8(got).unwrap();
            assert!(got.starts_with(request), "{request}: {got}");
            let length = got.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
            stream.read_exact(&mut body).await.unwrap();
            let (status, body) = match answer {
                Value::Null => ("404 Not Found", json!({ "message": "no" }).to_string()),
                answer => ("200 OK", answer.to_string()),
            };
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        }
    }

    /// What a client is answered while the engine is asked no more than this.
    async fn told(&self, request: &[u8], exchanges: &[(&str, Value)]) -> String {
        let engine = async {
            self.engine_answers(exchanges).await;
            let more = self.engine.accept().await;
            panic!("the engine is asked for more than {exchanges:?}: {more:?}");
        };
        tokio::select! {
            answer = self.answered(request) => answer,
            () = engine => unreachable!(),
        }
    }
}

/// A container, as the engine shows it by its id.
fn container(id: &str, image: &str, role: &str, mode: &str) -> Value {
    json!({
        "Id": id, "Name": format!("/{id}"), "Image": image,
        "State": { "Running": true, "Restarting": false, "Error": "", "StartedAt": "2026-11-26T20:07:31Z" },
        "HostConfig": { "NetworkMode": mode }, "Config": { "Image": "web:1", "Labels": labels(role) },
    })
}

/// The same, as it stands in a list.
fn listed(id: &str, role: &str, mode: &str) -> Value {
    let host = json!({ "NetworkMode": mode });
    json!({ "Id": id, "Names": [id], "State": "running", "Labels": labels(role), "HostConfig": host })
}

fn labels(role: &str) -> Value {
    json!({ create::GROUP_LABEL: "g", ROLE_LABEL: role, WORKLOAD_LABEL: "web" })
}

fn whole_group() -> Value {
    json!([
        listed("h", "holder", "fog"),
        listed("s", "sidecar", "container:h"),
        listed("a", "app", "container:h")
    ])
}

async fn read(stream: &mut UnixStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(expected));
}

fn create(body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST /v1.41/containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

#[tokio::test]
async fn a_hijacked_connection_carries_bytes_both_ways_and_the_end_of_input() {
    let fixture = Fixture::new(false).await;
    let mut client = fixture.client().await;
    let head = b"POST /v1.41/containers/web/attach?stdin=1 HTTP/1.1\r\nHost: d\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\n";
    client.write_all(&[head.as_slice(), b"early\0\xff"].concat()).await.unwrap();
    let app = container("a", "sha256:0b", "app", "container:h");
    fixture.engine_answers(&[("GET /containers/web/json ", app)]).await;
    let expected = b"POST /v1.41/containers/a/attach?stdin=1 HTTP/1.1\r\nHost: d\r\nUpgrade: tcp\r\n\
                     Connection: Upgrade, close\r\n\r\nearly\0\xff";
    let mut engine = fixture.engine_gets(expected).await;
    let answer =
        b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n\x01\0\0\0\0\0\0\x02hi";
    engine.write_all(answer).await.unwrap();
    read(&mut client, answer).await;
    client.write_all(b"\r\n\r\nPOST /containers/create HTTP/1.1\r\n\r\n").await.unwrap();
    read(&mut engine, b"\r\n\r\nPOST /containers/create HTTP/1.1\r\n\r\n").await;
    client.shutdown().await.unwrap();
    assert_eq!(engine.read(&mut [0; 8]).await.unwrap(), 0);
    engine.write_all(b"last words").await.unwrap();
    drop(engine);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"last words");
}

#[tokio::test]
async fn a_chunked_upload_and_a_followed_log_pass_as_they_are() {
    let fixture = Fixture::new(false).await;
    let mut client = fixture.client().await;
    let body = b"5;x=y\r\nhello\r\n0\r\nT: z\r\n\r\n";
    client.write_all(b"POST /build HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    let expected =
        b"POST /build HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    let mut engine = fixture.engine_gets(expected).await;
    client.write_all(body).await.unwrap();
    read(&mut engine, body).await;
    for line in ["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\na\r\n", "1\r\nb\r\n"] {
        engine.write_all(line.as_bytes()).await.unwrap();
        read(&mut client, line.as_bytes()).await;
    }
}

#[tokio::test]
async fn a_container_that_nobody_names_is_made_with_the_bytes_that_were_sent() {
    let fixture = Fixture::new(false).await;
    let body = r#"{"Image":"a",  "HostConfig":{"NetworkMode":"host"},"Unknown":[1.0e2]}"#;
    let mut client = fixture.client().await;
    client.write_all(&create(body)).await.unwrap();
    fixture.engine_answers(&[("GET /images/a/json ", json!({ "Id": "sha256:0b" }))]).await;
    let expected = format!(
        "POST /v1.41/containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut engine = fixture.engine_gets(expected.as_bytes()).await;
    engine.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 11\r\n\r\n{\"Id\":\"4f\"}").await.unwrap();
    drop(engine);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 201 Created\r\n") && answer.ends_with("{\"Id\":\"4f\"}"),
        "{answer}"
    );
}

#[tokio::test]
async fn bodies_that_are_malformed_or_too_long_are_refused_in_the_engines_form() {
    let fixture = Fixture::new(true).await;
    let too_long = relay::BODY_MAX + 1;
    let head = |fields: &str| format!("POST /containers/create HTTP/1.1\r\nHost: d\r\n{fields}\r\n\r\n");
    for (request, status, reason) in [
        (create("{"), 400, "no JSON"),
        (create("[]"), 400, "no JSON object"),
        (create(r#"{"Labels":{},"labels":{}}"#), 400, "twice"),
        (create(r#"{"Image":"a"}"#), 403, "workload-unnamed"),
        (create(r#"{"Image":"a","Labels":{"signet.mf2c-project.eu/group":"x"}}"#), 400, "reserved-label"),
        (head(&format!("Content-Length: {too_long}")).into_bytes(), 413, "longer than"),
        (
            head("Transfer-Encoding: chunked").into_bytes().into_iter().chain(*b"zz\r\n").collect(),
            400,
            "chunk size",
        ),
        (
            head("Transfer-Encoding: chunked")
                .into_bytes()
                .into_iter()
                .chain(format!("{too_long:x}\r\n").into_bytes())
                .collect(),
            413,
            "longer than",
        ),
        (b"POST //containers/create HTTP/1.1\r\n\r\n".to_vec(), 400, "path"),
        (head("Content-Length: 1\r\nContent-Length: 1").into_bytes(), 400, "more than one"),
    ] {
        let answer = fixture.answered(&request).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let message = body["message"].as_str().unwrap();
        assert!(message.starts_with("signet: ") && message.contains(reason), "{message}");
    }
    // Nothing of it came to the engine: the next it gets is this.
    let mut client = fixture.client().await;
    client.write_all(b"GET /_ping HTTP/1.1\r\n\r\n").await.unwrap();
    fixture.engine_gets(b"GET /_ping HTTP/1.1\r\nConnection: close\r\n\r\n").await;
}

#[tokio::test]
async fn an_engine_that_is_away_is_told_and_a_socket_in_use_is_not_taken() {
    let fixture = Fixture::new(false).await;
    let in_use = listen(&fixture.at("api"), &fixture.at("engine")).await.unwrap_err();
    assert_eq!(in_use.kind(), io::ErrorKind::AddrInUse);
    fs::remove_file(fixture.at("engine")).unwrap();
    let answer = fixture.answered(b"GET /info HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("signet: the engine at "), "{answer}");
}

#[tokio::test]
async fn a_socket_that_was_left_behind_is_taken_over_with_the_rights_of_the_engines() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let _engine = UnixListener::bind(at("engine")).unwrap();
    fs::set_permissions(at("engine"), fs::Permissions::from_mode(0o620)).unwrap();
    drop(UnixListener::bind(at("api")).unwrap());
    let listener = listen(&at("api"), &at("engine")).await.unwrap();
    assert_eq!(fs::metadata(at("api")).unwrap().mode() & 0o777, 0o620);
    let (accepted, connected) = tokio::join!(listener.accept(), UnixStream::connect(at("api")));
    assert!(accepted.is_ok() && connected.is_ok());
}

mod hostile;
