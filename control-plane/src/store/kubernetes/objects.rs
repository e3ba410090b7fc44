//! The store's Secrets, as the API server has them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::StatusCode;
use serde_json::{Value, json};

use super::layout::{Head, Kind, Names, Pointer, divided, joined};
use crate::kubernetes::client::{Client, ClientError, MERGE_PATCH};
use crate::kubernetes::follow::{Collection, list};
use crate::store::StoreError;

/// The label of all objects of a store, and the label of its head.
const STORE: &str = "signet.mf2c-project.eu/store";
const HEAD: &str = "signet.mf2c-project.eu/store-head";
/// The field of a Secret that holds everything.
const FIELD: &str = "part";
/// What kind of Secret these are.
const TYPE: &str = "signet.mf2c-project.eu/store";

/// Where the Secrets are.
#[derive(Clone, Debug)]
pub(super) struct Objects {
    pub(super) client: Client,
    collection: String,
    pub(super) names: Names,
}

/// The head as it was found.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) head: Head,
    /// What a change of it demands to be still so.
    version: String,
}

/// How a change of the head ended.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Moved {
    /// It is in force.
    Done,
    /// Somebody else was faster.
    Conflict,
}

/// Everything there is, by name.
pub(super) struct Everything {
    pub(super) head: Option<Head>,
    parts: BTreeMap<String, Vec<u8>>,
}

impl Objects {
    pub(super) fn new(client: Client, namespace: &str, names: Names) -> Self {
        Self { client, collection: format!("/api/v1/namespaces/{namespace}/secrets"), names }
    }

    /// What to follow to hear of commits.
    pub(super) fn head_alone(&self) -> Collection {
        Collection {
            path: self.collection.clone(),
            query: Some(format!("labelSelector={}", query(&[(HEAD, self.names.label())]))),
        }
    }

    /// The head as it is now: the API server asks the majority of its own store.
    pub(super) async fn head(&self) -> Result<Option<Seen>, StoreError> {
        match self.client.get(&self.path(&self.names.head())).await {
            Ok(object) => seen(&object).map(Some),
            Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(None),
            Err(error) => Err(told(error)),
        }
    }

    /// Puts a new head in the place of the one that was seen.
    pub(super) async fn move_head(&self, seen: Option<&Seen>, head: &Head) -> Result<Moved, StoreError> {
        let name = self.names.head();
        let data = json!({ FIELD: BASE64_STANDARD.encode(head.encode()?) });
        let outcome = match seen {
            None => {
                let mut object = self.object(&name, data);
                object["metadata"]["labels"][HEAD] = self.names.label().into();
                self.client.create(&self.collection, &object).await
            }
            Some(seen) => {
                let change = json!({ "metadata": { "resourceVersion": seen.version }, "data": data });
                self.client.patch(&self.path(&name), MERGE_PATCH, &change).await
            }
        };
        match outcome {
            Ok(_) => Ok(Moved::Done),
            Err(error) if error.is(StatusCode::CONFLICT) => Ok(Moved::Conflict),
            // Somebody removed it in between.
            Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(Moved::Conflict),
            Err(error) => Err(told(error)),
        }
    }

    /// Writes a commit or a snapshot; it counts once the head names it.
    pub(super) async fn stage(
        &self,
        kind: Kind,
        sequence: u64,
        message: &impl prost::Message,
    ) -> Result<Pointer, StoreError> {
        let parts = divided(message);
        let count = u32::try_from(parts.len())
            .map_err(|_| StoreError::TooLarge { what: "a commit".to_owned(), limit: u32::MAX as usize })?;
        let pointer = Pointer { sequence, id: random()?, parts: count };
        for (name, part) in self.names.parts(kind, &pointer).zip(parts) {
            let object = self.object(&name, json!({ FIELD: BASE64_STANDARD.encode(part) }));
            self.client.create(&self.collection, &object).await.map_err(told)?;
        }
        Ok(pointer)
    }

    /// Reads it again; none where some of it is gone.
    pub(super) async fn fetch<M: prost::Message + Default>(
        &self,
        kind: Kind,
        at: &Pointer,
    ) -> Result<Option<M>, StoreError> {
        let mut parts = Vec::new();
        for name in self.names.parts(kind, at) {
            match self.client.get(&self.path(&name)).await {
                Ok(object) => parts.push(content(&object)?),
                Err(error) if error.is(StatusCode::NOT_FOUND) => return Ok(None),
                Err(error) => return Err(told(error)),
            }
        }
        joined(&parts).map(Some)
    }

    /// Reads all objects at one moment.
    pub(super) async fn everything(&self) -> Result<Everything, StoreError> {
        let query = format!("labelSelector={}", query(&[(STORE, self.names.label())]));
        let all = Collection { path: self.collection.clone(), query: Some(query) };
        let (objects, _) = list(&self.client, &all).await.map_err(told)?;
        let mut everything = Everything { head: None, parts: BTreeMap::new() };
        for object in objects {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            if name == self.names.head() {
                everything.head = Some(seen(&object)?.head);
            } else if self.names.made_for(name).is_some() {
                everything.parts.insert(name.to_owned(), content(&object)?);
            }
        }
        Ok(everything)
    }

