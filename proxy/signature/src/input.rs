//! The `Signature-Input` and `Signature` fields (RFC 9421 section 4).

use std::borrow::Cow;

use http::{HeaderMap, HeaderName};
use sfv::FieldType as _;
use thiserror::Error;

use crate::base::{self, BaseError, MAX_COMPONENTS};
use crate::component::{Component, ComponentError};
use crate::field::as_text;
use crate::key::Algorithm;
use crate::message::MessageView;

/// Most signatures looked at on one message; real chains of intermediaries have two or three.
pub const MAX_SIGNATURES: usize = 16;

/// Most bytes of `Signature-Input`, and of `Signature`, that are parsed.
pub const MAX_FIELD_BYTES: usize = 32 * 1024;

// Looked up several times for every message, so they are not read from text each time.
pub(crate) static SIGNATURE: HeaderName = HeaderName::from_static("signature");
pub(crate) static SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");

/// Why signature fields could not be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    /// A component identifier is not acceptable.
    #[error("covered component: {0}")]
    Component(#[from] ComponentError),
    /// A label occurs twice, so it is open which signature it means.
    #[error("a signature label occurs twice")]
    DuplicateLabel,
    /// A parameter occurs twice, so it is open which value counts.
    #[error("a signature parameter occurs twice")]
    DuplicateParameter,
    /// The fields are longer than [`MAX_FIELD_BYTES`].
    #[error("signature fields are too long")]
    FieldTooLong,
    /// A field is not a dictionary of the right shape.
    #[error("signature fields are malformed")]
    Malformed,
    /// A parameter of RFC 9421 has a value of the wrong type.
    #[error("signature parameter {0} has the wrong type")]
    ParameterType(&'static str),
    /// More components than [`MAX_COMPONENTS`].
    #[error("more components are covered than are allowed")]
    TooManyComponents,
    /// More signatures than [`MAX_SIGNATURES`].
    #[error("the message has more signatures than are allowed")]
    TooManySignatures,
    /// A label stands in only one of the two fields.
    #[error("a signature label occurs in only one of the two fields")]
    UnmatchedLabel,
}

/// Signature parameters in their order (RFC 9421 section 2.3). Unregistered ones are kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params {
    entries: sfv::Parameters,
}

impl Params {
    /// No parameters.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `created`, in Unix seconds.
    #[must_use]
    pub fn with_created(self, seconds: u64) -> Self {
        self.with_seconds("created", seconds)
    }

    /// Adds `expires`, in Unix seconds.
    #[must_use]
    pub fn with_expires(self, seconds: u64) -> Self {
        self.with_seconds("expires", seconds)
    }

    /// Adds `nonce`.
    ///
    /// # Errors
    /// When the text is not printable ASCII.
    pub fn with_nonce(self, nonce: &str) -> Result<Self, ParseError> {
        self.with_text("nonce", nonce)
    }

    /// Adds `alg`.
    #[must_use]
    pub fn with_alg(self, algorithm: Algorithm) -> Self {
        // A registered algorithm name is printable ASCII, so this adds it.
        self.clone().with_text("alg", algorithm.name()).unwrap_or(self)
    }

    /// Adds `keyid`.
    ///
    /// # Errors
    /// When the text is not printable ASCII.
    pub fn with_keyid(self, keyid: &str) -> Result<Self, ParseError> {
        self.with_text("keyid", keyid)
    }

    /// Adds `tag`.
    ///
    /// # Errors
    /// When the text is not printable ASCII.
    pub fn with_tag(self, tag: &str) -> Result<Self, ParseError> {
        self.with_text("tag", tag)
    }

    /// When the signature was made, in Unix seconds.
    #[must_use]
    pub fn created(&self) -> Option<u64> {
        self.seconds("created")
    }

