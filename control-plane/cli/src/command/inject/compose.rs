//! `signet inject compose`.

use crate::output::{Failure, Format, Verdict};

/// Writes Compose file with sidecars in them
#[derive(Debug, clap::Args)]
pub(crate) struct Compose {}

impl Compose {
    pub(crate) fn run(self, _format: Format) -> Result<Verdict, Failure> {
        Err(Failure::Unavailable("not built yet".to_owned()))
    }
}
