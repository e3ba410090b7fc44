//! What is wrong with a Compose file, and where.

use std::fmt;

/// Why a file was refused: its place, what is wrong, and what to do about it. Nothing was written.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub struct Fault {
    /// The file's name, as it was given.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub fix: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}; fix: {}", self.file, self.line, self.message, self.fix)
    }
}

impl Fault {
    pub(super) fn new(file: &str, line: usize, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, message: message.into(), fix: fix.into() }
    }
}
