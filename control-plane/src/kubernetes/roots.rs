//! The mesh's roots, where the cluster looks for them: a ConfigMap in each namespace whose pods are injected, for the sidecars,
//! and the `caBundle` of our webhook, for the API server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde_json::{Value, json};
use signet_inject::kubernetes::{ROOTS_CONFIG_MAP, ROOTS_KEY, is_name};
use tokio::sync::Notify;

use super::WEBHOOK_NAME;
use super::client::{Client, ClientError, JSON_PATCH, MERGE_PATCH};
use super::follow::{Collection, Event, follow};
use crate::authority::Authority;

/// How often everything is put right without any event: a ConfigMap may have been deleted by somebody.
const TICK: Duration = Duration::from_secs(60);
/// Pause between two rounds: events come in bursts.
const PACE: Duration = Duration::from_secs(1);
/// Whose changes these are, in `managedFields`.
const FIELD_MANAGER: &str = "signet-control-plane";

/// Namespaces with this label get the roots, and their pods sidecars. Nothing in it needs escaping but the `/` and the `=`.
const NAMESPACES: &str = "labelSelector=signet.mf2c-project.eu%2Finjection%3Denabled";
/// Our webhook configuration alone; with it the right to watch can be given by name.
const WEBHOOK: &str = "fieldSelector=metadata.name%3Dsignet-control-plane";
const WEBHOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// Keeps them right. Dropped, it stops.
pub(crate) struct Roots {
    client: Arc<Client>,
    authority: Arc<Authority>,
    webhook: bool,
    known: Mutex<Known>,
    changed: Notify,
}

#[derive(Default)]
struct Known {
    namespaces: BTreeSet<String>,
    webhook: Option<Value>,
}

impl Roots {
    /// With `webhook` also those of the webhook.
    pub(crate) fn new(client: Arc<Client>, authority: Arc<Authority>, webhook: bool) -> Self {
        Self { client, authority, webhook, known: Mutex::default(), changed: Notify::new() }
    }

    /// Never returns.
    pub(crate) async fn run(&self) {
        let namespaces =
            Collection { path: "/api/v1/namespaces".to_owned(), query: Some(NAMESPACES.to_owned()) };
        let webhooks = Collection { path: WEBHOOKS.to_owned(), query: Some(WEBHOOK.to_owned()) };
        tokio::select! {
            never = follow(&self.client, &namespaces, |event| self.take_namespace(event)) => match never {},
            never = follow(&self.client, &webhooks, |event| self.take_webhook(event)), if self.webhook => match never {},
            () = self.keep() => {}
        }
    }

    fn take_namespace(&self, event: Event) {
        let name = |object: &Value| {
            let ending = object["status"]["phase"] == "Terminating";
            object["metadata"]["name"].as_str().filter(|name| is_name(name) && !ending).map(str::to_owned)
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Replaced(all) => known.namespaces = all.iter().filter_map(name).collect(),
            Event::Changed(object) => known.namespaces.extend(name(&object)),
            Event::Deleted(object) => {
                let gone = object["metadata"]["name"].as_str().unwrap_or_default();
                known.namespaces.remove(gone);
            }
        }
        drop(known);
        self.changed.notify_one();
    }

