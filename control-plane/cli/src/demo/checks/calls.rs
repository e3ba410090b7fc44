//! The same clients make the same calls without and with the mesh, and must see the same.
//!
//! What is compared is [`Transcript::differences`]: statuses, header names in their case, values, bodies, trailers,
//! errors. Hop-by-hop fields (RFC 9110 section 7.6.1) may differ, because every intermediary has its own connection;
//! nothing else may.

use std::time::Duration;

use crate::demo::agents::Agents;
use crate::demo::clients::Transcript;
use crate::demo::report::Outcome;
use crate::lab::mesh::{MeshError, Metrics, Sidecar, call, wait_until};

/// A client's calls to an app.
pub(in crate::demo) struct Call {
    pub(in crate::demo) name: &'static str,
    pub(in crate::demo) from: &'static str,
    pub(in crate::demo) client: &'static [&'static str],
    pub(in crate::demo) to: To,
}

/// How an app of agent A is reached.
#[derive(Clone, Copy)]
pub(in crate::demo) enum To {
    /// From agent A itself, container to container.
    Container(&'static str, u16),
    /// From agent B, at a published port.
    Published(u16),
    /// From agent B, at a published port, IPv6.
    PublishedIpv6(u16),
}

/// Every app in its own way.
pub(in crate::demo) const CALLS: [Call; 8] = [
    Call { name: "REST between agents, IPv4", from: "b-lm-um", client: &["rest"], to: To::Published(8201) },
    Call {
        name: "REST between agents, IPv6",
        from: "b-lm-um",
        client: &["rest"],
        to: To::PublishedIpv6(8201),
    },
    Call {
        name: "REST inside agent A",
        from: "a-lm-um",
        client: &["rest"],
        to: To::Container("a-cimi", 8201),
    },
    Call { name: "GET with a body", from: "b-lm-um", client: &["get-with-body"], to: To::Published(6472) },
    Call { name: "gRPC", from: "b-lm-um", client: &["grpc"], to: To::Published(1034) },
    Call { name: "lines of text, half-close", from: "b-lm-um", client: &["line"], to: To::Published(46080) },
    Call {
        name: "a server that speaks first",
        from: "b-lm-um",
        client: &["greeter"],
        to: To::Published(3306),
    },
    Call {
        name: "an event stream",
        from: "b-lm-um",
        client: &["sse", "--events", "5", "--every", "50"],
        to: To::Published(8000),
    },
];

/// Words of those calls, from both sides and every kind of app, that pass the wire in clear without the mesh.
pub(in crate::demo) const CANARIES: [&[u8]; 6] = [
    b"cloud-entry-point",
    b"pump-7",
    b"X-CIMI-Request-ID",
    b"X-DataClay-Object",
    b"220 greeter ready",
    b"event: reading",
];

impl Call {
    pub(in crate::demo) fn address(&self, agents: &Agents) -> std::net::SocketAddr {
        match self.to {
            To::Container(workload, port) => (agents.container(workload).ipv4(), port).into(),
            To::Published(port) => agents.published(port),
            To::PublishedIpv6(port) => agents.published_ipv6(port),
        }
    }

    /// Makes the calls.
    pub(in crate::demo) fn make(&self, agents: &Agents) -> Result<Transcript, MeshError> {
        let address = self.address(agents).to_string();
        let (name, options) = self.client.split_first().unwrap_or((&"rest", &[]));
        let arguments: Vec<&str> =
            [*name, "--to", &address].into_iter().chain(options.iter().copied()).collect();
        call(agents.container(self.from).namespace(), &arguments)
    }
}

/// Every call has an answer.
pub(in crate::demo) fn answered(transcripts: &[Transcript]) -> Outcome {
    let calls = transcripts.iter().map(|transcript| transcript.exchanges.len()).sum::<usize>();
    let failed: Vec<String> = transcripts
        .iter()
        .flat_map(|transcript| &transcript.exchanges)
        .filter_map(|exchange| Some(format!("{}: {}", exchange.call, exchange.error.as_ref()?)))
        .collect();
    Outcome::holds(calls as f64, "calls").only_if(failed.is_empty(), || failed.join("\n"))
}

/// The calls look as they did without the mesh.
pub(in crate::demo) fn same(plain: &Transcript, meshed: &Transcript) -> Outcome {
    let differences = plain.differences(meshed);
    Outcome::holds(meshed.exchanges.len() as f64, "calls")
        .only_if(differences.is_empty(), || differences.join("\n"))
}

/// What the sidecars have counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::demo) struct Tally {
    pub(in crate::demo) made: f64,
    pub(in crate::demo) verified: f64,
    requests_in: f64,
    requests_out: f64,
    streams_in: f64,
    streams_out: f64,
    plaintext: f64,
}

impl Tally {
    pub(in crate::demo) fn of<'a>(sidecars: impl Iterator<Item = &'a Sidecar>) -> Result<Self, MeshError> {
        let metrics = sidecars.map(Sidecar::metrics).collect::<Result<Vec<Metrics>, _>>()?;
        let sum =
            |metric: &str, labels: &[&str]| metrics.iter().map(|metrics| metrics.sum(metric, labels)).sum();
        let (inbound, outbound) = (&["direction=\"inbound\""][..], &["direction=\"outbound\""][..]);
        Ok(Self {
            made: sum("signet_signatures_total", &[]),
            verified: sum("signet_verifications_total", &[]),
            requests_in: sum("signet_requests_total", inbound),
            requests_out: sum("signet_requests_total", outbound),
            streams_in: sum("signet_streams_total", inbound),
            streams_out: sum("signet_streams_total", outbound),
            plaintext: sum("signet_plaintext_connections_total", &[]),
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            made: self.made - before.made,
            verified: self.verified - before.verified,
            requests_in: self.requests_in - before.requests_in,
            requests_out: self.requests_out - before.requests_out,
            streams_in: self.streams_in - before.streams_in,
            streams_out: self.streams_out - before.streams_out,
            plaintext: self.plaintext - before.plaintext,
        }
    }
}

