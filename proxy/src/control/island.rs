//! On its own: how long ago the control plane last said that nothing held here is out of date, and what is kept of that and
//! of the time for a restart.
//!
//! What it says is signed, and names the newest policy and revocations. It counts only if those are held: a proxy that
//! refused the newest policy grows stale while it is connected. After a restart the saved word counts as of the moment it
//! names; set back, it can only be older. Heard through an area, which passes it on, it counts as of that moment too: an area
//! that says an old one again brings nobody nearer to the origin.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use signet_sync::proto::sync as wire;
use signet_sync::{SAID_NOW_MS, Subscriber};
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use crate::clock::{self, Heard, Saved};
use crate::control::Node;
use crate::control::state::State;

/// How often what is known of the time is saved: a machine without a clock that loses power goes on from at most this long
/// before. Often enough for bounds of minutes, seldom enough for a memory card.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);

/// When the control plane last said that what is held is the newest; milliseconds since 1970, 0 for never.
#[derive(Debug, Default)]
pub struct Contact(AtomicU64);

impl Contact {
    /// How long ago, in seconds; none when it never did.
    pub fn age_s(&self, now_ms: u64) -> Option<u64> {
        let at = self.0.load(Ordering::Relaxed);
        (at > 0).then(|| now_ms.saturating_sub(at) / 1000)
    }

    fn at(&self, ms: u64) {
        self.0.fetch_max(ms, Ordering::Relaxed);
    }
}

/// What a proxy knows of being on its own.
#[derive(Default)]
pub(super) struct Island {
    contact: Arc<Contact>,
    words: Mutex<Words>,
    /// There is something new to save.
    save: Notify,
    /// The present stream is, or may be, an area's, which passes on what the origin said.
    relayed: AtomicBool,
}

/// What the control plane said.
#[derive(Default)]
struct Words {
    /// Last on the present stream, and whether its time was believed.
    heard: Option<(wire::Freshness, bool)>,
    /// The last one that held, and whose time was believed.
    held: Option<wire::Freshness>,
}

impl Island {
    pub(super) fn contact(&self) -> &Arc<Contact> {
        &self.contact
    }

    /// What an earlier process saved, as far as it verifies and was said of what is held.
    pub(super) fn restore(state: &State, subscriber: &Subscriber) -> Option<Self> {
        let said = state.load_freshness()?;
        match subscriber.is_newest(&said) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => {
                tracing::warn!(%error, "the saved word of the control plane is not believed");
                return None;
            }
        }
        // It was said, so that much time has passed.
        clock::passed(UNIX_EPOCH + Duration::from_millis(said.unix_ms));
        let island = Self::default();
        island.contact.at(said.unix_ms);
        island.words().held = Some(said);
        Some(island)
    }

    /// What a start without the control plane needs beside the sections.
    pub(super) fn to_save(&self) -> (Saved, Option<wire::Freshness>) {
        (clock::save(), self.words().held.clone())
    }

    /// Whether what is heard on the stream that was just opened may be passed on.
    pub(super) fn follows(&self, relayed: bool) {
        self.relayed.store(relayed, Ordering::Relaxed);
    }

    fn words(&self) -> std::sync::MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// Takes up a word of the control plane, on the stream that proved who it is.
    pub(super) fn hear(&self, subscriber: &Subscriber, said: wire::Freshness) {
        if let Err(error) = subscriber.is_newest(&said) {
            tracing::warn!(%error, "what the control plane says of the time is not believed");
            return;
        }
        // An old word says nothing of the time that has not passed.
        let is_again = self.island.relayed.load(Ordering::Relaxed)
            && self.island.words().heard.as_ref().is_some_and(|(last, _)| last.unix_ms >= said.unix_ms);
        if is_again {
            return;
        }
        if said.kept_ms > SAID_NOW_MS {
            self.island.words().heard = Some((said, false));
            return self.confirm(subscriber);
        }
        let heard = clock::hear(said.unix_ms);
        self.island.words().heard = Some((said, heard == Heard::Believed));
        match heard {
            Heard::Believed => {}
            Heard::Behind(ms) => tracing::warn!(
                behind_s = ms / 1000,
                "the control plane's clock is behind time that certainly passed; it is not followed"
            ),
            Heard::Doubted(ms) => tracing::warn!(
                ahead_s = ms / 1000,
                "the control plane's clock has jumped and this machine's has not; it is not followed"
            ),
        }
        self.confirm(subscriber);
    }

    /// Notes the contact if what the control plane said last is true of what is held now.
    pub(super) fn confirm(&self, subscriber: &Subscriber) {
        let mut words = self.island.words();
        let Some((said, believed)) = words.heard.clone() else { return };
        if !subscriber.is_newest(&said).unwrap_or(false) {
            return;
        }
        // Heard just now, whatever the control plane's clock says; unless somebody in between may have kept it.
        let now = clock::unix_ms();
        let relayed = self.island.relayed.load(Ordering::Relaxed);
        self.island.contact.at(if relayed { now.min(said.unix_ms) } else { now });
        if believed && words.held.replace(said).is_none() {
            self.island.save.notify_one();
        }
    }
}

/// Saves what is known of the time now and then, for ever.
pub(super) async fn keep(node: &Node) -> Infallible {
    let mut ticks = tokio::time::interval(SAVE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = node.island.save.notified() => {}
        }
        let Some(state) = node.origin.state.clone() else { return std::future::pending().await };
        let (saved, said) = node.island.to_save();
        // A sync to a slow card must not hold up the admin endpoints on this thread.
        let saving = tokio::task::spawn_blocking(move || state.save_clock(&saved, said.as_ref()));
        if let Ok(Err(error)) = saving.await {
            node.origin.failed("saving the clock", &error);
        }
    }
}
