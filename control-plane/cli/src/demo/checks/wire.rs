//! What somebody on the wire between the agents sees.

use crate::demo::report::Outcome;
use crate::lab::{Opening, TapReport};

use super::calls::CANARIES;

/// Without the mesh the tap reads everything: it can see.
pub(in crate::demo) fn reads_everything(tap: &TapReport) -> Outcome {
    let seen = |canary: &&[u8]| tap.sightings.iter().any(|sighting| sighting.canary == **canary);
    let unseen: Vec<String> = CANARIES
        .iter()
        .filter(|canary| !seen(canary))
        .map(|canary| canary.escape_ascii().to_string())
        .collect();
    Outcome::holds((CANARIES.len() - unseen.len()) as f64, "words read in clear")
        .only_if(unseen.is_empty(), || format!("not seen: {}", unseen.join(", ")))
}

/// With the mesh it reads nothing.
pub(in crate::demo) fn reads_nothing(tap: &TapReport) -> Outcome {
    let seen: Vec<String> = tap
        .sightings
        .iter()
        .map(|s| format!("{:?} in {:?}", s.canary.escape_ascii().to_string(), s.flow))
        .collect();
    Outcome::holds(tap.bytes as f64 / 1024.0, "KiB passed")
        .only_if(seen.is_empty(), || seen.join("\n"))
        .only_if(tap.lost == 0, || format!("{} frames were lost, so nothing is proven", tap.lost))
        .only_if(tap.frames > 0, || "no frame was seen".into())
}

/// Every TCP connection on the wire is TLS, and the mesh's are there.
pub(in crate::demo) fn is_all_tls(tap: &TapReport) -> Outcome {
    let clear: Vec<String> = tap
        .in_clear()
        .iter()
        .map(|flow| format!("{} to {}: {:?}", flow.source, flow.destination, flow.opening))
        .collect();
    let used = tap.flows.iter().filter(|flow| flow.bytes > 0).count();
    let classical = tap.flows.iter().filter(|flow| is_classical(&flow.opening)).count();
    Outcome::holds(used as f64, "flows of TLS, X25519MLKEM768 first")
        .only_if(classical == 0, || {
            format!("{classical} connections offered no post-quantum key exchange first")
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{ClientHello, Flow, Sighting};

    fn flow(opening: Opening) -> Flow {
        let (source, destination) = ("10.0.0.3:4000".parse().unwrap(), "10.0.0.2:8201".parse().unwrap());
        Flow { source, destination, segments: 1, bytes: 100, opening }
    }

    fn hello(alpn: &str, key_share: u16) -> Flow {
        let hello = ClientHello { alpn: vec![alpn.into()], server_name: None, key_shares: vec![key_share] };
        flow(Opening::ClientHello(hello))
    }

    fn meshed() -> TapReport {
        let flows = ["mesh-h1/1", "mesh-h2/1", "mesh-rec/1"].map(|alpn| hello(alpn, HYBRID)).into();
        TapReport { frames: 3, bytes: 300, flows, ..TapReport::default() }
    }

    #[test]
    fn word_in_clear_is_found_out() {
        let sightings: Vec<Sighting> = CANARIES
            .iter()
            .map(|canary| Sighting { canary: canary.to_vec(), frame: 1, flow: None })
            .collect();
        assert!(reads_nothing(&meshed()).is_ok());
        assert!(!reads_everything(&meshed()).is_ok());
        let seen = TapReport { sightings, ..meshed() };
        assert!(!reads_nothing(&seen).is_ok());
        assert!(reads_everything(&seen).is_ok());
    }

    #[test]
    fn tap_that_lost_frames_or_saw_none_proves_nothing() {
        assert!(!reads_nothing(&TapReport { lost: 1, ..meshed() }).is_ok());
        assert!(!reads_nothing(&TapReport::default()).is_ok());
    }

    #[test]
    fn flow_in_clear_or_without_the_hybrid_key_exchange_is_found_out() {
        assert!(is_all_tls(&meshed()).is_ok());
        for bad in [flow(Opening::Other(b"GET / HTTP/1.1\r\n".to_vec())), hello("mesh-h1/1", 0x001d)] {
            let mut report = meshed();
            report.flows.push(bad);
            assert!(!is_all_tls(&report).is_ok());
        }
    }
}
