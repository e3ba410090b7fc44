//! Requests to which a traffic policy applies, or that may go to several endpoints.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Response, request};
use hyper::body::Incoming;
use signet_policy::{
    Concurrency, LoadBalancing, Permit, Refusal, RequestSettings, Retries, RetryOn, Timeouts,
    TrafficPolicyModel,
};
use tokio::time::timeout_at;

use super::http::{Caller, Failed, Limits, Shape, Trail, Unsigned};
use crate::body::{Body, Payload, WHOLE_MAX};
use crate::snapshot::Snapshot;
use crate::traffic::{Choice, Mark, Try, Upstream, Verdict, hashed};

/// How long a request waits for a place where policy sets it no time: what people wait for a page.
const PLACE_TIMEOUT: Duration = Duration::from_secs(30);

/// What directs the requests of a connection at this moment.
pub(super) struct Traffic {
    policy: Option<Arc<TrafficPolicyModel>>,
}

impl Traffic {
    fn settings(&self, request: &request::Parts) -> RequestSettings<'_> {
        match &self.policy {
            Some(policy) => policy.settings_of(request.method.as_str(), request.uri.path()),
            None => RequestSettings {
                timeouts: Timeouts::default(),
                retries: None,
                rate_limits: &[],
                limited_by: None,
            },
        }
    }

    fn balancing(&self) -> Option<&LoadBalancing> {
        self.policy.as_ref()?.load_balancing.as_ref()
    }
}

impl Caller {
    /// What directs requests to the destination, if anything does.
    pub(super) fn traffic(&self) -> Option<Traffic> {
        let destination = &self.destination;
        let (id, port) = match &destination.behind {
            Some(behind) => (&behind.owner.0, behind.owner.1),
            None => (&destination.id, destination.port),
        };
        let policy = self.worker.shared.snapshot().index.traffic(id, port).cloned();
        (policy.is_some() || destination.behind.is_some()).then_some(Traffic { policy })
    }

    /// One request, with as many tries as policy allows.
    pub(super) async fn directed(
        &self,
        traffic: Traffic,
        parts: request::Parts,
        body: Incoming,
        request_id: &str,
        trail: &mut Trail,
    ) -> Result<(Response<Body>, Permit), Refusal> {
        let settings = traffic.settings(&parts);
        let mark = Mark::of(&parts.headers)?;
        let retries = settings.retries.filter(|retries| {
            mark == Mark::Idempotent || mark == Mark::None && retries.covers_method(parts.method.as_str())
        });
        // Nobody without permission takes a place, or a request from the budget.
        let (grant, _permitted_so_far) = self.permit(&self.destination, &parts, &mut trail.grant)?;
        let shape = self.shape(&self.destination, &parts.headers, grant)?;
        let whole_max = if retries.is_some() && shape.form.is_none() { WHOLE_MAX } else { shape.whole_max() };
        let payload = Payload::take(body, whole_max).await.map_err(|_| Refusal::MalformedMessage)?;
        let began = Instant::now();
        let upstream = self.upstream.get_or_init(|| self.worker.traffic.upstream(&self.destination, began));
        upstream.deposit(began);
        let time = settings.timeouts.request_ms.map(Duration::from_millis);
        let deadline = time.and_then(|time| began.checked_add(time));
        let slot = match traffic.policy.as_ref().and_then(|policy| policy.concurrency) {
            Some(limit) => {
                let wait = deadline.unwrap_or(began + PLACE_TIMEOUT);
                let place = upstream.share.slots.enter(self.share_of(limit));
                let entered = timeout_at(wait.into(), place).await.unwrap_or(Err(Refusal::ConcurrencyLimit));
                Some(entered.inspect_err(|_| trail.retry_after = Some(Duration::from_secs(1)))?)
            }
            None => None,
        };
        let request = Unsigned { parts, payload };
        let mut tries =
            Tries { caller: self, traffic: &traffic, upstream, settings, deadline, tried: Vec::new() };
        let (response, permit) = tries.make(request, retries, request_id, trail).await?;
        let idle = settings.timeouts.idle_ms.map(Duration::from_millis);
        let response =
            response.map(|body| body.idle_at_most(idle).holding(slot.map(|slot| Rc::new(slot) as _)));
        Ok((response, permit))
    }

    /// This worker's part of a limit of the whole sidecar.
    fn share_of(&self, limit: Concurrency) -> Concurrency {
        let workers = u32::try_from(self.worker.shared.rings.len()).unwrap_or(u32::MAX).max(1);
        let part = |all: u32| all.div_ceil(workers);
        Concurrency { max_requests: part(limit.max_requests), max_pending: part(limit.max_pending) }
    }
}

/// The tries of one request.
struct Tries<'a> {
    caller: &'a Caller,
    traffic: &'a Traffic,
    upstream: &'a Rc<Upstream>,
    settings: RequestSettings<'a>,
    deadline: Option<Instant>,
    tried: Vec<SocketAddr>,
}

