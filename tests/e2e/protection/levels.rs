//! The level of a workload changes while calls are made.

use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use signet_cli::lab::mesh::intruder::Answer;
use signet_cli::lab::mesh::{Sidecar, app};
use signet_cli::lab::runner::TestResult;
use signet_tests::manifest::{allow, mesh, policy, workload};
use signet_tests::plain::get;
use signet_tests::{Ended, Failure, LIMIT, Plain, Recorder, Site, place, wait_for};

use super::stand::{Back, HTTP, PROTECTED, PUBLIC, Pair, SECOND, server};
use crate::protocols::http::read_request;
use crate::protocols::server::serve;

const EVENTS: u16 = 8000;

fn streaming_server(protection: &str) -> String {
    let ports = "ports: [{port: 8201, protocol: http}, {port: 8000, protocol: http}]";
    workload("server", &[ports, protection])
}

fn count(sidecar: &Sidecar, name: &str) -> Result<f64, Failure> {
    Ok(sidecar.metrics()?.sum(name, &[]))
}

/// While the two sidecars learn of it one after the other, a call may be refused, for this reason.
fn served(answer: Result<Answer, Failure>) -> bool {
    let Ok(answer) = answer else { return false };
    let code = answer.code();
    let refused = matches!(
        (answer.status, code.as_deref()),
        (400, Some("signature-missing")) | (502, Some("response-unverified"))
    );
    assert!(answer.status == 200 || refused, "{answer:?}");
    answer.status == 200
}

pub(super) fn raised_level_ends_unsigned_exchanges_and_signs_the_next_call() -> TestResult {
    let site = Site::new(&[
        mesh(&[]),
        streaming_server(PUBLIC),
        workload("client", &[]),
        policy("open", "server", &[&allow("client", "")]),
    ])?;
    let (container, client) = (site.container("server")?, site.container("client")?);
    let _events = app(&container, &["sse"], &[EVENTS])?;
    let upload_app = Recorder::http(&container, HTTP)?;
    let [receiver, sender] = site.sidecars([(&container, "server"), (&client, "client")])?;
    let (to, events_at) = (place(&container, HTTP), place(&container, EVENTS));
    for place in [to, events_at] {
        sender.wait_until_known(place)?;
    }

    let mut events = Plain::dial(&client, events_at)?;
    events.send(get("/events?n=600&every=50", "server").as_bytes())?;
    events.read_until("id: 3\n")?;
    // To an old client the end of the connection is the end of the answer, if it is not a reset.
    let mut old = Plain::dial(&client, events_at)?;
    old.send(b"GET /events?n=600&every=50 HTTP/1.0\r\nHost: server\r\n\r\n")?;
    old.read_until("id: 3\n")?;
    let mut upload = Plain::dial(&client, to)?;
    upload
        .send(b"POST /upload HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")?;
    upload_app.wait_for("the first chunk", |all| {
        all.iter().any(|one| String::from_utf8_lossy(&one.bytes).contains("first"))
    })?;
    assert_eq!(count(&sender, "signet_signatures_total")?, 0.0, "nothing was signed so far");

    site.mesh.apply("raise.yaml", &streaming_server(PROTECTED))?;
    let (received, ended) = events.rest();
    assert_ne!(ended, Ended::Open, "unsigned events still come");
    assert!(!received.ends_with(b"0\r\n\r\n"), "the stream pretends to be complete");
    assert_eq!(old.rest().1, Ended::Reset, "an answer that lasts until the connection ends");
    let over = upload_app.wait_for("the end of the upload", |all| all[0].ended != Ended::Open)?;
    let text = String::from_utf8_lossy(&over[0].bytes).into_owned();
    assert!(!text.contains("0\r\n\r\n"), "the upload pretends to be complete: {text}");
    assert!(upload_app.requests().is_empty(), "half an upload was a whole one: {:?}", upload_app.requests());
    let (answer, ended) = upload.rest();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert_ne!(ended, Ended::Open, "the upload goes on: {answer}");
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");

    let ask = || Plain::ask(&client, to, &get("/next", "server"));
    wait_for("a signed call", || {
        (served(ask()) && count(&receiver, "signet_signatures_total").is_ok_and(|count| count > 0.0))
            .then_some(())
    })?;
    let read =
        |name: &str| -> Result<[f64; 2], Failure> { Ok([count(&sender, name)?, count(&receiver, name)?]) };
    let (signed, unsigned) = (read("signet_signatures_total")?, read("signet_unsigned_messages_total")?);
    assert_eq!(ask()?.status, 200);
    assert_eq!(read("signet_signatures_total")?, signed.map(|count| count + 1.0), "request and answer");
    assert_eq!(read("signet_unsigned_messages_total")?, unsigned, "nothing unsigned is taken any more");
    Ok(())
}

