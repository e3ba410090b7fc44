//! `signet token`: lets a new proxy enrol.

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use signet_policy::rfc3339;
use signet_sync::proto::admin::{
    CreateTokenRequest, DeleteTokenRequest, ListTokensRequest, ListTokensResponse, TokenInfo,
};

use crate::client::{ControlPlane, answered, found};
use crate::output::{Failure, Format, Verdict, print_json, print_line, text_or_json};

/// Makes, lists and withdraws tokens that let a proxy enrol
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  signet token create store --ttl 10m\n  signet token list")]
pub(crate) enum Token {
    Create(Create),
    Delete(Delete),
    List(List),
}

/// Withdraws a token: nobody enrols with it any more
///
/// What enrolled with it stays; `signet revoke` ends that. A token of a prepared mesh (`signet inject compose`) stays
/// withdrawn over restarts. Exit code 1 where there is no such token.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  signet token delete k2m8Qx0aT9fL")]
pub(crate) struct Delete {
    /// Its id, as `signet token list` shows it; what follows a dot is not read
    // An id may begin with a hyphen.
    #[arg(allow_hyphen_values = true)]
    token: String,
    #[command(flatten)]
    control_plane: ControlPlane,
}

/// Lists the tokens that have not expired; never the tokens themselves, which are kept nowhere
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  signet token list\n  signet token list -o json")]
pub(crate) struct List {
    #[command(flatten)]
    control_plane: ControlPlane,
}

/// Makes a token; it is shown once and kept nowhere
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  signet token create store\n  signet token create store --uses 3 --instances 3 --ttl 10m -o json"
)]
pub(crate) struct Create {
    /// Name of a Workload, or its SPIFFE ID
    workload: String,
    /// How often the token may be used
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    uses: u32,
    /// How many instances of the workload there may be
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    instances: u32,
    /// How long the token is good for, such as 90s, 10m, 1h, 2d
    #[arg(long, default_value = "1h", value_parser = duration, value_name = "TIME")]
    ttl: Duration,
    /// Network the proxy will be in; left out: the workload's own
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    network: String,
    #[command(flatten)]
    control_plane: ControlPlane,
}

impl Token {
    pub(crate) async fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        match self {
            Self::Create(create) => create.run(format).await,
            Self::Delete(delete) => delete.run(format).await,
            Self::List(list) => list.run(format).await,
        }
    }
}

impl Create {
    async fn run(self, format: Format) -> Result<Verdict, Failure> {
        let mut client = self.control_plane.connect().await?;
        let request = CreateTokenRequest {
            workload: self.workload,
            network: self.network,
            uses: self.uses,
            instances: self.instances,
            ttl_s: self.ttl.as_secs(),
        };
        let made = answered(client.create_token(request).await)?;
        match format {
            Format::Json => print_json(&json!({
                "token": made.token,
                "id": made.id,
                "spiffe_id": made.spiffe_id,
                "network": made.network,
                "expires": made.expires,
            }))?,
            // Alone on its line, for `SIGNET_TOKEN=$(signet token create …)`.
            _ => print_line(&made.token)?,
        }
        Ok(Verdict::Yes)
    }
}

impl Delete {
    async fn run(self, format: Format) -> Result<Verdict, Failure> {
        // Whoever pastes the whole token is understood; its secret goes no further.
        let id = self.token.split('.').next().unwrap_or_default().to_owned();
        let mut client = self.control_plane.connect().await?;
        let Some(withdrawn) = found(client.delete_token(DeleteTokenRequest { id: id.clone() }).await)? else {
            let reason = format!("there is no token {id}; `signet token list` shows all");
            return match format {
                Format::Json => print_json(&json!({ "withdrawn": false, "reason": reason })),
                _ => print_line(&reason),
            }
            .map(|()| Verdict::No);
        };
        match format {
            Format::Json => {
                print_json(&json!({ "withdrawn": true, "id": id, "spiffe_id": withdrawn.spiffe_id }))?;
            }
            _ => print_line(format_args!("token {id} for {} is withdrawn", withdrawn.spiffe_id))?,
        }
        Ok(Verdict::Yes)
    }
}

impl List {
    async fn run(self, format: Format) -> Result<Verdict, Failure> {
        let mut client = self.control_plane.connect().await?;
        let ListTokensResponse { tokens, more } = answered(client.list_tokens(ListTokensRequest {}).await)?;
        if format == Format::Json {
            print_json(&json!({ "tokens": tokens.iter().map(fields).collect::<Vec<_>>(), "more": more }))?;
            return Ok(Verdict::Yes);
        }
        for TokenInfo { id, spiffe_id, uses, instances, expires, .. } in &tokens {
            let expires = rfc3339(*expires);
            print_line(format_args!(
                "{id}  until {expires}  {uses} uses left, {instances} instances  {spiffe_id}"
            ))?;
        }
        match (tokens.is_empty(), more) {
            (true, _) => print_line("no token is valid")?,
            (false, 0) => {}
            (false, more) => print_line(format_args!("and {more} more"))?,
        }
        Ok(Verdict::Yes)
    }
}

fn fields(token: &TokenInfo) -> serde_json::Value {
    json!({
        "id": token.id,
        "spiffe_id": token.spiffe_id,
        "network": token.network,
        "uses": token.uses,
        "instances": token.instances,
        "expires": token.expires,
    })
}

/// A whole number of seconds, minutes, hours or days; at least a second.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a time such as 90s, 10m, 1h or 2d is needed".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text.strip_suffix(unit).and_then(|digits| digits.parse().ok()).ok_or_else(wrong)?;
    number.checked_mul(seconds).filter(|seconds| *seconds > 0).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_are_not_zero() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        for wrong in ["", "5", "h", "0s", "-1h", "1w", "99999999999999999999s", "18446744073709551615d", "1é"]
        {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
