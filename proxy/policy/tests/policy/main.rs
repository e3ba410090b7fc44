//! The policy language from the outside: text in, decisions out.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

mod conditions;
mod crds;
mod decisions;
mod egress;
mod examples;
mod faults;
mod federation;
mod normal;
mod offline;
mod properties;
mod protection;
mod scale;
mod tools;
mod traffic;
mod workload_api;

use signet_identity::SpiffeId;
use signet_policy::{
    Facts, Layer, Origin, PolicyIndex, PolicyModel, RequestHeaders, Staleness, compile, parse_manifests,
};

/// A mesh with two networks, for tests to append their own manifests to.
const MESH: &str = "\
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: {name: test}
spec:
  trustDomain: td
  networks: [{name: n1}, {name: n2, cidrs: [10.2.0.0/16]}]
";

/// One manifest with its envelope.
fn manifest(kind: &str, name: &str, spec: &str) -> String {
    let spec: String = spec.trim().lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "---\napiVersion: signet.mf2c-project.eu/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{spec}"
    )
}

/// Compiles text that has to be right.
fn model_of(text: &str) -> PolicyModel {
    let manifests = parse_manifests("test.yaml", text).unwrap_or_else(|faults| panic!("{}", listed(&faults)));
    compile(&manifests).unwrap_or_else(|faults| panic!("{}", listed(&faults)))
}

/// The faults of text that has to be wrong, parsed or compiled.
fn faults_of(text: &str) -> Vec<String> {
    parse_manifests("test.yaml", text)
        .and_then(|manifests| compile(&manifests))
        .expect_err("the text has to be refused")
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn listed(faults: &[signet_policy::Diagnostic]) -> String {
    faults.iter().map(|fault| format!("{fault}\n")).collect()
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

/// Monday, 2 March 2026, 12:00 UTC: when nothing else is said.
const NOW: u64 = 1_772_452_800;

/// Asks `decide` about a request or, without method, about opaque bytes; answers `policy/rule` or the code.
fn ask(index: &PolicyIndex, source: &str, destination: &str, port: u16, request: &str) -> String {
    Question { source, destination, port, request, ..Question::default() }.ask(index)
}

/// A question with conditions.
#[derive(Clone, Copy)]
struct Question<'a> {
    source: &'a str,
    destination: &'a str,
    port: u16,
    request: &'a str,
    headers: &'a [(&'a str, &'a str)],
    origin: Origin,
    now: u64,
}

impl Default for Question<'_> {
    fn default() -> Self {
        let origin = Origin::Seen([192, 0, 2, 1].into());
        Self { source: "", destination: "", port: 80, request: "", headers: &[], origin, now: NOW }
    }
}

impl Question<'_> {
    fn ask(self, index: &PolicyIndex) -> String {
        self.put(|facts| match signet_policy::decide(index, facts) {
            Ok(permit) => format!("{}/{}", permit.policy(), permit.rule()),
            Err(refusal) => refusal.code().to_owned(),
        })
    }

    /// Asks what may come of it once its header fields can be read: `open` or the code.
    fn foresee(self, index: &PolicyIndex) -> String {
        let open = |()| "open".to_owned();
        self.put(|facts| {
            signet_policy::foresee(index, facts, Staleness::Fresh)
                .map_or_else(|refusal| refusal.code().to_owned(), open)
        })
    }

    fn put(self, to: impl FnOnce(&Facts<'_>) -> String) -> String {
        let source = (!self.source.is_empty()).then(|| id(self.source));
        let headers = RequestHeaders::new(self.headers.iter().map(|(name, value)| (*name, value.as_bytes())));
        let layer = match self.request.split_once(' ') {
            Some((method, path)) => {
                Layer::Http { method, path, authority: "unknown.host", headers: Some(&headers) }
            }
            None => Layer::Opaque,
        };
        let destination = id(self.destination);
        let facts = Facts {
            source: source.as_ref(),
            origin: self.origin,
            destination: &destination,
            port: self.port,
            layer,
            now: self.now,
        };
        to(&facts)
    }
}
