//! How requests to a workload are sent and how many of them it takes: time limits, retries, ejection of endpoints that
//! fail, limits of concurrency and rate, balancing. Nothing here permits or refuses by who asks for what.

use serde::{Deserialize, Serialize};

use crate::model::{Target, covers};
use crate::route::Route;

/// Most routes of one traffic policy: each request is compared with them in order.
pub const MAX_TRAFFIC_ROUTES: usize = 64;

/// Most rate limits of one list: a second, a minute and an hour, by identity and in all, are six.
pub const MAX_RATE_LIMITS: usize = 8;

/// Methods that change nothing (RFC 9110 section 9.2.1): sent again without anybody saying so.
const SAFE_METHODS: [&str; 4] = ["GET", "HEAD", "OPTIONS", "TRACE"];

/// Methods that do the same when they are done twice (RFC 9110 section 9.2.2); an operator may have them sent again.
pub(crate) const IDEMPOTENT_METHODS: [&str; 2] = ["DELETE", "PUT"];

/// One traffic policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicyModel {
    /// The manifest's name.
    pub name: String,
    /// The workloads to which requests are sent so.
    pub target: Target,
    /// Their ports; empty means all.
    pub ports: Vec<u16>,
    /// For requests of no route, and for what a route does not set.
    pub settings: TrafficSettings,
    /// The first that matches a request counts.
    pub routes: Vec<TrafficRoute>,
    /// When an endpoint gets a rest.
    pub circuit_breaking: Option<CircuitBreaking>,
    /// How many requests of one sidecar are under way at once.
    pub concurrency: Option<Concurrency>,
    /// Which of several endpoints a request goes to; without it, the one dialled, or by least load behind a virtual
    /// address.
    pub load_balancing: Option<LoadBalancing>,
}

/// What may differ by route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficSettings {
    /// How long things may take.
    pub timeouts: Option<Timeouts>,
    /// When a request is sent again.
    pub retries: Option<Retries>,
    /// How many requests the workload takes; all of them have to allow one.
    pub rate_limits: Option<Vec<RateLimit>>,
}

/// Requests that are treated in their own way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficRoute {
    /// Which; one has to match.
    pub to: Vec<Route>,
    /// How.
    pub settings: TrafficSettings,
}

/// Time limits in milliseconds; what is not given is not limited by policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// For a new connection to the destination's sidecar, TLS handshake included.
    pub connect_ms: Option<u64>,
    /// From the request's head to the verified head of its response, all tries and waiting together.
    pub request_ms: Option<u64>,
    /// How long a streamed body may make no progress.
    pub idle_ms: Option<u64>,
}

/// When a request is sent again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retries {
    /// How many times at most, after the first.
    pub attempts: u32,
    /// After which failures.
    pub on: Vec<RetryOn>,
    /// Methods that may be, besides the safe ones.
    pub methods: Vec<String>,
    /// How many of all requests.
    pub budget: RetryBudget,
}

impl Retries {
    /// Whether requests with this method may be sent again without their application saying so.
    pub fn covers_method(&self, method: &str) -> bool {
        SAFE_METHODS.contains(&method) || self.methods.iter().any(|listed| listed == method)
    }
}

/// A failure after which a request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// No connection to the destination's sidecar: nothing was sent.
    ConnectFailure,
    /// A verified response with status 502, 503 or 504.
    GatewayError,
    /// The connection ended before a response came.
    Reset,
}

/// How much of the load may be retries, so that they cannot make a failure worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// In percent of the requests of the last ten seconds.
    pub percent: u32,
    /// Besides, for where there are few requests.
    pub min_per_second: u32,
}

impl Default for RetryBudget {
    /// A fifth more load at most, and enough for a lone caller.
    fn default() -> Self {
        Self { percent: 20, min_per_second: 3 }
    }
}

/// When an endpoint gets a rest. A failure is no response in time, or one with a status from 500 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CircuitBreaking {
    /// After so many failures in a row.
    pub consecutive_failures: Option<u32>,
    /// When too few requests succeed.
    pub success_rate: Option<SuccessRate>,
    /// How long the first rest is, in milliseconds; each that follows at once is one such time longer.
    pub ejection_time_ms: u64,
    /// How many of the endpoints may rest at once, in percent; one always may.
    pub max_ejection_percent: u32,
}

