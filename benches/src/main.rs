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
    // The control plane of a fleet that was given no other program.
    if std::env::args().nth(1).is_some_and(|word| word == "control-plane") {
        return signet_cli::cli::main();
    }
    signet_benches::cli::main()
}
