//! PKCS#11 URIs (RFC 7512), as far as a place for keys needs them.

use std::path::PathBuf;

use thiserror::Error;

/// A token of a module, and where its PIN is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// The module: a shared library.
    pub module: PathBuf,
    /// File with the user's PIN.
    pub pin: PathBuf,
    /// Label of the token.
    pub token: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
}

/// Text that is no such URI.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum UriError {
    /// An attribute that is not understood; none is passed over.
    #[error("{0}= is not understood here; use token= and serial=, then ?module-path= and pin-source=")]
    Attribute(String),
    /// A `%` that is not followed by two hexadecimal digits, or what stands for no text.
    #[error("{0}= is not percent-encoded as it has to be (RFC 3986)")]
    Encoding(String),
    /// Something that is needed is missing.
    #[error(
        "{0} is missing; for example pkcs11:token=signet?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/signet/pin"
    )]
    Missing(&'static str),
    /// A PIN in the URI itself.
    #[error(
        "pin-value= would be seen in the process list; put the PIN into a file and name it by pin-source="
    )]
    PinValue,
    /// Not `pkcs11:`.
    #[error("it does not begin with pkcs11:")]
    Scheme,
    /// One attribute given twice.
    #[error("{0}= is given twice")]
    Twice(String),
}

impl Place {
    /// Reads one.
    ///
    /// # Errors
    /// [`UriError`], with what to write.
    pub fn parse(text: &str) -> Result<Self, UriError> {
        let rest = text.strip_prefix("pkcs11:").ok_or(UriError::Scheme)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (mut token, mut serial, mut module, mut pin) = (None, None, None, None);
        for (name, value) in attributes(path, ';') {
            match name {
                "token" => set(&mut token, name, value)?,
                "serial" => set(&mut serial, name, value)?,
                _ => return Err(UriError::Attribute(name.chars().take(32).collect())),
            }
        }
        for (name, value) in attributes(query, '&') {
            match name {
                "module-path" => set(&mut module, name, value)?,
                "pin-source" => set(&mut pin, name, value)?,
                "pin-value" => return Err(UriError::PinValue),
                _ => return Err(UriError::Attribute(name.chars().take(32).collect())),
            }
        }
        if token.is_none() && serial.is_none() {
            return Err(UriError::Missing("token= or serial="));
        }
        let pin = pin.ok_or(UriError::Missing("pin-source="))?;
        Ok(Self {
            module: module.ok_or(UriError::Missing("module-path="))?.into(),
            pin: pin.strip_prefix("file:").map(str::to_owned).unwrap_or(pin).into(),
            token,
            serial,
        })
    }
}

fn attributes(text: &str, separator: char) -> impl Iterator<Item = (&str, &str)> {
    let parts = text.split(separator).filter(|part| !part.is_empty());
    parts.map(|part| part.split_once('=').unwrap_or((part, "")))
}

fn set(place: &mut Option<String>, name: &str, value: &str) -> Result<(), UriError> {
    let decoded = decode(value).filter(|value| !value.is_empty());
    let decoded = decoded.ok_or_else(|| UriError::Encoding(name.to_owned()))?;
    match place.replace(decoded) {
        None => Ok(()),
        Some(_) => Err(UriError::Twice(name.to_owned())),
    }
}

/// Percent-decoding (RFC 3986 section 2.1).
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &str = "?module-path=/lib/m.so&pin-source=file:/etc/pin";

    #[test]
    fn a_place_is_a_token_of_a_module_with_a_pin_in_a_file() {
        let place = Place::parse(&format!("pkcs11:token=The%20mesh;serial=7{QUERY}")).unwrap();
        let expected = Place {
            module: "/lib/m.so".into(),
            pin: "/etc/pin".into(),
            token: Some("The mesh".into()),
            serial: Some("7".into()),
        };
        assert_eq!(place, expected);
        let bare = Place::parse("pkcs11:serial=7?pin-source=/etc/pin&module-path=/lib/m.so").unwrap();
        assert_eq!((bare.pin, bare.token), ("/etc/pin".into(), None));
    }

    #[test]
    fn what_is_not_understood_or_would_show_a_pin_is_refused() {
        let refused = |text: &str| Place::parse(text).unwrap_err();
        assert_eq!(refused("token=a"), UriError::Scheme);
        assert_eq!(refused(&format!("pkcs11:{QUERY}")), UriError::Missing("token= or serial="));
        assert_eq!(refused("pkcs11:token=a?module-path=/m"), UriError::Missing("pin-source="));
        assert_eq!(refused("pkcs11:token=a?pin-source=/p"), UriError::Missing("module-path="));
        assert_eq!(refused("pkcs11:token=a?pin-value=1234"), UriError::PinValue);
        assert_eq!(refused(&format!("pkcs11:object=a{QUERY}")), UriError::Attribute("object".into()));
        assert_eq!(refused(&format!("pkcs11:token=a;token=b{QUERY}")), UriError::Twice("token".into()));
        for bad in ["%", "%4", "%zz", "%ff", "%00", ""] {
            let text = format!("pkcs11:token={bad}{QUERY}");
            assert_eq!(refused(&text), UriError::Encoding("token".into()), "{bad}");
        }
    }
}
