//! `signet token`: lets a new proxy enrol.

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use signet_sync::proto::admin::CreateTokenRequest;

use crate::client::{ControlPlane, answered};
use crate::output::{Failure, Format, Verdict, print_json, print_line, text_or_json};

/// Makes tokens that let a proxy enrol
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  signet token create store --ttl 10m")]
pub(crate) enum Token {
    Create(Create),
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
        let Self::Create(create) = self;
        let mut client = create.control_plane.connect().await?;
        let request = CreateTokenRequest {
            workload: create.workload,
            network: create.network,
            uses: create.uses,
            instances: create.instances,
            ttl_s: create.ttl.as_secs(),
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

/// A whole number of seconds, minutes, hours or days; at least a second.
fn duration(text: &str) -> Result<Duration, String> {
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
