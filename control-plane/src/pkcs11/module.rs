//! A token of a PKCS#11 module: makes keys, signs with them, destroys them.
//!
//! One session, used by one at a time; one that broke is opened anew once for each thing that is asked. Every key is looked
//! for by its id when it is used: handles do not outlive sessions everywhere.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use signet_identity::{HeldKey, KeyModule, KeyModuleError, ecdsa_signature};
use zeroize::Zeroizing;

use super::{ModuleError, Place};
use crate::files;

/// The named curve P-256, as DER (RFC 5480): `1.2.840.10045.3.1.7`.
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// Bytes of an uncompressed point on it.
const POINT: usize = 65;
/// Bytes of one half of a signature.
const SCALAR: usize = 32;
/// Bytes of a key's id: by chance, and no other key of the token has it.
const ID: usize = 16;
/// What people see beside the id.
const LABEL: &[u8] = b"signet authority";
/// The longest PIN that is read.
const PIN_BYTES_MAX: u64 = 256;

/// A token that is logged in to.
pub(super) struct Module {
    context: Pkcs11,
    slot: Slot,
    /// Kept, for a session that breaks is opened again without a person.
    pin: AuthPin,
    session: Mutex<Option<Session>>,
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module").field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl Module {
    /// Loads the module and logs in to the one token that fits.
    pub(super) fn open(place: &Place) -> Result<Self, ModuleError> {
        let refused = |what| move |error: Error| ModuleError::Refused { what, why: told(&error) };
        let context = Pkcs11::new(&place.module).map_err(refused("the module cannot be loaded"))?;
        match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(refused("the module cannot be initialised")(error)),
        }
        let slots =
            context.get_slots_with_initialized_token().map_err(refused("its tokens cannot be listed"))?;
        let mut fitting = Vec::new();
        for slot in slots {
            let token = context.get_token_info(slot).map_err(refused("a token cannot be looked at"))?;
            let fits = |wanted: &Option<String>, found: &str| {
                wanted.as_ref().is_none_or(|wanted| wanted == found.trim_end())
            };
            if fits(&place.token, token.label()) && fits(&place.serial, token.serial_number()) {
                fitting.push(slot);
            }
        }
        let [slot] = *fitting else { return Err(ModuleError::Tokens { found: fitting.len() }) };
        let pin = files::read(&place.pin, PIN_BYTES_MAX).map(Zeroizing::new);
        let pin = pin.map_err(|source| ModuleError::Pin { path: place.pin.clone(), source })?;
        let pin = AuthPin::new(pin.trim_end_matches(['\r', '\n']).into());
        let module = Self { context, slot, pin, session: Mutex::new(None) };
        let session = module.log_in().map_err(refused("the token does not let us in"))?;
        *module.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
        Ok(module)
    }

    fn log_in(&self) -> Result<Session, Error> {
        let session = self.context.open_rw_session(self.slot)?;
        match session.login(UserType::User, Some(&self.pin)) {
            // Of another session of this process: it counts for all.
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
            Err(error) => Err(error),
        }
    }

    /// Does something in the session, and once more in a new one if that fails.
    fn with<T>(&self, what: &str, act: impl Fn(&Session) -> Result<T, Fault>) -> Result<T, KeyModuleError> {
        let mut place = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = place.as_ref() {
            match act(session) {
                Err(Fault::Module(error)) => {
                    tracing::warn!(error = told(&error), "the token's session is opened anew");
                }
                outcome => return outcome.map_err(|fault| fault.of(what)),
            }
        }
        // The old one goes first: some tokens have room for one.
        *place = None;
        let session = self.log_in().map_err(|error| Fault::Module(error).of(what))?;
        let outcome = act(&session);
        *place = Some(session);
        outcome.map_err(|fault| fault.of(what))
    }
}

