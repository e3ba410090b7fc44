//! The `signet-benches` program; everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Processes that the load test starts pass through here before anything else.
    signet_cli::lab::helper();
    if let Some(code) = signet_cli::lab::mesh::part() {
        return code;
    }
    if let Some(code) = signet_benches::traffic::part() {
        return code;
    }
    signet_benches::cli::main()
}
