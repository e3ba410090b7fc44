//! All findings together, for people and as JSON.

use serde::Serialize;

use super::finding::{Finding, Severity};
use super::proxy::ProxyReport;
use crate::output::{Failure, Format, Verdict, print_json, print_line};

/// Raised when a member of the JSON goes away or changes its meaning; new ones come without.
const SCHEMA: u32 = 1;

/// Width of the ids in a table; the longest has 23 characters.
const ID_WIDTH: usize = 24;

/// Characters of a fingerprint that tell instances apart for people.
const INSTANCE_SHOWN: usize = 8;

/// Everything that was found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) trust_domain: Option<String>,
    pub(crate) revision: Option<u64>,
    /// About this machine, or control plane and mesh as a whole.
    pub(crate) checks: Vec<Finding>,
    pub(crate) proxies: Vec<ProxyReport>,
    /// The control plane did not answer.
    pub(crate) is_unavailable: bool,
}

/// The report as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    schema: u32,
    ok: bool,
    exit_code: u8,
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trust_domain: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    errors: usize,
    warnings: usize,
    checks: &'a [Finding],
    proxies: &'a [ProxyReport],
}

impl Report {
    /// How many findings are that bad.
    fn count(&self, severity: Severity) -> usize {
        let all = self.checks.iter().chain(self.proxies.iter().flat_map(|proxy| &proxy.checks));
        all.filter(|finding| finding.severity == severity).count()
    }

    fn verdict(&self, is_strict: bool) -> Verdict {
        let bad = self.count(Severity::Error) + if is_strict { self.count(Severity::Warning) } else { 0 };
        match (self.is_unavailable, bad) {
            (true, _) => Verdict::Unavailable,
            (false, bad) => Verdict::of(bad == 0),
        }
    }

    /// Prints it; the verdict counts warnings where `is_strict`. Proxies that are well are a line each unless `is_verbose`.
    pub(crate) fn print(
        &self,
        format: Format,
        is_strict: bool,
        is_verbose: bool,
    ) -> Result<Verdict, Failure> {
        let verdict = self.verdict(is_strict);
        if format == Format::Json {
            print_json(&Shown {
                schema: SCHEMA,
                ok: verdict == Verdict::Yes,
                exit_code: verdict.code(),
                version: env!("CARGO_PKG_VERSION"),
                trust_domain: self.trust_domain.as_deref(),
                revision: self.revision,
                errors: self.count(Severity::Error),
                warnings: self.count(Severity::Warning),
                checks: &self.checks,
                proxies: &self.proxies,
            })?;
            return Ok(verdict);
        }
        for finding in &self.checks {
            print_finding(finding, "")?;
        }
        for proxy in &self.proxies {
            print_proxy(proxy, is_verbose)?;
        }
        let (errors, warnings) = (self.count(Severity::Error), self.count(Severity::Warning));
        print_line(format_args!("{}, {}", counted(errors, "error"), counted(warnings, "warning")))?;
        Ok(verdict)
    }
}

fn print_proxy(proxy: &ProxyReport, is_verbose: bool) -> Result<(), Failure> {
    let worst = |severity| proxy.checks.iter().any(|check| check.severity == severity);
    let severity = [Severity::Error, Severity::Warning].into_iter().find(|severity| worst(*severity));
    let severity = severity.unwrap_or(Severity::Ok);
    let instance: String = proxy.instance.chars().take(INSTANCE_SHOWN).collect();
    let checks = counted(proxy.checks.len(), "check");
    print_line(format_args!("{} {} {instance}  {checks}", mark(severity), proxy.spiffe_id))?;
    let shown = proxy.checks.iter().filter(|check| is_verbose || check.severity != Severity::Ok);
    shown.into_iter().try_for_each(|check| print_finding(check, "    "))
}

fn print_finding(finding: &Finding, indent: &str) -> Result<(), Failure> {
    let (mark, id) = (mark(finding.severity), finding.id.id());
    print_line(format_args!("{indent}{mark} {id:ID_WIDTH$} {}", finding.message))?;
    if let Some(hint) = &finding.hint {
        print_line(format_args!("{indent}    hint: {hint}"))?;
        print_line(format_args!("{indent}    see {}", finding.docs))?;
    }
    Ok(())
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn mark(severity: Severity) -> char {
    match severity {
        Severity::Error => '✗',
        Severity::Ok => '✓',
        Severity::Skipped => '–',
        Severity::Warning => '‼',
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Topic;
    use super::*;

    fn verdict(severities: &[Severity], is_strict: bool) -> Verdict {
        let finding = |severity: &Severity| Finding { severity: *severity, ..Finding::ok(Topic::Cgroup, "") };
        Report { checks: severities.iter().map(finding).collect(), ..Report::default() }.verdict(is_strict)
    }

    #[test]
    fn errors_fail_and_warnings_do_when_strict() {
        assert_eq!(verdict(&[], true), Verdict::Yes);
        assert_eq!(verdict(&[Severity::Ok, Severity::Skipped], true), Verdict::Yes);
        assert_eq!(verdict(&[Severity::Ok, Severity::Warning], false), Verdict::Yes);
        assert_eq!(verdict(&[Severity::Ok, Severity::Warning], true), Verdict::No);
        assert_eq!(verdict(&[Severity::Error], false), Verdict::No);
    }

    #[test]
    fn a_control_plane_that_does_not_answer_has_an_exit_code_of_its_own() {
        let report = Report { is_unavailable: true, ..Report::default() };
        assert_eq!(report.verdict(false).code(), 69);
    }
}
