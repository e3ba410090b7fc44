//! One request to the API, but watches: pure.

use std::collections::BTreeMap;

use http::Method;
use serde_json::{Map, Value, json};

use super::access::Access;
use super::cluster::{Cluster, Key, Resource, State, key};
use super::{ADMIN_TOKEN, CONTROL_PLANE_TOKEN, discovery, refusal, schema};

/// A request as it came.
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) query: BTreeMap<String, String>,
    pub(super) token: Option<&'a str>,
    pub(super) form: &'a str,
    pub(super) body: &'a [u8],
}

/// What is to be done about it.
pub(super) enum Answer {
    Whole(u16, Value),
    /// A watch of a collection from a version.
    Watch {
        of: Box<Target>,
        from: u64,
    },
}

/// What a path is about.
#[derive(Clone, Debug)]
pub(super) struct Target {
    resource: Resource,
    namespace: String,
    name: Option<String>,
    subresource: String,
    /// Of a collection: the labels and the name that its objects must have.
    labels: Vec<(String, String)>,
    named: Option<String>,
}

type Refused = (u16, Value);

pub(super) fn answer(cluster: &Cluster, asked: &Asked<'_>) -> Answer {
    let mut state = cluster.lock();
    let answered = match asked.token {
        Some(ADMIN_TOKEN | CONTROL_PLANE_TOKEN) => route(&mut state, asked),
        _ => Err(refusal(401, "Unauthorized", "Unauthorized")),
    };
    cluster.version.send_replace(state.version);
    answered.unwrap_or_else(|(code, status)| Answer::Whole(code, status))
}

fn route(state: &mut State, asked: &Asked<'_>) -> Result<Answer, Refused> {
    if let Some(found) = discovery::answer(state, asked.path) {
        return Ok(Answer::Whole(200, found));
    }
    if asked.path == "/apis/authentication.k8s.io/v1/tokenreviews" && asked.method == Method::POST {
        permit(state, asked, access("create", "authentication.k8s.io", "tokenreviews", None))?;
        let review = state.review(parsed(asked.body)?);
        return Ok(Answer::Whole(201, review));
    }
    let target = target(state, asked)
        .ok_or_else(|| refusal(404, "NotFound", "the server could not find the requested resource"))?;
    let watch = asked.query.get("watch").is_some_and(|value| ["true", "1"].contains(&value.as_str()));
    let verb = match (asked.method.as_str(), &target.name) {
        ("GET", Some(_)) => "get",
        ("GET", None) if watch => "watch",
        ("GET", None) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", _) => "delete",
        _ => return Err(refusal(405, "MethodNotAllowed", "no such verb")),
    };
    let resource = match target.subresource.as_str() {
        "" => target.resource.plural.clone(),
        subresource => format!("{}/{subresource}", target.resource.plural),
    };
    let name = target.name.clone().or_else(|| target.named.clone());
    permit(state, asked, access(verb, &target.resource.group, &resource, name))?;
    match verb {
        // As a server without that feature; clients list first, then.
        "watch" if asked.query.contains_key("sendInitialEvents") => {
            Err(refusal(422, "Invalid", "sendInitialEvents is forbidden for watch"))
        }
        "watch" => {
            let from = asked
                .query
                .get("resourceVersion")
                .and_then(|version| version.parse().ok())
                .unwrap_or(state.version);
            Ok(Answer::Watch { of: Box::new(target), from })
        }
        "list" => {
            state.lists += 1;
            Ok(Answer::Whole(200, list(state, &target, asked)))
        }
        "get" => {
            let key = named(&target);
            let found = state.objects.get(&key).cloned().ok_or_else(|| missing(&key))?;
            Ok(Answer::Whole(200, found))
        }
        "create" => create(state, &target, asked).map(|made| Answer::Whole(201, made)),
        "delete" => {
            let key = named(&target);
            let gone = state.delete(&key).ok_or_else(|| missing(&key))?;
            Ok(Answer::Whole(200, gone))
        }
        _ => change(state, &target, asked).map(|(code, changed)| Answer::Whole(code, changed)),
    }
}

fn permit(state: &mut State, asked: &Asked<'_>, access: Access) -> Result<(), Refused> {
    if asked.token == Some(CONTROL_PLANE_TOKEN) { state.may(access) } else { Ok(()) }
}

fn access(verb: &str, group: &str, resource: &str, name: Option<String>) -> Access {
    Access { verb: verb.to_owned(), group: group.to_owned(), resource: resource.to_owned(), name }
}

fn missing((id, _, name): &Key) -> Refused {
    refusal(404, "NotFound", format!("{id} \"{name}\" not found"))
}

fn parsed(body: &[u8]) -> Result<Value, Refused> {
    serde_json::from_slice(body)
        .map_err(|error| refusal(400, "BadRequest", format!("the body is no JSON: {error}")))
}

/// `/api/v1/…` or `/apis/GROUP/VERSION/…`.
fn target(state: &State, asked: &Asked<'_>) -> Option<Target> {
    let segments: Vec<&str> = asked.path.trim_matches('/').split('/').collect();
    let (api, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] => ((*version).to_owned(), rest),
        ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (*plural, None, ""),
        [plural, name] => (*plural, Some((*name).to_owned()), ""),
        [plural, name, "status"] => (*plural, Some((*name).to_owned()), "status"),
        _ => return None,
    };
    let resource = state.resources.iter().find(|known| known.api() == api && known.plural == plural)?.clone();
    if subresource == "status" && !resource.status {
        return None;
    }
    let query = |name: &str| asked.query.get(name).map(String::as_str).unwrap_or_default();
    let pairs = |text: &str| -> Vec<(String, String)> {
        text.split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    };
    let named = pairs(query("fieldSelector")).into_iter().find(|(field, _)| field == "metadata.name");
    Some(Target {
        resource,
        namespace: namespace.to_owned(),
        name,
        subresource: subresource.to_owned(),
        labels: pairs(query("labelSelector")),
        named: named.map(|(_, name)| name),
    })
}