/// How many requests have to succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuccessRate {
    /// In percent.
    pub minimum: u32,
    /// Out of at least so many within ten seconds.
    pub volume: u32,
}

/// How many requests of one sidecar to one port of a workload there are at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Concurrency {
    /// Under way.
    pub max_requests: u32,
    /// Waiting to be.
    pub max_pending: u32,
}

/// How many requests a workload takes in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// So many,
    pub requests: u32,
    /// within so many milliseconds,
    pub per_ms: u64,
    /// of whom.
    pub key: RateKey,
}

/// Whose requests are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RateKey {
    /// Those of one caller.
    Identity,
    /// All of the workload's.
    Workload,
}

/// Which of several endpoints a request goes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadBalancing {
    /// The less loaded of two chosen at random, by the moving peak of response times and the requests under way.
    P2c,
    /// By a ring on which what is hashed always leads to the same endpoint while that is there.
    ConsistentHash(HashOn),
}

/// What is hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HashOn {
    /// The value of this header field, in lower case; requests without it go by load.
    Header(String),
    /// The path of the request.
    Path,
    /// The identity of the caller.
    SourceIdentity,
}

/// The settings of one request.
#[derive(Clone, Copy, Debug)]
pub struct RequestSettings<'a> {
    /// Time limits.
    pub timeouts: Timeouts,
    /// When it is sent again.
    pub retries: Option<&'a Retries>,
    /// How many like it the workload takes.
    pub rate_limits: &'a [RateLimit],
    /// The route that sets the limits; requests of other routes are counted apart.
    pub limited_by: Option<usize>,
}

impl TrafficPolicyModel {
    /// Whether the policy selects this port, leaving aside of which workload.
    pub fn selects_port(&self, port: u16) -> bool {
        covers(&self.ports, port)
    }

    /// The number of the route a request is of, if any.
    pub fn route(&self, method: &str, path: &str) -> Option<usize> {
        self.routes.iter().position(|route| route.to.iter().any(|to| to.matches(method, path)))
    }

