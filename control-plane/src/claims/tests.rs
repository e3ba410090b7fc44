use signet_identity::{Fingerprint, SpiffeId};
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
        Self { claims: Claims::new(store.clone(), String::new()), store, model, now: SystemTime::now() }
    }

    /// Claims through the gateway.
    async fn claim(&self, stream: u64, workload: &str, ports: &[u16], now: SystemTime) -> Vec<bool> {
        let judged = self.claim_from("10.0.0.1", stream, workload, ports, now).await;
        judged.verdicts.into_iter().map(|verdict| verdict.outcome.is_ok()).collect()
    }

    async fn claim_from(
        &self,
        source: &str,
        stream: u64,
        workload: &str,
        ports: &[u16],
        now: SystemTime,
    ) -> Judgement {
        let id = id(workload);
        let claimant = Claimant { id: &id, network: "edge", source: source.parse().unwrap() };
        let places = ports.iter().map(|port| (PLACE.parse().unwrap(), *port)).collect();
        self.claims.claim(StreamId(stream), claimant, &places, &self.model, now).await.unwrap()
    }

    /// Whose the place is.
    async fn holder(&self, port: u16) -> Option<SpiffeId> {
        let key = Claim::key("edge", PLACE.parse().unwrap(), port);
        Some(records::read::<Claim>(&*self.store, &key).await.unwrap()?.record.id)
    }

    async fn expiries(&self) -> Vec<Option<u64>> {
        let found = records::list::<Claim>(&*self.store, records::CLAIMS).await.unwrap();
        found.into_iter().map(|found| found.record.expires).collect()
    }
}

fn id(workload: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://mesh.example/app/edge/{workload}")).unwrap()
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
    assert_eq!(fixture.claim(2, "two", &[80], now + LEASE).await, [true]);
}

#[tokio::test]
async fn a_lease_that_is_over_leaves_the_place_meshed_until_its_workload_is_deleted() {
    let mut fixture = Fixture::new();
    let late = fixture.now + LEASE * 100;
    fixture.claim(1, "one", &[80], fixture.now).await;
    fixture.claim(2, "two", &[81], fixture.now).await;
    fixture.claims.release(StreamId(1), fixture.now).await.unwrap();
    fixture.claims.sweep(&fixture.model, late).await.unwrap();
    let claims: Vec<Claim> = records::list::<Claim>(&*fixture.store, records::CLAIMS)
        .await
        .unwrap()
        .into_iter()
        .map(|found| found.record)
        .collect();
    let directory =
        directory::build(&fixture.model, &claims, &[], &directory::Habits::new(), unix_seconds(late));
    let identities: Vec<_> = directory["edge"].iter().map(|entry| entry.identities.clone()).collect();
    assert_eq!(identities, [[id("one")], [id("two")]]);
    fixture.model.workloads.retain(|workload| workload.name != "one");
    fixture.claims.sweep(&fixture.model, late).await.unwrap();
    assert_eq!((fixture.holder(80).await, fixture.holder(81).await), (None, Some(id("two"))));
}

#[tokio::test]
async fn of_too_many_places_that_nobody_claims_any_more_those_by_a_gateway_go_first() {
    let fixture = Fixture::new();
    let now = fixture.now;
    fixture.claim_from(PLACE, 1, "one", &[80], now).await;
    fixture.claims.release(StreamId(1), now).await.unwrap();
    let many: Vec<u16> = (1_000..).take(STALE_MAX).collect();
    fixture.claim(2, "one", &many, now).await;
    fixture.claims.release(StreamId(2), now + LEASE).await.unwrap();
    fixture.claims.sweep(&fixture.model, now + LEASE * 2).await.unwrap();
    assert_eq!(fixture.expiries().await.len(), STALE_MAX);
    assert!(fixture.holder(80).await.is_some());
}

#[tokio::test]
async fn a_lease_starts_only_when_the_last_stream_of_the_holder_ends() {
    let fixture = Fixture::new();
    let now = fixture.now;
    fixture.claim(1, "one", &[80], now).await;
    fixture.claim(2, "one", &[80], now).await;
    fixture.claims.release(StreamId(2), now).await.unwrap();
    assert_eq!(fixture.expiries().await, [None]);
    // Nor does one stream give up what the other holds.
    fixture.claim(3, "one", &[80], now).await;
    fixture.claim(3, "one", &[], now).await;
    assert_eq!(fixture.expiries().await, [None]);
    fixture.claims.release(StreamId(1), now).await.unwrap();
    assert!(fixture.expiries().await[0].is_some());
}

#[tokio::test]
async fn a_claim_from_the_address_itself_displaces_one_that_came_by_a_gateway() {
    let fixture = Fixture::new();
    let now = fixture.now;
    assert_eq!(fixture.claim(1, "one", &[80, 81], now).await, [true, true]);
    let judged = fixture.claim_from(PLACE, 2, "two", &[80], now).await;
    assert_eq!(judged.verdicts[0].outcome, Ok(()));
    assert_eq!(judged.displaced, BTreeSet::from([StreamId(1)]));
    assert_eq!((fixture.holder(80).await, fixture.holder(81).await), (Some(id("two")), Some(id("one"))));
    // The end of the displaced stream starts no lease of the new holder's, and it does not get the place back.
    fixture.claims.release(StreamId(1), now).await.unwrap();
    assert_eq!(fixture.expiries().await.iter().filter(|expires| expires.is_none()).count(), 1);
    assert_eq!(fixture.claim(3, "one", &[80], now).await, [false]);
    let judged = fixture.claim_from(PLACE, 4, "one", &[80], now).await;
    assert_eq!(judged.verdicts[0].outcome, Err(ClaimRefusal::AddressTaken));
}

