//! Bodies far larger than any buffer.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

use signet_cli::lab::mesh::Sidecar;
use signet_cli::lab::runner::TestResult;

use super::http::{Caller, read_request};
use super::server::serve;
use super::stage::{CLIENT_MAY_ALL, Failure, Stage, connect, manifests};

const HTTP: u16 = 8201;
const BYTES: u16 = 7000;
const SIZE: usize = 20 * 1024 * 1024;
/// A sidecar may hold a fraction of one body, never the whole.
const GROWTH_MAX_KIB: u64 = 32 * 1024;
/// A body that no sidecar could hold unnoticed: a quarter of a gibibyte, so that it does not starve what is tested beside it.
const LARGE: usize = 1 << 28;
/// And what a sidecar may grow by for it, either way.
const GROWTH_OF_ONE_KIB: u64 = 8 * 1024;

pub(super) fn twenty_mebibytes_pass_both_ways_and_no_sidecar_holds_them() -> TestResult {
    let stage = Stage::new()?;
    let payload = Arc::new(payload());
    serve(&stage.server, HTTP, Arc::clone(&payload), over_http)?;
    serve(&stage.server, BYTES, Arc::clone(&payload), as_bytes)?;
    let ports = format!("ports: [{{port: {HTTP}, protocol: http}}, {{port: {BYTES}}}]");
    let meshed = stage.mesh(&manifests("", &ports, CLIENT_MAY_ALL), &[HTTP, BYTES])?;
    // What a sidecar needs for its first connection does not count.
    let mut caller = Caller::open(stage.client.namespace(), stage.place(HTTP))?;
    download(&mut caller, &payload[..1024], "/start")?;
    let sidecars = [&meshed.server, &meshed.client];
    let before = sidecars.map(|sidecar| memory(sidecar, "VmRSS:"));

    upload(&mut caller, &payload, false)?;
    upload(&mut caller, &payload, true)?;
    download(&mut caller, &payload, "/length")?;
    download(&mut caller, &payload, "/chunked")?;
    bytes_both_ways(&stage, &payload)?;

    for (sidecar, before) in sidecars.iter().zip(before) {
        let (before, peak) = (before?, memory(sidecar, "VmHWM:")?);
        let growth = peak.saturating_sub(before);
        println!("{}: {before} KiB before, {peak} KiB at most", sidecar.workload());
        assert!(growth < GROWTH_MAX_KIB, "{} grew by {growth} KiB from {before} KiB", sidecar.workload());
    }
    Ok(())
}

pub(super) fn large_body_each_way_grows_no_sidecar_by_eight_mebibytes() -> TestResult {
    let stage = Stage::new()?;
    serve(&stage.server, HTTP, Arc::new(()), endless)?;
    let ports = format!("ports: [{{port: {HTTP}, protocol: http}}]");
    let meshed = stage.mesh(&manifests("", &ports, CLIENT_MAY_ALL), &[HTTP])?;
    let mut stream = BufReader::new(connect(stage.client.namespace(), stage.place(HTTP))?);
    // What a sidecar needs for its first streams does not count.
    let warm = 4 * 1024 * 1024;
    assert_eq!(up(&mut stream, warm)?, warm);
    assert_eq!(down(&mut stream, warm)?, warm);
    let sidecars = [&meshed.server, &meshed.client];
    let before = sidecars.map(|sidecar| memory(sidecar, "VmHWM:"));
    assert_eq!(up(&mut stream, LARGE)?, LARGE);
    assert_eq!(down(&mut stream, LARGE)?, LARGE);
    for (sidecar, before) in sidecars.iter().zip(before) {
        let (before, peak) = (before?, memory(sidecar, "VmHWM:")?);
        println!("{}: {before} KiB at most before, {peak} KiB at most after", sidecar.workload());
        let growth = peak.saturating_sub(before);
        assert!(growth < GROWTH_OF_ONE_KIB, "{} grew by {growth} KiB", sidecar.workload());
    }
    Ok(())
}

