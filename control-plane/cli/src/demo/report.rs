//! What the demonstration found: one line per check on the screen, and the same as JSON.

use std::error::Error;
use std::fmt::Display;
use std::io::Write;

use serde::Serialize;

/// Column at which the figures begin.
const FIGURE_COLUMN: usize = 66;

/// Everything that was checked so far.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    checks: Vec<Check>,
    #[serde(skip)]
    silent: bool,
}

/// One check.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    ok: bool,
    figure: Option<f64>,
    unit: &'static str,
    /// What was found instead; only of checks that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// How a check went.
#[derive(Debug, PartialEq)]
pub(super) struct Outcome {
    figure: f64,
    unit: &'static str,
    wrong: Option<String>,
}

impl Outcome {
    /// It holds; the figure says how much.
    pub(super) fn holds(figure: f64, unit: &'static str) -> Self {
        Self { figure, unit, wrong: None }
    }

    /// Whether it holds.
    pub(super) fn is_ok(&self) -> bool {
        self.wrong.is_none()
    }

    /// The outcome, unless `holds` is false: then the text says what was found instead.
    pub(super) fn only_if(mut self, holds: bool, found: impl FnOnce() -> String) -> Self {
        if !holds && self.wrong.is_none() {
            self.wrong = Some(found());
        }
        self
    }
}

impl Report {
    /// A report that shows itself on the screen as it grows, or not.
    pub(super) fn new(shown: bool) -> Self {
        Self { checks: Vec::new(), silent: !shown }
    }

    /// Begins a part of the story.
    pub(super) fn heading(&self, text: &str) {
        self.say(format_args!("\n{text}"));
    }

    /// A line of the story.
    pub(super) fn say(&self, line: impl Display) {
        if !self.silent {
            let mut out = std::io::stdout().lock();
            // A reader that has gone away changes nothing about the outcome.
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    }

    /// Makes a check and shows its line. An error is a check that failed.
    pub(super) fn check<E: Error>(&mut self, name: &str, check: impl FnOnce() -> Result<Outcome, E>) {
        let found = match check() {
            Ok(outcome) => Check {
                name: name.into(),
                ok: outcome.is_ok(),
                figure: Some((outcome.figure * 1000.0).round() / 1000.0),
                unit: outcome.unit,
                detail: outcome.wrong,
            },
            Err(error) => Check {
                name: name.into(),
                ok: false,
                figure: None,
                unit: "",
                detail: Some(with_causes(&error)),
            },
        };
        self.show(&found);
        self.checks.push(found);
    }

    /// Notes that the story could not go on.
    pub(super) fn broken(&mut self, what: &str, error: &dyn Error) {
        let found =
            Check { name: what.into(), ok: false, figure: None, unit: "", detail: Some(with_causes(error)) };
        self.show(&found);
        self.checks.push(found);
    }

    /// Whether there were checks and all of them hold.
    pub(super) fn all_hold(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.ok)
    }

    /// Number of checks that hold, and of all.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.checks.iter().filter(|check| check.ok).count(), self.checks.len())
    }

    fn show(&self, check: &Check) {
        let mark = if check.ok { '✓' } else { '✗' };
        let dots = FIGURE_COLUMN.saturating_sub(check.name.chars().count()).max(1);
        let figure = check.figure.map(|figure| figure.to_string()).unwrap_or_default();
        self.say(format_args!("  {mark} {} {} {figure} {}", check.name, ".".repeat(dots), check.unit));
        for line in check.detail.iter().flat_map(|detail| detail.lines()) {
            self.say(format_args!("      {line}"));
        }
    }
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Transparent errors repeat their source's words.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_holds_only_when_every_check_holds() {
        let mut report = Report::new(false);
        assert!(!report.all_hold());
        report.check("first", || Ok::<_, std::fmt::Error>(Outcome::holds(3.0, "calls")));
        assert!(report.all_hold());
        let second = Outcome::holds(0.25, "ms").only_if(false, || "found something else".into());
        report.check("second", || Ok::<_, std::fmt::Error>(second));
        report.check("third", || Err(std::fmt::Error));
        assert!(!report.all_hold());
        assert_eq!(report.count(), (1, 3));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json["checks"][0],
            serde_json::json!({"name": "first", "ok": true, "figure": 3.0, "unit": "calls"})
        );
        assert_eq!(json["checks"][1]["detail"], "found something else");
        assert_eq!(json["checks"][2]["figure"], serde_json::Value::Null);
    }
}
