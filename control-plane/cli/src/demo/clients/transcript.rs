//! What a client sent and what came back, in a form that two runs can be compared in.

use std::io;

use serde::{Deserialize, Serialize};

use crate::demo::apps::sha256_hex;

/// Fields that belong to one connection (RFC 9110 section 7.6.1): kept apart, since any hop may change them.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];
/// Longest body shown as text; a longer one is told by its digest alone.
const TEXT_MAX: usize = 2048;

/// A series of calls by one client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    /// Name of the client.
    pub client: String,
    /// In the order made.
    pub exchanges: Vec<Exchange>,
}

/// One call and its answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Exchange {
    /// What was asked.
    pub call: String,
    /// HTTP status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// End-to-end header fields in the order received, names in the case received.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// Header fields of this connection alone; not compared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hop_by_hop: Vec<(String, String)>,
    /// The bytes received.
    pub body: Payload,
    /// Trailer fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trailers: Vec<(String, String)>,
    /// Why there is no complete answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When; not compared.
    pub timing: Timing,
}

/// Bytes received, as digest and, when short and readable, as text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// Length in bytes.
    pub bytes: usize,
    /// Lower-case hexadecimal SHA-256.
    pub sha256: String,
    /// The bytes themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// Milliseconds from the start of the call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// To the first byte back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<f64>,
    /// To the end.
    pub total_ms: f64,
    /// To each event of an event stream.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events_ms: Vec<f64>,
}

impl Transcript {
    /// What differs in another run of the same client: empty when both saw the same statuses, header names (case
    /// included) and values, body bytes, trailers and errors. The order of fields with different names, timing
    /// and hop-by-hop fields do not count.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        if self.client != other.client || self.exchanges.len() != other.exchanges.len() {
            differences.push(format!(
                "{} made {} calls, {} made {}",
                self.client,
                self.exchanges.len(),
                other.client,
                other.exchanges.len()
            ));
        }
        for (ours, theirs) in self.exchanges.iter().zip(&other.exchanges) {
            let mut differ = |what: &str, ours_is: String, theirs_is: String| {
                if ours_is != theirs_is {
                    differences.push(format!("{}: {what}: {ours_is} against {theirs_is}", ours.call));
                }
            };
            differ("call", ours.call.clone(), theirs.call.clone());
            differ("status", format!("{:?}", ours.status), format!("{:?}", theirs.status));
            differ(
                "headers",
                format!("{:?}", sorted(&ours.headers)),
                format!("{:?}", sorted(&theirs.headers)),
            );
            differ(
                "trailers",
                format!("{:?}", sorted(&ours.trailers)),
                format!("{:?}", sorted(&theirs.trailers)),
            );
            differ("body", format!("{:?}", ours.body), format!("{:?}", theirs.body));
            differ("error", format!("{:?}", ours.error), format!("{:?}", theirs.error));
        }
        differences
    }
}

/// By name without case; values of one name keep their order.
fn sorted(fields: &[(String, String)]) -> Vec<&(String, String)> {
    let mut fields: Vec<_> = fields.iter().collect();
    fields.sort_by_key(|(name, _)| name.to_ascii_lowercase());
    fields
}

impl Exchange {
    /// An exchange without an answer so far.
    pub(super) fn new(call: impl Into<String>) -> Self {
        Self { call: call.into(), ..Self::default() }
    }

    /// Takes a header section apart into end-to-end and hop-by-hop fields.
    pub(super) fn take_headers(&mut self, headers: Vec<(String, String)>) {
        let is_hop = |name: &str| HOP_BY_HOP.iter().any(|hop| hop.eq_ignore_ascii_case(name));
        (self.hop_by_hop, self.headers) = headers.into_iter().partition(|(name, _)| is_hop(name));
    }

    /// The exchange with an error in words that do not depend on the platform.
    pub(super) fn failed(mut self, error: &io::Error) -> Self {
        self.error = Some(match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::Other => error.to_string(),
            kind => kind.to_string(),
        });
        self
    }
}

impl From<&[u8]> for Payload {
    fn from(bytes: &[u8]) -> Self {
        let text = (bytes.len() <= TEXT_MAX).then(|| std::str::from_utf8(bytes).ok()).flatten();
        Self { bytes: bytes.len(), sha256: sha256_hex(bytes), text: text.map(str::to_owned) }
    }
}

impl Timing {
    /// Of a call that began at `start` and ends now.
    pub(super) fn since(start: std::time::Instant, first_byte: Option<std::time::Instant>) -> Self {
        Self {
            first_byte_ms: first_byte.map(|at| millis(start, at)),
            total_ms: millis(start, std::time::Instant::now()),
            events_ms: Vec::new(),
        }
    }
}

/// Milliseconds between two moments, to the microsecond.
pub(super) fn millis(start: std::time::Instant, end: std::time::Instant) -> f64 {
    (end.duration_since(start).as_secs_f64() * 1e6).round() / 1e3
}
