//! What a mesh signature covers, computed from the message.

use http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, COOKIE, HeaderMap, HeaderName, LOCATION, SET_COOKIE,
    TRAILER,
};

use super::{CERTIFICATE_FIELD, Part, RECORD_CODING};
use crate::base::BaseError;
use crate::derived;
use crate::field;
use crate::message::{MessageView, RequestView};

// Looked up for every message, so they are not read from text each time.
static CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

/// The fields that tell how a gRPC call ended.
static GRPC_OUTCOME: [HeaderName; 3] = [
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
];

/// What an application acts upon, in a request and in a response.
static OF_REQUEST: [HeaderName; 3] = [CONTENT_ENCODING, AUTHORIZATION, COOKIE];
static OF_RESPONSE: [HeaderName; 3] = [CONTENT_ENCODING, LOCATION, SET_COOKIE];
static TYPE: [HeaderName; 1] = [CONTENT_TYPE];
static DIGEST: [HeaderName; 1] = [HeaderName::from_static("content-digest")];
static ANNOUNCEMENT: [HeaderName; 1] = [TRAILER];

/// One component of the profile. Parameters are flags, in the one order the profile uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Covered<'a> {
    pub(crate) name: &'a str,
    /// The same of a field that was found: it is looked up faster than a text.
    pub(super) field: Option<&'a HeaderName>,
    pub(crate) bs: bool,
    pub(crate) req: bool,
    pub(crate) tr: bool,
}

impl<'a> Covered<'a> {
    pub(crate) fn plain(name: &'a str) -> Self {
        Self { name, field: None, bs: false, req: false, tr: false }
    }

    /// Appends the identifier.
    pub(crate) fn write(&self, out: &mut String) {
        out.push('"');
        out.push_str(self.name);
        out.push('"');
        for (flag, text) in [(self.bs, ";bs"), (self.req, ";req"), (self.tr, ";tr")] {
            if flag {
                out.push_str(text);
            }
        }
    }

    /// Appends the value this component has in `message`.
    pub(crate) fn push_value(&self, out: &mut String, message: &MessageView<'_>) -> Result<(), BaseError> {
        let message = if self.req {
            MessageView::Request(*message.related_request().ok_or(BaseError::NoRequest)?)
        } else {
            *message
        };
        if self.name.starts_with('@') {
            return push_derived(out, &message, self.name);
        }
        let fields =
            if self.tr { message.trailers().ok_or(BaseError::NoTrailers)? } else { message.headers() };
        let present = if self.bs {
            field::push_wrapped(out, fields, self.name)?
        } else if let Some(name) = self.field {
            field::push_combined(out, fields, name)?
        } else {
            field::push_combined(out, fields, self.name)?
        };
        present.then_some(()).ok_or_else(|| BaseError::ComponentMissing(self.name.to_owned()))
    }
}

impl PartialEq for Covered<'_> {
    fn eq(&self, other: &Self) -> bool {
        let parts = |covered: &Self| (covered.bs, covered.req, covered.tr);
        self.name == other.name && parts(self) == parts(other)
    }
}

/// Names the body binding that a message lacks or has twice.
pub(crate) struct UnboundBody;

/// Calls `visit` for every component that a signature over this part of `message` must cover, in the
/// order in which a signer covers them.
pub(crate) fn required<'a, E: From<UnboundBody>>(
    message: &MessageView<'a>,
    part: Part,
    visit: &mut impl FnMut(Covered<'a>) -> Result<(), E>,
) -> Result<(), E> {
    match message {
        MessageView::Request(request) => of_request(request, part, false, visit),
        MessageView::Response(response) => {
            visit(Covered::plain("@status"))?;
            let headers = response.headers;
            body(headers, response.trailers, part, false, visit)?;
            if part != Part::Tail {
                present(headers, &OF_RESPONSE, false, visit)?;
                // A gRPC call that fails at once has its outcome here instead of in trailers.
                present(headers, &GRPC_OUTCOME, false, visit)?;
                own_fields(headers, false, visit)?;
            }
            response.request.as_ref().map_or(Ok(()), |request| of_request(request, Part::Whole, true, visit))
        }
    }
}

