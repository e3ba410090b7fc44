//! `signet apply`: stores manifests in the control plane, all of them or none.

use serde_json::{Value, json};
use signet_sync::proto::admin::{
    ApplyRequest, ApplyResponse, Change, ChangeAction, Diagnostic, ManifestFile,
};

use crate::client::{ControlPlane, answered};
use crate::manifests::Manifests;
use crate::output::{Failure, Format, Verdict, print_json, print_line, text_or_json};

/// Stores manifests: all of them or, when any is wrong, none
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  signet apply -f policies/\n  signet apply -f mesh.yaml --dry-run -o json"
)]
pub(crate) struct Apply {
    #[command(flatten)]
    manifests: Manifests,
    /// Check and tell what would change, without storing it
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    control_plane: ControlPlane,
}

impl Apply {
    pub(crate) async fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        let files = self.manifests.read()?;
        let files = files.into_iter().map(|file| ManifestFile { name: file.name, text: file.text }).collect();
        let mut client = self.control_plane.connect().await?;
        let response = answered(client.apply(ApplyRequest { files, dry_run: self.dry_run }).await)?;
        show(format, &response, self.dry_run)
    }
}

/// Shows what a change did.
pub(super) fn show(format: Format, response: &ApplyResponse, dry_run: bool) -> Result<Verdict, Failure> {
    let ApplyResponse { revision, changes, diagnostics, notes, version } = response;
    // Diagnostics mean that nothing was stored, and that the input is to blame.
    let verdict = if diagnostics.is_empty() { Verdict::Yes } else { Verdict::BadInput };
    if format == Format::Json {
        print_json(&json!({
            "stored": diagnostics.is_empty() && !dry_run,
            "dry_run": dry_run,
            "revision": revision,
            "version": version,
            "changes": changes.iter().map(|change| json!({
                "kind": change.kind,
                "name": change.name,
                "action": word(change),
                "diff": change.diff,
            })).collect::<Vec<_>>(),
            "diagnostics": diagnostics.iter().map(fields).collect::<Vec<_>>(),
            "notes": notes.iter().map(fields).collect::<Vec<_>>(),
        }))?;
        return Ok(verdict);
    }
    for diagnostic in diagnostics {
        let Diagnostic { file, line, column, message, fix } = diagnostic;
        print_line(format_args!("{file}:{line}:{column}: {message}; fix: {fix}"))?;
    }
    for change in changes.iter().filter(|_| diagnostics.is_empty()) {
        let would = if dry_run { " (dry run)" } else { "" };
        print_line(format_args!("{}/{} {}{would}", change.kind, change.name, word(change)))?;
        // What is new is in the file that was applied.
        if change.action() == ChangeAction::Updated {
            print_diff(&change.diff)?;
        }
    }
    for Diagnostic { file, line, column, message, fix } in notes {
        print_line(format_args!("note: {file}:{line}:{column}: {message}; fix: {fix}"))?;
    }
    if verdict == Verdict::BadInput {
        print_line("nothing was changed")?;
    } else if !dry_run && changes.iter().any(|change| change.action() != ChangeAction::Unchanged) {
        print_line(format_args!("version {version}; `signet rollback` undoes it"))?;
    }
    Ok(verdict)
}

fn print_diff(diff: &str) -> Result<(), Failure> {
    for line in diff.lines() {
        // Manifests are text of people, and go to a terminal.
        let shown: String =
            line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect();
        print_line(format_args!("    {shown}"))?;
    }
    Ok(())
}

fn fields(diagnostic: &Diagnostic) -> Value {
    json!({
        "file": diagnostic.file,
        "line": diagnostic.line,
        "column": diagnostic.column,
        "message": diagnostic.message,
        "fix": diagnostic.fix,
    })
}

pub(super) fn word(change: &Change) -> &'static str {
    match change.action() {
        ChangeAction::Created => "created",
        ChangeAction::Updated => "updated",
        ChangeAction::Unchanged => "unchanged",
        ChangeAction::Deleted => "deleted",
        ChangeAction::Unspecified => "changed",
    }
}
