//! Asks the control plane for what the application gets, on a connection of its own.

use std::future::Future;

use rustls_pki_types::CertificateDer;
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::identity_client::IdentityClient;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::control::Node;
use crate::control::enrol::{CALL_TIMEOUT, certificates};
use crate::workload_api::{Answer, AskError, Question};

/// Answers one question after the other, for ever.
pub(super) async fn serve(node: &Node, questions: &mut mpsc::Receiver<Question>) {
    while let Some(question) = questions.recv().await {
        match question {
            Question::Certificate(csr, answer) => answer_with(answer, certificate(node, csr)).await,
            Question::Token(audience, answer) => answer_with(answer, token(node, audience)).await,
        }
    }
    std::future::pending().await
}

/// Who asked may leave at any time; then nothing more is done.
async fn answer_with<T>(mut answer: Answer<T>, asking: impl Future<Output = Result<T, AskError>>) {
    let asked = tokio::select! {
        asked = asking => asked,
        () = answer.closed() => return,
    };
    let _ = answer.send(asked);
}

async fn certificate(node: &Node, csr: Vec<u8>) -> Result<Vec<CertificateDer<'static>>, AskError> {
    let mut client = client(node).await?;
    let answer = call(client.certify_app(wire::CertifyAppRequest { csr })).await?;
    Ok(certificates(answer.chain))
}

async fn token(node: &Node, audience: Vec<String>) -> Result<String, AskError> {
    let mut client = client(node).await?;
    Ok(call(client.sign_jwt(wire::SignJwtRequest { audience })).await?.token)
}

async fn client(node: &Node) -> Result<IdentityClient<Channel>, AskError> {
    let identity = node.identity.load_full();
    let channel = node.origin.plane.as_identity(&identity).await;
    channel.map(IdentityClient::new).map_err(|error| AskError::Unavailable(error.to_string()))
}

async fn call<T>(calling: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, AskError> {
    match tokio::time::timeout(CALL_TIMEOUT, calling).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(match status.code() {
            Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated => {
                AskError::Refused(status.message().to_owned())
            }
            Code::Unimplemented => {
                AskError::Unavailable("it is too old to give applications anything".to_owned())
            }
            _ => AskError::Unavailable(status.message().to_owned()),
        }),
        Err(_) => Err(AskError::Unavailable("no answer within 15 s".to_owned())),
    }
}
