//! What a proxy tells of a past request, taken as what it says about itself.
//!
//! Whatever request is asked about, every proxy may answer, and its answer is its word alone. So who speaks is the identity
//! in the certificate of its stream; a record is about the request that was asked about, and one of its two ends is
//! that identity. What says otherwise is dropped, with a name.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use signet_identity::SpiffeId;

use crate::plain;

/// Records of one answer about the same other end: a request and five more tries of it, and as many again. Whoever sends many
/// requests under one id displaces only what is told of itself.
const RECORDS_PER_PEER: usize = 12;

/// Records of one answer: as many as a sidecar tells.
const RECORDS_MAX: usize = 128;

/// Characters of a text in a record: an identity at its longest and paths as sidecars cut them fit.
const TEXT_MAX: usize = 2_048;

/// What a proxy remembers of one exchange.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(crate) struct Record {
    pub(crate) request_id: String,
    pub(crate) unix_ms: u64,
    pub(crate) direction: Direction,
    /// The other end, empty when it has no identity.
    pub(crate) peer: String,
    pub(crate) address: String,
    /// 0 where it was not known.
    pub(crate) port: u16,
    /// `-` for bytes that are not HTTP.
    pub(crate) method: String,
    pub(crate) authority: String,
    pub(crate) path: String,
    /// Policy and rule; empty when it was refused.
    pub(crate) allowed_by: String,
    /// The code; empty when it was allowed.
    pub(crate) refused: String,
    pub(crate) detail: String,
    /// Version of the policy that it was decided under.
    pub(crate) policy: String,
}

/// Which way an exchange went through the proxy.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    #[default]
    Inbound,
    Outbound,
}

/// A record as it is written: with both of its ends.
#[derive(Deserialize)]
struct Written {
    // One without it could be about either end.
    direction: Direction,
    source: Option<String>,
    destination: Option<String>,
    // What a newer proxy says besides is passed over: nothing of it would be shown.
    #[serde(flatten)]
    record: Record,
}

/// Why a part of an answer does not count.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Dropped {
    AnotherEnd,
    AnotherRequest,
    Malformed,
    TooMany,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AnotherEnd => "a record of an exchange in which this proxy is neither end",
            Self::AnotherRequest => "a record of another request",
            Self::Malformed => "what is no record",
            Self::TooMany => "more records than one request leaves",
        })
    }
}

/// The records in the answer of the proxy `own` to what it knows of `request_id`, and what of it does not count.
pub(crate) fn read(text: &str, request_id: &str, own: &SpiffeId) -> (Vec<Record>, Vec<Dropped>) {
    let Ok(written) = serde_json::from_str::<Vec<Value>>(text) else {
        return (Vec::new(), vec![Dropped::Malformed]);
    };
    let mut dropped = Vec::new();
    if written.len() > RECORDS_MAX {
        dropped.push(Dropped::TooMany);
    }
    let mut records: Vec<Record> = Vec::new();
    for value in written.into_iter().take(RECORDS_MAX) {
        match record(value, request_id, own) {
            Ok(record)
                if records.iter().filter(|other| other.peer == record.peer).count() < RECORDS_PER_PEER =>
            {
                records.push(record);
            }
            Ok(_) => dropped.push(Dropped::TooMany),
            Err(reason) => dropped.push(reason),
        }
    }
    dropped.sort_unstable();
    dropped.dedup();
    (records, dropped)
}

