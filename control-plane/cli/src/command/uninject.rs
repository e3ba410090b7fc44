//! `signet uninject`: takes back what `signet inject compose` did.

use std::path::PathBuf;

use serde_json::json;
use signet_inject::compose::restore;

use super::inject::digest;
use crate::files;
use crate::output::{Failure, Format, Verdict, print_bytes, print_json, text_or_json};

/// Gives a Compose file back as it was before `signet inject compose`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  signet uninject --in-place docker-compose.yml\n  signet uninject docker-compose.yml > before.yml"
)]
pub(crate) struct Uninject {
    /// The injected Compose file, or - for standard input
    file: PathBuf,
    /// Put the original in the file's place
    #[arg(long)]
    in_place: bool,
    /// Take back what was added although somebody has changed it since; the changes are lost
    #[arg(long)]
    force: bool,
}

impl Uninject {
    pub(crate) fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        let name = self.file.display().to_string();
        files::refuse_stdin_in_place(&self.file, self.in_place)?;
        let text = files::read(&self.file)?;
        let restored = restore(&name, &text).map_err(|fault| Failure::Usage(fault.to_string()))?;
        if !self.force && restored.is_added_changed(&digest) {
            return Err(Failure::Usage(format!(
                "{name}: what stands between the marks was changed since it was injected, and would be lost; fix: put \
                 the changes outside of the marks, or lose them by --force"
            )));
        }
        let identical = digest(restored.text.as_bytes()) == restored.digest;
        if self.in_place {
            files::replace(&self.file, restored.text.as_bytes(), 0o644)?;
        }
        match format {
            Format::Json => print_json(&json!({
                "identical": identical,
                "original": restored.digest,
                "compose": (!self.in_place).then_some(&restored.text),
            }))?,
            _ => {
                if !self.in_place {
                    print_bytes(restored.text.as_bytes())?;
                }
                let said = if identical {
                    "byte for byte what it was before"
                } else {
                    "what was changed in it since it was injected is kept"
                };
                eprintln!("{name}: {said}");
            }
        }
        Ok(Verdict::Yes)
    }
}
