//! Rotating root or issuer, as a state machine without I/O: what the slots are next, given what they are and who is ready.
//!
//! ```text
//!                 begin                 all ready               all ready
//!   in force ──────────► Distributing ───────────► Reissuing ───────────► in force: the next
//!      ▲                      │ abort                 │ abort
//!      ├──────────────────────┘                       ▼
//!      └────────────────────────────────────────── Returning
//!                         all ready
//! ```
//!
//! *Ready* ([`survey`]) is every instance that is connected, or was a moment ago: it has acknowledged the anchors in force
//! and, where certificates change, uses one of the issuer that certifies. Who is not connected for longer is parked: it holds
//! nothing up, and comes back by the word of the old root for the new one. Only retirement cannot be undone.
//!
//! [`driver`] reads who is ready, commits the next slots, and makes and destroys the keys: made before the slots name them,
//! destroyed after they no longer do. So a process that dies anywhere finds a state that it can go on from.

use std::time::Duration;

use signet_identity::MAX_REFUSED_ISSUERS;
use thiserror::Error;

use crate::authority::slots::{
    Ended, Outcome, Phase, RetiredIssuer, RetiredRoot, Rotation, Slots, What, Why,
};

pub(crate) mod driver;
pub(crate) mod survey;

#[cfg(test)]
mod tests;

/// How long a retired root vouches for those after it, and how long who held on to it is known: the longest life of a join
/// token, so that each comes to its own end first.
pub(crate) const PARKED: Duration = Duration::from_secs(366 * 24 * 3600);

/// Retired roots that are kept: a chain has room for the word of two, and one more may have gone in an emergency.
pub(crate) const RETIRED_MAX: usize = 3;

/// Retired roots that vouch for the one in force: with leaf and issuer they make the longest chain, four.
pub(crate) const VOUCHERS_MAX: usize = 2;

/// Roots that are remembered by name.
const PAST_MAX: usize = 64;

/// Renewals a second that a rotation causes at most: each is two signatures and a durable write.
const RENEWALS_PER_SECOND: usize = 200;

/// The longest time that renewals are spread over.
const RENEW_WITHIN_MAX: u32 = 600;

/// Why a rotation cannot be begun or called off.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub(crate) enum RotationError {
    #[error("a rotation is under way; `signet rotate status` shows it, `signet rotate abort` calls it off")]
    UnderWay,
    #[error("no rotation is under way")]
    None,
    #[error("it is being called off already")]
    Returning,
    #[error(
        "{0} control planes serve this store, and each sees only its own proxies: stop all but one, rotate, \
         give the others its authority.pem, and start them again"
    )]
    Replicas(usize),
    #[error("as many issuers were retired under this root as a proxy can remember; rotate the root instead")]
    Issuers,
}

/// Begins a rotation to a pair whose keys exist.
pub(crate) fn begin(
    slots: &Slots,
    what: What,
    next: (String, String),
    instances: usize,
    now: u64,
) -> Result<Slots, RotationError> {
    may_begin(slots, what)?;
    let (root, issuer) = next;
    let seconds = instances.div_ceil(RENEWALS_PER_SECOND).saturating_sub(1);
    let renew_within = u32::try_from(seconds).unwrap_or(u32::MAX).min(RENEW_WITHIN_MAX);
    let rotation = Rotation { what, root, issuer, phase: Phase::Distributing, began: now, renew_within };
    Ok(Slots { rotation: Some(rotation), number: slots.number + 1, ..slots.clone() })
}

/// Whether one may be begun: asked before keys are made for it.
pub(crate) fn may_begin(slots: &Slots, what: What) -> Result<(), RotationError> {
    if slots.rotation.is_some() {
        return Err(RotationError::UnderWay);
    }
    if what == What::Issuer && slots.issuers.len() >= MAX_REFUSED_ISSUERS {
        return Err(RotationError::Issuers);
    }
    Ok(())
}

/// The next step of the rotation under way; call it when everybody is ready.
pub(crate) fn advance(slots: &Slots, now: u64) -> Option<Slots> {
    let rotation = slots.rotation.as_ref()?;
    match rotation.phase {
        Phase::Distributing => {
            let rotation = Rotation { phase: Phase::Reissuing, ..rotation.clone() };
            Some(Slots { rotation: Some(rotation), ..slots.clone() })
        }
        Phase::Reissuing => Some(finished(slots, rotation, Why::Planned, now)),
        Phase::Returning => Some(returned(slots, rotation, now)),
    }
}