/// Each event is made only after the one before it has arrived: whatever held events back would hold them for ever.
pub(super) fn each_event_passes_before_the_next_is_made() -> TestResult {
    const EVENTS: u32 = 50;
    let stage = Stage::new()?;
    let (ask, asked) = mpsc::channel();
    serve(&stage.server, HTTP, Arc::new(Mutex::new(asked)), events)?;
    let ports = format!("ports: [{{port: {HTTP}, protocol: http}}]");
    let _meshed = stage.mesh(&manifests("", &ports, CLIENT_MAY_ALL), &[HTTP])?;
    let mut stream = BufReader::new(connect(stage.client.namespace(), stage.place(HTTP))?);
    stream.get_mut().write_all(b"GET /events HTTP/1.1\r\nHost: server\r\n\r\n")?;
    let start = read_lines(&mut stream)?;
    assert_eq!(start.as_deref(), Some("HTTP/1.1 200 OK\r\n"));
    let mut times = Vec::new();
    for number in 0..EVENTS {
        let asked = Instant::now();
        ask.send(number)?;
        let (mut size, mut event) = (String::new(), vec![0; format!("data: {number}\n\n").len() + 2]);
        stream.read_line(&mut size)?;
        stream.read_exact(&mut event)?;
        times.push(asked.elapsed());
        assert_eq!(String::from_utf8(event)?, format!("data: {number}\n\n\r\n"));
    }
    times.sort_unstable();
    println!("{EVENTS} events: median {:?}, slowest {:?}", times[times.len() / 2], times[times.len() - 1]);
    Ok(())
}

/// Makes one event for each time it is asked.
fn events(stream: TcpStream, asked: &Mutex<mpsc::Receiver<u32>>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    if read_lines(&mut stream)?.is_none() {
        return Ok(());
    }
    let stream = stream.get_mut();
    stream.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    let asked = asked.lock().map_err(|_| io::Error::other("poisoned"))?;
    for number in asked.iter() {
        let event = format!("data: {number}\n\n");
        stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())?;
    }
    stream.write_all(b"0\r\n\r\n")
}

/// Sends a body of this length without saying so first; how much of it the server has counted.
fn up(stream: &mut BufReader<TcpStream>, length: usize) -> Result<usize, Failure> {
    let writer = stream.get_mut();
    writer.write_all(b"POST /up HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    send_chunks(writer, length)?;
    let answer = super::http::read_response(stream, true)?;
    Ok(String::from_utf8(answer.body)?.parse()?)
}

/// Asks for a body of this length; how much of it came.
fn down(stream: &mut BufReader<TcpStream>, length: usize) -> Result<usize, Failure> {
    stream.get_mut().write_all(format!("GET /{length} HTTP/1.1\r\nHost: server\r\n\r\n").as_bytes())?;
    read_lines(stream)?;
    Ok(count_chunks(stream)?)
}

/// Counts what it is sent, or sends as much as it is asked for.
fn endless(stream: TcpStream, (): &()) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let Some(start) = read_lines(&mut stream)? else { return Ok(()) };
        let target = start.split([' ', '/']).nth(2).unwrap_or_default();
        if let Ok(length) = target.parse() {
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.get_mut().write_all(head)?;
            send_chunks(stream.get_mut(), length)?;
        } else {
            let counted = count_chunks(&mut stream)?.to_string();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{counted}", counted.len());
            stream.get_mut().write_all(answer.as_bytes())?;
        }
    }
}

fn send_chunks(stream: &mut TcpStream, length: usize) -> io::Result<()> {
    const CHUNK: usize = 64 * 1024;
    let chunk = [format!("{CHUNK:x}\r\n").as_bytes(), &[b'x'; CHUNK], b"\r\n"].concat();
    for _ in 0..length / CHUNK {
        stream.write_all(&chunk)?;
    }
    stream.write_all(b"0\r\n\r\n")
}

