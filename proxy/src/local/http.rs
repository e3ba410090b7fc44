//! HTTP with JSON on the Unix socket. Requests and answers: docs/messages.md.

use std::convert::Infallible;
use std::io::Write as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use signet_policy::IdentityPattern;
use signet_signature::jws::{Head, Level};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::local::messages::{Demand, Draft, Made, Messages, Taken};
use crate::local::refused::Refused;
use crate::local::{ACCEPT_PAUSE, CONNECTION_TIMEOUT, CONNECTIONS_MAX};

/// How long a client may take for its request line and headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// What a stranger is told, so that whoever configures this learns why.
const FORBIDDEN: &[u8] = b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/problem+json\r\n\
    Content-Length: 97\r\nConnection: close\r\n\r\n\
    {\"type\":\"urn:mesh:err:local-forbidden\",\"title\":\"Forbidden\",\"status\":403,\"code\":\"local-forbidden\"}";
/// What a client is told when all places are taken.
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n\
    Content-Length: 97\r\nConnection: close\r\n\r\n\
    {\"type\":\"urn:mesh:err:local-busy\",\"title\":\"Service Unavailable\",\"status\":503,\"code\":\"local-busy\"}";

/// Accepts until the process ends.
pub(super) async fn serve(listener: UnixListener, messages: Rc<Messages>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let uid = stream.peer_cred().ok().map(|peer| peer.uid());
        if !uid.is_some_and(|uid| messages.config().uids.contains(&uid)) {
            messages.count("connect", "local-forbidden");
            tracing::warn!(uid, "a user that --local-uid does not list tried the local socket");
            turn_away(stream, FORBIDDEN);
            continue;
        }
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            messages.count("connect", "local-busy");
            turn_away(stream, BUSY);
            continue;
        };
        let messages = Rc::clone(&messages);
        tokio::task::spawn_local(async move {
            connection(stream, messages).await;
            drop(slot);
        });
    }
}

/// Says why, as far as that takes no waiting; the request is not read.
fn turn_away(stream: UnixStream, answer: &[u8]) {
    // The buffer of a new connection is empty. Who does not take the answer goes without.
    // The runtime does not know yet that it can be written to, so it is not asked.
    let _ = stream.into_std().and_then(|mut stream| stream.write(answer));
}