#[tokio::test]
async fn what_was_claimed_at_its_address_is_never_lost_to_a_claim_by_a_gateway() {
    let fixture = Fixture::new();
    let now = fixture.now;
    fixture.claim(1, "one", &[80], now).await;
    // Seen there once is enough, also when it was first claimed from elsewhere.
    fixture.claim_from(PLACE, 2, "one", &[80], now).await;
    fixture.claim(3, "one", &[80], now).await;
    for stream in 1..=3 {
        fixture.claims.release(StreamId(stream), now).await.unwrap();
    }
    let late = now + LEASE * 2;
    assert_eq!(fixture.claim(4, "two", &[80], late).await, [false]);
    let judged = fixture.claim_from(PLACE, 5, "two", &[80], late).await;
    assert_eq!(judged.verdicts[0].outcome, Ok(()));
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
    let restarted = Claims::new(fixture.store.clone(), String::new());
    restarted.adopt(&BTreeSet::new(), now).await.unwrap();
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

/// A point that is no point of small order, for every number.
fn sealing_key(byte: u8) -> [u8; 32] {
    let private = PrivateKey::from_private_key(&X25519, &[byte; 32]).unwrap();
    private.compute_public_key().unwrap().as_ref().try_into().unwrap()
}

fn leaf(byte: u8) -> String {
    Fingerprint([byte; 32]).to_string()
}

fn announced(byte: u8, of: u8) -> SealingKey {
    SealingKey { id: id("api"), key: sealing_key(byte), leaf: leaf(of), expires: 100 }
}

impl Fixture {
    /// Registers an instance of `api` that holds certificates, oldest first; the first names it.
    async fn register(&self, leaves: &[u8]) {
        let leaves: Vec<_> = leaves
            .iter()
            .map(|byte| records::Leaf {
                fingerprint: leaf(*byte),
                signing: None,
                issuer: None,
                not_after: 1 << 40,
            })
            .collect();
        let (token, network) = ("t".to_owned(), "edge".to_owned());
        let instance = records::Instance {
            first: leaves[0].fingerprint.clone(),
            token,
            network,
            leaves,
            area: None,
            came: Vec::new(),
        };
        let registration = Registration { id: id("api"), instances: vec![instance] };
        let key = records::registration_key(&id("api"));
        self.store.commit(vec![records::put(key, Expect::Any, &registration).unwrap()]).await.unwrap();
    }

    async fn announce(&self, key: &SealingKey) -> Result<(), AnnounceError> {
        self.claims.announce(&leaf(1), key).await
    }

    async fn sealing_keys(&self) -> Vec<[u8; 32]> {
        let found = records::list::<SealingKey>(&*self.store, records::SEALING_KEYS).await.unwrap();
        found.into_iter().map(|found| found.record.key).collect()
    }
}

#[tokio::test]
async fn an_instance_has_one_sealing_key_for_each_certificate_and_the_newest_counts() {
    let fixture = Fixture::new();
    fixture.register(&[1, 2]).await;
    fixture.announce(&announced(1, 1)).await.unwrap();
    fixture.announce(&announced(1, 1)).await.expect("said again");
    let other = fixture.announce(&announced(2, 1)).await;
    assert!(matches!(other, Err(AnnounceError::Another)), "another one for the same certificate");
    fixture.announce(&announced(3, 2)).await.unwrap();
    assert_eq!(fixture.sealing_keys().await, [sealing_key(3)]);
    let late = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
    fixture.claims.sweep(&fixture.model, late).await.unwrap();
    assert_eq!(fixture.sealing_keys().await, Vec::<[u8; 32]>::new(), "ended with its certificate");
}

#[tokio::test]
async fn the_key_of_a_newer_certificate_is_not_replaced_by_that_of_an_older_one() {
    let fixture = Fixture::new();
    fixture.register(&[1, 2]).await;
    // Lifetimes may have been shortened in between: what counts is which was issued later.
    fixture.announce(&SealingKey { expires: 50, ..announced(2, 2) }).await.unwrap();
    let older = fixture.announce(&announced(9, 1)).await;
    assert!(matches!(older, Err(AnnounceError::Older)));
    assert_eq!(fixture.sealing_keys().await, [sealing_key(2)]);
}

#[tokio::test]
async fn a_key_of_small_order_is_not_published() {
    let fixture = Fixture::new();
    fixture.register(&[1]).await;
    let mut one = [0; 32];
    one[0] = 1;
    for key in [[0; 32], one] {
        let refused = fixture.announce(&SealingKey { key, ..announced(1, 1) }).await;
        assert!(matches!(refused, Err(AnnounceError::Unusable)));
    }
    assert_eq!(fixture.sealing_keys().await, Vec::<[u8; 32]>::new());
}

#[tokio::test]
async fn a_revoked_instance_or_identity_announces_nothing_more() {
    let now = SystemTime::now();
    let subjects =
        [records::Subject::Certificate(Fingerprint([2; 32])), records::Subject::Identity(id("api"))];
    for subject in subjects {
        let fixture = Fixture::new();
        fixture.register(&[1, 2]).await;
        fixture.announce(&announced(1, 1)).await.unwrap();
        crate::revocation::revoke(&*fixture.store, &subject, "stolen", now).await.unwrap();
        assert_eq!(fixture.sealing_keys().await, Vec::<[u8; 32]>::new(), "withdrawn");
        let refused = fixture.announce(&announced(2, 2)).await;
        assert!(matches!(refused, Err(AnnounceError::Gone)), "{refused:?}");
    }
}
