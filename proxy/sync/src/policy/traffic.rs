//! Traffic policies to protobuf and back.

use signet_policy::{
    CircuitBreaking, Concurrency, FieldPattern, HashOn, LoadBalancing, MAX_RATE_LIMITS, MAX_TRAFFIC_ROUTES,
    RateKey, RateLimit, Retries, RetryBudget, RetryOn, SuccessRate, Timeouts, TrafficPolicyModel,
    TrafficRoute, TrafficSettings,
};

use super::access::{target_from, target_to};
use super::{each, ports_from, ports_to, protection};
use crate::DecodeError;
use crate::bytes::at_most;
use crate::proto::sync as wire;
use crate::proto::sync::load_balancing::{P2c, Path, Policy as Balancer, SourceIdentity};

pub(super) fn policy_from(policy: wire::TrafficPolicy) -> Result<TrafficPolicyModel, DecodeError> {
    at_most("policy.traffic_policies.routes", policy.routes.len(), MAX_TRAFFIC_ROUTES)?;
    Ok(TrafficPolicyModel {
        name: policy.name,
        target: target_from("policy.traffic_policies.target", policy.target)?,
        ports: ports_from("policy.traffic_policies.ports", &policy.ports)?,
        settings: settings_from(policy.settings.unwrap_or_default())?,
        routes: each(policy.routes, route_from)?,
        circuit_breaking: policy.circuit_breaking.map(|breaking| CircuitBreaking {
            consecutive_failures: breaking.consecutive_failures,
            success_rate: breaking
                .success_rate
                .map(|rate| SuccessRate { minimum: rate.minimum, volume: rate.volume }),
            ejection_time_ms: breaking.ejection_time,
            max_ejection_percent: breaking.max_ejection_percent,
        }),
        concurrency: policy
            .concurrency
            .map(|limit| Concurrency { max_requests: limit.max_requests, max_pending: limit.max_pending }),
        load_balancing: match policy.load_balancing {
            Some(balancing) => Some(balancing_from(balancing)?),
            None => None,
        },
    })
}

pub(super) fn policy_to(policy: &TrafficPolicyModel) -> wire::TrafficPolicy {
    wire::TrafficPolicy {
        name: policy.name.clone(),
        target: Some(target_to(&policy.target)),
        ports: ports_to(&policy.ports),
        settings: Some(settings_to(&policy.settings)),
        routes: policy.routes.iter().map(route_to).collect(),
        circuit_breaking: policy.circuit_breaking.map(|breaking| wire::CircuitBreaking {
            consecutive_failures: breaking.consecutive_failures,
            success_rate: breaking
                .success_rate
                .map(|rate| wire::SuccessRate { minimum: rate.minimum, volume: rate.volume }),
            ejection_time: breaking.ejection_time_ms,
            max_ejection_percent: breaking.max_ejection_percent,
        }),
        concurrency: policy.concurrency.map(|limit| wire::Concurrency {
            max_requests: limit.max_requests,
            max_pending: limit.max_pending,
        }),
        load_balancing: policy.load_balancing.as_ref().map(balancing_to),
    }
}

fn route_from(route: wire::TrafficRoute) -> Result<TrafficRoute, DecodeError> {
    Ok(TrafficRoute {
        to: each(route.to, |to| protection::route_from("policy.traffic_policies.routes.to", to))?,
        settings: settings_from(route.settings.unwrap_or_default())?,
    })
}

fn route_to(route: &TrafficRoute) -> wire::TrafficRoute {
    wire::TrafficRoute {
        to: route.to.iter().map(protection::route_to).collect(),
        settings: Some(settings_to(&route.settings)),
    }
}

fn settings_from(settings: wire::TrafficSettings) -> Result<TrafficSettings, DecodeError> {
    let limits = match settings.rate_limits {
        Some(list) => {
            at_most("policy.traffic_policies.rate_limits", list.limits.len(), MAX_RATE_LIMITS)?;
            Some(each(list.limits, limit_from)?)
        }
        None => None,
    };
    Ok(TrafficSettings {
        timeouts: settings.timeouts.map(|timeouts| Timeouts {
            connect_ms: timeouts.connect,
            request_ms: timeouts.request,
            idle_ms: timeouts.idle,
        }),
        retries: match settings.retries {
            Some(retries) => Some(retries_from(retries)?),
            None => None,
        },
        rate_limits: limits,
    })
}

