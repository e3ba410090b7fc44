use signet_policy::{compile, parse_manifests};

use super::*;
use crate::records::{Instance, Leaf, Subject};
use crate::revocation::revoke;
use crate::store::{MemoryStore, Revision};

const MESH: &str = "apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec: { trustDomain: mesh.example, networks: [{ name: edge }] }
";

fn document(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: signet.mf2c-project.eu/v1alpha1\nkind: {kind}\nmetadata: {{ name: {name} }}\nspec: {spec}\n"
    )
}

/// A mesh of three agents, the first of which leads until a moment; leaders appoint a backup for at most a minute.
fn model(leads_until: &str) -> Arc<PolicyModel> {
    let agents = ["one", "two", "three"]
        .map(|name| document("Workload", name, "{class: agent, device: d, network: edge}"));
    let leads =
        format!("{{identity: spiffe://mesh.example/agent/d/one, role: leader, notAfter: '{leads_until}'}}");
    let appointer =
        "{role: backup, appointers: [{role: leader}], appointees: [{class: agent}], maxLifetime: 60s}";
    let text = format!(
        "{MESH}{}{}{}",
        agents.concat(),
        document("RoleGrant", "leads", &leads),
        document("RoleAppointer", "leaders", appointer)
    );
    Arc::new(compile(&parse_manifests("test", &text).unwrap()).unwrap())
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://mesh.example/agent/d/{name}")).unwrap()
}

fn made(by: &str, identity: &str, at: u64, not_after: u64) -> Appointment {
    Appointment {
        role: "backup".into(),
        identity: id(identity),
        by: id(by),
        instance: "first".into(),
        appointed_at: at,
        not_after,
    }
}

/// Until when each of the agents is backup.
fn backups(model: &Arc<PolicyModel>, made: &[Appointment], now: u64) -> Vec<(String, u64)> {
    let found = |made: &Appointment| Found { record: made.clone(), revision: Revision::default() };
    let (effective, dead) = effective(model, made.iter().map(found).collect(), now);
    let counting = effective.role_grants.len() - model.role_grants.len();
    assert_eq!(counting + dead.len(), made.len());
    let grants = effective.role_grants.iter().filter(|grant| grant.role == "backup");
    grants.map(|grant| (grant.identity.path().to_owned(), grant.not_after)).collect()
}

#[test]
fn an_appointment_counts_as_long_as_its_appointer_is_entitled() {
    // 1970-01-02, an hour after which the leader's own role ends.
    let (start, model) = (86_400, model("1970-01-02T01:00:00Z"));
    let is = |path: &str, until| vec![(path.to_owned(), until)];
    assert_eq!(
        backups(&model, &[made("one", "two", start, start + 30)], start),
        is("/agent/d/two", start + 30)
    );
    // No longer than policy lets it be, whatever was recorded.
    assert_eq!(
        backups(&model, &[made("one", "two", start, u64::MAX)], start),
        is("/agent/d/two", start + 60)
    );
    let late = start + 3_590;
    assert_eq!(
        backups(&model, &[made("one", "two", late, late + 60)], late),
        is("/agent/d/two", start + 3_600)
    );
    assert_eq!(backups(&model, &[made("one", "two", late, late + 60)], start + 3_600), []);
    assert_eq!(backups(&model, &[made("one", "two", start, start + 30)], start + 30), []);
    // Who leads no longer, or never did; who was appointed; who is not there.
    let over = super::tests::model("1970-01-01T01:00:00Z");
    assert_eq!(backups(&over, &[made("one", "two", start, start + 30)], start), []);
    let chain = [made("one", "two", start, start + 30), made("two", "three", start, start + 30)];
    assert_eq!(backups(&model, &chain, start), is("/agent/d/two", start + 30));
    assert_eq!(backups(&model, &[made("one", "four", start, start + 30)], start), []);
    let other = Appointment { role: "leader".into(), ..made("one", "two", start, start + 30) };
    assert_eq!(backups(&model, &[other], start), []);
}

#[tokio::test]
async fn what_is_revoked_takes_its_appointments_with_it() {
    let leaf = |byte: u8| signet_identity::Fingerprint([byte; 32]);
    let instance = |first: u8| Instance {
        first: leaf(first).to_string(),
        token: "t".to_owned(),
        network: "edge".to_owned(),
        leaves: vec![Leaf {
            fingerprint: leaf(first).to_string(),
            signing: None,
            issuer: None,
            not_after: u64::MAX,
        }],
        area: None,
        came: Vec::new(),
    };
    let now = SystemTime::now();
    let by = |first: u8, identity: &str| Appointment {
        instance: leaf(first).to_string(),
        ..made("one", identity, 0, u64::MAX)
    };
    let of_two = made("two", "three", 0, u64::MAX);
    let cases = [
        (Subject::Certificate(leaf(1)), vec![by(2, "three"), of_two.clone()]),
        (Subject::Certificate(leaf(9)), vec![by(1, "two"), by(2, "three"), of_two.clone()]),
        (Subject::Identity(id("one")), vec![of_two.clone()]),
        // Also what it was appointed to.
        (Subject::Identity(id("two")), vec![by(2, "three")]),
    ];
    for (subject, expected) in cases {
        let store = MemoryStore::new();
        let registration = Registration { id: id("one"), instances: vec![instance(1), instance(2)] };
        let mut writes =
            vec![records::put(registration_key(&id("one")), Expect::Absent, &registration).unwrap()];
        for made in [by(1, "two"), by(2, "three"), of_two.clone()] {
            writes.push(records::put(made.own_key(), Expect::Absent, &made).unwrap());
        }
        store.commit(writes).await.unwrap();
        revoke(&store, &subject, "stolen", now).await.unwrap();
        let left = records::list::<Appointment>(&store, APPOINTMENTS).await.unwrap();
        let mut left: Vec<Appointment> = left.into_iter().map(|found| found.record).collect();
        left.sort_by_key(Appointment::own_key);
        let mut expected = expected;
        expected.sort_by_key(Appointment::own_key);
        assert_eq!(left, expected, "{subject:?}");
    }
}
