//! The demonstration: two small agents on this machine, without and with the mesh.
//!
//! [`apps`] and [`clients`] are plain programs that know nothing of the mesh. `agents` puts them on machines, `story` tells
//! what happens, `checks` look, `report` keeps what was found.

pub(crate) mod agents;
pub mod apps;
mod checks;
pub mod clients;
mod report;
pub(crate) mod run;
mod story;
