//! Programs that others wrote, unmodified, with Signet between them. Each test builds a lab of its own; a program that
//! is not installed is a failure.

mod programs;
mod signatures;

use std::process::ExitCode;

use signet_cli::lab::runner::{self, Test};

const TESTS: &[Test] = &[
    ("http_message_signatures_verifies_what_message_sign_signed", signatures::peer_verifies_what_message_sign_signed),
    ("message_verify_accepts_what_http_message_signatures_signed", signatures::message_verify_accepts_what_the_peer_signed),
    ("message_that_was_changed_is_refused_by_both", signatures::changed_message_is_refused_by_both),
    ("http_message_signatures_verifies_messages_of_the_mesh", signatures::peer_verifies_messages_of_the_mesh),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.peek().is_some_and(|first| first == "signet") {
        return signet_cli::cli::run(arguments);
    }
    runner::main(TESTS)
}
