//! The last requests of each worker, so that `signet explain REQUEST_ID` can say what happened.
//!
//! A record holds who, what and why: never a header value, a query or a body.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use signet_policy::{Permit, Refusal};

/// Records kept per worker: a minute at 70 requests a second, about 1 MiB.
const RECORDS: usize = 4096;
/// Records told of one request and one other end, who chooses the id of its requests: a request and five more tries of it, and
/// as many again.
const PER_PEER: usize = 12;
/// The longest path or authority kept; longer ones are cut.
const TEXT_MAX: usize = 256;

/// Which way a message went through the proxy.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Towards the application beside the proxy.
    Inbound,
    /// Away from the application beside the proxy.
    Outbound,
}

impl Direction {
    /// The word used in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// One request or opaque connection and what became of it. Made for every one and read for very few, so texts are
/// put together by [`Serialize`] only.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// The request id that refusals and logs carry.
    pub request_id: String,
    /// When it was decided, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Which way it went.
    pub direction: Direction,
    /// SPIFFE ID of the other side, empty when there was none.
    pub peer: String,
    /// The other end's address: the caller inbound, the original destination outbound.
    pub address: SocketAddr,
    /// The destination workload's own port, which policy speaks of; 0 where it was not known.
    pub port: u16,
    /// Method, or `-` for opaque bytes.
    pub method: String,
    /// Authority as the client wrote it.
    pub authority: String,
    /// Path without query.
    pub path: String,
    /// As `allowed_by`, policy and rule, empty when refused; as `refused` and `detail`, code and reason, empty when it
    /// was allowed.
    #[serde(flatten, serialize_with = "outcome")]
    pub outcome: Result<Permit, Refusal>,
    /// Policy version the decision was made under.
    #[serde(serialize_with = "text")]
    pub policy: Arc<str>,
}

/// A record with both its ends, as others are told of it.
#[derive(Debug, Serialize)]
pub struct Told {
    source: String,
    destination: String,
    #[serde(flatten)]
    record: Record,
}

impl Told {
    /// A record of the sidecar of `own`.
    pub fn new(record: Record, own: &str) -> Self {
        let (here, there) = (own.to_owned(), record.peer.clone());
        let (source, destination) = match record.direction {
            Direction::Inbound => (there, here),
            Direction::Outbound => (here, there),
        };
        Self { source, destination, record }
    }
}

fn text<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

fn outcome<S: Serializer>(outcome: &Result<Permit, Refusal>, serializer: S) -> Result<S::Ok, S::Error> {
    let (allowed_by, refused, detail) = match outcome {
        Ok(permit) => (format!("{}/{}", permit.policy(), permit.rule()), "", ""),
        Err(refusal) => (String::new(), refusal.code(), refusal.detail()),
    };
    let mut map = serializer.serialize_map(Some(3))?;
    map.serialize_entry("allowed_by", &allowed_by)?;
    map.serialize_entry("refused", refused)?;
    map.serialize_entry("detail", detail)?;
    map.end()
}

/// A bounded ring of records; the oldest goes first.
#[derive(Debug, Default)]
pub struct Ring {
    // Taken by one worker per request and by nobody else but a rare `explain`: never contended.
    records: Mutex<VecDeque<Record>>,
}

impl Ring {
    /// Keeps a record, dropping the oldest when full.
    pub fn push(&self, record: Record) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() >= RECORDS {
            records.pop_front();
        }
        records.push_back(record);
    }

    /// The records with this request id, oldest first: the last twelve of each other end.
    pub fn find(&self, request_id: &str) -> Vec<Record> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<Record> = Vec::new();
        for record in records.iter().rev().filter(|record| record.request_id == request_id) {
            if found.iter().filter(|other| other.peer == record.peer).count() < PER_PEER {
                found.push(record.clone());
            }
        }
        found.reverse();
        found
    }
}

/// Cuts a text from a peer to what a record may hold, at a character boundary.
pub fn clip(text: &str) -> String {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: usize) -> Record {
        Record {
            request_id: id.to_string(),
            unix_ms: 0,
            direction: Direction::Inbound,
            peer: String::new(),
            address: ([127, 0, 0, 1], 80).into(),
            port: 80,
            method: "GET".into(),
            authority: String::new(),
            path: "/".into(),
            outcome: Err(Refusal::AccessDenied),
            policy: "1.1".into(),
        }
    }

    #[test]
    fn a_full_ring_forgets_the_oldest_first() {
        let ring = Ring::default();
        for id in 0..=RECORDS {
            ring.push(record(id));
        }
        assert!(ring.find("0").is_empty());
        assert_eq!(ring.find("1").len(), 1);
        assert_eq!(ring.find(&RECORDS.to_string()).len(), 1);
    }

    #[test]
    fn whoever_sends_many_requests_under_one_id_displaces_no_one_else() {
        let ring = Ring::default();
        ring.push(record(7));
        for number in 0..100 {
            let peer = "spiffe://td/app/d/loud".to_owned();
            ring.push(Record { peer, unix_ms: number, ..record(7) });
        }
        let found = ring.find("7");
        assert_eq!((found.len(), &*found[0].peer), (PER_PEER + 1, ""));
        assert_eq!(found[PER_PEER].unix_ms, 99);
    }

    #[test]
    fn a_record_is_shown_with_its_outcome_in_words() {
        let shown = serde_json::to_value(record(7)).unwrap();
        assert_eq!(shown["request_id"], "7");
        assert_eq!(shown["address"], "127.0.0.1:80");
        assert_eq!(shown["direction"], "inbound");
        assert_eq!((&shown["allowed_by"], &shown["refused"]), (&"".into(), &"access-denied".into()));
        assert_eq!(shown["detail"], Refusal::AccessDenied.detail());
        assert_eq!(shown["policy"], "1.1");
        let peer = Record { peer: "spiffe://td/a".into(), ..record(7) };
        let told = |direction| Told::new(Record { direction, ..peer.clone() }, "spiffe://td/b");
        let ends = |told: Told| (told.source, told.destination);
        assert_eq!(ends(told(Direction::Inbound)), ("spiffe://td/a".into(), "spiffe://td/b".into()));
        assert_eq!(ends(told(Direction::Outbound)), ("spiffe://td/b".into(), "spiffe://td/a".into()));
        assert_eq!(serde_json::to_value(told(Direction::Inbound)).unwrap()["refused"], "access-denied");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(clip(&"é".repeat(200)).len(), TEXT_MAX);
        assert_eq!(clip(&format!("a{}", "é".repeat(200))).len(), TEXT_MAX - 1);
    }
}
