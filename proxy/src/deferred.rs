//! Verifies what was handed on already (`verify: async`): right after it, on the same worker, whatever becomes of the
//! exchange meanwhile.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use signet_identity::Fingerprint;
use signet_policy::Refusal;
use signet_signature::{SignatureError, Unproven};
use tokio::sync::oneshot;

use crate::authorize::Grant;
use crate::channel::Channel;
use crate::checkpoint::give_up;
use crate::ring::Direction;
use crate::verify;
use crate::worker::{Event, Worker};

/// Messages of one worker that are handed on and not yet verified; beyond these the others are verified before. All of
/// them are verified in the worker's next turn: 10 ms of Ed25519, if no two share a signature.
const UNPROVEN_MAX: usize = 256;

/// A place among the messages that are verified later, and of a request its number.
pub(crate) struct Place {
    count: Rc<Cell<usize>>,
    channel: Rc<Channel>,
    direction: Direction,
    seq: u64,
}

impl Place {
    /// A place for this message, if there is one; else it has to be verified at once.
    pub(crate) fn take(
        worker: &Worker,
        channel: &Rc<Channel>,
        unproven: &Unproven,
        direction: Direction,
    ) -> Option<Self> {
        let count = Rc::clone(&worker.unproven);
        let (channel, seq) = (Rc::clone(channel), unproven.seq());
        if count.get() >= UNPROVEN_MAX || (direction == Direction::Inbound && !channel.reserve(seq)) {
            return None;
        }
        count.set(count.get() + 1);
        Some(Self { count, channel, direction, seq })
    }

    /// Puts the message off.
    pub(crate) fn put_off(self, unproven: Unproven, confirms: Option<Fingerprint>) -> Owed {
        Owed { place: self, unproven, confirms }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.count.set(self.count.get() - 1);
        if self.direction == Direction::Inbound {
            self.channel.release(self.seq);
        }
    }
}

/// A message to be handed on, whose signature is still to be verified. Nothing is owed for one that is dropped instead
/// of being handed on.
#[must_use = "the message is not verified"]
pub(crate) struct Owed {
    place: Place,
    unproven: Unproven,
    /// What a verified answer confirms the peer to know.
    confirms: Option<Fingerprint>,
}

/// The outcome, as soon as there is one. A refusal is recorded already: its exchange may end before it hears of it.
pub(crate) struct Outcome(oneshot::Receiver<Result<(), Refusal>>);

impl Outcome {
    /// Waits until the message is verified.
    pub(crate) async fn proven(self) -> Result<(), Refusal> {
        self.0.await.unwrap_or(Err(Refusal::BadSignature))
    }
}

impl Owed {
    /// Verifies the message after everything that is ready now, the application's connection among it, had its turn.
    /// If it is not what it claims to be, its connection is cut and the incident recorded.
    pub(crate) fn verify(self, worker: &Rc<Worker>, address: SocketAddr, grant: Grant) -> Outcome {
        let (told, outcome) = oneshot::channel();
        let worker = Rc::clone(worker);
        tokio::task::spawn_local(async move {
            tokio::task::yield_now().await;
            let (channel, direction) = (Rc::clone(&self.place.channel), self.place.direction);
            let proven = self.prove(&worker);
            if let Err(refusal) = proven {
                incident(&worker, &channel, direction, refusal);
                worker.record(&Event {
                    request_id: &worker.request_id(),
                    direction,
                    peer: channel.peer.id().as_str(),
                    address,
                    grant: Some(&grant),
                    outcome: &Err(refusal),
                });
            }
            // Whoever asked may be gone.
            let _ = told.send(proven);
        });
        Outcome(outcome)
    }

    /// The message.
    pub(crate) fn unproven(&self) -> &Unproven {
        &self.unproven
    }

    fn prove(self, worker: &Worker) -> Result<(), Refusal> {
        let Self { place, unproven, confirms } = self;
        worker.shared.metrics.deferred_verifications.inc();
        let mut window = place.channel.window().borrow_mut();
        let window = (place.direction == Direction::Inbound).then_some(&mut *window);
        verify::prove(worker, unproven, window).map_err(verify::refusal)?;
        if let Some(own) = confirms {
            place.channel.confirm(own);
        }
        Ok(())
    }
}

fn incident(worker: &Worker, channel: &Channel, direction: Direction, refusal: Refusal) {
    tracing::error!(
        target: "signet::incident", peer = %channel.peer.id(), channel = %channel.id, code = refusal.code(),
        direction = direction.as_str(), "connection is cut: what was handed on is not signed by its sender"
    );
    worker.shared.metrics.incident(direction, refusal);
    give_up(worker, channel);
}

/// A number that is being verified cannot be taken a second time.
pub(crate) fn check_unreserved(channel: &Channel, seq: u64) -> Result<(), SignatureError> {
    let seen = signet_signature::replay::Replay::Seen;
    if channel.is_reserved(seq) { Err(SignatureError::Replay(seen)) } else { Ok(()) }
}
