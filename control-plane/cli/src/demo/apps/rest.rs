//! JSON REST service in the manner of CIMI: collections under `/api`, items under those.
//!
//! Every collection is empty at the start and lives in memory, shared by all connections of the process.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::http1::{Body, Connection, Request, Response};
use super::sha256_hex;

/// Most items over all collections.
const ITEMS_MAX: usize = 1024;
/// Most bytes of one item: an app keeps its small things here.
const ITEM_MAX: usize = 64 * 1024;
/// Most bytes of a generated answer (`/api/blob/N`).
const BLOB_MAX: usize = 16 * 1024 * 1024;
/// Bytes in each chunk of a chunked answer.
const CHUNK: usize = 8 * 1024;

/// Items by "collection/id".
static ITEMS: Mutex<BTreeMap<String, Value>> = Mutex::new(BTreeMap::new());

pub(super) async fn serve(stream: TcpStream) -> io::Result<()> {
    let mut connection = Connection::new(stream);
    while let Some(request) = connection.next().await? {
        let response = answer(&request)
            .with("Server", "ring/1.4")
            .with("X-CIMI-Request-ID", request_id(&request))
            .with("x-lower-case", "kept");
        if !connection.respond(&request, response).await? {
            break;
        }
    }
    Ok(())
}

fn answer(request: &Request) -> Response {
    let segments: Vec<&str> = request.path().split('/').skip(1).collect();
    let method = request.method.as_str();
    let read = matches!(method, "GET" | "HEAD");
    match segments.as_slice() {
        ["api"] if read => entry_point(),
        ["api", "blob", size] if read => blob(size, request.query("chunked").is_some()),
        ["api", "digest"] if matches!(method, "POST" | "PUT") => digest(&request.body),
        ["api", "headers"] if read => json_of(
            200,
            "OK",
            &json!(request.headers.iter().map(|(name, value)| [name, value]).collect::<Vec<_>>()),
        ),
        ["api", "nothing"] if read => {
            Response { status: 204, reason: "No Content", headers: Vec::new(), body: Body::None }
        }
        ["api", collection] if read => list(collection),
        ["api", collection] if method == "POST" => create(collection, &request.body),
        ["api", collection, id] if read => item(collection, id),
        ["api", collection, id] if method == "PUT" => replace(collection, id, &request.body),
        ["api", collection, id] if method == "DELETE" => delete(collection, id),
        ["api", ..] => {
            refused(405, "Method Not Allowed", request.path()).with("Allow", "GET, HEAD, POST, PUT, DELETE")
        }
        _ => refused(404, "Not Found", request.path()),
    }
}

fn entry_point() -> Response {
    json_of(200, "OK", &json!({ "id": "cloud-entry-point", "baseURI": "http://cimi/api/", "resourceURI": "http://schemas.dmtf.org/cimi/2/CloudEntryPoint" }))
        .with("Set-Cookie", "com.sixsq.slipstream.cookie=token; Path=/; HttpOnly")
        .with("Set-Cookie", "lang=en; Path=/")
        .with("ETag", "\"entry-1\"")
}

fn list(collection: &str) -> Response {
    let prefix = format!("{collection}/");
    let items: Vec<Value> = store(|items| {
        items.iter().filter(|(key, _)| key.starts_with(&prefix)).map(|(_, item)| item.clone()).collect()
    });
    let text = json!({ "resourceType": collection, "count": items.len(), "items": items }).to_string();
    // A JSON library that streams writes small chunks: so do we.
    let chunks = text.as_bytes().chunks(16).map(<[u8]>::to_vec).collect();
    let mut response = Response::new(200, "OK", "application/json; charset=utf-8", Vec::new());
    response.body = Body::Chunked(chunks);
    response
}

