//! What became of a past request: the records of both ends, and what the rules say of it.

use std::fmt::Write as _;
use std::net::SocketAddr;

use serde_json::{Value, json};
use signet_identity::SpiffeId;
use signet_policy::{Explanation, Facts, Layer, Origin, PolicyIndex, explain};
use signet_sync::proto::admin::ExplainResponse;
use signet_sync::{SectionName, Version};

use crate::publish::Published;
use crate::streams::Answer;

/// The answers of all proxies that remember a request, as one: the fields of the first record that was refused (or,
/// when none was, of the first record), the decision in the form of a hypothetical one, all answers under `proxies`, and
/// under `now` what the policy in force makes of the same request. A proxy's answer is the list of its records.
pub(super) fn joined(request_id: &str, answers: &[Answer], published: &Published) -> ExplainResponse {
    let mut text = format!("request {}\n", request_id.escape_debug());
    let mut proxies = Vec::new();
    for answer in answers {
        for record in records(answer) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {}", line(&answer.spiffe_id, record));
        }
        proxies.push(json!({
            "spiffeId": answer.spiffe_id.as_str(),
            "instance": answer.instance,
            "answer": answer.json.clone().unwrap_or_default(),
        }));
    }
    let all = || answers.iter().flat_map(|answer| records(answer).map(move |record| (answer, record)));
    let leading = all().find(|(_, record)| refusal(record).is_some()).or_else(|| all().next());
    let mut fields = leading.and_then(|(_, record)| record.as_object()).cloned().unwrap_or_default();
    let decision = match leading.and_then(|(_, record)| refusal(record)) {
        Some(code) => json!({ "outcome": "refused", "code": code }),
        None => json!({ "outcome": "allowed" }),
    };
    // The callee saw most: where the request came from, and as what.
    let seen = all().find(|(_, record)| is_inbound(record)).or_else(|| all().next());
    let index = PolicyIndex::new(&published.effective);
    if let Some(now) = seen.and_then(|(answer, record)| again(answer, record, &index)) {
        let version = published.sections.get(&SectionName::Policy);
        let version = version.map(|section| Version::from(&**section).to_string()).unwrap_or_default();
        let same = all().all(|(_, record)| field(record, "policy") == Some(&version));
        let since = if same { "" } else { ", which is not the one it was decided under" };
        let _ = write!(text, "under the policy in force, version {version}{since}:\n{now}");
        let destination = SpiffeId::parse(&now.destination).ok();
        if destination.is_some_and(|id| index.asks_for_headers(&id)) {
            text.push_str("  no record holds header fields: rules that ask for some are shown as if they were not there\n");
            fields.insert("headersUnknown".to_owned(), true.into());
        }
        fields.insert("now".to_owned(), serde_json::to_value(&now).unwrap_or_default());
    }
    fields.insert("decision".to_owned(), decision);
    fields.insert("requestId".to_owned(), request_id.into());
    fields.insert("proxies".to_owned(), proxies.into());
    ExplainResponse { json: Value::Object(fields).to_string(), text }
}

fn records(answer: &Answer) -> impl Iterator<Item = &Value> {
    answer.json.iter().filter_map(Value::as_array).flatten()
}

fn field<'a>(record: &'a Value, name: &str) -> Option<&'a str> {
    record.get(name).and_then(Value::as_str)
}

fn refusal(record: &Value) -> Option<&str> {
    field(record, "refused").filter(|code| !code.is_empty())
}

fn is_inbound(record: &Value) -> bool {
    field(record, "direction") == Some("inbound")
}

/// One record in a line: where, which way, what, and what became of it.
fn line(proxy: &SpiffeId, record: &Value) -> String {
    let of = |name: &str| field(record, name).unwrap_or_default().escape_debug().to_string();
    let peer = match of("peer") {
        peer if peer.is_empty() => "a caller outside the mesh".to_owned(),
        peer => peer,
    };
    let way = if is_inbound(record) { format!("from {peer}") } else { format!("to {peer}") };
    let what = match of("method").as_str() {
        "-" => "opaque bytes".to_owned(),
        method => format!("{method} {}", of("path")),
    };
    let outcome = match refusal(record) {
        Some(_) => format!("refused {}: {}", of("refused"), of("detail")),
        None => format!("allowed by {}", of("allowed_by")),
    };
    format!("at {proxy}: {what} {way} ({}), {outcome}; policy {}", of("address"), of("policy"))
}

