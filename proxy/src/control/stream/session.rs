//! One control stream, from `Hello` to its end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use signet_signature::seal::SealingKey;
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::control_client::ControlClient;
use signet_sync::proto::sync::{control_message, proxy_message};
use signet_sync::{Claim, MAX_CLAIMS, MAX_MESSAGE_BYTES, MIN_PROTOCOL, PROTOCOL, Subscriber};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::clock;
use crate::control::enrol::CALL_TIMEOUT;
use crate::control::renew::sleep_until;
use crate::control::stream::StreamError;
use crate::control::{Health, Hooks, Identity, Node, interfaces};
use crate::habit::Observation;

/// Messages to the control plane that wait for the connection. Answers are at most one per section received, so a
/// full queue means that the control plane does not read.
const OUTBOUND_MESSAGES: usize = 64;
/// How long a full queue is waited for.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the proxy reports, and looks at its own addresses.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// The least time between two reports made on change.
const REPORT_PAUSE: Duration = Duration::from_millis(200);
/// How long changed sections wait to be saved, so that a burst of them is one write.
const SAVE_DELAY: Duration = Duration::from_secs(1);
/// Refusal codes in a report; there are some thirty.
const REFUSED_CODES: usize = 128;

/// Refused claims that are remembered, so that each is logged once.
const REFUSED_CLAIMS: usize = 1024;

/// An open stream.
pub(super) struct Session {
    outbound: mpsc::Sender<wire::ProxyMessage>,
    inbound: Streaming<wire::ControlMessage>,
    /// Certificate it was opened with, and when to leave it for a stream with a newer one.
    fingerprint: signet_identity::Fingerprint,
    leave_at: SystemTime,
    /// Wakes the session when there is a newer certificate.
    changes: watch::Receiver<u64>,
    claims: Vec<Claim>,
    /// Claims whose refusal was logged.
    refused: BTreeSet<(Vec<u8>, u32)>,
    ticks: Interval,
    save_at: Option<Instant>,
    reported: Option<(Instant, Health)>,
    /// The certificate that the control plane was last told is in use.
    told: signet_identity::Fingerprint,
}

/// Why [`Session::run`] returned.
pub(super) enum End {
    /// The stream is gone.
    Failed(StreamError),
    /// The certificate the stream was opened with nears its end, and there is a newer one.
    Renewed,
}

