//! The series of HTTP calls that is made with and without the mesh. It leaves the app as it found it.

use super::To;
use super::http1::{Connection, Request};
use super::transcript::Exchange;
use crate::demo::apps::pattern;

const JSON: &str = "application/json";
/// Above 64 KiB: such a body is not sent in one piece by everyone on the way.
const LARGE: usize = 200_000;

/// Calls to the REST app, all over one connection, then one over a new connection.
pub(super) async fn calls(to: &To) -> Vec<Exchange> {
    let item = |value: u32| format!("{{\"name\":\"pump-7\",\"value\":{value}}}").into_bytes();
    let mut connection = Connection::new(to);
    let mut exchanges = Vec::new();
    for request in [
        Request::new("GET", "/api").header("X-Client-ID", "plain"),
        Request::new("POST", "/api/device").body(JSON, item(1)),
        Request::new("POST", "/api/device").body(JSON, item(1)),
        Request::new("GET", "/api/device"),
        Request::new("GET", "/api/device/pump-7"),
        Request::new("HEAD", "/api/device/pump-7"),
        Request::new("PUT", "/api/device/pump-7").body(JSON, item(2)).in_chunks(),
        Request::new("GET", "/api/device/pump-7?format=full&empty="),
        Request::new("DELETE", "/api/device/pump-7"),
        Request::new("GET", "/api/device/pump-7"),
        Request::new("POST", "/api/device").body(JSON, b"not json".to_vec()),
        Request::new("PATCH", "/api/device"),
        Request::new("GET", "/api/nothing"),
        Request::new("GET", "/elsewhere"),
        Request::new("GET", "/api/blob/0"),
        Request::new("GET", &format!("/api/blob/{LARGE}")),
        Request::new("GET", &format!("/api/blob/{LARGE}?chunked=yes")),
        Request::new("POST", "/api/digest").body("application/octet-stream", Vec::new()),
        Request::new("POST", "/api/digest").body("application/octet-stream", pattern(LARGE)),
        Request::new("POST", "/api/digest").body("application/octet-stream", pattern(LARGE)).in_chunks(),
        Request::new("GET", "/api").header("Connection", "close"),
        Request::new("GET", "/api"),
    ] {
        exchanges.push(connection.exchange(&request).await);
    }
    exchanges
}

/// Calls to the app that takes a body with GET.
pub(super) async fn edn_calls(to: &To) -> Vec<Exchange> {
    const EDN: &str = "application/edn";
    let query = b"{:type :service :filter {:name \"pump\"}}".to_vec();
    let long = format!("{{:ids [{}]}}", "17 ".repeat(40_000)).into_bytes();
    let mut connection = Connection::new(to);
    let mut exchanges = Vec::new();
    for request in [
        Request::new("GET", "/query").body(EDN, query.clone()),
        Request::new("GET", "/query?chunked=yes").body(EDN, query.clone()).in_chunks(),
        Request::new("GET", "/query").body(EDN, long),
        Request::new("GET", "/query"),
        Request::new("POST", "/query").body(EDN, query),
    ] {
        exchanges.push(connection.exchange(&request).await);
    }
    exchanges
}
