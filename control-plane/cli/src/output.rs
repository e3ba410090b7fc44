//! What a command leaves behind: text or JSON on standard output, and an exit code.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::ValueEnum;
use serde::Serialize;

/// The form of a command's answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// One JSON value
    Json,
    /// Manifests as they were written (`get` alone)
    Yaml,
}

/// A command's answer, once it could give one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Exit code 64: the manifests are wrong, and the answer says where.
    BadInput,
    /// Exit code 1: invalid, refused, not found, not healthy.
    No,
    /// Exit code 69: the control plane does not answer, and that is a part of the answer.
    Unavailable,
    /// Exit code 0.
    Yes,
}

/// Why a command could give no answer. The texts are for the operator and hold no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Exit code 70: something that should not happen.
    #[error("{0}")]
    Internal(String),
    /// Exit code 69: the control plane, or a facility of this machine, is not there or not for us.
    #[error("{0}")]
    Unavailable(String),
    /// Exit code 64: wrong arguments, or input that cannot be read.
    #[error("{0}")]
    Usage(String),
}

impl Verdict {
    /// `Yes` when it holds.
    pub const fn of(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }

    /// The code the process ends with.
    pub const fn code(self) -> u8 {
        match self {
            Self::BadInput => 64,
            Self::No => 1,
            Self::Unavailable => 69,
            Self::Yes => 0,
        }
    }
}

impl From<Verdict> for ExitCode {
    fn from(verdict: Verdict) -> Self {
        Self::from(verdict.code())
    }
}

impl Failure {
    /// The code the process ends with, as in BSD's sysexits.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Internal(_) => 70,
            Self::Unavailable(_) => 69,
            Self::Usage(_) => 64,
        }
    }

    /// Tells of the failure on standard error and, where JSON was asked for, on standard output too.
    pub(crate) fn report(&self, format: Format) -> ExitCode {
        let mut stderr = io::stderr().lock();
        // With standard error gone there is nobody left to tell.
        let _ = writeln!(stderr, "signet: {self}");
        if format == Format::Json {
            let _ =
                print_json(&serde_json::json!({ "error": self.to_string(), "exit_code": self.exit_code() }));
        }
        ExitCode::from(self.exit_code())
    }
}

/// Refuses a format that a command does not have.
pub(crate) fn text_or_json(format: Format) -> Result<(), Failure> {
    if format == Format::Yaml { Err(Failure::Usage("-o yaml is for `get` alone".to_owned())) } else { Ok(()) }
}

/// Prints a text and a line end.
pub(crate) fn print_line(text: impl fmt::Display) -> Result<(), Failure> {
    print_bytes(format!("{text}\n").as_bytes())
}

/// Prints a value as indented JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Internal(error.to_string()))?;
    print_line(text)
}

/// Prints bytes as they are. A reader that has gone away (`| head`) is no failure.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Internal(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}
