//! A token of a PKCS#11 module: makes keys, signs with them, destroys them.
//!
//! One session, on a thread of its own; one that broke is opened anew once for each thing that is asked. Every key is looked
//! for by its id when it is used: handles do not outlive sessions everywhere.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use signet_identity::{Apart, HeldKey, KeyModule, KeyModuleError, ecdsa_signature, hex, unhex};
use zeroize::Zeroizing;

use super::{ModuleError, Place};
use crate::{apart, files};

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

/// Certificates and rotations that wait for the token at a time.
const WAITING_MAX: usize = 64;
/// How long one waits: a module on the network that fails over takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// A token that is logged in to. PKCS#11 knows no deadlines, so it is asked on a thread of its own.
pub(super) struct Module {
    slot: Slot,
    token: Apart<Token>,
}

struct Token {
    context: Pkcs11,
    slot: Slot,
    /// Kept, for a session that breaks is opened again without a person.
    pin: AuthPin,
    session: Option<Session>,
    /// It refused the PIN: a few more and it locks itself.
    refuses_pin: bool,
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
        let mut token = Token { context, slot, pin, session: None, refuses_pin: false };
        token.session = Some(token.log_in().map_err(refused("the token does not let us in"))?);
        let token = Apart::new("pkcs11", token, WAITING_MAX, PATIENCE);
        let token = token.map_err(|error| ModuleError::Refused {
            what: "no thread can be started",
            why: error.to_string(),
        })?;
        Ok(Self { slot, token })
    }

    fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Token) -> Result<T, KeyModuleError> + Send + 'static,
    ) -> Result<T, KeyModuleError> {
        apart::ask(&self.token, act).unwrap_or_else(|why| Err(KeyModuleError(format!("the token: {why}"))))
    }
}

impl Token {
    fn log_in(&mut self) -> Result<Session, Error> {
        let session = self.context.open_rw_session(self.slot)?;
        match session.login(UserType::User, Some(&self.pin)) {
            // Of another session of this process: it counts for all.
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
            Err(error) => {
                self.refuses_pin |=
                    matches!(&error, Error::Pkcs11(RvError::PinIncorrect | RvError::PinLocked, _));
                Err(error)
            }
        }
    }

    /// Does something in the session, and once more in a new one if that fails.
    fn with<T>(
        &mut self,
        what: &str,
        act: impl Fn(&Session) -> Result<T, Fault>,
    ) -> Result<T, KeyModuleError> {
        if let Some(session) = self.session.as_ref() {
            match act(session) {
                Err(Fault::Module(error)) => {
                    tracing::warn!(error = told(&error), "the token's session is opened anew");
                }
                outcome => return outcome.map_err(|fault| fault.of(what)),
            }
        }
        if self.refuses_pin {
            let reason = "the token refused the PIN and would lock itself; set the PIN right and start again";
            return Err(Fault::Ours(reason).of(what));
        }
        // The old one goes first: some tokens have room for one.
        self.session = None;
        let session = self.log_in().map_err(|error| Fault::Module(error).of(what))?;
        let outcome = act(&session);
        self.session = Some(session);
        outcome.map_err(|fault| fault.of(what))
    }

    fn generate(&mut self) -> Result<HeldKey, KeyModuleError> {
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

    fn sign(&mut self, reference: &str, hash: &[u8]) -> Result<Vec<u8>, KeyModuleError> {
        self.with("sign", |session| {
            let key = find(session, reference, ObjectClass::PRIVATE_KEY)?;
            let key = key.ok_or(Fault::Ours("the token does not have this key of the authority"))?;
            let signature = session.sign(&Mechanism::Ecdsa, key, hash)?;
            signature_der(&signature).ok_or(Fault::Ours("the token's signature is none of P-256"))
        })
    }

    fn destroy(&mut self, reference: &str) -> Result<(), KeyModuleError> {
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

impl KeyModule for Module {
    fn generate(&self) -> Result<HeldKey, KeyModuleError> {
        self.ask(Token::generate)
    }

    fn sign(&self, reference: &str, message: &[u8]) -> Result<Vec<u8>, KeyModuleError> {
        let (name, hash) = (reference.to_owned(), digest(&SHA256, message));
        let signed = self.ask(move |token| token.sign(&name, hash.as_ref()));
        signed.inspect_err(|error| tracing::error!(key = reference, %error, "nothing is signed"))
    }

    fn destroy(&self, reference: &str) -> Result<(), KeyModuleError> {
        let name = reference.to_owned();
        self.ask(move |token| token.destroy(&name))
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
    let id =
        unhex::<ID>(reference).ok_or(Fault::Ours("authority.pem names a key that is none of this module"))?;
    let wanted = [Attribute::Class(class), Attribute::Id(id.to_vec()), Attribute::KeyType(KeyType::EC)];
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
}
