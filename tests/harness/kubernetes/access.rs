//! Access rules as a ClusterRole has them, enforced, and remembered as far as they were of use.

use std::collections::BTreeSet;

use serde_json::Value;

/// What somebody wants to do.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Access {
    /// `get`, `list`, `watch`, `create`, `update`, `patch` or `delete`.
    pub verb: String,
    /// The group of the API, empty for the first one.
    pub group: String,
    /// The resource, with its subresource after a `/`.
    pub resource: String,
    /// Of which object, if it is known from the request.
    pub name: Option<String>,
}

/// The rules of the control plane's service account.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<Value>,
    used: BTreeSet<(usize, String, String)>,
}

impl Rules {
    /// Those of a ClusterRole.
    pub fn of(role: &Value) -> Self {
        Self { rules: role["rules"].as_array().cloned().unwrap_or_default(), used: BTreeSet::new() }
    }

    /// Whether they allow it.
    pub(super) fn allow(&mut self, access: &Access) -> bool {
        let has = |list: &Value, wanted: &str| {
            list.as_array().is_some_and(|list| list.iter().any(|it| it == wanted))
        };
        let found = self.rules.iter().position(|rule| {
            let named = match rule["resourceNames"].as_array() {
                None => true,
                // A name is not known when something is made.
                Some(_) if access.verb == "create" => false,
                Some(names) => access.name.as_deref().is_some_and(|name| names.iter().any(|it| it == name)),
            };
            named
                && has(&rule["apiGroups"], &access.group)
                && has(&rule["resources"], &access.resource)
                && has(&rule["verbs"], &access.verb)
        });
        if let Some(rule) = found {
            self.used.insert((rule, access.resource.clone(), access.verb.clone()));
        }
        found.is_some()
    }

    /// What they allow and nobody has done: `RESOURCE VERB`.
    pub fn unused(&self) -> Vec<String> {
        let mut unused = Vec::new();
        let texts = |list: &Value| -> Vec<String> {
            list.as_array().into_iter().flatten().filter_map(|it| Some(it.as_str()?.to_owned())).collect()
        };
        for (number, rule) in self.rules.iter().enumerate() {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    if !self.used.contains(&(number, resource.clone(), verb.clone())) {
                        unused.push(format!("{resource} {verb}"));
                    }
                }
            }
        }
        unused
    }
}
