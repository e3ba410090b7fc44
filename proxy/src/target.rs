//! What a request asks for, in the bytes that are signed, decided on and forwarded alike.
//!
//! A fragment (`#…`) is not part of a request target (RFC 9112 section 3.2). The HTTP library cuts it
//! off before anybody here sees it, so it is neither signed nor forwarded.

use http::header::HOST;
use http::{HeaderMap, Method, Uri};
use signet_policy::{Refusal, check_target};

use crate::authorize::Content;
use crate::sign::SCHEME;

/// Method, path and authority of a request; refused where two readers could understand them
/// differently.
pub(crate) fn content(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Content, Refusal> {
    let hosts: Vec<&str> = headers
        .get_all(HOST)
        .iter()
        .map(|value| value.to_str().map_err(|_| Refusal::AmbiguousTarget))
        .collect::<Result<_, _>>()?;
    // What is captured is plaintext HTTP, whatever an absolute target says.
    if uri.scheme_str().is_some_and(|scheme| scheme != SCHEME) {
        return Err(Refusal::AmbiguousTarget);
    }
    let authority = uri.authority().map(http::uri::Authority::as_str);
    let target = uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    let checked = check_target(method.as_str(), target, authority, &hosts)?;
    Ok(Content::Http {
        method: method.as_str().to_owned(),
        path: checked.path().to_owned(),
        authority: checked.authority().to_owned(),
        headers: None,
    })
}
