//! `TrafficPolicy` manifests: how requests to a workload are sent, and how many it takes.

use std::collections::HashSet;

use serde_saphyr::Spanned;

use crate::compile::{Scope, access_policy, condition, protection_policy, value};
use crate::diagnostic::{Place, quoted};
use crate::header_policy::field_name;
use crate::manifest::traffic::{
    BudgetSpec, CircuitBreakingSpec, ConcurrencySpec, HashSpec, LoadBalancingSpec, RateLimitSpec,
    RetriesSpec, TimeoutsSpec, TrafficPolicySpec,
};
use crate::manifest::{List, RouteSpec};
use crate::route::Route;
use crate::traffic_policy::{
    CircuitBreaking, Concurrency, HashOn, IDEMPOTENT_METHODS, LoadBalancing, MAX_RATE_LIMITS,
    MAX_TRAFFIC_ROUTES, RateKey, RateLimit, Retries, RetryBudget, RetryOn, SuccessRate, Timeouts,
    TrafficPolicyModel, TrafficRoute, TrafficSettings,
};

pub(crate) const RETRY_ON: &[(&str, RetryOn)] = &[
    ("connect-failure", RetryOn::ConnectFailure),
    ("gateway-error", RetryOn::GatewayError),
    ("reset", RetryOn::Reset),
];

pub(crate) const RATE_KEYS: &[(&str, RateKey)] =
    &[("identity", RateKey::Identity), ("workload", RateKey::Workload)];

/// What `loadBalancing.policy` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Balancer {
    ConsistentHash,
    P2c,
}

pub(crate) const BALANCERS: &[(&str, Balancer)] =
    &[("consistent-hash", Balancer::ConsistentHash), ("p2c", Balancer::P2c)];

/// Nobody waits for more tries than these.
pub(crate) const MAX_ATTEMPTS: u32 = 5;

const SECOND: u64 = 1_000;
const HOUR: u64 = 3_600 * SECOND;

/// Shorter than a rest makes an endpoint flap, longer forgets it.
const DEFAULT_EJECTION_MS: u64 = 10 * SECOND;

/// Half of the endpoints have to carry on.
const DEFAULT_MAX_EJECTION: u32 = 50;

pub(super) fn lower(
    scope: &mut Scope<'_>,
    spec: &TrafficPolicySpec,
    workloads: &HashSet<&str>,
) -> Option<TrafficPolicyModel> {
    let manifest_name = scope.manifest.spanned_name().clone();
    let name = value::name(scope, &manifest_name, "TrafficPolicy");
    let target = access_policy::target(scope, &spec.target, workloads);
    let ports = access_policy::ports(scope, spec.ports.as_ref());
    let own = settings(
        scope,
        spec.timeouts.as_ref(),
        spec.retries.as_ref(),
        spec.rate_limits.as_ref(),
        "for no limit",
    );
    let entries = value::entries(scope, spec.routes.as_ref(), "routes", "to treat all requests alike");
    if entries.len() > MAX_TRAFFIC_ROUTES {
        let message = format!("{} routes, and {MAX_TRAFFIC_ROUTES} are accepted", entries.len());
        scope.refuse(Place::of(&manifest_name), message, "merge some, or use wildcards");
        return None;
    }
    let mut routes = Vec::with_capacity(entries.len());
    for entry in entries {
        let route = &entry.value;
        let (timeouts, retries) = (route.timeouts.as_ref(), route.retries.as_ref());
        if timeouts.is_none() && retries.is_none() && route.rate_limits.is_none() {
            let message = "a route without `timeouts`, `retries` and `rateLimits` changes nothing".to_owned();
            scope.refuse(Place::of(entry), message, "say what is different for these requests, or remove it");
        }
        let settings = settings(scope, timeouts, retries, route.rate_limits.as_ref(), "to keep the policy's");
        let List(to) = &route.to;
        if to.value.is_empty() {
            let fix = "name methods or paths, or move the settings out of `routes`";
            scope.refuse(Place::of(to), "`to` is empty".to_owned(), fix);
        }
        let to = value::within_bounds(scope, to, "to");
        routes.push(TrafficRoute {
            to: to.iter().filter_map(|entry| matched(scope, entry)).collect(),
            settings,
        });
    }
    let circuit_breaking = spec.circuit_breaking.as_ref().and_then(|spec| circuit_breaking(scope, spec));
    let concurrency = spec.concurrency.as_ref().and_then(|spec| concurrency(scope, spec));
    let load_balancing = spec.load_balancing.as_ref().and_then(|spec| load_balancing(scope, spec));
    let says_nothing = spec.timeouts.is_none()
        && spec.retries.is_none()
        && spec.rate_limits.is_none()
        && spec.routes.is_none()
        && spec.circuit_breaking.is_none()
        && spec.concurrency.is_none()
        && spec.load_balancing.is_none();
    if says_nothing {
        let message = "the policy sets nothing".to_owned();
        scope.refuse(
            Place::of(&manifest_name),
            message,
            "add `timeouts`, `retries` or the like, or remove it",
        );
    }
    Some(TrafficPolicyModel {
        name: name?,
        target: target?,
        ports,
        settings: own,
        routes,
        circuit_breaking,
        concurrency,
        load_balancing,
    })
}

