//! `signet get`: shows stored manifests.

use serde_json::{Value, json};
use signet_policy::Kind;
use signet_sync::proto::admin::{GetRequest, Item};

use crate::client::{ControlPlane, found};
use crate::output::{Failure, Format, Verdict, print_json, print_line};

/// Shows stored manifests
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  signet get Workload\n  signet get AccessPolicy read-devices -o yaml")]
pub(crate) struct Get {
    /// Mesh, Workload, AccessPolicy, EgressPolicy, Federation, HeaderPolicy, NormalizationPolicy, ProtectionPolicy, RoleAppointer,
    /// RoleGrant or TrafficPolicy; left out: all of them
    kind: Option<Kind>,
    /// Left out: all of the kind
    #[arg(requires = "kind")]
    name: Option<String>,
    #[command(flatten)]
    control_plane: ControlPlane,
}

impl Get {
    pub(crate) async fn run(self, format: Format) -> Result<Verdict, Failure> {
        let request = GetRequest {
            kind: self.kind.map(|kind| kind.to_string()).unwrap_or_default(),
            name: self.name.clone().unwrap_or_default(),
        };
        let mut client = self.control_plane.connect().await?;
        let response = found(client.get(request).await)?.unwrap_or_default();
        match format {
            Format::Json => print_json(&as_json(response.revision, &response.items)?)?,
            Format::Text => print_table(&response.items)?,
            Format::Yaml => {
                for item in &response.items {
                    print_line(format_args!("---\n{}", item.yaml.trim_start_matches("---\n").trim_end()))?;
                }
            }
        }
        // An empty list is an answer; a name that is not there is a no.
        Ok(Verdict::of(self.name.is_none() || !response.items.is_empty()))
    }
}

fn as_json(revision: u64, items: &[Item]) -> Result<Value, Failure> {
    let items: Vec<Value> =
        items.iter().map(|item| serde_json::from_str(&item.json)).collect::<Result<_, _>>().map_err(
            |error| Failure::Internal(format!("control plane sent an item that is not JSON: {error}")),
        )?;
    Ok(json!({ "revision": revision, "items": items }))
}

fn print_table(items: &[Item]) -> Result<(), Failure> {
    let width = items.iter().map(|item| item.kind.len()).max().unwrap_or_default();
    for item in items {
        print_line(format_args!("{:width$}  {}", item.kind, item.name))?;
    }
    if items.is_empty() { print_line("nothing is stored under that name") } else { Ok(()) }
}
