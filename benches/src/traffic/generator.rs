//! HTTP/1.1 load: a closed loop, or an open loop that does not omit what it had to wait for.
//!
//! In the open loop every request has a moment at which it should be sent. Its latency counts from that moment, also
//! when no connection was free then or this process was late, so that a stall shows in every request it delayed
//! (G. Tene's "coordinated omission"). One thread, non-blocking sockets, `epoll` and a `timerfd`: timers of
//! milliseconds would be coarser than what is measured.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::Place;
use super::response::Response;

/// The connections of one run: file descriptors are raised for this many.
pub const CONNECTIONS_MAX: usize = 20_000;
/// A run with this many failed requests measures nothing.
const ERRORS_MAX: u64 = 1_000;
/// How long requests of an open loop may still be answered after its end.
const GRACE: Duration = Duration::from_secs(5);
/// Latencies above this are counted as this much.
const LATENCY_MAX: Duration = Duration::from_secs(60);
/// Events taken at a time.
const EVENTS: usize = 256;
const TIMER: u64 = u64::MAX;

/// What to send, and how.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Plan {
    /// Where to.
    pub to: Place,
    /// Method and target, such as `GET /1k`.
    pub request: String,
    /// Bytes of the request's body.
    pub body: usize,
    /// Connections, all of them open from the start.
    pub connections: usize,
    /// Requests per second; as fast as they are answered without.
    pub rate: Option<u32>,
    /// A new connection for each request.
    pub reconnect: bool,
    /// How long.
    pub length: Duration,
    /// Ends the closed loop sooner, after so many answers.
    pub requests: Option<u64>,
}

/// What came of it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Outcome {
    /// Requests that were answered in full.
    pub requests: u64,
    /// Requests that were not.
    pub errors: u64,
    /// What the first of them met.
    pub first_error: Option<String>,
    /// From the first request to the end, seconds.
    pub seconds: f64,
    /// Latency percentiles in microseconds: 50, 90, 99, 99.9 and the greatest.
    pub latency_us: [f64; 5],
}

/// The percentiles of [`Outcome::latency_us`] but the last, the greatest.
pub const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

struct Connection {
    stream: TcpStream,
    /// When the request on it should have been sent; `None` when it is free.
    since: Option<Instant>,
    sent: usize,
    response: Response,
}

struct Engine<'a> {
    plan: &'a Plan,
    request: Vec<u8>,
    epoll: Epoll,
    connections: Vec<Connection>,
    free: Vec<usize>,
    /// Requests of the open loop that wait for a connection.
    due: VecDeque<Instant>,
    histogram: Histogram<u64>,
    outcome: Outcome,
    buffer: Vec<u8>,
}

/// Sends until the time is over.
///
/// # Errors
/// A place that cannot be reached at all, or too many failed requests.
pub fn run(plan: &Plan) -> io::Result<Outcome> {
    let mut engine = Engine::new(plan)?;
    match plan.rate {
        Some(rate) => engine.open_loop(f64::from(rate))?,
        None => engine.closed_loop()?,
    }
    Ok(engine.finish())
}

