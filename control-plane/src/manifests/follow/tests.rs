use super::*;
use crate::store::MemoryStore;

const MESH: &str = "spec: {trustDomain: mesh.example, networks: [{name: cluster}]}";

fn manifest(kind: &str, name: &str, spec: &str) -> (Place, String) {
    let text = format!(
        "apiVersion: signet.mf2c-project.eu/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\n{spec}\n"
    );
    ((kind.parse().unwrap(), name.to_owned()), text)
}

fn mesh() -> (Place, String) {
    manifest("Mesh", "mesh", MESH)
}

fn workload(name: &str, network: &str) -> (Place, String) {
    manifest("Workload", name, &format!("spec: {{class: app, device: shop, network: {network}}}"))
}

/// Lets `of` be called by apps.
fn policy(name: &str, of: &str) -> (Place, String) {
    let spec = format!("spec: {{target: {{workloads: [{of}]}}, rules: [{{from: [{{class: app}}]}}]}}");
    manifest("AccessPolicy", name, &spec)
}

struct Cluster {
    store: MemoryStore,
}

impl Cluster {
    fn new() -> Self {
        Self { store: MemoryStore::new() }
    }

    async fn follow(&self, objects: &[(Place, String)]) -> Followed {
        let known = self.stored().await;
        let objects = objects.iter().cloned().collect();
        known.follow(&self.store, &TrustDomain::parse("mesh.example").unwrap(), &objects).await.unwrap()
    }

    async fn stored(&self) -> Manifests {
        Manifests::load(&self.store, &Manifests::default()).await.unwrap()
    }

    async fn text(&self, (place, _): &(Place, String)) -> Option<String> {
        Some(self.stored().await.entries.get(place)?.manifest.text().to_owned())
    }
}

#[tokio::test]
async fn what_is_added_changed_and_deleted_is_stored_in_one_commit_each() {
    let cluster = Cluster::new();
    let first = cluster.follow(&[mesh(), workload("a", "cluster"), workload("b", "cluster")]).await;
    assert_eq!(first.outcome.as_ref().unwrap().changes.len(), 3);
    assert_eq!(first.outcome.unwrap().version, 1);
    let changed = manifest("Workload", "a", "spec: {class: agent, device: shop, network: cluster}");
    let second = cluster.follow(&[mesh(), changed.clone()]).await;
    assert!(second.faults.is_empty() && second.needed.is_empty());
    assert_eq!(second.outcome.unwrap().version, 2);
    assert_eq!(cluster.text(&changed).await, Some(changed.1));
    assert_eq!(cluster.text(&workload("b", "cluster")).await, None);
}

#[tokio::test]
async fn following_the_same_again_stores_nothing() {
    let cluster = Cluster::new();
    let objects = [mesh(), workload("a", "cluster")];
    let before = cluster.follow(&objects).await.outcome.unwrap().revision;
    assert_eq!(cluster.follow(&objects).await.outcome.unwrap().revision, before);
}

#[tokio::test]
async fn an_invalid_object_keeps_its_last_good_form_and_holds_up_nobody_else() {
    let cluster = Cluster::new();
    cluster.follow(&[mesh(), workload("a", "cluster")]).await;
    let (bad, good) = (workload("a", "nowhere"), workload("b", "cluster"));
    let followed = cluster.follow(&[mesh(), bad.clone(), good.clone()]).await;
    assert_eq!(followed.faults.keys().collect::<Vec<_>>(), [&bad.0]);
    assert!(followed.faults[&bad.0][0].message.contains("nowhere"));
    assert_eq!(cluster.text(&bad).await, Some(workload("a", "cluster").1));
    assert_eq!(cluster.text(&good).await, Some(good.1));
}

#[tokio::test]
async fn what_cannot_be_read_and_was_never_good_is_not_there() {
    let cluster = Cluster::new();
    let bad = manifest("Workload", "a", "spec: {class: app, devise: shop}");
    let followed = cluster.follow(&[mesh(), bad.clone()]).await;
    assert!(followed.faults.contains_key(&bad.0) && followed.outcome.is_some());
    assert_eq!(cluster.text(&bad).await, None);
}

#[tokio::test]
async fn what_others_need_stays_when_it_is_deleted_until_they_are_gone_too() {
    let cluster = Cluster::new();
    let (needed, needs) = (workload("a", "cluster"), policy("p", "a"));
    assert!(cluster.follow(&[mesh(), needed.clone(), needs.clone()]).await.faults.is_empty());
    let followed = cluster.follow(&[mesh(), needs.clone()]).await;
    assert_eq!(followed.needed, std::slice::from_ref(&needed.0));
    assert!(followed.faults.contains_key(&needs.0), "{:?}", followed.faults);
    assert!(cluster.text(&needed).await.is_some());
    let followed = cluster.follow(&[mesh()]).await;
    assert!(followed.faults.is_empty() && followed.needed.is_empty());
    assert!(cluster.text(&needed).await.is_none() && cluster.text(&needs).await.is_none());
}

#[tokio::test]
async fn what_needs_something_invalid_is_left_out_with_it() {
    let cluster = Cluster::new();
    let (bad, needs) = (workload("a", "nowhere"), policy("p", "a"));
    let followed = cluster.follow(&[mesh(), bad.clone(), needs.clone(), workload("b", "cluster")]).await;
    assert_eq!(followed.faults.keys().cloned().collect::<Vec<_>>(), [needs.0, bad.0]);
    assert!(cluster.text(&workload("b", "cluster")).await.is_some());
}

#[tokio::test]
async fn without_a_mesh_nothing_is_taken_away() {
    let cluster = Cluster::new();
    cluster.follow(&[mesh(), workload("a", "cluster")]).await;
    for objects in [vec![], vec![workload("a", "cluster")]] {
        assert!(cluster.follow(&objects).await.outcome.is_none());
        assert!(
            cluster.text(&mesh()).await.is_some() && cluster.text(&workload("a", "cluster")).await.is_some()
        );
    }
}

#[tokio::test]
async fn a_mesh_of_another_trust_domain_changes_nothing() {
    let cluster = Cluster::new();
    cluster.follow(&[mesh()]).await;
    let other = manifest("Mesh", "mesh", "spec: {trustDomain: other.example, networks: [{name: cluster}]}");
    let followed = cluster.follow(&[other]).await;
    assert!(followed.outcome.is_none() && !followed.refused.is_empty());
    assert_eq!(cluster.text(&mesh()).await, Some(mesh().1));
}
