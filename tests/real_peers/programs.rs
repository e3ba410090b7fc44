//! The real programs: where they are, and how to wait for them. One that is missing fails the test with its name.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};

use signet_cli::lab::{Capabilities, Program};

/// Where Debian keeps servers that are not in everybody's `PATH`.
const FURTHER: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

/// The Python with the packages from PyPI: what `PYTHON` says, or `python3`.
pub(crate) fn python() -> Result<PathBuf, Box<dyn Error>> {
    program(&env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned()))
}

/// A program as an application runs it: without any capability.
pub(crate) fn app(name: &str) -> Result<Program, Box<dyn Error>> {
    Ok(Program::new(program(name)?).capabilities(Capabilities::None))
}

/// A script of this folder.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("real_peers").join(name)
}

/// The path of a program, which `.ci/run` installs.
pub(crate) fn program(name: &str) -> Result<PathBuf, Box<dyn Error>> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(FURTHER.map(PathBuf::from));
    // Joining an absolute path gives that path.
    let found = folders.map(|folder| folder.join(name)).find(|candidate| candidate.is_file());
    found.ok_or_else(|| format!("{name} is not installed: .ci/run installs it from Debian or PyPI").into())
}
