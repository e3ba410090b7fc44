//! What operators can ask for.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use signet_identity::{Fingerprint, SpiffeId};
use signet_policy::{
    Facts, Kind, Layer, Origin, PolicyIndex, PolicyModel, RequestHeaders, WorkloadModel, explain,
};
use signet_sync::proto::admin as wire;
use signet_sync::proto::admin::admin_server::Admin;
use signet_sync::proto::admin::explain_request::Question;
use signet_sync::{MAX_NACK_BYTES, SectionState};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{edges, past, rotate};
use crate::appointments;
use crate::areas::{self, AreaError, Wanted};
use crate::authority::AuthorityError;
use crate::authority::slots::What;
use crate::clock;
use crate::history::{History, RecordedChange, Version};
use crate::manifests::{Action, Change, Item, Manifests, Outcome};
use crate::neighbours;
use crate::records::{
    self, APPOINTMENTS, Appointment, REVOCATIONS, Registration, Revocation, Subject, unix_seconds,
};
use crate::revocation::{self, RevocationError, revoke};
use crate::rotation::driver;
use crate::services::{self, Mesh};
use crate::store::{Revision, Store, StoreError};
use crate::streams::Stream;
use crate::token::{self, Grant};
use crate::vouched::{self, Statement, VouchError};

/// How long an `apply` waits for its own state to be pushed. It is durable either way.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a change is tried again when another operator changed something at the same time.
const ATTEMPTS_MAX: usize = 8;

/// Revocations in one answer: those of years, at some kilobytes each below what an answer may have.
const REVOCATIONS_LISTED: usize = 10_000;

/// Bytes of a request id; ours are far shorter.
const REQUEST_ID_BYTES: usize = 128;

/// Tokens in one answer: with 300 bytes and an identity each, far below what the client reads.
const TOKENS_LISTED: usize = 10_000;

/// The service.
pub(crate) struct AdminService {
    store: Arc<dyn Store>,
    mesh: Mesh,
}

impl AdminService {
    pub(crate) fn new(store: Arc<dyn Store>, mesh: Mesh) -> Self {
        Self { store, mesh }
    }

    /// Waits until what was just stored is what proxies are sent, so that the next command sees it.
    async fn pushed(&self, revision: Revision) {
        let mut published = self.mesh.published.clone();
        let pushed = published.wait_for(|published| published.revision >= revision);
        let _ = tokio::time::timeout(PUBLISH_TIMEOUT, pushed).await;
    }

    fn trust_domain(&self) -> &signet_identity::TrustDomain {
        self.mesh.authority.trust_domain()
    }

    /// Manifests have one writer: where a cluster's resources are followed, anything else would be undone by the next change
    /// of one.
    fn refuse_followed(&self) -> Result<(), Status> {
        self.mesh.refuse_at_an_area("manifests are changed")?;
        if !self.mesh.followed {
            return Ok(());
        }
        Err(Status::failed_precondition(
            "followed: the manifests of this mesh are the custom resources of its cluster; change them by kubectl \
             (`--dry-run` works here)",
        ))
    }

    /// An area lets in whom it may certify, where it says who is where.
    fn within_the_area(&self, grant: &Grant) -> Result<(), Status> {
        let Some(area) = self.mesh.authority.area() else { return Ok(()) };
        let granted = area.grant().ok_or_else(|| Status::internal("the area has no grant"))?;
        if !granted.permits(&grant.id) {
            return Err(Status::failed_precondition(format!(
                "area: {} may not certify {}; it was granted {}",
                area.name(),
                grant.id,
                granted.identities().join(", ")
            )));
        }
        if !area.owns(&grant.network) {
            return Err(Status::failed_precondition(format!(
                "area: network {} is not {}'s, which has {}",
                grant.network.escape_debug(),
                area.name(),
                area.networks().into_iter().collect::<Vec<_>>().join(", ")
            )));
        }
        Ok(())
    }

    async fn manifests(&self) -> Result<Manifests, Status> {
        let known = self.mesh.published.borrow().manifests.clone();
        Manifests::load(&*self.store, &known).await.map_err(store_failed)
    }

    async fn model(&self) -> Result<PolicyModel, Status> {
        if self.mesh.authority.area().is_some() {
            return Ok((*self.mesh.published.borrow().model).clone());
        }
        let manifests = self.manifests().await?;
        manifests
            .model(self.trust_domain())
            .map_err(|_| Status::internal("the stored manifests do not compile; apply them anew"))
    }
}

/// Bytes of entries in one part of a backup: a value of the largest size fits the largest answer many times over.
const PART_BYTES: usize = 4 * 1024 * 1024;

