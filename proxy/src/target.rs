//! What a request asks for: in the bytes that are signed and, unless policy says which other form counts for its route,
//! decided on and forwarded alike.
//!
//! A fragment (`#…`) is not part of a request target (RFC 9112 section 3.2). The HTTP library cuts it
//! off before anybody here sees it, so it is neither signed nor forwarded.

use http::header::HOST;
use http::{HeaderMap, Method, Uri};
use signet_identity::SpiffeId;
use signet_policy::{PolicyIndex, ReceivedTarget, Refusal, check_target};

use crate::authorize::Content;
use crate::normal::Normal;
use crate::sign::SCHEME;

/// For whom a request is.
#[derive(Clone, Copy)]
pub(crate) struct Addressee<'a> {
    pub(crate) index: &'a PolicyIndex,
    pub(crate) workload: &'a SpiffeId,
    pub(crate) port: u16,
}

/// Method, path and authority of a request, and what makes it normal; refused where two readers could understand them
/// differently and policy does not say who is right.
pub(crate) fn content(
    to: Addressee<'_>,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(Content, Normal), Refusal> {
    let hosts = hosts(uri, headers)?;
    let received = ReceivedTarget {
        method: method.as_str(),
        target: uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str),
        authority: uri.authority().map(http::uri::Authority::as_str),
        hosts: &hosts,
    };
    let read = to.index.read_target(to.workload, to.port, &received)?;
    let content = Content::Http {
        method: method.as_str().into(),
        path: (*read.path).into(),
        authority: (*read.authority).into(),
        headers: None,
    };
    Ok((content, Normal::of(&read)))
}

/// The same where no policy makes an exception: nobody knows how an intermediary reads what can be read in two ways.
pub(crate) fn unambiguous(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Content, Refusal> {
    let hosts = hosts(uri, headers)?;
    let authority = uri.authority().map(http::uri::Authority::as_str);
    let target = uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    let checked = check_target(method.as_str(), target, authority, &hosts)?;
    Ok(Content::Http {
        method: method.as_str().into(),
        path: checked.path().into(),
        authority: checked.authority().into(),
        headers: None,
    })
}

fn hosts<'a>(uri: &Uri, headers: &'a HeaderMap) -> Result<Vec<&'a str>, Refusal> {
    // What is captured is plaintext HTTP, whatever an absolute target says.
    if uri.scheme_str().is_some_and(|scheme| scheme != SCHEME) {
        return Err(Refusal::AmbiguousTarget);
    }
    let hosts = headers.get_all(HOST).iter();
    hosts.map(|value| value.to_str().map_err(|_| Refusal::AmbiguousTarget)).collect()
}

/// The authority that a request names as it was received, which is what its signature covers.
pub(crate) fn received_authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> &'a str {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    uri.authority().map(http::uri::Authority::as_str).or(host).unwrap_or_default()
}
