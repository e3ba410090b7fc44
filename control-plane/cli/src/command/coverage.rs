//! `signet coverage`: what the mesh does not protect yet.

use std::collections::HashSet;
use std::path::PathBuf;

use serde_json::json;
use signet_policy::{Exposure, PolicyModel, compile, coverage};
use signet_sync::proto::admin::{GetRequest, ListProxiesRequest, Proxy, Unprotected};

use super::validate::parse;
use crate::client::{ControlPlane, answered};
use crate::manifests::{self, ManifestText};
use crate::output::{Failure, Format, Verdict, print_json, print_line, text_or_json};

/// Lists ports that take plaintext or unsigned messages or have no enforced rule, workloads without a sidecar, and what
/// went past the protection of those that have one
///
/// Exit code 0 means that there is nothing to list, 1 that there is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  signet coverage\n  signet coverage -f policies/ -o json")]
pub(crate) struct Coverage {
    /// Look at these manifests instead of the stored ones, and at no sidecars
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    control_plane: ControlPlane,
}

impl Coverage {
    pub(crate) async fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        let (model, proxies) = if self.files.is_empty() {
            let (model, proxies) = self.ask().await?;
            (model, Some(proxies))
        } else {
            (model(&manifests::read(&self.files)?)?, None)
        };
        let exposures = coverage(&model);
        let bare = proxies.as_ref().map(|proxies| without_sidecar(&model, proxies)).unwrap_or_default();
        let passed: Vec<(&Proxy, Unprotected)> = proxies.iter().flatten().filter_map(unprotected).collect();
        let nothing = exposures.is_empty() && bare.is_empty() && passed.is_empty();
        if format == Format::Json {
            let passed: Vec<_> = passed.iter().map(|(proxy, counted)| fields(proxy, counted)).collect();
            print_json(&json!({
                "covered": nothing,
                "ports": exposures,
                "withoutSidecar": bare,
                "unprotected": passed,
            }))?;
            return Ok(Verdict::of(nothing));
        }
        for Exposure { workload, port, gaps } in &exposures {
            let port = port.map_or_else(|| "every port".to_owned(), |port| format!("port {port}"));
            let gaps: Vec<String> = gaps.iter().map(ToString::to_string).collect();
            print_line(format_args!("✗ {workload}, {port}: {}", gaps.join("; ")))?;
        }
        for workload in &bare {
            print_line(format_args!("✗ {workload}: no sidecar is connected"))?;
        }
        for (proxy, counted) in &passed {
            print_line(format_args!("✗ {}, since its start: {}", proxy.spiffe_id, in_words(counted)))?;
        }
        if nothing {
            print_line("✓ every port is encrypted, signed and decided on by a rule")?;
        }
        Ok(Verdict::of(nothing))
    }

    /// The stored policy, and the sidecars.
    async fn ask(&self) -> Result<(PolicyModel, Vec<Proxy>), Failure> {
        let mut client = self.control_plane.connect().await?;
        let items = answered(client.get(GetRequest::default()).await)?.items;
        if items.is_empty() {
            return Err(Failure::Usage("nothing is stored yet; apply some manifests first".to_owned()));
        }
        let text = |item: signet_sync::proto::admin::Item| ManifestText {
            name: format!("{}/{}", item.kind, item.name),
            text: item.yaml,
        };
        let model = model(&items.into_iter().map(text).collect::<Vec<_>>())?;
        let proxies = answered(client.list_proxies(ListProxiesRequest {}).await)?.proxies;
        Ok((model, proxies))
    }
}

/// The workloads that no connected sidecar is for.
fn without_sidecar(model: &PolicyModel, proxies: &[Proxy]) -> Vec<String> {
    let connected: HashSet<&str> =
        proxies.iter().filter(|proxy| proxy.connected).map(|proxy| proxy.spiffe_id.as_str()).collect();
    let bare = model.workloads.iter().filter(|workload| !connected.contains(workload.id.as_str()));
    bare.map(|workload| workload.name.clone()).collect()
}

/// A sidecar that something went past.
fn unprotected(proxy: &Proxy) -> Option<(&Proxy, Unprotected)> {
    let counted = proxy.status.as_ref()?.unprotected?;
    (counted != Unprotected::default()).then_some((proxy, counted))
}

fn in_words(counted: &Unprotected) -> String {
    let table = [
        (counted.plaintext_in, "plaintext connections in"),
        (counted.plaintext_out, "plaintext connections out"),
        (counted.unsigned_requests, "unsigned requests received"),
        (counted.unsigned_responses, "unsigned responses received"),
        (counted.observed_refusals, "exchanges that an observed policy would refuse"),
    ];
    let some = table.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    some.collect::<Vec<_>>().join(", ")
}

fn fields(proxy: &Proxy, counted: &Unprotected) -> serde_json::Value {
    json!({
        "spiffeId": proxy.spiffe_id,
        "instance": proxy.instance,
        "plaintextIn": counted.plaintext_in,
        "plaintextOut": counted.plaintext_out,
        "unsignedRequests": counted.unsigned_requests,
        "unsignedResponses": counted.unsigned_responses,
        "observedRefusals": counted.observed_refusals,
    })
}

fn model(texts: &[ManifestText]) -> Result<PolicyModel, Failure> {
    let (manifests, wrong) = parse(texts);
    let compiled = if wrong.is_empty() { compile(&manifests) } else { Err(wrong) };
    compiled
        .map_err(|wrong| Failure::Usage(wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
}