fn settings(
    scope: &mut Scope<'_>,
    timeouts: Option<&Spanned<TimeoutsSpec>>,
    retries: Option<&Spanned<RetriesSpec>>,
    rate_limits: Option<&List<RateLimitSpec>>,
    without_limits: &str,
) -> TrafficSettings {
    let rate_limits = rate_limits.map(|list| {
        let entries = if list.0.value.is_empty() && without_limits != "for no limit" {
            // A route may be free of the policy's limits, and this says so.
            &[]
        } else {
            value::entries(scope, Some(list), "rateLimits", without_limits)
        };
        if entries.len() > MAX_RATE_LIMITS {
            let message = format!("{} limits, and {MAX_RATE_LIMITS} are accepted", entries.len());
            scope.refuse(Place::of(&list.0), message, "keep the strictest of each kind");
            return Vec::new();
        }
        let mut limits: Vec<RateLimit> = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some(limit) = rate_limit(scope, &entry.value) else { continue };
            if limits.iter().any(|other| other.per_ms == limit.per_ms && other.key == limit.key) {
                let message = "another limit counts the same requests over the same time".to_owned();
                scope.refuse(Place::of(entry), message, "keep the stricter of the two");
            }
            limits.push(limit);
        }
        limits
    });
    TrafficSettings {
        timeouts: timeouts.map(|spec| self::timeouts(scope, spec)),
        retries: retries.and_then(|spec| self::retries(scope, &spec.value)),
        rate_limits,
    }
}

fn timeouts(scope: &mut Scope<'_>, spec: &Spanned<TimeoutsSpec>) -> Timeouts {
    let TimeoutsSpec { connect, request, idle } = &spec.value;
    if connect.is_none() && request.is_none() && idle.is_none() {
        let message = "`timeouts` without `connect`, `request` and `idle` limits nothing".to_owned();
        scope.refuse(Place::of(spec), message, "set one of them, or leave it out");
    }
    let mut read = |text: &Option<Spanned<String>>, least, most| {
        text.as_ref().and_then(|text| value::milliseconds(scope, text, least, most))
    };
    let (connect_ms, request_ms) = (read(connect, 10, 60 * SECOND), read(request, 10, HOUR));
    let idle_ms = read(idle, SECOND, HOUR);
    if let (Some(whole), Some(part), Some(text)) = (request_ms, connect_ms, connect)
        && part > whole
    {
        let message = "`connect` is longer than `request`, which includes it".to_owned();
        scope.refuse(Place::of(text), message, "shorten `connect`, or leave it out");
    }
    Timeouts { connect_ms, request_ms, idle_ms }
}

fn retries(scope: &mut Scope<'_>, spec: &RetriesSpec) -> Option<Retries> {
    let attempts = number(scope, &spec.attempts, "`attempts`", 0, MAX_ATTEMPTS);
    let mut on = Vec::new();
    for text in value::entries(scope, spec.on.as_ref(), "on", "for all of them") {
        if let Some(failure) = value::word(scope, text, "failure to retry on", RETRY_ON) {
            if on.contains(&failure) {
                let message = format!("{} is listed twice", quoted(&text.value));
                scope.refuse(Place::of(text), message, "remove one of the two");
            }
            on.push(failure);
        }
    }
    if spec.on.is_none() {
        on = RETRY_ON.iter().map(|(_, failure)| *failure).collect();
    }
    let mut methods = Vec::new();
    for text in value::entries(scope, spec.methods.as_ref(), "methods", "for the safe ones only") {
        if IDEMPOTENT_METHODS.contains(&text.value.as_str()) {
            methods.push(text.value.clone());
        } else {
            let message = format!("{} is no method to send again by policy", quoted(&text.value));
            let fix = "write PUT or DELETE; GET, HEAD, OPTIONS and TRACE are sent again anyway, and for others the \
                       application says so with `Mesh-Retry: idempotent`";
            scope.refuse(Place::of(text), message, fix);
        }
    }
    let usual = RetryBudget::default();
    let budget = match &spec.budget {
        Some(BudgetSpec { percent, min_per_second }) => RetryBudget {
            percent: match percent {
                Some(given) => number(scope, given, "`percent`", 0, 100)?,
                None => usual.percent,
            },
            min_per_second: match min_per_second {
                Some(given) => number(scope, given, "`minPerSecond`", 0, 1_000)?,
                None => usual.min_per_second,
            },
        },
        None => usual,
    };
    Some(Retries { attempts: attempts?, on, methods, budget })
}

