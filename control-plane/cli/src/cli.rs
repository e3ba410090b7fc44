//! The command line: what `signet` can be asked, and which file answers.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::command;
use crate::output::{Failure, Format, Verdict};

/// Runs and looks after a Signet mesh.
///
/// Exit codes: 0 yes or done, 1 no (invalid, refused, not found, not healthy), 64 wrong arguments or unreadable
/// input, 69 control plane not available, 70 internal error.
#[derive(Debug, Parser)]
#[command(
    name = "signet",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  signet apply -f policies/\n  signet check\n  signet message verify --key pub.pem < request.http"
)]
pub struct Cli {
    /// Form of the answer
    #[arg(short = 'o', long = "output", global = true, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Apply(command::apply::Apply),
    #[command(subcommand)]
    Area(command::area::Area),
    #[command(subcommand)]
    Attest(command::attest::Attest),
    Check(command::check::Check),
    Coverage(command::coverage::Coverage),
    Delete(command::delete::Delete),
    Demo(command::demo::Demo),
    #[command(subcommand)]
    Docker(command::docker::Docker),
    Explain(command::explain::Explain),
    Get(command::get::Get),
    History(command::rollback::History),
    #[command(subcommand)]
    Inject(command::inject::Inject),
    #[command(subcommand)]
    Message(command::message::Message),
    #[command(subcommand)]
    Policy(command::policy::Policy),
    Revoke(command::revoke::Revoke),
    Rollback(command::rollback::Rollback),
    #[command(subcommand)]
    Rotate(command::rotate::Rotate),
    #[command(subcommand)]
    Token(command::token::Token),
    Uninject(command::uninject::Uninject),
    Validate(command::validate::Validate),
    /// Tries capture in a network of its own, for `check --pre`
    #[command(hide = true)]
    CaptureTrial,
    /// Plain programs for the demonstration
    #[command(subcommand, hide = true)]
    App(command::app::App),
}

/// The whole program: reads the process's arguments, runs the command, tells its exit code.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

/// Runs the command that `arguments` name; the first of them is the program's own name.
///
/// `signet proxy …` and `signet control-plane …` are the mesh's two other programs in the same file, so that the
/// demonstration needs nothing else built.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    match arguments.get(1).and_then(|argument| argument.to_str()) {
        Some("control-plane") => return signet_control_plane::main_from(arguments.into_iter().skip(1)),
        Some("proxy") => return signet_proxy::run_from_args(arguments.into_iter().skip(1)),
        _ => {}
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // With its stream gone there is nobody left to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    let format = cli.output;
    match answer(cli) {
        Ok(verdict) => verdict.into(),
        Err(failure) => failure.report(format),
    }
}

fn answer(cli: Cli) -> Result<Verdict, Failure> {
    let format = cli.output;
    match cli.command {
        Command::App(app) => wait(app.run()),
        Command::Apply(apply) => wait(apply.run(format)),
        Command::Area(area) => wait(area.run(format)),
        Command::Attest(attest) => wait(attest.run()),
        Command::CaptureTrial => command::check::try_capture(),
        Command::Check(check) => wait(check.run(format)),
        Command::Coverage(coverage) => wait(coverage.run(format)),
        Command::Delete(delete) => wait(delete.run(format)),
        Command::Demo(demo) => demo.run(format),
        Command::Docker(docker) => wait(docker.run()),
        Command::Explain(explain) => wait(explain.run(format)),
        Command::Get(get) => wait(get.run(format)),
        Command::History(history) => wait(history.run(format)),
        Command::Inject(inject) => inject.run(format),
        Command::Message(message) => message.run(format),
        Command::Policy(policy) => policy.run(format),
        Command::Rollback(rollback) => wait(rollback.run(format)),
        Command::Revoke(revoke) => wait(revoke.run(format)),
        Command::Rotate(rotate) => wait(rotate.run(format)),
        Command::Token(token) => wait(token.run(format)),
        Command::Uninject(uninject) => uninject.run(format),
        Command::Validate(validate) => validate.run(format),
    }
}

fn wait(command: impl Future<Output = Result<Verdict, Failure>>) -> Result<Verdict, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::Internal(format!("runtime: {error}")))?.block_on(command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        fn check(command: &clap::Command) {
            for command in command
                .get_subcommands()
                .filter(|command| !command.is_hide_set() && command.get_name() != "help")
            {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example"), "{} has no example", command.get_name());
                check(command);
            }
        }
        check(&Cli::command());
    }
}
