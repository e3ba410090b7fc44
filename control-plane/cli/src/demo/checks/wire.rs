//! What somebody on the wire between the agents sees.

use crate::demo::report::Outcome;
use crate::lab::{Opening, TapReport};

use super::calls::CANARIES;

/// Without the mesh the tap reads everything: it can see.
pub(in crate::demo) fn reads_everything(tap: &TapReport) -> Outcome {
    let seen = |canary: &&[u8]| tap.sightings.iter().any(|sighting| sighting.canary == **canary);
    let unseen: Vec<String> =
        CANARIES.iter().filter(|canary| !seen(canary)).map(|canary| canary.escape_ascii().to_string()).collect();
    Outcome::holds((CANARIES.len() - unseen.len()) as f64, "words read in clear")
        .only_if(unseen.is_empty(), || format!("not seen: {}", unseen.join(", ")))
}

/// With the mesh it reads nothing.
pub(in crate::demo) fn reads_nothing(tap: &TapReport) -> Outcome {
    let seen: Vec<String> = tap.sightings.iter().map(|s| format!("{:?} in {:?}", s.canary.escape_ascii().to_string(), s.flow)).collect();
    Outcome::holds(tap.bytes as f64 / 1024.0, "KiB passed")
        .only_if(seen.is_empty(), || seen.join("\n"))
        .only_if(tap.lost == 0, || format!("{} frames were lost, so nothing is proven", tap.lost))
        .only_if(tap.frames > 0, || "no frame was seen".into())
}

/// Every TCP connection on the wire is TLS, and the mesh's are there.
pub(in crate::demo) fn is_all_tls(tap: &TapReport) -> Outcome {
    let clear: Vec<String> = tap.in_clear().iter().map(|flow| format!("{} to {}: {:?}", flow.source, flow.destination, flow.opening)).collect();
    let used = tap.flows.iter().filter(|flow| flow.bytes > 0).count();
    let classical = tap.flows.iter().filter(|flow| is_classical(&flow.opening)).count();
    Outcome::holds(used as f64, "flows of TLS, X25519MLKEM768 first")
        .only_if(classical == 0, || format!("{classical} connections offered no post-quantum key exchange first"))
        .only_if(clear.is_empty(), || clear.join("\n"))
        .only_if(["mesh-h1/1", "mesh-h2/1", "mesh-rec/1"].iter().all(|alpn| tap.offers(alpn)), || {
            "not every protocol of the mesh was offered".into()
        })
}

/// X25519MLKEM768 (draft-ietf-tls-ecdhe-mlkem).
const HYBRID: u16 = 0x11ec;

fn is_classical(opening: &Opening) -> bool {
    matches!(opening, Opening::ClientHello(hello) if hello.key_shares.first() != Some(&HYBRID))
}
