//! What is watched, as it is typed.

use std::path::PathBuf;

use clap::Args;
use thiserror::Error;

/// The most words of a command; more is a mistake in quoting.
const WORDS_MAX: usize = 64;

/// What tells of tampering. Every flag can be given as an environment variable.
#[derive(Args, Clone, Debug, Default)]
pub struct TamperArguments {
    /// File that tells of tampering with the device: missing or `0` means none; any other content, or a file that was there
    /// and is gone, ends this program's work and destroys its keys.
    #[arg(long, env = "SIGNET_TAMPER_FILE", value_name = "PATH")]
    pub tamper_file: Option<PathBuf>,
    /// Program that watches the device, with its arguments, separated by blanks: whatever it prints, and its end, means
    /// tampering.
    #[arg(long, env = "SIGNET_TAMPER_COMMAND", value_name = "PROGRAM ARG…")]
    pub tamper_command: Option<String>,
}

/// What is watched; nothing by default.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Settings {
    /// The file.
    pub file: Option<PathBuf>,
    /// Program and arguments; at least one word where there is a command.
    pub command: Option<Vec<String>>,
}

/// A setting that cannot be used.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum SettingsError {
    /// No word, or too many.
    #[error(
        "--tamper-command takes a program and its arguments, separated by blanks, at most {WORDS_MAX} words in all"
    )]
    Command,
}

impl TryFrom<TamperArguments> for Settings {
    type Error = SettingsError;

    fn try_from(raw: TamperArguments) -> Result<Self, SettingsError> {
        let words = raw
            .tamper_command
            .map(|command| command.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>());
        if words.as_ref().is_some_and(|words| !(1..=WORDS_MAX).contains(&words.len())) {
            return Err(SettingsError::Command);
        }
        Ok(Self { file: raw.tamper_file, command: words })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_words_and_needs_one() {
        let read = |command: &str| {
            Settings::try_from(TamperArguments {
                tamper_command: Some(command.to_owned()),
                ..TamperArguments::default()
            })
        };
        let words = read(" gpiomon  --num-events=1 gpiochip0 17 ").unwrap().command.unwrap();
        assert_eq!(words, ["gpiomon", "--num-events=1", "gpiochip0", "17"]);
        assert_eq!(read(" "), Err(SettingsError::Command));
        assert_eq!(read(&"a ".repeat(WORDS_MAX + 1)), Err(SettingsError::Command));
        assert_eq!(Settings::try_from(TamperArguments::default()), Ok(Settings::default()));
    }
}
