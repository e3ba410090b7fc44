//! `signet revoke`: takes trust back before a certificate ends.

use serde_json::json;
use signet_identity::{Fingerprint, SpiffeId};
use signet_sync::proto::admin::RevokeRequest;
use signet_sync::proto::admin::revoke_request::Subject;

use crate::client::{ControlPlane, answered};
use crate::output::{Failure, Format, Verdict, print_json, print_line, text_or_json};

/// Takes trust back from an identity, or from the one instance that holds a certificate; for good
///
/// An instance loses all certificates it holds, for TLS and for signing, and the right to renew; others of the same
/// identity go on. Connected proxies end their connections with it at once.
///
/// Exit codes: 0 revoked, 64 not an identity or fingerprint, 69 control plane not available.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signet revoke --identity spiffe://mesh.example/app/d1/store --reason 'device stolen'
  signet revoke --certificate 5r0GmAYvRbRGNt6gkOJNy0hpYh8ScvkNjUIPFhjBpKs --reason 'key copied'

`signet check -o json` shows the fingerprint of each instance.")]
pub(crate) struct Revoke {
    #[command(flatten)]
    subject: Which,
    /// Why, for whoever looks later
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    control_plane: ControlPlane,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// SPIFFE ID: nobody may hold it any more, nor enrol as it
    #[arg(long, value_name = "ID")]
    identity: Option<SpiffeId>,
    /// Fingerprint of a leaf certificate of the instance, TLS or signing: base64url of its SHA-256
    // A fingerprint may begin with a hyphen.
    #[arg(long, value_name = "FINGERPRINT", allow_hyphen_values = true)]
    certificate: Option<Fingerprint>,
}

impl Revoke {
    pub(crate) async fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        let (shown, subject) = match (self.subject.identity, self.subject.certificate) {
            (Some(id), _) => (id.to_string(), Subject::SpiffeId(id.to_string())),
            (None, Some(leaf)) => (leaf.to_string(), Subject::Fingerprint(leaf.to_string())),
            (None, None) => return Err(Failure::Usage("say what to revoke".to_owned())),
        };
        let mut client = self.control_plane.connect().await?;
        let request = RevokeRequest { subject: Some(subject), reason: self.reason };
        let revision = answered(client.revoke(request).await)?.revision;
        match format {
            Format::Json => print_json(&json!({ "revoked": shown, "revision": revision }))?,
            _ => print_line(format_args!("{shown} is revoked"))?,
        }
        Ok(Verdict::Yes)
    }
}
