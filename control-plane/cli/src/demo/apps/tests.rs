use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::demo::clients::{Client, Shown, Transcript};

/// Serves an app on a free port for as long as the test runs.
async fn served(app: App) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(app.serve(listener).unwrap());
    address
}

fn listen() -> Listen {
    Listen { addresses: Vec::new() }
}

async fn transcript(client: &str, address: &str, extra: &[&str]) -> Transcript {
    #[derive(clap::Parser)]
    struct Call {
        #[command(subcommand)]
        client: Client,
    }
    let arguments = ["call", client, "--to", address];
    let call: Call = clap::Parser::parse_from(arguments.iter().chain(extra));
    match call.client.run().await {
        Shown::Transcript(transcript) => transcript,
        Shown::Load(report) => panic!("not a transcript: {report:?}"),
    }
}

fn statuses(transcript: &Transcript) -> Vec<u16> {
    transcript.exchanges.iter().map(|exchange| exchange.status.unwrap_or_default()).collect()
}

fn text(transcript: &Transcript, number: usize) -> &str {
    transcript.exchanges[number].body.text.as_deref().unwrap()
}

#[tokio::test]
async fn rest_series_is_the_same_twice() {
    let address = served(App::Rest(listen())).await;
    let first = transcript("rest", &address, &[]).await;
    assert_eq!(
        statuses(&first),
        [
            200, 201, 409, 200, 200, 200, 200, 200, 200, 404, 400, 405, 204, 404, 200, 200, 200, 200, 200,
            200, 200, 200
        ]
    );
    let names: Vec<&str> = first.exchanges[0].headers.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"X-CIMI-Request-ID") && names.contains(&"x-lower-case"), "{names:?}");
    assert_eq!(names.iter().filter(|name| **name == "Set-Cookie").count(), 2);
    assert_eq!(first.exchanges[15].body, first.exchanges[16].body);
    assert_eq!(first.exchanges[15].body.bytes, 200_000);
    assert!(text(&first, 18).contains(&sha256_hex(&pattern(200_000))));
    assert_eq!(text(&first, 18), text(&first, 19));

    let second = transcript("rest", &address, &[]).await;
    assert_eq!(first.differences(&second), Vec::<String>::new());
}

#[tokio::test]
async fn a_changed_header_case_is_a_difference() {
    let address = served(App::Rest(listen())).await;
    let first = transcript("http", &address, &["--path", "/api"]).await;
    let mut second = first.clone();
    second.exchanges[0].timing.total_ms += 1.0;
    second.exchanges[0].headers.reverse();
    second.exchanges[0].headers.sort();
    assert_eq!(first.differences(&second), Vec::<String>::new());
    for (name, _) in &mut second.exchanges[0].headers {
        name.make_ascii_lowercase();
    }
    assert_eq!(first.differences(&second).len(), 1);
}

#[tokio::test]
async fn get_with_a_body_is_answered_from_the_body() {
    let address = served(App::GetWithBody(listen())).await;
    let calls = transcript("get-with-body", &address, &[]).await;
    assert_eq!(statuses(&calls), [200, 200, 200, 400, 405]);
    assert!(text(&calls, 0).contains(":bytes 39 :query {:type :service"));
    assert_eq!(calls.exchanges[0].body, calls.exchanges[1].body);
}

#[tokio::test]
async fn grpc_answers_streams_and_fails_with_trailers_only() {
    let address = served(App::Grpc(listen())).await;
    let calls = transcript("grpc", &address, &[]).await;
    assert_eq!(statuses(&calls), [200; 6]);
    let status = |fields: &[(String, String)]| {
        fields.iter().find(|(name, _)| name == "grpc-status").map(|(_, value)| value.clone())
    };
    for exchange in &calls.exchanges[..4] {
        assert_eq!(status(&exchange.trailers).as_deref(), Some("0"), "{exchange:?}");
    }
    let failed = &calls.exchanges[4];
    assert_eq!(status(&failed.headers).as_deref(), Some("9"));
    assert!(failed.trailers.is_empty() && failed.body.bytes == 0);
    assert_eq!(status(&calls.exchanges[5].headers).as_deref(), Some("12"));
    assert!(calls.exchanges.iter().all(|exchange| !exchange.headers.iter().any(|(name, _)| name == "date")));
}