fn circuit_breaking(scope: &mut Scope<'_>, spec: &Spanned<CircuitBreakingSpec>) -> Option<CircuitBreaking> {
    let CircuitBreakingSpec { consecutive_failures, success_rate, ejection_time, max_ejection_percent } =
        &spec.value;
    if consecutive_failures.is_none() && success_rate.is_none() {
        let message = "`circuitBreaking` says not when an endpoint has failed".to_owned();
        scope.refuse(Place::of(spec), message, "set `consecutiveFailures` or `successRate`");
    }
    let consecutive_failures = match consecutive_failures {
        Some(given) => Some(number(scope, given, "`consecutiveFailures`", 1, 1_000)?),
        None => None,
    };
    let success_rate = match success_rate {
        Some(given) => Some(SuccessRate {
            minimum: number(scope, &given.minimum, "`minimum`", 1, 100)?,
            volume: number(scope, &given.volume, "`volume`", 1, 10_000)?,
        }),
        None => None,
    };
    let ejection_time_ms = match ejection_time {
        Some(text) => value::milliseconds(scope, text, 100, HOUR)?,
        None => DEFAULT_EJECTION_MS,
    };
    let max_ejection_percent = match max_ejection_percent {
        Some(given) => number(scope, given, "`maxEjectionPercent`", 0, 100)?,
        None => DEFAULT_MAX_EJECTION,
    };
    Some(CircuitBreaking { consecutive_failures, success_rate, ejection_time_ms, max_ejection_percent })
}

fn concurrency(scope: &mut Scope<'_>, spec: &ConcurrencySpec) -> Option<Concurrency> {
    let max_requests = number(scope, &spec.max_requests, "`maxRequests`", 1, 100_000);
    let max_pending = match &spec.max_pending {
        Some(given) => number(scope, given, "`maxPending`", 0, 10_000)?,
        None => 0,
    };
    Some(Concurrency { max_requests: max_requests?, max_pending })
}

fn rate_limit(scope: &mut Scope<'_>, spec: &RateLimitSpec) -> Option<RateLimit> {
    let requests = number(scope, &spec.requests, "`requests`", 1, 1_000_000);
    let per_ms = value::milliseconds(scope, &spec.per, SECOND, HOUR);
    let key = match &spec.key {
        Some(text) => value::word(scope, text, "key of a rate limit", RATE_KEYS)?,
        None => RateKey::Identity,
    };
    Some(RateLimit { requests: requests?, per_ms: per_ms?, key })
}

fn load_balancing(scope: &mut Scope<'_>, spec: &LoadBalancingSpec) -> Option<LoadBalancing> {
    match (value::word(scope, &spec.policy, "balancing policy", BALANCERS)?, &spec.hash) {
        (Balancer::P2c, None) => Some(LoadBalancing::P2c),
        (Balancer::P2c, Some(hash)) => {
            let message = "`p2c` goes by load and hashes nothing".to_owned();
            scope.refuse(Place::of(hash), message, "remove `hash`, or write `policy: consistent-hash`");
            None
        }
        (Balancer::ConsistentHash, Some(hash)) => hash_on(scope, hash).map(LoadBalancing::ConsistentHash),
        (Balancer::ConsistentHash, None) => {
            let message = "`consistent-hash` needs something to hash".to_owned();
            let fix = "add `hash: {header: x-user}`, `{path: true}` or `{sourceIdentity: true}`";
            scope.refuse(Place::of(&spec.policy), message, fix);
            None
        }
    }
}

fn hash_on(scope: &mut Scope<'_>, spec: &Spanned<HashSpec>) -> Option<HashOn> {
    let HashSpec { header, path, source_identity } = &spec.value;
    match (header, path, source_identity) {
        (Some(text), None, None) => match field_name(&text.value) {
            Ok(name) => Some(HashOn::Header(name)),
            Err(error) => {
                let message = format!("{} is no header field to hash: {error}", quoted(&text.value));
                scope.refuse(Place::of(text), message, "name a field of the application, such as `x-user`");
                None
            }
        },
        (None, Some(yes), None) => condition::said(scope, yes, "sourceIdentity").map(|()| HashOn::Path),
        (None, None, Some(yes)) => condition::said(scope, yes, "path").map(|()| HashOn::SourceIdentity),
        _ => {
            let message = "`hash` has exactly one of `header`, `path`, `sourceIdentity`".to_owned();
            scope.refuse(Place::of(spec), message, "keep one of them");
            None
        }
    }
}

/// Which requests a route is about.
fn matched(scope: &mut Scope<'_>, spec: &Spanned<RouteSpec>) -> Option<Route> {
    if spec.value.methods.is_none() && spec.value.paths.is_none() {
        let message = "an entry without `methods` and `paths` is everything".to_owned();
        scope.refuse(Place::of(spec), message, "move the settings out of `routes` if that is meant");
        return None;
    }
    protection_policy::route(scope, spec)
}

fn number(scope: &mut Scope<'_>, given: &Spanned<u32>, what: &str, least: u32, most: u32) -> Option<u32> {
    if (least..=most).contains(&given.value) {
        return Some(given.value);
    }
    let message = format!("{what} cannot be {}", given.value);
    scope.refuse(Place::of(given), message, format!("use a number from {least} to {most}"));
    None
}
