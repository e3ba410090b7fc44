//! The `signet-proxy` program; everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    signet_proxy::run_from_args(std::env::args_os())
}