fn named(target: &Target) -> Key {
    (target.resource.id(), target.namespace.clone(), target.name.clone().unwrap_or_default())
}

impl Target {
    pub(super) fn is_of(&self, (id, namespace, _): &Key) -> bool {
        *id == self.resource.id() && (self.namespace.is_empty() || *namespace == self.namespace)
    }

    pub(super) fn selects(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        self.labels.iter().all(|(name, value)| metadata["labels"][name] == value.as_str())
            && self.named.as_ref().is_none_or(|name| metadata["name"] == name.as_str())
    }

    /// What a bookmark is about.
    pub(super) fn bookmark(&self, version: u64) -> Value {
        json!({ "apiVersion": self.resource.api(), "kind": self.resource.kind, "metadata": { "resourceVersion": version.to_string() } })
    }
}

fn list(state: &State, target: &Target, asked: &Asked<'_>) -> Value {
    let number = |name: &str| asked.query.get(name).and_then(|text| text.parse::<usize>().ok());
    let (start, limit) = (number("continue").unwrap_or(0), number("limit").filter(|limit| *limit > 0));
    let all = state.objects.iter().filter(|(key, object)| target.is_of(key) && target.selects(object));
    let all: Vec<&Value> = all.map(|(_, object)| object).collect();
    let end = limit.map_or(all.len(), |limit| (start + limit).min(all.len()));
    let mut metadata = Map::from_iter([("resourceVersion".to_owned(), state.version.to_string().into())]);
    if end < all.len() {
        metadata.insert("continue".to_owned(), end.to_string().into());
    }
    json!({
        "apiVersion": target.resource.api(), "kind": format!("{}List", target.resource.kind),
        "metadata": metadata, "items": all.get(start..end).unwrap_or_default(),
    })
}

fn create(state: &mut State, target: &Target, asked: &Asked<'_>) -> Result<Value, Refused> {
    let mut object = parsed(asked.body)?;
    if target.resource.namespaced {
        object["metadata"]["namespace"] = target.namespace.clone().into();
    }
    let key = key(&target.resource, &object);
    if state.objects.contains_key(&key) {
        return Err(refusal(409, "AlreadyExists", format!("{} \"{}\" already exists", key.0, key.2)));
    }
    stored(state, target, asked, key, object)
}

/// Replaces or patches.
fn change(state: &mut State, target: &Target, asked: &Asked<'_>) -> Result<(u16, Value), Refused> {
    let key = named(target);
    let before = state.objects.get(&key).cloned();
    let applied = asked.form.starts_with("application/apply-patch");
    let Some(before) = before else {
        if !applied {
            return Err(missing(&key));
        }
        let object = parsed(asked.body)?;
        return stored(state, target, asked, key, object).map(|made| (201, made));
    };
    let body = parsed(asked.body)?;
    let after = match asked.form {
        _ if asked.method == Method::PUT => body.clone(),
        "application/json-patch+json" => {
            let patch: json_patch::Patch = serde_json::from_value(body.clone())
                .map_err(|error| refusal(400, "BadRequest", error.to_string()))?;
            let mut after = before.clone();
            json_patch::patch(&mut after, &patch)
                .map_err(|error| refusal(422, "Invalid", error.to_string()))?;
            after
        }
        // Good enough for what is applied here: lists are replaced.
        _ => {
            let mut after = before.clone();
            json_patch::merge(&mut after, &body);
            after
        }
    };
    if target.subresource == "status" {
        state.status_writes += 1;
        if state.conflicts > 0 {
            // Somebody else was faster.
            state.conflicts -= 1;
            let mut touched = before.clone();
            touched["metadata"]["annotations"]["touched"] = state.version.to_string().into();
            state.write(&target.resource, key.clone(), touched);
        }
    }
    let present = state
        .objects
        .get(&key)
        .map(|object| object["metadata"]["resourceVersion"].clone())
        .unwrap_or_default();
    let expected = &body["metadata"]["resourceVersion"];
    if expected.is_string() && *expected != present {
        return Err(refusal(
            409,
            "Conflict",
            "the object has been modified; please apply your changes to the latest version",
        ));
    }
    let mut object = if target.subresource == "status" {
        let mut object = before;
        object["status"] = after["status"].clone();
        object
    } else if target.resource.status {
        let mut object = after;
        match before.get("status") {
            Some(status) => object["status"] = status.clone(),
            None => drop(object.as_object_mut().map(|fields| fields.remove("status"))),
        }
        object
    } else {
        after
    };
    object["metadata"]["name"] = key.2.clone().into();
    stored(state, target, asked, key, object).map(|changed| (200, changed))
}

fn stored(
    state: &mut State,
    target: &Target,
    asked: &Asked<'_>,
    key: Key,
    object: Value,
) -> Result<Value, Refused> {
    if let Some(schema) = &target.resource.schema {
        schema::check(&object, schema, "").map_err(|fault| {
            let code =
                if fault.starts_with("unknown field") { (400, "BadRequest") } else { (422, "Invalid") };
            refusal(code.0, code.1, format!("{} \"{}\" is invalid: {fault}", target.resource.kind, key.2))
        })?;
    }
    if asked.query.get("dryRun").is_some_and(|dry| dry == "All") {
        return Ok(object);
    }
    // What changes nothing makes no version, as in Kubernetes.
    match state.objects.get(&key) {
        Some(present) if *present == object => Ok(object),
        _ => Ok(state.write(&target.resource, key, object)),
    }
}
