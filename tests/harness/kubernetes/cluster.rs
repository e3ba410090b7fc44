//! The objects of a cluster, their versions, and the tokens of its pods.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::access::{Access, Rules};
use super::refusal;

/// A time that all objects share.
const CREATED: &str = "2026-01-01T00:00:00Z";

/// A cluster. Cheap to clone; all clones are the same one.
#[derive(Clone)]
pub struct Cluster {
    state: Arc<Mutex<State>>,
    pub(super) version: watch::Sender<u64>,
}

/// A kind of object.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) plural: String,
    pub(super) kind: String,
    pub(super) namespaced: bool,
    /// It has a status that is written on its own.
    pub(super) status: bool,
    pub(super) schema: Option<Value>,
    pub(super) categories: Value,
}

/// Where an object is: group and plural, namespace, name.
pub(super) type Key = (String, String, String);

/// A token of a pod, as the kubelet asks for it.
#[derive(Clone, Debug)]
pub struct PodToken {
    /// The pod's namespace.
    pub namespace: String,
    /// Its service account.
    pub account: String,
    /// Its name.
    pub pod: String,
    /// Its uid.
    pub uid: String,
    /// What the token is for.
    pub audience: String,
    /// Its time is over.
    pub expired: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) version: u64,
    pub(super) kind: &'static str,
    pub(super) key: Key,
    pub(super) object: Value,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) version: u64,
    pub(super) resources: Vec<Resource>,
    pub(super) objects: BTreeMap<Key, Value>,
    pub(super) events: Vec<Event>,
    /// Versions up to this one are forgotten.
    pub(super) forgotten: u64,
    pub(super) tokens: HashMap<String, PodToken>,
    pub(super) rules: Rules,
    pub(super) refused: Vec<Access>,
    pub(super) lists: u64,
    pub(super) status_writes: u64,
    /// So many writes of statuses are to meet a conflict.
    pub(super) conflicts: u64,
    /// So many patches are done and not answered.
    pub(super) lost: u64,
}

impl Resource {
    fn new(api: &str, plural: &str, kind: &str, namespaced: bool) -> Self {
        let (group, version) = api.split_once('/').unwrap_or(("", api));
        Self {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: plural.to_owned(),
            kind: kind.to_owned(),
            namespaced,
            status: false,
            schema: None,
            categories: json!([]),
        }
    }

