//! WebSockets (RFC 6455): the handshake is decided and signed like any request, what follows are signed records.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use signet_cli::lab::runner::TestResult;

use super::server::serve;
use super::stage::{CLIENT_MAY_ALL, Stage, connect, manifests};

const PORT: u16 = 7001;

/// What follows the request line of a handshake.
pub(crate) const HANDSHAKE: &str = "Host: server\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// Answers a handshake for `/chat` and greets in the same breath, then sends back what comes; refuses any other.
pub(crate) fn chat(mut stream: TcpStream, _: &()) -> io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).to_lowercase();
    let is_handshake = text.contains("\r\nupgrade: websocket\r\n")
        && text.contains("\r\nconnection: upgrade\r\n")
        && text.contains("\r\nsec-websocket-key: ")
        && text.contains("\r\nx-forwarded-client-cert: ")
        && !text.contains("mesh-")
        && !text.contains("signature");
    if !text.starts_with("get /chat ") || !is_handshake {
        return stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 7\r\n\r\nnot you");
    }
    stream.write_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nX-App: kept\r\n\r\nhello",
    )?;
    let mut block = [0; 4096];
    loop {
        match stream.read(&mut block)? {
            0 => break,
            read => stream.write_all(&block[..read])?,
        }
    }
    stream.write_all(b"bye")?;
    stream.shutdown(Shutdown::Write)
}

pub(crate) fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn websocket_passes(mesh: &str) -> TestResult {
    let stage = Stage::new()?;
    serve(&stage.server, PORT, Arc::new(()), chat)?;
    let server = format!("ports: [{{port: {PORT}, protocol: http}}]");
    let _meshed = stage.mesh(&manifests(mesh, &server, CLIENT_MAY_ALL), &[PORT])?;
    for to in [stage.place(PORT), stage.place_ipv6(PORT)] {
        let mut stream = connect(stage.client.namespace(), to)?;
        // The first frame follows the handshake without waiting for its answer.
        stream.write_all(format!("GET /chat HTTP/1.1\r\n{HANDSHAKE}first").as_bytes())?;
        let head = read_head(&mut stream)?;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let lines: Vec<String> = head.to_lowercase().lines().map(str::to_owned).collect();
        for line in ["upgrade: websocket", "connection: upgrade", "x-app: kept"] {
            assert!(lines.iter().any(|seen| seen == line), "{line}: {head}");
        }
        assert!(
            !head.to_lowercase().contains("mesh-") && !head.to_lowercase().contains("signature"),
            "{head}"
        );
        let mut word = [0; 10];
        stream.read_exact(&mut word)?;
        assert_eq!(&word, b"hellofirst");
        let long = vec![7; 300_000];
        let mut writing = stream.try_clone()?;
        let sent = long.clone();
        let writer = std::thread::spawn(move || -> io::Result<()> {
            writing.write_all(&sent)?;
            writing.shutdown(Shutdown::Write)
        });
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest)?;
        writer.join().map_err(|_| "the writer panicked")??;
        assert_eq!((rest.len(), &rest[long.len()..]), (long.len() + 3, &b"bye"[..]));
        assert!(rest.starts_with(&long));

        let mut stream = connect(stage.client.namespace(), to)?;
        stream.write_all(format!("GET /other HTTP/1.1\r\n{HANDSHAKE}").as_bytes())?;
        let head = read_head(&mut stream)?;
        assert!(head.starts_with("HTTP/1.1 403 "), "the app's own refusal: {head}");
        let mut body = [0; 7];
        stream.read_exact(&mut body)?;
        assert_eq!(&body, b"not you");
    }
    Ok(())
}

pub(super) fn websocket_passes_with_the_first_bytes_of_both_sides() -> TestResult {
    websocket_passes("")
}

pub(super) fn websocket_passes_at_level_public_and_at_level_private() -> TestResult {
    websocket_passes("protection: {level: public}")?;
    websocket_passes("protection: {level: private}")
}

pub(super) fn websocket_is_refused_where_its_path_is_not_permitted() -> TestResult {
    let stage = Stage::new()?;
    serve(&stage.server, PORT, Arc::new(()), chat)?;
    let server = format!("ports: [{{port: {PORT}, protocol: http}}]");
    let only_other = format!("{CLIENT_MAY_ALL}\n      to: [{{paths: [/other]}}]");
    let _meshed = stage.mesh(&manifests("", &server, &only_other), &[PORT])?;
    let mut stream = connect(stage.client.namespace(), stage.place(PORT))?;
    stream.write_all(format!("GET /chat HTTP/1.1\r\n{HANDSHAKE}").as_bytes())?;
    let head = read_head(&mut stream)?;
    assert!(head.starts_with("HTTP/1.1 403 ") && head.contains("application/problem+json"), "{head}");
    Ok(())
}