fn record(value: Value, request_id: &str, own: &SpiffeId) -> Result<Record, Dropped> {
    let written: Written = serde_json::from_value(value).map_err(|_| Dropped::Malformed)?;
    let mut record = Record { direction: written.direction, ..written.record };
    if record.request_id != request_id {
        return Err(Dropped::AnotherRequest);
    }
    // What it says of its ends has to be what the certificate and the rest of the record say; older proxies leave it out.
    let (here, there) = match record.direction {
        Direction::Inbound => (written.destination, written.source),
        Direction::Outbound => (written.source, written.destination),
    };
    if here.is_some_and(|here| here != own.as_str()) || there.is_some_and(|there| there != record.peer) {
        return Err(Dropped::AnotherEnd);
    }
    for text in [
        &mut record.peer,
        &mut record.address,
        &mut record.method,
        &mut record.authority,
        &mut record.path,
        &mut record.allowed_by,
        &mut record.refused,
        &mut record.detail,
        &mut record.policy,
    ] {
        *text = plain::text(text, TEXT_MAX);
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const OWN: &str = "spiffe://td/app/d/server";
    const CLIENT: &str = "spiffe://td/app/d/client";

    fn told(value: &Value) -> (Vec<Record>, Vec<Dropped>) {
        read(&value.to_string(), "r-1", &SpiffeId::parse(OWN).unwrap())
    }

    #[test]
    fn a_record_counts_whose_near_end_is_the_proxy_itself() {
        for ends in
            [json!({}), json!({ "source": CLIENT, "destination": OWN }), json!({ "destination": OWN })]
        {
            let mut record =
                json!({ "request_id": "r-1", "direction": "inbound", "peer": CLIENT, "port": 80 });
            record.as_object_mut().unwrap().extend(ends.as_object().unwrap().clone());
            let (records, dropped) = told(&json!([record]));
            assert_eq!((records.len(), dropped), (1, vec![]), "{record}");
            assert_eq!((&*records[0].peer, records[0].port), (CLIENT, 80));
        }
    }

    #[test]
    fn a_record_of_somebody_else_s_exchange_is_dropped_and_the_others_stay() {
        let own = json!({ "request_id": "r-1", "direction": "outbound", "peer": CLIENT, "source": OWN });
        for (wrong, reason) in [
            (json!({ "direction": "inbound", "peer": OWN, "destination": CLIENT }), Dropped::AnotherEnd),
            (json!({ "direction": "outbound", "peer": OWN, "source": CLIENT }), Dropped::AnotherEnd),
            (json!({ "direction": "outbound", "peer": "", "destination": CLIENT }), Dropped::AnotherEnd),
            (json!({ "direction": "inbound", "request_id": "r-2" }), Dropped::AnotherRequest),
            (json!({ "direction": "sideways" }), Dropped::Malformed),
            (json!({ "refused": "access-denied" }), Dropped::Malformed),
            (json!({ "direction": "inbound", "port": 65_536 }), Dropped::Malformed),
        ] {
            let mut record = json!({ "request_id": "r-1" });
            record.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
            let (records, dropped) = told(&json!([own, record]));
            assert_eq!((records.len(), dropped), (1, vec![reason]), "{record}");
        }
        assert_eq!(told(&json!([7, own])).1, [Dropped::Malformed]);
    }

    #[test]
    fn an_answer_that_is_no_list_is_dropped_and_a_long_one_is_cut() {
        for answer in [json!({ "request_id": "r-1" }), json!("text"), json!(null)] {
            assert_eq!(told(&answer), (vec![], vec![Dropped::Malformed]));
        }
        assert_eq!(read("", "r-1", &SpiffeId::parse(OWN).unwrap()).1, [Dropped::Malformed]);
        let path = format!("/\u{1b}[2J{}", "x".repeat(TEXT_MAX));
        let one = json!({ "request_id": "r-1", "direction": "inbound", "path": path });
        let (records, dropped) = told(&Value::from(vec![one; RECORDS_PER_PEER + 1]));
        assert_eq!((records.len(), dropped), (RECORDS_PER_PEER, vec![Dropped::TooMany]));
        assert_eq!((records[0].path.len(), &records[0].path[..4]), (TEXT_MAX, "/[2J"));
        let of =
            |peer: usize| json!({ "request_id": "r-1", "direction": "inbound", "peer": peer.to_string() });
        let (records, dropped) = told(&(0..=RECORDS_MAX).map(of).collect());
        assert_eq!((records.len(), dropped), (RECORDS_MAX, vec![Dropped::TooMany]));
    }

    #[test]
    fn whoever_sends_many_requests_under_one_id_displaces_no_one_else() {
        let of = |peer: &str| json!({ "request_id": "r-1", "direction": "inbound", "peer": peer });
        let noise = std::iter::repeat_n(of("spiffe://td/app/d/loud"), 5 * RECORDS_PER_PEER);
        let (records, dropped) = told(&noise.chain([of(CLIENT)]).collect());
        assert_eq!((records.len(), dropped), (RECORDS_PER_PEER + 1, vec![Dropped::TooMany]));
        assert_eq!(records.last().map(|record| &*record.peer), Some(CLIENT));
    }
}
