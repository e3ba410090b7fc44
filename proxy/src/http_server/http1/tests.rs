use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::{oneshot, watch};
use tokio::task::yield_now;

use super::{AWAKENING, Answer, Reset, ServeError, Switch, Timer, serve};
use crate::body::Body;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const REST: Duration = Duration::from_secs(600);
/// Longer than anything but `REST`.
const LONG: Duration = Duration::from_secs(61);

/// More than a connection takes to come to a halt.
const TURNS: usize = 50;

/// Time that goes on when it is told to.
#[derive(Clone)]
struct Time {
    began: Instant,
    now: Rc<watch::Sender<Instant>>,
}

impl Time {
    fn new() -> Self {
        let began = Instant::now();
        Self { began, now: Rc::new(watch::Sender::new(began)) }
    }

    /// Lets it go on, in steps of a second in which everybody does what there is to do.
    async fn pass(&self, time: Duration) {
        let end = self.now() + time;
        while self.now() < end {
            for _ in 0..TURNS {
                yield_now().await;
            }
            let next = end.min(self.now() + Duration::from_secs(1));
            self.now.send_replace(next);
        }
        for _ in 0..TURNS {
            yield_now().await;
        }
    }

    fn elapsed(&self) -> Duration {
        self.now() - self.began
    }
}

impl Timer for Time {
    fn now(&self) -> Instant {
        *self.now.borrow()
    }

    fn sleep_until(&self, then: Instant) -> impl Future<Output = ()> {
        let mut now = self.now.subscribe();
        async move { drop(now.wait_for(|now| *now >= then).await) }
    }
}

#[derive(Clone, Default)]
struct Seen {
    /// How much was asked for by the last read.
    asked: Rc<Cell<usize>>,
    was_reset: Rc<Cell<bool>>,
}

impl Seen {
    /// hyper asks for more.
    fn is_at_rest(&self) -> bool {
        self.asked.get() == AWAKENING
    }
}

struct Watched {
    io: DuplexStream,
    seen: Seen,
}

