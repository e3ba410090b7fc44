//! `signet explain`: why a request would be, or was, allowed or refused.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use signet_identity::SpiffeId;
use signet_policy::{
    Decision, Facts, Layer, Origin, PolicyIndex, PolicyModel, RequestHeaders, compile, explain, unix_seconds,
};
use signet_sync::proto::admin::explain_request::Question;
use signet_sync::proto::admin::{ExplainRequest, Header, Hypothetical};

use super::validate::parse;
use crate::client::{ControlPlane, answered, found};
use crate::manifests;
use crate::output::{Failure, Format, Verdict, print_json, print_line, text_or_json};

/// A host that is no workload's name, for whoever asks without one.
const AUTHORITY: &str = "localhost";

/// Tells which rule allows or refuses a request, and why the others do not
///
/// Exit code 0 means allowed, 1 refused or not found.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signet explain 7c9e6679f0ac            a request that happened, by the id in its answer
  signet explain --from gateway --to store --port 8080 --method GET --path /api/device
  signet explain --from gateway --to database --port 5432 --opaque -f policies/
  signet explain --from lm --to cimi --port 8201 --header 'x-tenant: blue' --source-address 10.0.0.7 --at 2026-03-31T18:00:00Z")]
pub(crate) struct Explain {
    /// Id of a past request
    #[arg(required_unless_present = "to", conflicts_with_all = ["to", "from", "files"])]
    request_id: Option<String>,
    /// Caller: workload name or SPIFFE ID; left out: a caller outside the mesh
    #[arg(long, requires = "to", value_name = "ID")]
    from: Option<String>,
    /// Workload called: name or SPIFFE ID
    #[arg(long, requires = "port", value_name = "WORKLOAD")]
    to: Option<String>,
    /// Port of the workload
    #[arg(long, requires = "to", value_name = "N")]
    port: Option<u16>,
    /// HTTP method
    #[arg(long, default_value = "GET", value_name = "METHOD")]
    method: String,
    /// Path; a query does not matter
    #[arg(long, default_value = "/", value_name = "PATH")]
    path: String,
    /// Host that the request names
    #[arg(long, default_value = AUTHORITY, value_name = "HOST")]
    authority: String,
    /// A header field of the request; may be repeated
    #[arg(long = "header", value_name = "NAME: VALUE")]
    headers: Vec<Field>,
    /// Not HTTP
    #[arg(long, conflicts_with_all = ["method", "path", "authority", "headers"])]
    opaque: bool,
    /// Where the connection comes from; left out: conditions on it are taken as met by what allows, as the caller's own
    /// sidecar takes them
    #[arg(long, requires = "to", value_name = "ADDRESS")]
    source_address: Option<IpAddr>,
    /// When, such as 2026-03-31T18:00:00Z; left out: now
    #[arg(long, requires = "to", value_name = "TIME")]
    at: Option<Moment>,
    /// Answer from these manifests, without a control plane
    #[arg(short = 'f', long = "filename", requires = "to", value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    control_plane: ControlPlane,
}

/// `name: value`.
#[derive(Debug, Clone)]
struct Field(String, String);

impl FromStr for Field {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').ok_or("write it as `name: value`")?;
        Ok(Self(name.trim().to_owned(), value.trim().to_owned()))
    }
}

/// Seconds since 1970.
#[derive(Debug, Clone, Copy)]
struct Moment(u64);

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = unix_seconds(text).map(Self);
        read.ok_or_else(|| "write it such as 2026-03-31T18:00:00Z, or with +02:00 for Z".to_owned())
    }
}

