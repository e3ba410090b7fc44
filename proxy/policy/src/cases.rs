//! Tables of cases: what is asked, and the decision that is expected, for operators to keep beside their policies.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_saphyr::Spanned;
use signet_identity::SpiffeId;

use crate::compile::unix_seconds;
use crate::condition::RequestHeaders;
use crate::decide::{Facts, Layer, Origin};
use crate::diagnostic::{Diagnostic, Findings, Place, quoted, suggestion};
use crate::explain::{Decision, Explanation, explain};
use crate::index::PolicyIndex;
use crate::manifest::{MAX_TEXT_BYTES, describe, read_document};
use crate::model::{PolicyAction, PolicyMode, PolicyModel};
use crate::refusal::Refusal;

/// Most cases of one file.
pub const MAX_CASES: usize = 10_000;

/// What stands for any refusal.
const DENY: &str = "deny";
const ALLOW: &str = "allow";

/// A file of cases, of the right shape.
#[derive(Clone, Debug)]
pub struct CaseFile {
    file: String,
    spec: FileSpec,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSpec {
    #[serde(default)]
    policies: Vec<String>,
    cases: Spanned<Vec<Spanned<CaseSpec>>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CaseSpec {
    name: String,
    #[serde(default)]
    from: Option<Spanned<String>>,
    to: Spanned<String>,
    port: u16,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, Values>,
    #[serde(default)]
    opaque: bool,
    #[serde(default)]
    source_address: Option<IpAddr>,
    #[serde(default)]
    at: Option<Moment>,
    expect: Spanned<String>,
    #[serde(default)]
    rule: Option<String>,
}

/// One value of a header field, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Several(Vec<String>),
}

#[derive(Clone, Copy, Debug)]
struct Moment(u64);

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let read = unix_seconds(&text).map(Self);
        read.ok_or_else(|| D::Error::custom("not a moment such as 2026-03-31T18:00:00Z"))
    }
}

/// What came of one case.
#[derive(Clone, Debug)]
pub struct CaseResult {
    /// Its name.
    pub name: String,
    /// The line it stands on.
    pub line: u32,
    /// What was expected and is not so; `None` when all of it is.
    pub failure: Option<String>,
    /// Why the decision is what it is.
    pub explanation: Explanation,
}

/// What a case expects.
enum Expected {
    Allowed,
    Refused(Option<Refusal>),
}

/// Reads a file of cases. `file_name` is only repeated in diagnostics.
///
/// # Errors
/// All faults found.
pub fn parse_cases(file_name: &str, text: &str) -> Result<CaseFile, Vec<Diagnostic>> {
    let mut findings = Findings::default();
    if text.len() > MAX_TEXT_BYTES {
        let message = format!("the text has {} bytes, and {MAX_TEXT_BYTES} are accepted", text.len());
        findings.push(file_name, Place::START, message, "split it into several files");
        return Err(findings.into_list());
    }
    let spec: FileSpec = match read_document(text) {
        Ok(spec) => spec,
        Err(error) => {
            let (place, message, fix) = describe(&error, text);
            findings.push(file_name, place, message, fix);
            return Err(findings.into_list());
        }
    };
    let cases = &spec.cases;
    if cases.value.is_empty() || cases.value.len() > MAX_CASES {
        let message = format!("there are {} cases", cases.value.len());
        findings.push(file_name, Place::of(cases), message, format!("write 1 to {MAX_CASES}"));
    }
    for case in &cases.value {
        let request = &case.value;
        let http = request.method.is_some() || request.path.is_some() || request.host.is_some();
        if request.opaque && (http || !request.headers.is_empty()) {
            let message = "opaque bytes have no method, path, host and headers".to_owned();
            findings.push(file_name, Place::of(case), message, "remove `opaque`, or the others");
        }
        if !request.opaque && (request.method.is_none() || request.path.is_none()) {
            let message = "a request has a `method` and a `path`".to_owned();
            findings.push(file_name, Place::of(case), message, "add them, or `opaque: true`");
        }
        if expected(&request.expect.value).is_none() {
            let message = format!("{} is no decision", quoted(&request.expect.value));
            let codes = Refusal::ALL.iter().map(|refusal| refusal.code());
            let fix = suggestion(&request.expect.value, [ALLOW, DENY].into_iter().chain(codes));
            findings.push(file_name, Place::of(&request.expect), message, fix);
        }
    }
    findings.into_result(CaseFile { file: file_name.to_owned(), spec })
}

fn expected(text: &str) -> Option<Expected> {
    match text {
        ALLOW => Some(Expected::Allowed),
        DENY => Some(Expected::Refused(None)),
        code => Refusal::from_code(code).map(|refusal| Expected::Refused(Some(refusal))),
    }
}

