//! Sidecars that are asked to end, and sidecars that are killed.

use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use signet_cli::lab::Tap;
use signet_cli::lab::mesh::{Sidecar, app, wait_until};
use signet_cli::lab::runner::TestResult;

use crate::protocols::http::{Caller, get, read_request};
use crate::protocols::server::serve;
use crate::protocols::stage::{CLIENT_MAY_ALL, Failure, LIMIT, Meshed, Stage, manifests};

const REST: u16 = 8201;
const SLOW: u16 = 8202;
const HALF: usize = 100_000;

/// A slow app: it has a request, and answers the second half when it is told to.
struct Slow {
    has_request: Mutex<Sender<()>>,
    go_on: Mutex<Receiver<()>>,
}

fn answer_in_halves(stream: TcpStream, slow: &Slow) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while read_request(&mut stream)?.is_some() {
        let stream = stream.get_mut();
        stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 * HALF).as_bytes())?;
        stream.write_all(&[b'1'; HALF])?;
        // A test that has failed already listens and speaks no more.
        let _ = slow.has_request.lock().unwrap_or_else(PoisonError::into_inner).send(());
        let _ = slow.go_on.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(LIMIT);
        stream.write_all(&[b'2'; HALF])?;
    }
    Ok(())
}

struct Place {
    stage: Stage,
    meshed: Meshed,
    has_request: Receiver<()>,
    go_on: Sender<()>,
    _rest: signet_cli::lab::Proc,
}

impl Place {
    fn new() -> Result<Self, Failure> {
        let stage = Stage::new()?;
        let rest = app(&stage.server, &["rest"], &[REST])?;
        let (has_request, sees_request) = channel();
        let (tell, go_on) = channel();
        let slow = Slow { has_request: Mutex::new(has_request), go_on: Mutex::new(go_on) };
        serve(&stage.server, SLOW, Arc::new(slow), answer_in_halves)?;
        let ports = format!("ports: [{{port: {REST}, protocol: http}}, {{port: {SLOW}, protocol: http}}]");
        let meshed = stage.mesh(&manifests("", &ports, CLIENT_MAY_ALL), &[REST, SLOW])?;
        Ok(Self { stage, meshed, has_request: sees_request, go_on: tell, _rest: rest })
    }

    /// A request that the slow app is answering.
    fn begin_slow_call(&self) -> Result<Caller, Failure> {
        let mut caller = Caller::open(self.stage.client.namespace(), self.stage.place(SLOW))?;
        caller.send("GET /slow HTTP/1.1\r\nHost: server\r\n\r\n")?;
        self.has_request.recv_timeout(LIMIT)?;
        Ok(caller)
    }

    fn is_served(&self) -> bool {
        self.call("/api").is_ok_and(|status| status == 200)
    }

    fn call(&self, target: &str) -> Result<u16, Failure> {
        Ok(get(self.stage.client.namespace(), self.stage.place(REST), target)?.status())
    }
}

pub(super) fn terminated_sidecar_finishes_what_is_in_flight_and_takes_nothing_new() -> TestResult {
    let mut place = Place::new()?;
    let tap = Tap::start(place.stage.server.namespace(), "eth0", &[b"/canary-after-the-end"], None)?;
    let of_server: fn(&mut Meshed) -> &mut Sidecar = |meshed| &mut meshed.server;
    let of_client: fn(&mut Meshed) -> &mut Sidecar = |meshed| &mut meshed.client;
    for side in [of_server, of_client] {
        assert!(place.is_served());
        let mut in_flight = place.begin_slow_call()?;
        let workload = side(&mut place.meshed).workload().to_owned();
        side(&mut place.meshed).process().ok_or("the sidecar does not run")?.terminate()?;
        let refused = wait_until(LIMIT, || (!place.is_served()).then_some(()));
        assert!(refused.is_some(), "the sidecar of {workload} still takes new calls");

        place.go_on.send(())?;
        let answer = in_flight.answer().map_err(|error| format!("in flight at {workload}: {error}"))?;
        assert_eq!(answer.status(), 200);
        assert_eq!(
            answer.body.len(),
            2 * HALF,
            "the whole answer, though {workload}'s sidecar was asked to end"
        );
        drop(in_flight);
        assert_eq!(
            side(&mut place.meshed).terminate(LIMIT)?,
            Some(0),
            "exit code of the sidecar of {workload}"
        );
        assert!(
            place.call("/canary-after-the-end").map_or(true, |status| status != 404),
            "the app was reached"
        );
        side(&mut place.meshed).restart()?;
        if workload == "client" {
            place.meshed.client.wait_until_known(place.stage.place(REST))?;
        }
    }
    assert!(place.is_served());
    let report = tap.report()?;
    assert_eq!((report.lost, report.sightings.len()), (0, 0), "in clear: {:?}", report.sightings);
    Ok(())
}

pub(super) fn killed_sidecar_leaks_nothing_and_serves_again_when_restarted() -> TestResult {
    let mut place = Place::new()?;
    let tap = Tap::start(place.stage.server.namespace(), "eth0", &[b"/canary-of-the-dead"], None)?;
    let of_server: fn(&mut Meshed) -> &mut Sidecar = |meshed| &mut meshed.server;
    let of_client: fn(&mut Meshed) -> &mut Sidecar = |meshed| &mut meshed.client;
    for side in [of_server, of_client] {
        assert!(place.is_served());
        let mut in_flight = place.begin_slow_call()?;
        side(&mut place.meshed).kill();
        // What was in flight fails; it neither hangs nor looks whole.
        match in_flight.answer() {
            Ok(answer) => assert!(matches!(answer.status(), 502..=504), "{}", answer.start),
            Err(error) => assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "the client was left waiting"),
        }
        place.go_on.send(())?;
        for _ in 0..3 {
            let status = place.call("/canary-of-the-dead");
            assert!(!matches!(status, Ok(200..=499)), "answered without a sidecar: {status:?}");
        }
        side(&mut place.meshed).restart()?;
        place.meshed.client.wait_until_known(place.stage.place(REST))?;
        // The other side may first have to notice that its connections are gone; no call is tried again for us.
        assert!(wait_until(LIMIT, || place.is_served().then_some(())).is_some(), "served again");
        assert_eq!(place.call("/api")?, 200);
    }
    let report = tap.report()?;
    assert_eq!((report.lost, report.sightings.len()), (0, 0), "in clear: {:?}", report.sightings);
    assert!(report.in_clear().is_empty(), "not TLS: {:?}", report.in_clear());
    Ok(())
}
