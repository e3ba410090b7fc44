//! What there is: for kubectl, which asks before it does anything.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::cluster::{Resource, State};

/// The answer to a path that is about the API itself.
pub(super) fn answer(state: &State, path: &str) -> Option<Value> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match segments.as_slice() {
        ["version"] => {
            Some(json!({ "major": "1", "minor": "37", "gitVersion": "v1.37.0", "platform": "linux/amd64" }))
        }
        ["api"] => {
            Some(json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] }))
        }
        ["apis"] => Some(groups(state)),
        ["api", "v1"] => Some(resources(state, "v1")),
        ["apis", group, version] => Some(resources(state, &format!("{group}/{version}"))),
        ["openapi", "v3"] => Some(documents(state)),
        ["openapi", "v3", "api", "v1"] => Some(document(state, "v1")),
        ["openapi", "v3", "apis", group, version] => Some(document(state, &format!("{group}/{version}"))),
        _ => None,
    }
}

fn apis(state: &State) -> BTreeSet<String> {
    state.resources.iter().map(Resource::api).collect()
}

fn groups(state: &State) -> Value {
    let groups = apis(state).into_iter().filter_map(|api| {
        let (group, version) = api.split_once('/')?;
        let version = json!({ "groupVersion": api, "version": version });
        Some(json!({ "name": group, "versions": [version], "preferredVersion": version }))
    });
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups.collect::<Vec<_>>() })
}

fn resources(state: &State, api: &str) -> Value {
    let mut all = Vec::new();
    for resource in state.resources.iter().filter(|resource| resource.api() == api) {
        let verbs = json!(["create", "delete", "get", "list", "patch", "update", "watch"]);
        all.push(json!({
            "name": resource.plural, "singularName": resource.kind.to_lowercase(), "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": verbs, "categories": resource.categories,
        }));
        if resource.status {
            all.push(json!({
                "name": format!("{}/status", resource.plural), "singularName": "", "namespaced": resource.namespaced,
                "kind": resource.kind, "verbs": ["get", "patch", "update"],
            }));
        }
    }
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": all })
}

fn route(api: &str) -> String {
    if api.contains('/') { format!("apis/{api}") } else { format!("api/{api}") }
}

fn documents(state: &State) -> Value {
    let paths = apis(state).into_iter().map(|api| {
        let route = route(&api);
        let url = format!("/openapi/v3/{route}?hash=0");
        (route, json!({ "serverRelativeURL": url }))
    });
    json!({ "paths": paths.collect::<Map<_, _>>() })
}

/// With what kubectl looks for: whether fields are validated by the server, and what an object looks like.
fn document(state: &State, api: &str) -> Value {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for resource in state.resources.iter().filter(|resource| resource.api() == api) {
        let kind = json!({ "group": resource.group, "version": resource.version, "kind": resource.kind });
        let within = if resource.namespaced { "namespaces/{namespace}/" } else { "" };
        let path = format!("/{}/{within}{}/{{name}}", route(api), resource.plural);
        let parameter = |name: &str| json!({ "name": name, "in": "query", "schema": { "type": "string" } });
        paths.insert(path, json!({
            "patch": {
                "parameters": [parameter("dryRun"), parameter("fieldManager"), parameter("fieldValidation"), parameter("force")],
                "x-kubernetes-action": "patch",
                "x-kubernetes-group-version-kind": kind,
            },
        }));
        let mut schema = resource.schema.clone().unwrap_or_else(|| json!({ "type": "object" }));
        schema["x-kubernetes-group-version-kind"] = json!([kind]);
        let name = format!("{}.{}.{}", resource.group, resource.version, resource.kind);
        schemas.insert(name, schema);
    }
    json!({
        "openapi": "3.0.0", "info": { "title": "Kubernetes", "version": "v1.37.0" },
        "paths": paths, "components": { "schemas": schemas },
    })
}
