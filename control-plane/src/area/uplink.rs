//! The stream to the parent: joins, renews, takes what is to be passed on, and tells of the area's own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use signet_identity::{
    ALPN_CONTROL, Dating, Fingerprint, KeyRequest, SpiffeId, TrustDomain, backoff, control_client_config,
    dial_name, peer, pinned_client_config,
};
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::area_message::Message as Up;
use signet_sync::proto::sync::areas_client::AreasClient;
use signet_sync::proto::sync::control_message::Message as Down;
use signet_sync::proto::sync::proxy_message::Message as Reply;
use signet_sync::{
    MAX_MESSAGE_BYTES, MIN_PROTOCOL, PROTOCOL, SectionKey, SectionName, Subject as Listed, Subscriber, Token,
    Version,
};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::{
    ANSWER_TIMEOUT, AreaStartError, Delegated, Heard, Held, Settings, is_pinned, new_keys, parents, relay,
    write_heard, write_sections,
};
use crate::area::chains;
use crate::authority::AuthorityError;
use crate::files;
use crate::records::{self, REGISTRATIONS, REVOCATIONS, Registration, Revocation, Subject};
use crate::revocation::{KEPT_AFTER, LONGEST_LIFE, RevocationError, lift, revoke};
use crate::services::Mesh;
use crate::store::{Expect, Revision, Store, StoreError};

/// How long connecting, handshake included, may take: a satellite link with losses needs some seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A silent connection is asked this often whether it is there, and given up when it does not answer.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Attempts after which the pause grows no more: 8 s, as with proxies.
const BACKOFF_ATTEMPTS: u32 = 4;

/// How often the time of day is looked at, and directories of others saved.
const LOOK: Duration = Duration::from_secs(10);

/// Messages that wait for the parent.
const OUTBOUND_MAX: usize = 16;

/// How long one waits.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Instances told of in one message.
const INSTANCES_PER_MESSAGE: usize = 64;

/// Their certificates, of three to four kilobytes with their issuers, before those of the last: below what a message may have.
const LEAVES_PER_MESSAGE: usize = 128;

/// Revocations written together.
const REVOCATIONS_PER_COMMIT: usize = 512;

/// The longest token file.
const TOKEN_BYTES_MAX: u64 = 4 * 1024;

