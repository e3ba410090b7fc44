//! A borrowed view of an HTTP message: just what components are derived from.
//!
//! Parsing bytes into a message is somebody else's work; a view is built from what the HTTP library
//! already holds, so that the signature speaks about the same values the receiver acts on.

use std::fmt;

use http::{HeaderMap, Method, Uri};

/// A request, as sent or as received.
#[derive(Clone, Copy)]
pub struct RequestView<'a> {
    /// The method, case preserved.
    pub method: &'a str,
    /// The scheme both ends agree on, e.g. `http`; it decides which port is the default one.
    pub scheme: &'a str,
    /// Host and optional port, as in the `Host` field or `:authority`.
    pub authority: &'a str,
    /// The raw path, still percent-encoded and not normalised; empty for `CONNECT`, `*` for `OPTIONS *`.
    pub path: &'a str,
    /// The raw query without its `?`, if there is one.
    pub query: Option<&'a str>,
    /// The raw request target of the request line (RFC 9112 section 3.2).
    pub target: &'a str,
    /// The header section.
    pub headers: &'a HeaderMap,
    /// The trailer section, once it has arrived.
    pub trailers: Option<&'a HeaderMap>,
}

impl<'a> RequestView<'a> {
    /// The view of a request held by the `http` crate. `scheme` and `authority` are passed because an
    /// HTTP/1.1 request line in origin form has neither.
    #[must_use]
    pub fn new(
        method: &'a Method,
        uri: &'a Uri,
        scheme: &'a str,
        authority: &'a str,
        headers: &'a HeaderMap,
    ) -> Self {
        let target = match uri.path_and_query() {
            Some(path_and_query) if !path_and_query.as_str().is_empty() => path_and_query.as_str(),
            _ => uri.authority().map_or("/", http::uri::Authority::as_str),
        };
        Self {
            method: method.as_str(),
            scheme,
            authority,
            path: uri.path(),
            query: uri.query(),
            target,
            headers,
            trailers: None,
        }
    }

    /// Whether the target is no path: `CONNECT` in authority form and `OPTIONS *` (RFC 9112 sections
    /// 3.2.3 and 3.2.4). Such a request is identified by `@request-target`.
    pub(crate) fn has_no_path(&self) -> bool {
        self.path == "*" || (self.path.is_empty() && self.method == "CONNECT")
    }
}

/// A response, as sent or as received.
#[derive(Clone, Copy)]
pub struct ResponseView<'a> {
    /// The three-digit status code.
    pub status: u16,
    /// The header section.
    pub headers: &'a HeaderMap,
    /// The trailer section, once it has arrived.
    pub trailers: Option<&'a HeaderMap>,
    /// The request this answers, for components with `;req` (RFC 9421 section 2.4).
    pub request: Option<RequestView<'a>>,
}

/// A request or a response.
#[derive(Clone, Copy, Debug)]
pub enum MessageView<'a> {
    /// A request.
    Request(RequestView<'a>),
    /// A response.
    Response(ResponseView<'a>),
}

impl<'a> MessageView<'a> {
    /// The header section.
    #[must_use]
    pub fn headers(&self) -> &'a HeaderMap {
        match self {
            Self::Request(request) => request.headers,
            Self::Response(response) => response.headers,
        }
    }

    /// The trailer section, once it has arrived.
    #[must_use]
    pub fn trailers(&self) -> Option<&'a HeaderMap> {
        match self {
            Self::Request(request) => request.trailers,
            Self::Response(response) => response.trailers,
        }
    }

    /// The request that `;req` components are taken from: none for a request itself.
    pub(crate) fn related_request(&self) -> Option<&RequestView<'a>> {
        match self {
            Self::Request(_) => None,
            Self::Response(response) => response.request.as_ref(),
        }
    }
}

// Header values and queries carry credentials, so a view never prints them.
impl fmt::Debug for RequestView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestView")
            .field("method", &self.method)
            .field("headers", &self.headers.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ResponseView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseView")
            .field("status", &self.status)
            .field("headers", &self.headers.len())
            .finish_non_exhaustive()
    }
}
