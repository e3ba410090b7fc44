//! `signet-control-plane ready`: asks the control plane beside it whether it is ready, of every trust domain it serves, for
//! images that have no other program.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::EXIT_CONFIG;

/// It answers at once or is not ready.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The answer is a few hundred bytes.
const ANSWER_MAX: u64 = 16 * 1024;

/// Asks the control plane beside it whether it is ready
///
/// Exit codes: 0 ready, 1 not ready, 64 wrong arguments.
#[derive(Debug, Parser)]
#[command(name = "signet-control-plane ready")]
struct Ready {
    /// Where it serves /ready, separated by commas; an unspecified address means this machine
    #[arg(
        long,
        env = "SIGNET_ADMIN_LISTEN",
        default_value = "0.0.0.0:15014",
        value_name = "IP:PORT",
        value_delimiter = ','
    )]
    admin_listen: Vec<SocketAddr>,
}

/// The command with its arguments, its name first.
pub(crate) fn main_from(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match Ready::try_parse_from(arguments) {
        Ok(ready) => ready.run(),
        Err(error) => {
            // Nobody to tell when the terminal is gone.
            let _ = error.print();
            if error.use_stderr() { ExitCode::from(EXIT_CONFIG) } else { ExitCode::SUCCESS }
        }
    }
}

impl Ready {
    /// Exit code 0 when it is ready; 1, and what it said, when not.
    fn run(&self) -> ExitCode {
        for &address in &self.admin_listen {
            match ask(here(address)) {
                Ok(answer) if answer.starts_with("HTTP/1.1 200 ") => {}
                Ok(answer) => {
                    let (_, state) = answer.split_once("\r\n\r\n").unwrap_or(("", "no answer"));
                    eprintln!("signet-control-plane: not ready: {state}");
                    return ExitCode::FAILURE;
                }
                Err(error) => {
                    eprintln!("signet-control-plane: not ready: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
        ExitCode::SUCCESS
    }
}

fn here(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
