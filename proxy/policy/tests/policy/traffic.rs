//! Traffic policies and virtual addresses: what is read, what is refused, and for whom it counts.

use std::net::IpAddr;

use signet_policy::{Facts, HashOn, Layer, LoadBalancing, Origin, RetryBudget, RetryOn};

use crate::conditions::assert_fault;
use crate::{id, manifest, model_of};

fn base() -> String {
    manifest("Mesh", "m", "trustDomain: td\nnetworks: [{name: n, cidrs: [10.0.0.0/8]}]")
        + &manifest("Workload", "web", "class: app\ndevice: d\nnetwork: n\nports: [{port: 80}, {port: 81}]")
        + &manifest("Workload", "db", "class: agent\ndevice: d\nnetwork: n")
}

fn traffic(name: &str, spec: &str) -> String {
    manifest("TrafficPolicy", name, &format!("target: {{workloads: [web]}}\n{spec}"))
}

#[test]
fn everything_a_traffic_policy_can_say_is_read() {
    let spec = "ports: [80]\ntimeouts: {connect: 250ms, request: 10s, idle: 2m}\n\
                retries: {attempts: 2, on: [reset], methods: [PUT], budget: {percent: 10}}\n\
                rateLimits: [{requests: 5, per: 1s}, {requests: 100, per: 1m, key: workload}]\n\
                routes: [{to: [{methods: [GET], paths: [/a/**]}, {paths: [/b]}], retries: {attempts: 0}, rateLimits: []}]\n\
                circuitBreaking: {consecutiveFailures: 5, successRate: {minimum: 80, volume: 20}}\n\
                concurrency: {maxRequests: 10}\nloadBalancing: {policy: consistent-hash, hash: {header: X-User}}";
    let model = model_of(&(base() + &traffic("t", spec)));
    let policy = &model.traffic_policies[0];
    let settings = policy.settings_of("PUT", "/x");
    assert_eq!(settings.timeouts.connect_ms, Some(250));
    assert_eq!(settings.timeouts.idle_ms, Some(120_000));
    let retries = settings.retries.unwrap();
    assert_eq!((retries.attempts, &*retries.on), (2, &[RetryOn::Reset][..]));
    assert_eq!(retries.budget, RetryBudget { percent: 10, ..RetryBudget::default() });
    assert!(retries.covers_method("PUT"));
    assert_eq!(settings.rate_limits.len(), 2);
    let of_route = policy.settings_of("GET", "/a/b");
    assert_eq!((of_route.retries.unwrap().attempts, of_route.rate_limits.len()), (0, 0));
    assert_eq!(of_route.timeouts, settings.timeouts);
    assert_eq!(policy.circuit_breaking.unwrap().ejection_time_ms, 10_000);
    assert_eq!(policy.concurrency.unwrap().max_pending, 0);
    assert_eq!(
        policy.load_balancing,
        Some(LoadBalancing::ConsistentHash(HashOn::Header("x-user".to_owned())))
    );
    let index = signet_policy::PolicyIndex::new(&model);
    let web = id("spiffe://td/app/d/web");
    assert!(index.traffic(&web, 80).is_some() && index.traffic(&web, 81).is_none());
    assert!(index.traffic(&id("spiffe://td/agent/d/db"), 80).is_none());
    let text = serde_json::to_string(&model).unwrap();
    assert_eq!(serde_json::from_str::<signet_policy::PolicyModel>(&text).unwrap(), model);
}

#[test]
fn an_explanation_tells_which_traffic_policy_applies() {
    let spec = "timeouts: {request: 10s}\nroutes: [{to: [{paths: [/slow]}], timeouts: {request: 1m}}]";
    let index = signet_policy::PolicyIndex::new(&model_of(&(base() + &traffic("t", spec))));
    let (web, db) = (id("spiffe://td/app/d/web"), id("spiffe://td/agent/d/db"));
    let explained = |destination, path| {
        let layer = Layer::Http { method: "GET", path, authority: "web", headers: None };
        let facts = Facts {
            source: Some(&db),
            origin: Origin::LeftToDestination,
            destination,
            port: 80,
            layer,
            now: 0,
        };
        signet_policy::explain(&index, &facts).to_string()
    };
    assert!(explained(&web, "/").contains("  traffic by t: request within 10000 ms\n"));
    assert!(explained(&web, "/slow").contains("  traffic by t/route-1: request within 60000 ms\n"));
    assert!(!explained(&db, "/").contains("traffic"));
}

