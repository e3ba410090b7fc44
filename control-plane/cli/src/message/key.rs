//! Keys from files: PEM, or an HMAC secret as base64 text.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use signet_signature::{Algorithm, KeyError, SigningKey, VerifyingKey};

/// Largest key file: an RSA-8192 private key has under 7 KiB of PEM.
const KEY_FILE_MAX: u64 = 64 * 1024;

/// Padded or not: people paste both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a key file gives no key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyFileError {
    /// A certificate where a key belongs.
    #[error(
        "the file holds a certificate: use --cert with --roots, or take its key out with `openssl x509 -pubkey`"
    )]
    Certificate,
    /// The key is no good, or of another type.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Neither PEM nor base64.
    #[error("the file is neither PEM nor an HMAC secret in base64")]
    NeitherPemNorBase64,
    /// A private key where a public one belongs.
    #[error("the file holds a private key: take the public one out with `openssl pkey -pubout`")]
    Private,
    /// A public key where a private one belongs.
    #[error("the file holds a public key: signing needs the private one")]
    Public,
    /// Larger than any key.
    #[error("the file is longer than {KEY_FILE_MAX} bytes")]
    TooLong,
    /// The file cannot be read.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
}

/// The key to sign with; `algorithm` chooses for a key that permits several.
pub(crate) fn signing_key(path: &Path, algorithm: Option<Algorithm>) -> Result<SigningKey, KeyFileError> {
    let bytes = read(path)?;
    let key = if is_pem(&bytes) {
        match SigningKey::from_pem(&bytes) {
            Err(KeyError::Missing) if holds(&bytes, "PUBLIC KEY-----") => return Err(KeyFileError::Public),
            Err(KeyError::Missing) if holds(&bytes, "CERTIFICATE-----") => return Err(KeyFileError::Public),
            key => key?,
        }
    } else {
        SigningKey::from_hmac_secret(&secret(&bytes)?)?
    };
    Ok(match algorithm {
        Some(algorithm) => key.with_algorithm(algorithm)?,
        None => key,
    })
}

/// The key to verify with; `algorithm` chooses for a key that permits several.
pub(crate) fn verifying_key(path: &Path, algorithm: Option<Algorithm>) -> Result<VerifyingKey, KeyFileError> {
    let bytes = read(path)?;
    let key = if is_pem(&bytes) {
        match VerifyingKey::from_pem(&bytes) {
            Err(KeyError::Missing) if holds(&bytes, "PRIVATE KEY-----") => return Err(KeyFileError::Private),
            Err(KeyError::Missing) if holds(&bytes, "CERTIFICATE-----") => {
                return Err(KeyFileError::Certificate);
            }
            key => key?,
        }
    } else {
        VerifyingKey::from_hmac_secret(&secret(&bytes)?)?
    };
    Ok(match algorithm {
        Some(algorithm) => key.with_algorithm(algorithm)?,
        None => key,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, KeyFileError> {
    let mut bytes = Vec::new();
    File::open(path)?.take(KEY_FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > KEY_FILE_MAX { Err(KeyFileError::TooLong) } else { Ok(bytes) }
}

fn secret(bytes: &[u8]) -> Result<Vec<u8>, KeyFileError> {
    let text: Vec<u8> = bytes.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    BASE64.decode(text).map_err(|_| KeyFileError::NeitherPemNorBase64)
}

fn is_pem(bytes: &[u8]) -> bool {
    holds(bytes, "-----BEGIN ")
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
