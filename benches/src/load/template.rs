//! Configuration files and command lines with `{{places}}` to fill.

use std::collections::BTreeMap;

/// Values by name.
pub type Values = BTreeMap<String, String>;

/// Why a template cannot be filled.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TemplateError {
    /// A place that does not end.
    #[error("{{{{ without }}}} after {0:?}")]
    Unclosed(String),
    /// Nothing is called so.
    #[error("nothing is called {{{{{0}}}}}")]
    Unknown(String),
}

/// How much of the text before an unclosed place is shown.
const SHOWN: usize = 40;

/// Fills every place.
///
/// # Errors
/// A name that has no value, an end that is missing.
pub fn fill(template: &str, values: &Values) -> Result<String, TemplateError> {
    let (mut filled, mut rest) = (String::with_capacity(template.len()), template);
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((name, tail)) = after.split_once("}}") else {
            let skipped = before.chars().count().saturating_sub(SHOWN);
            return Err(TemplateError::Unclosed(before.chars().skip(skipped).collect()));
        };
        let name = name.trim();
        filled += before;
        filled += values.get(name).ok_or_else(|| TemplateError::Unknown(name.into()))?;
        rest = tail;
    }
    Ok(filled + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_filled_and_single_braces_are_left_alone() {
        let values = Values::from([("a".into(), "1".into()), ("b.c".into(), "2".into())]);
        assert_eq!(fill("x {{a}} { y; } {{ b.c }}{{a}}", &values).unwrap(), "x 1 { y; } 21");
    }

    #[test]
    fn unknown_and_unclosed_places_are_refused() {
        let values = Values::new();
        assert_eq!(fill("{{a}}", &values), Err(TemplateError::Unknown("a".into())));
        assert_eq!(fill("x {{a", &values), Err(TemplateError::Unclosed("x ".into())));
    }
}