/// Each HTTP exchange of the transcripts was two signed messages, each signature was verified by the other side, and
/// everything else went as signed records.
pub(in crate::demo) fn signed(
    before: Tally,
    transcripts: &[Transcript],
    tally: impl Fn() -> Result<Tally, MeshError>,
) -> Result<Outcome, MeshError> {
    let is_http =
        |transcript: &&Transcript| transcript.exchanges.iter().any(|exchange| exchange.status.is_some());
    let http =
        transcripts.iter().filter(is_http).map(|transcript| transcript.exchanges.len()).sum::<usize>() as f64;
    let opaque = transcripts.iter().filter(|transcript| !is_http(transcript)).count() as f64;
    let expected = Tally {
        made: 2.0 * http,
        verified: 2.0 * http,
        requests_in: http,
        requests_out: http,
        streams_in: opaque,
        streams_out: opaque,
        plaintext: 0.0,
    };
    // The client may have its answer before the sidecar has counted it.
    let mut found = tally()?.since(before);
    wait_until(COUNT_LIMIT, || {
        found = tally().map_or(found, |tally| tally.since(before));
        (found == expected).then_some(())
    });
    Ok(Outcome::holds(found.made, "signatures made and verified")
        .only_if(found == expected, || format!("expected {expected:?}\nfound    {found:?}")))
}

/// How long sidecars may take to count what they have passed.
const COUNT_LIMIT: Duration = Duration::from_secs(2);
/// How long events may take longer than without the mesh: far below the pace of any event stream, far above what
/// signing one costs; a proxy that collects events before it passes them on would be seconds late.
const EVENT_DELAY_MAX_MS: f64 = 250.0;
/// How long a greeting may take longer: a mesh handshake on a small, busy machine. A proxy that waits for the client to
/// speak first adds at least its whole detection timeout.
const GREETING_DELAY_MAX_MS: f64 = 150.0;
/// Greetings measured; the middle one counts.
const GREETINGS: usize = 5;

/// The first event of a stream is not held back.
pub(in crate::demo) fn first_event(plain: &[Transcript], meshed: &[Transcript]) -> Outcome {
    let first = |transcripts: &[Transcript]| {
        let events =
            transcripts.iter().filter(|transcript| transcript.client == "sse").flat_map(|t| &t.exchanges);
        events.filter_map(|exchange| exchange.timing.events_ms.first().copied()).next()
    };
    match (first(plain), first(meshed)) {
        (Some(plain), Some(meshed)) => Outcome::holds(meshed - plain, "ms more than without")
            .only_if(meshed - plain < EVENT_DELAY_MAX_MS, || {
                format!("{meshed} ms, and {plain} ms without the mesh")
            }),
        _ => Outcome::holds(0.0, "ms").only_if(false, || "no event came".into()),
    }
}

/// A client that says nothing until it is greeted does not wait for a detection timeout.
pub(in crate::demo) fn greeting(agents: &Agents, plain: &[Transcript]) -> Result<Outcome, MeshError> {
    let banner = |transcript: &Transcript| {
        transcript
            .exchanges
            .iter()
            .find(|exchange| exchange.call == "banner")
            .map_or(f64::MAX, |exchange| exchange.timing.total_ms)
    };
    let without = plain.iter().find(|transcript| transcript.client == "greeter").map_or(0.0, banner);
    let Some(call) = CALLS.iter().find(|call| call.client == ["greeter"]) else { return Ok(answered(&[])) };
    let mut delays =
        (0..GREETINGS).map(|_| Ok(banner(&call.make(agents)?))).collect::<Result<Vec<_>, MeshError>>()?;
    delays.sort_by(f64::total_cmp);
    let middle = delays.get(GREETINGS / 2).copied().unwrap_or(f64::MAX);
    Ok(Outcome::holds(middle - without, "ms more than without")
        .only_if(middle - without < GREETING_DELAY_MAX_MS, || {
            format!("{without} ms without the mesh; all: {delays:?}")
        }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::clients::Exchange;

    fn transcript(header: &str) -> Transcript {
        let headers = vec![(header.to_owned(), "1".to_owned())];
        let exchange = Exchange { call: "GET /".into(), status: Some(200), headers, ..Exchange::default() };
        Transcript { client: "rest".into(), exchanges: vec![exchange] }
    }

    #[test]
    fn changed_case_of_a_header_is_a_difference() {
        assert!(same(&transcript("X-Id"), &transcript("X-Id")).is_ok());
        assert!(!same(&transcript("X-Id"), &transcript("x-id")).is_ok());
    }

    #[test]
    fn two_signatures_are_expected_for_each_http_call() {
        let before = Tally::default();
        let after =
            Tally { made: 2.0, verified: 2.0, requests_in: 1.0, requests_out: 1.0, ..Tally::default() };
        assert!(signed(before, &[transcript("X-Id")], || Ok(after)).unwrap().is_ok());
    }
}
