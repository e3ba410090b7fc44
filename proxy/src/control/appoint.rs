//! Asks the control plane to give a role, on a connection of its own.

use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::identity_client::IdentityClient;
use tokio::sync::mpsc;
use tonic::Code;

use crate::appoint::{Refused, Request, Wish};
use crate::control::Node;
use crate::control::enrol::CALL_TIMEOUT;

/// Answers one wish after the other, for ever.
pub(super) async fn serve(node: &Node, requests: &mut mpsc::Receiver<Request>) {
    while let Some(Request { wish, mut answer }) = requests.recv().await {
        // Who asked may have left already; then nothing is done.
        let asked = tokio::select! {
            asked = ask(node, &wish) => asked,
            () = answer.closed() => continue,
        };
        // And may have left since.
        let _ = answer.send(asked);
    }
    std::future::pending().await
}

async fn ask(node: &Node, wish: &Wish) -> Result<u64, Refused> {
    let unavailable = |reason: String| Refused::Unavailable(reason);
    let identity = node.identity.load_full();
    let channel =
        node.origin.plane.as_identity(&identity).await.map_err(|error| unavailable(error.to_string()))?;
    let request = wire::AppointRequest {
        role: wish.role.clone(),
        spiffe_id: wish.identity.to_string(),
        not_after: wish.not_after.unwrap_or_default(),
    };
    let mut client = IdentityClient::new(channel);
    match tokio::time::timeout(CALL_TIMEOUT, client.appoint(request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner().not_after),
        Ok(Err(status)) => Err(match status.code() {
            Code::InvalidArgument
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::Unauthenticated => Refused::ByPolicy(status.message().to_owned()),
            Code::Unimplemented => unavailable("the control plane is too old to appoint".to_owned()),
            _ => unavailable(status.message().to_owned()),
        }),
        Err(_) => Err(unavailable("no answer within 15 s".to_owned())),
    }
}
