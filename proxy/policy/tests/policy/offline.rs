//! What is still allowed when the control plane was not heard for long.

use signet_identity::Class;
use signet_policy::{OfflineBound, PolicyIndex, Staleness, WhenStale, decide_while};

use crate::{MESH, Question, faults_of, id, manifest, model_of};

const ALARM: &str = "spiffe://td/agent/d/alarm";
const SENSOR: &str = "spiffe://td/agent/d/sensor";

fn mesh(offline: &str, policies: &[(&str, &str)]) -> String {
    let workload = |name: &str, class: &str| {
        let spec = format!("class: {class}\ndevice: d\nnetwork: n1\nports: [{{port: 80, protocol: http}}]");
        manifest("Workload", name, &spec)
    };
    let policies: String = policies.iter().map(|(name, spec)| manifest("AccessPolicy", name, spec)).collect();
    format!(
        "{MESH}  {offline}\n{}{}{}{policies}",
        workload("alarm", "agent"),
        workload("sensor", "agent"),
        workload("shop", "app")
    )
}

const RULES: &str = "target: {workloads: [alarm]}\nrules:\n\
    - {name: all, from: [{any: authenticated}]}\n\
    - {name: emergency, from: [{class: agent}], to: [{methods: [POST], paths: [/alarm]}], lifeSafety: true}";

fn ask(index: &PolicyIndex, request: &str, staleness: Staleness) -> String {
    let question = Question { source: SENSOR, destination: ALARM, port: 80, request, ..Question::default() };
    question.put(|facts| match decide_while(index, facts, staleness) {
        Ok(permit) => permit.rule().to_owned(),
        Err(refusal) => refusal.code().to_owned(),
    })
}

#[test]
fn stale_policy_refuses_all_or_keeps_what_is_marked_and_a_rule_that_denies_still_denies() {
    let deny = "target: {workloads: [alarm]}\naction: deny\nrules:\n\
        - {from: [{any: authenticated}], to: [{paths: [/shut]}]}";
    let index = PolicyIndex::new(&model_of(&mesh("", &[("p", RULES), ("shut", deny)])));
    for (request, fresh, kept, refused) in [
        // An earlier rule allows it too: what is asked is whether any marked one does.
        ("POST /alarm", "all", "emergency", "policy-stale"),
        ("GET /alarm", "all", "policy-stale", "policy-stale"),
        ("POST /shut", "deny-rule", "deny-rule", "deny-rule"),
        ("CONNECT x", "connect-refused", "connect-refused", "connect-refused"),
    ] {
        assert_eq!(ask(&index, request, Staleness::Fresh), fresh, "{request}");
        assert_eq!(ask(&index, request, Staleness::LifeSafety), kept, "{request}");
        assert_eq!(ask(&index, request, Staleness::Refuse), refused, "{request}");
    }
}

#[test]
fn what_nobody_allowed_is_not_called_stale() {
    let only = "target: {workloads: [alarm]}\nrules: [{from: [{class: platform}], lifeSafety: true}]";
    let index = PolicyIndex::new(&model_of(&mesh("", &[("p", only)])));
    for staleness in [Staleness::Fresh, Staleness::LifeSafety, Staleness::Refuse] {
        assert_eq!(ask(&index, "GET /alarm", staleness), "access-denied");
    }
    let index = PolicyIndex::new(&model_of(&mesh("", &[])));
    assert_eq!(ask(&index, "GET /alarm", Staleness::Refuse), "no-policy");
}

#[test]
fn bounds_are_of_a_class_and_refuse_where_nothing_else_is_said() {
    let bounds = "offline: {agent: {budget: 72h, then: life-safety}, platform: {budget: 30s}}";
    let index = PolicyIndex::new(&model_of(&mesh(bounds, &[])));
    let of = |workload: &str| index.offline_bound(&id(workload));
    assert_eq!(of(ALARM), Some(OfflineBound { budget_s: 259_200, then: WhenStale::LifeSafety }));
    assert_eq!(of("spiffe://td/app/d/shop"), None);
    assert_eq!(of("spiffe://td/agent/d/nobody"), None);
    let model = model_of(&mesh(bounds, &[]));
    let platform = model.offline.of(Class::Platform);
    assert_eq!(platform, Some(OfflineBound { budget_s: 30, then: WhenStale::Refuse }));
    assert_eq!(PolicyIndex::deny_all().offline_bound(&id(ALARM)), None);
}

#[test]
fn a_certificate_gets_its_holder_back_for_as_long_as_it_was_good_unless_said() {
    let model = model_of(&mesh(
        "certificates: {agent: {rejoin: 30d}, app: {lifetime: 2h}, platform: {rejoin: 0s}}",
        &[],
    ));
    let seconds = |class| model.rejoin_of(class).as_secs();
    assert_eq!(seconds(Class::Agent), 30 * 86_400);
    assert_eq!(seconds(Class::App), 7_200);
    assert_eq!(seconds(Class::Platform), 0);
    assert_eq!(model.lifetimes.agent, 86_400, "what is not said stays as it is");
}

#[test]
fn wrong_bounds_are_refused_with_a_fix() {
    let fault = |offline: &str| faults_of(&mesh(offline, &[])).join("\n");
    for (text, expected) in [
        ("offline: {agent: {budget: 29s}}", "29s"),
        ("offline: {agent: {budget: 366d}}", "366d"),
        ("offline: {agent: {budget: 72}}", "add the unit: `72s`"),
        ("offline: {agent: {then: refuse}}", "the field `budget` is missing"),
        ("offline: {agent: {budget: 1h, then: life-safty}}", "write `life-safety`"),
        ("offline: {agents: {budget: 1h}}", "write `agent`"),
        ("certificates: {agent: {rejoin: 91d}}", "91d"),
    ] {
        assert!(fault(text).contains(expected), "{text}: {}", fault(text));
    }
    let deny =
        "target: {workloads: [alarm]}\naction: deny\nrules: [{from: [{class: app}], lifeSafety: true}]";
    let faults = faults_of(&mesh("", &[("p", deny)]));
    assert!(faults.len() == 1 && faults[0].contains("a rule that denies keeps no flow open"), "{faults:?}");
}
