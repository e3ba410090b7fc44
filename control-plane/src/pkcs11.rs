//! The keys of root and issuer in a hardware module, by PKCS#11 (OASIS, version 2.40 and later).
//!
//! Keys are made in the module and cannot be exported; `authority.pem` holds what they are known by. The keys that sign
//! sections stay in that file.
//!
//! A program that is linked statically cannot load a module, so this is a feature, `pkcs11`, of a build of its own. Without it
//! the setting is understood and refused.

#[cfg(feature = "pkcs11")]
mod module;
mod uri;

use signet_identity::Keys;
use thiserror::Error;

pub use self::uri::{Place, UriError};

/// The module cannot be used. No PIN is in it.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// This build loads no modules.
    #[error(
        "--authority-key: this build cannot load PKCS#11 modules; build it with --features signet-control-plane/pkcs11, not \
         for a static target"
    )]
    NotBuilt,
    /// The file with the PIN cannot be read.
    #[error("--authority-key: the PIN in {} cannot be read: {source}", path.display())]
    Pin {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No token, or more than one, is what the URI says.
    #[error(
        "--authority-key: {found} tokens of the module fit the URI, and one has to; `token=` and `serial=` tell them apart"
    )]
    Tokens {
        /// How many do.
        found: usize,
    },
    /// The module refused, in its own words.
    #[error("--authority-key: {what}: {why}")]
    Refused {
        /// What it was asked for.
        what: &'static str,
        /// What it said.
        why: String,
    },
}

/// Where keys are made: in the module of this place, or in memory without one.
#[cfg(feature = "pkcs11")]
pub(crate) fn keys(place: Option<&Place>) -> Result<Keys, ModuleError> {
    match place {
        Some(place) => Ok(Keys::Module(std::sync::Arc::new(module::Module::open(place)?))),
        None => Ok(Keys::Memory),
    }
}

/// In memory; a place that is asked for is refused.
#[cfg(not(feature = "pkcs11"))]
pub(crate) fn keys(place: Option<&Place>) -> Result<Keys, ModuleError> {
    match place {
        Some(_) => Err(ModuleError::NotBuilt),
        None => Ok(Keys::Memory),
    }
}
