//! From the figures of a run to tables, plots, and the pages that show them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::Failed;
use crate::results::{FORMAT, Figures, Run};

pub mod plot;
pub mod section;
pub mod table;
pub mod targets;
pub mod text;

/// The file with every figure.
const FIGURES: &str = "run.json";
const MARKDOWN: &str = "report.md";
/// The pages that are made anew, from the root of the checkout, and where their plots are as seen from them.
const PAGES: [(&str, &str); 2] =
    [("benches/README.md", "../docs/performance/"), ("docs/performance.md", "performance/")];
const PLOTS: &str = "docs/performance";

/// Make tables and plots anew from the figures of a run, and the pages of this checkout that show them
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  signet-benches load report --from target/load/run.json")]
pub struct Again {
    /// The figures of a run
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Root of the checkout
    #[arg(long, default_value = ".", value_name = "DIR")]
    root: PathBuf,
}

impl Again {
    pub(crate) fn run(&self) -> Result<(), Failed> {
        let failed = |path: &Path, error: &dyn std::fmt::Display| {
            Failed::unavailable(format!("{}: {error}", path.display()))
        };
        let text = fs::read_to_string(&self.from).map_err(|error| failed(&self.from, &error))?;
        let run: Run = serde_json::from_str(&text).map_err(|error| failed(&self.from, &error))?;
        if run.format != FORMAT {
            return Err(failed(&self.from, &format!("is of format {}, not {FORMAT}", run.format)));
        }
        let plots = self.root.join(PLOTS);
        fs::create_dir_all(&plots)
            .and_then(|()| write_plots(&run, &plots))
            .map_err(|error| failed(&plots, &error))?;
        for (page, prefix) in PAGES {
            let path = self.root.join(page);
            let old = fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
            let sections = [("overview", text::overview(&run)), ("full", text::full(&run, prefix))];
            let new = section::replace(&old, &sections).map_err(|error| failed(&path, &error))?;
            fs::write(&path, new).map_err(|error| failed(&path, &error))?;
            println!("{}", path.display());
        }
        Ok(())
    }
}

/// Writes figures, tables and plots to a folder; returns the tables.
///
/// # Errors
/// A folder that cannot be written to.
pub fn write(run: &Run, folder: &Path) -> io::Result<String> {
    fs::create_dir_all(folder)?;
    let mut figures = serde_json::to_string_pretty(run)?;
    figures.push('\n');
    fs::write(folder.join(FIGURES), figures)?;
    write_plots(run, folder)?;
    let markdown = text::full(run, "");
    fs::write(folder.join(MARKDOWN), &markdown)?;
    Ok(markdown)
}

fn write_plots(run: &Run, folder: &Path) -> io::Result<()> {
    let figures = Figures::of(run);
    for (name, plot) in text::plots(run, &figures) {
        fs::write(folder.join(name), plot)?;
    }
    Ok(())
}
