//! Authorities, servers and clients of the world outside the mesh.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use signet_identity::crypto_provider;

use crate::Failure;

/// An authority that has nothing to do with the mesh.
pub struct Outside {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Outside {
    /// A new one.
    ///
    /// # Errors
    /// A key cannot be made.
    pub fn new() -> Result<Self, Failure> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// Its own certificate as it stands in a manifest: one quoted line.
    ///
    /// # Errors
    /// Never: it is text.
    pub fn quoted(&self) -> Result<String, Failure> {
        Ok(serde_json::to_string(&self.pem)?)
    }

    /// A server that proves this name.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub fn server(&self, name: &str) -> Result<ServerConfig, Failure> {
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &self.issuer)?;
        let config = ServerConfig::builder_with_provider(crypto_provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))?;
        Ok(config)
    }
}

/// The first bytes of a TLS client that asks for this name.
///
/// # Errors
/// It is no name.
pub fn client_hello(name: &str) -> Result<Vec<u8>, Failure> {
    let config = ClientConfig::builder_with_provider(crypto_provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned())?;
    let mut client = ClientConnection::new(Arc::new(config), name)?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    Ok(hello)
}
