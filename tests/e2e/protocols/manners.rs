//! HTTP/1.1 as old programs, odd programs and attackers write it.

use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use signet_cli::lab::runner::TestResult;

use super::http::{Caller, Message, get, read_request};
use super::server::serve;
use super::stage::{CLIENT_MAY_ALL, Failure, LIMIT, Meshed, Stage, manifests};

const PORT: u16 = 8201;
/// Larger than what travels under one digest, so it is on its way to the app before it has ended.
const LARGE: usize = 200_000;

/// What reaches the app: a whole request, or the error with which one broke off.
type Seen = Result<Message, io::ErrorKind>;

struct Place {
    stage: Stage,
    meshed: Meshed,
    seen: Receiver<Seen>,
}

impl Place {
    fn new() -> Result<Self, Failure> {
        let stage = Stage::new()?;
        let (notes, seen) = channel();
        serve(&stage.server, PORT, Arc::new(Mutex::new(notes)), answer_each)?;
        let ports = format!("ports: [{{port: {PORT}, protocol: http}}]");
        let meshed = stage.mesh(&manifests("", &ports, CLIENT_MAY_ALL), &[PORT])?;
        Ok(Self { stage, meshed, seen })
    }

    fn caller(&self) -> Result<Caller, Failure> {
        Caller::open(self.stage.client.namespace(), self.stage.place(PORT))
    }

    fn get(&self, target: &str) -> Result<Message, Failure> {
        get(self.stage.client.namespace(), self.stage.place(PORT), target)
    }

    fn next_seen(&self) -> Result<Seen, Failure> {
        Ok(self.seen.recv_timeout(LIMIT)?)
    }

    /// A request that reached the app whole.
    fn next_request(&self) -> Result<Message, Failure> {
        self.next_seen()?.map_err(|error| format!("a request broke off: {error}").into())
    }

    /// The next thing the app sees is this: nothing came to it before.
    fn sees_nothing_before(&self, target: &str) -> TestResult {
        assert_eq!(self.get(target)?.status(), 200, "{target}");
        let seen = self.next_seen()?.map(|request| request.start);
        assert_eq!(seen, Ok(format!("GET {target} HTTP/1.1")));
        Ok(())
    }
}

fn answer_each(stream: TcpStream, notes: &Mutex<Sender<Seen>>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let note = |seen| {
        // A test that has failed already does not listen any more.
        let _ = notes.lock().unwrap_or_else(PoisonError::into_inner).send(seen);
    };
    loop {
        let request = match read_request(&mut stream) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) => {
                note(Err(error.kind()));
                return Err(error);
            }
        };
        let target = request.start.split(' ').nth(1).unwrap_or_default().to_owned();
        let is_head = request.start.starts_with("HEAD ");
        note(Ok(request));
        let stream = stream.get_mut();
        match target.as_str() {
            _ if is_head => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\nETag: \"e\"\r\n\r\n")?,
            "/empty" => stream.write_all(b"HTTP/1.1 204 No Content\r\nX-Left: over\r\n\r\n")?,
            "/unchanged" => stream.write_all(b"HTTP/1.1 304 Not Modified\r\nETag: \"e\"\r\n\r\n")?,
            "/until-close" => return stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end"),
            "/trailers" => stream.write_all(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 42\r\n\r\n",
            )?,
            "/breaks-length" => {
                stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").as_bytes())?;
                return stream.write_all(&[b'x'; LARGE / 2]);
            }
            "/breaks-chunks" => {
                return stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n");
            }
            other => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{other}", other.len());
                stream.write_all(head.as_bytes())?;
            }
        }
    }
}

