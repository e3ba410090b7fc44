//! `signet revoke`: takes trust back before a certificate ends.

use serde_json::json;
use signet_identity::{Fingerprint, SpiffeId};
use signet_sync::proto::admin::revocation::Subject as Listed;
use signet_sync::proto::admin::revoke_request::Subject;
use signet_sync::proto::admin::{
    LiftRevocationRequest, ListRevocationsRequest, ListRevocationsResponse, Revocation, RevokeRequest,
};

use crate::client::{ControlPlane, answered, found};
use crate::output::{Failure, Format, Verdict, print_json, print_line, text_or_json};

/// Takes trust back from an identity, or from the one instance that holds a certificate
///
/// An instance loses all certificates it holds, for TLS and for signing, the right to renew, and the token it enrolled
/// with; others of the same identity go on. Connected proxies end their connections with it at once. To let it in again
/// make a new token; for an identity, lift its revocation first: what it held before stays revoked.
///
/// Exit codes: 0 revoked or lifted, 1 nothing to lift, 64 not an identity or fingerprint, 69 control plane not available.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signet revoke --identity spiffe://mesh.example/app/d1/store --reason 'device stolen'
  signet revoke --certificate 5r0GmAYvRbRGNt6gkOJNy0hpYh8ScvkNjUIPFhjBpKs --reason 'key copied'
  signet revoke --lift --identity spiffe://mesh.example/app/d1/store
  signet revoke --list

`signet check -o json` shows the fingerprint of each instance.")]
pub(crate) struct Revoke {
    #[command(flatten)]
    subject: Which,
    /// Why, for whoever looks later
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["lift", "list"])]
    reason: Option<String>,
    /// Lets the identity enrol again, with a new token
    #[arg(long, requires = "identity", conflicts_with = "reason")]
    lift: bool,
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
    /// Show what is revoked
    #[arg(long, conflicts_with_all = ["reason", "lift"])]
    list: bool,
}

impl Revoke {
    pub(crate) async fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        if self.subject.list {
            return list(&self.control_plane, format).await;
        }
        if let (true, Some(id)) = (self.lift, &self.subject.identity) {
            return lift(&self.control_plane, id, format).await;
        }
        let (shown, subject) = match (self.subject.identity, self.subject.certificate) {
            (Some(id), _) => (id.to_string(), Subject::SpiffeId(id.to_string())),
            (None, Some(leaf)) => (leaf.to_string(), Subject::Fingerprint(leaf.to_string())),
            (None, None) => return Err(Failure::Usage("say what to revoke".to_owned())),
        };
        let mut client = self.control_plane.connect().await?;
        let request = RevokeRequest { subject: Some(subject), reason: self.reason.unwrap_or_default() };
        let revision = answered(client.revoke(request).await)?.revision;
        match format {
            Format::Json => print_json(&json!({ "revoked": shown, "revision": revision }))?,
            _ => print_line(format_args!("{shown} is revoked"))?,
        }
        Ok(Verdict::Yes)
    }
}

async fn lift(control_plane: &ControlPlane, id: &SpiffeId, format: Format) -> Result<Verdict, Failure> {
    let mut client = control_plane.connect().await?;
    let request = LiftRevocationRequest { spiffe_id: id.to_string() };
    let lifted = found(client.lift_revocation(request).await)?;
    match (&lifted, format) {
        (_, Format::Json) => {
            let revision = lifted.as_ref().map(|lifted| lifted.revision);
            print_json(
                &json!({ "lifted": lifted.is_some(), "identity": id.to_string(), "revision": revision }),
            )?;
        }
        (Some(_), _) => print_line(format_args!(
            "{id} may enrol again, with a new token: what it held before stays revoked"
        ))?,
        (None, _) => print_line(format_args!("{id} is not revoked"))?,
    }
    Ok(Verdict::of(lifted.is_some()))
}

async fn list(control_plane: &ControlPlane, format: Format) -> Result<Verdict, Failure> {
    let mut client = control_plane.connect().await?;
    let ListRevocationsResponse { revocations, more } =
        answered(client.list_revocations(ListRevocationsRequest {}).await)?;
    let name = |revocation: &Revocation| match &revocation.subject {
        Some(Listed::SpiffeId(text) | Listed::Fingerprint(text)) => text.clone(),
        None => String::new(),
    };
    if format == Format::Json {
        let fields = revocations.iter().map(|revocation| {
            json!({
                "subject": name(revocation),
                "reason": revocation.reason,
                "revoked_at": revocation.revoked_at,
                "expires": Some(revocation.expires).filter(|expires| *expires > 0),
                "tampered": Some(&revocation.tampered).filter(|id| !id.is_empty()),
            })
        });
        print_json(&json!({ "revocations": fields.collect::<Vec<_>>(), "more": more }))?;
        return Ok(Verdict::Yes);
    }
    for revocation in &revocations {
        let Revocation { reason, revoked_at, tampered, .. } = revocation;
        let of = if tampered.is_empty() { String::new() } else { format!(" of {tampered}") };
        print_line(format_args!(
            "{}{of} at {revoked_at} s since 1970: {}",
            name(revocation),
            reason.escape_debug()
        ))?;
    }
    if more > 0 {
        print_line(format_args!("and {more} more"))?;
    }
    if revocations.is_empty() {
        print_line("nothing is revoked")?;
    }
    Ok(Verdict::Yes)
}
