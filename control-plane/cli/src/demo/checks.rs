//! What the demonstration looks at, one file per promise.

pub(super) mod calls;
pub(super) mod forgery;
pub(super) mod outage;
pub(super) mod policy;
pub(super) mod rotation;
pub(super) mod wire;

use crate::lab::LabError;
use crate::lab::mesh::MeshError;
use crate::lab::mesh::intruder::IntruderError;

/// Why a check could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    #[error(transparent)]
    Intruder(#[from] IntruderError),
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Mesh(#[from] MeshError),
}
