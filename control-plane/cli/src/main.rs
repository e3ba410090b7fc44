//! The `signet` binary: see the library for what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    signet_cli::cli::main()
}