impl<'a> Engine<'a> {
    fn new(plan: &'a Plan) -> io::Result<Self> {
        let histogram = Histogram::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, 3);
        let mut engine = Self {
            plan,
            request: text(plan),
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            connections: Vec::new(),
            free: Vec::new(),
            due: VecDeque::new(),
            histogram: histogram.map_err(|error| io::Error::other(error.to_string()))?,
            outcome: Outcome::default(),
            buffer: vec![0; 64 * 1024],
        };
        for number in 0..plan.connections.min(CONNECTIONS_MAX) {
            let connection = engine.connect(number)?;
            engine.connections.push(connection);
            engine.free.push(number);
        }
        Ok(engine)
    }

    fn closed_loop(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        let end = begun + self.plan.length;
        self.send_at_once()?;
        loop {
            let now = Instant::now();
            if now >= end || self.plan.requests.is_some_and(|most| self.outcome.requests >= most) {
                self.outcome.seconds = (now - begun).as_secs_f64();
                return Ok(());
            }
            self.events(end - now, Self::send_at_once)?;
        }
    }

    fn send_at_once(&mut self) -> io::Result<()> {
        let most = self.plan.requests.unwrap_or(u64::MAX);
        while self.outcome.requests < most
            && let Some(number) = self.free.pop()
        {
            self.begin(number, Instant::now())?;
        }
        Ok(())
    }

    fn open_loop(&mut self, rate: f64) -> io::Result<()> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        self.epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        let begun = Instant::now();
        let total = (self.plan.length.as_secs_f64() * rate) as u64;
        let (end, mut sent) = (begun + self.plan.length, 0_u64);
        while (self.outcome.requests + self.outcome.errors) < total && Instant::now() < end + GRACE {
            let at = |number: u64| begun + Duration::from_secs_f64(number as f64 / rate);
            while sent < total && at(sent) <= Instant::now() {
                self.due.push_back(at(sent));
                sent += 1;
            }
            self.send_due()?;
            if sent < total {
                // At least a nanosecond: zero would switch the timer off.
                let wait = at(sent).saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
                timer.set(Expiration::OneShot(wait.into()), TimerSetTimeFlags::empty())?;
            }
            self.events(GRACE, Self::send_due)?;
            // What it says is known: that it is time. Nothing to read only means that it was set again.
            if let Err(error) = timer_read(&timer)
                && error.kind() != io::ErrorKind::WouldBlock
            {
                return Err(error);
            }
        }
        self.outcome.seconds = begun.elapsed().as_secs_f64();
        // What was never answered is not silently left out.
        self.outcome.errors += total - (self.outcome.requests + self.outcome.errors).min(total);
        Ok(())
    }

    fn send_due(&mut self) -> io::Result<()> {
        while !self.due.is_empty()
            && let Some(number) = self.free.pop()
        {
            if let Some(since) = self.due.pop_front() {
                self.begin(number, since)?;
            }
        }
        Ok(())
    }

    /// Waits for events and deals with them; `after` each of them.
    fn events(&mut self, limit: Duration, after: fn(&mut Self) -> io::Result<()>) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let limit = EpollTimeout::try_from(limit.max(Duration::from_millis(1))).unwrap_or(EpollTimeout::MAX);
        let count = match self.epoll.wait(&mut events, limit) {
            Err(nix::errno::Errno::EINTR) => 0,
            other => other?,
        };
        for event in events.iter().take(count).filter(|event| event.data() != TIMER) {
            // The number is one we gave.
            self.progress(event.data() as usize)?;
            after(self)?;
        }
        Ok(())
    }

    fn begin(&mut self, number: usize, since: Instant) -> io::Result<()> {
        let connection = &mut self.connections[number];
        connection.since = Some(since);
        connection.sent = 0;
        self.progress(number)
    }

    /// Does on a connection what can be done now.
    fn progress(&mut self, number: usize) -> io::Result<()> {
        let connection = &mut self.connections[number];
        let Some(since) = connection.since else { return Ok(()) };
        match advance(connection, &self.request, &mut self.buffer) {
            Ok(false) => return Ok(()),
            Ok(true) => {
                // Saturates at the bound.
                self.histogram.saturating_record(since.elapsed().as_nanos() as u64);
                self.outcome.requests += 1;
                connection.since = None;
                connection.response.reset();
                if self.plan.reconnect {
                    self.connections[number] = self.connect(number)?;
                }
            }
            Err(error) => {
                self.outcome.errors += 1;
                if self.outcome.errors > ERRORS_MAX {
                    return Err(error);
                }
                self.outcome.first_error.get_or_insert_with(|| error.to_string());
                self.connections[number] = self.connect(number)?;
            }
        }
        self.free.push(number);
        Ok(())
    }

    fn connect(&self, number: usize) -> io::Result<Connection> {
        let stream = dial(self.plan.to)?;
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.epoll.add(&stream, EpollEvent::new(interest, number as u64))?;
        Ok(Connection { stream, since: None, sent: 0, response: Response::default() })
    }

    fn finish(mut self) -> Outcome {
        let micros = |nanos: u64| nanos as f64 / 1_000.0;
        for (slot, percentile) in self.outcome.latency_us.iter_mut().zip(PERCENTILES) {
            *slot = micros(self.histogram.value_at_percentile(percentile));
        }
        self.outcome.latency_us[4] = micros(self.histogram.max());
        self.outcome
    }
}

