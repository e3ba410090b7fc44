//! `signet policy`: tables of cases asked of policies, and the schema for editors.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use signet_policy::{CaseResult, Diagnostic, PolicyModel, compile, json_schema, parse_cases};

use super::validate::parse;
use crate::manifests::{self, ManifestText};
use crate::output::{Failure, Format, Verdict, print_json, print_line, text_or_json};

/// Looks after policies on this machine, without a control plane
#[derive(Debug, clap::Subcommand)]
#[command(
    after_help = "Examples:\n  signet policy test policies/cases.yaml\n  signet policy schema > signet.schema.json"
)]
pub(crate) enum Policy {
    Schema(Schema),
    Test(Test),
}

/// Prints the JSON Schema of manifests, for editors
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  signet policy schema > signet.schema.json\n
With the YAML language server, a manifest that begins with
  # yaml-language-server: $schema=signet.schema.json
is completed and checked while it is written.")]
pub(crate) struct Schema {}

/// Asks cases of policies, and tells which do not come out as expected
///
/// Exit code 0 means that all did, 1 that some did not, 64 that the files are wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signet policy test cases.yaml                  against the manifests the file names under `policies`
  signet policy test cases.yaml -f policies/     against these

A file of cases:
  policies: [policies/]
  cases:
  - name: the gateway reads
    from: gateway            # workload or SPIFFE ID; left out: a caller outside the mesh
    to: store
    port: 8080
    method: GET
    path: /api/device
    expect: allow            # allow, deny, or the code of a refusal
    rule: store-access/read  # optional")]
pub(crate) struct Test {
    /// Files of cases
    #[arg(required = true, value_name = "FILE")]
    cases: Vec<PathBuf>,
    /// Ask these manifests instead of those that the cases name
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Policy {
    pub(crate) fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        match self {
            Self::Schema(Schema {}) => print_json(&json_schema()).map(|()| Verdict::Yes),
            Self::Test(test) => test.run(format),
        }
    }
}

/// A case and the file it is in.
type Asked = (String, CaseResult);

impl Test {
    fn run(self, format: Format) -> Result<Verdict, Failure> {
        let mut asked: Vec<Asked> = Vec::new();
        for ManifestText { name, text } in manifests::read(&self.cases)? {
            let cases = parse_cases(&name, &text).map_err(|wrong| refused(&wrong))?;
            let model = self.model(Path::new(&name), cases.policies())?;
            let results = cases.run(&model).map_err(|wrong| refused(&wrong))?;
            asked.extend(results.into_iter().map(|result| (name.clone(), result)));
        }
        match format {
            Format::Json => print_json(&as_json(&asked))?,
            _ => print_run(&asked)?,
        }
        Ok(Verdict::of(asked.iter().all(|(_, result)| result.failure.is_none())))
    }

    /// The manifests that are asked: paths in a file of cases are relative to that file.
    fn model(&self, cases: &Path, named: &[String]) -> Result<PolicyModel, Failure> {
        let folder = cases.parent().unwrap_or_else(|| Path::new(""));
        let paths = if self.files.is_empty() {
            named.iter().map(|path| folder.join(path)).collect()
        } else {
            self.files.clone()
        };
        if paths.is_empty() {
            let message = format!("{}: it names no manifests; add `policies:`, or give -f", cases.display());
            return Err(Failure::Usage(message));
        }
        // A folder of manifests may hold the cases as well.
        let own = fs::canonicalize(cases).ok();
        let mut texts = manifests::read(&paths)?;
        texts.retain(|text| own.is_none() || fs::canonicalize(&text.name).ok() != own);
        let (manifests, wrong) = parse(&texts);
        if !wrong.is_empty() {
            return Err(refused(&wrong));
        }
        compile(&manifests).map_err(|wrong| refused(&wrong))
    }
}

fn refused(wrong: &[Diagnostic]) -> Failure {
    Failure::Usage(wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

fn print_run(asked: &[Asked]) -> Result<(), Failure> {
    print_line(format_args!("running {} cases", asked.len()))?;
    for (_, CaseResult { name, failure, .. }) in asked {
        let outcome = if failure.is_none() { "ok" } else { "FAILED" };
        print_line(format_args!("case {} ... {outcome}", name.escape_debug()))?;
    }
    let failed: Vec<(&Asked, &String)> =
        asked.iter().filter_map(|one| Some((one, one.1.failure.as_ref()?))).collect();
    for ((file, CaseResult { name, line, explanation, .. }), failure) in &failed {
        print_line(format_args!("\n{file}:{line}: {}\n{failure}", name.escape_debug()))?;
        print_line(explanation.to_string().trim_end())?;
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    let passed = asked.len() - failed.len();
    print_line(format_args!("\ncase result: {verdict}. {passed} passed; {} failed", failed.len()))
}

fn as_json(asked: &[Asked]) -> serde_json::Value {
    let case = |(file, result): &Asked| {
        json!({
            "file": file,
            "line": result.line,
            "name": result.name,
            "ok": result.failure.is_none(),
            "failure": result.failure,
            "explanation": result.explanation,
        })
    };
    let failed = asked.iter().filter(|(_, result)| result.failure.is_some()).count();
    json!({
        "passed": asked.len() - failed,
        "failed": failed,
        "cases": asked.iter().map(case).collect::<Vec<_>>(),
    })
}
