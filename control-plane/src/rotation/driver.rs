//! Carries rotations out: reads who is ready, commits the next slots, makes and destroys keys.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use signet_identity::{Fingerprint, MAX_REFUSED_ISSUERS};
use signet_sync::{SectionName, Version};
use thiserror::Error;

use super::survey::{Holder, Presence, Survey, survey};
use super::{PARKED, RotationError, abort, advance, begin, emergency, forget, may_begin};
use crate::app_svid::JWT_LIFETIME;
use crate::authority::slots::{Phase, Rotation, Slots, What, Why};
use crate::authority::{Authority, AuthorityError, constrained, name, new_issuer, new_root, tidied};
use crate::clock::ClockError;
use crate::publish::Published;
use crate::records::{self, Instance, REGISTRATIONS, Registration, SLOTS, TOKENS, unix_seconds};
use crate::replica::Replicas;
use crate::services::Mesh;
use crate::store::{Expect, Revision, Store, StoreError, Write};
use crate::streams::Stream;

/// How often it is looked whether everybody is ready, while a rotation is under way.
const LOOK: Duration = Duration::from_millis(250);

/// How often it is looked for retired roots whose time is over.
const TIDY: Duration = Duration::from_secs(60);

/// How long after its issuer's retirement a key of tokens is told of: until the last token ended, and as long again for
/// clocks that differ.
const JWT_KEY_KEPT: Duration = Duration::from_secs(2 * JWT_LIFETIME.as_secs());

/// How often a change is tried again when another one came first.
const ATTEMPTS_MAX: usize = 16;