impl KeyModule for Module {
    fn generate(&self) -> Result<HeldKey, KeyModuleError> {
        let mut id = [0; ID];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| KeyModuleError("there is no randomness".to_owned()))?;
        self.with("make a key", |session| {
            let common =
                [Attribute::Token(true), Attribute::Id(id.to_vec()), Attribute::Label(LABEL.to_vec())];
            let public = [
                &common[..],
                &[Attribute::Private(false), Attribute::Verify(true), Attribute::EcParams(P256.to_vec())],
            ];
            let private = [
                &common[..],
                &[
                    Attribute::Private(true),
                    Attribute::Sensitive(true),
                    Attribute::Extractable(false),
                    Attribute::Sign(true),
                ],
            ];
            let (public, private) =
                session.generate_key_pair(&Mechanism::EccKeyPairGen, &public.concat(), &private.concat())?;
            let kept = is_kept(session, private)?;
            let point = point(session, public)?;
            if kept { Ok(point) } else { Err(Fault::Ours("the token made a key that can be exported")) }
        })
        .map(|point| HeldKey { reference: hex(&id), point })
    }

    fn sign(&self, reference: &str, message: &[u8]) -> Result<Vec<u8>, KeyModuleError> {
        let hash = digest(&SHA256, message);
        let signed = self.with("sign", |session| {
            let key = find(session, reference, ObjectClass::PRIVATE_KEY)?;
            let key = key.ok_or(Fault::Ours("the token does not have this key of the authority"))?;
            let signature = session.sign(&Mechanism::Ecdsa, key, hash.as_ref())?;
            signature_der(&signature).ok_or(Fault::Ours("the token's signature is none of P-256"))
        });
        signed.inspect_err(|error| tracing::error!(key = reference, %error, "nothing is signed"))
    }

    fn destroy(&self, reference: &str) -> Result<(), KeyModuleError> {
        self.with("destroy a key", |session| {
            for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
                if let Some(object) = find(session, reference, class)? {
                    session.destroy_object(object)?;
                }
            }
            Ok(())
        })
    }
}

/// Why something was not done.
enum Fault {
    Module(Error),
    Ours(&'static str),
}

impl Fault {
    fn of(self, what: &str) -> KeyModuleError {
        KeyModuleError(match self {
            Self::Module(error) => format!("the token cannot {what}: {}", told(&error)),
            Self::Ours(reason) => reason.to_owned(),
        })
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Module(error)
    }
}

/// The module's code, not the standard's paragraph about it.
fn told(error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => format!("{code:?} of {function}"),
        error => error.to_string(),
    }
}

fn find(session: &Session, reference: &str, class: ObjectClass) -> Result<Option<ObjectHandle>, Fault> {
    let id = unhex(reference).ok_or(Fault::Ours("authority.pem names a key that is none of this module"))?;
    let wanted = [Attribute::Class(class), Attribute::Id(id), Attribute::KeyType(KeyType::EC)];
    Ok(session.find_objects(&wanted)?.into_iter().next())
}

/// Whether the token says that the key never left it and never can.
fn is_kept(session: &Session, key: ObjectHandle) -> Result<bool, Fault> {
    let said = session.get_attributes(key, &[AttributeType::Sensitive, AttributeType::Extractable])?;
    Ok(said.contains(&Attribute::Sensitive(true)) && said.contains(&Attribute::Extractable(false)))
}

/// The public key: an OCTET STRING around the point, as the standard has it, or the bare point, as some tokens do.
fn point(session: &Session, key: ObjectHandle) -> Result<Vec<u8>, Fault> {
    let said = session.get_attributes(key, &[AttributeType::EcPoint])?;
    let point = said.into_iter().find_map(|attribute| match attribute {
        Attribute::EcPoint(point) => Some(point),
        _ => None,
    });
    let point = point.ok_or(Fault::Ours("the token does not show the public key"))?;
    let bare = point.strip_prefix(&[0x04, POINT as u8]).unwrap_or(&point);
    let is_uncompressed = bare.len() == POINT && bare.first() == Some(&0x04);
    if is_uncompressed {
        Ok(bare.to_vec())
    } else {
        Err(Fault::Ours("the token's public key is none of P-256"))
    }
}

/// The two halves, one after the other, as a certificate has them.
fn signature_der(halves: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = halves.split_at_checked(SCALAR).filter(|(_, s)| s.len() == SCALAR)?;
    ecdsa_signature(r, s)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 2 * ID || !text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_has_both_halves() {
        assert_eq!(signature_der(&[1; 2 * SCALAR]).unwrap().len(), 2 + 2 * (2 + SCALAR));
        for length in [0, SCALAR, 2 * SCALAR - 1, 2 * SCALAR + 1] {
            assert_eq!(signature_der(&vec![1; length]), None, "{length}");
        }
    }

    #[test]
    fn ids_are_read_as_they_are_written() {
        let id = [0xab; ID];
        assert_eq!(unhex(&hex(&id)).unwrap(), id);
        for bad in ["", "ab", &"zz".repeat(ID), &"+1".repeat(ID), &"AB".repeat(ID)] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }
}