fn of_request<'a, E: From<UnboundBody>>(
    request: &RequestView<'a>,
    part: Part,
    req: bool,
    visit: &mut impl FnMut(Covered<'a>) -> Result<(), E>,
) -> Result<(), E> {
    let target: &[&'static str] =
        if request.has_no_path() { &["@request-target"] } else { &["@path", "@query"] };
    for name in ["@method", "@authority"].iter().chain(target) {
        visit(Covered { req, ..Covered::plain(name) })?;
    }
    body(request.headers, request.trailers, part, req, visit)?;
    if part != Part::Tail {
        present(request.headers, &OF_REQUEST, req, visit)?;
        own_fields(request.headers, req, visit)?;
    }
    Ok(())
}

/// The content type and whatever binds the body.
fn body<'a, E: From<UnboundBody>>(
    headers: &'a HeaderMap,
    trailers: Option<&'a HeaderMap>,
    part: Part,
    req: bool,
    visit: &mut impl FnMut(Covered<'a>) -> Result<(), E>,
) -> Result<(), E> {
    present(headers, &TYPE, req, visit)?;
    let digested = headers.contains_key(&CONTENT_DIGEST);
    if req {
        // The request had its own signature, which bound its body; here it is only quoted.
        return present(headers, &DIGEST, req, visit);
    }
    match part {
        Part::Whole | Part::Origin if digested == is_records(headers) => Err(E::from(UnboundBody)),
        Part::Whole | Part::Origin => present(headers, &DIGEST, false, visit),
        Part::Head if digested || is_records(headers) => Err(E::from(UnboundBody)),
        Part::Head => present(headers, &ANNOUNCEMENT, false, visit),
        Part::Tail => trailer_fields(trailers.ok_or_else(|| E::from(UnboundBody))?, visit),
    }
}

/// Every trailer field: the digest of the body first, then the outcome of a gRPC call, then the others.
fn trailer_fields<'a, E: From<UnboundBody>>(
    trailers: &'a HeaderMap,
    visit: &mut impl FnMut(Covered<'a>) -> Result<(), E>,
) -> Result<(), E> {
    if !trailers.contains_key(&CONTENT_DIGEST) {
        return Err(E::from(UnboundBody));
    }
    let first = DIGEST.iter().chain(&GRPC_OUTCOME);
    let others = sorted_names(trailers, |name| {
        !GRPC_OUTCOME.iter().any(|outcome| outcome == name)
            && !matches!(name, "content-digest" | "signature" | "signature-input")
    });
    for name in first.filter(|name| trailers.contains_key(*name)).chain(others) {
        visit(Covered { tr: true, ..field_component(trailers, name) })?;
    }
    Ok(())
}

/// The fields that belong to the mesh itself.
fn own_fields<'a, E>(
    headers: &'a HeaderMap,
    req: bool,
    visit: &mut impl FnMut(Covered<'a>) -> Result<(), E>,
) -> Result<(), E> {
    for name in sorted_names(headers, |name| name.starts_with("mesh-") && name != CERTIFICATE_FIELD) {
        visit(Covered { req, ..field_component(headers, name) })?;
    }
    Ok(())
}

fn present<'a, E>(
    headers: &'a HeaderMap,
    names: &'static [HeaderName],
    req: bool,
    visit: &mut impl FnMut(Covered<'a>) -> Result<(), E>,
) -> Result<(), E> {
    for name in names.iter().filter(|name| headers.contains_key(*name)) {
        visit(Covered { req, ..field_component(headers, name) })?;
    }
    Ok(())
}

/// The component for a field. Two kinds of value are wrapped line by line: those of Set-Cookie, which
/// hold commas, so that joined lines could be split differently; and bytes above ASCII, which a base
/// cannot hold.
fn field_component<'a>(fields: &HeaderMap, name: &'a HeaderName) -> Covered<'a> {
    let beyond_ascii = || fields.get_all(name).iter().any(|value| !value.as_bytes().is_ascii());
    let bs = *name == SET_COOKIE || beyond_ascii();
    Covered { bs, field: Some(name), ..Covered::plain(name.as_str()) }
}

// The map keeps no order that both ends share, so names found by a rule are sorted.
fn sorted_names(fields: &HeaderMap, wanted: impl Fn(&str) -> bool) -> Vec<&HeaderName> {
    let mut names: Vec<&HeaderName> = fields.keys().filter(|name| wanted(name.as_str())).collect();
    names.sort_unstable_by_key(|name| name.as_str());
    names
}

/// Whether the outermost content coding is the record coding. It has to be the last one: what a
/// receiver undoes first.
pub(crate) fn is_records(headers: &HeaderMap) -> bool {
    let last = headers.get_all(CONTENT_ENCODING).iter().next_back();
    last.and_then(|value| value.to_str().ok())
        .and_then(|value| value.rsplit(',').next())
        .is_some_and(|coding| coding.trim().eq_ignore_ascii_case(RECORD_CODING))
}

/// Whether the `trailer` field announces everything a tail signature needs, so that nobody can leave
/// the trailers away unnoticed.
pub(crate) fn announces_tail(headers: &HeaderMap) -> bool {
    let announced = |wanted: &str| {
        let lines = headers.get_all(TRAILER).iter().filter_map(|value| value.to_str().ok());
        lines.flat_map(|line| line.split(',')).any(|name| name.trim().eq_ignore_ascii_case(wanted))
    };
    ["content-digest", "signature", "signature-input"].into_iter().all(announced)
}

fn push_derived(out: &mut String, message: &MessageView<'_>, name: &str) -> Result<(), BaseError> {
    match (message, name) {
        (MessageView::Response(response), "@status") => derived::push_status(out, response.status),
        (MessageView::Request(request), "@authority") => derived::push_authority(out, request),
        (MessageView::Request(request), "@method") => field::push_text(out, request.method.as_bytes()),
        (MessageView::Request(request), "@path") => derived::push_path(out, request),
        (MessageView::Request(request), "@query") => derived::push_query(out, request),
        (MessageView::Request(request), "@request-target") => {
            field::push_text(out, request.target.as_bytes())
        }
        _ => Err(BaseError::ComponentMissing(name.to_owned())),
    }
}
