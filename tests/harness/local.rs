//! The application's side of its sidecar's local endpoint.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::Value;
use signet_cli::lab::Namespace;
use signet_cli::lab::mesh::{Mesh, Setup};

use crate::{Failure, LIMIT};

/// One sidecar's Unix socket.
#[derive(Clone, Debug)]
pub struct LocalSocket(PathBuf);

impl LocalSocket {
    /// Where a workload's sidecar is to listen, and the setup that makes it listen there for these users.
    pub fn of(mesh: &Mesh, workload: &str, uids: &str) -> (Self, Setup) {
        let path = mesh.folder().join(format!("{workload}.local"));
        let place = path.display().to_string();
        let flags = ["--local-socket", &place, "--local-uid", uids].map(str::to_owned).to_vec();
        (Self(path), Setup { flags, ..Setup::default() })
    }

    /// Its path.
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }

    /// Asks for something; status and answer.
    ///
    /// # Errors
    /// What the socket fails with, and an answer that is not HTTP with JSON.
    pub fn ask(&self, resource: &str, request: &Value) -> Result<(u16, Value), Failure> {
        let mut stream = UnixStream::connect(&self.0)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let body = request.to_string();
        let head = format!(
            "POST {resource} HTTP/1.1\r\nHost: signet\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        // Who is turned away is answered without being read.
        let _ = stream.write_all((head + &body).as_bytes());
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if answer.is_empty() => return Err(error.into()),
            _ => {}
        }
        let answer = String::from_utf8(answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
        let status = head.split(' ').nth(1).ok_or("no status")?.parse()?;
        Ok((status, serde_json::from_str(body)?))
    }

    /// The answer to a request that is fulfilled.
    ///
    /// # Errors
    /// As [`Self::ask`], and when it is refused.
    pub fn fulfil(&self, resource: &str, request: &Value) -> Result<Value, Failure> {
        match self.ask(resource, request)? {
            (200, answer) => Ok(answer),
            (status, problem) => Err(format!("{resource}: {status} {problem}").into()),
        }
    }

    /// The code that a request is refused with.
    ///
    /// # Errors
    /// As [`Self::ask`], and when it is fulfilled.
    pub fn refusal(&self, resource: &str, request: &Value) -> Result<String, Failure> {
        match self.ask(resource, request)? {
            (200, _) => Err(format!("{resource} was not refused").into()),
            (_, problem) => Ok(problem["code"].as_str().unwrap_or_default().to_owned()),
        }
    }
}

/// One line to a loopback port of a namespace, and what comes back until the end, without the line end.
///
/// # Errors
/// What the connection fails with.
pub fn line(namespace: &Namespace, port: u16, request: &Value) -> Result<String, Failure> {
    let line = format!("{request}\n");
    let exchange = move || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(line.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = namespace.run(exchange)??;
    Ok(answer.strip_suffix('\n').ok_or("the answer is no line")?.to_owned())
}
