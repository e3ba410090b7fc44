//! `signet uninject`: takes back what `signet inject compose` did.

use std::path::{Path, PathBuf};

use serde_json::json;
use signet_inject::compose::{is_injected, restore};

use super::inject::digest;
use crate::files;
use crate::output::{Failure, Format, Verdict, print_bytes, print_json, text_or_json};

/// Gives Compose files back as they were before `signet inject compose`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  signet uninject --in-place docker-compose.yml\n  signet uninject docker-compose.yml > before.yml\n  signet uninject --in-place -f docker-compose.yml -f docker-compose.override.yml"
)]
pub(crate) struct Uninject {
    /// The injected Compose files, or - for standard input
    #[arg(required_unless_present = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The same, as Compose takes it
    #[arg(short, long, value_name = "FILE", conflicts_with = "files")]
    file: Vec<PathBuf>,
    /// Put the originals in the files' places
    #[arg(long)]
    in_place: bool,
    /// Take back what was added although somebody has changed it since; the changes are lost
    #[arg(long)]
    force: bool,
}

/// What a file was before.
struct Before<'a> {
    path: &'a Path,
    text: String,
    digest: String,
    identical: bool,
}

impl Uninject {
    pub(crate) fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        let paths: Vec<&Path> = self.files.iter().chain(&self.file).map(PathBuf::as_path).collect();
        if paths.len() > 1 && !self.in_place {
            let message = "each of several files is given back by itself; fix: --in-place";
            return Err(Failure::Usage(message.to_owned()));
        }
        let mut all = Vec::with_capacity(paths.len());
        for path in &paths {
            all.extend(self.before(path, paths.len() > 1)?);
        }
        if all.is_empty() {
            return Err(Failure::Usage("none of the files is injected".to_owned()));
        }
        if self.in_place {
            let texts: Vec<(&Path, &[u8])> = all.iter().map(|one| (one.path, one.text.as_bytes())).collect();
            files::replace_all(&texts)?;
        }
        for Before { path, text, digest, identical } in &all {
            if format == Format::Json {
                print_json(&json!({
                    "identical": identical,
                    "original": digest,
                    "compose": (!self.in_place).then_some(text),
                }))?;
                continue;
            }
            if !self.in_place {
                print_bytes(text.as_bytes())?;
            }
            let said = if *identical {
                "byte for byte what it was before"
            } else {
                "what was changed in it since it was injected is kept"
            };
            eprintln!("{}: {said}", path.display());
        }
        Ok(Verdict::Yes)
    }

    /// What a file was; `None` for one of several that injection had nothing to change in.
    fn before<'a>(&self, path: &'a Path, is_one_of_several: bool) -> Result<Option<Before<'a>>, Failure> {
        let name = path.display().to_string();
        files::refuse_stdin_in_place(path, self.in_place)?;
        let text = files::read(path)?;
        if is_one_of_several && !is_injected(&text) {
            eprintln!("{name}: nothing of it was changed");
            return Ok(None);
        }
        let restored = restore(&name, &text).map_err(|fault| Failure::Usage(fault.to_string()))?;
        if !self.force && restored.is_added_changed(&digest) {
            return Err(Failure::Usage(format!(
                "{name}: what stands between the marks was changed since it was injected, and would be lost; fix: put \
                 the changes outside of the marks, or lose them by --force"
            )));
        }
        let identical = digest(restored.text.as_bytes()) == restored.digest;
        Ok(Some(Before { path, text: restored.text, digest: restored.digest, identical }))
    }
}