impl Reset for Watched {
    fn reset(&self) {
        self.seen.was_reset.set(true);
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.seen.asked.set(buffer.remaining());
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A connection as its client has it.
struct Client {
    io: DuplexStream,
    time: Time,
    seen: Seen,
    drain: Option<oneshot::Sender<()>>,
}

impl Client {
    async fn say(&mut self, text: &[u8]) {
        self.io.write_all(text).await.unwrap();
    }

    /// Reads until `end` was read.
    async fn read_until(&mut self, end: &str) -> String {
        let mut read = String::new();
        while !read.ends_with(end) {
            let byte = self.io.read_u8().await.unwrap_or_else(|error| panic!("{error} after {read:?}"));
            read.push(char::from(byte));
        }
        read
    }

    async fn get(&mut self) {
        self.say(GET).await;
        let answer = self.read_until("\r\n\r\n/").await;
        assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("close"), "{answer}");
    }

    async fn is_closed(&mut self) -> bool {
        self.io.read(&mut [0; 1]).await.unwrap() == 0
    }
}

/// How a connection ended.
struct Ended {
    time: Time,
    seen: Seen,
    with: Result<(), ServeError>,
}

/// Serves a connection with `respond` while `client` speaks on it.
async fn talk<C>(
    respond: impl Fn(&Time, Request<Incoming>) -> Answer + Unpin + 'static,
    capacity: usize,
    client: impl FnOnce(Client) -> C,
) -> Ended
where
    C: Future<Output = ()>,
{
    let (near, far) = tokio::io::duplex(capacity);
    let (drain, draining) = oneshot::channel::<()>();
    let (time, seen) = (Time::new(), Seen::default());
    let io = Watched { io: far, seen: seen.clone() };
    let draining = async {
        if draining.await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let respond_in = time.clone();
    let serving =
        serve(&time, io, draining, Switch::default(), REST, move |request| respond(&respond_in, request));
    let client = client(Client { io: near, time: time.clone(), seen: seen.clone(), drain: Some(drain) });
    let (served, ()) = tokio::join!(serving, client);
    Ended { time: time.clone(), seen, with: served.map(|switched| assert!(switched.is_none())) }
}

fn at_once(_: &Time, request: Request<Incoming>) -> Answer {
    let path = Bytes::copy_from_slice(request.uri().path().as_bytes());
    Box::pin(async move { Ok(Response::new(Body::whole(path))) })
}

fn after_long(time: &Time, _: Request<Incoming>) -> Answer {
    let time = time.clone();
    Box::pin(async move {
        time.sleep_until(time.now() + LONG).await;
        Ok(Response::new(Body::whole(Bytes::from_static(b"/"))))
    })
}

fn echo(_: &Time, request: Request<Incoming>) -> Answer {
    Box::pin(async { Ok(Response::new(Body::plain(request.into_body()))) })
}

#[tokio::test]
async fn a_silent_connection_is_put_to_rest_and_answers_when_its_client_speaks_again() {
    let ended = talk(at_once, 1024, |mut client| async move {
        for _ in 0..3 {
            client.get().await;
            assert!(!client.seen.is_at_rest());
            client.time.pass(LONG).await;
            assert!(client.seen.is_at_rest());
        }
    });
    let ended = ended.await;
    assert!(ended.with.is_ok() && !ended.seen.was_reset.get());
}

#[tokio::test]
async fn a_request_that_comes_in_pieces_after_a_rest_is_read_as_one() {
    let ended = talk(at_once, 1024, |mut client| async move {
        client.get().await;
        client.time.pass(LONG).await;
        for byte in GET {
            client.say(&[*byte]).await;
            client.time.pass(Duration::from_millis(700)).await;
        }
        client.read_until("\r\n\r\n/").await;
        client.get().await;
    });
    assert!(ended.await.with.is_ok());
}

#[tokio::test]
async fn a_silent_connection_is_closed_in_good_order_after_its_time() {
    let ended = talk(at_once, 1024, |mut client| async move {
        client.get().await;
        client.time.pass(REST - LONG).await;
        assert!(client.seen.is_at_rest());
        client.time.pass(2 * LONG).await;
        assert!(client.is_closed().await);
    });
    let ended = ended.await;
    assert!(ended.with.is_ok() && !ended.seen.was_reset.get());
}

#[tokio::test]
async fn a_connection_at_rest_ends_at_once_on_drain() {
    let ended = talk(at_once, 1024, |mut client| async move {
        client.get().await;
        client.time.pass(LONG).await;
        assert!(client.seen.is_at_rest());
        client.drain.take().unwrap().send(()).unwrap();
        assert!(client.is_closed().await);
    });
    let ended = ended.await;
    assert!(ended.with.is_ok());
    assert_eq!(ended.time.elapsed(), LONG);
}

#[tokio::test]
async fn a_client_that_leaves_while_its_connection_is_at_rest_ends_it_in_good_order() {
    let ended = talk(at_once, 1024, |mut client| async move {
        client.get().await;
        client.time.pass(LONG).await;
        assert!(client.seen.is_at_rest());
    });
    let ended = ended.await;
    assert!(ended.with.is_ok() && !ended.seen.was_reset.get());
}

#[tokio::test]
async fn an_answer_that_takes_long_keeps_its_connection() {
    let ended = talk(after_long, 1024, |mut client| async move {
        for _ in 0..2 {
            client.say(GET).await;
            client.time.pass(LONG + LONG).await;
            let answer = client.read_until("\r\n\r\n/").await;
            assert!(!answer.contains("close"), "{answer}");
        }
    });
    assert!(ended.await.with.is_ok());
}

#[tokio::test]
async fn a_body_that_streams_slowly_both_ways_keeps_its_connection() {
    let ended = talk(echo, 1024, |mut client| async move {
        client.say(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let head = client.read_until("\r\n\r\n").await;
        assert!(!head.contains("close"), "{head}");
        for _ in 0..3 {
            client.time.pass(LONG).await;
            assert!(!client.seen.is_at_rest());
            client.say(b"3\r\nabc\r\n").await;
            client.read_until("3\r\nabc\r\n").await;
        }
        client.say(b"0\r\n\r\n").await;
        client.read_until("0\r\n\r\n").await;
        client.time.pass(LONG).await;
        assert!(client.seen.is_at_rest());
    });
    assert!(ended.await.with.is_ok());
}

#[tokio::test]
async fn an_answer_whose_client_does_not_read_is_kept_for_it() {
    const LENGTH: usize = 100_000;
    let large = |_: &Time, _: Request<Incoming>| -> Answer {
        Box::pin(async { Ok(Response::new(Body::whole(Bytes::from(vec![b'x'; LENGTH])))) })
    };
    let ended = talk(large, 512, |mut client| async move {
        client.say(GET).await;
        client.time.pass(LONG).await;
        assert!(!client.seen.is_at_rest());
        let head = client.read_until("\r\n\r\n").await;
        assert!(!head.contains("close"), "{head}");
        let mut body = vec![0; LENGTH];
        client.io.read_exact(&mut body).await.unwrap();
        assert!(body.iter().all(|byte| *byte == b'x'));
    });
    assert!(ended.await.with.is_ok());
}

/// Sends a body after its answer, which came `after` its head and dropped what there was of it.
async fn body_after_answer(after: Duration) {
    let asked = Rc::new(Cell::new(0));
    let counted = Rc::clone(&asked);
    let ignoring = move |time: &Time, request: Request<Incoming>| -> Answer {
        assert_eq!(request.uri().path(), "/");
        counted.set(counted.get() + 1);
        let time = time.clone();
        Box::pin(async move {
            let body = request.into_body();
            time.sleep_until(time.now() + after).await;
            drop(body);
            Ok(Response::new(Body::whole(Bytes::from_static(b"/"))))
        })
    };
    let ended = talk(ignoring, 1024, |mut client| async move {
        let smuggled = b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", smuggled.len());
        client.say(head.as_bytes()).await;
        client.time.pass(after).await;
        client.read_until("\r\n\r\n/").await;
        // It may be closed by then.
        let _ = client.io.write_all(smuggled).await;
        client.time.pass(LONG).await;
        let _ = client.io.write_all(GET).await;
        client.time.pass(LONG).await;
    });
    drop(ended.await);
    assert!((1..=2).contains(&asked.get()));
}

#[tokio::test]
async fn the_rest_of_a_body_that_nobody_waited_for_is_never_taken_for_a_request() {
    // Also where the answer comes at the very moment at which the connection is looked at.
    for seconds in [0, 1, 4, 5, 6, 10, 15, 61] {
        body_after_answer(Duration::from_secs(seconds)).await;
    }
}

async fn slow_head(before: &'static [u8], pause: Duration) -> Ended {
    talk(at_once, 1024, |mut client| async move {
        if !before.is_empty() {
            client.get().await;
        }
        client.time.pass(pause).await;
        client.say(b"GET / HT").await;
        client.time.pass(Duration::from_secs(40)).await;
        assert!(client.seen.was_reset.get());
    })
    .await
}

#[tokio::test]
async fn a_head_that_is_never_complete_ends_its_connection_whenever_it_begins() {
    for (before, pause) in [(&b""[..], Duration::ZERO), (GET, Duration::from_secs(1)), (GET, LONG)] {
        let ended = slow_head(before, pause).await;
        assert!(matches!(ended.with, Err(ServeError::SlowHead)), "after {pause:?}: {:?}", ended.with);
    }
}
