//! A refusal as the response that says so (RFC 9457).

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;
use signet_policy::Refusal;

use crate::body::Body;

#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: Cow<'a, str>,
    request_id: &'a str,
}

/// The body of a problem response; it names the refusal and the request, never its content. A note says what was measured.
pub(crate) fn body(refusal: Refusal, request_id: &str, note: Option<&str>) -> Bytes {
    let status = status(refusal);
    let problem = Problem {
        r#type: format!("urn:mesh:err:{}", refusal.code()),
        title: status.canonical_reason().unwrap_or("Refused"),
        status: status.as_u16(),
        code: refusal.code(),
        detail: note
            .map_or_else(|| refusal.detail().into(), |note| format!("{}; {note}", refusal.detail()).into()),
        request_id,
    };
    // Serialising plain strings and numbers cannot fail; an empty body would still be a refusal.
    serde_json::to_vec(&problem).unwrap_or_default().into()
}

/// The whole response.
pub(crate) fn response(refusal: Refusal, request_id: &str, note: Option<&str>) -> Response<Body> {
    let body = body(refusal, request_id, note);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status(refusal);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    *response.body_mut() = Body::whole(body);
    response
}

fn status(refusal: Refusal) -> StatusCode {
    StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Says when the same request may be sent again, in whole seconds (RFC 9110 section 10.2.3).
pub(crate) fn try_again(response: &mut Response<Body>, after: Option<Duration>) {
    if let Some(after) = after {
        let seconds = after.as_millis().div_ceil(1_000).max(1);
        if let Ok(value) = HeaderValue::try_from(seconds.to_string()) {
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
    }
}