impl Tries<'_> {
    async fn make(
        &mut self,
        request: Unsigned,
        retries: Option<&Retries>,
        request_id: &str,
        trail: &mut Trail,
    ) -> Result<(Response<Body>, Permit), Refusal> {
        let mut left = retries.map_or(0, |retries| retries.attempts);
        let mut next = Some(request);
        loop {
            let Some(request) = next.take() else { return Err(Refusal::UpstreamUnreachable) };
            // A body that is not all here cannot be sent again.
            next = if left > 0 { request.copy() } else { None };
            let chosen = self.choose(&request.parts, trail)?;
            let outcome = self.one(&chosen, request, request_id, trail).await;
            let failure = match &outcome {
                Ok((response, _)) => gateway_error(response),
                Err(failed) => failed.retryable,
            };
            let hold = chosen.end(verdict(&outcome), &self.caller.worker.shared.metrics, Instant::now());
            let Some(failure) = failure.filter(|_| next.is_some()) else {
                return match outcome {
                    Ok((response, permit)) => Ok((response.map(|body| body.holding(Some(hold))), permit)),
                    Err(failed) => Err(failed.refusal),
                };
            };
            drop(hold);
            if !self.may_again(retries, failure) {
                return outcome.map_err(|failed| failed.refusal);
            }
            left -= 1;
            tracing::debug!(request_id, ?failure, left, "sent again");
            self.caller.worker.shared.metrics.policy_retries.inc();
        }
    }

    fn choose(&mut self, parts: &request::Parts, trail: &mut Trail) -> Result<Try, Refusal> {
        let caller = self.caller;
        let snapshot: Arc<Snapshot> = caller.worker.shared.snapshots.load_full();
        let balancing = self.traffic.balancing();
        let choice = Choice {
            snapshot: &snapshot,
            dialled: &caller.destination,
            balancing,
            breaking: self.traffic.policy.as_ref().and_then(|policy| policy.circuit_breaking),
            key: hashed(balancing, &caller.own, parts.uri.path(), &parts.headers),
            tried: &self.tried,
        };
        match caller.worker.traffic.choose(self.upstream, &choice, Instant::now()) {
            Ok(chosen) => {
                self.tried.push(chosen.destination.address);
                trail.sent_to = Some(chosen.destination.address);
                Ok(chosen)
            }
            Err(rest) => {
                trail.retry_after = Some(rest);
                Err(Refusal::CircuitOpen)
            }
        }
    }

    /// One try: permitted, signed and sent as if it were the only one.
    async fn one(
        &self,
        chosen: &Try,
        request: Unsigned,
        request_id: &str,
        trail: &mut Trail,
    ) -> Result<(Response<Body>, Permit), Failed> {
        let (caller, destination) = (self.caller, &*chosen.destination);
        let (grant, permit) = caller.permit(destination, &request.parts, &mut trail.grant)?;
        let shape: Shape = caller.shape(destination, &request.parts.headers, grant)?;
        let (connect, idle) = (self.settings.timeouts.connect_ms, self.settings.timeouts.idle_ms);
        let limits =
            Limits { connect: connect.map(Duration::from_millis), idle: idle.map(Duration::from_millis) };
        let sending = caller.send(destination, request, shape, grant, request_id, limits);
        let sent = match self.deadline {
            Some(deadline) => match timeout_at(deadline.into(), sending).await {
                Ok(sent) => sent,
                // All the time there was: nothing is left for another try.
                Err(_) => return Err(Failed { timed_out: true, ..Refusal::UpstreamTimeout.into() }),
            },
            None => sending.await,
        };
        Ok((sent?, permit))
    }

    fn may_again(&self, retries: Option<&Retries>, failure: RetryOn) -> bool {
        let Some(retries) = retries.filter(|retries| retries.on.contains(&failure)) else { return false };
        let now = Instant::now();
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return false;
        }
        let granted = self.upstream.withdraw(retries.budget, now);
        if !granted {
            self.caller.worker.shared.metrics.retries_over_budget.inc();
        }
        granted
    }
}

/// What a try says of its endpoint.
fn verdict(outcome: &Result<(Response<Body>, Permit), Failed>) -> Verdict {
    match outcome {
        Ok((response, _)) if response.status().is_server_error() => Verdict::Failed,
        Ok(_) => Verdict::Served,
        Err(failed) if failed.timed_out || failed.retryable.is_some() => Verdict::Failed,
        Err(failed) if failed.refusal == Refusal::ResponseUnverified => Verdict::Failed,
        Err(_) => Verdict::Unknown,
    }
}

/// Whether a response says that its sender could not get one itself.
fn gateway_error(response: &Response<Body>) -> Option<RetryOn> {
    matches!(response.status().as_u16(), 502..=504).then_some(RetryOn::GatewayError)
}
