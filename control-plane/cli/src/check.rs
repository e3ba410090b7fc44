//! What `signet check` looks at, as facts in and [findings](finding::Finding) out.
//!
//! - [`mesh`]: control plane, policy and the mesh as a whole; [`proxy`]: one sidecar, by its own report.
//! - [`machine`], before anything is installed: [`trial`] tries capture in a network of its own, [`engines`] asks Docker,
//!   Compose and kubectl.
//! - [`finding`]: the list of everything that can be found, each with what to do about it; [`report`]: how it is shown.
//!
//! Judging is pure: what was asked of a control plane or a machine goes in with the time, and findings come out.

pub(crate) mod engines;
pub(crate) mod finding;
pub(crate) mod machine;
pub(crate) mod mesh;
pub(crate) mod proxy;
pub(crate) mod report;
pub(crate) mod trial;
pub(crate) mod version;