fn text(plan: &Plan) -> Vec<u8> {
    let close = if plan.reconnect { "Connection: close\r\n" } else { "" };
    let length = if plan.body > 0 { format!("Content-Length: {}\r\n", plan.body) } else { String::new() };
    let head = format!("{} HTTP/1.1\r\nHost: {}\r\n{close}{length}\r\n", plan.request, plan.to);
    let mut bytes = head.into_bytes();
    bytes.resize(bytes.len() + plan.body, b'x');
    bytes
}

fn dial(to: Place) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// Writes and reads until the response is complete (`true`) or the socket has no more (`false`).
fn advance(connection: &mut Connection, request: &[u8], buffer: &mut [u8]) -> io::Result<bool> {
    while let Some(rest) = request.get(connection.sent..).filter(|rest| !rest.is_empty()) {
        match connection.stream.write(rest) {
            Ok(count) => connection.sent += count,
            Err(error) if is_not_ready(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    loop {
        match connection.stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                if connection.response.take(buffer.get(..count).unwrap_or_default())? {
                    return Ok(true);
                }
            }
            Err(error) if is_not_ready(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

fn is_not_ready(error: &io::Error) -> bool {
    // A socket that is still connecting says NotConnected.
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::NotConnected
    )
}

fn timer_read(timer: &TimerFd) -> io::Result<()> {
    Ok(timer.wait()?)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Answers every request at once, on any number of connections.
    fn server() -> Place {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let (mut buffer, mut seen) = ([0; 4096], Vec::new());
                    while let Ok(count @ 1..) = stream.read(&mut buffer) {
                        seen.extend_from_slice(&buffer[..count]);
                        if seen.windows(4).any(|four| four == b"\r\n\r\n") && !seen.ends_with(b"x..") {
                            seen.clear();
                            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
                        }
                    }
                });
            }
        });
        place
    }

    fn plan(rate: Option<u32>, reconnect: bool) -> Plan {
        let (request, length) = ("GET /".to_owned(), Duration::from_millis(200));
        Plan { to: server(), request, body: 0, connections: 4, rate, reconnect, length, requests: None }
    }

    #[test]
    fn open_loop_sends_as_many_as_were_due() {
        let outcome = run(&plan(Some(500), false)).unwrap();
        assert_eq!((outcome.requests, outcome.errors), (100, 0), "{outcome:?}");
        assert!(outcome.latency_us[0] > 0.0 && outcome.latency_us[4] >= outcome.latency_us[2]);
    }

    #[test]
    fn closed_loop_counts_what_was_answered_with_old_and_new_connections() {
        for reconnect in [false, true] {
            let length = Duration::from_secs(60);
            let outcome = run(&Plan { requests: Some(20), length, ..plan(None, reconnect) }).unwrap();
            assert!(outcome.requests >= 20 && outcome.errors == 0, "{outcome:?}");
        }
    }

    #[test]
    fn one_connection_ends_after_as_many_as_were_asked_for() {
        let length = Duration::from_secs(60);
        let outcome = run(&Plan { connections: 1, requests: Some(7), length, ..plan(None, false) }).unwrap();
        assert_eq!(outcome.requests, 7);
    }

    #[test]
    fn a_place_where_nobody_listens_is_an_error() {
        let to = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(run(&Plan { to, ..plan(None, false) }).is_err());
    }
}
