//! Gives the application the form of a request that was decided on, where policy makes an exception for one that was
//! written in another. What was signed has been verified by then.

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Request, Uri};
use signet_policy::{NormalTarget, Refusal};

use crate::headers;

/// What is changed of a request. Nothing, where no policy makes an exception.
#[derive(Clone, Debug, Default)]
pub(crate) struct Normal {
    /// The path where it was made out of another.
    path: Option<String>,
    authority: Option<String>,
    merges_fields: bool,
    hyphenates_fields: bool,
}

impl Normal {
    pub(crate) fn of(read: &NormalTarget<'_>) -> Self {
        let made = |part: &Cow<'_, str>| match part {
            Cow::Borrowed(_) => None,
            Cow::Owned(made) => Some(made.clone()),
        };
        Self {
            path: made(&read.path),
            authority: made(&read.authority),
            merges_fields: read.merges_fields,
            hyphenates_fields: read.hyphenates_fields,
        }
    }

    /// Header fields in their normal form.
    pub(crate) fn fields<'a>(&self, received: &'a HeaderMap) -> Cow<'a, HeaderMap> {
        if !self.merges_fields && !self.hyphenates_fields {
            return Cow::Borrowed(received);
        }
        let mut fields = received.clone();
        self.make_fields(&mut fields);
        Cow::Owned(fields)
    }

    /// Makes a request what was decided on.
    ///
    /// # Errors
    /// [`Refusal::AmbiguousTarget`] if the normal form is no request: what is not written like one goes nowhere.
    pub(crate) fn apply<B>(&self, request: &mut Request<B>) -> Result<(), Refusal> {
        let ambiguous = |_| Refusal::AmbiguousTarget;
        if self.path.is_some() || self.authority.is_some() {
            let mut parts = request.uri().clone().into_parts();
            if let Some(path) = &self.path {
                let target = match request.uri().query() {
                    Some(query) => format!("{path}?{query}"),
                    None => path.clone(),
                };
                parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(ambiguous)?);
            }
            if let Some(authority) = &self.authority {
                if parts.authority.is_some() {
                    parts.authority = Some(Authority::try_from(authority.as_str()).map_err(ambiguous)?);
                }
                let host = HeaderValue::from_str(authority).map_err(|_| Refusal::AmbiguousTarget)?;
                if let Some(field) = request.headers_mut().get_mut(header::HOST) {
                    *field = host;
                }
            }
            *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Refusal::AmbiguousTarget)?;
        }
        self.make_fields(request.headers_mut());
        Ok(())
    }

    fn make_fields(&self, fields: &mut HeaderMap) {
        if self.hyphenates_fields {
            hyphenate(fields);
        }
        if self.merges_fields {
            merge(fields);
        }
    }
}

/// Writes `-` for `_` in every name. What would come to frame, route or protect the message that way goes.
fn hyphenate(fields: &mut HeaderMap) {
    let names: Vec<HeaderName> = fields.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    for name in names {
        let hyphenated = HeaderName::try_from(name.as_str().replace('_', "-")).ok();
        let hyphenated = hyphenated.filter(|name| !headers::is_of_the_hop_or_mesh(name));
        let values: Vec<HeaderValue> = fields.get_all(&name).iter().cloned().collect();
        fields.remove(&name);
        if let Some(hyphenated) = hyphenated {
            for value in values {
                fields.append(hyphenated.clone(), value);
            }
        }
    }
}

/// Makes one line of all lines of a field (RFC 9110 section 5.3; for cookies RFC 9113 section 8.2.3).
fn merge(fields: &mut HeaderMap) {
    let repeated = |name: &&HeaderName| fields.get_all(*name).iter().nth(1).is_some();
    let names: Vec<HeaderName> = fields.keys().filter(repeated).cloned().collect();
    for name in names {
        let separator: &[u8] = if name == header::COOKIE { b"; " } else { b", " };
        let lines: Vec<&[u8]> = fields.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
        match HeaderValue::from_bytes(&lines.join(separator)) {
            Ok(line) => fields.insert(name, line),
            // Values joined by these are a value.
            Err(_) => fields.remove(name),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let field = |&(name, value): &(&str, &str)| {
            (HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn repeated_and_underscored_fields_become_one_line_each() {
        let normal = Normal { merges_fields: true, hyphenates_fields: true, ..Normal::default() };
        let received = map(&[
            ("x-tenant", "blue"),
            ("x_tenant", "red"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("accept", "*/*"),
            ("content_length", "7"),
            ("transfer_encoding", "chunked"),
            ("mesh_origin", "sidecar"),
            ("x_forwarded_client_cert", "URI=spiffe://a/b"),
            ("host_", "kept"),
        ]);
        let expected =
            map(&[("x-tenant", "blue, red"), ("cookie", "a=1; b=2"), ("accept", "*/*"), ("host-", "kept")]);
        assert_eq!(*normal.fields(&received), expected);
        assert_eq!(*Normal::default().fields(&received), received);
    }

    #[test]
    fn the_request_is_changed_where_it_was_written_in_another_form() {
        let normal = Normal { path: Some("/a".into()), authority: Some("cimi".into()), ..Normal::default() };
        let mut request = Request::get("/x/..//a?b=//").header("host", "CIMI.:80").body(()).unwrap();
        normal.apply(&mut request).unwrap();
        assert_eq!(
            (request.uri().to_string().as_str(), &request.headers()["host"]),
            ("/a?b=//", &"cimi".parse::<HeaderValue>().unwrap())
        );
        let mut request = Request::get("http://CIMI/x").body(()).unwrap();
        normal.apply(&mut request).unwrap();
        assert_eq!(request.uri().to_string(), "http://cimi/a");
    }
}
