//! Event stream: `GET /events?n=10&every=100` sends 10 events, one each 100 ms, then ends.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

use super::http1::{Connection, LAST_CHUNK, Request, Response, chunk_of};

/// Events of one stream when the request does not say.
const EVENTS: u64 = 10;
/// Most events of one stream.
const EVENTS_MAX: u64 = 100_000;
/// Milliseconds between events when the request does not say.
const EVERY_MS: u64 = 100;
/// Longest pause between events, milliseconds.
const EVERY_MAX_MS: u64 = 60_000;

pub(super) async fn serve(stream: TcpStream) -> io::Result<()> {
    let mut connection = Connection::new(stream);
    while let Some(request) = connection.next().await? {
        if request.method == "GET" && request.path() == "/events" {
            stream_events(&mut connection, &request).await?;
        } else {
            let missing = Response::new(404, "Not Found", "text/plain", b"try /events\n".to_vec());
            if !connection.respond(&request, missing).await? {
                break;
            }
        }
    }
    Ok(())
}

async fn stream_events(connection: &mut Connection, request: &Request) -> io::Result<()> {
    let number = |name, default: u64, most: u64| {
        request.query(name).and_then(|digits| digits.parse().ok()).unwrap_or(default).min(most)
    };
    let events = number("n", EVENTS, EVENTS_MAX);
    let every = Duration::from_millis(number("every", EVERY_MS, EVERY_MAX_MS).max(1));
    connection
        .write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    let mut pace = tokio::time::interval(every);
    for number in 0..events {
        pace.tick().await;
        let event =
            format!("id: {number}\nevent: reading\ndata: {{\"sensor\":\"s1\",\"value\":{number}}}\n\n");
        connection.write(&chunk_of(event.as_bytes())).await?;
    }
    connection.write(LAST_CHUNK).await
}
