//! Plaintext callers of a permissive workload.

use std::io::{self, Read};

use signet_cli::lab::mesh::app;
use signet_cli::lab::runner::TestResult;

use super::http::get;
use super::stage::{CLIENT_MAY_ALL, Stage, connect, manifests, policy};

const OPEN: u16 = 8201;
const CLOSED: u16 = 8202;
const OPEN_BYTES: u16 = 3306;
const CLOSED_BYTES: u16 = 3307;

pub(super) fn plaintext_caller_is_served_exactly_where_anyone_may_call() -> TestResult {
    let stage = Stage::new()?;
    let _http = app(&stage.server, &["rest"], &[OPEN, CLOSED])?;
    let _bytes = app(&stage.server, &["greeter"], &[OPEN_BYTES, CLOSED_BYTES])?;
    let server = format!(
        "mtls: {{mode: permissive}}, ports: [{{port: {OPEN}, protocol: http}}, {{port: {CLOSED}, protocol: http}}, \
         {{port: {OPEN_BYTES}}}, {{port: {CLOSED_BYTES}}}]"
    );
    let anyone = policy(
        "get-is-for-anyone",
        &format!("ports: [{OPEN}]"),
        "- from: [{any: anyone}]\n      to: [{methods: [GET]}]",
    );
    let bytes = policy("bytes-are-for-anyone", &format!("ports: [{OPEN_BYTES}]"), "- from: [{any: anyone}]");
    let manifests = format!("{}---\n{anyone}---\n{bytes}", manifests("", &server, CLIENT_MAY_ALL));
    let meshed = stage.mesh(&manifests, &[OPEN, CLOSED, OPEN_BYTES, CLOSED_BYTES])?;
    let stranger = stage.host.container("stranger")?;

    for to in [stage.place(OPEN), stage.place_ipv6(OPEN)] {
        assert_eq!(get(stranger.namespace(), to, "/api")?.status(), 200, "anyone may GET at {to}");
    }
    let refused = get(stranger.namespace(), stage.place(CLOSED), "/api")?;
    assert_eq!((refused.status(), refused.code().as_deref()), (403, Some("access-denied")));
    assert_eq!(greeting(&stage, &stranger, OPEN_BYTES)?, b"220");
    assert_eq!(greeting(&stage, &stranger, CLOSED_BYTES)?, b"", "a greeting for somebody that no rule names");
    let plaintext = meshed.server.metrics()?.sum("signet_plaintext_connections_total", &["inbound"]);
    assert!(plaintext >= 3.0, "plaintext is counted: {plaintext}");

    // Who has an identity is served at both, and never in clear.
    for port in [OPEN, CLOSED] {
        assert_eq!(
            get(stage.client.namespace(), stage.place(port), "/api")?.status(),
            200,
            "the client, at {port}"
        );
    }
    assert_eq!(meshed.client.metrics()?.sum("signet_plaintext_connections_total", &["outbound"]), 0.0);
    Ok(())
}

/// The first three bytes that come to a client which says nothing; none if it is refused.
fn greeting(
    stage: &Stage,
    from: &signet_cli::lab::Container,
    port: u16,
) -> Result<Vec<u8>, super::stage::Failure> {
    let stream = connect(from.namespace(), stage.place(port))?;
    let mut heard = Vec::new();
    match stream.take(3).read_to_end(&mut heard) {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error.into()),
        _ => Ok(heard),
    }
}