pub(super) fn old_and_rare_http_reaches_the_app_as_it_was_sent() -> TestResult {
    let place = Place::new()?;

    let mut caller = place.caller()?;
    caller.send("GET /old HTTP/1.0\r\nHost: server\r\n\r\n")?;
    let answer = caller.answer()?;
    assert_eq!((answer.status(), answer.body.as_slice()), (200, &b"/old"[..]));
    assert_eq!(caller.rest()?, b"", "HTTP/1.0: the connection ends with the answer");
    place.next_request()?;

    for version in ["1.0", "1.1"] {
        let mut caller = place.caller()?;
        caller.send(format!("GET /until-close HTTP/{version}\r\nHost: server\r\n\r\n"))?;
        assert_eq!(caller.answer()?.body, b"to the end", "HTTP/{version}, without a length");
        place.next_request()?;
    }

    let mut caller = place.caller()?;
    caller.send("HEAD /thing HTTP/1.1\r\nHost: server\r\n\r\n")?;
    let answer = caller.head()?;
    assert_eq!((answer.status(), answer.header("content-length")), (200, Some("12345")));
    caller.send("GET /empty HTTP/1.1\r\nHost: server\r\n\r\n")?;
    let answer = caller.answer()?;
    assert_eq!((answer.status(), answer.header("x-left")), (204, Some("over")));
    assert_eq!(
        (answer.header("content-length"), answer.header("transfer-encoding")),
        (None, None),
        "204 has no body"
    );
    caller.send("GET /unchanged HTTP/1.1\r\nHost: server\r\nIf-None-Match: \"e\"\r\n\r\n")?;
    assert_eq!(caller.answer()?.status(), 304);
    caller.send("GET /trailers HTTP/1.1\r\nHost: server\r\nTE: trailers\r\n\r\n")?;
    let answer = caller.answer()?;
    assert_eq!(answer.body, b"body");
    assert_eq!(lower(&answer.trailers), [("x-sum".to_owned(), "42".to_owned())], "trailers of the answer");
    for _ in 0..4 {
        place.next_request()?;
    }

    caller.send("POST /chunks HTTP/1.1\r\nHost: server\r\nX-CaSe: KePt\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")?;
    caller.send("3\r\none\r\n5;ext=1\r\n, two\r\n0\r\nX-Sum: 42\r\n\r\n")?;
    assert_eq!(caller.answer()?.body, b"/chunks");
    let request = place.next_request()?;
    assert_eq!(request.body, b"one, two");
    assert_eq!(lower(&request.trailers), [("x-sum".to_owned(), "42".to_owned())], "trailers of the request");
    assert!(request.headers.contains(&("X-CaSe".to_owned(), "KePt".to_owned())), "{:?}", request.headers);
    let of_the_mesh = |name: &str| name.starts_with("mesh-") || name.starts_with("signature");
    assert!(!lower(&request.headers).iter().any(|(name, _)| of_the_mesh(name)), "{:?}", request.headers);

    caller.send(
        "POST /asks-first HTTP/1.1\r\nHost: server\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    )?;
    assert_eq!(caller.head()?.status(), 100);
    caller.send("hello")?;
    assert_eq!(caller.answer()?.status(), 200);
    assert_eq!(place.next_request()?.body, b"hello");

    caller.send("GET /1 HTTP/1.1\r\nHost: server\r\n\r\nGET /2 HTTP/1.1\r\nHost: server\r\n\r\nGET /3 HTTP/1.1\r\nHost: server\r\n\r\n")?;
    for target in ["/1", "/2", "/3"] {
        assert_eq!(caller.answer()?.body, target.as_bytes(), "pipelined");
    }
    Ok(())
}

fn lower(fields: &[(String, String)]) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect()
}