#[test]
fn values_of_traffic_policies_are_checked() {
    let table = [
        ("ports: [80]", "the policy sets nothing"),
        ("timeouts: {}", "limits nothing"),
        ("timeouts: {request: 10}", "`10` is no duration; fix: add the unit: `10s`"),
        ("timeouts: {request: 1d}", "`1d` is no duration; fix: write one number and one unit of ms, s, m, h"),
        ("timeouts: {request: 2h}", "`2h` is out of range; fix: use 10ms to 1h"),
        ("timeouts: {idle: 10ms}", "`10ms` is out of range; fix: use 1s to 1h"),
        ("timeouts: {connect: 2s, request: 1s}", "`connect` is longer than `request`"),
        ("retries: {}", "the field `attempts` is missing"),
        ("retries: {attempts: 6}", "`attempts` cannot be 6; fix: use a number from 0 to 5"),
        ("retries: {attempts: 1, on: []}", "`on` is empty"),
        ("retries: {attempts: 1, on: [5xx]}", "`5xx` is no failure to retry on"),
        ("retries: {attempts: 1, on: [reset, reset]}", "`reset` is listed twice"),
        ("retries: {attempts: 1, methods: [POST]}", "`POST` is no method to send again by policy"),
        ("retries: {attempts: 1, budget: {percent: 101}}", "`percent` cannot be 101"),
        ("rateLimits: []", "`rateLimits` is empty"),
        ("rateLimits: [{requests: 0, per: 1s}]", "`requests` cannot be 0"),
        ("rateLimits: [{requests: 1, per: 10ms}]", "out of range"),
        ("rateLimits: [{requests: 1, per: 1s, key: path}]", "`path` is no key of a rate limit"),
        ("rateLimits: [{requests: 1, per: 1s}, {requests: 2, per: 1s}]", "another limit counts the same"),
        ("routes: []", "`routes` is empty"),
        ("routes: [{to: [{paths: [/x]}]}]", "changes nothing"),
        ("routes: [{to: [], rateLimits: []}]", "`to` is empty"),
        ("routes: [{to: [{}], rateLimits: []}]", "is everything"),
        ("routes: [{to: [{methods: [get]}], rateLimits: []}]", "write `GET`"),
        ("routes: [{to: [{paths: [x]}], rateLimits: []}]", "is no path pattern"),
        ("circuitBreaking: {}", "says not when an endpoint has failed"),
        ("circuitBreaking: {consecutiveFailures: 0}", "`consecutiveFailures` cannot be 0"),
        ("circuitBreaking: {successRate: {minimum: 80}}", "the field `volume` is missing"),
        ("concurrency: {maxRequests: 0}", "`maxRequests` cannot be 0"),
        ("loadBalancing: {policy: round-robin}", "`round-robin` is no balancing policy"),
        ("loadBalancing: {policy: p2c, hash: {path: true}}", "hashes nothing"),
        ("loadBalancing: {policy: consistent-hash}", "needs something to hash"),
        ("loadBalancing: {policy: consistent-hash, hash: {}}", "exactly one of"),
        ("loadBalancing: {policy: consistent-hash, hash: {path: false}}", "`false` says nothing here"),
        ("loadBalancing: {policy: consistent-hash, hash: {header: host}}", "is no header field to hash"),
        ("mirror: {}", "unknown field `mirror`"),
    ];
    for (spec, expected) in table {
        assert_fault(&(base() + &traffic("t", spec)), expected);
    }
}

#[test]
fn two_traffic_policies_for_the_same_requests_are_refused() {
    let limit = "concurrency: {maxRequests: 1}";
    let both = |first: &str, second: &str| {
        base() + &traffic("a", &format!("{limit}\n{first}")) + &traffic("b", &format!("{limit}\n{second}"))
    };
    assert_fault(&both("", ""), "TrafficPolicy `a` at test.yaml:");
    assert_fault(&both("", "ports: [81]"), "is for the requests to web as well");
    model_of(&both("ports: [80]", "ports: [81]"));
}

#[test]
fn a_virtual_address_stands_for_several_workloads_and_is_nobodys_own() {
    let workload = |name: &str, rest: &str| {
        manifest(
            "Workload",
            name,
            &format!("class: app\ndevice: d\nnetwork: n\nports: [{{port: 80}}]\n{rest}"),
        )
    };
    let place = |address: &str, port: u16| {
        format!("virtualAddresses: [{{network: n, address: {address}, port: 8080, targetPort: {port}}}]")
    };
    let mesh = manifest("Mesh", "m", "trustDomain: td\nnetworks: [{name: n, cidrs: [10.0.0.0/8]}]");
    let model = model_of(
        &(mesh.clone() + &workload("a", &place("10.9.9.9", 80)) + &workload("b", &place("10.9.9.9", 80))),
    );
    let index = signet_policy::PolicyIndex::new(&model);
    let address: IpAddr = "10.9.9.9".parse().unwrap();
    let behind = |network, port| {
        index.behind(network, address, port).map(|(id, port)| (id.to_string(), port)).collect::<Vec<_>>()
    };
    let both = ["a", "b"].map(|name| (format!("spiffe://td/app/d/{name}"), 80));
    assert_eq!(behind("n", 8080), both);
    assert!(behind("n", 80).is_empty() && behind("other", 8080).is_empty());
    for (rest, expected) in [
        (place("192.0.2.1", 80), "192.0.2.1 is not in the network `n`"),
        (place("10.9.9.9", 99), "port 99 is not one of the workload's `ports`"),
        (format!("addresses: [10.9.9.9]\n{}", place("10.9.9.9", 80)), "10.9.9.9 is an address of `a` itself"),
    ] {
        assert_fault(&(mesh.clone() + &workload("a", &rest)), expected);
    }
}
