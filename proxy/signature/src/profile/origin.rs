//! Messages that pass an intermediary which is not of the mesh: signed as their origin sent them.
//!
//! There is no channel between the two ends whose numbers could be counted. A signer draws an epoch of 16 random bytes
//! for each destination and numbers its requests in it; the receiver keeps a window for each epoch, until the last
//! message of it that it has seen has expired everywhere.

use std::collections::HashMap;

use super::verifier::Judge;
use super::{
    ChannelId, Freshness, Part, Rules, SignatureError, Unproven, VALIDITY_SECONDS, VerifiedHead, VerifiedKey,
};
use crate::message::{MessageView, RequestView, ResponseView};
use crate::replay::{Replay, ReplayWindow};

/// Most epochs remembered at once: half a kilobyte each, so 2 MiB.
pub(super) const MAX_EPOCHS: usize = 4096;

/// Most of them of one key: its workers, and how often it may be started anew within two minutes.
pub(super) const MAX_EPOCHS_OF_KEY: usize = 64;

/// Examines a request that passed an intermediary, against the head that its origin sent: everything but its signature
/// and whether it was seen before, which [`OriginWindows::admit`] tells of a verified one.
///
/// # Errors
/// As [`examine_request`](super::examine_request), without those of replay.
pub fn examine_origin_request(
    view: &RequestView<'_>,
    resolve: impl FnOnce(&str) -> Option<VerifiedKey>,
    rules: Rules<'_>,
) -> Result<Unproven, SignatureError> {
    let judge = Judge { freshness: Freshness::Later, rules };
    judge.examine(&MessageView::Request(*view), Part::Origin, resolve)
}

/// Examines the response to a request that was signed by [`MeshSigner::sign_origin`](super::MeshSigner::sign_origin).
///
/// # Errors
/// As [`examine_response`](super::examine_response).
pub fn examine_origin_response(
    view: &ResponseView<'_>,
    expected_nonce: &str,
    resolve: impl FnOnce(&str) -> Option<VerifiedKey>,
    rules: Rules<'_>,
) -> Result<Unproven, SignatureError> {
    let judge = Judge { freshness: Freshness::Nonce(expected_nonce), rules };
    judge.examine(&MessageView::Response(*view), Part::Origin, resolve)
}

/// The requests that were accepted from behind intermediaries, by key and epoch.
#[derive(Debug)]
pub struct OriginWindows {
    since: u64,
    of_key: HashMap<String, HashMap<ChannelId, Epoch>>,
    count: usize,
}

#[derive(Debug)]
struct Epoch {
    window: ReplayWindow,
    /// When nothing of it that was seen is valid any more.
    until: u64,
}

impl OriginWindows {
    /// Windows that were opened at `since`, in Unix seconds: what is older may have been accepted before, by a process
    /// that is no more.
    #[must_use]
    pub fn new(since: u64) -> Self {
        Self { since, of_key: HashMap::new(), count: 0 }
    }

    /// Accepts a verified request once. `skew` is the one it was examined with.
    ///
    /// # Errors
    /// [`SignatureError::Replay`] when it was accepted before, or nobody can know; [`SignatureError::Malformed`] when
    /// its nonce is not one of an epoch.
    pub fn admit(&mut self, head: &VerifiedHead, now: u64, skew: u64) -> Result<(), SignatureError> {
        let (epoch, seq) = ChannelId::of(&head.nonce).ok_or(SignatureError::Malformed)?;
        if head.created < self.since {
            return Err(Replay::TooOld.into());
        }
        let until = head.created.saturating_add(VALIDITY_SECONDS).saturating_add(skew);
        let known = self.of_key.get_mut(&head.keyid).and_then(|epochs| epochs.get_mut(&epoch));
        if let Some(known) = known {
            known.window.commit(seq)?;
            known.until = known.until.max(until);
            return Ok(());
        }
        let of_key = self.of_key.get(&head.keyid).map_or(0, HashMap::len);
        if self.count >= MAX_EPOCHS || of_key >= MAX_EPOCHS_OF_KEY {
            self.forget(now);
        }
        let epochs = self.of_key.get(&head.keyid).map_or(0, HashMap::len);
        if self.count >= MAX_EPOCHS || epochs >= MAX_EPOCHS_OF_KEY {
            return Err(Replay::Full.into());
        }
        let mut window = ReplayWindow::new();
        window.commit(seq)?;
        self.of_key.entry(head.keyid.clone()).or_default().insert(epoch, Epoch { window, until });
        self.count += 1;
        Ok(())
    }

    /// Forgets epochs of which nothing that was seen can come back.
    fn forget(&mut self, now: u64) {
        for epochs in self.of_key.values_mut() {
            epochs.retain(|_, epoch| epoch.until >= now);
        }
        self.of_key.retain(|_, epochs| !epochs.is_empty());
        self.count = self.of_key.values().map(HashMap::len).sum();
    }
}