/// When the app may answer, and that it was asked.
struct Gate {
    asked: Mutex<Sender<()>>,
    answer: Mutex<Receiver<()>>,
}

fn answer_when_told(stream: TcpStream, gate: &Gate) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while read_request(&mut stream)?.is_some() {
        let told = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        gate.asked.lock().unwrap_or_else(PoisonError::into_inner).send(()).map_err(told)?;
        let released = gate.answer.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(LIMIT);
        released.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nunsigned")?;
    }
    Ok(())
}

pub(super) fn unsigned_call_that_waits_for_its_answer_ends_when_the_level_is_raised() -> TestResult {
    let pair = Pair::new(&[], PUBLIC)?;
    let ((asked, is_asked), (answer, may_answer)) = (channel(), channel());
    let gate = Gate { asked: Mutex::new(asked), answer: Mutex::new(may_answer) };
    serve(pair.receiver.container(), SECOND, Arc::new(gate), answer_when_told)?;
    let slow = place(pair.receiver.container(), SECOND);
    pair.sender.wait_until_known(slow)?;
    let mut waiting = Plain::dial(&pair.client, slow)?;
    waiting.send(get("/waits", "server").as_bytes())?;
    is_asked.recv_timeout(LIMIT)?;

    pair.site.mesh.apply("raise.yaml", &server(PROTECTED))?;
    wait_for("a signed call", || {
        let signs = count(&pair.receiver, "signet_signatures_total").is_ok_and(|count| count > 0.0);
        (served(pair.ask(&get("/next", "server"))) && signs).then_some(())
    })?;
    // The app may be gone already.
    let _ = answer.send(());
    let (received, ended) = waiting.rest();
    let received = String::from_utf8_lossy(&received).into_owned();
    assert!(!received.contains("200 OK") && !received.contains("unsigned"), "delivered: {received}");
    assert!(ended != Ended::Open || received.contains("urn:mesh:err:"), "left waiting: {received:?}");
    Ok(())
}

pub(super) fn answers_must_be_signed_from_the_moment_the_level_is_raised() -> TestResult {
    let back = Back::new(PUBLIC)?;
    let impostor =
        back.serve(Arc::new(|_, _| b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nunsigned".to_vec()))?;
    assert_eq!(back.ask(&get("/api", "server"))?.status, 200);
    back.site.mesh.apply("raise.yaml", &server(PROTECTED))?;
    let refused = wait_for("the refusal of an unsigned answer", || {
        let answer = back.ask(&get("/api", "server")).ok()?;
        (!served(Ok(answer.clone()))).then_some(answer)
    })?;
    assert_eq!((refused.status, refused.code().as_deref()), (502, Some("response-unverified")));
    assert!(
        impostor.requests().pop().is_some_and(|head| head.contains("mesh-req-b-v1")),
        "the request is signed"
    );
    Ok(())
}

pub(super) fn lowered_level_lets_the_next_call_pass_unsigned() -> TestResult {
    let pair = Pair::new(&[], PROTECTED)?;
    let ask = || pair.ask(&get("/api", "server"));
    assert_eq!(ask()?.status, 200);
    assert_eq!(count(&pair.sender, "signet_unsigned_messages_total")?, 0.0);
    pair.site.mesh.apply("lower.yaml", &server(PUBLIC))?;
    wait_for("an unsigned call", || {
        let taken = |sidecar| count(sidecar, "signet_unsigned_messages_total").is_ok_and(|count| count > 0.0);
        (served(ask()) && taken(&pair.sender) && taken(&pair.receiver)).then_some(())
    })?;
    let read = || -> Result<[f64; 2], Failure> {
        Ok([
            count(&pair.sender, "signet_signatures_total")?,
            count(&pair.receiver, "signet_signatures_total")?,
        ])
    };
    let signed = read()?;
    assert_eq!(ask()?.status, 200);
    assert_eq!(read()?, signed, "nothing is signed any more");
    Ok(())
}
