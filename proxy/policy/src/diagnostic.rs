//! What is wrong with a manifest, where, and what to write instead.

use std::fmt;

use serde::Serialize;
use serde_saphyr::Spanned;

/// Most diagnostics that one run reports. More would not be read, and input decides how many there are.
pub const MAX_DIAGNOSTICS: usize = 100;

/// Longest piece of offending text that is repeated in a message, in characters.
const MAX_QUOTED_CHARS: usize = 80;

/// One finding in one place. `Display` gives `file:line:column: message; fix: …`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Diagnostic {
    /// The file name the text was given under.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// What is wrong, with the offending text.
    pub message: String,
    /// What to write instead.
    pub fix: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}; fix: {}", self.file, self.line, self.column, self.message, self.fix)
    }
}

/// A line and a column, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Place {
    pub(crate) const START: Self = Self { line: 1, column: 1 };

    /// Where a value is used (not where an anchor defines it): that is the line to change.
    pub(crate) fn of<T>(value: &Spanned<T>) -> Self {
        Self::from_location(value.referenced)
    }

    pub(crate) fn from_location(location: serde_saphyr::Location) -> Self {
        let at_least_one = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).max(1);
        Self { line: at_least_one(location.line()), column: at_least_one(location.column()) }
    }
}

/// The findings of one run, in the order found, up to [`MAX_DIAGNOSTICS`].
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Diagnostic>);

impl Findings {
    pub(crate) fn push(&mut self, file: &str, place: Place, message: String, fix: impl Into<String>) {
        if self.0.len() < MAX_DIAGNOSTICS {
            let Place { line, column } = place;
            self.0.push(Diagnostic { file: file.to_owned(), line, column, message, fix: fix.into() });
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= MAX_DIAGNOSTICS
    }

    pub(crate) fn into_list(self) -> Vec<Diagnostic> {
        self.0
    }

    /// `value` if nothing was found.
    pub(crate) fn into_result<T>(self, value: T) -> Result<T, Vec<Diagnostic>> {
        if self.0.is_empty() { Ok(value) } else { Err(self.0) }
    }
}

/// Offending text in backquotes: cut to a readable length, control characters escaped (a diagnostic goes to a
/// terminal).
pub(crate) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_QUOTED_CHARS).flat_map(show).collect();
    if text.chars().nth(MAX_QUOTED_CHARS).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

fn show(character: char) -> impl Iterator<Item = char> {
    let escape = character.is_control();
    escape.then(|| character.escape_default()).into_iter().flatten().chain((!escape).then_some(character))
}

/// A hint that names the known word closest to a misspelt one, or else the known words.
pub(crate) fn suggestion<'a>(wrong: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    /// So many known words are listed; more do not help.
    const LISTED: usize = 12;
    /// So many known words are compared; a mesh can have thousands of names.
    const COMPARED: usize = 1_000;
    let closest = known
        .clone()
        .take(COMPARED)
        .map(|word| (distance(wrong, word), word))
        .filter(|(distance, word)| *distance * 2 <= word.chars().count())
        .min_by_key(|(distance, _)| *distance);
    if let Some((_, word)) = closest {
        return format!("write {}", quoted(word));
    }
    let mut listed: Vec<String> = known.clone().take(LISTED).map(quoted).collect();
    if known.clone().nth(LISTED).is_some() {
        listed.push("…".to_owned());
    }
    match listed.as_slice() {
        [] => "none is declared yet".to_owned(),
        _ => format!("use one of {}", listed.join(", ")),
    }
}

/// Levenshtein distance; the words are short, and a long wrong word is cut.
fn distance(left: &str, right: &str) -> usize {
    const MAX_COMPARED_CHARS: usize = 64;
    let right: Vec<char> = right.chars().take(MAX_COMPARED_CHARS).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().take(MAX_COMPARED_CHARS).enumerate() {
        let mut diagonal = i;
        let mut before = i + 1;
        for (cell, r) in row.iter_mut().skip(1).zip(&right) {
            // `before` is this row's cell to the left, `*cell` still the one above.
            let value = (diagonal + usize::from(l != *r)).min(before + 1).min(*cell + 1);
            diagonal = *cell;
            *cell = value;
            before = value;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_is_corrected_and_a_strange_one_gets_the_list() {
        let known = ["methods", "paths", "ports"];
        assert_eq!(suggestion("method", known.into_iter()), "write `methods`");
        assert_eq!(suggestion("prots", known.into_iter()), "write `ports`");
        assert_eq!(suggestion("zzz", known.into_iter()), "use one of `methods`, `paths`, `ports`");
        assert_eq!(suggestion("zzz", [].into_iter()), "none is declared yet");
    }

    #[test]
    fn distances_are_right() {
        for (left, right, expected) in
            [("", "", 0), ("a", "", 1), ("", "ab", 2), ("kitten", "sitting", 3), ("abc", "abc", 0)]
        {
            assert_eq!(distance(left, right), expected, "{left} {right}");
        }
    }

    #[test]
    fn quoted_text_is_short_and_harmless() {
        assert_eq!(quoted("a\u{1b}[31mb\n"), "`a\\u{1b}[31mb\\n`");
        assert_eq!(quoted(&"x".repeat(100)).chars().count(), MAX_QUOTED_CHARS + 3);
    }
}
