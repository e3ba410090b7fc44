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
use crate::told::{Direction, Record};

/// The answers of all proxies that remember a request, as one: the fields of the record that leads, the decision in the
/// form of a hypothetical one, all answers under `proxies`, and under `now` what the policy in force makes of the same
/// request. A proxy's answer is the list of its records.
///
/// The first record that was refused leads, or the first of all, among those that both ends tell; where there are none such,
/// among those that one end tells alone, unless anything is disputed: then nobody leads, for any proxy may say that it had
/// to do with the request.
pub(super) fn joined(request_id: &str, answers: &[Answer], published: &Published) -> ExplainResponse {
    let mut text = format!("request {}\n", request_id.escape_debug());
    let mut proxies = Vec::new();
    for answer in answers {
        let mut records = Vec::new();
        for record in &answer.records {
            let disputed = standing(answer, record, answers) == Standing::Disputed;
            let doubt =
                if disputed { format!("; {} says nothing of it", record.peer) } else { String::new() };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {}{doubt}", line(&answer.spiffe_id, record));
            let mut value = serde_json::to_value(record).unwrap_or_default();
            value["disputed"] = disputed.into();
            records.push(value);
        }
        for reason in &answer.dropped {
            let _ = writeln!(text, "  dropped from what {} says: {reason}", answer.spiffe_id);
        }
        proxies.push(json!({
            "spiffeId": answer.spiffe_id.as_str(),
            "instance": answer.instance,
            "answer": records,
            "dropped": answer.dropped.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }));
    }
    let heard = heard(answers);
    let is_open = heard.is_none();
    let heard = heard.unwrap_or_default();
    let leading = heard.iter().find(|(_, record)| !record.refused.is_empty()).or_else(|| heard.first());
    let mut fields = match leading.map(|(_, record)| serde_json::to_value(record)) {
        Some(Ok(Value::Object(fields))) => fields,
        _ => serde_json::Map::new(),
    };
    let decision = match leading {
        Some((_, record)) if !record.refused.is_empty() => {
            json!({ "outcome": "refused", "code": record.refused })
        }
        Some(_) => json!({ "outcome": "allowed" }),
        None if is_open => json!({ "outcome": "disputed" }),
        None => json!({ "outcome": "unknown" }),
    };
    // The callee saw most: where the request came from, and as what.
    let is_inbound = |(_, record): &&(&Answer, &Record)| record.direction == Direction::Inbound;
    let seen = heard.iter().find(is_inbound).or_else(|| heard.first());
    let index = PolicyIndex::new(&published.effective);
    if let Some(now) = seen.and_then(|(answer, record)| again(&answer.spiffe_id, record, &index)) {
        let version = published.sections.get(&SectionName::Policy);
        let version = version.map(|section| Version::from(&**section).to_string()).unwrap_or_default();
        let same = heard.iter().all(|(_, record)| record.policy == version);
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

/// The records that count: of the best standing there is. `None` where nobody bears anything out and something is disputed.
fn heard(answers: &[Answer]) -> Option<Vec<(&Answer, &Record)>> {
    let all = || answers.iter().flat_map(|answer| answer.records.iter().map(move |record| (answer, record)));
    let standings: Vec<Standing> = all().map(|(answer, record)| standing(answer, record, answers)).collect();
    let best = standings.iter().min().copied();
    if best != Some(Standing::BorneOut) && standings.contains(&Standing::Disputed) {
        return None;
    }
    Some(all().zip(standings).filter(|(_, standing)| Some(*standing) == best).map(|(told, _)| told).collect())
}

/// What the other end says of a record; the better comes first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Standing {
    /// The same.
    BorneOut,
    /// Nothing: it has no identity, or has forgotten the request.
    Alone,
    /// It remembers the request, and not this proxy in it. That happens to an honest proxy where a request was tried at
    /// several workloads: its sender keeps the last.
    Disputed,
}

fn standing(answer: &Answer, record: &Record, answers: &[Answer]) -> Standing {
    let own = answer.spiffe_id.as_str();
    let there = answers.iter().filter(|other| other.spiffe_id.as_str() == record.peer && record.peer != own);
    let remembered: Vec<&Record> = there.flat_map(|other| &other.records).collect();
    if remembered.is_empty() {
        Standing::Alone
    } else if remembered.iter().any(|other| other.direction != record.direction && other.peer == own) {
        Standing::BorneOut
    } else {
        Standing::Disputed
    }
}

/// One record in a line: where, which way, what, and what became of it.
fn line(proxy: &SpiffeId, record: &Record) -> String {
    let peer = match record.peer.as_str() {
        "" => "a caller outside the mesh".to_owned(),
        peer => peer.escape_debug().to_string(),
    };
    let way = match record.direction {
        Direction::Inbound => format!("from {peer}"),
        Direction::Outbound => format!("to {peer}"),
    };
    let what = match record.method.as_str() {
        "-" => "opaque bytes".to_owned(),
        method => format!("{} {}", method.escape_debug(), record.path.escape_debug()),
    };
    let outcome = match record.refused.as_str() {
        "" => format!("allowed by {}", record.allowed_by.escape_debug()),
        code => format!("refused {}: {}", code.escape_debug(), record.detail.escape_debug()),
    };
    let (address, policy) = (record.address.escape_debug(), record.policy.escape_debug());
    format!("at {proxy}: {what} {way} ({address}), {outcome}; policy {policy}")
}

/// What the rules in force say of a recorded request, at the moment it was made. `None` where the record does not tell
/// enough.
fn again(proxy: &SpiffeId, record: &Record, index: &PolicyIndex) -> Option<Explanation> {
    let peer = SpiffeId::parse(&record.peer).ok();
    let port = Some(record.port).filter(|port| *port != 0)?;
    let address: SocketAddr = record.address.parse().ok()?;
    let (source, destination, origin) = match record.direction {
        Direction::Inbound => (peer, proxy.clone(), Origin::Seen(address.ip())),
        Direction::Outbound => (Some(proxy.clone()), peer?, Origin::LeftToDestination),
    };
    let layer = match record.method.as_str() {
        "-" => Layer::Opaque,
        method => Layer::Http {
            method,
            path: &record.path,
            authority: &record.authority,
            // No record holds them.
            headers: None,
        },
    };
    let now = record.unix_ms / 1_000;
    let facts = Facts { source: source.as_ref(), origin, destination: &destination, port, layer, now };
    Some(explain(index, &facts))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &str = "spiffe://td/app/d/server";
    const CLIENT: &str = "spiffe://td/app/d/client";
    const OTHER: &str = "spiffe://td/app/d/other";

    fn record(changes: &Value) -> Record {
        let mut record = json!({
            "direction": "inbound", "peer": CLIENT, "address": "10.0.0.7:4711", "port": 80, "method": "GET",
            "path": "/x", "authority": "server", "allowed_by": "open/read", "refused": "", "detail": "",
            "policy": "1.4", "unix_ms": 1_772_452_800_000_u64,
        });
        for (name, value) in changes.as_object().unwrap() {
            record[name] = value.clone();
        }
        serde_json::from_value(record).unwrap()
    }

    fn answer(id: &str, records: &[Value]) -> Answer {
        Answer {
            spiffe_id: SpiffeId::parse(id).unwrap(),
            instance: String::new(),
            records: records.iter().map(record).collect(),
            dropped: Vec::new(),
        }
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
    fn a_record_stands_by_what_its_other_end_says() {
        let (out, back) = (json!({ "direction": "outbound", "peer": SERVER }), json!({ "peer": CLIENT }));
        let standings = |answers: &[Answer]| -> Vec<Standing> {
            let of = |answer| move |record| standing(answer, record, answers);
            answers.iter().flat_map(|answer| answer.records.iter().map(of(answer))).collect()
        };
        let (client, server) = (answer(CLIENT, &[out]), answer(SERVER, std::slice::from_ref(&back)));
        assert_eq!(standings(&[client.clone(), server.clone()]), [Standing::BorneOut; 2]);
        // Whoever says besides that it came from them, went to them, or came from nobody.
        for (lie, stands) in [
            (json!({ "peer": CLIENT }), Standing::Disputed),
            (json!({ "direction": "outbound", "peer": SERVER }), Standing::Disputed),
            (json!({ "peer": "" }), Standing::Alone),
            (json!({ "peer": OTHER }), Standing::Alone),
        ] {
            let answers = [client.clone(), answer(OTHER, &[lie]), server.clone()];
            assert_eq!(standings(&answers), [Standing::BorneOut, stands, Standing::BorneOut]);
        }
        assert_eq!(standings(&[server]), [Standing::Alone], "the caller has forgotten it");
        assert_eq!(standings(&[answer(CLIENT, &[back])]), [Standing::Alone], "two of one identity");
    }

    #[test]
    fn nobody_leads_where_all_there_is_is_disputed_or_said_alone_beside_it() {
        let heard = |answers: &[Answer]| -> Option<Vec<String>> {
            heard(answers).map(|heard| heard.iter().map(|(answer, _)| answer.spiffe_id.to_string()).collect())
        };
        let sent = answer(CLIENT, &[json!({ "direction": "outbound", "peer": SERVER })]);
        assert_eq!(heard(&[sent.clone(), answer(SERVER, &[json!({})])]).unwrap(), [CLIENT, SERVER]);
        assert_eq!(heard(std::slice::from_ref(&sent)).unwrap(), [CLIENT]);
        // It answers, and says that it came from somebody else.
        for lie in [json!({ "peer": "" }), json!({ "peer": OTHER })] {
            assert_eq!(heard(&[sent.clone(), answer(SERVER, &[lie])]), None);
        }
        assert_eq!(heard(&[]).unwrap(), [""; 0]);
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
        let server = SpiffeId::parse(SERVER).unwrap();
        let outcome = |changes: Value| {
            again(&server, &record(&changes), &index).map(|explanation| explanation.decision.to_string())
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
        for changes in [json!({ "port": 0 }), json!({ "address": "" })] {
            assert_eq!(outcome(changes), None);
        }
        assert_eq!(outcome(json!({ "direction": "outbound", "peer": "" })), None);
    }
}
