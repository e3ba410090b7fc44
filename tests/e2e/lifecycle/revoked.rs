//! Whoever is revoked is out: with what it has open, with what it would open, and with what it would come back with.

use std::convert::Infallible;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use signet_cli::lab::Container;
use signet_cli::lab::mesh::intruder::{Caller, Draft, Identity, IntruderError, Stream, inside};
use signet_cli::lab::mesh::{Mesh, app, client, transcript};
use signet_cli::lab::runner::TestResult;
use signet_identity::Fingerprint;
use tokio::sync::oneshot;

use crate::protocols::server::serve;
use crate::protocols::stage::{CLIENT_MAY_ALL, Failure, LIMIT, Stage, connect, manifests, server_id};
use crate::protocols::websocket::{HANDSHAKE, chat, read_head};

const REST: u16 = 8201;
const EVENTS: u16 = 8000;
const BYTES: u16 = 3306;
const CHAT: u16 = 7001;
const TICKS: u16 = 9090;

/// Between two messages of an app that streams.
const TICK: Duration = Duration::from_millis(20);

/// Holds a connection and a stream open while it is revoked, and goes on as if nothing had happened: it is the other side
/// that must end them. The order is that of the events: the answer to the operator, then everything else.
pub(super) fn revoked_instance_loses_what_is_open_and_neither_calls_nor_renews_nor_enrols() -> TestResult {
    let stage = Stage::new()?;
    let _apps = [
        app(&stage.server, &["rest"], &[REST])?,
        app(&stage.server, &["sse"], &[EVENTS])?,
        app(&stage.server, &["greeter"], &[BYTES])?,
    ];
    let ports = format!(
        "ports: [{{port: {REST}, protocol: http}}, {{port: {EVENTS}, protocol: http}}, {{port: {BYTES}}}]"
    );
    let meshed = stage.mesh(&manifests("", &ports, CLIENT_MAY_ALL), &[REST, EVENTS, BYTES])?;
    // It has no sidecar, and speaks for itself.
    let bare = stage.host.container("bare")?;
    let bare = bare.namespace();
    let token = meshed.mesh.token("client")?;
    let enrol = || Identity::enrol(bare, meshed.mesh.address(), token.clone());
    let (stolen, other) = (enrol()?, enrol()?);
    let leaf = stolen.tls.fingerprint;

    let (opened, is_open) = mpsc::channel();
    let (tell, told) = oneshot::channel::<()>();
    let (from, rest, bytes) = (bare.clone(), stage.place(REST), stage.place(BYTES));
    let id = server_id()?;
    let holder = std::thread::spawn(move || {
        inside(&from, move || async move {
            let mut caller = Caller::open(&stolen, rest).await?;
            let mut stream = Stream::open(&stolen, bytes, (&id, BYTES), true).await?;
            let request = caller.sign(&Draft::new("GET", "/api", "server"))?;
            let before = caller.call(&request).await?.status;
            let greeting = format!("{:?}", stream.receive().await?);
            let _ = opened.send((before, greeting));
            let _ = told.await;
            // Whatever comes next is the end: neither gets another byte of the app.
            let stream_goes_on = async {
                stream.send(b"still here\n").await?;
                stream.receive().await.map(|event| format!("{event:?}"))
            };
            let stream_goes_on = stream_goes_on.await;
            let request = caller.sign(&Draft::new("GET", "/api", "server"))?;
            let connection = caller.call(&request).await.map(|answer| answer.status);
            let anew = Caller::open(&stolen, rest).await;
            let anew = match anew {
                Ok(mut caller) => {
                    let request = caller.sign(&Draft::new("GET", "/api", "server"))?;
                    caller.call(&request).await.map(|answer| answer.status)
                }
                Err(error) => Err(error),
            };
            Ok::<_, IntruderError>((stream_goes_on, connection, anew))
        })
    });
    let (before, greeting) = is_open.recv()?;
    assert_eq!(before, 200);
    assert!(greeting.contains("Data"), "{greeting}");
    // A sidecar that is not meant has a stream of its own open.
    let to = stage.place(EVENTS).to_string();
    let arguments = ["sse", "--to", &to, "--events", "20", "--every", "100", "--timeout", "60"];
    let events = client(stage.client.namespace(), &arguments)?;

    meshed.mesh.revoke(leaf, "stolen")?;
    wait_until_acknowledged(&meshed.mesh)?;
    let _ = tell.send(());
    let (stream, connection, anew) = holder.join().map_err(|_| "the holder panicked")??;
    assert!(stream.is_err(), "the stream goes on: {stream:?}");
    assert!(
        connection.as_ref().map_or(true, |status| *status != 200),
        "the connection goes on: {connection:?}"
    );
    assert!(anew.as_ref().map_or(true, |status| *status != 200), "it is served anew: {anew:?}");
    // Its token is good for a hundred; now only an operator lets it in again.
    assert!(enrol().is_err(), "it enrols again");
    let let_in = Identity::enrol(bare, meshed.mesh.address(), meshed.mesh.token("client")?)?;
    for identity in [other, let_in] {
        let status = inside(bare, move || async move {
            let mut caller = Caller::open(&identity, rest).await?;
            let request = caller.sign(&Draft::new("GET", "/api", "server"))?;
            Ok(caller.call(&request).await?.status)
        });
        assert_eq!(status?, 200, "others of the same identity go on");
    }
    let events = transcript(&events)?;
    assert_eq!(events.exchanges[0].timing.events_ms.len(), 20, "the sidecar's own stream goes on");
    Ok(())
}