pub(super) fn bad_http_is_refused_and_harms_nobody_else() -> TestResult {
    let place = Place::new()?;
    place.sees_nothing_before("/start")?;

    let huge = "h".repeat(70 * 1024);
    let bad: [(&str, String, &[u16]); 5] = [
        ("a header of 70 KiB", format!("GET / HTTP/1.1\r\nHost: server\r\nX-Huge: {huge}\r\n\r\n"), &[431]),
        (
            "two lengths",
            "POST / HTTP/1.1\r\nHost: server\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx".into(),
            &[400],
        ),
        ("a folded header", "GET / HTTP/1.1\r\nHost: server\r\nX-A: b\r\n c\r\n\r\n".into(), &[400]),
        ("no host", "GET / HTTP/1.1\r\n\r\n".into(), &[400]),
        (
            "a chunk without a size",
            "POST / HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".into(),
            &[400],
        ),
    ];
    let mut wrong = Vec::new();
    for (what, request, expected) in &bad {
        let mut caller = place.caller()?;
        // The sidecar may close before it has read all of it.
        let _ = caller.send(request);
        let answer = caller.answer().map_err(|error| format!("{what}: {error}"))?;
        println!("{what}: {}", answer.start);
        if !expected.contains(&answer.status()) {
            wrong.push(format!("{what}: {}", answer.start));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    // A request that is refused for its framing leaves nothing to read after it: the connection ends.
    let mut caller = place.caller()?;
    let _ = caller.send(&bad[1].1);
    caller.answer()?;
    assert_eq!(caller.rest()?, b"");
    place.sees_nothing_before("/after-bad-heads")?;

    // What is beyond the announced length is no part of the body, and no second request either.
    let mut caller = place.caller()?;
    caller.send("POST /five HTTP/1.1\r\nHost: server\r\nContent-Length: 5\r\n\r\nhello and more\r\n\r\n")?;
    assert_eq!(caller.answer()?.status(), 200);
    assert_eq!(place.next_request()?.body, b"hello");
    let rest = String::from_utf8(caller.rest()?)?;
    assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 400 "), "{rest}");
    place.sees_nothing_before("/after-too-much")?;

    // Neither bytes that are no HTTP nor clients that never finish reach anybody.
    let mut caller = place.caller()?;
    caller.send([0, 1, 2, 3, b'\r', b'\n', b'\r', b'\n'])?;
    let answer = String::from_utf8_lossy(&caller.rest()?).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    let slow = (0..200)
        .map(|_| {
            let mut caller = place.caller()?;
            caller.send("GET /slow HTTP/1.1\r\nHost: ser")?;
            Ok(caller)
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    place.sees_nothing_before("/beside-the-slow")?;
    drop(slow);

    for sidecar in [&place.meshed.server, &place.meshed.client] {
        assert_eq!(
            sidecar.process().and_then(|process| process.status()),
            None,
            "{} runs on",
            sidecar.workload()
        );
        assert_eq!(sidecar.state()?["ready"], true);
        assert!(!sidecar.log_tail().contains("panicked"), "{}", sidecar.log_tail());
    }

    // Nothing that is HTTP so far ends without a word, however long its first line is.
    let mut caller = place.caller()?;
    let _ = caller.send(format!("GET /{huge} HTTP/1.1\r\nHost: server\r\n\r\n"));
    let answer = caller.answer().map_err(|error| format!("a target of 70 KiB: {error}"))?;
    assert_eq!(answer.status(), 414, "a target of 70 KiB: {}", answer.start);
    Ok(())
}

pub(super) fn body_that_breaks_off_never_looks_complete_to_the_app() -> TestResult {
    let place = Place::new()?;
    let half = "x".repeat(LARGE / 2);
    let length = format!("POST /length HTTP/1.1\r\nHost: server\r\nContent-Length: {LARGE}\r\n\r\n{half}");
    let chunks = format!(
        "POST /chunks HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{half}\r\n",
        half.len()
    );
    for (what, request) in [("by length", length), ("in chunks", chunks)] {
        let mut caller = place.caller()?;
        caller.send(request)?;
        drop(caller.into_stream());
        let seen = place.next_seen()?;
        assert!(
            seen.is_err(),
            "half a body {what} reached the app as a whole request: {:?}",
            seen.map(|request| request.start)
        );
    }
    // A small body is not passed on before all of it is there.
    let mut caller = place.caller()?;
    caller.send("POST /small HTTP/1.1\r\nHost: server\r\nContent-Length: 100\r\n\r\nhalf")?;
    drop(caller.into_stream());
    place.sees_nothing_before("/after-half-a-small-body")?;

    // The other way round, the client must not take half an answer for a whole one.
    for target in ["/breaks-length", "/breaks-chunks"] {
        let mut caller = place.caller()?;
        caller.send(format!("GET {target} HTTP/1.1\r\nHost: server\r\n\r\n"))?;
        match caller.answer() {
            Ok(answer) => assert!(matches!(answer.status(), 502..=504), "{target}: {}", answer.start),
            Err(error) => {
                assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "{target}: the client was left waiting")
            }
        }
        assert_eq!(place.next_seen()?.map(|request| request.start), Ok(format!("GET {target} HTTP/1.1")));
    }
    place.sees_nothing_before("/end")
}
