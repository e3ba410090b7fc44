//! Edges that lack protection, joined from what the connected proxies last said.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use prost::Message;
use signet_identity::SpiffeId;
use signet_sync::proto::admin as wire;
use signet_sync::{Edge, End, MAX_SECTION_BYTES, Tally};

use crate::streams::Stream;

/// Bytes of an answer: some forty thousand edges, and what the client reads.
const ANSWER_BYTES: usize = MAX_SECTION_BYTES;

/// The edges of all of them, those of replicas as one, the last one seen first. Each proxy's own part is bounded by
/// [`signet_sync::decode_edges`]; what does not fit the answer is left out and counted.
pub(super) fn joined(streams: impl Iterator<Item = Arc<Stream>>, now_ms: u64) -> wire::ListEdgesResponse {
    let mut edges: HashMap<(SpiffeId, Edge), Tally> = HashMap::new();
    let mut lost = 0u64;
    for stream in streams {
        let report = stream.report();
        lost = lost.saturating_add(report.status.map_or(0, |status| status.edges_lost));
        for (edge, tally) in report.edges.iter() {
            let mut tally = *tally;
            tally.last_seen_ms = tally.last_seen_ms.saturating_add_signed(report.clock_offset_ms).min(now_ms);
            // The proxy's own end is who it proved to be, whatever it reports.
            edges.entry((stream.spiffe_id.clone(), edge.clone())).or_default().add(tally);
        }
    }
    let mut edges: Vec<wire::Edge> =
        edges.into_iter().map(|((own, edge), tally)| shown(&own, edge, tally)).collect();
    edges.sort_by(|a, b| {
        let key = |edge: &wire::Edge| Reverse(edge.last_seen_ms);
        key(a)
            .cmp(&key(b))
            .then_with(|| (&a.source, &a.destination, a.port).cmp(&(&b.source, &b.destination, b.port)))
    });
    let mut bytes = 0;
    let fitting = edges.iter().take_while(|edge| {
        // A tag and a length stand before each.
        bytes += edge.encoded_len() + 8;
        bytes <= ANSWER_BYTES
    });
    let fitting = fitting.count();
    lost = lost.saturating_add((edges.len() - fitting) as u64);
    edges.truncate(fitting);
    wire::ListEdgesResponse { edges, lost }
}

fn shown(own: &SpiffeId, Edge { end, port }: Edge, tally: Tally) -> wire::Edge {
    let own = own.to_string();
    let (source, destination, name) = match end {
        End::Address(address) => (address.to_string(), own, None),
        End::Caller(id) => (id.to_string(), own, None),
        End::Outside(address, name) => (own, address.to_string(), name),
    };
    wire::Edge {
        source,
        destination,
        port: u32::from(port),
        outside_name: name.map(|name| name.to_string()).unwrap_or_default(),
        plaintext: tally.plaintext,
        unsigned: tally.unsigned,
        uncovered: tally.uncovered,
        last_seen_ms: tally.last_seen_ms,
    }
}
