//! Routes: which requests to a workload something is about.

use serde::{Deserialize, Serialize};

use crate::model::PolicyAction;
use crate::pattern::PathPattern;

/// Requests by method and path; what is given must match both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// HTTP methods; empty means all.
    pub methods: Vec<String>,
    /// Request paths; empty means all.
    pub paths: Vec<PathPattern>,
}

impl Route {
    /// Whether a request is this route's as it is written: raw path, letter case of the method.
    pub fn matches(&self, method: &str, path: &str) -> bool {
        matches_method(&self.methods, method, PolicyAction::Allow)
            && matches_path(&self.paths, path, PolicyAction::Allow)
    }

    /// Whether some server might take a request for one of this route, however it is spelt.
    pub fn matches_any_spelling(&self, method: &str, path: &str) -> bool {
        matches_method(&self.methods, method, PolicyAction::Deny)
            && matches_path(&self.paths, path, PolicyAction::Deny)
    }
}

/// Whether a method is one of those listed. Methods are case-sensitive (RFC 9110 section 9.1), but some servers do not
/// know: what is denied is denied in every letter case.
pub(crate) fn matches_method(methods: &[String], method: &str, action: PolicyAction) -> bool {
    methods.is_empty()
        || methods.iter().any(|listed| match action {
            PolicyAction::Allow => listed == method,
            PolicyAction::Deny => listed.eq_ignore_ascii_case(method),
        })
}

/// Whether a raw path matches one of those listed. What is denied is denied however it is spelt.
pub(crate) fn matches_path(paths: &[PathPattern], path: &str, action: PolicyAction) -> bool {
    paths.is_empty()
        || paths.iter().any(|pattern| match action {
            PolicyAction::Allow => pattern.matches(path),
            PolicyAction::Deny => pattern.matches_any_spelling(path),
        })
}