/// Why the parent is not followed.
#[derive(Debug, Error)]
enum UplinkError {
    #[error(transparent)]
    Area(#[from] AreaStartError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("the parent cannot be reached: {0}")]
    Dial(std::io::Error),
    #[error("the parent ended the stream")]
    Ended,
    #[error("HTTP/2 could not be started: {0}")]
    Http2(#[from] tonic::transport::Error),
    #[error("the parent is {0}, which is not a control plane")]
    NotControlPlane(SpiffeId),
    #[error("the parent refused: {}", .0.message())]
    Refused(Box<Status>),
    #[error("the parent does not read what is sent to it")]
    Stalled,
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no answer in time")]
    Timeout,
    #[error("the connection cannot be set up: {0}")]
    Tls(#[from] signet_identity::TlsError),
    #[error("the parent is not believed: {0}")]
    Verify(#[from] signet_identity::VerifyError),
}

impl UplinkError {
    fn refused(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }

    fn at(self, parent: &str) -> AreaStartError {
        AreaStartError::Parent { parent: parent.to_owned(), why: self.to_string() }
    }
}

/// A connection to the parent's control port that has been authenticated.
async fn dial(parent: &str, config: ClientConfig) -> Result<Channel, UplinkError> {
    let dialling = async {
        let stream = TcpStream::connect(parent).await.map_err(UplinkError::Dial)?;
        stream.set_nodelay(true).map_err(UplinkError::Dial)?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(dial_name(), stream).await.map_err(UplinkError::Dial)?;
        let parent = peer(stream.get_ref().1)?;
        if !parent.id().is_control_plane() {
            return Err(UplinkError::NotControlPlane(parent.id().clone()));
        }
        // Once: tonic would connect again by itself, unauthenticated by us.
        let once = Mutex::new(Some(stream));
        let connector = tower::service_fn(move |_| {
            let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
            let stream = stream
                .map(TokioIo::new)
                .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
            std::future::ready(stream)
        });
        let channel = Endpoint::from_static("http://parent.invalid")
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await?;
        Ok(channel)
    };
    tokio::time::timeout(CONNECT_TIMEOUT, dialling).await.map_err(|_| UplinkError::Timeout)?
}

fn client(channel: Channel) -> AreasClient<Channel> {
    AreasClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// The first delegation, for a token: what is held, the section key, the origin's key.
pub(super) async fn join(
    settings: &Settings,
    now: SystemTime,
) -> Result<(Held, SectionKey, [u8; 32]), AreaStartError> {
    let path = settings.token_file.clone().ok_or(AreaStartError::Token)?;
    let text = files::read(&path, TOKEN_BYTES_MAX).map_err(|error| AreaStartError::Io { path, error })?;
    let token = Token::parse(&text).map_err(|_| AreaStartError::Token)?;
    let (issuer, section_key) = new_keys()?;
    let end = KeyRequest::new_tls()?;
    let request = wire::JoinAreaRequest {
        protocol: PROTOCOL,
        min_protocol: MIN_PROTOCOL,
        token_id: token.id().to_owned(),
        secret: token.secret().to_vec(),
        issuer_csr: issuer.csr.clone(),
        end_csr: end.csr.clone(),
        section_key: section_key.public_key().to_vec(),
    };
    let parent = &settings.parent;
    let asking = async {
        let config = pinned_client_config(token.pin(), None, &[ALPN_CONTROL])?;
        let channel = dial(parent, config).await?;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, client(channel).join(request)).await;
        Ok::<_, UplinkError>(
            answer.map_err(|_| UplinkError::Timeout)?.map_err(UplinkError::refused)?.into_inner(),
        )
    };
    let said = asking.await.map_err(|error| error.at(parent))?;
    if said.area != settings.name {
        return Err(AreaStartError::Delegation("the token is another area's"));
    }
    if !is_pinned(&said, token.pin()) {
        return Err(AreaStartError::Delegation("its root is not the one that the token pins"));
    }
    let policy_key = said.policy_key.as_slice().try_into();
    let policy_key = policy_key.map_err(|_| AreaStartError::Delegation("the policy key is malformed"))?;
    let held = Held::of(said, (issuer.key, issuer.csr), end.key, now)?;
    tracing::info!(area = settings.name, parent, "joined");
    Ok((held, section_key, policy_key))
}

/// A first look at what is to be passed on: nothing is served before.
pub(super) async fn fetch(
    settings: &Settings,
    trust_domain: &TrustDomain,
    held: &Held,
    subscriber: &mut Subscriber,
) -> Result<(), AreaStartError> {
    let bundle = parents(trust_domain, held, None)?;
    let fetching = async {
        let config = control_client_config(held.end(), &bundle, &[ALPN_CONTROL], Dating::OwnClock)?;
        let mut stream = Stream::open(dial(&settings.parent, config).await?, subscriber).await?;
        while relay(subscriber).is_none() {
            if let Some(Down::Section(section)) = stream.next().await? {
                stream.answer(subscriber.handle(section).reply).await?;
            }
        }
        Ok::<_, UplinkError>(())
    };
    let fetched = tokio::time::timeout(STALL_TIMEOUT, fetching).await.unwrap_or(Err(UplinkError::Timeout));
    fetched.map_err(|error| error.at(&settings.parent))
}

/// An open stream.
struct Stream {
    outbound: mpsc::Sender<wire::AreaMessage>,
    inbound: tonic::Streaming<wire::ControlMessage>,
}

impl Stream {
    async fn open(channel: Channel, subscriber: &Subscriber) -> Result<Self, UplinkError> {
        let hello = wire::Hello {
            protocol: PROTOCOL,
            min_protocol: MIN_PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            have: subscriber.have(),
            ..wire::Hello::default()
        };
        let (outbound, queue) = mpsc::channel(OUTBOUND_MAX);
        // The queue is empty and open: this cannot fail.
        let _ = outbound.try_send(wire::AreaMessage { message: Some(Up::Hello(hello)) });
        let following = client(channel);
        let following = async move {
            let mut following = following;
            following.follow(ReceiverStream::new(queue)).await
        };
        let inbound = tokio::time::timeout(ANSWER_TIMEOUT, following).await;
        let inbound = inbound.map_err(|_| UplinkError::Timeout)?.map_err(UplinkError::refused)?.into_inner();
        Ok(Self { outbound, inbound })
    }

    /// The next message; none is one of a newer parent.
    async fn next(&mut self) -> Result<Option<Down>, UplinkError> {
        let message = self.inbound.message().await.map_err(UplinkError::refused)?;
        Ok(message.ok_or(UplinkError::Ended)?.message)
    }

    async fn send(&self, message: Up) -> Result<(), UplinkError> {
        let message = wire::AreaMessage { message: Some(message) };
        match tokio::time::timeout(STALL_TIMEOUT, self.outbound.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(UplinkError::Ended),
            Err(_) => Err(UplinkError::Stalled),
        }
    }

    async fn answer(&self, reply: wire::ProxyMessage) -> Result<(), UplinkError> {
        match reply.message {
            Some(Reply::Ack(ack)) => self.send(Up::Ack(ack)).await,
            Some(Reply::Nack(nack)) => self.send(Up::Nack(nack)).await,
            _ => Ok(()),
        }
    }
}

/// Follows the parent, for ever. What is in force stays so while there is no stream.
pub(crate) async fn follow(mesh: Mesh, area: Arc<Delegated>, mut subscriber: Subscriber) {
    let mut attempt = 0;
    loop {
        match session(&mesh, &area, &mut subscriber, &mut attempt).await {
            // There are new certificates: they are shown on a new stream.
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(area = area.name(), parent = area.parent(), %error, "the area is on its own");
                tokio::time::sleep(backoff(attempt, 0.5)).await;
                attempt = (attempt + 1).min(BACKOFF_ATTEMPTS);
            }
        }
    }
}

async fn session(
    mesh: &Mesh,
    area: &Delegated,
    subscriber: &mut Subscriber,
    attempt: &mut u32,
) -> Result<(), UplinkError> {
    let held = area.held();
    let bundle = parents(&area.trust_domain, &held, subscriber.anchors()).map_err(AreaStartError::from)?;
    let config = control_client_config(held.end(), &bundle, &[ALPN_CONTROL], Dating::OwnClock)?;
    let channel = dial(&area.parent, config).await?;
    // One that has ended opens no stream, and may be renewed for a while.
    if area.is_due(mesh.clock.best()) {
        return renew(mesh, area, channel).await;
    }
    let mut stream = Stream::open(channel.clone(), subscriber).await?;
    tracing::info!(area = area.name(), parent = area.parent(), "connected to the parent");
    *attempt = 0;
    let mut told = BTreeMap::new();
    let mut published = mesh.published.clone();
    published.mark_changed();
    let mut seen = tell_all(&stream, &*mesh.store).await?;
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What others published meanwhile may have been refused before; a revocation may have been missed when this process died.
    mirror(&*mesh.store, subscriber, mesh.clock.best()).await?;
    let mut is_saved = true;
    loop {
        tokio::select! {
            message = stream.inbound.message() => {
                let message = message.map_err(UplinkError::refused)?.ok_or(UplinkError::Ended)?;
                match message.message {
                    Some(Down::Section(section)) => {
                        is_saved &= apply(mesh, area, subscriber, &stream, section).await?;
                    }
                    // Nobody is told what the origin's key did not sign; the proxies look again.
                    Some(Down::Freshness(said)) if subscriber.is_newest(&said).is_ok() => {
                        area.words.send_replace(Some(Heard::now(said)));
                    }
                    Some(Down::Goaway(_)) => return Err(UplinkError::Ended),
                    _ => {}
                }
            }
            changed = published.changed() => {
                if changed.is_err() {
                    return Err(UplinkError::Ended);
                }
                let sections = published.borrow_and_update().sections.clone();
                for (name, section) in sections {
                    let SectionName::Directory(network) = &name else { continue };
                    let version = Version::from(&*section);
                    if area.owns(network) && told.get(&name) != Some(&version) {
                        stream.send(Up::Directory((*section).clone())).await?;
                        told.insert(name, version);
                    }
                }
            }
            changes = mesh.store.watch(REGISTRATIONS, seen) => {
                match changes {
                    Ok(changes) => {
                        let written = changes.written.iter().map(records::decode::<Registration>);
                        let written = written.map(|found| Ok(found?.record)).collect::<Result<Vec<_>, StoreError>>()?;
                        tell(&stream, &*mesh.store, written).await?;
                        seen = changes.revision;
                    }
                    Err(StoreError::Compacted) => seen = tell_all(&stream, &*mesh.store).await?,
                    Err(error) => return Err(error.into()),
                }
            }
            _ = ticks.tick() => {
                if !std::mem::replace(&mut is_saved, true) {
                    write_sections(&area.directory, subscriber)?;
                }
                let heard = area.words.borrow().clone();
                if let Some(heard) = heard.filter(|heard| heard.before_ms == 0) {
                    write_heard(&area.directory, &heard)?;
                }
                if area.is_due(mesh.clock.best()) {
                    return renew(mesh, area, channel).await;
                }
            }
        }
    }
}

/// Takes a section, and passes it on. Whether what is held needs no saving.
async fn apply(
    mesh: &Mesh,
    area: &Delegated,
    subscriber: &mut Subscriber,
    stream: &Stream,
    section: wire::Section,
) -> Result<bool, UplinkError> {
    let outcome = subscriber.handle(section);
    if let Some(error) = &outcome.refused {
        tracing::error!(code = error.code(), %error, "a section of the parent was refused; the last good one stays");
    }
    let is_saved = match &outcome.changed {
        None => true,
        Some(SectionName::Directory(_)) => false,
        Some(changed) => {
            // A start without the parent must not go behind them.
            write_sections(&area.directory, subscriber)?;
            if *changed == SectionName::Revocations {
                mirror(&*mesh.store, subscriber, mesh.clock.best()).await?;
            }
            true
        }
    };
    if outcome.changed.is_some()
        && let Some(relay) = relay(subscriber)
    {
        area.pass_on(relay);
        if matches!(outcome.changed, Some(SectionName::Anchors)) {
            mesh.authority.refreshed();
        }
    }
    stream.answer(outcome.reply).await?;
    Ok(is_saved)
}

/// A new delegation, over a fresh key of the end.
async fn renew(mesh: &Mesh, area: &Delegated, channel: Channel) -> Result<(), UplinkError> {
    let held = area.held();
    let end = KeyRequest::new_tls().map_err(AreaStartError::from)?;
    let request = wire::RenewAreaRequest {
        protocol: PROTOCOL,
        min_protocol: MIN_PROTOCOL,
        issuer_csr: held.issuer_csr.clone(),
        end_csr: end.csr.clone(),
    };
    let mut client = client(channel);
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.renew(request)).await;
    let said = answer.map_err(|_| UplinkError::Timeout)?.map_err(UplinkError::refused)?.into_inner();
    let keys = (held.issuer_key.clone(), held.issuer_csr.clone());
    let renewed = Held::of(said, keys, end.key, mesh.clock.best())?;
    if renewed.root != held.root {
        return Err(AreaStartError::Delegation("its root is another one: make the area anew").into());
    }
    let pair = renewed.pair()?;
    area.take(renewed)?;
    mesh.authority.redelegated(pair);
    tracing::info!(area = area.name(), "the delegation is renewed");
    Ok(())
}

/// Tells of everybody that is registered here. Returns the revision up to which.
async fn tell_all(stream: &Stream, store: &dyn Store) -> Result<Revision, UplinkError> {
    let listing = store.list(REGISTRATIONS).await?;
    let registrations = listing.entries.iter().map(records::decode::<Registration>);
    let registrations =
        registrations.map(|found| Ok(found?.record)).collect::<Result<Vec<_>, StoreError>>()?;
    tell(stream, store, registrations).await?;
    Ok(listing.revision)
}

async fn tell(
    stream: &Stream,
    store: &dyn Store,
    registrations: Vec<Registration>,
) -> Result<(), UplinkError> {
    let (mut instances, mut certificates) = (Vec::new(), 0);
    for Registration { id, instances: registered } in registrations {
        for instance in registered {
            let mut leaves = Vec::new();
            for leaf in instance.leaves {
                // Those that have ended are nobody's concern.
                leaves.extend(chains::told(store, &leaf.fingerprint).await?);
            }
            if leaves.is_empty() {
                continue;
            }
            certificates += leaves.len();
            let (first, network) = (instance.first, instance.network);
            instances.push(wire::AreaInstance { spiffe_id: id.to_string(), first, network, leaves });
            if certificates >= LEAVES_PER_MESSAGE || instances.len() >= INSTANCES_PER_MESSAGE {
                let instances = std::mem::take(&mut instances);
                stream.send(Up::Instances(wire::AreaInstances { instances })).await?;
                certificates = 0;
            }
        }
    }
    if !instances.is_empty() {
        stream.send(Up::Instances(wire::AreaInstances { instances })).await?;
    }
    Ok(())
}

/// Revokes here what the origin revoked: holders lose their instances, tokens and keys, as they would there. What it lifted is
/// lifted.
async fn mirror(store: &dyn Store, subscriber: &Subscriber, now: SystemTime) -> Result<(), UplinkError> {
    let listed = subscriber.revocations();
    let known = records::list::<Revocation>(store, REVOCATIONS).await?;
    let known: BTreeMap<String, Revocation> =
        known.into_iter().map(|found| (found.record.subject.key(), found.record)).collect();
    let registrations = records::list::<Registration>(store, REGISTRATIONS).await?;
    let held: std::collections::BTreeSet<String> = registrations
        .iter()
        .flat_map(|found| &found.record.instances)
        .flat_map(|instance| &instance.leaves)
        .flat_map(|leaf| std::iter::once(&leaf.fingerprint).chain(&leaf.signing))
        .cloned()
        .collect();
    let mut writes = Vec::new();
    for (subject, revocation) in listed.iter() {
        let subject = match subject {
            Listed::Certificate(fingerprint) => Subject::Certificate(*fingerprint),
            Listed::Identity(id) => Subject::Identity(id.clone()),
        };
        let is_held = |fingerprint: &Fingerprint| held.contains(&fingerprint.to_string());
        match &subject {
            _ if known.contains_key(&subject.key()) => {}
            Subject::Certificate(fingerprint) if !is_held(fingerprint) => {
                let expires = records::unix_seconds(now + LONGEST_LIFE + KEPT_AFTER);
                let record = Revocation {
                    subject: subject.clone(),
                    reason: revocation.reason.clone(),
                    revoked_at: revocation.revoked_at,
                    expires: Some(expires),
                    tampered: None,
                    told_by: None,
                };
                writes.push(records::put(subject.key(), Expect::Any, &record)?);
            }
            _ => {
                revoke(store, &subject, &revocation.reason, now).await?;
            }
        }
    }
    for part in writes.chunks(REVOCATIONS_PER_COMMIT) {
        store.commit(part.to_vec()).await?;
    }
    for revocation in known.values() {
        if let Subject::Identity(id) = &revocation.subject
            && !listed.iter().any(|(subject, _)| matches!(subject, Listed::Identity(listed) if listed == id))
        {
            lift(store, id, now).await?;
        }
    }
    Ok(())
}
