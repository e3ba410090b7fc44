//! Roles that workloads give each other, as far as policy entitles them to.
//!
//! An appointment is recorded with who made it, and becomes a role grant of every policy that is published until its
//! time is over or its appointer is no longer entitled; see [`effective`]. Revoking the appointer takes its appointments away in the same commit.

use std::sync::Arc;
use std::time::SystemTime;

use signet_identity::SpiffeId;
use signet_policy::{MAX_ROLE_GRANTS, PolicyModel, RoleGrantModel};
use thiserror::Error;

use crate::caller::Caller;
use crate::records::{self, APPOINTMENTS, Appointment, Found, Registration, registration_key, unix_seconds};
use crate::registrar::{Registrar, RegistrarError};
use crate::store::{Expect, Store, StoreError, Write};

/// Appointments of one identity that count at once: a leader has a backup and a few helpers.
const OWN_MAX: usize = 64;

/// How often a write is tried again when others write at the same time.
const ATTEMPTS_MAX: usize = 64;

/// Bytes of a role's name, so that a peer's text is not stored whatever its length.
const ROLE_MAX: usize = 253;

/// What an appointer asks for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) role: String,
    pub(crate) identity: SpiffeId,
    /// Unix seconds; none to end the appointment.
    pub(crate) not_after: Option<u64>,
}

/// Why nobody was appointed.
#[derive(Debug, Error)]
pub(crate) enum AppointError {
    #[error("too many others change the same records, try again")]
    Busy,
    #[error("as many appointments are in force as there may be; end some, or wait until some end")]
    Full,
    #[error("no RoleAppointer entitles this identity to give this role to that one")]
    NotEntitled,
    #[error("`notAfter` is over already")]
    Over,
    #[error(transparent)]
    Registrar(#[from] RegistrarError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AppointError {
    /// A stable name for metrics, logs and the caller.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Full => "appointments-exhausted",
            Self::NotEntitled => "not-entitled",
            Self::Over => "over",
            Self::Registrar(error) => error.code(),
            Self::Store(_) => "store-unavailable",
        }
    }
}

/// Records what a verified peer wants. Returns the end of the appointment, which policy may have brought forward; zero
/// for one that was ended.
pub(crate) async fn appoint(
    store: &Arc<dyn Store>,
    registrar: &Registrar,
    peer: &Caller,
    wish: &Wish,
    model: &PolicyModel,
    now: SystemTime,
) -> Result<u64, AppointError> {
    let at = unix_seconds(now);
    for _ in 0..ATTEMPTS_MAX {
        let known = registrar.known(peer, model, now).await?;
        // A revocation writes this record: one that comes in between makes the commit fail.
        let registration = registration_key(peer.id());
        let Some(found) = records::read::<Registration>(&**store, &registration).await? else {
            return Err(RegistrarError::Unknown.into());
        };
        if found.record.instances.iter().all(|instance| instance.first != known.instance) {
            continue;
        }
        let mut writes = vec![records::put(registration, Expect::At(found.revision), &found.record)?];
        let key = Appointment::key(&wish.role, &wish.identity, peer.id());
        let all = records::list::<Appointment>(&**store, APPOINTMENTS).await?;
        let before = records::read::<Appointment>(&**store, &key).await?;
        let not_after = match wish.not_after {
            None => {
                if before.is_some() {
                    writes.push(Write::delete(key, records::unchanged(before.as_ref())));
                }
                0
            }
            Some(wanted) => {
                if wish.role.len() > ROLE_MAX {
                    return Err(AppointError::NotEntitled);
                }
                let latest = model.appointed_until(peer.id(), &wish.role, &wish.identity, at, at);
                let not_after = wanted.min(latest.ok_or(AppointError::NotEntitled)?);
                if not_after <= at {
                    return Err(AppointError::Over);
                }
                let lasting = all.iter().filter(|found| found.record.not_after > at);
                let own = lasting.clone().filter(|found| found.record.by == *peer.id()).count();
                if before.is_none() && (own >= OWN_MAX || lasting.count() >= MAX_ROLE_GRANTS) {
                    return Err(AppointError::Full);
                }
                let appointment = Appointment {
                    role: wish.role.clone(),
                    identity: wish.identity.clone(),
                    by: peer.id().clone(),
                    instance: known.instance,
                    appointed_at: at,
                    not_after,
                };
                writes.push(records::put(key, records::unchanged(before.as_ref()), &appointment)?);
                not_after
            }
        };
        match store.commit(writes).await {
            Ok(_) => return Ok(not_after),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(AppointError::Busy)
}

/// The policy with the appointments that count now, and those that count no longer: whose time is over, or whose
/// appointer is no longer entitled. They do not come back.
pub(crate) fn effective(
    model: &Arc<PolicyModel>,
    made: Vec<Found<Appointment>>,
    now: u64,
) -> (Arc<PolicyModel>, Vec<Found<Appointment>>) {
    let mut grants = Vec::new();
    let mut dead = Vec::new();
    for found in made {
        let Appointment { role, identity, by, appointed_at, not_after, .. } = &found.record;
        let latest = model.appointed_until(by, role, identity, *appointed_at, now);
        match latest.map(|latest| latest.min(*not_after)).filter(|end| *end > now) {
            Some(not_after) => grants.push(RoleGrantModel {
                name: format!("by {by}"),
                identity: identity.clone(),
                role: role.clone(),
                not_after,
            }),
            None => dead.push(found),
        }
    }
    if grants.is_empty() {
        return (Arc::clone(model), dead);
    }
    let mut effective = PolicyModel::clone(model);
    effective.role_grants.extend(grants);
    (Arc::new(effective), dead)
}

/// Forgets appointments that are dead. One that was made anew meanwhile stays.
pub(crate) async fn bury(store: &dyn Store, dead: &[Found<Appointment>]) -> Result<(), StoreError> {
    for found in dead {
        let write = Write::delete(found.record.own_key(), Expect::At(found.revision));
        match store.commit(vec![write]).await {
            Ok(_) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The writes that take away what an identity, or one instance of it, appointed, and what it was appointed to itself.
pub(crate) async fn without(
    store: &dyn Store,
    id: &SpiffeId,
    instance: Option<&str>,
) -> Result<Vec<Write>, StoreError> {
    let all = records::list::<Appointment>(store, APPOINTMENTS).await?;
    let concerned = all.iter().filter(|found| match instance {
        Some(instance) => found.record.by == *id && found.record.instance == instance,
        None => found.record.by == *id || found.record.identity == *id,
    });
    Ok(concerned.map(|found| Write::delete(found.record.own_key(), Expect::At(found.revision))).collect())
}

#[cfg(test)]
mod tests;
