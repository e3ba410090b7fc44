//! The binary; everything is in the library, so that other programs of Signet can run the same code.

use std::process::ExitCode;

fn main() -> ExitCode {
    signet_control_plane::main_from(std::env::args_os())
}
