use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderMap, Response};
use http_body_util::{BodyExt, Full};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::*;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn probes(name: &str, probe: &str) -> Probes {
    format!(r#"{{"{name}":{probe}}}"#).parse().unwrap()
}

async fn asked(probe: &str) -> Result<(), Failed> {
    probes("web/liveness", probe).ask("web/liveness", LOCAL, Exempt::Uid(0)).await.unwrap()
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// An app that answers each request by its path, if the fields of the probe are there.
async fn app(count: Arc<AtomicUsize>, hold: Option<Arc<Notify>>) -> u16 {
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (count, hold) = (Arc::clone(&count), hold.clone());
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let (count, hold) = (Arc::clone(&count), hold.clone());
                async move {
                    count.fetch_add(1, Ordering::Relaxed);
                    if let Some(hold) = hold {
                        hold.notified().await;
                    }
                    let known = request.headers().get("x-probe").is_some_and(|value| value == "yes")
                        && request.headers().get(header::HOST).is_some_and(|host| host == "app.example");
                    let status = match request.uri().to_string().as_str() {
                        "/live?full=1" if known => 200,
                        "/moved" => 302,
                        "/ill" => 503,
                        _ => 404,
                    };
                    Ok::<_, Infallible>(
                        Response::builder().status(status).body(Full::new(Bytes::from("secret"))).unwrap(),
                    )
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    port
}

fn http_get(port: u16, path: &str) -> String {
    format!(
        r#"{{"httpGet":{{"port":{port},"path":"{path}","scheme":"HTTP","httpHeaders":[{{"name":"X-Probe","value":"yes"}},{{"name":"Host","value":"app.example"}}]}},"timeoutSeconds":5}}"#
    )
}

#[tokio::test]
async fn http_probe_is_sent_as_it_was_written_and_tells_the_status_alone() {
    let port = app(Arc::default(), None).await;
    assert_eq!(asked(&http_get(port, "/live?full=1")).await, Ok(()));
    assert_eq!(asked(&http_get(port, "/moved")).await, Ok(()));
    assert_eq!(asked(&http_get(port, "/ill")).await, Err(Failed::Status(503)));
    assert_eq!(asked(&http_get(port, "/live")).await, Err(Failed::Status(404)));
}

#[tokio::test]
async fn nobody_listening_fails_and_an_unknown_name_is_none() {
    let (listener, port) = listener().await;
    let tcp = format!(r#"{{"tcpSocket":{{"port":{port}}},"timeoutSeconds":5}}"#);
    assert_eq!(asked(&tcp).await, Ok(()));
    drop(listener);
    assert_eq!(asked(&tcp).await, Err(Failed::Unanswered));
    assert_eq!(asked(&http_get(port, "/")).await, Err(Failed::Unanswered));
    assert!(probes("web/liveness", &tcp).ask("web/readiness", LOCAL, Exempt::Uid(0)).await.is_none());
}

#[tokio::test]
async fn app_that_does_not_answer_is_given_up_after_its_time() {
    let port = app(Arc::default(), Some(Arc::default())).await;
    let probe = http_get(port, "/live?full=1").replace("Seconds\":5", "Seconds\":1");
    assert_eq!(asked(&probe).await, Err(Failed::TimedOut));
}

#[tokio::test]
async fn many_who_ask_at_once_are_one_probe() {
    let (count, hold) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let port = app(Arc::clone(&count), Some(Arc::clone(&hold))).await;
    let probes = probes("web/liveness", &http_get(port, "/live?full=1"));
    let ask = || probes.ask("web/liveness", LOCAL, Exempt::Uid(0));
    let asking = async { tokio::join!(ask(), ask(), ask()) };
    let (outcomes, ()) = tokio::join!(asking, async { hold.notify_one() });
    assert_eq!(outcomes, (Some(Ok(())), Some(Ok(())), Some(Ok(()))));
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn https_probe_believes_any_certificate() {
    let (listener, port) = listener().await;
    let made = rcgen::generate_simple_self_signed(["app.example".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
        let service = service_fn(async |_| Ok::<_, Infallible>(Response::new(Full::new(Bytes::new()))));
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    });
    let probe = format!(
        r#"{{"httpGet":{{"port":{port},"path":"/","scheme":"HTTPS","httpHeaders":[]}},"timeoutSeconds":5}}"#
    );
    assert_eq!(asked(&probe).await, Ok(()));
}

/// A service of gRPC that says its health: `status`, or the error `grpc_status`.
async fn grpc_app(status: i32, grpc_status: &'static str) -> u16 {
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(move |request: Request<hyper::body::Incoming>| async move {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            let asked = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(&asked[..], b"\0\0\0\0\x07\x0a\x05store");
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static(grpc_status));
            let body = Full::new(grpc::framed(&grpc::CheckResponse { status }));
            Ok::<_, Infallible>(Response::new(body.with_trailers(async move { Some(Ok(trailers)) })))
        });
        let _ =
            http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
    });
    port
}

#[tokio::test]
async fn grpc_probe_asks_the_health_of_its_service() {
    for (status, grpc_status, expected) in
        [(1, "0", Ok(())), (2, "0", Err(Failed::Unanswered)), (1, "5", Err(Failed::Unanswered))]
    {
        let port = grpc_app(status, grpc_status).await;
        let probe = format!(r#"{{"grpc":{{"port":{port},"service":"store"}},"timeoutSeconds":5}}"#);
        assert_eq!(asked(&probe).await, expected, "{status} {grpc_status}");
    }
}

#[test]
fn settings_that_cannot_be_used_are_refused_by_name() {
    let read = |text: &str| text.parse::<Probes>().map(drop);
    assert_eq!(read("{}"), Ok(()));
    assert!(matches!(read("{"), Err(ProbesError::Syntax(_))));
    assert!(matches!(read(r#"{"a/liveness":{"exec":{},"timeoutSeconds":1}}"#), Err(ProbesError::Syntax(_))));
    assert!(matches!(
        read(r#"{"a/liveness":{"tcpSocket":{"port":70000},"timeoutSeconds":1}}"#),
        Err(ProbesError::Syntax(_))
    ));
    for probe in [
        r#"{"timeoutSeconds":1}"#.to_owned(),
        r#"{"tcpSocket":{"port":1},"grpc":{"port":1,"service":""},"timeoutSeconds":1}"#.to_owned(),
        r#"{"tcpSocket":{"port":1},"timeoutSeconds":61}"#.to_owned(),
        r#"{"tcpSocket":{"port":1},"timeoutSeconds":0}"#.to_owned(),
        http_get(1, "no path"),
        http_get(1, "http://192.0.2.1/"),
        http_get(1, "//192.0.2.1/").replace("X-Probe", "Transfer-Encoding"),
        http_get(1, "/").replace("\"HTTP\"", "\"FTP\""),
        http_get(1, "/").replace("yes", "a\\nb"),
    ] {
        let refused = read(&format!(r#"{{"a/liveness":{probe}}}"#));
        assert!(matches!(refused, Err(ProbesError::Probe { .. })), "{probe}: {refused:?}");
    }
    assert_eq!(read(&" ".repeat(TEXT_MAX + 1)), Err(ProbesError::TooMany));
}
