//! Destinations that are not meshed: passed on as they are where policy lets them, else refused.

use std::net::SocketAddr;
use std::rc::Rc;

use bytes::BytesMut;
use signet_identity::SpiffeId;
use signet_policy::{Refusal, Transport};
use tokio::net::TcpStream;

use crate::opaque;
use crate::recheck::Recheck;
use crate::ring::Direction;
use crate::sockets::dial;
use crate::worker::Worker;

/// Copies bytes to an unmeshed destination. DNS over TCP never gets here: it is not captured.
pub(crate) async fn serve(worker: &Rc<Worker>, own: &SpiffeId, client: TcpStream, address: SocketAddr) {
    let allowed = worker.shared.snapshot().index.egress(own, address.ip(), address.port(), Transport::Tcp);
    if let Err(refusal) = allowed {
        return super::explain(worker, client, address, refusal).await;
    }
    let Ok(server) = dial(address, worker.shared.config.exempt).await else {
        return super::refuse(worker, &client, Some(address), Refusal::UpstreamUnreachable);
    };
    worker.shared.metrics.plaintext.inc(Direction::Outbound);
    let source = own.clone();
    let recheck = Recheck::by(worker, move |snapshot| {
        let allowed = snapshot.index.egress(&source, address.ip(), address.port(), Transport::Tcp).is_ok();
        allowed && snapshot.lookup(address).is_none()
    });
    if let Err(error) = opaque::copy(client, BytesMut::new(), server, recheck).await {
        tracing::debug!(%address, %error, "unmeshed connection broke off");
    }
}