/// What the rules in force say of a recorded request, at the moment it was made. `None` where the record does not tell
/// enough.
fn again(answer: &Answer, record: &Value, index: &PolicyIndex) -> Option<Explanation> {
    let peer = SpiffeId::parse(field(record, "peer")?).ok();
    let number = |name: &str| record.get(name).and_then(Value::as_u64);
    let port = number("port").and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)?;
    let address: SocketAddr = field(record, "address")?.parse().ok()?;
    let (source, destination, origin) = if is_inbound(record) {
        (peer, answer.spiffe_id.clone(), Origin::Seen(address.ip()))
    } else {
        (Some(answer.spiffe_id.clone()), peer?, Origin::LeftToDestination)
    };
    let layer = match field(record, "method")? {
        "-" => Layer::Opaque,
        method => Layer::Http {
            method,
            path: field(record, "path")?,
            authority: field(record, "authority")?,
            // No record holds them.
            headers: None,
        },
    };
    let now = number("unix_ms")? / 1_000;
    let facts = Facts { source: source.as_ref(), origin, destination: &destination, port, layer, now };
    Some(explain(index, &facts))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &str = "spiffe://td/app/d/server";
    const CLIENT: &str = "spiffe://td/app/d/client";

    fn record(changes: &Value) -> Value {
        let mut record = json!({
            "direction": "inbound", "peer": CLIENT, "address": "10.0.0.7:4711", "port": 80, "method": "GET",
            "path": "/x", "authority": "server", "allowed_by": "open/read", "refused": "", "detail": "",
            "policy": "1.4", "unix_ms": 1_772_452_800_000_u64,
        });
        for (name, value) in changes.as_object().unwrap() {
            record[name] = value.clone();
        }
        record
    }

    #[test]
    fn a_record_is_a_line_for_people() {
        let shown = |changes: Value| line(&SpiffeId::parse(SERVER).unwrap(), &record(&changes));
        assert_eq!(
            shown(json!({})),
            format!("at {SERVER}: GET /x from {CLIENT} (10.0.0.7:4711), allowed by open/read; policy 1.4")
        );
        assert_eq!(
            shown(json!({ "direction": "outbound", "refused": "access-denied", "detail": "no rule" })),
            format!(
                "at {SERVER}: GET /x to {CLIENT} (10.0.0.7:4711), refused access-denied: no rule; policy 1.4"
            )
        );
        let plain = shown(json!({ "peer": "", "method": "-", "path": "" }));
        assert!(plain.contains("opaque bytes from a caller outside the mesh (10.0.0.7:4711)"), "{plain}");
        assert!(!shown(json!({ "path": "/\u{1b}[2J" })).contains('\u{1b}'));
    }

    #[test]
    fn a_record_is_judged_again_as_what_it_was_when_it_was() {
        let text = "apiVersion: signet.mf2c-project.eu/v1alpha1\nkind: Mesh\nmetadata: {name: m}\nspec: {trustDomain: td, \
                    networks: [{name: n}]}\n---\napiVersion: signet.mf2c-project.eu/v1alpha1\nkind: Workload\nmetadata: \
                    {name: server}\nspec: {class: app, device: d, network: n}\n---\napiVersion: \
                    signet.mf2c-project.eu/v1alpha1\nkind: AccessPolicy\nmetadata: {name: open}\nspec: {target: \
                    {workloads: [server]}, rules: [{name: read, from: [{class: app}], to: [{methods: [GET]}], when: \
                    {sourceAddresses: [10.0.0.0/8], time: [{days: [mon]}]}}]}\n";
        let manifests = signet_policy::parse_manifests("test.yaml", text).unwrap();
        let index = PolicyIndex::new(&signet_policy::compile(&manifests).unwrap());
        let answer =
            Answer { spiffe_id: SpiffeId::parse(SERVER).unwrap(), instance: String::new(), json: None };
        let outcome = |changes: Value| {
            again(&answer, &record(&changes), &index).map(|explanation| explanation.decision.to_string())
        };
        let allowed = Some("allowed by open/read".to_owned());
        assert_eq!(outcome(json!({})), allowed);
        for changes in [
            json!({ "method": "POST" }),
            json!({ "address": "192.0.2.1:4711" }),
            json!({ "unix_ms": 1_772_539_200_000_u64 }),
            json!({ "peer": "" }),
            json!({ "method": "-" }),
        ] {
            assert_ne!(outcome(changes.clone()), allowed, "{changes}");
        }
        // What an older sidecar or an unfinished exchange leaves out cannot be judged.
        for changes in [json!({ "port": 0 }), json!({ "address": "" }), json!({ "port": null })] {
            assert_eq!(outcome(changes), None);
        }
        assert_eq!(outcome(json!({ "direction": "outbound", "peer": "" })), None);
    }
}