async fn connection(stream: UnixStream, messages: Rc<Messages>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let messages = Rc::clone(&messages);
        async move { Ok::<_, Infallible>(respond(&messages, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // One request each: the time limit is that of one request, and there is no idle connection to bound.
        .keep_alive(false)
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    // A client that goes away early is not an event.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
}

/// What may be asked for.
#[derive(Clone, Copy)]
enum Operation {
    Identity,
    Open,
    Seal,
    Sign,
    Verify,
}

impl Operation {
    fn of(method: &Method, path: &str) -> Result<Self, Refused> {
        let (found, expected) = match path {
            "/v1/identity" => (Self::Identity, Method::GET),
            "/v1/open" => (Self::Open, Method::POST),
            "/v1/seal" => (Self::Seal, Method::POST),
            "/v1/sign" => (Self::Sign, Method::POST),
            "/v1/verify" => (Self::Verify, Method::POST),
            _ => return Err(Refused::NotFound),
        };
        if *method == expected { Ok(found) } else { Err(Refused::Method) }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Open => "open",
            Self::Seal => "seal",
            Self::Sign => "sign",
            Self::Verify => "verify",
        }
    }
}

async fn respond(messages: &Messages, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let operation = Operation::of(request.method(), request.uri().path());
    let answer = match operation {
        Ok(operation) => answer(messages, operation, request.into_body()).await,
        Err(refused) => Err(refused),
    };
    let name = operation.map_or("unknown", Operation::name);
    match answer {
        Ok(json) => {
            messages.count(name, "ok");
            response(StatusCode::OK, "application/json", json)
        }
        Err(refused) => {
            messages.count(name, refused.code());
            response(refused.status(), "application/problem+json", json(&Problem::from(refused)))
        }
    }
}

async fn answer(messages: &Messages, operation: Operation, body: Incoming) -> Result<Vec<u8>, Refused> {
    let body = Limited::new(body, messages.config().request_bytes()).collect().await;
    let body = body
        .map_err(|error| if error.is::<LengthLimitError>() { Refused::TooLarge } else { Refused::Request })?;
    let body = body.to_bytes();
    match operation {
        Operation::Identity => Ok(json(&Identity { identity: messages.identity()?.to_string() })),
        Operation::Open => take(messages, &body, Level::Private),
        Operation::Seal => make(messages, &body, Level::Private),
        Operation::Sign => make(messages, &body, Level::Protected),
        Operation::Verify => take(messages, &body, Level::Protected),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MakeRequest {
    audience: OneOrMore,
    content_type: Option<String>,
    expires_in: Option<u64>,
    payload: Option<String>,
    payload_base64: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    More(Vec<String>),
    One(String),
}

fn make(messages: &Messages, body: &[u8], level: Level) -> Result<Vec<u8>, Refused> {
    let request: MakeRequest = parse(body)?;
    let payload = match (request.payload, request.payload_base64) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(base64)) => STANDARD.decode(base64).map_err(|_| Refused::Request)?,
        _ => return Err(Refused::Request),
    };
    let audience = match request.audience {
        OneOrMore::More(more) => more,
        OneOrMore::One(one) => vec![one],
    };
    let (content_type, lifetime) = (request.content_type, request.expires_in);
    let Made { message, head } =
        messages.make(Draft { audience, content_type, lifetime, level }, &payload)?;
    Ok(json(&Answer { message: Some(message), ..Answer::of(&head, level) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TakeRequest {
    message: String,
    #[serde(default)]
    from: Vec<IdentityPattern>,
    #[serde(default)]
    replay: Replay,
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Replay {
    #[default]
    Check,
    Ignore,
}

fn take(messages: &Messages, body: &[u8], level: Level) -> Result<Vec<u8>, Refused> {
    let request: TakeRequest = parse(body)?;
    let demand = Demand { level, once: request.replay == Replay::Check, from: &request.from };
    let Taken { sender, head, payload } = messages.take(&request.message, demand)?;
    let (text, base64) = match String::from_utf8(payload) {
        Ok(text) => (Some(text), None),
        Err(binary) => (None, Some(STANDARD.encode(binary.as_bytes()))),
    };
    let answer =
        Answer { sender: Some(sender), payload: text, payload_base64: base64, ..Answer::of(&head, level) };
    Ok(json(&answer))
}

#[derive(Serialize)]
struct Identity {
    identity: String,
}

#[derive(Serialize)]
struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<String>,
    level: &'static str,
    id: String,
    created: u64,
    expires: u64,
    audience: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl Answer {
    fn of(head: &Head, level: Level) -> Self {
        Self {
            message: None,
            sender: None,
            level: level.name(),
            id: head.id.to_string(),
            created: head.created,
            expires: head.expires,
            audience: head.audience.to_list(),
            content_type: head.content_type.clone(),
            payload: None,
            payload_base64: None,
        }
    }
}

#[derive(Serialize)]
struct Problem {
    r#type: String,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: String,
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let status = refused.status();
        Self {
            r#type: format!("urn:mesh:err:{}", refused.code()),
            title: status.canonical_reason().unwrap_or("Refused"),
            status: status.as_u16(),
            code: refused.code(),
            detail: refused.to_string(),
        }
    }
}

/// What is wrong with it is not repeated: a payload stands in it.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|_| Refused::Request)
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Strings, numbers and lists always serialise.
    serde_json::to_vec(value).unwrap_or_default()
}

fn response(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_to_strangers_are_as_long_as_they_say() {
        for answer in [FORBIDDEN, BUSY] {
            let text = str::from_utf8(answer).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}", body.len())), "{} in {head}", body.len());
            assert!(serde_json::from_str::<serde_json::Value>(body).is_ok(), "{body}");
        }
    }

    #[test]
    fn requests_with_unknown_missing_or_doubled_members_are_refused() {
        assert!(parse::<MakeRequest>(br#"{"audience":"any","payload":"x"}"#).is_ok());
        assert!(parse::<MakeRequest>(br#"{"audience":["any"],"payload_base64":"eA=="}"#).is_ok());
        for bad in [
            &br#"{"payload":"x"}"#[..],
            br#"{"audience":"any","payload":"x","level":"private"}"#,
            br#"{"audience":"any","payload":"x","payload":"y"}"#,
            br#"{"audience":{},"payload":"x"}"#,
            br#"{"audience":"any","payload":1}"#,
            br#"{"audience":"any","payload":"x"}{}"#,
            b"",
            b"[]",
        ] {
            assert!(parse::<MakeRequest>(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        assert!(parse::<TakeRequest>(br#"{"message":"x","replay":"ignore"}"#).is_ok());
        for bad in [
            &br#"{"message":"x","replay":"never"}"#[..],
            br#"{"message":"x","from":["*"]}"#,
            br#"{"message":"x","audience":"any"}"#,
        ] {
            assert!(parse::<TakeRequest>(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn each_resource_has_its_method() {
        let code = |method: Method, path| Operation::of(&method, path).err().map(Refused::code);
        assert_eq!(code(Method::POST, "/v1/sign"), None);
        assert_eq!(code(Method::GET, "/v1/sign"), Some("local-method"));
        assert_eq!(code(Method::POST, "/v1/identity"), Some("local-method"));
        assert_eq!(code(Method::POST, "/v1/decrypt"), Some("local-not-found"));
    }
}
