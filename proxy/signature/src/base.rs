//! The signature base (RFC 9421 section 2.5): the exact text that is signed.

use thiserror::Error;

use crate::component::{Component, Parameter};
use crate::derived;
use crate::field;
use crate::input::Params;
use crate::message::{MessageView, RequestView};

/// Most components one signature may cover: a real message has some twenty fields, and each costs a scan.
pub const MAX_COMPONENTS: usize = 128;

/// Why no signature base can be made for a message. No field value is ever named.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BaseError {
    /// A covered component is not in the message.
    #[error("the message has no component {0}")]
    ComponentMissing(String),
    /// A component is covered twice.
    #[error("component {0} is covered twice")]
    DuplicateComponent(String),
    /// A dictionary has no member with the key asked for.
    #[error("field {field} has no member {key}")]
    MemberMissing {
        /// The field's name.
        field: String,
        /// The member's key.
        key: String,
    },
    /// `;req` was used and the request is not known, or the message is itself a request.
    #[error("there is no related request to take components from")]
    NoRequest,
    /// A derived component does not exist for this kind of message.
    #[error("component {0} does not apply to this message")]
    NotApplicable(&'static str),
    /// A field is not the structured field it was declared to be.
    #[error("field {0} is not a well-formed structured field")]
    NotStructured(String),
    /// A value has bytes that are not one line of ASCII text.
    #[error("a component value is not one line of ascii text")]
    NotText,
    /// A query parameter occurs more than once, so a named value would be ambiguous.
    #[error("the query parameter occurs more than once")]
    RepeatedQueryParameter,
    /// The signature parameters cannot be serialised.
    #[error("the signature parameters cannot be serialised")]
    Parameters,
    /// More components than [`MAX_COMPONENTS`].
    #[error("more components are covered than are allowed")]
    TooManyComponents,
    /// The trailers are needed and have not arrived.
    #[error("the message has no trailer section")]
    NoTrailers,
    /// The structured type of a field is not known, so `;sf` has no meaning for it.
    #[error("the structured type of field {0} is not known")]
    UnknownStructuredType(String),
}

/// The signature base for `message`, covering `components` in that order.
///
/// # Errors
/// When a component is missing, repeated, ambiguous or not text.
pub fn signature_base(
    message: &MessageView<'_>,
    components: &[Component],
    params: &Params,
) -> Result<String, BaseError> {
    with_params(message, components, &crate::input::signature_params(components, params)?)
}

/// The signature base with a given serialisation of `@signature-params`, for a received signature.
pub(crate) fn with_params(
    message: &MessageView<'_>,
    components: &[Component],
    signature_params: &str,
) -> Result<String, BaseError> {
    if components.len() > MAX_COMPONENTS {
        return Err(BaseError::TooManyComponents);
    }
    let mut base = String::with_capacity(512 + signature_params.len());
    for (position, component) in components.iter().enumerate() {
        if components.iter().take(position).any(|earlier| earlier.same_as(component)) {
            return Err(BaseError::DuplicateComponent(component.to_string()));
        }
        component.write(&mut base);
        base.push_str(": ");
        push_value(&mut base, message, component)?;
        base.push('\n');
    }
    base.push_str("\"@signature-params\": ");
    base.push_str(signature_params);
    Ok(base)
}

fn push_value(out: &mut String, message: &MessageView<'_>, component: &Component) -> Result<(), BaseError> {
    let message = if component.has(&Parameter::Req) {
        MessageView::Request(*message.related_request().ok_or(BaseError::NoRequest)?)
    } else {
        *message
    };
    if component.is_derived() {
        push_derived(out, &message, component)
    } else {
        push_field(out, &message, component)
    }
}

fn push_derived(out: &mut String, message: &MessageView<'_>, component: &Component) -> Result<(), BaseError> {
    match (message, component.name()) {
        (MessageView::Response(response), "@status") => derived::push_status(out, response.status),
        (MessageView::Request(_), "@status") => Err(BaseError::NotApplicable("@status")),
        (MessageView::Response(_), _) => Err(BaseError::NoRequest),
        (MessageView::Request(request), name) => push_of_request(out, request, name, component),
    }
}