/// A sidecar's own app has a stream open when that sidecar is revoked: the stream ends, and calls are refused.
pub(super) fn revoked_sidecars_streams_and_tunnels_end_and_its_calls_are_refused() -> TestResult {
    let stage = Stage::new()?;
    let _apps = [
        app(&stage.server, &["rest"], &[REST])?,
        app(&stage.server, &["sse"], &[EVENTS])?,
        app(&stage.server, &["greeter"], &[BYTES])?,
    ];
    let ports = format!(
        "ports: [{{port: {REST}, protocol: http}}, {{port: {EVENTS}, protocol: http}}, {{port: {BYTES}}}]"
    );
    let meshed = stage.mesh(&manifests("", &ports, CLIENT_MAY_ALL), &[REST, EVENTS, BYTES])?;
    let to = stage.place(EVENTS).to_string();
    let arguments = ["sse", "--to", &to, "--events", "100000", "--every", "50", "--timeout", "60"];
    let events = client(stage.client.namespace(), &arguments)?;
    let mut bytes = crate::protocols::stage::connect(stage.client.namespace(), stage.place(BYTES))?;
    let mut greeting = [0; 19];
    std::io::Read::read_exact(&mut bytes, &mut greeting)?;

    let proxies = meshed.mesh.proxies()?;
    let client_leaf = proxies.iter().find(|proxy| proxy.spiffe_id.ends_with("/client")).ok_or("no client")?;
    let asked = Instant::now();
    meshed.mesh.revoke(client_leaf.instance.parse::<Fingerprint>()?, "stolen")?;
    let answered = asked.elapsed();
    // Both ends of both streams: what the app sees is their end, which it waits for.
    let mut rest = Vec::new();
    let end = std::io::Read::read_to_end(&mut bytes, &mut rest);
    println!("revoked in {answered:?}, the open stream ended {:?} after it was asked for", asked.elapsed());
    assert!(rest.is_empty(), "{end:?} after {rest:?}");
    let events = transcript(&events)?;
    assert!(events.exchanges[0].timing.events_ms.len() < 100_000);
    let answer = crate::protocols::http::get(stage.client.namespace(), stage.place(REST), "/api");
    assert!(answer.as_ref().map_or(true, |answer| answer.status() != 200), "it is served");
    Ok(())
}

