//! `signet area`: control planes that run as areas under this one.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use signet_policy::rfc3339;
use signet_sync::proto::admin::{AddAreaRequest, Area as Shown, ListAreasRequest, RevokeAreaRequest};

use super::token::duration;
use crate::client::{ControlPlane, answered, found};
use crate::output::{Failure, Format, Verdict, print_json, print_line, text_or_json};

/// Adds, lists and revokes areas: control planes under this one, each for networks of its own
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  signet area add plant --network plant --identities 'agent/*/*' --budget 72h\n  \
                  signet area list\n  signet area revoke plant"
)]
pub(crate) enum Area {
    Add(Add),
    List(List),
    Revoke(Revoke),
}

/// Lets a control plane join as an area; shows its token, which is good once and for a day, and kept nowhere
///
/// The area certifies the identities it is granted and says who is in its networks; nothing else that it says is believed. Cut
/// off, it goes on for its budget. Start it with: signet-control-plane --area NAME --parent HOST:PORT --token-file FILE
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  signet area add plant --network plant --identities 'agent/*/*' --budget 72h > token"
)]
pub(crate) struct Add {
    /// Its name: lower-case letters, digits and hyphens
    name: String,
    /// Networks of the Mesh that are to be the area's alone
    #[arg(long, required = true, value_delimiter = ',', value_name = "NAME")]
    network: Vec<String>,
    /// Identities that it may certify: CLASS/DEVICE/WORKLOAD, each part written out or `*`
    #[arg(long, required = true, value_delimiter = ',', value_name = "PATTERN")]
    identities: Vec<String>,
    /// How long it goes on without this control plane, such as 12h or 3d
    #[arg(long, default_value = "72h", value_parser = duration, value_name = "TIME")]
    budget: Duration,
    #[command(flatten)]
    control_plane: ControlPlane,
}

/// Lists the areas, and those that were revoked until their certificates have ended
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  signet area list\n  signet area list -o json")]
pub(crate) struct List {
    #[command(flatten)]
    control_plane: ControlPlane,
}

/// Ends an area: what it certified counts no more, and its networks are this control plane's again
///
/// Exit code 1 where there is no such area.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  signet area revoke plant")]
pub(crate) struct Revoke {
    /// Its name
    name: String,
    #[command(flatten)]
    control_plane: ControlPlane,
}

impl Area {
    pub(crate) async fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        match self {
            Self::Add(add) => add.run(format).await,
            Self::List(list) => list.run(format).await,
            Self::Revoke(revoke) => revoke.run(format).await,
        }
    }
}

impl Add {
    async fn run(self, format: Format) -> Result<Verdict, Failure> {
        let mut client = self.control_plane.connect().await?;
        let request = AddAreaRequest {
            name: self.name,
            networks: self.network,
            identities: self.identities,
            budget_s: self.budget.as_secs(),
        };
        let made = answered(client.add_area(request).await)?;
        match format {
            Format::Json => print_json(&json!({ "token": made.token, "expires": made.expires }))?,
            // Alone on its line, for a file.
            _ => print_line(&made.token)?,
        }
        Ok(Verdict::Yes)
    }
}

impl List {
    async fn run(self, format: Format) -> Result<Verdict, Failure> {
        let mut client = self.control_plane.connect().await?;
        let areas = answered(client.list_areas(ListAreasRequest {}).await)?.areas;
        if format == Format::Json {
            print_json(&json!({ "areas": areas.iter().map(fields).collect::<Vec<_>>() }))?;
            return Ok(Verdict::Yes);
        }
        if areas.is_empty() {
            print_line("there is no area")?;
        }
        for area in &areas {
            let Shown { name, networks, identities, instances, .. } = area;
            let (networks, identities) = (networks.join(","), identities.join(","));
            print_line(format_args!(
                "{name}  {}  {networks}  {identities}  {instances} instances",
                state(area)
            ))?;
        }
        Ok(Verdict::Yes)
    }
}

impl Revoke {
    async fn run(self, format: Format) -> Result<Verdict, Failure> {
        let mut client = self.control_plane.connect().await?;
        let name = self.name;
        if found(client.revoke_area(RevokeAreaRequest { name: name.clone() }).await)?.is_none() {
            let reason = format!("there is no area {name}; `signet area list` shows all");
            match format {
                Format::Json => print_json(&json!({ "revoked": false, "reason": reason }))?,
                _ => print_line(&reason)?,
            }
            return Ok(Verdict::No);
        }
        match format {
            Format::Json => print_json(&json!({ "revoked": true, "name": name }))?,
            _ => print_line(format_args!("area {name} is revoked"))?,
        }
        Ok(Verdict::Yes)
    }
}

fn state(area: &Shown) -> String {
    match area {
        _ if area.revoked_at > 0 => format!("revoked {}", rfc3339(area.revoked_at)),
        _ if area.not_after == 0 => "not joined".to_owned(),
        _ if area.connected => format!("connected, until {}", rfc3339(area.not_after)),
        _ => format!("on its own, until {}", rfc3339(area.not_after)),
    }
}

fn fields(area: &Shown) -> Value {
    json!({
        "name": area.name,
        "networks": area.networks,
        "identities": area.identities,
        "budget_s": area.budget_s,
        "not_after": area.not_after,
        "connected": area.connected,
        "revoked_at": area.revoked_at,
        "instances": area.instances,
    })
}
