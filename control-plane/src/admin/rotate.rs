//! What an operator sees and asks of a rotation.

use signet_identity::{Fingerprint, SpiffeId};
use signet_sync::proto::admin as wire;
use tonic::{Code, Status};

use super::service::{authority_failed, store_failed};
use crate::authority::slots::{Outcome, Phase, What, Why};
use crate::rotation::driver::{self, DriveError};
use crate::rotation::survey::Survey;
use crate::services::Mesh;

/// Instances of each kind that are named in one answer; all are counted.
const NAMED_MAX: usize = 256;

/// What is to be replaced.
pub(super) fn target(target: wire::RotationTarget) -> Result<What, Status> {
    match target {
        wire::RotationTarget::Issuer => Ok(What::Issuer),
        wire::RotationTarget::Root => Ok(What::Root),
        wire::RotationTarget::Unspecified => Err(Status::invalid_argument("say whether issuer or root")),
    }
}

/// The trust domain must be the one served, if one is named.
pub(super) fn same_domain(mesh: &Mesh, asked: &str) -> Result<(), Status> {
    let own = mesh.authority.trust_domain().as_str();
    if asked.is_empty() || asked == own {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("this control plane serves {own}, not {}", asked.escape_debug())))
}

/// How far the rotation is.
pub(super) async fn state(mesh: &Mesh) -> Result<wire::RotationState, Status> {
    let (slots, keyring) = (mesh.authority.slots(), mesh.authority.keyring());
    let published = mesh.published.borrow().clone();
    let survey = match &slots.rotation {
        Some(_) => driver::look(mesh, &slots, &published).await.map_err(store_failed)?,
        None => Survey::default(),
    };
    let fingerprints = |root: &str, issuer: &str| {
        keyring.pair(root, issuer).map(|pair| {
            let of = |der: &[u8]| Fingerprint::of(der).to_string();
            (of(pair.root_der()), of(pair.issuer_der()))
        })
    };
    let (root, issuer) = fingerprints(&slots.root, &slots.issuer).unwrap_or_default();
    let next = slots.rotation.as_ref().and_then(|next| fingerprints(&next.root, &next.issuer));
    let (next_root, next_issuer) = next.unwrap_or_default();
    let retired = slots.retired.iter().filter_map(|retired| {
        let root = keyring.root(&retired.root)?;
        Some(wire::RetiredRoot {
            fingerprint: Fingerprint::of(root).to_string(),
            until: retired.until,
            emergency: retired.why == Why::Emergency,
        })
    });
    let mut state = wire::RotationState {
        trust_domain: mesh.authority.trust_domain().to_string(),
        number: slots.number,
        root,
        issuer,
        next_root,
        next_issuer,
        ready: count(survey.ready),
        waiting_count: count(survey.waiting.len()),
        parked_count: count(survey.parked.len()),
        waiting: named(survey.waiting.iter().map(|(id, instance, lacks)| (id, instance, lacks.to_string()))),
        parked: named(survey.parked.iter().map(|(id, instance)| (id, instance, String::new()))),
        retired: retired.collect(),
        ..wire::RotationState::default()
    };
    if let Some(rotation) = &slots.rotation {
        state.set_phase(match rotation.phase {
            Phase::Distributing => wire::RotationPhase::Distributing,
            Phase::Reissuing => wire::RotationPhase::Reissuing,
            Phase::Returning => wire::RotationPhase::Returning,
        });
        state.set_target(rotation.what.into());
        state.began = rotation.began;
    }
    if let Some(last) = &slots.last {
        state.last_number = last.number;
        state.set_last_target(last.what.into());
        state.set_last_outcome(match last.outcome {
            Outcome::Completed => wire::RotationOutcome::Completed,
            Outcome::Emergency => wire::RotationOutcome::Emergency,
            Outcome::Reversed => wire::RotationOutcome::Reversed,
        });
        state.last_at = last.at;
    }
    Ok(state)
}

fn count(holders: usize) -> u32 {
    u32::try_from(holders).unwrap_or(u32::MAX)
}

fn named<'a>(holders: impl Iterator<Item = (&'a SpiffeId, &'a String, String)>) -> Vec<wire::RotationHolder> {
    let holder = |(id, instance, why): (&SpiffeId, &String, String)| wire::RotationHolder {
        spiffe_id: id.to_string(),
        instance: instance.clone(),
        why,
    };
    holders.take(NAMED_MAX).map(holder).collect()
}

pub(super) fn refused(error: DriveError) -> Status {
    match error {
        DriveError::Authority(error) => authority_failed(error),
        DriveError::Clock(error) => Status::unavailable(format!("{}: {error}", error.code())),
        DriveError::Rotation(error) => Status::new(Code::FailedPrecondition, error.to_string()),
        DriveError::Store(error) => store_failed(error),
    }
}

impl From<What> for wire::RotationTarget {
    fn from(what: What) -> Self {
        match what {
            What::Issuer => Self::Issuer,
            What::Root => Self::Root,
        }
    }
}
