//! A collection of objects, listed and then watched for ever.
//!
//! ```text
//! list (in pages) ─► Replaced ─► watch from its version ─► Changed, Deleted, bookmarks ─► the watch ends ─► watch again
//!       ▲                                   └─ 410 Gone, or what cannot be understood ──────────┐
//!       └───────────────────────────────────────────────────────────────────────────────────────┘
//! ```

use std::convert::Infallible;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;
use signet_identity::backoff;

use super::client::{Client, ClientError};
use super::jitter;

/// Objects of one page.
const PAGE: usize = 250;
/// Objects of one collection: as many manifests as a mesh may have are 10 kinds of at most 10,000 each; beyond that what was
/// read before stays.
const OBJECTS_MAX: usize = 100_000;
/// Seconds after which the server ends a watch; it is taken up where it stood.
const WATCH_SECONDS: u32 = 290;
/// The server is gone when it neither ended the watch in time nor sent anything.
const WATCH_SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 30);
/// Bytes of one event: an object has at most 1.5 MiB in etcd, more as JSON with its managed fields.
const EVENT_BYTES: usize = 8 * 1024 * 1024;
/// A watch that lasted this long ended in good order, and the next one need not wait.
const LASTED: Duration = Duration::from_secs(5);

/// What to follow.
#[derive(Clone, Debug)]
pub(crate) struct Collection {
    /// Such as `/api/v1/namespaces`.
    pub(crate) path: String,
    /// Further fields of the query, such as `labelSelector=…`, as they stand in it.
    pub(crate) query: Option<String>,
}

/// What became known of a collection.
pub(crate) enum Event {
    /// It is these objects, and no others.
    Replaced(Vec<Value>),
    /// This one is new or different.
    Changed(Value),
    /// This one is gone.
    Deleted(Value),
}

/// Tells of a collection until it is dropped. What fails is logged and tried again; nothing is told then, so that
/// whoever listens keeps what is known.
pub(crate) async fn follow(
    client: &Client,
    collection: &Collection,
    mut tell: impl FnMut(Event),
) -> Infallible {
    let mut attempt = 0;
    loop {
        let failed = match list(client, collection).await {
            Ok((objects, version)) => {
                tell(Event::Replaced(objects));
                attempt = 0;
                watch(client, collection, version, &mut tell).await
            }
            Err(error) => error,
        };
        if failed.is(StatusCode::GONE) {
            tracing::info!(path = collection.path, "the API server has forgotten the version; listing anew");
        } else {
            tracing::warn!(path = collection.path, error = %failed, "cannot be followed; what is known stays");
        }
        tokio::time::sleep(backoff(attempt, jitter())).await;
        attempt = attempt.saturating_add(1);
    }
}

/// All of it, and the version at which it was so.
pub(crate) async fn list(
    client: &Client,
    collection: &Collection,
) -> Result<(Vec<Value>, String), ClientError> {
    let (mut objects, mut next) = (Vec::new(), String::new());
    loop {
        let path = address(collection, &format!("limit={PAGE}{next}"));
        let mut page = client.get(&path).await?;
        if let Some(items) = page.get_mut("items").and_then(Value::as_array_mut) {
            objects.extend(items.drain(..).map(lean));
        }
        if objects.len() > OBJECTS_MAX {
            return Err(ClientError::TooLarge);
        }
        let metadata = &page["metadata"];
        match metadata["continue"].as_str().filter(|token| !token.is_empty()) {
            // It may hold anything: of what a query gives a meaning, base64 has `+` and `=`.
            Some(token) => next = format!("&continue={}", encoded(token)),
            None => {
                let version = metadata["resourceVersion"].as_str().ok_or(ClientError::Malformed)?;
                return Ok((objects, version.to_owned()));
            }
        }
    }
}

/// Watches from a version, again and again; returns when the collection has to be listed anew, and why.
async fn watch(
    client: &Client,
    collection: &Collection,
    mut version: String,
    tell: &mut impl FnMut(Event),
) -> ClientError {
    let mut attempt = 0;
    loop {
        let started = tokio::time::Instant::now();
        match watch_once(client, collection, &mut version, tell).await {
            Ok(()) => {}
            Err(error @ (ClientError::Malformed | ClientError::Status { .. } | ClientError::TooLarge)) => {
                return error;
            }
            Err(error) => tracing::info!(path = collection.path, %error, "the watch broke off"),
        }
        if started.elapsed() >= LASTED {
            attempt = 0;
        } else {
            tokio::time::sleep(backoff(attempt, jitter())).await;
            attempt = attempt.saturating_add(1);
        }
    }
}