    /// Removes parts; what is gone already is no error.
    pub(super) async fn remove(&self, names: impl IntoIterator<Item = String>) -> Result<(), StoreError> {
        for name in names {
            match self.client.delete(&self.path(&name)).await {
                Ok(()) => {}
                Err(error) if error.is(StatusCode::NOT_FOUND) => {}
                Err(error) => return Err(told(error)),
            }
        }
        Ok(())
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.collection)
    }

    fn object(&self, name: &str, data: Value) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": name, "labels": { STORE: self.names.label() } },
            "type": TYPE,
            "data": data,
        })
    }
}

impl Everything {
    /// As [`Objects::fetch`].
    pub(super) fn fetch<M: prost::Message + Default>(
        &self,
        names: &Names,
        kind: Kind,
        at: &Pointer,
    ) -> Result<Option<M>, StoreError> {
        let parts: Option<Vec<Vec<u8>>> =
            names.parts(kind, at).map(|name| self.parts.get(&name).cloned()).collect();
        parts.map(|parts| joined(&parts)).transpose()
    }

    /// Parts of what never came into force, or is no longer needed: `commits` and `snapshot` are the sequences of the newest ones in
    /// force. What may still be on its way is none of them: a commit is made for a later sequence, and a snapshot for one
    /// that is later than that of the snapshot in force.
    pub(super) fn leftovers<'a>(
        &'a self,
        names: &'a Names,
        (commits, snapshot): (u64, u64),
        needed: &'a std::collections::BTreeSet<String>,
    ) -> impl Iterator<Item = String> + 'a {
        let is_old = move |name: &&String| match names.made_for(name) {
            Some((Kind::Commit, sequence)) => sequence <= commits,
            Some((Kind::Snapshot, sequence)) => sequence <= snapshot,
            None => false,
        };
        self.parts.keys().filter(is_old).filter(|name| !needed.contains(*name)).cloned()
    }
}

fn seen(object: &Value) -> Result<Seen, StoreError> {
    let version = object["metadata"]["resourceVersion"].as_str();
    let version = version.ok_or_else(|| StoreError::Corrupted("its head has no version".to_owned()))?;
    Ok(Seen { head: Head::decode(&content(object)?)?, version: version.to_owned() })
}

fn content(object: &Value) -> Result<Vec<u8>, StoreError> {
    let text = object["data"][FIELD].as_str().unwrap_or_default();
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    BASE64_STANDARD
        .decode(text)
        .map_err(|_| StoreError::Corrupted(format!("{name} is not as it was written")))
}

fn query(labels: &[(&str, &str)]) -> String {
    let pair = |(name, value): &(&str, &str)| format!("{}%3D{value}", name.replace('/', "%2F"));
    labels.iter().map(pair).collect::<Vec<_>>().join(",")
}

fn random() -> Result<String, StoreError> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| StoreError::Io(std::io::Error::other("no randomness")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What an error means to whoever uses the store.
fn told(error: ClientError) -> StoreError {
    match error {
        // Throttled, which passes.
        ClientError::Status { status: StatusCode::TOO_MANY_REQUESTS, .. } => {
            StoreError::Unreachable { member: "the API server".to_owned(), reason: error.to_string() }
        }
        ClientError::Status { status, .. } if !status.is_server_error() => {
            StoreError::Refused(error.to_string())
        }
        ClientError::Malformed | ClientError::TooLarge => StoreError::Corrupted(error.to_string()),
        error => StoreError::Unreachable { member: "the API server".to_owned(), reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_snapshot_that_another_is_writing_is_no_leftover() {
        let names = Names::new("signet-store-x".to_owned());
        let part = |kind, sequence, id: &str| {
            let at = Pointer { sequence, id: id.to_owned(), parts: 1 };
            names.parts(kind, &at).next().unwrap()
        };
        // 300 commits are in force, and a snapshot of the first 256 is being written beside that of none.
        let (old, current) = (part(Kind::Snapshot, 255, "aa"), part(Kind::Snapshot, 256, "bb"));
        let (lost, newest) = (part(Kind::Commit, 300, "cc"), part(Kind::Commit, 300, "dd"));
        let (coming, next) = (part(Kind::Snapshot, 300, "ee"), part(Kind::Commit, 301, "ff"));
        let all = [&old, &current, &lost, &newest, &coming, &next];
        let parts = all.into_iter().map(|name| (name.clone(), Vec::new())).collect();
        let everything = Everything { head: None, parts };
        let needed = BTreeSet::from([current, newest]);
        let leftovers: BTreeSet<String> = everything.leftovers(&names, (300, 256), &needed).collect();
        assert_eq!(leftovers, BTreeSet::from([old, lost]));
    }
}
