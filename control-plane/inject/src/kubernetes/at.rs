//! Typed looks into an object, each with the way there, so that what is wrong is told with its place.
//!
//! A field that is `null` is one that is not there, as for Kubernetes.

use serde_json::Value;

use super::documents::Step;
use super::reason::{InjectError, Reason};

/// A node and the way to it.
#[derive(Clone, Debug)]
pub(super) struct At<'v> {
    value: &'v Value,
    path: Vec<Step>,
    /// Where `kubectl explain` tells of the whole.
    explain: &'static str,
}

impl<'v> At<'v> {
    pub(super) const fn root(value: &'v Value, explain: &'static str) -> Self {
        Self { value, path: Vec::new(), explain }
    }

    /// The field, if it is there.
    pub(super) fn field(&self, name: &str) -> Option<Self> {
        let value = self.value.get(name).filter(|value| !value.is_null())?;
        Some(Self { value, path: self.to(name.into()), explain: self.explain })
    }

    /// The field, if it is there, which has to be a mapping.
    pub(super) fn object(&self, name: &str) -> Result<Option<Self>, InjectError> {
        let field = self.field(name);
        match &field {
            Some(at) if !at.value.is_object() => Err(at.wrong("a mapping")),
            _ => Ok(field),
        }
    }

    /// The entries of a list, which have to be mappings; none if it is not there.
    pub(super) fn objects(&self, name: &str) -> Result<Vec<Self>, InjectError> {
        let entries = self.entries(name)?;
        match entries.iter().find(|entry| !entry.value.is_object()) {
            Some(entry) => Err(entry.wrong("a mapping")),
            None => Ok(entries),
        }
    }

    /// The texts of a list; none if it is not there.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<&'v str>, InjectError> {
        let text = |entry: Self| entry.value.as_str().ok_or_else(|| entry.wrong("a text"));
        self.entries(name)?.into_iter().map(text).collect()
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'v str>, InjectError> {
        self.typed(name, "a text", Value::as_str)
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, InjectError> {
        Ok(self.typed(name, "`true` or `false`", Value::as_bool)?.unwrap_or_default())
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, InjectError> {
        self.typed(name, "a whole number", Value::as_u64)
    }

    /// A port by number.
    pub(super) fn port(&self, name: &str) -> Result<Option<u16>, InjectError> {
        let port = |value: &Value| u16::try_from(value.as_u64()?).ok().filter(|port| *port != 0);
        self.typed(name, "a port", port)
    }

    pub(super) const fn value(&self) -> &'v Value {
        self.value
    }

    /// That this node is not what it has to be.
    pub(super) fn wrong(&self, expected: &'static str) -> InjectError {
        let field = self.path.iter().rev().find_map(|step| match step {
            Step::Field(name) => Some(name.clone()),
            Step::Entry(_) => None,
        });
        let field = field.unwrap_or_else(|| "the document".to_owned());
        self.refuse(Reason::Shape { field, expected, explain: self.explain })
    }

    /// That a field is missing here.
    pub(super) fn missing(&self, name: &str, expected: &'static str) -> InjectError {
        let path = self.to(name.into());
        InjectError {
            path,
            reason: Reason::Shape { field: name.to_owned(), expected, explain: self.explain },
        }
    }

    pub(super) fn refuse(&self, reason: Reason) -> InjectError {
        InjectError::at(&self.path, reason)
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &'static str,
        read: impl FnOnce(&'v Value) -> Option<T>,
    ) -> Result<Option<T>, InjectError> {
        let Some(at) = self.field(name) else { return Ok(None) };
        read(at.value).map(Some).ok_or_else(|| at.wrong(expected))
    }

    fn entries(&self, name: &str) -> Result<Vec<Self>, InjectError> {
        let Some(at) = self.field(name) else { return Ok(Vec::new()) };
        let entries = at.value.as_array().ok_or_else(|| at.wrong("a list"))?;
        let entry = |(number, value)| Self { value, path: at.to(Step::Entry(number)), explain: self.explain };
        Ok(entries.iter().enumerate().map(entry).collect())
    }

    fn to(&self, step: Step) -> Vec<Step> {
        [self.path.as_slice(), &[step]].concat()
    }
}