    pub(super) fn api(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    pub(super) fn id(&self) -> String {
        format!("{}/{}", self.group, self.plural)
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

impl Cluster {
    /// A cluster that knows the kinds that Kubernetes brings, as far as they are needed.
    pub fn new() -> Self {
        let resources = vec![
            Resource::new("v1", "configmaps", "ConfigMap", true),
            Resource::new("v1", "namespaces", "Namespace", false),
            Resource::new("v1", "pods", "Pod", true),
            Resource::new("v1", "secrets", "Secret", true),
            Resource::new("v1", "serviceaccounts", "ServiceAccount", true),
            Resource::new("rbac.authorization.k8s.io/v1", "clusterrolebindings", "ClusterRoleBinding", false),
            Resource::new("rbac.authorization.k8s.io/v1", "clusterroles", "ClusterRole", false),
            Resource::new(
                "admissionregistration.k8s.io/v1",
                "mutatingwebhookconfigurations",
                "MutatingWebhookConfiguration",
                false,
            ),
            Resource::new(
                "apiextensions.k8s.io/v1",
                "customresourcedefinitions",
                "CustomResourceDefinition",
                false,
            ),
        ];
        let state = State { version: 1, resources, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), version: watch::Sender::new(1) }
    }

    /// Puts an object in, as if somebody had applied it.
    ///
    /// # Panics
    /// Its kind is not known.
    pub fn put(&self, object: &Value) {
        let mut state = self.lock();
        let resource = state.of_kind(object).unwrap_or_else(|| panic!("of no known kind: {object}"));
        let key = key(&resource, object);
        let mut object = object.clone();
        // Whoever applies an object leaves its status alone.
        if let Some(status) =
            state.objects.get(&key).and_then(|before| before.get("status")).filter(|_| resource.status)
        {
            object["status"] = status.clone();
        }
        state.write(&resource, key, object);
        self.version.send_replace(state.version);
    }

    /// Takes an object away.
    pub fn remove(&self, plural: &str, namespace: &str, name: &str) {
        let mut state = self.lock();
        let found = state.objects.keys().find(|(id, of, called)| {
            id.ends_with(&format!("/{plural}")) && of == namespace && called == name
        });
        if let Some(key) = found.cloned() {
            state.delete(&key);
        }
        self.version.send_replace(state.version);
    }

    /// An object as it is.
    pub fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let state = self.lock();
        let mut all = state.objects.iter();
        let found = all.find(|((id, of, called), _)| {
            id.ends_with(&format!("/{plural}")) && of == namespace && called == name
        });
        found.map(|(_, object)| object.clone())
    }

    /// The names of all objects of a kind in a namespace.
    pub fn names(&self, plural: &str, namespace: &str) -> Vec<String> {
        let state = self.lock();
        let all = state.objects.keys();
        let of_kind = all.filter(|(id, of, _)| id.ends_with(&format!("/{plural}")) && of == namespace);
        of_kind.map(|(_, _, name)| name.clone()).collect()
    }

    /// The status of a condition of an object, and its message.
    pub fn condition(&self, plural: &str, name: &str, condition: &str) -> Option<(String, String)> {
        let object = self.object(plural, "", name)?;
        let all = object["status"]["conditions"].as_array()?;
        let found = all.iter().find(|found| found["type"] == condition)?;
        Some((found["status"].as_str()?.to_owned(), found["message"].as_str()?.to_owned()))
    }

    /// Forgets all versions before the present one: whoever watches from an earlier one has to list again.
    pub fn forget(&self) {
        let mut state = self.lock();
        state.forgotten = state.version;
        state.events.clear();
    }

    /// A token that the server knows.
    pub fn issue(&self, token: &str, of: PodToken) {
        self.lock().tokens.insert(token.to_owned(), of);
    }

    /// What the control plane's service account may do.
    pub fn grant(&self, rules: Rules) {
        self.lock().rules = rules;
    }

    /// Its rules, and what they were used for.
    pub fn rules(&self) -> Rules {
        self.lock().rules.clone()
    }

    /// What it wanted and was not allowed.
    pub fn refused(&self) -> Vec<Access> {
        self.lock().refused.clone()
    }

    /// How often a collection was listed.
    pub fn lists(&self) -> u64 {
        self.lock().lists
    }

    /// How many statuses were written.
    pub fn status_writes(&self) -> u64 {
        self.lock().status_writes
    }

    /// Lets the next so many writes of statuses meet somebody else's write.
    pub fn conflicts(&self, count: u64) {
        self.lock().conflicts = count;
    }

    /// Does what the next so many patches ask, and breaks the connection off instead of an answer.
    pub fn lose_answers(&self, count: u64) {
        self.lock().lost = count;
    }

    /// How many such answers are still to be lost.
    pub fn answers_to_lose(&self) -> u64 {
        self.lock().lost
    }

    pub(super) fn loses_an_answer(&self) -> bool {
        let mut state = self.lock();
        let lost = state.lost > 0;
        state.lost = state.lost.saturating_sub(1);
        lost
    }

    /// How many such conflicts are still to come.
    pub fn conflicts_left(&self) -> u64 {
        self.lock().conflicts
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn key(resource: &Resource, object: &Value) -> Key {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (resource.id(), if resource.namespaced { text("namespace") } else { String::new() }, text("name"))
}

impl State {
    pub(super) fn of_kind(&self, object: &Value) -> Option<Resource> {
        let mut all = self.resources.iter();
        all.find(|known| {
            object["apiVersion"] == known.api().as_str() && object["kind"] == known.kind.as_str()
        })
        .cloned()
    }

    /// Makes or replaces an object; what it is now.
    pub(super) fn write(&mut self, resource: &Resource, key: Key, mut object: Value) -> Value {
        let before = self.objects.get(&key).cloned();
        self.version += 1;
        let version = self.version;
        let content = |object: &Value| {
            let mut content = object.clone();
            if let Some(fields) = content.as_object_mut() {
                fields.remove("metadata");
                fields.remove("status");
            }
            content
        };
        let generation = match &before {
            None => 1,
            Some(before) => {
                let changed = content(before) != content(&object);
                before["metadata"]["generation"].as_i64().unwrap_or(1) + i64::from(changed)
            }
        };
        let uid = before.as_ref().map_or_else(
            || {
                object["metadata"]["uid"]
                    .as_str()
                    .map_or_else(|| format!("00000000-0000-4000-8000-{version:012}"), str::to_owned)
            },
            |before| before["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
        );
        for (field, value) in [
            ("creationTimestamp", json!(CREATED)),
            ("generation", json!(generation)),
            ("name", json!(key.2)),
            ("resourceVersion", json!(version.to_string())),
            ("uid", json!(uid)),
        ] {
            object["metadata"][field] = value;
        }
        if resource.namespaced {
            object["metadata"]["namespace"] = key.1.clone().into();
        }
        object["apiVersion"] = resource.api().into();
        object["kind"] = resource.kind.clone().into();
        if resource.plural == "customresourcedefinitions" {
            self.define(&mut object);
        }
        if resource.plural == "clusterroles" {
            self.rules = Rules::of(&object);
        }
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.objects.insert(key.clone(), object.clone());
        self.events.push(Event { version, kind, key, object: object.clone() });
        object
    }

    pub(super) fn delete(&mut self, key: &Key) -> Option<Value> {
        let mut object = self.objects.remove(key)?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.events.push(Event {
            version: self.version,
            kind: "DELETED",
            key: key.clone(),
            object: object.clone(),
        });
        Some(object)
    }

    /// A definition makes its kind known, at once.
    fn define(&mut self, definition: &mut Value) {
        let spec = definition["spec"].clone();
        let version = &spec["versions"][0];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let resource = Resource {
            group: text(&spec["group"]),
            version: text(&version["name"]),
            plural: text(&spec["names"]["plural"]),
            kind: text(&spec["names"]["kind"]),
            namespaced: spec["scope"] == "Namespaced",
            status: version["subresources"]["status"].is_object(),
            schema: Some(version["schema"]["openAPIV3Schema"].clone()),
            categories: spec["names"]["categories"].clone(),
        };
        self.resources.retain(|known| known.id() != resource.id());
        self.resources.push(resource);
        let condition = |name: &str| json!({ "type": name, "status": "True", "reason": name, "message": "", "lastTransitionTime": CREATED });
        definition["status"] = json!({
            "acceptedNames": spec["names"],
            "storedVersions": [version["name"]],
            "conditions": [condition("NamesAccepted"), condition("Established")],
        });
    }

    /// A TokenReview with its answer.
    pub(super) fn review(&self, mut review: Value) -> Value {
        let token = review["spec"]["token"].as_str().unwrap_or_default();
        let no = |error: &str| json!({ "authenticated": false, "error": error });
        let status = match self.tokens.get(token) {
            None => no("invalid bearer token"),
            Some(found) if found.expired => no("invalid bearer token, service account token has expired"),
            Some(found) => {
                let wanted = review["spec"]["audiences"].as_array().cloned().unwrap_or_default();
                let pod = self.objects.get(&("/pods".to_owned(), found.namespace.clone(), found.pod.clone()));
                if !wanted.iter().any(|audience| *audience == found.audience.as_str()) {
                    no("token audiences are invalid for the target audiences")
                } else if pod.is_none_or(|pod| pod["metadata"]["uid"] != found.uid.as_str()) {
                    no("pod is not found or has another uid")
                } else {
                    json!({
                        "authenticated": true,
                        "audiences": [found.audience],
                        "user": {
                            "username": format!("system:serviceaccount:{}:{}", found.namespace, found.account),
                            "uid": "00000000-0000-4000-8000-00000000aaaa",
                            "groups": ["system:serviceaccounts", "system:authenticated"],
                            "extra": {
                                "authentication.kubernetes.io/pod-name": [found.pod],
                                "authentication.kubernetes.io/pod-uid": [found.uid],
                            },
                        },
                    })
                }
            }
        };
        review["status"] = status;
        review
    }

    /// Whether the control plane's account may do it.
    pub(super) fn may(&mut self, access: Access) -> Result<(), (u16, Value)> {
        if self.rules.allow(&access) {
            return Ok(());
        }
        let message =
            format!("the control plane cannot {} {} {:?}", access.verb, access.resource, access.name);
        self.refused.push(access);
        Err(refusal(403, "Forbidden", message))
    }
}
