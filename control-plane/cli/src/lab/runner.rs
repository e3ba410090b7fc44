//! A test harness whose tests run in labs: a test binary with `harness = false` calls [`main`] and nothing else.
//!
//! Entering a lab needs a process without threads, which the standard harness never has. Here each test is this same
//! binary started again, entered into a lab of its own, with one function to run: tests cannot disturb each other, and
//! what one leaves behind or crashes into ends with its process. Nothing is skipped: where a lab cannot be entered,
//! every test fails and says why.
//!
//! Understands of the standard harness: name filters, `--exact`, `--skip`, `--list`, `--nocapture`, `--test-threads`.

use std::error::Error;
use std::io::{self, Write};
use std::num::NonZero;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::process::{Proc, helper};
use super::{LabError, enter, mesh};

/// What a test function returns; it may also panic.
pub type TestResult = Result<(), Box<dyn Error>>;

/// A test: its name, a sentence, and its function.
pub type Test = (&'static str, fn() -> TestResult);

const RUN_ONE: &str = "lab-test";
/// A test that takes longer hangs; the slowest need some ten seconds.
const TEST_LIMIT: Duration = Duration::from_secs(180);

/// Runs the tests the command line asks for and prints as the standard harness does.
pub fn main(tests: &[Test]) -> ExitCode {
    helper();
    if let Some(code) = mesh::part() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, name] = &arguments[..]
        && first == RUN_ONE
    {
        return run_here(tests, name);
    }
    let selection = match Selection::parse(arguments.into_iter()) {
        Ok(selection) => selection,
        Err(unknown) => {
            eprintln!("error: unknown option {unknown}");
            return ExitCode::from(2);
        }
    };
    let chosen: Vec<&str> = tests.iter().map(|(name, _)| *name).filter(|name| selection.has(name)).collect();
    if selection.list {
        chosen.iter().for_each(|name| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    run_all(&chosen, tests.len() - chosen.len(), &selection)
}

fn run_here(tests: &[Test], name: &str) -> ExitCode {
    let Some((_, test)) = tests.iter().find(|(known, _)| *known == name) else {
        eprintln!("no test is named {name}");
        return ExitCode::FAILURE;
    };
    match enter().map_err(Into::into).and_then(|()| test()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run_all(chosen: &[&str], filtered: usize, selection: &Selection) -> ExitCode {
    println!("\nrunning {} test{}", chosen.len(), if chosen.len() == 1 { "" } else { "s" });
    let started = Instant::now();
    let queue = Mutex::new(chosen.iter());
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..selection.threads.get().min(chosen.len()) {
            scope.spawn(|| {
                while let Some(name) = queue.lock().ok().and_then(|mut queue| queue.next()) {
                    let outcome = run_apart(name, selection.captured);
                    println!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
                    if let (Err(reason), Ok(mut failures)) = (outcome, failures.lock()) {
                        failures.push((*name, reason));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_default();
    if !failures.is_empty() {
        println!("\nfailures:");
        failures.iter().for_each(|(name, reason)| println!("\n---- {name} ----\n{reason}"));
        println!("\nfailures:");
        failures.iter().for_each(|(name, _)| println!("    {name}"));
    }
    let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {} failed; 0 ignored; 0 measured; {filtered} filtered out; \
         finished in {:.2}s\n",
        chosen.len() - failures.len(),
        failures.len(),
        started.elapsed().as_secs_f64()
    );
    // A closed standard output changes nothing about the outcome.
    let _ = io::stdout().flush();
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

/// Runs a test in a process of its own; the error tells why it failed.
fn run_apart(name: &str, captured: bool) -> Result<(), String> {
    let mut command = Command::new("/proc/self/exe");
    command.args([RUN_ONE, name]);
    if !captured {
        let status = command.status().map_err(|error| error.to_string())?;
        return if status.success() { Ok(()) } else { Err(status.to_string()) };
    }
    let spawn = |mut command: Command| {
        command.spawn().map_err(|error| LabError::system(format!("start {name}"), error))
    };
    let test = Proc::start(name, None, command, spawn).map_err(|error| error.to_string())?;
    let status = test.wait(TEST_LIMIT).map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err(format!("{}({status})", test.output())) }
}

struct Selection {
    filters: Vec<String>,
    skipped: Vec<String>,
    exact: bool,
    list: bool,
    captured: bool,
    threads: NonZero<usize>,
}

impl Selection {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut selection = Self {
            filters: Vec::new(),
            skipped: Vec::new(),
            exact: false,
            list: false,
            captured: true,
            threads: thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN),
        };
        while let Some(argument) = arguments.next() {
            let (name, attached) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
                _ => (argument.clone(), None),
            };
            let mut value = || attached.clone().or_else(|| arguments.next()).ok_or_else(|| argument.clone());
            match name.as_str() {
                "--exact" => selection.exact = true,
                "--list" => selection.list = true,
                "--nocapture" | "--no-capture" => selection.captured = false,
                "--skip" => selection.skipped.push(value()?),
                "--test-threads" => selection.threads = value()?.parse().map_err(|_| argument.clone())?,
                // How to print: there is one way here.
                "--color" | "--format" => drop(value()?),
                "-q" | "--quiet" | "--show-output" | "--include-ignored" => {}
                // No test is ever ignored, so the ignored ones are none.
                "--ignored" => selection.skipped.push(String::new()),
                option if option.starts_with('-') => return Err(argument),
                filter => selection.filters.push(filter.to_owned()),
            }
        }
        Ok(selection)
    }

    fn has(&self, name: &str) -> bool {
        let matches =
            |filter: &String| if self.exact { name == filter } else { name.contains(filter.as_str()) };
        let skipped = self.skipped.iter().any(|skip| skip.is_empty() || matches(skip));
        !skipped && (self.filters.is_empty() || self.filters.iter().any(matches))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(line: &str) -> Vec<&'static str> {
        let selection = Selection::parse(line.split_whitespace().map(str::to_owned)).unwrap();
        ["capture_works", "capture_is_removed", "tap_sees"]
            .into_iter()
            .filter(|name| selection.has(name))
            .collect()
    }

    #[test]
    fn command_line_chooses_as_the_standard_harness_does() {
        assert_eq!(chosen("").len(), 3);
        assert_eq!(chosen("capture"), ["capture_works", "capture_is_removed"]);
        assert_eq!(chosen("--exact capture"), [""; 0]);
        assert_eq!(chosen("--exact tap_sees --nocapture --test-threads=1"), ["tap_sees"]);
        assert_eq!(chosen("--skip capture --format terse"), ["tap_sees"]);
        assert_eq!(chosen("--list --ignored"), [""; 0]);
    }

    #[test]
    fn unknown_option_is_refused() {
        let parse = |line: &str| Selection::parse(line.split_whitespace().map(str::to_owned)).err();
        assert_eq!(parse("--shuffle"), Some("--shuffle".into()));
        assert_eq!(parse("--test-threads"), Some("--test-threads".into()));
        assert_eq!(parse("--test-threads 0"), Some("--test-threads".into()));
    }
}