#[tokio::test]
async fn line_service_answers_after_half_close() {
    let address = served(App::Line(listen())).await;
    let calls = transcript("line", &address, &[]).await;
    let first: Value = serde_json::from_str(text(&calls, 0)).unwrap();
    assert_eq!(first["line"], "{\"op\":\"status\",\"device\":\"pump-7\"}");
    let all = [b"{\"op\":\"status\",\"device\":\"pump-7\"}\n".as_slice(), &pattern(500_000)].concat();
    let last: Value = serde_json::from_str(text(&calls, 1)).unwrap();
    assert_eq!((&last["bytes"], &last["sha256"]), (&all.len().into(), &sha256_hex(&all).into()));
}

#[tokio::test]
async fn line_service_says_nothing_before_the_client() {
    let address = served(App::Line(listen())).await;
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let mut byte = [0];
    let early = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut byte)).await;
    assert!(early.is_err(), "it spoke first");
    stream.write_all(b"x\n").await.unwrap();
    assert_eq!(stream.read(&mut byte).await.unwrap(), 1);
}

#[tokio::test]
async fn greeter_speaks_first_and_echoes() {
    let address = served(App::Greeter(listen())).await;
    let calls = transcript("greeter", &address, &[]).await;
    assert_eq!(
        (text(&calls, 0), text(&calls, 1), text(&calls, 2), text(&calls, 3)),
        (greeter::BANNER, "250 hello\r\n", "221 bye\r\n", "")
    );
}

#[tokio::test]
async fn event_stream_sends_each_event_by_itself() {
    let address = served(App::Sse(listen())).await;
    let calls = transcript("sse", &address, &["--events", "5", "--every", "20"]).await;
    let exchange = &calls.exchanges[0];
    assert_eq!(exchange.error, None);
    assert_eq!(text(&calls, 0).matches("data: ").count(), 5);
    let times = &exchange.timing.events_ms;
    assert_eq!(times.len(), 5);
    assert!(times[4] - times[0] >= 60.0, "events came together: {times:?}");
}

#[tokio::test]
async fn loopback_only_refuses_another_address() {
    let everywhere = TcpListener::bind("0.0.0.0:0").await.unwrap();
    assert!(App::LoopbackOnly(listen()).serve(everywhere).is_err());
    let address = served(App::LoopbackOnly(listen())).await;
    assert_eq!(text(&transcript("tcp", &address, &[]).await, 0), loopback_only::SECRET);
}

#[tokio::test]
async fn load_counts_answers_and_failures() {
    let address = served(App::Rest(listen())).await;
    let run = async |path: &str, address: &str| {
        #[derive(clap::Parser)]
        struct Call {
            #[command(subcommand)]
            client: Client,
        }
        let arguments = ["call", "load", "--to", address, "--path", path, "--seconds", "0.3"];
        match <Call as clap::Parser>::parse_from(arguments).client.run().await {
            Shown::Load(report) => report,
            Shown::Transcript(_) => panic!("not a report"),
        }
    };
    let good = run("/api", &address).await;
    assert!(good.ok > 10 && good.failed == 0 && good.connections > 3, "{good:?}");
    let missing = run("/elsewhere", &address).await;
    assert!(missing.ok == 0 && missing.failures.contains_key("status 404"), "{missing:?}");
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let refused = run("/api", &closed.to_string()).await;
    assert!(refused.ok == 0 && refused.failures.contains_key("connection refused"), "{refused:?}");
}

#[tokio::test]
async fn malformed_requests_end_the_connection() {
    let address = served(App::Rest(listen())).await;
    for request in [
        "GET /api HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        "\u{1}\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        // The connection ends; whether by a reset or not depends on what was still unread.
        let _ = stream.read_to_end(&mut rest).await;
        assert_eq!(rest, b"");
    }
}