    /// When the signature ceases to be valid, in Unix seconds.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        self.seconds("expires")
    }

    /// The nonce.
    #[must_use]
    pub fn nonce(&self) -> Option<&str> {
        self.text("nonce")
    }

    /// The name of the algorithm, as the signer claims it.
    #[must_use]
    pub fn alg(&self) -> Option<&str> {
        self.text("alg")
    }

    /// Which key the signer says it used.
    #[must_use]
    pub fn keyid(&self) -> Option<&str> {
        self.text("keyid")
    }

    /// The application the signature was made for.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.text("tag")
    }

    fn read(entries: sfv::Parameters) -> Result<Self, ParseError> {
        for name in ["created", "expires"] {
            let well_typed =
                |value: &sfv::BareItem| value.as_integer().is_some_and(|seconds| i64::from(seconds) >= 0);
            if entries.get(key(name)?).is_some_and(|value| !well_typed(value)) {
                return Err(ParseError::ParameterType(name));
            }
        }
        for name in ["nonce", "alg", "keyid", "tag"] {
            if entries.get(key(name)?).is_some_and(|value| value.as_string().is_none()) {
                return Err(ParseError::ParameterType(name));
            }
        }
        Ok(Self { entries })
    }

    fn with_seconds(mut self, name: &str, seconds: u64) -> Self {
        // A time beyond what a structured integer holds (year 31 million) is as good as the largest one.
        let value = i64::try_from(seconds).ok().and_then(|value| sfv::Integer::try_from(value).ok());
        if let Ok(key) = key(name) {
            self.entries.insert(key.to_owned(), value.unwrap_or(sfv::Integer::MAX).into());
        }
        self
    }

    fn with_text(mut self, name: &'static str, text: &str) -> Result<Self, ParseError> {
        let value = sfv::StringRef::from_str(text).map_err(|_| ParseError::ParameterType(name))?;
        self.entries.insert(key(name)?.to_owned(), value.into());
        Ok(self)
    }

    fn seconds(&self, name: &str) -> Option<u64> {
        let value = self.entries.get(key(name).ok()?)?.as_integer()?;
        u64::try_from(i64::from(value)).ok()
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.entries.get(key(name).ok()?)?.as_string().map(sfv::StringRef::as_str)
    }
}

/// One received signature: what it covers, its parameters and its bytes.
#[derive(Clone, Debug)]
pub struct LabelledSignature {
    label: String,
    components: Vec<Component>,
    params: Params,
    received: String,
    canonical: String,
    signature: Vec<u8>,
}

impl LabelledSignature {
    /// The label, which only tells the signatures of one message apart and proves nothing.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The covered components in their order.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// The signature parameters in their order.
    #[must_use]
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The member of `Signature-Input` exactly as it was received.
    #[must_use]
    pub fn received(&self) -> &str {
        &self.received
    }

    /// The signature itself.
    #[must_use]
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// The signature base this signature was made over, if it was made over `message`.
    ///
    /// # Errors
    /// When a covered component is missing, ambiguous or not text.
    pub fn base(&self, message: &MessageView<'_>) -> Result<String, BaseError> {
        base::with_params(message, &self.components, &self.canonical)
    }

    fn read(label: &str, input: &str, signature: &str) -> Result<Self, ParseError> {
        let list = parse_inner_list(input)?;
        let components = list.items.iter().map(Component::from_item).collect::<Result<Vec<_>, _>>()?;
        if components.len() > MAX_COMPONENTS {
            return Err(ParseError::TooManyComponents);
        }
        let params = Params::read(list.params.clone())?;
        // Re-serialising what was received normalises optional spaces and nothing else (section 2.5).
        let canonical = vec![sfv::ListEntry::InnerList(list)].serialize().ok_or(ParseError::Malformed)?;
        Ok(Self {
            label: label.to_owned(),
            components,
            params,
            received: input.to_owned(),
            canonical,
            signature: parse_bytes(signature)?,
        })
    }
}

