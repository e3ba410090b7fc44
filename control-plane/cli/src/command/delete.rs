//! `signet delete`: removes one manifest from the control plane.

use signet_policy::Kind;
use signet_sync::proto::admin::{ApplyResponse, DeleteRequest, DeleteResponse};

use super::apply::show;
use crate::client::{ControlPlane, found};
use crate::output::{Failure, Format, Verdict, print_json, print_line, text_or_json};

/// Removes a manifest, if what remains still holds together
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  signet delete AccessPolicy read-devices\n  signet delete workload store --dry-run"
)]
pub(crate) struct Delete {
    /// Mesh, Workload, AccessPolicy, EgressPolicy, Federation, HeaderPolicy, NormalizationPolicy, ProtectionPolicy, RoleAppointer,
    /// RoleGrant or TrafficPolicy
    kind: Kind,
    name: String,
    /// Tell what would change, without doing it
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    control_plane: ControlPlane,
}

impl Delete {
    pub(crate) async fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        let mut client = self.control_plane.connect().await?;
        let request =
            DeleteRequest { kind: self.kind.to_string(), name: self.name.clone(), dry_run: self.dry_run };
        let Some(response) = found(client.delete(request).await)? else {
            let reason = format!("{}/{} is not there", self.kind, self.name);
            return match format {
                Format::Json => print_json(&serde_json::json!({ "stored": false, "reason": reason })),
                _ => print_line(reason),
            }
            .map(|()| Verdict::No);
        };
        let DeleteResponse { revision, changes, diagnostics, version } = response;
        let response = ApplyResponse { revision, changes, diagnostics, notes: Vec::new(), version };
        show(format, &response, self.dry_run)
    }
}
