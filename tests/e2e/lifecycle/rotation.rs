//! Certificates that live two seconds.

use std::io::{BufRead, BufReader, Write};

use signet_cli::lab::mesh::{Sidecar, app, client, load_report, transcript};
use signet_cli::lab::runner::TestResult;

use crate::protocols::stage::{CLIENT_MAY_ALL, Failure, Stage, connect, manifests, statuses};

const REST: u16 = 8201;
const EVENTS: u16 = 8000;
const BYTES: u16 = 3306;
/// Fewest rotations on each side while the streams are open.
const ROTATIONS_MIN: f64 = 3.0;

pub(super) fn certificates_rotate_under_load_and_no_call_or_stream_breaks() -> TestResult {
    let stage = Stage::new()?;
    let _apps = [
        app(&stage.server, &["rest"], &[REST])?,
        app(&stage.server, &["sse"], &[EVENTS])?,
        app(&stage.server, &["greeter"], &[BYTES])?,
    ];
    let ports = format!(
        "ports: [{{port: {REST}, protocol: http}}, {{port: {EVENTS}, protocol: http}}, {{port: {BYTES}}}]"
    );
    let yaml = manifests("certificates: {app: {lifetime: 2s}}", &ports, CLIENT_MAY_ALL);
    let meshed = stage.mesh(&yaml, &[REST, EVENTS, BYTES])?;
    let sides = [&meshed.server, &meshed.client];

    let mut bytes = BufReader::new(connect(stage.client.namespace(), stage.place(BYTES))?);
    echo(&mut bytes, "220 greeter ready\r\n", "")?;
    let before = sides.map(rotations);
    let from = stage.client.namespace();
    let (rest, events) = (stage.place(REST).to_string(), stage.place(EVENTS).to_string());
    let load = client(
        from,
        &[
            "load",
            "--to",
            &rest,
            "--path",
            "/api",
            "--seconds",
            "60",
            "--rate",
            "100",
            "--kept",
            "4",
            "--fresh",
            "2",
        ],
    )?;
    let stream =
        client(from, &["sse", "--to", &events, "--events", "70", "--every", "100", "--timeout", "60"])?;
    let stream = transcript(&stream)?;
    let after = sides.map(rotations);
    echo(&mut bytes, "250 still here\n", "still here\n")?;
    load.terminate()?;
    let report = load_report(&load)?;

    for ((side, before), after) in sides.iter().zip(before).zip(after) {
        let rotations = after? - before?;
        println!("{}: {rotations} rotations, {} calls, p99 {} ms", side.workload(), report.ok, report.p99_ms);
        assert!(rotations >= ROTATIONS_MIN, "{} rotated {rotations} times", side.workload());
    }
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    assert!(report.ok > 100, "{} calls are no load", report.ok);
    assert_eq!(statuses(&stream), [Some(200)], "{stream:?}");
    let got = stream.exchanges[0].timing.events_ms.len();
    assert_eq!(got, 70, "events of the open stream");
    assert_eq!(stream.exchanges[0].error, None);
    Ok(())
}

fn rotations(sidecar: &Sidecar) -> Result<f64, Failure> {
    Ok(sidecar.metrics()?.value("signet_rotations_total"))
}

fn echo(stream: &mut BufReader<std::net::TcpStream>, expected: &str, said: &str) -> TestResult {
    stream.get_mut().write_all(said.as_bytes())?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    assert_eq!(line, expected);
    Ok(())
}
