//! `signet coverage`: what the mesh does not protect yet.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use signet_policy::{Exposure, PolicyModel, compile, coverage};
use signet_sync::proto::admin::{
    Edge, GetRequest, Item, ListEdgesRequest, ListEdgesResponse, ListProxiesRequest, Proxy, Unprotected,
};

use super::validate::parse;
use crate::client::{ControlPlane, answered};
use crate::manifests::{self, ManifestText};
use crate::output::{Failure, Format, Verdict, print_json, print_line, text_or_json};

/// Lists ports that take plaintext or unsigned messages or have no enforced rule, workloads without a sidecar, and the
/// edges on which something went past the protection of those that have one
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
        let (model, seen) = if self.files.is_empty() {
            let (model, seen) = self.ask().await?;
            (model, Some(seen))
        } else {
            (model(&manifests::read(&self.files)?)?, None)
        };
        let (proxies, edges) = seen.unzip();
        let ListEdgesResponse { edges, lost } = edges.unwrap_or_default();
        let exposures = coverage(&model);
        let bare = proxies.as_ref().map(|proxies| without_sidecar(&model, proxies)).unwrap_or_default();
        let passed: Vec<(&Proxy, Unprotected)> = proxies.iter().flatten().filter_map(unprotected).collect();
        let nothing =
            exposures.is_empty() && bare.is_empty() && passed.is_empty() && edges.is_empty() && lost == 0;
        if format == Format::Json {
            let passed: Vec<_> = passed.iter().map(|(proxy, counted)| fields(proxy, counted)).collect();
            print_json(&json!({
                "covered": nothing,
                "ports": exposures,
                "withoutSidecar": bare,
                "edges": edges.iter().map(edge_fields).collect::<Vec<_>>(),
                "edgesLost": lost,
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
        print_edges(&edges, lost)?;
        if nothing {
            print_line("✓ every port is encrypted, signed and decided on by a rule")?;
        }
        Ok(Verdict::of(nothing))
    }

    /// The stored policy, and what the sidecars have seen.
    async fn ask(&self) -> Result<(PolicyModel, (Vec<Proxy>, ListEdgesResponse)), Failure> {
        let mut client = self.control_plane.connect().await?;
        let items = answered(client.get(GetRequest::default()).await)?.items;
        if items.is_empty() {
            return Err(Failure::Usage("nothing is stored yet; apply some manifests first".to_owned()));
        }
        let model = compiled(items)?;
        let proxies = answered(client.list_proxies(ListProxiesRequest {}).await)?.proxies;
        let edges = answered(client.list_edges(ListEdgesRequest {}).await)?;
        Ok((model, (proxies, edges)))
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

fn edge_fields(edge: &Edge) -> serde_json::Value {
    let missing: serde_json::Map<_, _> =
        missing(edge).map(|(gap, count)| (gap.to_owned(), count.into())).collect();
    let mut fields = json!({
        "source": edge.source,
        "destination": edge.destination,
        "port": edge.port,
        "missing": missing,
        "lastSeen": edge.last_seen_ms / 1_000,
    });
    if !edge.outside_name.is_empty() {
        fields["name"] = edge.outside_name.as_str().into();
    }
    fields
}

/// What an edge lacks, and how often it did.
fn missing(edge: &Edge) -> impl Iterator<Item = (&'static str, u64)> {
    let gaps = [("plaintext", edge.plaintext), ("unsigned", edge.unsigned), ("uncovered", edge.uncovered)];
    gaps.into_iter().filter(|(_, count)| *count > 0)
}

/// A table of edges, and whether it is all of them.
fn print_edges(edges: &[Edge], lost: u64) -> Result<(), Failure> {
    if !edges.is_empty() {
        print_line("✗ edges without full protection, since their sidecars started:")?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let head = ["source", "destination", "missing", "last seen"].map(str::to_owned);
    let rows: Vec<[String; 4]> =
        std::iter::once(head).chain(edges.iter().map(|edge| row(edge, now))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let (source, destination, missing) = (width(0), width(1), width(2));
    for [from, to, gaps, seen] in rows.iter().filter(|_| !edges.is_empty()) {
        print_line(format_args!("  {from:source$}  {to:destination$}  {gaps:missing$}  {seen}"))?;
    }
    if lost > 0 {
        print_line(format_args!(
            "✗ {lost} times an edge found no place in that list, or gave it to another"
        ))?;
    }
    Ok(())
}

fn row(edge: &Edge, now: u64) -> [String; 4] {
    let port = u16::try_from(edge.port).unwrap_or_default();
    let mut destination = match edge.destination.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, port).to_string(),
        Err(_) => format!("{}:{port}", edge.destination),
    };
    if !edge.outside_name.is_empty() {
        destination += &format!(" ({})", edge.outside_name);
    }
    let gaps: Vec<String> = missing(edge).map(|(gap, count)| format!("{gap} {count}")).collect();
    let age = now.saturating_sub(edge.last_seen_ms / 1_000);
    [edge.source.clone(), destination, gaps.join(", "), format!("{age} s ago")]
}

/// The policy that stored manifests make up.
pub(super) fn compiled(items: Vec<Item>) -> Result<PolicyModel, Failure> {
    let text = |item: Item| ManifestText { name: format!("{}/{}", item.kind, item.name), text: item.yaml };
    model(&items.into_iter().map(text).collect::<Vec<_>>())
}

fn model(texts: &[ManifestText]) -> Result<PolicyModel, Failure> {
    let (manifests, wrong) = parse(texts);
    let compiled = if wrong.is_empty() { compile(&manifests) } else { Err(wrong) };
    compiled
        .map_err(|wrong| Failure::Usage(wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
}
