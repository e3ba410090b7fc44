//! Who may hold which identity: enrolment by token or attestor, renewal by certificate.
//!
//! Certificates leave this file only after the store has durably recorded them: a token that was consumed stays
//! consumed, and a certificate the mesh may meet is one that can be revoked.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use signet_identity::{Class, Fingerprint, IssueError, Peer, SpiffeId, requested_point};
use signet_policy::PolicyModel;
use thiserror::Error;

use crate::area::chains;
use crate::attest::Attested;
use crate::authority::{Authority, AuthorityError, BACKDATE, Issuing};
use crate::caller::Caller;
use crate::records::{
    self, Found, Instance, Leaf, RESTORED, REVOKED_HOLDERS, Registration, Restored, Subject, Token,
    registration_key, unix_seconds,
};
use crate::revocation::LONGEST_LIFE;
use crate::store::{Store, StoreError, Write};
use crate::token;
use crate::tpm;

/// Instances of one identity: the replicas of a large service.
const INSTANCES_MAX: usize = 1_024;

/// Unexpired certificates of one instance. A proxy needs two at a time, and a few more when answers get lost. All of them
/// are remembered, so that all of them can be revoked: whoever has this many has to wait until some end.
const LEAVES_MAX: usize = 64;

/// Certificates of one instance that have ended and may still get it new ones: the last that it received is among the last
/// that were issued, unless as many answers were lost.
const ENDED_LEAVES_MAX: usize = 8;

/// How often a write is tried again when others write the same record at the same time.
const ATTEMPTS_MAX: usize = 64;

/// The longest id of a token, so that a peer's text is not looked up whatever its length.
const TOKEN_ID_MAX: usize = 64;

/// The two certification requests of a proxy, PKCS#10 in DER. Only their public keys are taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requests<'a> {
    pub(crate) tls: &'a [u8],
    pub(crate) signing: &'a [u8],
}

/// What a proxy gets.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    pub(crate) id: SpiffeId,
    pub(crate) network: String,
    pub(crate) tls_chain: Vec<CertificateDer<'static>>,
    pub(crate) signing_chain: Vec<CertificateDer<'static>>,
    leaf: Leaf,
}

/// An instance that is known: who it is and where it may be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Known {
    /// Fingerprint of its first certificate, its name for good.
    pub(crate) instance: String,
    pub(crate) network: String,
}

/// Enrols and renews. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Registrar {
    store: Arc<dyn Store>,
    authority: Arc<Authority>,
}

impl Registrar {
    pub(crate) fn new(store: Arc<dyn Store>, authority: Arc<Authority>) -> Self {
        Self { store, authority }
    }