    /// What is set for a request.
    pub fn settings_of(&self, method: &str, path: &str) -> RequestSettings<'_> {
        let number = self.route(method, path);
        let route = number.and_then(|number| self.routes.get(number)).map(|route| &route.settings);
        let own = &self.settings;
        let limits = route.and_then(|route| route.rate_limits.as_deref());
        RequestSettings {
            timeouts: route.and_then(|route| route.timeouts).or(own.timeouts).unwrap_or_default(),
            retries: route.and_then(|route| route.retries.as_ref()).or(own.retries.as_ref()),
            limited_by: number.filter(|_| limits.is_some()),
            rate_limits: limits.or(own.rate_limits.as_deref()).unwrap_or_default(),
        }
    }

    /// What is set for a request, for people.
    pub fn in_words(&self, method: &str, path: &str) -> Vec<String> {
        let RequestSettings { timeouts, retries, rate_limits, .. } = self.settings_of(method, path);
        let mut words = Vec::new();
        let times =
            [("connect", timeouts.connect_ms), ("request", timeouts.request_ms), ("idle", timeouts.idle_ms)];
        words.extend(times.into_iter().filter_map(|(what, ms)| Some(format!("{what} within {} ms", ms?))));
        if let Some(retries) = retries.filter(|retries| retries.attempts > 0) {
            let sent_again = if retries.covers_method(method) { "" } else { ", if the application marks it" };
            words.push(format!("sent again up to {} times{sent_again}", retries.attempts));
        }
        words.extend(rate_limits.iter().map(|limit| {
            let whose = match limit.key {
                RateKey::Identity => "of each caller",
                RateKey::Workload => "of all callers",
            };
            format!("{} requests in {} ms {whose}", limit.requests, limit.per_ms)
        }));
        if let Some(breaking) = self.circuit_breaking {
            words.push(format!("endpoints that fail rest for {} ms", breaking.ejection_time_ms));
        }
        if let Some(Concurrency { max_requests, max_pending }) = self.concurrency {
            words.push(format!("{max_requests} at once, {max_pending} waiting"));
        }
        match &self.load_balancing {
            Some(LoadBalancing::P2c) => words.push("spread by load".to_owned()),
            Some(LoadBalancing::ConsistentHash(on)) => {
                let what = match on {
                    HashOn::Header(name) => name,
                    HashOn::Path => "path",
                    HashOn::SourceIdentity => "caller",
                };
                words.push(format!("spread by {what}"));
            }
            None => {}
        }
        words
    }

    /// Every rate limit, with the route that sets it.
    pub fn rate_limits(&self) -> impl Iterator<Item = (Option<usize>, &RateLimit)> {
        let own = self.settings.rate_limits.iter().flatten().map(|limit| (None, limit));
        let of_routes = self.routes.iter().enumerate().flat_map(|(number, route)| {
            route.settings.rate_limits.iter().flatten().map(move |limit| (Some(number), limit))
        });
        own.chain(of_routes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::PathPattern;

    #[test]
    fn the_first_route_that_matches_replaces_what_it_sets() {
        let limit = |requests| RateLimit { requests, per_ms: 1_000, key: RateKey::Identity };
        let operation = |methods: &[&str], path: &str| Route {
            methods: methods.iter().map(|method| (*method).to_owned()).collect(),
            paths: vec![PathPattern::parse(path).unwrap()],
        };
        let timeouts = |ms| Timeouts { request_ms: Some(ms), ..Timeouts::default() };
        let policy = TrafficPolicyModel {
            name: "t".to_owned(),
            target: Target::Everything,
            ports: vec![80],
            settings: TrafficSettings {
                timeouts: Some(timeouts(1_000)),
                retries: None,
                rate_limits: Some(vec![limit(10)]),
            },
            routes: vec![
                TrafficRoute {
                    to: vec![operation(&["GET"], "/slow/**")],
                    settings: TrafficSettings {
                        timeouts: Some(timeouts(60_000)),
                        ..TrafficSettings::default()
                    },
                },
                TrafficRoute {
                    to: vec![operation(&[], "/slow/**"), operation(&[], "/login")],
                    settings: TrafficSettings {
                        rate_limits: Some(vec![limit(1)]),
                        ..TrafficSettings::default()
                    },
                },
            ],
            circuit_breaking: None,
            concurrency: None,
            load_balancing: None,
        };
        let of = |method, path| {
            let settings = policy.settings_of(method, path);
            (settings.timeouts.request_ms, settings.limited_by, settings.rate_limits.to_vec())
        };
        assert_eq!(of("GET", "/x"), (Some(1_000), None, vec![limit(10)]));
        assert_eq!(of("GET", "/slow/x"), (Some(60_000), None, vec![limit(10)]), "the limit is shared");
        assert_eq!(of("POST", "/slow/x"), (Some(1_000), Some(1), vec![limit(1)]));
        assert_eq!(of("POST", "/login"), (Some(1_000), Some(1), vec![limit(1)]));
        assert_eq!(
            policy.in_words("GET", "/slow/x"),
            ["request within 60000 ms", "10 requests in 1000 ms of each caller"]
        );
        let all: Vec<_> = policy.rate_limits().map(|(route, limit)| (route, limit.requests)).collect();
        assert_eq!(all, [(None, 10), (Some(1), 1)]);
        assert!(policy.selects_port(80) && !policy.selects_port(81));
    }

    #[test]
    fn what_changes_something_is_sent_again_only_where_the_operator_says_so() {
        let mut retries = Retries {
            attempts: 1,
            on: vec![RetryOn::Reset],
            methods: Vec::new(),
            budget: RetryBudget::default(),
        };
        for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
            assert!(retries.covers_method(method), "{method}");
        }
        for method in ["POST", "PUT", "DELETE", "PATCH", "get", ""] {
            assert!(!retries.covers_method(method), "{method}");
        }
        retries.methods.push("PUT".to_owned());
        assert!(retries.covers_method("PUT") && !retries.covers_method("DELETE"));
    }
}