/// Reads every signature of a message, from its headers or its trailers.
///
/// # Errors
/// When a field is malformed, too large or ambiguous; a message with an unreadable signature has none
/// that can be relied on.
pub fn parse_signatures(fields: &HeaderMap) -> Result<Vec<LabelledSignature>, ParseError> {
    let inputs = joined(fields, &SIGNATURE_INPUT, MAX_FIELD_BYTES)?;
    let signatures = joined(fields, &SIGNATURE, MAX_FIELD_BYTES)?;
    let inputs = members(&inputs, MAX_SIGNATURES)?;
    let signatures = members(&signatures, MAX_SIGNATURES)?;
    if signatures.len() != inputs.len() {
        return Err(ParseError::UnmatchedLabel);
    }
    let find = |label| signatures.iter().find(|member| member.label == label);
    inputs
        .iter()
        .map(|input| {
            let signature = find(input.label).ok_or(ParseError::UnmatchedLabel)?;
            LabelledSignature::read(input.label, input.value, signature.value)
        })
        .collect()
}

/// The serialisation of `@signature-params` for a signature to be made.
pub(crate) fn signature_params(components: &[Component], params: &Params) -> Result<String, BaseError> {
    let mut text = String::from("(");
    for (position, component) in components.iter().enumerate() {
        if position > 0 {
            text.push(' ');
        }
        component.write(&mut text);
    }
    text.push(')');
    for (key, value) in &params.entries {
        text.push(';');
        text.push_str(key.as_str());
        if value.as_boolean() != Some(true) {
            text.push('=');
            text.push_str(&sfv::Item::new(value.clone()).serialize());
        }
    }
    Ok(text)
}

/// One member of a dictionary field, as received.
#[derive(Clone, Copy)]
pub(crate) struct Member<'a> {
    pub(crate) label: &'a str,
    pub(crate) value: &'a str,
}

/// All lines of a field as one text, refused when it is not ASCII or longer than `limit` bytes.
pub(crate) fn joined<'a>(
    fields: &'a HeaderMap,
    name: &HeaderName,
    limit: usize,
) -> Result<Cow<'a, str>, ParseError> {
    let mut text = Cow::Borrowed("");
    for (position, value) in fields.get_all(name).iter().enumerate() {
        let line = as_text(value.as_bytes()).ok_or(ParseError::Malformed)?;
        if text.len() + line.len() > limit {
            return Err(ParseError::FieldTooLong);
        }
        if position == 0 {
            text = Cow::Borrowed(line);
        } else {
            let text = text.to_mut();
            text.push_str(", ");
            text.push_str(line);
        }
    }
    Ok(text)
}

/// The members of all lines of a field whose lines can be read, at most `limit`. A line that cannot be read is an
/// application's own business: what came before RFC 9421 used the same field names.
pub(crate) fn readable_members<'a>(
    fields: &'a HeaderMap,
    name: &HeaderName,
    limit: usize,
    max_bytes: usize,
) -> Result<Vec<Member<'a>>, ParseError> {
    let mut all = Vec::new();
    let mut length = 0;
    for line in fields.get_all(name) {
        length += line.len();
        if length > max_bytes {
            return Err(ParseError::FieldTooLong);
        }
        match as_text(line.as_bytes()).ok_or(ParseError::Malformed).and_then(|line| members(line, limit)) {
            Ok(members) => all.extend(members),
            Err(ParseError::TooManySignatures) => return Err(ParseError::TooManySignatures),
            Err(_) => {}
        }
        if all.len() > limit {
            return Err(ParseError::TooManySignatures);
        }
    }
    for (position, member) in all.iter().enumerate() {
        if all.iter().take(position).any(|earlier: &Member<'_>| earlier.label == member.label) {
            return Err(ParseError::DuplicateLabel);
        }
    }
    Ok(all)
}

