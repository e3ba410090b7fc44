//! `signet rollback` and `signet history`: versions of the manifests, and back to one of them.

use serde_json::json;
use signet_policy::rfc3339;
use signet_sync::proto::admin::{
    ApplyResponse, Change, HistoryRequest, PastVersion, RollbackRequest, RollbackResponse,
};

use super::apply::{show, word};
use crate::client::{ControlPlane, answered, found};
use crate::output::{Failure, Format, Verdict, print_json, print_line, text_or_json};

/// Makes the stored manifests what they were at a version
///
/// It is a change like any other: checked, all or nothing, and with a version of its own, so it can be undone too.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signet rollback               undoes the last change
  signet rollback 12 --dry-run  tells what going back to version 12 would change

`signet history` lists the versions.")]
pub(crate) struct Rollback {
    /// Version; left out: the one before the one in force
    // `version` is the name of the option that every command has.
    #[arg(id = "to", value_name = "VERSION")]
    version: Option<u64>,
    /// Tell what would change, without doing it
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    control_plane: ControlPlane,
}

impl Rollback {
    pub(crate) async fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        let mut client = self.control_plane.connect().await?;
        let request = RollbackRequest { version: self.version, dry_run: self.dry_run };
        let Some(response) = found(client.rollback(request).await)? else {
            let which = match self.version {
                Some(version) => format!("version {version} is not kept"),
                None => "there is no version to go back to".to_owned(),
            };
            let reason = format!("{which}; `signet history` lists those that are kept");
            return match format {
                Format::Json => print_json(&json!({ "stored": false, "reason": reason })),
                _ => print_line(&reason),
            }
            .map(|()| Verdict::No);
        };
        let RollbackResponse { revision, changes, diagnostics, version } = response;
        let response = ApplyResponse { revision, changes, diagnostics, notes: Vec::new(), version };
        show(format, &response, self.dry_run)
    }
}

/// Lists the versions of the manifests that can be gone back to, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  signet history\n  signet history -o json")]
pub(crate) struct History {
    #[command(flatten)]
    control_plane: ControlPlane,
}

impl History {
    pub(crate) async fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        let mut client = self.control_plane.connect().await?;
        let versions = answered(client.history(HistoryRequest {}).await)?.versions;
        if format == Format::Json {
            print_json(&json!({ "versions": versions.iter().map(fields).collect::<Vec<_>>() }))?;
            return Ok(Verdict::Yes);
        }
        for version in &versions {
            print_line(format_args!("version {}, {}", version.version, rfc3339(version.at)))?;
            for change in &version.changes {
                print_line(format_args!("    {}/{} {}", change.kind, change.name, word(change)))?;
            }
            if version.more > 0 {
                print_line(format_args!("    and {} more", version.more))?;
            }
        }
        if versions.is_empty() {
            print_line("nothing was changed yet")?;
        }
        Ok(Verdict::Yes)
    }
}

fn fields(version: &PastVersion) -> serde_json::Value {
    let change =
        |change: &Change| json!({ "kind": change.kind, "name": change.name, "action": word(change) });
    json!({
        "version": version.version,
        "at": version.at,
        "time": rfc3339(version.at),
        "changes": version.changes.iter().map(change).collect::<Vec<_>>(),
        "more": version.more,
    })
}