fn push_of_request(
    out: &mut String,
    request: &RequestView<'_>,
    name: &str,
    component: &Component,
) -> Result<(), BaseError> {
    match name {
        "@authority" => derived::push_authority(out, request),
        "@method" => field::push_text(out, request.method.as_bytes()),
        "@path" => derived::push_path(out, request),
        "@query" => derived::push_query(out, request),
        "@query-param" => derived::push_query_parameter(out, request, component.query_name().unwrap_or("")),
        "@request-target" => field::push_text(out, request.target.as_bytes()),
        "@scheme" => derived::push_scheme(out, request),
        "@target-uri" => derived::push_target_uri(out, request),
        // Component's parser admits no other derived name.
        _ => Err(BaseError::ComponentMissing(component.to_string())),
    }
}

fn push_field(out: &mut String, message: &MessageView<'_>, component: &Component) -> Result<(), BaseError> {
    let fields = if component.has(&Parameter::Tr) {
        message.trailers().ok_or(BaseError::NoTrailers)?
    } else {
        message.headers()
    };
    let name = component.name();
    let present = if component.has(&Parameter::Bs) {
        field::push_wrapped(out, fields, name)?
    } else if let Some(key) = component.key() {
        push_structured(out, fields, name, |value| member(name, key, value))?
    } else if component.has(&Parameter::Sf) {
        push_structured(out, fields, name, |value| canonical(name, value))?
    } else {
        field::push_combined(out, fields, name)?
    };
    present.then_some(()).ok_or_else(|| BaseError::ComponentMissing(component.to_string()))
}

fn push_structured(
    out: &mut String,
    fields: &http::HeaderMap,
    name: &str,
    serialise: impl Fn(&str) -> Result<String, BaseError>,
) -> Result<bool, BaseError> {
    let Some(value) = field::combined(fields, name)? else { return Ok(false) };
    out.push_str(&serialise(&value)?);
    Ok(true)
}

/// Strict serialisation of one dictionary member (RFC 9421 section 2.1.2).
fn member(name: &str, key: &str, value: &str) -> Result<String, BaseError> {
    let dictionary = parse::<sfv::Dictionary>(name, value)?;
    let entry = sfv::KeyRef::from_str(key).ok().and_then(|key| dictionary.get(key));
    let entry = entry
        .ok_or_else(|| BaseError::MemberMissing { field: name.to_owned(), key: key.to_owned() })?
        .clone();
    // A member is serialised as it would be in a list of its own.
    sfv::FieldType::serialize(&vec![entry]).ok_or_else(|| BaseError::NotStructured(name.to_owned()))
}

/// Strict serialisation of a whole structured field (RFC 9421 section 2.1.1).
fn canonical(name: &str, value: &str) -> Result<String, BaseError> {
    let canonical = match structured_type(name) {
        Some(Structured::Dictionary) => sfv::FieldType::serialize(&parse::<sfv::Dictionary>(name, value)?),
        Some(Structured::Item) => Some(sfv::FieldType::serialize(&parse::<sfv::Item>(name, value)?)),
        Some(Structured::List) => sfv::FieldType::serialize(&parse::<sfv::List>(name, value)?),
        None => return Err(BaseError::UnknownStructuredType(name.to_owned())),
    };
    // An empty list or dictionary has no serialisation; as a value it is the empty string.
    Ok(canonical.unwrap_or_default())
}

fn parse<T: sfv::FieldType>(name: &str, value: &str) -> Result<T, BaseError> {
    sfv::Parser::new(value).parse().map_err(|_| BaseError::NotStructured(name.to_owned()))
}

enum Structured {
    Dictionary,
    Item,
    List,
}

/// The type of a registered structured field. Guessing is not possible: `a, b` parses as a list and as
/// a dictionary, and the two serialise differently once a key repeats.
fn structured_type(name: &str) -> Option<Structured> {
    Some(match name {
        "accept-signature"
        | "cdn-cache-control"
        | "content-digest"
        | "priority"
        | "repr-digest"
        | "signature"
        | "signature-input"
        | "use-as-dictionary"
        | "want-content-digest"
        | "want-repr-digest" => Structured::Dictionary,
        "available-dictionary"
        | "capsule-protocol"
        | "client-cert"
        | "cross-origin-embedder-policy"
        | "cross-origin-opener-policy"
        | "deprecation"
        | "dictionary-id"
        | "incremental"
        | "origin-agent-cluster" => Structured::Item,
        "accept-ch" | "cache-status" | "client-cert-chain" | "mesh-cert" | "proxy-status" => Structured::List,
        _ => return None,
    })
}