impl Session {
    /// Connects, says hello, and waits until the control plane has accepted the stream.
    pub(super) async fn open(node: &Node, subscriber: &Subscriber) -> Result<Self, StreamError> {
        let identity = node.identity.load_full();
        let (channel, plane) = node.origin.plane.as_identity_to(&identity).await?;
        node.connected(channel.clone());
        node.island.follows(identity.is_of_area() || plane != identity.control_plane);
        let claims = claims(&identity, subscriber);
        let hello = wire::Hello {
            protocol: PROTOCOL,
            min_protocol: MIN_PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            have: subscriber.have(),
            claims: claims.iter().map(wire::Claim::from).collect(),
            // Derived, so that it is the one that the credentials of this certificate open with.
            sealing_key: SealingKey::derive(identity.signing.key.secret_der())
                .map(|key| key.public().to_vec())
                .unwrap_or_default(),
        };
        let (outbound, queue) = mpsc::channel(OUTBOUND_MESSAGES);
        let session_messages = ReceiverStream::new(queue);
        // The queue is empty and open: this cannot fail.
        let _ = outbound.try_send(message(proxy_message::Message::Hello(hello)));
        let mut client = ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let inbound = tokio::time::timeout(CALL_TIMEOUT, client.connect(session_messages))
            .await
            .map_err(|_| StreamError::Timeout)?
            .map_err(|status| StreamError::Refused(Box::new(status)))?
            .into_inner();
        let mut ticks = tokio::time::interval(REPORT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            outbound,
            inbound,
            fingerprint: identity.tls.fingerprint,
            leave_at: leave_at(&identity),
            changes: node.changes.subscribe(),
            claims,
            refused: BTreeSet::new(),
            ticks,
            save_at: None,
            reported: None,
            told: identity.tls.fingerprint,
        })
    }

    /// Takes over from a session that is given up.
    pub(super) fn after(mut self, mut last: Self) -> Self {
        self.refused = std::mem::take(&mut last.refused);
        self
    }

    /// Stays on this stream for now.
    pub(super) fn keep(&mut self, until: SystemTime) {
        self.leave_at = until;
    }

    pub(super) async fn run(&mut self, node: &Node, subscriber: &mut Subscriber, hooks: &mut Hooks) -> End {
        let end = loop {
            match self.turn(node, subscriber, hooks).await {
                Ok(false) => {}
                Ok(true) => break End::Renewed,
                Err(error) => break End::Failed(error),
            }
        };
        if self.save_at.is_some() {
            self.save(node, subscriber).await;
        }
        end
    }

    /// Waits for one event and deals with it; true when it is time for a stream with newer certificates.
    async fn turn(
        &mut self,
        node: &Node,
        subscriber: &mut Subscriber,
        hooks: &mut Hooks,
    ) -> Result<bool, StreamError> {
        let in_use = node.identity.load().tls.fingerprint;
        if in_use != self.told {
            self.report(node, hooks).await?;
        }
        let renewed = in_use != self.fingerprint;
        tokio::select! {
            received = self.inbound.message() => {
                let received = received.map_err(|status| StreamError::Refused(Box::new(status)))?;
                let message = received.ok_or(StreamError::Closed)?.message;
                self.receive(message, node, subscriber, hooks).await?;
            }
            _ = self.ticks.tick() => {
                self.claim(node, subscriber).await?;
                self.report(node, hooks).await?;
            }
            () = hooks.report.notified() => self.report_change(node, hooks).await?,
            Some(observation) = hooks.observed.recv() => self.tell(observation).await?,
            _ = self.changes.changed() => {}
            () = sleep_until(self.leave_at), if renewed => return Ok(true),
            () = save_time(self.save_at) => self.save(node, subscriber).await,
        }
        Ok(false)
    }

    async fn receive(
        &mut self,
        received: Option<control_message::Message>,
        node: &Node,
        subscriber: &mut Subscriber,
        hooks: &Hooks,
    ) -> Result<(), StreamError> {
        match received {
            Some(control_message::Message::Section(section)) => self.apply(section, node, subscriber).await,
            Some(control_message::Message::ClaimResult(result)) => {
                self.hear(result);
                Ok(())
            }
            Some(control_message::Message::ExplainQuery(query)) => {
                let json = (hooks.explain)(&query.request_id).unwrap_or_default();
                let answer = wire::ExplainAnswer { query_id: query.query_id, json };
                self.send(proxy_message::Message::ExplainAnswer(answer)).await
            }
            Some(control_message::Message::Goaway(goaway)) => Err(StreamError::Goaway {
                reason: goaway.reason,
                retry_after: Duration::from_millis(goaway.retry_after_ms),
            }),
            Some(control_message::Message::Freshness(said)) => {
                node.hear(subscriber, said);
                Ok(())
            }
            // A newer control plane may say what this version has not heard of.
            None => Ok(()),
        }
    }

    async fn apply(
        &mut self,
        section: wire::Section,
        node: &Node,
        subscriber: &mut Subscriber,
    ) -> Result<(), StreamError> {
        let name = section.name.clone();
        let outcome = subscriber.handle(section);
        if let Some(error) = &outcome.refused {
            tracing::error!(section = %name, code = error.code(), %error, "a section was refused; the last good one stays");
            node.origin.link.send_modify(|link| link.refused_sections += 1);
        }
        let changed = outcome.changed.is_some();
        if changed {
            tracing::debug!(section = %name, "applied");
            node.confirm(subscriber);
            if node.completes(subscriber) {
                // What a start without the control plane needs is kept before anybody is told "ready".
                self.save(node, subscriber).await;
            } else {
                self.save_at.get_or_insert_with(|| Instant::now() + SAVE_DELAY);
            }
            node.publish_snapshot(subscriber);
        }
        self.forward(outcome.reply).await?;
        // A policy may have changed which ports are this workload's.
        if changed { self.claim(node, subscriber).await } else { Ok(()) }
    }

    /// Logs a refused claim, once until it is accepted.
    fn hear(&mut self, result: wire::ClaimResult) {
        let place = (result.address.clone(), result.port);
        if result.accepted {
            self.refused.remove(&place);
        } else if self.refused.len() < REFUSED_CLAIMS && self.refused.insert(place) {
            let claim = Claim::try_from(&wire::Claim { address: result.address, ports: Vec::new() });
            let address = claim.map(|claim| claim.address).ok();
            tracing::warn!(?address, result.port, result.code, result.detail, "a claim was refused");
        }
    }

    /// Sends the claims when they differ from the last ones sent.
    async fn claim(&mut self, node: &Node, subscriber: &Subscriber) -> Result<(), StreamError> {
        let claims = claims(&node.identity.load(), subscriber);
        if claims == self.claims {
            return Ok(());
        }
        let update = wire::Claims { claims: claims.iter().map(wire::Claim::from).collect() };
        self.claims = claims;
        self.send(proxy_message::Message::Claims(update)).await
    }

    async fn report_change(&mut self, node: &Node, hooks: &Hooks) -> Result<(), StreamError> {
        let recent = self.reported.as_ref().is_some_and(|(at, _)| at.elapsed() < REPORT_PAUSE);
        if recent {
            // Told again with the next turn of the clock at the latest.
            self.ticks.reset_after(REPORT_PAUSE);
            return Ok(());
        }
        let unchanged = self.reported.as_ref().is_some_and(|(_, health)| *health == (hooks.health)());
        if unchanged { Ok(()) } else { self.report(node, hooks).await }
    }

    async fn report(&mut self, node: &Node, hooks: &Hooks) -> Result<(), StreamError> {
        let health = (hooks.health)();
        let identity = node.identity.load_full();
        let status = wire::Status {
            unix_ms: clock::unix_ms(),
            capture_in_force: health.capture_in_force,
            canary_ok: health.canary_ok,
            tls_not_after: unix_seconds(identity.tls.not_after),
            signing_not_after: unix_seconds(identity.signing.not_after),
            open_connections: health.open_connections,
            refused: health.refused.clone().into_iter().take(REFUSED_CODES).collect(),
            unprotected: Some(wire::Unprotected {
                plaintext_in: health.unprotected.plaintext_in,
                plaintext_out: health.unprotected.plaintext_out,
                unsigned_requests: health.unprotected.unsigned_requests,
                unsigned_responses: health.unprotected.unsigned_responses,
                observed_refusals: health.unprotected.observed_refusals,
            }),
            edges: health.edges.iter().map(wire::Edge::from).collect(),
            edges_lost: health.edges_lost,
            wall_ahead_ms: clock::told().wall_ahead_ms,
            tls_leaf: identity.tls.fingerprint.0.to_vec(),
        };
        self.told = identity.tls.fingerprint;
        self.reported = Some((Instant::now(), health));
        self.send(proxy_message::Message::Status(status)).await
    }

    async fn tell(&mut self, observation: Observation) -> Result<(), StreamError> {
        let habit = wire::Habit {
            port: observation.port.into(),
            speaks_first: wire::SpeaksFirst::from(Some(observation.speaks_first)).into(),
            protocol: wire::Protocol::Auto.into(),
        };
        self.send(proxy_message::Message::Habit(habit)).await
    }

    async fn save(&mut self, node: &Node, subscriber: &Subscriber) {
        self.save_at = None;
        let Some(state) = node.origin.state.clone() else { return };
        let sections: Vec<_> = subscriber.sections().map(|(_, section)| Arc::clone(section)).collect();
        // A sync to a slow card must not hold up the admin endpoints on this thread.
        let (clock, said) = node.island.to_save();
        let saving = move || {
            state.save_sections(&sections)?;
            state.save_clock(&clock, said.as_ref())
        };
        let saved = tokio::task::spawn_blocking(saving).await;
        if let Ok(Err(error)) = saved {
            node.origin.failed("saving the sections", &error);
        }
    }

    async fn send(&self, content: proxy_message::Message) -> Result<(), StreamError> {
        self.forward(message(content)).await
    }

    async fn forward(&self, message: wire::ProxyMessage) -> Result<(), StreamError> {
        match tokio::time::timeout(STALL_TIMEOUT, self.outbound.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(StreamError::Closed),
            Err(_) => Err(StreamError::Stalled),
        }
    }
}

/// When to leave a stream opened with this identity for one with a newer certificate: at three quarters of what is
/// left, well after renewal and well before the control plane could refuse it.
fn leave_at(identity: &Identity) -> SystemTime {
    let left = identity.not_after().duration_since(clock::now()).unwrap_or_default();
    clock::now() + left * 3 / 4
}

/// The proxy's own addresses, each with the ports that the policy in force declares for its workload.
fn claims(identity: &Identity, subscriber: &Subscriber) -> Vec<Claim> {
    let addresses = interfaces::addresses().unwrap_or_else(|error| {
        tracing::warn!(%error, "the interfaces cannot be listed; nothing is claimed");
        BTreeSet::new()
    });
    let workload = subscriber.policy().and_then(|policy| policy.model.workload(&identity.tls.id));
    let ports: Vec<u16> =
        workload.map(|w| w.ports.iter().map(|p| p.port).take(MAX_CLAIMS).collect()).unwrap_or_default();
    addresses.into_iter().map(|address| Claim { address, ports: ports.clone() }).collect()
}

async fn save_time(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn message(content: proxy_message::Message) -> wire::ProxyMessage {
    wire::ProxyMessage { message: Some(content) }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