impl Explain {
    pub(crate) async fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        if self.files.is_empty() { self.ask(format).await } else { self.work_out(format) }
    }

    async fn ask(self, format: Format) -> Result<Verdict, Failure> {
        let mut client = self.control_plane.connect().await?;
        let is_past = self.request_id.is_some();
        let response = client.explain(ExplainRequest { question: Some(self.question()) }).await;
        let answer = if is_past { found(response)? } else { Some(answered(response)?) };
        let Some(answer) = answer else {
            let reason = "no proxy remembers that request: each keeps its latest few";
            return match format {
                Format::Json => print_json(&serde_json::json!({ "found": false, "reason": reason })),
                _ => print_line(reason),
            }
            .map(|()| Verdict::No);
        };
        let value: Value = serde_json::from_str(&answer.json).map_err(|error| {
            Failure::Internal(format!("control plane sent an explanation that is not JSON: {error}"))
        })?;
        match format {
            Format::Json => print_json(&value)?,
            _ => print_line(answer.text.trim_end())?,
        }
        // What a past request met need not be a policy decision; that it was found is the answer then.
        let outcome = value.pointer("/decision/outcome").and_then(Value::as_str);
        Ok(Verdict::of(outcome.map_or(is_past, |outcome| outcome == "allowed")))
    }

    fn question(self) -> Question {
        if let Some(request_id) = self.request_id {
            return Question::RequestId(request_id);
        }
        Question::Hypothetical(Hypothetical {
            source: self.from.unwrap_or_default(),
            destination: self.to.unwrap_or_default(),
            port: u32::from(self.port.unwrap_or_default()),
            method: self.method,
            path: without_query(&self.path).to_owned(),
            authority: self.authority,
            opaque: self.opaque,
            headers: self.headers.into_iter().map(|Field(name, value)| Header { name, value }).collect(),
            source_address: self.source_address.map(|address| address.to_string()).unwrap_or_default(),
            at: self.at.map_or(0, |Moment(at)| at),
        })
    }

    fn work_out(self, format: Format) -> Result<Verdict, Failure> {
        let (manifests, mut diagnostics) = parse(&manifests::read(&self.files)?);
        let model = if diagnostics.is_empty() {
            compile(&manifests).map_err(|wrong| diagnostics = wrong).ok()
        } else {
            None
        };
        let Some(model) = model else {
            let lines: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
            return Err(Failure::Usage(lines.join("\n")));
        };
        let source = self.from.as_deref().map(|name| identity(&model, name)).transpose()?;
        let destination = identity(&model, self.to.as_deref().unwrap_or_default())?;
        let port = self.port.unwrap_or_default();
        let fields = self.headers.iter().map(|Field(name, value)| (name.as_str(), value.as_bytes()));
        let headers = RequestHeaders::new(fields);
        let layer = if self.opaque {
            Layer::Opaque
        } else {
            Layer::Http {
                method: &self.method,
                path: without_query(&self.path),
                authority: &self.authority,
                headers: Some(&headers),
            }
        };
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let facts = Facts {
            source: source.as_ref(),
            origin: self.source_address.map_or(Origin::LeftToDestination, Origin::Seen),
            destination: &destination,
            port,
            layer,
            now: self.at.map_or_else(clock, |Moment(at)| at),
        };
        let explanation = explain(&PolicyIndex::new(&model), &facts);
        match format {
            Format::Json => print_json(&explanation)?,
            _ => print_line(explanation.to_string().trim_end())?,
        }
        Ok(Verdict::of(matches!(explanation.decision, Decision::Allowed { .. })))
    }
}

fn without_query(path: &str) -> &str {
    path.split('?').next().unwrap_or(path)
}

/// A workload's identity by its name, or the SPIFFE ID itself.
fn identity(model: &PolicyModel, name: &str) -> Result<SpiffeId, Failure> {
    if name.starts_with("spiffe://") {
        return SpiffeId::parse(name).map_err(|error| Failure::Usage(format!("{name}: {error}")));
    }
    match model.workload_named(name) {
        Some(workload) => Ok(workload.id.clone()),
        None => Err(Failure::Usage(format!(
            "{} is neither a Workload nor a SPIFFE ID; {}",
            name.escape_debug(),
            model.workload_hint(name)
        ))),
    }
}
