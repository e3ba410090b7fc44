//! The plain programs that the demonstration protects: they know nothing of the mesh.

pub mod apps;
pub mod clients;