async fn watch_once(
    client: &Client,
    collection: &Collection,
    version: &mut String,
    tell: &mut impl FnMut(Event),
) -> Result<(), ClientError> {
    let query = format!(
        "watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={}",
        encoded(version)
    );
    let mut stream = client.stream(&address(collection, &query)).await?;
    let mut line = Vec::new();
    while let Some(bytes) = tokio::time::timeout(WATCH_SILENCE, stream.next()).await?? {
        let mut rest = &*bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (head, tail) = rest.split_at(end);
            line.extend_from_slice(head);
            if !line.trim_ascii().is_empty() {
                event(&line, version, tell)?;
            }
            line.clear();
            rest = tail.get(1..).unwrap_or_default();
        }
        line.extend_from_slice(rest);
        if line.len() > EVENT_BYTES {
            return Err(ClientError::TooLarge);
        }
    }
    Ok(())
}

fn event(line: &[u8], version: &mut String, tell: &mut impl FnMut(Event)) -> Result<(), ClientError> {
    let mut event: Value = serde_json::from_slice(line).map_err(|_| ClientError::Malformed)?;
    let object = event.get_mut("object").map(Value::take).ok_or(ClientError::Malformed)?;
    if event["type"] == "ERROR" {
        let code = object["code"].as_u64().and_then(|code| u16::try_from(code).ok());
        let status = code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::GONE);
        return Err(ClientError::Status { status, message: "the watch ended".to_owned() });
    }
    let seen = object["metadata"]["resourceVersion"].as_str().ok_or(ClientError::Malformed)?;
    seen.clone_into(version);
    match event["type"].as_str() {
        Some("ADDED" | "MODIFIED") => tell(Event::Changed(lean(object))),
        Some("DELETED") => tell(Event::Deleted(object)),
        Some("BOOKMARK") => {}
        _ => return Err(ClientError::Malformed),
    }
    Ok(())
}

/// Without what the server keeps for its own use, which is often the larger part.
fn lean(mut object: Value) -> Value {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

fn address(collection: &Collection, query: &str) -> String {
    let further = collection.query.as_deref().map(|query| format!("&{query}")).unwrap_or_default();
    format!("{}?{query}{further}", collection.path)
}

/// As a value in a query.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str) -> (Result<(), ClientError>, String, Vec<&'static str>) {
        let (mut version, mut told) = ("1".to_owned(), Vec::new());
        let result = event(line.as_bytes(), &mut version, &mut |event| {
            told.push(match event {
                Event::Replaced(_) => "replaced",
                Event::Changed(_) => "changed",
                Event::Deleted(_) => "deleted",
            });
        });
        (result, version, told)
    }

    #[test]
    fn events_move_the_version_on_and_bookmarks_tell_nothing() {
        let (result, version, all) =
            told(r#"{"type":"ADDED","object":{"metadata":{"resourceVersion":"7"}}}"#);
        assert!(result.is_ok() && version == "7" && all == ["changed"]);
        let (result, version, all) =
            told(r#"{"type":"DELETED","object":{"metadata":{"resourceVersion":"8"}}}"#);
        assert!(result.is_ok() && version == "8" && all == ["deleted"]);
        let (result, version, all) =
            told(r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}"#);
        assert!(result.is_ok() && version == "9" && all.is_empty());
    }

    #[test]
    fn an_error_says_which_and_what_is_no_event_is_refused() {
        let (result, version, _) = told(r#"{"type":"ERROR","object":{"kind":"Status","code":410}}"#);
        assert!(result.unwrap_err().is(StatusCode::GONE) && version == "1");
        for line in [
            "",
            "{",
            "[]",
            "7",
            r#"{"type":"ADDED"}"#,
            r#"{"type":"MOVED","object":{"metadata":{"resourceVersion":"2"}}}"#,
        ] {
            assert!(matches!(told(line).0, Err(ClientError::Malformed)), "{line}");
        }
    }

    #[test]
    fn a_query_says_what_was_meant() {
        let all = Collection {
            path: "/api/v1/namespaces".to_owned(),
            query: Some("labelSelector=a%3Db".to_owned()),
        };
        assert_eq!(address(&all, "limit=1"), "/api/v1/namespaces?limit=1&labelSelector=a%3Db");
        assert_eq!(encoded("aB9-._~+/="), "aB9-._~%2B%2F%3D");
    }
}
