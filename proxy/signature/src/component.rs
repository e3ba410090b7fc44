//! Component identifiers (RFC 9421 section 2): a name and parameters that say how to read it.

use std::fmt;

use thiserror::Error;

/// Longest name or parameter of a component identifier, in bytes; longer ones are no real field.
pub const MAX_IDENTIFIER: usize = 1024;

const DERIVED: [&str; 9] = [
    "@authority",
    "@method",
    "@path",
    "@query",
    "@query-param",
    "@request-target",
    "@scheme",
    "@status",
    "@target-uri",
];

/// Why text is not a component identifier.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ComponentError {
    /// Two parameters exclude each other, or do not belong to this name.
    #[error("component parameters do not go together")]
    ConflictingParameters,
    /// The text is not a quoted string with parameters.
    #[error("component identifier is malformed")]
    Malformed,
    /// `@query-param` without `name`.
    #[error("@query-param needs a name parameter")]
    NameMissing,
    /// The identifier is longer than [`MAX_IDENTIFIER`].
    #[error("component identifier is too long")]
    TooLong,
    /// No such derived component, or one that must not be covered (`@signature-params`).
    #[error("derived component is not known")]
    UnknownDerived,
    /// A parameter that is not understood changes the meaning, so the component cannot be either.
    #[error("component parameter is not known")]
    UnknownParameter,
}

/// One parameter of a component identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// `bs`: every field line as a byte sequence.
    Bs,
    /// `key`: one member of a dictionary field.
    Key(String),
    /// `name`: the query parameter, in its encoded form.
    Name(String),
    /// `req`: taken from the request this response answers.
    Req,
    /// `sf`: strict serialisation of a structured field.
    Sf,
    /// `tr`: taken from the trailers.
    Tr,
}

/// A component identifier. Its order of parameters is kept, because the base repeats it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    name: String,
    parameters: Vec<Parameter>,
}

impl Component {
    /// A component from its name and parameters.
    ///
    /// # Errors
    /// When the name is no lower-case field name or known derived component, or a parameter does not
    /// belong to it.
    pub fn new(name: impl Into<String>, parameters: Vec<Parameter>) -> Result<Self, ComponentError> {
        let component = Self { name: name.into(), parameters };
        component.check()?;
        Ok(component)
    }

    /// Reads an identifier as it stands in `Signature-Input`, e.g. `"@path";req`.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when the text is malformed.
    pub fn parse(text: &str) -> Result<Self, ComponentError> {
        let item = sfv::Parser::new(text).parse::<sfv::Item>().map_err(|_| ComponentError::Malformed)?;
        Self::from_item(&item)
    }

    pub(crate) fn from_item(item: &sfv::Item) -> Result<Self, ComponentError> {
        let name = item.bare_item.as_string().ok_or(ComponentError::Malformed)?;
        let parameters = item.params.iter().map(|(key, value)| Parameter::read(key.as_str(), value));
        Self::new(name.as_str(), parameters.collect::<Result<_, _>>()?)
    }

    /// The name: a lower-case field name, or a derived component starting with `@`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The parameters, in order.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Whether this is a derived component rather than a field.
    #[must_use]
    pub fn is_derived(&self) -> bool {
        self.name.starts_with('@')
    }

    pub(crate) fn has(&self, parameter: &Parameter) -> bool {
        self.parameters.contains(parameter)
    }

    pub(crate) fn key(&self) -> Option<&str> {
        self.parameters.iter().find_map(|parameter| match parameter {
            Parameter::Key(key) => Some(key.as_str()),
            _ => None,
        })
    }

    pub(crate) fn query_name(&self) -> Option<&str> {
        self.parameters.iter().find_map(|parameter| match parameter {
            Parameter::Name(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Whether two identifiers name the same component; the order of parameters does not matter for that.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.name == other.name
            && self.parameters.len() == other.parameters.len()
            && self.parameters.iter().all(|parameter| other.has(parameter))
    }

    /// Appends the identifier in canonical form.
    pub(crate) fn write(&self, out: &mut String) {
        out.push('"');
        out.push_str(&self.name);
        out.push('"');
        for parameter in &self.parameters {
            match parameter {
                Parameter::Bs => out.push_str(";bs"),
                Parameter::Key(key) => push_quoted(out, ";key=", key),
                Parameter::Name(name) => push_quoted(out, ";name=", name),
                Parameter::Req => out.push_str(";req"),
                Parameter::Sf => out.push_str(";sf"),
                Parameter::Tr => out.push_str(";tr"),
            }
        }
    }

    fn check(&self) -> Result<(), ComponentError> {
        self.check_size()?;
        let has = |parameter| self.has(&parameter);
        if self.is_derived() {
            self.check_derived()
        } else if !is_lower_case_token(&self.name) {
            Err(ComponentError::Malformed)
        } else if self.query_name().is_some()
            || (has(Parameter::Bs) && (has(Parameter::Sf) || self.key().is_some()))
        {
            Err(ComponentError::ConflictingParameters)
        } else {
            Ok(())
        }
    }

    fn check_derived(&self) -> Result<(), ComponentError> {
        if !DERIVED.contains(&self.name.as_str()) {
            return Err(ComponentError::UnknownDerived);
        }
        let is_query_parameter = self.name == "@query-param";
        if is_query_parameter && self.query_name().is_none() {
            return Err(ComponentError::NameMissing);
        }
        let belongs = |parameter: &Parameter| match parameter {
            Parameter::Name(_) => is_query_parameter,
            Parameter::Req => self.name != "@status",
            _ => false,
        };
        if self.parameters.iter().all(belongs) { Ok(()) } else { Err(ComponentError::ConflictingParameters) }
    }

    fn check_size(&self) -> Result<(), ComponentError> {
        let texts = [Some(self.name.as_str()), self.key(), self.query_name()];
        if texts.iter().flatten().any(|text| text.len() > MAX_IDENTIFIER) {
            return Err(ComponentError::TooLong);
        }
        if texts.iter().flatten().any(|text| !text.bytes().all(|byte| matches!(byte, b' '..=b'~'))) {
            return Err(ComponentError::Malformed);
        }
        let kinds = self.parameters.iter().map(std::mem::discriminant);
        if kinds
            .clone()
            .enumerate()
            .any(|(position, kind)| kinds.clone().take(position).any(|other| other == kind))
        {
            return Err(ComponentError::ConflictingParameters);
        }
        Ok(())
    }
}

impl Parameter {
    fn read(key: &str, value: &sfv::BareItem) -> Result<Self, ComponentError> {
        match (key, value.as_boolean(), value.as_string()) {
            ("bs", Some(true), _) => Ok(Self::Bs),
            ("req", Some(true), _) => Ok(Self::Req),
            ("sf", Some(true), _) => Ok(Self::Sf),
            ("tr", Some(true), _) => Ok(Self::Tr),
            ("key", _, Some(text)) => Ok(Self::Key(text.as_str().to_owned())),
            ("name", _, Some(text)) => Ok(Self::Name(text.as_str().to_owned())),
            _ => Err(ComponentError::UnknownParameter),
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(&mut text);
        f.write_str(&text)
    }
}

/// Whether `name` is a field name as HTTP/2 and RFC 9421 write it.
pub(crate) fn is_lower_case_token(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte)
        })
}

fn push_quoted(out: &mut String, prefix: &str, text: &str) {
    out.push_str(prefix);
    out.push('"');
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            out.push('\\');
        }
        out.push(character);
    }
    out.push('"');
}