    fn take_webhook(&self, event: Event) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Replaced(all) => known.webhook = all.into_iter().next(),
            Event::Changed(object) => known.webhook = Some(object),
            Event::Deleted(_) => known.webhook = None,
        }
        drop(known);
        self.changed.notify_one();
    }

    async fn keep(&self) {
        let mut tick = tokio::time::interval(TICK);
        let mut slots = self.authority.changes();
        let mut written: BTreeMap<String, String> = BTreeMap::new();
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                // A rotation: the next root has to be known before anything is certified under it.
                _ = slots.changed() => {}
                // One that was deleted by hand comes back.
                _ = tick.tick() => written.clear(),
            }
            let roots = match self.authority.roots_pem() {
                Ok(roots) => roots,
                Err(error) => {
                    tracing::error!(%error, "the roots in force cannot be read; they are looked for again");
                    continue;
                }
            };
            let (namespaces, webhook) = {
                let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                (known.namespaces.clone(), known.webhook.clone())
            };
            written.retain(|namespace, _| namespaces.contains(namespace));
            for namespace in namespaces {
                if written.get(&namespace) == Some(&roots) {
                    continue;
                }
                match self.config_map(&namespace, &roots).await {
                    Ok(()) => drop(written.insert(namespace, roots.clone())),
                    Err(error) => {
                        tracing::warn!(namespace, %error, "the roots cannot be published there");
                    }
                }
            }
            if let Some(change) = webhook.and_then(|webhook| ca_bundle(&webhook, &roots)) {
                let path = format!("{WEBHOOKS}/{WEBHOOK_NAME}");
                match self.client.patch(&path, JSON_PATCH, &change).await {
                    Ok(_) => tracing::info!("the webhook's caBundle was written"),
                    // Somebody changed it meanwhile; the watch says so.
                    Err(error) if error.is(StatusCode::UNPROCESSABLE_ENTITY) => {}
                    Err(error) => tracing::warn!(%error, "the webhook's caBundle cannot be written"),
                }
            }
            tokio::time::sleep(PACE).await;
        }
    }

    /// Changed where it is there, made where it is not.
    async fn config_map(&self, namespace: &str, roots: &str) -> Result<(), ClientError> {
        let all = format!("/api/v1/namespaces/{namespace}/configmaps");
        let data = json!({ "data": { ROOTS_KEY: roots } });
        let path = format!("{all}/{ROOTS_CONFIG_MAP}?fieldManager={FIELD_MANAGER}");
        match self.client.patch(&path, MERGE_PATCH, &data).await {
            Err(error) if error.is(StatusCode::NOT_FOUND) => {
                let made = json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": { "name": ROOTS_CONFIG_MAP, "labels": { "app.kubernetes.io/part-of": "signet" } },
                    "data": { ROOTS_KEY: roots },
                });
                match self.client.create(&format!("{all}?fieldManager={FIELD_MANAGER}"), &made).await {
                    Err(error) if error.is(StatusCode::CONFLICT) => Ok(()),
                    made => made.map(drop),
                }
            }
            patched => patched.map(drop),
        }
    }
}

/// The change that gives every webhook of the configuration our roots; none when they all have them. It fails where the
/// configuration has changed meanwhile: the numbers would mean other webhooks.
fn ca_bundle(configuration: &Value, roots: &str) -> Option<Value> {
    let bundle = STANDARD.encode(roots);
    let version = configuration["metadata"]["resourceVersion"].as_str()?;
    let mut changes = vec![json!({ "op": "test", "path": "/metadata/resourceVersion", "value": version })];
    let webhooks = configuration["webhooks"].as_array()?;
    for (number, webhook) in webhooks.iter().enumerate() {
        if webhook["clientConfig"]["caBundle"] != bundle.as_str() {
            let path = format!("/webhooks/{number}/clientConfig/caBundle");
            changes.push(json!({ "op": "add", "path": path, "value": bundle }));
        }
    }
    (changes.len() > 1).then_some(changes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_bundle_is_written_where_it_is_missing_or_another() {
        let mut configuration = json!({
            "metadata": { "resourceVersion": "5" },
            "webhooks": [{ "name": "a", "clientConfig": {} }, { "name": "b", "clientConfig": { "caBundle": "b2xk" } }],
        });
        let change = ca_bundle(&configuration, "new").unwrap();
        assert_eq!(change[0], json!({ "op": "test", "path": "/metadata/resourceVersion", "value": "5" }));
        assert_eq!(change[1]["path"], "/webhooks/0/clientConfig/caBundle");
        assert_eq!(
            change[2],
            json!({ "op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": "bmV3" })
        );
        for webhook in configuration["webhooks"].as_array_mut().unwrap() {
            webhook["clientConfig"]["caBundle"] = "bmV3".into();
        }
        assert_eq!(ca_bundle(&configuration, "new"), None);
        assert_eq!(ca_bundle(&Value::Null, "new"), None);
    }

    #[test]
    fn namespaces_are_selected_by_the_label_that_injection_names() {
        assert_eq!(
            NAMESPACES,
            format!(
                "labelSelector={}%3Denabled",
                signet_inject::kubernetes::NAMESPACE_LABEL.replace('/', "%2F")
            )
        );
        assert_eq!(WEBHOOK, format!("fieldSelector=metadata.name%3D{WEBHOOK_NAME}"));
    }
}