fn create(collection: &str, body: &[u8]) -> Response {
    let Some(item) = parse(body) else { return refused(400, "Bad Request", "body is not a JSON object") };
    let Some(name) = item.get("name").and_then(Value::as_str).filter(|name| is_name(name)) else {
        return refused(400, "Bad Request", "name is missing");
    };
    let id = format!("{collection}/{name}");
    let kept = store(|items| {
        if items.contains_key(&id) {
            return Err((409, "Conflict"));
        }
        if items.len() >= ITEMS_MAX {
            return Err((507, "Insufficient Storage"));
        }
        items.insert(id.clone(), with_id(item.clone(), &id));
        Ok(())
    });
    match kept {
        Ok(()) => json_of(
            201,
            "Created",
            &json!({ "status": 201, "message": format!("created {id}"), "resource-id": id }),
        )
        .with("Location", id),
        Err((status, reason)) => refused(status, reason, &id),
    }
}

fn item(collection: &str, id: &str) -> Response {
    let key = format!("{collection}/{id}");
    match store(|items| items.get(&key).cloned()) {
        Some(item) => {
            let tag = format!("\"{}\"", &sha256_hex(item.to_string().as_bytes())[..16]);
            json_of(200, "OK", &item).with("ETag", tag)
        }
        None => refused(404, "Not Found", &key),
    }
}

fn replace(collection: &str, id: &str, body: &[u8]) -> Response {
    let key = format!("{collection}/{id}");
    let Some(item) = parse(body) else { return refused(400, "Bad Request", "body is not a JSON object") };
    let item = with_id(item, &key);
    let known = store(|items| items.get_mut(&key).map(|old| *old = item.clone()).is_some());
    if known { json_of(200, "OK", &item) } else { refused(404, "Not Found", &key) }
}

fn delete(collection: &str, id: &str) -> Response {
    let key = format!("{collection}/{id}");
    match store(|items| items.remove(&key)) {
        Some(_) => json_of(
            200,
            "OK",
            &json!({ "status": 200, "message": format!("{key} deleted"), "resource-id": key }),
        ),
        None => refused(404, "Not Found", &key),
    }
}

fn blob(size: &str, chunked: bool) -> Response {
    let Some(size) = size.parse().ok().filter(|size| *size <= BLOB_MAX) else {
        return refused(400, "Bad Request", "size is not acceptable");
    };
    let bytes = pattern(size);
    let mut response = Response::new(200, "OK", "application/octet-stream", Vec::new());
    response.body = if chunked {
        Body::Chunked(bytes.chunks(CHUNK).map(<[u8]>::to_vec).collect())
    } else {
        Body::Length(bytes)
    };
    response
}

fn digest(body: &[u8]) -> Response {
    json_of(200, "OK", &json!({ "bytes": body.len(), "sha256": sha256_hex(body) }))
}

/// Bytes that look random and are always the same.
pub(crate) fn pattern(size: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    })
    .take(size)
    .collect()
}

fn store<T>(work: impl FnOnce(&mut BTreeMap<String, Value>) -> T) -> T {
    // A panic elsewhere cannot leave an item half written, so a poisoned lock is still good.
    work(&mut ITEMS.lock().unwrap_or_else(PoisonError::into_inner))
}

fn parse(body: &[u8]) -> Option<Value> {
    serde_json::from_slice(body).ok().filter(|value: &Value| value.is_object() && body.len() <= ITEM_MAX)
}

fn with_id(mut item: Value, id: &str) -> Value {
    if let Some(fields) = item.as_object_mut() {
        fields.insert("id".to_owned(), json!(id));
    }
    item
}

fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn json_of(status: u16, reason: &'static str, value: &Value) -> Response {
    Response::new(status, reason, "application/json; charset=utf-8", value.to_string().into_bytes())
}

fn refused(status: u16, reason: &'static str, about: &str) -> Response {
    json_of(status, reason, &json!({ "status": status, "message": format!("{reason}: {about}") }))
}

/// The same request gets the same id, so that two runs can be compared.
fn request_id(request: &Request) -> String {
    let mut bytes = format!("{} {}\n", request.method, request.target).into_bytes();
    bytes.extend_from_slice(&request.body);
    sha256_hex(&bytes)[..16].to_owned()
}
