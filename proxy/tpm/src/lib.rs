//! Keys in a TPM 2.0: made there, used there, and never seen outside.
//!
//! ```text
//! control plane                                    device
//!   challenge ── credential for (EK, key's name) ──► Tpm::activate ── only the TPM that has both answers
//!                                                    Tpm: KeyModule ── signs for channels
//! ```
//!
//! * [`Tpm`] – a device's TPM, on a thread of its own: a chip takes tenths of a second, or hangs.
//! * [`challenge`] – what proves that a key lies in the TPM of a certain endorsement key (TPM 2.0 part 1, section 24).
//! * [`EndorsementKey`] – which TPM it is.
//!
//! The commands are few, so they are written here by their bytes; "part 2" and "part 3" are those of the TPM 2.0 Library
//! Specification, revision 1.59.

mod credential;
mod device;
mod object;
mod tpm;
mod wire;

pub use credential::{Challenge, ChallengeError, SECRET_BYTES, answer, challenge};
pub use object::{EndorsementKey, EndorsementKeyError};
pub use tpm::{Place, Tpm, TpmError};
