//! The application's side of SPIFFE's Workload API, over the socket of its sidecar.

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use signet_cli::lab::mesh::{Mesh, Setup};
use signet_identity::AppSvid;
use signet_proxy::workload_api::proto::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use signet_proxy::workload_api::proto::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, ValidateJwtsvidRequest, ValidateJwtsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use crate::{Failure, LIMIT};

/// One sidecar's socket.
#[derive(Clone, Debug)]
pub struct WorkloadSocket(PathBuf);

impl WorkloadSocket {
    /// Where a workload's sidecar is to listen, and the setup that makes it listen there for these users.
    pub fn of(mesh: &Mesh, workload: &str, uids: &str) -> (Self, Setup) {
        let path = mesh.folder().join(format!("{workload}.workload-api"));
        let place = path.display().to_string();
        let flags = ["--workload-api-socket", &place, "--workload-api-uid", uids].map(str::to_owned).to_vec();
        (Self(path), Setup { flags, ..Setup::default() })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// An application that uses it.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn application(&self) -> Result<Application, Failure> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let path = self.0.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = runtime.block_on(
            Endpoint::from_static("http://workload-api.invalid").connect_with_connector(connector),
        )?;
        Ok(Application { client: SpiffeWorkloadApiClient::new(channel), runtime })
    }
}

/// An application that holds a connection.
#[derive(Debug)]
pub struct Application {
    runtime: Runtime,
    client: SpiffeWorkloadApiClient<Channel>,
}

/// Answers that follow each other.
#[derive(Debug)]
pub struct Updates<T>(Streaming<T>);

/// What was received in place of the certificate, its key, and the roots.
#[derive(Debug)]
pub struct X509 {
    /// Chain and key.
    pub svid: AppSvid,
    /// Roots.
    pub roots: Vec<CertificateDer<'static>>,
}

impl X509 {
    /// Reads an answer with one SVID.
    ///
    /// # Errors
    /// It is not as SPIFFE has it, or none of an application's.
    pub fn read(answer: X509svidResponse) -> Result<Self, Failure> {
        let [svid] = <[_; 1]>::try_from(answer.svids).map_err(|_| "not one SVID")?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.x509_svid_key));
        let read = AppSvid::new(certificates(&svid.x509_svid)?, key.into())?;
        if read.id.as_str() != svid.spiffe_id {
            return Err(format!("{} is given for {}", read.id, svid.spiffe_id).into());
        }
        Ok(Self { svid: read, roots: certificates(&svid.bundle)? })
    }
}

/// Certificates one after the other.
///
/// # Errors
/// The bytes are something else.
pub fn certificates(mut bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let mut found = Vec::new();
    while let [0x30, 0x82, high, low, ..] = *bytes {
        let length = 4 + usize::from(u16::from_be_bytes([high, low]));
        let (one, rest) = bytes.split_at_checked(length).ok_or("half a certificate")?;
        found.push(CertificateDer::from(one.to_vec()));
        bytes = rest;
    }
    if bytes.is_empty() { Ok(found) } else { Err("no certificate".into()) }
}

impl Application {
    fn wait<T>(&self, asking: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let late = |_| Status::deadline_exceeded("no answer in time");
        self.runtime.block_on(async { tokio::time::timeout(LIMIT, asking).await.map_err(late)? })
    }

    /// Follows its X.509-SVIDs.
    ///
    /// # Errors
    /// What the sidecar answers.
    pub fn x509_svids(&self) -> Result<Updates<X509svidResponse>, Status> {
        let mut client = self.client.clone();
        let answer = self.wait(client.fetch_x509svid(meant(X509svidRequest {})))?;
        Ok(Updates(answer.into_inner()))
    }

    /// Follows the roots.
    ///
    /// # Errors
    /// What the sidecar answers.
    pub fn x509_bundles(&self) -> Result<Updates<X509BundlesResponse>, Status> {
        let mut client = self.client.clone();
        let answer = self.wait(client.fetch_x509_bundles(meant(X509BundlesRequest {})))?;
        Ok(Updates(answer.into_inner()))
    }

    /// Follows the keys of tokens.
    ///
    /// # Errors
    /// What the sidecar answers.
    pub fn jwt_bundles(&self) -> Result<Updates<JwtBundlesResponse>, Status> {
        let mut client = self.client.clone();
        let answer = self.wait(client.fetch_jwt_bundles(meant(JwtBundlesRequest {})))?;
        Ok(Updates(answer.into_inner()))
    }

    /// A token for these audiences.
    ///
    /// # Errors
    /// What the sidecar answers.
    pub fn token(&self, audience: &[&str], subject: &str) -> Result<String, Status> {
        let audience = audience.iter().map(|&one| one.to_owned()).collect();
        let request = JwtsvidRequest { audience, spiffe_id: subject.to_owned() };
        let mut client = self.client.clone();
        let mut answer = self.wait(client.fetch_jwtsvid(meant(request)))?.into_inner();
        answer.svids.pop().map(|svid| svid.svid).ok_or_else(|| Status::internal("no token"))
    }

    /// Has a token verified.
    ///
    /// # Errors
    /// What the sidecar answers.
    pub fn validate(&self, audience: &str, token: &str) -> Result<ValidateJwtsvidResponse, Status> {
        let request = ValidateJwtsvidRequest { audience: audience.to_owned(), svid: token.to_owned() };
        let mut client = self.client.clone();
        Ok(self.wait(client.validate_jwtsvid(meant(request)))?.into_inner())
    }

    /// Asks for an X.509-SVID as somebody who was made to: without the metadata.
    ///
    /// # Errors
    /// What the sidecar answers.
    pub fn unmeant(&self) -> Result<(), Status> {
        let mut client = self.client.clone();
        self.wait(client.fetch_x509svid(Request::new(X509svidRequest {}))).map(drop)
    }

    /// The next answer; none at the end.
    ///
    /// # Errors
    /// What ended the stream.
    pub fn next<T>(&self, updates: &mut Updates<T>) -> Result<Option<T>, Status> {
        self.wait(updates.0.message())
    }

    /// Reads on until an answer is as wanted.
    ///
    /// # Errors
    /// The stream ended before.
    pub fn until<T, R>(
        &self,
        updates: &mut Updates<T>,
        mut wanted: impl FnMut(T) -> Option<R>,
    ) -> Result<R, Failure> {
        loop {
            let answer = self.next(updates)?.ok_or("the stream has ended")?;
            if let Some(found) = wanted(answer) {
                return Ok(found);
            }
        }
    }
}

/// The names of the keys in a JWK Set, under the one trust domain that there is.
///
/// # Errors
/// It is none.
pub fn key_ids(bundles: &HashMap<String, Vec<u8>>, trust_domain: &str) -> Result<Vec<String>, Failure> {
    let document = bundles.get(&format!("spiffe://{trust_domain}")).ok_or("another trust domain")?;
    let document: Value = serde_json::from_slice(document)?;
    let keys = document["keys"].as_array().ok_or("no keys")?;
    keys.iter().map(|key| Ok(key["kid"].as_str().ok_or("a key without a name")?.to_owned())).collect()
}

/// The code that something was refused with.
pub fn code<T>(answer: &Result<T, Status>) -> Code {
    answer.as_ref().map_or_else(Status::code, |_| Code::Ok)
}

fn meant<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", tonic::metadata::MetadataValue::from_static("true"));
    request
}