fn settings_to(settings: &TrafficSettings) -> wire::TrafficSettings {
    wire::TrafficSettings {
        timeouts: settings.timeouts.map(|timeouts| wire::Timeouts {
            connect: timeouts.connect_ms,
            request: timeouts.request_ms,
            idle: timeouts.idle_ms,
        }),
        retries: settings.retries.as_ref().map(retries_to),
        rate_limits: settings
            .rate_limits
            .as_ref()
            .map(|limits| wire::RateLimits { limits: limits.iter().map(limit_to).collect() }),
    }
}

fn retries_from(retries: wire::Retries) -> Result<Retries, DecodeError> {
    const ON: &str = "policy.traffic_policies.retries.on";
    Ok(Retries {
        attempts: retries.attempts,
        on: each(retries.on, |value| match wire::RetryOn::try_from(value) {
            Ok(wire::RetryOn::ConnectFailure) => Ok(RetryOn::ConnectFailure),
            Ok(wire::RetryOn::GatewayError) => Ok(RetryOn::GatewayError),
            Ok(wire::RetryOn::Reset) => Ok(RetryOn::Reset),
            Ok(wire::RetryOn::Unspecified) | Err(_) => Err(DecodeError::Enum { field: ON, value }),
        })?,
        methods: retries.methods,
        budget: RetryBudget {
            percent: retries.budget_percent,
            min_per_second: retries.budget_min_per_second,
        },
    })
}

fn retries_to(retries: &Retries) -> wire::Retries {
    let on = |failure: &RetryOn| match failure {
        RetryOn::ConnectFailure => wire::RetryOn::ConnectFailure.into(),
        RetryOn::GatewayError => wire::RetryOn::GatewayError.into(),
        RetryOn::Reset => wire::RetryOn::Reset.into(),
    };
    wire::Retries {
        attempts: retries.attempts,
        on: retries.on.iter().map(on).collect(),
        methods: retries.methods.clone(),
        budget_percent: retries.budget.percent,
        budget_min_per_second: retries.budget.min_per_second,
    }
}

fn limit_from(limit: wire::RateLimit) -> Result<RateLimit, DecodeError> {
    const KEY: &str = "policy.traffic_policies.rate_limits.key";
    Ok(RateLimit {
        requests: limit.requests,
        per_ms: limit.per,
        key: match wire::RateKey::try_from(limit.key) {
            Ok(wire::RateKey::Identity) => RateKey::Identity,
            Ok(wire::RateKey::Workload) => RateKey::Workload,
            Ok(wire::RateKey::Unspecified) | Err(_) => {
                return Err(DecodeError::Enum { field: KEY, value: limit.key });
            }
        },
    })
}

fn limit_to(limit: &RateLimit) -> wire::RateLimit {
    wire::RateLimit {
        requests: limit.requests,
        per: limit.per_ms,
        key: match limit.key {
            RateKey::Identity => wire::RateKey::Identity,
            RateKey::Workload => wire::RateKey::Workload,
        }
        .into(),
    }
}

fn balancing_from(balancing: wire::LoadBalancing) -> Result<LoadBalancing, DecodeError> {
    const POLICY: &str = "policy.traffic_policies.load_balancing.policy";
    Ok(match balancing.policy.ok_or(DecodeError::Missing { field: POLICY })? {
        Balancer::P2c(_) => LoadBalancing::P2c,
        Balancer::HashHeader(name) => {
            let parsed = FieldPattern::parse(&name).map_err(|_| DecodeError::Name { field: POLICY })?;
            if parsed.exact() != Some(&*name) {
                return Err(DecodeError::Name { field: POLICY });
            }
            LoadBalancing::ConsistentHash(HashOn::Header(name))
        }
        Balancer::HashPath(_) => LoadBalancing::ConsistentHash(HashOn::Path),
        Balancer::HashSourceIdentity(_) => LoadBalancing::ConsistentHash(HashOn::SourceIdentity),
    })
}

fn balancing_to(balancing: &LoadBalancing) -> wire::LoadBalancing {
    let policy = match balancing {
        LoadBalancing::P2c => Balancer::P2c(P2c {}),
        LoadBalancing::ConsistentHash(HashOn::Header(name)) => Balancer::HashHeader(name.clone()),
        LoadBalancing::ConsistentHash(HashOn::Path) => Balancer::HashPath(Path {}),
        LoadBalancing::ConsistentHash(HashOn::SourceIdentity) => {
            Balancer::HashSourceIdentity(SourceIdentity {})
        }
    };
    wire::LoadBalancing { policy: Some(policy) }
}