/// Why a rotation could not be begun, called off or carried on.
#[derive(Debug, Error)]
pub(crate) enum DriveError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Clock(#[from] ClockError),
    #[error(transparent)]
    Rotation(#[from] RotationError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The slots as stored, and what to expect when they are written; those in force when none were stored yet.
async fn stored(store: &dyn Store, authority: &Authority) -> Result<(Expect, Slots), StoreError> {
    match records::read::<Slots>(store, SLOTS).await? {
        Some(found) => Ok((Expect::At(found.revision), found.record)),
        None => Ok((Expect::Absent, Slots::clone(&authority.slots()))),
    }
}

/// Whoever is connected to another control plane would look as if it was away, and that one lacks the new keys: so one
/// alone rotates.
async fn alone(replicas: &Replicas, now: SystemTime) -> Result<(), DriveError> {
    let serving = replicas.serving(now).await?.len();
    if serving > 1 { Err(RotationError::Replicas(serving).into()) } else { Ok(()) }
}

/// Begins a rotation, or replaces at once.
pub(crate) async fn rotate(mesh: &Mesh, what: What, at_once: bool) -> Result<Revision, DriveError> {
    let (store, authority) = (&*mesh.store, &*mesh.authority);
    let _turn = authority.turn().await;
    alone(&mesh.replicas, mesh.clock.best()).await?;
    for _ in 0..ATTEMPTS_MAX {
        // Nothing is made by a clock that is not believed.
        let now = mesh.clock.issuing().await?;
        let (expect, slots) = stored(store, authority).await?;
        // A proxy refuses as many issuers in all, those of areas that may be revoked among them.
        let refused = slots.issuers.len() + authority.areas().count();
        if what == What::Issuer && refused >= MAX_REFUSED_ISSUERS {
            return Err(RotationError::Issuers.into());
        }
        let under_way = slots.rotation.as_ref().filter(|rotation| rotation.what == what);
        let next = match under_way {
            Some(Rotation { root, issuer, .. }) if at_once => (root.clone(), issuer.clone()),
            // A new root takes whatever issuer was to come with the old one.
            None if at_once && (what == What::Root || slots.rotation.is_none()) => {
                next_pair(authority, what, false, now)?
            }
            _ => {
                may_begin(&slots, what)?;
                next_pair(authority, what, true, now)?
            }
        };
        let registrations = records::list::<Registration>(store, REGISTRATIONS).await?;
        let instances = registrations.iter().map(|found| found.record.instances.len()).sum();
        let mut writes = Vec::new();
        let slots = if at_once {
            if what == What::Root {
                // Every one pins the root that is given up, or one before it.
                let tokens = store.list(TOKENS).await?.entries.into_iter();
                writes.extend(tokens.map(|entry| Write::delete(entry.key, Expect::Any)));
            }
            emergency(&slots, what, next, unix_seconds(now))
        } else {
            begin(&slots, what, next, instances, unix_seconds(now))?
        };
        match commit(store, authority, expect, slots, writes).await {
            Err(DriveError::Store(StoreError::Conflict { .. })) => {}
            outcome => return outcome,
        }
    }
    Err(StoreError::Conflict { key: SLOTS.to_owned() }.into())
}

/// Calls the rotation under way off.
pub(crate) async fn call_off(mesh: &Mesh) -> Result<Revision, DriveError> {
    let (store, authority) = (&*mesh.store, &*mesh.authority);
    let _turn = authority.turn().await;
    for _ in 0..ATTEMPTS_MAX {
        let (expect, slots) = stored(store, authority).await?;
        let slots = abort(&slots, unix_seconds(mesh.clock.best()))?;
        match commit(store, authority, expect, slots, Vec::new()).await {
            Err(DriveError::Store(StoreError::Conflict { .. })) => {}
            outcome => return outcome,
        }
    }
    Err(StoreError::Conflict { key: SLOTS.to_owned() }.into())
}

/// Makes the next pair and stores its keys; nothing uses them before the slots name them. With `vouched`, the root in force
/// gives its word for a new one. What an earlier attempt left behind is replaced.
pub(crate) fn next_pair(
    authority: &Authority,
    what: What,
    vouched: bool,
    now: SystemTime,
) -> Result<(String, String), AuthorityError> {
    let current = authority.current()?;
    let mut keyring = (*authority.keyring()).clone();
    let pair = match what {
        What::Issuer => new_issuer(&current, now, authority.keys())?,
        What::Root => new_root(authority.trust_domain(), now, authority.keys())?,
    };
    let pair = if authority.constrains()? { constrained(&pair, now, authority.keys())? } else { pair };
    let (root, issuer) = (name(pair.root_spki_sha256()), name(pair.issuer_spki_sha256()));
    if what == What::Root && vouched {
        keyring.vouchers.insert(root.clone(), current.vouch_for(&pair, now, now + PARKED)?);
    }
    let slots = authority.slots();
    // What is named stays, also the next issuer of a rotation that an emergency overtakes.
    keyring.pairs = slots.pairs().filter_map(|(root, issuer)| keyring.pair(root, issuer).cloned()).collect();
    keyring.pairs.push(pair);
    authority.keep(keyring)?;
    Ok((root, issuer))
}

/// Commits slots with all that depends on them, takes them over, and destroys the keys that they no longer name.
async fn commit(
    store: &dyn Store,
    authority: &Authority,
    expect: Expect,
    slots: Slots,
    mut writes: Vec<Write>,
) -> Result<Revision, DriveError> {
    writes.push(records::put(SLOTS.to_owned(), expect, &slots)?);
    writes.push(Write::put(records::AUTHORITY, Expect::Any, slots.root.clone().into_bytes()));
    let revision = store.commit(writes).await?;
    authority.adopt(revision, slots)?;
    tidy(authority)?;
    Ok(revision)
}

/// Destroys keys whose part is over.
pub(crate) fn tidy(authority: &Authority) -> Result<(), AuthorityError> {
    match tidied(&authority.keyring(), &authority.slots()) {
        Some(keyring) => authority.keep(keyring),
        None => Ok(()),
    }
}

/// Carries on whatever rotation is under way; never returns.
pub(crate) async fn drive(mesh: Mesh) {
    let mut changes = mesh.authority.changes();
    loop {
        let is_under_way = changes.borrow_and_update().1.rotation.is_some();
        let pause = if is_under_way { LOOK } else { TIDY };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = changes.changed() => continue,
        }
        match step(&mesh).await {
            Ok(()) | Err(DriveError::Store(StoreError::Conflict { .. })) => {}
            Err(error) => tracing::error!(%error, "the rotation cannot go on now; it is tried again"),
        }
    }
}

async fn step(mesh: &Mesh) -> Result<(), DriveError> {
    let (store, authority) = (&*mesh.store, &*mesh.authority);
    let _turn = authority.turn().await;
    let now = unix_seconds(mesh.clock.best());
    let (expect, slots) = stored(store, authority).await?;
    if let Some(forgetful) = forget(&slots, now) {
        return commit(store, authority, expect, forgetful, Vec::new()).await.map(drop);
    }
    if slots.rotation.is_none() {
        return Ok(());
    }
    let Expect::At(revision) = expect else { return Ok(()) };
    alone(&mesh.replicas, mesh.clock.best()).await?;
    let published = mesh.published.borrow().clone();
    // Anchors that were made from older slots tell nothing.
    if published.revision < revision || !look(mesh, &slots, &published).await?.waiting.is_empty() {
        return Ok(());
    }
    let Some(next) = advance(&slots, now) else { return Ok(()) };
    let next = authority.with_former_jwt_keys(next, now.saturating_add(JWT_KEY_KEPT.as_secs()));
    let phase = next.rotation.as_ref().map(|rotation| rotation.phase);
    commit(store, authority, expect, next, Vec::new()).await?;
    tracing::info!(?phase, "the rotation goes on");
    Ok(())
}

/// Who is ready for the next step.
pub(crate) async fn look(mesh: &Mesh, slots: &Slots, published: &Published) -> Result<Survey, StoreError> {
    let registrations = records::list::<Registration>(&*mesh.store, REGISTRATIONS).await?;
    let certifying = match slots.rotation.as_ref().map(|rotation| rotation.phase) {
        Some(Phase::Reissuing | Phase::Returning) => Some(slots.certifying().1),
        _ => None,
    };
    let anchors = published.sections.get(&SectionName::Anchors).map(|section| Version::from(&**section));
    // Certificates from before issuers were recorded are of the first one.
    let is_first = slots.past.is_empty() && slots.issuers.iter().all(|issuer| issuer.why == Why::Returned);
    let unrecorded = is_first.then_some(&*slots.issuer);
    let connected = mesh.streams.of_instances();
    let now = unix_seconds(mesh.clock.best());
    let mut holders = Vec::new();
    for Registration { id, instances } in registrations.into_iter().map(|found| found.record) {
        for instance in instances {
            // Whom an area certified has another issuer for good, and learns of this through the area.
            if instance.area.is_some() || instance.leaves.iter().all(|leaf| leaf.not_after <= now) {
                continue;
            }
            let stream = connected.get(&(id.clone(), instance.first.clone()));
            let presence = stream.map_or_else(
                || Presence::Away(mesh.streams.last_seen(&id, &instance.first).elapsed()),
                |stream| presence(stream, &instance, anchors, unrecorded),
            );
            holders.push(Holder { id: id.clone(), instance: instance.first, presence });
        }
    }
    Ok(survey(holders, certifying))
}

fn presence(
    stream: &Arc<Stream>,
    instance: &Instance,
    anchors: Option<Version>,
    unrecorded: Option<&str>,
) -> Presence {
    let report = stream.report();
    let state = report.sections.iter().find(|section| section.name == SectionName::Anchors);
    let acked = state.and_then(|state| state.acked);
    let in_use = report.status.as_ref().and_then(|status| <[u8; 32]>::try_from(&*status.tls_leaf).ok());
    let in_use = in_use.map_or_else(|| stream.leaf.clone(), |leaf| Fingerprint(leaf).to_string());
    // It may be about to use any that was issued later: only when all of those are of one issuer it is known.
    let later = instance.leaves.iter().skip_while(|leaf| leaf.fingerprint != in_use);
    let mut issuers = later.map(|leaf| leaf.issuer.as_deref().or(unrecorded));
    let issuer = issuers.next().flatten().filter(|first| issuers.all(|issuer| issuer == Some(*first)));
    Presence::Connected {
        protocol: stream.protocol,
        has_anchors: anchors.is_some() && acked >= anchors,
        refused: state.and_then(|state| state.nack.as_ref()).map(|nack| nack.error.clone()),
        issuer: issuer.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::{BoxFuture, join};
    use signet_identity::TrustDomain;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::app_svid;
    use crate::attest::Attestors;
    use crate::authority::Keyring;
    use crate::churn::Churn;
    use crate::claims::Claims;
    use crate::clock::Clock;
    use crate::metrics::Metrics;
    use crate::neighbours::Neighbours;
    use crate::publish::{Compiler, ObservedHabits};
    use crate::registrar::Registrar;
    use crate::store::{Changes, Entry, Listing, MemoryStore};
    use crate::streams::Streams;

    /// A store in which others get their turn before each commit.
    struct Slow(MemoryStore);

    impl Store for Slow {
        fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
            self.0.read(key)
        }

        fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
            self.0.list(prefix)
        }

        fn commit_from(
            &self,
            writes: Vec<Write>,
            least: Revision,
        ) -> BoxFuture<'_, Result<Revision, StoreError>> {
            Box::pin(async move {
                tokio::task::yield_now().await;
                self.0.commit_from(writes, least).await
            })
        }

        fn watch<'a>(
            &'a self,
            prefix: &'a str,
            after: Revision,
        ) -> BoxFuture<'a, Result<Changes, StoreError>> {
            self.0.watch(prefix, after)
        }
    }

    async fn mesh(store: Arc<dyn Store>, authority: Arc<Authority>) -> Mesh {
        let (streams, metrics) = (Arc::new(Streams::new()), Arc::new(Metrics::new()));
        let habits = Arc::new(ObservedHabits::default());
        let clock = Arc::new(Clock::open(store.clone(), streams.clone(), None, false).await.unwrap());
        let alone = Neighbours::none(authority.trust_domain().clone());
        let compiler = Compiler::start(
            store.clone(),
            authority.clone(),
            clock.clone(),
            metrics.clone(),
            habits.clone(),
            alone,
        );
        Mesh {
            attestors: Attestors::default(),
            registrar: Registrar::new(store.clone(), authority.clone()),
            published: compiler.await.unwrap().subscribe(),
            app_svids: Arc::new(Churn::new(app_svid::BURST, app_svid::REFILL)),
            churn: Arc::new(Churn::default()),
            claims: Arc::new(Claims::new(store.clone(), String::new())),
            draining: CancellationToken::new(),
            followed: false,
            frames: Arc::default(),
            replicas: Arc::new(Replicas::alone(store.clone())),
            authority,
            clock,
            habits,
            metrics,
            store,
            streams,
        }
    }

    #[tokio::test]
    async fn of_two_who_rotate_at_the_same_time_one_is_refused_and_no_key_is_lost() {
        for at_once in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let domain = TrustDomain::parse("mesh.example").unwrap();
            let authority = Authority::create(directory.path(), &domain, SystemTime::now()).unwrap();
            let mesh = mesh(Arc::new(Slow(MemoryStore::new())), Arc::new(authority)).await;
            // Always polled in this order, so that the other one's keys come between the one's keys and its commit.
            let (one, other) =
                join(rotate(&mesh, What::Root, at_once), rotate(&mesh, What::Issuer, false)).await;
            one.unwrap();
            // An emergency is over at once, and the other one is taken up behind it.
            assert_eq!(other.is_ok(), at_once, "{other:?}");
            let (_, slots) = stored(&*mesh.store, &mesh.authority).await.unwrap();
            let kept = Keyring::load(directory.path(), &domain).unwrap().unwrap();
            assert!(slots.pairs().all(|(root, issuer)| kept.pair(root, issuer).is_some()));
            assert_eq!(*mesh.authority.slots(), slots);
        }
    }

    #[tokio::test]
    async fn only_a_control_plane_that_serves_alone_rotates() {
        let (store, now) = (Arc::new(MemoryStore::new()), SystemTime::now());
        alone(&Replicas::alone(store.clone()), now).await.unwrap();
        let [one, other] = [(); 2].map(|()| Replicas::one_of_several(store.clone()).unwrap());
        one.beat(now).await.unwrap();
        alone(&one, now).await.unwrap();
        other.beat(now).await.unwrap();
        let refused = alone(&one, now).await.unwrap_err();
        assert!(refused.to_string().starts_with("2 control planes serve this store"), "{refused}");
        other.leave().await.unwrap();
        alone(&one, now).await.unwrap();
    }
}
