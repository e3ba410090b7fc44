//! One authority and two ECDSA P-256 leaves for the peers, made for each pair anew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// The name in the client side's certificate.
pub const CLIENT_NAME: &str = "client.load.example";
/// The name in the server side's certificate.
pub const SERVER_NAME: &str = "server.load.example";

/// What one side is given.
#[derive(Clone, Debug)]
pub struct Files {
    /// The authority, PEM.
    pub authority: PathBuf,
    /// Its own certificate, PEM.
    pub certificate: PathBuf,
    /// Its own key, PEM.
    pub key: PathBuf,
    /// Certificate and key in one file.
    pub bundle: PathBuf,
}

/// Makes both sides' files in a folder: the client's, the server's.
///
/// # Errors
/// A folder that cannot be written to.
pub fn make(folder: &Path) -> io::Result<[Files; 2]> {
    let mut params = CertificateParams::new(Vec::new()).map_err(io::Error::other)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "load test authority");
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let authority = folder.join("authority.pem");
    fs::write(&authority, params.self_signed(&key).map_err(io::Error::other)?.pem())?;
    let issuer = Issuer::new(params, key);
    Ok([leaf(folder, CLIENT_NAME, &authority, &issuer)?, leaf(folder, SERVER_NAME, &authority, &issuer)?])
}

fn leaf(folder: &Path, name: &str, authority: &Path, issuer: &Issuer<'_, KeyPair>) -> io::Result<Files> {
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(io::Error::other)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let certificate = params.signed_by(&key, issuer).map_err(io::Error::other)?.pem();
    let at = |suffix: &str| folder.join(format!("{name}.{suffix}"));
    let files = Files {
        authority: authority.into(),
        certificate: at("certificate.pem"),
        key: at("key.pem"),
        bundle: at("bundle.pem"),
    };
    fs::write(&files.certificate, &certificate)?;
    fs::write(&files.key, key.serialize_pem())?;
    fs::write(&files.bundle, certificate + &key.serialize_pem())?;
    Ok(files)
}
