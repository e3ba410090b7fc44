//! HTTP service whose GET requests carry an EDN body, as dataClay's proxy is spoken to.

use std::io;

use tokio::net::TcpStream;

use super::http1::{Body, Connection, Request, Response};
use super::sha256_hex;

pub(super) async fn serve(stream: TcpStream) -> io::Result<()> {
    let mut connection = Connection::new(stream);
    while let Some(request) = connection.next().await? {
        let response = answer(&request).with("X-DataClay-Object", sha256_hex(&request.body));
        if !connection.respond(&request, response).await? {
            break;
        }
    }
    Ok(())
}

fn answer(request: &Request) -> Response {
    if request.method != "GET" {
        return edn(405, "Method Not Allowed", b"{:status 405 :message \"only GET\"}".to_vec());
    }
    if !request.body.starts_with(b"{") {
        return edn(400, "Bad Request", b"{:status 400 :message \"an EDN map is needed\"}".to_vec());
    }
    let mut text = format!("{{:status 200 :bytes {} :query ", request.body.len()).into_bytes();
    text.extend_from_slice(&request.body);
    text.push(b'}');
    let chunked = request.query("chunked").is_some();
    let mut response = edn(200, "OK", text);
    if let (true, Body::Length(body)) = (chunked, &response.body) {
        response.body = Body::Chunked(body.chunks(1024).map(<[u8]>::to_vec).collect());
    }
    response
}

fn edn(status: u16, reason: &'static str, body: Vec<u8>) -> Response {
    Response::new(status, reason, "application/edn", body)
}
