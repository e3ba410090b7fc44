//! The shape of `TrafficPolicy` manifests.

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::schema::{List, RouteSpec, TargetSpec, given};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct TrafficPolicySpec {
    pub(crate) target: Spanned<TargetSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) ports: Option<List<u32>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) timeouts: Option<Spanned<TimeoutsSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) retries: Option<Spanned<RetriesSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) rate_limits: Option<List<RateLimitSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) routes: Option<List<TrafficRouteSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) circuit_breaking: Option<Spanned<CircuitBreakingSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) concurrency: Option<ConcurrencySpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) load_balancing: Option<LoadBalancingSpec>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct TrafficRouteSpec {
    pub(crate) to: List<RouteSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) timeouts: Option<Spanned<TimeoutsSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) retries: Option<Spanned<RetriesSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) rate_limits: Option<List<RateLimitSpec>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TimeoutsSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) connect: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) request: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) idle: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RetriesSpec {
    pub(crate) attempts: Spanned<u32>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) on: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) methods: Option<List<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) budget: Option<BudgetSpec>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct BudgetSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) percent: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) min_per_second: Option<Spanned<u32>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct CircuitBreakingSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) consecutive_failures: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) success_rate: Option<SuccessRateSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) ejection_time: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) max_ejection_percent: Option<Spanned<u32>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SuccessRateSpec {
    pub(crate) minimum: Spanned<u32>,
    pub(crate) volume: Spanned<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ConcurrencySpec {
    pub(crate) max_requests: Spanned<u32>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) max_pending: Option<Spanned<u32>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RateLimitSpec {
    pub(crate) requests: Spanned<u32>,
    pub(crate) per: Spanned<String>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) key: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoadBalancingSpec {
    pub(crate) policy: Spanned<String>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) hash: Option<Spanned<HashSpec>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct HashSpec {
    #[serde(default, deserialize_with = "given")]
    pub(crate) header: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) path: Option<Spanned<bool>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) source_identity: Option<Spanned<bool>>,
}