    /// Turns a use of a token into certificates for the identity it was made for.
    pub(crate) async fn enrol(
        &self,
        token_id: &str,
        secret: &[u8],
        requests: Requests<'_>,
        model: &PolicyModel,
        now: SystemTime,
    ) -> Result<Issued, RegistrarError> {
        let mut issued = None;
        for _ in 0..ATTEMPTS_MAX {
            let found = self.known_token(token_id, secret).await?;
            declared(model, &found.record.id)?;
            let registration = self.registration(&found.record.id).await?;
            self.refuse_revoked(&found.record.id, None).await?;
            token::usable(&found.record, now).map_err(RegistrarError::Token)?;
            let issued = match &issued {
                Some(issued) => issued,
                None => issued.insert(self.issue(
                    &found.record.id,
                    &found.record.network,
                    (requests, None),
                    model,
                    now,
                )?),
            };
            let used = Token { uses: found.record.uses - 1, ..found.record.clone() };
            let rejoin = rejoin_of(model, &found.record.id);
            let Some(enrolled) =
                with_instance(registration.as_ref(), token_id, &found.record, issued, rejoin, now)
            else {
                // Somebody else may have used the token up between the two reads: then that is the reason to give.
                let found = self.known_token(token_id, secret).await?;
                token::usable(&found.record, now).map_err(RegistrarError::Token)?;
                return Err(RegistrarError::Instances);
            };
            let mut writes = vec![
                records::put(records::token_key(token_id), records::unchanged(Some(&found)), &used)?,
                records::put(
                    registration_key(&used.id),
                    records::unchanged(registration.as_ref()),
                    &enrolled,
                )?,
            ];
            writes.extend(self.chains(issued)?);
            match self.store.commit(writes).await {
                Ok(_) => return Ok(issued.clone()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(RegistrarError::Busy)
    }

    /// Certificates for whom an attestor knows. A holder has one instance, however often it enrols: one that starts again
    /// gets a certificate more, and takes nobody's place.
    pub(crate) async fn admit(
        &self,
        attested: &Attested,
        requests: Requests<'_>,
        model: &PolicyModel,
        now: SystemTime,
    ) -> Result<Issued, RegistrarError> {
        declared(model, &attested.id)?;
        let mut issued = None;
        for _ in 0..ATTEMPTS_MAX {
            let registration = self.registration(&attested.id).await?;
            self.refuse_revoked(&attested.id, None).await?;
            if self.store.read(&format!("{REVOKED_HOLDERS}{}", attested.holder)).await?.is_some() {
                return Err(RegistrarError::Revoked);
            }
            let issued = match &issued {
                Some(issued) => issued,
                None => {
                    let requests = (requests, attested.device.as_ref());
                    issued.insert(self.issue(&attested.id, &attested.network, requests, model, now)?)
                }
            };
            let rejoin = rejoin_of(model, &attested.id);
            let admitted = with_holder(registration.as_ref(), attested, issued, rejoin, now)?;
            let key = registration_key(&attested.id);
            let mut writes = vec![records::put(key, records::unchanged(registration.as_ref()), &admitted)?];
            writes.extend(self.chains(issued)?);
            match self.store.commit(writes).await {
                Ok(_) => return Ok(issued.clone()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(RegistrarError::Busy)
    }

    /// Gives the holder of a certificate new ones for the same identity.
    pub(crate) async fn renew(
        &self,
        peer: &Caller,
        requests: Requests<'_>,
        model: &PolicyModel,
        now: SystemTime,
    ) -> Result<Issued, RegistrarError> {
        let rejoin = rejoin_of(model, peer.id());
        if peer.not_after() + rejoin <= now {
            return Err(RegistrarError::Expired);
        }
        // Whoever took the device over for a while must not take its certificate for channels away with a key of his own.
        let device = peer.device();
        if device.is_some() && requested_point(requests.tls).ok() != peer.point() {
            return Err(RegistrarError::OtherKey);
        }
        declared(model, peer.id())?;
        self.adopt(peer, model, now).await?;
        self.take_in(peer, model, now).await?;
        // Judged as of its last moment, for one that has ended.
        let judged_at = now.min(peer.not_after());
        let is_believed = peer.area().is_none() || peer.is_believed_by(&self.authority.bundle()?, judged_at);
        let mut issued = None;
        for _ in 0..ATTEMPTS_MAX {
            self.refuse_revoked(peer.id(), Some(peer.fingerprint())).await?;
            let Some(found) = self.registration(peer.id()).await? else { return Err(self.gone(peer).await) };
            let mut renewed = found.record.clone();
            forget_expired(&mut renewed, rejoin, now);
            let Some(instance) = holder(&mut renewed, peer.fingerprint()) else {
                return Err(self.gone(peer).await);
            };
            if instance.leaves.iter().filter(|leaf| is_in_force(leaf, now)).count() >= LEAVES_MAX {
                return Err(RegistrarError::Renewals);
            }
            let issued = match &issued {
                Some(issued) => issued,
                None => {
                    let shown = peer.fingerprint().to_string();
                    let shown = instance.leaves.iter().find(|leaf| leaf.fingerprint == shown);
                    let issuing =
                        self.authority.issuing_for(shown.and_then(|leaf| leaf.issuer.as_deref()))?;
                    let network = &instance.network;
                    issued.insert(certify(
                        &issuing,
                        peer.id(),
                        network,
                        (requests, device.as_ref()),
                        model,
                        now,
                    )?)
                }
            };
            // Not even the handshake refuses the issuer of an area that was revoked.
            if instance.area.is_some() && !is_believed {
                return Err(RegistrarError::Revoked);
            }
            instance.leaves.push(issued.leaf.clone());
            let key = registration_key(peer.id());
            let mut writes = vec![records::put(key, records::unchanged(Some(&found)), &renewed)?];
            writes.extend(self.chains(issued)?);
            match self.store.commit(writes).await {
                Ok(_) => return Ok(issued.clone()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(RegistrarError::Busy)
    }

    /// The instance behind a verified peer, unless it is unknown or revoked or its workload left the mesh.
    pub(crate) async fn known(
        &self,
        peer: &Caller,
        model: &PolicyModel,
        now: SystemTime,
    ) -> Result<Known, RegistrarError> {
        declared(model, peer.id())?;
        self.refuse_revoked(peer.id(), Some(peer.fingerprint())).await?;
        self.adopt(peer, model, now).await?;
        self.take_in(peer, model, now).await?;
        let Some(found) = self.registration(peer.id()).await? else { return Err(self.gone(peer).await) };
        let mut registration = found.record;
        let Some(instance) = holder(&mut registration, peer.fingerprint()) else {
            return Err(self.gone(peer).await);
        };
        Ok(Known { instance: instance.first.clone(), network: instance.network.clone() })
    }

    /// Whether a peer that was [`Self::known`] may still be served: its workload is declared, it and its identity are not
    /// revoked, and its instance has a certificate that has not ended. The one it connected with may have, after a renewal.
    pub(crate) async fn still_known(
        &self,
        peer: &Peer,
        instance: &str,
        model: &PolicyModel,
        now: SystemTime,
    ) -> Result<(), RegistrarError> {
        declared(model, peer.id())?;
        self.refuse_revoked(peer.id(), Some(peer.fingerprint())).await?;
        let Some(found) = self.registration(peer.id()).await? else { return Err(self.gone(peer).await) };
        let mut instances = found.record.instances.iter();
        let Some(instance) = instances.find(|candidate| candidate.first == instance) else {
            return Err(self.gone(peer).await);
        };
        let alive = instance.leaves.iter().any(|leaf| leaf.not_after > unix_seconds(now));
        if alive { Ok(()) } else { Err(RegistrarError::Expired) }
    }

    /// Why the instance of a peer is not there: a revocation that was committed since it was looked for took it away, or
    /// there was none.
    async fn gone(&self, peer: &Peer) -> RegistrarError {
        let revoked = self.refuse_revoked(peer.id(), Some(peer.fingerprint())).await;
        revoked.err().unwrap_or(RegistrarError::Unknown)
    }

    /// After a restore: takes up an instance whose certificate was issued between the backup and the restore. The issuer
    /// certified it, so it was recorded; the record is what was lost. Whatever was issued since the restore is recorded, and
    /// an instance that was revoked since is refused before. Only keys in force are taken at their word: with a retired one,
    /// which may be a thief's, anything can be certified and dated back. No certificate from before the restore outlives
    /// [`LONGEST_LIFE`] after it.
    async fn adopt(&self, peer: &Caller, model: &PolicyModel, now: SystemTime) -> Result<(), RegistrarError> {
        let restored = records::read::<Restored>(&*self.store, RESTORED).await?;
        let Some(restored) = restored.map(|found| found.record) else { return Ok(()) };
        if unix_seconds(peer.not_before() + BACKDATE) > restored.at
            || peer.not_after() <= now
            || unix_seconds(now) > restored.at.saturating_add(LONGEST_LIFE.as_secs())
        {
            return Ok(());
        }
        for _ in 0..ATTEMPTS_MAX {
            let found = self.registration(peer.id()).await?;
            let mut registration = found.as_ref().map_or_else(
                || Registration { id: peer.id().clone(), instances: Vec::new() },
                |found| found.record.clone(),
            );
            if holder(&mut registration, peer.fingerprint()).is_some() {
                return Ok(());
            }
            if !peer.is_believed_by(&self.authority.bundle()?, now) {
                return Ok(());
            }
            forget_expired(&mut registration, rejoin_of(model, peer.id()), now);
            let network = model.workload(peer.id()).map(|workload| workload.network.clone());
            let (Some(network), true) = (network, registration.instances.len() < INSTANCES_MAX) else {
                return Ok(());
            };
            let fingerprint = peer.fingerprint().to_string();
            tracing::warn!(id = %peer.id(), fingerprint, "taken up: enrolled or renewed after the backup that was restored");
            let not_after = unix_seconds(peer.not_after());
            let leaf = Leaf { fingerprint: fingerprint.clone(), signing: None, issuer: None, not_after };
            let token = peer.device().map_or_else(|| RESTORED.to_owned(), |device| tpm::holder(&device));
            match of_device(&mut registration, peer) {
                Some(known) => known.leaves.push(leaf),
                None => registration.instances.push(Instance {
                    first: fingerprint,
                    token,
                    network,
                    leaves: vec![leaf],
                    area: None,
                    came: Vec::new(),
                }),
            }
            self.refuse_revoked(peer.id(), Some(peer.fingerprint())).await?;
            let key = registration_key(peer.id());
            let write = records::put(key, records::unchanged(found.as_ref()), &registration)?;
            match self.store.commit(vec![write]).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(RegistrarError::Busy)
    }

    /// Takes in a device that came from an area, or at an area from elsewhere: whoever certified it is believed now and may
    /// certify it, and so may this control plane. It keeps its identity, and gets a place where this control plane says who is
    /// where. Whom it certified itself it knows.
    async fn take_in(
        &self,
        peer: &Caller,
        model: &PolicyModel,
        now: SystemTime,
    ) -> Result<(), RegistrarError> {
        let (from, here) = (peer.area(), self.authority.area());
        if from.as_deref() == here.map(|area| area.name()) || peer.not_after() <= now {
            return Ok(());
        }
        if here.is_some_and(|area| !area.grant().is_some_and(|grant| grant.permits(peer.id())))
            || !peer.is_believed_by(&self.authority.bundle()?, now)
        {
            return Ok(());
        }
        let own = model.workload(peer.id()).map(|workload| workload.network.clone());
        let network = own.filter(|own| self.authority.writes(own));
        let network = network.or_else(|| here.and_then(|area| area.networks().into_iter().next()));
        let Some(network) = network else { return Ok(()) };
        for _ in 0..ATTEMPTS_MAX {
            let found = self.registration(peer.id()).await?;
            let mut registration = found.as_ref().map_or_else(
                || Registration { id: peer.id().clone(), instances: Vec::new() },
                |found| found.record.clone(),
            );
            if holder(&mut registration, peer.fingerprint()).is_some() {
                return Ok(());
            }
            forget_expired(&mut registration, rejoin_of(model, peer.id()), now);
            if !makes_room(&mut registration, now) {
                return Err(RegistrarError::Instances);
            }
            let fingerprint = peer.fingerprint().to_string();
            let not_after = unix_seconds(peer.not_after());
            // An area's word about a device is not enough to name somebody's device by.
            let token = match peer.device().filter(|_| from.is_none()) {
                Some(device) => tpm::holder(&device),
                None => format!("from {}", from.as_deref().unwrap_or("the origin")),
            };
            registration.instances.push(Instance {
                first: fingerprint.clone(),
                token,
                network: network.clone(),
                leaves: vec![Leaf { fingerprint, signing: None, issuer: None, not_after }],
                area: from.clone(),
                came: Vec::new(),
            });
            self.refuse_revoked(peer.id(), Some(peer.fingerprint())).await?;
            let key = registration_key(peer.id());
            let mut writes = vec![records::put(key, records::unchanged(found.as_ref()), &registration)?];
            if here.is_some() {
                writes.push(chains::kept(&peer.fingerprint().to_string(), peer.chain(), &[], not_after)?);
            }
            match self.store.commit(writes).await {
                Ok(_) => {
                    tracing::info!(id = %peer.id(), network, from = from.as_deref().unwrap_or("origin"),
                        "taken in from elsewhere");
                    return Ok(());
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(RegistrarError::Busy)
    }

    /// The token behind a right secret. It may be void, used up or expired.
    async fn known_token(&self, id: &str, secret: &[u8]) -> Result<Found<Token>, RegistrarError> {
        if id.len() > TOKEN_ID_MAX {
            return Err(RegistrarError::Token("the token is unknown"));
        }
        let found = token::find(&*self.store, id, secret).await?;
        found.ok_or(RegistrarError::Token("the token is unknown"))
    }

    async fn registration(&self, id: &SpiffeId) -> Result<Option<Found<Registration>>, StoreError> {
        records::read(&*self.store, &registration_key(id)).await
    }

    async fn refuse_revoked(&self, id: &SpiffeId, leaf: Option<Fingerprint>) -> Result<(), RegistrarError> {
        let identity = self.store.read(&Subject::Identity(id.clone()).key()).await?;
        let certificate = match leaf {
            Some(leaf) => self.store.read(&Subject::Certificate(leaf).key()).await?,
            None => None,
        };
        if identity.is_some() || certificate.is_some() { Err(RegistrarError::Revoked) } else { Ok(()) }
    }

    /// At an area: the write that keeps what was issued, so that it can be told of by itself.
    fn chains(&self, issued: &Issued) -> Result<Option<Write>, StoreError> {
        let Issued { tls_chain, signing_chain, leaf, .. } = issued;
        let keep = || chains::kept(&leaf.fingerprint, tls_chain, signing_chain, leaf.not_after);
        self.authority.area().map(|_| keep()).transpose()
    }

    fn issue(
        &self,
        id: &SpiffeId,
        network: &str,
        requests: (Requests<'_>, Option<&[u8; 32]>),
        model: &PolicyModel,
        now: SystemTime,
    ) -> Result<Issued, RegistrarError> {
        certify(&self.authority.issuing()?, id, network, requests, model, now)
    }
}

fn certify(
    issuing: &Issuing,
    id: &SpiffeId,
    network: &str,
    // And the device that the key for channels lies in.
    (requests, device): (Requests<'_>, Option<&[u8; 32]>),
    model: &PolicyModel,
    now: SystemTime,
) -> Result<Issued, RegistrarError> {
    let class = id.parts().map_or(Class::External, |parts| parts.class);
    let not_after = now + model.lifetimes.of(class);
    let tls_chain = issuing.tls(requests.tls, id, now - BACKDATE, not_after, device)?;
    let signing_chain = issuing.signing(requests.signing, id, now - BACKDATE, not_after)?;
    let first = |chain: &[CertificateDer<'_>]| chain.first().map(|leaf| Fingerprint::of(leaf).to_string());
    let fingerprint = first(&tls_chain).unwrap_or_default();
    let leaf = Leaf {
        fingerprint,
        signing: first(&signing_chain),
        issuer: Some(issuing.issuer()),
        not_after: unix_seconds(not_after),
    };
    Ok(Issued { id: id.clone(), network: network.to_owned(), tls_chain, signing_chain, leaf })
}

fn declared(model: &PolicyModel, id: &SpiffeId) -> Result<(), RegistrarError> {
    model.workload(id).map(|_| ()).ok_or(RegistrarError::Undeclared)
}

/// The registration with one more instance, unless its token allows no more.
fn with_instance(
    found: Option<&Found<Registration>>,
    token_id: &str,
    token: &Token,
    issued: &Issued,
    rejoin: Duration,
    now: SystemTime,
) -> Option<Registration> {
    let mut registration = found.map_or_else(
        || Registration { id: token.id.clone(), instances: Vec::new() },
        |found| found.record.clone(),
    );
    forget_expired(&mut registration, rejoin, now);
    // Those whose certificates have ended may come back; until they do they take nobody's place.
    let same_token = |instance: &&Instance| instance.token == token_id && is_live(instance, now);
    let held = registration.instances.iter().filter(same_token).count();
    if held >= token.instances as usize || !makes_room(&mut registration, now) {
        return None;
    }
    registration.instances.push(Instance {
        first: issued.leaf.fingerprint.clone(),
        token: token_id.to_owned(),
        network: token.network.clone(),
        leaves: vec![issued.leaf.clone()],
        area: None,
        came: Vec::new(),
    });
    Some(registration)
}

/// The registration with one more certificate for a holder.
fn with_holder(
    found: Option<&Found<Registration>>,
    attested: &Attested,
    issued: &Issued,
    rejoin: Duration,
    now: SystemTime,
) -> Result<Registration, RegistrarError> {
    let mut registration = found.map_or_else(
        || Registration { id: attested.id.clone(), instances: Vec::new() },
        |found| found.record.clone(),
    );
    forget_expired(&mut registration, rejoin, now);
    if let Some(held) = registration.instances.iter_mut().find(|instance| instance.token == attested.holder) {
        if in_force(held, now) >= LEAVES_MAX {
            return Err(RegistrarError::Renewals);
        }
        held.leaves.push(issued.leaf.clone());
        return Ok(registration);
    }
    if !makes_room(&mut registration, now) {
        return Err(RegistrarError::Instances);
    }
    registration.instances.push(Instance {
        first: issued.leaf.fingerprint.clone(),
        token: attested.holder.clone(),
        network: attested.network.clone(),
        leaves: vec![issued.leaf.clone()],
        area: None,
        came: Vec::new(),
    });
    Ok(registration)
}

/// The instance of the device that the caller's key lies in.
fn of_device<'a>(registration: &'a mut Registration, peer: &Caller) -> Option<&'a mut Instance> {
    let holder = tpm::holder(&peer.device()?);
    registration.instances.iter_mut().find(|instance| instance.token == holder)
}

fn holder(registration: &mut Registration, leaf: Fingerprint) -> Option<&mut Instance> {
    let leaf = leaf.to_string();
    registration
        .instances
        .iter_mut()
        .find(|instance| instance.leaves.iter().any(|held| held.fingerprint == leaf))
}

/// How long after its end a certificate of this identity still gets its holder a new one.
fn rejoin_of(model: &PolicyModel, id: &SpiffeId) -> Duration {
    model.rejoin_of(id.parts().map_or(Class::External, |parts| parts.class))
}

/// Whether there is room for one more instance, where one whose certificates have ended gives up its place.
fn makes_room(registration: &mut Registration, now: SystemTime) -> bool {
    if registration.instances.len() < INSTANCES_MAX {
        return true;
    }
    let ends = |instance: &Instance| instance.leaves.iter().map(|leaf| leaf.not_after).max();
    let ended = registration.instances.iter().enumerate().filter(|(_, instance)| !is_live(instance, now));
    let Some((gone, _)) = ended.min_by_key(|(_, instance)| ends(instance)) else { return false };
    registration.instances.remove(gone);
    true
}

fn is_live(instance: &Instance, now: SystemTime) -> bool {
    instance.leaves.iter().any(|leaf| is_in_force(leaf, now))
}

/// How many certificates of an instance have not ended.
fn in_force(instance: &Instance, now: SystemTime) -> usize {
    instance.leaves.iter().filter(|leaf| is_in_force(leaf, now)).count()
}

fn is_in_force(leaf: &Leaf, now: SystemTime) -> bool {
    leaf.not_after > unix_seconds(now)
}

/// Forgets certificates that get nobody back any more.
fn forget_expired(registration: &mut Registration, rejoin: Duration, now: SystemTime) {
    for instance in &mut registration.instances {
        instance.leaves.retain(|leaf| leaf.not_after.saturating_add(rejoin.as_secs()) > unix_seconds(now));
        // The last ones that ended: an instance shows the newest that it received.
        let ended = instance.leaves.iter().filter(|leaf| !is_in_force(leaf, now)).count();
        let mut surplus = ended.saturating_sub(ENDED_LEAVES_MAX);
        instance.leaves.retain(|leaf| {
            let goes = surplus > 0 && !is_in_force(leaf, now);
            surplus -= usize::from(goes);
            !goes
        });
    }
    registration.instances.retain(|instance| !instance.leaves.is_empty());
}

/// Why no certificate was issued.
#[derive(Debug, Error)]
pub(crate) enum RegistrarError {
    #[error("the control plane cannot certify now: {0}")]
    Authority(#[from] AuthorityError),
    #[error("too many others change the same record, try again")]
    Busy,
    #[error("the certificate has expired, connect again with a valid one")]
    Expired,
    #[error(
        "as many instances as the token allows hold certificates; \
         make a token with more instances or wait until theirs end"
    )]
    Instances,
    #[error("the key of this certificate is in a TPM: another can only be had by enrolling anew")]
    OtherKey,
    #[error("the instance holds as many certificates as one may; wait until some of them end")]
    Renewals,
    #[error("the identity or the certificate was revoked")]
    Revoked,
    #[error("the request cannot be certified: {0}")]
    Request(#[from] IssueError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Token(&'static str),
    #[error("the workload is not in the mesh, or no longer")]
    Undeclared,
    #[error("no such instance is enrolled; enrol anew")]
    Unknown,
}

impl RegistrarError {
    /// A stable name for metrics, logs and the proxy's own errors.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Authority(_) => "authority-unavailable",
            Self::Busy => "busy",
            Self::Expired => "certificate-expired",
            Self::Instances => "instances-exhausted",
            Self::OtherKey => "key-outside-tpm",
            Self::Renewals => "renewals-exhausted",
            Self::Revoked => "revoked",
            Self::Request(_) => "bad-request",
            Self::Store(_) => "store-unavailable",
            Self::Token(_) => "token-refused",
            Self::Undeclared => "workload-undeclared",
            Self::Unknown => "unknown-instance",
        }
    }
}

#[cfg(test)]
mod tests;
