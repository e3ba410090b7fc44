use signet_identity::SpiffeId;
use signet_policy::{compile, parse_manifests};

use super::*;
use crate::store::MemoryStore;

const MANIFESTS: &str = r#"
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec: { trustDomain: mesh.example, networks: [{ name: edge, gateways: [10.0.0.1] }] }
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: one }
spec: { class: app, device: edge, network: edge }
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: two }
spec: { class: app, device: edge, network: edge }
"#;

const PLACE: &str = "10.0.0.5";

struct Fixture {
    claims: Claims,
    store: Arc<dyn Store>,
    model: PolicyModel,
    now: SystemTime,
}

impl Fixture {
    fn new() -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let model = compile(&parse_manifests("test", MANIFESTS).unwrap()).unwrap();
        Self { claims: Claims::new(store.clone()), store, model, now: SystemTime::now() }
    }

    async fn claim(&self, stream: u64, workload: &str, ports: &[u16], now: SystemTime) -> Vec<bool> {
        let id = SpiffeId::parse(&format!("spiffe://mesh.example/app/edge/{workload}")).unwrap();
        let claimant = Claimant { id: &id, network: "edge", source: "10.0.0.1".parse().unwrap() };
        let places = ports.iter().map(|port| (PLACE.parse().unwrap(), *port)).collect();
        let verdicts =
            self.claims.claim(StreamId(stream), claimant, &places, &self.model, now).await.unwrap();
        verdicts.into_iter().map(|verdict| verdict.outcome.is_ok()).collect()
    }

    async fn expiries(&self) -> Vec<Option<u64>> {
        let found = records::list::<Claim>(&*self.store, records::CLAIMS).await.unwrap();
        found.into_iter().map(|found| found.record.expires).collect()
    }
}

#[tokio::test]
async fn a_place_held_by_another_identity_is_refused_and_the_older_claim_stays() {
    let fixture = Fixture::new();
    let now = fixture.now;
    assert_eq!(fixture.claim(1, "one", &[80], now).await, [true]);
    assert_eq!(fixture.claim(2, "two", &[80, 81], now).await, [false, true]);
    let found = records::list::<Claim>(&*fixture.store, records::CLAIMS).await.unwrap();
    assert!(found[0].record.id.as_str().ends_with("/one"));
}

#[tokio::test]
async fn a_place_is_kept_for_a_lease_after_its_holders_stream_ended() {
    let fixture = Fixture::new();
    let now = fixture.now;
    fixture.claim(1, "one", &[80], now).await;
    fixture.claims.release(StreamId(1), now).await.unwrap();
    let within = now + LEASE - Duration::from_secs(2);
    assert_eq!(fixture.claim(2, "two", &[80], within).await, [false]);
    fixture.claims.sweep(within).await.unwrap();
    assert_eq!(fixture.expiries().await.len(), 1);
    assert_eq!(fixture.claim(2, "two", &[80], now + LEASE).await, [true]);
}

#[tokio::test]
async fn a_lease_that_is_over_is_swept_and_a_live_claim_never_is() {
    let fixture = Fixture::new();
    let now = fixture.now;
    fixture.claim(1, "one", &[80], now).await;
    fixture.claim(2, "two", &[81], now).await;
    fixture.claims.release(StreamId(1), now).await.unwrap();
    fixture.claims.sweep(now + LEASE * 100).await.unwrap();
    assert_eq!(fixture.expiries().await, [None]);
}

#[tokio::test]
async fn a_new_stream_of_the_same_identity_takes_over_and_the_old_ones_end_changes_nothing() {
    let fixture = Fixture::new();
    let now = fixture.now;
    fixture.claim(1, "one", &[80], now).await;
    assert_eq!(fixture.claim(2, "one", &[80], now).await, [true]);
    fixture.claims.release(StreamId(1), now).await.unwrap();
    assert_eq!(fixture.expiries().await, [None]);
    fixture.claims.release(StreamId(2), now).await.unwrap();
    assert!(fixture.expiries().await[0].is_some());
    assert_eq!(fixture.claim(3, "one", &[80], now).await, [true]);
    assert_eq!(fixture.expiries().await, [None]);
}

#[tokio::test]
async fn what_is_no_longer_claimed_is_given_up() {
    let fixture = Fixture::new();
    let now = fixture.now;
    fixture.claim(1, "one", &[80, 81], now).await;
    fixture.claim(1, "one", &[81], now).await;
    assert_eq!(fixture.claim(2, "two", &[80], now).await, [true]);
    assert!(fixture.claim(2, "two", &[], now).await.is_empty());
    assert_eq!(fixture.expiries().await.len(), 1);
}

#[tokio::test]
async fn claims_that_were_live_when_the_control_plane_stopped_get_a_lease() {
    let fixture = Fixture::new();
    let now = fixture.now;
    fixture.claim(1, "one", &[80], now).await;
    let restarted = Claims::new(fixture.store.clone());
    restarted.adopt(now).await.unwrap();
    assert_eq!(fixture.expiries().await, [Some(unix_seconds(now + LEASE))]);
}

#[tokio::test]
async fn repeating_a_claim_writes_nothing() {
    let fixture = Fixture::new();
    fixture.claim(1, "one", &[80], fixture.now).await;
    let before = fixture.store.list("").await.unwrap().revision;
    fixture.claim(1, "one", &[80], fixture.now).await;
    assert_eq!(fixture.store.list("").await.unwrap().revision, before);
}