/// The length of a chunked body that holds nothing but what [`send_chunks`] sends.
fn count_chunks(stream: &mut BufReader<TcpStream>) -> io::Result<usize> {
    let (mut total, mut data) = (0, Vec::new());
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        data.resize(length + 2, 0);
        stream.read_exact(&mut data)?;
        if length == 0 {
            return Ok(total);
        }
        if data[..length].iter().any(|byte| *byte != b'x') {
            return Err(io::Error::other("other bytes than were sent"));
        }
        total += length;
    }
}

/// The first line of a head, read to its end.
fn read_lines(stream: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut first = None;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if line.trim().is_empty() {
            return Ok(first);
        }
        first.get_or_insert(line);
    }
}

fn upload(caller: &mut Caller, payload: &[u8], chunked: bool) -> TestResult {
    caller.send("POST /upload HTTP/1.1\r\nHost: server\r\n")?;
    if chunked {
        caller.send("Transfer-Encoding: chunked\r\n\r\n")?;
        for chunk in payload.chunks(64 * 1024) {
            caller.send(format!("{:x}\r\n", chunk.len()))?;
            caller.send(chunk)?;
            caller.send("\r\n")?;
        }
        caller.send("0\r\n\r\n")?;
    } else {
        caller.send(format!("Content-Length: {}\r\n\r\n", payload.len()))?;
        caller.send(payload)?;
    }
    let answer = caller.answer()?;
    assert_eq!((answer.status(), answer.body.as_slice()), (200, &b"equal"[..]), "upload, chunked: {chunked}");
    Ok(())
}

fn download(caller: &mut Caller, payload: &[u8], target: &str) -> TestResult {
    caller.send(format!("GET {target} HTTP/1.1\r\nHost: server\r\n\r\n"))?;
    let answer = caller.answer()?;
    assert_eq!(answer.status(), 200, "{target}");
    assert!(answer.body == payload, "{target}: {} bytes differ from those sent", answer.body.len());
    Ok(())
}

/// Sends everything while everything comes back.
fn bytes_both_ways(stage: &Stage, payload: &Arc<Vec<u8>>) -> TestResult {
    let mut stream = connect(stage.client.namespace(), stage.place(BYTES))?;
    let (mut sender, sent) = (stream.try_clone()?, Arc::clone(payload));
    let sending = std::thread::spawn(move || -> io::Result<()> {
        sender.write_all(&sent)?;
        sender.shutdown(Shutdown::Write)
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received)?;
    sending.join().map_err(|_| "the sender panicked")??;
    assert!(received == **payload, "{} bytes came back, not those sent", received.len());
    Ok(())
}

fn over_http(stream: TcpStream, payload: &Vec<u8>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream)? {
        let target = request.start.split(' ').nth(1).unwrap_or_default();
        let stream = stream.get_mut();
        match target {
            "/upload" => {
                let verdict: &[u8] = if request.body == *payload { b"equal" } else { b"other" };
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")?;
                stream.write_all(verdict)?;
            }
            "/chunked" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                for chunk in payload.chunks(8 * 1024) {
                    stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes())?;
                    stream.write_all(chunk)?;
                    stream.write_all(b"\r\n")?;
                }
                stream.write_all(b"0\r\n\r\n")?;
            }
            _ => {
                let size = if target == "/start" { 1024 } else { payload.len() };
                stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").as_bytes())?;
                stream.write_all(&payload[..size])?;
            }
        }
    }
    Ok(())
}

/// Gives back what it gets, and its end after that.
fn as_bytes(mut stream: TcpStream, _: &Vec<u8>) -> io::Result<()> {
    let mut writer = stream.try_clone()?;
    io::copy(&mut stream, &mut writer)?;
    writer.shutdown(Shutdown::Write)
}

/// No two blocks alike, so that no loss, repetition or exchange goes unseen.
fn payload() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.take(SIZE / 8).flat_map(u64::to_le_bytes).collect()
}

/// A figure of a sidecar's memory in KiB.
fn memory(sidecar: &Sidecar, figure: &str) -> Result<u64, Failure> {
    let id = sidecar.process().ok_or("the sidecar does not run")?.id();
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(figure)).ok_or("no such figure")?;
    Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
}
