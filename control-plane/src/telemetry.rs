//! The log: one line per event on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::LogConfig;

/// Starts logging. A process that already logs goes on as it was.
pub(crate) fn init(config: &LogConfig) {
    let filter = EnvFilter::new(&config.filter);
    let lines =
        fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let _ = if config.json { lines.json().try_init() } else { lines.try_init() };
}
