//! The kinds of manifest as custom resources of Kubernetes: the schema for editors in the form that the API server takes.
//!
//! Structural schemas know no `const`, want a type everywhere, and cannot both list fields and forbid others. What is not
//! listed is refused by `kubectl apply` (`--validate=strict`, its default) and otherwise dropped by the server.

use serde_json::{Map, Value, json};

use crate::manifest::{API_VERSION, Kind};
use crate::schema::spec;

/// A custom resource definition.
#[derive(Clone, Debug, PartialEq)]
pub struct CustomResource {
    /// The kind in plural, such as `accesspolicies`.
    pub plural: String,
    /// The definition, of `apiextensions.k8s.io/v1`.
    pub definition: Value,
}

/// One definition for each kind, in alphabetical order.
pub fn custom_resources() -> Vec<CustomResource> {
    Kind::ALL.into_iter().map(custom_resource).collect()
}

fn custom_resource(kind: Kind) -> CustomResource {
    // It is `GROUP/VERSION`.
    let (group, version) = API_VERSION.split_once('/').unwrap_or((API_VERSION, ""));
    let singular = kind.as_str().to_ascii_lowercase();
    let plural = plural(&singular);
    let condition = |name: &str| json!({ "name": name, "type": "string", "jsonPath": format!(r#".status.conditions[?(@.type=="{name}")].status"#) });
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": {
            "group": group,
            "names": {
                "categories": ["signet"],
                "kind": kind.as_str(),
                "listKind": format!("{}List", kind.as_str()),
                "plural": plural,
                "singular": singular,
            },
            // A manifest's name is unique in the mesh.
            "scope": "Cluster",
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "additionalPrinterColumns": [
                    condition("Accepted"),
                    condition("Programmed"),
                    { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
                ],
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": { "type": "string" },
                        "kind": { "type": "string" },
                        "metadata": { "type": "object" },
                        "spec": structural(&spec(kind)),
                        "status": status(),
                    },
                } },
                "subresources": { "status": {} },
            }],
        },
    });
    CustomResource { plural, definition }
}

/// A kind in plural, as it stands in the API server's paths.
pub fn plural_of(kind: Kind) -> String {
    plural(&kind.as_str().to_ascii_lowercase())
}

fn plural(singular: &str) -> String {
    match singular.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if singular.ends_with("sh") => format!("{singular}es"),
        None => format!("{singular}s"),
    }
}

/// What the control plane reports of a resource.
fn status() -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    let generation = json!({ "type": "integer", "format": "int64", "minimum": 0 });
    json!({
        "type": "object",
        "properties": {
            "observedGeneration": generation,
            "conditions": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
                    "properties": {
                        "type": text("`Accepted`: it compiles. `Programmed`: all connected sidecars have it in force."),
                        "status": { "type": "string", "enum": ["False", "True", "Unknown"] },
                        "reason": text("A stable word."),
                        "message": text("For people."),
                        "lastTransitionTime": { "type": "string", "format": "date-time" },
                        "observedGeneration": generation,
                    },
                },
            },
        },
    })
}

/// A schema of ours as a structural one.
fn structural(schema: &Value) -> Value {
    let Some(schema) = schema.as_object() else { return schema.clone() };
    let mut made = Map::new();
    for (keyword, value) in schema {
        match keyword.as_str() {
            "additionalProperties" if value.is_boolean() => {}
            "additionalProperties" | "items" => {
                made.insert(keyword.clone(), structural(value));
            }
            "const" => {
                made.insert("enum".to_owned(), json!([value]));
            }
            "properties" => {
                let fields = value.as_object().into_iter().flatten();
                let fields: Map<String, Value> =
                    fields.map(|(name, field)| (name.clone(), structural(field))).collect();
                made.insert(keyword.clone(), fields.into());
            }
            _ => {
                made.insert(keyword.clone(), value.clone());
            }
        }
    }
    if !made.contains_key("type") {
        let first = made.get("enum").and_then(|words| words.get(0));
        let of = if first.is_some_and(Value::is_boolean) { "boolean" } else { "string" };
        made.insert("type".to_owned(), of.into());
    }
    made.into()
}
