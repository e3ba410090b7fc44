//! An X.509-SVID from the Workload API of another SPIFFE implementation, such as SPIRE's agent, for evidence alone.

use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use signet_identity::{AttestationError, Enrolling, MAX_CHAIN, attest};
use signet_sync::proto::sync as wire;
use tokio::net::UnixStream;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;

use crate::control::proof::ProofError;
use crate::workload_api::SECURITY_HEADER;
use crate::workload_api::proto::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::workload_api::proto::{X509svid, X509svidRequest};

/// How long the Workload API may take for its first answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest answer: some SVIDs with their chains, and bundles of federated domains.
const ANSWER_BYTES: usize = 1024 * 1024;

/// An SVID and its key. It is asked for anew for each enrolment, and dropped after.
pub(in crate::control) struct Svid {
    chain: Vec<Vec<u8>>,
    key: PrivateKeyDer<'static>,
}

impl Svid {
    /// What the control plane's attestor `spiffe` checks.
    pub(in crate::control) fn evidence(&self, enrolling: Enrolling<'_>) -> Result<Vec<u8>, AttestationError> {
        let (scheme, signature) = attest(&self.key, enrolling)?;
        let chain = self.chain.clone();
        Ok(wire::SvidEvidence { chain, scheme: scheme.into(), signature }.encode_to_vec())
    }

    fn read(given: X509svid) -> Result<Self, &'static str> {
        let chain = certificates(&given.x509_svid).ok_or("its chain is malformed or too long")?;
        Ok(Self { chain, key: PrivatePkcs8KeyDer::from(given.x509_svid_key).into() })
    }
}

/// Asks for the default SVID, which is the first.
pub(super) async fn svid(path: &Path) -> Result<Svid, ProofError> {
    let failed = |reason: String| ProofError::Svid { path: path.to_owned(), reason };
    let asking = async {
        // Tried by hand first: tonic's own error does not say what is wrong with the socket.
        UnixStream::connect(path).await.map_err(|error| error.to_string())?;
        let at = path.to_owned();
        let connector = tower::service_fn(move |_| {
            let at = at.clone();
            async move { UnixStream::connect(at).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://workload-api.invalid");
        let channel = endpoint.connect_with_connector(connector).await.map_err(|error| error.to_string())?;
        let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
        let mut request = Request::new(X509svidRequest {});
        request.metadata_mut().insert(SECURITY_HEADER, MetadataValue::from_static("true"));
        let mut answers = client.fetch_x509svid(request).await.map_err(|status| told(&status))?.into_inner();
        let answer = answers.message().await.map_err(|status| told(&status))?;
        let first = answer.and_then(|answer| answer.svids.into_iter().next()).ok_or("it has none")?;
        Ok::<_, String>(Svid::read(first)?)
    };
    let asked = tokio::time::timeout(ANSWER_TIMEOUT, asking).await;
    asked.unwrap_or_else(|_| Err("no answer within 30 s".to_owned())).map_err(failed)
}

fn told(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// DER certificates one after the other, at least one and no more than a chain has.
fn certificates(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut chain = Vec::new();
    while !bytes.is_empty() {
        // A SEQUENCE whose length takes two bytes: none is shorter than 128 or longer than 65,535.
        let [0x30, 0x82, high, low, ..] = *bytes else { return None };
        let (one, rest) = bytes.split_at_checked(4 + usize::from(u16::from_be_bytes([high, low])))?;
        if chain.len() >= MAX_CHAIN {
            return None;
        }
        chain.push(one.to_vec());
        bytes = rest;
    }
    (!chain.is_empty()).then_some(chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_read_whole_or_not_at_all() {
        let one = [&[0x30, 0x82, 0x00, 0x90][..], &[7; 0x90]].concat();
        assert_eq!(certificates(&[&*one, &*one].concat()).unwrap(), [one.clone(), one.clone()]);
        for wrong in
            [&[][..], &one[..one.len() - 1], &[&*one, &[0x30]].concat(), b"junk", &one.repeat(MAX_CHAIN + 1)]
        {
            assert_eq!(certificates(wrong), None, "{} bytes", wrong.len());
        }
    }
}