impl CaseFile {
    /// The manifests it names, relative to where it is.
    pub fn policies(&self) -> &[String] {
        &self.spec.policies
    }

    /// Asks every case of a policy.
    ///
    /// # Errors
    /// Cases that cannot be asked: they name no workload, or leave out the time where it makes a difference.
    pub fn run(&self, model: &PolicyModel) -> Result<Vec<CaseResult>, Vec<Diagnostic>> {
        let index = PolicyIndex::new(model);
        let mut findings = Findings::default();
        let results: Vec<Option<CaseResult>> =
            self.spec.cases.value.iter().map(|case| self.ask(case, model, &index, &mut findings)).collect();
        findings.into_result(results.into_iter().flatten().collect())
    }

    fn ask(
        &self,
        case: &Spanned<CaseSpec>,
        model: &PolicyModel,
        index: &PolicyIndex,
        findings: &mut Findings,
    ) -> Option<CaseResult> {
        let CaseSpec { name, from, to, port, opaque, expect, rule, .. } = &case.value;
        let source = match from {
            Some(text) => Some(self.identity(text, model, findings)?),
            None => None,
        };
        let destination = self.identity(to, model, findings)?;
        let headers = fields(&case.value.headers);
        let layer = if *opaque {
            Layer::Opaque
        } else {
            Layer::Http {
                method: case.value.method.as_deref().unwrap_or_default(),
                path: case.value.path.as_deref().unwrap_or_default(),
                authority: case.value.host.as_deref().unwrap_or("localhost"),
                headers: Some(&headers),
            }
        };
        let now = match case.value.at {
            Some(Moment(at)) => at,
            None if index.next_change(0).is_none() => 0,
            None => {
                let message = "this policy depends on the time".to_owned();
                findings.push(
                    &self.file,
                    Place::of(case),
                    message,
                    "add `at`, such as `at: 2026-03-31T18:00:00Z`",
                );
                return None;
            }
        };
        let origin = case.value.source_address.map_or(Origin::LeftToDestination, Origin::Seen);
        let facts =
            Facts { source: source.as_ref(), origin, destination: &destination, port: *port, layer, now };
        let explanation = explain(index, &facts);
        let failure = expected(&expect.value).and_then(|expected| {
            let as_expected = match (&explanation.decision, expected) {
                (Decision::Allowed { .. }, Expected::Allowed)
                | (Decision::Refused { .. }, Expected::Refused(None)) => true,
                (Decision::Refused { code, .. }, Expected::Refused(Some(expected))) => *code == expected,
                _ => false,
            };
            if !as_expected {
                return Some(format!("expected {}, but it is {}", expect.value, explanation.decision));
            }
            let rule = rule.as_ref()?;
            (!decided_by(&explanation, rule))
                .then(|| format!("expected by {rule}, but it is {}", explanation.decision))
        });
        Some(CaseResult { name: name.clone(), line: Place::of(case).line, failure, explanation })
    }

    fn identity(
        &self,
        text: &Spanned<String>,
        model: &PolicyModel,
        findings: &mut Findings,
    ) -> Option<SpiffeId> {
        if let Some(workload) = model.workload_named(&text.value) {
            return Some(workload.id.clone());
        }
        let parsed = SpiffeId::parse(&text.value).ok();
        if parsed.is_none() {
            let message = format!("{} is neither a Workload nor a SPIFFE ID", quoted(&text.value));
            let known = model.workloads.iter().map(|workload| workload.name.as_str());
            findings.push(&self.file, Place::of(text), message, suggestion(&text.value, known));
        }
        parsed
    }
}

fn fields(headers: &BTreeMap<String, Values>) -> RequestHeaders {
    let each = headers.iter().flat_map(|(name, values)| {
        let values = match values {
            Values::One(value) => std::slice::from_ref(value),
            Values::Several(values) => values,
        };
        values.iter().map(move |value| (name.as_str(), value.as_bytes()))
    });
    RequestHeaders::new(each)
}

/// Whether `policy/rule` is one of those that make the decision what it is: several may allow the same.
fn decided_by(explanation: &Explanation, rule: &str) -> bool {
    let action = match explanation.decision {
        Decision::Allowed { .. } => PolicyAction::Allow,
        Decision::Refused { .. } => PolicyAction::Deny,
    };
    explanation.rules.iter().any(|report| {
        report.matched
            && report.mode == PolicyMode::Enforce
            && report.action == action
            && report.rule.as_ref().is_some_and(|name| format!("{}/{name}", report.policy) == rule)
    })
}