/// Calls the rotation under way off.
pub(crate) fn abort(slots: &Slots, now: u64) -> Result<Slots, RotationError> {
    let rotation = slots.rotation.as_ref().ok_or(RotationError::None)?;
    match rotation.phase {
        // Nothing was certified by the next issuer.
        Phase::Distributing => {
            let last = ended(slots, rotation.what, Outcome::Reversed, now);
            Ok(Slots { rotation: None, last, ..slots.clone() })
        }
        Phase::Reissuing => {
            let rotation = Rotation { phase: Phase::Returning, ..rotation.clone() };
            Ok(Slots { rotation: Some(rotation), ..slots.clone() })
        }
        Phase::Returning => Err(RotationError::Returning),
    }
}

/// Replaces what is in force at once, by a pair whose keys exist. A rotation of the same kind that is under way ends with
/// it; one of an issuer is given up for a new root.
pub(crate) fn emergency(slots: &Slots, what: What, next: (String, String), now: u64) -> Slots {
    let (root, issuer) = next;
    let rotation = Rotation {
        what,
        root,
        issuer,
        phase: Phase::Reissuing,
        began: now,
        // The sooner the better: until it has a new one a proxy has no certificate at all.
        renew_within: 0,
    };
    let number = slots.number + u64::from(slots.rotation.is_none());
    // Whoever had the key may have had those before it.
    let slots = Slots { number, former_jwt_keys: Vec::new(), ..slots.clone() };
    finished(&slots, &rotation, Why::Emergency, now)
}

/// Forgets retired roots, and keys of tokens, whose time is over; `None` when there is none.
pub(crate) fn forget(slots: &Slots, now: u64) -> Option<Slots> {
    let stays = slots.retired.iter().all(|retired| retired.until > now)
        && slots.former_jwt_keys.iter().all(|former| former.until > now);
    if stays {
        return None;
    }
    let mut slots = slots.clone();
    slots.former_jwt_keys.retain(|former| former.until > now);
    slots.retired.retain(|retired| retired.until > now);
    drop_issuers_without_root(&mut slots);
    Some(slots)
}

/// The next pair is in force, the last one retired.
fn finished(slots: &Slots, rotation: &Rotation, why: Why, now: u64) -> Slots {
    let mut next = Slots {
        root: rotation.root.clone(),
        issuer: rotation.issuer.clone(),
        rotation: None,
        last: ended(
            slots,
            rotation.what,
            if why == Why::Emergency { Outcome::Emergency } else { Outcome::Completed },
            now,
        ),
        ..slots.clone()
    };
    match rotation.what {
        What::Root => {
            if why == Why::Emergency {
                // What it vouched for, and what vouched for it, is worth no more than itself.
                next.retired.iter_mut().for_each(|retired| retired.why = Why::Emergency);
                next.distrusted.insert(0, slots.root.clone());
                next.distrusted.truncate(PAST_MAX);
            }
            retire_root(&mut next, slots.root.clone(), why, now);
            next.past.insert(0, slots.root.clone());
            next.past.truncate(PAST_MAX);
        }
        What::Issuer => retire_issuer(&mut next, slots.issuer.clone(), slots.root.clone(), why),
    }
    drop_issuers_without_root(&mut next);
    next
}

/// The pair in force stays so; the next one is retired, for some may hold its certificates.
fn returned(slots: &Slots, rotation: &Rotation, now: u64) -> Slots {
    let last = ended(slots, rotation.what, Outcome::Reversed, now);
    let mut next = Slots { rotation: None, last, ..slots.clone() };
    match rotation.what {
        What::Root => retire_root(&mut next, rotation.root.clone(), Why::Returned, now),
        What::Issuer => retire_issuer(&mut next, rotation.issuer.clone(), slots.root.clone(), Why::Returned),
    }
    next
}

fn retire_root(slots: &mut Slots, root: String, why: Why, now: u64) {
    let until = now.saturating_add(PARKED.as_secs());
    slots.retired.insert(0, RetiredRoot { root, until, why });
    slots.retired.truncate(RETIRED_MAX);
}

fn retire_issuer(slots: &mut Slots, issuer: String, root: String, why: Why) {
    slots.issuers.insert(0, RetiredIssuer { issuer, root, why });
}

/// An issuer is nothing without its root, so what is known of it need not be kept longer.
fn drop_issuers_without_root(slots: &mut Slots) {
    let roots: Vec<String> = slots.roots().map(str::to_owned).collect();
    let retired = &slots.retired;
    let is_kept = |root: &String| roots.contains(root) || retired.iter().any(|kept| kept.root == *root);
    slots.issuers.retain(|issuer| is_kept(&issuer.root));
}

fn ended(slots: &Slots, what: What, outcome: Outcome, at: u64) -> Option<Ended> {
    Some(Ended { number: slots.number, what, outcome, at })
}