/// Splits a dictionary into its members without losing a byte of their values. Only the outline is
/// read here; each value is parsed by whoever uses it.
pub(crate) fn members(text: &str, limit: usize) -> Result<Vec<Member<'_>>, ParseError> {
    if text.trim_matches(OWS).is_empty() {
        return Ok(Vec::new());
    }
    // Nearly every message has one signature, and then there is nothing to split.
    if limit > 0 && memchr::memchr(b',', text.as_bytes()).is_none() {
        return Ok(vec![member(text)?]);
    }
    let mut members = Vec::<Member<'_>>::new();
    for part in split_outside_strings(text)? {
        let member = member(part)?;
        if members.iter().any(|earlier| earlier.label == member.label) {
            return Err(ParseError::DuplicateLabel);
        }
        if members.len() == limit {
            return Err(ParseError::TooManySignatures);
        }
        members.push(member);
    }
    Ok(members)
}

fn member(text: &str) -> Result<Member<'_>, ParseError> {
    let (label, value) = text.trim_matches(OWS).split_once('=').ok_or(ParseError::Malformed)?;
    // The value parsers skip leading spaces, which a dictionary does not allow here.
    if sfv::KeyRef::from_str(label).is_err() || value.starts_with(OWS) {
        return Err(ParseError::Malformed);
    }
    Ok(Member { label, value })
}

/// Parses a member of `Signature-Input` strictly, refusing repeated parameters.
pub(crate) fn parse_inner_list(value: &str) -> Result<sfv::InnerList, ParseError> {
    let list = sfv::Parser::new(value).parse::<sfv::List>().map_err(|_| ParseError::Malformed)?;
    let Ok([sfv::ListEntry::InnerList(list)]) = <[_; 1]>::try_from(list) else {
        return Err(ParseError::Malformed);
    };
    // The parser lets a later parameter replace an earlier one; the separators still show both.
    let parameters = list.params.len() + list.items.iter().map(|item| item.params.len()).sum::<usize>();
    if count_outside_strings(value, b';') != parameters {
        return Err(ParseError::DuplicateParameter);
    }
    Ok(list)
}

const OWS: [char; 2] = [' ', '\t'];

fn parse_bytes(value: &str) -> Result<Vec<u8>, ParseError> {
    let item = sfv::Parser::new(value).parse::<sfv::Item>().map_err(|_| ParseError::Malformed)?;
    match item.bare_item {
        sfv::BareItem::ByteSequence(bytes) => Ok(bytes),
        _ => Err(ParseError::Malformed),
    }
}

fn key(name: &str) -> Result<&sfv::KeyRef, ParseError> {
    sfv::KeyRef::from_str(name).map_err(|_| ParseError::Malformed)
}

fn split_outside_strings(text: &str) -> Result<Vec<&str>, ParseError> {
    let (mut parts, mut rest, mut outside) = (Vec::new(), text, Outside::default());
    while let Some(position) = rest.bytes().position(|byte| outside.sees(byte) && byte == b',') {
        let (part, tail) = rest.split_at_checked(position).ok_or(ParseError::Malformed)?;
        parts.push(part);
        rest = tail.get(1..).ok_or(ParseError::Malformed)?;
    }
    parts.push(rest);
    Ok(parts)
}

fn count_outside_strings(text: &str, wanted: u8) -> usize {
    let mut outside = Outside::default();
    text.bytes().filter(|byte| outside.sees(*byte) && *byte == wanted).count()
}

/// Follows quoted strings through a text.
#[derive(Default)]
struct Outside {
    in_string: bool,
    escaped: bool,
}

impl Outside {
    /// Whether `byte` stands outside every string.
    fn sees(&mut self, byte: u8) -> bool {
        let was_inside = self.in_string;
        if self.escaped {
            self.escaped = false;
        } else if self.in_string && byte == b'\\' {
            self.escaped = true;
        } else if byte == b'"' {
            self.in_string = !self.in_string;
        }
        !was_inside
    }
}