/// Parts of a backup waiting for the operator to read.
const PARTS_MAX: usize = 2;

#[tonic::async_trait]
impl Admin for AdminService {
    type BackupStream = ReceiverStream<Result<wire::BackupPart, Status>>;

    async fn backup(&self, _: Request<wire::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let listing = self.store.list("").await.map_err(store_failed)?;
        tracing::info!(revision = listing.revision.0, entries = listing.entries.len(), "backup");
        let (send, parts) = mpsc::channel(PARTS_MAX);
        tokio::spawn(async move {
            let revision = listing.revision.0;
            let (mut entries, mut bytes) = (Vec::new(), 0);
            for entry in listing.entries {
                bytes += entry.key.len() + entry.value.len();
                entries.push(wire::BackupEntry { key: entry.key, value: entry.value });
                if bytes >= PART_BYTES {
                    let part =
                        wire::BackupPart { revision, entries: std::mem::take(&mut entries), last: false };
                    // Whoever asked has gone.
                    if send.send(Ok(part)).await.is_err() {
                        return;
                    }
                    bytes = 0;
                }
            }
            let _ = send.send(Ok(wire::BackupPart { revision, entries, last: true })).await;
        });
        Ok(Response::new(ReceiverStream::new(parts)))
    }

    async fn apply(
        &self,
        request: Request<wire::ApplyRequest>,
    ) -> Result<Response<wire::ApplyResponse>, Status> {
        let request = request.into_inner();
        self.mesh.refuse_at_an_area("manifests are applied")?;
        if !request.dry_run {
            self.refuse_followed()?;
        }
        let files: Vec<(&str, &str)> =
            request.files.iter().map(|file| (file.name.as_str(), file.text.as_str())).collect();
        for _ in 0..ATTEMPTS_MAX {
            let manifests = self.manifests().await?;
            let trust_domain = self.trust_domain();
            match manifests.apply(&*self.store, trust_domain, &files, request.dry_run).await {
                Ok(outcome) => {
                    self.pushed(outcome.revision).await;
                    tracing::info!(
                        revision = outcome.revision.0,
                        errors = outcome.diagnostics.len(),
                        "apply"
                    );
                    return Ok(Response::new(wire::ApplyResponse {
                        revision: outcome.revision.0,
                        changes: changes(&outcome),
                        diagnostics: outcome.diagnostics.iter().map(diagnostic).collect(),
                        notes: outcome.notes.iter().map(diagnostic).collect(),
                        version: outcome.version,
                    }));
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(store_failed(error)),
            }
        }
        Err(busy())
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Result<Response<wire::GetResponse>, Status> {
        let request = request.into_inner();
        // Whoever asks for everything learns that an area has none.
        if !request.kind.is_empty() {
            self.mesh.refuse_at_an_area("manifests are listed")?;
        }
        let kind = if request.kind.is_empty() { None } else { Some(kind(&request.kind)?) };
        let name = Some(request.name.as_str()).filter(|name| !name.is_empty());
        let manifests = self.manifests().await?;
        let items: Vec<wire::Item> = manifests.items(kind, name).map(item).collect();
        if let (true, Some(name)) = (items.is_empty(), name) {
            return Err(Status::not_found(format!("there is no {} {name}", request.kind)));
        }
        Ok(Response::new(wire::GetResponse { revision: manifests.revision().0, items }))
    }

    async fn delete(
        &self,
        request: Request<wire::DeleteRequest>,
    ) -> Result<Response<wire::DeleteResponse>, Status> {
        let request = request.into_inner();
        if !request.dry_run {
            self.refuse_followed()?;
        }
        let kind = kind(&request.kind)?;
        for _ in 0..ATTEMPTS_MAX {
            let manifests = self.manifests().await?;
            let trust_domain = self.trust_domain();
            let deleted =
                manifests.delete(&*self.store, trust_domain, kind, &request.name, request.dry_run).await;
            match deleted {
                Ok(Some(outcome)) => {
                    self.pushed(outcome.revision).await;
                    return Ok(Response::new(wire::DeleteResponse {
                        revision: outcome.revision.0,
                        changes: changes(&outcome),
                        diagnostics: outcome.diagnostics.iter().map(diagnostic).collect(),
                        version: outcome.version,
                    }));
                }
                Ok(None) => return Err(Status::not_found(format!("there is no {kind} {}", request.name))),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(store_failed(error)),
            }
        }
        Err(busy())
    }

    async fn history(
        &self,
        _: Request<wire::HistoryRequest>,
    ) -> Result<Response<wire::HistoryResponse>, Status> {
        let history = History::load(&*self.store).await.map_err(store_failed)?;
        let versions = history.newest_first().map(past_version).collect();
        Ok(Response::new(wire::HistoryResponse { versions }))
    }

    async fn rollback(
        &self,
        request: Request<wire::RollbackRequest>,
    ) -> Result<Response<wire::RollbackResponse>, Status> {
        let request = request.into_inner();
        if !request.dry_run {
            self.refuse_followed()?;
        }
        for _ in 0..ATTEMPTS_MAX {
            let manifests = self.manifests().await?;
            let trust_domain = self.trust_domain();
            match manifests.rollback(&*self.store, trust_domain, request.version, request.dry_run).await {
                Ok(Some(outcome)) => {
                    self.pushed(outcome.revision).await;
                    tracing::info!(revision = outcome.revision.0, version = outcome.version, "rollback");
                    return Ok(Response::new(wire::RollbackResponse {
                        revision: outcome.revision.0,
                        changes: changes(&outcome),
                        diagnostics: outcome.diagnostics.iter().map(diagnostic).collect(),
                        version: outcome.version,
                    }));
                }
                Ok(None) => {
                    return Err(Status::not_found(
                        "that version is not kept; `signet history` lists those that are",
                    ));
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(store_failed(error)),
            }
        }
        Err(busy())
    }

    async fn create_token(
        &self,
        request: Request<wire::CreateTokenRequest>,
    ) -> Result<Response<wire::CreateTokenResponse>, Status> {
        let request = request.into_inner();
        let model = self.model().await?;
        let grant = grant(&model, &request)?;
        self.within_the_area(&grant)?;
        let (id, network) = (grant.id.clone(), grant.network.clone());
        let pin = self.mesh.authority.pin().map_err(authority_failed)?;
        let created =
            token::create(&*self.store, grant, pin, self.mesh.clock.best()).await.map_err(store_failed)?;
        tracing::info!(%id, network, token = created.token.id(), "token created");
        Ok(Response::new(wire::CreateTokenResponse {
            token: created.token.reveal(),
            id: created.token.id().to_owned(),
            spiffe_id: id.to_string(),
            network,
            expires: created.expires,
        }))
    }

    async fn list_tokens(
        &self,
        _: Request<wire::ListTokensRequest>,
    ) -> Result<Response<wire::ListTokensResponse>, Status> {
        let mut tokens = token::list(&*self.store, self.mesh.clock.best()).await.map_err(store_failed)?;
        tokens.sort_by(|(_, a), (_, b)| (&a.id, a.expires).cmp(&(&b.id, b.expires)));
        let more = u32::try_from(tokens.len().saturating_sub(TOKENS_LISTED)).unwrap_or(u32::MAX);
        tokens.truncate(TOKENS_LISTED);
        let shown = |(id, token): (String, records::Token)| wire::TokenInfo {
            id,
            spiffe_id: token.id.to_string(),
            network: token.network,
            uses: token.uses,
            instances: token.instances,
            expires: token.expires,
        };
        Ok(Response::new(wire::ListTokensResponse { tokens: tokens.into_iter().map(shown).collect(), more }))
    }

    async fn delete_token(
        &self,
        request: Request<wire::DeleteTokenRequest>,
    ) -> Result<Response<wire::DeleteTokenResponse>, Status> {
        let id = request.into_inner().id;
        let withdrawn =
            token::withdraw(&*self.store, &id, self.mesh.clock.best()).await.map_err(store_failed)?;
        let withdrawn = withdrawn.ok_or_else(|| {
            Status::not_found(format!(
                "there is no token {}; `signet token list` shows all",
                id.escape_debug()
            ))
        })?;
        tracing::info!(id = %withdrawn.id, token = id, "token withdrawn");
        Ok(Response::new(wire::DeleteTokenResponse { spiffe_id: withdrawn.id.to_string() }))
    }

    async fn attest(
        &self,
        request: Request<wire::AttestRequest>,
    ) -> Result<Response<wire::AttestResponse>, Status> {
        let said = statement(&self.model().await?, request.into_inner())?;
        let revision = vouched::record(&*self.store, &said).await.map_err(|error| match error {
            VouchError::Full => Status::resource_exhausted(error.to_string()),
            VouchError::Store(error) => store_failed(error),
        })?;
        tracing::info!(id = %said.id, instance = said.instance, addresses = ?said.addresses, "attested");
        Ok(Response::new(wire::AttestResponse { revision: revision.0 }))
    }

    async fn revoke(
        &self,
        request: Request<wire::RevokeRequest>,
    ) -> Result<Response<wire::RevokeResponse>, Status> {
        self.mesh.refuse_at_an_area("trust is taken back")?;
        let request = request.into_inner();
        let subject = subject(request.subject)?;
        if request.reason.len() > MAX_NACK_BYTES {
            return Err(Status::invalid_argument(format!("a reason has at most {MAX_NACK_BYTES} bytes")));
        }
        let revoked = revoke(&*self.store, &subject, &request.reason, self.mesh.clock.best()).await;
        let revision = revoked.map_err(revocation_failed)?;
        self.pushed(revision).await;
        tracing::info!(?subject, "revoked");
        Ok(Response::new(wire::RevokeResponse { revision: revision.0 }))
    }

    async fn lift_revocation(
        &self,
        request: Request<wire::LiftRevocationRequest>,
    ) -> Result<Response<wire::LiftRevocationResponse>, Status> {
        self.mesh.refuse_at_an_area("revocations are lifted")?;
        let id = SpiffeId::parse(&request.into_inner().spiffe_id)
            .map_err(|error| Status::invalid_argument(format!("no SPIFFE ID: {error}")))?;
        let lifted = revocation::lift(&*self.store, &id, self.mesh.clock.best()).await;
        let Some(revision) = lifted.map_err(revocation_failed)? else {
            return Err(Status::not_found(format!("{id} is not revoked")));
        };
        self.pushed(revision).await;
        tracing::info!(%id, "revocation lifted");
        Ok(Response::new(wire::LiftRevocationResponse { revision: revision.0 }))
    }

    async fn list_revocations(
        &self,
        _: Request<wire::ListRevocationsRequest>,
    ) -> Result<Response<wire::ListRevocationsResponse>, Status> {
        let listed = records::list::<Revocation>(&*self.store, REVOCATIONS).await.map_err(store_failed)?;
        let mut listed: Vec<Revocation> = listed.into_iter().map(|found| found.record).collect();
        listed.sort_by_key(|revocation| std::cmp::Reverse(revocation.revoked_at));
        let more = listed.len().saturating_sub(REVOCATIONS_LISTED);
        let revocations = listed.into_iter().take(REVOCATIONS_LISTED).map(revoked).collect();
        Ok(Response::new(wire::ListRevocationsResponse { revocations, more: more as u64 }))
    }

    async fn rotate(
        &self,
        request: Request<wire::RotateRequest>,
    ) -> Result<Response<wire::RotationState>, Status> {
        let request = request.into_inner();
        rotate::same_domain(&self.mesh, &request.trust_domain)?;
        let what = rotate::target(request.target())?;
        self.mesh.refuse_at_an_area("issuers and roots are rotated")?;
        let areas = self.mesh.authority.areas();
        // Their issuers are of the root in force, and nothing waits for those that are cut off.
        if what == What::Root && !request.emergency && !areas.names().is_empty() {
            return Err(Status::failed_precondition(format!(
                "areas: the root is not rotated while there are areas, whose issuers would end with it: {}; revoke them first                  (signet area revoke), rotate, and add them anew",
                areas.names().join(", ")
            )));
        }
        let serving = self.mesh.replicas.serving(self.mesh.clock.best()).await.map_err(store_failed)?;
        if serving.len() > 1 {
            // Each knows of its own proxies only, and has its own file of keys.
            return Err(Status::failed_precondition(
                "several control planes serve from this store: stop all but one, rotate there, and start the others with \
                 copies of its authority.pem",
            ));
        }
        let begun = driver::rotate(&self.mesh, what, request.emergency).await;
        self.pushed(begun.map_err(rotate::refused)?).await;
        tracing::info!(?what, emergency = request.emergency, "rotation begun");
        rotate::state(&self.mesh).await.map(Response::new)
    }

    async fn rotation(
        &self,
        request: Request<wire::RotationRequest>,
    ) -> Result<Response<wire::RotationState>, Status> {
        rotate::same_domain(&self.mesh, &request.into_inner().trust_domain)?;
        rotate::state(&self.mesh).await.map(Response::new)
    }

    async fn abort_rotation(
        &self,
        request: Request<wire::AbortRotationRequest>,
    ) -> Result<Response<wire::RotationState>, Status> {
        rotate::same_domain(&self.mesh, &request.into_inner().trust_domain)?;
        let called_off = driver::call_off(&self.mesh).await;
        self.pushed(called_off.map_err(rotate::refused)?).await;
        tracing::info!("rotation called off");
        rotate::state(&self.mesh).await.map(Response::new)
    }

    async fn list_proxies(
        &self,
        _: Request<wire::ListProxiesRequest>,
    ) -> Result<Response<wire::ListProxiesResponse>, Status> {
        let registrations = records::list::<Registration>(&*self.store, records::REGISTRATIONS)
            .await
            .map_err(store_failed)?;
        let connected = self.mesh.streams.of_instances();
        let mut proxies = Vec::new();
        for registration in registrations {
            for instance in registration.record.instances {
                let stream = connected.get(&(registration.record.id.clone(), instance.first.clone()));
                let newest = instance.leaves.last();
                let leaf = newest.map_or(instance.first, |leaf| leaf.fingerprint.clone());
                let not_after = newest.map_or(0, |leaf| leaf.not_after);
                let proxy = proxy(&registration.record.id, leaf, instance.network, stream.map(Arc::as_ref));
                let area = instance.area.filter(|_| stream.is_none()).unwrap_or_default();
                proxies.push(wire::Proxy { not_after, area, ..proxy });
            }
        }
        Ok(Response::new(wire::ListProxiesResponse { proxies }))
    }

    async fn add_area(
        &self,
        request: Request<wire::AddAreaRequest>,
    ) -> Result<Response<wire::AddAreaResponse>, Status> {
        self.mesh.refuse_at_an_area("areas are added")?;
        let wire::AddAreaRequest { name, networks, identities, budget_s } = request.into_inner();
        let slots = self.mesh.authority.slots();
        if slots.rotation.as_ref().is_some_and(|rotation| rotation.what == What::Root) {
            return Err(Status::failed_precondition(
                "the root is being rotated: add areas when that is over",
            ));
        }
        let model = self.model().await?;
        let wanted = Wanted { name, networks, identities, budget: Duration::from_secs(budget_s) };
        let name = wanted.name.clone();
        let added =
            areas::add(&*self.store, &self.mesh.authority, wanted, &model, self.mesh.clock.best()).await;
        let (token, expires, revision) = added.map_err(|error| services::areas::status(&error))?;
        self.pushed(revision).await;
        tracing::info!(area = name, "area added");
        Ok(Response::new(wire::AddAreaResponse { token: token.reveal(), expires }))
    }

    async fn list_areas(
        &self,
        _: Request<wire::ListAreasRequest>,
    ) -> Result<Response<wire::ListAreasResponse>, Status> {
        self.mesh.refuse_at_an_area("areas are listed")?;
        let all = areas::list(&*self.store).await.map_err(store_failed)?;
        let registrations = records::list::<Registration>(&*self.store, records::REGISTRATIONS)
            .await
            .map_err(store_failed)?;
        let instances: Vec<&str> = registrations
            .iter()
            .flat_map(|found| &found.record.instances)
            .filter_map(|instance| instance.area.as_deref())
            .collect();
        let shown = all.into_iter().map(|area| wire::Area {
            connected: self.mesh.streams.has_area(&area.name),
            instances: u32::try_from(instances.iter().filter(|of| **of == area.name).count())
                .unwrap_or(u32::MAX),
            not_after: area.joined.as_ref().map_or(0, |joined| joined.not_after),
            revoked_at: area.revoked_at.unwrap_or_default(),
            name: area.name,
            networks: area.networks,
            identities: area.identities,
            budget_s: area.budget_s,
        });
        Ok(Response::new(wire::ListAreasResponse { areas: shown.collect() }))
    }

    async fn revoke_area(
        &self,
        request: Request<wire::RevokeAreaRequest>,
    ) -> Result<Response<wire::RevokeAreaResponse>, Status> {
        self.mesh.refuse_at_an_area("areas are revoked")?;
        let name = request.into_inner().name;
        let revoked = areas::revoke_area(&*self.store, &name, self.mesh.clock.best()).await;
        let revision = revoked.map_err(|error| match error {
            AreaError::Unknown => Status::not_found(format!(
                "there is no area {}; signet area list shows all",
                name.escape_debug()
            )),
            error => services::areas::status(&error),
        })?;
        self.pushed(revision).await;
        tracing::info!(area = name, "area revoked");
        Ok(Response::new(wire::RevokeAreaResponse { revision: revision.0 }))
    }

    async fn list_edges(
        &self,
        _: Request<wire::ListEdgesRequest>,
    ) -> Result<Response<wire::ListEdgesResponse>, Status> {
        let now_ms = unix_seconds(self.mesh.clock.best()).saturating_add(1).saturating_mul(1_000);
        Ok(Response::new(edges::joined(self.mesh.streams.of_instances().into_values(), now_ms)))
    }

    async fn explain(
        &self,
        request: Request<wire::ExplainRequest>,
    ) -> Result<Response<wire::ExplainResponse>, Status> {
        match request.into_inner().question {
            Some(Question::Hypothetical(question)) => {
                let model = Arc::new(self.model().await?);
                let made = records::list::<Appointment>(&*self.store, APPOINTMENTS).await;
                let now = unix_seconds(self.mesh.clock.best());
                let (mut model, _) = appointments::effective(&model, made.map_err(store_failed)?, now);
                let published = self.mesh.published.borrow().clone();
                neighbours::join(Arc::make_mut(&mut model), &published.revocations, &published.offers);
                hypothetical(&model, &question).map(Response::new)
            }
            Some(Question::RequestId(id)) if !id.is_empty() && id.len() <= REQUEST_ID_BYTES => {
                let answers = self.mesh.streams.ask(&id).await;
                if answers.is_empty() {
                    return Err(Status::not_found(format!(
                        "no connected proxy remembers request {}; it may be too old",
                        id.escape_debug()
                    )));
                }
                let published = self.mesh.published.borrow().clone();
                Ok(Response::new(past::joined(&id, &answers, &published)))
            }
            Some(Question::RequestId(_)) => Err(Status::invalid_argument("that is not a request id")),
            None => Err(Status::invalid_argument("nothing is asked")),
        }
    }

    async fn info(&self, _: Request<wire::InfoRequest>) -> Result<Response<wire::InfoResponse>, Status> {
        let published = self.mesh.published.borrow().clone();
        let roots = self.mesh.authority.bundle().map_err(authority_failed)?;
        let issuing = self.mesh.authority.issuing().map_err(authority_failed)?;
        let area = self.mesh.authority.area();
        let now = self.mesh.clock.best().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        Ok(Response::new(wire::InfoResponse {
            trust_domain: self.trust_domain().to_string(),
            root_fingerprints: roots.roots().iter().map(|root| Fingerprint::of(root).to_string()).collect(),
            revision: published.manifests.revision().0,
            sections: published
                .sections
                .iter()
                .map(|(name, section)| wire::SectionInfo {
                    name: name.to_string(),
                    epoch: section.epoch,
                    counter: section.counter,
                })
                .collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            unix_ms: u64::try_from(now).unwrap_or(u64::MAX),
            root_certificates: roots.roots().iter().map(|root| root.to_vec()).collect(),
            issuer_not_after: unix_seconds(issuing.not_after()),
            area: area.map_or_else(String::new, |area| area.name().to_owned()),
            parent: area.map_or_else(String::new, |area| area.parent().to_owned()),
            heard_ms: area.map_or(0, |area| area.heard_ms()),
        }))
    }
}

pub(super) fn authority_failed(error: AuthorityError) -> Status {
    tracing::error!(%error, "the authority failed");
    Status::unavailable(format!("authority-unavailable: {error}"))
}

pub(super) fn store_failed(error: StoreError) -> Status {
    tracing::error!(%error, "the store failed");
    match error {
        StoreError::TooLarge { .. } => Status::invalid_argument(error.to_string()),
        StoreError::Conflict { .. } => busy(),
        _ => Status::unavailable(format!("store-unavailable: {error}")),
    }
}

fn revocation_failed(error: RevocationError) -> Status {
    match error {
        RevocationError::Full => Status::resource_exhausted(error.to_string()),
        RevocationError::Store(error) => store_failed(error),
    }
}

fn revoked(revocation: Revocation) -> wire::Revocation {
    use wire::revocation::Subject as Listed;
    let Revocation { subject, reason, revoked_at, expires, tampered, told_by: _ } = revocation;
    let subject = Some(match subject {
        Subject::Certificate(leaf) => Listed::Fingerprint(leaf.to_string()),
        Subject::Identity(id) => Listed::SpiffeId(id.to_string()),
    });
    let tampered = tampered.map(|id| id.to_string()).unwrap_or_default();
    wire::Revocation { subject, reason, revoked_at, expires: expires.unwrap_or_default(), tampered }
}

fn busy() -> Status {
    Status::aborted("somebody else keeps changing the same things, try again")
}

fn kind(text: &str) -> Result<Kind, Status> {
    text.parse().map_err(|error: signet_policy::UnknownKind| Status::invalid_argument(error.to_string()))
}

fn changes(outcome: &Outcome) -> Vec<wire::Change> {
    let change = |Change { kind, name, action, diff }: &Change| wire::Change {
        kind: kind.to_string(),
        name: name.clone(),
        action: wire::ChangeAction::from(*action).into(),
        diff: diff.clone(),
    };
    outcome.changes.iter().map(change).collect()
}

impl From<Action> for wire::ChangeAction {
    fn from(action: Action) -> Self {
        match action {
            Action::Created => Self::Created,
            Action::Deleted => Self::Deleted,
            Action::Unchanged => Self::Unchanged,
            Action::Updated => Self::Updated,
        }
    }
}

fn past_version(version: &Version) -> wire::PastVersion {
    let change = |RecordedChange { kind, name, action }: &RecordedChange| wire::Change {
        kind: kind.clone(),
        name: name.clone(),
        action: wire::ChangeAction::from(*action).into(),
        diff: String::new(),
    };
    wire::PastVersion {
        version: version.number,
        at: version.record.at,
        changes: version.record.changes.iter().map(change).collect(),
        more: u32::try_from(version.record.more).unwrap_or(u32::MAX),
    }
}

fn diagnostic(found: &signet_policy::Diagnostic) -> wire::Diagnostic {
    wire::Diagnostic {
        file: found.file.clone(),
        line: found.line,
        column: found.column,
        message: found.message.clone(),
        fix: found.fix.clone(),
    }
}

fn item(item: Item<'_>) -> wire::Item {
    // It was parsed when it was stored, so it is YAML; anything odd shows as null rather than failing the listing.
    let json = serde_saphyr::from_str::<serde_json::Value>(item.yaml).unwrap_or_default();
    wire::Item {
        kind: item.kind.to_string(),
        name: item.name.to_owned(),
        yaml: item.yaml.to_owned(),
        json: json.to_string(),
    }
}

fn grant(model: &PolicyModel, request: &wire::CreateTokenRequest) -> Result<Grant, Status> {
    let workload = workload(model, &request.workload)?;
    if workload.id.is_control_plane() {
        return Err(Status::invalid_argument("no token makes another control plane"));
    }
    let network = network(model, workload, &request.network)?;
    let ttl = match request.ttl_s {
        0 => token::DEFAULT_TTL,
        seconds => Duration::from_secs(seconds),
    };
    let (uses, instances) = (request.uses.max(1), request.instances.max(1));
    if ttl > token::TTL_MAX || uses > token::USES_MAX || instances > token::USES_MAX {
        return Err(Status::invalid_argument(format!(
            "a token lives at most {} seconds and has at most {} uses and instances",
            token::TTL_MAX.as_secs(),
            token::USES_MAX
        )));
    }
    Ok(Grant { id: workload.id.clone(), network, uses, instances, ttl })
}

/// A network of the mesh; without a name the workload's own.
fn network(model: &PolicyModel, workload: &WorkloadModel, name: &str) -> Result<String, Status> {
    let network = if name.is_empty() { &*workload.network } else { name };
    if model.network(network).is_some() {
        return Ok(network.to_owned());
    }
    let networks: Vec<&str> = model.networks.iter().map(|network| network.name.as_str()).collect();
    Err(Status::invalid_argument(format!(
        "the Mesh has no network {}; it has: {}",
        network.escape_debug(),
        networks.join(", ")
    )))
}

/// What an attestor says, if it can be believed.
fn statement(model: &PolicyModel, request: wire::AttestRequest) -> Result<Statement, Status> {
    let wire::AttestRequest { workload: name, network: named, instance, addresses } = request;
    let workload = workload(model, &name)?;
    let network = network(model, workload, &named)?;
    let valid = |letter: u8| letter.is_ascii_alphanumeric() || b"-_.:".contains(&letter);
    if instance.is_empty() || instance.len() > vouched::INSTANCE_MAX || !instance.bytes().all(valid) {
        return Err(Status::invalid_argument("an instance is named by up to 128 letters, digits and `-_.:`"));
    }
    if addresses.len() > vouched::ADDRESSES_MAX {
        let max = vouched::ADDRESSES_MAX;
        return Err(Status::invalid_argument(format!("an instance has at most {max} addresses")));
    }
    let addresses = addresses
        .iter()
        .map(|text| {
            let wrong = || Status::invalid_argument(format!("no IP address: {}", text.escape_debug()));
            text.parse().map_err(|_| wrong())
        })
        .collect::<Result<_, _>>()?;
    Ok(Statement { id: workload.id.clone(), instance, network, addresses })
}

/// A workload by its name or identity.
fn workload<'a>(model: &'a PolicyModel, text: &str) -> Result<&'a WorkloadModel, Status> {
    let named = || model.workload_named(text);
    let identified = || SpiffeId::parse(text).ok().and_then(|id| model.workload(&id));
    named().or_else(identified).ok_or_else(|| {
        Status::not_found(format!(
            "there is no Workload {}; {}, or apply its manifest first",
            text.escape_debug(),
            model.workload_hint(text)
        ))
    })
}

fn subject(subject: Option<wire::revoke_request::Subject>) -> Result<Subject, Status> {
    match subject {
        Some(wire::revoke_request::Subject::SpiffeId(text)) => SpiffeId::parse(&text)
            .map(Subject::Identity)
            .map_err(|error| Status::invalid_argument(error.to_string())),
        Some(wire::revoke_request::Subject::Fingerprint(text)) => text
            .parse()
            .map(Subject::Certificate)
            .map_err(|error: signet_identity::FingerprintError| Status::invalid_argument(error.to_string())),
        None => Err(Status::invalid_argument("say what to revoke: an identity or a fingerprint")),
    }
}

fn proxy(id: &SpiffeId, leaf: String, network: String, stream: Option<&Stream>) -> wire::Proxy {
    let report = stream.map(Stream::report).unwrap_or_default();
    let nack = report.sections.iter().find_map(|section| section.nack.as_ref());
    wire::Proxy {
        spiffe_id: id.to_string(),
        instance: leaf,
        connected: stream.is_some(),
        last_nack: nack
            .map_or_else(String::new, |nack| format!("{}: {}: {}", nack.name, nack.code, nack.error)),
        sections: report.sections.iter().map(section_state).collect(),
        status: report.status.map(|status| wire::ProxyStatus {
            unix_ms: status.unix_ms,
            capture_in_force: status.capture_in_force,
            canary_ok: status.canary_ok,
            tls_not_after: status.tls_not_after,
            signing_not_after: status.signing_not_after,
            open_connections: status.open_connections,
            refused: status.refused,
            clock_offset_ms: report.clock_offset_ms,
            wall_ahead_ms: status.wall_ahead_ms,
            unprotected: status.unprotected.map(|counted| wire::Unprotected {
                plaintext_in: counted.plaintext_in,
                plaintext_out: counted.plaintext_out,
                unsigned_requests: counted.unsigned_requests,
                unsigned_responses: counted.unsigned_responses,
                observed_refusals: counted.observed_refusals,
            }),
        }),
        network,
        version: stream.map_or_else(String::new, |stream| stream.version.clone()),
        not_after: 0,
        area: String::new(),
    }
}

fn section_state(state: &SectionState) -> wire::SectionState {
    wire::SectionState {
        name: state.name.to_string(),
        epoch: state.latest.map_or(0, |version| version.epoch),
        counter: state.latest.map_or(0, |version| version.counter),
        acked_epoch: state.acked.map_or(0, |version| version.epoch),
        acked_counter: state.acked.map_or(0, |version| version.counter),
    }
}

fn hypothetical(model: &PolicyModel, question: &wire::Hypothetical) -> Result<wire::ExplainResponse, Status> {
    let source = match question.source.as_str() {
        "" => None,
        text => Some(identity(model, text)?),
    };
    let destination = identity(model, &question.destination)?;
    let port = u16::try_from(question.port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| Status::invalid_argument("the port is not one"))?;
    let fields = question.headers.iter().map(|header| (header.name.as_str(), header.value.as_bytes()));
    let headers = RequestHeaders::new(fields);
    let layer = if question.opaque {
        Layer::Opaque
    } else {
        Layer::Http {
            method: &question.method,
            path: &question.path,
            authority: &question.authority,
            headers: Some(&headers),
        }
    };
    let origin = match question.source_address.as_str() {
        "" => Origin::LeftToDestination,
        text => Origin::Seen(
            text.parse().map_err(|_| Status::invalid_argument("the source address is no IP address"))?,
        ),
    };
    let now = if question.at == 0 { records::unix_seconds(clock::machine()) } else { question.at };
    let facts = Facts { source: source.as_ref(), origin, destination: &destination, port, layer, now };
    let explanation = explain(&PolicyIndex::new(model), &facts);
    let json = serde_json::to_string(&explanation)
        .map_err(|_| Status::internal("the explanation cannot be written"))?;
    Ok(wire::ExplainResponse { json, text: explanation.to_string() })
}

/// An identity by a workload's name, or any well-formed one: callers need not be workloads of this mesh.
fn identity(model: &PolicyModel, text: &str) -> Result<SpiffeId, Status> {
    if let Some(workload) = model.workload_named(text) {
        return Ok(workload.id.clone());
    }
    SpiffeId::parse(text).map_err(|_| {
        Status::not_found(format!(
            "{} is neither a Workload nor a SPIFFE ID; {}",
            text.escape_debug(),
            model.workload_hint(text)
        ))
    })
}