/// As above, of what is neither one request nor bytes of unknown kind: a WebSocket, and a response over HTTP/2 that does not end, as a
/// stream of gRPC is one.
pub(super) fn revoked_sidecars_websocket_and_stream_over_http2_end() -> TestResult {
    let stage = Stage::new()?;
    serve(&stage.server, CHAT, Arc::new(()), chat)?;
    ticks_over_http2(&stage.server, TICKS)?;
    let ports = format!("ports: [{{port: {CHAT}, protocol: http}}, {{port: {TICKS}, protocol: http2}}]");
    let meshed = stage.mesh(&manifests("", &ports, CLIENT_MAY_ALL), &[CHAT, TICKS])?;
    let client = stage.client.namespace();

    let mut socket = connect(client, stage.place(CHAT))?;
    socket.write_all(format!("GET /chat HTTP/1.1\r\n{HANDSHAKE}").as_bytes())?;
    let head = read_head(&mut socket)?;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut hello = [0; 5];
    socket.read_exact(&mut hello)?;

    let (opened, is_open) = mpsc::channel();
    let (from, to) = (client.clone(), stage.place(TICKS));
    let reader =
        std::thread::spawn(move || inside(&from, move || async move { read_ticks(to, &opened).await }));
    is_open.recv_timeout(LIMIT)?;

    let proxies = meshed.mesh.proxies()?;
    let client_leaf = proxies.iter().find(|proxy| proxy.spiffe_id.ends_with("/client")).ok_or("no client")?;
    let asked = Instant::now();
    meshed.mesh.revoke(client_leaf.instance.parse::<Fingerprint>()?, "stolen")?;
    // The app would echo for ever and tick for ever: only the mesh ends these.
    let mut rest = Vec::new();
    let end = socket.read_to_end(&mut rest);
    println!("the WebSocket ended {:?} after it was asked for", asked.elapsed());
    let waited_in_vain = end.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    assert!(
        rest.is_empty() && !waited_in_vain,
        "it goes on, or the app's own last word has come: {end:?} {rest:?}"
    );
    let ticks = reader.join().map_err(|_| "the reader panicked")??;
    println!("the stream over HTTP/2 ended {:?} after it was asked for", asked.elapsed());
    assert!(ticks.is_err(), "the stream ended as if it were complete: {ticks:?}");
    let mut anew = connect(client, stage.place(CHAT))?;
    anew.write_all(format!("GET /chat HTTP/1.1\r\n{HANDSHAKE}").as_bytes())?;
    let refused = read_head(&mut anew);
    assert!(refused.as_ref().map_or(true, |head| !head.starts_with("HTTP/1.1 101 ")), "{refused:?}");
    Ok(())
}

/// An HTTP/2 app whose answers never end; it listens until the test ends.
fn ticks_over_http2(at: &Container, port: u16) -> TestResult {
    let listener = at.namespace().run(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))??;
    listener.set_nonblocking(true)?;
    std::thread::Builder::new().name("ticks".into()).spawn(move || -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loop {
                let (tcp, _) = listener.accept().await?;
                let answer = service_fn(|_: Request<Incoming>| async {
                    let ticks = futures_util::stream::unfold((), |()| async {
                        tokio::time::sleep(TICK).await;
                        Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"tick"))), ()))
                    });
                    Ok::<_, Infallible>(Response::new(StreamBody::new(ticks)))
                });
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(serving.serve_connection(TokioIo::new(tcp), answer));
            }
        })
    })?;
    Ok(())
}

/// Reads the answer of [`ticks_over_http2`] until it ends: how many ticks came, or how it broke. Tells when the first has come.
async fn read_ticks(
    to: SocketAddr,
    opened: &mpsc::Sender<()>,
) -> Result<Result<usize, String>, IntruderError> {
    let told = |error: hyper::Error| IntruderError::Answer(error.to_string());
    let tcp = TokioIo::new(tokio::net::TcpStream::connect(to).await?);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), tcp).await.map_err(told)?;
    tokio::spawn(connection);
    let request = Request::get("http://server/ticks").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| IntruderError::Answer(error.to_string()))?;
    let mut body = sender.send_request(request).await.map_err(told)?.into_body();
    let mut ticks = 0;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(_) => ticks += 1,
            Err(error) => return Ok(Err(error.to_string())),
        }
        let _ = opened.send(());
    }
    Ok(Ok(ticks))
}

/// Until every connected sidecar has the newest list.
fn wait_until_acknowledged(mesh: &Mesh) -> Result<(), Failure> {
    let has_it = || {
        let proxies = mesh.proxies().ok()?;
        let mut connected = proxies.iter().filter(|proxy| proxy.connected);
        let is_current = |proxy: &signet_sync::proto::admin::Proxy| {
            let mut sections = proxy.sections.iter();
            let list = sections.find(|section| section.name == "revocations");
            list.is_some_and(|list| list.counter > 1 && list.acked_counter == list.counter)
        };
        connected.all(is_current).then_some(())
    };
    signet_cli::lab::mesh::wait_until(crate::protocols::stage::LIMIT, has_it)
        .ok_or_else(|| "not every sidecar acknowledged the list".into())
}
